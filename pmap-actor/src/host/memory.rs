//! Guest memory: one object, a file in no directory (`object.rs`), and two views of it.
//!
//! ```text
//!              ┌──────────────── object ───────────────┐
//!              │ low memory        │ memory above 4 GiB │
//!              └───────┬───────────┴────────┬──────────┘
//!   backing view ──────┘ (ours)             │ whole, never faults to us
//!   guest view ─────────────────────────────┘ registered with userfaultfd, given to KVM
//! ```
//!
//! The *guest view* is what the guest can reach: a page is mapped there when, and only
//! when, our tables have a leaf for it. The *backing view* is what the loader, devices and
//! the pmap itself use; what is written there is in the object whether or not the guest can
//! reach it. A *frame* is an offset into the object. (Where the guest view shows a device's memory instead, `device_view.rs`, the object has
//! nothing at that offset.)
//!
//! The software engine walks the tables and reaches frames through the guest view, too
//! ([`GuestMemory::host_of_frame`]). Nothing is registered there then, and nothing unmapped; it is aligned to 2 MiB, so that a
//! promoted block can be one huge page of the host as well.

#![expect(unsafe_code, reason = "maps memory, and hands its addresses to the kernel")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use actors::layout::MemoryLayout;
use actors::{Gpa, GpaRange};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::huge::{HUGE, HugePages, free_reserved, memfd, taken_reserved};
use super::object;
use super::window;

/// Inaccessible bytes on each side of a guest view, so that a wrong offset meets nothing.
const GUARD: usize = 2 << 20;
/// Guest views start at such a boundary, or the host could never use huge pages for them.
const ALIGNMENT: usize = 2 << 20;

/// The guest's memory object and its views.
#[derive(Debug)]
pub struct GuestMemory {
    pub(super) file: File,
    pages: HugePages,
    takes_advice: bool,
    layout: MemoryLayout,
    backing: GuestMemoryMmap,
    views: Vec<GuestView>,
}

/// One mapped stretch of the guest view.
///
/// # Invariants
///
/// `reservation .. + reserved` is a mapping of ours, made once and unmapped on drop, and
/// `base .. + range.len()` lies in it. Rust code never dereferences it: only the guest
/// and the kernel use the guest view. (A software engine is the guest: [`GuestMemory::host_of_frame`].)
#[derive(Debug)]
struct GuestView {
    range: GpaRange,
    first_frame: u64,
    base: NonNull<libc::c_void>,
    reservation: NonNull<libc::c_void>,
    reserved: usize,
}

// SAFETY: the view is plain addresses; the kernel serialises changes to the mapping.
unsafe impl Send for GuestView {}
// SAFETY: as above; no Rust reference into the view is ever made.
unsafe impl Sync for GuestView {}

/// A stretch of guest memory as KVM wants to hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Guest-physical range.
    pub range: GpaRange,
    /// Host address of its first byte in the guest view.
    pub host: u64,
}

pub(super) fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Says what is missing, where the host's own "no memory" would leave one to guess.
fn check_reserved(layout: MemoryLayout) -> io::Result<()> {
    let refused = |why| Err(io::Error::other(why));
    if layout.ranges().any(|range| !range.len().is_multiple_of(HUGE)) {
        return refused(format!(
            "memory of reserved huge pages must be a multiple of {HUGE} bytes below and above 4 GiB"
        ));
    }
    let needed = layout.total() / HUGE;
    match free_reserved() {
        Some(free) if free >= needed => Ok(()),
        Some(free) => refused(format!(
            "the guest needs {needed} reserved huge pages of 2 MiB and the host has {free} to spare: \
             sudo sysctl vm.nr_hugepages={}",
            needed.saturating_add(taken_reserved())
        )),
        None => {
            refused("this kernel has no reserved huge pages of 2 MiB (CONFIG_HUGETLBFS)".into())
        }
    }
}

impl GuestMemory {
    /// Makes the object, empty, and maps both views. Takes no memory yet.
    ///
    /// # Errors
    ///
    /// The operating system's, when it has no address space or file descriptor for it.
    pub fn new(layout: MemoryLayout) -> io::Result<Self> {
        Self::with_pages(layout, HugePages::Transparent)
    }

