//! The dance on real threads: a frame that has been given back is never seen in use.
//!
//! loom tries every order of few events; this tries many events on the processor at hand.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread::Thread;

use shootdown::{Domain, Generation, Left, SeatId, Whom};

const GUESTS: usize = 2;
/// Knocks to see before it is enough.
const KNOCKS: usize = 500;
/// Reads per trip, and between two looks whether somebody knocks: a guest is not quick to
/// come out, so whoever does not wait for it is caught.
const READS: usize = 2_000;
const READS_PER_LOOK: usize = 100;
/// How long a frame is in other hands at least.
const SPINS: usize = 1_000;

/// Memory of two frames, of which one is mapped. The other is in other hands.
struct Machine {
    domain: Domain,
    /// The table entry: which frame is mapped.
    mapped: AtomicUsize,
    /// Which frames the guests may not see.
    taken: [AtomicBool; 2],
    knocked: [AtomicBool; GUESTS],
    over: AtomicBool,
}

impl Machine {
    /// Runs guest `seat` until all is over. Returns how often it flushed.
    fn guest(&self, seat: usize, raiser: &Thread) -> u64 {
        let mut cached = Generation::default();
        let mut translation = None;
        let mut flushes = 0;
        while !self.over.load(Acquire) {
            self.knocked[seat].store(false, Relaxed);
            let inside = self.domain.enter(SeatId(seat), &mut cached, |_| {
                translation = None;
                flushes += 1;
            });
            for read in 0..READS {
                let frame = *translation.get_or_insert_with(|| self.mapped.load(Acquire));
                assert!(!self.taken[frame].load(Relaxed), "guest {seat} read a frame it lost");
                if read % READS_PER_LOOK == 0 && self.knocked[seat].load(Relaxed) {
                    break;
                }
            }
            if inside.leave() == Left::Awaited {
                raiser.unpark();
            }
        }
        self.domain.retire(SeatId(seat), &mut cached);
        flushes
    }

    /// Runs guest `seat`; if it panics, ends the storm, and nobody waits for it.
    fn guest_or_its_end(&self, seat: usize, raiser: &Thread) -> u64 {
        catch_unwind(AssertUnwindSafe(|| self.guest(seat, raiser))).unwrap_or_else(|panic| {
            self.over.store(true, Release);
            if self.domain.abandon(SeatId(seat)) == Left::Awaited {
                raiser.unpark();
            }
            resume_unwind(panic)
        })
    }

    /// Maps the other frame, and takes the one that was mapped once nobody can reach it.
    /// Returns how many guests were in the way.
    fn swap_frames(&self) -> usize {
        let old = self.mapped.load(Relaxed);
        self.taken[1 - old].store(false, Relaxed);
        self.mapped.store(1 - old, Release);
        let knock = |SeatId(seat)| self.knocked[seat].store(true, Relaxed);
        let mut ticket = self.domain.raise(old, Whom::Everyone, knock);
        let knocks = ticket.waiting().len();
        let frame = loop {
            match self.domain.redeem(ticket) {
                Ok(frame) => break frame,
                Err(again) => ticket = again,
            }
            std::thread::park();
        };
        self.taken[frame].store(true, Relaxed);
        // Its new owner uses it for a while.
        (0..SPINS).for_each(|_| std::hint::spin_loop());
        knocks
    }
}

#[test]
fn a_frame_in_other_hands_is_never_read_and_no_raise_is_lost() {
    let machine = Machine {
        domain: Domain::new(GUESTS),
        mapped: AtomicUsize::new(0),
        taken: [AtomicBool::new(false), AtomicBool::new(true)],
        knocked: [const { AtomicBool::new(false) }; GUESTS],
        over: AtomicBool::new(false),
    };
    let raiser = std::thread::current();
    let flushes: Vec<u64> = std::thread::scope(|scope| {
        let (machine, raiser) = (&machine, &raiser);
        let guest = |seat| scope.spawn(move || machine.guest_or_its_end(seat, raiser));
        let guests: Vec<_> = (0..GUESTS).map(guest).collect();
        let mut knocks = 0;
        while knocks < KNOCKS && !machine.over.load(Relaxed) {
            knocks += machine.swap_frames();
        }
        machine.over.store(true, Release);
        guests.into_iter().map(|guest| guest.join().unwrap()).collect()
    });
    for (count, flushes) in machine.domain.counts().into_iter().zip(flushes) {
        assert_eq!(count.done, flushes);
        assert_eq!(count.done + count.saved, machine.domain.generation().0);
    }
}
