//! `cargo xtask lab`: a machine with real nested paging, wherever we are.
//!
//! QEMU's processor emulation includes AMD's SVM with nested paging, so a Linux
//! booted in it offers a genuine hardware `/dev/kvm` even where the machine
//! itself has none. That Linux is the lab: it boots from memory with our programs
//! and the guest kernels in it, runs one command, and is thrown away.
//!
//! Times measured inside are the emulator's, not a processor's: ratios within
//! one run mean something, absolute times do not.
//!
//! Reading order: `image.rs` (what is in it), `run.rs` (one life of it).

pub(crate) mod image;
pub(crate) mod run;

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::apt;
use crate::arguments::Arguments;
use crate::cache::Cache;
use crate::failure::{Failure, Outcome, about};
use crate::fetch;
use crate::ours;
use crate::process::say;
use crate::terminal::RawTerminal;
use image::Image;
use run::{Ended, Life, Stream, remove_leftovers};

/// What `--help` says.
pub(crate) const HELP: &str = "\
Runs a command in the lab: a Linux under QEMU's emulation of an AMD processor
with nested paging, which has a genuine /dev/kvm wherever you are.

Usage: cargo xtask lab [OPTIONS] -- COMMAND [ARGUMENT]...
       cargo xtask lab [OPTIONS] --script FILE

  --file HOST:INSIDE   also put this file there (a program brings its libraries)
  --get INSIDE:HOST    bring this file back when the command has ended
  --script FILE        run this shell script instead of a command
  --timeout SECONDS    give up after that long, boot included (default 600)
  --smp N              emulated processors (default 1: with more the emulator loses a
                       guest now and then, whoever runs it; see bench/README.md)
  --memory MIB         memory of the lab (default 3072)
  --stdin              connect your stdin to the command; Ctrl-] leaves
  --with-qemu          put QEMU with its microvm machine inside as well
  --without-skep       do not build skep or put it inside
  --without-guests     do not put the guest kernels inside (boots a little faster)

Inside, as root: our release build of `skep` and busybox's commands on the PATH,
guest kernels /guests/6.1/{bzImage,vmlinux} and /guests/6.12/{bzImage,vmlinux},
and an initrd for them, /guests/initrd. Its kernel command line chooses what the
guest does: skep.test=poweroff (the default), reboot, shell or stay.

    cargo xtask lab -- ls -l /dev/kvm
    cargo xtask lab -- skep run -c 2 -m 512 --kernel /guests/6.12/bzImage \\
        --initrd /guests/initrd --cmdline 'console=ttyS0 skep.test=reboot'
    cargo xtask lab --get /tmp/r.json:r.json -- skep run --guest smp --report /tmp/r.json

stdout and stderr are the command's, live; the lab's own words begin with `lab:`
and go to stderr. The status is the command's; or 124 when the time was up, 125
when the lab could not run or vanished twice, 130 after Ctrl-].

A lab that vanishes before the command has ended (emulated hosts do, rarely) is
started once more, aloud, from the beginning. A command that fails is not.
What the lab boots is downloaded first: see `cargo xtask fetch --help`.
";

/// The time was up: what `timeout` of coreutils says as well.
const TIMED_OUT: u8 = 124;
/// The lab itself failed, and says nothing about the command.
pub(crate) const LAB_FAILED: u8 = 125;
/// The person at the terminal left.
const LEFT: u8 = 130;

/// A command to run in the lab.
#[derive(Debug)]
pub(crate) struct Lab {
    /// What to run, as a shell script.
    pub(crate) script: String,
    /// Files to put inside: from here, to there.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Files to bring back: from there, to here.
    pub(crate) results: Vec<(String, PathBuf)>,
    /// Emulated processors.
    pub(crate) smp: u32,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// How long one life may take, boot included.
    pub(crate) limit: Duration,
    /// What else is inside, and whether our stdin is.
    pub(crate) with: With,
}

/// What a lab has besides what it boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct With {
    /// Our command, built for release.
    pub(crate) skep: bool,
    /// The guest kernels and their initrd.
    pub(crate) guests: bool,
    /// QEMU and its microvm machine.
    pub(crate) qemu: bool,
    /// Our stdin.
    pub(crate) stdin: bool,
}

/// Enough for any number of vcpus, which then take turns. QEMU 7.2 emulates several processors on
/// threads of their own, and those race: with two, this lab's own kernel died of `int3` oopses where
/// one processor patched code that another ran; on a host whose cpus were being taken away, two of
/// 38 guests of skep and three of some twelve of QEMU's microvm died of triple faults or fell silent.
/// With one, nothing of the kind was seen. Spinning vcpus on one *thread* for two processors
/// (`thread=single`) is no way out: a Linux guest with two vcpus then hardly moves.
const ONE_PROCESSOR: u32 = 1;

