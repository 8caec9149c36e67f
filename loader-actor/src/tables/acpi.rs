//! ACPI tables: how many processors there are, how to power off, how to reset, where the
//! serial port is.
//!
//! ```text
//!   0xe0000  RSDP ──▶ XSDT ──▶ FADT ──▶ FACS  (the firmware's lock)
//!                      │        └─────▶ DSDT  (\_S5, COM1, RTC)
//!                      └─────▶ MADT           (processors, interrupt controllers)
//! ```
//!
//! The numbers that devices must keep stand in [`actors::platform`]. Source: ACPI 6.4, by
//! section. "Hardware-reduced" ACPI would spare the PM1 registers and their interrupt; it is
//! not used because Linux then takes the interval timer and the 8259 interrupt controllers
//! for absent, and FreeBSD wants the real registers.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use actors::platform;

use crate::low_memory::EXTENDED_MEMORY;

const OEM: [u8; 6] = *b"SKEP  ";
const OEM_TABLE: [u8; 8] = *b"SKEPVM  ";
const OEM_REVISION: u32 = 1;

/// Bytes there are for the tables: up to 1 MiB.
const ROOM: u64 = EXTENDED_MEMORY.0 - platform::ACPI_TABLES.0;

/// Why there are no tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProcessorCount {
    /// A machine without processors.
    #[error("a guest needs at least one vcpu")]
    Zero,
    /// The list of processors does not fit below 1 MiB.
    #[error("{vcpus} vcpus do not fit into the {ROOM} bytes there are for ACPI tables")]
    TooMany {
        /// How many were asked for.
        vcpus: u16,
    },
}

/// The tables for a machine of `vcpus` processors, as the bytes that belong at
/// [`platform::ACPI_TABLES`], the root pointer first.
///
/// # Errors
///
/// [`BadProcessorCount`] for none, or for more than the area has room for (about 8,000).
pub fn tables(vcpus: u16) -> Result<Vec<u8>, BadProcessorCount> {
    if vcpus == 0 {
        return Err(BadProcessorCount::Zero);
    }
    let mut area = Area { bytes: Vec::new() };
    // The root pointer knows the XSDT, which knows the others: its place is kept free.
    area.place(&vec![0; Rsdp::len()]);
    let facs = area.place(&bytes_of(&FACS::new()));
    let dsdt = area.place(&dsdt());
    let fadt = area.place(&fadt(facs, dsdt));
    let madt = area.place(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt.into());
    xsdt.add_entry(madt.into());
    let xsdt = area.place(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt.into()));
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    if area.bytes.len() as u64 > ROOM {
        return Err(BadProcessorCount::TooMany { vcpus });
    }
    Ok(area.bytes)
}

/// The tables so far.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table where a cache line begins, as the FACS must (5.2.10); returns its
    /// address.
    fn place(&mut self, table: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let at = platform::ACPI_TABLES.0 + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        u32::try_from(at).expect("65,535 processors fill one more MiB, not 4 GiB")
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn ports(base: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, base.into())
}

/// Fixed hardware (5.2.9).
fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    /// There are devices at their PC/AT addresses: the serial port.
    const LEGACY_DEVICES: u16 = 1 << 0;
    /// No VGA. (Bit 1, a keyboard controller, stays 0: only its reset line is there, and
    /// probing for a keyboard would cost the guest a second.)
    const NO_VGA: u16 = 1 << 2;
    /// Entering C2 or C3 takes longer than these say "not supported" (5.2.9, P_LVLx_LAT).
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;

    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Neither button nor clock is in the fixed registers.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    table.firmware_ctrl = facs.into();
    table.dsdt = dsdt.into();
    table.x_dsdt = u64::from(dsdt).into();
    table.sci_int = u16::from(platform::SCI_IRQ).into();
    // No SMI command port: the machine is in ACPI mode from the start.
    table.pm1a_evt_blk = u32::from(platform::PM1_EVENT).into();
    table.pm1_evt_len = platform::PM1_EVENT_LEN;
    table.x_pm1a_evt_blk =
        ports(platform::PM1_EVENT, platform::PM1_EVENT_LEN, AccessSize::WordAccess);
    table.pm1a_cnt_blk = u32::from(platform::PM1_CONTROL).into();
    table.pm1_cnt_len = platform::PM1_CONTROL_LEN;
    table.x_pm1a_cnt_blk =
        ports(platform::PM1_CONTROL, platform::PM1_CONTROL_LEN, AccessSize::WordAccess);
    table.p_lvl2_lat = NO_C2.into();
    table.p_lvl3_lat = NO_C3.into();
    table.century = platform::RTC_CENTURY;
    table.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    table.reset_reg = ports(platform::RESET_PORT, 1, AccessSize::ByteAccess);
    table.reset_value = platform::RESET_VALUE;
    bytes_of(&table.finalize())
}

