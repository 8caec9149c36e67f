//! What is done to a trace once all of it is known cannot be seen from outside.

use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction, Register};

use super::{CODE, DATA, Guest};
use crate::Stop;
use crate::cpu::{After, attend, reg};
use crate::flags;

/// Numbers that follow from a seed (xorshift, Marsaglia 2003).
struct Chance(u64);

impl Chance {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.number() % choices.len() as u64).unwrap()]
    }

    fn register(&mut self, bytes: u32) -> Register {
        use Register as R;
        match bytes {
            1 => self.of(&[R::AL, R::CL, R::BL, R::AH, R::CH, R::DH]),
            2 => self.of(&[R::AX, R::CX, R::BX, R::SI]),
            4 => self.of(&[R::EAX, R::ECX, R::EBX, R::ESI, R::R9D]),
            _ => self.of(&[R::RAX, R::RCX, R::RBX, R::RSI, R::R9]),
        }
    }

    /// Mostly one that liveness or pairs know of; else one that reads flags, or may fault.
    fn instruction(&mut self) -> Instruction {
        use Code as C;
        let bytes = self.of(&[1, 2, 4, 8]);
        let (a, b) = (self.register(bytes), self.register(bytes));
        let which = match bytes {
            1 => 0,
            2 => 1,
            4 => 2,
            _ => 3,
        };
        let two = [
            [C::Add_rm8_r8, C::Add_rm16_r16, C::Add_rm32_r32, C::Add_rm64_r64],
            [C::Adc_rm8_r8, C::Adc_rm16_r16, C::Adc_rm32_r32, C::Adc_rm64_r64],
            [C::Sub_rm8_r8, C::Sub_rm16_r16, C::Sub_rm32_r32, C::Sub_rm64_r64],
            [C::Sbb_rm8_r8, C::Sbb_rm16_r16, C::Sbb_rm32_r32, C::Sbb_rm64_r64],
            [C::And_rm8_r8, C::And_rm16_r16, C::And_rm32_r32, C::And_rm64_r64],
            [C::Or_rm8_r8, C::Or_rm16_r16, C::Or_rm32_r32, C::Or_rm64_r64],
            [C::Xor_rm8_r8, C::Xor_rm16_r16, C::Xor_rm32_r32, C::Xor_rm64_r64],
            [C::Cmp_rm8_r8, C::Cmp_rm16_r16, C::Cmp_rm32_r32, C::Cmp_rm64_r64],
            [C::Test_rm8_r8, C::Test_rm16_r16, C::Test_rm32_r32, C::Test_rm64_r64],
            [C::Mov_rm8_r8, C::Mov_rm16_r16, C::Mov_rm32_r32, C::Mov_rm64_r64],
            [C::Xchg_rm8_r8, C::Xchg_rm16_r16, C::Xchg_rm32_r32, C::Xchg_rm64_r64],
        ];
        let number = [
            [C::Add_rm8_imm8, C::Add_rm16_imm8, C::Add_rm32_imm8, C::Add_rm64_imm8],
            [C::Adc_rm8_imm8, C::Adc_rm16_imm8, C::Adc_rm32_imm8, C::Adc_rm64_imm8],
            [C::Sub_rm8_imm8, C::Sub_rm16_imm8, C::Sub_rm32_imm8, C::Sub_rm64_imm8],
            [C::Sbb_rm8_imm8, C::Sbb_rm16_imm8, C::Sbb_rm32_imm8, C::Sbb_rm64_imm8],
            [C::And_rm8_imm8, C::And_rm16_imm8, C::And_rm32_imm8, C::And_rm64_imm8],
            [C::Or_rm8_imm8, C::Or_rm16_imm8, C::Or_rm32_imm8, C::Or_rm64_imm8],
            [C::Xor_rm8_imm8, C::Xor_rm16_imm8, C::Xor_rm32_imm8, C::Xor_rm64_imm8],
            [C::Cmp_rm8_imm8, C::Cmp_rm16_imm8, C::Cmp_rm32_imm8, C::Cmp_rm64_imm8],
            [C::Test_rm8_imm8, C::Test_rm16_imm16, C::Test_rm32_imm32, C::Test_rm64_imm32],
        ];
        let count = [
            [C::Shl_rm8_imm8, C::Shl_rm16_imm8, C::Shl_rm32_imm8, C::Shl_rm64_imm8],
            [C::Shr_rm8_imm8, C::Shr_rm16_imm8, C::Shr_rm32_imm8, C::Shr_rm64_imm8],
            [C::Sar_rm8_imm8, C::Sar_rm16_imm8, C::Sar_rm32_imm8, C::Sar_rm64_imm8],
            [C::Rol_rm8_imm8, C::Rol_rm16_imm8, C::Rol_rm32_imm8, C::Rol_rm64_imm8],
            [C::Ror_rm8_imm8, C::Ror_rm16_imm8, C::Ror_rm32_imm8, C::Ror_rm64_imm8],
            [C::Rcl_rm8_imm8, C::Rcl_rm16_imm8, C::Rcl_rm32_imm8, C::Rcl_rm64_imm8],
        ];
        let one = [
            [C::Inc_rm8, C::Inc_rm16, C::Inc_rm32, C::Inc_rm64],
            [C::Dec_rm8, C::Dec_rm16, C::Dec_rm32, C::Dec_rm64],
            [C::Neg_rm8, C::Neg_rm16, C::Neg_rm32, C::Neg_rm64],
            [C::Not_rm8, C::Not_rm16, C::Not_rm32, C::Not_rm64],
        ];
        match self.number() % 16 {
            0..=4 => Instruction::with2(self.of(&two)[which], a, b).unwrap(),
            5..=7 => {
                let value = self.of(&[0, 1, -1, 0x7f, -0x80, 5]);
                Instruction::with2(self.of(&number)[which], a, value).unwrap()
            }
            8..=9 => {
                let value = self.of(&[0, 1, 7, 8, 15, 31, 32, 33, 63]);
                Instruction::with2(self.of(&count)[which], a, value).unwrap()
            }
            10..=12 => Instruction::with1(self.of(&one)[which], a).unwrap(),
            13 => {
                let (a, b) = (self.register(8), self.register(8));
                let code = self.of(&[C::Imul_r64_rm64, C::Cmovb_r64_rm64, C::Cmovle_r64_rm64]);
                Instruction::with2(code, a, b).unwrap()
            }
            14 => Instruction::with1(self.of(&[C::Setb_rm8, C::Setg_rm8, C::Setp_rm8]), a)
                .unwrap_or_default(),
            _ => match self.number() % 5 {
                0 => Instruction::with(C::Cmc),
                1 => Instruction::with(C::Lahf),
                2 => Instruction::with1(C::Push_r64, self.register(8)).unwrap(),
                3 => Instruction::with(C::Pushfq),
                _ => Instruction::with3(C::Imul_r32_rm32_imm8, Register::ECX, Register::ESI, -3)
                    .unwrap(),
            },
        }
    }

    /// A few instructions, sometimes one that finds no memory among them, and a branch over a `hlt`.
    fn code(&mut self, with_fault: bool) -> Vec<u8> {
        let mut assembler = CodeAssembler::new(64).unwrap();
        let length = 1 + self.number() % 9;
        let fault = self.number() % length;
        for index in 0..length {
            if with_fault && index == fault {
                assembler.mov(rdi, qword_ptr(DATA)).unwrap();
            }
            let instruction = self.instruction();
            if assembler.add_instruction(instruction).is_err() || instruction.is_invalid() {
                assembler.nop().unwrap();
            }
        }
        let mut bytes = assembler.assemble(CODE).unwrap_or_default();
        let condition = u8::try_from(self.number() % 16).unwrap();
        bytes.extend([0x70 | condition, 1, 0xf4, 0xf4]);
        bytes
    }
}

