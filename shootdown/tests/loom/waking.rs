//! A raiser that sleeps is always woken; a guest that is in the way is always told.
//!
//! The guests here would stay for ever: only a knock, or the end of the model, brings one
//! out of its last trip. A wake or a knock that is lost leaves everybody asleep, and loom
//! reports the deadlock.

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use shootdown::{Domain, Left, SeatId, Ticket, Whom};

use crate::mutants::neglects;
use crate::world::{Bell, Orders, Processor, model};

/// What reaches a guest from outside.
#[derive(Default)]
struct Door {
    state: Mutex<Calls>,
    changed: Condvar,
}

#[derive(Default)]
struct Calls {
    knocked: bool,
    over: bool,
}

impl Door {
    fn call(&self, call: impl FnOnce(&mut Calls)) {
        call(&mut self.state.lock().unwrap());
        self.changed.notify_one();
    }

    /// A knock that is heard between two trips does not end the next one.
    fn heed(&self) {
        self.state.lock().unwrap().knocked = false;
    }

    /// The guest runs.
    fn stay(&self) {
        let mut calls = self.state.lock().unwrap();
        while !calls.knocked && !calls.over {
            calls = self.changed.wait(calls).unwrap();
        }
    }
}

struct World {
    domain: Domain,
    raiser: Bell,
    doors: Vec<Door>,
}

impl World {
    fn new(guests: usize) -> Arc<Self> {
        let doors = (0..guests).map(|_| Door::default()).collect();
        Arc::new(Self { domain: Domain::new(guests), raiser: Bell::default(), doors })
    }

    fn raise(&self) -> Ticket<()> {
        self.domain.raise((), Whom::Everyone, |SeatId(seat)| {
            if !neglects("knock-missing") {
                self.doors[seat].call(|calls| calls.knocked = true);
            }
        })
    }

    /// W1, asleep between looks.
    fn wait_for(&self, mut ticket: Ticket<()>) {
        while let Err(again) = self.domain.redeem(ticket) {
            ticket = again;
            self.raiser.sleep();
        }
    }

    fn wake_if(&self, left: Left) {
        if left == Left::Awaited && !neglects("wake-missing") {
            self.raiser.ring();
        }
    }

    fn end(&self, guests: Vec<JoinHandle<()>>) {
        self.doors.iter().for_each(|door| door.call(|calls| calls.over = true));
        guests.into_iter().for_each(|guest| guest.join().unwrap());
    }
}

/// A guest that comes out of its own accord, except from its last trip.
fn guest(world: &Arc<World>, seat: usize, trips: usize) -> JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || {
        let mut processor = Processor::<0>::warm(seat);
        for trip in 1..=trips {
            world.doors[seat].heed();
            let inside = processor.enter(&world.domain);
            if trip == trips {
                world.doors[seat].stay();
            }
            world.wake_if(inside.leave());
        }
    })
}

fn a_raise_comes_to_its_end(guests: usize, trips: usize, orders: Orders) {
    model(orders, move || {
        let world = World::new(guests);
        let threads = (0..guests).map(|seat| guest(&world, seat, trips)).collect();
        let ticket = world.raise();
        world.wait_for(ticket);
        world.end(threads);
    });
}

#[test]
fn a_sleeping_raiser_is_woken_by_a_guest_that_enters_once() {
    a_raise_comes_to_its_end(1, 1, Orders::All);
}

#[test]
fn and_by_one_that_comes_and_goes_twice() {
    a_raise_comes_to_its_end(1, 2, Orders::All);
}

#[test]
fn and_by_one_that_comes_and_goes_three_times() {
    a_raise_comes_to_its_end(1, 3, Orders::Interrupted(5));
}

#[test]
fn and_by_two_guests() {
    a_raise_comes_to_its_end(2, 1, Orders::Interrupted(3));
}

#[test]
fn one_sleep_may_wait_for_two_tickets() {
    model(Orders::Interrupted(5), || {
        let world = World::new(1);
        let threads = vec![guest(&world, 0, 2)];
        let first = world.raise();
        let second = world.raise();
        world.wait_for(second);
        world.wait_for(first);
        world.end(threads);
    });
}

#[test]
fn a_vcpu_that_panics_in_the_guest_is_waited_for_no_longer() {
    model(Orders::All, || {
        let world = World::new(1);
        let vcpu = world.clone();
        let thread = thread::spawn(move || {
            // Unwinding drops the guard; the thread's wrapper does the rest.
            drop(Processor::<0>::warm(0).enter(&vcpu.domain));
            if !neglects("abandon-missing") {
                vcpu.wake_if(vcpu.domain.abandon(SeatId(0)));
            }
        });
        let ticket = world.raise();
        world.wait_for(ticket);
        world.end(vec![thread]);
    });
}
