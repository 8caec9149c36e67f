//! The unit's control and status words, `fwait` and `emms`.

use iced_x86::{Code, Instruction};

use crate::cpu::{Cpu, cr0};
use crate::event::Exception;
use crate::lower::{Found, goes_on};
use crate::op::{Done, Op};
use crate::width::B2;
use crate::x87_state::status;

pub(super) fn lower(i: &Instruction, _op: &mut Op) -> Option<Found> {
    match i.code() {
        Code::Wait => goes_on(wait),
        Code::Fninit => goes_on(initialise),
        Code::Fnclex => goes_on(clear_exceptions),
        Code::Fnstcw_m2byte => goes_on(store_control),
        Code::Fldcw_m2byte => goes_on(load_control),
        Code::Fnstsw_m2byte => goes_on(store_status),
        Code::Fnstsw_AX => goes_on(status_to_ax),
        Code::Emms => goes_on(empty_mmx),
        // Of the 8087 and the 80287; later processors pass over them.
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => goes_on(nothing),
        _ => None,
    }
}

/// CR0.EM does not matter here, and CR0.TS only with CR0.MP.
fn wait(cpu: &mut Cpu, _op: &Op) -> Done {
    const BOTH: u64 = cr0::MP | cr0::TS;
    if cpu.cr0 & BOTH == BOTH {
        return Err(cpu.throw(Exception::NO_DEVICE));
    }
    if cpu.x87.is_pending() {
        return Err(cpu.throw(Exception::FLOATING_POINT));
    }
    Ok(())
}

fn nothing(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.check_x87()
}

fn initialise(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.check_x87()?;
    cpu.x87.initialise();
    Ok(())
}

/// What C0 to C3 are then is undefined; they stay.
fn clear_exceptions(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.check_x87()?;
    let kept = cpu.x87.status() & !(status::EXCEPTIONS | status::SF | status::PENDING);
    cpu.x87.set_status(kept);
    Ok(())
}

fn store_control(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87()?;
    cpu.store::<B2>(op, u64::from(cpu.x87.control))
}

fn load_control(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87_waiting()?;
    let [low, high, ..] = cpu.load::<B2>(op)?.to_le_bytes();
    cpu.x87.set_control(u16::from_le_bytes([low, high]));
    Ok(())
}

fn store_status(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87()?;
    cpu.store::<B2>(op, u64::from(cpu.x87.status()))
}

fn status_to_ax(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.check_x87()?;
    cpu.set::<B2>(0, u64::from(cpu.x87.status()));
    Ok(())
}

/// Intel SDM vol. 3, table "Effects of MMX Instructions on x87 FPU State".
fn empty_mmx(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.check_mmx()?;
    cpu.x87.set_top(0);
    cpu.x87.occupied = 0;
    Ok(())
}
