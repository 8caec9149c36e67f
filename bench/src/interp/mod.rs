//! `skep bench interp`: how fast is the software processor, and at what?
//!
//! The same loops, byte for byte, run on the processor itself, on ours, under QEMU's translator and in a guest of this
//! host's KVM, in turns. Time is cpu time of whoever executes the loop (in the KVM guest: its own counter), so that
//! a busy host costs little but noise. Whoever is not here is said to be absent.

mod bochs;
mod boot;
mod disk;
mod guest;
mod measure;
mod native;
mod pages;
mod payload;
mod qemu;
mod result;
mod rows;
mod soft;
mod table;

use std::path::Path;
use std::time::Duration;

use machine::EngineChoice;

use self::measure::{Runner, calibrate, median, per_iteration};
use self::result::{Figure, Measured};
use self::rows::Row;
use crate::cli::InterpArgs;
use crate::clock::TickRate;
use crate::environment::{Cpus, Labels};
use crate::error::BenchError;
use crate::noise::NoiseMeter;

pub(crate) use self::result::InterpReport;
pub(crate) use self::table::render;

/// The first column that is judged, if it is there, and the second.
const JUDGED: [&str; 2] = ["soft 2-D", "soft"];
const KVM: &str = "KVM guest";

/// Somebody who runs loops, when asked for the first time and after it died of one.
struct Contender {
    name: &'static str,
    start: fn() -> Result<Box<dyn Runner>, BenchError>,
    runner: Option<Box<dyn Runner>>,
}

impl Contender {
    fn new(name: &'static str, start: fn() -> Result<Box<dyn Runner>, BenchError>) -> Self {
        Self { name, start, runner: None }
    }

    fn runner(&mut self) -> Result<&mut dyn Runner, BenchError> {
        if self.runner.is_none() {
            self.runner = Some((self.start)()?);
        }
        Ok(self.runner.as_deref_mut().expect("it was just put there"))
    }

    /// What becomes of it: a runner that failed is of no further use.
    fn kept<T>(&mut self, done: Result<T, BenchError>) -> Result<T, BenchError> {
        if done.is_err() {
            self.runner = None;
        }
        done
    }

    fn calibrate(&mut self, row: &Row, target: Duration) -> Result<Option<u64>, BenchError> {
        let done = self.runner().and_then(|runner| calibrate(runner, row, target));
        self.kept(done)
    }

    fn measure(&mut self, row: &Row, iterations: u64) -> Result<Option<f64>, BenchError> {
        let done = self.runner().and_then(|runner| runner.run(row, iterations));
        let took = self.kept(done)?;
        Ok(took.map(|time| per_iteration(time, iterations)))
    }
}

/// Who could not run which loops: one line for each reason.
#[derive(Default)]
struct Failures(Vec<(&'static str, String, Vec<&'static str>)>);

impl Failures {
    fn add(&mut self, who: &'static str, row: &'static str, why: &BenchError) {
        let why = why.to_string();
        let known = self.0.iter_mut().find(|one| one.0 == who && one.1 == why);
        match known {
            Some((_, _, rows)) if rows.contains(&row) => {}
            Some((_, _, rows)) => rows.push(row),
            None => self.0.push((who, why, vec![row])),
        }
    }

    fn told(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(who, why, rows)| format!("{who}, {}: {why}", rows.join(" ")))
    }
}

/// Refuses names that no loop has.
pub(crate) fn check(args: &InterpArgs) -> Result<(), BenchError> {
    let rows = rows::all();
    for name in &args.only {
        if !rows.iter().any(|row| row.name == name) {
            let names: Vec<_> = rows.iter().map(|row| row.name).collect();
            let names = names.join(" ");
            return Err(BenchError::Usage(format!(
                "--only {name}: there is no such loop; there are {names}"
            )));
        }
    }
    Ok(())
}

