//! The two workers, played: what was ordered is done when the test says so, and heard when it says so.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::content::Job;
use crate::host::memory::GuestMemory;
use crate::swap::codec::Packer;
use crate::swap::workers::{Answer, Fetch, FetchPage};
use crate::swap::{Checksum, Laundered, PAGE_BYTES, Page, SwapError};

/// See the module.
#[derive(Default)]
pub(super) struct Workers {
    pageout: VecDeque<Job>,
    pagein: VecDeque<Fetch>,
    pub(super) pageout_says: VecDeque<Answer>,
    pub(super) pagein_says: VecDeque<Answer>,
    /// The swap file.
    pub(super) slots: HashMap<u32, Box<Page>>,
    packer: Packer,
}

impl Workers {
    pub(super) fn take(&mut self, jobs: Vec<Job>) {
        for job in jobs {
            match job {
                Job::Fetch(fetch) => self.pagein.push_back(fetch),
                job => self.pageout.push_back(job),
            }
        }
    }

    /// Does the next order of pageout. `owned`: slots that hold somebody's page, which nobody may write to.
    pub(super) fn pageout(&mut self, memory: &GuestMemory, owned: &BTreeSet<u32>, fails: bool) {
        match self.pageout.pop_front() {
            None => {}
            Some(Job::Launder(order)) => {
                let mut bytes = [0; PAGE_BYTES];
                let mut fails = fails;
                let mut launder = |page| {
                    if std::mem::take(&mut fails) {
                        return (page, Laundered::Unreadable("as asked".to_owned()));
                    }
                    memory.copy_frame(page, &mut bytes).unwrap();
                    (page, self.packer.pack(&bytes))
                };
                let pages = order.pages.into_iter().map(&mut launder).collect();
                self.pageout_says.push_back(Answer::Laundered { ticket: order.ticket, pages });
            }
            Some(Job::Write(order)) => {
                let mut result = Ok(1);
                for page in order.pages {
                    assert!(
                        !owned.contains(&page.slot.0),
                        "{} is written to while in use",
                        page.slot
                    );
                    let mut bytes = Box::new([0xee; PAGE_BYTES]);
                    if fails {
                        result = Err(SwapError::DiskFull { slot: page.slot });
                    } else {
                        page.packed.unpack_into(&mut bytes).unwrap();
                    }
                    self.slots.insert(page.slot.0, bytes);
                }
                self.pageout_says.push_back(Answer::Written { ticket: order.ticket, result });
            }
            Some(Job::Fetch(_)) => unreachable!("it is pagein's"),
        }
    }

    /// Does the next order of pagein.
    pub(super) fn pagein(&mut self, fails: bool) {
        let Some(Fetch { wanted, readahead }) = self.pagein.pop_front() else { return };
        let all =
            std::iter::once((wanted, false)).chain(readahead.into_iter().map(|it| (it, true)));
        for (read, is_readahead) in all {
            let result = self.read(&read, fails);
            self.pagein_says.push_back(Answer::Fetched { read, is_readahead, result });
        }
    }

    fn read(&self, read: &FetchPage, fails: bool) -> Result<Box<Page>, SwapError> {
        let page = self.slots.get(&read.slot.0).expect("what is read was written");
        if fails {
            return Err(SwapError::Read { slot: read.slot, why: "as asked".to_owned() });
        }
        if Checksum::of(page) != read.checksum {
            return Err(SwapError::OtherBytes { slot: read.slot });
        }
        Ok(page.clone())
    }

    pub(super) fn are_idle(&self) -> bool {
        self.pageout.is_empty()
            && self.pagein.is_empty()
            && self.pageout_says.is_empty()
            && self.pagein_says.is_empty()
    }
}
