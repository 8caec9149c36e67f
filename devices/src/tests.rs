//! The table of devices, as a guest meets it.

use actors::contract::guest::GuestEnd;
use actors::device::{Effect, IrqLine};

use super::*;
use crate::cable::Cable;

/// A line that leads nowhere.
struct Nowhere;

impl IrqLine for Nowhere {
    fn pulse(&self) {}
}

fn ports() -> Bus {
    let serial = serial::Serial::new(Arc::new(Nowhere), Cable::new().unwrap());
    let power = power::PowerManagement::new(Arc::new(Nowhere));
    let wiring =
        Wiring { serial: Arc::new(Mutex::new(serial)), power: Arc::new(Mutex::new(power)) };
    attach(wiring).unwrap().0
}

const RESET: Option<Effect> = Some(Effect::Ends(GuestEnd::Reset));
const POWER_OFF: Option<Effect> = Some(Effect::Ends(GuestEnd::PowerOff));

#[test]
fn every_port_of_the_platform_has_somebody_and_its_neighbours_have_nobody() {
    let ports = ports();
    for port in [0x60, 0x64, 0x70, 0x71, 0xf4, 0x3f8, 0x3ff, 0x600, 0x605, 0xcf9] {
        assert!(ports.read(port, &mut [0]), "{port:#x}");
    }
    for port in [0x61, 0x63, 0x65, 0x6f, 0x72, 0x3f7, 0x400, 0x5ff, 0x606, 0xcf8, 0xcfa] {
        assert!(!ports.read(port, &mut [0]), "{port:#x}");
    }
}

#[test]
fn each_way_to_reset_resets() {
    assert_eq!(ports().write(0xcf9, &[0x06]), RESET);
    assert_eq!(ports().write(0x64, &[0xfe]), RESET);
}

#[test]
fn a_wide_write_over_the_pci_configuration_address_is_no_reset() {
    assert_eq!(ports().write(0xcf8, &0x8000_0600_u32.to_le_bytes()), None);
    assert_eq!(ports().write(0xcf9, &[0x06, 0x06]), None);
}

#[test]
fn soft_off_powers_off() {
    let soft_off = 1_u16 << 13 | 5 << 10;
    assert_eq!(ports().write(0x604, &soft_off.to_le_bytes()), POWER_OFF);
}

#[test]
fn the_debug_port_tells_success_from_failure_at_any_width() {
    let ports = ports();
    let failed = |code| Some(Effect::Ends(GuestEnd::Failed(code)));
    assert_eq!(ports.write(0xf4, &[0]), POWER_OFF);
    assert_eq!(ports.write(0xf4, &[3]), failed(3));
    assert_eq!(ports.write(0xf4, &0_u32.to_le_bytes()), POWER_OFF);
    assert_eq!(ports.write(0xf4, &3_u32.to_le_bytes()), failed(3));
    assert_eq!(ports.write(0xf4, &0x100_u16.to_le_bytes()), failed(255));
}

#[test]
fn a_probe_of_an_absent_serial_port_finds_a_floating_bus() {
    let mut data = [0];
    assert!(!ports().read(0x2f8 + 5, &mut data));
    assert_eq!(data, [0xff]);
}
