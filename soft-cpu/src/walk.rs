//! The guest's own page tables: the first dimension of translation.
//!
//! Sources: Intel SDM vol. 3, "Paging". Every entry is read through the nested tables, so a walk can end in a nested
//! fault as well as in a page fault; accessed and dirty bits are set with locked operations, because other
//! processors walk the same tables.

use crate::cpu::{Cpu, cr0, cr4, efer};
use crate::event::{Access, Event, Exception, NestedFault, Raised};
use crate::guest_memory::{HostPage, PAGE};
use crate::nested::{NestedPage, NestedRefusal};
use crate::width::{B4, B8, Width};

/// Guest-physical address bits the processor has (CPUID leaf 0x80000008).
pub const PHYSICAL_BITS: u32 = 46;

mod pte {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITABLE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const LARGE: u64 = 1 << 7;
    pub(super) const NO_EXECUTE: u64 = 1 << 63;
}

/// Bits of a page fault's error code.
mod code {
    pub(super) const PRESENT: u32 = 1 << 0;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Linear {
    /// The guest-physical address.
    pub(crate) gpa: u64,
    /// Whether a store may use this translation from now on: allowed, and the dirty bit is set.
    pub(crate) writable: bool,
    /// The large page it is part of, if it is: first and last linear address.
    pub(crate) large: Option<(u64, u64)>,
}

/// Recent last-level tables of long mode: what the levels above them say together. The paging-structure caches of
/// hardware (Intel SDM vol. 3, "Caching Translation Information"): present entries only, gone with any flush, be
/// it of the guest's translations or of the nested ones.
pub(crate) struct WalkCache {
    entries: Box<[Walked; WALKED]>,
    epoch: u64,
}

/// Tables remembered: 128 MiB of linear addresses.
const WALKED: usize = 64;

#[derive(Clone, Copy, Default)]
struct Walked {
    /// 2 MiB of linear addresses.
    region: u64,
    /// When it was walked; 0 for never.
    epoch: u64,
    /// The table, and where it is by the nested tables: readable, and writable where a walk counts as a store.
    table: Option<(u64, HostPage)>,
    writable: bool,
    for_users: bool,
    no_execute: bool,
}

impl WalkCache {
    pub(crate) fn new() -> Self {
        Self { entries: Box::new([Walked::default(); WALKED]), epoch: 1 }
    }

    pub(crate) fn flush(&mut self) {
        self.epoch += 1;
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked to the array's size")]
    fn index(region: u64) -> usize {
        region as usize & (WALKED - 1)
    }

    #[inline(always)]
    fn get(&self, address: u64) -> Option<Walked> {
        let region = address >> 21;
        let walked = self.entries[Self::index(region)];
        (walked.region == region && walked.epoch == self.epoch).then_some(walked)
    }

    fn put(&mut self, walk: &Walk, table: u64, page: HostPage) {
        let region = walk.address >> 21;
        let Walk { writable, for_users, no_execute, .. } = *walk;
        self.entries[Self::index(region)] = Walked {
            region,
            epoch: self.epoch,
            table: Some((table, page)),
            writable,
            for_users,
            no_execute,
        };
    }
}

/// What a walk has gathered.
#[derive(Clone, Copy)]
struct Walk {
    address: u64,
    access: Access,
    user: bool,
    writable: bool,
    for_users: bool,
    no_execute: bool,
}

impl Cpu {
    /// Whether the address is one that the paging mode can have.
    #[inline(always)]
    pub(crate) fn is_canonical(&self, address: u64) -> bool {
        !self.is_long() || (address << 16).cast_signed() >> 16 == address.cast_signed()
    }

    /// Translates for `access`, with the rights of a user or of the supervisor; sets accessed and dirty bits.
    #[inline(always)]
    pub(crate) fn walk(
        &mut self,
        address: u64,
        access: Access,
        user: bool,
    ) -> Result<Linear, Raised> {
        match self.walk_at_last_table(address, access, user) {
            Some(linear) => Ok(linear),
            None => self.walk_from_root(address, access, user),
        }
    }

