//! Reading and writing guest memory by linear address.
//!
//! The fast way is a hit in the soft TLB and one machine instruction. Everything else is in the cold
//! functions below: filling, accesses that cross a page, devices, pages with code in them, the checking mode.

use crate::cpu::{Cpu, slot};
use crate::event::{Access, DeviceAccess, Event, Exception, Raised};
use crate::guest_memory::{HostAddress, PAGE};
use crate::op::Op;
use crate::width::{B1, B8, Width};

/// An operand in memory that may be written; see [`Cpu::open`].
#[derive(Clone, Copy, Debug)]
pub enum Opened {
    /// All of it lies in one page of ordinary memory.
    Memory(HostAddress),
    /// It crosses a page, or a device has it, or code is near: by linear address, which has been found
    /// writable.
    Elsewhere(u64),
}

/// One page of an access that is under way.
enum Target {
    Memory(crate::guest_memory::HostPage, u32),
    Device(u64),
}

impl Cpu {
    // ---- what handlers call ----------------------------------------------------------------

    /// Reads the memory operand of `op`.
    #[inline(always)]
    pub fn load<W: Width>(&mut self, op: &Op) -> Result<u64, Raised> {
        let address = self.address(op);
        self.load_at::<W>(address, op.segment)
    }

    /// Writes it.
    #[inline(always)]
    pub fn store<W: Width>(&mut self, op: &Op, value: u64) -> Result<(), Raised> {
        let address = self.address(op);
        self.store_at::<W>(address, op.segment, value)
    }

    /// Reads at a linear address; `segment` (a slot) says what a bad address raises.
    #[inline(always)]
    pub fn load_at<W: Width>(&mut self, address: u64, segment: u8) -> Result<u64, Raised> {
        match self.reads.hit::<W>(address) {
            Some(host) => Ok(host.load::<W>()),
            None => self.load_slowly(address, segment, W::BYTES),
        }
    }

    /// Writes at a linear address.
    #[inline(always)]
    pub fn store_at<W: Width>(
        &mut self,
        address: u64,
        segment: u8,
        value: u64,
    ) -> Result<(), Raised> {
        match self.writes.hit::<W>(address) {
            Some(host) => {
                host.store::<W>(value);
                Ok(())
            }
            None => self.store_slowly(address, segment, value, W::BYTES),
        }
    }

    /// Where the memory operand of `op` is, if a read of it hits.
    ///
    /// With this and the next a frequent handler has its hit to itself and leaves everything else to a cold copy
    /// of itself, which it ends with: so it needs no stack frame.
    #[inline(always)]
    pub(crate) fn read_hit<W: Width>(&self, op: &Op) -> Option<HostAddress> {
        self.reads.hit::<W>(self.address(op))
    }

    /// The same for a write, or a read and a write.
    #[inline(always)]
    pub(crate) fn write_hit<W: Width>(&self, op: &Op) -> Option<HostAddress> {
        self.writes.hit::<W>(self.address(op))
    }

    /// Makes sure that the operand at `address` may be written, before anything is changed.
    /// Use [`Cpu::peek`] and [`Cpu::poke`] then.
    #[inline(always)]
    pub fn open<W: Width>(&mut self, address: u64, segment: u8) -> Result<Opened, Raised> {
        match self.writes.hit::<W>(address) {
            Some(host) => Ok(Opened::Memory(host)),
            None => self.open_slowly(address, segment, W::BYTES),
        }
    }

    /// Reads an opened operand. Fails only where a device must be asked first.
    #[inline(always)]
    pub fn peek<W: Width>(&mut self, operand: Opened) -> Result<u64, Raised> {
        match operand {
            Opened::Memory(host) => Ok(host.load::<W>()),
            Opened::Elsewhere(address) => self.load_slowly(address, slot::ZERO, W::BYTES),
        }
    }

    /// Writes an opened operand. Fails only where a device must be asked first: so write before changing
    /// registers or flags.
    #[inline(always)]
    pub fn poke<W: Width>(&mut self, operand: Opened, value: u64) -> Result<(), Raised> {
        match operand {
            Opened::Memory(host) => {
                host.store::<W>(value);
                Ok(())
            }
            Opened::Elsewhere(address) => self.store_slowly(address, slot::ZERO, value, W::BYTES),
        }
    }

