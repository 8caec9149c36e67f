//! Looking at skep from outside while it runs: what its guest's memory occupies, and what it occupies itself.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often to look.
const EVERY: Duration = Duration::from_millis(250);

/// The most that was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sampled {
    /// Bytes of the guest's memory that the host held: blocks of its file in memory, by `fstat`. (A process's resident set
    /// counts each view of them.)
    pub(super) guest_bytes: u64,
    /// Bytes of the monitor's own anonymous memory.
    pub(super) own_bytes: u64,
    /// How often was looked.
    pub(super) looks: u64,
}

/// Looks at a process from a thread of its own, which ends when told to.
#[derive(Default)]
pub(super) struct Sampler {
    running: RefCell<Option<(Sender<()>, JoinHandle<Sampled>)>>,
}

impl Sampler {
    /// Begins to look. Where no thread can be had, nothing is seen, and `looks` says so.
    pub(super) fn begin(&self, process: u32) {
        let (end, ended) = channel();
        let body = move || {
            let mut most = Sampled::default();
            loop {
                look(process, &mut most);
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return most;
                }
            }
        };
        if let Ok(thread) = thread::Builder::new().name("sampler".to_owned()).spawn(body) {
            *self.running.borrow_mut() = Some((end, thread));
        }
    }

    /// Ends, and tells what was seen.
    pub(super) fn end(self) -> Sampled {
        let Some((end, thread)) = self.running.into_inner() else { return Sampled::default() };
        drop(end);
        thread.join().unwrap_or_default()
    }
}

fn look(process: u32, most: &mut Sampled) {
    let Some(guest) = guest_bytes(process) else { return };
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    most.guest_bytes = most.guest_bytes.max(guest);
    most.own_bytes = most.own_bytes.max(anonymous_kb(&status).unwrap_or(0) * 1024);
    most.looks += 1;
}

/// What the guest's memory file holds: skep names it.
fn guest_bytes(process: u32) -> Option<u64> {
    let folder = PathBuf::from(format!("/proc/{process}/fd"));
    let names_memory = |link: &PathBuf| {
        fs::read_link(link).is_ok_and(|to| to.to_string_lossy().contains("skep-guest-memory"))
    };
    let mut links = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let file = links.find(names_memory)?;
    // Blocks of 512 bytes, whatever the file system (stat(2)).
    Some(fs::metadata(file).ok()?.blocks() * 512)
}

fn anonymous_kb(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_the_line_of_that_name() {
        let status = "VmRSS:\t   900 kB\nRssAnon:\t     123 kB\nRssFile:\t 4 kB\n";
        assert_eq!(anonymous_kb(status), Some(123));
        assert_eq!(anonymous_kb("VmRSS: 900 kB\n"), None);
    }

    #[test]
    fn a_process_without_a_guest_is_looked_at_without_result() {
        let sampler = Sampler::default();
        sampler.begin(std::process::id());
        assert_eq!(sampler.end(), Sampled::default());
    }
}