    /// Most walks: the last table is known, and its entry leaves nothing to set and nothing to refuse. In all other
    /// cases nothing has happened.
    #[inline(always)]
    fn walk_at_last_table(&self, address: u64, access: Access, user: bool) -> Option<Linear> {
        // A checker looks at every translation that is used, that of the table's own page, too.
        if !self.is_long() || self.checker.is_some() {
            return None;
        }
        let Walked { table, writable, for_users, no_execute, .. } = self.walked.get(address)?;
        let (_, page) = table?;
        let entry = page.at(address >> 9 & 0xff8).load::<B8>();
        let wanted =
            pte::PRESENT | pte::ACCESSED | if access == Access::Write { pte::DIRTY } else { 0 };
        if entry & (wanted | self.reserved_in_long_mode()) != wanted {
            return None;
        }
        let walk = Walk {
            address,
            access,
            user,
            writable: writable && entry & pte::WRITABLE != 0,
            for_users: for_users && entry & pte::USER != 0,
            no_execute: no_execute || entry & pte::NO_EXECUTE != 0,
        };
        self.allows(&walk).then(|| Linear {
            gpa: entry & self.frame_mask() | address & (PAGE - 1),
            writable: self.may_write(&walk) && entry & pte::DIRTY != 0,
            large: None,
        })
    }

    /// Bits that no entry of long mode may have.
    fn reserved_in_long_mode(&self) -> u64 {
        let high = (!0 << PHYSICAL_BITS) & ((1 << 52) - 1);
        if self.efer & efer::NXE == 0 { high | pte::NO_EXECUTE } else { high }
    }

    #[cold]
    fn walk_from_root(
        &mut self,
        address: u64,
        access: Access,
        user: bool,
    ) -> Result<Linear, Raised> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(Linear { gpa: address & 0xffff_ffff, writable: true, large: None });
        }
        let linear = if self.is_long() { address } else { address & 0xffff_ffff };
        let walk = Walk {
            address: linear,
            access,
            user,
            writable: true,
            for_users: true,
            no_execute: false,
        };
        loop {
            let found = if self.is_long() {
                let root = self.cr3 & self.frame_mask();
                self.walk_levels(walk, root, 4)?
            } else if self.cr4 & cr4::PAE != 0 {
                let pointer = self.pdptes[(linear >> 30) as usize & 3];
                if pointer & pte::PRESENT == 0 {
                    return Err(self.page_fault(&walk, 0));
                }
                self.walk_levels(walk, pointer & self.frame_mask(), 2)?
            } else {
                self.walk_two_levels(walk)?
            };
            if let Some(linear) = found {
                return Ok(linear);
            }
        }
    }

    fn frame_mask(&self) -> u64 {
        (1 << PHYSICAL_BITS) - PAGE
    }

    /// Call when a translation is cached: dropping any piece of its large page must drop all of them.
    pub(crate) fn note_large(&mut self, linear: &Linear) {
        if let Some((first, last)) = linear.large {
            let (low, high) = self.large.unwrap_or((first, last));
            self.large = Some((low.min(first), high.max(last)));
        }
    }

    /// Eight-byte entries, from `level` (4: the root of long mode, 2: below a PAE pointer) down. `None` when somebody
    /// changed an entry meanwhile: from the start then.
    fn walk_levels(
        &mut self,
        mut walk: Walk,
        mut table: u64,
        mut level: u32,
    ) -> Result<Option<Linear>, Raised> {
        let mut known = None;
        if level == 4
            && let Some(walked) = self.walked.get(walk.address)
            && let Some((last, page)) = walked.table
        {
            walk.writable = walked.writable;
            walk.for_users = walked.for_users;
            walk.no_execute = walked.no_execute;
            (table, level, known) = (last, 1, self.checker.is_none().then_some(page));
        }
        let above_long = if self.is_long() { 0 } else { 0x7ff << 52 };
        loop {
            let shift = 12 + 9 * (level - 1);
            let at = table | (walk.address >> shift & 511) << 3;
            let page = match known {
                Some(page) => page,
                None => self.table_page(at, &walk)?,
            };
            if level == 1 && known.is_none() && self.is_long() {
                self.walked.put(&walk, table, page);
            }
            let entry = page.at(at).load::<B8>();
            if entry & pte::PRESENT == 0 {
                return Err(self.page_fault(&walk, 0));
            }
            let no_execute = entry & pte::NO_EXECUTE != 0;
            let is_leaf = level == 1 || level < 4 && entry & pte::LARGE != 0;
            let mut reserved = self.reserved_in_long_mode() | above_long;
            if level == 4 {
                reserved |= pte::LARGE;
            } else if is_leaf && level > 1 {
                // Between the PAT bit (12) and the page's size.
                reserved |= (1 << shift) - (1 << 13);
            }
            if entry & reserved != 0 {
                return Err(self.page_fault(&walk, code::PRESENT | code::RESERVED));
            }
            walk.writable &= entry & pte::WRITABLE != 0;
            walk.for_users &= entry & pte::USER != 0;
            walk.no_execute |= no_execute;
            if is_leaf {
                return self.finish::<B8>(&walk, at, entry, shift);
            }
            if entry & pte::ACCESSED == 0
                && !self.set_bits::<B8>(at, entry, pte::ACCESSED, &walk)?
            {
                return Ok(None);
            }
            table = entry & self.frame_mask();
            level -= 1;
        }
    }

