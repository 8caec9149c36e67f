//! Reading what was typed after a subcommand.

use std::ffi::OsString;
use std::str::FromStr;

use crate::failure::{Failure, Outcome};

/// The words after a subcommand: options, then perhaps `--` and a command.
#[derive(Debug)]
pub(crate) struct Arguments<'a> {
    subcommand: &'static str,
    words: std::slice::Iter<'a, OsString>,
}

impl<'a> Arguments<'a> {
    /// The words of one subcommand.
    pub(crate) fn new(subcommand: &'static str, words: &'a [OsString]) -> Self {
        Self { subcommand, words: words.iter() }
    }

    /// The next option; nothing at `--` or at the end.
    ///
    /// # Errors
    ///
    /// A word that is not UTF-8; the same for all that follow.
    pub(crate) fn option(&mut self) -> Outcome<Option<String>> {
        match self.words.next() {
            None => Ok(None),
            Some(word) if word == "--" => Ok(None),
            Some(word) => text(word).map(Some),
        }
    }

    /// The value of `option`.
    pub(crate) fn value(&mut self, option: &str) -> Outcome<String> {
        match self.words.next() {
            Some(word) => text(word),
            None => Err(self.complaint(format!("{option} needs a value"))),
        }
    }

    /// The value of `option`, as a number.
    pub(crate) fn number<T: FromStr>(&mut self, option: &str) -> Outcome<T> {
        let value = self.value(option)?;
        value.parse().map_err(|_| self.complaint(format!("{option} needs a number, not {value:?}")))
    }

    /// The value of `option`, as two names with a colon between them.
    pub(crate) fn pair(&mut self, option: &str) -> Outcome<(String, String)> {
        let value = self.value(option)?;
        match value.split_once(':') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                Ok((from.to_owned(), to.to_owned()))
            }
            _ => Err(self.complaint(format!("{option} needs FROM:TO, not {value:?}"))),
        }
    }

    /// Everything that is left, after `--`.
    pub(crate) fn rest(self) -> Outcome<Vec<String>> {
        self.words.map(text).collect()
    }

    /// What to say to an option nobody knows.
    pub(crate) fn unknown(&self, option: &str) -> Failure {
        self.complaint(format!("there is no {option}"))
    }

    fn complaint(&self, what: String) -> Failure {
        let subcommand = self.subcommand;
        Failure::usage(format!("{subcommand}: {what}; see `cargo xtask {subcommand} --help`"))
    }
}

fn text(word: &OsString) -> Outcome<String> {
    word.to_str().map(str::to_owned).ok_or_else(|| Failure::usage(format!("{word:?} is not UTF-8")))
}