    /// Replaces the operand at `address` by what `change` makes of it, in one locked step; returns
    /// what was there. `change` may be called several times.
    #[inline(always)]
    pub fn modify<W: Width>(
        &mut self,
        address: u64,
        segment: u8,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised> {
        let operand = self.open::<W>(address, segment)?;
        match operand {
            Opened::Memory(host) if self.is_alone => {
                let old = host.load::<W>();
                host.store::<W>(change(old));
                Ok(old)
            }
            Opened::Memory(host) => Ok(modify_host::<W>(host, change)),
            Opened::Elsewhere(address) => self.modify_slowly::<W>(address, change),
        }
    }

    /// Reads 16 bytes at a linear address.
    #[inline(always)]
    pub fn load128_at(&mut self, address: u64, segment: u8) -> Result<u128, Raised> {
        match self.reads.hit_bytes(address, 16) {
            Some(host) => Ok(host.load128()),
            None => {
                // Not by way of the result: that would take the fast way through memory too.
                self.load128_slowly(address, segment)?;
                Ok(self.loaded128)
            }
        }
    }

    /// Writes 16 bytes at a linear address.
    #[inline(always)]
    pub fn store128_at(&mut self, address: u64, segment: u8, value: u128) -> Result<(), Raised> {
        match self.writes.hit_bytes(address, 16) {
            Some(host) => {
                host.store128(value);
                Ok(())
            }
            None => self.store128_slowly(address, segment, value),
        }
    }

    // ---- the slow ways ---------------------------------------------------------------------

    #[cold]
    #[inline(never)]
    fn load_slowly(&mut self, address: u64, segment: u8, bytes: usize) -> Result<u64, Raised> {
        let in_page = room(address);
        if bytes as u64 > in_page {
            // The second page first would be wrong only in which of two faults comes first.
            self.check_address(address.wrapping_add(in_page), segment)?;
            let low = self.load_slowly_in_page(address, segment, in_page)?;
            let rest = bytes as u64 - in_page;
            let high = self.load_slowly_in_page(self.wrap(address, in_page), segment, rest)?;
            self.check_alignment(address, bytes as u64)?;
            return Ok(low | high << (8 * in_page));
        }
        let value = self.load_slowly_in_page(address, segment, bytes as u64)?;
        self.check_alignment(address, bytes as u64)?;
        Ok(value)
    }

    /// Raises #AC where that is on: after a page fault, before anything is changed. Such a user's translations are never
    /// cached ([`View::Strict`](crate::tlb::View)), so that every access of theirs comes here.
    fn check_alignment(&mut self, address: u64, bytes: u64) -> Result<(), Raised> {
        if self.is_strict() && matches!(bytes, 2 | 4 | 8) && !address.is_multiple_of(bytes) {
            return Err(self.throw(Exception::ALIGNMENT));
        }
        Ok(())
    }

    fn load_slowly_in_page(
        &mut self,
        address: u64,
        segment: u8,
        bytes: u64,
    ) -> Result<u64, Raised> {
        match self.find(address, segment, Access::Read)? {
            Target::Memory(page, _) => Ok(load_bytes(page.at(address), bytes)),
            Target::Device(gpa) => self.ask_device(gpa, bytes, None),
        }
    }

    #[cold]
    #[inline(never)]
    fn store_slowly(
        &mut self,
        address: u64,
        segment: u8,
        value: u64,
        bytes: usize,
    ) -> Result<(), Raised> {
        let in_page = room(address);
        let bytes = bytes as u64;
        if bytes <= in_page {
            let target = self.find(address, segment, Access::Write)?;
            self.check_alignment(address, bytes)?;
            return self.store_in_page(&target, address, value, bytes);
        }
        self.check_address(address.wrapping_add(in_page), segment)?;
        let next = self.wrap(address, in_page);
        let low = self.find(address, segment, Access::Write)?;
        let high = self.find(next, segment, Access::Write)?;
        self.check_alignment(address, bytes)?;
        self.store_in_page(&low, address, value, in_page)?;
        self.store_in_page(&high, next, value >> (8 * in_page), bytes - in_page)
    }

    fn store_in_page(
        &mut self,
        target: &Target,
        address: u64,
        value: u64,
        bytes: u64,
    ) -> Result<(), Raised> {
        match *target {
            Target::Memory(page, frame) => {
                store_bytes(page.at(address), value, bytes);
                self.note_store(frame);
                Ok(())
            }
            Target::Device(gpa) => self.ask_device(gpa, bytes, Some(value)).map(|_| ()),
        }
    }

    #[cold]
    #[inline(never)]
    fn load128_slowly(&mut self, address: u64, segment: u8) -> Result<(), Raised> {
        let (low, high) = if room(address) >= 16 {
            match self.find(address, segment, Access::Read)? {
                Target::Memory(page, _) => {
                    self.loaded128 = page.at(address).load128();
                    return Ok(());
                }
                Target::Device(gpa) => {
                    let low = self.ask_device(gpa, 8, None)?;
                    (low, self.ask_device(gpa.wrapping_add(8), 8, None)?)
                }
            }
        } else {
            self.check_address(address.wrapping_add(room(address)), segment)?;
            let low = self.load_at::<B8>(address, segment)?;
            (low, self.load_at::<B8>(self.wrap(address, 8), segment)?)
        };
        self.loaded128 = u128::from(low) | u128::from(high) << 64;
        Ok(())
    }

    #[cold]
    #[inline(never)]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    fn store128_slowly(&mut self, address: u64, segment: u8, value: u128) -> Result<(), Raised> {
        let (low, high) = (value as u64, (value >> 64) as u64);
        if room(address) < 16 {
            self.check_address(address.wrapping_add(room(address)), segment)?;
        }
        let target = self.find(address, segment, Access::Write)?;
        if room(address) >= 16 {
            match target {
                Target::Memory(page, frame) => {
                    page.at(address).store128(value);
                    self.note_store(frame);
                }
                Target::Device(gpa) => {
                    self.ask_device(gpa, 8, Some(low))?;
                    self.ask_device(gpa.wrapping_add(8), 8, Some(high))?;
                }
            }
            return Ok(());
        }
        // Both pages must be writable before either half is written.
        self.find(self.wrap(address, room(address)), segment, Access::Write)?;
        self.store_at::<B8>(address, segment, low)?;
        self.store_at::<B8>(self.wrap(address, 8), segment, high)
    }

