//! The memory that parent and child share, and the parent's side of passing the turn.
//!
//! # Invariant
//!
//! Everything but [`Header`]'s atomics belongs to whoever has the turn. The parent touches slots and code
//! only between [`Region::await_turn`] (or the start) and [`Region::pass_turn`], through `&mut self`; the child
//! only in between. The mappings live exactly as long as the [`Region`], and nobody else knows their address.

#![expect(unsafe_code, reason = "memory shared with a forked child, and the fork itself")]

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use soft_cpu::guest_memory::HostPage;

use super::NativeError;
use super::child;
use crate::layout::{CODE_BYTES, CODE_FILL, DATA_BYTES, EXIT, SLOTS, code_of_slot};
use crate::state::{Ending, Input, Outcome, State};

/// The turn is the parent's.
pub(super) const PARENT: u32 = 0;
/// The turn is the child's.
pub(super) const CHILD: u32 = 1;

/// What both look at while it is the other's turn.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(super) struct Header {
    /// Whose turn it is; a futex.
    pub(super) turn: AtomicU32,
    /// Slots in use.
    pub(super) count: AtomicU32,
    /// The slot that runs.
    pub(super) current: AtomicU32,
    /// Fills the page.
    reserved: AtomicU64,
}

/// One sequence's input and outcome.
#[repr(C, align(4096))]
pub(super) struct Slot {
    pub(super) input: State,
    pub(super) output: State,
    pub(super) template: usize,
    /// One of [`child::FINISHED`], [`child::EXCEPTION`], [`child::ENDLESS`].
    pub(super) kind: u64,
    pub(super) vector: u64,
    pub(super) error: u64,
    pub(super) address: u64,
    pub(super) data: [u8; DATA_BYTES],
}

/// All that is shared.
#[repr(C, align(4096))]
pub(super) struct Shared {
    pub(super) header: Header,
    pub(super) slots: [Slot; SLOTS],
    pub(super) code: [[u8; CODE_BYTES]; SLOTS],
}

/// The parent's end.
#[derive(Debug)]
pub struct Region {
    shared: *mut Shared,
    memory: libc::c_int,
    child: libc::pid_t,
    /// Which bytes of each slot's code are not [`CODE_FILL`].
    written: [(usize, usize); SLOTS],
}

// SAFETY: the pointer is this value's own; it is used through `&mut self` only.
unsafe impl Send for Region {}

/// What the host said last.
fn refused(what: &'static str) -> NativeError {
    NativeError::Refused { what, source: io::Error::last_os_error() }
}

