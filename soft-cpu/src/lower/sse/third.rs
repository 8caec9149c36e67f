//! SSE3 and SSSE3, where the host has them.

use iced_x86::{Code, Instruction, OpKind};

use super::float::packed;
use super::moves::whole;
use super::{
    Aligned, Register, Short, Source, Unaligned, from_either, get, imm8, joined, low, permit,
    plain, set, xmm,
};
use crate::cpu::Cpu;
use crate::event::Raised;
use crate::host_sse::{self as host, Plain};
use crate::lower::is_memory;
use crate::op::{Done, Handler, Op};
use crate::width::B8;

/// What works, as bits of CPUID leaf 1's ECX (Intel SDM vol. 2, `CPUID`).
pub(super) fn advertised() -> u32 {
    u32::from(std::arch::is_x86_feature_detected!("sse3"))
        | u32::from(std::arch::is_x86_feature_detected!("ssse3")) << 9
}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Handler> {
    if std::arch::is_x86_feature_detected!("sse3")
        && let Some(handler) = sse3(i, op)
    {
        return Some(handler);
    }
    if std::arch::is_x86_feature_detected!("ssse3") { ssse3(i, op) } else { None }
}

fn sse3(i: &Instruction, op: &mut Op) -> Option<Handler> {
    match i.code() {
        Code::Addsubps_xmm_xmmm128 => packed::<host::Addsubps>(i, op),
        Code::Addsubpd_xmm_xmmm128 => packed::<host::Addsubpd>(i, op),
        Code::Haddps_xmm_xmmm128 => packed::<host::Haddps>(i, op),
        Code::Haddpd_xmm_xmmm128 => packed::<host::Haddpd>(i, op),
        Code::Hsubps_xmm_xmmm128 => packed::<host::Hsubps>(i, op),
        Code::Hsubpd_xmm_xmmm128 => packed::<host::Hsubpd>(i, op),
        Code::Movsldup_xmm_xmmm128 => plain::<host::Movsldup>(i, op),
        Code::Movshdup_xmm_xmmm128 => plain::<host::Movshdup>(i, op),
        Code::Movddup_xmm_xmmm64 => from_either(i, op, twice::<Register>, twice::<Short<B8>>),
        Code::Lddqu_xmm_m128 => {
            op.dst = xmm(i, 0)?;
            Some(whole::<Unaligned>)
        }
        _ => None,
    }
}

/// Both halves become the source's low one.
fn twice<S: Source>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let value = low(S::read(cpu, op)?);
    set(cpu, op.dst, joined(value, value));
    Ok(())
}

fn ssse3(i: &Instruction, op: &mut Op) -> Option<Handler> {
    match i.code() {
        Code::Pshufb_xmm_xmmm128 => plain::<host::Pshufb>(i, op),
        Code::Phaddw_xmm_xmmm128 => plain::<host::Phaddw>(i, op),
        Code::Phaddd_xmm_xmmm128 => plain::<host::Phaddd>(i, op),
        Code::Phaddsw_xmm_xmmm128 => plain::<host::Phaddsw>(i, op),
        Code::Phsubw_xmm_xmmm128 => plain::<host::Phsubw>(i, op),
        Code::Phsubd_xmm_xmmm128 => plain::<host::Phsubd>(i, op),
        Code::Phsubsw_xmm_xmmm128 => plain::<host::Phsubsw>(i, op),
        Code::Pmaddubsw_xmm_xmmm128 => plain::<host::Pmaddubsw>(i, op),
        Code::Pmulhrsw_xmm_xmmm128 => plain::<host::Pmulhrsw>(i, op),
        Code::Psignb_xmm_xmmm128 => plain::<host::Psignb>(i, op),
        Code::Psignw_xmm_xmmm128 => plain::<host::Psignw>(i, op),
        Code::Psignd_xmm_xmmm128 => plain::<host::Psignd>(i, op),
        Code::Pabsb_xmm_xmmm128 => plain::<host::Pabsb>(i, op),
        Code::Pabsw_xmm_xmmm128 => plain::<host::Pabsw>(i, op),
        Code::Pabsd_xmm_xmmm128 => plain::<host::Pabsd>(i, op),
        Code::Palignr_xmm_xmmm128_imm8 => {
            op.imm = u64::from(imm8(i)?);
            from_either(i, op, align::<Register>, align::<Aligned>)
        }
        Code::Pshufb_mm_mmm64 => half::<ShuffleHalf>(i, op),
        Code::Phaddw_mm_mmm64 => half::<Pairs<host::Phaddw>>(i, op),
        Code::Phaddd_mm_mmm64 => half::<Pairs<host::Phaddd>>(i, op),
        Code::Phaddsw_mm_mmm64 => half::<Pairs<host::Phaddsw>>(i, op),
        Code::Phsubw_mm_mmm64 => half::<Pairs<host::Phsubw>>(i, op),
        Code::Phsubd_mm_mmm64 => half::<Pairs<host::Phsubd>>(i, op),
        Code::Phsubsw_mm_mmm64 => half::<Pairs<host::Phsubsw>>(i, op),
        Code::Pmaddubsw_mm_mmm64 => half::<host::Pmaddubsw>(i, op),
        Code::Pmulhrsw_mm_mmm64 => half::<host::Pmulhrsw>(i, op),
        Code::Psignb_mm_mmm64 => half::<host::Psignb>(i, op),
        Code::Psignw_mm_mmm64 => half::<host::Psignw>(i, op),
        Code::Psignd_mm_mmm64 => half::<host::Psignd>(i, op),
        Code::Pabsb_mm_mmm64 => half::<host::Pabsb>(i, op),
        Code::Pabsw_mm_mmm64 => half::<host::Pabsw>(i, op),
        Code::Pabsd_mm_mmm64 => half::<host::Pabsd>(i, op),
        Code::Palignr_mm_mmm64_imm8 => {
            op.imm = u64::from(imm8(i)?);
            of_mmx(i, op, align_half::<InRegister>, align_half::<InMemory>)
        }
        _ => None,
    }
}