    #[cold]
    #[inline(never)]
    fn open_slowly(&mut self, address: u64, segment: u8, bytes: usize) -> Result<Opened, Raised> {
        let in_page = room(address);
        if bytes as u64 > in_page {
            self.check_address(address.wrapping_add(in_page), segment)?;
        }
        let target = self.find(address, segment, Access::Write)?;
        if bytes as u64 > in_page {
            self.find(self.wrap(address, in_page), segment, Access::Write)?;
            self.check_alignment(address, bytes as u64)?;
            return Ok(Opened::Elsewhere(address));
        }
        self.check_alignment(address, bytes as u64)?;
        match target {
            Target::Memory(page, frame) if !self.code.map.is_marked(frame) => {
                Ok(Opened::Memory(page.at(address)))
            }
            _ => Ok(Opened::Elsewhere(address)),
        }
    }

    #[cold]
    #[inline(never)]
    fn modify_slowly<W: Width>(
        &mut self,
        address: u64,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Raised> {
        if room(address) >= W::BYTES as u64
            && let Target::Memory(page, frame) = self.find(address, slot::ZERO, Access::Write)?
        {
            let old = modify_host::<W>(page.at(address), change);
            self.note_store(frame);
            return Ok(old);
        }
        // Across two pages, or a device: no instruction of ours locks that. Those who do the same exclude each
        // other; a plain access may see half of it.
        let map = self.code.map.clone();
        let _locked = map.split_lock.lock();
        let old = self.load_slowly(address, slot::ZERO, W::BYTES)?;
        self.store_slowly(address, slot::ZERO, change(old) & W::MASK, W::BYTES)?;
        Ok(old)
    }

    /// The address `bytes` further on, in the address space there is.
    fn wrap(&self, address: u64, bytes: u64) -> u64 {
        let next = address.wrapping_add(bytes);
        if self.is_long() { next } else { next & 0xffff_ffff }
    }

    /// Finds the page of one access, and fills the TLB.
    fn find(&mut self, address: u64, segment: u8, access: Access) -> Result<Target, Raised> {
        self.check_address(address, segment)?;
        self.find_as(address, access, self.cpl == 3)
    }

    /// Refuses what is no address. An access that goes on to a second page has its last byte looked at
    /// before anything else: the exception for that one goes before a page fault in the first page.
    fn check_address(&mut self, address: u64, segment: u8) -> Result<(), Raised> {
        if self.is_canonical(address) {
            return Ok(());
        }
        Err(self.throw(match segment {
            slot::FLAT_STACK => Exception::stack(0),
            _ => Exception::general_protection(0),
        }))
    }

    /// The same, with the rights of a user or of the supervisor.
    fn find_as(&mut self, address: u64, access: Access, user: bool) -> Result<Target, Raised> {
        let wrapped = self.wrap(address, 0);
        if self.checker.is_some() {
            return self.find_checked(wrapped, access, user);
        }
        let linear = self.walk(wrapped, access, user)?;
        let page = match self.nested_page(linear.gpa, access, wrapped, false) {
            Ok(page) => page,
            Err(raised) => {
                if let Event::NoMemory { gpa, .. } = self.event {
                    self.event = Event::None;
                    return Ok(Target::Device(gpa));
                }
                return Err(raised);
            }
        };
        self.note_large(&linear);
        // Filled for whose rights were asked.
        if self.is_implicit && wrapped == address {
            if access == Access::Read {
                self.reads.fill_supervisor(address, page.host);
            }
        } else if user == (self.cpl == 3) && wrapped == address {
            match access {
                Access::Read => self.reads.fill(address, page.host),
                Access::Write
                    if linear.writable && page.writable && !self.code.map.is_marked(page.frame) =>
                {
                    self.writes.fill(address, page.host);
                }
                _ => {}
            }
        }
        if access == Access::Write && page.frame == self.own_frame {
            return Err(self.raise(Event::OwnCode));
        }
        Ok(Target::Memory(page.host, page.frame))
    }

    fn find_checked(&mut self, address: u64, access: Access, user: bool) -> Result<Target, Raised> {
        let Some(mut checker) = self.checker.take() else { unreachable!("asked by the caller") };
        let found = checker.find(self, address, access, user);
        self.checker = Some(checker);
        match found? {
            Ok(page) if access == Access::Write && page.frame == self.own_frame => {
                Err(self.raise(Event::OwnCode))
            }
            Ok(page) => Ok(Target::Memory(page.host, page.frame)),
            Err(gpa) => Ok(Target::Device(gpa)),
        }
    }

    /// After a store by other means than the TLB's: decoded code in that frame is stale.
    pub(crate) fn note_store(&mut self, frame: u32) {
        if self.code.map.is_marked(frame) {
            self.code.map.changed(frame);
        }
    }

    /// Reads or writes a device's register: its answer, if it is known already.
    fn ask_device(&mut self, gpa: u64, bytes: u64, value: Option<u64>) -> Result<u64, Raised> {
        let mask = if bytes >= 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 };
        let bytes = u8::try_from(bytes).expect("at most eight");
        let access = DeviceAccess { at: gpa, bytes, value: value.map(|value| value & mask) };
        let inside = match value {
            None => self.surroundings.local_read(&access),
            Some(_) => self.surroundings.local_write(&access).then_some(0),
        };
        if let Some(answer) = inside {
            // What was written may have made an interrupt pending.
            self.attend |= crate::cpu::attend::INTERRUPT;
            return Ok(answer & mask);
        }
        match self.replay.recall(gpa, bytes) {
            Some(answer) => Ok(answer & mask),
            None => Err(self.raise(Event::Mmio(access))),
        }
    }