    /// The same, of pages of this kind. Reserved ones are promised to this guest from here on: a
    /// host that has too few refuses now, and not later with a signal.
    ///
    /// # Errors
    ///
    /// As above; with reserved pages, a sentence that says how many are missing.
    pub fn with_pages(layout: MemoryLayout, pages: HugePages) -> io::Result<Self> {
        let (file, takes_advice) = match pages {
            HugePages::Transparent => object::create()?,
            HugePages::Reserved => {
                check_reserved(layout)?;
                let flags = libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
                (memfd(object::NAME, flags)?, false)
            }
        };
        file.set_len(layout.total())?;

        let mut frame = 0;
        let mut stretches = Vec::new();
        for range in layout.ranges() {
            stretches.push((range, frame));
            frame += range.len();
        }
        let mut regions = Vec::new();
        for &(range, frame) in &stretches {
            let len = usize::try_from(range.len()).map_err(io::Error::other)?;
            let offset = FileOffset::new(file.try_clone()?, frame);
            regions.push((GuestAddress(range.start().0), len, Some(offset)));
        }
        // The guest view first: it is where reserved pages are promised.
        let views = stretches
            .iter()
            .map(|&(range, frame)| GuestView::new(&file, range, frame, pages))
            .collect::<io::Result<_>>();
        if views.is_err() && pages == HugePages::Reserved {
            // Somebody else was promised some since they were counted.
            check_reserved(layout)?;
        }
        let views = views?;
        let backing = GuestMemoryMmap::from_ranges_with_files(&regions)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { file, pages, takes_advice, layout, backing, views })
    }

    /// What it is made of.
    #[must_use]
    pub fn pages(&self) -> HugePages {
        self.pages
    }

    /// Whether a block of it can be allocated as one huge page, when that is asked for.
    pub(crate) fn takes_advice(&self) -> bool {
        self.takes_advice
    }

    /// Where the memory lies.
    #[must_use]
    pub fn layout(&self) -> MemoryLayout {
        self.layout
    }

    /// The backing view, by guest-physical address.
    #[must_use]
    pub fn backing(&self) -> &GuestMemoryMmap {
        &self.backing
    }

    /// What KVM's memory slots are.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.views
            .iter()
            .map(|view| Slot { range: view.range, host: view.base.as_ptr().addr() as u64 })
    }

    fn view(&self, gpa: Gpa) -> &GuestView {
        let found = self.views.iter().find(|view| view.range.contains(gpa));
        found.expect("the map admits only ranges inside the memory layout")
    }

    /// Host address of `gpa` in the guest view.
    ///
    /// # Panics
    ///
    /// When `gpa` is not memory.
    #[must_use]
    pub fn guest_address(&self, gpa: Gpa) -> u64 {
        let view = self.view(gpa);
        view.base.as_ptr().addr() as u64 + (gpa.0 - view.range.start().0)
    }

    /// The guest-physical address of a host address in the guest view.
    #[must_use]
    pub fn gpa_of(&self, host: u64) -> Option<Gpa> {
        self.views.iter().find_map(|view| {
            let offset = host.checked_sub(view.base.as_ptr().addr() as u64)?;
            (offset < view.range.len()).then(|| Gpa(view.range.start().0 + offset))
        })
    }

    /// The frame that backs `gpa`.
    ///
    /// # Panics
    ///
    /// When `gpa` is not memory.
    #[must_use]
    pub fn frame_of(&self, gpa: Gpa) -> u64 {
        let view = self.view(gpa);
        view.first_frame + (gpa.0 - view.range.start().0)
    }

    /// The guest-physical address whose frame this is; `None` beyond the object's end.
    #[must_use]
    pub fn gpa_of_frame(&self, frame: u64) -> Option<Gpa> {
        self.views.iter().find_map(|view| {
            let offset = frame.checked_sub(view.first_frame)?;
            (offset < view.range.len()).then(|| Gpa(view.range.start().0 + offset))
        })
    }

    /// Bytes the host holds for the guest: the object's blocks. (A process's resident set
    /// counts a page once for each view.)
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Makes the frames of `range` exist; those that did not are zeroes.
    ///
    /// # Errors
    ///
    /// The operating system's, when it has no memory left.
    pub fn populate(&self, range: GpaRange) -> io::Result<()> {
        self.allocate(range, libc::FALLOC_FL_KEEP_SIZE)
    }

    /// Makes the frames of `range` exist *and* maps them in the guest view, so that a software engine that
    /// touches them there takes no fault of the host. Not while that view is registered with userfaultfd.
    ///
    /// # Errors
    ///
    /// The operating system's, when it has no memory left.
    pub fn populate_for_walkers(&self, range: GpaRange) -> io::Result<()> {
        loop {
            // This writes nothing: pages that exist keep their contents, and the others appear as zeroes, which they were.
            match self.populate_view(range) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Linux before 5.14.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    return self.populate(range);
                }
                done => return done,
            }
        }
    }

    /// The host address of `bytes` bytes of guest memory at `frame` (an offset in the memory
    /// object) in the guest view; `None` when they are not all in one stretch of it. For engines that walk the tables
    /// themselves: KVM's guest view faults to the pmap.
    ///
    /// # Invariants
    ///
    /// For whoever dereferences the pointer:
    ///
    /// * It is valid for reads and writes of `bytes` bytes as long as this [`GuestMemory`]
    ///   lives (hold an `Arc`), whatever the pmap does, for whoever still may use a translation that led here: parts of the
    ///   view change between memory and a device's memory only while nobody may. Freeing a frame makes it read as
    ///   zeroes; it does not unmap it.
    /// * The bytes are shared with everything that reaches the guest's memory: other vcpus,
    ///   devices, the loader. So no Rust reference to them may be made, and accesses must be
    ///   volatile or atomic, or be made by code that the compiler cannot see through.
    /// * That an address exists says nothing about rights. An access must be allowed by a
    ///   translation that the accessor may still use: the tables' own, or a cached one that no
    ///   completed shootdown concerns.
    /// * A touch of a frame that does not exist makes it exist, and where the host has no
    ///   memory left that ends the process. Frames that the tables lead to exist.
    #[must_use]
    #[inline]
    pub fn host_of_frame(&self, frame: u64, bytes: u64) -> Option<NonNull<u8>> {
        let end = frame.checked_add(bytes)?;
        let view = self
            .views
            .iter()
            .find(|view| view.first_frame <= frame && end <= view.first_frame + view.range.len())?;
        let offset = self.len_of(frame - view.first_frame);
        NonNull::new(view.base.as_ptr().wrapping_byte_add(offset).cast())
    }

    /// Copies what a page's frame holds (`page`: its frame divided by 4096). Others may write to
    /// it meanwhile; the copy then has some of what they wrote.
    ///
    /// The kernel copies, through the memory object and not through a view: so nothing here
    /// races in the language's sense, a frame that does not exist is read as zeroes and *not*
    /// made to exist, and no host mapping of a page is made that is about to be freed. (Making
    /// one costs more than the call: 0.5 us, against 8 us for the first touch through the view.)
    ///
    /// # Errors
    ///
    /// The operating system's: memory that broke (EIO); a page past the end.
    pub fn copy_frame(&self, page: u64, into: &mut [u8; 4096]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let past_the_end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let frame = page.checked_mul(4096).ok_or_else(past_the_end)?;
        self.file.read_exact_at(into, frame)
    }

    /// Puts `bytes` into a page's frame, and makes it exist. As in [`GuestMemory::copy_frame`], the kernel copies.
    ///
    /// # Errors
    ///
    /// The operating system's: no memory left; a page past the end.
    pub fn fill_frame(&self, page: u64, bytes: &[u8; 4096]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let past_the_end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let frame = page.checked_mul(4096).ok_or_else(past_the_end)?;
        if frame >= self.layout.total() {
            return Err(past_the_end());
        }
        self.file.write_all_at(bytes, frame)
    }

    /// Gives the frames of `range` back to the host: whoever maps them next gets zeroes.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn free(&self, range: GpaRange) -> io::Result<()> {
        self.allocate(range, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
    }

    fn allocate(&self, range: GpaRange, mode: libc::c_int) -> io::Result<()> {
        window::allocate(&self.file, mode, self.frame_of(range.start()), range.len())
    }

    /// Drops the guest view's mappings of `range` and keeps the frames. KVM's own tables
    /// follow before this returns.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn unmap_view(&self, range: GpaRange) -> io::Result<()> {
        // SAFETY: the range lies in a mapping of ours (`GuestView`) that Rust never reads.
        checked(unsafe { libc::madvise(self.place(range), self.len(range), libc::MADV_DONTNEED) })
    }

    /// Forbids, or allows again, any access through the guest view to `range`.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn set_view_access(&self, range: GpaRange, allowed: bool) -> io::Result<()> {
        let protection = if allowed { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
        // SAFETY: as in `unmap_view`.
        checked(unsafe { libc::mprotect(self.place(range), self.len(range), protection) })
    }

    /// Pins the frames of `range` in memory. Reserved huge pages, once they exist, are: the host never swaps them, and
    /// they need not count against the limit.
    ///
    /// # Errors
    ///
    /// The operating system's, when the limit on locked memory is too low.
    pub fn lock(&self, range: GpaRange) -> io::Result<()> {
        if self.pages == HugePages::Reserved {
            return Ok(());
        }
        // SAFETY: locking changes nothing that Rust can see.
        checked(unsafe { libc::mlock(self.place(range), self.len(range)) })
    }

    /// Undoes [`GuestMemory::lock`].
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn unlock(&self, range: GpaRange) -> io::Result<()> {
        if self.pages == HugePages::Reserved {
            return Ok(());
        }
        // SAFETY: as in `lock`.
        checked(unsafe { libc::munlock(self.place(range), self.len(range)) })
    }

    pub(super) fn place(&self, range: GpaRange) -> *mut libc::c_void {
        let view = self.view(range.start());
        assert!(view.range.covers(range), "{range} is not one stretch of memory");
        let offset = self.len_of(range.start().0 - view.range.start().0);
        view.base.as_ptr().wrapping_byte_add(offset)
    }

    pub(super) fn len(&self, range: GpaRange) -> usize {
        self.len_of(range.len())
    }

    fn len_of(&self, bytes: u64) -> usize {
        usize::try_from(bytes).expect("it was mapped, so it fits the address space")
    }
}

