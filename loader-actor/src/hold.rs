//! Holding guest memory while it is written.

use actors::contract::boot::MemoryPort;
use actors::contract::space::SpaceError;
use actors::pulse::Pulse;
use actors::{GpaRange, Protection};

/// Pages that stay where they are while this lives. Dropping gives them back.
#[must_use = "memory may only be touched while this lives"]
pub(crate) struct Held<'p> {
    port: &'p dyn MemoryPort,
    ranges: Vec<GpaRange>,
    install: bool,
}

impl<'p> Held<'p> {
    /// Holds `ranges` for writing; they must not overlap.
    pub(crate) fn for_writing(
        port: &'p dyn MemoryPort,
        ranges: Vec<GpaRange>,
        pulse: &Pulse,
    ) -> Result<Self, SpaceError> {
        // The pmap answers with a deadline of its own: waiting for it is not hanging.
        pulse.rest();
        let held = port.hold(&ranges, Protection::WRITE);
        pulse.beat();
        held.map(|()| Self { port, ranges, install: false })
    }

    /// Where to write.
    pub(crate) fn memory(&self) -> &vm_memory::GuestMemoryMmap {
        self.port.memory()
    }

    /// All is written: give the pages back and let them enter the guest's tables at once.
    pub(crate) fn finish(mut self) {
        self.install = true;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.port.release(&self.ranges, self.install);
    }
}

/// The fewest ranges of whole pages that contain all of `stretches` (start and length in
/// bytes). Empty stretches and such as wrap around are left out: nothing can be there.
pub(crate) fn pages_of(stretches: impl IntoIterator<Item = (actors::Gpa, u64)>) -> Vec<GpaRange> {
    let mut ranges: Vec<GpaRange> = stretches
        .into_iter()
        .filter_map(|(start, len)| GpaRange::covering(start, len).ok())
        .collect();
    ranges.sort_by_key(|range| range.start());
    let mut merged: Vec<GpaRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start() <= last.end() => {
                let end = range.end().max(last.end());
                *last = GpaRange::new(last.start(), end.0 - last.start().0)
                    .expect("two ranges that meet are one range");
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use actors::Gpa;

    use super::*;

    #[test]
    fn a_page_two_stretches_share_is_held_once() {
        let ranges = pages_of([
            (Gpa(0x5000), 0x20),
            (Gpa(0x1800), 0x900),
            (Gpa(0x1000), 0x10),
            (Gpa(0x3000), 0),
            (Gpa(0x6000), 0x1000),
        ]);
        let expected = [(0x1000, 0x2000), (0x5000, 0x2000)]
            .map(|(start, len)| GpaRange::new(Gpa(start), len).unwrap());
        assert_eq!(ranges, expected);
    }
}
