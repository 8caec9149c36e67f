//! What a person wants to know after a run: a few lines on stderr.

mod paging;

use std::fmt::Write as _;
use std::time::Duration;

use actors::contract::host::HostMapping;
use actors::contract::space::Quantiles;
use skep::{Ended, EngineKind, HugePages};

use crate::switches::Driven;
use crate::tour;

/// "1.23 s", "45.6 ms", "7.8 us", "90 ns".
pub(crate) fn time(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        1_000_000_000.. => format!("{:.2} s", value / 1e9),
        1_000_000.. => format!("{:.1} ms", value / 1e6),
        1_000.. => format!("{:.1} us", value / 1e3),
        _ => format!("{nanoseconds} ns"),
    }
}

/// "12.5 MiB", "80 KiB".
pub(crate) fn size(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0x4000_0000.. => format!("{:.1} GiB", value / f64::from(1 << 30)),
        0x10_0000.. => format!("{:.1} MiB", value / f64::from(1 << 20)),
        _ => format!("{} KiB", bytes / 1024),
    }
}

fn quantiles(of: &Quantiles) -> String {
    if of.count == 0 {
        return "none".to_owned();
    }
    // A quantile that fewer than ten samples lie beyond says nothing.
    let mut text = format!("p50 {}", time(of.p50_ns));
    if of.count >= 100 {
        let _infallible = write!(text, ", p90 {}", time(of.p90_ns));
    }
    if of.count >= 1_000 {
        let _infallible = write!(text, ", p99 {}", time(of.p99_ns));
    }
    if of.count >= 10_000 {
        let _infallible = write!(text, ", p99.9 {}", time(of.p999_ns));
    }
    let _infallible = write!(text, ", max {}", time(of.max_ns));
    text
}

/// Writes the summary to stderr, if there was a guest. How it ended is said by the caller.
pub(crate) fn print(ended: &Ended, driven: &Driven) {
    if ended.report.format.is_some() {
        let text = text(ended, driven);
        let _closed = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
}

fn text(ended: &Ended, driven: &Driven) -> String {
    let report = &ended.report;
    let mut lines = vec![
        String::new(),
        format!("  engine      {}: {}", report.engine, report.engine_detail),
        format!(
            "  time        built in {}, loaded in {}{}, ran {}",
            time(report.build_ns),
            time(report.load_ns),
            report.format.map(|format| format!(" ({format})")).unwrap_or_default(),
            time(report.run_ns)
        ),
    ];
    let sum = |of: fn(&machine::report::VcpuReport) -> u64| report.vcpu.iter().map(of).sum::<u64>();
    lines.push(format!(
        "  vcpus       {}: {} entries, {} port and {} memory-mapped accesses, {} knocks answered",
        report.vcpus,
        sum(|vcpu| vcpu.exits.entries),
        sum(|vcpu| vcpu.exits.port_accesses),
        sum(|vcpu| vcpu.exits.mmio_accesses),
        sum(|vcpu| vcpu.exits.knocked_out),
    ));
    if let Some(space) = &report.space {
        let faults = &space.faults;
        lines.push(format!(
            "  memory      {} given{}, {} resident",
            size(report.memory_bytes),
            if report.huge_pages == HugePages::Reserved { " in reserved huge pages" } else { "" },
            size(space.resident_bytes)
        ));
        lines.push(format!(
            "  faults      {}: {} zero-filled, {} mapped, {} there already, {} unprotected, {} refused; {} pages came along",
            faults.total,
            faults.zero_filled,
            faults.mapped_existing,
            faults.already_there,
            faults.write_unprotected,
            faults.refused,
            faults.pages_around
        ));
        lines.push(format!("  per fault   {}", quantiles(&space.fault_service)));
        let shootdowns = &space.shootdowns;
        lines.push(format!(
            "  shootdowns  {}: {} knocks, {} flushes done, {} saved",
            shootdowns.raised,
            shootdowns.knocks,
            sum(|vcpu| vcpu.flushes.flushes_done),
            sum(|vcpu| vcpu.flushes.flushes_saved),
        ));
        if shootdowns.raised > 0 {
            lines.push(format!("  latency     {}", quantiles(&shootdowns.latency)));
            lines.push(format!("  host's half {}", quantiles(&shootdowns.kernel_half)));
        }
        lines.extend(paging::lines(space, report.resident_limit_bytes));
    }
    if let Some(mapping) = &report.host_mapping {
        lines.push(host_mapping(mapping, report.engine));
    }
    if let Some(verified) = &report.verified {
        let text = verified.to_string().replace('\n', "\n            ");
        lines.push(format!("  verified    {text}"));
    }
    if let Some(storm) = driven.storm {
        lines.push(format!(
            "  storm       {} invalidations, {} of pages in use just before and after; {} touches, {} renewals seen",
            storm.invalidations, storm.in_use, storm.touches, storm.renewals
        ));
    }
    if report.console_lost_bytes > 0 {
        lines.push(format!(
            "  console     {} of {} bytes were lost",
            report.console_lost_bytes, report.console_bytes
        ));
    }
    for name in &report.left_behind {
        let patience = Duration::from_secs(3);
        lines.push(format!("  left behind {name}: its thread did not end within {patience:?}"));
    }
    lines.extend(driven.tour.as_ref().map(tour::table));
    lines.push(String::new());
    lines.join("\n")
}

/// What the host's own counters say. They are the host's: on KVM a block is huge only if these say so.
fn host_mapping(mapping: &HostMapping, engine: EngineKind) -> String {
    let view = match &mapping.view {
        Some(view) => {
            let (mapped, huge) = (size(view.mapped_bytes()), size(view.huge_bytes()));
            format!("{mapped} of the guest view, {huge} of that by 2 MiB")
        }
        None => "what it does not tell (there is no /proc/self/smaps)".to_owned(),
    };
    let second_stage = match (engine, mapping.kvm) {
        (EngineKind::Soft, _) => "the nested tables are ours alone".to_owned(),
        (EngineKind::Kvm, None) => "KVM here does not count what it maps".to_owned(),
        (EngineKind::Kvm, Some(pages)) => format!(
            "KVM maps {} pages of 2 MiB and {} of 4 KiB",
            // Of 1 GiB there can be none: the view is in pieces of at most 2 MiB.
            pages.pages_2m,
            pages.pages_4k
        ),
    };
    format!("  host maps   {view}; {second_stage}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_three_digits_and_a_unit() {
        assert_eq!(time(999), "999 ns");
        assert_eq!(time(31_600), "31.6 us");
        assert_eq!(time(2_500_000_000), "2.50 s");
        assert_eq!(size(80 << 10), "80 KiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
    }

    #[test]
    fn a_quantile_is_shown_only_where_enough_samples_lie_beyond_it() {
        let few = Quantiles { count: 99, p50_ns: 5, max_ns: 9, ..Quantiles::default() };
        assert_eq!(quantiles(&few), "p50 5 ns, max 9 ns");
        assert!(quantiles(&Quantiles { count: 10_000, ..few }).contains("p99.9"));
    }
}