    /// Four-byte entries, two levels, 4 MiB pages.
    fn walk_two_levels(&mut self, mut walk: Walk) -> Result<Option<Linear>, Raised> {
        let at = self.cr3 & 0xffff_f000 | (walk.address >> 22 & 1023) << 2;
        let entry = self.read_entry::<B4>(at, &walk)?;
        if entry & pte::PRESENT == 0 {
            return Err(self.page_fault(&walk, 0));
        }
        walk.writable = entry & pte::WRITABLE != 0;
        walk.for_users = entry & pte::USER != 0;
        if entry & pte::LARGE != 0 && self.cr4 & cr4::PSE != 0 {
            return self.finish::<B4>(&walk, at, entry, 22);
        }
        if entry & pte::ACCESSED == 0 && !self.set_bits::<B4>(at, entry, pte::ACCESSED, &walk)? {
            return Ok(None);
        }
        let at = entry & 0xffff_f000 | (walk.address >> 12 & 1023) << 2;
        let entry = self.read_entry::<B4>(at, &walk)?;
        if entry & pte::PRESENT == 0 {
            return Err(self.page_fault(&walk, 0));
        }
        walk.writable &= entry & pte::WRITABLE != 0;
        walk.for_users &= entry & pte::USER != 0;
        self.finish::<B4>(&walk, at, entry, 12)
    }

    /// Checks rights, sets the leaf's bits.
    fn finish<W: Width>(
        &mut self,
        walk: &Walk,
        at: u64,
        entry: u64,
        shift: u32,
    ) -> Result<Option<Linear>, Raised> {
        if !self.allows(walk) {
            return Err(self.page_fault(walk, code::PRESENT));
        }
        let mut wanted = pte::ACCESSED;
        if walk.access == Access::Write {
            wanted |= pte::DIRTY;
        }
        let mut entry = entry;
        if entry & wanted != wanted {
            if !self.set_bits::<W>(at, entry, wanted, walk)? {
                return Ok(None);
            }
            entry |= wanted;
        }
        let size = 1u64 << shift;
        let frame = if shift == 22 {
            // PSE-36 is not advertised beyond what 32 bits reach.
            entry & 0xffc0_0000
        } else {
            entry & self.frame_mask() & !(size - 1)
        };
        let first = walk.address & !(size - 1);
        Ok(Some(Linear {
            gpa: frame | walk.address & (size - 1),
            writable: self.may_write(walk) && entry & pte::DIRTY != 0,
            large: (shift > 12).then_some((first, first + (size - 1))),
        }))
    }

    fn may_write(&self, walk: &Walk) -> bool {
        walk.writable || !walk.user && self.cr0 & cr0::WP == 0
    }

    #[inline(always)]
    fn allows(&self, walk: &Walk) -> bool {
        let excused = self.has(crate::flags::AC) && !self.is_implicit;
        let trespass = self.cr4 & cr4::SMAP != 0 && !excused;
        match (walk.access, walk.user) {
            (Access::Read, true) => walk.for_users,
            (Access::Write, true) => walk.for_users && walk.writable,
            (Access::Execute, true) => walk.for_users && !walk.no_execute,
            (Access::Read, false) => !(walk.for_users && trespass),
            (Access::Write, false) => {
                !(walk.for_users && trespass) && (walk.writable || self.cr0 & cr0::WP == 0)
            }
            (Access::Execute, false) => {
                !(walk.no_execute || walk.for_users && self.cr4 & cr4::SMEP != 0)
            }
        }
    }

