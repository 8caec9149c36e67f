//! Other people's programs: finding them, running them, and saying what they said.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Failure, Outcome};

/// Says one line of progress on stderr, at once.
pub(crate) fn say(line: impl AsRef<str>) {
    // A closed stderr is no reason to stop working.
    let _ = writeln!(io::stderr().lock(), "{}", line.as_ref());
}

/// Writes one line of result on stdout.
///
/// # Errors
///
/// A closed stdout, which ends the chore.
pub(crate) fn print(line: impl AsRef<str>) -> Outcome {
    writeln!(io::stdout().lock(), "{}", line.as_ref())
        .map_err(|error| Failure::new(format!("cannot write to stdout: {error}")))
}

/// Where a program is, if it is installed.
///
/// Besides `PATH` this looks where administrators' programs live, which
/// ordinary users often do not have on theirs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether we may install packages. `/proc/self` belongs to our effective user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Runs a command silently and returns what it wrote to stdout.
///
/// # Errors
///
/// When it cannot be started or does not succeed; the sentence holds the last
/// lines of its stderr.
pub(crate) fn output(command: &mut Command) -> Outcome<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::new(format!("cannot start {name}: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{name} ended with {}: {}", output.status, last_lines(&said, 6))))
}

/// Runs a command whose own progress is worth showing: its output goes to stderr.
///
/// # Errors
///
/// When it cannot be started or does not succeed.
pub(crate) fn visible(command: &mut Command) -> Outcome {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .map_err(|error| Failure::new(format!("cannot start {name}: {error}")))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("{name} ended with {status}")))
}

/// The end of what a program said, without the blank lines.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_text_leave_out_blank_ones() {
        assert_eq!(last_lines("a\n\nb\nc\n\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
        assert_eq!(last_lines("", 5), "");
    }

    #[test]
    fn a_program_that_everybody_has_is_found_and_a_nonsense_name_is_not() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let failure =
            output(Command::new("sh").args(["-c", "echo sorry >&2; exit 3"])).unwrap_err();
        assert!(failure.message.contains("sorry"), "{failure}");
    }
}
