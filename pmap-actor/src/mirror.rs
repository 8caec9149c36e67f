//! Keeping an engine's second copy of our tables, if it has one, in step with them.
//!
//! **KVM** has its own hidden tables inside the host kernel and fills them from the host
//! mapping of its memory slots. So every change of what the guest may do with a page is
//! applied to that mapping: not present, read-only, writable. The pmap decides, the
//! mirror obeys, and the host kernel has flushed KVM's tables before a call here returns.
//!
//! The **software engine** has no copy: it walks our tables and reaches memory through the
//! backing view. So its mirror does nothing but make sure that the memory is there.

use std::io;
use std::sync::Arc;

use actors::{Access, GpaRange};

use crate::host::memory::GuestMemory;
use crate::host::userfault::{Installed, Userfault};
use crate::vmspace::Served;

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
}

/// The guest view of the memfd, which KVM's memory slots point at.
#[derive(Debug)]
pub struct KvmMirror {
    memory: Arc<GuestMemory>,
    userfault: Arc<Userfault>,
    /// For tests that a guest notices: `unmap` and `free` do nothing.
    skip_unmap: bool,
}

impl KvmMirror {
    /// Registers the whole guest view: from now on every first touch is ours to serve.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn new(
        memory: Arc<GuestMemory>,
        userfault: Arc<Userfault>,
        skip_unmap: bool,
    ) -> io::Result<Self> {
        for slot in memory.slots() {
            userfault.register(slot.host, slot.range.len())?;
        }
        Ok(Self { memory, userfault, skip_unmap })
    }

    fn address(&self, range: GpaRange) -> u64 {
        self.memory.guest_address(range.start())
    }
}

impl Mirror for KvmMirror {
    fn map_zeroed(&mut self, range: GpaRange) -> io::Result<Installed> {
        self.userfault.zero(self.address(range), range.len())
    }

    fn map_existing(&mut self, range: GpaRange, writable: bool) -> io::Result<Installed> {
        self.userfault.map(self.address(range), range.len(), writable)
    }

    fn set_writable(&mut self, range: GpaRange, writable: bool) -> io::Result<()> {
        self.userfault.set_write_protection(self.address(range), range.len(), !writable)
    }

    fn unmap(&mut self, range: GpaRange) -> io::Result<()> {
        if self.skip_unmap { Ok(()) } else { self.memory.unmap_view(range) }
    }

    fn free(&mut self, range: GpaRange) -> io::Result<()> {
        // Freeing would drop the host mapping too.
        if self.skip_unmap { Ok(()) } else { self.memory.free(range) }
    }

    fn refuse(&mut self, range: GpaRange) -> io::Result<()> {
        self.memory.set_view_access(range, false)?;
        self.wake(range)
    }

    fn admit(&mut self, range: GpaRange) -> io::Result<()> {
        self.memory.set_view_access(range, true)
    }

    fn wake(&mut self, range: GpaRange) -> io::Result<()> {
        self.userfault.wake(self.address(range), range.len())
    }
    /// The host may drop any mapping that is not locked (it swaps the page out), and maps it
    /// again only through us.
    fn mend(&mut self, page: GpaRange, access: Access, may_write: bool) -> io::Result<Served> {
        loop {
            match self.map_existing(page, may_write)? {
                Installed::Bytes(_) => return Ok(Served::MappedExisting(1)),
                Installed::AlreadyThere => break,
                Installed::Busy => {}
            }
        }
        if access == Access::Write {
            self.set_writable(page, true)?;
            return Ok(Served::WriteUnprotected);
        }
        self.wake(page)?;
        Ok(Served::AlreadyThere)
    }
}

/// Beside an engine that walks our tables: nothing to keep in step, and nobody who sleeps in
/// the host.
#[derive(Debug)]
pub struct SoftMirror {
    memory: Arc<GuestMemory>,
}

impl SoftMirror {
    /// For an engine that reaches `memory` through the backing view.
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
        self.memory.populate_backing(range)?;
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
}
