//! MMX, with what SSE and SSE2 added to it. The registers are the x87 unit's (`x87_state.rs`); each instruction
//! here leaves that unit's stack full, until `emms`.

mod lanes;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use self::lanes::{Compute, Second, byte_signs, pick, shuffle};
use super::{Found, goes_on, immediate, is_memory, register};
use crate::cpu::{Cpu, cr4, reg};
use crate::event::{Exception, Raised};
use crate::op::{Done, Handler, Op};
use crate::width::{B1, B2, B4, B8, Width};

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Found> {
    if !(0..i.op_count())
        .any(|which| i.op_kind(which) == OpKind::Register && i.op_register(which).is_mm())
    {
        return None;
    }
    goes_on(handler(i, op)?)
}

fn handler(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let mm = |which| {
        (i.op_kind(which) == OpKind::Register && i.op_register(which).is_mm())
            .then(|| number(i.op_register(which)))
    };
    let memory_bytes = i.memory_size().size();
    match i.mnemonic() {
        Mnemonic::Movd | Mnemonic::Movq | Mnemonic::Movntq => {
            let bytes = match i.mnemonic() {
                Mnemonic::Movd => 4,
                _ => 8,
            };
            match (mm(0), mm(1)) {
                (Some(dst), Some(src)) => {
                    (op.dst, op.src) = (dst, src);
                    Some(copy)
                }
                (Some(dst), None) => {
                    op.dst = dst;
                    if let Some(src) = register(i, 1) {
                        op.src = src;
                        return Some(if bytes == 4 {
                            from_general::<B4>
                        } else {
                            from_general::<B8>
                        });
                    }
                    Some(if bytes == 4 { load::<B4> } else { load::<B8> })
                }
                (None, Some(src)) => {
                    op.src = src;
                    if let Some(dst) = register(i, 0) {
                        op.dst = dst;
                        return Some(if bytes == 4 { to_general::<B4> } else { to_general::<B8> });
                    }
                    Some(if bytes == 4 { store::<B4> } else { store::<B8> })
                }
                (None, None) => None,
            }
        }
        Mnemonic::Movdq2q => {
            (op.dst, op.src) = (mm(0)?, number(i.op_register(1)));
            Some(from_sse)
        }
        Mnemonic::Movq2dq => {
            (op.dst, op.src) = (number(i.op_register(0)), mm(1)?);
            Some(to_sse)
        }
        Mnemonic::Pshufw => {
            (op.dst, op.extra) = (mm(0)?, u16::try_from(immediate(i, 2)? & 0xff).ok()?);
            if let Some(src) = mm(1) {
                op.src = src;
                return Some(shuffle_register);
            }
            Some(shuffle_memory)
        }
        Mnemonic::Pinsrw => {
            (op.dst, op.extra) = (mm(0)?, u16::try_from(immediate(i, 2)? & 3).ok()?);
            if let Some(src) = register(i, 1) {
                op.src = src;
                return Some(insert_register);
            }
            Some(insert_memory)
        }
        Mnemonic::Pextrw => {
            (op.dst, op.src) = (register(i, 0)?, mm(1)?);
            op.extra = u16::try_from(immediate(i, 2)? & 3).ok()?;
            Some(extract)
        }
        Mnemonic::Pmovmskb => {
            (op.dst, op.src) = (register(i, 0)?, mm(1)?);
            Some(signs)
        }
        Mnemonic::Maskmovq => {
            (op.dst, op.src) = (mm(1)?, mm(2)?);
            op.base = u8::try_from(reg::RDI).ok()?;
            op.cut = match i.op0_kind() {
                OpKind::MemorySegDI => 48,
                OpKind::MemorySegEDI => 32,
                _ => 0,
            };
            Some(store_masked)
        }
        mnemonic => {
            let dst = mm(0)?;
            let second = match (immediate(i, 1), mm(1), is_memory(i, 1), memory_bytes) {
                (Some(_), ..) => Second::Immediate,
                (_, Some(_), ..) => Second::Register,
                (_, _, true, 4) => Second::Double,
                (_, _, true, 8) => Second::Quad,
                _ => return None,
            };
            // Nothing is filled in for what another family carries out.
            let run = pick(mnemonic, second)?;
            op.dst = dst;
            op.src = mm(1).unwrap_or(op.src);
            if let Some(by) = immediate(i, 1) {
                op.imm = by & 0xff;
            }
            Some(run)
        }
    }
}

