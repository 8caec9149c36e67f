//! Pages on their way in, and what the workers answer.

use actors::contract::space::SpaceError;
use actors::{Gpa, GpaRange};

use super::{Unserved, VmSpace};
use crate::content::Job;
use crate::mirror::Mirror;
use crate::object::{Page, Stored};
use crate::swap::workers::FetchPage;
use crate::swap::{Laundered, PAGE_BYTES, SwapError};

impl<M: Mirror> VmSpace<M> {
    /// Brings the contents of the page of `gpa` into its frame, if it was ever anywhere else. `false`: it waits, for the
    /// disk or for room.
    pub(super) fn bring_in(&mut self, gpa: Gpa) -> Result<bool, Unserved> {
        let number = self.page_number(gpa);
        let state = self.content.get(number);
        if matches!(state, Page::Stored(_)) && !self.content.has_room(1) {
            return Ok(false);
        }
        match state {
            Page::Absent | Page::Resident(_) => {}
            Page::Leaving(_) => self.content.rescue(number),
            Page::Stored(Stored::Zero) => {
                self.memory.populate(GpaRange::page_of(gpa))?;
                self.content.appear_as_zeroes(number);
            }
            Page::Stored(Stored::Compressed) => {
                let mut bytes = [0; PAGE_BYTES];
                self.content.unpack(number, &mut bytes)?;
                self.memory.fill_frame(number, &bytes)?;
                self.content.unpacked(number);
            }
            Page::Stored(Stored::Disk(_)) => {
                self.content.fetch(number);
                return Ok(false);
            }
            Page::Arriving(_) => return Ok(false),
        }
        Ok(true)
    }

    /// Brings all of `range` in that is elsewhere, in one go. `false`: some of it waits.
    pub(super) fn bring_in_all(&mut self, range: GpaRange) -> Result<bool, SpaceError> {
        let mut all = true;
        for page in range.iter_pages() {
            all &= self.bring_in(page).map_err(|error| SpaceError::Host {
                what: "bring a page back",
                why: error.to_string(),
            })?;
        }
        Ok(all)
    }

    /// What the workers are to do.
    pub(crate) fn take_jobs(&mut self) -> Vec<Job> {
        self.content.take_jobs()
    }

    /// Pageout packed pages: the frames of those that were not rescued are free.
    ///
    /// # Errors
    ///
    /// The host's refusal, or that a frame could not be read.
    pub(crate) fn laundered(
        &mut self,
        ticket: u64,
        pages: Vec<(u64, Laundered)>,
    ) -> Result<(), SpaceError> {
        let (freed, unreadable) = self.content.laundered(ticket, pages);
        self.free_pages(&freed)?;
        match unreadable {
            None => Ok(()),
            Some(error) => {
                Err(SpaceError::Host { what: "read guest memory", why: error.to_string() })
            }
        }
    }

    /// Pageout wrote pages, or failed to.
    ///
    /// # Errors
    ///
    /// That it failed; the pages are in memory.
    pub(crate) fn written(
        &mut self,
        ticket: u64,
        result: Result<u32, SwapError>,
    ) -> Result<(), SwapError> {
        self.content.written(ticket, result)
    }

    /// Pagein read a page, or failed to.
    ///
    /// # Errors
    ///
    /// That it failed, and somebody wanted the page. What was only read along stays on disk.
    pub(crate) fn fetched(
        &mut self,
        read: FetchPage,
        is_readahead: bool,
        result: Result<Box<crate::swap::Page>, SwapError>,
    ) -> Result<(), Unserved> {
        if !self.content.is_arriving(&read) {
            return Ok(());
        }
        let page = match result {
            Ok(page) => page,
            Err(error) => {
                self.content.did_not_arrive(&read);
                return if is_readahead { Ok(()) } else { Err(error.into()) };
            }
        };
        if let Err(error) = self.memory.fill_frame(read.page, &page) {
            self.content.did_not_arrive(&read);
            return Err(error.into());
        }
        self.content.arrived(&read);
        Ok(())
    }
}
