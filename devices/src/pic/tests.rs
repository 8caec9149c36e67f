//! Both controllers, as a guest and a processor see them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::apic::Message;

#[derive(Default)]
struct Wire(Mutex<Vec<bool>>);

impl Interrupts for Wire {
    fn send(&self, message: &Message) {
        panic!("a message from an 8259: {message:?}");
    }
    fn external(&self, is_requested: bool) {
        self.0.lock().push(is_requested);
    }
    fn next_edge_moved(&self) {}
}

struct Guest {
    pic: Shared<Pic>,
    ports: [Shared<dyn Device>; 3],
    wire: Arc<Wire>,
}

const FIRST: usize = 0;
const SECOND: usize = 1;
const TRIGGERS: usize = 2;

impl Guest {
    fn powered_on() -> Self {
        let wire = Arc::new(Wire::default());
        let pic = Arc::new(Mutex::new(Pic::new(wire.clone())));
        let ports = Pic::ports(&pic);
        Self { pic, ports, wire }
    }

    /// As Linux leaves them: vectors 0x30 and 0x38, nothing masked; `last` is the fourth word.
    fn with_last_word(last: u8) -> Self {
        let guest = Self::powered_on();
        for (which, vector, cascade) in [(FIRST, 0x30, 4), (SECOND, 0x38, 2)] {
            guest.write(which, 0, 0x11);
            for word in [vector, cascade, last, 0] {
                guest.write(which, 1, word);
            }
        }
        guest
    }

    fn new() -> Self {
        Self::with_last_word(1)
    }

    fn write(&self, which: usize, port: u64, value: u8) {
        assert_eq!(self.ports[which].lock().write(port, &[value]), Effect::None);
    }

    fn read(&self, which: usize, port: u64) -> u8 {
        let mut data = [0];
        self.ports[which].lock().read(port, &mut data);
        data[0]
    }

    fn pulse(&self, line: u8) {
        self.pic.lock().pulse_line(line);
    }

    fn set(&self, line: u8, is_asserted: bool) {
        self.pic.lock().set_line(line, is_asserted);
    }

    fn is_requested(&self) -> bool {
        self.pic.lock().is_requested()
    }

    fn acknowledge(&self) -> u8 {
        self.pic.lock().acknowledge()
    }

    fn requested(&self, which: usize) -> u8 {
        self.write(which, 0, 0x0a);
        self.read(which, 0)
    }

    fn in_service(&self, which: usize) -> u8 {
        self.write(which, 0, 0x0b);
        self.read(which, 0)
    }

    /// The end of whatever is in service with the highest priority.
    fn end(&self, which: usize) {
        self.write(which, 0, 0x20);
    }
}

#[test]
fn before_they_are_initialised_they_interrupt_nobody_and_have_a_mask() {
    let guest = Guest::powered_on();
    guest.pulse(0);
    guest.write(FIRST, 1, 0xfb);
    assert_eq!(guest.read(FIRST, 1), 0xfb);
    assert!(!guest.is_requested());
}

#[test]
fn initialisation_forgets_masks_modes_edges_and_what_was_in_service() {
    let guest = Guest::new();
    guest.pulse(3);
    assert_eq!(guest.acknowledge(), 0x33);
    guest.pulse(4);
    guest.write(FIRST, 1, 0xff);
    for (port, word) in [(0, 0x11), (1, 0x40), (1, 4), (1, 1)] {
        guest.write(FIRST, port, word);
        assert!(!guest.is_requested());
    }
    assert_eq!((guest.read(FIRST, 0), guest.read(FIRST, 1)), (0, 0));
    assert_eq!(guest.in_service(FIRST), 0);
    guest.pulse(3);
    assert_eq!(guest.acknowledge(), 0x43);
}

#[test]
fn the_words_that_follow_are_as_many_as_the_first_one_says() {
    for (first, following) in [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)] {
        let guest = Guest::powered_on();
        guest.write(FIRST, 0, first);
        for _ in 0..following {
            guest.write(FIRST, 1, 0x48);
        }
        guest.write(FIRST, 1, 0x5a);
        assert_eq!(guest.read(FIRST, 1), 0x5a, "{first:#x}");
        guest.pulse(0);
        assert_eq!(guest.acknowledge(), 0x48, "{first:#x}");
    }
}

#[test]
fn the_lower_line_is_first_and_holds_back_the_higher_until_its_end() {
    let guest = Guest::new();
    guest.pulse(4);
    guest.pulse(1);
    assert_eq!(guest.acknowledge(), 0x31);
    assert!(!guest.is_requested());
    guest.pulse(0);
    assert_eq!(guest.acknowledge(), 0x30);
    guest.end(FIRST);
    assert!(!guest.is_requested());
    guest.end(FIRST);
    assert_eq!(guest.acknowledge(), 0x34);
}

