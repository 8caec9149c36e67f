//! What goes into a sequence and what comes out of it.

use crate::layout::DATA_BYTES;

/// The image that FXSAVE64 writes (Intel SDM vol. 1, "FXSAVE Area", 64-bit layout).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FloatingState(pub [u8; 512]);

/// Where the x87 registers start in the image; 16 bytes each, of which 10 count.
pub const FX_STACK: usize = 32;
/// Where the XMM registers start.
pub const FX_XMM: usize = 160;
/// Where MXCSR is.
pub const FX_MXCSR: usize = 24;
/// Where the bytes end that an instruction can change.
pub const FX_END: usize = 416;

impl FloatingState {
    /// What a new process has: all exceptions masked, registers empty and zero.
    #[must_use]
    pub fn initial() -> Self {
        let mut image = [0; 512];
        image[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        image[FX_MXCSR..FX_MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
        Self(image)
    }

    /// A 16-bit field.
    #[must_use]
    pub fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    /// MXCSR.
    #[must_use]
    pub fn mxcsr(&self) -> u32 {
        u32::from(self.word(FX_MXCSR)) | u32::from(self.word(FX_MXCSR + 2)) << 16
    }

    /// Writes bytes into the image.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A processor's user-visible state. Registers in the order of their encoding: rax, rcx, rdx, rbx, rsp,
/// rbp, rsi, rdi, r8 to r15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct State {
    /// General registers.
    pub general: [u64; 16],
    /// The next instruction, or the faulting one.
    pub rip: u64,
    /// Flags.
    pub flags: u64,
    /// Fills up to the next field's alignment.
    pub reserved: [u64; 6],
    /// x87, MMX and XMM.
    pub floating: FloatingState,
}

impl State {
    /// All zero but for what a new process has.
    #[must_use]
    pub fn initial() -> Self {
        Self {
            general: [0; 16],
            rip: 0,
            flags: 0x202,
            reserved: [0; 6],
            floating: FloatingState::initial(),
        }
    }
}

/// The registers' names, in their order.
pub const GENERAL_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It reached its end.
    Finished,
    /// The processor raised an exception; `State::rip` says where.
    Exception {
        /// 0 to 31.
        vector: u8,
        /// Zero where the vector has none.
        error: u32,
        /// CR2, for page faults.
        address: u64,
    },
    /// It ran longer than anybody wanted to wait.
    Endless,
    /// The software processor says that it does not know an instruction.
    Unknown,
    /// The software processor came out for a reason that no sequence gives it.
    Stopped,
}

/// What is left when a sequence has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How.
    pub ending: Ending,
    /// Registers.
    pub state: State,
    /// The data pages: [`DATA_BYTES`] of them.
    pub data: Box<[u8]>,
}

impl Outcome {
    /// Room for one.
    #[must_use]
    pub fn blank() -> Self {
        Self {
            ending: Ending::Endless,
            state: State::initial(),
            data: vec![0; DATA_BYTES].into_boxed_slice(),
        }
    }
}

/// What both processors are given.
#[derive(Clone, Debug)]
pub struct Input {
    /// Which of the sixty-four places of a batch: the code's address follows from it.
    pub slot: usize,
    /// Where in the slot's pages the code starts.
    pub entry: usize,
    /// The code, without its end.
    pub code: Vec<u8>,
    /// Registers; `rip` is set from `slot` and `entry` by whoever runs it.
    pub state: State,
    /// Which of the prepared data pages ([`crate::templates`]).
    pub template: usize,
}
