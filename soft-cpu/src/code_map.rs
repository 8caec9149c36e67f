//! Which page frames hold code that some processor has decoded, and whether it changed since.
//!
//! # The dance
//!
//! Each frame has a word: a version, and a mark that says "somebody decoded instructions from here". A trace
//! carries the version it was decoded at and is used only while the frame still has it.
//!
//! ```text
//!   who decodes                               who stores
//!   D1  mark the word, take its version       S1  translation says "marked": slow path
//!   D2  if newly marked: marks += 1, and      S2  store the bytes
//!       say in the word that it is counted    S3  version += 1, mark off, in one step
//!   D3  has everybody seen the marks?
//!   D4  read the bytes, decode
//!   D5  keep the trace, if D3 said yes
//! ```
//!
//! D1 before S3: the trace has the old version and is never used again. D1 after S3: the bytes read at D4 are
//! the new ones (S3 releases S2, D1 acquires).
//!
//! A processor's translation for stores says "not marked" until it is flushed, so after D2 every other
//! processor must drop those translations before the trace may be kept: each looks at `marks` every few
//! traces, and before it decodes ([`Reader::catch_up`]), and publishes what it has seen. Until all processors in the guest have seen
//! the mark, the decoder runs its trace once and throws it away. (Asked at D3, not after: a store between D4 and the
//! storer's look would be lost.)
//!
//! Somebody else's mark that is not counted yet ([`Marked::Meanwhile`]) is one that D3 knows nothing of: the trace is
//! not kept either.
//!
//! The fences: D2, fence, D3 against "publish out of the guest / seen", fence, stores: the same "set mine,
//! look at yours" as everywhere here. `tests/loom.rs` checks the dance (`cargo model`), and that it fails without its parts.

use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

const MARK: u32 = 1;
/// The mark is in `marks`.
const COUNTED: u32 = 2;
const STATE: u32 = MARK | COUNTED;
/// From one version to the next.
const STEP: u32 = 4;

/// Who marked a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marked {
    /// The caller.
    Now,
    /// Somebody who is just doing so.
    Meanwhile,
    /// Somebody who has done so.
    Before,
}

/// What `seen` says of a processor that is out of the guest: it will catch up on its way in.
const OUT: u64 = u64::MAX;

/// Shared by all processors of a guest.
#[derive(Debug)]
pub struct CodeMap {
    frames: Box<[AtomicU32]>,
    marks: AtomicU64,
    seen: Box<[AtomicU64]>,
    /// Held by locked accesses that cross a page, which no single instruction of ours can do.
    pub(crate) split_lock: parking_lot::Mutex<()>,
}

impl CodeMap {
    /// For so many 4 KiB frames and processors.
    #[must_use]
    pub fn new(frames: usize, processors: usize) -> Arc<Self> {
        Arc::new(Self {
            frames: (0..frames).map(|_| AtomicU32::new(0)).collect(),
            marks: AtomicU64::new(0),
            seen: (0..processors).map(|_| AtomicU64::new(OUT)).collect(),
            split_lock: parking_lot::Mutex::new(()),
        })
    }

    fn word(&self, frame: u32) -> &AtomicU32 {
        &self.frames[frame as usize]
    }

    /// How many processors share it.
    #[must_use]
    pub fn processors(&self) -> usize {
        self.seen.len()
    }

    /// The version of what is in `frame`. A trace of another version is stale.
    #[inline(always)]
    pub(crate) fn version(&self, frame: u32) -> u32 {
        // Acquire pairs with the update in `changed`.
        self.word(frame).load(Ordering::Acquire) & !STATE
    }

    /// Whether somebody decoded instructions from it.
    pub(crate) fn is_marked(&self, frame: u32) -> bool {
        self.word(frame).load(Ordering::Acquire) & MARK != 0
    }

    /// D1 and D2: returns the version, and whose mark it has.
    pub(crate) fn mark(&self, frame: u32) -> (u32, Marked) {
        let word = self.word(frame);
        let before = word.fetch_or(MARK, Ordering::AcqRel);
        let version = before & !STATE;
        if before & MARK != 0 {
            let counted = before & COUNTED != 0;
            return (version, if counted { Marked::Before } else { Marked::Meanwhile });
        }
        self.marks.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        // If it changed already, the mark is gone and the next one is counted anew. Release: who sees this sees the
        // count.
        let (old, new) = (version | MARK, version | STATE);
        let _gone = word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
        (version, Marked::Now)
    }

    /// S3, after the bytes are stored. Also for whoever writes from outside: a device, a pager.
    pub fn changed(&self, frame: u32) {
        let advance = |word: u32| Some((word & !STATE).wrapping_add(STEP));
        // AcqRel: releases the bytes to whoever marks the frame next.
        let _always = self.word(frame).fetch_update(Ordering::AcqRel, Ordering::Acquire, advance);
    }

    /// Whether every processor that could still hold a translation from before the newest mark has
    /// dropped it.
    pub(crate) fn everybody_saw(&self, own: usize) -> bool {
        let marks = self.marks.load(Ordering::Acquire);
        self.seen
            .iter()
            .enumerate()
            .all(|(index, seen)| index == own || seen.load(Ordering::Acquire) >= marks)
    }
}

/// One processor's view of the marks.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) map: Arc<CodeMap>,
    own: usize,
    seen: u64,
}

impl Reader {
    pub(crate) fn new(map: Arc<CodeMap>, own: usize) -> Self {
        Self { map, own, seen: 0 }
    }

    /// Now and then between two traces, and before decoding: whether translations for stores must be dropped before the next one.
    #[inline(always)]
    pub(crate) fn is_behind(&self) -> bool {
        self.map.marks.load(Ordering::Acquire) != self.seen
    }

    /// They were dropped.
    pub(crate) fn catch_up(&mut self) {
        self.seen = self.map.marks.load(Ordering::Acquire);
        self.map.seen[self.own].store(self.seen, Ordering::Release);
    }

    /// On the way into the guest: whether translations for stores must be dropped now, because there are marks that
    /// came since this processor last looked.
    pub(crate) fn enter(&mut self) -> bool {
        let before = self.seen;
        self.map.seen[self.own].store(before, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.seen = self.map.marks.load(Ordering::Acquire);
        self.map.seen[self.own].store(self.seen, Ordering::Release);
        self.seen != before
    }

    /// On the way out.
    pub(crate) fn leave(&self) {
        self.map.seen[self.own].store(OUT, Ordering::Release);
    }

    /// Whether a trace of a newly marked frame may be kept.
    pub(crate) fn may_keep(&self) -> bool {
        self.map.everybody_saw(self.own)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_is_not_counted_yet_is_told_from_one_that_is() {
        let map = CodeMap::new(2, 2);
        // Half of `mark`, as another processor may see it.
        map.word(1).fetch_or(MARK, Ordering::AcqRel);
        assert_eq!(map.mark(1), (0, Marked::Meanwhile));
        assert_eq!(map.mark(0), (0, Marked::Now));
        assert_eq!(map.mark(0), (0, Marked::Before));
    }

    #[test]
    fn a_change_takes_the_mark_away_and_the_version_never_comes_back() {
        let map = CodeMap::new(1, 1);
        let mut versions = Vec::new();
        for _ in 0..3 {
            let (version, marked) = map.mark(0);
            assert_eq!(marked, Marked::Now);
            assert_eq!(map.version(0), version);
            assert!(map.is_marked(0) && !versions.contains(&version));
            versions.push(version);
            map.changed(0);
            assert!(!map.is_marked(0) && map.version(0) != version);
        }
    }
}
