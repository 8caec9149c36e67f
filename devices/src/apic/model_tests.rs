//! Random lives of a local APIC, beside a model without caches or bit tricks.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::local_tests::{EOI, IRR, ISR, PPR, TMR, TPR, apic};
use super::message::{Command, Interrupt, Trigger};
use super::{Directory, LocalApic};

#[derive(Clone, Debug)]
enum Step {
    Accept(u8, bool),
    Acknowledge,
    End,
    TaskPriority(u8),
    Cr8(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Step::Accept(vector, level)),
        3 => Just(Step::Acknowledge),
        2 => Just(Step::End),
        1 => any::<u8>().prop_map(Step::TaskPriority),
        1 => (0_u8..16).prop_map(Step::Cr8),
    ]
}

#[derive(Default)]
struct Model {
    requested: BTreeSet<u8>,
    in_service: BTreeSet<u8>,
    level: BTreeSet<u8>,
    task: u8,
}

impl Model {
    fn priority(&self) -> u8 {
        let service = self.in_service.last().copied().unwrap_or(0);
        if self.task / 16 >= service / 16 { self.task } else { service / 16 * 16 }
    }

    fn pending(&self) -> Option<u8> {
        let class = self.priority() / 16;
        self.requested.iter().copied().filter(|vector| vector / 16 > class).max()
    }
}

fn registers(apic: &mut LocalApic, first: u32) -> BTreeSet<u8> {
    (0..=255_u8)
        .filter(|vector| {
            let part = apic.read(first + 0x10 * u32::from(vector / 32), 0);
            part >> (vector % 32) & 1 != 0
        })
        .collect()
}

proptest! {
    #[test]
    fn interrupts_are_taken_and_end_in_the_order_of_their_priority(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut apic = apic(0);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Accept(vector, is_level) => {
                    let trigger = if is_level { Trigger::Level } else { Trigger::Edge };
                    apic.accept(Interrupt { vector, trigger });
                    if vector >= 16 {
                        model.requested.insert(vector);
                        model.level.remove(&vector);
                        if is_level {
                            model.level.insert(vector);
                        }
                    }
                }
                Step::Acknowledge => {
                    let expected = model.pending().unwrap_or(0xff);
                    if let Some(vector) = model.pending() {
                        model.requested.remove(&vector);
                        model.in_service.insert(vector);
                    }
                    prop_assert_eq!(apic.acknowledge(), expected);
                }
                Step::End => {
                    let ended = model.in_service.pop_last();
                    let told = ended.filter(|vector| model.level.contains(vector));
                    prop_assert_eq!(apic.write(EOI, 0, 0), told.map(Command::EndOfInterrupt));
                }
                Step::TaskPriority(priority) => {
                    prop_assert_eq!(apic.write(TPR, priority.into(), 0), None);
                    model.task = priority;
                }
                Step::Cr8(class) => {
                    apic.set_cr8(class);
                    model.task = class * 16;
                }
            }
            prop_assert_eq!(apic.pending(), model.pending());
            prop_assert_eq!(apic.read(PPR, 0), u32::from(model.priority()));
        }
        prop_assert_eq!(registers(&mut apic, IRR), model.requested);
        prop_assert_eq!(registers(&mut apic, ISR), model.in_service);
        prop_assert_eq!(registers(&mut apic, TMR), model.level);
    }

    #[test]
    fn nothing_a_guest_writes_panics_and_what_it_sends_has_legal_vectors(
        accesses in prop::collection::vec(
            (0_u32..0x440, any::<u32>(), any::<u64>(), any::<bool>(), 0_u8..4),
            1..200,
        ),
    ) {
        let mut apic = LocalApic::new(0, true);
        let directory = Directory::new(4);
        for (place, value, now, is_msr, what) in accesses {
            let offset = if what == 0 { place } else { place & !0xf };
            let wide = u64::from(value) << (8 * (now & 3)) | u64::from(value & 0xff);
            let command = if is_msr {
                let msr = [0x1b, 0x6e0, 0x800 + offset / 16, 0x800 + offset / 16][usize::from(what)];
                let wide = if msr == 0x1b { 0xfee0_0000 | wide & 0xf00 } else { wide };
                let _value = apic.read_msr(msr, now);
                apic.write_msr(msr, wide, now).unwrap_or_default()
            } else {
                let _value = apic.read(offset, now);
                apic.write(offset, value, now)
            };
            apic.tick(now);
            match command {
                Some(Command::Send(message)) => {
                    let _targets = directory.destinations(&message);
                    let vector = message.interrupt().map(|interrupt| interrupt.vector);
                    prop_assert!(vector.is_none_or(|vector| vector >= 16));
                }
                Some(Command::Publish(address)) => {
                    prop_assert_eq!(address, apic.address());
                    directory.publish(address);
                }
                Some(Command::EndOfInterrupt(_)) | None => {}
            }
            prop_assert!(apic.pending().is_none_or(|vector| vector >= 16));
            if what == 3 {
                let _vector = apic.acknowledge();
            }
        }
    }
}
