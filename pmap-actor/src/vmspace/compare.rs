//! A vmspace beside what realises it: `verify.rs`, with this vmspace's books.

use std::io;

use actors::contract::verify::Verified;

use super::VmSpace;
use crate::content::Content;
use crate::mirror::Mirror;
use crate::object::Page;
use crate::verify::{Books, Realised, verify};

/// A page that arrives has no frame until it is there.
impl Books for Content {
    fn is_resident(&self, page: u64) -> bool {
        matches!(self.get(page), Page::Resident(_) | Page::Leaving(_))
    }

    fn resident_pages(&self) -> u64 {
        (0..self.len()).filter(|page| self.is_resident(*page)).count() as u64
    }
}

impl<M: Mirror> VmSpace<M> {
    /// Compares the tables with what realises them, and the books with the memory object. `beat` is called now and
    /// then.
    ///
    /// # Errors
    ///
    /// The host's, when it does not answer.
    pub fn verify(&self, realised: Realised, beat: impl FnMut()) -> io::Result<Verified> {
        verify(self.guest.tables(), &self.memory, &self.content, realised, beat)
    }
}
