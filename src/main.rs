//! The `skep` command: parse, build, run, exit.

mod cli;
mod host;
mod run;
mod storm;
mod summary;
mod switches;
mod tour;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use skep::ExitStatus;

use crate::cli::{Cli, Command, WhenAsked};

/// An end with a sentence for stderr.
#[derive(Debug)]
pub(crate) struct Failure {
    status: ExitStatus,
    sentence: String,
}

impl Failure {
    pub(crate) fn new(status: ExitStatus, sentence: impl ToString) -> Self {
        Self { status, sentence: sentence.to_string() }
    }
}

/// Says something to the operator. A closed stderr is nobody's loss.
pub(crate) fn say(sentence: impl std::fmt::Display) {
    let _closed = writeln!(std::io::stderr(), "skep: {sentence}");
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Host(args) => host::run(&args),
        Command::Bench(WhenAsked(args)) => {
            bench::cli::run(&args).map_err(|why| Failure::new(why.exit_status(), why))
        }
    };
    let status = match done {
        Ok(status) => status,
        Err(failure) => {
            say(failure.sentence);
            failure.status
        }
    };
    ExitCode::from(status as u8)
}
