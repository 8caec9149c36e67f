//! The second dimension of translation: guest-physical to host.

use crate::event::{Access, Misconfiguration};
use crate::guest_memory::HostPage;

/// Where a guest-physical page is, by the nested tables.
#[derive(Clone, Copy, Debug)]
pub struct NestedPage {
    /// The 4 KiB page's bytes.
    pub host: HostPage,
    /// The number of the page frame: which bytes these are, whatever address leads there.
    pub frame: u32,
    /// A store may use this translation from now on (its dirty bit is set, or nobody wants it).
    pub writable: bool,
    /// Instructions may be fetched through it.
    pub executable: bool,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedRefusal {
    /// Not present, or the right is missing; what would be allowed: read, write, execute.
    Violation([bool; 3]),
    /// An entry no hardware accepts.
    Misconfigured(Misconfiguration),
    /// Devices live there, or nobody.
    Device,
}

/// Walks the nested tables, as the hardware does: sets accessed and dirty bits where hardware would.
///
/// The defaults are those of tables from which nothing is ever taken away.
pub trait SecondStage: Send {
    /// Translates the page of `gpa` for one access.
    ///
    /// # Errors
    ///
    /// [`NestedRefusal`].
    fn translate(&mut self, gpa: u64, access: Access) -> Result<NestedPage, NestedRefusal>;

    /// The same for an access of the guest's. What led to the tables' leaves may be remembered from earlier calls, until
    /// [`SecondStage::forget`]; what is refused must be refused by the tables of now.
    ///
    /// # Errors
    ///
    /// [`NestedRefusal`].
    fn translate_again(&mut self, gpa: u64, access: Access) -> Result<NestedPage, NestedRefusal> {
        self.translate(gpa, access)
    }

    /// The processor forgets every translation: so must whoever remembers for it.
    fn forget(&mut self) {}

    /// Whether an access to the guest's own page tables counts as a store (Intel SDM vol. 3, "Accessed and Dirty
    /// Flags for EPT": it does when the walker sets those flags).
    fn walks_are_stores(&self) -> bool {
        false
    }

    /// The generation the translations are filled at: what the last flush was told.
    fn filled_at(&self) -> u64 {
        0
    }

    /// The generation up to which every shootdown is complete.
    fn completed(&self) -> u64 {
        0
    }
}
