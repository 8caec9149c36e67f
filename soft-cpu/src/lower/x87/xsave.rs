//! `xsave`, `xsaveopt`, `xrstor`, `xgetbv`, `xsetbv` (Intel SDM vol. 1, "Managing State Using the XSAVE Feature
//! Set"): the standard format, x87 and SSE state.
//!
//! Both components always count as in use (XINUSE is all ones), as a processor is free to say; so `xsaveopt`
//! does what `xsave` does.

use iced_x86::{Code, Instruction};

use super::fxsave::{
    AREA, read_mxcsr, read_sse, read_x87, sse_end, sse_registers, write_mxcsr, write_sse, write_x87,
};
use super::image::take;
use crate::cpu::{Cpu, cr0, cr4, reg};
use crate::event::{Exception, Raised};
use crate::lower::{Found, Place, goes_on};
use crate::op::{Done, Handler, Op};
use crate::width::B8;
use crate::x87_state::{XCR0_SUPPORTED, XSAVE_AREA_BYTES};

/// Component 0.
const X87: u64 = 1 << 0;
/// Component 1.
const SSE: u64 = 1 << 1;
/// Components that share MXCSR: SSE and AVX.
const HAS_MXCSR: u64 = 0b110;
/// Bytes of the whole area.
const WHOLE: usize = XSAVE_AREA_BYTES as usize;

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    let run: Handler = match i.code() {
        Code::Xsave_mem | Code::Xsaveopt_mem => save::<false>,
        Code::Xsave64_mem | Code::Xsaveopt64_mem => save::<true>,
        Code::Xrstor_mem => restore::<false>,
        Code::Xrstor64_mem => restore::<true>,
        Code::Xgetbv => get_control,
        Code::Xsetbv => set_control,
        _ => return None,
    };
    op.extra = sse_registers(place);
    goes_on(run)
}

/// EDX:EAX.
fn requested(cpu: &Cpu) -> u64 {
    cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] & 0xffff_ffff
}

fn enabled(cpu: &mut Cpu) -> Result<(), Raised> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.throw(Exception::UNDEFINED));
    }
    Ok(())
}

/// #UD without CR4.OSXSAVE, #NM with CR0.TS, #GP without alignment to 64 bytes.
fn place(cpu: &mut Cpu, op: &Op) -> Result<u64, Raised> {
    enabled(cpu)?;
    if cpu.cr0 & cr0::TS != 0 {
        return Err(cpu.throw(Exception::NO_DEVICE));
    }
    let address = cpu.address(op);
    if !address.is_multiple_of(64) {
        return Err(cpu.protect());
    }
    Ok(address)
}

/// Writes only the components that are requested, so the rest of the image is what was there.
fn save<const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = place(cpu, op)?;
    let wanted = requested(cpu) & cpu.xcr0;
    cpu.open_image(address, op.segment, WHOLE)?;
    let header = address.wrapping_add(AREA as u64);
    let before = cpu.load_at::<B8>(header, op.segment)?;
    let mut image = [0; AREA];
    write_x87::<LONG>(&cpu.x87, &mut image);
    write_mxcsr(cpu, &mut image);
    write_sse(cpu, op.extra, &mut image);
    let mut part = |from: usize, to: usize| {
        cpu.store_image(address.wrapping_add(from as u64), op.segment, &image[from..to])
    };
    if wanted & X87 != 0 {
        part(0, 24)?;
        part(32, 160)?;
    }
    if wanted & HAS_MXCSR != 0 {
        part(24, 32)?;
    }
    if wanted & SSE != 0 {
        part(160, sse_end(op.extra))?;
    }
    cpu.store_at::<B8>(header, op.segment, before & !wanted | wanted)
}

/// The compacted format is not advertised: its bit, and any other reserved one in the header's first 24 bytes, is #GP.
fn restore<const LONG: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = place(cpu, op)?;
    let wanted = requested(cpu) & cpu.xcr0;
    let mut image = [0; AREA + 64];
    cpu.load_image(address, op.segment, &mut image)?;
    let header = |offset| u64::from_le_bytes(take(&image, AREA + offset));
    let present = header(0);
    if present & !cpu.xcr0 != 0 || header(8) != 0 || header(16) != 0 {
        return Err(cpu.protect());
    }
    if wanted & HAS_MXCSR != 0 {
        // Whether or not SSE state is present.
        cpu.mxcsr = read_mxcsr(cpu, &image)?;
    }
    if wanted & X87 != 0 {
        if present & X87 != 0 {
            read_x87::<LONG>(&mut cpu.x87, &image);
        } else {
            cpu.x87.initialise();
            cpu.x87.registers = Default::default();
        }
    }
    if wanted & SSE != 0 {
        if present & SSE != 0 {
            read_sse(cpu, op.extra, &image);
        } else {
            read_sse(cpu, op.extra, &[0; AREA]);
        }
    }
    Ok(())
}

/// ECX 1 (which components are in use) is not advertised.
fn get_control(cpu: &mut Cpu, _op: &Op) -> Done {
    enabled(cpu)?;
    if cpu.gpr[reg::RCX] & 0xffff_ffff != 0 {
        return Err(cpu.protect());
    }
    cpu.gpr[reg::RAX] = cpu.xcr0 & 0xffff_ffff;
    cpu.gpr[reg::RDX] = cpu.xcr0 >> 32;
    Ok(())
}

fn set_control(cpu: &mut Cpu, _op: &Op) -> Done {
    enabled(cpu)?;
    let value = requested(cpu);
    let is_known = cpu.gpr[reg::RCX] & 0xffff_ffff == 0;
    if cpu.cpl != 0 || !is_known || value & !XCR0_SUPPORTED != 0 || value & X87 == 0 {
        return Err(cpu.protect());
    }
    cpu.xcr0 = value;
    Ok(())
}