    // ---- as the supervisor ------------------------------------------------------------------

    /// Reads a descriptor or another structure of the system's: with the supervisor's rights, whatever
    /// the privilege level (Intel SDM vol. 3, "implicit supervisor-mode accesses").
    pub fn load_system<W: Width>(&mut self, address: u64) -> Result<u64, Raised> {
        // What the supervisor may read with AC clear is what may be read here.
        if let Some(host) = self.reads.hit_supervisor::<W>(address) {
            return Ok(host.load::<W>());
        }
        let mut value = 0;
        for index in 0..W::BYTES as u64 {
            // Byte by byte only across pages.
            if index == 0 && room(address) >= W::BYTES as u64 {
                return match self.find_system(address, Access::Read)? {
                    Target::Memory(page, _) => Ok(page.at(address).load::<W>()),
                    Target::Device(gpa) => self.ask_device(gpa, W::BYTES as u64, None),
                };
            }
            let at = self.wrap(address, index);
            let byte = match self.find_system(at, Access::Read)? {
                Target::Memory(page, _) => page.at(at).load::<B1>(),
                Target::Device(gpa) => self.ask_device(gpa, 1, None)?,
            };
            value |= byte << (8 * index);
        }
        Ok(value)
    }

    /// Writes one.
    pub fn store_system<W: Width>(&mut self, address: u64, value: u64) -> Result<(), Raised> {
        let bytes = W::BYTES as u64;
        let in_page = room(address).min(bytes);
        let low = self.find_system(address, Access::Write)?;
        if in_page == bytes {
            return self.store_in_page(&low, address, value, bytes);
        }
        let next = self.wrap(address, in_page);
        let high = self.find_system(next, Access::Write)?;
        self.store_in_page(&low, address, value, in_page)?;
        self.store_in_page(&high, next, value >> (8 * in_page), bytes - in_page)
    }

