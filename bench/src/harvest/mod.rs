//! `skep bench harvest`: what does it cost to learn which pages a guest used and stored to?
//!
//! The subject is a whole machine with the guest `sweep`, whose vcpus run all the time. One round:
//!
//! ```text
//!   stores to all pages ─▶ harvest, both bits ─▶ stores to a few ─▶ harvest ─▶ loads of a few
//!   ─▶ stores to all ─▶ a dirty epoch ─▶ stores to a few ─▶ stores to all ─▶ a sample, page by
//!   page ─▶ the same on the next engine, ... ─▶ the bare dirty logs ─▶ next round
//! ```
//!
//! Each pass of the guest is timed, too: what was cleared must be set again, by hardware or by a
//! fault. The reference is KVM's dirty log, bare (`bare_dirty.rs`): a machine of its own, whose one
//! vcpu stores to as many pages.

mod result;
mod subject;

use vcpu_actor::engine::kvm::KvmFlavor;

pub(crate) use result::HarvestReport;
use result::{Found, Guest, Row};
use subject::{Subject, What, nanoseconds};

use crate::bare_dirty::{self, Method};
use crate::cli::{HarvestArgs, On};
use crate::clock::TickRate;
use crate::environment::{Cpus, Labels, Pinned};
use crate::error::BenchError;
use crate::noise::NoiseMeter;

/// What is measured of a machine: rows of the report.
const ALL: &str = "all pages, both bits";
const STORES: &str = "all pages, stores (an epoch)";
const FEW: &str = "few pages, both bits";
const ONE_BY_ONE: &str = "page by page, both bits";
/// And of the references.
const BARE: &str = "all pages, stores (bare)";

/// What is measured of the guest.
const NOTHING_CLEARED: &str = "store, nothing was cleared";
const STORE_AFTER_BOTH: &str = "store, both bits were";
const STORE_AFTER_STORES: &str = "store, modified was";
const LOAD_AFTER_BOTH: &str = "load, both bits were";
const STORE_BARE: &str = "store, page is watched";

/// Who is measured.
#[derive(Clone, Copy)]
enum Contender {
    Skep(On),
    Bare(Method),
}

