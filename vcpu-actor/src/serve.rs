//! From an exit to whoever answers it.

use std::sync::Arc;

use actors::contract::guest::{GuestFault, Tidings};
use actors::contract::vcpu::VcpuTally;
use actors::device::{Bus, Effect};
use actors::layout::MemoryLayout;
use actors::{ActorName, VcpuId};

use crate::engine::{Direction, Exit, MmioAccess, PortAccess};

/// Who lives around a vcpu.
pub(crate) struct Neighbours {
    pub(crate) id: VcpuId,
    pub(crate) ports: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
    pub(crate) layout: MemoryLayout,
}

/// How serving an exit ended.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a guest that has ended would go on"]
pub(crate) enum Served {
    /// The guest has what it wanted.
    GoOn,
    /// It is over, and this is why. Somebody has yet to tell the machine.
    Over(Tidings),
    /// It is over because its memory went away; whoever took it has told the machine, unless that
    /// is what ends machines. Worth telling only when nobody has asked the vcpu to retire.
    OverUnlessRetiring(Tidings),
}

impl Neighbours {
    /// Gives the guest what it asked for.
    pub(crate) fn serve(&self, exit: Exit<'_>, tally: &mut VcpuTally) -> Served {
        let vcpu = self.id;
        let fault = |fault| Served::Over(Tidings::Faulted(fault));
        match exit {
            Exit::Nothing => {
                tally.other_exits += 1;
                Served::GoOn
            }
            Exit::Port(access) => self.serve_port(access, tally),
            Exit::Mmio(access) => self.serve_mmio(access, tally),
            Exit::StaleTranslation { rip, what } => {
                tally.other_exits += 1;
                fault(GuestFault::Stale { vcpu, rip, what })
            }
            // The thread does these itself.
            Exit::Halted { .. } | Exit::NestedFault(_) => Served::GoOn,
            Exit::Ends(end) => {
                tally.other_exits += 1;
                Served::Over(Tidings::Ended { by: vcpu, end })
            }
            Exit::TripleFault { rip } => {
                tally.other_exits += 1;
                fault(GuestFault::Triple { vcpu, rip })
            }
            Exit::Failed { rip, what } => {
                tally.other_exits += 1;
                fault(GuestFault::Engine { vcpu, rip, what })
            }
            Exit::MemoryRefused { rip, at } => {
                tally.other_exits += 1;
                let place = at.map_or_else(String::new, |at| format!(" at guest-physical {at}"));
                let what = format!("the host refused an access to the guest's memory{place}");
                let fault = GuestFault::Engine { vcpu, rip, what };
                Served::OverUnlessRetiring(Tidings::Faulted(fault))
            }
            Exit::HostFailed { what } => {
                tally.other_exits += 1;
                Served::Over(Tidings::HostFailed { actor: ActorName::Vcpu(vcpu), what })
            }
        }
    }

    /// One access after the other: `rep outsb` hands over many at once.
    fn serve_port(&self, access: PortAccess<'_>, tally: &mut VcpuTally) -> Served {
        let at = u64::from(access.port);
        for piece in access.data.chunks_exact_mut(access.size) {
            tally.port_accesses += 1;
            match access.direction {
                Direction::Read => {
                    tally.unclaimed_accesses += u64::from(!self.ports.read(at, piece));
                }
                Direction::Write => match self.ports.write(at, piece) {
                    None => tally.unclaimed_accesses += 1,
                    Some(Effect::None) => {}
                    Some(Effect::Ends(end)) => {
                        return Served::Over(Tidings::Ended { by: self.id, end });
                    }
                },
            }
        }
        Served::GoOn
    }

    fn serve_mmio(&self, access: MmioAccess<'_>, tally: &mut VcpuTally) -> Served {
        tally.mmio_accesses += 1;
        // Devices speak in 1, 2, 4 or 8 bytes; a part of an access that crosses a page may be odd.
        let size = match access.data.len() {
            whole @ (1 | 2 | 4 | 8) => whole,
            _ => 1,
        };
        let mut unclaimed = false;
        for (piece, offset) in access.data.chunks_exact_mut(size).zip((0..).step_by(size)) {
            let at = access.at.0.wrapping_add(offset);
            match access.direction {
                Direction::Read => unclaimed |= !self.mmio.read(at, piece),
                Direction::Write => match self.mmio.write(at, piece) {
                    None => unclaimed = true,
                    Some(Effect::None) => {}
                    Some(Effect::Ends(end)) => {
                        return Served::Over(Tidings::Ended { by: self.id, end });
                    }
                },
            }
        }
        if unclaimed {
            tally.unclaimed_accesses += 1;
            // Probing for devices is what a guest does in the hole for devices. Elsewhere there is
            // either memory, which is no device's, or nothing at all.
            if !self.layout.is_device_hole(access.at) {
                return Served::Over(Tidings::Faulted(GuestFault::Hole {
                    vcpu: Some(self.id),
                    at: access.at,
                }));
            }
        }
        Served::GoOn
    }
}