    fn page_fault(&mut self, walk: &Walk, base: u32) -> Raised {
        let mut error = base;
        match walk.access {
            Access::Read => {}
            Access::Write => error |= code::WRITE,
            Access::Execute => {
                let told = self.efer & efer::NXE != 0
                    && (self.is_long() || self.cr4 & cr4::PAE != 0)
                    || self.cr4 & cr4::SMEP != 0;
                error |= if told { code::FETCH } else { 0 };
            }
        }
        if walk.user {
            error |= code::USER;
        }
        self.throw(Exception::page_fault(error, walk.address))
    }

    fn read_entry<W: Width>(&mut self, at: u64, walk: &Walk) -> Result<u64, Raised> {
        Ok(self.table_page(at, walk)?.at(at).load::<W>())
    }

    /// Where the table is that has an entry at `at`.
    fn table_page(&mut self, at: u64, walk: &Walk) -> Result<HostPage, Raised> {
        let access =
            if self.second_stage.walks_are_stores() { Access::Write } else { Access::Read };
        Ok(self.nested_page(at, access, walk.address, true)?.host)
    }

    /// Sets bits of an entry that still is `entry`; whether it was.
    fn set_bits<W: Width>(
        &mut self,
        at: u64,
        entry: u64,
        bits: u64,
        walk: &Walk,
    ) -> Result<bool, Raised> {
        let page = self.nested_page(at, Access::Write, walk.address, true)?;
        let is_set = page.host.at(at).compare_exchange::<W>(entry, entry | bits) == entry;
        self.note_store(page.frame);
        Ok(is_set)
    }

    /// The second dimension: where a guest-physical page is, or why not.
    ///
    /// Tables and code have a cache for themselves. Data goes without: a page of data that is used again soon is
    /// in the soft TLB, and the others would only drive the tables out.
    #[inline(always)]
    pub(crate) fn nested_page(
        &mut self,
        gpa: u64,
        access: Access,
        gva: u64,
        is_table_walk: bool,
    ) -> Result<NestedPage, Raised> {
        if is_table_walk || access == Access::Execute {
            return self.nested_page_kept(gpa, access, gva, is_table_walk);
        }
        match self.second_stage.translate_again(gpa, access) {
            Ok(page) => Ok(page),
            Err(refusal) => Err(self.nested_refusal(refusal, gpa, access, gva, is_table_walk)),
        }
    }

    fn nested_page_kept(
        &mut self,
        gpa: u64,
        access: Access,
        gva: u64,
        is_table_walk: bool,
    ) -> Result<NestedPage, Raised> {
        if self.checker.is_none()
            && let Some(page) = self.nested.get(gpa)
            && match access {
                Access::Read => true,
                Access::Write => page.writable,
                Access::Execute => page.executable,
            }
        {
            return Ok(page);
        }
        match self.second_stage.translate_again(gpa, access) {
            Ok(page) => {
                self.nested.put(gpa, page);
                Ok(page)
            }
            Err(refusal) => Err(self.nested_refusal(refusal, gpa, access, gva, is_table_walk)),
        }
    }

    #[cold]
    fn nested_refusal(
        &mut self,
        refusal: NestedRefusal,
        gpa: u64,
        access: Access,
        gva: u64,
        is_table_walk: bool,
    ) -> Raised {
        match refusal {
            NestedRefusal::Violation(allowed) => {
                let rip = self.rip;
                let cr3 = self.cr3;
                let fault = NestedFault { gpa, access, gva, is_table_walk, allowed, rip, cr3 };
                self.raise(Event::Nested(fault))
            }
            NestedRefusal::Misconfigured(broken) => self.raise(Event::Misconfigured(broken)),
            // Page tables or code where only devices are: nothing answers, all ones; as a machine would, the
            // guest gets what it asked for, a fault it cannot handle.
            NestedRefusal::Device => self.raise(Event::NoMemory { gpa, access }),
        }
    }
}
