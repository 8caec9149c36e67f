//! What the processor says it is (Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E).
//!
//! A feature is advertised when it works whole, and is not when it does not.

use crate::cpu::{Cpu, cr4};
use crate::lower::sse;
use crate::walk::PHYSICAL_BITS;
use crate::x87_state;

/// What differs between the processors of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Processors in the guest: all are cores of one package.
    pub processors: u32,
    /// This one's APIC's number.
    pub apic_id: u32,
}

/// Registers that `cpuid` fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Family 6, model 0xcf (Emerald Rapids), stepping 2: newer than every erratum that systems look for by family and model.
const SIGNATURE: u32 = 0x000c_06f2;

/// Highest basic leaf.
const LAST_BASIC: u32 = 0x16;
/// Highest extended leaf.
const LAST_EXTENDED: u32 = 0x8000_0008;
/// The hypervisor's only leaf.
const HYPERVISOR: u32 = 0x4000_0000;

/// Leaf 1, ECX.
mod leaf1_ecx {
    pub(super) const CMPXCHG16B: u32 = 1 << 13;
    pub(super) const X2APIC: u32 = 1 << 21;
    pub(super) const POPCNT: u32 = 1 << 23;
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const XSAVE: u32 = 1 << 26;
    pub(super) const OSXSAVE: u32 = 1 << 27;
    pub(super) const HYPERVISOR: u32 = 1 << 31;
}

/// Leaf 1, EDX.
mod leaf1_edx {
    pub(super) const FPU: u32 = 1 << 0;
    pub(super) const DE: u32 = 1 << 2;
    pub(super) const PSE: u32 = 1 << 3;
    pub(super) const TSC: u32 = 1 << 4;
    pub(super) const MSR: u32 = 1 << 5;
    pub(super) const PAE: u32 = 1 << 6;
    pub(super) const CX8: u32 = 1 << 8;
    pub(super) const APIC: u32 = 1 << 9;
    pub(super) const SEP: u32 = 1 << 11;
    pub(super) const MTRR: u32 = 1 << 12;
    pub(super) const PGE: u32 = 1 << 13;
    pub(super) const CMOV: u32 = 1 << 15;
    pub(super) const PAT: u32 = 1 << 16;
    pub(super) const CLFLUSH: u32 = 1 << 19;
    pub(super) const MMX: u32 = 1 << 23;
    pub(super) const FXSR: u32 = 1 << 24;
    pub(super) const SELF_SNOOP: u32 = 1 << 27;
    pub(super) const HTT: u32 = 1 << 28;
}

/// Leaf 7, EBX.
mod leaf7_ebx {
    pub(super) const FSGSBASE: u32 = 1 << 0;
    pub(super) const TSC_ADJUST: u32 = 1 << 1;
    pub(super) const SMEP: u32 = 1 << 7;
    pub(super) const ERMS: u32 = 1 << 9;
    pub(super) const SMAP: u32 = 1 << 20;
}

/// Leaf 7, ECX.
mod leaf7_ecx {
    pub(super) const UMIP: u32 = 1 << 2;
    pub(super) const RDPID: u32 = 1 << 22;
}

/// Leaf 7, EDX.
mod leaf7_edx {
    pub(super) const FAST_SHORT_REP_MOV: u32 = 1 << 4;
    /// Registers to restrict speculation: systems that see what ARCH_CAPABILITIES promises of IBRS use them.
    pub(super) const IBRS: u32 = 1 << 26;
    pub(super) const ARCH_CAPABILITIES: u32 = 1 << 29;
}

/// Leaf 7, subleaf 2, EDX: SPEC_CTRL can keep users' branch history out of the kernel. There is none to keep out; but
/// stock Linux 6.1 and 6.12 that see a hypervisor run a loop of branches at every system call without this bit, whatever
/// ARCH_CAPABILITIES says (BHI_NO).
const BHI_CONTROL: u32 = 1 << 4;

