//! Accesses to devices that an instruction has had answered already.
//!
//! An instruction that needs a device is not done; the device is asked outside, and the instruction done again,
//! with the answer at hand. One that needs several gets them one after the other: all answers so far are kept
//! until it is done.

use crate::event::DeviceAccess;

/// More than any instruction makes before it commits: a 64-byte operand in 8-byte pieces, twice.
const MOST: usize = 16;

/// The answers.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    answered: Vec<DeviceAccess>,
    next: usize,
}

impl Replay {
    /// Whether an instruction is to be done again.
    pub(crate) fn is_pending(&self) -> bool {
        !self.answered.is_empty()
    }

    /// The instruction starts again.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
    }

    /// It, or one element of its string, is done.
    pub(crate) fn retire(&mut self) {
        self.answered.clear();
        self.next = 0;
    }

    /// A device has answered: for a read, `value` is what it said.
    pub(crate) fn answer(&mut self, access: DeviceAccess) {
        if self.answered.len() == MOST {
            self.answered.clear();
        }
        self.answered.push(access);
    }

    /// The answer to this access, if it was made before: for a write 0.
    pub(crate) fn recall(&mut self, at: u64, bytes: u8) -> Option<u64> {
        let answer = self.answered.get(self.next)?;
        if answer.at != at || answer.bytes != bytes {
            return None;
        }
        self.next += 1;
        Some(answer.value.unwrap_or(0))
    }
}
