//! How a guest starts: from a boot protocol's registers to the kernel's structures.
//!
//! Bits and segment types: Intel SDM volume 3, sections 2.5 (control registers), 3.4.5 (segment
//! descriptors) and 2.2.1 (EFER).

use actors::contract::boot::{EntryMode, EntryState};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// CR0: protected mode.
const CR0_PE: u64 = 1 << 0;
/// CR0: the one kind of numeric coprocessor there is; cannot be cleared.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: 64-bit table entries.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, long mode active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// RFLAGS: always set.
const RFLAGS_ONE: u64 = 1 << 1;

/// Segment type: data, writable, accessed.
const DATA: u8 = 0x3;
/// Segment type: code, readable, accessed.
const CODE: u8 = 0xb;
/// System segment type: a task state that is in use.
const BUSY_TASK: u8 = 0xb;

/// The general registers.
pub(crate) fn general(entry: &EntryState) -> kvm_regs {
    kvm_regs {
        rip: entry.rip.0,
        rsp: entry.rsp.0,
        rsi: entry.rsi,
        rbx: entry.rbx,
        rflags: entry.rflags | RFLAGS_ONE,
        ..kvm_regs::default()
    }
}

/// The system registers, starting from those of a reset processor.
pub(crate) fn system(entry: &EntryState, reset: &kvm_sregs) -> kvm_sregs {
    let mut sregs = *reset;
    let nothing = kvm_dtable::default();
    (sregs.gdt, sregs.idt) = (nothing, nothing);
    (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    // A reset processor has its caches off; no boot protocol starts like that.
    sregs.cr0 = CR0_ET;
    // Whatever the mode, a processor that virtualises wants a task segment that is in use.
    sregs.tr =
        kvm_segment { limit: 0xffff, type_: BUSY_TASK, present: 1, ..kvm_segment::default() };
    match entry.mode {
        EntryMode::Real { segment } => {
            set_segments(&mut sregs, real(segment, CODE), real(segment, DATA));
            // Where real mode finds its interrupt vectors.
            sregs.idt.limit = 0x3ff;
        }
        EntryMode::Protected => {
            sregs.cr0 |= CR0_PE;
            let (code, data) = (flat(0x8, CODE, 0), flat(0x10, DATA, 0));
            set_segments(&mut sregs, kvm_segment { db: 1, ..code }, data);
        }
        EntryMode::Long { cr3, gdt, gdt_limit, code, data, cpl } => {
            sregs.cr0 |= CR0_PE | CR0_PG;
            sregs.cr3 = cr3.0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME_LMA;
            sregs.gdt = kvm_dtable { base: gdt.0, limit: gdt_limit, ..nothing };
            // The two low bits of a selector ask for a level; the current one is the code segment's.
            let level = u16::from(cpl);
            let code = kvm_segment { l: 1, ..flat(code & !3 | level, CODE, cpl) };
            set_segments(&mut sregs, code, flat(data & !3 | level, DATA, cpl));
        }
    }
    sregs
}

fn set_segments(sregs: &mut kvm_sregs, code: kvm_segment, data: kvm_segment) {
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
}

/// 64 KiB from `segment << 4`.
fn real(segment: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: u64::from(segment) << 4,
        limit: 0xffff,
        selector: segment,
        type_,
        present: 1,
        s: 1,
        ..kvm_segment::default()
    }
}

/// All 4 GiB; in 64-bit mode base and limit do not matter.
fn flat(selector: u16, type_: u8, dpl: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl,
        // A stack segment needs it in 32-bit mode; a 64-bit code segment must not have it.
        db: u8::from(type_ == DATA),
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

#[cfg(test)]
mod tests {
    use actors::{Gpa, Gva};

    use super::*;

    fn entry(mode: EntryMode) -> EntryState {
        EntryState {
            mode,
            rip: Gva(0x1000),
            rsp: Gva(0x8000),
            rsi: 0x7000,
            rbx: 0x6000,
            rflags: 0x3000,
        }
    }

    fn long(cpl: u8) -> EntryMode {
        EntryMode::Long {
            cr3: Gpa(0x9000),
            gdt: Gpa(0x500),
            gdt_limit: 31,
            code: 0x10,
            data: 0x18,
            cpl,
        }
    }

    #[test]
    fn what_a_protocol_does_not_name_is_zero() {
        let regs = general(&entry(EntryMode::Protected));
        let named = kvm_regs {
            rip: 0x1000,
            rsp: 0x8000,
            rsi: 0x7000,
            rbx: 0x6000,
            rflags: 0x3002,
            ..kvm_regs::default()
        };
        assert_eq!(regs, named);
    }

    #[test]
    fn real_mode_has_every_segment_at_sixteen_times_its_number() {
        let sregs = system(&entry(EntryMode::Real { segment: 0xf000 }), &kvm_sregs::default());
        for segment in [sregs.cs, sregs.ds, sregs.es, sregs.ss] {
            assert_eq!((segment.base, segment.selector), (0xf_0000, 0xf000));
        }
        assert_eq!(sregs.cr0 & (CR0_PE | CR0_PG), 0);
    }

    #[test]
    fn protected_mode_is_flat_32_bit_without_paging() {
        let sregs = system(&entry(EntryMode::Protected), &kvm_sregs::default());
        assert_eq!(sregs.cr0 & (CR0_PE | CR0_PG), CR0_PE);
        assert_eq!((sregs.cs.db, sregs.cs.l, sregs.cs.limit), (1, 0, u32::MAX));
        assert_eq!(sregs.efer, 0);
    }

    #[test]
    fn long_mode_starts_at_the_level_it_is_told() {
        for cpl in [0, 3] {
            let sregs = system(&entry(long(cpl)), &kvm_sregs::default());
            assert_eq!((sregs.cs.dpl, sregs.ss.dpl), (cpl, cpl));
            assert_eq!(sregs.cs.selector, 0x10 | u16::from(cpl));
            assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
            assert_eq!((sregs.cr3, sregs.cr4), (0x9000, CR4_PAE));
            assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x500, 31));
        }
    }

    #[test]
    fn nothing_is_left_of_the_state_before() {
        let mut before = system(&entry(long(3)), &kvm_sregs::default());
        before.idt.base = 0x1234;
        let mode = EntryMode::Real { segment: 0 };
        assert_eq!(system(&entry(mode), &before), system(&entry(mode), &kvm_sregs::default()));
    }

    #[test]
    fn the_local_apic_stays_where_the_kernel_put_it() {
        let reset = kvm_sregs { apic_base: 0xfee0_0900, ..kvm_sregs::default() };
        assert_eq!(system(&entry(EntryMode::Protected), &reset).apic_base, 0xfee0_0900);
    }
}
