//! Which instructions there are, in which operand forms, and to which family each belongs.
//!
//! The list is derived from the decoder's own table of opcodes, so that nothing is left out because nobody thought of it.

use std::fmt;
use std::str::FromStr;

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};

/// What instructions have in common, and what a campaign is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Moves, arithmetic, logic, conditional moves and sets.
    Integer,
    /// Shifts and rotates.
    Shifts,
    /// Multiplication and division.
    Multiply,
    /// Bit tests, scans, byte swaps.
    Bits,
    /// String instructions, repeated or not, in both directions.
    Strings,
    /// The stack, calls, jumps, loops.
    Flow,
    /// Locked operations and exchanges.
    Atomics,
    /// SSE and SSE2 on XMM registers.
    Sse,
    /// SSE3 and later, on XMM registers.
    SseLater,
    /// BMI, ADX, MOVBE and their like.
    BitsLater,
    /// MMX.
    Mmx,
    /// x87, and saving and restoring all of it.
    X87,
    /// What user mode may not do or nobody can: the right exception.
    Refused,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Integer,
        Self::Shifts,
        Self::Multiply,
        Self::Bits,
        Self::Strings,
        Self::Flow,
        Self::Atomics,
        Self::Sse,
        Self::SseLater,
        Self::BitsLater,
        Self::Mmx,
        Self::X87,
        Self::Refused,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Shifts => "shifts",
            Self::Multiply => "multiply",
            Self::Bits => "bits",
            Self::Strings => "strings",
            Self::Flow => "flow",
            Self::Atomics => "atomics",
            Self::Sse => "sse",
            Self::SseLater => "sse-later",
            Self::BitsLater => "bits-later",
            Self::Mmx => "mmx",
            Self::X87 => "x87",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

/// "There is no such family."
#[derive(Debug, thiserror::Error)]
#[error("there is no family {0:?}; there are {all}", all = Family::ALL.map(Family::name).join(", "))]
pub struct NoSuchFamily(String);

impl FromStr for Family {
    type Err = NoSuchFamily;

    fn from_str(name: &str) -> Result<Self, NoSuchFamily> {
        Self::ALL
            .into_iter()
            .find(|family| family.name() == name)
            .ok_or_else(|| NoSuchFamily(name.to_owned()))
    }
}

/// A prefix that makes another form of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// None.
    None,
    /// `lock`.
    Lock,
    /// `rep` or `repe`.
    Rep,
    /// `repne`.
    Repne,
}

/// One operand form of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// The opcode.
    pub code: Code,
    /// Whether the operand that can be either is in memory.
    pub memory: bool,
    /// The prefix.
    pub prefix: Prefix,
    /// Where it belongs.
    pub family: Family,
}

impl Form {
    /// How the coverage list calls it, such as `lock ADD m32, r32`.
    #[must_use]
    pub fn name(&self) -> String {
        let text = self.code.op_code().instruction_string().to_owned();
        let text = if self.memory {
            [
                "r/m", "mm/m", "xmm2/m", "xmm1/m", "xmm3/m", "mm2/m", "r64/m", "r32/m", "r16/m",
                "r8/m", "reg/m", "xmm/m",
            ]
            .iter()
            .fold(text, |text, either| text.replace(either, "m"))
        } else {
            let mut text = text;
            for either in [
                "xmm1/m", "xmm2/m", "xmm3/m", "mm2/m", "mm1/m", "mm/m", "r64/m", "r32/m", "r16/m",
                "r8/m", "reg/m",
            ] {
                while let Some(at) = text.find(either) {
                    let register = either.len() - 2;
                    let digits =
                        text[at + either.len()..].chars().take_while(char::is_ascii_digit).count();
                    text.replace_range(at + register..at + either.len() + digits, "");
                }
            }
            text.replace("r/m", "r")
        };
        match self.prefix {
            Prefix::None => text,
            Prefix::Lock => format!("lock {text}"),
            Prefix::Rep => format!("rep {text}"),
            Prefix::Repne => format!("repne {text}"),
        }
    }

    /// The instruction's name.
    #[must_use]
    pub fn mnemonic(&self) -> String {
        format!("{:?}", self.code.mnemonic()).to_lowercase()
    }
}

