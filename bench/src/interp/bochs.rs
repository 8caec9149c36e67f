//! The payload in Bochs, from a disk of ours.
//!
//! Bochs has no way to be given orders but a configuration file, and none to show nothing that every build of it has: its
//! screen goes to nobody, by way of the RFB library, which Debian builds. COM1 is a socket that it connects to. A build with
//! the debugger waits for a first command; one without takes no notice of it. The screen's firmware is a ROM of
//! ours that returns at once, because Debian's Bochs comes without one; and sound goes nowhere, because Bochs 2.7 dies of a
//! host without any.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::linux::net::TcpStreamExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::disk::{self, FAILED, GEOMETRY};
use super::measure::Runner;
use super::pages::cpu_time_of;
use super::payload::{self, ENDED, MEMORY, READY, STARTED};
use super::rows::Row;
use crate::error::{BenchError, host};

/// What it is called.
pub(crate) const PROGRAM: &str = "bochs";
/// It has connected by then, or never will.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(10);
/// The longest loop takes some seconds, and so does the BIOS.
const SILENCE: Duration = Duration::from_secs(60);
/// Emulated instructions in an emulated second. It decides how long the serial line and the BIOS's timeouts take, and nothing
/// else that is measured.
const INSTRUCTIONS_PER_SECOND: u32 = 5_000_000;

/// A running emulator with the payload in it. Killed when dropped.
pub(crate) struct Bochs {
    child: Child,
    line: TcpStream,
    /// Deleted when the emulator is gone, with the lock that it leaves beside its disk.
    _directory: tempfile::TempDir,
}

/// Its first line with a version; nothing where it is not installed.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(PROGRAM)
        .arg("--help")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("Bochs x86 Emulator"));
    Some(line.map_or_else(|| PROGRAM.to_owned(), |line| line.trim().to_owned()))
}

/// Firmware of a screen that nobody looks at: its signature, one block of 512 bytes, a far return; and what makes the
/// sum of all bytes 0 (BIOS Boot Specification 1.01, "Option ROM header").
fn silent_rom() -> [u8; 512] {
    let mut rom = [0; 512];
    rom[..4].copy_from_slice(&[0x55, 0xaa, 1, 0xcb]);
    rom[511] = rom.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    rom
}

fn configuration(directory: &Path, port: u16) -> String {
    let megabytes = MEMORY >> 20;
    let [cylinders, heads, sectors] = GEOMETRY;
    let directory = directory.display();
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _written = write!(
        text,
        "display_library: rfb, options=\"timeout=0\"\n\
         vgaromimage: file={directory}/rom\n\
         memory: guest={megabytes}, host={megabytes}\n\
         cpu: model=core2_penryn_t9600, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=disk, path=\"{directory}/disk\", mode=flat, cylinders={cylinders}, \
         heads={heads}, spt={sectors}\n\
         boot: disk\n\
         com1: enabled=1, mode=socket-client, dev=\"127.0.0.1:{port}\"\n\
         sound: waveoutdrv=dummy\n\
         speaker: enabled=0\n\
         panic: action=fatal\n\
         log: {directory}/log\n"
    );
    text
}

impl Bochs {
    pub(crate) fn start() -> Result<Self, BenchError> {
        let what = "hand the payload to Bochs";
        let directory = tempfile::tempdir().map_err(host(what))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(host(what))?;
        let port = listener.local_addr().map_err(host(what))?.port();
        let files = [
            ("disk", disk::image().map_err(host(what))?),
            ("rom", silent_rom().to_vec()),
            ("configuration", configuration(directory.path(), port).into_bytes()),
        ];
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).map_err(host(what))?;
        }
        let mut child = Command::new(PROGRAM)
            .args(["-q", "-f"])
            .arg(directory.path().join("configuration"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(host(format!("start {PROGRAM}")))?;
        let go = child.stdin.as_mut().map(|debugger| debugger.write_all(b"continue\n"));
        let line = match go {
            Some(Err(error)) => Err(host("tell Bochs to begin")(error)),
            _ => connection(&listener, &mut child),
        };
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                drop(child.kill());
                drop(child.wait());
                return Err(error);
            }
        };
        let mut started = Self { child, line, _directory: directory };
        started.hear(READY)?;
        Ok(started)
    }

    /// Waits for a letter, and returns the emulator's cpu time when it came.
    fn hear(&mut self, letter: u8) -> Result<Duration, BenchError> {
        let mut byte = [0];
        loop {
            let what = "hear from the payload in Bochs";
            // It sends each letter by itself and waits with the next for our acknowledgement of the last (RFC 896); with ours
            // delayed, as is usual, each loop would seem to take 40 ms. The setting does not stay.
            self.line.set_quickack(true).map_err(host(what))?;
            self.line.read_exact(&mut byte).map_err(host(what))?;
            if byte[0] == letter {
                return cpu_time_of(self.child.id()).map_err(host("read Bochs's cpu time"));
            }
            if byte[0] == FAILED && letter == READY {
                let why = "Bochs's BIOS could not read the disk with the payload";
                return Err(BenchError::Ended(why.to_owned()));
            }
        }
    }
}

/// The emulator's end of COM1.
fn connection(listener: &TcpListener, child: &mut Child) -> Result<TcpStream, BenchError> {
    let what = "wait for Bochs to open its serial line";
    listener.set_nonblocking(true).map_err(host(what))?;
    let started = Instant::now();
    loop {
        match listener.accept() {
            Ok((line, _)) => {
                line.set_nonblocking(false).map_err(host(what))?;
                line.set_nodelay(true).map_err(host(what))?;
                line.set_read_timeout(Some(SILENCE)).map_err(host(what))?;
                return Ok(line);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(host(what)(error)),
        }
        if let Some(status) = child.try_wait().map_err(host(what))? {
            return Err(BenchError::Ended(format!(
                "Bochs ended before its machine began: {status}"
            )));
        }
        if started.elapsed() > PATIENCE {
            return Err(BenchError::Ended(format!("Bochs did not begin within {PATIENCE:?}")));
        }
        std::thread::park_timeout(LOOK);
    }
}

impl Runner for Bochs {
    fn run(&mut self, row: &Row, iterations: u64) -> Result<Option<Duration>, BenchError> {
        let order = payload::command(row.number, iterations);
        self.line.write_all(&order).map_err(host("give the payload in Bochs an order"))?;
        let before = self.hear(STARTED)?;
        let after = self.hear(ENDED)?;
        Ok(Some(after.saturating_sub(before)))
    }

    fn grain(&self) -> Duration {
        Duration::from_millis(4)
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        // It ends in no other way.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silent_rom_is_one_that_a_bios_calls() {
        let rom = silent_rom();
        assert_eq!(rom[..3], [0x55, 0xaa, 1]);
        assert_eq!(rom.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
    }

    #[test]
    fn where_bochs_is_installed_the_payload_boots_and_runs_a_loop() {
        if version().is_none() {
            return;
        }
        let mut bochs = Bochs::start().unwrap();
        let row = super::super::rows::all().remove(0);
        assert!(bochs.run(&row, 1 << 20).unwrap().is_some());
    }
}
