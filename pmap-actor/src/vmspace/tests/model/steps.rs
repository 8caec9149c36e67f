//! What may happen to a vmspace, and how it is drawn: mostly to few pages, now and then to whole blocks.

use actors::contract::page::{Advice, Settled, Touch};
use actors::{Access, Protection};
use proptest::prelude::*;

use super::{BLOCK_PAGES, PAGES};
use crate::content::StoreLimits;
use crate::ept::masks::PmapFlags;

/// Page numbers: frames, so memory's hole is no gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Span {
    pub(in super::super) first: u64,
    pub(in super::super) pages: u64,
}

/// What kind of vmspace.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Setup {
    pub(in super::super) flags: PmapFlags,
    /// A second copy of the tables that walkers use, as KVM has one; else they walk the tables.
    pub(in super::super) mirrored: bool,
    pub(in super::super) at_once: bool,
    pub(in super::super) around: u64,
    pub(in super::super) store: Option<StoreLimits>,
    /// Of everything that is not drawn: refusals of the host, what joins what.
    pub(in super::super) seed: u64,
}

/// Which of the two workers.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Worker {
    Pageout,
    Pagein,
}

#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Step {
    Map(Span, Protection),
    /// A device's memory that can be read, or written, too.
    MapDevice(Span, Protection),
    Unmap(Span),
    Forget(Span),
    Protect(Span, Protection),
    Wire(Span),
    Unwire(Span),
    Hold(Span, Protection),
    /// One of the holds there are, by number.
    Release(usize, bool),
    /// Through one of the holds.
    HoldStore(usize, u64),
    Touch(usize, u64, Access),
    /// Every page of a block, one after the other.
    TouchAll(u64, Access),
    /// A fault that is reported although nothing is missing, perhaps.
    Report(u64, Access),
    Harvest(Span, Touch),
    ExpectHarvests,
    Begin,
    Take(usize),
    Settle(usize, Settled),
    End(usize),
    Advise(Span, Advice),
    Promote(u64),
    Demote(Span),
    PageOut(Span),
    Reclaim,
    /// A worker does the next thing it was told; perhaps it fails.
    Work(Worker, bool),
    /// The pmap hears the oldest answer of a worker.
    Hear(Worker),
    /// Both workers do and say all they can.
    Drain,
    /// The shootdown ends.
    Finish,
}

fn protection() -> impl Strategy<Value = Protection> {
    prop_oneof![
        6 => Just(Protection::all()),
        2 => Just(Protection::READ | Protection::WRITE),
        2 => Just(Protection::READ | Protection::EXECUTE),
        2 => Just(Protection::READ),
        1 => Just(Protection::empty()),
    ]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![4 => Just(Access::Write), 3 => Just(Access::Read), 1 => Just(Access::Execute)]
}

/// Few pages of each block, so that steps meet.
fn page() -> impl Strategy<Value = u64> {
    (0..PAGES / BLOCK_PAGES, prop_oneof![4 => 0..8u64, 1 => 508..512u64, 1 => 62..66u64])
        .prop_map(|(block, page)| block * BLOCK_PAGES + page)
}

fn span() -> impl Strategy<Value = Span> {
    let few = (page(), 1..8u64).prop_map(|(first, pages)| Span { first, pages });
    let blocks = (0..3u64, 1..=2u64)
        .prop_map(|(first, many)| Span { first: first * BLOCK_PAGES, pages: many * BLOCK_PAGES });
    let most = (page(), 300..900u64).prop_map(|(first, pages)| Span { first, pages });
    // A range does not cross memory's hole.
    prop_oneof![6 => few, 4 => blocks, 1 => most].prop_map(|Span { first, pages }| {
        let end = if first < super::LOW_PAGES { super::LOW_PAGES } else { PAGES };
        Span { first, pages: pages.min(end - first) }
    })
}