/// What the software processor says it can do, beyond what every x86-64 processor can.
#[derive(Clone, Debug, Default)]
pub struct Features(Vec<CpuidFeature>);

impl Features {
    /// The baseline: x86-64 without anything optional.
    #[must_use]
    pub fn baseline() -> Self {
        use CpuidFeature as F;
        Self(vec![
            F::INTEL8086,
            F::INTEL186,
            F::INTEL286,
            F::INTEL386,
            F::INTEL486,
            F::X64,
            F::CMOV,
            F::CX8,
            F::FPU,
            F::FPU287,
            F::FPU387,
            F::MMX,
            F::SSE,
            F::SSE2,
            F::FXSR,
            F::MULTIBYTENOP,
            F::PAUSE,
            F::CLFSH,
        ])
    }

    /// Adds one.
    pub fn add(&mut self, feature: CpuidFeature) {
        if !self.0.contains(&feature) {
            self.0.push(feature);
        }
    }

    /// Whether all that `code` needs is there.
    fn allow(&self, code: Code) -> bool {
        code.cpuid_features().iter().all(|feature| self.0.contains(feature))
    }
}

/// All forms that a sequence may contain, in a fixed order.
#[must_use]
pub fn forms(features: &Features) -> Vec<Form> {
    let mut all = Vec::new();
    for code in Code::values() {
        let Some(family) = family_of(code, features) else { continue };
        let info = code.op_code();
        let has_either = info.op_kinds().iter().any(|kind| is_either(*kind));
        let has_memory = info.op_kinds().iter().any(|kind| is_memory(*kind));
        let shapes: &[bool] = if has_either {
            &[false, true]
        } else if has_memory {
            &[true]
        } else {
            &[false]
        };
        for &memory in shapes {
            all.push(Form { code, memory, prefix: Prefix::None, family });
            if memory && info.can_use_lock_prefix() {
                all.push(Form { code, memory, prefix: Prefix::Lock, family: Family::Atomics });
            }
            if family == Family::Strings && info.can_use_rep_prefix() {
                all.push(Form { code, memory, prefix: Prefix::Rep, family });
            }
            if family == Family::Strings && info.can_use_repne_prefix() {
                all.push(Form { code, memory, prefix: Prefix::Repne, family });
            }
        }
    }
    all
}

/// Whether the operand is a register or memory.
pub(super) fn is_either(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mm_or_mem | K::xmm_or_mem
    )
}

/// Whether the operand is memory and nothing else, with an address of the instruction's own.
pub(super) fn is_memory(kind: OpCodeOperandKind) -> bool {
    matches!(kind, OpCodeOperandKind::mem | OpCodeOperandKind::mem_offs)
}