#[test]
fn the_processor_hears_of_changes_only() {
    let guest = Guest::new();
    guest.pulse(4);
    guest.pulse(5);
    let _vector = guest.acknowledge();
    guest.end(FIRST);
    guest.write(FIRST, 1, 0xff);
    guest.write(FIRST, 1, 0);
    assert_eq!(*guest.wire.0.lock(), [true, false, true, false, true]);
}

#[test]
fn the_seconds_lines_come_through_line_2_and_need_two_ends() {
    let guest = Guest::new();
    guest.pulse(12);
    guest.pulse(3);
    assert_eq!(guest.requested(FIRST), 0b1100);
    assert_eq!(guest.acknowledge(), 0x3c);
    assert_eq!((guest.in_service(FIRST), guest.in_service(SECOND)), (0b100, 0x10));
    guest.end(SECOND);
    assert!(!guest.is_requested());
    guest.end(FIRST);
    assert_eq!(guest.acknowledge(), 0x33);
}

#[test]
fn special_nesting_lets_the_second_interrupt_itself() {
    for (last_word, comes) in [(0x01, false), (0x11, true)] {
        let guest = Guest::with_last_word(last_word);
        guest.pulse(12);
        assert_eq!(guest.acknowledge(), 0x3c);
        guest.pulse(9);
        assert_eq!(guest.is_requested(), comes);
    }
}

#[test]
fn a_masked_line_waits_and_is_not_lost() {
    let guest = Guest::new();
    guest.write(FIRST, 1, 1 << 4);
    guest.pulse(4);
    assert!(!guest.is_requested());
    guest.write(FIRST, 1, 0);
    assert_eq!(guest.acknowledge(), 0x34);
}

#[test]
fn a_request_that_goes_away_is_line_7_or_15_and_in_service_only_in_the_first() {
    let guest = Guest::new();
    guest.pulse(4);
    guest.write(FIRST, 1, 0xff);
    assert_eq!(guest.acknowledge(), 0x37);
    assert_eq!(guest.in_service(FIRST), 0);
    guest.write(FIRST, 1, 0);
    guest.end(FIRST);
    assert_eq!(guest.acknowledge(), 0x34);
}

#[test]
fn an_edge_asks_once_and_a_level_as_long_as_it_is_up() {
    let guest = Guest::new();
    guest.write(TRIGGERS, 1, 1 << 1);
    for (line, again) in [(5, false), (9, true)] {
        guest.set(line, true);
        assert!(guest.acknowledge() & 7 == line & 7);
        guest.end(SECOND);
        guest.end(FIRST);
        assert_eq!(guest.is_requested(), again);
        guest.set(line, false);
        assert!(!guest.is_requested());
    }
}

#[test]
fn a_line_that_is_up_when_it_becomes_a_level_asks_again() {
    let guest = Guest::new();
    guest.set(9, true);
    assert_eq!(guest.acknowledge(), 0x39);
    guest.end(SECOND);
    guest.end(FIRST);
    assert!(!guest.is_requested());
    guest.write(TRIGGERS, 1, 1 << 1);
    assert!(guest.is_requested());
}

#[test]
fn a_pulse_on_a_level_line_asks_until_it_was_acknowledged_once() {
    let guest = Guest::new();
    guest.write(TRIGGERS, 1, 1 << 1);
    guest.pulse(9);
    assert_eq!(guest.acknowledge(), 0x39);
    guest.end(SECOND);
    guest.end(FIRST);
    assert!(!guest.is_requested());
}

#[test]
fn some_lines_are_edges_whatever_is_written() {
    let guest = Guest::new();
    guest.write(TRIGGERS, 0, 0xff);
    guest.write(TRIGGERS, 1, 0xff);
    assert_eq!((guest.read(TRIGGERS, 0), guest.read(TRIGGERS, 1)), (0xf8, 0xde));
}

#[test]
fn a_specific_end_ends_that_line() {
    let guest = Guest::new();
    guest.pulse(4);
    let _vector = guest.acknowledge();
    guest.pulse(1);
    let _vector = guest.acknowledge();
    guest.write(FIRST, 0, 0x64);
    assert_eq!(guest.in_service(FIRST), 0b10);
}

#[test]
fn an_automatic_end_leaves_nothing_in_service() {
    let guest = Guest::with_last_word(0x03);
    guest.pulse(1);
    guest.pulse(4);
    assert_eq!(guest.acknowledge(), 0x31);
    assert_eq!(guest.in_service(FIRST), 0);
    assert_eq!(guest.acknowledge(), 0x34);
}

