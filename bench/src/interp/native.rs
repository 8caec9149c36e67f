//! The loops on the processor itself, in this process.

#![expect(unsafe_code, reason = "runs the loops' machine code")]

use std::time::Duration;

use loader_actor::guests::loops;

use super::measure::Runner;
use super::pages::{Pages, call, own_cpu_time};
use super::rows::Row;
use crate::error::{BenchError, host};

/// The blob, executable, and an arena.
pub(crate) struct Native {
    code: Pages,
    arena: Pages,
}

impl Native {
    pub(crate) fn new() -> Result<Self, BenchError> {
        let what = "map memory for the loops";
        let bytes = (loops::blob().len() as u64).next_multiple_of(4096);
        let code = Pages::new(bytes).map_err(host(what))?;
        code.write(0, loops::blob());
        code.make_executable().map_err(host("make the loops executable"))?;
        let arena = Pages::new(loops::ARENA_BYTES).map_err(host(what))?;
        Ok(Self { code, arena })
    }

    fn call(&self, offset: usize, first: u64) {
        let at = self.code.address().wrapping_add(offset);
        // SAFETY: the blob's entries are such functions, and the arena is as large as they may take it to be.
        unsafe { call(at, first, self.arena.address()) };
    }
}

impl Runner for Native {
    fn run(&mut self, row: &Row, iterations: u64) -> Result<Option<Duration>, BenchError> {
        let Some(index) = row.blob_index() else { return Ok(None) };
        self.call(loops::prepare_offset(index), loops::LOOPS[index].pages);
        let clock = || own_cpu_time().map_err(host("read the clock of cpu time"));
        let before = clock()?;
        self.call(loops::run_offset(index), iterations);
        Ok(Some(clock()?.saturating_sub(before)))
    }
}