/// All that the guest can see, and the count of its instructions.
fn seen(guest: &Guest) -> (Vec<u64>, u64, u64, u64, Vec<u8>) {
    let cpu = &guest.processor.cpu;
    let stack = guest.memory.read(super::STACK - 0x100, 0x100);
    (cpu.gpr[..16].to_vec(), cpu.rip, cpu.flags.bits(), cpu.retired, stack)
}

fn start(chance_seed: u64, code: &[u8]) -> Guest {
    let mut guest = Guest::long();
    let mut chance = Chance(chance_seed);
    guest.world.lock().absent.insert(DATA);
    guest.memory.write(CODE, code);
    let cpu = &mut guest.processor.cpu;
    for register in [reg::RAX, reg::RCX, reg::RDX, reg::RBX, reg::RSI, 9] {
        let whole = chance.number();
        cpu.gpr[register] = chance.of(&[whole, whole, 0, 1, 0x80, 0x7fff_ffff, 1 << 63, u64::MAX]);
    }
    cpu.set_rflags(chance.number() & flags::ARITHMETIC);
    cpu.rip = CODE;
    guest
}

/// Runs on, each instruction in a trace of its own.
fn go_one_by_one(guest: &mut Guest) -> Stop {
    loop {
        guest.processor.cpu.attend |= attend::ALONE;
        if let Some(stop) = guest.processor.step_one_by_one() {
            return stop;
        }
        if guest.processor.cpu.after == After::Halt {
            return Stop::Halted;
        }
    }
}