/// What the rounds of one of them found so far.
struct Rounds {
    who: Contender,
    on: String,
    /// Why there are none.
    absent: Option<String>,
    harvests: Vec<(&'static str, Vec<Found>)>,
    touches: Vec<(&'static str, Vec<Guest>)>,
}

impl Rounds {
    fn of(who: Contender) -> Self {
        let on = match who {
            Contender::Skep(on) => on.name().to_owned(),
            Contender::Bare(method) => format!("bare {}", method.name()),
        };
        Self { who, on, absent: None, harvests: Vec::new(), touches: Vec::new() }
    }

    /// One round more, on a fresh machine: two of them need not fit into memory. What this host cannot do is left out.
    fn take(&mut self, args: &HarvestArgs, cpus: &Cpus, rate: TickRate) -> Result<(), BenchError> {
        if self.absent.is_some() {
            return Ok(());
        }
        let done = match self.who {
            Contender::Skep(on) => Subject::start(on, args, cpus).and_then(|mut subject| {
                let done = round(&mut subject, args, self);
                subject.finish();
                done
            }),
            Contender::Bare(method) => bare_round(method, args, cpus, rate, self),
        };
        match done {
            Err(why @ (BenchError::Build(_) | BenchError::Host { .. })) => {
                self.forget();
                self.absent = Some(format!("{}: {why}", self.on));
                Ok(())
            }
            done => done,
        }
    }

    fn harvest(&mut self, what: &'static str, found: Found) {
        put(&mut self.harvests, what, found);
    }

    fn touch(&mut self, what: &'static str, guest: Guest) {
        put(&mut self.touches, what, guest);
    }

    fn forget(&mut self) {
        self.harvests.clear();
        self.touches.clear();
    }

    fn rows(&self) -> (Vec<Row<Found>>, Vec<Row<Guest>>) {
        let harvests = self.harvests.iter().filter_map(|(what, rounds)| {
            let row = Row::of(&self.on, what, rounds)?;
            Some(if *what == ONE_BY_ONE { row.extrapolated() } else { row })
        });
        let touches =
            self.touches.iter().filter_map(|(what, rounds)| Row::of(&self.on, what, rounds));
        (harvests.collect(), touches.collect())
    }
}

fn put<T>(all: &mut Vec<(&'static str, Vec<T>)>, what: &'static str, one: T) {
    match all.iter_mut().find(|(name, _)| *name == what) {
        Some((_, rounds)) => rounds.push(one),
        None => all.push((what, vec![one])),
    }
}

/// One round on one machine.
fn round(subject: &mut Subject, args: &HarvestArgs, rounds: &mut Rounds) -> Result<(), BenchError> {
    let few = |stores| What { apart: args.sparse, stores };
    subject.store_to_all()?;
    rounds.touch(NOTHING_CLEARED, subject.pass(What::STORES)?);
    rounds.harvest(ALL, subject.harvest(args.pages())?);
    let stored = subject.pass(few(true))?;
    rounds.touch(STORE_AFTER_BOTH, stored);
    rounds.harvest(FEW, subject.harvest(stored.touches)?);
    rounds.touch(LOAD_AFTER_BOTH, subject.pass(few(false))?);
    subject.store_to_all()?;
    rounds.harvest(STORES, subject.epoch()?);
    rounds.touch(STORE_AFTER_STORES, subject.pass(few(true))?);
    subject.store_to_all()?;
    rounds.harvest(ONE_BY_ONE, subject.one_by_one(args.sample)?);
    Ok(())
}

/// One round of a reference.
fn bare_round(
    method: Method,
    args: &HarvestArgs,
    cpus: &Cpus,
    rate: TickRate,
    rounds: &mut Rounds,
) -> Result<(), BenchError> {
    let pages = args.pages();
    let count = u32::try_from(pages).unwrap_or(u32::MAX);
    let (vcpu, pager) = ([cpus.of_vcpu(0)], [cpus.initiator()]);
    for took in bare_dirty::measure(method, count, 1, &vcpu, &pager)? {
        let scan_ns = nanoseconds(took.collect);
        let found = Found { pages, examined_pages: pages, scan_ns, shootdown_ns: 0, knocks: 0 };
        rounds.harvest(BARE, found);
        let touch = |ticks| {
            let touch_ns = rate.nanoseconds(ticks) / pages.max(1);
            Guest { touches: pages, touch_ns, ..Guest::default() }
        };
        rounds.touch(NOTHING_CLEARED, touch(took.free_ticks));
        rounds.touch(STORE_BARE, touch(took.watched_ticks));
    }
    Ok(())
}

/// Refuses what cannot be.
pub(crate) fn check(args: &HarvestArgs) -> Result<(), BenchError> {
    if args.pages() < args.sparse * u64::from(args.vcpus) {
        return Err(BenchError::Usage(format!(
            "--sparse {} leaves nothing to touch of {} pages for each of {} vcpus",
            args.sparse,
            args.pages(),
            args.vcpus
        )));
    }
    Ok(())
}

/// Measures.
pub(crate) fn run(args: &HarvestArgs) -> Result<HarvestReport, BenchError> {
    let cpus = Cpus::allowed()?;
    let rate = TickRate::measure();
    // Whatever a machine starts besides its vcpus stays on the initiator's cpu.
    let pinned = Pinned::to(&[cpus.initiator()])?;
    let meter = NoiseMeter::start()?;
    let mut all: Vec<Rounds> = args.on.iter().map(|on| Rounds::of(Contender::Skep(*on))).collect();
    all.extend([Method::Log, Method::ManualLog].map(|method| Rounds::of(Contender::Bare(method))));
    for _ in 0..args.rounds {
        for rounds in &mut all {
            rounds.take(args, &cpus, rate)?;
        }
    }
    let noise = meter.stop()?;
    drop(pinned);
    let (mut harvests, mut touches) = (Vec::new(), Vec::new());
    for rounds in &all {
        let (found, guest) = rounds.rows();
        harvests.extend(found);
        touches.extend(guest);
    }
    let absent = all.into_iter().filter_map(|rounds| rounds.absent).collect();
    Ok(HarvestReport {
        bench: "harvest",
        placement: format!(
            "{} MiB of 4 KiB pages; pmap on cpu {}, {} vcpu(s) from cpu {} on, round robin; few: 1 page of {}; \
             page by page: {} pages; {} rounds",
            args.mebibytes,
            cpus.initiator(),
            args.vcpus,
            cpus.of_vcpu(0),
            args.sparse,
            args.sample,
            args.rounds
        ),
        labels: Labels::of(&KvmFlavor::detect().to_string(), &cpus, false),
        noise,
        pages: args.pages(),
        vcpus: args.vcpus,
        rounds: args.rounds,
        absent,
        harvests,
        touches,
        ratios: Vec::new(),
        verdicts: Vec::new(),
    }
    .concluded())
}
