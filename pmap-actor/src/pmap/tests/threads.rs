//! Walkers that store and load while the writer promotes, demotes, harvests and removes: no bit that a walker set is lost.
//!
//! A round maps the block to frames of its own, so a walker knows from a translation which round it belongs to. The writer counts *phases*, each
//! of which ends with a harvest. A walker reads the phase first and then walks, so what it found belongs to that phase
//! or a later one; and some harvest from that phase on, of the same round, must report it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use actors::{Access, Gpa, Protection};

use super::super::{Pmap, PmapFlags, PmapType, Unaccessed, Wanted, What};
use super::{Heard, PAGES, RWX, block, page, pmap};
use crate::ept::tables::{BLOCK, TableFrame};

const WALKERS: usize = 2;
const ROUNDS: u64 = 160;
/// Phases of a round, at most.
const PHASES: u64 = 12;
/// Block 1 is used; block 0 keeps the upper tables where they are.
const AT: u64 = 1;

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// Which pages were used in each phase.
struct Log(Vec<AtomicBool>);

impl Log {
    fn new() -> Self {
        Self((0..ROUNDS * PHASES * PAGES).map(|_| AtomicBool::new(false)).collect())
    }

    fn at(&self, phase: u64, page: u64) -> &AtomicBool {
        &self.0[index(phase * PAGES + page)]
    }
}

struct Shared {
    phase: AtomicU64,
    over: AtomicBool,
    /// Odd: walkers only load. Each says which one it has seen.
    turn: AtomicU64,
    seen: [AtomicU64; WALKERS],
    stored: Log,
    loaded: Log,
    /// Accesses that succeeded, of all walkers.
    successes: AtomicU64,
}

/// Ends the walkers even when the writer's assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn walk(view: &crate::ept::view::View, shared: &Shared, seen: &AtomicU64, seed: u64) {
    let mut random = seed;
    while !shared.over.load(Ordering::Relaxed) {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = random >> 33 & (PAGES - 1);
        // Relaxed: by the next turn this walker's stores are in the entries, which is all that the writer looks at.
        let turn = shared.turn.load(Ordering::Relaxed);
        seen.store(turn, Ordering::Release);
        if turn % 2 == 1 || random >> 58 == 0 {
            // The writer may be waiting for this processor.
            std::thread::yield_now();
        }
        let store = random >> 60 & 1 == 0 && turn.is_multiple_of(2);
        // Acquire: pairs with the writer's Release, so that this walk comes after the harvest before this phase.
        let phase = shared.phase.load(Ordering::Acquire);
        let access = if store { Access::Write } else { Access::Read };
        let Ok(found) = view.translate(page(AT * PAGES + number), access) else { continue };
        let round = found.frame / BLOCK;
        assert!(phase < (round + 1) * PHASES, "a removed leaf of round {round} came back");
        let log = if store { &shared.stored } else { &shared.loaded };
        log.at(phase.max(round * PHASES), number).store(true, Ordering::Relaxed);
        shared.successes.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was reported when the phases ended.
struct Reports {
    modified: Vec<Vec<bool>>,
    referenced: Vec<Vec<bool>>,
}

struct Writer<'s> {
    pmap: Pmap,
    shared: &'s Shared,
    reports: Reports,
    /// Somebody may still walk there: they are given back when nobody walks any more.
    emptied: Vec<TableFrame>,
    /// What was reported in this phase so far.
    heard: Heard,
    promotions: u64,
}

