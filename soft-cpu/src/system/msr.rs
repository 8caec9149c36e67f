//! Model-specific registers (Intel SDM vol. 4, "Architectural MSRs").
//!
//! Those that CPUID brings along, and those that systems read without asking. Any other is #GP(0).

use crate::cpu::{Cpu, cr0, efer, seg};
use crate::event::Raised;
use crate::op::Done;

/// Time-stamp counter.
const TSC: u32 = 0x10;
/// Platform identification, for microcode.
const PLATFORM_ID: u32 = 0x17;
/// Which features firmware has locked.
const FEATURE_CONTROL: u32 = 0x3a;
/// What was added to the time-stamp counter.
const TSC_ADJUST: u32 = 0x3b;
/// Microcode update trigger.
const UPDATE_TRIGGER: u32 = 0x79;
/// Microcode's revision.
const UPDATE_REVISION: u32 = 0x8b;
/// Base clock ratios.
const PLATFORM_INFO: u32 = 0xce;
/// Memory type ranges there are.
const MTRR_CAPABILITIES: u32 = 0xfe;
/// Which speculation flaws it does not have.
const ARCH_CAPABILITIES: u32 = 0x10a;
/// Restrictions of speculation.
const SPECULATION_CONTROL: u32 = 0x48;
const IBRS: u64 = 1 << 0;
/// No branch history of users' in the kernel.
const BHI_DIS_S: u64 = 1 << 10;
/// Forgets what was predicted.
const PREDICTION_COMMAND: u32 = 0x49;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
/// Machine-check banks.
const MCG_CAPABILITIES: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUG_CONTROL: u32 = 0x1d9;
const MTRR_FIRST_VARIABLE: u32 = 0x200;
const MTRR_LAST_VARIABLE: u32 = MTRR_FIRST_VARIABLE + 2 * VARIABLE_RANGES - 1;
const PAT: u32 = 0x277;
const MTRR_DEFAULT: u32 = 0x2ff;
/// The APIC's deadline, in time-stamp counts.
const TSC_DEADLINE: u32 = 0x6e0;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// Variable memory type ranges.
const VARIABLE_RANGES: u32 = 8;
/// The fixed ones, in the order they are kept.
const FIXED_RANGES: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// No Meltdown, L1TF, MDS, TAA, store bypass, MMIO stale data, register-file sampling and the rest: this processor
/// does one instruction after the other and speculates about nothing. Whoever reads this leaves out mitigations that
/// would only cost time (page tables split between kernel and user above all).
const IMMUNE: u64 = 1 << 0 // RDCL_NO
    | 1 << 1 // IBRS_ALL: what there is to restrict is always restricted
    | 1 << 3 // SKIP_L1DFL_VMENTRY
    | 1 << 4 // SSB_NO
    | 1 << 5 // MDS_NO
    | 1 << 6 // IF_PSCHANGE_MC_NO
    | 1 << 8 // TAA_NO
    | 1 << 13 // SBDR_SSDP_NO
    | 1 << 14 // FBSDP_NO
    | 1 << 15 // PSDP_NO
    | 1 << 20 // BHI_NO
    | 1 << 24 // PBRSB_NO
    | 1 << 26 // GDS_NO
    | 1 << 27 // RFDS_NO
    | 1 << 62; // ITS_NO

/// Bits of EFER that may be set.
const EFER_BITS: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

/// Memory types: what is cached how makes no difference here, so these registers only keep what is written.
#[derive(Clone, Copy, Debug)]
pub struct MemoryTypes {
    /// Default type and enable bits.
    pub default: u64,
    /// The fixed ranges, 0 to 1 MiB.
    pub fixed: [u64; 11],
    /// Base and mask of each variable range.
    pub variable: [u64; 2 * VARIABLE_RANGES as usize],
}

