//! What one thread can see of the dance: who is knocked on, who is waited for, who counts.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use shootdown::{Domain, Generation, InGuest, Left, SeatCount, SeatId, Ticket, Whom};

/// Some vcpus of one address space, on one thread.
struct Vcpus {
    domain: Domain,
    cached: Vec<Generation>,
    flushes: Cell<u64>,
}

impl Vcpus {
    fn new(count: usize) -> Self {
        Self {
            domain: Domain::new(count),
            cached: vec![Generation::default(); count],
            flushes: Cell::new(0),
        }
    }

    fn enter(&self, seat: usize) -> InGuest<'_> {
        let mut cached = self.cached[seat];
        self.domain.enter(SeatId(seat), &mut cached, |_| self.flushes.set(self.flushes.get() + 1))
    }

    /// Goes in and out, and remembers what it has flushed.
    fn visit(&mut self, seat: usize) {
        let flushes = &self.flushes;
        let flush = |_| flushes.set(flushes.get() + 1);
        let _ = self.domain.enter(SeatId(seat), &mut self.cached[seat], flush).leave();
    }

    /// Raises for everyone; who was knocked on?
    fn raise(&self) -> (Ticket<()>, Vec<usize>) {
        let mut knocked = Vec::new();
        let ticket = self.domain.raise((), Whom::Everyone, |SeatId(seat)| knocked.push(seat));
        (ticket, knocked)
    }
}

/// Counts how often it is dropped.
struct Frame(Rc<Cell<u32>>);

impl Drop for Frame {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_vcpu_outside_the_guest_is_neither_knocked_on_nor_waited_for() {
    let vcpus = Vcpus::new(2);
    let (ticket, knocked) = vcpus.raise();
    assert!(knocked.is_empty());
    vcpus.domain.redeem(ticket).unwrap();
}

#[test]
fn a_vcpu_in_the_guest_is_knocked_on_and_waited_for_until_it_leaves() {
    let vcpus = Vcpus::new(3);
    let inside = vcpus.enter(1);
    let (ticket, knocked) = vcpus.raise();
    assert_eq!(knocked, [1]);
    let ticket = vcpus.domain.redeem(ticket).unwrap_err();
    assert_eq!(ticket.waiting(), [SeatId(1)]);
    assert_eq!(inside.leave(), Left::Awaited);
    vcpus.domain.redeem(ticket).unwrap();
}

#[test]
fn those_who_have_left_are_taken_off_the_ticket() {
    let vcpus = Vcpus::new(4);
    let (first, second, third) = (vcpus.enter(0), vcpus.enter(2), vcpus.enter(3));
    let (ticket, knocked) = vcpus.raise();
    assert_eq!(knocked, [0, 2, 3]);
    assert_eq!(second.leave(), Left::Awaited);
    let ticket = vcpus.domain.redeem(ticket).unwrap_err();
    assert_eq!(ticket.waiting(), [SeatId(0), SeatId(3)]);
    assert_eq!(first.leave(), Left::Awaited);
    assert_eq!(third.leave(), Left::Awaited);
    vcpus.domain.redeem(ticket).unwrap();
}

#[test]
fn a_vcpu_that_left_and_came_back_is_not_waited_for_again() {
    let vcpus = Vcpus::new(1);
    let first_trip = vcpus.enter(0);
    let (ticket, _) = vcpus.raise();
    assert_eq!(first_trip.leave(), Left::Awaited);
    let second_trip = vcpus.enter(0);
    assert_eq!(vcpus.flushes.get(), 1);
    vcpus.domain.redeem(ticket).unwrap();
    assert_eq!(second_trip.leave(), Left::Unnoticed);
}

#[test]
fn a_vcpu_flushes_once_for_all_the_raises_it_has_missed() {
    let mut vcpus = Vcpus::new(1);
    vcpus.visit(0);
    assert_eq!(vcpus.flushes.get(), 0);
    for _ in 0..3 {
        vcpus.domain.redeem(vcpus.raise().0).unwrap();
    }
    vcpus.visit(0);
    vcpus.visit(0);
    assert_eq!(vcpus.flushes.get(), 1);
    assert_eq!(vcpus.cached, [Generation(3)]);
    assert_eq!(vcpus.domain.counts(), [SeatCount { done: 1, saved: 2 }]);
}

#[test]
fn a_raise_for_nobody_waits_for_nobody_and_is_still_flushed_for() {
    let mut vcpus = Vcpus::new(1);
    let inside = vcpus.enter(0);
    let ticket = vcpus.domain.raise((), Whom::Nobody, |_| panic!("nobody is knocked on"));
    vcpus.domain.redeem(ticket).unwrap();
    assert_eq!(inside.leave(), Left::Unnoticed);
    vcpus.visit(0);
    assert_eq!(vcpus.flushes.get(), 1);
}

#[test]
fn one_leave_is_awaited_by_all_open_tickets() {
    let vcpus = Vcpus::new(1);
    let inside = vcpus.enter(0);
    let (first, _) = vcpus.raise();
    let (second, _) = vcpus.raise();
    assert_eq!((first.target(), second.target()), (Generation(1), Generation(2)));
    assert_eq!(inside.leave(), Left::Awaited);
    vcpus.domain.redeem(second).unwrap();
    vcpus.domain.redeem(first).unwrap();
    assert_eq!(vcpus.enter(0).leave(), Left::Unnoticed);
}

#[test]
fn a_redeemed_ticket_gives_back_what_it_carried_and_a_lost_one_never_does() {
    let drops = Rc::new(Cell::new(0));
    let domain = Domain::new(1);
    let carry = || domain.raise(Frame(drops.clone()), Whom::Everyone, |_| ());
    drop(carry());
    assert_eq!(drops.get(), 0, "a frame that somebody may still reach was given back");
    let frame = domain.redeem(carry()).map_err(drop).unwrap();
    assert_eq!(drops.get(), 0);
    drop(frame);
    assert_eq!(drops.get(), 1);
}

#[test]
fn a_vcpu_that_panics_in_the_guest_is_out_and_abandoning_it_tells_who_waits() {
    let vcpus = Vcpus::new(1);
    let mut ticket = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _inside = vcpus.enter(0);
        ticket = Some(vcpus.raise().0);
        panic!("an exit nobody knows");
    }));
    panicked.unwrap_err();
    assert_eq!(vcpus.domain.abandon(SeatId(0)), Left::Awaited);
    vcpus.domain.redeem(ticket.unwrap()).unwrap();
    assert_eq!(vcpus.domain.abandon(SeatId(0)), Left::Unnoticed, "said once");
    assert_eq!(vcpus.domain.counts(), [SeatCount { done: 0, saved: 1 }]);
}

