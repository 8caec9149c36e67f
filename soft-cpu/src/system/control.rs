//! Control and debug registers (Intel SDM vol. 3, "Control Registers", "Debug Registers").

use crate::cpu::{CodeSize, Cpu, attend, cr0, cr4, efer};
use crate::event::{Access, Exception, Raised};
use crate::op::Done;
use crate::walk::PHYSICAL_BITS;
use crate::width::B8;

/// Bits of CR0 that exist.
const CR0: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// Performance counters may be read by users: there are none, but the bit exists on every processor with `rdpmc`.
const CR4_PCE: u64 = 1 << 8;

/// Bits of CR4 that what CPUID advertises brings along; all others are reserved.
pub(crate) const CR4: u64 = cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::PGE
    | CR4_PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::FSGSBASE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP;

impl Cpu {
    /// Reads CR0, 2, 3, 4 or 8.
    pub(crate) fn read_control(&mut self, which: u8) -> Result<u64, Raised> {
        match which {
            0 => Ok(self.cr0),
            2 => Ok(self.cr2),
            3 => Ok(self.cr3),
            4 => Ok(self.cr4),
            8 => Ok(self.surroundings.task_priority()),
            _ => Err(self.throw(Exception::UNDEFINED)),
        }
    }

    /// Writes one, with all its rules. Call with [`Cpu::rip`] not yet moved on.
    pub(crate) fn write_control(&mut self, which: u8, value: u64) -> Done {
        match which {
            0 => self.write_cr0(value),
            2 => {
                self.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 if value > 15 => Err(self.protect()),
            8 => {
                self.surroundings.set_task_priority(value);
                // A lower priority may let a waiting interrupt through.
                self.attend |= attend::INTERRUPT;
                Ok(())
            }
            _ => Err(self.throw(Exception::UNDEFINED)),
        }
    }

    /// `mov` to CR0, `lmsw`, `clts`.
    pub(crate) fn write_cr0(&mut self, value: u64) -> Done {
        if value >> 32 != 0 {
            return Err(self.protect());
        }
        let value = value & CR0 | cr0::ET;
        let changed = value ^ self.cr0;
        let has = |bit: u64| value & bit != 0;
        if has(cr0::PG) && !has(cr0::PE) || has(cr0::NW) && !has(cr0::CD) {
            return Err(self.protect());
        }
        if changed & cr0::PG != 0 {
            if !has(cr0::PG) {
                // Out of 64-bit mode only by way of compatibility mode.
                if self.code_size == CodeSize::Bits64 {
                    return Err(self.protect());
                }
            } else if self.efer & efer::LME != 0 {
                let small_task = self.tr.kind() & 0x1d == 1;
                if self.cr4 & cr4::PAE == 0 || self.segments[1].is_long() || small_task {
                    return Err(self.protect());
                }
            }
        }
        let uses_pointers = has(cr0::PG) && self.efer & efer::LME == 0 && self.cr4 & cr4::PAE != 0;
        if uses_pointers && changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            self.pdptes = self.read_pointers(self.cr3)?;
        }
        self.cr0 = value;
        if changed & cr0::PE != 0 && !has(cr0::PE) {
            self.set_cpl(0);
        }
        // TS goes on and off with every switch of tasks that use the floating-point unit: no reason to forget anything.
        if changed & !(cr0::TS | cr0::MP | cr0::EM | cr0::NE | cr0::AM) == 0 {
            self.sse_changed();
        } else {
            self.mode_changed();
        }
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Done {
        if self.is_long() {
            if value >> PHYSICAL_BITS != 0 {
                return Err(self.protect());
            }
        } else if self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            self.pdptes = self.read_pointers(value)?;
        }
        self.cr3 = value;
        self.flush_translations();
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Done {
        if value & !CR4 != 0 {
            return Err(self.protect());
        }
        let changed = value ^ self.cr4;
        if self.is_long() && value & cr4::PAE == 0 {
            return Err(self.protect());
        }
        let uses_pointers = self.cr0 & cr0::PG != 0 && !self.is_long() && value & cr4::PAE != 0;
        if uses_pointers && changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 {
            self.pdptes = self.read_pointers(self.cr3)?;
        }
        self.cr4 = value;
        // Writing CR4 is how kernels flush global pages: also without a change everything goes.
        self.mode_changed();
        Ok(())
    }

    /// The four page-directory pointers of PAE paging, which must have no reserved bits (Intel SDM vol. 3,
    /// "PDPTE Registers").
    fn read_pointers(&mut self, cr3: u64) -> Result<[u64; 4], Raised> {
        const PRESENT: u64 = 1;
        const RESERVED: u64 = 0x1e6 | !0 << PHYSICAL_BITS;
        let table = cr3 & 0xffff_ffe0;
        let mut pointers = [0; 4];
        for (at, pointer) in (table..).step_by(8).zip(&mut pointers) {
            // By the physical address: these are read before paging is on.
            let page = self.nested_page(at, Access::Read, at, true)?;
            *pointer = page.host.at(at).load::<B8>();
            if *pointer & PRESENT != 0 && *pointer & RESERVED != 0 {
                return Err(self.protect());
            }
        }
        Ok(pointers)
    }

    /// Which debug register DR4 and DR5 mean.
    fn debug_index(&mut self, which: u8) -> Result<usize, Raised> {
        match which & 7 {
            4 | 5 if self.cr4 & cr4::DE != 0 => Err(self.throw(Exception::UNDEFINED)),
            which @ (4 | 5) => Ok(usize::from(which) + 2),
            which => Ok(usize::from(which)),
        }
    }

    /// Fails with #DB where DR7.GD guards the debug registers.
    fn check_general_detect(&mut self) -> Done {
        const GD: u64 = 1 << 13;
        const BD: u64 = 1 << 13;
        if self.dr[7] & GD == 0 {
            return Ok(());
        }
        self.dr[7] &= !GD;
        self.dr[6] |= BD;
        Err(self.throw(Exception::plain(1)))
    }

    /// Reads a debug register.
    pub(crate) fn read_debug(&mut self, which: u8) -> Result<u64, Raised> {
        let index = self.debug_index(which)?;
        self.need_supervisor()?;
        self.check_general_detect()?;
        Ok(self.dr[index & 7])
    }

    /// Writes one. Breakpoints are stored and never hit: this processor has none.
    pub(crate) fn write_debug(&mut self, which: u8, value: u64) -> Done {
        let index = self.debug_index(which)?;
        self.need_supervisor()?;
        self.check_general_detect()?;
        if index >= 6 && value >> 32 != 0 {
            return Err(self.protect());
        }
        self.dr[index & 7] = match index {
            6 => value & 0xe00f | 0xffff_0ff0,
            7 => value & 0xffff_23ff | 0x400,
            _ => value,
        };
        Ok(())
    }
}