impl Writer<'_> {
    fn fill(&mut self, round: u64, access: Access) {
        for at in block(AT).iter_pages() {
            let frame = round * BLOCK + at.0 % BLOCK;
            let effects = self.pmap.enter(at, frame, Wanted::memory(RWX, access), &mut self.heard);
            assert!(!effects.needs_shootdown(), "rights only grew");
        }
    }

    /// Until walkers have got through a few times more.
    fn let_them_walk(&self) {
        let enough = self.shared.successes.load(Ordering::Relaxed) + 40;
        while self.shared.successes.load(Ordering::Relaxed) < enough {
            std::thread::yield_now();
        }
    }

    /// Cleans the block while nobody stores, and promotes it while everybody begins to.
    fn promote_under_stores(&mut self) {
        let quiet = self.shared.turn.fetch_add(1, Ordering::Relaxed) + 1;
        let all_know = || self.shared.seen.iter().all(|seen| seen.load(Ordering::Acquire) == quiet);
        while !all_know() {
            std::thread::yield_now();
        }
        self.harvest(What::MODIFIED);
        self.shared.turn.fetch_add(1, Ordering::Relaxed);
        self.fold_and_unfold(Unaccessed::Mark);
    }

    /// Promotion and demotion, as often as it takes until one succeeds or a few have failed.
    fn fold_and_unfold(&mut self, unaccessed: Unaccessed) {
        for _ in 0..8 {
            if let Ok(effects) = self.pmap.promote(block(AT).start(), unaccessed) {
                self.promotions += effects.promoted.len() as u64;
                std::thread::yield_now();
                let effects = self.pmap.demote(block(AT).start(), &mut self.heard);
                assert!(!effects.needs_shootdown());
            }
        }
    }

    fn harvest(&mut self, what: What) {
        let effects = self.pmap.harvest(block(AT), what, &mut self.heard);
        assert!(effects.unreachable.is_empty(), "hardware bits take no rights along");
        self.end_phase();
    }

    fn remove(&mut self) {
        let effects = self.pmap.remove(block(AT), &mut self.heard);
        self.emptied.extend(effects.emptied);
        self.end_phase();
    }

    fn end_phase(&mut self) {
        let heard = std::mem::take(&mut self.heard);
        let pages = |numbers: &[u64]| {
            let mut set = vec![false; index(PAGES)];
            numbers.iter().for_each(|number| set[index(number % PAGES)] = true);
            set
        };
        self.reports.modified.push(pages(&heard.modified));
        self.reports.referenced.push(pages(&heard.referenced));
        // Release: pairs with the walkers' Acquire.
        self.shared.phase.fetch_add(1, Ordering::Release);
    }

    fn round(&mut self, round: u64) {
        match round % 4 {
            // Clean pages, of which walkers store to some: whoever comes first.
            0 => {
                self.fill(round, Access::Read);
                for _ in 0..PHASES - 2 {
                    // A promotion that succeeded has made the pages read-only.
                    self.fill(round, Access::Read);
                    self.promote_under_stores();
                }
                self.harvest(What::BOTH);
            }
            // Dirty pages: a writable superpage, cleaned and used again.
            1 => {
                self.fill(round, Access::Write);
                self.fold_and_unfold(Unaccessed::Refuse);
                self.let_them_walk();
                let promoted = self.pmap.promote(block(AT).start(), Unaccessed::Refuse);
                self.promotions += promoted.map_or(0, |effects| effects.promoted.len() as u64);
                self.let_them_walk();
                self.harvest(What::ACCESSED);
                self.let_them_walk();
                self.harvest(What::MODIFIED);
                self.let_them_walk();
            }
            // A superpage from the start.
            2 => {
                let wanted = Wanted::memory(RWX, Access::Write);
                self.pmap.enter_superpage(block(AT).start(), round * BLOCK, wanted).unwrap();
                self.let_them_walk();
                self.harvest(What::ACCESSED);
                self.let_them_walk();
                self.harvest(What::BOTH);
                self.let_them_walk();
                self.fold_and_unfold(Unaccessed::Mark);
            }
            // Pages that nobody has used, marked, promoted and harvested in turns.
            _ => {
                self.fill(round, Access::Read);
                let effects = self.pmap.harvest(block(AT), What::BOTH, &mut self.heard);
                assert!(effects.emptied.is_empty());
                self.fold_and_unfold(Unaccessed::Mark);
                self.harvest(What::BOTH);
                self.fold_and_unfold(Unaccessed::Mark);
                self.harvest(What::BOTH);
            }
        }
        self.remove();
        while self.reports.modified.len() as u64 != (round + 1) * PHASES {
            self.end_phase();
        }
    }
}

fn every_bit_is_reported(kind: PmapType, flags: PmapFlags) {
    let mut pmap = pmap((kind, flags));
    super::enter(&mut pmap, Gpa(0), Protection::READ, Access::Read);
    let shared = Shared {
        phase: AtomicU64::new(0),
        over: AtomicBool::new(false),
        turn: AtomicU64::new(0),
        seen: Default::default(),
        stored: Log::new(),
        loaded: Log::new(),
        successes: AtomicU64::new(0),
    };
    let view = pmap.view();
    let mut writer = Writer {
        pmap,
        shared: &shared,
        reports: Reports { modified: Vec::new(), referenced: Vec::new() },
        emptied: Vec::new(),
        heard: Heard::default(),
        promotions: 0,
    };
    std::thread::scope(|scope| {
        for (seen, seed) in shared.seen.iter().zip(0..) {
            let (view, shared) = (view.clone(), &shared);
            scope.spawn(move || walk(&view, shared, seen, seed));
        }
        let _over = Over(&shared.over);
        (0..ROUNDS).for_each(|round| writer.round(round));
    });
    assert!(writer.promotions > ROUNDS / 4, "some blocks were promoted under their walkers");
    assert_eq!(writer.reports.modified.len() as u64, ROUNDS * PHASES);
    let mut stores = 0;
    for phase in 0..ROUNDS * PHASES {
        let later = index(phase)..index((phase / PHASES + 1) * PHASES);
        let reported = |by: &[Vec<bool>], number| by[later.clone()].iter().any(|set| set[number]);
        for number in 0..PAGES {
            let what = format!("page {number} in phase {phase} is lost");
            if shared.stored.at(phase, number).load(Ordering::Relaxed) {
                stores += 1;
                assert!(reported(&writer.reports.modified, index(number)), "a store to {what}");
            }
            if shared.loaded.at(phase, number).load(Ordering::Relaxed) {
                assert!(reported(&writer.reports.referenced, index(number)), "a load of {what}");
            }
        }
    }
    assert!(stores > ROUNDS, "walkers got through");
    writer.pmap.give_back(writer.emptied);
    assert_eq!(writer.pmap.tables().table_pages(), 4, "no table page is lost");
}

#[test]
fn what_walkers_of_nested_tables_store_and_load_is_always_reported() {
    every_bit_is_reported(PmapType::PtEpt, PmapFlags::SUPERPAGES);
}

#[test]
fn what_walkers_of_ordinary_tables_store_and_load_is_always_reported() {
    every_bit_is_reported(PmapType::PtX86, PmapFlags::SUPERPAGES);
}
