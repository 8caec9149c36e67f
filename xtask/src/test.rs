//! `cargo xtask test`: everything a reviewer runs, in order.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::failure::{Failure, Outcome, about};
use crate::lab_suite;
use crate::ours;
use crate::process::{last_lines, print, say};
use crate::soft_suite;
use crate::suite::Score;

/// What `--help` says.
pub(crate) const HELP: &str = "\
Runs everything a reviewer runs, in order, and stops at the first step that fails.

Usage: cargo xtask test [--without-lab]

  1  formatting      cargo fmt --all --check
  2  lints           cargo clippy --workspace --all-targets -- -D warnings
  3  tests           cargo test --workspace
  4  models          cargo model: every order of events in the shootdown and the code map
  5  soft suite      stock Linux kernels on the software engine, on this machine
  6  lab suite       stock Linux kernels on KVM, with real nested paging

  --without-lab   leave step 6 out, and say so

The last line counts tests, models and cases: `N passed, N failed`. What each
step printed is kept in target/xtask-test/. Downloads: see `cargo xtask fetch
--help`. Some twenty minutes on two processors from a fresh clone, ten after that.
";

/// A step that is a call of cargo: its name, and cargo's arguments.
const STEPS: [(&str, &[&str]); 4] = [
    ("formatting", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tests", &["test", "--workspace"]),
    ("models", &["model"]),
];

/// The command.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let with_lab = match arguments {
        [] => true,
        [only] if only == "--without-lab" => false,
        [other, ..] => {
            return Err(Failure::usage(format!(
                "test does not know {other:?}; see `cargo xtask test --help`"
            )));
        }
    };
    let start = Instant::now();
    let mut score = Score::default();
    let went_well = run_all(with_lab, &mut score);
    say(format!("test: {} s in all", start.elapsed().as_secs()));
    if let Err(failure) = &went_well {
        say(format!("test: {failure}"));
        // A step may fail without a test that does: code that does not compile.
        score.failed = score.failed.max(1);
    }
    print(format!("{} passed, {} failed", score.passed, score.failed))?;
    Ok(u8::from(score.failed > 0))
}

fn run_all(with_lab: bool, score: &mut Score) -> Outcome {
    let logs = ours::target()?.join("xtask-test");
    fs::create_dir_all(&logs).map_err(about("create", &logs))?;
    for (name, arguments) in STEPS {
        let counted = step(name, || run_cargo(name, arguments, &logs))?;
        *score += counted;
        if counted.failed > 0 {
            return Err(Failure::new(format!("{name} failed: nothing after it was run")));
        }
    }
    let counted = step("soft suite", || soft_suite::run(&[], false))?;
    *score += counted;
    if counted.failed > 0 {
        return Err(Failure::new("the soft suite failed: nothing after it was run"));
    }
    if !with_lab {
        say("test: lab suite LEFT OUT, as --without-lab asks: nothing ran on nested paging");
        return Ok(());
    }
    let counted = step("lab suite", || lab_suite::run(&[]))?;
    *score += counted;
    if counted.failed > 0 {
        return Err(Failure::new("the lab suite failed"));
    }
    Ok(())
}

/// Runs one step and says how long it took.
fn step(name: &str, body: impl FnOnce() -> Outcome<Score>) -> Outcome<Score> {
    say(format!("test: {name} ..."));
    let start = Instant::now();
    let score = body()?;
    let how = match (score.passed, score.failed) {
        (0, 0) => "ok".to_owned(),
        (passed, 0) => format!("{passed} passed"),
        (passed, failed) => format!("FAILED: {passed} passed, {failed} failed"),
    };
    say(format!("test: {name}: {how} ({} s)", start.elapsed().as_secs()));
    Ok(score)
}

/// Calls cargo with its output in a log, of which the end is shown if it fails.
fn run_cargo(name: &str, arguments: &[&str], logs: &Path) -> Outcome<Score> {
    let log = logs.join(format!("{name}.log"));
    let file = File::create(&log).map_err(about("create", &log))?;
    let copy = file.try_clone().map_err(about("write", &log))?;
    let mut command: Command = ours::cargo();
    let status = command
        .args(arguments)
        // It would take the place of the models' own `--cfg loom`, and no model would run.
        .env_remove("RUSTFLAGS")
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .status()
        .map_err(|error| Failure::new(format!("cannot start cargo: {error}")))?;
    let bytes = fs::read(&log).map_err(about("read", &log))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut score = tests_counted(&text);
    if !status.success() {
        say(last_lines(&text, 80));
        say(format!("test: all of it is in {}", log.display()));
        score.failed = score.failed.max(1);
    } else if arguments.iter().any(|word| ["test", "model"].contains(word)) && score.passed == 0 {
        say(format!("test: {name}: no test ran at all"));
        score.failed = 1;
    }
    Ok(score)
}

/// Adds up the lines `test result: ok. 25 passed; 0 failed; ...`.
fn tests_counted(text: &str) -> Score {
    let mut score = Score::default();
    for line in text.lines() {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            continue;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else {
                continue;
            };
            match (number.parse::<usize>(), what) {
                (Ok(number), "passed") => score.passed += number,
                (Ok(number), "failed") => score.failed += number,
                _ => {}
            }
        }
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_test_programs_are_added_up() {
        let text = "running 2 tests\n\
                    test result: ok. 25 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n";
        assert_eq!(tests_counted(text), Score { passed: 28, failed: 2 });
        assert_eq!(tests_counted("no tests at all"), Score::default());
    }
}