impl GuestView {
    fn new(file: &File, range: GpaRange, frame: u64, pages: HugePages) -> io::Result<Self> {
        let len = usize::try_from(range.len()).map_err(io::Error::other)?;
        let too_long = || io::Error::from_raw_os_error(libc::ENOMEM);
        let reserved = len.checked_add(2 * GUARD + ALIGNMENT).ok_or_else(too_long)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh reservation at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let aligned = (start.addr() + GUARD).next_multiple_of(ALIGNMENT);
        let base = start.wrapping_byte_add(aligned - start.addr());
        let view = Self {
            range,
            first_frame: frame,
            base: NonNull::new(base).ok_or_else(too_long)?,
            reservation: NonNull::new(start).ok_or_else(too_long)?,
            reserved,
        };
        let offset = libc::off_t::try_from(frame).map_err(io::Error::other)?;
        // Mapping reserved pages is what reserves them, unless one says otherwise.
        let promise = if pages == HugePages::Reserved { 0 } else { libc::MAP_NORESERVE };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | promise;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: MAP_FIXED replaces a part of the reservation made above, nothing else.
        let mapped = unsafe { libc::mmap(base, len, access, flags, file.as_raw_fd(), offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: advice about a mapping of ours; changes no contents.
            checked(unsafe { libc::madvise(base, len, advice) })?;
        }
        Ok(view)
    }
}

impl Drop for GuestView {
    fn drop(&mut self) {
        // SAFETY: by the invariant this mapping is ours, and nobody dereferences it.
        unsafe { libc::munmap(self.reservation.as_ptr(), self.reserved) };
    }
}

#[cfg(test)]
mod tests {
    use actors::layout::LOWMEM_LIMIT;
    use vm_memory::Bytes;

