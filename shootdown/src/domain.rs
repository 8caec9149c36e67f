//! Making every vcpu forget a translation before its frame is used again.
//!
//! # The promise
//!
//! Once a [`Ticket`] is done, no vcpu of this address space can reach memory through a
//! translation that was removed before [`Domain::raise`].
//!
//! # The players
//!
//! * One *raiser* at a time: the pmap, after it has cleared page-table entries. It may
//!   have any number of tickets open.
//! * Any number of *seats*, one per vcpu thread, each going in and out of the guest at
//!   its own pace. Every time in the guest is a *trip*, and trips are numbered.
//!
//! # The dance
//!
//! ```text
//!   vcpu thread                          pmap
//!   E1  seat.trips: even → odd           P   entries cleared
//!   E2  ── fence SeqCst ──               R1  generation += 1
//!   E3  read generation                  R2  ── fence SeqCst ──
//!   E4  changed? flush                   R3  read every seat.trips: who is in the guest?
//!       ...guest runs...                 K1  for those: seat.knocked = true; knock
//!   L1  seat.trips: odd → even           K2  ── fence SeqCst ──
//!   L2  ── fence SeqCst ──               W1  still on the trip R3 saw? then sleep until
//!   L3  knocked? then wake the raiser        woken, and look again
//! ```
//!
//! Each side writes its own word, then reads the other's. The fences E2 and R2 forbid
//! the one bad ending, in which both read the old value: either the vcpu sees the new
//! generation at E3 and flushes, or the pmap sees the vcpu at R3 and knocks. Seeing both
//! is fine and costs one needless knock. L2 and K2 do the same for going to sleep: either
//! the raiser sees at W1 that the trip is over, or the vcpu sees at L3 that somebody waits.
//!
//! # Why trips are numbered
//!
//! The raiser waits for one trip to end, not for the vcpu to be out: a vcpu that has left
//! and come back has flushed on the way, because R3 saw the trip before. With a mere "in
//! the guest" flag the raiser could look just as the vcpu is on its way back in, before
//! its flush, and go to sleep again; the knock has been used up by then, and nobody would
//! wake it. (With a word "flushed up to here" beside the flag, too: the flush comes after
//! the flag.)
//!
//! # Knocks are sticky
//!
//! A vcpu may leave for its own reasons between R3 and the knock's arrival. `knocked`
//! stays set until the vcpu looks at it on its way out, and whatever carries the knock
//! ([`kick`](crate::kick)) ends this trip or makes the next one short. `knocked` can only be
//! used up by the trip R3 saw or a later one, so the trip that is waited for never leaves
//! unnoticed.
//!
//! # Why a vcpu outside the guest is never waited for
//!
//! It holds translations but cannot use them: the only way back in is through E1–E4,
//! which will flush. So a vcpu that is parked or serving an exit counts as done, and
//! the pmap may shoot down while a vcpu waits for it. A vcpu that sleeps *in the kernel*
//! on a fault the pmap must answer counts as in the guest; the raiser therefore goes on
//! serving faults while it waits (`pmap-actor`'s inbox).
//!
//! # Counting
//!
//! Every raise ends, for every seat, exactly once: as a flush *done* (the seat's next
//! entry flushed because of it) or *saved* (a later raise was covered by the same flush,
//! or the seat never entered again). `done + saved` of a seat is the number of raises it
//! has accounted for; of a seat that has retired, it is the generation, however many
//! raises follow.
//!
//! # When a vcpu thread panics
//!
//! The guard's drop is L1, so nobody takes a dead vcpu for one in the guest. But a drop
//! cannot say that somebody waits, and a raiser that sleeps already would sleep for ever.
//! Whoever catches the panic calls [`Domain::abandon`] and wakes the raiser if it says so.
//!
//! # What is *not* here
//!
//! How to knock, what a flush does, which entries to clear, how to sleep, what time it is.
//! Waking must not be lost: a wake that comes before the raiser sleeps must end that sleep.

use std::mem::ManuallyDrop;

use crate::sync::{AtomicBool, AtomicU64, Ordering, Step, fence, order, taken};

/// How many invalidations an address space has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// Which vcpu of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeatId(pub usize);

/// Whose translations an invalidation concerns, beyond those the host kernel forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Whoever is in the guest is knocked on and waited for.
    Everyone,
    /// The host kernel has flushed already and nobody caches anything in user space:
    /// count it, let each vcpu flush on its next entry, wait for nobody.
    Nobody,
}

/// What one vcpu tells the world. On a cache line of its own: its owner writes it twice
/// per trip into the guest.
#[derive(Debug)]
#[repr(align(128))]
struct Seat {
    /// Goings in and comings out: odd while guest instructions may be running. Written by
    /// the seat's owner only.
    trips: AtomicU64,
    /// Somebody waits for this vcpu to come out.
    knocked: AtomicBool,
    /// Raises accounted for: the generation of the last flush, or [`RETIRED`]. Written by
    /// the seat's owner only.
    accounted: AtomicU64,
    /// Entries that flushed. Written by the seat's owner only.
    done: AtomicU64,
}

