//! Going through the cases, inside the lab.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::{SKIP, chosen};
use crate::failure::Outcome;
use crate::lab::LAB_FAILED;
use crate::lab::image::PROGRAMS;
use crate::process::print;
use crate::suite::judge::{self, ENOUGH_FAILURES, Setting};

/// The hidden subcommand's main.
///
/// # Errors
///
/// When `skep` cannot be started at all.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let words: Vec<String> =
        arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let skip = cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix(SKIP)?.parse().ok())
        .unwrap_or(0);
    let skep = Path::new(PROGRAMS).join("skep");
    let setting = Setting { skep: &skep, folder: Path::new("/tmp"), work: "" };
    let mut failures = 0;
    for case in chosen(&words).iter().skip(skip) {
        let went = judge::run(case, &setting).map_err(|failure| failure.with_status(LAB_FAILED))?;
        let seconds = went.seconds;
        let Some(wrong) = went.wrong else {
            print(format!("ok {seconds:.1}"))?;
            continue;
        };
        wrong.shown.iter().try_for_each(print)?;
        print(format!("failed {seconds:.1} {}", wrong.why))?;
        failures += 1;
        if failures == ENOUGH_FAILURES {
            break;
        }
    }
    Ok(0)
}
