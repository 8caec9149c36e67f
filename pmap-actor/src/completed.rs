//! Which invalidations are over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shootdown::Generation;

/// The newest generation whose shootdown is complete, and with it every one before. Cheap to
/// clone.
///
/// This is for a reader that checks the protocol: a translation that was cached at a
/// generation before this one, and is still *used*, should have been flushed. (A vcpu in the
/// guest never sees this move past the generation it entered at, when shootdowns knock on
/// everyone: that is the promise.) It is written before what the shootdown carried is
/// given back, so a check that compares with it comes no later than the reuse.
#[derive(Clone, Debug, Default)]
pub struct Completed(Arc<AtomicU64>);

impl Completed {
    /// "Every raise up to this one is complete."
    #[must_use]
    pub fn generation(&self) -> Generation {
        // Acquire pairs with `reached`: whoever sees a generation also sees the cleared
        // entries, and that every vcpu has left.
        Generation(self.0.load(Ordering::Acquire))
    }

    /// Called by the pmap only, with growing generations.
    pub(crate) fn reached(&self, generation: Generation) {
        self.0.store(generation.0, Ordering::Release);
    }
}
