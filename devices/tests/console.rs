//! The console between a guest that prints and somebody who reads, or does not.

mod support;

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use actors::ActorName;
use actors::contract::guest::Tidings;
use actors::contract::vcpu::Break;
use actors::threads::Ending;
use devices::cable::{CAPACITY, PROMISED_ROOM};
use devices::console::{Input, Output};
use support::{
    Guest, pipe, read_exactly, read_to_end, stuff, terminal, type_in, wait_for_quiet,
    wait_for_rest, waiting_in,
};

const RECEIVED: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 2;
const PATIENT: Duration = Duration::from_secs(20);

/// A file that is open for reading and writing and has no name.
fn nameless_file() -> File {
    let path = std::env::temp_dir().join(format!(
        "skep-console-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let file = File::options().read(true).append(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

fn gone() -> Tidings {
    Tidings::Gone { actor: ActorName::Console, ending: Ending::Returned }
}

#[test]
fn a_line_appears_as_soon_as_it_is_complete() {
    let (mut reader, writer) = pipe();
    let guest = Guest::new();
    let (_console, _machine) = guest.console(Input::None, Output::Descriptor(writer));
    guest.print("first\nsecond\n");
    assert_eq!(read_exactly(&mut reader, 13), b"first\nsecond\n");
}

#[test]
fn a_prompt_without_a_newline_appears_too_and_so_does_the_next() {
    let (mut reader, writer) = pipe();
    let guest = Guest::new();
    let (console, _machine) = guest.console(Input::None, Output::Descriptor(writer));
    for prompt in ["login: ", "password: ", "$ "] {
        guest.print(prompt);
        assert_eq!(read_exactly(&mut reader, prompt.len()), prompt.as_bytes());
        wait_for_quiet(&console);
    }
}

/// An output that takes nothing until somebody reads.
struct Stuck {
    kind: &'static str,
    reader: File,
    writer: OwnedFd,
    /// Bytes that are in it.
    stuffed: usize,
}

/// Every kind of output that can make a writer wait.
fn stuck_outputs() -> [Stuck; 3] {
    let (near, far) = UnixStream::pair().unwrap();
    [
        ("pipe", pipe()),
        ("terminal", terminal()),
        ("socket", (File::from(OwnedFd::from(near)), far.into())),
    ]
    .map(|(kind, (reader, writer))| Stuck {
        kind,
        reader,
        stuffed: stuff(writer.as_fd()),
        writer,
    })
}

#[test]
fn a_reader_that_reads_nothing_makes_the_guest_wait_and_nobody_else() {
    for Stuck { kind, reader: _reader, writer, .. } in stuck_outputs() {
        let guest = Guest::new();
        let (console, machine) = guest.console(Input::None, Output::Descriptor(writer));
        let sent = guest.print_while_ready();
        assert!(sent > CAPACITY - PROMISED_ROOM, "{kind}: {sent}");

        let farewell = console.finish(Duration::ZERO);

        assert_eq!(farewell.output.lost, 0, "{kind}");
        assert!(farewell.unwritten > 0, "{kind}: {farewell:?}");
        assert_eq!(machine.all(), [gone()], "{kind}");
    }
}

#[test]
fn a_reader_that_reads_late_gets_everything_and_the_guest_its_interrupt() {
    for Stuck { kind, mut reader, writer, stuffed } in stuck_outputs() {
        let guest = Guest::new();
        let (console, _machine) = guest.console(Input::None, Output::Descriptor(writer));
        guest.enable_interrupts(TRANSMITTER_EMPTY);
        let sent = guest.print_while_ready();
        wait_for_quiet(&console);
        while guest.interrupts.try_recv().is_ok() {}

        // A terminal puts a carriage return before each newline.
        let returns = if kind == "terminal" { sent / 80 } else { 0 };
        let read = read_exactly(&mut reader, stuffed + sent + returns);

        let newlines = read.iter().filter(|&&byte| byte == b'\n').count();
        assert_eq!(newlines, sent / 80, "{kind}");
        guest.interrupts.recv_timeout(PATIENT).expect(kind);
        assert!(guest.is_ready(), "{kind}");
    }
}

#[test]
fn a_reader_that_goes_away_is_told_once_and_the_guest_goes_on() {
    let (reader, writer) = pipe();
    let guest = Guest::new();
    let (console, machine) = guest.console(Input::None, Output::Descriptor(writer));
    drop(reader);
    guest.print("anybody?\n");
    assert_eq!(machine.next(), Tidings::ConsoleClosed);

    (0..2 * CAPACITY).for_each(|_| guest.print("\n"));

    assert!(guest.is_ready());
    let output = console.finish(PATIENT).output;
    assert_eq!(output.accepted, 9 + 2 * CAPACITY as u64);
    assert_eq!((output.discarded, output.lost), (output.accepted, 0));
    assert_eq!(machine.all(), [gone()]);
}

#[test]
fn a_reader_that_goes_away_while_the_guest_waits_lets_it_go_on() {
    for Stuck { kind, reader, writer, .. } in stuck_outputs() {
        let guest = Guest::new();
        let (console, machine) = guest.console(Input::None, Output::Descriptor(writer));
        guest.enable_interrupts(TRANSMITTER_EMPTY);
        guest.print_while_ready();
        wait_for_quiet(&console);
        while guest.interrupts.try_recv().is_ok() {}

        drop(reader);

        assert_eq!(machine.next(), Tidings::ConsoleClosed, "{kind}");
        guest.interrupts.recv_timeout(PATIENT).expect(kind);
        assert!(guest.is_ready(), "{kind}");
    }
}

#[test]
fn finishing_writes_what_is_left() {
    let (reader, writer) = pipe();
    let guest = Guest::new();
    let (console, machine) = guest.console(Input::None, Output::Descriptor(writer));
    guest.print("no newline at the end");
    let farewell = console.finish(PATIENT);
    assert_eq!(farewell.unwritten, 0);
    assert_eq!(farewell.output.accepted, 21);
    assert_eq!(read_to_end(reader), b"no newline at the end");
    assert_eq!(machine.all(), [gone()]);
}

#[test]
fn finishing_waits_for_a_late_reader() {
    let (reader, writer) = pipe();
    let stuffed = stuff(writer.as_fd());
    let guest = Guest::new();
    let (console, _machine) = guest.console(Input::None, Output::Descriptor(writer));
    let sent = guest.print_while_ready();
    wait_for_quiet(&console);
    let pulse = console.pulse();
    let asleep = pulse.look();
    let late = std::thread::Builder::new()
        .spawn(move || {
            // The console beats when it is told to finish, and not before.
            while pulse.look() == asleep || pulse.look().is_busy() {
                std::thread::yield_now();
            }
            read_to_end(reader).len()
        })
        .unwrap();
    assert_eq!(console.finish(PATIENT).unwritten, 0);
    assert_eq!(late.join().unwrap(), stuffed + sent);
}

#[test]
fn a_file_is_written_where_it_ends_even_by_two() {
    let mut file = nameless_file();
    file.write_all(b"before\n").unwrap();
    let guest = Guest::new();
    let output = Output::Descriptor(file.try_clone().unwrap().into());
    let (console, _machine) = guest.console(Input::None, output);
    guest.print("guest\n");
    console.finish(PATIENT);
    file.write_all(b"after\n").unwrap();
    file.rewind().unwrap();
    assert_eq!(read_to_end(file), b"before\nguest\nafter\n");
}

#[test]
fn a_full_disk_is_a_reader_that_went_away() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let guest = Guest::new();
    let (_console, machine) = guest.console(Input::None, Output::Descriptor(full.into()));
    guest.print("hello\n");
    assert_eq!(machine.next(), Tidings::ConsoleClosed);
}

#[test]
fn a_capture_gets_every_byte() {
    let (output, captured) = Output::collect();
    let guest = Guest::new();
    let (console, _machine) = guest.console(Input::None, output);
    guest.print("one\ntwo");
    console.finish(PATIENT);
    assert_eq!(captured.lock().as_slice(), b"one\ntwo");
}

#[test]
fn the_null_console_never_makes_the_guest_wait() {
    let guest = Guest::new();
    let (console, machine) = guest.console(Input::None, Output::Null);
    (0..2 * CAPACITY).for_each(|_| guest.print("."));
    assert!(guest.is_ready());
    let output = console.finish(Duration::ZERO).output;
    assert_eq!((output.discarded, output.lost), (2 * CAPACITY as u64, 0));
    assert_eq!(machine.all(), [gone()]);
}

#[test]
fn input_reaches_a_guest_that_reads_slowly_whole_and_in_order() {
    let guest = Guest::new();
    let (reader, writer) = pipe();
    let sent: Vec<u8> = (0..=u8::MAX).cycle().take(5_000).collect();
    type_in(&mut File::from(writer), &sent);
    let (_console, _machine) = guest.console(Input::Descriptor(reader.into()), Output::Null);
    assert_eq!(guest.poll_input(sent.len()), sent);
}

#[test]
fn input_interrupts_a_guest_that_sleeps() {
    let (reader, writer) = pipe();
    let guest = Guest::new();
    let (_console, _machine) = guest.console(Input::Descriptor(reader.into()), Output::Null);
    guest.enable_interrupts(RECEIVED);
    type_in(&mut File::from(writer), b"x");
    guest.interrupts.recv_timeout(PATIENT).expect("an interrupt");
    assert_eq!(guest.poll_input(1), b"x");
}

#[test]
fn input_that_the_guest_does_not_take_stays_in_the_pipe() {
    let (reader, writer) = pipe();
    type_in(&mut File::from(writer), &[b'x'; 10_000]);
    let watch = reader.try_clone().unwrap();
    let guest = Guest::new();
    let (console, _machine) = guest.console(Input::Descriptor(reader.into()), Output::Null);
    // Each call makes the console look at everything once.
    for _ in 0..10 {
        guest.print("\n");
        wait_for_rest(&console);
    }
    assert!(waiting_in(watch.as_fd()) >= 8_000);
}

#[test]
fn a_file_and_nothing_at_all_are_input_as_well() {
    let mut file = nameless_file();
    file.write_all(b"from a file").unwrap();
    file.rewind().unwrap();
    let guest = Guest::new();
    let (_console, _machine) = guest.console(Input::Descriptor(file.into()), Output::Null);
    assert_eq!(guest.poll_input(11), b"from a file");

    let null = File::open("/dev/null").unwrap();
    let (output, captured) = Output::collect();
    let guest = Guest::new();
    let (console, machine) = guest.console(Input::Descriptor(null.into()), output);
    guest.print("alive\n");
    console.finish(PATIENT);
    assert_eq!(captured.lock().as_slice(), b"alive\n");
    assert_eq!(machine.all(), [gone()]);
}

#[test]
fn the_end_of_input_ends_nothing_else() {
    let (reader, writer) = pipe();
    let (mut screen, output) = pipe();
    drop(writer);
    let guest = Guest::new();
    let input = Input::Descriptor(reader.into());
    let (console, machine) = guest.console(input, Output::Descriptor(output));
    guest.print("alive\n");
    assert_eq!(read_exactly(&mut screen, 6), b"alive\n");
    wait_for_quiet(&console);
    drop(console);
    assert_eq!(machine.all(), [gone()]);
}

#[test]
fn a_console_that_panics_is_told() {
    let guest = Guest::new();
    let (console, machine) = guest.console(Input::None, Output::Null);
    console.break_it(Break::Panic);
    let Tidings::Gone { actor, ending } = machine.next() else {
        panic!("not the end of an actor");
    };
    assert_eq!(actor, ActorName::Console);
    assert!(matches!(ending, Ending::Panicked(_)));
    console.finish(PATIENT);
}

#[test]
fn a_console_that_hangs_looks_busy_and_does_not_keep_its_owner() {
    let (_reader, writer) = pipe();
    let guest = Guest::new();
    let (console, _machine) = guest.console(Input::None, Output::Descriptor(writer));
    wait_for_rest(&console);
    console.break_it(Break::Hang);
    while !console.pulse().look().is_busy() {
        std::thread::yield_now();
    }
    guest.print("nobody writes this\n");
    assert_eq!(console.finish(Duration::ZERO).unwritten, 19);
}
