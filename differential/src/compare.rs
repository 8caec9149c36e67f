//! What must be the same on both sides.

use iced_x86::RflagsBits;

use crate::layout::{DATA_BYTES, data_address};
use crate::sequence::{Assembled, Sequence};
use crate::state::{Ending, FX_STACK, FX_XMM, GENERAL_NAMES, Outcome, State};

/// Something that is not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What.
    pub what: String,
    /// On the real processor.
    pub native: String,
    /// On ours.
    pub soft: String,
}

/// The flags that count: arithmetic, TF, IF, DF, IOPL, NT, AC, ID. RF depends on how one looks.
const FLAGS: u64 = 0x0024_7fd5;

/// What the kernel does not tell user mode about its own addresses: the P bit of their page faults' error codes
/// (arch/x86/mm/fault.c, `sanitize_error_code`).
const KERNEL_HALF: u64 = 0x7fff_ffff_f000;

/// Compares; the list is empty if nothing differs that means anything.
#[must_use]
pub fn differences(
    sequence: &Sequence,
    code: &Assembled,
    native: &Outcome,
    soft: &Outcome,
) -> Vec<Difference> {
    let mut found = Vec::new();
    let (real, ours) = (ending(&native.ending), ending(&soft.ending));
    if real != ours && !either_operand(sequence, code, native, soft) {
        found.push(Difference {
            what: "ending".to_owned(),
            native: format!("{:?} at {:#x}", native.ending, native.state.rip),
            soft: format!("{:?} at {:#x}", soft.ending, soft.state.rip),
        });
    } else if native.ending != Ending::Finished && native.state.rip != soft.state.rip {
        found.push(hexadecimal("rip", native.state.rip, soft.state.rip));
    }
    let undefined = undefined_at_end(sequence, code, native);
    registers(&mut found, &native.state, &soft.state, undefined);
    // As a whole first: that is a hundred times faster, and nearly always all.
    let differing: Vec<usize> = if native.data == soft.data {
        Vec::new()
    } else {
        (0..DATA_BYTES).filter(|at| native.data[*at] != soft.data[*at]).collect()
    };
    if let (Some(first), Some(last)) = (differing.first(), differing.last()) {
        let range = *first..(first + 16).min(last + 1);
        found.push(Difference {
            what: format!("{} bytes of data, from {:#x}", differing.len(), data_address(*first)),
            native: format!("{:02x?}", &native.data[range.clone()]),
            soft: format!("{:02x?}", &soft.data[range]),
        });
    }
    found
}

/// An ending as far as both sides can know it.
fn ending(ending: &Ending) -> Ending {
    match *ending {
        Ending::Exception { vector: 14, error, address } => {
            let error = if address >= KERNEL_HALF { error & !1 } else { error };
            Ending::Exception { vector: 14, error, address }
        }
        // CR2 is an old one.
        Ending::Exception { vector, error, .. } => Ending::Exception { vector, error, address: 0 },
        other => other,
    }
}

/// Where both operands of a string comparison fault, the processor reports whichever it likes.
fn either_operand(sequence: &Sequence, code: &Assembled, native: &Outcome, soft: &Outcome) -> bool {
    use iced_x86::Mnemonic as M;
    let of_memory =
        |outcome: &Outcome| matches!(outcome.ending, Ending::Exception { vector: 12..=14, .. });
    let base = crate::layout::code_of_slot(sequence.slot) + sequence.entry as u64;
    let offset = native.state.rip.wrapping_sub(base);
    let at = code.offsets.iter().position(|start| *start as u64 == offset);
    let mnemonic = at.and_then(|at| sequence.items.get(at)).map(|item| item.instruction.mnemonic());
    native.state.rip == soft.state.rip
        && of_memory(native)
        && of_memory(soft)
        && matches!(mnemonic, Some(M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq))
}

/// The flags without a meaning where the real processor stopped.
fn undefined_at_end(sequence: &Sequence, code: &Assembled, native: &Outcome) -> u32 {
    let Some(undefined) = sequence.undefined() else { return u32::MAX };
    let all = || undefined.iter().fold(0, |all, each| all | each);
    if native.ending == Ending::Finished {
        return undefined.last().copied().unwrap_or(0);
    }
    let base = crate::layout::code_of_slot(sequence.slot) + sequence.entry as u64;
    let offset = native.state.rip.wrapping_sub(base);
    let Some(at) = code.offsets.iter().position(|start| *start as u64 == offset) else {
        return all();
    };
    let before = undefined[at];
    let Some(item) = sequence.items.get(at) else { return before };
    // A string instruction may have done some elements.
    if item.instruction.has_rep_prefix() || item.instruction.has_repne_prefix() {
        before | item.instruction.rflags_modified()
    } else {
        before
    }
}

fn hexadecimal(what: impl Into<String>, native: u64, soft: u64) -> Difference {
    Difference { what: what.into(), native: format!("{native:#x}"), soft: format!("{soft:#x}") }
}

/// All registers.
fn registers(found: &mut Vec<Difference>, native: &State, soft: &State, undefined: u32) {
    for (number, name) in GENERAL_NAMES.iter().enumerate() {
        if native.general[number] != soft.general[number] {
            found.push(hexadecimal(*name, native.general[number], soft.general[number]));
        }
    }
    let mask = FLAGS & !rflags(undefined);
    if (native.flags ^ soft.flags) & mask != 0 {
        found.push(hexadecimal("flags", native.flags & mask, soft.flags & mask));
    }
    let (real, ours) = (&native.floating, &soft.floating);
    let status = !conditions(undefined);
    let words = [("x87 control", 0, u16::MAX), ("x87 status", 2, status), ("x87 tags", 4, 0xff)];
    for (what, at, mask) in words {
        let (a, b) = (real.word(at) & mask, ours.word(at) & mask);
        if a != b {
            found.push(hexadecimal(what, u64::from(a), u64::from(b)));
        }
    }
    if real.mxcsr() != ours.mxcsr() {
        found.push(hexadecimal("mxcsr", u64::from(real.mxcsr()), u64::from(ours.mxcsr())));
    }
    for number in 0..8 {
        let range = FX_STACK + 16 * number..FX_STACK + 16 * number + 10;
        bytes(found, format!("st{number}"), &real.0[range.clone()], &ours.0[range]);
    }
    for number in 0..16 {
        let range = FX_XMM + 16 * number..FX_XMM + 16 * number + 16;
        bytes(found, format!("xmm{number}"), &real.0[range.clone()], &ours.0[range]);
    }
}

/// A wide register, most significant byte first.
fn bytes(found: &mut Vec<Difference>, what: String, native: &[u8], soft: &[u8]) {
    if native != soft {
        let text =
            |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
        found.push(Difference { what, native: text(native), soft: text(soft) });
    }
}

/// The decoder's flag bits as bits of RFLAGS.
fn rflags(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ];
    pairs.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, at)| all | 1 << at)
}

/// The decoder's condition-code bits as bits of the x87 status word.
fn conditions(bits: u32) -> u16 {
    let pairs =
        [(RflagsBits::C0, 8), (RflagsBits::C1, 9), (RflagsBits::C2, 10), (RflagsBits::C3, 14)];
    pairs.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, at)| all | 1 << at)
}
