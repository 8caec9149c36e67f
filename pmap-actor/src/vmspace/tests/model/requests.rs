//! What the actor does only when no shootdown is under way, done to the vmspace and to the model.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use actors::Protection;
use actors::contract::device::{ScatterList, Segment};
use actors::contract::page::{Advice, Harvest, Settled, Touch};
use actors::contract::space::SpaceError;

use super::walker::Watched;
use super::{BLOCK_PAGES, Bench, Consumer, PAGES, Page, Removed, Span, Step, index};
use crate::vmspace::Done;

impl<M: Watched> Bench<M> {
    /// Removals that come one after the other share a shootdown.
    pub(super) fn request(&mut self, step: &Step) {
        let removes = matches!(
            step,
            Step::Unmap(_)
                | Step::Forget(_)
                | Step::Protect(..)
                | Step::Harvest(..)
                | Step::Take(_)
                | Step::Advise(..)
                | Step::Demote(_)
                | Step::PageOut(_)
        );
        let may_join = self.in_flight.as_ref().is_some_and(|it| !it.raised) && removes;
        // The clock may come before what faults left over is carried.
        let is_clock = matches!(step, Step::Reclaim) && self.in_flight.is_none();
        if !(may_join && self.dice.throw(2) == 0 || is_clock && self.dice.throw(2) == 0) {
            self.finish();
        }
        match *step {
            Step::Map(span, rights) => self.map(span, rights),
            Step::MapDevice(span, rights) => self.map_device(span, rights),
            Step::Unmap(span) => self.unmap(span),
            Step::Forget(span) => {
                let allowed = self.is_memory(span) && !self.is_wired(span);
                let removed = self.space.forget(self.range(span));
                self.agree(removed, allowed, "forget", |_| {});
            }
            Step::Protect(span, rights) => self.protect(span, rights),
            Step::Wire(span) => self.wire(span),
            Step::Unwire(span) => {
                let allowed = self.is_mapped(span) && self.of(span).iter().all(|page| page.wired);
                assert_eq!(self.space.unwire(self.range(span)).is_ok(), allowed);
                if allowed {
                    self.of_mut(span).iter_mut().for_each(|page| page.wired = false);
                }
            }
            Step::Hold(span, rights) => self.hold(span, rights),
            Step::Release(which, install) => {
                if which < self.holds.len() {
                    let (span, _) = self.holds.remove(which);
                    self.space.release(&[self.range(span)], install).unwrap();
                }
            }
            Step::Harvest(span, touch) => self.harvest(span, touch),
            Step::ExpectHarvests => self.space.expect_harvests(),
            Step::Begin => {
                if self.consumers.len() < 3 {
                    self.consumers.push(Consumer {
                        id: self.space.begin_dirty().unwrap(),
                        // Whatever there is is news.
                        pending: (0..PAGES)
                            .filter(|page| {
                                let Page { stamp, or_zero, .. } = self.pages[index(*page)];
                                stamp != 0 && !or_zero
                            })
                            .collect(),
                        fresh: BTreeSet::new(),
                        is_closing: false,
                        taken: None,
                    });
                }
            }
            Step::Take(who) => self.close_epoch(who),
            Step::Settle(who, how) => self.settle(who, how),
            Step::End(who) => {
                if who < self.consumers.len() {
                    let consumer = self.consumers.remove(who);
                    self.space.end_dirty(consumer.id).unwrap();
                }
            }
            Step::Advise(span, advice) => self.advise(span, advice),
            Step::Promote(block) => {
                let span = Span { first: block * BLOCK_PAGES, pages: BLOCK_PAGES };
                assert_eq!(self.space.promote(self.range(span)).is_ok(), self.is_mapped(span));
            }
            Step::Demote(span) => {
                let allowed = self.is_mapped(span);
                let removed = self.space.demote(self.range(span)).map(|(removed, _)| removed);
                self.agree(removed, allowed, "demote", |_| {});
            }
            Step::PageOut(span) => {
                let allowed = self.is_mapped(span) && self.setup.store.is_some();
                let removed = self.space.page_out(self.range(span));
                let removed = removed.map(|(removed, ticket)| {
                    self.outs.insert(ticket);
                    removed
                });
                self.agree(removed, allowed, "page out", |_| {});
            }
            Step::Reclaim => {
                if let Some(removed) = self.space.reclaim().unwrap() {
                    self.take_away(removed);
                    self.raise();
                }
            }
            ref other => unreachable!("{other:?} is no request"),
        }
    }

