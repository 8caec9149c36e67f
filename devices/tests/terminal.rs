//! The operator's terminal: what the guest gets of it, and that it always comes back.
//!
//! Each scenario runs in a process of its own with a terminal of its own, because signals,
//! the terminal and the exit status belong to a process. This binary is both: it plays the
//! operator, and starts itself as the monitor. It has no test harness, whose threads would
//! be hit by the signals.

mod support;

use std::fs::File;
use std::io::PipeReader;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use actors::contract::guest::Tidings;
use actors::contract::vcpu::Break;
use devices::console::{BlockedSignals, Console, EXIT_AT_ONCE, Input, Output, block_signals};
use devices::terminal::RawTerminal;
use support::{
    Guest, Machine, TerminalLook, as_session_leader, look_at, read_exactly, send_signal, terminal,
    type_in,
};

const SCENARIO: &str = "SKEP_TEST_SCENARIO";
const PATIENT: Duration = Duration::from_secs(20);

type Claim = (&'static str, fn());

const CLAIMS: [Claim; 12] = [
    ("raw keys reach the guest as typed", raw_keys),
    ("output is still processed, for stderr's sake", output_stays),
    ("ctrl-c asks for the end and gives the terminal back", ctrl_c),
    ("ctrl-a x asks for the end, too", prefix_x),
    ("sigterm asks for the end", sigterm),
    ("sighup asks for the end", sighup),
    ("the second ctrl-c ends a stubborn monitor at once", second_ctrl_c),
    ("a console that panics gives the terminal back", panicking),
    ("a console that hangs gives the terminal back", hanging),
    ("exit without a farewell gives the terminal back", exiting),
    ("a panic of the main thread gives the terminal back", main_panics),
    ("dropping the guard gives the terminal back", dropping),
];

fn main() -> ExitCode {
    if let Ok(scenario) = std::env::var(SCENARIO) {
        return monitor(&scenario);
    }
    for (claim, check) in CLAIMS {
        check();
        // Not with `println`: stdout is the guest's, as far as the lints know.
        eprintln!("claim: {claim} ... ok");
    }
    ExitCode::SUCCESS
}

// The monitor: a guest that says "ready", echoes what it gets in hexadecimal digits, and a
// machine that reacts as the scenario wants.

/// What the monitor exits with when it ends in good order.
const ORDERLY: u8 = 7;

fn monitor(scenario: &str) -> ExitCode {
    let blocked = block_signals().unwrap();
    let guest = Guest::new();
    let (console, machine) = start(&guest, &blocked);
    guest.print("ready\n");
    if !["patient", "stubborn", "echo"].contains(&scenario) {
        // Nothing breaks before the operator has seen how it was.
        assert_eq!(guest.poll_input(1), GO);
    }
    match scenario {
        "echo" => {
            let keys = guest.poll_input(4);
            guest.print(&format!("{keys:02x?}\n"));
            wait_for_interrupt(&machine);
        }
        "patient" => wait_for_interrupt(&machine),
        "stubborn" => {
            wait_for_interrupt(&machine);
            guest.print("first\n");
            loop {
                machine.next();
            }
        }
        "panicking" => {
            console.break_it(Break::Panic);
            assert!(matches!(machine.next(), Tidings::Gone { .. }));
            wait_for_return();
        }
        "hanging" => {
            console.break_it(Break::Hang);
            console.finish(Duration::ZERO);
            wait_for_return();
            return ExitCode::from(ORDERLY);
        }
        "exiting" => std::process::exit(i32::from(ORDERLY)),
        "main panics" => panic!("as the scenario wants"),
        other => panic!("no such scenario: {other}"),
    }
    console.finish(PATIENT);
    ExitCode::from(ORDERLY)
}

fn start(guest: &Guest, blocked: &BlockedSignals) -> (Console, Machine) {
    let inbox = blocked.inbox().unwrap();
    guest.console_with(Input::stdin().unwrap(), Output::stdout().unwrap(), Some(inbox))
}

fn wait_for_interrupt(machine: &Machine) {
    assert_eq!(machine.next(), Tidings::Interrupted);
}

/// Nobody listens to the terminal any more but this.
fn wait_for_return() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

// The operator.

struct Session {
    monitor: Child,
    /// The operator's end of the terminal.
    keyboard: File,
    /// The monitor's end, to look at its settings.
    terminal: OwnedFd,
    screen: PipeReader,
    before: TerminalLook,
}

impl Session {
    /// Starts the monitor, and waits until the guest is up.
    fn start(scenario: &str) -> Self {
        let (keyboard, terminal) = terminal();
        let before = look_at(terminal.as_fd());
        let (screen, stdout) = std::io::pipe().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .env(SCENARIO, scenario)
            .stdin(terminal.try_clone().unwrap())
            .stdout(stdout)
            .stderr(Stdio::null());
        let monitor = as_session_leader(&mut command).spawn().unwrap();
        // The monitor's copies are the only ones left: its end is the end of the pipe.
        drop(command);
        let mut session = Self { monitor, keyboard, terminal, screen, before };
        session.expect("ready\n");
        assert_ne!(session.look(), session.before);
        session
    }

    fn expect(&mut self, text: &str) {
        let shown = read_exactly(&mut self.screen, text.len());
        assert_eq!(String::from_utf8_lossy(&shown), text);
    }

    fn press(&mut self, keys: &[u8]) {
        type_in(&mut self.keyboard, keys);
    }

    fn look(&self) -> TerminalLook {
        look_at(self.terminal.as_fd())
    }

    fn end(&mut self) -> ExitStatus {
        self.monitor.wait().unwrap()
    }

    /// The monitor ends with `status`, and the terminal is as it was.
    fn ends_with(mut self, status: i32) {
        assert_eq!(self.end().code(), Some(status));
        assert_eq!(self.look(), self.before);
    }
}

/// "Break now."
const GO: &[u8] = b"g";

const CTRL_A: u8 = 0x01;
const CTRL_C: u8 = 0x03;

fn raw_keys() {
    let mut session = Session::start("echo");
    // Return, Ctrl-\ and Ctrl-Z as they are; Ctrl-A a as Ctrl-A.
    session.press(&[b'\r', 0x1c, 0x1a, CTRL_A, b'a']);
    session.expect("[0d, 1c, 1a, 01]\n");
    session.press(&[CTRL_C]);
    session.ends_with(i32::from(ORDERLY));
}

fn output_stays() {
    let mut session = Session::start("patient");
    let raw = session.look();
    assert_eq!(raw.output, session.before.output);
    assert_ne!(raw.local & libc::ISIG, 0);
    assert_eq!(raw.local & (libc::ICANON | libc::ECHO | libc::IEXTEN), 0);
    session.press(&[CTRL_C]);
    session.ends_with(i32::from(ORDERLY));
}

fn ctrl_c() {
    let mut session = Session::start("patient");
    session.press(&[CTRL_C]);
    session.ends_with(i32::from(ORDERLY));
}

fn prefix_x() {
    let mut session = Session::start("patient");
    session.press(&[CTRL_A, b'x']);
    session.ends_with(i32::from(ORDERLY));
}

fn sigterm() {
    let session = Session::start("patient");
    send_signal(&session.monitor, libc::SIGTERM);
    session.ends_with(i32::from(ORDERLY));
}

fn sighup() {
    let session = Session::start("patient");
    send_signal(&session.monitor, libc::SIGHUP);
    session.ends_with(i32::from(ORDERLY));
}

fn second_ctrl_c() {
    let mut session = Session::start("stubborn");
    session.press(&[CTRL_C]);
    session.expect("first\n");
    session.press(&[CTRL_C]);
    session.ends_with(EXIT_AT_ONCE);
}

/// The monitor breaks when it is told to.
fn breaks(scenario: &str, status: i32) {
    let mut session = Session::start(scenario);
    session.press(GO);
    session.ends_with(status);
}

/// The console breaks when it is told to, and the terminal is back while the monitor lives.
fn breaks_alone(scenario: &str) {
    let mut session = Session::start(scenario);
    session.press(GO);
    let start = Instant::now();
    while session.look() != session.before {
        assert!(start.elapsed() < PATIENT, "the terminal does not come back");
        std::thread::yield_now();
    }
    session.press(b"\n");
    session.ends_with(i32::from(ORDERLY));
}

fn panicking() {
    breaks_alone("panicking");
}

fn hanging() {
    breaks_alone("hanging");
}

fn exiting() {
    breaks("exiting", i32::from(ORDERLY));
}

fn main_panics() {
    const PANIC_OF_MAIN: i32 = 101;
    breaks("main panics", PANIC_OF_MAIN);
}

fn dropping() {
    let (_person, program) = terminal();
    let before = look_at(program.as_fd());
    let guard = RawTerminal::enter(program.as_fd()).unwrap();
    assert!(guard.is_some());
    assert_ne!(look_at(program.as_fd()), before);
    assert!(RawTerminal::enter(program.as_fd()).unwrap().is_none());
    drop(guard);
    assert_eq!(look_at(program.as_fd()), before);
}
