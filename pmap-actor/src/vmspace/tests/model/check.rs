//! What must be true after every step.

use std::collections::{BTreeSet, HashMap};

use actors::{Access, PAGE_SIZE, Protection};

use super::walker::Watched;
use super::{Bench, PAGES, Page, Step, contents, index};
use crate::ept::masks::Masks;
use crate::object::{Kept, Page as State, Stored};
use crate::swap::PAGE_BYTES;

impl<M: Watched> Bench<M> {
    pub(super) fn check(&self, step: &Step) {
        for page in 0..PAGES {
            self.check_page(page, step);
        }
        self.check_accounts(step);
        if self.in_flight.is_none() {
            self.check_caches(step);
        }
    }

    fn check_page(&self, page: u64, step: &Step) {
        let model = self.pages[index(page)];
        let state = self.space.content.get(page);
        let at = self.gpa(page);
        let leaf = self.space.tables().leaf(at);
        let masks = self.space.tables().masks();
        let context =
            || format!("page {page} ({model:?}), which is {state:?}, {leaf:x?}, after {step:?}");

        let rights = leaf.map_or(Protection::empty(), |leaf| masks.hardware_rights(leaf.entry));
        if model.device {
            let leaf = leaf.unwrap_or_else(|| panic!("a device's leaf is gone: {}", context()));
            assert_eq!(leaf.frame_of(at), page * PAGE_SIZE, "{}", context());
            assert_eq!(Some(rights), model.protection, "{}", context());
            assert_eq!(leaf.entry & (masks.managed | masks.wired), 0, "{}", context());
            assert_eq!(state, State::Absent, "{}", context());
            assert!(!self.is_held(page), "{}", context());
            if let Some(mirrored) = self.space.mirror.state(at) {
                assert_eq!(mirrored, Some(rights.contains(Protection::WRITE)), "{}", context());
            }
            return;
        }
        if let Some(leaf) = leaf {
            assert!(
                matches!(state, State::Resident(_)),
                "what is mapped is in memory: {}",
                context()
            );
            assert_eq!(leaf.frame_of(at), page * PAGE_SIZE, "{}", context());
            let granted = masks.protection(leaf.entry);
            let allowed = model.protection.unwrap_or(Protection::empty());
            assert!(allowed.contains(granted), "too much is allowed: {}", context());
            assert_eq!(leaf.entry & masks.wired != 0, model.wired, "{}", context());
            let flags = self.setup.flags;
            let level = if leaf.size.bytes() == PAGE_SIZE { 1 } else { 2 };
            assert!(!Masks::is_misconfigured(leaf.entry, level, flags), "{}", context());
            if rights.contains(Protection::READ) {
                assert!(self.holds_stamp(page), "wrong data: {}", context());
            }
        }
        if let Some(mirrored) = self.space.mirror.state(at) {
            let readable = rights.contains(Protection::READ);
            let expected = readable.then_some(rights.contains(Protection::WRITE));
            assert_eq!(mirrored, expected, "the mirror disagrees: {}", context());
        }
        let must_stay = model.wired || self.is_held(page);
        if must_stay {
            assert!(matches!(state, State::Resident(_)), "it must stay: {}", context());
        }
        if model.wired && model.protection.is_some_and(|it| it.contains(Protection::READ)) {
            assert!(rights.contains(Protection::READ), "wired pages are reachable: {}", context());
        }
        if model.protection.is_none() && !model.going {
            assert_eq!(state, State::Absent, "{}", context());
        }
        // Comparing whole pages takes time: those that steps meet at, each time; the others, in turn.
        if page % 512 < 8 || page % 16 == self.steps % 16 {
            self.check_copy(page, model, state, context);
        }
    }

