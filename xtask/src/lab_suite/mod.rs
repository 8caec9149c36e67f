//! What is tested in the lab: each case a `skep` command line, and what it must
//! print and end with.
//!
//! All cases run in one lab, which boots in a few seconds. There, this same
//! program goes through the list and reports ([`inside`]); out here the report
//! is counted ([`run`]). When the lab vanishes, which emulated hosts do, rarely,
//! the next one goes on with the case it vanished in; twice in one case is a
//! failure of that case.

mod cases;
pub(crate) mod inside;

use crate::failure::{Failure, Outcome};
use crate::lab::image::PROGRAMS;
use crate::lab::run::{Ended, Stream};
use crate::lab::{Lab, shell_line};
use crate::ours;
use crate::process::say;
use crate::suite::case::Case;
use crate::suite::{Score, named};

/// The word on the lab kernel's command line that says how many cases to skip.
const SKIP: &str = "lab.skip=";

/// The cases whose name contains one of `words`, or all.
pub(crate) fn chosen(words: &[String]) -> Vec<Case> {
    named(cases::all(), words)
}

/// Runs the cases whose name contains one of `words`, or all.
///
/// # Errors
///
/// When the lab cannot run here.
pub(crate) fn run(words: &[String]) -> Outcome<Score> {
    let cases = chosen(words);
    let program = format!("{PROGRAMS}/xtask");
    let mut inside = vec![program.clone(), INSIDE.to_owned()];
    inside.extend_from_slice(words);
    let mut lab = Lab::new(shell_line(&inside));
    lab.files.push((ours::ourselves()?, program));
    lab.limit = cases.iter().map(|case| case.limit).sum();
    let ready = lab.prepare()?;

    let mut report = Report::new(&cases);
    let mut vanished_in = None;
    loop {
        let skip = format!("{SKIP}{}", report.finished());
        let ended = lab.live(&ready, &skip, &mut |stream, bytes| report.hear(stream, bytes))?;
        match ended {
            Ended::Status(0, _) if report.finished() == cases.len() || report.score.failed > 0 => {
                return Ok(report.score);
            }
            Ended::Vanished(words) => {
                let at = report.finished();
                say(format!("lab: it vanished in case {}; its last words were:\n{words}", at + 1));
                if vanished_in == Some(at) || at >= cases.len() {
                    report.score.failed += 1;
                    return Ok(report.score);
                }
                vanished_in = Some(at);
                say("lab: starting it once more with that case");
                report.line.clear();
            }
            Ended::Status(status, _) => {
                return Err(Failure::new(format!(
                    "the suite ended with status {status} inside the lab, after {} of {} cases",
                    report.finished(),
                    cases.len()
                )));
            }
            other => return lab.settle(other).map(|_| report.score),
        }
    }
}

/// Follows what the inside prints: a line `ok SECONDS` or `failed SECONDS WHY` for
/// each case, after whatever else it has to say about it.
struct Report<'a> {
    cases: &'a [Case],
    score: Score,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
}

impl<'a> Report<'a> {
    fn new(cases: &'a [Case]) -> Self {
        Self { cases, score: Score::default(), line: Vec::new() }
    }

    fn finished(&self) -> usize {
        self.score.passed + self.score.failed
    }

    fn hear(&mut self, stream: Stream, bytes: &[u8]) -> Outcome {
        if stream == Stream::Stderr {
            say(String::from_utf8_lossy(bytes).trim_end());
            return Ok(());
        }
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            self.hear_line(String::from_utf8_lossy(&line).trim_end());
        }
        Ok(())
    }

    fn hear_line(&mut self, line: &str) {
        let number = self.finished() + 1;
        let name = self.cases.get(number - 1).map_or("", |case| &case.name);
        let place = format!("  {number:2}/{} {name}", self.cases.len());
        if let Some(seconds) = line.strip_prefix("ok ") {
            self.score.passed += 1;
            say(format!("{place}: ok ({seconds} s)"));
        } else if let Some(rest) = line.strip_prefix("failed ") {
            self.score.failed += 1;
            let (seconds, why) = rest.split_once(' ').unwrap_or((rest, ""));
            say(format!("{place}: FAILED, {why} ({seconds} s)"));
        } else {
            say(line);
        }
    }
}

/// The hidden subcommand that goes through the cases inside the lab.
pub(crate) const INSIDE: &str = "suite-inside";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_lines_that_arrive_in_pieces() {
        let cases = cases::all();
        let mut report = Report::new(&cases);
        for piece in ["ok 1.", "5\nfai", "led 2.0 never printed \"x\"\nok 3.0\n"] {
            report.hear(Stream::Stdout, piece.as_bytes()).unwrap();
        }
        assert_eq!(report.score, Score { passed: 2, failed: 1 });
    }
}
