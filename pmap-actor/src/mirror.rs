//! Keeping an engine's second copy of our tables, if it has one, in step with them.
//!
//! **KVM** has its own hidden tables inside the host kernel and fills them from the host
//! mapping of its memory slots. So every change of what the guest may do with a page is
//! applied to that mapping: not present, read-only, writable. The pmap decides, the
//! mirror obeys, and the host kernel has flushed KVM's tables before a call here returns.
//!
//! The **software engine** has no copy: it walks our tables and reaches memory through the
//! guest view. So its mirror does nothing but make sure that the memory is there.

use std::io;
use std::sync::Arc;

use actors::contract::device::ScatterList;
use actors::{Access, GpaRange, Protection};

use crate::host::huge::{HUGE, NotHuge};
use crate::host::memory::GuestMemory;
use crate::host::userfault::Installed;
use crate::vmspace::Served;

mod kvm;

pub use self::kvm::KvmMirror;

/// What became of a promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promoted {
    /// The block may be a superpage now: this copy has one, or needs none.
    Huge,
    /// Not possible; everything is as it was.
    Refused(NotHuge),
}

/// What became of a block that was to be mapped at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappedHuge {
    /// All of it exists and may be a superpage.
    Huge,
    /// All of it exists and is mapped, writable, by pages of 4 KiB.
    Small(NotHuge),
    /// Nothing was done: none of it is mapped, and whoever waits for it still does.
    Refused(NotHuge),
}

/// What is in blocks that are to be mapped at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing exists: zeroes.
    Fresh,
    /// Every page is in the object, and none is mapped.
    Resident,
}

/// An engine's second copy of our tables.
pub trait Mirror {
    /// Gives the guest fresh zero pages; whoever waits for one goes on.
    ///
    /// # Errors
    ///
    /// The host's refusal; nothing is half done for the pages it names as not installed.
    fn map_zeroed(&mut self, range: GpaRange) -> io::Result<Installed>;

    /// Gives the guest pages that are in the object already; whoever waits goes on.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn map_existing(&mut self, range: GpaRange, writable: bool) -> io::Result<Installed>;

    /// Takes stores away, or allows them again.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn set_writable(&mut self, range: GpaRange, writable: bool) -> io::Result<()>;

    /// Takes the pages out of the guest's reach and keeps them in the object.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn unmap(&mut self, range: GpaRange) -> io::Result<()>;

    /// Takes the pages out of the object: whoever maps them next gets zeroes. (The host drops
    /// what is still mapped of them.)
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn free(&mut self, range: GpaRange) -> io::Result<()>;

    /// Ends whoever touches this range, now and from now on, with an error: nothing is there.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn refuse(&mut self, range: GpaRange) -> io::Result<()>;

    /// Undoes [`Mirror::refuse`].
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn admit(&mut self, range: GpaRange) -> io::Result<()>;

    /// Lets whoever waits for a page of this range try again.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn wake(&mut self, range: GpaRange) -> io::Result<()>;

    /// Makes `access` to one page possible that our tables have a leaf for, where this copy
    /// lags behind them, and lets whoever waits for it go on; says what was missing.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn mend(&mut self, page: GpaRange, access: Access, may_write: bool) -> io::Result<Served>;

    /// Makes the copy of `block`, 2 MiB of which every page is mapped and writable, one huge mapping.
    /// Its contents stay; vcpus may go on using it meanwhile. What later takes rights away from a
    /// part of it ([`Mirror::set_writable`], [`Mirror::unmap`], [`Mirror::free`]) leaves the rest mapped,
    /// by pages of 4 KiB.
    ///
    /// # Errors
    ///
    /// The host's refusal, after which nobody reaches the block any more: the guest cannot go on.
    fn promote(&mut self, block: GpaRange) -> io::Result<Promoted>;

    /// Gives the guest `blocks`, one or, where they are resident, several in a row, each in one piece, writable; whoever
    /// waits in them goes on.
    ///
    /// # Errors
    ///
    /// As for [`Mirror::promote`].
    fn map_huge(&mut self, blocks: GpaRange, contents: Contents) -> io::Result<MappedHuge>;