#[test]
fn each_rotation_makes_somebody_the_lowest() {
    let served = |prepare: &dyn Fn(&Guest)| {
        let guest = Guest::new();
        prepare(&guest);
        guest.pulse(1);
        guest.pulse(4);
        guest.pulse(6);
        guest.acknowledge()
    };
    let rotated_end = |end: u8| {
        move |guest: &Guest| {
            guest.pulse(4);
            let _vector = guest.acknowledge();
            guest.write(FIRST, 0, end);
        }
    };
    assert_eq!(served(&|guest| guest.write(FIRST, 0, 0xc4)), 0x36);
    assert_eq!(served(&rotated_end(0xa0)), 0x36);
    assert_eq!(served(&rotated_end(0xe4)), 0x36);
    assert_eq!(served(&rotated_end(0x20)), 0x31);

    let automatic = Guest::with_last_word(0x03);
    automatic.write(FIRST, 0, 0x80);
    automatic.pulse(4);
    assert_eq!(automatic.acknowledge(), 0x34);
    automatic.pulse(1);
    automatic.pulse(6);
    assert_eq!(automatic.acknowledge(), 0x36);
}

#[test]
fn with_the_special_mask_a_masked_service_holds_back_nobody() {
    let guest = Guest::new();
    guest.pulse(1);
    let _vector = guest.acknowledge();
    guest.pulse(4);
    guest.write(FIRST, 1, 1 << 1);
    assert!(!guest.is_requested());
    guest.write(FIRST, 0, 0x68);
    assert_eq!(guest.acknowledge(), 0x34);
    guest.end(FIRST);
    assert_eq!(guest.in_service(FIRST), 0b10);
    guest.write(FIRST, 0, 0x48);
    guest.end(FIRST);
    assert_eq!(guest.in_service(FIRST), 0);
}

#[test]
fn a_poll_acknowledges_whoever_is_next() {
    let guest = Guest::new();
    guest.pulse(5);
    guest.write(FIRST, 0, 0x0c);
    assert!(guest.is_requested());
    assert_eq!(guest.read(FIRST, 0), 0x85);
    assert!(!guest.is_requested());
    assert_eq!(guest.in_service(FIRST), 1 << 5);
    assert!(!guest.is_requested());
    guest.write(FIRST, 0, 0x0c);
    assert_eq!(guest.read(FIRST, 0), 0);
}

#[test]
fn lines_that_do_not_exist_lead_nowhere() {
    let guest = Guest::new();
    for line in [2, 16, 255] {
        guest.pulse(line);
        guest.set(line, true);
    }
    assert!(!guest.is_requested());
}

#[derive(Clone, Debug)]
enum Step {
    Pulse(u8),
    Acknowledge,
    End,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u8..16).prop_filter("the cascade", |line| *line != 2).prop_map(Step::Pulse),
        2 => Just(Step::Acknowledge),
        2 => Just(Step::End),
    ]
}

/// Where a line stands in the order of all: 0, 1, 8 to 15, 3 to 7.
fn rank(line: u8) -> usize {
    [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7].iter().position(|at| *at == line).unwrap()
}

proptest! {
    /// With special nesting in the first, both together are one controller of fifteen lines.
    #[test]
    fn fifteen_lines_nest_by_their_order(steps in prop::collection::vec(step(), 1..200)) {
        let guest = Guest::with_last_word(0x11);
        let mut requested = BTreeSet::new();
        let mut served: Vec<u8> = Vec::new();
        for step in steps {
            let next = requested.iter().copied().min_by_key(|line| rank(*line));
            let next = next
                .filter(|line| served.last().is_none_or(|served| rank(*line) < rank(*served)));
            prop_assert_eq!(guest.is_requested(), next.is_some());
            match step {
                Step::Pulse(line) => {
                    requested.insert(line);
                    guest.pulse(line);
                }
                Step::Acknowledge => {
                    let Some(line) = next else { continue };
                    requested.remove(&line);
                    served.push(line);
                    prop_assert_eq!(guest.acknowledge(), 0x30 + line);
                }
                Step::End => {
                    let Some(line) = served.pop() else { continue };
                    if line >= 8 {
                        guest.end(SECOND);
                    }
                    if line < 8 || guest.in_service(SECOND) == 0 {
                        guest.end(FIRST);
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_a_guest_writes_panics(
        accesses in prop::collection::vec((0_usize..3, 0_u64..4, any::<u8>(), 0_u8..20), 1..200),
    ) {
        let guest = Guest::powered_on();
        for (which, port, value, line) in accesses {
            guest.write(which, port, value);
            let _value = guest.read(which, port);
            guest.set(line, value & 1 != 0);
            if guest.is_requested() {
                let _vector = guest.acknowledge();
            }
        }
    }
}