/// Interrupt controllers and processors (5.2.12).
fn madt(vcpus: u16) -> Vec<u8> {
    const REVISION: u8 = 5;
    /// There are two 8259 as well.
    const PC_AT_COMPATIBLE: u32 = 1;
    /// Local APIC ids from here up need the long kind of entry.
    const FIRST_LONG_ID: u16 = 0xff;
    const ENABLED: u32 = 1;
    /// Everybody, in the entries for interrupts that go to all processors.
    const ALL: u8 = 0xff;
    /// Polarity "active high" and trigger "level", for the ACPI interrupt: the interrupt
    /// controller's default for a line from the ISA bus would be an edge.
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
    /// As the bus has it.
    const CONFORMS: u16 = 0;

    let local_apic = u32::try_from(platform::LOCAL_APIC.0).expect("below 4 GiB");
    let io_apic = u32::try_from(platform::IO_APIC.0).expect("below 4 GiB");
    let mut body = local_apic.to_le_bytes().to_vec();
    body.extend(PC_AT_COMPATIBLE.to_le_bytes());
    for id in 0..vcpus {
        match u8::try_from(id) {
            Ok(short) if id < FIRST_LONG_ID => {
                let entry = ProcessorLocalApic::new(short, short, EnabledStatus::Enabled);
                body.extend(bytes_of(&entry));
            }
            _ => {
                let id = u32::from(id).to_le_bytes();
                body.extend([9, 16, 0, 0]); // Processor Local x2APIC (5.2.12.12)
                body.extend(id);
                body.extend(ENABLED.to_le_bytes());
                body.extend(id);
            }
        }
    }
    body.extend(bytes_of(&IoApic::new(0, io_apic, 0)));
    for (irq, pin, flags) in [
        (0, platform::TIMER_PIN, CONFORMS),
        (platform::SCI_IRQ, platform::SCI_IRQ, ACTIVE_HIGH_LEVEL),
    ] {
        body.extend([2, 10, 0, irq]); // Interrupt Source Override (5.2.12.5)
        body.extend(u32::from(pin).to_le_bytes());
        body.extend(flags.to_le_bytes());
    }
    body.extend([4, 6, ALL, 0, 0, 1]); // Local APIC NMI (5.2.12.7): input LINT1
    let mut table = Sdt::new(*b"APIC", 36, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

/// What cannot be said in fixed fields (5.2.11.1).
fn dsdt() -> Vec<u8> {
    const REVISION: u8 = 6;
    let s5 = Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&platform::S5_SLEEP_TYPE, &0u8, &0u8, &0u8]),
    );
    let com1 = device(
        "COM1",
        "PNP0501",
        &IO::new(platform::COM1, platform::COM1, 1, byte(platform::COM1_LEN)),
        platform::COM1_IRQ,
    );
    let clock = device(
        "RTC_",
        "PNP0B00",
        &IO::new(platform::RTC, platform::RTC, 1, byte(platform::RTC_LEN)),
        platform::RTC_IRQ,
    );
    let mut table = Sdt::new(*b"DSDT", 36, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&bytes_of(&s5));
    table.append_slice(&Scope::raw(Path::new("\\_SB_"), [com1, clock].concat()));
    table.as_slice().to_vec()
}

/// A device on the ISA bus: some ports and an interrupt line (edge, active high, its own).
fn device(name: &str, id: &str, ports: &IO, irq: u8) -> Vec<u8> {
    let interrupt = Interrupt::new(true, true, false, false, irq.into());
    let resources = ResourceTemplate::new(vec![ports, &interrupt]);
    bytes_of(&Device::new(
        Path::new(name),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new(id)),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    ))
}

fn byte(len: u16) -> u8 {
    u8::try_from(len).expect("a device of few ports")
}
