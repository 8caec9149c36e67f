//! Where the platform's fixed devices live: the promises that the ACPI tables make to
//! the guest and that the devices keep.
//!
//! The loader writes these numbers into the tables, the machine puts devices there. One
//! list, so that the two cannot disagree. Sources: the PC/AT map for what every
//! operating system probes blindly (serial port, clock, keyboard controller), QEMU's
//! choices where the guest is told (power management, debug exit).
//!
//! | ports | who | interrupt |
//! |---|---|---|
//! | `0x20`, `0x21` | first 8259 | |
//! | `0x40..0x44` | interval timer | [`TIMER_IRQ`] |
//! | `0x60`, `0x64` | keyboard controller: its reset line only | |
//! | `0x61` | gate and output of the interval timer's third counter | |
//! | `0x70`, `0x71` | real-time clock | [`RTC_IRQ`] |
//! | `0xa0`, `0xa1` | second 8259 | |
//! | `0xf4` | debug exit | |
//! | `0x3f8..0x400` | first serial port | [`COM1_IRQ`] |
//! | `0x4d0`, `0x4d1` | which lines are levels to the 8259s | |
//! | `0x600..0x604` | power management: events | [`SCI_IRQ`] |
//! | `0x604..0x606` | power management: control | |
//! | `0xcf9` | reset register | |
//!
//! The 8259s and the interval timer are KVM's own where KVM runs the guest, and so are the
//! I/O APIC and the local APICs.

use crate::Gpa;

/// First interrupt controller (8259): command port; the data port follows it.
pub const FIRST_PIC: u16 = 0x20;
/// Second interrupt controller (8259), like the first.
pub const SECOND_PIC: u16 = 0xa0;
/// Which interrupt lines are level-triggered to the 8259s: a port for lines 0 to 7, and one
/// for lines 8 to 15.
pub const PIC_TRIGGERS: u16 = 0x4d0;
/// Ports of each of the three.
pub const PIC_LEN: u16 = 2;

/// Interval timer (8254): three counters, then the control port.
pub const PIT: u16 = 0x40;
/// Ports of the interval timer.
pub const PIT_LEN: u16 = 4;
/// Beside it: gate and output of its third counter.
pub const SYSTEM_CONTROL: u16 = 0x61;
/// Interrupt line of the interval timer.
pub const TIMER_IRQ: u8 = 0;

/// Keyboard controller: data port.
pub const I8042_DATA: u16 = 0x60;
/// Keyboard controller: command and status port.
pub const I8042_COMMAND: u16 = 0x64;

/// Real-time clock: index port; the data port follows it.
pub const RTC: u16 = 0x70;
/// Ports of the real-time clock.
pub const RTC_LEN: u16 = 2;
/// Where in the real-time clock's memory the century is.
pub const RTC_CENTURY: u8 = 0x32;
/// Interrupt line of the real-time clock.
pub const RTC_IRQ: u8 = 8;

/// A test guest writes its verdict here: 0 ends well, anything else has failed.
pub const DEBUG_EXIT: u16 = 0xf4;

/// First serial port (a 16550).
pub const COM1: u16 = 0x3f8;
/// Ports of a serial port.
pub const COM1_LEN: u16 = 8;
/// Interrupt line of the first serial port.
pub const COM1_IRQ: u8 = 4;

/// PM1a event block: status, then enable, two bytes each. ACPI 6.4 section 4.8.3.1.
///
/// The enable half must read back what was written, or the operating system believes that
/// nobody answers.
pub const PM1_EVENT: u16 = 0x600;
/// Bytes of the PM1a event block.
pub const PM1_EVENT_LEN: u8 = 4;
/// PM1a control block: bit 0 says "ACPI mode", bits 10–12 the sleep type, bit 13 goes to
/// sleep. ACPI 6.4 section 4.8.3.2.
pub const PM1_CONTROL: u16 = 0x604;
/// Bytes of the PM1a control block.
pub const PM1_CONTROL_LEN: u8 = 2;
/// Bit 0 of the control block: ACPI mode. There is no other mode here, so it reads as one.
pub const PM1_SCI_ENABLE: u16 = 1;
/// Where the sleep type starts in the control block.
pub const PM1_SLEEP_TYPE_SHIFT: u32 = 10;
/// Bit 13 of the control block, write-only: go to sleep.
pub const PM1_SLEEP_ENABLE: u16 = 1 << 13;
/// The sleep type that means "power off" (`\_S5`).
pub const S5_SLEEP_TYPE: u8 = 5;
/// The interrupt of power management, level-triggered, active high.
pub const SCI_IRQ: u8 = 9;

/// The reset register of PC chipsets: a port of one byte.
pub const RESET_PORT: u16 = 0xcf9;
/// What the tables tell the guest to write there: full reset of the processors.
pub const RESET_VALUE: u8 = 0x06;

/// The I/O APIC pin that the interval timer (interrupt line 0) is wired to, as on PCs; the
/// tables say so. KVM's own routing leads line 0 to pin 0 and must be told otherwise.
pub const TIMER_PIN: u8 = 2;
/// Registers of the I/O APIC.
pub const IO_APIC: Gpa = Gpa(0xfec0_0000);
/// Bytes of guest-physical addresses that belong to it.
pub const IO_APIC_LEN: u64 = 0x1000;
/// Input pins of the I/O APIC.
pub const IO_APIC_PINS: u8 = 24;
/// Registers of each processor's local APIC, as seen by that processor.
pub const LOCAL_APIC: Gpa = Gpa(0xfee0_0000);

/// Where the ACPI tables begin, with the root pointer (RSDP).
pub const ACPI_TABLES: Gpa = Gpa(0xe_0000);