    use super::*;

    fn split(total: u64) -> GuestMemory {
        GuestMemory::new(MemoryLayout::split(total, 1 << 30, 48).unwrap()).unwrap()
    }

    #[test]
    fn memory_takes_nothing_until_it_is_touched_and_gives_back_what_is_freed() {
        let memory = split(256 << 20);
        assert_eq!(memory.resident_bytes().unwrap(), 0);
        memory.backing().write_obj(7u64, GuestAddress(0x5000)).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 4096);
        let range = GpaRange::new(Gpa(0x4000), 0x4000).unwrap();
        memory.populate(range).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 0x4000);
        assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x5000)).unwrap(), 7);
        memory.free(range).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 0);
        assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x5000)).unwrap(), 0);
    }

    #[test]
    fn addresses_translate_both_ways_below_and_above_the_hole() {
        let memory = split(2 << 30);
        for gpa in [Gpa(0), Gpa((1 << 30) - 1), Gpa(4 << 30), Gpa((5 << 30) - 1)] {
            assert_eq!(memory.gpa_of(memory.guest_address(gpa)), Some(gpa));
            assert_eq!(memory.gpa_of_frame(memory.frame_of(gpa)), Some(gpa));
        }
        assert_eq!(memory.frame_of(Gpa(4 << 30)), 1 << 30);
        let low_end = memory.guest_address(Gpa((1 << 30) - 1)) + 1;
        assert_eq!((memory.gpa_of(low_end), memory.gpa_of_frame(2 << 30)), (None, None));
        assert!(memory.slots().all(|slot| slot.host.is_multiple_of(ALIGNMENT as u64)));
    }

    #[test]
    fn a_frame_has_an_address_in_the_guest_view_unless_it_crosses_an_end() {
        let memory = split(2 << 30);
        let host = |frame, bytes| memory.host_of_frame(frame, bytes).map(|at| at.as_ptr());
        for gpa in [Gpa(0x5000), Gpa((1 << 30) - 4096), Gpa(4 << 30), Gpa((5 << 30) - 4096)] {
            let found = host(memory.frame_of(gpa), 4096).unwrap();
            assert_eq!(found.addr() as u64, memory.guest_address(gpa));
        }
        assert_eq!(host((1 << 30) - 4096, 8192), None, "the low stretch ends in between");
        assert_eq!(host((2 << 30) - 4096, 8192), None);
        assert_eq!(host(u64::MAX, 1), None);
    }

    #[test]
    fn copying_a_frame_makes_none() {
        let memory = split(2 << 30);
        memory.backing().write_obj(7u64, GuestAddress((4 << 30) + 0x5ff8)).unwrap();
        let held = memory.resident_bytes().unwrap();
        let page = memory.frame_of(Gpa((4 << 30) + 0x5000)) / 4096;
        let mut copy = [1; 4096];
        memory.copy_frame(page, &mut copy).unwrap();
        assert_eq!(copy[4088..], 7u64.to_le_bytes());
        memory.copy_frame(page + 1, &mut copy).unwrap();
        assert_eq!(copy, [0; 4096]);
        assert_eq!(memory.resident_bytes().unwrap(), held);
        for past_the_end in [(2 << 30) / 4096, u64::MAX / 4096, u64::MAX] {
            assert!(memory.copy_frame(past_the_end, &mut copy).is_err());
            assert!(memory.fill_frame(past_the_end, &copy).is_err());
        }
    }

    #[test]
    fn what_a_frame_was_filled_with_is_seen_through_the_view() {
        let memory = split(2 << 30);
        let gpa = Gpa((4 << 30) + 0x5000);
        memory.fill_frame(memory.frame_of(gpa) / 4096, &[7; 4096]).unwrap();
        assert_eq!(memory.backing().read_obj::<u8>(GuestAddress(gpa.0 + 4095)).unwrap(), 7);
        assert_eq!(memory.resident_bytes().unwrap(), 4096);
    }

    #[test]
    fn populating_for_walkers_makes_pages_and_keeps_their_contents() {
        let memory = split(256 << 20);
        memory.backing().write_obj(7u64, GuestAddress(0x5000)).unwrap();
        memory.populate_for_walkers(GpaRange::new(Gpa(0x4000), 0x4000).unwrap()).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 0x4000);
        assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x5000)).unwrap(), 7);
    }

    #[test]
    fn reserved_pages_that_the_host_does_not_have_are_missed_at_the_start_and_counted() {
        let missing = free_reserved().map_or(1, |free| free + 1);
        let layout = MemoryLayout::split(missing * HUGE, LOWMEM_LIMIT, 48).unwrap();
        let why = GuestMemory::with_pages(layout, HugePages::Reserved).unwrap_err().to_string();
        assert!(why.contains("reserved huge pages"), "{why}");
        let odd = MemoryLayout::split(HUGE + (1 << 20), LOWMEM_LIMIT, 48).unwrap();
        let why = GuestMemory::with_pages(odd, HugePages::Reserved).unwrap_err().to_string();
        assert!(why.contains("multiple of 2097152 bytes"), "{why}");
    }

    #[test]
    fn more_memory_than_addresses_is_an_error_not_a_panic() {
        let layout = MemoryLayout::split(1 << 62, LOWMEM_LIMIT, 64).unwrap();
        assert!(GuestMemory::new(layout).is_err());
    }
}
