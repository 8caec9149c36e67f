//! A whole machine whose guest touches memory when told to, and what harvests of it take.

use std::time::{Duration, Instant};
use std::{sync::atomic::Ordering, thread};

use actors::contract::boot::{BootSource, MemoryPort};
use actors::contract::page::{DirtyConsumer, Harvest, Settled, Touch};
use actors::{GpaRange, PAGE_SIZE, Protection};
use loader_actor::guests::sweep;
use machine::{ConsoleKind, EngineChoice, Machine, MachineSpec, ShootdownMode};
use vm_memory::{Bytes, GuestAddress};

use super::result::{Found, Guest};
use crate::cli::{HarvestArgs, On};
use crate::environment::{Cpus, pin_machine};
use crate::error::{BenchError, host};

/// A guest that takes longer than this for a pass, or to get going, has lost a fault.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often the end of a pass is looked for. The looker sleeps in between, for it may be in the way of whoever
/// serves faults.
const GLANCE: Duration = Duration::from_micros(50);

/// What the guest touches of its pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct What {
    /// One page of so many.
    pub(super) apart: u64,
    /// With a store; otherwise with a load.
    pub(super) stores: bool,
}

impl What {
    /// A store to every page.
    pub(super) const STORES: Self = Self { apart: 1, stores: true };
}

/// The machine. Its vcpus spin whenever they have nothing to touch.
pub(super) struct Subject {
    machine: Machine,
    own: GpaRange,
    /// What is touched and harvested.
    range: GpaRange,
    vcpus: u16,
    passes: u64,
    consumer: DirtyConsumer,
}

impl Subject {
    /// A machine in which every page to harvest is resident, and every vcpu runs.
    pub(super) fn start(on: On, args: &HarvestArgs, cpus: &Cpus) -> Result<Self, BenchError> {
        let mut spec = MachineSpec::new(BootSource::Builtin(sweep::GUEST.name));
        spec.engine = if on.is_kvm() { EngineChoice::Kvm } else { EngineChoice::Soft };
        spec.hardware_ad = on == On::SoftHw;
        spec.shootdown =
            if on == On::KvmKicked { ShootdownMode::Broadcast } else { ShootdownMode::Auto };
        spec.vcpus = args.vcpus;
        spec.memory_bytes = sweep::FREE.0 + args.pages() * PAGE_SIZE;
        // A harvest of stores takes superpages apart, once; here every page is one to begin with.
        spec.superpages = false;
        // The guest fills its memory in blocks; no fault of that is measured.
        spec.fault_around_pages = 512;
        spec.console = ConsoleKind::Null;
        let mut machine = Machine::build(spec)?;
        pin_machine(&machine, &[cpus.initiator()], |vcpu| vec![cpus.of_vcpu(vcpu)])?;
        if machine.start().is_err() {
            return Err(BenchError::Ended(machine.wait().to_string()));
        }
        let own = GpaRange::covering(sweep::GO, sweep::done(args.vcpus).0 - sweep::GO.0)
            .map_err(host("find the guest's words"))?;
        let range = GpaRange::new(sweep::FREE, args.pages() * PAGE_SIZE)
            .map_err(host("find the guest's pages"))?;
        let access = Protection::READ | Protection::WRITE;
        machine.space().hold(&[own], access).map_err(host("hold the guest's words"))?;
        let consumer = machine.space().begin_dirty().map_err(host("begin a dirty epoch"))?;
        let mut subject = Self { machine, own, range, vcpus: args.vcpus, passes: 0, consumer };
        subject.pass(What::STORES)?;
        subject.epoch()?;
        Ok(subject)
    }

    /// How many pages are touched and harvested.
    fn pages(&self) -> u64 {
        self.range.pages()
    }

    fn ended(&self, why: &dyn std::error::Error) -> BenchError {
        let outcome = self.machine.poll(Duration::ZERO);
        BenchError::Ended(outcome.map_or_else(|| why.to_string(), |outcome| outcome.to_string()))
    }

    fn store(&self, value: u64, at: u64) -> Result<(), BenchError> {
        let memory = self.machine.space().guest_memory().backing();
        memory.store(value, GuestAddress(at), Ordering::Release).map_err(host("tell the guest"))
    }

    fn load(&self, at: u64) -> Result<u64, BenchError> {
        let memory = self.machine.space().guest_memory().backing();
        memory.load(GuestAddress(at), Ordering::Acquire).map_err(host("hear the guest"))
    }

    /// Waits until `is_there` says so of every vcpu.
    fn wait_for_all(
        &self,
        what: &str,
        is_there: impl Fn(u16) -> Result<bool, BenchError>,
    ) -> Result<(), BenchError> {
        let began = Instant::now();
        for vcpu in 0..self.vcpus {
            while !is_there(vcpu)? {
                if let Some(outcome) = self.machine.poll(Duration::ZERO) {
                    return Err(BenchError::Ended(outcome.to_string()));
                }
                if began.elapsed() > DEADLINE {
                    return Err(BenchError::Unlike(format!("vcpu {vcpu} does not {what}")));
                }
                thread::park_timeout(GLANCE);
            }
        }
        Ok(())
    }

