//! The I/O APIC, seen through its registers and its messages.

use parking_lot::Mutex;

use super::*;

#[derive(Default)]
struct Heard(Mutex<Vec<Message>>);

impl Interrupts for Heard {
    fn send(&self, message: &Message) {
        self.0.lock().push(*message);
    }
    fn external(&self, _is_requested: bool) {}
    fn next_edge_moved(&self) {}
}

fn bench() -> (IoApic, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    (IoApic::new(heard.clone()), heard)
}

fn read(apic: &mut IoApic, register: u8) -> u32 {
    let _effect = apic.write(SELECT, &u32::from(register).to_le_bytes());
    let mut data = [0; 4];
    apic.read(WINDOW, &mut data);
    u32::from_le_bytes(data)
}

fn write(apic: &mut IoApic, register: u8, value: u32) {
    let _effect = apic.write(SELECT, &u32::from(register).to_le_bytes());
    let _effect = apic.write(WINDOW, &value.to_le_bytes());
}

/// Pin 9 as given, to local APIC 3.
fn program(apic: &mut IoApic, low: u32) {
    write(apic, 0x10 + 2 * 9 + 1, 3 << 24);
    write(apic, 0x10 + 2 * 9, low);
}

fn state(apic: &mut IoApic) -> u32 {
    read(apic, 0x10 + 2 * 9)
}

fn count(heard: &Heard) -> usize {
    heard.0.lock().len()
}

const LEVEL_ON_51: u32 = 0x8051;
const EDGE_ON_51: u32 = 0x51;
const MASK: u32 = 0x1_0000;
const REMOTE: u32 = 0x4000;

#[test]
fn it_has_24_masked_pins_and_an_end_of_interrupt_register() {
    let apic = &mut bench().0;
    assert_eq!(read(apic, 1), 0x0017_0020);
    for pin in 0..24 {
        assert_eq!(read(apic, 0x10 + 2 * pin), MASK);
    }
    assert_eq!(read(apic, 0x40), 0);
    write(apic, 0, 0xff00_0000);
    assert_eq!((read(apic, 0), read(apic, 2)), (0x0f00_0000, 0x0f00_0000));
}

#[test]
fn what_is_programmed_reads_back_but_for_status_bits() {
    let apic = &mut bench().0;
    write(apic, 0x3f, 0xffff_ffff);
    write(apic, 0x3e, 0xffff_ffff);
    assert_eq!((read(apic, 0x3e), read(apic, 0x3f)), (0x0001_afff, 0xff00_0000));
}

#[test]
fn an_edge_sends_once_however_long_the_line_stays_up() {
    let (mut apic, heard) = bench();
    program(&mut apic, EDGE_ON_51);
    apic.set_line(9, true);
    apic.set_line(9, true);
    let sent = Message {
        destination: Destination::Physical(3),
        delivery: Delivery::Fixed(0x51),
        trigger: Trigger::Edge,
    };
    assert_eq!(*heard.0.lock(), [sent]);
    apic.set_line(9, false);
    apic.pulse_line(9);
    assert_eq!(count(&heard), 2);
    assert_eq!(state(&mut apic), EDGE_ON_51);
}

#[test]
fn an_edge_on_a_masked_pin_is_lost() {
    let (mut apic, heard) = bench();
    program(&mut apic, EDGE_ON_51 | MASK);
    apic.pulse_line(9);
    apic.set_line(9, true);
    program(&mut apic, EDGE_ON_51);
    assert_eq!(count(&heard), 0);
}

#[test]
fn a_level_asks_again_only_after_its_end() {
    let (mut apic, heard) = bench();
    program(&mut apic, LEVEL_ON_51);
    apic.set_line(9, true);
    apic.set_line(9, false);
    apic.set_line(9, true);
    assert_eq!((count(&heard), state(&mut apic)), (1, LEVEL_ON_51 | REMOTE));
    apic.end_of_interrupt(0x50);
    assert_eq!(count(&heard), 1);
    apic.end_of_interrupt(0x51);
    assert_eq!((count(&heard), state(&mut apic)), (2, LEVEL_ON_51 | REMOTE));
    apic.set_line(9, false);
    let _effect = apic.write(END_OF_INTERRUPT, &[0x51, 0, 0, 0]);
    assert_eq!((count(&heard), state(&mut apic)), (2, LEVEL_ON_51));
    assert_eq!(heard.0.lock()[1].trigger, Trigger::Level);
}

#[test]
fn a_level_that_was_masked_asks_when_the_mask_falls() {
    let (mut apic, heard) = bench();
    program(&mut apic, LEVEL_ON_51 | MASK);
    apic.set_line(9, true);
    assert_eq!(count(&heard), 0);
    program(&mut apic, LEVEL_ON_51);
    assert_eq!(count(&heard), 1);
}

#[test]
fn a_pulse_on_a_level_pin_is_delivered_exactly_once_however_long_it_must_wait() {
    let (mut apic, heard) = bench();
    program(&mut apic, LEVEL_ON_51 | MASK);
    apic.pulse_line(9);
    program(&mut apic, LEVEL_ON_51);
    assert_eq!(count(&heard), 1);
    apic.pulse_line(9);
    assert_eq!(count(&heard), 1);
    apic.end_of_interrupt(0x51);
    assert_eq!(count(&heard), 2);
    apic.end_of_interrupt(0x51);
    assert_eq!(count(&heard), 2);
}

#[test]
fn making_a_pin_an_edge_ends_its_interrupt() {
    let (mut apic, heard) = bench();
    program(&mut apic, LEVEL_ON_51);
    apic.pulse_line(9);
    program(&mut apic, EDGE_ON_51 | MASK);
    program(&mut apic, LEVEL_ON_51);
    assert_eq!((count(&heard), state(&mut apic)), (1, LEVEL_ON_51));
}

#[test]
fn each_delivery_and_destination_mode_says_what_it_says() {
    for (low, high, destination, delivery) in [
        (0x0051, 3, Destination::Physical(3), Some(Delivery::Fixed(0x51))),
        (0x0851, 3, Destination::Logical(3), Some(Delivery::Fixed(0x51))),
        (0x0951, 0xff, Destination::All, Some(Delivery::LowestPriority(0x51))),
        (0x0051, 0xff, Destination::All, Some(Delivery::Fixed(0x51))),
        (0x0400, 3, Destination::Physical(3), Some(Delivery::Nmi)),
        (0x0500, 3, Destination::Physical(3), Some(Delivery::Init)),
        (0x0251, 3, Destination::Physical(3), None),
        (0x0751, 3, Destination::Physical(3), None),
    ] {
        let (mut apic, heard) = bench();
        write(&mut apic, 0x13, high << 24);
        write(&mut apic, 0x12, low);
        apic.pulse_line(1);
        let sent =
            delivery.map(|delivery| Message { destination, delivery, trigger: Trigger::Edge });
        assert_eq!(*heard.0.lock(), Vec::from_iter(sent), "{low:#x}");
    }
}

#[test]
fn a_line_without_a_pin_leads_nowhere() {
    let (mut apic, heard) = bench();
    apic.set_line(24, true);
    apic.pulse_line(255);
    assert_eq!(count(&heard), 0);
}