pub(in super::super) fn step() -> impl Strategy<Value = Step> {
    let touch = prop_oneof![
        1 => Just(Touch::ACCESSED), 2 => Just(Touch::MODIFIED), 1 => Just(Touch::all())
    ];
    let how = prop_oneof![2 => Just(Settled::Acknowledged), 1 => Just(Settled::PutBack)];
    let worker = || prop_oneof![Just(Worker::Pageout), Just(Worker::Pagein)];
    let guest = prop_oneof![
        12 => (0..2usize, page(), access()).prop_map(|(who, page, how)| Step::Touch(who, page, how)),
        4 => (0..3u64, access()).prop_map(|(block, how)| Step::TouchAll(block, how)),
        1 => (page(), access()).prop_map(|(page, how)| Step::Report(page, how)),
        3 => (0..3usize, 0..6u64).prop_map(|(hold, page)| Step::HoldStore(hold, page)),
    ];
    let map = prop_oneof![
        2 => (span(), protection()).prop_map(|(span, how)| Step::Map(span, how)),
        1 => (span(), any::<bool>()).prop_map(|(span, writable)| {
            let write = if writable { Protection::WRITE } else { Protection::empty() };
            Step::MapDevice(span, Protection::READ | write)
        }),
        1 => span().prop_map(Step::Unmap),
        1 => span().prop_map(Step::Forget),
        2 => (span(), protection()).prop_map(|(span, how)| Step::Protect(span, how)),
        1 => span().prop_map(Step::Wire),
        1 => span().prop_map(Step::Unwire),
        2 => (span(), protection()).prop_map(|(span, how)| Step::Hold(span, how)),
        2 => (0..4usize, any::<bool>()).prop_map(|(hold, install)| Step::Release(hold, install)),
    ];
    let bits = prop_oneof![
        8 => (span(), touch).prop_map(|(span, touch)| Step::Harvest(span, touch)),
        1 => Just(Step::ExpectHarvests),
        2 => Just(Step::Begin),
        6 => (0..3usize).prop_map(Step::Take),
        4 => (0..3usize, how).prop_map(|(who, how)| Step::Settle(who, how)),
        3 => (0..3usize).prop_map(Step::End),
        2 => span().prop_map(|span| Step::Advise(span, Advice::DontNeed)),
        2 => span().prop_map(|span| Step::Advise(span, Advice::Free)),
        2 => (0..3u64).prop_map(Step::Promote),
        1 => span().prop_map(Step::Demote),
    ];
    let paging = prop_oneof![
        3 => span().prop_map(Step::PageOut),
        4 => Just(Step::Reclaim),
        4 => (worker(), prop::bool::weighted(0.1)).prop_map(|(who, fails)| Step::Work(who, fails)),
        4 => worker().prop_map(Step::Hear),
        2 => Just(Step::Drain),
        2 => Just(Step::Finish),
    ];
    prop_oneof![5 => guest, 2 => map, 3 => bits, 4 => paging]
}

pub(in super::super) fn setup() -> impl Strategy<Value = Setup> {
    let pages = |pages: u64| pages * actors::PAGE_SIZE;
    let limit = prop_oneof![
        2 => Just(u64::MAX), 2 => Just(pages(48)), 1 => Just(pages(620)), 1 => Just(pages(1300))
    ];
    let slots = prop_oneof![1 => Just(0u32), 1 => Just(40), 4 => Just(4096)];
    let store =
        (slots, limit).prop_map(|(slots, resident_bytes)| StoreLimits { slots, resident_bytes });
    let store = prop_oneof![1 => Just(None), 5 => store.prop_map(Some)];
    let around = prop_oneof![Just(1u64), Just(4), Just(16)];
    (0..24u8, any::<bool>(), around, store, any::<u64>()).prop_map(
        |(kind, at_once, around, store, seed)| {
            let mut flags = PmapFlags::empty();
            flags.set(PmapFlags::SUPERPAGES, kind & 1 != 0 || kind & 8 != 0);
            flags.set(PmapFlags::EXECUTE_ONLY, kind & 2 != 0);
            // A second copy goes with emulated bits only: nobody would set hardware's.
            let mirrored = kind >= 16;
            flags.set(PmapFlags::EMULATE_AD_BITS, mirrored || kind & 4 != 0);
            Setup { flags, mirrored, at_once, around, store, seed }
        },
    )
}
