//! Running the command as a user does.

use std::process::{Command, Output, Stdio};

/// What the command did.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The command, ready for arguments.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// Runs `skep` with these words, separated by blanks.
pub(crate) fn skep(words: &str) -> Ran {
    ran(&command().args(words.split_whitespace()).output().expect("the command can be started"))
}

pub(crate) fn ran(output: &Output) -> Ran {
    Ran {
        status: output.status.code().expect("it ended by itself"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A path for this test's file.
pub(crate) fn scratch(name: &str) -> String {
    let directory = env!("CARGO_TARGET_TMPDIR");
    format!("{directory}/{name}")
}

/// A report.
pub(crate) fn json(path: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(path).expect("the report was written");
    serde_json::from_str(&text).expect("the report is JSON")
}
