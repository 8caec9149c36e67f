//! One life of the lab: QEMU started, listened to, and put away.
//!
//! The lab talks through three Unix sockets, one per virtio-serial port (see the
//! script in [`super::image`]). A thread per socket turns what arrives into
//! events; the caller's thread takes them in order, until the script is done, the
//! time is up, or QEMU is gone without having said how the script ended.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome, about};
use crate::process::{find, last_lines};

/// How long the lab may take until its first process speaks. It takes 6 s on an
/// idle machine; a lab that has not spoken by now has died without a word.
const BOOT_LIMIT: Duration = Duration::from_secs(150);

/// The processor QEMU emulates. Without `-cx16` the lab's kernel sometimes
/// double-faults right after a `cmpxchg16b`: QEMU 7.2's emulation gets its flags
/// wrong when something interrupts there.
const PROCESSOR: &str = "EPYC,+svm,+npt,-cx16";

/// Which of the command's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// What one life of the lab is made of.
#[derive(Debug)]
pub(crate) struct Life<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) root: &'a Path,
    /// Emulated processors.
    pub(crate) smp: u32,
    pub(crate) memory_mib: u32,
    /// More words for the lab kernel's command line.
    pub(crate) words: &'a str,
    /// From start to the command's end.
    pub(crate) limit: Duration,
    /// Whether our stdin is the command's.
    pub(crate) with_stdin: bool,
}

/// How a life of the lab ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The script ran to its end, with this status; and these files came back.
    Status(u8, Vec<(String, Vec<u8>)>),
    /// The time was up.
    TimedOut,
    /// The person at the terminal asked to leave.
    Left,
    /// The lab says it is no use, and why.
    Broken(String),
    /// It was gone before it said how the script ended. Holds its kernel's last words.
    Vanished(String),
}

/// What the threads tell.
#[derive(Debug)]
enum Event {
    Ready,
    Broken(String),
    Output(Stream, Vec<u8>),
    Status(u8),
    File(String, Vec<u8>),
    Done,
    Left,
    QemuGone,
}

impl Life<'_> {
    /// Lives it. `sink` gets what the command says, as it says it.
    ///
    /// # Errors
    ///
    /// A QEMU that cannot be started, sockets that cannot be made.
    pub(crate) fn live(&self, sink: &mut dyn FnMut(Stream, &[u8]) -> Outcome) -> Outcome<Ended> {
        let place = Place::new()?;
        let (tell, events) = channel();
        let sockets = ["out", "err", "told"].map(|name| place.path(name));
        let mut readers = Vec::new();
        for (socket, name) in sockets.iter().zip(["lab-out", "lab-err", "lab-told"]) {
            let listener = UnixListener::bind(socket).map_err(about("listen on", socket))?;
            let tell = tell.clone();
            let with_stdin = self.with_stdin;
            let reader = move || listen(name, &listener, with_stdin, &tell);
            readers.push(spawn(name, reader)?);
        }
        let mut qemu = self.start(&place)?;
        let said = qemu.stdout.take().expect("its stdout was asked for");
        readers.push(spawn("lab-qemu", move || wait_for_end(said, &tell))?);

        let ended = self.follow(&events, sink);
        // Everything the script said has been handed to our sockets by the time it
        // reports its status, so nothing is lost by not letting it shut down.
        let _ = qemu.kill(); // It may be gone already.
        qemu.wait().map_err(|error| Failure::new(format!("cannot wait for QEMU: {error}")))?;
        unblock(&sockets);
        for reader in readers {
            // A reader only ends by returning; a panic in it has printed itself.
            let _ = reader.join();
        }
        let mut rest = Ok(());
        for event in events.try_iter() {
            if let Event::Output(stream, bytes) = event {
                rest = rest.and_then(|()| sink(stream, &bytes));
            }
        }
        rest?;
        match ended? {
            Ended::Vanished(_) => Ok(Ended::Vanished(place.last_words())),
            other => Ok(other),
        }
    }

    fn start(&self, place: &Place) -> Outcome<Child> {
        let qemu = find("qemu-system-x86_64")
            .ok_or_else(|| Failure::new("qemu-system-x86_64 is not installed"))?;
        // setpriv makes QEMU die with us, however we die.
        let mut command = match find("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(&qemu);
                command
            }
            None => Command::new(&qemu),
        };
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-accel", "tcg,thread=multi", "-cpu", PROCESSOR])
            .args(["-smp", &self.smp.to_string()])
            .args(["-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.root)
            .arg("-append")
            .arg(format!("console=ttyS0 panic=-1 oops=panic quiet {}", self.words))
            .arg("-serial")
            .arg(format!("file:{}", place.path("log").display()))
            .args(["-device", "virtio-serial-pci"]);
        for (number, name) in (1..).zip(["out", "err", "told"]) {
            let socket = place.path(name).display().to_string();
            command
                .args(["-chardev", &format!("socket,id={name},path={socket}")])
                .arg("-device")
                .arg(format!("virtserialport,chardev={name},nr={number},name={name}"));
        }
        let complaints = place.path("qemu");
        let complaints = fs::File::create(&complaints).map_err(about("create", &complaints))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .spawn()
            .map_err(|error| Failure::new(format!("cannot start {}: {error}", qemu.display())))
    }

    fn follow(
        &self,
        events: &Receiver<Event>,
        sink: &mut dyn FnMut(Stream, &[u8]) -> Outcome,
    ) -> Outcome<Ended> {
        let start = Instant::now();
        let mut limit = self.limit.min(BOOT_LIMIT);
        let mut is_ready = false;
        let mut status = None;
        let mut files = Vec::new();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            match events.recv_timeout(left) {
                Ok(Event::Ready) => {
                    is_ready = true;
                    limit = self.limit;
                }
                Ok(Event::Broken(why)) => return Ok(Ended::Broken(why)),
                Ok(Event::Output(stream, bytes)) => sink(stream, &bytes)?,
                Ok(Event::Status(value)) => status = Some(value),
                Ok(Event::File(name, bytes)) => files.push((name, bytes)),
                Ok(Event::Left) => return Ok(Ended::Left),
                Ok(Event::Done | Event::QemuGone) | Err(RecvTimeoutError::Disconnected) => {
                    return Ok(match status {
                        Some(status) => Ended::Status(status, files),
                        None => Ended::Vanished(String::new()),
                    });
                }
                Err(RecvTimeoutError::Timeout) if is_ready || self.limit <= BOOT_LIMIT => {
                    return Ok(Ended::TimedOut);
                }
                Err(RecvTimeoutError::Timeout) => return Ok(Ended::Vanished(String::new())),
            }
        }
    }
}

