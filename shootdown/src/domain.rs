//! Making every vcpu forget a translation before its frame is used again.
//!
//! # The promise
//!
//! Once a [`Ticket`] is done, no vcpu of this address space can reach memory through a
//! translation that was removed before [`Domain::raise`].
//!
//! # The players
//!
//! * One *raiser* at a time: the pmap, after it has cleared page-table entries.
//! * Any number of *seats*, one per vcpu thread, each going in and out of the guest at
//!   its own pace.
//!
//! # The dance
//!
//! ```text
//!   vcpu thread                          pmap
//!   E1  seat.in_guest = true             P   entries cleared
//!   E2  ── fence SeqCst ──               R1  generation += 1
//!   E3  read generation                  R2  ── fence SeqCst ──
//!   E4  changed? flush, tell `flushed`   R3  read every seat.in_guest
//!       ...guest runs...                 K1  in the guest? seat.knocked = true; knock
//!   L1  seat.in_guest = false            K2  ── fence SeqCst ──
//!   L2  ── fence SeqCst ──               W1  still in the guest and not flushed?
//!   L3  knocked? then wake the raiser        then sleep until woken, and look again
//! ```
//!
//! Each side writes its own word, then reads the other's. The fences E2 and R2 forbid
//! the one bad ending, in which both read the old value: either the vcpu sees the new
//! generation at E3 and flushes, or the pmap sees the vcpu at R3 and knocks. Seeing both
//! is fine and costs one needless knock. L2 and K2 do the same for going to sleep: either
//! the raiser sees at W1 that the vcpu is out, or the vcpu sees at L3 that somebody waits.
//!
//! A knock is *sticky*: a vcpu may leave for its own reasons between R3 and the knock's
//! arrival. `knocked` stays set until the vcpu looks at it on its way out, and whatever
//! carries the knock (`vcpu-actor`'s knocker) makes the vcpu's next trip end at once.
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
//! or the seat never entered again). `done + saved` of a seat equals the generation it
//! has accounted for.
//!
//! # What is *not* here
//!
//! How to knock, what a flush does, which entries to clear, how to sleep, what time it is.

use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};

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
    /// Guest instructions may be running.
    in_guest: AtomicBool,
    /// Somebody waits for this vcpu to come out.
    knocked: AtomicBool,
    /// Everything up to this generation has been forgotten.
    flushed: AtomicU64,
    /// Entries that flushed. Written by the seat's owner only.
    done: AtomicU64,
    /// Raises that cost no flush of their own. Written by the seat's owner only.
    saved: AtomicU64,
}

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

/// Being in the guest. Leaving is dropping this, or better [`InGuest::leave`].
#[derive(Debug)]
#[must_use = "the guest may only run while this lives"]
pub struct InGuest<'d> {
    seat: &'d Seat,
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
#[derive(Debug)]
#[must_use = "the removed frames may not be reused before this is redeemed"]
pub struct Ticket<R> {
    target: Generation,
    waiting: Vec<SeatId>,
    removed: R,
}

impl<R> Ticket<R> {
    /// The generation this invalidation made.
    #[must_use]
    pub fn target(&self) -> Generation {
        self.target
    }

    /// Who has not come out or flushed, as of the last look.
    #[must_use]
    pub fn waiting(&self) -> &[SeatId] {
        &self.waiting
    }
}

impl Domain {
    /// An address space that `seats` vcpus share.
    #[must_use]
    pub fn new(seats: usize) -> Self {
        let seat = || Seat {
            in_guest: AtomicBool::new(false),
            knocked: AtomicBool::new(false),
            flushed: AtomicU64::new(0),
            done: AtomicU64::new(0),
            saved: AtomicU64::new(0),
        };
        Self { generation: AtomicU64::new(0), seats: (0..seats).map(|_| seat()).collect() }
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
    /// when the world has moved on since.
    pub fn enter(
        &self,
        id: SeatId,
        cached: &mut Generation,
        flush: impl FnOnce(Generation),
    ) -> InGuest<'_> {
        let seat = &self.seats[id.0];
        seat.in_guest.store(true, Ordering::Relaxed); // E1: ordered by the fence below.
        fence(Ordering::SeqCst); // E2: pairs with R2.
        // E3: Acquire pairs with R1, so a later walk sees the cleared entries.
        let now = Generation(self.generation.load(Ordering::Acquire));
        if now != *cached {
            flush(now);
            seat.account(now.0 - cached.0);
            *cached = now;
            // E4: Release: forgotten first, told second. For what the guest did on its
            // last visit E2 would do; this is for a flush that touches shared memory.
            seat.flushed.store(now.0, Ordering::Release);
        }
        InGuest { seat }
    }