/// All raises are accounted for, those to come as well.
const RETIRED: u64 = u64::MAX;

/// The vcpus that share one set of page tables.
#[derive(Debug)]
pub struct Domain {
    generation: AtomicU64,
    seats: Box<[Seat]>,
}

/// How one seat's raises ended so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SeatCount {
    /// Entries into the guest that flushed.
    pub done: u64,
    /// Raises that needed no flush of their own.
    pub saved: u64,
}

/// Being in the guest. Leave with [`InGuest::leave`].
///
/// Dropping it instead is leaving without looking whether somebody waits. That is right
/// only while unwinding, and [`Domain::abandon`] must follow.
#[derive(Debug)]
#[must_use = "the guest may only run while this lives"]
pub struct InGuest<'d> {
    seat: &'d Seat,
    trip: u64,
}

/// What a vcpu owes after leaving the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a raiser may sleep until it is woken"]
pub enum Left {
    /// Nothing.
    Unnoticed,
    /// Somebody waits for this: wake the raiser.
    Awaited,
}

/// An invalidation on its way, and what it removed.
///
/// A ticket that is dropped and not [redeemed](Domain::redeem) does not drop what it
/// carries: a leak is better than a frame in two hands.
#[derive(Debug)]
#[must_use = "the removed frames may not be reused before this is redeemed"]
pub struct Ticket<R> {
    target: Generation,
    waiting: Vec<SeatId>,
    /// By seat, the trip that R3 saw; for those in `waiting`.
    trips: Vec<u64>,
    removed: ManuallyDrop<R>,
}

impl<R> Ticket<R> {
    /// The generation this invalidation made.
    #[must_use]
    pub fn target(&self) -> Generation {
        self.target
    }

    /// Who has not come out, as of the last look: [`Domain::raise`] or
    /// [`Domain::redeem`]. Straight after the raise it is who was knocked on.
    #[must_use]
    pub fn waiting(&self) -> &[SeatId] {
        &self.waiting
    }
}

impl Domain {
    /// An address space that `seats` vcpus share.
    #[must_use]
    pub fn new(seats: usize) -> Self {
        Self { generation: AtomicU64::new(0), seats: (0..seats).map(|_| Seat::new()).collect() }
    }

    /// How many invalidations there were.
    #[must_use]
    pub fn generation(&self) -> Generation {
        // Acquire pairs with R1, for a reader that reports.
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Goes into the guest, forgetting stale translations on the way.
    ///
    /// `cached` is the generation this vcpu last flushed at; `flush` is called only
    /// when the world has moved on since. Only the seat's owner may call this, and only
    /// when it is not in the guest already.
    ///
    /// Costs a fence and touches no shared cache line but the generation's. Never waits.
    ///
    /// # Panics
    ///
    /// When there is no seat `id`.
    pub fn enter(
        &self,
        id: SeatId,
        cached: &mut Generation,
        flush: impl FnOnce(Generation),
    ) -> InGuest<'_> {
        let seat = &self.seats[id.0];
        let trip = seat.next_trip();
        // E1: Release pairs with R3: whatever this vcpu did between two trips (took an old
        // knock back at L3, heeded its kick word) comes before the knock that this trip
        // gets. And with W1, which may see this trip instead of the end of the last.
        if taken(Step::E1) {
            seat.trips.store(trip, order(Step::E1, Ordering::Release));
        }
        let inside = InGuest { seat, trip };
        fence(Step::E2); // pairs with R2.
        // E3: Acquire pairs with R1, so a walk after the flush sees the cleared entries.
        let now = Generation(self.generation.load(order(Step::E3, Ordering::Acquire)));
        debug_assert!(now >= *cached, "{id:?} was at {cached:?} and enters at {now:?}");
        if now != *cached {
            if taken(Step::E4) {
                flush(now);
            }
            *cached = now;
            seat.count_flush(now);
        }
        inside
    }

    /// Starts an invalidation. The entries must be cleared already; `removed` is what
    /// they led to.
    ///
    /// Returns at once. `knock` is called for every vcpu that must come out; it may find a
    /// vcpu that has left meanwhile, or whose thread has just ended. Allocates only when
    /// there is somebody to wait for.
    pub fn raise<R>(&self, removed: R, whom: Whom, mut knock: impl FnMut(SeatId)) -> Ticket<R> {
        // R1: Release publishes the cleared entries along with the number.
        let step = u64::from(taken(Step::R1));
        let before = self.generation.fetch_add(step, order(Step::R1, Ordering::Release));
        let target = Generation(before + 1);
        let mut waiting = Vec::new();
        let mut trips = Vec::new();
        if whom == Whom::Everyone {
            fence(Step::R2); // pairs with E2.
            for (index, seat) in self.seats.iter().enumerate() {
                // R3: Acquire pairs with L1: what the guest did before leaving is done. And
                // with E1, so that K1 comes after any earlier L3.
                let trip = seat.trips.load(order(Step::R3, Ordering::Acquire));
                if is_inside(trip) {
                    if taken(Step::K1) {
                        seat.knocked.store(true, Ordering::Relaxed); // K1: ordered by K2.
                    }
                    knock(SeatId(index));
                    waiting.push(SeatId(index));
                    trips.resize(index, 0);
                    trips.push(trip);
                }
            }
            fence(Step::K2); // pairs with L2.
        }
        Ticket { target, waiting, trips, removed: ManuallyDrop::new(removed) }
    }

