//! A guest with a kernel's tables: segments, gates for all vectors, a task state.

use iced_x86::code_asm::CodeAssembler;

use super::{CODE, Guest};
use crate::Stop;
use crate::cpu::{reg, seg};
use crate::segment::{Segment, TableRegister};

pub(super) const GDT: u64 = 0x6000;
pub(super) const IDT: u64 = 0x7000;
pub(super) const TSS: u64 = 0x8000;
/// Sixteen bytes for each vector.
pub(super) const HANDLERS: u64 = 0xa000;
/// RSP0 to RSP2, 0x1000 apart.
pub(super) const RSP0: u64 = 0xa_0000;
/// IST1 to IST7.
pub(super) const IST: u64 = 0xb_0000;
/// The top of users' stack.
pub(super) const USER_STACK: u64 = 0xd_0000;

/// Selectors.
pub(super) mod sel {
    pub(crate) const CODE: u16 = 0x08;
    pub(crate) const DATA: u16 = 0x10;
    pub(crate) const USER_CODE32: u16 = 0x1b;
    pub(crate) const USER_DATA: u16 = 0x23;
    pub(crate) const USER_CODE: u16 = 0x2b;
    pub(crate) const TASK: u16 = 0x30;
    pub(crate) const LOCAL: u16 = 0x40;
    pub(crate) const CODE32: u16 = 0x50;
    pub(crate) const CODE16: u16 = 0x58;
    pub(crate) const DATA16: u16 = 0x60;
    pub(crate) const ABSENT: u16 = 0x68;
    /// A call gate, and its upper half.
    pub(crate) const GATE: u16 = 0x70;
}

/// A flat descriptor with these type, size and privilege bits (bits 40 to 55).
pub(super) fn flat(attributes: u64) -> u64 {
    0x000f_0000_0000_ffff | attributes << 40
}

/// A system descriptor's lower half.
pub(super) fn system_descriptor(base: u64, limit: u64, kind: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24 & 0xff) << 56
}

impl Guest {
    /// A long-mode guest with all tables. Each handler puts its vector in R15 and halts.
    pub(super) fn with_kernel() -> Self {
        let mut guest = Self::long();
        let memory = guest.memory.clone();
        let descriptors = [
            0,
            flat(0xa09b),
            flat(0xc093),
            flat(0xc0fb),
            flat(0xc0f3),
            flat(0xa0fb),
            system_descriptor(TSS, 0x1067, 0x89),
            0,
            system_descriptor(0x9000, 0xff, 0x82),
            0,
            flat(0xc09b),
            flat(0x009b),
            flat(0x0093),
            flat(0xc013),
            0,
            0,
        ];
        for (index, descriptor) in (0..).zip(descriptors) {
            memory.write64(GDT + 8 * index, descriptor);
        }
        for vector in 0..256 {
            guest.set_gate(vector, 0x8e, 0);
            let mut code = vec![0x41, 0xbf];
            code.extend(u32::try_from(vector).unwrap().to_le_bytes());
            code.push(0xf4);
            memory.write(HANDLERS + 16 * vector, &code);
        }
        for level in 0..3 {
            memory.write64(TSS + 4 + 8 * level, RSP0 + 0x1000 * level);
        }
        for stack in 1..8 {
            memory.write64(TSS + 28 + 8 * stack, IST + 0x1000 * stack);
        }
        memory.write(TSS + 0x66, &0x68u16.to_le_bytes());
        memory.write(TSS + 0x68, &[0xff; 0x1000]);
        let cpu = &mut guest.processor.cpu;
        cpu.gdtr = TableRegister { base: GDT, limit: 0x7f };
        cpu.idtr = TableRegister { base: IDT, limit: 0xfff };
        let task = Segment { selector: sel::TASK, base: TSS, limit: 0x1067, attributes: 0x8b };
        cpu.tr = task;
        guest
    }

    /// The gate of a vector: its type byte (0x8e: interrupt, 0x8f: trap, +0x60: for users) and stack.
    pub(super) fn set_gate(&mut self, vector: u64, kind: u64, stack: u64) {
        let target = HANDLERS + 16 * vector;
        let low = target & 0xffff
            | u64::from(sel::CODE) << 16
            | stack << 32
            | kind << 40
            | (target >> 16 & 0xffff) << 48;
        self.memory.write64(IDT + 16 * vector, low);
        self.memory.write64(IDT + 16 * vector + 8, target >> 32);
    }

    /// Runs `code` at privilege 3, on the users' stack.
    pub(super) fn run_user(&mut self, assemble: impl FnOnce(&mut CodeAssembler)) -> Stop {
        self.become_user();
        self.run(assemble)
    }

    /// At privilege 3 from now on.
    pub(super) fn become_user(&mut self) {
        let cpu = &mut self.processor.cpu;
        let flat =
            Segment { selector: sel::USER_DATA, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
        for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            cpu.set_segment(which, flat);
        }
        cpu.set_segment(seg::CS, Segment { selector: sel::USER_CODE, attributes: 0xa0fb, ..flat });
        cpu.set_cpl(3);
        cpu.gpr[reg::RSP] = USER_STACK;
    }

    /// The vector whose handler has run, and its frame from the top of the stack up.
    pub(super) fn handled(&self, stop: Stop) -> (u64, Vec<u64>) {
        assert_eq!(stop, Stop::Halted, "at {:#x}", self.processor.cpu.rip);
        let rsp = self.reg(reg::RSP);
        (self.reg(15), (0..6).map(|index| self.memory.read64(rsp + 8 * index)).collect())
    }

    /// Runs code at the current privilege; it must end in the handler of `vector`, with this error code.
    pub(super) fn fails_with(
        &mut self,
        vector: u64,
        error: Option<u64>,
        assemble: impl FnOnce(&mut CodeAssembler),
    ) {
        let stop = self.run(assemble);
        let (seen, frame) = self.handled(stop);
        assert_eq!(seen, vector);
        match error {
            Some(error) => assert_eq!(frame[0], error, "the error code"),
            None => assert!((CODE..CODE + 0x1000).contains(&frame[0]), "no error code"),
        }
    }
}
