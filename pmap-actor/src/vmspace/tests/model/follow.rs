//! Each step, done to the vmspace and to the model; their answers must agree. (`requests.rs`: those that wait for shootdowns.)

use actors::contract::space::SpaceError;
use actors::{Access, PAGE_SIZE, Protection};
use vm_memory::{Bytes, GuestAddress};

use super::walker::Watched;
use super::{
    BLOCK_PAGES, Bench, InFlight, Outcome, Page, Removed, Step, Unserved, Worker, contents, index,
};
use crate::ept::masks::PmapFlags;
use crate::object::Page as State;
use crate::swap::workers::Answer;
use crate::vmspace::Served;

impl<M: Watched> Bench<M> {
    pub(super) fn follow(&mut self, step: &Step) {
        match *step {
            Step::Touch(who, page, access) => {
                self.raise();
                self.touch(who, page, access);
            }
            Step::TouchAll(block, access) => {
                self.raise();
                for page in block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES {
                    if !self.touch(0, page, access) {
                        break;
                    }
                }
            }
            Step::Report(page, access) => {
                self.raise();
                self.fault(page, access);
            }
            Step::HoldStore(which, page) => {
                self.raise();
                self.hold_store(which, page);
            }
            Step::Work(worker, fails) => self.work(worker, fails),
            Step::Hear(worker) => self.hear(worker),
            Step::Drain => self.drain(),
            Step::Finish => self.finish(),
            ref request => self.request(request),
        }
    }

    // ---- shootdowns ----------------------------------------------------------------------

    /// A removal joins those before it while their shootdown has not begun.
    pub(super) fn take_away(&mut self, removed: Removed) {
        match &mut self.in_flight {
            Some(in_flight) => in_flight.removed.join(removed),
            None => self.in_flight = Some(InFlight { removed, raised: false }),
        }
    }

    /// Before anything else happens, the shootdown begins; or there is none, because nobody can have cached anything.
    pub(super) fn raise(&mut self) {
        let Some(in_flight) = &mut self.in_flight else { return self.carry_left_over() };
        if in_flight.raised {
            return;
        }
        in_flight.raised = true;
        if in_flight.removed.is_harmless() {
            self.give_back();
        }
    }

    fn carry_left_over(&mut self) {
        let left = self.space.take_left_over();
        if !left.is_harmless() {
            self.take_away(left);
            self.raise();
        }
    }

    /// Every processor forgets what it knew.
    pub(super) fn finish(&mut self) {
        self.raise();
        while self.in_flight.is_some() {
            for walker in &mut self.walkers {
                walker.0.clear();
            }
            self.give_back();
            self.carry_left_over();
        }
    }

    fn give_back(&mut self) {
        let Some(in_flight) = self.in_flight.take() else { return };
        self.space.give_back(in_flight.removed).unwrap();
        for page in self.pages.iter_mut().filter(|page| page.going) {
            *page = Page { protection: page.protection, ..Page::default() };
        }
        for cached in self.walkers.iter_mut().flat_map(|walker| walker.0.values_mut()) {
            cached.is_old = false;
        }
        for who in 0..self.consumers.len() {
            if self.consumers[who].is_closing {
                self.take_epoch(who);
            }
        }
        self.hear_ends();
    }

    fn take_epoch(&mut self, who: usize) {
        let consumer = &mut self.consumers[who];
        consumer.is_closing = false;
        let (number, pages) = self.space.take_dirty(consumer.id).unwrap();
        let mut all = std::mem::take(&mut consumer.pending);
        if let Some((_, unsettled)) = consumer.taken.take() {
            all.extend(unsettled);
        }
        let missing: Vec<_> = all.iter().filter(|page| !pages.contains(**page)).collect();
        assert!(missing.is_empty(), "{:?} does not hear of {missing:?}", consumer.id);
        consumer.taken = Some((number, all));
        consumer.pending = std::mem::take(&mut consumer.fresh);
    }

