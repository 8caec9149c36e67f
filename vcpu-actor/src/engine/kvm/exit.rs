//! Why the guest came out: from the kernel's bytes to an [`Exit`].
//!
//! The layout is that of `struct kvm_run` (Linux, Documentation/virt/kvm/api.rst, section 5), read from
//! `exit_reason` on. Offsets are taken from kvm-bindings' structures; what the kernel says is
//! checked against the area's size all the same, so a wrong offset is an error and not a crash.

use std::mem::offset_of;

use actors::Gpa;
use actors::contract::guest::GuestEnd;
use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_UNKNOWN,
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    KVM_SYSTEM_EVENT_SUSPEND, KVM_SYSTEM_EVENT_WAKEUP, kvm_run,
    kvm_run__bindgen_ty_1__bindgen_ty_4 as Io, kvm_run__bindgen_ty_1__bindgen_ty_6 as Mmio,
    kvm_run__bindgen_ty_1__bindgen_ty_13 as Internal,
};

use crate::engine::{Direction, Exit, MmioAccess, PortAccess};

/// The area starts here.
const START: usize = offset_of!(kvm_run, exit_reason);
/// What is different for each reason starts here.
const DETAIL: usize = offset_of!(kvm_run, __bindgen_anon_1) - START;

/// Decodes what the kernel left in `report`. `rip` is asked for only when the guest cannot go on.
pub(crate) fn decode(report: &mut [u8], rip: impl FnOnce() -> u64) -> Exit<'_> {
    let bytes = Bytes(report);
    match bytes.word(0) {
        Some(KVM_EXIT_IO) => port(report, rip),
        Some(KVM_EXIT_MMIO) => mmio(report, rip),
        Some(KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_SET_TPR | KVM_EXIT_IOAPIC_EOI) => {
            Exit::Nothing
        }
        Some(KVM_EXIT_SHUTDOWN) => Exit::TripleFault { rip: rip() },
        Some(KVM_EXIT_SYSTEM_EVENT) => match bytes.word(DETAIL) {
            Some(KVM_SYSTEM_EVENT_SHUTDOWN) => Exit::Ends(GuestEnd::PowerOff),
            Some(KVM_SYSTEM_EVENT_RESET) => Exit::Ends(GuestEnd::Reset),
            Some(KVM_SYSTEM_EVENT_WAKEUP | KVM_SYSTEM_EVENT_SUSPEND) => Exit::Nothing,
            other => Exit::Failed {
                rip: rip(),
                what: format!("it reported system event {}", number(other)),
            },
        },
        Some(KVM_EXIT_MEMORY_FAULT) => Exit::MemoryRefused {
            rip: rip(),
            // flags, then the address, then the size.
            at: bytes.long(DETAIL + 8).map(Gpa),
        },
        Some(KVM_EXIT_HLT) => failed(rip, "it halted, and nothing could ever wake it"),
        Some(KVM_EXIT_FAIL_ENTRY) => Exit::Failed {
            rip: rip(),
            what: format!(
                "the processor refused to enter the guest, reason {:#x}",
                bytes.long(DETAIL).unwrap_or_default()
            ),
        },
        Some(KVM_EXIT_UNKNOWN) => Exit::Failed {
            rip: rip(),
            what: format!(
                "KVM does not know the processor's exit reason {:#x}",
                bytes.long(DETAIL).unwrap_or_default()
            ),
        },
        Some(KVM_EXIT_INTERNAL_ERROR) => Exit::Failed { rip: rip(), what: internal_error(bytes) },
        other => Exit::Failed {
            rip: rip(),
            what: format!("KVM came out for reason {}, never asked for", number(other)),
        },
    }
}

fn failed<'e>(rip: impl FnOnce() -> u64, what: &str) -> Exit<'e> {
    Exit::Failed { rip: rip(), what: what.to_owned() }
}

fn port(report: &mut [u8], rip: impl FnOnce() -> u64) -> Exit<'_> {
    let io = Bytes(report);
    let found = (|| {
        let size = usize::from(io.byte(DETAIL + offset_of!(Io, size))?);
        let count = usize::try_from(io.word(DETAIL + offset_of!(Io, count))?).ok()?;
        let low = io.byte(DETAIL + offset_of!(Io, port))?;
        let high = io.byte(DETAIL + offset_of!(Io, port) + 1)?;
        let direction = io.byte(DETAIL + offset_of!(Io, direction))?;
        let offset = usize::try_from(io.long(DETAIL + offset_of!(Io, data_offset))?).ok()?;
        let start = offset.checked_sub(START)?;
        let end = start.checked_add(size.checked_mul(count)?)?;
        let direction = if u32::from(direction) == KVM_EXIT_IO_OUT {
            Direction::Write
        } else {
            Direction::Read
        };
        let port = u16::from_le_bytes([low, high]);
        (matches!(size, 1 | 2 | 4) && end <= io.0.len()).then_some((
            port,
            direction,
            size,
            start..end,
        ))
    })();
    match found {
        Some((port, direction, size, place)) => {
            Exit::Port(PortAccess { port, direction, size, data: &mut report[place] })
        }
        None => failed(rip, "KVM described a port access that cannot be"),
    }
}

