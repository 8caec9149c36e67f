//! No form of any instruction is missing.

use iced_x86::{Code, CpuidFeature, Instruction, OpCodeOperandKind as Kind, OpKind, Register};

use crate::cpu::CodeSize;
use crate::lower::{Place, lower};

/// Fills in one operand; `from_memory` where there is a choice.
fn fill(instruction: &mut Instruction, which: u32, kind: Kind, from_memory: bool) {
    let register = match kind {
        Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_or_mem => Register::XMM3,
        Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem => Register::MM3,
        Kind::r32_reg | Kind::r32_rm | Kind::r32_or_mem => Register::EBX,
        Kind::r64_reg | Kind::r64_rm | Kind::r64_or_mem => Register::RBX,
        Kind::mem | Kind::imm8 | Kind::seg_rDI => Register::None,
        other => panic!("{:?} has a {other:?}", instruction.code()),
    };
    match kind {
        Kind::imm8 => {
            instruction.set_op_kind(which, OpKind::Immediate8);
            instruction.set_immediate8(3);
        }
        Kind::seg_rDI => instruction.set_op_kind(which, OpKind::MemorySegRDI),
        Kind::mem => instruction.set_op_kind(which, OpKind::Memory),
        Kind::xmm_or_mem | Kind::mm_or_mem | Kind::r32_or_mem | Kind::r64_or_mem if from_memory => {
            instruction.set_op_kind(which, OpKind::Memory);
        }
        _ => {
            instruction.set_op_kind(which, OpKind::Register);
            instruction.set_op_register(which, register);
        }
    }
    if from_memory || kind == Kind::mem {
        instruction.set_memory_base(Register::RBX);
    }
}

#[test]
fn every_form_of_every_instruction_that_is_advertised_is_implemented() {
    let mut advertised = vec![CpuidFeature::SSE, CpuidFeature::SSE2];
    let more = crate::lower::sse::advertised_ecx();
    advertised.extend((more & 1 != 0).then_some(CpuidFeature::SSE3));
    advertised.extend((more >> 9 & 1 != 0).then_some(CpuidFeature::SSSE3));
    let mut missing = Vec::new();
    let mut seen = 0;
    for code in Code::values() {
        let features = code.cpuid_features();
        if features.is_empty() || !features.iter().all(|feature| advertised.contains(feature)) {
            continue;
        }
        for from_memory in [false, true] {
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            for (which, kind) in (0..).zip(code.op_code().op_kinds()) {
                fill(&mut instruction, which, *kind, from_memory);
            }
            let place = Place { offset: 0, code_size: CodeSize::Bits64, big_stack: false };
            seen += 1;
            // Only what is unknown ends a trace here.
            if lower(&instruction, &place).ends {
                missing.push(format!("{code:?} {from_memory}"));
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    assert!(seen > 500, "{seen} forms looked at");
}
