//! A guest at the serial port, somebody at the other end, and the machine that listens.

#![expect(
    unsafe_code,
    reason = "pseudo-terminals and pipe fill levels have no safe wrapper in std"
)]
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::contract::guest::{TellMachine, Tidings};
use actors::device::{Device, Effect, IrqLine, Shared};
use crossbeam_channel::{Receiver, Sender, unbounded};
use devices::cable::Cable;
use devices::console::{Console, Input, Output, Setup, SignalInbox};
use devices::serial::Serial;
use parking_lot::Mutex;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const LINE_STATUS: u64 = 5;

/// How long a test waits for what must come, before it fails.
const LONG: Duration = Duration::from_secs(20);

/// Longer than any timer of the console's.
const A_WHILE: Duration = Duration::from_millis(50);

/// More bytes than everything between a guest and its reader can hold.
const ENDLESS: usize = 1 << 22;

/// A serial port in the hands of a guest, with its cable.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) serial: Shared<Serial>,
    pub(crate) cable: Cable,
    pub(crate) interrupts: Receiver<()>,
}

struct Line(Sender<()>);

impl IrqLine for Line {
    fn pulse(&self) {
        self.0.send(()).ok();
    }
}

impl Guest {
    pub(crate) fn new() -> Self {
        let (line, interrupts) = unbounded();
        let cable = Cable::new().unwrap();
        let serial = Serial::new(Arc::new(Line(line)), cable.clone());
        Self { serial: Arc::new(Mutex::new(serial)), cable, interrupts }
    }

    pub(crate) fn read(&self, register: u64) -> u8 {
        let mut data = [0];
        self.serial.lock().read(register, &mut data);
        data[0]
    }

    pub(crate) fn write(&self, register: u64, value: u8) {
        assert_eq!(self.serial.lock().write(register, &[value]), Effect::None);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.read(LINE_STATUS) & 0x60 == 0x60
    }

    /// Sends without looking.
    pub(crate) fn print(&self, text: &str) {
        text.bytes().for_each(|byte| self.write(DATA, byte));
    }

    /// Sends lines of `.` while the port is ready. Returns the bytes.
    pub(crate) fn print_while_ready(&self) -> usize {
        let mut sent = 0;
        while self.is_ready() {
            assert!(sent < ENDLESS, "nobody makes the guest wait");
            self.write(DATA, if sent % 80 == 79 { b'\n' } else { b'.' });
            sent += 1;
        }
        sent
    }

    pub(crate) fn enable_interrupts(&self, which: u8) {
        self.write(INTERRUPT_ENABLE, which);
    }

    /// Reads `count` bytes of input as a polling guest does.
    pub(crate) fn poll_input(&self, count: usize) -> Vec<u8> {
        let mut input = Vec::new();
        let start = Instant::now();
        while input.len() < count {
            assert!(start.elapsed() < LONG, "nothing came");
            if self.read(LINE_STATUS) & 1 != 0 {
                input.push(self.read(DATA));
            } else {
                std::thread::yield_now();
            }
        }
        input
    }

    pub(crate) fn console(&self, input: Input, output: Output) -> (Console, Machine) {
        self.console_with(input, output, None)
    }

    pub(crate) fn console_with(
        &self,
        input: Input,
        output: Output,
        signals: Option<SignalInbox>,
    ) -> (Console, Machine) {
        let (tell, heard) = unbounded();
        let tell: TellMachine = Arc::new(move |tidings| {
            tell.send(tidings).ok();
        });
        let setup = Setup {
            cable: self.cable.clone(),
            serial: self.serial.clone(),
            input,
            output,
            signals,
        };
        (Console::start(setup, tell).unwrap(), Machine(heard))
    }
}

/// Waits until the console waits for somebody else.
pub(crate) fn wait_for_rest(console: &Console) {
    let pulse = console.pulse();
    while pulse.look().is_busy() {
        std::thread::yield_now();
    }
}

/// Waits until the console has had nothing at all to do for a while. One that looks again
/// and again for what does not come never gets there.
pub(crate) fn wait_for_quiet(console: &Console) {
    // Each thing that is still on its way to it may disturb one look.
    const LOOKS: usize = 10;
    let pulse = console.pulse();
    let is_quiet = |_| {
        let before = pulse.look();
        std::thread::park_timeout(A_WHILE);
        pulse.look() == before && !before.is_busy()
    };
    assert!((0..LOOKS).any(is_quiet), "the console never rests");
}

