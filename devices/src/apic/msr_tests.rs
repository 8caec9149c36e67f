//! The local APIC as MSRs: modes, and which accesses fault.

use actors::Gpa;

use super::address::Mode;
use super::local_tests::{apic, edge};
use super::message::{Command, Delivery, Destination, Message, Trigger};
use super::{GeneralProtection, LocalApic};

const BASE: u32 = 0x1b;
const OFF: u64 = 0xfee0_0000;
const INVALID: u64 = OFF | 0x400;
const XAPIC: u64 = OFF | 0x800;
const X2APIC: u64 = OFF | 0xc00;

fn fault<T>(msr: u32) -> Result<T, GeneralProtection> {
    Err(GeneralProtection { msr })
}

fn x2apic(id: u32) -> LocalApic {
    let mut apic = apic(id);
    let bootstrap = if id == 0 { 0x100 } else { 0 };
    assert!(matches!(apic.write_msr(BASE, X2APIC | bootstrap, 0), Ok(Some(Command::Publish(_)))));
    apic
}

#[test]
fn the_base_says_where_how_and_whether_this_is_the_boot_processor() {
    assert_eq!(LocalApic::new(0, true).read_msr(BASE, 0), Ok(0xfee0_0900));
    assert_eq!(LocalApic::new(1, false).read_msr(BASE, 0), Ok(0xfee0_0800));
}

#[test]
fn the_modes_are_reached_as_the_manuals_diagram_says() {
    for (from, to, is_allowed) in [
        (XAPIC, XAPIC, true),
        (XAPIC, X2APIC, true),
        (XAPIC, OFF, true),
        (XAPIC, INVALID, false),
        (X2APIC, X2APIC, true),
        (X2APIC, XAPIC, false),
        (X2APIC, OFF, true),
        (X2APIC, INVALID, false),
        (OFF, OFF, true),
        (OFF, XAPIC, true),
        (OFF, X2APIC, false),
        (OFF, INVALID, false),
    ] {
        let mut apic = apic(1);
        assert!(apic.write_msr(BASE, from, 0).is_ok());
        assert_eq!(apic.write_msr(BASE, to, 0).is_ok(), is_allowed, "{from:#x} to {to:#x}");
        assert_eq!(apic.read_msr(BASE, 0), Ok(if is_allowed { to } else { from }));
    }
}

#[test]
fn reserved_bits_of_the_base_fault_and_addresses_beyond_the_processors() {
    let mut apic = LocalApic::new(1, false).with_address_bits(40);
    for bit in (0..8).chain([9]).chain(40..64) {
        assert_eq!(apic.write_msr(BASE, XAPIC | 1 << bit, 0), fault(BASE), "bit {bit}");
    }
    assert_eq!(apic.write_msr(BASE, 1 << 39 | 0x800, 0), Ok(None));
    assert_eq!(apic.page(), Some(Gpa(1 << 39)));
    let _address = apic.init();
    assert_eq!(apic.page(), Some(Gpa(1 << 39)));
    assert_eq!(apic.write_msr(BASE, XAPIC | 1 << 40, 0), fault(BASE));
}

#[test]
fn off_it_has_no_page_no_address_and_no_memory_of_what_was() {
    let mut apic = apic(0);
    apic.accept(edge(0x41));
    let Ok(Some(Command::Publish(address))) = apic.write_msr(BASE, OFF | 0x100, 0) else {
        panic!("nothing published");
    };
    assert_eq!((address.mode(), apic.page(), apic.pending()), (Mode::Off, None, None));
    let nmi =
        Message { destination: Destination::All, delivery: Delivery::Nmi, trigger: Trigger::Edge };
    assert!(!address.hears(&nmi));
    assert_eq!((apic.read(0x30, 0), apic.write(0xf0, 0x1ff, 0)), (u32::MAX, None));
    assert!(apic.accepts_external());
    apic.accept(edge(0x41));
    assert_eq!(apic.pending(), None);
    assert!(matches!(apic.write_msr(BASE, XAPIC | 0x100, 0), Ok(Some(Command::Publish(_)))));
    assert_eq!(apic.read(0xf0, 0), 0xff);
}

#[test]
fn the_registers_are_msrs_in_x2apic_mode_only_and_in_memory_otherwise() {
    let mut memory = apic(3);
    assert_eq!(memory.read_msr(0x802, 0), fault(0x802));
    assert_eq!(memory.write_msr(0x808, 0, 0), fault(0x808));
    let mut msrs = x2apic(3);
    assert_eq!(msrs.read_msr(0x802, 0), Ok(3));
    assert_eq!((msrs.page(), msrs.read(0x20, 0)), (None, u32::MAX));
    assert_eq!(msrs.write(0x80, 0x20, 0), None);
    assert_eq!(msrs.cr8(), 0);
}

#[test]
fn what_was_pending_survives_the_change_to_x2apic_mode() {
    let mut apic = apic(0);
    apic.accept(edge(0x41));
    assert!(apic.write_msr(BASE, X2APIC | 0x100, 0).is_ok());
    assert_eq!(apic.acknowledge(), 0x41);
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(None));
}