fn mmio(report: &mut [u8], rip: impl FnOnce() -> u64) -> Exit<'_> {
    let access = Bytes(report);
    let found = (|| {
        let at = access.long(DETAIL + offset_of!(Mmio, phys_addr))?;
        let len = usize::try_from(access.word(DETAIL + offset_of!(Mmio, len))?).ok()?;
        let is_write = access.byte(DETAIL + offset_of!(Mmio, is_write))?;
        let direction = match is_write {
            0 => Direction::Read,
            _ => Direction::Write,
        };
        (1..=8).contains(&len).then_some((Gpa(at), direction, len))
    })();
    let start = DETAIL + offset_of!(Mmio, data);
    match found {
        Some((at, direction, len)) if start + len <= report.len() => {
            Exit::Mmio(MmioAccess { at, direction, data: &mut report[start..start + len] })
        }
        _ => failed(rip, "KVM described a memory access that cannot be"),
    }
}

fn internal_error(bytes: Bytes<'_>) -> String {
    let suberror = bytes.word(DETAIL + offset_of!(Internal, suberror));
    let count = bytes.word(DETAIL + offset_of!(Internal, ndata)).unwrap_or(0).min(16) as usize;
    let data = |index| bytes.long(DETAIL + offset_of!(Internal, data) + 8 * index);
    match suberror {
        Some(KVM_INTERNAL_ERROR_EMULATION) => {
            let mut what = "KVM cannot emulate its instruction".to_owned();
            // The first value is a set of flags; the next two may be a length and 15 bytes.
            let has_bytes = count >= 3
                && data(0).is_some_and(|flags| {
                    flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0
                });
            let place = DETAIL + offset_of!(Internal, data) + 8;
            if let Some((&len, rest)) =
                bytes.0.get(place..place + 16).and_then(|it| it.split_first())
                && has_bytes
            {
                for byte in &rest[..usize::from(len).min(rest.len())] {
                    what.push_str(&format!(" {byte:02x}"));
                }
            }
            what
        }
        Some(KVM_INTERNAL_ERROR_SIMUL_EX) => {
            "KVM met an exception while it delivered another".to_owned()
        }
        Some(KVM_INTERNAL_ERROR_DELIVERY_EV) => {
            let values: Vec<_> =
                (0..count).filter_map(data).map(|value| format!("{value:#x}")).collect();
            format!("KVM failed to deliver an event to it (details {})", values.join(" "))
        }
        Some(KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON) => format!(
            "the processor left the guest for a reason KVM does not expect ({:#x})",
            data(0).unwrap_or_default()
        ),
        other => format!("KVM reports its internal error {}", number(other)),
    }
}

fn number(word: Option<u32>) -> String {
    word.map_or_else(|| "?".to_owned(), |word| word.to_string())
}

