//! What runs while vcpus wait does not allocate.

#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use shootdown::{Domain, Generation, SeatId, Tally, Whom};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks of it.
struct Counting;

// SAFETY: every call goes to `System` as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is the one `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn recording_does_not_allocate() {
    let mut tally = Tally::new();
    let allocations = allocations_of(|| {
        for power in 0..64 {
            tally.raised(1);
            tally.completed(Duration::from_nanos(1 << power));
            tally.kernel_half_took(Duration::from_nanos(1 << power));
        }
    });
    assert_eq!(allocations, 0);
}

#[test]
fn a_shootdown_that_finds_nobody_in_the_guest_does_not_allocate() {
    let domain = Domain::new(4);
    let allocations = allocations_of(|| {
        let ticket = domain.raise((), Whom::Everyone, |_| ());
        domain.redeem(ticket).unwrap();
    });
    assert_eq!(allocations, 0);
}

#[test]
fn a_trip_into_the_guest_does_not_allocate() {
    let domain = Domain::new(1);
    let mut cached = Generation::default();
    domain.redeem(domain.raise((), Whom::Everyone, |_| ())).unwrap();
    let allocations = allocations_of(|| {
        let _ = domain.enter(SeatId(0), &mut cached, |_| ()).leave();
    });
    assert_eq!(allocations, 0);
}
