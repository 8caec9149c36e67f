//! Running a command with an eye on the clock: when it started, when it first
//! said something, when it said what we wait for, and when it was over.

use std::fs;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome};

/// How a command went. Times are from just before it was started.
#[derive(Debug)]
pub(crate) struct Watched {
    /// How it ended; nothing when it was killed because its time was up.
    pub(crate) status: Option<ExitStatus>,
    /// What it wrote to stdout.
    pub(crate) stdout: String,
    /// What it wrote to stderr.
    pub(crate) stderr: String,
    /// When a read of its stdout returned the first byte.
    pub(crate) first_byte: Option<Duration>,
    /// When a read of its stdout completed the line that was waited for.
    pub(crate) marked: Option<Duration>,
    /// When it had been waited for.
    pub(crate) ended: Duration,
    /// Processor time of it and all its threads, user and system.
    pub(crate) processor: Duration,
}

/// A piece of what the command says.
enum Said {
    Stdout(Vec<u8>, Instant),
    Stderr(Vec<u8>),
}

/// Runs `command` to its end, or for `limit`.
///
/// `at_mark` is called with the command's process id when `marker` has been seen
/// on stdout; until it returns, nothing more is read.
///
/// # Errors
///
/// When it cannot be started.
pub(crate) fn watch(
    command: &mut Command,
    marker: &str,
    limit: Duration,
    mut at_mark: impl FnMut(u32),
) -> Outcome<Watched> {
    let name = command.get_program().to_string_lossy().into_owned();
    let before = processor_time_of_children();
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(format!("cannot start {name}: {error}")))?;
    let (tell, said) = channel();
    let stdout = child.stdout.take().expect("its stdout was asked for");
    let stderr = child.stderr.take().expect("its stderr was asked for");
    listen(stdout, tell.clone(), Said::Stdout)?;
    listen(stderr, tell, |bytes, _| Said::Stderr(bytes))?;

    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (mut first_byte, mut marked) = (None, None);
    let mut is_late = false;
    loop {
        match said.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(Said::Stdout(bytes, at)) => {
                out.extend_from_slice(&bytes);
                first_byte.get_or_insert(at - start);
                if marked.is_none() && contains(&out, marker.as_bytes()) {
                    marked = Some(at - start);
                    at_mark(child.id());
                }
            }
            Ok(Said::Stderr(bytes)) => err.extend_from_slice(&bytes),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if is_late => break,
            Err(RecvTimeoutError::Timeout) => {
                is_late = true;
                let _ = child.kill(); // It may have ended this very moment.
                break;
            }
        }
    }
    let status =
        child.wait().map_err(|error| Failure::new(format!("cannot wait for {name}: {error}")))?;
    let ended = start.elapsed();
    Ok(Watched {
        status: (!is_late).then_some(status),
        stdout: String::from_utf8_lossy(&out).into_owned(),
        stderr: String::from_utf8_lossy(&err).into_owned(),
        first_byte,
        marked,
        ended,
        processor: processor_time_of_children().saturating_sub(before),
    })
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

/// Tells what arrives on a pipe, until its end, from a thread that ends with it.
fn listen(
    mut pipe: impl Read + Send + 'static,
    tell: Sender<Said>,
    as_said: fn(Vec<u8>, Instant) -> Said,
) -> Outcome {
    let body = move || {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let at = Instant::now();
            if tell.send(as_said(buffer[..count].to_vec(), at)).is_err() {
                return; // Nobody waits for it any more.
            }
        }
    };
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|error| Failure::new(format!("cannot start a thread: {error}")))
}

/// Processor time of all our children that were waited for, from
/// `/proc/self/stat`: fields 16 and 17 of proc(5), in ticks of 10 ms.
fn processor_time_of_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    Duration::from_millis(10 * ticks_of_children(&stat).unwrap_or(0))
}

fn ticks_of_children(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(16 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_is_watched_from_its_first_word_to_its_status() {
        let mut marks = 0;
        let watched = watch(
            &mut sh("echo one; echo two; echo three >&2; exit 3"),
            "two",
            Duration::from_secs(60),
            |_| marks += 1,
        )
        .unwrap();
        assert_eq!(watched.status.unwrap().code(), Some(3));
        assert_eq!(watched.stdout, "one\ntwo\n");
        assert_eq!(watched.stderr, "three\n");
        assert!(watched.first_byte <= watched.marked);
        assert!(watched.marked.unwrap() <= watched.ended);
        assert_eq!(marks, 1);
    }

    #[test]
    fn a_command_that_never_ends_is_killed_and_has_no_status() {
        let watched = watch(
            &mut sh("exec cat /dev/zero >/dev/null"),
            "no such line",
            Duration::from_millis(300),
            |_| (),
        )
        .unwrap();
        assert!(watched.status.is_none());
        assert_eq!(watched.marked, None);
    }

    #[test]
    fn the_ticks_of_children_are_found_behind_any_name() {
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 130 7 20";
        assert_eq!(ticks_of_children(stat), Some(137));
    }
}