    /// Lets the vcpus touch pages, each its share. What comes back is of one vcpu's time.
    pub(super) fn pass(&mut self, what: What) -> Result<Guest, BenchError> {
        let count =
            |subject: &Self| subject.machine.space().count().map_err(|why| subject.ended(&why));
        // An epoch cleaned the guest's own words, too: each vcpu has stored there again before faults are counted.
        self.see_them_run()?;
        let touches = self.pages() / what.apart / u64::from(self.vcpus);
        let pass = sweep::Pass {
            start: sweep::FREE,
            stride: what.apart * PAGE_SIZE,
            count: touches,
            write: what.stores,
        };
        let before = count(self)?;
        for (at, word) in (sweep::PASS.0..).step_by(8).zip(pass.words()) {
            self.store(word, at)?;
        }
        self.passes += 1;
        let began = Instant::now();
        self.store(self.passes, sweep::GO.0)?;
        self.wait_for_all("touch its pages", |vcpu| {
            Ok(self.load(sweep::done(vcpu).0)? == self.passes)
        })?;
        let took = nanoseconds(began.elapsed());
        let after = count(self)?;
        Ok(Guest {
            touches: touches * u64::from(self.vcpus),
            touch_ns: took / touches.max(1),
            accessed_faults: after.pmap.accessed_faults - before.pmap.accessed_faults,
            modified_faults: after.pmap.modified_faults - before.pmap.modified_faults,
            other_faults: after.faults.total
                - before.faults.total
                - (after.pmap.accessed_faults - before.pmap.accessed_faults)
                - (after.pmap.modified_faults - before.pmap.modified_faults),
        })
    }

    /// Has the guest store to every page, without a fault for each: the translations are forgotten, and come back by
    /// fault-around with their bits set.
    pub(super) fn store_to_all(&mut self) -> Result<(), BenchError> {
        self.machine.space().forget(self.range).map_err(|why| self.ended(&why))?;
        self.pass(What::STORES)?;
        Ok(())
    }

    /// Returns when every vcpu was executing since this was called.
    fn see_them_run(&self) -> Result<(), BenchError> {
        let looks = |vcpu| self.load(sweep::looks(vcpu).0);
        let before: Result<Vec<u64>, _> = (0..self.vcpus).map(looks).collect();
        let before = before?;
        self.wait_for_all("run", |vcpu| Ok(looks(vcpu)? != before[usize::from(vcpu)]))
    }

    /// Checks what a harvest found before it counts: all pages that were `due`, and of those that are not measured at most
    /// `others`.
    fn counted(harvest: &Harvest, found: u64, due: u64, others: u64) -> Result<Found, BenchError> {
        if found < due || found > due + others {
            let why = format!("a harvest found {found} pages where {due} were touched");
            return Err(BenchError::Unlike(why));
        }
        Ok(Found {
            pages: found,
            examined_pages: harvest.examined_pages,
            scan_ns: harvest.scan_ns,
            shootdown_ns: harvest.took_ns.saturating_sub(harvest.scan_ns),
            knocks: u64::from(harvest.knocked),
        })
    }

    /// One harvest of both bits of all pages, of which `due` were stored to since the last.
    pub(super) fn harvest(&self, due: u64) -> Result<Found, BenchError> {
        self.see_them_run()?;
        let harvest = self.machine.space().harvest(self.range, Touch::all());
        let harvest = harvest.map_err(|why| self.ended(&why))?;
        Self::counted(&harvest, harvest.modified.count(), due, 0)
    }

    /// Takes and settles a dirty epoch, of all memory: stores only.
    pub(super) fn epoch(&self) -> Result<Found, BenchError> {
        self.see_them_run()?;
        let space = self.machine.space();
        let epoch = space.take_dirty(self.consumer).map_err(|why| self.ended(&why))?;
        let settled = space.settle_dirty(self.consumer, epoch.number, Settled::Acknowledged);
        settled.map_err(|why| self.ended(&why))?;
        let others = sweep::FREE.0 / PAGE_SIZE;
        Self::counted(&epoch.harvest, epoch.pages.count(), self.pages(), others)
    }

    /// Harvests the first `sample` pages one at a time, a shootdown for each: all together, as if all pages had been.
    pub(super) fn one_by_one(&self, sample: u64) -> Result<Found, BenchError> {
        let mut sum = Found::default();
        let sample = sample.min(self.pages());
        for page in self.range.iter_pages().take(usize::try_from(sample).unwrap_or(usize::MAX)) {
            self.see_them_run()?;
            let harvest = self.machine.space().harvest(GpaRange::page_of(page), Touch::all());
            let harvest = harvest.map_err(|why| self.ended(&why))?;
            sum.pages += harvest.modified.count();
            sum.examined_pages += harvest.examined_pages;
            sum.scan_ns += harvest.scan_ns;
            sum.shootdown_ns += harvest.took_ns.saturating_sub(harvest.scan_ns);
            sum.knocks += u64::from(harvest.knocked);
        }
        if sum.pages != sample {
            let why = format!("{} pages were found of {sample} stored to", sum.pages);
            return Err(BenchError::Unlike(why));
        }
        let all = |part: u64| {
            let all = u128::from(part) * u128::from(self.pages()) / u128::from(sample.max(1));
            u64::try_from(all).unwrap_or(u64::MAX)
        };
        Ok(Found {
            pages: self.pages(),
            examined_pages: all(sum.examined_pages),
            scan_ns: all(sum.scan_ns),
            shootdown_ns: all(sum.shootdown_ns),
            knocks: all(sum.knocks),
        })
    }

    /// Ends the machine.
    pub(super) fn finish(self) {
        self.machine.space().release(&[self.own], false);
        self.machine.stop();
        let outcome = self.machine.wait();
        let _ended = self.machine.finish(outcome);
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
