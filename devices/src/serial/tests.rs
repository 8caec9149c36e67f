//! The serial port, as a driver meets it.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::cable::{CAPACITY, PROMISED_ROOM};

#[derive(Default)]
struct CountedLine(AtomicUsize);

impl IrqLine for CountedLine {
    fn pulse(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A port with both its ends in hand.
struct Bench {
    port: Serial,
    cable: Cable,
    line: Arc<CountedLine>,
}

fn bench() -> Bench {
    let line = Arc::new(CountedLine::default());
    let cable = Cable::new().unwrap();
    Bench { port: Serial::new(line.clone(), cable.clone()), cable, line }
}

impl Bench {
    fn read(&mut self, register: u8) -> u8 {
        let mut data = [0];
        self.port.read(u64::from(register), &mut data);
        data[0]
    }

    fn write(&mut self, register: u8, value: u8) {
        assert_eq!(self.port.write(u64::from(register), &[value]), Effect::None);
    }

    /// Pulses since the last call.
    fn pulses(&self) -> usize {
        self.line.0.swap(0, Ordering::Relaxed)
    }

    fn is_ready(&mut self) -> bool {
        self.read(LINE_STATUS) & STATUS_TRANSMITTER == STATUS_TRANSMITTER
    }

    /// Sends as a driver does that looks first. Returns how much that was.
    fn send_while_ready(&mut self) -> usize {
        let mut sent = 0;
        while self.is_ready() {
            assert!(sent <= CAPACITY, "nobody makes the guest wait");
            self.write(DATA, b'.');
            sent += 1;
        }
        sent
    }

    /// The console reads all there is. Returns how much that was.
    fn drain(&mut self) -> usize {
        let mut read = Vec::new();
        if self.cable.take(&mut read, usize::MAX) {
            self.port.room();
        }
        read.len()
    }

    fn read_all(&mut self) -> Vec<u8> {
        let mut read = Vec::new();
        while self.read(LINE_STATUS) & STATUS_DATA != 0 {
            read.push(self.read(DATA));
        }
        read
    }
}

const SENT_MAX: usize = CAPACITY - PROMISED_ROOM + 1;

#[test]
fn what_is_written_reaches_the_cable_in_order() {
    let mut bench = bench();
    b"hello".iter().for_each(|&byte| bench.write(DATA, byte));
    let mut read = Vec::new();
    assert!(!bench.cable.take(&mut read, usize::MAX));
    assert_eq!(read, b"hello");
}

#[test]
fn a_polling_guest_is_told_to_wait_before_anything_is_lost() {
    let mut bench = bench();
    assert_eq!(bench.send_while_ready(), SENT_MAX);
    assert!(!bench.is_ready());
    assert_eq!(bench.cable.tally().lost, 0);
}

#[test]
fn one_look_is_good_for_a_whole_fifo() {
    let mut bench = bench();
    (0..CAPACITY - PROMISED_ROOM).for_each(|_| bench.write(DATA, b'.'));
    assert!(bench.is_ready());
    (0..PROMISED_ROOM).for_each(|_| bench.write(DATA, b'.'));
    assert_eq!(bench.cable.tally().lost, 0);
}

#[test]
fn a_guest_that_does_not_look_loses_bytes_and_they_are_counted() {
    let mut bench = bench();
    (0..CAPACITY + 7).for_each(|_| bench.write(DATA, b'.'));
    let tally = bench.cable.tally();
    assert_eq!((tally.accepted, tally.lost), (CAPACITY as u64, 7));
}

#[test]
fn a_guest_that_waits_gets_its_interrupt_when_there_is_room() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER_EMPTY);
    bench.send_while_ready();
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_NONE);
    bench.pulses();

    assert_eq!(bench.drain(), SENT_MAX);

    assert_eq!(bench.pulses(), 1);
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_TRANSMITTER_EMPTY);
    assert!(bench.is_ready());
}

#[test]
fn a_guest_that_was_never_told_to_wait_is_not_disturbed() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER_EMPTY);
    bench.write(DATA, b'.');
    bench.pulses();
    bench.drain();
    assert_eq!(bench.pulses(), 0);
}

#[test]
fn room_is_no_interrupt_to_a_guest_that_did_not_enable_it() {
    let mut bench = bench();
    bench.send_while_ready();
    bench.drain();
    assert_eq!(bench.pulses(), 0);
}

#[test]
fn enabling_the_transmitters_interrupt_pulls_the_line_each_time() {
    // Linux tests for this at every open, and falls back to a timer where it fails.
    let mut bench = bench();
    for _ in 0..2 {
        bench.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER_EMPTY);
        assert_eq!(bench.pulses(), 1);
        assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_TRANSMITTER_EMPTY);
        bench.write(INTERRUPT_ENABLE, 0);
    }
}

#[test]
fn enabling_again_pulls_the_line_again_even_if_nobody_has_asked_for_the_cause() {
    // The line is pulled, not held: a pull that met a masked controller is gone.
    let mut bench = bench();
    for _ in 0..2 {
        bench.write(INTERRUPT_ENABLE, 0);
        bench.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER_EMPTY);
        assert_eq!(bench.pulses(), 1);
    }
}