impl Lab {
    /// A lab as `cargo xtask lab -- ...` makes it without options.
    pub(crate) fn new(script: String) -> Self {
        Self {
            script,
            files: Vec::new(),
            results: Vec::new(),
            smp: ONE_PROCESSOR,
            memory_mib: 3072,
            limit: Duration::from_secs(600),
            with: With { skep: true, guests: true, qemu: false, stdin: false },
        }
    }

    /// Runs it, once more if the lab vanishes, and passes on what it says.
    ///
    /// # Errors
    ///
    /// When it cannot run here, vanished twice or took too long.
    pub(crate) fn run(&self) -> Outcome<u8> {
        let ready = self.prepare()?;
        let begin = Instant::now();
        let mut ended = self.with_terminal(&ready)?;
        if let Ended::Vanished(words) = &ended {
            say(format!(
                "lab: it vanished before the command had ended; starting it once more.\n\
                 lab: its last words were:\n{words}"
            ));
            ended = self.with_terminal(&ready)?;
        }
        let status = self.settle(ended)?;
        let took = begin.elapsed().as_secs();
        say(format!("lab: the command ended with status {status} ({took} s, lab included)"));
        Ok(status)
    }

    /// One life, during which the terminal is the command's if our stdin is.
    fn with_terminal(&self, ready: &Ready) -> Outcome<Ended> {
        if !self.with.stdin || !io::stdin().is_terminal() {
            return self.live(ready, "", &mut pass_on);
        }
        say("lab: your terminal is the command's now; Ctrl-] leaves");
        let _raw = RawTerminal::enter()?;
        self.live(ready, "", &mut pass_on)
    }

    /// Turns an end into the command's status, keeping the files it brought.
    ///
    /// # Errors
    ///
    /// Every other end.
    pub(crate) fn settle(&self, ended: Ended) -> Outcome<u8> {
        match ended {
            Ended::Status(status, files) => {
                self.keep(&files)?;
                Ok(status)
            }
            Ended::TimedOut => Err(Failure::new(format!(
                "lab: the command had not ended after {} s",
                self.limit.as_secs()
            ))
            .with_status(TIMED_OUT)),
            Ended::Left => Err(Failure::new("lab: left").with_status(LEFT)),
            Ended::Broken(why) => {
                Err(Failure::new(format!("lab: it is no use: {why}")).with_status(LAB_FAILED))
            }
            Ended::Vanished(words) => Err(Failure::new(format!(
                "lab: it vanished for a second time; its last words were:\n{words}"
            ))
            .with_status(LAB_FAILED)),
        }
    }

    fn keep(&self, files: &[(String, Vec<u8>)]) -> Outcome {
        for (inside, here) in &self.results {
            match files.iter().find(|(name, _)| name == inside) {
                Some((_, bytes)) => fs::write(here, bytes).map_err(about("write", here))?,
                None => say(format!("lab: there is no {inside} to bring back")),
            }
        }
        Ok(())
    }

    /// Starts it once, with more `words` for its kernel's command line.
    ///
    /// # Errors
    ///
    /// As [`Life::live`].
    pub(crate) fn live(
        &self,
        ready: &Ready,
        words: &str,
        sink: &mut dyn FnMut(Stream, &[u8]) -> Outcome,
    ) -> Outcome<Ended> {
        Life {
            kernel: &ready.kernel,
            root: &ready.root.path,
            smp: self.smp,
            memory_mib: self.memory_mib,
            words,
            limit: self.limit,
            with_stdin: self.with.stdin,
        }
        .live(sink)
    }

    /// Builds, downloads and packs whatever the lab needs.
    ///
    /// # Errors
    ///
    /// A machine the lab cannot run on, a program that does not compile.
    pub(crate) fn prepare(&self) -> Outcome<Ready> {
        let unable = |failure: Failure| {
            Failure::new(format!("lab: it cannot run here: {failure}")).with_status(LAB_FAILED)
        };
        if !cfg!(target_arch = "x86_64") {
            return Err(unable(Failure::new("it emulates an x86-64 with an x86-64")));
        }
        apt::ensure_programs(&[("qemu-system-x86_64", "qemu-system-x86")]).map_err(unable)?;
        let cache = Cache::open()?;
        let fetched = fetch::all(&cache).map_err(unable)?;
        let skep = self.with.skep.then(ours::build_skep).transpose()?;

        let root = Root::new(&cache)?;
        let mut image = Image::create(&root.path, &fetched)?;
        if self.with.guests {
            image.guests(&fetched)?;
        }
        if let Some(skep) = skep {
            image.add(&skep, &format!("{}/skep", image::PROGRAMS))?;
        }
        if self.with.qemu {
            image.qemu()?;
        }
        for (from, inside) in &self.files {
            image.add(from, inside)?;
        }
        let results: Vec<String> = self.results.iter().map(|(name, _)| name.clone()).collect();
        image.command(&self.script, &results)?;
        image.finish()?;
        Ok(Ready { kernel: fetched.lab().shipped.bzimage(), root })
    }
}

