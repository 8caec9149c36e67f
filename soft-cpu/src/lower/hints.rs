//! What says something about instructions or memory and computes nothing: `nop` in all its lengths, `pause`, fences,
//! prefetches, `clflush`, `movnti`, and the opcodes that are undefined on purpose.

use std::sync::atomic::{Ordering, fence};

use iced_x86::{Instruction, Mnemonic};

use super::{Found, Place, by_width, bytes_of, ends, goes_on, register};
use crate::cpu::Cpu;
use crate::event::Access;
use crate::op::{Done, Op};
use crate::width::Width;

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    match i.mnemonic() {
        // The whole space 0F 0D, 0F 18 to 0F 1F does nothing where what was put there since is not advertised
        // (Intel SDM vol. 2, "NOP"): neither shadow stacks nor branch tracking nor bounds. No operand is touched.
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2 => goes_on(nothing),
        Mnemonic::Pause => goes_on(pause),
        // Loads and stores are done one after the other already: every access is an instruction of the host's, which
        // orders as the guest expects. Only a store and a later load may still change places.
        Mnemonic::Lfence | Mnemonic::Sfence => goes_on(nothing),
        Mnemonic::Mfence => goes_on(order_memory),
        Mnemonic::Clflush => goes_on(flush_line),
        Mnemonic::Movnti => {
            op.src = register(i, 1)?;
            goes_on(by_width!(bytes_of(i, 0), store)?)
        }
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => ends(crate::trace_cache::undefined),
        _ => None,
    }
}

fn nothing(_cpu: &mut Cpu, _op: &Op) -> Done {
    Ok(())
}

fn pause(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.surroundings.pause();
    Ok(())
}

fn order_memory(cpu: &mut Cpu, _op: &Op) -> Done {
    if !cpu.is_alone {
        // SeqCst: the guest's own stores before, its loads after; its partners are other processors' fences
        // and locked instructions.
        fence(Ordering::SeqCst);
    }
    Ok(())
}

/// Caches are the host's and coherent; the address must be readable all the same.
fn flush_line(cpu: &mut Cpu, op: &Op) -> Done {
    let address = cpu.address(op);
    cpu.page_for(address, op.segment, Access::Read).map(|_| ())
}

fn store<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store::<W>(op, cpu.get::<W>(op.src))
}