/// Who is told.
pub(crate) struct Machine(Receiver<Tidings>);

impl Machine {
    /// The next tidings, whenever they come.
    pub(crate) fn next(&self) -> Tidings {
        self.0.recv_timeout(LONG).expect("tidings")
    }

    /// Everything that was told and not heard yet.
    pub(crate) fn all(&self) -> Vec<Tidings> {
        self.0.try_iter().collect()
    }
}

/// A pipe: the end that is read, the end that is written.
pub(crate) fn pipe() -> (File, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    (File::from(OwnedFd::from(read)), write.into())
}

/// A pseudo-terminal: the person's end, the program's end.
pub(crate) fn terminal() -> (File, OwnedFd) {
    let (mut person, mut program) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: both numbers are writable; no name, settings or size are given.
    let result =
        unsafe { libc::openpty(&raw mut person, &raw mut program, null, null.cast(), null.cast()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: openpty has just created both.
    let person = unsafe { OwnedFd::from_raw_fd(person) };
    // SAFETY: as above.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    (File::from(person), program)
}

/// Writes dots until nobody takes any more, without waiting. Returns how many.
pub(crate) fn stuff(writer: BorrowedFd<'_>) -> usize {
    set_waiting(writer, libc::O_NONBLOCK);
    let dots = [b'.'; 4096];
    let mut stuffed = 0;
    for most in [4096, 1] {
        loop {
            // SAFETY: `dots` is readable for `most` bytes.
            let result = unsafe { libc::write(writer.as_raw_fd(), dots.as_ptr().cast(), most) };
            let Ok(some) = usize::try_from(result) else {
                break;
            };
            stuffed += some;
        }
    }
    set_waiting(writer, 0);
    stuffed
}

fn set_waiting(fd: BorrowedFd<'_>, flags: libc::c_int) {
    // SAFETY: no pointers are involved.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// What of a terminal's settings tells raw from not raw.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TerminalLook {
    pub(crate) input: u32,
    pub(crate) output: u32,
    pub(crate) local: u32,
    pub(crate) keys: [u8; 32],
}

pub(crate) fn look_at(terminal: BorrowedFd<'_>) -> TerminalLook {
    // SAFETY: all zeroes are a valid termios.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is writable.
    let result = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    TerminalLook {
        input: settings.c_iflag,
        output: settings.c_oflag,
        local: settings.c_lflag,
        keys: settings.c_cc,
    }
}

/// Makes the command's process the leader of a session whose terminal is its stdin, as a
/// login does: then Ctrl-C on that terminal is a SIGINT for it.
pub(crate) fn as_session_leader(command: &mut Command) -> &mut Command {
    let lead = || {
        // SAFETY: no pointers are involved.
        if unsafe { libc::setsid() } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: TIOCSCTTY takes a number.
        if unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(lead) }
}

pub(crate) fn send_signal(to: &Child, signal: libc::c_int) {
    let process = libc::pid_t::try_from(to.id()).unwrap();
    // SAFETY: no pointers are involved; the child has not been waited for.
    let result = unsafe { libc::kill(process, signal) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Bytes that wait in a pipe.
pub(crate) fn waiting_in(pipe: BorrowedFd<'_>) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    usize::try_from(count).unwrap()
}

/// Waits until `fd` is readable, or fails.
fn wait_for_bytes(fd: BorrowedFd<'_>) {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let long = i32::try_from(LONG.as_millis()).unwrap();
    // SAFETY: one initialised entry.
    let ready = unsafe { libc::poll(&raw mut entry, 1, long) };
    assert_eq!(ready, 1, "nothing came");
}

/// The next `count` bytes, whenever they come.
pub(crate) fn read_exactly(from: &mut (impl Read + AsFd), count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut done = 0;
    while done < count {
        wait_for_bytes(from.as_fd());
        match from.read(&mut bytes[done..]).unwrap() {
            0 => panic!("the end came after {done} of {count} bytes"),
            some => done += some,
        }
    }
    bytes
}

/// All bytes until the end.
pub(crate) fn read_to_end(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Types at a terminal, or writes into a pipe.
pub(crate) fn type_in(into: &mut impl Write, keys: &[u8]) {
    into.write_all(keys).unwrap();
}