/// Sixteen bytes out of the middle of thirty-two.
fn align<S: Source>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let (below, above) = (S::read(cpu, op)?, get(cpu, op.dst));
    #[expect(clippy::cast_possible_truncation, reason = "a byte")]
    let bits = op.imm as u32 * 8;
    let from_below = below.checked_shr(bits).unwrap_or(0);
    let from_above = if bits < 128 {
        above.checked_shl(128 - bits).unwrap_or(0)
    } else {
        above.checked_shr(bits - 128).unwrap_or(0)
    };
    set(cpu, op.dst, from_below | from_above);
    Ok(())
}

// ---- the same on MMX registers -----------------------------------------------------------------

/// Where an MMX instruction's second operand is.
trait HalfSource: 'static {
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u64, Raised>;
}

struct InRegister;
impl HalfSource for InRegister {
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u64, Raised> {
        Ok(cpu.mmx(op.src))
    }
}

struct InMemory;
impl HalfSource for InMemory {
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u64, Raised> {
        cpu.load::<B8>(op)
    }
}

/// What works on neighbours gives the results for the destination first: the wide form does that with both
/// operands in one register.
struct Pairs<O>(std::marker::PhantomData<O>);
impl<O: Plain> Plain for Pairs<O> {
    fn apply(destination: u128, source: u128) -> u128 {
        O::apply(destination | source << 64, 0)
    }
}

/// `pshufb` among eight bytes: of an index only three bits count, and the one that says zero.
struct ShuffleHalf;
impl Plain for ShuffleHalf {
    fn apply(destination: u128, source: u128) -> u128 {
        host::Pshufb::apply(destination, source & 0x8787_8787_8787_8787)
    }
}

/// The number of operand `which`, an MMX register.
pub(super) fn mm(i: &Instruction, which: u32) -> Option<u8> {
    let register = i.op_register(which);
    (i.op_kind(which) == OpKind::Register && register.is_mm())
        .then(|| u8::try_from(register.number()).ok())
        .flatten()
}

fn of_mmx(i: &Instruction, op: &mut Op, register: Handler, memory: Handler) -> Option<Handler> {
    op.dst = mm(i, 0)?;
    if is_memory(i, 1) {
        return Some(memory);
    }
    op.src = mm(i, 1)?;
    Some(register)
}

fn half<O: Plain>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    of_mmx(i, op, run_half::<O, InRegister>, run_half::<O, InMemory>)
}

fn run_half<O: Plain, S: HalfSource>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let source = S::read(cpu, op)?;
    let result = O::apply(u128::from(cpu.mmx(op.dst)), u128::from(source));
    cpu.set_mmx(op.dst, low(result));
    Ok(())
}

fn align_half<S: HalfSource>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let source = S::read(cpu, op)?;
    #[expect(clippy::cast_possible_truncation, reason = "a byte")]
    let bits = op.imm as u32 * 8;
    let both = joined(source, cpu.mmx(op.dst));
    cpu.set_mmx(op.dst, low(both.checked_shr(bits).unwrap_or(0)));
    Ok(())
}