fn number(register: Register) -> u8 {
    u8::try_from(register.number()).unwrap_or(0)
}

fn on_registers<C: Compute>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let result = C::apply(cpu.mmx(op.dst), cpu.mmx(op.src));
    cpu.set_mmx(op.dst, result);
    Ok(())
}

fn on_memory<C: Compute, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let second = cpu.load::<W>(op)?;
    let result = C::apply(cpu.mmx(op.dst), second);
    cpu.set_mmx(op.dst, result);
    Ok(())
}

fn by_immediate<C: Compute>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let result = C::apply(cpu.mmx(op.dst), op.imm);
    cpu.set_mmx(op.dst, result);
    Ok(())
}

fn copy(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    cpu.set_mmx(op.dst, cpu.mmx(op.src));
    Ok(())
}

fn from_general<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    cpu.set_mmx(op.dst, cpu.get::<W>(op.src));
    Ok(())
}

fn to_general<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    cpu.set::<W>(op.dst, cpu.mmx(op.src) & W::MASK);
    cpu.touch_mmx();
    Ok(())
}

fn load<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let value = cpu.load::<W>(op)?;
    cpu.set_mmx(op.dst, value);
    Ok(())
}

fn store<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let value = cpu.mmx(op.src) & W::MASK;
    cpu.store::<W>(op, value)?;
    cpu.touch_mmx();
    Ok(())
}

/// What also touches an SSE register needs CR4.OSFXSR.
fn check_both(cpu: &mut Cpu) -> Result<(), Raised> {
    if cpu.cr4 & cr4::OSFXSR == 0 {
        return Err(cpu.throw(Exception::UNDEFINED));
    }
    cpu.check_mmx()
}

fn from_sse(cpu: &mut Cpu, op: &Op) -> Done {
    check_both(cpu)?;
    let [a, b, c, d, e, f, g, h, ..] = cpu.xmm[usize::from(op.src & 15)].to_le_bytes();
    cpu.set_mmx(op.dst, u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    Ok(())
}

fn to_sse(cpu: &mut Cpu, op: &Op) -> Done {
    check_both(cpu)?;
    cpu.xmm[usize::from(op.dst & 15)] = u128::from(cpu.mmx(op.src));
    cpu.touch_mmx();
    Ok(())
}

fn shuffle_register(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let result = shuffle(cpu.mmx(op.src), u64::from(op.extra));
    cpu.set_mmx(op.dst, result);
    Ok(())
}

fn shuffle_memory(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let value = cpu.load::<B8>(op)?;
    cpu.set_mmx(op.dst, shuffle(value, u64::from(op.extra)));
    Ok(())
}

/// Puts a word in the place that `op.extra` (0 to 3) tells.
fn insert(cpu: &mut Cpu, op: &Op, word: u64) {
    let shift = 16 * (op.extra & 3);
    let kept = cpu.mmx(op.dst) & !(B2::MASK << shift);
    cpu.set_mmx(op.dst, kept | (word & B2::MASK) << shift);
}

fn insert_register(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let word = cpu.get::<B2>(op.src);
    insert(cpu, op, word);
    Ok(())
}

fn insert_memory(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let word = cpu.load::<B2>(op)?;
    insert(cpu, op, word);
    Ok(())
}

fn extract(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let word = cpu.mmx(op.src) >> (16 * (op.extra & 3)) & B2::MASK;
    cpu.set::<B4>(op.dst, word);
    cpu.touch_mmx();
    Ok(())
}

fn signs(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let signs = byte_signs(cpu.mmx(op.src));
    cpu.set::<B4>(op.dst, signs);
    cpu.touch_mmx();
    Ok(())
}

/// Writes the bytes of the first register whose bytes in the second have their top bit set. Without any, no page is
/// touched.
fn store_masked(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_mmx()?;
    let address = cpu.address(op);
    let (bytes, mask) = (cpu.mmx(op.dst).to_le_bytes(), byte_signs(cpu.mmx(op.src)));
    let chosen = |index: &u64| mask >> index & 1 != 0;
    for index in (0..8).filter(chosen) {
        cpu.open::<B1>(address.wrapping_add(index), op.segment)?;
    }
    for (index, byte) in (0..8).zip(bytes).filter(|(index, _)| chosen(index)) {
        cpu.store_at::<B1>(address.wrapping_add(index), op.segment, u64::from(byte))?;
    }
    cpu.touch_mmx();
    Ok(())
}
