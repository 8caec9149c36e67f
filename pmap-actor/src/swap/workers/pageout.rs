//! Packs pages that leave, and writes clusters.

use std::sync::Arc;

use super::{Answer, Launder, Worker, Write, WritePage};
use crate::host::memory::GuestMemory;
use crate::swap::codec::Packer;
use crate::swap::file::RunBuffer;
use crate::swap::{CLUSTER_PAGES, Laundered, PAGE_BYTES, SwapError, SwapFile};

/// What pageout does.
pub(super) enum Order {
    Launder(Launder),
    Write(Write),
}

pub(super) struct Pageout {
    memory: Arc<GuestMemory>,
    file: Arc<SwapFile>,
    packer: Packer,
    run: RunBuffer,
}

impl Pageout {
    pub(super) fn new(memory: Arc<GuestMemory>, file: Arc<SwapFile>) -> Self {
        Self { memory, file, packer: Packer::default(), run: RunBuffer::new(CLUSTER_PAGES) }
    }

    pub(super) fn run(mut self, worker: &Worker<Order>) {
        while let Some(order) = worker.next() {
            let answer = match order {
                Order::Launder(Launder { ticket, pages }) => {
                    let launder = |page| {
                        worker.pulse.beat();
                        (page, self.launder(page))
                    };
                    Answer::Laundered { ticket, pages: pages.into_iter().map(launder).collect() }
                }
                Order::Write(Write { ticket, pages }) => {
                    Answer::Written { ticket, result: self.write(&pages, worker) }
                }
            };
            worker.answer(answer);
        }
    }

    fn launder(&mut self, page: u64) -> Laundered {
        let mut copy = [0; PAGE_BYTES];
        match self.memory.copy_frame(page, &mut copy) {
            Ok(()) => self.packer.pack(&copy),
            Err(error) => Laundered::Unreadable(error.to_string()),
        }
    }

    fn write(&mut self, pages: &[WritePage], worker: &Worker<Order>) -> Result<u32, SwapError> {
        let mut writes = 0;
        let neighbours =
            |one: &WritePage, next: &WritePage| one.slot.0.checked_add(1) == Some(next.slot.0);
        let runs = pages.chunk_by(neighbours).flat_map(|run| run.chunks(CLUSTER_PAGES));
        for run in runs {
            let room = &mut self.run.pages_mut()[..run.len()];
            for (page, from) in room.iter_mut().zip(run) {
                from.packed.unpack_into(page)?;
            }
            worker.pulse.beat();
            self.file.write(run[0].slot, room)?;
            writes += 1;
        }
        Ok(writes)
    }
}