impl Region {
    /// Makes the memory and the first child.
    pub(super) fn start() -> Result<Self, NativeError> {
        // Templates and the like must exist before a fork: the child allocates nothing.
        let _ready = crate::templates::all();
        // SAFETY: a name and a flag; the result is checked.
        let memory = unsafe { libc::memfd_create(c"differential".as_ptr(), libc::MFD_CLOEXEC) };
        if memory < 0 {
            return Err(refused("memory for the child"));
        }
        let bytes = i64::try_from(size_of::<Shared>()).unwrap_or(i64::MAX);
        // SAFETY: our own descriptor.
        if unsafe { libc::ftruncate(memory, bytes) } != 0 {
            return Err(refused("memory for the child"));
        }
        // SAFETY: a new mapping wherever there is room; the result is checked.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                memory,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(refused("a shared mapping"));
        }
        let mut region =
            Self { shared: address.cast(), memory, child: 0, written: [(0, CODE_BYTES); SLOTS] };
        for slot in 0..SLOTS {
            region.slot_and_code(slot).1.fill(CODE_FILL);
            region.written[slot] = (0, 0);
        }
        region.fork()?;
        Ok(region)
    }

    /// What atomics there are.
    fn header(&self) -> &Header {
        // SAFETY: the mapping lives as long as `self`; only atomics are behind the reference.
        unsafe { &(*self.shared).header }
    }

    /// A slot and its code.
    fn slot_and_code(&mut self, slot: usize) -> (&mut Slot, &mut [u8; CODE_BYTES]) {
        // SAFETY: the mapping lives as long as `self` and is borrowed exclusively with it; it is the parent's
        // turn (the module's invariant); all bit patterns are valid for these types.
        let shared = unsafe { &mut *self.shared };
        (&mut shared.slots[slot], &mut shared.code[slot])
    }

    /// Makes a child that waits for its turn.
    fn fork(&mut self) -> Result<(), NativeError> {
        self.header().turn.store(PARENT, Ordering::Relaxed);
        // SAFETY: the child calls only what is safe after a fork of a process with threads: system calls and
        // its own code, no allocation, no locks (`child::live`).
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(refused("a child process")),
            0 => {
                // SAFETY: we are the forked child, and single-threaded; the shared mapping was inherited.
                unsafe { child::live(self.shared, self.memory) }
            }
            _ => {
                self.child = pid;
                Ok(())
            }
        }
    }

    /// Writes one sequence's code and input.
    pub(super) fn prepare(&mut self, place: usize, input: &Input) -> Result<(), NativeError> {
        let whole = with_end(&input.code);
        let end = input.entry + whole.len();
        if end > CODE_BYTES {
            return Err(NativeError::TooLong { bytes: input.code.len(), entry: input.entry });
        }
        let own = input.slot % SLOTS;
        let before = std::mem::replace(&mut self.written[own], (input.entry, end));
        let (_, code) = self.slot_and_code(own);
        code[before.0..before.1].fill(CODE_FILL);
        code[input.entry..end].copy_from_slice(&whole);
        let (slot, _) = self.slot_and_code(place);
        slot.input = input.state;
        slot.input.rip = code_of_slot(own) + input.entry as u64;
        slot.template = input.template;
        Ok(())
    }

    /// Reads what came out.
    pub(super) fn read_outcome(&mut self, place: usize, outcome: &mut Outcome) {
        let (slot, _) = self.slot_and_code(place);
        outcome.state = slot.output;
        outcome.data.copy_from_slice(&slot.data);
        outcome.ending = match slot.kind {
            child::FINISHED => Ending::Finished,
            child::EXCEPTION => Ending::Exception {
                vector: u8::try_from(slot.vector).unwrap_or(u8::MAX),
                error: u32::try_from(slot.error).unwrap_or(u32::MAX),
                address: slot.address,
            },
            _ => Ending::Endless,
        };
    }

    /// It is the child's turn, with `count` slots to run.
    pub(super) fn pass_turn(&mut self, count: usize) {
        let header = self.header();
        header.count.store(u32::try_from(count).unwrap_or(0), Ordering::Relaxed);
        header.turn.store(CHILD, Ordering::Release); // Pairs with the child's acquire: slots and code are written.
        futex_wake(&header.turn);
    }

    /// Waits until it is the parent's turn. A child that does not get on at all is ended.
    pub(super) fn await_turn(&mut self) -> Result<(), NativeError> {
        /// Nanoseconds of one wait, and waits without progress: a minute, for the machine may be busy.
        const WAIT: i64 = 200_000_000;
        const PATIENCE: u32 = 300;
        let mut seen = (u32::MAX, 0);
        // Acquire pairs with the child's release: outcomes are written.
        while self.header().turn.load(Ordering::Acquire) == CHILD {
            futex_wait(&self.header().turn, CHILD, WAIT);
            if self.header().turn.load(Ordering::Acquire) != CHILD {
                break;
            }
            let current = self.header().current.load(Ordering::Relaxed);
            seen = if seen.0 == current { (current, seen.1 + 1) } else { (current, 0) };
            if seen.1 == PATIENCE {
                // SAFETY: our own child, which was not waited for yet.
                unsafe { libc::kill(self.child, libc::SIGKILL) };
            }
            if let Some(status) = self.died() {
                self.fork()?;
                return Err(NativeError::Died { status, slot: current as usize });
            }
        }
        Ok(())
    }

    /// How the child ended, if it did.
    fn died(&mut self) -> Option<String> {
        let mut status = 0;
        // SAFETY: our own child; the status is ours.
        let pid = unsafe { libc::waitpid(self.child, &raw mut status, libc::WNOHANG) };
        (pid != 0).then(|| {
            self.child = 0;
            if libc::WIFSIGNALED(status) {
                format!("signal {}", libc::WTERMSIG(status))
            } else {
                format!("exit status {}", libc::WEXITSTATUS(status))
            }
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.child > 0 {
            // SAFETY: our own child, which was not waited for yet.
            unsafe { libc::kill(self.child, libc::SIGKILL) };
            // SAFETY: the same child; no status is wanted.
            unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
        }
        // SAFETY: our own mapping; no reference outlives `self`.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
        // SAFETY: our own descriptor.
        unsafe { libc::close(self.memory) };
    }
}

/// The code and the jump behind it: `jmp qword ptr [rip]` and the address of the way out.
#[must_use]
pub fn with_end(code: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(code.len() + 14);
    whole.extend_from_slice(code);
    whole.extend_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
    whole.extend_from_slice(&EXIT.to_le_bytes());
    whole
}

/// Sleeps while `word` is `value`, at most so many nanoseconds.
pub(super) fn futex_wait(word: &AtomicU32, value: u32, nanoseconds: i64) {
    let limit = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
    // SAFETY: the word lives; the kernel only compares it. Shared between processes, so not private.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const limit)
    };
}

/// Wakes whoever sleeps on `word`.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word lives; the kernel only takes its address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// Whole pages that a guest's processor changes, too: the software processor's guest memory.
///
/// The same invariant: whoever has the turn. [`Pages::read`] and [`Pages::write`] are for while no processor runs.
#[derive(Debug)]
pub struct Pages {
    start: *mut u8,
    count: usize,
}

// SAFETY: the pointer is this value's own and its clones', which are kept together by their one user.
unsafe impl Send for Pages {}
// SAFETY: likewise: what is behind it is accessed by whoever has the turn.
unsafe impl Sync for Pages {}

impl Pages {
    /// So many pages, all zero, for as long as the process lives.
    ///
    /// # Errors
    ///
    /// When the host has none.
    pub fn new(count: usize) -> Result<Self, NativeError> {
        let page = usize::try_from(crate::layout::PAGE).unwrap_or(usize::MAX);
        // SAFETY: a new mapping wherever there is room; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(refused("memory for a guest"));
        }
        Ok(Self { start: start.cast(), count })
    }

    /// Page `number`, for a processor.
    #[must_use]
    pub fn page(&self, number: usize) -> Option<HostPage> {
        let offset = number * usize::try_from(crate::layout::PAGE).unwrap_or(0);
        // SAFETY: page-aligned and inside the mapping, which is never undone.
        (number < self.count).then(|| unsafe { HostPage::new(self.start.wrapping_add(offset)) })
    }

    /// Where `bytes` bytes at `offset` are.
    fn place(&self, offset: usize, bytes: usize) -> *mut u8 {
        let size = self.count * usize::try_from(crate::layout::PAGE).unwrap_or(0);
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= size), "inside the pages");
        self.start.wrapping_add(offset)
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.place(offset, bytes.len());
        // SAFETY: checked to be inside; no processor runs, and no reference into the pages exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.place(offset, bytes.len());
        // SAFETY: as for `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }
}
