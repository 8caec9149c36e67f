//! Every raise ends, for every seat, exactly once: as a flush done or as one saved.

use std::sync::Arc;

use loom::thread;
use shootdown::{Domain, SeatCount, SeatId, Whom};

use crate::world::{Orders, Processor, model};

/// Raises that may overlap with the vcpu's trips, and one that comes when it has gone.
const RAISES: u64 = 3;

fn count_while_a_guest_runs(trips: usize, orders: Orders, end: fn(&Domain, &mut Processor<0>)) {
    model(orders, move || {
        let domain = Arc::new(Domain::new(2));
        let vcpu = domain.clone();
        let thread = thread::spawn(move || {
            let mut processor = Processor::<0>::warm(0);
            for _ in 0..trips {
                let _ = processor.enter(&vcpu).leave();
            }
            end(&vcpu, &mut processor);
            processor.flushes
        });
        // Seat 1 is never entered, and retired at once.
        Processor::<0>::warm(1).retire(&domain);
        let _ = domain.redeem(domain.raise((), Whom::Everyone, |_| ()));
        let _ = domain.redeem(domain.raise((), Whom::Nobody, |_| ()));
        let flushes = thread.join().unwrap();
        let _ = domain.redeem(domain.raise((), Whom::Everyone, |_| ()));
        assert_eq!(domain.generation().0, RAISES);
        let runner = SeatCount { done: flushes, saved: RAISES - flushes };
        let sleeper = SeatCount { done: 0, saved: RAISES };
        assert_eq!(domain.counts(), [runner, sleeper]);
    });
}

#[test]
fn every_raise_is_a_flush_done_or_saved_once_the_vcpu_has_retired() {
    count_while_a_guest_runs(2, Orders::All, |domain, processor| processor.retire(domain));
}

#[test]
fn and_once_a_vcpu_that_panicked_was_abandoned() {
    count_while_a_guest_runs(1, Orders::All, |domain, processor| {
        drop(processor.enter(domain));
        let _ = domain.abandon(SeatId(0));
    });
}
