//! The timer, as a guest sees it through its ports and its clock.

use proptest::prelude::*;

use super::*;
use crate::apic::Message;

#[derive(Default)]
struct Moves(AtomicU64);

impl Interrupts for Moves {
    fn send(&self, message: &Message) {
        panic!("a message from a timer: {message:?}");
    }
    fn external(&self, is_requested: bool) {
        panic!("a request from a timer: {is_requested}");
    }
    fn next_edge_moved(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Guest {
    pit: Shared<Pit>,
    speaker: Shared<dyn Device>,
    clock: Arc<AtomicU64>,
    moves: Arc<Moves>,
}

impl Guest {
    /// At tick 1000.
    fn new() -> Self {
        let clock = Arc::new(AtomicU64::new(0));
        let moves = Arc::new(Moves::default());
        let shown = Arc::clone(&clock);
        let pit = Pit::new(moves.clone(), move || shown.load(Ordering::Relaxed));
        let pit = Arc::new(Mutex::new(pit));
        let (_, speaker) = Pit::ports(&pit);
        let guest = Self { pit, speaker, clock, moves };
        guest.at(0);
        guest
    }

    /// `tick` ticks after tick 1001: a count written at tick 1000 is loaded at 0.
    fn at(&self, tick: u64) -> &Self {
        self.set_clock(nanoseconds_of(1001 + tick))
    }

    fn set_clock(&self, nanoseconds: u64) -> &Self {
        self.clock.store(nanoseconds, Ordering::Relaxed);
        self
    }

    fn write(&self, port: u64, value: u8) -> &Self {
        assert_eq!(self.pit.lock().write(port, &[value]), Effect::None);
        self
    }

    fn read(&self, port: u64) -> u8 {
        let mut data = [0];
        self.pit.lock().read(port, &mut data);
        data[0]
    }

    fn read_word(&self, port: u64) -> u16 {
        u16::from_le_bytes([self.read(port), self.read(port)])
    }

    fn gate(&self, is_open: bool) -> &Self {
        assert_eq!(self.speaker.lock().write(0, &[u8::from(is_open)]), Effect::None);
        self
    }

    fn output(&self) -> bool {
        let mut data = [0];
        self.speaker.lock().read(0, &mut data);
        data[0] & 0x20 != 0
    }

    /// Counter 2 in `mode`, gate open, counting from `initial`, loaded at tick 0.
    fn tone(mode: u8, initial: u16) -> Self {
        let guest = Self::new();
        guest.set_clock(nanoseconds_of(1000)).gate(true).write(3, 0xb0 | mode << 1);
        let [low, high] = initial.to_le_bytes();
        guest.write(2, low).write(2, high);
        guest
    }

    /// Counter 0 in `mode`, counting from `initial`, loaded at tick 0.
    fn interrupting(mode: u8, initial: u16) -> Self {
        let guest = Self::new();
        guest.set_clock(nanoseconds_of(1000)).write(3, 0x30 | mode << 1);
        let [low, high] = initial.to_le_bytes();
        guest.write(0, low).write(0, high);
        guest
    }

    fn outputs(&self, ticks: u64) -> String {
        (0..ticks).map(|tick| if self.at(tick).output() { '1' } else { '0' }).collect()
    }

    fn counts(&self, ticks: u64) -> Vec<u16> {
        (0..ticks).map(|tick| self.at(tick).read_word(2)).collect()
    }

    fn next_edge(&self) -> Option<u64> {
        self.pit.lock().next_edge().map(|at| tick_of(at) - 1001)
    }

    fn tick(&self) -> bool {
        self.pit.lock().tick()
    }
}

#[test]
fn each_modes_output_is_as_the_data_sheets_pictures_show() {
    for (mode, initial, outputs) in [
        (0, 4, "00001111111"),
        (1, 4, "11111111111"), // Until the gate rises.
        (2, 3, "11011011011"),
        (3, 4, "11001100110"),
        (3, 5, "11100111001"),
        (4, 4, "11110111111"),
        (5, 4, "11111111111"),
        (6, 3, "11011011011"),
        (7, 4, "11001100110"),
    ] {
        assert_eq!(Guest::tone(mode, initial).outputs(11), outputs, "mode {mode}");
    }
}

#[test]
fn each_modes_count_is_as_the_data_sheets_pictures_show() {
    for (mode, initial, counts) in [
        (0, 3, [3, 2, 1, 0, 0xffff, 0xfffe, 0xfffd]),
        (2, 3, [3, 2, 1, 3, 2, 1, 3]),
        (3, 4, [4, 2, 4, 2, 4, 2, 4]),
        (3, 5, [4, 2, 0, 4, 2, 4, 2]),
        (4, 3, [3, 2, 1, 0, 0xffff, 0xfffe, 0xfffd]),
    ] {
        assert_eq!(Guest::tone(mode, initial).counts(7), counts, "mode {mode}");
    }
}

#[test]
fn a_rising_gate_triggers_modes_1_and_5_again_and_again() {
    for (mode, outputs) in [(1, "000011111"), (5, "111101111")] {
        let guest = Guest::tone(mode, 4);
        for _ in 0..2 {
            guest.set_clock(nanoseconds_of(1000)).gate(false).gate(true);
            guest.set_clock(nanoseconds_of(1000));
        }
        assert_eq!(guest.outputs(9), outputs, "mode {mode}");
    }
}

#[test]
fn a_low_gate_stops_the_count_of_mode_0_and_it_goes_on_from_there() {
    let guest = Guest::tone(0, 100);
    guest.at(40).gate(false);
    assert_eq!(guest.at(400).read_word(2), 60);
    guest.gate(true);
    assert_eq!(guest.at(459).read_word(2), 1);
    assert!(!guest.output());
    assert!(guest.at(460).output());
}

#[test]
fn a_low_gate_makes_a_wave_high_and_its_rise_begins_it_again() {
    for mode in [2, 3] {
        let guest = Guest::tone(mode, 100);
        guest.at(99).gate(false);
        assert!(guest.output());
        guest.at(1000).gate(true);
        assert_eq!(guest.at(1001).read_word(2), 100);
    }
}

#[test]
fn a_count_written_while_the_gate_is_low_waits_for_it() {
    let guest = Guest::new();
    guest.write(3, 0xb0).write(2, 10).write(2, 0);
    assert_eq!(guest.at(500).read_word(2), 10);
    guest.gate(true);
    assert!(!guest.at(509).output());
    assert!(guest.at(511).output());
}

#[test]
fn a_new_count_of_a_wave_begins_with_its_next_period() {
    let guest = Guest::tone(2, 10);
    guest.at(4).write(2, 3).write(2, 0);
    assert_eq!(guest.at(5).read_word(2), 5);
    assert_eq!(guest.at(11).read_word(2), 2);
    assert!(!guest.at(12).output());
    assert!(guest.at(13).output());
}

#[test]
fn the_first_byte_of_a_new_count_stops_mode_0() {
    let guest = Guest::tone(0, 10);
    assert!(guest.at(20).output());
    guest.write(2, 5);
    assert!(!guest.output());
    guest.write(2, 0);
    assert!(!guest.at(25).output());
    assert!(guest.at(26).output());
}

#[test]
fn one_byte_counts_are_that_byte_and_zero() {
    for (access, byte, initial) in [(0x90, 5, 5), (0xa0, 5, 0x500)] {
        let guest = Guest::new();
        guest.set_clock(nanoseconds_of(1000)).gate(true);
        guest.write(3, access | 4).write(2, byte).at(0).write(3, 0x80);
        assert_eq!(guest.read(2), 5);
        assert!(!guest.at(initial - 1).output());
    }
}

#[test]
fn zero_is_the_largest_count_and_decimal_counts_have_four_digits() {
    let guest = Guest::tone(2, 0);
    assert_eq!((guest.at(0).read_word(2), guest.at(1).read_word(2)), (0, 0xffff));
    let decimal = Guest::new();
    decimal.set_clock(nanoseconds_of(1000)).gate(true);
    decimal.write(3, 0xb5).write(2, 0).write(2, 0);
    assert_eq!((decimal.at(0).read_word(2), decimal.at(1).read_word(2)), (0, 0x9999));
    assert_eq!(decimal.at(8766).read_word(2), 0x1234);
    decimal.set_clock(nanoseconds_of(20_000)).write(3, 0xb1).write(2, 0x34).write(2, 0x12);
    assert_eq!(decimal.set_clock(nanoseconds_of(20_011)).read_word(2), 0x1224);
}

#[test]
fn a_latched_count_stands_still_until_it_was_read_whole() {
    let guest = Guest::tone(0, 0x1234);
    guest.at(4).write(3, 0x80);
    guest.at(0x200).write(3, 0x80);
    assert_eq!(guest.read(2), 0x30);
    assert_eq!(guest.at(0x300).read(2), 0x12);
    assert_eq!(guest.read_word(2), 0x0f34);
}

#[test]
fn a_latched_count_begins_with_its_low_byte_whatever_was_read_before() {
    let guest = Guest::tone(0, 0x1234);
    assert_eq!(guest.at(0).read(2), 0x34);
    guest.write(3, 0x80);
    assert_eq!(guest.read_word(2), 0x1234);
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let guest = Guest::interrupting(2, 100);
    assert_eq!(guest.at(30).read_word(0), 70);
    assert_eq!(guest.at(10).read_word(0), 70);
    assert!(!guest.tick());
    assert_eq!(guest.at(40).read_word(0), 60);
}

#[test]
fn a_read_back_latches_states_and_counts_of_any_counters() {
    let guest = Guest::tone(2, 1000);
    guest.write(3, 0x34).write(0, 7);
    guest.at(999).write(3, 0b1100_1010);
    assert_eq!(guest.read(2), 0b0011_0100);
    assert_eq!(guest.read_word(2), 1);
    assert_eq!(guest.read(0), 0b1111_0100);
    assert_eq!(guest.read_word(0), 0);
    guest.write(3, 0b1110_0100);
    assert_eq!(guest.read(1), 0b0111_0000);
    guest.write(3, 0b1101_1000);
    assert_eq!(guest.at(1500).read_word(2), 1);
}

#[test]
fn the_interrupt_comes_at_the_first_rise_and_again_if_it_is_a_wave() {
    for (mode, edges) in [
        (0, [Some(100), None]),
        (2, [Some(100), Some(200)]),
        (3, [Some(100), Some(200)]),
        (4, [Some(101), None]),
        (1, [None, None]),
        (5, [None, None]),
    ] {
        let guest = Guest::interrupting(mode, 100);
        for edge in edges {
            assert_eq!(guest.next_edge(), edge, "mode {mode}");
            let Some(edge) = edge else { continue };
            assert!(!guest.at(edge - 1).tick());
            assert!(guest.at(edge).tick());
            assert!(!guest.tick());
        }
        assert_eq!(guest.moves.0.load(Ordering::Relaxed), u64::from(mode != 1 && mode != 5));
    }
}

#[test]
fn edges_that_nobody_asked_for_are_one_and_the_rate_does_not_slip() {
    let guest = Guest::interrupting(2, 100);
    assert!(guest.at(550).tick());
    assert!(!guest.tick());
    assert_eq!(guest.next_edge(), Some(600));
}

#[test]
fn an_edge_before_the_timer_is_programmed_anew_is_not_lost() {
    let guest = Guest::interrupting(0, 100);
    guest.at(150).write(3, 0x30);
    assert!(guest.next_edge().is_some_and(|edge| edge <= 150));
    assert!(guest.tick());
    assert_eq!(guest.next_edge(), None);
    assert!(!guest.at(100_000).tick());
}

#[test]
fn programming_the_interrupting_counter_moves_the_edge_and_others_do_not() {
    let guest = Guest::interrupting(0, 100);
    guest.write(3, 0xb4).write(2, 9).write(2, 0).write(3, 0);
    assert_eq!(guest.moves.0.load(Ordering::Relaxed), 1);
    guest.write(0, 50).write(0, 0);
    assert_eq!(guest.moves.0.load(Ordering::Relaxed), 3);
}

#[test]
fn the_port_beside_remembers_its_low_bits_and_shows_a_refresh() {
    let guest = Guest::new();
    assert_eq!(guest.speaker.lock().write(0, &[0xff]), Effect::None);
    let shown: Vec<u8> = [0, 18, 36]
        .map(|tick| {
            let mut data = [0];
            guest.at(tick).speaker.lock().read(0, &mut data);
            data[0] & 0xdf
        })
        .into();
    assert!(shown.iter().all(|shown| shown & 0x0f == 0x0f && shown & 0xe0 == 0));
    assert!(shown[0] != shown[1] && shown[0] == shown[2]);
}

#[test]
fn ten_milliseconds_of_polling_end_after_ten_milliseconds() {
    let guest = Guest::tone(0, u16::try_from(PIT_HZ / 100).unwrap());
    let start = guest.clock.load(Ordering::Relaxed);
    let end = (0..).map(|step| start + step * 1000).find(|at| guest.set_clock(*at).output());
    let took = end.unwrap() - start;
    assert!((9_990_000..10_010_000).contains(&took), "{took} ns");
}

proptest! {
    #[test]
    fn a_rate_generators_count_is_the_initial_one_less_the_rest_of_the_ticks(
        initial in 2_u16.., tick in 0_u64..1_000_000,
    ) {
        let guest = Guest::tone(2, initial);
        let period = u64::from(initial);
        prop_assert_eq!(u64::from(guest.at(tick).read_word(2)), period - tick % period);
        prop_assert_eq!(guest.output(), tick % period != period - 1);
    }

    #[test]
    fn a_countdown_is_the_difference(initial in 1_u16.., tick in 0_u64..1_000_000) {
        let guest = Guest::tone(0, initial);
        let expected = (i64::from(initial) - tick.cast_signed()).rem_euclid(0x1_0000);
        prop_assert_eq!(i64::from(guest.at(tick).read_word(2)), expected);
        prop_assert_eq!(guest.output(), tick >= u64::from(initial));
    }

    #[test]
    fn the_next_edge_is_when_the_output_rises(
        mode in prop::sample::select(vec![0_u8, 2, 3, 4]), initial in 2_u16..40, after in 0_u64..100,
    ) {
        let guest = Guest::interrupting(mode, initial);
        guest.at(after).tick();
        let shape = Guest::tone(mode, initial);
        let rises = |tick: &u64| !shape.at(tick - 1).output() && shape.at(*tick).output();
        prop_assert_eq!(guest.next_edge(), (after + 1..after + 100).find(rises));
    }

    #[test]
    fn a_tick_is_the_one_its_first_nanosecond_falls_into(tick in 0..u64::MAX / 1000) {
        let start = nanoseconds_of(tick);
        prop_assert_eq!(tick_of(start), tick);
        prop_assert_eq!(start == 0 || tick_of(start - 1) < tick, true);
    }

    #[test]
    fn nothing_a_guest_writes_panics_and_edges_are_in_the_future(
        accesses in prop::collection::vec(
            (0_u64..6, any::<u8>(), prop_oneof![9 => 0_u64..5_000_000, 1 => any::<u64>()]), 1..200,
        ),
    ) {
        let guest = Guest::new();
        for (port, value, later) in accesses {
            let now = guest.clock.load(Ordering::Relaxed).saturating_add(later);
            guest.set_clock(now);
            if port == 5 {
                guest.gate(value & 1 != 0);
            } else {
                guest.write(port, value);
            }
            let _value = guest.read(port);
            let _output = guest.output();
            guest.tick();
            let edge = guest.pit.lock().next_edge();
            prop_assert!(edge.is_none_or(|edge| edge > now || now > u64::MAX / 2));
        }
    }
}
