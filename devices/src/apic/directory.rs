//! Who is meant by a message: decided on the sender's side, from words the receivers publish.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use actors::VcpuId;

use super::address::Address;
use super::message::{Delivery, Destination, Message};

/// The addresses of all local APICs of a machine. A vcpu's number is its local APIC id.
///
/// A sender that looks while a receiver changes its address sees the old or the new one, as
/// on a bus: guests change addresses only when nobody sends to them.
#[derive(Debug)]
pub struct Directory {
    addresses: Box<[AtomicU64]>,
    /// Where the search for a lowest-priority receiver begins.
    turn: AtomicUsize,
}

impl Directory {
    /// For vcpus 0 to `vcpus` - 1, all as after power-on. (255 is the broadcast address of
    /// 8-bit senders, so there are at most 255.)
    #[must_use]
    pub fn new(vcpus: u8) -> Self {
        let word = |id| AtomicU64::new(Address::after_power_on(id).word());
        Self { addresses: (0..u32::from(vcpus)).map(word).collect(), turn: AtomicUsize::new(0) }
    }

    /// `address` replaces what its owner published before. Without effect for a local APIC
    /// that the directory does not have.
    pub fn publish(&self, address: Address) {
        let place = usize::try_from(address.id()).ok();
        if let Some(word) = place.and_then(|place| self.addresses.get(place)) {
            // Pairs with the load in `at`: who sees the new address sees what led to it.
            word.store(address.word(), Ordering::Release);
        }
    }

    /// What the local APIC of `vcpu` answers to at the moment; `None` if there is no such vcpu.
    #[must_use]
    pub fn address(&self, vcpu: VcpuId) -> Option<Address> {
        self.at(vcpu.index())
    }

    fn at(&self, place: usize) -> Option<Address> {
        // Pairs with the store in `publish`.
        self.addresses.get(place).map(|word| Address::from_word(word.load(Ordering::Acquire)))
    }

    fn hears(&self, place: usize, message: &Message) -> bool {
        self.at(place).is_some_and(|address| address.hears(message))
    }

    /// To whom `message` must be delivered.
    ///
    /// Of those a lowest-priority message addresses it chooses one, in turn. (Whose priority
    /// is lowest only they know; SDM, APIC, "Lowest Priority Delivery Mode", leaves the choice
    /// to the chipset.)
    #[must_use]
    pub fn destinations(&self, message: &Message) -> Targets {
        let mut targets = Targets::default();
        if let Destination::Physical(id) = message.destination {
            // The common case looks at one word.
            let place = usize::try_from(id).ok().filter(|place| self.hears(*place, message));
            if let Some(place) = place {
                targets.insert(place);
            }
            return targets;
        }
        let count = self.addresses.len();
        if let Delivery::LowestPriority(_) = message.delivery {
            // Relaxed: fairness needs no order.
            let turn = self.turn.load(Ordering::Relaxed);
            let in_turn = (0..count).map(|step| (turn.wrapping_add(step)) % count);
            if let Some(chosen) = in_turn.into_iter().find(|place| self.hears(*place, message)) {
                self.turn.store(chosen + 1, Ordering::Relaxed);
                targets.insert(chosen);
            }
            return targets;
        }
        for place in (0..count).filter(|place| self.hears(*place, message)) {
            targets.insert(place);
        }
        targets
    }
}

/// A set of vcpus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Targets([u64; 4]);

impl Targets {
    fn insert(&mut self, place: usize) {
        if let Some(word) = self.0.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
    }

