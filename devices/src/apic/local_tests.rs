//! One local APIC, seen through its page of registers.

use super::address::Mode;
use super::message::{Command, Delivery, Destination, Interrupt, Message, Trigger};
use super::{Address, LocalApic};

pub(super) const ID: u32 = 0x020;
pub(super) const VERSION: u32 = 0x030;
pub(super) const TPR: u32 = 0x080;
pub(super) const PPR: u32 = 0x0a0;
pub(super) const EOI: u32 = 0x0b0;
pub(super) const LDR: u32 = 0x0d0;
pub(super) const DFR: u32 = 0x0e0;
pub(super) const SVR: u32 = 0x0f0;
pub(super) const ISR: u32 = 0x100;
pub(super) const TMR: u32 = 0x180;
pub(super) const IRR: u32 = 0x200;
pub(super) const ESR: u32 = 0x280;
pub(super) const ICR: u32 = 0x300;
pub(super) const ICR_HIGH: u32 = 0x310;
pub(super) const LINT0: u32 = 0x350;
pub(super) const LVT_ERROR: u32 = 0x370;
const MASKED: u32 = 0x1_0000;

/// Switched on by software.
pub(super) fn apic(id: u32) -> LocalApic {
    let mut apic = LocalApic::new(id, id == 0);
    assert!(matches!(apic.write(SVR, 0x1ff, 0), Some(Command::Publish(_))));
    apic
}

pub(super) fn edge(vector: u8) -> Interrupt {
    Interrupt { vector, trigger: Trigger::Edge }
}

fn level(vector: u8) -> Interrupt {
    Interrupt { vector, trigger: Trigger::Level }
}

/// A write of which nobody else hears.
fn set(apic: &mut LocalApic, offset: u32, value: u32) {
    assert_eq!(apic.write(offset, value, 0), None);
}

#[test]
fn after_power_on_it_is_as_the_manual_says() {
    let mut apic = LocalApic::new(5, false);
    assert_eq!(apic.read(ID, 0), 5 << 24);
    assert_eq!(apic.read(VERSION, 0), 0x0105_0014);
    assert_eq!(apic.read(SVR, 0), 0xff);
    assert_eq!(apic.read(DFR, 0), 0xffff_ffff);
    assert_eq!(apic.read(LDR, 0), 0);
    for entry in (0x320..=0x370).step_by(0x10) {
        assert_eq!(apic.read(entry, 0), MASKED, "{entry:#x}");
    }
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.mode(), Mode::XApic);
    assert_eq!(apic.address(), Address::after_power_on(5));
    assert_eq!(apic.page(), Some(actors::platform::LOCAL_APIC));
}

#[test]
fn only_the_boot_processor_listens_to_the_older_controllers_until_it_masks_them() {
    assert!(!LocalApic::new(1, false).accepts_external());
    let mut boot = LocalApic::new(0, true);
    assert!(boot.accepts_external());
    assert!(boot.write(SVR, 0x1ff, 0).is_some());
    assert!(boot.accepts_external());
    set(&mut boot, LINT0, MASKED | 0x700);
    assert!(!boot.accepts_external());
    set(&mut boot, LINT0, 0x400);
    assert!(!boot.accepts_external());
    set(&mut boot, LINT0, 0x700);
    assert!(boot.accepts_external());
}

#[test]
fn the_highest_vector_is_first_and_lower_classes_wait_for_its_end() {
    let mut apic = apic(0);
    for vector in [0x31, 0x52, 0x55] {
        apic.accept(edge(vector));
    }
    assert_eq!(apic.acknowledge(), 0x55);
    assert_eq!(apic.read(PPR, 0), 0x50);
    assert_eq!(apic.pending(), None);
    apic.accept(edge(0x61));
    assert_eq!(apic.acknowledge(), 0x61);
    set(&mut apic, EOI, 0);
    assert_eq!(apic.pending(), None);
    set(&mut apic, EOI, 0);
    assert_eq!(apic.acknowledge(), 0x52);
    set(&mut apic, EOI, 0);
    assert_eq!(apic.acknowledge(), 0x31);
}

#[test]
fn the_task_priority_holds_back_its_own_class_and_all_below() {
    let mut apic = apic(0);
    apic.accept(edge(0x4f));
    set(&mut apic, TPR, 0x40);
    assert_eq!(apic.pending(), None);
    assert_eq!((apic.read(PPR, 0), apic.cr8()), (0x40, 4));
    apic.set_cr8(3);
    assert_eq!(apic.pending(), Some(0x4f));
    assert_eq!(apic.read(TPR, 0), 0x30);
}