#[test]
fn a_vcpu_whose_flush_panics_is_out() {
    let vcpus = Vcpus::new(1);
    vcpus.domain.redeem(vcpus.raise().0).unwrap();
    let flush = |_| panic!("no memory");
    catch_unwind(AssertUnwindSafe(|| {
        let _ = vcpus.domain.enter(SeatId(0), &mut Generation::default(), flush).leave();
    }))
    .unwrap_err();
    assert!(vcpus.raise().1.is_empty());
}

#[test]
fn a_vcpu_whose_guard_was_leaked_comes_out_when_it_is_abandoned() {
    let vcpus = Vcpus::new(1);
    Box::leak(Box::new(vcpus.enter(0)));
    let (ticket, knocked) = vcpus.raise();
    assert_eq!(knocked, [0]);
    let ticket = vcpus.domain.redeem(ticket).unwrap_err();
    assert_eq!(vcpus.domain.abandon(SeatId(0)), Left::Awaited);
    vcpus.domain.redeem(ticket).unwrap();
}

#[test]
fn raises_after_a_vcpu_has_retired_count_as_saved() {
    let mut vcpus = Vcpus::new(2);
    vcpus.domain.redeem(vcpus.raise().0).unwrap();
    vcpus.visit(0);
    for seat in 0..2 {
        vcpus.domain.retire(SeatId(seat), &mut vcpus.cached[seat]);
    }
    vcpus.domain.redeem(vcpus.raise().0).unwrap();
    let counts = [SeatCount { done: 1, saved: 1 }, SeatCount { done: 0, saved: 2 }];
    assert_eq!(vcpus.domain.counts(), counts);
}
