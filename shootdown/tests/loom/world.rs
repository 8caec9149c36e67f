//! What every model is made of: a bell to sleep at, memory behind one translation, a
//! processor that caches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Counting};
use std::time::Instant;

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::{Condvar, Mutex};
use shootdown::{Domain, Generation, InGuest, SeatId};

/// How far a model goes.
#[derive(Clone, Copy)]
pub(crate) enum Orders {
    /// Every order of events.
    All,
    /// Those in which at most so many threads are interrupted where they could go on.
    Interrupted(usize),
}

/// Runs `body` in every order of events, as far as `orders` goes, and prints how many that
/// was. The number in `LOOM_MAX_PREEMPTIONS`, if there is one, wins over `orders`.
pub(crate) fn model(orders: Orders, body: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicUsize::new(0));
    let counter = executions.clone();
    let start = Instant::now();
    let mut builder = loom::model::Builder::default();
    if let (None, Orders::Interrupted(times)) = (builder.preemption_bound, orders) {
        builder.preemption_bound = Some(times);
    }
    builder.check(move || {
        counter.fetch_add(1, Counting::Relaxed);
        body();
    });
    let executions = executions.load(Counting::Relaxed);
    eprintln!("explored {executions} executions in {:.2} s", start.elapsed().as_secs_f64());
}

/// A sleeper's bell: a ring is kept until somebody has heard it.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    /// Wakes the sleeper, or keeps the next one from sleeping.
    pub(crate) fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.heard.notify_one();
    }

    /// Sleeps until the bell has rung since the last sleep.
    pub(crate) fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.heard.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// A frame of memory and the one table entry that leads to it.
pub(crate) struct Page {
    present: AtomicBool,
    frame: UnsafeCell<()>,
}

impl Page {
    /// One that guests may use.
    pub(crate) fn mapped() -> Self {
        Self { present: AtomicBool::new(true), frame: UnsafeCell::new(()) }
    }

    /// P: the pmap clears the entry. Relaxed: nothing but the dance may order it.
    pub(crate) fn unmap(&self) {
        self.present.store(false, Relaxed);
    }

    /// The frame's next owner writes to it. Loom fails the model if some guest's read
    /// of the frame does not come before this.
    pub(crate) fn reuse(&self) {
        self.frame.with_mut(|_| ());
    }
}

/// A virtual processor with a cache of one translation per page.
pub(crate) struct Processor<const PAGES: usize> {
    seat: SeatId,
    cached: Generation,
    knows: [bool; PAGES],
    /// How often it has flushed.
    pub(crate) flushes: u64,
}

impl<const PAGES: usize> Processor<PAGES> {
    /// One that has used the pages before the model begins.
    pub(crate) fn warm(seat: usize) -> Self {
        Self { seat: SeatId(seat), cached: Generation::default(), knows: [true; PAGES], flushes: 0 }
    }

    /// E1 to E4.
    pub(crate) fn enter<'d>(&mut self, domain: &'d Domain) -> InGuest<'d> {
        let (knows, flushes) = (&mut self.knows, &mut self.flushes);
        domain.enter(self.seat, &mut self.cached, |_| {
            *knows = [false; PAGES];
            *flushes += 1;
        })
    }

    /// The guest reads every page: through the cached translation, or after a walk.
    pub(crate) fn touch(&mut self, pages: &[Page; PAGES]) {
        for (knows, page) in self.knows.iter_mut().zip(pages) {
            *knows = *knows || page.present.load(Relaxed);
            if *knows {
                page.frame.with(|_| ());
            }
        }
    }

    /// Never enters again.
    pub(crate) fn retire(&mut self, domain: &Domain) {
        domain.retire(self.seat, &mut self.cached);
    }
}
