//! Random code in random states: it may do anything but harm the processor.

use proptest::prelude::*;
use proptest::sample::select;

use super::kernel::{GDT, HANDLERS, IDT, RSP0, TSS, sel, system_descriptor};
use super::{CODE, DATA, Guest, MEMORY};
use crate::Stop;
use crate::cpu::{cr0, cr4, efer, reg, seg};
use crate::segment::Segment;

/// The modes a processor can be in.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Real,
    Protected16,
    Protected32,
    Paged32,
    Pae,
    Compatible,
    Long,
}

#[derive(Clone, Debug)]
struct State {
    mode: Mode,
    user: bool,
    rflags: u64,
    control: u64,
    registers: Vec<u64>,
    code: Vec<u8>,
    tables: Vec<(u64, u64)>,
    bases: Vec<u64>,
    seed: u64,
}

/// Numbers that lead somewhere, or nearly.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..MEMORY,
        any::<u64>(),
        select(vec![0, 1, u64::MAX, 1 << 47, !0 << 47, 0xffff_ffff, 1 << 32, MEMORY, MEMORY - 1]),
        (0u64..32).prop_map(|page| 0x20_0000 + page * 4096 - 4),
        0u64..256,
    ]
}

fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let random = prop::collection::vec(any::<u8>(), 1..12);
    // System instructions are rare among random bytes.
    let system = (
        select(vec![
            0x00u8, 0x01, 0x05, 0x06, 0x07, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x34, 0x35,
            0xa0, 0xa1, 0xa2, 0xa8, 0xa9, 0xae, 0xb2, 0xb4, 0xb5, 0x02, 0x03, 0xc7,
        ]),
        any::<[u8; 6]>(),
    )
        .prop_map(|(opcode, rest)| [&[0x0f, opcode][..], &rest].concat());
    let wide = (select(vec![0x0fu8, 0xcf, 0xcb, 0xca, 0xff, 0x8e, 0x63]), any::<[u8; 6]>())
        .prop_map(|(opcode, rest)| [&[0x48, opcode][..], &rest].concat());
    let short = select(vec![
        0xcfu8, 0xcb, 0xca, 0xcd, 0xcc, 0xce, 0xf1, 0xfa, 0xfb, 0x9d, 0x9c, 0xec, 0xee, 0xed, 0x6c,
        0x6e, 0xa4, 0xab, 0xf3, 0xf2, 0x66, 0x67, 0x9a, 0xea, 0x8e, 0x07, 0x1f, 0x17, 0xc4, 0xc5,
        0xc8, 0xc9, 0x60, 0x61,
    ])
    .prop_map(|byte| vec![byte]);
    prop_oneof![random, system, wide, short]
}

fn state() -> impl Strategy<Value = State> {
    let modes = vec![
        Mode::Real,
        Mode::Protected16,
        Mode::Protected32,
        Mode::Paged32,
        Mode::Pae,
        Mode::Compatible,
        Mode::Long,
        Mode::Long,
        Mode::Long,
    ];
    let at = prop_oneof![
        (0u64..0x80).prop_map(|at| GDT + at),
        (0u64..0x200).prop_map(|at| IDT + at),
        (0u64..0x80).prop_map(|at| TSS + at),
        (0u64..0x3000).prop_map(|at| 0x1000 + (at & !7)),
    ];
    (
        (select(modes), any::<bool>(), any::<u64>(), any::<u64>(), any::<u64>()),
        prop::collection::vec(number(), 16),
        prop::collection::vec(instruction(), 1..24).prop_map(|parts| parts.concat()),
        prop::collection::vec((at, number()), 0..4),
        prop::collection::vec(number(), 4),
    )
        .prop_map(|((mode, user, rflags, control, seed), registers, code, tables, bases)| {
            State { mode, user, rflags, control, registers, code, tables, bases, seed }
        })
}

/// Makes handlers that go on one byte after what failed: so a case is not over with its first fault.
fn return_from_handlers(guest: &Guest, long: bool) {
    for vector in 0..256u64 {
        let target = HANDLERS + 16 * vector;
        let mut code = vec![];
        let coded = matches!(vector, 8 | 10..=14 | 17);
        match (long, coded) {
            (true, true) => code.extend([0x48, 0x83, 0xc4, 0x08]), // add rsp, 8
            (false, true) => code.extend([0x83, 0xc4, 0x04]),
            _ => {}
        }
        // inc [rsp]; iret
        let rest: &[u8] =
            if long { &[0x48, 0xff, 0x04, 0x24, 0x48, 0xcf] } else { &[0xff, 0x04, 0x24, 0xcf] };
        code.extend(rest);
        guest.memory.write(target, &code);
        if !long {
            let gate =
                target & 0xffff | u64::from(sel::CODE32) << 16 | 0xee << 40 | (target >> 16) << 48;
            guest.memory.write64(IDT + 8 * vector, gate);
        }
    }
}

