//! What every model is made of: a bell to sleep at, and memory behind one translation.

use std::sync::atomic::{AtomicUsize, Ordering as Counting};
use std::time::Instant;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
use loom::sync::{Condvar, Mutex};
use shootdown::{Domain, Generation, SeatId};

/// Tries every order of events in `body`, as far as `preemptions` forced switches between
/// threads go (`None`: all of them), and says how many orders there were.
pub fn model(preemptions: Option<usize>, body: impl Fn() + Send + Sync + 'static) {
    static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);
    let before = EXECUTIONS.load(Counting::Relaxed);
    let start = Instant::now();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        EXECUTIONS.fetch_add(1, Counting::Relaxed);
        body();
    });
    let executions = EXECUTIONS.load(Counting::Relaxed) - before;
    println!("{executions} executions in {:.2} s", start.elapsed().as_secs_f64());
}

/// A sleeper's bell: a ring is kept until somebody has heard it.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    pub fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.heard.notify_one();
    }

    pub fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.heard.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// A frame of memory and the one table entry that leads to it.
#[derive(Default)]
pub struct Page {
    present: AtomicBool,
    frame: UnsafeCell<u64>,
}

impl Page {
    pub fn mapped() -> Self {
        Self { present: AtomicBool::new(true), frame: UnsafeCell::new(0) }
    }

    /// P: the pmap clears the entry. Relaxed, so that only the dance can order it.
    pub fn unmap(&self) {
        self.present.store(false, Relaxed);
    }

    /// Somebody else owns the frame now and writes to it. Loom fails the model when a
    /// guest's read is not ordered before this.
    pub fn reuse(&self) {
        self.frame.with_mut(|_| ());
    }
}

/// What a processor remembers about a page.
pub struct Processor {
    pub cached: Generation,
    pub translation: bool,
}

impl Processor {
    /// One that has used the page before the model starts.
    pub fn warm() -> Self {
        Self { cached: Generation::default(), translation: true }
    }

    /// The guest reads the page: from the cached translation, or after a walk.
    pub fn touch(&mut self, page: &Page) {
        if !self.translation {
            self.translation = page.present.load(Relaxed);
        }
        if self.translation {
            page.frame.with(|_| ());
        }
    }
}
