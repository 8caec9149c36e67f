//! The x87 unit, and the saving and loading of its state together with the SSE registers.

mod arithmetic;
mod control;
mod environment;
mod fxsave;
mod image;
mod xsave;

use iced_x86::Instruction;

use super::{Found, Place};
use crate::op::Op;

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    control::lower(i, op)
        .or_else(|| arithmetic::lower(i, op))
        .or_else(|| environment::lower(i, op, place))
        .or_else(|| fxsave::lower(i, op, place))
        .or_else(|| xsave::lower(i, op, place))
}
