//! `fxsave` and `fxrstor`: x87 and SSE state in 512 bytes (Intel SDM vol. 2, FXSAVE, tables "Non-64-Bit-Mode
//! Layout" and "Layout of the 64-Bit Mode FXSAVE64 Map").

use iced_x86::{Code, Instruction};

use super::image::{put, take};
use crate::cpu::{CodeSize, Cpu, cr0};
use crate::event::{Exception, Raised};
use crate::lower::{Found, Place, goes_on};
use crate::op::{Done, Handler, Op};
use crate::x87_state::{Extended, MXCSR_MASK, X87};

/// Bytes of the area. What lies behind [`SSE_END`] is never written.
pub(super) const AREA: usize = 512;
/// Where the x87 registers begin.
const X87_REGISTERS: usize = 32;
/// Where the SSE registers begin.
const SSE_REGISTERS: usize = 160;
/// Where sixteen of them end.
pub(super) const SSE_END: usize = 416;

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    let run: Handler = match i.code() {
        Code::Fxsave_m512byte => save::<false>,
        Code::Fxsave64_m512byte => save::<true>,
        Code::Fxrstor_m512byte => restore::<false>,
        Code::Fxrstor64_m512byte => restore::<true>,
        _ => return None,
    };
    op.extra = sse_registers(place);
    goes_on(run)
}

/// How many SSE registers there are.
pub(super) fn sse_registers(place: &Place) -> u16 {
    if place.code_size == CodeSize::Bits64 { 16 } else { 8 }
}

/// #UD with CR0.EM, #NM with CR0.TS, #GP without alignment.
fn place(cpu: &mut Cpu, op: &Op) -> Result<u64, Raised> {
    if cpu.cr0 & cr0::EM != 0 {
        return Err(cpu.throw(Exception::UNDEFINED));
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(cpu.throw(Exception::NO_DEVICE));
    }
    let address = cpu.address(op);
    if !address.is_multiple_of(16) {
        return Err(cpu.protect());
    }
    Ok(address)
}

/// Writes the x87 part. With `LONG` (REX.W) the pointers are 64 bits wide.
#[expect(clippy::cast_possible_truncation, reason = "the short layout holds 32 bits")]
pub(super) fn write_x87<const LONG: bool>(unit: &X87, image: &mut [u8]) {
    put(image, 0, unit.control.to_le_bytes());
    put(image, 2, unit.status().to_le_bytes());
    put(image, 4, [unit.occupied, 0]);
    put(image, 6, (unit.opcode & 0x7ff).to_le_bytes());
    let wide = |pointer: u64| if LONG { pointer } else { u64::from(pointer as u32) };
    put(image, 8, wide(unit.instruction).to_le_bytes());
    put(image, 16, wide(unit.data).to_le_bytes());
    for index in 0..8 {
        let at = X87_REGISTERS + 16 * index;
        put(image, at, unit.stack(index).to_bytes());
        put(image, at + 10, [0; 6]);
    }
}

/// Reads it.
pub(super) fn read_x87<const LONG: bool>(unit: &mut X87, image: &[u8]) {
    let word = |offset| u16::from_le_bytes(take(image, offset));
    unit.set_control(word(0));
    unit.set_status(word(2));
    unit.occupied = image[4];
    unit.opcode = word(6) & 0x7ff;
    let pointer = |offset| {
        let whole = u64::from_le_bytes(take(image, offset));
        if LONG { whole } else { whole & 0xffff_ffff }
    };
    unit.instruction = pointer(8);
    unit.data = pointer(16);
    for index in 0..8 {
        let value = Extended::from_bytes(take(image, X87_REGISTERS + 16 * index));
        unit.set_stack(index, value);
    }
}

/// Writes MXCSR and its mask.
pub(super) fn write_mxcsr(cpu: &Cpu, image: &mut [u8]) {
    put(image, 24, cpu.mxcsr.to_le_bytes());
    put(image, 28, MXCSR_MASK.to_le_bytes());
}

/// MXCSR in an image; #GP if a reserved bit is set.
pub(super) fn read_mxcsr(cpu: &mut Cpu, image: &[u8]) -> Result<u32, Raised> {
    let mxcsr = u32::from_le_bytes(take(image, 24));
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.protect());
    }
    Ok(mxcsr)
}

/// Writes the first `count` SSE registers.
pub(super) fn write_sse(cpu: &Cpu, count: u16, image: &mut [u8]) {
    for (index, value) in cpu.xmm.iter().take(usize::from(count)).enumerate() {
        put(image, SSE_REGISTERS + 16 * index, value.to_le_bytes());
    }
}

/// Reads them.
pub(super) fn read_sse(cpu: &mut Cpu, count: u16, image: &[u8]) {
    for (index, value) in cpu.xmm.iter_mut().take(usize::from(count)).enumerate() {
        *value = u128::from_le_bytes(take(image, SSE_REGISTERS + 16 * index));
    }
}

/// Where the first `count` SSE registers end.
pub(super) fn sse_end(count: u16) -> usize {
    (SSE_REGISTERS + 16 * usize::from(count)).min(SSE_END)
}

fn save<const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = place(cpu, op)?;
    let mut image = [0; AREA];
    write_x87::<LONG>(&cpu.x87, &mut image);
    write_mxcsr(cpu, &mut image);
    write_sse(cpu, op.extra, &mut image);
    cpu.open_image(address, op.segment, AREA)?;
    cpu.store_image(address, op.segment, &image[..sse_end(op.extra)])
}

fn restore<const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = place(cpu, op)?;
    let mut image = [0; AREA];
    cpu.load_image(address, op.segment, &mut image)?;
    let mxcsr = read_mxcsr(cpu, &image)?;
    cpu.mxcsr = mxcsr;
    read_x87::<LONG>(&mut cpu.x87, &image);
    read_sse(cpu, op.extra, &image);
    Ok(())
}
