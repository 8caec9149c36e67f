//! Lending the terminal to somebody inside, and taking it back.

use std::io;
use std::process::{Command, Stdio};

use crate::failure::{Failure, Outcome};

/// The terminal passes every key on, unread and unechoed, while this lives.
///
/// `stty` does the work: it needs no code of ours that talks to a terminal.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    /// The settings to go back to, as `stty -g` prints them.
    before: String,
}

impl RawTerminal {
    /// Changes the terminal on stdin.
    ///
    /// # Errors
    ///
    /// When stdin is not one.
    pub(crate) fn enter() -> Outcome<Self> {
        let before = stty(&["-g"])?.trim().to_owned();
        stty(&["raw", "-echo", "opost"])?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may have been closed, and then there is nothing to mend.
        let _ = stty(&[&self.before]);
    }
}

fn stty(arguments: &[&str]) -> Outcome<String> {
    let output = Command::new("stty")
        .args(arguments)
        .stdin(Stdio::inherit())
        .stderr(io::stderr())
        .output()
        .map_err(|error| Failure::new(format!("cannot start stty: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Failure::new(format!("stty {} ended with {}", arguments.join(" "), output.status)))
}
