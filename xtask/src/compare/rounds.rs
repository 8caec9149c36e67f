//! The rounds: who is started when, and the tables that come out.

use std::fs;
use std::time::Duration;

use super::clean::clean_free_memory;
use super::figures::Series;
use super::memory::{self, Occupied};
use super::monitors::{Backing, Guest, MEMORY_MIB, Monitor, REPORT};
use super::tiny;
use super::{CONSOLES, Plan};
use crate::failure::{Failure, Outcome, about};
use crate::initrd::HELLO;
use crate::json::number_named;
use crate::lab::image::{GUEST_INITRD, guest_vmlinux};
use crate::process::{last_lines, print, say};
use crate::watch::{Watched, watch};
use std::path::Path;

/// A boot that takes longer has gone wrong.
const BOOT_LIMIT: Duration = Duration::from_secs(45);

/// What all Linux guests here are told; the full log unless `quiet` is added.
const CMDLINE: &str = "console=ttyS0 reboot=k panic=1 pci=off";

/// Where the tiny guest is put.
const TINY: &str = "/tmp/tiny.elf";

/// What one kind of boot took, round by round.
#[derive(Debug, Default)]
struct Taken {
    console: Series,
    hello: Series,
    end: Series,
    processor: Series,
    /// What skep spent serving faults before the end; nothing for QEMU.
    faults: Series,
}

/// Runs the parts of the plan and prints their tables.
///
/// # Errors
///
/// A monitor that cannot be started or does not bring its guest to its line.
pub(super) fn run(plan: &Plan) -> Outcome {
    // The first start of each reads it into memory and patches the kernel's code
    // for it; that is nobody's boot time.
    let vmlinux = guest_vmlinux("6.12");
    fs::write(TINY, tiny::elf()).map_err(about("write", Path::new(TINY)))?;
    for monitor in [Monitor::Qemu, Monitor::Skep] {
        start(monitor, &tiny_guest(1))?;
    }
    if plan.has("start") {
        starts(plan)?;
    }
    if plan.has("memory") {
        memory(plan, &vmlinux)?;
    }
    if plan.has("plain") {
        boots(plan, &vmlinux, Backing::Plain)?;
    }
    if plan.has("memfd") {
        set_huge_pages("never")?;
        boots(plan, &vmlinux, Backing::Memfd)?;
    }
    Ok(())
}

fn boots(plan: &Plan, kernel: &str, backing: Backing) -> Outcome {
    let title = match backing {
        Backing::Plain => "Linux to its init, stock QEMU",
        Backing::Memfd => "Linux to its init, QEMU on a shared memfd, huge pages off",
    };
    print(format!("\n## {title} ({} rounds, seconds)\n", plan.rounds))?;
    print(
        "| console | vcpus | monitor | first output | HELLO | ratio | by round | end | ratio \
         | cpu | fault service | HELLO without it | ratio |",
    )?;
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")?;
    for console in CONSOLES.into_iter().filter(|console| plan.has_console(console)) {
        let cmdline =
            if console == "quiet" { format!("{CMDLINE} quiet") } else { CMDLINE.to_owned() };
        for cpus in plan.vcpus() {
            let guest =
                Guest { kernel, initrd: Some(GUEST_INITRD), cmdline: &cmdline, cpus, backing };
            let (qemu, skep) = alternate(plan, &guest)?;
            let net = skep.hello.less(&skep.faults);
            print(format!(
                "| {console} | {cpus} | {} | {} | {} | 1 | 1 | {} | 1 | {} | | | |",
                Monitor::Qemu.name(),
                qemu.console,
                qemu.hello,
                qemu.end,
                qemu.processor
            ))?;
            print(format!(
                "| | | {} | {} | {} | **{:.2}** | {:.2} | {} | {:.2} | {} | {} | {net} | {:.2} |",
                Monitor::Skep.name(),
                skep.console,
                skep.hello,
                skep.hello.ratio(&qemu.hello),
                skep.hello.ratio_by_round(&qemu.hello),
                skep.end,
                skep.end.ratio(&qemu.end),
                skep.processor,
                skep.faults,
                net.ratio(&qemu.hello)
            ))?;
        }
    }
    Ok(())
}

fn starts(plan: &Plan) -> Outcome {
    print(format!(
        "\n## The monitor's own start: a guest of {} bytes ({} rounds, seconds)\n",
        tiny::elf().len(),
        plan.rounds
    ))?;
    print("| vcpus | monitor | HELLO | ratio | by round | end | ratio |")?;
    print("|---|---|---|---|---|---|---|")?;
    for cpus in plan.vcpus() {
        let (qemu, skep) = alternate(plan, &tiny_guest(cpus))?;
        print(format!(
            "| {cpus} | {} | {} | 1 | 1 | {} | 1 |",
            Monitor::Qemu.name(),
            qemu.hello,
            qemu.end
        ))?;
        print(format!(
            "| | {} | {} | **{:.2}** | {:.2} | {} | {:.2} |",
            Monitor::Skep.name(),
            skep.hello,
            skep.hello.ratio(&qemu.hello),
            skep.hello.ratio_by_round(&qemu.hello),
            skep.end,
            skep.end.ratio(&qemu.end)
        ))?;
    }
    Ok(())
}

