//! `skep bench dirty`: which of the host's ways to track a guest's stores costs what?
//!
//! One bare machine for each way. Its guest writes a word to every page, with nobody watching and with
//! every page watched, in turns; a round counts only if the way found exactly what was written.

use actors::PAGE_SIZE;
use vcpu_actor::engine::kvm::KvmFlavor;

use crate::bare_dirty::{Method, Round, measure};
use crate::cli::DirtyArgs;
use crate::clock::TickRate;
use crate::environment::{Cpus, Labels};
use crate::error::BenchError;
use crate::noise::NoiseMeter;
use crate::report::{Case, Report};
use crate::samples::Series;

/// What is measured of a way: its states in the report.
const PARTS: [&str; 4] =
    ["arm, all pages", "store, not watched", "store, watched", "collect, all pages"];

/// Measures.
pub(crate) fn run(args: &DirtyArgs) -> Result<Report, BenchError> {
    let cpus = Cpus::allowed()?;
    let rate = TickRate::measure();
    let meter = NoiseMeter::start()?;
    let pages = u32::try_from((args.mebibytes << 20) / PAGE_SIZE).unwrap_or(u32::MAX);
    let (vcpu, pager) = (vec![cpus.of_vcpu(0)], vec![cpus.initiator()]);
    let mut cases = Vec::new();
    for method in Method::ALL {
        let rounds = match measure(method, pages, args.rounds + 1, &vcpu, &pager) {
            Ok(rounds) => rounds,
            Err(BenchError::Host { what, why }) => {
                tracing::warn!("{} is left out: cannot {what}: {why}", method.name());
                continue;
            }
            Err(other) => return Err(other),
        };
        let mut series: [Series; 4] = Default::default();
        // The first one warmed up.
        for round in &rounds[1..] {
            for (series, value) in series.iter_mut().zip(parts(round, pages, rate)) {
                series.record(value);
            }
        }
        series.iter_mut().for_each(Series::end_round);
        let name = format!("dirty/{}", method.name());
        cases.extend(series.iter().zip(PARTS).filter_map(|(it, part)| Case::of(&name, part, it)));
    }
    let noise = meter.stop()?;
    let kvm = KvmFlavor::detect().to_string();
    Ok(Report {
        bench: "dirty",
        placement: format!(
            "{} MiB; vcpu on cpu {}, faults served on cpu {}; stores are means over all pages",
            args.mebibytes, vcpu[0], pager[0]
        ),
        labels: Labels::of(&kvm, &cpus, false),
        noise,
        cases,
        ratios: Vec::new(),
    })
}

/// In nanoseconds: arming all, a store unwatched, a store watched, collecting all.
fn parts(round: &Round, pages: u32, rate: TickRate) -> [u64; 4] {
    let whole = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let each = |ticks| rate.nanoseconds(ticks) / u64::from(pages.max(1));
    [whole(round.arm), each(round.free_ticks), each(round.watched_ticks), whole(round.collect)]
}