    // ---- who uses memory -----------------------------------------------------------------

    /// As a processor does; whether it got through.
    pub(super) fn touch(&mut self, who: usize, page: u64, access: Access) -> bool {
        if self.pages[index(page)].device {
            return self.touch_device(page, access);
        }
        let at = self.gpa(page);
        let cached = self.walkers[who].find(at, access);
        let is_old = cached.is_some_and(|cached| cached.is_old);
        let from_cache = cached.is_some();
        if !from_cache && !self.walk(who, page, access) {
            return false;
        }
        let state = self.space.content.get(page);
        assert!(
            matches!(state, State::Resident(_) | State::Leaving(_)),
            "page {page}, which is {state:?}, is used"
        );
        if access == Access::Write {
            self.store(page, from_cache && self.in_flight.is_some(), is_old);
        } else {
            assert!(
                self.holds_stamp(page),
                "wrong data in page {page}: {:?}",
                self.pages[index(page)]
            );
        }
        let told = !from_cache || self.in_flight.is_none();
        if told && self.pages[index(page)].or_zero {
            // Whoever has seen what it is sees the same from now on.
            let stamp = self.read_word(page, 0);
            let model = &mut self.pages[index(page)];
            (model.stamp, model.or_zero) = (stamp, false);
        }
        // With emulated bits a page may be executable that nobody may read, and a fetch leaves no trace then.
        let flags = self.setup.flags;
        let leaves_no_trace = access == Access::Execute
            && flags.contains(PmapFlags::EMULATE_AD_BITS | PmapFlags::EXECUTE_ONLY)
            && !self.setup.mirrored;
        let model = &mut self.pages[index(page)];
        model.used |= !from_cache && !leaves_no_trace;
        model.stored |= told && access == Access::Write;
        true
    }

    /// What is allowed needs no fault; whoever comes all the same is told that nothing is missing.
    fn touch_device(&mut self, page: u64, access: Access) -> bool {
        let at = self.gpa(page);
        let rights = self.pages[index(page)].protection.unwrap_or(Protection::empty());
        let allowed = rights.contains(access.needs());
        let found = self.space.tables().view().translate(at, access);
        assert_eq!(found.is_ok(), allowed, "{at} is a device's, of which {rights:?} is allowed");
        let before = self.space.tables().leaf(at);
        assert_eq!(
            self.fault(page, access),
            allowed || self.setup.mirrored && access == Access::Execute
        );
        assert_eq!(self.space.tables().leaf(at), before);
        allowed
    }

    /// Finds a translation; faults where there is none.
    fn walk(&mut self, who: usize, page: u64, access: Access) -> bool {
        let at = self.gpa(page);
        if self.reaches(who, page, access) {
            return true;
        }
        if !self.fault(page, access) {
            return false;
        }
        assert!(self.reaches(who, page, access), "a fault at {at} was served in vain ({access:?})");
        true
    }

    fn reaches(&mut self, who: usize, page: u64, access: Access) -> bool {
        let at = self.gpa(page);
        if let Some(mirrored) = self.space.mirror.state(at) {
            // The host mapping does not tell a fetch from a load.
            return mirrored.is_some_and(|writable| writable || access != Access::Write);
        }
        let found = self.space.tables().view().translate(at, access);
        if let Ok(translation) = found {
            let offset = at.0 & (translation.bytes - 1);
            assert_eq!(translation.frame + offset, page * PAGE_SIZE, "{at}");
            self.walkers[who].keep(at, translation);
        }
        found.is_ok()
    }

