//! Reads pages, the wanted one first, and its neighbours while the disk is at it.

use std::sync::Arc;

use super::{Answer, Fetch, FetchPage, Worker};
use crate::swap::file::RunBuffer;
use crate::swap::{CLUSTER_PAGES, Checksum, Page, SwapError, SwapFile};

pub(super) struct Pagein {
    file: Arc<SwapFile>,
    run: RunBuffer,
}

impl Pagein {
    pub(super) fn new(file: Arc<SwapFile>) -> Self {
        Self { file, run: RunBuffer::new(CLUSTER_PAGES) }
    }

    pub(super) fn run(mut self, worker: &Worker<Fetch>) {
        while let Some(Fetch { wanted, readahead }) = worker.next() {
            let mut pages = readahead;
            pages.push(wanted);
            pages.sort_unstable_by_key(|page| page.slot);
            let neighbours =
                |one: &FetchPage, next: &FetchPage| one.slot.0.checked_add(1) == Some(next.slot.0);
            let runs: Vec<_> =
                pages.chunk_by(neighbours).flat_map(|run| run.chunks(CLUSTER_PAGES)).collect();
            let (with_wanted, others): (Vec<_>, Vec<_>) =
                runs.into_iter().partition(|run| run.contains(&wanted));
            for run in with_wanted.into_iter().chain(others) {
                self.fetch(run, wanted, worker);
            }
        }
    }

    /// Reads a run with one call; or, if that fails, each page alone, because what is wrong
    /// with one is no reason to lose its neighbours.
    fn fetch(&mut self, run: &[FetchPage], wanted: FetchPage, worker: &Worker<Fetch>) {
        worker.pulse.beat();
        let room = &mut self.run.pages_mut()[..run.len()];
        let whole = self.file.read(run[0].slot, room);
        let wanted_first = run.iter().enumerate().filter(|(_, page)| **page == wanted);
        let others = run.iter().enumerate().filter(|(_, page)| **page != wanted);
        for (place, page) in wanted_first.chain(others) {
            let read = match &whole {
                Ok(()) => Ok(()),
                Err(error) if run.len() == 1 => Err(error.clone()),
                Err(_) => {
                    worker.pulse.beat();
                    self.file.read(page.slot, &mut room[place..=place])
                }
            };
            worker.answer(Answer::Fetched {
                read: *page,
                is_readahead: *page != wanted,
                result: read.and_then(|()| compared(&room[place], page)),
            });
        }
    }
}

/// A page that is what was written, or why it is not one.
fn compared(page: &Page, expected: &FetchPage) -> Result<Box<Page>, SwapError> {
    if Checksum::of(page) == expected.checksum {
        Ok(Box::new(*page))
    } else {
        Err(SwapError::OtherBytes { slot: expected.slot })
    }
}
