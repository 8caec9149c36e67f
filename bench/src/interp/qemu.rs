//! The payload under QEMU's own translator.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::measure::Runner;
use super::pages::cpu_time_of;
use super::payload::{self, ENDED, READY, STARTED};
use super::rows::Row;
use crate::error::{BenchError, host};

/// What it is called.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// A running emulator with the payload in it. Killed when dropped.
pub(crate) struct Qemu {
    child: Child,
    orders: ChildStdin,
    answers: ChildStdout,
    /// Deleted when the emulator is gone.
    _image: tempfile::NamedTempFile,
}

/// The first line of its version; nothing where it is not installed.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(PROGRAM).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

impl Qemu {
    pub(crate) fn start() -> Result<Self, BenchError> {
        let what = "hand the payload to QEMU";
        let mut image = tempfile::NamedTempFile::new().map_err(host(what))?;
        image.write_all(&payload::image()).map_err(host(what))?;
        let mut child = Command::new(PROGRAM)
            .args(["-accel", "tcg", "-cpu", "qemu64", "-machine", "pc", "-smp", "1"])
            .args(["-m", "256", "-nodefaults", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(image.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(host(format!("start {PROGRAM}")))?;
        let orders = child.stdin.take().expect("it was asked for");
        let answers = child.stdout.take().expect("it was asked for");
        let mut started = Self { child, orders, answers, _image: image };
        started.hear(READY)?;
        Ok(started)
    }

    /// Waits for a letter, and returns the emulator's cpu time when it came.
    fn hear(&mut self, letter: u8) -> Result<Duration, BenchError> {
        let mut byte = [0];
        loop {
            let what = "hear from the payload in QEMU";
            self.answers.read_exact(&mut byte).map_err(host(what))?;
            // Its firmware may have something to say as well.
            if byte[0] == letter {
                return cpu_time_of(self.child.id()).map_err(host("read QEMU's cpu time"));
            }
        }
    }
}

impl Runner for Qemu {
    fn run(&mut self, row: &Row, iterations: u64) -> Result<Option<Duration>, BenchError> {
        let order = payload::command(row.number, iterations);
        let sent = self.orders.write_all(&order).and_then(|()| self.orders.flush());
        sent.map_err(host("give the payload in QEMU an order"))?;
        let before = self.hear(STARTED)?;
        let after = self.hear(ENDED)?;
        Ok(Some(after.saturating_sub(before)))
    }

    fn grain(&self) -> Duration {
        Duration::from_millis(4)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It ends in no other way.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
