//! The registers of a local APIC by number: their place in memory is sixteen times the
//! number, their MSR is 0x800 and the number.
//!
//! Source: SDM, APIC, "Local APIC Register Address Map" and "Local APIC Register Address Map
//! Supported by x2APIC".

/// One entry of the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Local {
    /// How many there are.
    pub(super) const COUNT: usize = 6;

    /// Its place in an array of all.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Timer => 0,
            Self::Thermal => 1,
            Self::Performance => 2,
            Self::Lint0 => 3,
            Self::Lint1 => 4,
            Self::Error => 5,
        }
    }

    /// Bits software can set: vector, mask, and what the kind of entry has besides.
    /// SDM, APIC, "Local Vector Table".
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Timer => 0x0007_00ff,
            Self::Thermal | Self::Performance => 0x0001_07ff,
            Self::Lint0 | Self::Lint1 => 0x0001_a7ff,
            Self::Error => 0x0001_00ff,
        }
    }

    /// Bits that show a state: writing them is allowed and does nothing.
    pub(super) fn status_bits(self) -> u32 {
        match self {
            // Delivery status, and the remote IRR of the two inputs.
            Self::Lint0 | Self::Lint1 => 0x5000,
            _ => 0x1000,
        }
    }
}

/// Which register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Id,
    Version,
    TaskPriority,
    /// xAPIC only, like the next three with this remark.
    ArbitrationPriority,
    ProcessorPriority,
    EndOfInterrupt,
    /// xAPIC only.
    RemoteRead,
    LogicalDestination,
    /// xAPIC only.
    DestinationFormat,
    Spurious,
    InService(u8),
    TriggerMode(u8),
    Requested(u8),
    ErrorStatus,
    Command,
    /// xAPIC only.
    CommandHigh,
    Local(Local),
    InitialCount,
    CurrentCount,
    Divide,
    /// x2APIC only.
    SelfInterrupt,
}

impl Register {
    fn numbered(number: u8) -> Option<Self> {
        Some(match number {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::TaskPriority,
            0x09 => Self::ArbitrationPriority,
            0x0a => Self::ProcessorPriority,
            0x0b => Self::EndOfInterrupt,
            0x0c => Self::RemoteRead,
            0x0d => Self::LogicalDestination,
            0x0e => Self::DestinationFormat,
            0x0f => Self::Spurious,
            0x10..=0x17 => Self::InService(number & 7),
            0x18..=0x1f => Self::TriggerMode(number & 7),
            0x20..=0x27 => Self::Requested(number & 7),
            0x28 => Self::ErrorStatus,
            0x30 => Self::Command,
            0x31 => Self::CommandHigh,
            0x32 => Self::Local(Local::Timer),
            0x33 => Self::Local(Local::Thermal),
            0x34 => Self::Local(Local::Performance),
            0x35 => Self::Local(Local::Lint0),
            0x36 => Self::Local(Local::Lint1),
            0x37 => Self::Local(Local::Error),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::Divide,
            0x3f => Self::SelfInterrupt,
            _ => return None,
        })
    }

    /// The register `offset` bytes into the local APIC's page.
    pub(super) fn in_memory(offset: u32) -> Option<Self> {
        let number = u8::try_from(offset >> 4).ok().filter(|_| offset & 0xf == 0)?;
        Self::numbered(number).filter(|register| *register != Self::SelfInterrupt)
    }

    /// The register behind MSR 0x800 + `number`.
    pub(super) fn as_msr(number: u8) -> Option<Self> {
        Self::numbered(number).filter(|register| {
            !matches!(
                register,
                Self::ArbitrationPriority
                    | Self::RemoteRead
                    | Self::DestinationFormat
                    | Self::CommandHigh
            )
        })
    }

    /// Whether the MSR can be read.
    pub(super) fn is_readable_msr(self) -> bool {
        !matches!(self, Self::EndOfInterrupt | Self::SelfInterrupt)
    }

    /// The bits of the MSR that may be written as ones; `None` if it cannot be written.
    pub(super) fn msr_bits(self) -> Option<u64> {
        Some(match self {
            Self::TaskPriority | Self::SelfInterrupt => 0xff,
            // Zero is all that may be written.
            Self::EndOfInterrupt | Self::ErrorStatus => 0,
            Self::Spurious => SPURIOUS_BITS.into(),
            Self::Command => super::command::X2APIC_BITS,
            Self::Local(local) => (local.bits() | local.status_bits()).into(),
            Self::InitialCount => 0xffff_ffff,
            Self::Divide => DIVIDE_BITS.into(),
            _ => return None,
        })
    }
}

/// Spurious interrupt vector register: vector, software enable, focus checking (which nothing
/// depends on), suppression of end-of-interrupt broadcasts.
pub(super) const SPURIOUS_BITS: u32 = 0x0000_13ff;
/// Divide configuration register.
pub(super) const DIVIDE_BITS: u32 = 0b1011;