/// Reads numbers at offsets; `None` beyond the end.
#[derive(Clone, Copy)]
struct Bytes<'b>(&'b [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn byte(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn word(self, at: usize) -> Option<u32> {
        self.take(at).map(u32::from_ne_bytes)
    }

    fn long(self, at: usize) -> Option<u64> {
        self.take(at).map(u64::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: usize = 3 * 4096 - START;
    const RIP: u64 = 0xfff0;

    fn area(reason: u32, detail: &[(usize, &[u8])]) -> Vec<u8> {
        let mut area = vec![0; AREA];
        area[..4].copy_from_slice(&reason.to_ne_bytes());
        for (offset, bytes) in detail {
            area[DETAIL + offset..][..bytes.len()].copy_from_slice(bytes);
        }
        area
    }

    fn io(direction: u8, size: u8, count: u32, data_offset: u64) -> Vec<u8> {
        let port = 0x3f8u16.to_ne_bytes();
        area(
            KVM_EXIT_IO,
            &[
                (0, &[direction, size]),
                (2, &port),
                (4, &count.to_ne_bytes()),
                (8, &data_offset.to_ne_bytes()),
            ],
        )
    }

    fn what(mut area: Vec<u8>) -> String {
        match decode(&mut area, || RIP) {
            Exit::Failed { rip: RIP, what } => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_port_access_is_found_where_the_kernel_put_its_data() {
        let mut area = io(1, 2, 3, 4096);
        area[4096 - START..][..6].copy_from_slice(b"abcdef");
        let Exit::Port(access) = decode(&mut area, || RIP) else {
            panic!("not a port access");
        };
        assert_eq!((access.port, access.direction, access.size), (0x3f8, Direction::Write, 2));
        assert_eq!(access.data, b"abcdef");
    }

    #[test]
    fn what_is_filled_in_is_where_the_kernel_looks_for_it() {
        let mut area = io(0, 4, 1, 4096);
        if let Exit::Port(access) = decode(&mut area, || RIP) {
            assert_eq!(access.direction, Direction::Read);
            access.data.copy_from_slice(b"wxyz");
        }
        assert_eq!(area[4096 - START..][..4], *b"wxyz");
    }

    #[test]
    fn a_port_access_that_cannot_be_is_an_error() {
        for (size, count, offset) in [
            (0, 1, 4096),
            (3, 1, 4096),
            (8, 1, 4096),
            (1, 1, 0),
            (1, u32::MAX, 4096),
            (4, 1, u64::MAX),
            (4, 2, 3 * 4096 - 4),
        ] {
            let said = what(io(1, size, count, offset));
            assert!(said.contains("port access that cannot be"), "{said}");
        }
    }

    #[test]
    fn a_memory_access_is_decoded_in_place() {
        let mut area = area(
            KVM_EXIT_MMIO,
            &[
                (0, &0xfee0_0000u64.to_ne_bytes()),
                (16, &3u32.to_ne_bytes()),
                (20, &[1]),
                (8, b"abc"),
            ],
        );
        let exit = decode(&mut area, || RIP);
        assert_eq!(
            exit,
            Exit::Mmio(MmioAccess {
                at: Gpa(0xfee0_0000),
                direction: Direction::Write,
                data: &mut b"abc".to_owned(),
            })
        );
    }

    #[test]
    fn a_memory_access_that_cannot_be_is_an_error() {
        for len in [0u32, 9, u32::MAX] {
            let said = what(area(KVM_EXIT_MMIO, &[(16, &len.to_ne_bytes())]));
            assert!(said.contains("memory access that cannot be"), "{said}");
        }
    }

    #[test]
    fn an_instruction_that_cannot_be_emulated_is_shown() {
        let said = what(area(
            KVM_EXIT_INTERNAL_ERROR,
            &[
                (0, &KVM_INTERNAL_ERROR_EMULATION.to_ne_bytes()),
                (4, &3u32.to_ne_bytes()),
                (8, &1u64.to_ne_bytes()),
                (16, &[3, 0x0f, 0xae, 0x2f, 0x99]),
            ],
        ));
        assert_eq!(said, "KVM cannot emulate its instruction 0f ae 2f");
    }

    #[test]
    fn without_the_flag_no_bytes_are_shown() {
        let said = what(area(
            KVM_EXIT_INTERNAL_ERROR,
            &[
                (0, &KVM_INTERNAL_ERROR_EMULATION.to_ne_bytes()),
                (4, &3u32.to_ne_bytes()),
                (16, &[3, 0x0f, 0xae, 0x2f]),
            ],
        ));
        assert_eq!(said, "KVM cannot emulate its instruction");
    }

    #[test]
    fn a_guest_may_end_without_a_device() {
        for (event, end) in [(1u32, GuestEnd::PowerOff), (2, GuestEnd::Reset)] {
            let mut area = area(KVM_EXIT_SYSTEM_EVENT, &[(0, &event.to_ne_bytes())]);
            assert_eq!(decode(&mut area, || RIP), Exit::Ends(end));
        }
        let said = what(area(KVM_EXIT_SYSTEM_EVENT, &[(0, &3u32.to_ne_bytes())]));
        assert!(said.contains("system event 3"), "{said}");
    }

    #[test]
    fn every_reason_there_is_or_may_be_becomes_an_exit() {
        for reason in (0..64).chain([u32::MAX]) {
            // The contents are the worst there can be: all ones.
            let mut area = vec![0xff; AREA];
            area[..4].copy_from_slice(&reason.to_ne_bytes());
            let exit = decode(&mut area, || RIP);
            match reason {
                KVM_EXIT_SHUTDOWN => assert_eq!(exit, Exit::TripleFault { rip: RIP }),
                KVM_EXIT_INTR | 7 | 11 | 26 => assert_eq!(exit, Exit::Nothing),
                KVM_EXIT_MEMORY_FAULT => {
                    assert!(matches!(exit, Exit::MemoryRefused { rip: RIP, .. }));
                }
                _ => assert!(matches!(exit, Exit::Failed { rip: RIP, .. }), "{exit:?}"),
            }
        }
    }

    #[test]
    fn an_area_that_ends_too_soon_is_an_error_too() {
        for len in 0..=DETAIL + 32 {
            for reason in 0..40u32 {
                let mut area = area(reason, &[]);
                area.truncate(len);
                drop(decode(&mut area, || RIP));
            }
        }
    }
}