/// A directory for sockets and logs, with a short name: a socket's path may have
/// 107 bytes. It goes away with this value.
#[derive(Debug)]
struct Place {
    folder: PathBuf,
}

impl Place {
    fn new() -> Outcome<Self> {
        let shared = std::env::temp_dir();
        remove_leftovers(&shared, PLACE);
        let folder = shared.join(format!("{PLACE}{}", std::process::id()));
        // Ours alone: everybody may write into the directory it is in.
        DirBuilder::new().mode(0o700).create(&folder).map_err(about("create", &folder))?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What the lab's kernel and QEMU said last.
    fn last_words(&self) -> String {
        let read = |name| {
            let bytes = fs::read(self.path(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let qemu: String = read("qemu")
            .lines()
            // Said at every start, about features TCG does not emulate.
            .filter(|line| !line.contains("TCG doesn't support requested feature"))
            .map(|line| format!("{line}\n"))
            .collect();
        let words = format!("{}\n{}", cause(&read("log")), last_lines(&qemu, 5));
        words.trim().to_owned()
    }
}

/// What the name of a [`Place`] begins with; our process id follows.
const PLACE: &str = "skep-lab-";

/// Removes from `folder` what is named `PREFIX` and the id of a process that was
/// killed before it could do so itself.
pub(super) fn remove_leftovers(folder: &Path, prefix: &str) {
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = item.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix(prefix) else {
            continue;
        };
        if owner.parse::<u32>().is_ok() && !Path::new("/proc").join(owner).exists() {
            // Somebody else may be faster, or it may be somebody else's.
            let _ = fs::remove_file(item.path());
            let _ = fs::remove_dir_all(item.path());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing depends on its going: the name is ours alone.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The telling part of a kernel's log: from the first line of a crash, or the end.
fn cause(log: &str) -> String {
    let crash = ["BUG:", "Oops", "Kernel panic", "double fault", "int3"];
    let lines: Vec<&str> = log.lines().collect();
    let first = lines.iter().position(|line| crash.iter().any(|word| line.contains(word)));
    match first {
        Some(first) => lines[first..].iter().take(15).copied().collect::<Vec<_>>().join("\n"),
        None => last_lines(log, 8),
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Outcome<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| Failure::new(format!("cannot start the thread {name}: {error}")))
}

/// Takes QEMU's connection on one socket and tells what arrives, until it ends.
fn listen(name: &str, listener: &UnixListener, with_stdin: bool, tell: &Sender<Event>) {
    let Ok((socket, _)) = listener.accept() else {
        return;
    };
    // A send fails when nobody follows any more; a read, when QEMU is gone. Both
    // are the end of this thread and nothing to report.
    let _ = match name {
        "lab-out" => {
            if with_stdin && let Ok(writer) = socket.try_clone() {
                forward_stdin(writer, tell.clone());
            }
            stream(socket, Stream::Stdout, tell)
        }
        "lab-err" => stream(socket, Stream::Stderr, tell),
        _ => told(BufReader::new(socket), tell),
    };
}

fn gone<T>(_: T) -> io::Error {
    io::Error::from(io::ErrorKind::BrokenPipe)
}

fn stream(mut socket: UnixStream, which: Stream, tell: &Sender<Event>) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match socket.read(&mut buffer)? {
            0 => return Ok(()),
            count => count,
        };
        tell.send(Event::Output(which, buffer[..count].to_vec())).map_err(gone)?;
    }
}

/// Reads what the lab tells about itself.
fn told(mut socket: impl BufRead, tell: &Sender<Event>) -> io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if socket.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (word, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        let event = match word {
            "ready" => Event::Ready,
            "broken" => Event::Broken(rest.to_owned()),
            "status" => Event::Status(rest.parse().map_err(io::Error::other)?),
            "file" => {
                let (size, name) = rest.split_once(' ').ok_or_else(|| gone(()))?;
                let size: usize = size.parse().map_err(io::Error::other)?;
                let mut bytes = vec![0; size];
                socket.read_exact(&mut bytes)?;
                Event::File(name.to_owned(), bytes)
            }
            "done" => Event::Done,
            // "missing": the caller sees that the file is not among those that came.
            _ => continue,
        };
        tell.send(event).map_err(gone)?;
    }
}

/// The byte that leaves an interactive lab: Ctrl-].
const LEAVE: u8 = 0x1d;

/// Sends our stdin to the command. The thread is not joined: a read from a
/// terminal cannot be ended, and it dies with the process.
fn forward_stdin(mut socket: UnixStream, tell: Sender<Event>) {
    let forward = move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            if buffer[..count].contains(&LEAVE) {
                let _ = tell.send(Event::Left); // Nobody follows: it has ended already.
                return;
            }
            if socket.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    };
    // Without this thread the lab merely hears nothing.
    let _ = spawn("lab-stdin", forward);
}

/// QEMU's stdout is empty; its end is QEMU's end.
fn wait_for_end(mut stdout: ChildStdout, tell: &Sender<Event>) {
    let _ = io::copy(&mut stdout, &mut io::sink()); // An error is an end as well.
    let _ = tell.send(Event::QemuGone); // Nobody follows: it was we who ended it.
}

/// Ends the readers QEMU never connected to, by connecting in its stead.
fn unblock(sockets: &[PathBuf]) {
    for socket in sockets {
        let _ = UnixStream::connect(socket); // It fails where nobody waits any more.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &[u8]) -> Vec<Event> {
        let (tell, events) = channel();
        told(text, &tell).unwrap();
        drop(tell);
        events.iter().collect()
    }

    #[test]
    fn a_lab_that_ends_well_tells_its_status_and_files() {
        let events = heard(b"ready\nstatus 3\nfile 5 /tmp/a b\n\n1\n23missing /x\ndone\n");
        let shown: Vec<String> = events.iter().map(|event| format!("{event:?}")).collect();
        assert_eq!(
            shown,
            ["Ready", "Status(3)", "File(\"/tmp/a b\", [10, 49, 10, 50, 51])", "Done"]
        );
    }

    #[test]
    fn what_a_dead_process_left_is_removed_and_what_a_living_one_has_is_kept() {
        let folder = std::env::temp_dir().join(format!("skep-leftovers-{}", std::process::id()));
        let own = folder.join(format!("lab-{}", std::process::id()));
        let dead = folder.join(format!("lab-{}", u32::MAX));
        let other = folder.join("lab-book");
        for item in [&own, &dead, &other] {
            fs::create_dir_all(item).unwrap();
        }
        remove_leftovers(&folder, "lab-");
        let left = (own.exists(), dead.exists(), other.exists());
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(left, (true, false, true));
    }

    #[test]
    fn the_cause_is_where_a_crash_begins_or_else_the_end() {
        let log = "one\ntwo\nKernel panic - not syncing\n trace\n";
        assert_eq!(cause(log), "Kernel panic - not syncing\n trace");
        assert_eq!(cause("one\ntwo\n"), "one\ntwo");
    }

    #[test]
    fn a_lab_that_is_cut_off_in_a_file_tells_no_end() {
        let (tell, events) = channel();
        assert!(told(&b"ready\nstatus 0\nfile 100 /tmp/a\nxyz"[..], &tell).is_err());
        drop(tell);
        assert!(!events.iter().any(|event| matches!(event, Event::Done)));
    }
}
