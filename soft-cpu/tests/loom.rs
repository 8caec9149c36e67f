//! Every order of events in the dance of `code_map.rs`: no trace that is kept and used again has other bytes
//! than its frame.
//!
//! `cargo model` runs this; without `--cfg loom` it is empty. One or two threads decode, one stores, as
//! `trace_cache.rs`, `run.rs` and `access.rs` do; one frame, one word of bytes. Each mutant leaves one step of the
//! dance out, and the claim must notice.

#![cfg(loom)]
#![expect(dead_code, unreachable_pub, reason = "only part of the file under test is used")]

#[path = "../src/code_map.rs"]
mod code_map;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Std};

use code_map::{CodeMap, Marked, Reader};
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

/// What a mutant leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// D3: a trace is kept whoever may still store past the mark.
    Asking,
    /// D3 is asked after the bytes were read.
    AskingInTime,
    /// S3: a store into marked code says nothing.
    Changing,
    /// The storer publishes what it has seen without dropping its translation.
    Dropping,
    /// Others' marks that are not counted yet are taken for counted ones.
    Counting,
}

const DECODER: usize = 0;
const STORER: usize = 1;
const FRAME: u32 = 0;

struct Guest {
    map: Arc<CodeMap>,
    bytes: AtomicU32,
}

/// A trace as the cache keeps it.
#[derive(Clone, Copy)]
struct Kept {
    bytes: u32,
    version: u32,
}

/// `trace_cache.rs`, `find`.
fn decode(guest: &Guest, reader: &mut Reader, left: Left) -> Option<Kept> {
    let (version, marked) = guest.map.mark(FRAME);
    if marked != Marked::Before || reader.is_behind() {
        reader.catch_up();
    }
    let counted = marked != Marked::Meanwhile || left == Left::Counting;
    let mut keep = counted && (reader.may_keep() || left == Left::Asking);
    let bytes = guest.bytes.load(Ordering::Relaxed);
    if left == Left::AskingInTime {
        keep = counted && reader.may_keep();
    }
    keep.then_some(Kept { bytes, version })
}

/// A processor that stores once or twice, with a look between, through a translation that may be older than the mark.
fn store(guest: &Guest, left: Left, stores: u32) {
    let mut reader = Reader::new(guest.map.clone(), STORER);
    reader.enter();
    // `access.rs`, `find_as`: filled while there was no mark.
    let mut translation = !guest.map.is_marked(FRAME);
    for value in 1..=stores {
        guest.bytes.store(value, Ordering::Relaxed);
        // A hit tells nobody; the slow way does (`note_store`).
        if !translation && left != Left::Changing && guest.map.is_marked(FRAME) {
            guest.map.changed(FRAME);
        }
        // `run.rs`: between two traces.
        if reader.is_behind() {
            translation &= left == Left::Dropping;
            reader.catch_up();
        }
    }
    reader.leave();
}

/// Runs every order; how many there were. Panics in an order that breaks the claim.
fn every_order(left: Left, decoders: usize) -> usize {
    let orders = Arc::new(AtomicUsize::new(0));
    let counted = orders.clone();
    let mut model = loom::model::Builder::new();
    // Three threads have far more orders: bound them tighter.
    model.preemption_bound = Some(if decoders == 1 { 3 } else { 2 });
    model.check(move || {
        counted.fetch_add(1, Std::Relaxed);
        let guest = loom::sync::Arc::new(Guest {
            map: CodeMap::new(1, 1 + decoders),
            bytes: AtomicU32::new(0),
        });
        let shared = guest.clone();
        let stores = if decoders == 1 { 2 } else { 1 };
        let storer = thread::spawn(move || store(&shared, left, stores));
        let other = (decoders == 2).then(|| {
            let shared = guest.clone();
            thread::spawn(move || {
                let mut reader = Reader::new(shared.map.clone(), 2);
                reader.enter();
                let kept = decode(&shared, &mut reader, left);
                reader.leave();
                kept
            })
        });
        let mut reader = Reader::new(guest.map.clone(), DECODER);
        reader.enter();
        let first = decode(&guest, &mut reader, left);
        let second = if decoders == 1 { decode(&guest, &mut reader, left) } else { None };
        storer.join().unwrap();
        let third = other.and_then(|other| other.join().unwrap());
        let now = guest.bytes.load(Ordering::Relaxed);
        for kept in [first, second, third].into_iter().flatten() {
            // A trace of another version is never run again.
            if kept.version == guest.map.version(FRAME) {
                assert_eq!(kept.bytes, now, "a stale trace would be run");
            }
        }
    });
    orders.load(Std::Relaxed)
}

#[test]
fn a_trace_that_is_used_again_has_the_bytes_of_its_frame() {
    let orders = every_order(Left::Nothing, 1);
    println!("code map: {orders} orders with one decoder");
}

#[test]
fn and_so_has_one_whose_frame_two_processors_mark_at_once() {
    let orders = every_order(Left::Nothing, 2);
    println!("code map: {orders} orders with two decoders");
}

#[test]
fn every_step_that_is_left_out_is_noticed() {
    for (left, decoders) in [
        (Left::Asking, 1),
        (Left::AskingInTime, 1),
        (Left::Changing, 1),
        (Left::Dropping, 1),
        (Left::Counting, 2),
    ] {
        let noticed = std::panic::catch_unwind(|| every_order(left, decoders)).is_err();
        assert!(noticed, "nothing went wrong without {left:?}");
    }
}
