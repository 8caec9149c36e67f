//! `fnstenv`, `fldenv`, `fnsave`, `frstor`: the environment in its four layouts (Intel SDM vol. 1, figures
//! "Protected Mode x87 FPU State Image in Memory" and "Real Mode ..."), and the registers behind it.

use iced_x86::{Code, Instruction};

use super::image::{put, take};
use crate::cpu::Cpu;
use crate::lower::{Found, Place, goes_on};
use crate::op::{Done, Handler, Op};
use crate::x87_state::{Extended, X87};

/// Bytes of an environment with 32-bit operands.
const LARGE: usize = 28;
/// Bytes of one with 16-bit operands.
const SMALL: usize = 14;
/// Bytes of the eight registers.
const REGISTERS: usize = 80;

pub(super) fn lower(i: &Instruction, _op: &mut Op, _place: &Place) -> Option<Found> {
    let run: Handler = match i.code() {
        Code::Fnstenv_m14byte => store_environment::<SMALL>,
        Code::Fnstenv_m28byte => store_environment::<LARGE>,
        Code::Fldenv_m14byte => load_environment::<SMALL>,
        Code::Fldenv_m28byte => load_environment::<LARGE>,
        Code::Fnsave_m94byte => save::<SMALL>,
        Code::Fnsave_m108byte => save::<LARGE>,
        Code::Frstor_m94byte => restore::<SMALL>,
        Code::Frstor_m108byte => restore::<LARGE>,
        _ => return None,
    };
    goes_on(run)
}

/// In real and virtual-8086 mode pointers are linear, cut into pieces.
fn is_real(cpu: &Cpu) -> bool {
    !cpu.is_protected() || cpu.is_virtual_8086()
}

#[expect(clippy::cast_possible_truncation, reason = "pointers are cut to what the layout holds")]
fn write_environment<const BYTES: usize>(unit: &X87, real: bool, image: &mut [u8]) {
    let (instruction, data) = (unit.instruction as u32, unit.data as u32);
    let opcode = u32::from(unit.opcode & 0x7ff);
    let step = if BYTES == LARGE { 4 } else { 2 };
    if BYTES == LARGE {
        // The upper halves are written as ones.
        for offset in [2, 6, 10, 26] {
            put(image, offset, [0xff; 2]);
        }
    }
    put(image, 0, unit.control.to_le_bytes());
    put(image, step, unit.status().to_le_bytes());
    put(image, 2 * step, unit.tags().to_le_bytes());
    match (BYTES == LARGE, real) {
        (true, false) => {
            put(image, 12, instruction.to_le_bytes());
            put(image, 16, (opcode << 16).to_le_bytes());
            put(image, 20, data.to_le_bytes());
        }
        (true, true) => {
            put(image, 12, (instruction | 0xffff_0000).to_le_bytes());
            put(image, 16, (instruction >> 16 << 12 | opcode).to_le_bytes());
            put(image, 20, (data | 0xffff_0000).to_le_bytes());
            put(image, 24, (data >> 16 << 12).to_le_bytes());
        }
        (false, false) => {
            put(image, 6, (instruction as u16).to_le_bytes());
            put(image, 10, (data as u16).to_le_bytes());
        }
        (false, true) => {
            put(image, 6, (instruction as u16).to_le_bytes());
            put(image, 8, ((instruction >> 16 << 12 | opcode) as u16).to_le_bytes());
            put(image, 10, (data as u16).to_le_bytes());
            put(image, 12, ((data >> 16 << 12) as u16).to_le_bytes());
        }
    }
}

fn read_environment<const BYTES: usize>(unit: &mut X87, real: bool, image: &[u8]) {
    let step = if BYTES == LARGE { 4 } else { 2 };
    let word = |offset| u16::from_le_bytes(take(image, offset));
    let double = |offset| u32::from_le_bytes(take(image, offset));
    unit.set_control(word(0));
    unit.set_status(word(step));
    unit.set_tags(word(2 * step));
    let (instruction, opcode, data) = match (BYTES == LARGE, real) {
        (true, false) => (double(12), double(16) >> 16, double(20)),
        (true, true) => (
            u32::from(word(12)) | double(16) >> 12 << 16,
            double(16),
            u32::from(word(20)) | double(24) >> 12 << 16,
        ),
        (false, false) => (u32::from(word(6)), 0, u32::from(word(10))),
        (false, true) => (
            u32::from(word(6)) | u32::from(word(8) >> 12) << 16,
            u32::from(word(8)),
            u32::from(word(10)) | u32::from(word(12) >> 12) << 16,
        ),
    };
    unit.instruction = u64::from(instruction);
    unit.opcode = u16::try_from(opcode & 0x7ff).expect("eleven bits");
    unit.data = u64::from(data);
}

