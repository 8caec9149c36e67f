//! Packed integers and logic.

use iced_x86::{Code, Instruction};

use super::{Aligned, Register};
use super::{from_either, get, imm8, permit, plain, run_plain, set, xmm};
use crate::cpu::Cpu;
use crate::host_sse::{self as host, Plain};
use crate::op::{Done, Handler, Op};

macro_rules! logic {
    ($($name:ident |$a:ident, $b:ident| $body:expr;)*) => {$(
        struct $name;
        impl Plain for $name {
            #[inline(always)]
            fn apply($a: u128, $b: u128) -> u128 {
                $body
            }
        }
    )*};
}

logic! {
    And |a, b| a & b;
    AndNot |a, b| !a & b;
    Or |a, b| a | b;
    Xor |a, b| a ^ b;
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Handler> {
    match i.code() {
        Code::Andps_xmm_xmmm128 | Code::Andpd_xmm_xmmm128 | Code::Pand_xmm_xmmm128 => {
            plain::<And>(i, op)
        }
        Code::Andnps_xmm_xmmm128 | Code::Andnpd_xmm_xmmm128 | Code::Pandn_xmm_xmmm128 => {
            plain::<AndNot>(i, op)
        }
        Code::Orps_xmm_xmmm128 | Code::Orpd_xmm_xmmm128 | Code::Por_xmm_xmmm128 => {
            plain::<Or>(i, op)
        }
        Code::Xorps_xmm_xmmm128 | Code::Xorpd_xmm_xmmm128 | Code::Pxor_xmm_xmmm128 => {
            plain::<Xor>(i, op)
        }
        Code::Paddb_xmm_xmmm128 => plain::<host::Paddb>(i, op),
        Code::Paddw_xmm_xmmm128 => plain::<host::Paddw>(i, op),
        Code::Paddd_xmm_xmmm128 => plain::<host::Paddd>(i, op),
        Code::Paddq_xmm_xmmm128 => plain::<host::Paddq>(i, op),
        Code::Paddsb_xmm_xmmm128 => plain::<host::Paddsb>(i, op),
        Code::Paddsw_xmm_xmmm128 => plain::<host::Paddsw>(i, op),
        Code::Paddusb_xmm_xmmm128 => plain::<host::Paddusb>(i, op),
        Code::Paddusw_xmm_xmmm128 => plain::<host::Paddusw>(i, op),
        Code::Psubb_xmm_xmmm128 => plain::<host::Psubb>(i, op),
        Code::Psubw_xmm_xmmm128 => plain::<host::Psubw>(i, op),
        Code::Psubd_xmm_xmmm128 => plain::<host::Psubd>(i, op),
        Code::Psubq_xmm_xmmm128 => plain::<host::Psubq>(i, op),
        Code::Psubsb_xmm_xmmm128 => plain::<host::Psubsb>(i, op),
        Code::Psubsw_xmm_xmmm128 => plain::<host::Psubsw>(i, op),
        Code::Psubusb_xmm_xmmm128 => plain::<host::Psubusb>(i, op),
        Code::Psubusw_xmm_xmmm128 => plain::<host::Psubusw>(i, op),
        Code::Pmullw_xmm_xmmm128 => plain::<host::Pmullw>(i, op),
        Code::Pmulhw_xmm_xmmm128 => plain::<host::Pmulhw>(i, op),
        Code::Pmulhuw_xmm_xmmm128 => plain::<host::Pmulhuw>(i, op),
        Code::Pmuludq_xmm_xmmm128 => plain::<host::Pmuludq>(i, op),
        Code::Pmaddwd_xmm_xmmm128 => plain::<host::Pmaddwd>(i, op),
        Code::Psadbw_xmm_xmmm128 => plain::<host::Psadbw>(i, op),
        Code::Pavgb_xmm_xmmm128 => plain::<host::Pavgb>(i, op),
        Code::Pavgw_xmm_xmmm128 => plain::<host::Pavgw>(i, op),
        Code::Pminub_xmm_xmmm128 => plain::<host::Pminub>(i, op),
        Code::Pminsw_xmm_xmmm128 => plain::<host::Pminsw>(i, op),
        Code::Pmaxub_xmm_xmmm128 => plain::<host::Pmaxub>(i, op),
        Code::Pmaxsw_xmm_xmmm128 => plain::<host::Pmaxsw>(i, op),
        Code::Pcmpeqb_xmm_xmmm128 => plain::<host::Pcmpeqb>(i, op),
        Code::Pcmpeqw_xmm_xmmm128 => plain::<host::Pcmpeqw>(i, op),
        Code::Pcmpeqd_xmm_xmmm128 => plain::<host::Pcmpeqd>(i, op),
        Code::Pcmpgtb_xmm_xmmm128 => plain::<host::Pcmpgtb>(i, op),
        Code::Pcmpgtw_xmm_xmmm128 => plain::<host::Pcmpgtw>(i, op),
        Code::Pcmpgtd_xmm_xmmm128 => plain::<host::Pcmpgtd>(i, op),
        Code::Psllw_xmm_xmmm128 | Code::Psllw_xmm_imm8 => shift::<host::Psllw>(i, op),
        Code::Pslld_xmm_xmmm128 | Code::Pslld_xmm_imm8 => shift::<host::Pslld>(i, op),
        Code::Psllq_xmm_xmmm128 | Code::Psllq_xmm_imm8 => shift::<host::Psllq>(i, op),
        Code::Psrlw_xmm_xmmm128 | Code::Psrlw_xmm_imm8 => shift::<host::Psrlw>(i, op),
        Code::Psrld_xmm_xmmm128 | Code::Psrld_xmm_imm8 => shift::<host::Psrld>(i, op),
        Code::Psrlq_xmm_xmmm128 | Code::Psrlq_xmm_imm8 => shift::<host::Psrlq>(i, op),
        Code::Psraw_xmm_xmmm128 | Code::Psraw_xmm_imm8 => shift::<host::Psraw>(i, op),
        Code::Psrad_xmm_xmmm128 | Code::Psrad_xmm_imm8 => shift::<host::Psrad>(i, op),
        Code::Pslldq_xmm_imm8 => bytes(i, op, shift_bytes_left),
        Code::Psrldq_xmm_imm8 => bytes(i, op, shift_bytes_right),
        _ => None,
    }
}

/// A shift of elements, by a register, by memory or by an immediate byte: a count too large for the
/// element empties it (or fills it with the sign) either way.
fn shift<O: Plain>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    if let Some(count) = imm8(i) {
        op.dst = xmm(i, 0)?;
        op.imm = u64::from(count);
        return Some(run_immediate::<O>);
    }
    from_either(i, op, run_plain::<O, Register>, run_plain::<O, Aligned>)
}

/// A shift of the whole register by bytes.
fn bytes(i: &Instruction, op: &mut Op, handler: Handler) -> Option<Handler> {
    op.dst = xmm(i, 0)?;
    op.imm = u64::from(imm8(i)?).min(16) * 8;
    Some(handler)
}

fn run_immediate<O: Plain>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    set(cpu, op.dst, O::apply(get(cpu, op.dst), u128::from(op.imm)));
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "at most 128")]
fn shift_bytes_left(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    set(cpu, op.dst, get(cpu, op.dst).checked_shl(op.imm as u32).unwrap_or(0));
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "at most 128")]
fn shift_bytes_right(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    set(cpu, op.dst, get(cpu, op.dst).checked_shr(op.imm as u32).unwrap_or(0));
    Ok(())
}