    /// Wherever the contents are, they are what was stored.
    fn check_copy(&self, page: u64, model: Page, state: State, context: impl Fn() -> String) {
        let at = self.gpa(page);
        let is_modified = self.space.guest.is_modified(at)
            || self.space.monitor.is_modified(actors::Gpa(page * PAGE_SIZE));
        let is_it = |bytes: &[u8; PAGE_BYTES]| {
            *bytes == contents(model.stamp) || (model.or_zero && *bytes == contents(0))
        };
        let is_zero = model.stamp == 0 || model.or_zero;
        let on_disk = |slot: u32| is_it(&self.workers.slots[&slot]);
        match state {
            State::Absent => assert!(is_zero, "contents are gone: {}", context()),
            State::Resident(kept) | State::Leaving(kept) => {
                if matches!(state, State::Leaving(_)) {
                    assert!(self.holds_stamp(page), "wrong data: {}", context());
                }
                match kept {
                    Kept::Zero if !is_modified => assert!(is_zero, "{}", context()),
                    Kept::Disk(slot) if !is_modified => {
                        assert!(
                            on_disk(slot.0),
                            "a clean page differs from its copy: {}",
                            context()
                        );
                    }
                    _ => {}
                }
            }
            State::Stored(Stored::Zero) => assert!(is_zero, "contents are gone: {}", context()),
            State::Stored(Stored::Compressed) => {
                let mut bytes = [0; PAGE_BYTES];
                self.space.content.unpack(page, &mut bytes).unwrap();
                assert!(is_it(&bytes), "wrong data: {}", context());
            }
            State::Stored(Stored::Disk(slot)) | State::Arriving(slot) => {
                assert!(on_disk(slot.0), "wrong data: {}", context());
            }
        }
    }

    /// Slots that hold somebody's page.
    pub(super) fn owned_slots(&self) -> BTreeSet<u32> {
        let mut owners = HashMap::new();
        for page in 0..PAGES {
            if let Some(slot) = self.space.content.get(page).slot() {
                let other = owners.insert(slot.0, page);
                assert_eq!(other, None, "page {page} has {slot}, too");
            }
        }
        owners.into_keys().collect()
    }

    fn check_accounts(&self, step: &Step) {
        let states = (0..PAGES).map(|page| self.space.content.get(page));
        let frames = states.filter(|state| state.has_frame()).count() as u64;
        assert_eq!(self.space.resident_pages(), frames, "after {step:?}");
        let held: u64 = self.holds.iter().map(|(span, _)| span.pages).sum();
        assert_eq!(self.space.held_pages(), held, "after {step:?}");
        let is_wired = |page: &&Page| {
            page.wired && page.protection.is_some_and(|rights| rights.contains(Protection::READ))
        };
        let wired = self.pages.iter().filter(is_wired).count() as u64;
        assert_eq!(self.space.wired_pages(), wired, "after {step:?}");
        let owned = u32::try_from(self.owned_slots().len()).unwrap();
        let (free, capacity) = self.space.content.slots();
        assert_eq!(capacity, self.capacity);
        assert!(free + owned <= capacity, "after {step:?}");
        if !self.space.content.is_waiting_for_workers() {
            assert_eq!(free + owned, capacity, "slots are lost after {step:?}");
        }
        if self.workers.are_idle() && self.in_flight.is_none() {
            assert!(
                !self.space.content.is_waiting_for_workers(),
                "an answer is lost after {step:?}"
            );
        }
    }

    /// No shootdown is under way or due: what processors have cached is what the tables say.
    fn check_caches(&self, step: &Step) {
        for tlb in &self.walkers {
            for (&(number, size), cached) in &tlb.0 {
                let at = actors::Gpa(number * size);
                let found = cached.translation;
                for page in 0..size / PAGE_SIZE {
                    let at = actors::Gpa(at.0 + page * PAGE_SIZE);
                    let leaf = self.space.tables().leaf(at);
                    let context = || {
                        format!("{found:?} is cached for {at}, there is {leaf:x?}, after {step:?}")
                    };
                    let Some(leaf) = leaf else { panic!("{}", context()) };
                    assert_eq!(leaf.frame_of(at), found.frame + page * PAGE_SIZE, "{}", context());
                    let masks = self.space.tables().masks();
                    let rights = masks.hardware_rights(leaf.entry);
                    let needs = |cached: bool, access: Access| {
                        assert!(!cached || rights.contains(access.needs()), "{}", context());
                    };
                    needs(found.readable, Access::Read);
                    needs(found.executable, Access::Execute);
                    needs(found.writable, Access::Write);
                    if found.writable {
                        assert!(
                            masks.is_modified(leaf.entry),
                            "a store would not be seen: {}",
                            context()
                        );
                    }
                }
            }
        }
    }
}