    fn is_mapped(&self, span: Span) -> bool {
        self.of(span).iter().all(|page| page.protection.is_some())
    }

    /// Mapped, and nothing of it is a device's.
    fn is_memory(&self, span: Span) -> bool {
        self.is_mapped(span) && !self.of(span).iter().any(|page| page.device)
    }

    fn is_wired(&self, span: Span) -> bool {
        self.of(span).iter().any(|page| page.wired)
    }

    fn any_held(&self, span: Span) -> bool {
        (span.first..span.first + span.pages).any(|page| self.is_held(page))
    }

    /// A harvest of `span` answered: it has what nobody has heard of yet, and nobody hears of that again.
    fn hear_harvest(&mut self, span: Span, touch: Touch, found: &Harvest) {
        for page in span.first..span.first + span.pages {
            let Page { used, stored, device, .. } = self.pages[index(page)];
            let (accessed, modified) =
                (found.accessed.contains(page), found.modified.contains(page));
            if touch.contains(Touch::ACCESSED) {
                assert!(accessed || !used, "page {page} was used");
            }
            if touch.contains(Touch::MODIFIED) {
                assert!(modified || !stored, "page {page} was stored to");
            }
            assert!(!(device && (accessed || modified)), "page {page} is a device's");
        }
        // A superpage's bit speaks for pages beyond the span, too.
        for (page, model) in (0..).zip(&mut self.pages) {
            model.used &= !found.accessed.contains(page);
            model.stored &= !found.modified.contains(page);
        }
    }

    fn agree(
        &mut self,
        removed: Result<Removed, SpaceError>,
        allowed: bool,
        what: &str,
        then: impl FnOnce(&mut Self),
    ) {
        match removed {
            Ok(removed) => {
                assert!(allowed, "it was allowed to {what}");
                self.take_away(removed);
                then(self);
            }
            Err(error) => assert!(!allowed, "it was not allowed to {what}: {error}"),
        }
    }

    fn map(&mut self, span: Span, rights: Protection) {
        let allowed = self.of(span).iter().all(|page| page.protection.is_none());
        assert_eq!(self.space.map(self.range(span), rights).is_ok(), allowed);
        if allowed {
            self.of_mut(span).iter_mut().for_each(|page| page.protection = Some(rights));
        }
    }

    fn map_device(&mut self, span: Span, rights: Protection) {
        let allowed = self.of(span).iter().all(|page| page.protection.is_none());
        let file = File::options().read(true).write(true).open("/dev/zero").unwrap();
        let all = Segment { offset: 0, len: self.range(span).len() };
        let memory = ScatterList::new(Arc::new(file), vec![all]).unwrap();
        assert_eq!(self.space.map_device(self.range(span), &memory, rights).is_ok(), allowed);
        if allowed {
            for page in self.of_mut(span) {
                (page.protection, page.device) = (Some(rights), true);
            }
        }
    }

    fn unmap(&mut self, span: Span) {
        let allowed = self.is_mapped(span) && !self.is_wired(span) && !self.any_held(span);
        let removed = self.space.unmap(self.range(span));
        self.agree(removed, allowed, "unmap", |bench| {
            bench.of_mut(span).iter_mut().for_each(|page| {
                (page.protection, page.device, page.going) = (None, false, true);
                (page.used, page.stored) = (false, false);
            });
            bench.becomes_zeroes(span);
        });
    }

