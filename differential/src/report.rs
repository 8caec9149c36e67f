//! Saying what happened: one mismatch, and the list of what is covered.

use std::collections::BTreeMap;
use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

use crate::campaign::Count;
use crate::compare::Difference;
use crate::generate::catalogue::{Family, Form};
use crate::layout::code_of_slot;
use crate::sequence::{Assembled, Sequence};
use crate::state::{FX_STACK, FX_XMM, FloatingState, GENERAL_NAMES, Outcome};

/// A sequence, its input and both outcomes.
#[must_use]
pub fn mismatch(
    family: Family,
    seed: u64,
    index: u64,
    sequence: &Sequence,
    code: &Assembled,
    (native, soft): (&Outcome, &Outcome),
    found: &[Difference],
) -> String {
    let mut text = String::new();
    let result =
        write_mismatch(&mut text, (family, seed, index), sequence, code, (native, soft), found);
    debug_assert!(result.is_ok(), "writing to a string");
    text
}

fn write_mismatch(
    text: &mut String,
    (family, seed, index): (Family, u64, u64),
    sequence: &Sequence,
    code: &Assembled,
    (native, soft): (&Outcome, &Outcome),
    found: &[Difference],
) -> std::fmt::Result {
    writeln!(text, "replay with: --family {family} --seed {seed} --replay {index}")?;
    let base = code_of_slot(sequence.slot) + sequence.entry as u64;
    let mut formatter = IntelFormatter::new();
    let mut decoder = Decoder::with_ip(64, &code.input.code, base, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let start = usize::try_from(instruction.ip() - base).unwrap_or(0);
        let bytes: String = code.input.code[start..start + instruction.len()]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        writeln!(text, "  {:#x}  {bytes:<24} {line}", instruction.ip())?;
    }
    write!(text, "  input: data pattern {}, flags {:#x}", sequence.template, sequence.state.flags)?;
    for (name, value) in GENERAL_NAMES.iter().zip(sequence.state.general) {
        if value != 0 {
            write!(text, ", {name} {value:#x}")?;
        }
    }
    writeln!(text)?;
    if sequence.state.floating != FloatingState::initial() {
        write_floating(text, &sequence.state.floating)?;
    }
    writeln!(text, "  {:<24} {:<44} {:<44}", "", "the real processor", "the software processor")?;
    let ending = |outcome: &Outcome| format!("{:x?} at {:#x}", outcome.ending, outcome.state.rip);
    writeln!(text, "  {:<24} {:<44} {:<44}", "(ending)", ending(native), ending(soft))?;
    for difference in found {
        writeln!(
            text,
            "  {:<24} {:<44} {:<44}",
            difference.what, difference.native, difference.soft
        )?;
    }
    if found.is_empty() {
        writeln!(text, "  no difference")?;
    }
    Ok(())
}

fn write_floating(text: &mut String, image: &FloatingState) -> std::fmt::Result {
    let hexadecimal = |at: usize, bytes: usize| -> String {
        image.0[at..at + bytes].iter().rev().map(|byte| format!("{byte:02x}")).collect()
    };
    write!(
        text,
        "         x87 control {:#x}, status {:#x}, tags {:#x}, mxcsr {:#x}",
        image.word(0),
        image.word(2),
        image.0[4],
        image.mxcsr()
    )?;
    let mut show = |name: String, at: usize, bytes: usize| {
        if image.0[at..at + bytes].iter().any(|byte| *byte != 0) {
            write!(text, ", {name} {}", hexadecimal(at, bytes))
        } else {
            Ok(())
        }
    };
    for number in 0..8 {
        show(format!("st{number}"), FX_STACK + 16 * number, 10)?;
    }
    for number in 0..16 {
        show(format!("xmm{number}"), FX_XMM + 16 * number, 16)?;
    }
    writeln!(text)
}

/// The list of what was compared, as Markdown.
#[must_use]
pub fn coverage(forms: &[Form], counts: &BTreeMap<usize, Count>, heading: &str) -> String {
    let mut rows: BTreeMap<(Family, String, String), Count> = BTreeMap::new();
    for (at, form) in forms.iter().enumerate() {
        let row = rows.entry((form.family, form.mnemonic(), form.name())).or_default();
        let count = counts.get(&at).copied().unwrap_or_default();
        row.sequences += count.sequences;
        row.unknown += count.unknown;
    }
    let mut text = String::from("# What the differential tester has compared\n\n");
    text.push_str(heading);
    for family in Family::ALL {
        let of_family: Vec<_> = rows.iter().filter(|((each, ..), _)| *each == family).collect();
        if of_family.is_empty() {
            continue;
        }
        let covered = of_family.iter().filter(|(_, count)| count.sequences > 0).count();
        text.push_str(&format!("\n## {family}: {covered} of {} forms\n\n", of_family.len()));
        text.push_str("| instruction | form | sequences |\n|---|---|---:|\n");
        for ((_, mnemonic, form), count) in
            of_family.iter().filter(|(_, count)| count.sequences > 0)
        {
            text.push_str(&format!("| {mnemonic} | `{form}` | {} |\n", count.sequences));
        }
        let missing: Vec<_> = of_family.iter().filter(|(_, count)| count.sequences == 0).collect();
        if !missing.is_empty() {
            text.push_str("\nNot compared:\n\n");
            for ((_, _, form), count) in missing {
                let why = if count.unknown > 0 {
                    "the software processor raises #UD and names it"
                } else {
                    "never reached"
                };
                text.push_str(&format!("* `{form}`: {why}\n"));
            }
        }
    }
    text
}
