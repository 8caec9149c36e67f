//! The checking mode (`--check-translations`): every use of a cached translation is compared with what the nested
//! tables say now.
//!
//! A difference alone is no mistake: while a shootdown is on its way, a processor in the guest may still use
//! what it has. It is one when the shootdown of a generation newer than the translation is *complete*: its
//! frame may belong to somebody else by then. Completeness is read before the tables: so what is reported has
//! happened.

use std::collections::HashMap;

use crate::cpu::Cpu;
use crate::event::{Access, Event, Raised, StaleUse};
use crate::guest_memory::PAGE;
use crate::nested::{NestedPage, NestedRefusal};

/// More are forgotten all at once, as a real TLB forgets some.
const MOST: usize = 4096;

struct Cached {
    gpa: u64,
    page: NestedPage,
    at: u64,
}

/// The checking mode's TLB.
#[derive(Default)]
pub(crate) struct Checker {
    cached: HashMap<(u64, bool, u8), Cached>,
    /// Uses that were compared.
    pub(crate) compared: u64,
}

/// A page, or the guest-physical address of a device.
pub(crate) type Found = Result<NestedPage, u64>;

impl Checker {
    pub(crate) fn forget(&mut self) {
        self.cached.clear();
    }

    pub(crate) fn forget_page(&mut self, address: u64) {
        let page = address / PAGE;
        self.cached.retain(|(cached, _, _), _| *cached != page);
    }

    /// Translates one access, from the cache if it is there.
    pub(crate) fn find(
        &mut self,
        cpu: &mut Cpu,
        address: u64,
        access: Access,
        user: bool,
    ) -> Result<Found, Raised> {
        let kind = match access {
            Access::Read => 0,
            Access::Write => 1,
            Access::Execute => 2,
        } | if cpu.has(crate::flags::AC) && !cpu.is_implicit { 4 } else { 0 };
        let key = (address / PAGE, user, kind);
        if let Some(cached) = self.cached.get(&key) {
            self.compared += 1;
            check(cpu, cached, address, access)?;
            return Ok(Ok(cached.page));
        }
        let linear = cpu.walk(address, access, user)?;
        match cpu.nested_page(linear.gpa, access, address, false) {
            Ok(page) => {
                if self.cached.len() == MOST {
                    self.cached.clear();
                }
                let at = cpu.second_stage.filled_at();
                self.cached.insert(key, Cached { gpa: linear.gpa & !(PAGE - 1), page, at });
                Ok(Ok(page))
            }
            Err(raised) => match cpu.event {
                Event::NoMemory { gpa, .. } => {
                    cpu.event = Event::None;
                    Ok(Err(gpa))
                }
                _ => Err(raised),
            },
        }
    }
}

/// Compares a cached translation with the tables.
fn check(cpu: &mut Cpu, cached: &Cached, address: u64, access: Access) -> Result<(), Raised> {
    let completed = cpu.second_stage.completed();
    if completed <= cached.at {
        return Ok(());
    }
    let now = cpu.second_stage.translate(cached.gpa, access);
    let tables_say = match now {
        Ok(page) if page.frame == cached.page.frame => return Ok(()),
        Ok(page) => Some(page.frame),
        Err(NestedRefusal::Violation([true, _, _])) => Some(cached.page.frame),
        Err(_) => None,
    };
    Err(cpu.raise(Event::Stale(StaleUse {
        gva: address,
        gpa: cached.gpa | address & (PAGE - 1),
        access,
        cached_at: cached.at,
        completed,
        cached_frame: cached.page.frame,
        tables_say,
    })))
}
