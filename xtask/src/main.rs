//! Chores of this checkout, one subcommand each.
//!
//! `cargo xtask` alone prints the list. It needs nothing but Rust: what else is
//! wanted is downloaded ([`fetch`]) or, as root, installed after saying what
//! ([`apt`]).
//!
//! Reading order: [`fetch`] (what comes from elsewhere), [`initrd`] (what guests
//! boot into), [`lab`] (a machine with real nested paging), [`suite`] (what is tried, on
//! this machine and in the lab), [`test`] and [`demo`] (what people type).

mod apt;
mod arguments;
mod cache;
mod compare;
mod cpio;
mod demo;
mod failure;
mod fetch;
mod initrd;
mod json;
mod kernels;
mod lab;
mod lab_suite;
mod ours;
mod process;
mod programs;
mod soak;
mod soft_suite;
mod suite;
mod terminal;
mod test;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use failure::{Failure, Outcome};
use process::{print, say};

const HELP: &str = "\
Chores of this checkout.

Usage: cargo xtask <COMMAND> [--help]

  demo    boot a stock multi-vcpu Linux under skep, console on your screen
  test    run everything a reviewer runs
  suite   run the part of it that boots stock kernels, or some of that
  lab     run a command on an emulated machine with real nested paging
  fetch   download the kernels and the busybox that guests boot

  soak           page a guest's memory out and in for minutes, and compare every byte
  compare-boot   time and memory beside QEMU's microvm machine, in the lab
";

/// A subcommand: its name, its help, and what it does with its arguments.
type Chore = (&'static str, &'static str, fn(&[OsString]) -> Outcome<u8>);

const CHORES: [Chore; 10] = [
    ("demo", demo::HELP, demo::main),
    ("test", test::HELP, test::main),
    ("suite", suite::HELP, suite::main),
    ("lab", lab::HELP, lab::main),
    ("fetch", fetch::HELP, fetch::main),
    ("soak", soak::HELP, soak::main),
    ("compare-boot", compare::HELP, compare::main),
    (compare::INSIDE, compare::HELP, compare::inside),
    (soak::INSIDE, soak::HELP, soak::inside),
    (lab_suite::INSIDE, suite::HELP, lab_suite::inside::main),
];

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match dispatch(&arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            say(format!("error: {failure}"));
            ExitCode::from(failure.status)
        }
    }
}

fn dispatch(arguments: &[OsString]) -> Outcome<u8> {
    let Some((name, rest)) = arguments.split_first() else {
        print(HELP.trim_end())?;
        return Ok(0);
    };
    let asks_for_help = |word: &OsString| word == "--help" || word == "-h";
    if asks_for_help(name) || name == "help" {
        print(HELP.trim_end())?;
        return Ok(0);
    }
    let (_, help, chore) = CHORES
        .iter()
        .find(|(known, _, _)| name == known)
        .ok_or_else(|| Failure::usage(format!("no chore is called {name:?}; try `cargo xtask`")))?;
    let options = rest.iter().take_while(|word| *word != "--");
    if options.into_iter().any(asks_for_help) {
        print(help.trim_end())?;
        return Ok(0);
    }
    chore(rest)
}