    /// Whoever copies the memory must hear of it.
    fn becomes_zeroes(&mut self, span: Span) {
        for page in span.first..span.first + span.pages {
            let Page { stamp, or_zero, .. } = self.pages[index(page)];
            if stamp != 0 && !or_zero {
                for consumer in &mut self.consumers {
                    consumer.pending.insert(page);
                }
            }
        }
    }

    fn protect(&mut self, span: Span, rights: Protection) {
        let readable = rights.contains(Protection::READ);
        let allowed = self.is_memory(span) && (readable || !self.is_wired(span));
        let removed = self.space.protect(self.range(span), rights);
        self.agree(removed, allowed, "protect", |bench| {
            bench.of_mut(span).iter_mut().for_each(|page| page.protection = Some(rights));
        });
    }

    fn wire(&mut self, span: Span) {
        let done = self.space.wire(self.range(span), || {});
        assert_eq!(done.is_ok(), self.is_memory(span), "{done:?}");
        if done == Ok(Done::Now) {
            self.of_mut(span).iter_mut().for_each(|page| page.wired = true);
        }
    }

    fn hold(&mut self, span: Span, rights: Protection) {
        let allows = |page: &Page| page.protection.is_some_and(|has| has.contains(rights));
        let allowed = self.is_memory(span) && self.of(span).iter().all(allows);
        let done = self.space.hold(&[self.range(span)], rights);
        assert_eq!(done.is_ok(), allowed, "{done:?}");
        if done == Ok(Done::Now) {
            self.holds.push((span, rights));
        }
    }

    fn harvest(&mut self, span: Span, touch: Touch) {
        let allowed = self.is_mapped(span);
        let harvested = self.space.harvest(self.range(span), touch);
        let removed = harvested.map(|(removed, found)| {
            self.hear_harvest(span, touch, &found);
            removed
        });
        self.agree(removed, allowed, "harvest", |_| {});
    }

    fn close_epoch(&mut self, who: usize) {
        let Some(consumer) = self.consumers.get_mut(who).filter(|it| !it.is_closing) else {
            return;
        };
        let (removed, found) = self.space.close_dirty(consumer.id).unwrap();
        consumer.is_closing = true;
        for cached in self.walkers.iter_mut().flat_map(|walker| walker.0.values_mut()) {
            cached.is_old = true;
        }
        self.take_away(removed);
        self.hear_harvest(Span { first: 0, pages: PAGES }, Touch::MODIFIED, &found);
    }

    fn settle(&mut self, who: usize, how: Settled) {
        let Some(consumer) = self.consumers.get_mut(who) else { return };
        match consumer.taken.take() {
            None => assert!(self.space.settle_dirty(consumer.id, 0, how).is_err()),
            Some((number, pages)) => {
                self.space.settle_dirty(consumer.id, number, how).unwrap();
                if how == Settled::PutBack {
                    consumer.pending.extend(pages);
                }
            }
        }
    }

    fn advise(&mut self, span: Span, advice: Advice) {
        let discards = advice == Advice::Free;
        let kept =
            discards && (self.is_wired(span) || self.any_held(span) || !self.is_memory(span));
        let allowed = self.is_mapped(span) && !kept;
        let removed = self.space.advise(self.range(span), advice);
        self.agree(removed, allowed, "advise", |bench| {
            // Uses were declared to be of no interest: of all that a superpage's bit speaks for.
            let first = span.first / BLOCK_PAGES * BLOCK_PAGES;
            let end = (span.first + span.pages).next_multiple_of(BLOCK_PAGES).min(PAGES);
            for page in bench.of_mut(Span { first, pages: end - first }) {
                page.used = false;
            }
            if discards {
                bench.becomes_zeroes(span);
                bench
                    .of_mut(span)
                    .iter_mut()
                    .for_each(|page| (page.or_zero, page.stored) = (true, false));
            }
        });
    }
}