#[test]
fn a_trace_leaves_what_its_instructions_leave_one_by_one() {
    let mut faults = 0;
    for seed in 1..2500u64 {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let code = chance.code(seed.is_multiple_of(3));
        let mut whole = start(seed, &code);
        let stop = whole.go_on();
        let mut single = start(seed, &code);
        let single_stop = go_one_by_one(&mut single);
        faults += u32::from(matches!(stop, Stop::Nested(_)));
        assert_eq!(stop, single_stop, "seed {seed}, {code:02x?}");
        assert_eq!(seen(&whole), seen(&single), "seed {seed}, {code:02x?}");
    }
    assert!(faults > 500, "only {faults} stopped in the middle");
}

#[test]
fn a_branch_in_a_pair_goes_where_the_flags_say() {
    let numbers = [
        0,
        1,
        0x7f,
        0x80,
        0xff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        u64::MAX >> 1,
        1 << 63,
        u64::MAX,
    ];
    let comparisons: [&[u8]; 12] = [
        &[0x38, 0xc8],             // cmp al, cl
        &[0x39, 0xc8],             // cmp eax, ecx
        &[0x48, 0x39, 0xc8],       // cmp rax, rcx
        &[0x3c, 0x80],             // cmp al, 0x80
        &[0x83, 0xf8, 0xff],       // cmp eax, -1
        &[0x48, 0x83, 0xf8, 0x7f], // cmp rax, 0x7f
        &[0x29, 0xc8],             // sub eax, ecx
        &[0x48, 0x29, 0xc8],       // sub rax, rcx
        &[0x84, 0xc8],             // test al, cl
        &[0x48, 0x21, 0xc8],       // and rax, rcx
        &[0xff, 0xc0],             // inc eax
        &[0x48, 0xff, 0xc8],       // dec rax
    ];
    for comparison in comparisons {
        for condition in 0..16 {
            let code = [comparison, &[0x70 | condition, 1, 0xf4, 0xf4]].concat();
            let mut guest = Guest::long();
            guest.memory.write(CODE, &code);
            for (a, b) in numbers.iter().flat_map(|a| numbers.iter().map(move |b| (*a, *b))) {
                let mut ends = |go: fn(&mut Guest) -> Stop| {
                    let cpu = &mut guest.processor.cpu;
                    (cpu.gpr[reg::RAX], cpu.gpr[reg::RCX]) = (a, b);
                    cpu.set_rflags(flags::CF);
                    (cpu.rip, cpu.after, cpu.retired) = (CODE, After::Nothing, 0);
                    assert_eq!(go(&mut guest), Stop::Halted);
                    seen(&guest)
                };
                let (whole, single) = (ends(Guest::go_on), ends(go_one_by_one));
                assert_eq!(whole, single, "{code:02x?} with {a:#x} and {b:#x}");
            }
        }
    }
}

