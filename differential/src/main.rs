//! `differential`: runs sequences on both processors and says where they differ.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use differential::campaign::{Account, Bench, Count, Plan};
use differential::generate::catalogue::Family;
use differential::native::NativeError;
use differential::report;

/// Runs random instruction sequences on the real processor and on the software one, and compares what is left.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Which family of instructions, or `all`.
    #[arg(long, default_value = "all")]
    family: String,
    /// How many sequences of each.
    #[arg(long, default_value_t = 100_000)]
    sequences: u64,
    /// Which stream of sequences.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first sequence's number.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Threads; each has a child process of its own.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// Stop a family after so many mismatches.
    #[arg(long, default_value_t = 10)]
    enough: usize,
    /// Run only this sequence and show everything.
    #[arg(long)]
    replay: Option<u64>,
    /// Print the account as JSON.
    #[arg(long)]
    json: bool,
    /// List families and forms, run nothing.
    #[arg(long)]
    list: bool,
    /// Write the list of covered forms to this file.
    #[arg(long)]
    coverage: Option<PathBuf>,
}

/// What can go wrong besides a mismatch.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error(transparent)]
    Family(#[from] differential::generate::catalogue::NoSuchFamily),
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
    #[error("a thread ended badly")]
    Thread,
}

fn main() -> ExitCode {
    match carry_out(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(trouble) => {
            eprintln!("differential: {trouble}");
            ExitCode::from(2)
        }
    }
}

/// Does it; returns how many mismatches there were.
fn carry_out(arguments: &Arguments) -> Result<u64, Trouble> {
    let mut out = std::io::stdout().lock();
    let families = if arguments.family == "all" {
        Family::ALL.to_vec()
    } else {
        vec![arguments.family.parse::<Family>()?]
    };
    let mut bench = Bench::start()?;
    if arguments.list {
        for family in families {
            for at in bench.generator.members(family) {
                writeln!(out, "{family}\t{}", bench.generator.forms[*at].name())?;
            }
        }
        return Ok(0);
    }
    if let Some(index) = arguments.replay {
        for family in families {
            write!(out, "{}", bench.describe(family, arguments.seed, index))?;
        }
        return Ok(0);
    }
    let mut total = Account::default();
    let mut heading = "Written by `cargo run --release -p differential -- --coverage FILE`. A sequence tries 1 to \
         10 instructions, with others before them that prepare the ground; a form counts once for each place in a \
         sequence at which the real processor reached it and both sides agreed.\n\n\
         | family | seed | sequences | ended by an exception | mismatches | unknown | skipped |\n|---|---|---:|---:|---:|---:|---:|\n".to_string();
    for family in families {
        if bench.generator.members(family).is_empty() {
            continue;
        }
        let began = std::time::Instant::now();
        let account = run_family(arguments, family)?;
        let seconds = began.elapsed().as_secs_f64();
        for report in &account.reports {
            writeln!(out, "{report}")?;
        }
        if arguments.json {
            let mut forms = std::collections::BTreeMap::<String, Count>::new();
            for (at, count) in &account.forms {
                forms.entry(bench.generator.forms[*at].name()).or_default().add(*count);
            }
            let line = serde_json::json!({
                "family": family.name(),
                "seed": arguments.seed,
                "account": &account,
                "forms": forms,
            });
            writeln!(out, "{line}")?;
        } else {
            writeln!(
                out,
                "{family}: {} compared, {} of them ended by an exception, {} mismatches, {} unknown, {} skipped, {:.0} a second",
                account.compared,
                account.exceptions,
                account.mismatches,
                account.unknown,
                account.skipped,
                account.compared as f64 / seconds
            )?;
            for (name, count) in &account.unknown_names {
                writeln!(out, "  unknown: {name} ({count})")?;
            }
        }
        heading.push_str(&format!(
            "| {family} | {} | {} | {} | {} | {} | {} |\n",
            arguments.seed,
            account.compared,
            account.exceptions,
            account.mismatches,
            account.unknown,
            account.skipped
        ));
        total.add(account);
    }
    if let Some(path) = &arguments.coverage {
        std::fs::write(path, report::coverage(&bench.generator.forms, &total.forms, &heading))?;
    }
    Ok(total.mismatches)
}

/// One family, on as many threads as wanted.
fn run_family(arguments: &Arguments, family: Family) -> Result<Account, Trouble> {
    let jobs = arguments.jobs.max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|job| {
                let plan = Plan {
                    family,
                    seed: arguments.seed,
                    start: arguments.start,
                    count: arguments.sequences,
                    job,
                    jobs,
                    enough: arguments.enough,
                };
                std::thread::Builder::new()
                    .name(format!("differential-{job}"))
                    .spawn_scoped(scope, move || Bench::start()?.run(&plan))
            })
            .collect();
        let mut total = Account::default();
        for worker in workers {
            total.add(worker?.join().map_err(|_| Trouble::Thread)??);
        }
        Ok(total)
    })
}