/// Afterwards all exceptions are masked.
fn store_environment<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87()?;
    let mut image = [0; LARGE];
    write_environment::<BYTES>(&cpu.x87, is_real(cpu), &mut image);
    let address = cpu.address(op);
    cpu.open_image(address, op.segment, BYTES)?;
    cpu.store_image(address, op.segment, &image[..BYTES])?;
    let masked = cpu.x87.control | 0x3f;
    cpu.x87.set_control(masked);
    Ok(())
}

fn load_environment<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87_waiting()?;
    let mut image = [0; LARGE];
    let address = cpu.address(op);
    cpu.check_ends(address, op.segment, BYTES)?;
    cpu.load_image(address, op.segment, &mut image[..BYTES])?;
    let real = is_real(cpu);
    read_environment::<BYTES>(&mut cpu.x87, real, &image);
    Ok(())
}

/// Afterwards the unit is initialised.
fn save<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87()?;
    let mut image = [0; LARGE + REGISTERS];
    write_environment::<BYTES>(&cpu.x87, is_real(cpu), &mut image);
    for index in 0..8 {
        put(&mut image, BYTES + 10 * index, cpu.x87.stack(index).to_bytes());
    }
    let address = cpu.address(op);
    cpu.open_image(address, op.segment, BYTES + REGISTERS)?;
    cpu.store_image(address, op.segment, &image[..BYTES + REGISTERS])?;
    cpu.x87.initialise();
    Ok(())
}

fn restore<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87_waiting()?;
    let mut image = [0; LARGE + REGISTERS];
    let address = cpu.address(op);
    cpu.check_ends(address, op.segment, BYTES + REGISTERS)?;
    cpu.load_image(address, op.segment, &mut image[..BYTES + REGISTERS])?;
    let real = is_real(cpu);
    read_environment::<BYTES>(&mut cpu.x87, real, &image);
    for index in 0..8 {
        let value = Extended::from_bytes(take(&image, BYTES + 10 * index));
        cpu.x87.set_stack(index, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> X87 {
        let mut unit = X87::new();
        unit.initialise();
        unit.set_control(0x27f);
        unit.set_status(0x3801);
        unit.instruction = 0xa_bcde;
        unit.data = 0x1_2345;
        unit.opcode = 0x6d9;
        unit
    }

    fn words(image: &[u8]) -> Vec<u16> {
        image.chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect()
    }

    #[test]
    fn the_short_protected_layout_has_no_opcode() {
        let mut image = [0; SMALL];
        write_environment::<SMALL>(&unit(), false, &mut image);
        assert_eq!(words(&image), [0x27f, 0x3801, 0xffff, 0xbcde, 0, 0x2345, 0]);
    }

    #[test]
    fn the_real_layouts_hold_linear_pointers_in_pieces() {
        let mut image = [0; LARGE];
        write_environment::<SMALL>(&unit(), true, &mut image[..SMALL]);
        assert_eq!(words(&image[..SMALL]), [0x27f, 0x3801, 0xffff, 0xbcde, 0xa6d9, 0x2345, 0x1000]);
        write_environment::<LARGE>(&unit(), true, &mut image);
        assert_eq!(words(&image[12..]), [0xbcde, 0xffff, 0xa6d9, 0, 0x2345, 0xffff, 0x1000, 0]);
    }

    #[test]
    fn each_layout_reads_what_it_wrote() {
        fn both_ways<const BYTES: usize>(real: bool) -> X87 {
            let mut image = [0; LARGE];
            write_environment::<BYTES>(&unit(), real, &mut image);
            let mut read = X87::new();
            read_environment::<BYTES>(&mut read, real, &image);
            read
        }
        assert_eq!(both_ways::<SMALL>(true), unit());
        assert_eq!(both_ways::<LARGE>(true), unit());
        assert_eq!(both_ways::<LARGE>(false), unit());
        let mut short = unit();
        (short.opcode, short.instruction, short.data) = (0, 0xbcde, 0x2345);
        assert_eq!(both_ways::<SMALL>(false), short);
    }
}
