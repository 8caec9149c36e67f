//! Strings to and from ports: `ins` and `outs`.
//!
//! Each element is an access of its own: the handler ends with [`Event::StringPort`], and is done again once
//! the port has answered.

use iced_x86::{Instruction, Mnemonic};

use super::strings::{
    advance_destination, advance_source, destination, fill_strings, repeat, source,
};
use super::{Found, Place, by_width, goes_on};
use crate::cpu::{Cpu, reg};
use crate::event::{DeviceAccess, Event, Raised};
use crate::op::{Done, Handler, Op};
use crate::width::Width;

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    let repeated = i.has_rep_prefix() || i.has_repne_prefix();
    let handler: Option<Handler> = match i.mnemonic() {
        Mnemonic::Insb => pick_in(1, repeated),
        Mnemonic::Insw => pick_in(2, repeated),
        Mnemonic::Insd => pick_in(4, repeated),
        Mnemonic::Outsb => pick_out(1, repeated),
        Mnemonic::Outsw => pick_out(2, repeated),
        Mnemonic::Outsd => pick_out(4, repeated),
        _ => None,
    };
    let handler = handler?;
    fill_strings(i, op, place)?;
    goes_on(handler)
}

fn pick_in(bytes: usize, repeated: bool) -> Option<Handler> {
    if repeated { by_width!(bytes, repeat_ins) } else { by_width!(bytes, ins) }
}

fn pick_out(bytes: usize, repeated: bool) -> Option<Handler> {
    if repeated { by_width!(bytes, repeat_outs) } else { by_width!(bytes, outs) }
}

/// The port in DX, if it may be used.
fn port<W: Width>(cpu: &mut Cpu) -> Result<(u16, u8), Raised> {
    #[expect(clippy::cast_possible_truncation, reason = "DX is the low sixteen bits")]
    let port = cpu.gpr[reg::RDX] as u16;
    #[expect(clippy::cast_possible_truncation, reason = "at most four")]
    let bytes = W::BYTES as u8;
    cpu.may_use_port(port, bytes)?;
    Ok((port, bytes))
}

/// The port's answer, if it was asked already.
fn ask(cpu: &mut Cpu, port: u16, bytes: u8, value: Option<u64>) -> Result<u64, Raised> {
    match cpu.replay.recall(u64::from(port), bytes) {
        Some(answer) => Ok(answer),
        None => {
            let access = DeviceAccess { at: u64::from(port), bytes, value };
            Err(cpu.raise(Event::StringPort(access)))
        }
    }
}

fn ins<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (port, bytes) = port::<W>(cpu)?;
    // A port is read only when it is certain that the element can be written.
    let to = destination(cpu, op);
    let operand = cpu.open::<W>(to, op.src)?;
    let value = ask(cpu, port, bytes, None)?;
    cpu.poke::<W>(operand, value & W::MASK)?;
    advance_destination::<W>(cpu, op, 1);
    Ok(())
}

fn outs<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (port, bytes) = port::<W>(cpu)?;
    let value = cpu.load_at::<W>(source(cpu, op), op.segment)?;
    if !cpu.surroundings.port_is_deaf(port) {
        ask(cpu, port, bytes, Some(value))?;
    }
    advance_source::<W>(cpu, op, 1);
    Ok(())
}

fn repeat_ins<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    repeat(cpu, op, ins::<W>)
}

fn repeat_outs<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    repeat(cpu, op, outs::<W>)
}