/// Twelve characters, as three registers hold them.
fn registers_of(text: &[u8; 12]) -> [u32; 3] {
    let at = |from: usize| {
        u32::from_le_bytes([text[from], text[from + 1], text[from + 2], text[from + 3]])
    };
    [at(0), at(4), at(8)]
}

/// The brand string's 16 characters of one leaf.
fn brand(part: u32) -> Leaf {
    let mut text = [0u8; 48];
    let name = b"skep software processor";
    text[..name.len()].copy_from_slice(name);
    let word = |index: usize| {
        let at = 16 * (part as usize & 3).min(2) + 4 * index;
        u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
    };
    Leaf { eax: word(0), ebx: word(1), ecx: word(2), edx: word(3) }
}

impl Cpu {
    /// What `cpuid` answers for a leaf and subleaf.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> Leaf {
        match leaf {
            0 => {
                let [ebx, edx, ecx] = registers_of(b"GenuineIntel");
                Leaf { eax: LAST_BASIC, ebx, ecx, edx }
            }
            1 => self.features(),
            // One descriptor: "see leaf 4"; another: no TLB information.
            2 => Leaf { eax: 0x00ff_ff01, ..Leaf::default() },
            4 => self.caches(subleaf),
            7 => Self::more_features(subleaf),
            0xb => self.topology(subleaf),
            0xd => Self::saved_state(subleaf),
            // 25 MHz times 40: the time-stamp counter counts nanoseconds.
            0x15 => Leaf { eax: 1, ebx: 40, ecx: 25_000_000, edx: 0 },
            0x16 => Leaf { eax: 1000, ebx: 1000, ecx: 100, edx: 0 },
            HYPERVISOR => {
                let [ebx, ecx, edx] = registers_of(b"skepskepskep");
                Leaf { eax: HYPERVISOR, ebx, ecx, edx }
            }
            0x8000_0000 => Leaf { eax: LAST_EXTENDED, ..Leaf::default() },
            0x8000_0001 => self.extended_features(),
            0x8000_0002..=0x8000_0004 => brand(leaf - 0x8000_0002),
            // L2: 2 MiB, 16 ways, lines of 64 bytes.
            0x8000_0006 => Leaf { ecx: 2048 << 16 | 8 << 12 | 64, ..Leaf::default() },
            // Invariant time-stamp counter.
            0x8000_0007 => Leaf { edx: 1 << 8, ..Leaf::default() },
            0x8000_0008 => Leaf { eax: PHYSICAL_BITS | 48 << 8, ..Leaf::default() },
            _ => Leaf::default(),
        }
    }

    fn features(&self) -> Leaf {
        use leaf1_ecx as ecx;
        use leaf1_edx as edx;
        let model = &self.model;
        let os_xsave = if self.cr4 & cr4::OSXSAVE == 0 { 0 } else { ecx::OSXSAVE };
        let many = if model.processors > 1 { edx::HTT } else { 0 };
        // In units of 8 bytes.
        let flushed_line = 64 / 8;
        Leaf {
            eax: SIGNATURE,
            ebx: flushed_line << 8 | model.processors.min(255) << 16 | (model.apic_id & 0xff) << 24,
            ecx: sse::advertised_ecx()
                | ecx::CMPXCHG16B
                | ecx::X2APIC
                | ecx::POPCNT
                | ecx::TSC_DEADLINE
                | ecx::XSAVE
                | ecx::HYPERVISOR
                | os_xsave,
            edx: edx::FPU
                | edx::DE
                | edx::PSE
                | edx::TSC
                | edx::MSR
                | edx::PAE
                | edx::CX8
                | edx::APIC
                | edx::SEP
                | edx::MTRR
                | edx::PGE
                | edx::CMOV
                | edx::PAT
                | edx::CLFLUSH
                | edx::MMX
                | edx::FXSR
                | sse::ADVERTISED_EDX
                | edx::SELF_SNOOP
                | many,
        }
    }

    fn more_features(subleaf: u32) -> Leaf {
        use leaf7_ebx as ebx;
        use leaf7_ecx as ecx;
        use leaf7_edx as edx;
        match subleaf {
            0 => {}
            2 => return Leaf { edx: BHI_CONTROL, ..Leaf::default() },
            _ => return Leaf::default(),
        }
        Leaf {
            // The last subleaf.
            eax: 2,
            ebx: ebx::FSGSBASE
                | ebx::TSC_ADJUST
                | ebx::SMEP
                | ebx::ERMS
                | ebx::SMAP
                | x87_state::SELECTORS_ARE_ZERO,
            ecx: ecx::UMIP | ecx::RDPID,
            edx: edx::FAST_SHORT_REP_MOV | edx::IBRS | edx::ARCH_CAPABILITIES,
        }
    }

    fn extended_features(&self) -> Leaf {
        const LAHF: u32 = 1 << 0;
        const SYSCALL: u32 = 1 << 11;
        const NX: u32 = 1 << 20;
        const GIGABYTE_PAGES: u32 = 1 << 26;
        const RDTSCP: u32 = 1 << 27;
        const LONG_MODE: u32 = 1 << 29;
        // Intel's processors say SYSCALL only where it works.
        let syscall = if self.code_size == crate::cpu::CodeSize::Bits64 { SYSCALL } else { 0 };
        Leaf { eax: 0, ebx: 0, ecx: LAHF, edx: syscall | NX | GIGABYTE_PAGES | RDTSCP | LONG_MODE }
    }

    /// What `xsave` keeps: the x87 and SSE state only, whatever of it is enabled.
    fn saved_state(subleaf: u32) -> Leaf {
        let [low, high] = [x87_state::XCR0_SUPPORTED, x87_state::XCR0_SUPPORTED >> 32]
            .map(|half| u32::try_from(half & 0xffff_ffff).expect("thirty-two bits"));
        let bytes = x87_state::XSAVE_AREA_BYTES;
        match subleaf {
            0 => Leaf { eax: low, ebx: bytes, ecx: bytes, edx: high },
            1 => Leaf { eax: x87_state::XSAVE_EXTENSIONS, ..Leaf::default() },
            _ => Leaf::default(),
        }
    }

    /// Bits of an APIC number that tell processors apart.
    fn processor_bits(&self) -> u32 {
        self.model.processors.max(1).next_power_of_two().trailing_zeros()
    }

    /// Sizes that no program is surprised by; there is no cache to measure.
    fn caches(&self, subleaf: u32) -> Leaf {
        // Kind (data 1, instructions 2, both 3), level, ways, sets.
        let (kind, level, ways, sets) = match subleaf {
            0 => (1, 1, 12, 64),
            1 => (2, 1, 8, 64),
            2 => (3, 2, 16, 2048),
            3 => (3, 3, 16, 16384),
            _ => return Leaf::default(),
        };
        let cores = (1 << self.processor_bits().min(6)) - 1;
        let sharing = if level == 3 { cores } else { 0 };
        let own_initialising = 1 << 8;
        Leaf {
            eax: kind | level << 5 | own_initialising | sharing << 14 | cores << 26,
            ebx: 63 | (ways - 1) << 22,
            ecx: sets - 1,
            edx: 0,
        }
    }

    /// Cores of one thread each, in one package.
    fn topology(&self, subleaf: u32) -> Leaf {
        let edx = self.model.apic_id;
        match subleaf {
            0 => Leaf { eax: 0, ebx: 1, ecx: 1 << 8, edx },
            1 => Leaf {
                eax: self.processor_bits(),
                ebx: self.model.processors & 0xffff,
                ecx: 2 << 8 | 1,
                edx,
            },
            _ => Leaf { ecx: subleaf & 0xff, edx, ..Leaf::default() },
        }
    }
}
