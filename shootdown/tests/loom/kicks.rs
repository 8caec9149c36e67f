//! A kick always ends this `KVM_RUN` or the next, unless the vcpu has looked at its
//! orders since.
//!
//! Three threads: the asker, the vcpu, and the kernel, which delivers a signal some time
//! after it was sent. The guest would run for ever, so a lost kick is a deadlock.

use std::sync::Arc;

use loom::sync::atomic::Ordering::Relaxed;
use loom::sync::atomic::{AtomicBool, AtomicU8};
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use shootdown::{Domain, Left, Whom, kick};

use crate::mutants::neglects;
use crate::world::{Bell, Orders, Processor, model};

/// What the kernel knows of the vcpu's thread.
#[derive(Default)]
struct Kernel {
    thread: Mutex<Thread>,
    changed: Condvar,
}

#[derive(Default)]
struct Thread {
    /// Between the beginning and the end of `KVM_RUN`.
    in_run: bool,
    /// Sent, and not yet noticed by the cpu that the thread is on.
    in_flight: bool,
    /// Noticed in `KVM_RUN`, which must end.
    pending: bool,
    /// Nobody will send any more.
    over: bool,
}

impl Kernel {
    fn tell(&self, tell: impl FnOnce(&mut Thread)) {
        tell(&mut self.thread.lock().unwrap());
        self.changed.notify_all();
    }

    /// tgkill. Signals of one number that are under way are one signal.
    fn signal(&self) {
        self.tell(|thread| thread.in_flight = true);
    }

    /// The kernel's own thread: delivers what is under way. To a thread in user mode this
    /// means an empty handler runs, and the signal is gone.
    fn deliver_all(&self) {
        let mut thread = self.thread.lock().unwrap();
        loop {
            if thread.in_flight {
                thread.in_flight = false;
                thread.pending = thread.in_run;
                self.changed.notify_all();
            } else if thread.over {
                return;
            } else {
                thread = self.changed.wait(thread).unwrap();
            }
        }
    }

    /// `KVM_RUN`: looks at the word once, and at pending signals ever after. Says whether
    /// the guest has ended of its own accord, which it does when the model is over.
    fn run(&self, immediate_exit: &AtomicU8) -> bool {
        self.thread.lock().unwrap().in_run = true;
        let at_once = immediate_exit.load(Relaxed) != 0;
        let mut thread = self.thread.lock().unwrap();
        while !at_once && !thread.pending && !thread.over {
            thread = self.changed.wait(thread).unwrap();
        }
        // Back to user mode; a pending signal's handler runs.
        thread.in_run = false;
        thread.pending = false;
        thread.over
    }
}

struct World {
    domain: Domain,
    raiser: Bell,
    immediate_exit: AtomicU8,
    /// The mailbox, with room for one order. Relaxed: nothing but the kick may order it.
    finish: AtomicBool,
    kernel: Kernel,
}

type Threads = [JoinHandle<()>; 2];

impl World {
    /// A vcpu that goes round as `round` does, and the kernel.
    fn start(round: fn(&World, &mut Processor<0>) -> bool) -> (Arc<Self>, Threads) {
        let world = Arc::new(Self {
            domain: Domain::new(1),
            raiser: Bell::default(),
            immediate_exit: AtomicU8::new(0),
            finish: AtomicBool::new(false),
            kernel: Kernel::default(),
        });
        let (vcpu, kernel) = (world.clone(), world.clone());
        let vcpu = thread::spawn(move || {
            let mut processor = Processor::warm(0);
            let mut rounds = 0;
            while round(&vcpu, &mut processor) {
                rounds += 1;
                // A kick is felt twice at most: by its word and by its signal.
                assert!(rounds <= 4, "a heeded kick ends one KVM_RUN after the other");
            }
        });
        (world, [vcpu, thread::spawn(move || kernel.kernel.deliver_all())])
    }

    /// S2 and S3.
    fn ask(&self) {
        if neglects("S3-before-S2") {
            self.kernel.signal();
            kick::ask(&self.immediate_exit, || ());
        } else {
            kick::ask(&self.immediate_exit, || self.kernel.signal());
        }
    }

    /// "Finish", and a kick.
    fn order_to_finish(&self) {
        self.finish.store(true, Relaxed); // S1
        self.ask();
    }

    /// A raise that knocks, and the wait for it.
    fn shoot_down(&self) {
        let mut ticket = self.domain.raise((), Whom::Everyone, |_| self.ask());
        while let Err(again) = self.domain.redeem(ticket) {
            ticket = again;
            self.raiser.sleep();
        }
    }

    /// V1 and V2: whether there is no order to finish.
    fn goes_on(&self) -> bool {
        if neglects("V2-before-V1") {
            let told = self.finish.load(Relaxed);
            let _ = kick::heed(&self.immediate_exit);
            return !told;
        }
        let _ = kick::heed(&self.immediate_exit); // V1
        !self.finish.load(Relaxed) // V2
    }

    /// V3 to V5: whether the guest has not ended.
    fn trip(&self, processor: &mut Processor<0>) -> bool {
        let inside = processor.enter(&self.domain); // V3
        if neglects("V1-after-V3") {
            let _ = kick::heed(&self.immediate_exit);
        }
        let ended = self.kernel.run(&self.immediate_exit); // V4
        if inside.leave() == Left::Awaited {
            self.raiser.ring(); // V5
        }
        !ended
    }

    /// A guest that still runs ends, and nobody sends any more.
    fn end<const COUNT: usize>(&self, threads: [JoinHandle<()>; COUNT]) {
        self.kernel.tell(|thread| thread.over = true);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn an_order_followed_by_a_kick_is_always_looked_at() {
    model(Orders::All, || {
        let (world, [vcpu, kernel]) =
            World::start(|world, _| world.goes_on() && !world.kernel.run(&world.immediate_exit));
        world.order_to_finish();
        vcpu.join().unwrap();
        world.end([kernel]);
    });
}

#[test]
fn a_knock_always_ends_the_trip_that_was_seen() {
    model(Orders::Interrupted(3), || {
        let (world, threads) = World::start(|world, processor| {
            if !neglects("V1-after-V3") {
                let _ = kick::heed(&world.immediate_exit); // V1
            }
            world.trip(processor)
        });
        world.shoot_down();
        world.end(threads);
    });
}

#[test]
fn an_order_and_a_knock_do_not_hide_each_other() {
    model(Orders::Interrupted(3), || {
        let (world, [vcpu, kernel]) =
            World::start(|world, processor| world.goes_on() && world.trip(processor));
        world.shoot_down();
        world.order_to_finish();
        vcpu.join().unwrap();
        world.end([kernel]);
    });
}