impl Default for MemoryTypes {
    /// Enabled, everything write-back: as firmware leaves it, which does not run here.
    fn default() -> Self {
        const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
        Self { default: 0xc06, fixed: [WRITE_BACK; 11], variable: [0; 16] }
    }
}

/// Whether a memory type exists (Intel SDM vol. 3, "Memory Types That Can Be Encoded With PAT").
fn is_memory_type(kind: u64, with_uncached_minus: bool) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6) || with_uncached_minus && kind == 7
}

fn are_memory_types(kinds: u64, with_uncached_minus: bool) -> bool {
    kinds.to_le_bytes().iter().all(|kind| is_memory_type(u64::from(*kind), with_uncached_minus))
}

impl Cpu {
    /// The time-stamp counter as the guest sees it.
    pub(crate) fn time(&mut self) -> u64 {
        self.surroundings.now().wrapping_add(self.msr.tsc_offset)
    }

    /// `rdmsr`.
    pub(crate) fn read_msr(&mut self, msr: u32) -> Result<u64, Raised> {
        if let Some(answer) = self.surroundings.read_msr(msr) {
            return match answer {
                // The APIC counts without the guest's adjustment.
                Ok(deadline) if msr == TSC_DEADLINE && deadline != 0 => {
                    Ok(deadline.wrapping_add(self.msr.tsc_offset))
                }
                Ok(value) => Ok(value),
                Err(_) => Err(self.protect()),
            };
        }
        if let Some(register) = self.memory_type_register(msr) {
            return Ok(*register);
        }
        Ok(match msr {
            TSC => self.time(),
            PLATFORM_ID | MCG_CAPABILITIES | MCG_STATUS | DEBUG_CONTROL => 0,
            // Locked, nothing allowed.
            FEATURE_CONTROL => 1,
            TSC_ADJUST => self.msr.tsc_offset,
            UPDATE_REVISION => 1 << 32,
            // 1 GHz is ten times a bus clock of 100 MHz.
            PLATFORM_INFO => 10 << 8,
            MTRR_CAPABILITIES => u64::from(VARIABLE_RANGES) | 1 << 8 | 1 << 10,
            ARCH_CAPABILITIES => IMMUNE,
            SYSENTER_CS => self.msr.sysenter_cs,
            SYSENTER_ESP => self.msr.sysenter_esp,
            SYSENTER_EIP => self.msr.sysenter_eip,
            SPECULATION_CONTROL => self.msr.speculation_control,
            MISC_ENABLE => self.msr.misc_enable,
            PAT => self.msr.pat,
            EFER => self.efer,
            STAR => self.msr.star,
            LSTAR => self.msr.lstar,
            CSTAR => self.msr.cstar,
            SFMASK => self.msr.sfmask,
            FS_BASE => self.segments[seg::FS].base,
            GS_BASE => self.segments[seg::GS].base,
            KERNEL_GS_BASE => self.msr.kernel_gs_base,
            TSC_AUX => self.msr.tsc_aux,
            _ => return Err(self.protect()),
        })
    }

