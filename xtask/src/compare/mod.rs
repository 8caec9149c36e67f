//! `cargo xtask compare-boot`: skep beside QEMU's microvm machine, in one lab.
//!
//! Both boot the same kernel, initrd and command line, in turn, so that whatever
//! slows the lab down slows both. What is compared are ratios: the lab's times
//! are an emulator's.
//!
//! Reading order: `rounds.rs` (what is run, and the tables), `monitors.rs` (how
//! each is called), `figures.rs` (medians and ratios), `memory.rs` (what a monitor
//! occupies), `tiny.rs` (the smallest guest), `clean.rs` (what memory they are given).

mod clean;
mod figures;
mod memory;
mod monitors;
mod rounds;
mod tiny;

use std::ffi::OsString;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::failure::{Failure, Outcome};
use crate::lab::image::PROGRAMS;
use crate::lab::{LAB_FAILED, Lab, shell_line};
use crate::ours;
use crate::process::say;

/// What `--help` says.
pub(crate) const HELP: &str = "\
Boots Linux under skep and under QEMU's microvm machine, both with KVM, in turn,
in one lab, and prints what each took and occupied.

Usage: cargo xtask compare-boot [OPTIONS]

  --rounds N   boots of each kind (default 5; at least 1)
  --only WORD  only plain, memfd, start or memory (may be given again)
  --console C  only full (the kernel's whole log) or only quiet
  --vcpus N    only guests of N vcpus (1 or 2)
  --recycled   give each boot the memory that the one before it left, as it is
  --smp N      the lab's processors (default 1: with two the emulator loses guests of both
               monitors now and then)

  plain    stock QEMU against skep as it is, host huge pages as Debian sets them
  memfd    QEMU with memory-backend-memfd,share=on, huge pages off for both, and
           skep's own fault service time given beside it, to subtract
  start    a guest of a few bytes: what the monitor itself costs
  memory   what a monitor occupies beside the guest's memory, two heartbeats in

plain and memfd: 1 and 2 vcpus, with the full kernel log and with `quiet`; time to
the guest's first line from user space. Every figure is a median with the least and
the most in brackets; a ratio is skep's to QEMU's of the same run, below 1 is
better. Before each boot nearly all free memory of the lab is stored to once: the
emulator pays for stores to memory that held code, up to 0.1 s for 2 MiB, and whom that
hits is chance (--recycled leaves it so). All of it takes about a quarter of an hour on an idle machine with two
processors, and means nothing on a busy one.
";

/// The hidden subcommand that does it, inside the lab.
pub(crate) const INSIDE: &str = "compare-boot-inside";

/// The longest a lab may take for one round of everything.
const ROUND_LIMIT: Duration = Duration::from_secs(400);

/// Which parts to run, and how often.
#[derive(Clone, Debug)]
struct Plan {
    rounds: u32,
    /// All of [`PARTS`] when empty.
    only: Vec<String>,
    /// One of [`CONSOLES`], or both.
    console: Option<String>,
    /// One of [`VCPUS`], or both.
    vcpus: Option<u32>,
    /// Memory comes as the boot before left it.
    recycled: bool,
    /// The lab's processors.
    smp: u32,
}

/// The parts, by name.
const PARTS: [&str; 4] = ["plain", "memfd", "start", "memory"];

/// What a kernel may say of itself.
const CONSOLES: [&str; 2] = ["full", "quiet"];

/// How many vcpus a guest has.
const VCPUS: [u32; 2] = [1, 2];

impl Plan {
    fn has(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == part)
    }

    fn has_console(&self, console: &str) -> bool {
        self.console.as_ref().is_none_or(|only| only == console)
    }

    /// How many vcpus the guests have, one kind after the other.
    fn vcpus(&self) -> impl Iterator<Item = u32> {
        VCPUS.into_iter().filter(|vcpus| self.vcpus.is_none_or(|only| only == *vcpus))
    }
}

/// The command.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let plan = parse(arguments)?;
    let program = format!("{PROGRAMS}/xtask");
    let mut inside = vec![program.clone(), INSIDE.to_owned()];
    for argument in arguments {
        inside.push(argument.to_string_lossy().into_owned());
    }
    let mut lab = Lab::new(shell_line(&inside));
    lab.smp = plan.smp;
    lab.files.push((ours::ourselves()?, program));
    lab.with.qemu = true;
    lab.limit = ROUND_LIMIT * plan.rounds;
    say("compare-boot: keep the machine idle meanwhile");
    lab.run()
}

/// The same, inside the lab.
pub(crate) fn inside(arguments: &[OsString]) -> Outcome<u8> {
    rounds::run(&parse(arguments)?).map_err(|failure| failure.with_status(LAB_FAILED))?;
    Ok(0)
}

fn parse(arguments: &[OsString]) -> Outcome<Plan> {
    let mut plan =
        Plan { rounds: 5, only: Vec::new(), console: None, vcpus: None, recycled: false, smp: 1 };
    let mut arguments = Arguments::new("compare-boot", arguments);
    while let Some(option) = arguments.option()? {
        match option.as_str() {
            "--rounds" => plan.rounds = arguments.number(&option)?,
            "--smp" => plan.smp = arguments.number(&option)?,
            "--only" => plan.only.push(arguments.value(&option)?),
            "--console" => plan.console = Some(arguments.value(&option)?),
            "--vcpus" => plan.vcpus = Some(arguments.number(&option)?),
            "--recycled" => plan.recycled = true,
            _ => return Err(arguments.unknown(&option)),
        }
    }
    let unknown = plan.only.iter().find(|name| !PARTS.contains(&name.as_str()));
    if let Some(unknown) = unknown {
        return Err(Failure::usage(format!(
            "compare-boot has no part {unknown:?}: it has {}",
            PARTS.join(", ")
        )));
    }
    if let Some(console) = plan.console.as_ref().filter(|name| !CONSOLES.contains(&name.as_str())) {
        return Err(Failure::usage(format!(
            "compare-boot has no console {console:?}: it has {}",
            CONSOLES.join(", ")
        )));
    }
    if let Some(vcpus) = plan.vcpus.filter(|vcpus| !VCPUS.contains(vcpus)) {
        return Err(Failure::usage(format!(
            "compare-boot has no guests of {vcpus} vcpus: it has {VCPUS:?}"
        )));
    }
    if plan.smp == 0 {
        return Err(Failure::usage("compare-boot needs a lab with at least one processor"));
    }
    if plan.rounds == 0 {
        return Err(Failure::usage("compare-boot needs at least one round"));
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Outcome<Plan> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&words)
    }

    #[test]
    fn without_only_a_plan_has_every_part() {
        let plan = parsed(&["--rounds", "3"]).unwrap();
        assert!(PARTS.iter().all(|part| plan.has(part)));
        let plan = parsed(&["--only", "start"]).unwrap();
        assert!(plan.has("start") && !plan.has("plain"));
        assert!(plan.has_console("full") && plan.has_console("quiet"));
        let plan = parsed(&["--console", "quiet"]).unwrap();
        assert!(plan.has_console("quiet") && !plan.has_console("full"));
        assert_eq!(plan.vcpus().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(parsed(&["--vcpus", "1"]).unwrap().vcpus().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn no_rounds_and_unknown_parts_are_refused() {
        assert_eq!(parsed(&["--rounds", "0"]).unwrap_err().status, 2);
        assert_eq!(parsed(&["--only", "boot"]).unwrap_err().status, 2);
        assert_eq!(parsed(&["--console", "loud"]).unwrap_err().status, 2);
        assert_eq!(parsed(&["--vcpus", "3"]).unwrap_err().status, 2);
    }
}