    /// Starts an invalidation. The entries must be cleared already; `removed` is what
    /// they led to.
    ///
    /// Returns at once. `knock` is called for every vcpu that must come out.
    pub fn raise<R>(&self, removed: R, whom: Whom, mut knock: impl FnMut(SeatId)) -> Ticket<R> {
        // R1: Release publishes the cleared entries along with the number.
        let target = Generation(self.generation.fetch_add(1, Ordering::Release) + 1);
        let mut waiting = Vec::new();
        if whom == Whom::Everyone {
            fence(Ordering::SeqCst); // R2: pairs with E2.
            for (index, seat) in self.seats.iter().enumerate() {
                // R3: Acquire pairs with L1: what the guest did before leaving is done.
                if seat.in_guest.load(Ordering::Acquire) {
                    seat.knocked.store(true, Ordering::Relaxed); // K1: ordered by K2.
                    knock(SeatId(index));
                    waiting.push(SeatId(index));
                }
            }
            fence(Ordering::SeqCst); // K2: pairs with L2.
        }
        Ticket { target, waiting, removed }
    }

    /// Whether [`Domain::redeem`] would succeed: the look at W1 by a raiser about to sleep.
    #[must_use]
    pub fn is_done<R>(&self, ticket: &Ticket<R>) -> bool {
        ticket.waiting.iter().all(|&id| self.has_forgotten(id, ticket.target))
    }

    /// Gives back what the invalidation removed, or the ticket if somebody may still
    /// use it.
    ///
    /// # Errors
    ///
    /// The ticket itself, when it is too early; [`Ticket::waiting`] says because of whom.
    pub fn redeem<R>(&self, mut ticket: Ticket<R>) -> Result<R, Ticket<R>> {
        let target = ticket.target;
        ticket.waiting.retain(|&id| !self.has_forgotten(id, target));
        if ticket.waiting.is_empty() { Ok(ticket.removed) } else { Err(ticket) }
    }

    /// Whether the vcpu at this seat can no longer use what `target` removed.
    fn has_forgotten(&self, id: SeatId, target: Generation) -> bool {
        let seat = &self.seats[id.0];
        // W1. A vcpu can leave and come back between two looks; `flushed` is how it is
        // not waited for twice. Acquire pairs with L1, and with E4.
        !seat.in_guest.load(Ordering::Acquire) || seat.flushed.load(Ordering::Acquire) >= target.0
    }

    /// Accounts for the raises a vcpu that will never enter again has not flushed for.
    pub fn retire(&self, id: SeatId, cached: &mut Generation) {
        let now = self.generation();
        let seat = &self.seats[id.0];
        seat.saved
            .store(seat.saved.load(Ordering::Relaxed) + (now.0 - cached.0), Ordering::Relaxed);
        *cached = now;
    }

    /// How each seat's raises ended so far.
    #[must_use]
    pub fn counts(&self) -> Vec<SeatCount> {
        let count = |seat: &Seat| SeatCount {
            done: seat.done.load(Ordering::Relaxed),
            saved: seat.saved.load(Ordering::Relaxed),
        };
        self.seats.iter().map(count).collect()
    }
}

impl Seat {
    /// One flush stands for `raises` raises. Only the owner counts, so no locked add.
    fn account(&self, raises: u64) {
        self.done.store(self.done.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.saved.store(self.saved.load(Ordering::Relaxed) + raises - 1, Ordering::Relaxed);
    }
}

impl InGuest<'_> {
    /// Leaves the guest, and says whether somebody waits for that.
    pub fn leave(self) -> Left {
        let seat = self.seat;
        drop(self); // L1
        fence(Ordering::SeqCst); // L2: pairs with K2.
        // L3: a plain look first; the swap's price is paid only after a knock.
        if seat.knocked.load(Ordering::Relaxed) && seat.knocked.swap(false, Ordering::Relaxed) {
            Left::Awaited
        } else {
            Left::Unnoticed
        }
    }
}

impl Drop for InGuest<'_> {
    fn drop(&mut self) {
        self.seat.in_guest.store(false, Ordering::Release); // L1: pairs with R3 and W1.
    }
}