/// A lab that only needs to be started.
pub(crate) struct Ready {
    kernel: PathBuf,
    root: Root,
}

/// The lab's root, a large file that goes away with this value.
struct Root {
    path: PathBuf,
}

impl Root {
    fn new(cache: &Cache) -> Outcome<Self> {
        let folder = cache.path("lab");
        fs::create_dir_all(&folder).map_err(about("create", &folder))?;
        remove_leftovers(&folder, "root-");
        let path = folder.join(format!("root-{}", std::process::id()));
        Ok(Self { path })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // What stays is removed by the next lab.
        let _ = fs::remove_file(&self.path);
    }
}

/// Passes on what the command says, at once.
fn pass_on(stream: Stream, bytes: &[u8]) -> Outcome {
    let written = match stream {
        Stream::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
        Stream::Stderr => io::stderr().write_all(bytes),
    };
    written
        .map_err(|error| Failure::new(format!("lab: nobody takes the command's output: {error}")))
}

/// The command.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    parse(arguments)?.run()
}

fn parse(arguments: &[OsString]) -> Outcome<Lab> {
    let mut lab = Lab::new(String::new());
    let mut script = None;
    let mut arguments = Arguments::new("lab", arguments);
    while let Some(option) = arguments.option()? {
        match option.as_str() {
            "--file" => {
                let (from, inside) = arguments.pair(&option)?;
                lab.files.push((PathBuf::from(from), inside));
            }
            "--get" => {
                let (inside, here) = arguments.pair(&option)?;
                lab.results.push((inside, PathBuf::from(here)));
            }
            "--script" => {
                let file = PathBuf::from(arguments.value(&option)?);
                script = Some(fs::read_to_string(&file).map_err(about("read", &file))?);
            }
            "--timeout" => lab.limit = Duration::from_secs(arguments.number(&option)?),
            "--smp" => lab.smp = arguments.number(&option)?,
            "--memory" => lab.memory_mib = arguments.number(&option)?,
            "--stdin" => lab.with.stdin = true,
            "--with-qemu" => lab.with.qemu = true,
            "--without-skep" => lab.with.skep = false,
            "--without-guests" => lab.with.guests = false,
            _ => return Err(arguments.unknown(&option)),
        }
    }
    let command = arguments.rest()?;
    lab.script = match (script, command.is_empty()) {
        (Some(script), true) => script,
        (None, false) => shell_line(&command),
        (None, true) => {
            return Err(Failure::usage(
                "lab needs a command: cargo xtask lab -- COMMAND, or --script FILE",
            ));
        }
        (Some(_), false) => {
            return Err(Failure::usage("lab takes a command or --script, not both"));
        }
    };
    Ok(lab)
}

/// One line of shell that runs exactly these words.
pub(crate) fn shell_line(words: &[String]) -> String {
    let quoted: Vec<String> =
        words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    format!("exec {}\n", quoted.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Outcome<Lab> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&words)
    }

    #[test]
    fn words_reach_the_shell_as_they_were_typed() {
        let words = ["echo", "it's", "$HOME", "a b"].map(str::to_owned);
        assert_eq!(shell_line(&words), "exec 'echo' 'it'\\''s' '$HOME' 'a b'\n");
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let lab = parsed(&["--smp", "4", "--get", "/tmp/r:r.json", "--", "skep", "--smp"]).unwrap();
        assert_eq!(lab.smp, 4);
        assert_eq!(lab.results, [("/tmp/r".to_owned(), PathBuf::from("r.json"))]);
        assert_eq!(lab.script, "exec 'skep' '--smp'\n");
    }

    #[test]
    fn a_lab_without_a_command_is_refused() {
        assert_eq!(parsed(&[]).unwrap_err().status, 2);
        assert_eq!(parsed(&["--smp", "two", "--", "ls"]).unwrap_err().status, 2);
        assert_eq!(parsed(&["--smb", "2", "--", "ls"]).unwrap_err().status, 2);
    }
}