    /// Gives back what the invalidation removed, or the ticket if somebody may still
    /// use it.
    ///
    /// # Errors
    ///
    /// The ticket itself, when it is too early; [`Ticket::waiting`] says because of whom.
    /// Each of those will return [`Left::Awaited`] when it leaves.
    pub fn redeem<R>(&self, mut ticket: Ticket<R>) -> Result<R, Ticket<R>> {
        let trips = &ticket.trips;
        ticket.waiting.retain(|&id| {
            // W1: Acquire pairs with L1, or with E1 of a later trip.
            let trip = self.seats[id.0].trips.load(order(Step::W1, Ordering::Acquire));
            trip == trips[id.0] && taken(Step::W1)
        });
        if ticket.waiting.is_empty() {
            Ok(ManuallyDrop::into_inner(ticket.removed))
        } else {
            Err(ticket)
        }
    }

    /// "This vcpu will never enter again": accounts for all the raises it has not flushed
    /// for, and for those to come. Called by the seat's owner, out of the guest.
    pub fn retire(&self, id: SeatId, cached: &mut Generation) {
        *cached = self.generation();
        self.seats[id.0].retire();
    }

    /// "This vcpu's thread has panicked": takes it out of the guest if it is there,
    /// retires it, and says whether a raiser waits for that and must be woken.
    ///
    /// Called on that thread by whoever caught the panic, or by anybody once the thread
    /// has been joined. Harmless when the vcpu had left, or retired, before.
    pub fn abandon(&self, id: SeatId) -> Left {
        let seat = &self.seats[id.0];
        let trip = seat.trips.load(Ordering::Relaxed);
        if is_inside(trip) {
            drop(InGuest { seat, trip });
        }
        seat.retire();
        seat.look_who_waits()
    }

    /// How each seat's raises ended so far.
    ///
    /// Exact for a seat whose thread the caller has joined, or otherwise knows to have
    /// retired; an impression for one that is running.
    #[must_use]
    pub fn counts(&self) -> Vec<SeatCount> {
        let now = self.generation();
        self.seats.iter().map(|seat| seat.counted(now)).collect()
    }
}

impl InGuest<'_> {
    /// Leaves the guest, and says whether somebody waits for that.
    ///
    /// Costs a fence.
    pub fn leave(self) -> Left {
        let seat = self.seat;
        drop(self); // L1
        seat.look_who_waits()
    }
}

impl Drop for InGuest<'_> {
    fn drop(&mut self) {
        // L1: Release pairs with R3 and W1: what the guest did is done.
        if taken(Step::L1) {
            self.seat.trips.store(self.trip + 1, order(Step::L1, Ordering::Release));
        }
    }
}

impl Seat {
    fn new() -> Self {
        Self {
            trips: AtomicU64::new(0),
            knocked: AtomicBool::new(false),
            accounted: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }

    /// E0: the number of the trip that begins, the next odd one. A trip whose guard was
    /// forgotten ends here at the latest, because its thread is here.
    fn next_trip(&self) -> u64 {
        if taken(Step::E0) { (self.trips.load(Ordering::Relaxed) + 1) | 1 } else { 1 }
    }

    /// L2 and L3.
    fn look_who_waits(&self) -> Left {
        fence(Step::L2); // pairs with K2.
        // L3: a plain look, and a plain store only after a knock. A knock for another
        // ticket that the store wipes out is answered by the same wake: its raiser, too,
        // looks again after this trip's end.
        if taken(Step::L3) && self.knocked.load(Ordering::Relaxed) {
            self.knocked.store(false, Ordering::Relaxed);
            Left::Awaited
        } else {
            Left::Unnoticed
        }
    }

    /// One flush, for all raises up to `now`. Only the owner counts, so no locked add.
    fn count_flush(&self, now: Generation) {
        self.done.store(self.done.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.account(now.0);
    }

    fn retire(&self) {
        self.account(RETIRED);
    }

    fn account(&self, raises: u64) {
        if taken(Step::A1) {
            self.accounted.store(raises, Ordering::Relaxed); // A1
        }
    }

    fn counted(&self, now: Generation) -> SeatCount {
        let accounted = self.accounted.load(Ordering::Relaxed).min(now.0);
        let done = self.done.load(Ordering::Relaxed);
        // Of a running seat, `done` may be the newer of the two.
        SeatCount { done, saved: accounted.saturating_sub(done) }
    }
}

/// Whether a seat with this count of goings in and comings out is in the guest.
const fn is_inside(trips: u64) -> bool {
    trips % 2 == 1
}