#[test]
fn the_processor_priority_shows_the_task_priority_whole_and_a_service_by_its_class() {
    let mut apic = apic(0);
    apic.accept(edge(0x4f));
    assert_eq!(apic.acknowledge(), 0x4f);
    assert_eq!(apic.read(PPR, 0), 0x40);
    set(&mut apic, TPR, 0x47);
    assert_eq!(apic.read(PPR, 0), 0x47);
    set(&mut apic, TPR, 0x3f);
    assert_eq!(apic.read(PPR, 0), 0x40);
}

#[test]
fn an_interrupt_that_went_away_is_spurious_and_is_not_in_service() {
    let mut apic = apic(0);
    assert_eq!(apic.acknowledge(), 0xff);
    assert_eq!(apic.read(ISR + 0x70, 0), 0);
}

#[test]
fn only_the_end_of_a_level_is_told_to_others() {
    let mut apic = apic(0);
    apic.accept(level(0x41));
    assert_eq!(apic.read(TMR + 0x20, 0), 1 << 1);
    assert_eq!(apic.acknowledge(), 0x41);
    assert_eq!(apic.write(EOI, 0, 0), Some(Command::EndOfInterrupt(0x41)));
    apic.accept(edge(0x41));
    assert_eq!(apic.read(TMR + 0x20, 0), 0);
    assert_eq!(apic.acknowledge(), 0x41);
    set(&mut apic, EOI, 0);
    set(&mut apic, EOI, 0);
}

#[test]
fn software_can_keep_the_end_of_a_level_to_itself() {
    let mut apic = apic(0);
    set(&mut apic, SVR, 0x11ff);
    apic.accept(level(0x41));
    assert_eq!(apic.acknowledge(), 0x41);
    set(&mut apic, EOI, 0);
    assert_eq!(apic.read(ISR + 0x20, 0), 0);
}

#[test]
fn a_vector_shows_in_its_register_and_its_bit() {
    let mut apic = apic(0);
    apic.accept(edge(0xd3));
    for part in 0..8 {
        let expected = if part == 6 { 1 << 0x13 } else { 0 };
        assert_eq!(apic.read(IRR + 0x10 * part, 0), expected);
    }
    assert_eq!(apic.acknowledge(), 0xd3);
    assert_eq!(apic.read(IRR + 0x60, 0), 0);
    assert_eq!(apic.read(ISR + 0x60, 0), 1 << 0x13);
}

#[test]
fn switched_off_by_software_it_accepts_nothing_and_keeps_its_entries_masked() {
    let mut apic = apic(0);
    set(&mut apic, LINT0, 0x700);
    apic.accept(edge(0x41));
    assert!(matches!(apic.write(SVR, 0xff, 0), Some(Command::Publish(_))));
    assert_eq!(apic.read(LINT0, 0), MASKED | 0x700);
    set(&mut apic, LINT0, 0x700);
    assert_eq!(apic.read(LINT0, 0), MASKED | 0x700);
    apic.accept(edge(0x42));
    assert_eq!(apic.acknowledge(), 0x41);
    assert_eq!(apic.pending(), None);
}

#[test]
fn read_only_registers_and_bits_stay() {
    let mut apic = apic(7);
    for offset in [ID, VERSION, PPR, ISR, TMR, IRR, 0x390] {
        let before = apic.read(offset, 0);
        set(&mut apic, offset, !before);
        assert_eq!(apic.read(offset, 0), before, "{offset:#x}");
    }
    for (entry, bits) in [
        (0x320, 0x0007_00ff),
        (0x330, 0x0001_07ff),
        (0x340, 0x0001_07ff),
        (0x350, 0x0001_a7ff),
        (0x360, 0x0001_a7ff),
        (0x370, 0x0001_00ff),
    ] {
        set(&mut apic, entry, u32::MAX);
        assert_eq!(apic.read(entry, 0), bits, "{entry:#x}");
    }
    set(&mut apic, ICR_HIGH, u32::MAX);
    assert_eq!(apic.read(ICR_HIGH, 0), 0xff00_0000);
}

#[test]
fn a_register_that_does_not_exist_is_an_error_shown_by_the_next_write_to_the_status() {
    let mut apic = apic(0);
    assert_eq!(apic.read(0x3f0, 0), 0);
    set(&mut apic, 0x2f4, 0);
    assert_eq!(apic.read(ESR, 0), 0);
    set(&mut apic, ESR, 0);
    assert_eq!(apic.read(ESR, 0), 1 << 7);
    set(&mut apic, ESR, 0);
    assert_eq!(apic.read(ESR, 0), 0);
}