fn tiny_guest(cpus: u32) -> Guest<'static> {
    Guest { kernel: TINY, initrd: None, cmdline: "", cpus, backing: Backing::Plain }
}

/// Starts both in turn, the first of a round being the second of the next.
fn alternate(plan: &Plan, guest: &Guest<'_>) -> Outcome<(Taken, Taken)> {
    let (mut qemu, mut skep) = (Taken::default(), Taken::default());
    for round in 0..plan.rounds {
        let mut order = [Monitor::Qemu, Monitor::Skep];
        order.rotate_left(usize::from(round % 2 == 1));
        for monitor in order {
            if !plan.recycled {
                clean_free_memory()?;
            }
            let watched = match monitor {
                Monitor::Skep => start(monitor, guest)?,
                Monitor::Qemu => start_peer(guest)?,
            };
            let taken = match monitor {
                Monitor::Qemu => &mut qemu,
                Monitor::Skep => &mut skep,
            };
            taken.console.add(watched.first_byte.unwrap_or_default());
            taken.hello.add(watched.marked.unwrap_or_default());
            taken.end.add(watched.ended);
            taken.processor.add(watched.processor);
            taken.faults.add(match monitor {
                Monitor::Qemu => Duration::ZERO,
                Monitor::Skep => fault_service()?,
            });
        }
    }
    Ok((qemu, skep))
}

/// A boot of the peer. Emulated hosts lose one of its guests now and then; that is no sample, and
/// is said aloud and taken again. Skep gets no second try.
fn start_peer(guest: &Guest<'_>) -> Outcome<Watched> {
    const TRIES: u32 = 4;
    let mut attempt = 1;
    loop {
        match start(Monitor::Qemu, guest) {
            Err(failure) if attempt < TRIES => {
                say(format!("attempt {attempt} of {TRIES} is not counted: {failure}"));
                attempt += 1;
            }
            watched => return watched,
        }
    }
}

/// One boot, which must reach its line and end by itself.
fn start(monitor: Monitor, guest: &Guest<'_>) -> Outcome<Watched> {
    let watched = watch(&mut monitor.command(guest), HELLO, BOOT_LIMIT, |_| ())?;
    match (watched.marked, watched.status) {
        (Some(hello), Some(_)) => {
            say(format!(
                "{} with {} vcpus: HELLO {:.3} s, end {:.3} s",
                monitor.name(),
                guest.cpus,
                hello.as_secs_f64(),
                watched.ended.as_secs_f64()
            ));
            Ok(watched)
        }
        _ => Err(Failure::new(format!(
            "{} did not bring its guest to its line and end:\n{:?}\n{}\n{}",
            monitor.name(),
            monitor.command(guest),
            last_lines(&watched.stdout, 10),
            last_lines(&watched.stderr, 10)
        ))),
    }
}

fn memory(plan: &Plan, kernel: &str) -> Outcome {
    print("\n## What a monitor occupies, two heartbeats in (kB)\n")?;
    print("| vcpus | monitor | guest memory | anonymous | of files | beside the guest | ratio |")?;
    print("|---|---|---|---|---|---|---|")?;
    let cmdline = format!("{CMDLINE} quiet skep.test=stay skep.beats=3");
    for cpus in plan.vcpus() {
        let guest = Guest {
            kernel,
            initrd: Some(GUEST_INITRD),
            cmdline: &cmdline,
            cpus,
            backing: Backing::Plain,
        };
        let qemu = occupied(Monitor::Qemu, &guest)?;
        let skep = occupied(Monitor::Skep, &guest)?;
        for (monitor, occupied) in [(Monitor::Qemu, qemu), (Monitor::Skep, skep)] {
            let Occupied { guest, anonymous, file } = occupied;
            let all = anonymous + file;
            // Sizes in kB are far below 2^53.
            let ratio = all as f64 / (qemu.anonymous + qemu.file) as f64;
            print(format!(
                "| {cpus} | {} | {guest} | {anonymous} | {file} | {all} | {ratio:.3} |",
                monitor.name()
            ))?;
        }
    }
    Ok(())
}

fn occupied(monitor: Monitor, guest: &Guest<'_>) -> Outcome<Occupied> {
    let mut occupied = None;
    let mut command = monitor.command(guest);
    watch(&mut command, "HEARTBEAT 2", BOOT_LIMIT, |id| {
        occupied = memory::of_process(id, MEMORY_MIB * 1024);
    })?;
    occupied.ok_or_else(|| {
        Failure::new(format!("{} did not bring its guest to its second heartbeat", monitor.name()))
    })
}

/// What serving faults cost in skep's last run, from its report.
fn fault_service() -> Outcome<Duration> {
    let report = fs::read_to_string(REPORT).map_err(about("read", Path::new(REPORT)))?;
    number_named(&report, "fault_service_total_ns")
        .map(Duration::from_nanos)
        .ok_or_else(|| Failure::new(format!("{REPORT} has no fault_service_total_ns")))
}

/// Sets what the lab's kernel does about huge pages, for private and shared memory.
fn set_huge_pages(what: &str) -> Outcome {
    for name in ["enabled", "shmem_enabled"] {
        let file = Path::new("/sys/kernel/mm/transparent_hugepage").join(name);
        fs::write(&file, what).map_err(about("write", &file))?;
    }
    Ok(())
}
