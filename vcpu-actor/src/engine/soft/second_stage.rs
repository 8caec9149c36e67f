//! Our nested tables as the software processor's hardware.

#![expect(unsafe_code, reason = "turns frames of the guest's memory into host pages")]

use std::sync::Arc;

use actors::{Access, Gpa, PAGE_SIZE};
use pmap_actor::completed::Completed;
use pmap_actor::ept::last_tables::LastTables;
use pmap_actor::ept::view::{Refused, Translation};
use pmap_actor::host::memory::GuestMemory;
use shootdown::Generation;
use soft_cpu::SecondStage;
use soft_cpu::event::{self, Misconfiguration};
use soft_cpu::guest_memory::HostPage;
use soft_cpu::nested::{NestedPage, NestedRefusal};

/// Walks the tables of one vmspace for one vcpu.
pub(super) struct Tables {
    pub(super) last: LastTables,
    pub(super) memory: Arc<GuestMemory>,
    pub(super) completed: Completed,
    /// What the last flush was told.
    pub(super) filled_at: Arc<std::sync::atomic::AtomicU64>,
}

fn kind(access: event::Access) -> Access {
    match access {
        event::Access::Read => Access::Read,
        event::Access::Write => Access::Write,
        event::Access::Execute => Access::Execute,
    }
}

impl Tables {
    #[cold]
    fn refusal(&self, gpa: u64, refused: Refused) -> NestedRefusal {
        match refused {
            // Beyond memory nothing is ever mapped: devices are there, or nobody.
            Refused::Violation { .. }
                if !self.memory.layout().ranges().any(|range| range.contains(Gpa(gpa))) =>
            {
                NestedRefusal::Device
            }
            Refused::Violation { readable, writable, executable } => {
                NestedRefusal::Violation([readable, writable, executable])
            }
            Refused::Misconfigured { level, entry } => {
                NestedRefusal::Misconfigured(Misconfiguration { gpa, level, entry })
            }
        }
    }

    /// The answer for the processor.
    fn page(
        &self,
        gpa: u64,
        answer: Result<Translation, Refused>,
    ) -> Result<NestedPage, NestedRefusal> {
        let translation = answer.map_err(|refused| self.refusal(gpa, refused))?;
        let frame = translation.frame + (gpa & (translation.bytes - 1) & !(PAGE_SIZE - 1));
        let Some(host) = self.memory.host_of_frame(frame, PAGE_SIZE) else {
            // An entry that leads beyond the memory object: nobody of ours makes such.
            let broken = Misconfiguration { gpa, level: 1, entry: frame };
            return Err(NestedRefusal::Misconfigured(broken));
        };
        // SAFETY: `GuestMemory` is kept as long as this value, and this value as long as the processor;
        // the guest view is page-aligned, mapped once and never unmapped; nobody makes references into it. That the
        // translation may still be used is the shootdown's business: the processor is flushed on its way in when
        // the generation has moved on.
        let host = unsafe { HostPage::new(host.as_ptr()) };
        let number = u32::try_from(frame / PAGE_SIZE).map_err(|_| NestedRefusal::Device)?;
        Ok(NestedPage {
            host,
            frame: number,
            writable: translation.writable,
            executable: translation.executable,
        })
    }
}

impl SecondStage for Tables {
    fn translate(&mut self, gpa: u64, access: event::Access) -> Result<NestedPage, NestedRefusal> {
        self.page(gpa, self.last.view().translate(Gpa(gpa), kind(access)))
    }

    fn translate_again(
        &mut self,
        gpa: u64,
        access: event::Access,
    ) -> Result<NestedPage, NestedRefusal> {
        let answer = self.last.translate(Gpa(gpa), kind(access));
        self.page(gpa, answer)
    }

    fn forget(&mut self) {
        self.last.forget();
    }

    fn filled_at(&self) -> u64 {
        // The same thread wrote it.
        self.filled_at.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn completed(&self) -> u64 {
        let Generation(generation) = self.completed.generation();
        generation
    }

    fn walks_are_stores(&self) -> bool {
        self.last.view().has_hardware_ad()
    }
}