#[test]
fn illegal_vectors_are_errors_and_the_first_error_interrupts() {
    let mut apic = apic(0);
    set(&mut apic, LVT_ERROR, 0xfe);
    set(&mut apic, ICR, 0x0f);
    assert_eq!(apic.acknowledge(), 0xfe);
    set(&mut apic, EOI, 0);
    apic.accept(edge(0x0f));
    assert_eq!(apic.pending(), None);
    set(&mut apic, ESR, 0);
    assert_eq!(apic.read(ESR, 0), 1 << 5 | 1 << 6);
    apic.accept(edge(0x0f));
    assert_eq!(apic.acknowledge(), 0xfe);
}

#[test]
fn an_error_interrupt_with_an_illegal_vector_is_one_more_error() {
    let mut apic = apic(0);
    set(&mut apic, LVT_ERROR, 0x03);
    set(&mut apic, ICR, 0x0f);
    set(&mut apic, ESR, 0);
    assert_eq!(apic.read(ESR, 0), 1 << 5 | 1 << 6);
    assert_eq!(apic.pending(), None);
}

#[test]
fn a_command_is_sent_when_its_low_half_is_written() {
    let mut apic = apic(0);
    set(&mut apic, ICR_HIGH, 0x0300_0000);
    let sent = |destination, delivery| {
        Some(Command::Send(Message { destination, delivery, trigger: Trigger::Edge }))
    };
    assert_eq!(apic.write(ICR, 0x4041, 0), sent(Destination::Physical(3), Delivery::Fixed(0x41)));
    assert_eq!(apic.read(ICR, 0), 0x4041);
    assert_eq!(apic.write(ICR, 0x4841, 0), sent(Destination::Logical(3), Delivery::Fixed(0x41)));
    assert_eq!(apic.write(ICR, 0x4608, 0), sent(Destination::Physical(3), Delivery::Startup(8)));
    set(&mut apic, ICR_HIGH, 0xff00_0000);
    assert_eq!(apic.write(ICR, 0x4400, 0), sent(Destination::All, Delivery::Nmi));
}

#[test]
fn an_interrupt_to_oneself_is_there_at_once() {
    let mut apic = apic(0);
    set(&mut apic, ICR, 0x4_0041);
    assert_eq!(apic.pending(), Some(0x41));
}

#[test]
fn a_change_of_address_is_published_and_only_that() {
    let mut apic = apic(2);
    let message = |to| Message {
        destination: Destination::Logical(to),
        delivery: Delivery::Fixed(0x41),
        trigger: Trigger::Edge,
    };
    let Some(Command::Publish(flat)) = apic.write(LDR, 0x1200_0000, 0) else {
        panic!("nothing published");
    };
    assert!(flat.hears(&message(0x02)) && !flat.hears(&message(0x21)));
    set(&mut apic, LDR, 0x12ff_ffff);
    let Some(Command::Publish(clustered)) = apic.write(DFR, 0x0fff_ffff, 0) else {
        panic!("nothing published");
    };
    assert!(clustered.hears(&message(0x1a)) && !clustered.hears(&message(0x22)));
    assert_eq!(apic.read(DFR, 0), 0x0fff_ffff);
    set(&mut apic, TPR, 0);
}

#[test]
fn init_forgets_everything_but_the_id_and_the_mode() {
    let mut apic = apic(0);
    set(&mut apic, TPR, 0x20);
    assert!(apic.write(LDR, 0x0100_0000, 0).is_some());
    apic.accept(edge(0x41));
    apic.accept(level(0x52));
    assert_eq!(apic.acknowledge(), 0x52);
    set(&mut apic, 0x320, 0x2_0041);
    set(&mut apic, 0x380, 1000);
    let address = apic.init();
    assert_eq!(address, Address::after_power_on(0));
    assert_eq!((apic.pending(), apic.deadline(), apic.cr8()), (None, None, 0));
    for offset in (0..0x400).step_by(0x10) {
        let expected = match offset {
            LINT0 => MASKED,
            _ => LocalApic::new(0, true).read(offset, 0),
        };
        assert_eq!(apic.read(offset, 0), expected, "{offset:#x}");
    }
    assert!(apic.is_bootstrap() && !apic.accepts_external());
}

#[test]
fn only_whole_registers_are_written_and_any_part_is_read() {
    let mut apic = apic(0);
    assert_eq!(apic.write_bytes(TPR, &[0x55], 0), None);
    assert_eq!(apic.read(TPR, 0), 0);
    assert_eq!(apic.write_bytes(TPR, &[0x55, 0, 0, 0], 0), None);
    assert_eq!(apic.read(TPR, 0), 0x55);
    let mut byte = [0xff; 2];
    apic.read_bytes(VERSION + 2, &mut byte, 0);
    assert_eq!(byte, [0x05, 0x01]);
    let mut wide = [0xff; 8];
    apic.read_bytes(TPR, &mut wide, 0);
    assert_eq!(wide, [0x55, 0, 0, 0, 0, 0, 0, 0]);
}