#[cfg(test)]
mod tests {
    use actors::Gpa;
    use actors::contract::guest::GuestEnd;
    use actors::device::Device;
    use actors::layout::LOWMEM_LIMIT;
    use parking_lot::Mutex;

    use super::*;

    const MEMORY: u64 = 16 << 20;
    const POWER: u16 = 0x604;

    /// Remembers what it is told, counts up when it is read, and ends the guest on a 0xff.
    #[derive(Default)]
    struct Diary {
        heard: Vec<Vec<u8>>,
        next: u8,
    }

    impl Device for Diary {
        fn read(&mut self, _offset: u64, data: &mut [u8]) {
            data.fill(self.next);
            self.next += 1;
        }
        fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
            self.heard.push(data.to_vec());
            match data {
                [0xff] => Effect::Ends(GuestEnd::PowerOff),
                _ => Effect::None,
            }
        }
    }

    fn street() -> (Neighbours, Arc<Mutex<Diary>>) {
        let diary = Arc::new(Mutex::new(Diary::default()));
        let mut ports = Bus::default();
        ports.attach(POWER.into(), 4, diary.clone()).unwrap();
        let mut mmio = Bus::default();
        mmio.attach(0xd000_0000, 16, diary.clone()).unwrap();
        let neighbours = Neighbours {
            id: VcpuId(3),
            ports: Arc::new(ports),
            mmio: Arc::new(mmio),
            layout: MemoryLayout::split(MEMORY, LOWMEM_LIMIT, 40).unwrap(),
        };
        (neighbours, diary)
    }

    fn port(port: u16, direction: Direction, size: usize, data: &mut [u8]) -> Exit<'_> {
        Exit::Port(PortAccess { port, direction, size, data })
    }

    fn mmio(at: u64, direction: Direction, data: &mut [u8]) -> Exit<'_> {
        Exit::Mmio(MmioAccess { at: Gpa(at), direction, data })
    }

    #[test]
    fn a_string_of_outs_is_as_many_writes_in_order() {
        let (street, diary) = street();
        let mut tally = VcpuTally::default();
        let mut data = [1, 2, 3, 4, 5, 6];
        let served = street.serve(port(POWER, Direction::Write, 2, &mut data), &mut tally);
        assert_eq!(served, Served::GoOn);
        assert_eq!(diary.lock().heard, [[1, 2], [3, 4], [5, 6]]);
        assert_eq!((tally.port_accesses, tally.unclaimed_accesses), (3, 0));
    }

    #[test]
    fn a_string_of_ins_is_filled_in_place_one_by_one() {
        let (street, _) = street();
        let mut data = [9; 3];
        let _ = street.serve(port(POWER, Direction::Read, 1, &mut data), &mut VcpuTally::default());
        assert_eq!(data, [0, 1, 2]);
    }

    #[test]
    fn the_end_of_the_guest_stops_the_string() {
        let (street, diary) = street();
        let mut data = [1, 0xff, 3];
        let served =
            street.serve(port(POWER, Direction::Write, 1, &mut data), &mut VcpuTally::default());
        assert_eq!(served, Served::Over(Tidings::Ended { by: VcpuId(3), end: GuestEnd::PowerOff }));
        assert_eq!(diary.lock().heard.len(), 2);
    }

    #[test]
    fn a_port_where_nobody_lives_floats() {
        let (street, _) = street();
        let mut tally = VcpuTally::default();
        let mut data = [0; 4];
        let served = street.serve(port(0x80, Direction::Read, 4, &mut data), &mut tally);
        assert_eq!((served, data), (Served::GoOn, [0xff; 4]));
        assert_eq!((tally.port_accesses, tally.unclaimed_accesses), (1, 1));
    }

    #[test]
    fn an_odd_part_of_an_access_reaches_a_device_byte_by_byte() {
        let (street, diary) = street();
        let mut data = [1, 2, 3];
        let served =
            street.serve(mmio(0xd000_0004, Direction::Write, &mut data), &mut VcpuTally::default());
        assert_eq!(served, Served::GoOn);
        assert_eq!(diary.lock().heard, [[1], [2], [3]]);
    }

    #[test]
    fn probing_in_the_device_hole_is_allowed_and_reads_all_ones() {
        let (street, _) = street();
        let mut tally = VcpuTally::default();
        let mut data = [0; 8];
        let served = street.serve(mmio(0xc000_0000, Direction::Read, &mut data), &mut tally);
        assert_eq!((served, data), (Served::GoOn, [0xff; 8]));
        assert_eq!((tally.mmio_accesses, tally.unclaimed_accesses), (1, 1));
    }

    #[test]
    fn what_is_neither_memory_nor_hole_nor_device_ends_the_guest() {
        for at in [5 << 30, u64::MAX - 3, 0x1000] {
            for direction in [Direction::Read, Direction::Write] {
                let (street, _) = street();
                let served =
                    street.serve(mmio(at, direction, &mut [0; 4]), &mut VcpuTally::default());
                let hole = GuestFault::Hole { vcpu: Some(VcpuId(3)), at: Gpa(at) };
                assert_eq!(served, Served::Over(Tidings::Faulted(hole)), "{at:#x}");
            }
        }
    }
}
