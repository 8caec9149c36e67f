//! Chores of this checkout, one subcommand each.
//!
//! `cargo xtask` alone prints the list. It needs nothing but Rust: what else is
//! wanted is downloaded ([`fetch`]) or, as root, installed after saying what
//! ([`apt`]).
//!
//! Reading order: [`fetch`] (what comes from elsewhere), [`initrd`] (what guests
//! boot into), [`lab`] (where they can boot).

mod apt;
mod arguments;
mod cache;
mod cpio;
mod failure;
mod fetch;
mod initrd;
mod kernels;
mod lab;
mod ours;
mod process;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use failure::{Failure, Outcome};
use process::{print, say};

const HELP: &str = "\
Chores of this checkout.

Usage: cargo xtask <COMMAND> [--help]

  fetch   download the kernels and the busybox that guests boot
  lab     run a command on an emulated machine with real nested paging
";

/// A subcommand: its name, its help, and what it does with its arguments.
type Chore = (&'static str, &'static str, fn(&[OsString]) -> Outcome<u8>);

const CHORES: [Chore; 2] = [("fetch", fetch::HELP, fetch::main), ("lab", lab::HELP, lab::main)];

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