    /// Whether there is nobody in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Whether `vcpu` is in it.
    #[must_use]
    pub fn contains(&self, vcpu: VcpuId) -> bool {
        let place = vcpu.index();
        self.0.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 != 0)
    }

    /// All of them, from the lowest number up.
    pub fn iter(self) -> impl Iterator<Item = VcpuId> {
        let mut words = self.0;
        std::iter::from_fn(move || {
            let (place, word) = words.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
            let bit = word.trailing_zeros();
            *word &= *word - 1;
            let number = u32::try_from(place).ok()? * 64 + bit;
            u16::try_from(number).ok().map(VcpuId)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::address::{Mode, Parts};
    use super::super::message::Trigger;
    use super::*;

    fn parts() -> impl Strategy<Value = Parts> {
        let mode = prop::sample::select(vec![Mode::Off, Mode::XApic, Mode::XApic, Mode::X2Apic]);
        (any::<u8>(), any::<bool>(), prop::bool::weighted(0.8), mode).prop_map(
            |(logical, is_clustered, is_software_enabled, mode)| Parts {
                id: 0,
                logical,
                is_clustered,
                is_software_enabled,
                mode,
            },
        )
    }

    fn machine() -> impl Strategy<Value = Vec<Parts>> {
        prop::collection::vec(parts(), 1..80).prop_map(|mut all| {
            for (id, parts) in (0..).zip(&mut all) {
                parts.id = id;
            }
            all
        })
    }

    fn message() -> impl Strategy<Value = Message> {
        let selector =
            prop_oneof![0_u32..0x100, (0_u32..6, 0_u32..0x1_0000).prop_map(|(c, b)| c << 16 | b)];
        let destination = prop_oneof![
            (0_u32..100).prop_map(Destination::Physical),
            selector.prop_map(Destination::Logical),
            Just(Destination::All),
            (0_u32..100).prop_map(Destination::Others),
        ];
        let delivery = prop_oneof![
            any::<u8>().prop_map(Delivery::Fixed),
            any::<u8>().prop_map(Delivery::LowestPriority),
            Just(Delivery::Nmi),
            Just(Delivery::Init),
            any::<u8>().prop_map(Delivery::Startup),
        ];
        (destination, delivery).prop_map(|(destination, delivery)| Message {
            destination,
            delivery,
            trigger: Trigger::Edge,
        })
    }

    /// The manual's words, one receiver at a time, without packing anything.
    fn is_meant(one: &Parts, message: &Message) -> bool {
        let takes = match (one.mode, message.delivery) {
            (Mode::Off, _) => false,
            (_, Delivery::Fixed(_) | Delivery::LowestPriority(_)) => one.is_software_enabled,
            _ => true,
        };
        let addressed = match message.destination {
            Destination::All => true,
            Destination::Physical(id) => one.id == id,
            Destination::Others(sender) => one.id != sender,
            Destination::Logical(to) if one.mode == Mode::X2Apic => {
                to / 0x1_0000 == one.id / 16 && (to % 0x1_0000) & (1 << (one.id % 16)) != 0
            }
            Destination::Logical(to) if to > 0xff => false,
            Destination::Logical(to) if one.is_clustered => {
                let mine = u32::from(one.logical);
                to / 16 == mine / 16 && (to % 16) & (mine % 16) != 0
            }
            Destination::Logical(to) => to & u32::from(one.logical) != 0,
        };
        takes && addressed
    }

    proptest! {
        #[test]
        fn a_message_goes_to_those_the_manual_says(all in machine(), message in message()) {
            let directory = Directory::new(u8::try_from(all.len()).unwrap());
            for parts in &all {
                directory.publish(parts.pack());
            }
            let meant: Vec<_> = all
                .iter()
                .filter(|one| is_meant(one, &message))
                .map(|one| VcpuId(u16::try_from(one.id).unwrap()))
                .collect();
            let found = directory.destinations(&message);
            if let Delivery::LowestPriority(_) = message.delivery {
                let chosen: Vec<_> = found.iter().collect();
                prop_assert_eq!(chosen.len(), meant.len().min(1));
                prop_assert!(chosen.iter().all(|chosen| meant.contains(chosen)));
            } else {
                prop_assert_eq!(found.iter().collect::<Vec<_>>(), meant.clone());
                prop_assert!(meant.iter().all(|vcpu| found.contains(*vcpu)));
                prop_assert_eq!(found.is_empty(), meant.is_empty());
            }
        }
    }

    fn flat(id: u32, logical: u8) -> Parts {
        let (is_clustered, is_software_enabled) = (false, true);
        Parts { id, logical, is_clustered, is_software_enabled, mode: Mode::XApic }
    }

    #[test]
    fn lowest_priority_interrupts_go_round() {
        let directory = Directory::new(3);
        for id in 0..3 {
            directory.publish(flat(id, 1 << id).pack());
        }
        let message = Message {
            destination: Destination::Logical(0b101),
            delivery: Delivery::LowestPriority(0x40),
            trigger: Trigger::Edge,
        };
        let order: Vec<_> =
            (0..4).flat_map(|_| directory.destinations(&message).iter()).map(|to| to.0).collect();
        assert_eq!(order, [0, 2, 0, 2]);
    }

    #[test]
    fn a_processor_that_waits_for_its_start_hears_init_and_no_vector() {
        let directory = Directory::new(255);
        let to = Destination::Physical(254);
        let init = Message { destination: to, delivery: Delivery::Init, trigger: Trigger::Edge };
        let fixed = Message { delivery: Delivery::Fixed(0x40), ..init };
        assert!(directory.destinations(&init).contains(VcpuId(254)));
        assert!(directory.destinations(&fixed).is_empty());
    }

    #[test]
    fn an_address_of_nobody_reaches_nobody() {
        let directory = Directory::new(2);
        directory.publish(flat(2, 0xff).pack());
        assert_eq!(directory.address(VcpuId(2)), None);
        let message = Message {
            destination: Destination::Physical(u32::MAX),
            delivery: Delivery::Nmi,
            trigger: Trigger::Edge,
        };
        assert!(directory.destinations(&message).is_empty());
        let anybody = Message { delivery: Delivery::LowestPriority(0x40), ..message };
        assert!(
            Directory::new(0)
                .destinations(&Message { destination: Destination::All, ..anybody })
                .is_empty()
        );
    }
}