/// Measures.
pub(crate) fn run(args: &InterpArgs) -> Result<InterpReport, BenchError> {
    let rate = TickRate::measure();
    let meter = NoiseMeter::start()?;
    let mut absent = Vec::new();
    let mut contenders = vec![
        Contender::new("native", || Ok(Box::new(native::Native::new()?))),
        Contender::new("soft", || Ok(Box::new(soft::flat()?))),
    ];
    let qemu = qemu::version();
    match &qemu {
        Some(_) => {
            contenders.push(Contender::new("QEMU TCG", || Ok(Box::new(qemu::Qemu::start()?))));
        }
        None => absent.push(format!("QEMU TCG: {} is not installed", qemu::PROGRAM)),
    }
    if bochs::version().is_some() {
        contenders.push(Contender::new("Bochs", || Ok(Box::new(bochs::Bochs::start()?))));
    } else {
        absent.push(format!("Bochs: {} is not installed", bochs::PROGRAM));
    }
    let all = args.only.is_empty() && args.boot.is_none();
    let asked = |row: &Row| all || args.only.iter().any(|name| name == row.name);
    let mut measured: Vec<Measured> =
        rows::all().into_iter().filter(asked).map(Measured::new).collect();
    let mut failures = Failures::default();
    for one in &mut measured {
        measure(one, &mut contenders, args, &mut failures);
    }
    drop(contenders);
    let boots = boot::run(args, &mut absent)?;
    absent.extend(failures.told());
    guests(JUDGED[0], EngineChoice::Soft, &mut measured, args, rate, &mut absent);
    if Path::new("/dev/kvm").exists() {
        guests(KVM, EngineChoice::Kvm, &mut measured, args, rate, &mut absent);
    } else {
        absent.push(format!("{KVM}: there is no /dev/kvm"));
    }
    let noise = meter.stop()?;
    let kvm = vcpu_actor::engine::kvm::KvmFlavor::detect().to_string();
    let mut labels = Labels::of(&kvm, &Cpus::allowed()?, false);
    labels.engine = "soft";
    Ok(InterpReport::new(labels, qemu, noise, absent, measured, boots))
}

/// All contenders in turns, round by round, on one loop.
fn measure(
    one: &mut Measured,
    contenders: &mut [Contender],
    args: &InterpArgs,
    failures: &mut Failures,
) {
    let target = Duration::from_millis(args.milliseconds);
    let mut plans = Vec::new();
    for (index, contender) in contenders.iter_mut().enumerate() {
        match contender.calibrate(&one.row, target) {
            Ok(Some(iterations)) => plans.push((index, iterations, Vec::new())),
            Ok(None) => {}
            Err(why) => failures.add(contender.name, one.row.name, &why),
        }
    }
    for _ in 0..args.rounds {
        for (index, iterations, times) in &mut plans {
            let contender = &mut contenders[*index];
            match contender.measure(&one.row, *iterations) {
                Ok(time) => times.extend(time),
                Err(why) => failures.add(contender.name, one.row.name, &why),
            }
        }
    }
    for (index, _, times) in plans {
        one.figures.extend(Figure::of(contenders[index].name, &one.row, &times));
    }
}

/// A guest runs all its loops at once.
fn guests(
    name: &'static str,
    engine: EngineChoice,
    measured: &mut [Measured],
    args: &InterpArgs,
    rate: TickRate,
    absent: &mut Vec<String>,
) {
    if measured.iter().all(|one| one.row.blob_index().is_none()) {
        return;
    }
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        match guest::run(engine, rate) {
            Ok(times) => rounds.push(times),
            Err(why) => {
                absent.push(format!("{name}: {why}"));
                return;
            }
        }
    }
    for one in measured {
        if let Some(index) = one.row.blob_index() {
            let times: Vec<f64> = rounds.iter().map(|round| round[index]).collect();
            one.figures.extend(Figure::of(name, &one.row, &times));
        }
    }
}

#[cfg(test)]
mod tests;