    /// Whether it was served.
    fn fault(&mut self, page: u64, access: Access) -> bool {
        let at = self.gpa(page);
        let access = match access {
            Access::Execute if self.setup.mirrored => Access::Read,
            access => access,
        };
        let rights = self.pages[index(page)].protection.unwrap_or(Protection::empty());
        let before = self.space.content.usage();
        let outcome = self.space.fault(at, access);
        let limit = self.setup.store.map_or(u64::MAX, |store| store.resident_bytes);
        let after = self.space.content.usage();
        assert!(after <= before.max(limit), "a fault at {at} takes {after} bytes of {limit}");
        match outcome {
            Ok(Outcome::Served(served)) => {
                assert!(rights.contains(Protection::READ | access.needs()), "served: {rights:?}");
                if let Served::ZeroFilled(_) = served {
                    let model = &self.pages[index(page)];
                    assert!(model.stamp == 0 || model.or_zero, "page {page} is served as zeroes");
                }
                true
            }
            Ok(Outcome::Waits) => {
                assert!(self.setup.store.is_some(), "a fault waits for nothing");
                false
            }
            Err(Unserved::Hole) => {
                assert!(!rights.contains(Protection::READ), "no hole: {rights:?}");
                false
            }
            Err(Unserved::Forbidden) => {
                assert!(!rights.contains(access.needs()), "allowed: {rights:?}");
                false
            }
            Err(error) => panic!("page {page}: {error}"),
        }
    }

    /// `stale`: through a translation whose shootdown is under way, perhaps; `is_old`: that was there when an epoch was closed.
    fn store(&mut self, page: u64, stale: bool, is_old: bool) {
        self.last_stamp += 1;
        let stamp = self.last_stamp;
        let place = GuestAddress(self.gpa(page).0);
        self.memory.backing().write_slice(&contents(stamp), place).unwrap();
        let model = &mut self.pages[index(page)];
        model.stamp = stamp;
        // What is stored while its page is being given up may be given up with it.
        model.or_zero &= stale;
        for consumer in &mut self.consumers {
            let set = if consumer.is_closing && !is_old {
                &mut consumer.fresh
            } else {
                &mut consumer.pending
            };
            set.insert(page);
        }
    }

    fn hold_store(&mut self, which: usize, page: u64) {
        let Some(&(span, rights)) = self.holds.get(which) else { return };
        if rights.contains(Protection::WRITE) && page < span.pages {
            self.store(span.first + page, false, false);
        }
    }

    // ---- workers -------------------------------------------------------------------------

    fn work(&mut self, worker: Worker, fails: bool) {
        self.workers.take(self.space.take_jobs());
        match worker {
            Worker::Pageout => {
                let owned = self.owned_slots();
                self.workers.pageout(&self.memory, &owned, fails);
            }
            Worker::Pagein => self.workers.pagein(fails),
        }
    }

    fn hear(&mut self, worker: Worker) {
        let said = match worker {
            Worker::Pageout => self.workers.pageout_says.pop_front(),
            Worker::Pagein => self.workers.pagein_says.pop_front(),
        };
        match said {
            None => {}
            Some(Answer::Laundered { ticket, pages }) => {
                // Refused only where a page could not be read, which the worker said.
                match self.space.laundered(ticket, pages) {
                    Ok(()) | Err(SpaceError::Host { what: "read guest memory", .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Some(Answer::Written { ticket, result }) => {
                let failed = result.is_err();
                assert_eq!(self.space.written(ticket, result).is_err(), failed);
            }
            Some(Answer::Fetched { read, is_readahead, result }) => {
                let why = result.as_ref().err().cloned();
                let was_wanted = self.space.content.is_arriving(&read);
                let heard = self.space.fetched(read, is_readahead, result);
                match (heard, why) {
                    (Ok(()), None) => {}
                    (Ok(()), Some(_)) => assert!(is_readahead || !was_wanted),
                    (Err(_), Some(why)) => assert!(why.to_string().contains("as asked"), "{why}"),
                    (Err(error), None) => panic!("{error}"),
                }
            }
        }
        self.hear_ends();
    }

    pub(super) fn drain(&mut self) {
        self.workers.take(self.space.take_jobs());
        while !self.workers.are_idle() {
            for worker in [Worker::Pageout, Worker::Pagein] {
                self.work(worker, false);
                self.hear(worker);
            }
        }
    }
}