#[test]
fn both_halves_of_a_pair_are_counted() {
    let mut guest = Guest::long();
    guest.run(|a| {
        let mut top = a.create_label();
        a.mov(rcx, 1000u64).unwrap();
        a.set_label(&mut top).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(guest.processor.cpu.retired, 1 + 2 * 1000 + 1);
}

#[test]
fn a_step_traps_between_a_comparison_and_its_branch() {
    let program = |a: &mut CodeAssembler| {
        let mut far = a.create_label();
        a.cmp(rax, rcx).unwrap();
        a.je(far).unwrap();
        a.ud2().unwrap();
        a.set_label(&mut far).unwrap();
        a.ud2().unwrap();
    };
    let mut guest = Guest::with_kernel();
    guest.processor.cpu.set_rflags(flags::TF);
    let stop = guest.run(program);
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (1, CODE + 3));
    assert_eq!(frame[2] & flags::ARITHMETIC, flags::ZF | flags::PF);
    // The same code without TF, decoded anew as a pair: nothing comes between.
    let mut guest = Guest::with_kernel();
    let stop = guest.run(program);
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (6, CODE + 3 + 2 + 2));
    assert_eq!(frame[2] & flags::ARITHMETIC, flags::ZF | flags::PF);
}

#[test]
fn a_pair_whose_branch_is_changed_takes_the_new_one() {
    let mut guest = Guest::long();
    // top: inc ecx; cmp ecx, 7; je out; mov byte [je], 0x75 (jne); jmp top; out: hlt
    let code = [
        0xff, 0xc1, 0x83, 0xf9, 7, 0x74, 9, 0xc6, 0x05, 0xf7, 0xff, 0xff, 0xff, 0x75, 0xeb, 0xf0,
        0xf4,
    ];
    assert_eq!(guest.run_bytes(&code), Stop::Halted);
    assert_eq!(guest.memory.read(CODE + 5, 1), [0x75]);
    assert_eq!(guest.reg(reg::RCX), 2);
    assert_eq!(guest.processor.cpu.rip, CODE + code.len() as u64);
}

#[test]
fn a_store_in_front_of_a_pair_in_its_own_trace_changes_the_pair() {
    let mut guest = Guest::long();
    // mov byte [jne], 0x74 (je); cmp ecx, 0; jne out; hlt; out: hlt
    let code = [0xc6, 0x05, 3, 0, 0, 0, 0x74, 0x83, 0xf9, 0, 0x75, 1, 0xf4, 0xf4];
    assert_eq!(guest.run_bytes(&code), Stop::Halted);
    assert_eq!(guest.memory.read(CODE + 10, 1), [0x74]);
    assert_eq!(guest.processor.cpu.rip, CODE + code.len() as u64);
    assert_eq!(guest.processor.cpu.retired, 4);
}

#[test]
fn an_interrupt_finds_the_pair_done_and_its_flags_right() {
    let mut guest = Guest::with_kernel();
    guest.world.lock().interrupts = vec![0x40];
    let stop = guest.run(|a| {
        let mut far = a.create_label();
        a.mov(eax, 3).unwrap();
        a.sti().unwrap();
        // In the shadow of `sti`: the first flags are dead, CF of `add` is kept by `dec`.
        a.xor(edx, edx).unwrap();
        a.add(rdx, -1).unwrap();
        a.cmp(eax, 4).unwrap();
        a.dec(rax).unwrap();
        a.jnz(far).unwrap();
        a.ud2().unwrap();
        a.set_label(&mut far).unwrap();
        a.ud2().unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    assert_eq!(vector, 0x40);
    let jump = guest.memory.read(frame[0] - 4, 2);
    assert_eq!(jump, [0x75, 2], "at {:#x}, where the branch leads", frame[0]);
    assert_eq!(guest.reg(reg::RAX), 2);
    // 3 - 4 borrows; 3 - 1 = 2 has one bit, and borrows nothing from bit 4.
    assert_eq!(frame[2] & flags::ARITHMETIC, flags::CF);
}