    fn find_system(&mut self, address: u64, access: Access) -> Result<Target, Raised> {
        if !self.is_canonical(address) {
            return Err(self.throw(Exception::general_protection(0)));
        }
        self.is_implicit = true;
        let found = self.find_as(address, access, false);
        self.is_implicit = false;
        found
    }

    /// The memory at `address`, which is to be written, and its frame, for [`Cpu::note_store`] afterwards.
    /// `None` where a device is.
    pub(crate) fn memory_for_write(
        &mut self,
        address: u64,
    ) -> Result<Option<(HostAddress, u32)>, Raised> {
        match self.find(address, slot::ZERO, Access::Write)? {
            Target::Memory(page, frame) => Ok(Some((page.at(address), frame))),
            Target::Device(_) => Ok(None),
        }
    }

    /// The host address of `address` for `access`, and how many bytes follow it in its page: for string
    /// instructions that work page by page. `None` where a device is, or code: then element by element.
    pub(crate) fn page_for(
        &mut self,
        address: u64,
        segment: u8,
        access: Access,
    ) -> Result<Option<HostAddress>, Raised> {
        let hit = match access {
            Access::Write => self.writes.hit::<B1>(address),
            _ => self.reads.hit::<B1>(address),
        };
        if hit.is_some() {
            return Ok(hit);
        }
        match self.find(address, segment, access)? {
            Target::Memory(_, frame)
                if access == Access::Write && self.code.map.is_marked(frame) =>
            {
                Ok(None)
            }
            // Element by element, each looked at.
            Target::Memory(..) if self.is_strict() => Ok(None),
            Target::Memory(page, _) => Ok(Some(page.at(address))),
            Target::Device(_) => Ok(None),
        }
    }
}

/// Bytes from `address` to the end of its page.
#[inline(always)]
pub(crate) fn room(address: u64) -> u64 {
    PAGE - address % PAGE
}

#[inline(always)]
fn modify_host<W: Width>(host: HostAddress, change: impl Fn(u64) -> u64) -> u64 {
    let mut old = host.load::<W>();
    loop {
        let found = host.compare_exchange::<W>(old, change(old) & W::MASK);
        if found == old {
            return old;
        }
        old = found;
    }
}

fn load_bytes(host: HostAddress, bytes: u64) -> u64 {
    use crate::width::{B2, B4};
    match bytes {
        1 => host.load::<B1>(),
        2 => host.load::<B2>(),
        4 => host.load::<B4>(),
        8 => host.load::<B8>(),
        _ => {
            (0..bytes).fold(0, |value, index| value | host.plus(index).load::<B1>() << (8 * index))
        }
    }
}

fn store_bytes(host: HostAddress, value: u64, bytes: u64) {
    use crate::width::{B2, B4};
    match bytes {
        1 => host.store::<B1>(value),
        2 => host.store::<B2>(value),
        4 => host.store::<B4>(value),
        8 => host.store::<B8>(value),
        _ => (0..bytes).for_each(|index| host.plus(index).store::<B1>(value >> (8 * index) & 0xff)),
    }
}