#[test]
fn reading_the_cause_takes_note_of_an_empty_transmitter() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER_EMPTY);
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_TRANSMITTER_EMPTY);
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_NONE);
}

#[test]
fn two_causes_are_named_one_after_the_other_the_data_first() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_TRANSMITTER_EMPTY);
    assert_eq!(bench.port.receive(b"x"), 1);
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_RECEIVED);
    assert_eq!(bench.read(DATA), b'x');
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_TRANSMITTER_EMPTY);
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_NONE);
}

#[test]
fn data_stays_a_cause_until_it_is_read() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    bench.port.receive(b"x");
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_RECEIVED);
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_RECEIVED);
    bench.read(DATA);
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_NONE);
}

#[test]
fn a_cause_that_is_not_enabled_is_not_named() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER_EMPTY);
    bench.write(INTERRUPT_ENABLE, 0);
    assert_eq!(bench.read(INTERRUPT_ID), ID_FIFOS | ID_NONE);
}

#[test]
fn input_waits_until_the_guest_listens_and_is_asked_for_then() {
    let mut bench = bench();
    assert_eq!(bench.port.receive(b"early"), 0);
    assert!(!bench.cable.take_offer());

    bench.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);

    assert!(bench.cable.take_offer());
    assert_eq!(bench.port.receive(b"early"), 5);
    assert_eq!(bench.pulses(), 1);
    assert_eq!(bench.read_all(), b"early");
}

#[test]
fn a_guest_that_polls_for_input_listens_too() {
    let mut bench = bench();
    assert_eq!(bench.port.receive(b"x"), 0);
    (0..POLLS_THAT_LISTEN).for_each(|_| assert!(bench.is_ready()));
    assert!(bench.cable.take_offer());
    assert_eq!(bench.port.receive(b"x"), 1);
    assert_eq!(bench.read_all(), b"x");
}

#[test]
fn a_guest_that_polls_for_output_does_not_listen() {
    let mut bench = bench();
    for _ in 0..100 {
        assert!(bench.is_ready());
        bench.write(DATA, b'.');
    }
    assert_eq!(bench.port.receive(b"x"), 0);
}

#[test]
fn what_does_not_fit_is_asked_for_when_the_guest_has_read_everything() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    assert_eq!(bench.port.receive(&[b'x'; 100]), RECEIVE_FIFO);
    for _ in 1..RECEIVE_FIFO {
        bench.read(DATA);
        assert!(!bench.cable.take_offer());
    }
    bench.read(DATA);
    assert!(bench.cable.take_offer());
    assert_eq!(bench.port.receive(&[b'x'; 36]), 36);
    assert_eq!(bench.read_all().len(), 36);
    assert!(!bench.cable.take_offer());
}

#[test]
fn clearing_the_fifo_forgets_input_even_behind_the_divisor() {
    let mut bench = bench();
    bench.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    bench.port.receive(b"stale");
    bench.write(LINE_CONTROL, LINE_DIVISOR | 0x03);
    bench.write(DATA, 0x0c);
    bench.write(FIFO_CONTROL, FIFO_CLEAR_RECEIVER);
    assert_eq!(bench.read(DATA), 0x0c);
    assert_eq!(bench.read(LINE_CONTROL), LINE_DIVISOR | 0x03);
    bench.write(LINE_CONTROL, 0x03);
    assert_eq!(bench.read_all(), b"");
}

#[test]
fn the_divisor_is_no_output_and_no_interrupt_enable() {
    let mut bench = bench();
    bench.write(LINE_CONTROL, LINE_DIVISOR);
    bench.write(DATA, b'!');
    bench.write(INTERRUPT_ENABLE, ENABLE_TRANSMITTER_EMPTY);
    assert_eq!(bench.pulses(), 0);
    assert_eq!(bench.drain(), 0);
}

#[test]
fn a_loop_is_always_ready_and_reaches_nobody() {
    let mut bench = bench();
    bench.send_while_ready();
    bench.write(MODEM_CONTROL, MODEM_LOOP);
    assert!(bench.is_ready());
    bench.write(DATA, b'x');
    assert_eq!(bench.read(DATA), b'x');
    assert_eq!(bench.drain(), SENT_MAX);
}

#[test]
fn a_loop_keeps_input_out_and_asks_for_it_when_it_ends() {
    let mut bench = bench();
    bench.write(MODEM_CONTROL, MODEM_LOOP);
    bench.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    assert_eq!(bench.port.receive(b"x"), 0);
    bench.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    assert!(!bench.cable.take_offer());
    bench.write(MODEM_CONTROL, 0);
    assert!(bench.cable.take_offer());
    assert_eq!(bench.port.receive(b"x"), 1);
}

#[test]
fn a_wide_access_is_one_byte_after_the_other() {
    let mut bench = bench();
    assert_eq!(bench.port.write(3, &[0x03, 0x0b]), Effect::None);
    let mut data = [0; 2];
    bench.port.read(3, &mut data);
    assert_eq!(data, [0x03, 0x0b]);
}