/// Where `code` belongs; `None` where it cannot be compared.
fn family_of(code: Code, features: &Features) -> Option<Family> {
    use Mnemonic as M;
    let info = code.op_code();
    if !info.is_instruction() || !info.is_available_in_mode(64) || !features.allow(code) {
        return None;
    }
    let kinds = info.op_kinds();
    let mnemonic = code.mnemonic();
    let wants = |wanted: OpCodeOperandKind| kinds.contains(&wanted);
    if !matches!(code.encoding(), EncodingKind::Legacy) {
        let is_general = code.encoding() == EncodingKind::VEX
            && code
                .cpuid_features()
                .iter()
                .all(|f| matches!(f, CpuidFeature::BMI1 | CpuidFeature::BMI2));
        return is_general.then_some(Family::BitsLater);
    }
    // Operand sizes of near branches differ between makers; far ones and descriptor loads need the host's own tables.
    let is_odd_branch = wants(OpCodeOperandKind::br16_1)
        || wants(OpCodeOperandKind::br16_2)
        || wants(OpCodeOperandKind::br32_1)
        || wants(OpCodeOperandKind::br32_4)
        || matches!(code, Code::Retnw | Code::Retnw_imm16 | Code::Retnd | Code::Retnd_imm16)
        || matches!(code, Code::Jmp_rm16 | Code::Jmp_rm32 | Code::Call_rm16 | Code::Call_rm32)
        || matches!(
            code,
            Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
                | Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
        );
    // Intel reads 16 bits for the first, AMD 32; the second is undefined. What waits first is two instructions.
    if is_odd_branch || matches!(code, Code::Movsxd_r16_rm16 | Code::Bswap_r16) || info.fwait() {
        return None;
    }
    let refused = match mnemonic {
        M::Cli
        | M::Clts
        | M::Hlt
        | M::In
        | M::Insb
        | M::Insd
        | M::Insw
        | M::Invd
        | M::Invlpg
        | M::Lgdt => true,
        M::Lidt | M::Lldt | M::Lmsw | M::Ltr | M::Out | M::Outsb | M::Outsd | M::Outsw | M::Sti => {
            true
        }
        M::Swapgs | M::Wbinvd | M::Ud0 | M::Ud1 | M::Ud2 | M::Int3 => true,
        M::Mov => wants(OpCodeOperandKind::cr_reg) || wants(OpCodeOperandKind::dr_reg),
        _ => false,
    };
    if refused {
        return Some(Family::Refused);
    }
    let family = match mnemonic {
        // The host's own tables, or traps into its kernel, or another answer each time.
        M::Lar | M::Lsl | M::Verr | M::Verw | M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => {
            return None;
        }
        M::Lfs | M::Lgs | M::Lss | M::Int | M::Int1 | M::Iret | M::Iretd | M::Iretq | M::Retf => {
            return None;
        }
        M::Cpuid | M::Syscall | M::Sysenter | M::Reservednop => return None,
        // Clock, single steps and alignment checks hang on these bits: sequences push what they pop.
        M::Popf | M::Popfq => return None,
        // FS and GS are the host's.
        M::Pop if wants(OpCodeOperandKind::fs) || wants(OpCodeOperandKind::gs) => return None,
        M::Shl
        | M::Shr
        | M::Sal
        | M::Sar
        | M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shld
        | M::Shrd => Family::Shifts,
        M::Mul | M::Imul | M::Div | M::Idiv => Family::Multiply,
        M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr | M::Bswap => Family::Bits,
        M::Movsb | M::Movsw | M::Movsq | M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => {
            Family::Strings
        }
        M::Stosb | M::Stosw | M::Stosd | M::Stosq | M::Scasb | M::Scasw | M::Scasd | M::Scasq => {
            Family::Strings
        }
        M::Cmpsb | M::Cmpsw | M::Cmpsq => Family::Strings,
        M::Movsd | M::Cmpsd if code.cpuid_features().contains(&CpuidFeature::INTEL386) => {
            Family::Strings
        }
        M::Push
        | M::Pop
        | M::Pushf
        | M::Pushfq
        | M::Call
        | M::Jmp
        | M::Ret
        | M::Enter
        | M::Leave => Family::Flow,
        M::Loop | M::Loope | M::Loopne | M::Jecxz | M::Jrcxz => Family::Flow,
        _ if code.is_jcc_short_or_near() => Family::Flow,
        M::Xadd | M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b | M::Xchg => Family::Atomics,
        M::Wait | M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => Family::X87,
        _ => by_feature(code),
    };
    Some(family)
}

/// The rest goes by what CPUID bit it needs.
fn by_feature(code: Code) -> Family {
    use CpuidFeature as F;
    let features = code.cpuid_features();
    let has = |wanted: &[F]| features.iter().any(|feature| wanted.contains(feature));
    let is_mmx = code.op_code().op_kinds().iter().any(|kind| {
        matches!(
            kind,
            OpCodeOperandKind::mm_or_mem | OpCodeOperandKind::mm_reg | OpCodeOperandKind::mm_rm
        )
    });
    if is_mmx || has(&[F::MMX]) {
        Family::Mmx
    } else if has(&[F::FPU, F::FPU287, F::FPU387]) {
        Family::X87
    } else if has(&[
        F::SSE3,
        F::SSSE3,
        F::SSE4_1,
        F::SSE4_2,
        F::SSE4A,
        F::AES,
        F::PCLMULQDQ,
        F::SHA,
        F::GFNI,
    ]) {
        Family::SseLater
    } else if has(&[F::POPCNT, F::LZCNT, F::MOVBE, F::ADX, F::BMI1, F::BMI2]) {
        Family::BitsLater
    } else if has(&[F::SSE, F::SSE2, F::CLFSH]) {
        Family::Sse
    } else {
        Family::Integer
    }
}
