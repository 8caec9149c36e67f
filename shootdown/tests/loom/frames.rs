//! The promise: what has been given back, no guest can read.

use std::sync::Arc;

use loom::thread::{self, JoinHandle};
use shootdown::{Domain, InGuest, Ticket, Whom};

use crate::world::{Orders, Page, Processor, model};

struct World<const PAGES: usize> {
    domain: Domain,
    pages: [Page; PAGES],
}

impl<const PAGES: usize> World<PAGES> {
    #[expect(clippy::arc_with_non_send_sync, reason = "loom's threads share one real thread")]
    fn new(guests: usize) -> Arc<Self> {
        let pages = std::array::from_fn(|_| Page::mapped());
        Arc::new(Self { domain: Domain::new(guests), pages })
    }

    /// P and R1 to K2, for one page.
    fn unmap(&self, page: usize) -> Ticket<usize> {
        self.pages[page].unmap();
        self.domain.raise(page, Whom::Everyone, |_| ())
    }

    /// W1: looks once, and reuses the frame if it has been given back.
    fn reuse_if_given_back(&self, ticket: Ticket<usize>) -> Option<Ticket<usize>> {
        match self.domain.redeem(ticket) {
            Ok(page) => {
                self.pages[page].reuse();
                None
            }
            Err(ticket) => Some(ticket),
        }
    }
}

/// A guest that reads every page once per trip, and comes out when it likes.
fn guest<const PAGES: usize>(
    world: &Arc<World<PAGES>>,
    seat: usize,
    trips: usize,
    go_out: fn(InGuest<'_>),
) -> JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || {
        let mut processor = Processor::warm(seat);
        for _ in 0..trips {
            let inside = processor.enter(&world.domain);
            processor.touch(&world.pages);
            go_out(inside);
        }
    })
}

fn leave(inside: InGuest<'_>) {
    let _ = inside.leave();
}

fn never_look(inside: InGuest<'_>) {
    drop(inside);
}

/// One page is unmapped while guests run; the raiser looks twice at its ticket.
fn unmap_while_guests_run(guests: usize, trips: usize, go_out: fn(InGuest<'_>), orders: Orders) {
    model(orders, move || {
        let world = World::<1>::new(guests);
        let threads: Vec<_> = (0..guests).map(|seat| guest(&world, seat, trips, go_out)).collect();
        let ticket = world.unmap(0);
        if let Some(ticket) = world.reuse_if_given_back(ticket) {
            let _ = world.reuse_if_given_back(ticket);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_frame_given_back_cannot_be_read_by_a_guest_that_enters_once() {
    unmap_while_guests_run(1, 1, leave, Orders::All);
}

#[test]
fn nor_by_a_guest_that_comes_and_goes_twice() {
    unmap_while_guests_run(1, 2, leave, Orders::All);
}

#[test]
fn nor_by_a_guest_that_comes_and_goes_three_times() {
    unmap_while_guests_run(1, 3, leave, Orders::All);
}

#[test]
fn nor_by_two_guests_that_enter_once() {
    unmap_while_guests_run(2, 1, leave, Orders::Interrupted(5));
}

#[test]
fn nor_by_two_guests_that_come_and_go() {
    unmap_while_guests_run(2, 2, leave, Orders::Interrupted(3));
}

#[test]
fn nor_by_a_guest_that_comes_and_goes_and_never_looks_who_waits() {
    unmap_while_guests_run(1, 2, never_look, Orders::All);
}

#[test]
fn two_open_tickets_each_keep_their_own_frame() {
    model(Orders::Interrupted(5), || {
        let world = World::<2>::new(1);
        let thread = guest(&world, 0, 2, leave);
        let first = world.unmap(0);
        let second = world.unmap(1);
        // The later ticket may be done first; looking at one says nothing of the other.
        let second = world.reuse_if_given_back(second);
        let _ = world.reuse_if_given_back(first);
        let _ = second.map(|second| world.reuse_if_given_back(second));
        thread.join().unwrap();
    });
}