fn prepare(state: &State) -> Guest {
    let mut guest = Guest::with_kernel();
    let pae = matches!(state.mode, Mode::Pae);
    if matches!(state.mode, Mode::Paged32) {
        for entry in 0..1024u32 {
            let bytes = ((entry % 8) << 22 | 0x87).to_le_bytes();
            guest.memory.write(0xc000 + 4 * u64::from(entry), &bytes);
        }
    }
    return_from_handlers(&guest, matches!(state.mode, Mode::Long | Mode::Compatible));
    if !matches!(state.mode, Mode::Long | Mode::Compatible) {
        // A 32-bit task state.
        guest.memory.write64(GDT + u64::from(sel::TASK), system_descriptor(TSS, 0x1067, 0x8b));
        guest.memory.write64(TSS + 4, RSP0 | u64::from(sel::DATA) << 32);
    }
    for (at, value) in &state.tables {
        guest.memory.write64(*at, *value);
    }
    guest.memory.write(CODE, &state.code);
    guest.memory.write(DATA, &state.code);
    let cpu = &mut guest.processor.cpu;
    let rings = if state.user { 0x60 } else { 0 };
    let attributes = match state.mode {
        Mode::Long => 0xa09b,
        Mode::Real | Mode::Protected16 => 0x009b,
        _ => 0xc09b,
    } | rings;
    let paging = cr0::PE | cr0::PG | cr0::WP;
    (cpu.cr0, cpu.efer) = match state.mode {
        Mode::Real => (0, 0),
        Mode::Protected16 | Mode::Protected32 => (cr0::PE, 0),
        Mode::Paged32 | Mode::Pae => (paging, efer::NXE),
        Mode::Compatible | Mode::Long => (paging, efer::LME | efer::NXE | efer::SCE),
    };
    cpu.cr0 |= cr0::ET | cr0::NE | cr0::MP;
    cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
    // The kernel's pages are users', too: with these it does not get far.
    let guards = if state.seed % 8 == 1 { cr4::SMAP | cr4::SMEP } else { 0 };
    cpu.cr4 |= state.control & (guards | cr4::FSGSBASE | cr4::UMIP | cr4::TSD | cr4::DE);
    cpu.cr4 |= if matches!(state.mode, Mode::Paged32) { cr4::PSE } else { cr4::PAE };
    cpu.cr3 = if matches!(state.mode, Mode::Paged32) { 0xc000 } else { 0x1000 };
    if pae {
        cpu.pdptes = [0x3001, 0x3001, 0, state.bases[3] & 0x3f_f001];
    }
    let real = matches!(state.mode, Mode::Real);
    let flat = Segment {
        selector: 0x10 | (u16::from(state.user) * 3),
        base: 0,
        limit: u32::MAX,
        attributes: 0xc093 | rings,
    };
    for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        cpu.set_segment(which, if real { Segment::real(0x1000) } else { flat });
    }
    cpu.set_segment(seg::FS, Segment { base: state.bases[0], ..flat });
    cpu.set_segment(seg::GS, Segment { base: state.bases[1], ..flat });
    cpu.set_segment(
        seg::CS,
        Segment { selector: 8 | (u16::from(state.user) * 3), attributes, ..flat },
    );
    cpu.msr.lstar = DATA;
    cpu.msr.kernel_gs_base = state.bases[2];
    cpu.mode_changed();
    cpu.set_cpl(if state.user && !real { 3 } else { 0 });
    cpu.set_rflags(state.rflags & 0x24_7fd5);
    for (register, value) in cpu.gpr.iter_mut().zip(&state.registers) {
        *register = *value;
    }
    if !state.seed.is_multiple_of(4) {
        // A stack that works, mostly.
        cpu.gpr[reg::RSP] = 0x9_f000;
    }
    cpu.rip = CODE;
    guest.world.lock().patience = Some(8);
    guest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_code_in_a_random_state_never_harms_the_processor(state in state(), checked in any::<bool>()) {
        let mut guest = prepare(&state);
        if checked {
            guest.processor.check_translations();
        }
        let mut seed = state.seed;
        for turn in 0..40u64 {
            seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(turn);
            if turn % 7 == 3 {
                guest.world.lock().interrupts.push(seed.to_le_bytes()[0]);
            }
            if turn == 9 {
                guest.world.lock().absent.insert(seed % MEMORY / 4096 * 4096);
                guest.processor.flush();
            }
            if turn == 20 {
                guest.processor.raise_nmi();
            }
            match guest.go_on() {
                Stop::PortRead(_) | Stop::Mmio(_) | Stop::StringPort(_) => guest.processor.answer(seed),
                Stop::Nested(_) => guest.world.lock().absent.clear(),
                Stop::TripleFault | Stop::NoMemory { .. } | Stop::Knocked => break,
                Stop::Halted if turn > 25 => break,
                Stop::Misconfigured(_) | Stop::Stale(_) => panic!("nothing is broken"),
                Stop::Halted | Stop::Again | Stop::PortWrite(_) => {}
            }
        }
        // What must hold whatever happened.
        let cpu = &guest.processor.cpu;
        prop_assert!(cpu.cpl < 4);
        prop_assert_eq!(cpu.system_flags & 2, 2);
        prop_assert_eq!(cpu.is_long(), cpu.efer & efer::LME != 0 && cpu.cr0 & cr0::PG != 0);
        prop_assert!(cpu.cr0 & cr0::PG == 0 || cpu.cr0 & cr0::PE != 0);
        prop_assert_eq!(cpu.gpr[16], 0);
        prop_assert_eq!(cpu.gpr[24], 0);
        for (index, segment) in cpu.segments.iter().enumerate() {
            prop_assert_eq!(cpu.gpr[18 + index], segment.base);
        }
    }
}