    /// `wrmsr`.
    pub(crate) fn write_msr(&mut self, msr: u32, value: u64) -> Done {
        let told = match msr {
            TSC_DEADLINE if value != 0 => value.wrapping_sub(self.msr.tsc_offset).max(1),
            _ => value,
        };
        if let Some(answer) = self.surroundings.write_msr(msr, told) {
            // An interrupt may be pending now.
            self.attend |= crate::cpu::attend::INTERRUPT;
            return answer.map_err(|_| self.protect());
        }
        if self.memory_type_register(msr).is_some() {
            return self.write_memory_type(msr, value);
        }
        match msr {
            TSC => {
                let now = self.surroundings.now();
                self.msr.tsc_offset = value.wrapping_sub(now);
            }
            TSC_ADJUST => self.msr.tsc_offset = value,
            // No microcode: an update changes nothing, and the revision says so.
            UPDATE_TRIGGER | UPDATE_REVISION => {}
            MCG_STATUS | DEBUG_CONTROL if value == 0 => {}
            SYSENTER_CS => self.msr.sysenter_cs = value & 0xffff_ffff,
            SYSENTER_ESP => self.msr.sysenter_esp = self.need_canonical(value)?,
            SYSENTER_EIP => self.msr.sysenter_eip = self.need_canonical(value)?,
            // Nothing is predicted, so there is nothing to restrict, or to forget.
            SPECULATION_CONTROL if value & !(IBRS | BHI_DIS_S) == 0 => {
                self.msr.speculation_control = value
            }
            PREDICTION_COMMAND if value & !1 == 0 => {}
            MISC_ENABLE => self.msr.misc_enable = value,
            PAT if are_memory_types(value, true) => self.msr.pat = value,
            EFER => return self.write_efer(value),
            STAR => self.msr.star = value,
            LSTAR => self.msr.lstar = self.need_canonical(value)?,
            CSTAR => self.msr.cstar = self.need_canonical(value)?,
            SFMASK if value >> 32 == 0 => self.msr.sfmask = value,
            FS_BASE => {
                let base = self.need_canonical(value)?;
                self.set_base(seg::FS, base);
            }
            GS_BASE => {
                let base = self.need_canonical(value)?;
                self.set_base(seg::GS, base);
            }
            KERNEL_GS_BASE => self.msr.kernel_gs_base = self.need_canonical(value)?,
            TSC_AUX if value >> 32 == 0 => self.msr.tsc_aux = value,
            _ => return Err(self.protect()),
        }
        Ok(())
    }

    fn write_efer(&mut self, value: u64) -> Done {
        let changed = value ^ self.efer;
        let paging = self.cr0 & cr0::PG != 0;
        if value & !EFER_BITS != 0 || paging && changed & efer::LME != 0 {
            return Err(self.protect());
        }
        // LMA is not written: it follows from LME and paging.
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        self.mode_changed();
        Ok(())
    }

    /// An address that registers of long mode accept.
    pub(crate) fn need_canonical(&mut self, address: u64) -> Result<u64, Raised> {
        if (address << 16).cast_signed() >> 16 == address.cast_signed() {
            Ok(address)
        } else {
            Err(self.protect())
        }
    }

    /// Sets only the base of a segment.
    pub(crate) fn set_base(&mut self, which: usize, base: u64) {
        let segment = self.segments[which];
        self.set_segment(which, crate::segment::Segment { base, ..segment });
    }

    fn memory_type_register(&mut self, msr: u32) -> Option<&mut u64> {
        let types = &mut self.msr.memory_types;
        match msr {
            MTRR_DEFAULT => Some(&mut types.default),
            MTRR_FIRST_VARIABLE..=MTRR_LAST_VARIABLE => {
                types.variable.get_mut((msr - MTRR_FIRST_VARIABLE) as usize)
            }
            _ => {
                let index = FIXED_RANGES.iter().position(|fixed| *fixed == msr)?;
                types.fixed.get_mut(index)
            }
        }
    }

    fn write_memory_type(&mut self, msr: u32, value: u64) -> Done {
        let high = !0 << crate::walk::PHYSICAL_BITS;
        let accepted = match msr {
            MTRR_DEFAULT => value & !0xcff == 0 && is_memory_type(value & 0xff, false),
            MTRR_FIRST_VARIABLE..=MTRR_LAST_VARIABLE if msr.is_multiple_of(2) => {
                value & (high | 0xf00) == 0 && is_memory_type(value & 0xff, false)
            }
            MTRR_FIRST_VARIABLE..=MTRR_LAST_VARIABLE => value & (high | 0x7ff) == 0,
            _ => are_memory_types(value, false),
        };
        match self.memory_type_register(msr) {
            Some(register) if accepted => {
                *register = value;
                Ok(())
            }
            _ => Err(self.protect()),
        }
    }
}