/// Every MSR of the range: whether it can be read, and the bits that may be written.
fn rules(msr: u32) -> (bool, Option<u64>) {
    match msr {
        0x802 | 0x803 | 0x80a | 0x80d | 0x810..=0x827 | 0x839 => (true, None),
        0x808 => (true, Some(0xff)),
        0x80b => (false, Some(0)),
        0x80f => (true, Some(0x13ff)),
        0x828 => (true, Some(0)),
        0x830 => (true, Some(0xffff_ffff_000c_cfff)),
        0x832 => (true, Some(0x7_10ff)),
        0x833 | 0x834 => (true, Some(0x1_17ff)),
        0x835 | 0x836 => (true, Some(0x1_f7ff)),
        0x837 => (true, Some(0x1_10ff)),
        0x838 => (true, Some(0xffff_ffff)),
        0x83e => (true, Some(0xb)),
        0x83f => (false, Some(0xff)),
        _ => (false, None),
    }
}

#[test]
fn reads_fault_exactly_where_the_manuals_map_has_nothing_to_read() {
    let apic = x2apic(0);
    for msr in 0x800..0x900 {
        assert_eq!(apic.read_msr(msr, 0).is_ok(), rules(msr).0, "{msr:#x}");
    }
}

#[test]
fn writes_fault_exactly_on_reserved_bits_and_read_only_registers() {
    for msr in 0x800..0x900 {
        let (_, bits) = rules(msr);
        for bit in 0..64 {
            let is_ok = x2apic(0).write_msr(msr, 1 << bit, 0).is_ok();
            assert_eq!(is_ok, bits.is_some_and(|bits| bits >> bit & 1 != 0), "{msr:#x} bit {bit}");
        }
        assert_eq!(x2apic(0).write_msr(msr, 0, 0).is_ok(), bits.is_some(), "{msr:#x}");
    }
}

#[test]
fn other_msrs_are_not_its_own() {
    for msr in [0, 0x10, 0x1a, 0x1c, 0x6df, 0x6e1, 0x7ff, 0x900, u32::MAX] {
        assert!(!LocalApic::owns_msr(msr));
        assert_eq!(x2apic(0).read_msr(msr, 0), fault(msr));
        assert_eq!(x2apic(0).write_msr(msr, 0, 0), fault(msr));
    }
    assert!([0x1b, 0x6e0, 0x800, 0x83f, 0x8ff].into_iter().all(LocalApic::owns_msr));
}

#[test]
fn a_command_is_one_write_with_a_wide_destination() {
    let mut apic = x2apic(0);
    let sent = |destination, delivery| {
        Ok(Some(Command::Send(Message { destination, delivery, trigger: Trigger::Edge })))
    };
    let fixed = Delivery::Fixed(0x41);
    let to = |destination: u64, low: u64| destination << 32 | low;
    assert_eq!(apic.write_msr(0x830, to(0xff, 0x41), 0), sent(Destination::Physical(0xff), fixed));
    assert_eq!(
        apic.write_msr(0x830, to(0x1_0004, 0x841), 0),
        sent(Destination::Logical(0x1_0004), fixed)
    );
    assert_eq!(apic.write_msr(0x830, to(0xffff_ffff, 0x41), 0), sent(Destination::All, fixed));
    assert_eq!(apic.read_msr(0x830, 0), Ok(to(0xffff_ffff, 0x41)));
    assert_eq!(apic.write_msr(0x830, 0xc_0400, 0), sent(Destination::Others(0), Delivery::Nmi));
}

#[test]
fn the_self_interrupt_register_interrupts_at_once() {
    let mut apic = x2apic(0);
    assert_eq!(apic.write_msr(0x83f, 0x41, 0), Ok(None));
    assert_eq!(apic.pending(), Some(0x41));
    assert_eq!(apic.write_msr(0x83f, 0x0f, 0), Ok(None));
    assert_eq!(apic.write_msr(0x828, 0, 0), Ok(None));
    assert_eq!(apic.read_msr(0x828, 0), Ok(1 << 5));
}

#[test]
fn logical_ids_are_clusters_of_sixteen() {
    for (id, logical) in [(0, 0x1_u32), (3, 0x8), (0x13, 0x1_0008), (0xfe, 0xf_4000)] {
        let mut apic = LocalApic::new(id, false);
        let Ok(Some(Command::Publish(address))) = apic.write_msr(BASE, X2APIC, 0) else {
            panic!("nothing published");
        };
        assert_eq!(apic.read_msr(0x80d, 0), Ok(logical.into()));
        let nmi =
            |destination| Message { destination, delivery: Delivery::Nmi, trigger: Trigger::Edge };
        assert!(address.hears(&nmi(Destination::Logical(logical))));
        assert!(!address.hears(&nmi(Destination::Logical(logical ^ 0x1_0000))));
        assert!(!address.hears(&nmi(Destination::Logical(logical & !0xffff))));
    }
}

#[test]
fn init_leaves_x2apic_mode_on_and_the_timer_off() {
    let mut apic = x2apic(5);
    assert_eq!(apic.write_msr(0x832, 0x4_00ec, 0), Ok(None));
    assert_eq!(apic.write_msr(0x6e0, 5000, 0), Ok(None));
    assert_eq!(apic.init().mode(), Mode::X2Apic);
    assert_eq!(apic.read_msr(0x80f, 0), Ok(0xff));
    assert_eq!((apic.deadline(), apic.read_msr(0x6e0, 0)), (None, Ok(0)));
}
