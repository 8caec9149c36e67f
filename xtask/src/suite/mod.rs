//! `cargo xtask suite`: guests under skep, each a command line and how it must go.
//!
//! Reading order: [`case`] (what is claimed), [`judge`] (whether it holds), then the
//! two places where cases run: this machine ([`crate::soft_suite`]) and the lab
//! ([`crate::lab_suite`]).

pub(crate) mod case;
pub(crate) mod judge;

use std::ffi::OsString;

use crate::failure::{Failure, Outcome};
use crate::lab_suite;
use crate::process::print;
use crate::soft_suite;
use case::Case;

/// What `--help` says.
pub(crate) const HELP: &str = "\
Runs guests under skep: stock kernels on the software engine, directly on this
machine, and then the lab suite, on real nested paging.

Usage: cargo xtask suite [--soft | --lab] [--all] [--list] [WORD]...

  --soft   only the software engine's part: every name begins with \"soft\"
  --lab    only the lab's part
  --all    the software engine's part in full: every kernel in both forms with 1,
           2 and 4 vcpus, and both layouts of the nested tables (about 20 minutes)
  --list   print the cases and what each runs
  WORD     only the cases whose name contains one of these words

    cargo xtask suite 6.1 reboot
    cargo xtask suite --soft work

Both parts, without --all, are steps of `cargo xtask test`.
";

/// How many cases went well and how many did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Score {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

/// What was typed.
#[derive(Debug)]
struct Suite {
    soft: bool,
    lab: bool,
    all: bool,
    list: bool,
    words: Vec<String>,
}

/// The command.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let suite = parse(arguments)?;
    let mut soft = soft_suite::names(&suite.words, suite.all);
    let mut lab = lab_suite::chosen(&suite.words);
    if !suite.soft {
        soft.clear();
    }
    if !suite.lab {
        lab.clear();
    }
    if soft.is_empty() && lab.is_empty() {
        let words = suite.words.join(" or ");
        return Err(Failure::usage(format!("no case's name contains {words}")));
    }
    if suite.list {
        soft.iter().chain(&lab).try_for_each(show)?;
        return Ok(0);
    }
    let mut score = Score::default();
    if !soft.is_empty() {
        score += soft_suite::run(&suite.words, suite.all)?;
    }
    if !lab.is_empty() {
        score += lab_suite::run(&suite.words)?;
    }
    print(format!("{} passed, {} failed", score.passed, score.failed))?;
    Ok(u8::from(score.failed > 0))
}

fn parse(arguments: &[OsString]) -> Outcome<Suite> {
    let mut suite = Suite { soft: true, lab: true, all: false, list: false, words: Vec::new() };
    for word in arguments {
        let word = word.to_string_lossy().into_owned();
        match word.as_str() {
            "--soft" => suite.lab = false,
            "--lab" => suite.soft = false,
            "--all" => suite.all = true,
            "--list" => suite.list = true,
            option if option.starts_with('-') => {
                return Err(Failure::usage(format!(
                    "suite does not know {option}; see `cargo xtask suite --help`"
                )));
            }
            _ => suite.words.push(word),
        }
    }
    Ok(suite)
}

fn show(case: &Case) -> Outcome {
    print(format!("{}\n    skep {}", case.name, case.arguments.join(" ")))
}

/// The cases whose name contains one of `words`, or all.
pub(crate) fn named(mut cases: Vec<Case>, words: &[String]) -> Vec<Case> {
    cases.retain(|case| words.is_empty() || words.iter().any(|word| case.name.contains(word)));
    cases
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(words: &[&str]) -> Outcome<Suite> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_choose_the_part_and_words_choose_the_cases() {
        let both = typed(&["6.1", "reboot"]).unwrap();
        assert!(both.soft && both.lab && !both.all);
        assert_eq!(both.words, ["6.1", "reboot"]);
        assert!(!typed(&["--soft"]).unwrap().lab);
        assert!(!typed(&["--lab"]).unwrap().soft);
        assert_eq!(typed(&["--soff"]).unwrap_err().status, 2);
    }

    #[test]
    fn every_case_of_both_parts_has_a_name_of_its_own() {
        let cases = soft_suite::names(&[], true).into_iter().chain(lab_suite::chosen(&[]));
        let mut names: Vec<String> = cases.map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