    /// Shows a device's memory in `range`, of which nothing exists: from now on it is there for good, and none of
    /// the calls above is about it.
    ///
    /// # Errors
    ///
    /// The host's refusal; nothing has changed then.
    fn map_device(
        &mut self,
        range: GpaRange,
        memory: &ScatterList,
        protection: Protection,
    ) -> io::Result<()>;

    /// Takes a device's memory out of the guest's reach, as [`Mirror::unmap`] does pages.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn unmap_device(&mut self, range: GpaRange) -> io::Result<()>;

    /// Nobody can still use what [`Mirror::unmap_device`] took away: memory may be there again.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    fn free_device(&mut self, range: GpaRange) -> io::Result<()>;
}

/// Beside an engine that walks our tables: nothing to keep in step, and nobody who sleeps in
/// the host.
#[derive(Debug)]
pub struct SoftMirror {
    memory: Arc<GuestMemory>,
}

impl SoftMirror {
    /// For an engine that reaches `memory` through the guest view.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self { memory }
    }
}

impl Mirror for SoftMirror {
    /// Pages that are not in the object are zeroes by construction. They are made here all
    /// the same: a host without memory then refuses with an error, where the engine's touch
    /// would end the process; and one call costs less than a host fault for each page.
    fn map_zeroed(&mut self, range: GpaRange) -> io::Result<Installed> {
        self.memory.populate_for_walkers(range)?;
        Ok(Installed::Bytes(range.len()))
    }

    fn map_existing(&mut self, range: GpaRange, _writable: bool) -> io::Result<Installed> {
        Ok(Installed::Bytes(range.len()))
    }

    fn set_writable(&mut self, _range: GpaRange, _writable: bool) -> io::Result<()> {
        Ok(())
    }

    fn unmap(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }

    fn free(&mut self, range: GpaRange) -> io::Result<()> {
        self.memory.free(range)
    }

    fn refuse(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }

    fn admit(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }

    fn wake(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }

    fn mend(&mut self, _page: GpaRange, _access: Access, _may_write: bool) -> io::Result<Served> {
        Ok(Served::AlreadyThere)
    }

    /// The walk is shorter whatever the host does; one huge page of the host's makes what follows it cheaper, too: a
    /// guest that chases pointers waits for the host's translations, and those of 4 KiB pages do not fit. (It takes
    /// about a millisecond. In a view that is not aligned to 2 MiB it gains nothing.)
    fn promote(&mut self, block: GpaRange) -> io::Result<Promoted> {
        if self.memory.is_block(block)
            && let Err(error) = self.memory.collapse_view(block)
        {
            // The pages of the block that the host dropped from its tables come back with a touch.
            tracing::debug!(%block, %error, "the host keeps small pages");
        }
        Ok(Promoted::Huge)
    }

    fn map_huge(&mut self, blocks: GpaRange, contents: Contents) -> io::Result<MappedHuge> {
        if contents == Contents::Resident {
            for block in blocks.pieces(HUGE) {
                self.promote(block)?;
            }
            return Ok(MappedHuge::Huge);
        }
        match self.memory.populate_for_walkers(blocks) {
            Ok(()) => Ok(MappedHuge::Huge),
            Err(error) => {
                self.memory.free(blocks)?;
                Ok(MappedHuge::Refused(NotHuge::of(&error)))
            }
        }
    }

    fn map_device(
        &mut self,
        range: GpaRange,
        memory: &ScatterList,
        protection: Protection,
    ) -> io::Result<()> {
        let shown = self.memory.show_device(range, memory, protection);
        if shown.is_err() {
            self.free_device(range)?;
        }
        shown
    }

    /// The device stays in the guest view: a processor may use it until it was knocked on.
    fn unmap_device(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }

    fn free_device(&mut self, range: GpaRange) -> io::Result<()> {
        self.memory.show_memory(range)?;
        self.memory.set_view_access(range, true)
    }
}
