//! The timer, seen through its registers.

use super::local_tests::{EOI, apic};
use super::{CPUID_LEAF_15, LocalApic, TSC_TICKS_PER_TIMER_TICK};

const LVT_TIMER: u32 = 0x320;
const INITIAL: u32 = 0x380;
const CURRENT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;
const DEADLINE: u32 = 0x6e0;

const PERIODIC: u32 = 1 << 17;
const DEADLINE_MODE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;
const VECTOR: u32 = 0xec;
const BY_ONE: u32 = 0b1011;

/// One tick of the timer's clock, and so one count when that is not divided.
const TICK: u64 = TSC_TICKS_PER_TIMER_TICK as u64;

fn set(apic: &mut LocalApic, offset: u32, value: u32, now: u64) {
    assert_eq!(apic.write(offset, value, now), None);
}

/// Counting from 1000 at tick 500, undivided.
fn counting(entry: u32) -> LocalApic {
    let mut apic = apic(0);
    set(&mut apic, DIVIDE, BY_ONE, 0);
    set(&mut apic, LVT_TIMER, entry | VECTOR, 0);
    set(&mut apic, INITIAL, 1000, 500 * TICK);
    apic
}

fn fires(apic: &mut LocalApic, now: u64) -> bool {
    apic.tick(now);
    let fired = apic.pending().is_some();
    if fired {
        assert_eq!(apic.acknowledge(), 0xec);
        set(apic, EOI, 0, now);
    }
    fired
}

#[test]
fn the_guest_is_told_a_crystal_that_makes_the_time_stamp_counter_count_nanoseconds() {
    let [denominator, numerator, crystal, _] = CPUID_LEAF_15.map(u64::from);
    assert_eq!(crystal * numerator / denominator, 1_000_000_000);
    let mut apic = apic(0);
    set(&mut apic, DIVIDE, BY_ONE, 0);
    set(&mut apic, LVT_TIMER, VECTOR, 0);
    set(&mut apic, INITIAL, CPUID_LEAF_15[2], 0);
    assert_eq!(apic.deadline(), Some(1_000_000_000));
}

#[test]
fn one_shot_counts_down_fires_once_and_stays_at_zero() {
    let mut apic = counting(0);
    assert_eq!(apic.deadline(), Some(1500 * TICK));
    for (tick, count) in [(500, 1000), (501, 999), (1499, 1), (1500, 0), (9999, 0)] {
        assert_eq!(apic.read(CURRENT, tick * TICK), count);
    }
    assert_eq!(apic.read(CURRENT, 1500 * TICK - 1), 1);
    assert!(!fires(&mut apic, 1500 * TICK - 1));
    assert!(fires(&mut apic, 1500 * TICK));
    assert!(!fires(&mut apic, u64::MAX));
    assert_eq!((apic.deadline(), apic.read(INITIAL, 2000 * TICK)), (None, 1000));
}

#[test]
fn periodic_begins_again_and_missed_rounds_are_one_interrupt() {
    let mut apic = counting(PERIODIC);
    assert_eq!(apic.read(CURRENT, 1500 * TICK), 1000);
    assert_eq!(apic.read(CURRENT, 2501 * TICK), 999);
    assert!(fires(&mut apic, 1500 * TICK));
    assert_eq!(apic.deadline(), Some(2500 * TICK));
    assert!(fires(&mut apic, 7777 * TICK));
    assert!(!fires(&mut apic, 7778 * TICK));
    assert_eq!(apic.deadline(), Some(8500 * TICK));
}

#[test]
fn the_input_clock_is_divided_as_the_manuals_table_says() {
    for (code, by) in [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ] {
        let mut apic = apic(0);
        set(&mut apic, DIVIDE, code, 0);
        set(&mut apic, LVT_TIMER, VECTOR, 0);
        set(&mut apic, INITIAL, 10, 0);
        assert_eq!(apic.deadline(), Some(10 * by * TICK));
        assert_eq!(apic.read(CURRENT, by * TICK), 9);
        assert_eq!(apic.read(CURRENT, 2 * by * TICK - 1), 9);
        assert_eq!(apic.read(CURRENT, 2 * by * TICK), 8);
        assert_eq!(apic.read(DIVIDE, 0), code);
    }
}

#[test]
fn a_change_of_the_divider_keeps_what_is_left_to_count() {
    let mut apic = counting(0);
    set(&mut apic, DIVIDE, 0, 1000 * TICK);
    assert_eq!(apic.read(CURRENT, 1000 * TICK), 500);
    assert_eq!(apic.deadline(), Some(2000 * TICK));
}

#[test]
fn an_initial_count_of_zero_stops() {
    let mut apic = counting(PERIODIC);
    set(&mut apic, INITIAL, 0, 600 * TICK);
    assert_eq!((apic.deadline(), apic.read(CURRENT, 700 * TICK)), (None, 0));
    assert!(!fires(&mut apic, u64::MAX));
}

#[test]
fn what_ends_while_masked_does_not_interrupt_later() {
    let mut apic = counting(MASKED);
    assert_eq!(apic.deadline(), None);
    set(&mut apic, LVT_TIMER, VECTOR, 2000 * TICK);
    assert!(!fires(&mut apic, 2000 * TICK));
    let mut periodic = counting(PERIODIC | MASKED);
    set(&mut periodic, LVT_TIMER, PERIODIC | VECTOR, 2000 * TICK);
    assert!(!fires(&mut periodic, 2000 * TICK));
    assert_eq!(periodic.deadline(), Some(2500 * TICK));
}

#[test]
fn what_ended_before_the_mask_interrupts() {
    let mut apic = counting(0);
    set(&mut apic, LVT_TIMER, MASKED | VECTOR, 1500 * TICK);
    assert_eq!(apic.acknowledge(), 0xec);
    let mut switched_off = counting(0);
    assert!(switched_off.write(0xf0, 0xff, 1500 * TICK).is_some());
    assert_eq!(switched_off.acknowledge(), 0xec);
}

#[test]
fn a_deadline_fires_at_its_time_and_reads_as_zero_afterwards() {
    let mut apic = apic(0);
    set(&mut apic, LVT_TIMER, DEADLINE_MODE | VECTOR, 0);
    assert_eq!(apic.write_msr(DEADLINE, 1234, 0), Ok(None));
    assert_eq!(apic.deadline(), Some(1234));
    assert_eq!(apic.read_msr(DEADLINE, 1233), Ok(1234));
    assert_eq!(apic.read_msr(DEADLINE, 1234), Ok(0));
    assert!(!fires(&mut apic, 1233));
    assert!(fires(&mut apic, 1234));
    assert_eq!(apic.deadline(), None);
}

#[test]
fn a_deadline_in_the_past_fires_at_once_and_zero_disarms() {
    let mut apic = apic(0);
    set(&mut apic, LVT_TIMER, DEADLINE_MODE | VECTOR, 0);
    assert_eq!(apic.write_msr(DEADLINE, 5000, 100), Ok(None));
    assert_eq!(apic.write_msr(DEADLINE, 0, 200), Ok(None));
    assert!(!fires(&mut apic, 6000));
    assert_eq!(apic.write_msr(DEADLINE, 5000, 6000), Ok(None));
    assert_eq!(apic.pending(), Some(0xec));
}

#[test]
fn counts_and_deadlines_ignore_each_other() {
    let now = 600 * TICK;
    let mut apic = counting(0);
    assert_eq!(apic.write_msr(DEADLINE, 900 * TICK, now), Ok(None));
    assert_eq!(apic.deadline(), Some(1500 * TICK));
    assert_eq!(apic.read_msr(DEADLINE, now), Ok(0));
    set(&mut apic, LVT_TIMER, DEADLINE_MODE | VECTOR, now);
    assert_eq!((apic.deadline(), apic.read(CURRENT, now)), (None, 0));
    set(&mut apic, INITIAL, 50, now);
    assert_eq!((apic.deadline(), apic.read(INITIAL, now)), (None, 0));
    assert_eq!(apic.write_msr(DEADLINE, 900 * TICK, now), Ok(None));
    set(&mut apic, LVT_TIMER, VECTOR, 700 * TICK);
    assert_eq!(apic.deadline(), None);
}

#[test]
fn between_one_shot_and_periodic_it_counts_on() {
    let mut apic = counting(0);
    set(&mut apic, LVT_TIMER, PERIODIC | VECTOR, 600 * TICK);
    assert_eq!(apic.deadline(), Some(1500 * TICK));
    assert!(fires(&mut apic, 1500 * TICK));
    assert_eq!(apic.deadline(), Some(2500 * TICK));
}

#[test]
fn counts_do_not_notice_a_clock_that_is_set_and_deadlines_do() {
    let mut apic = counting(0);
    apic.clock_was_set(700 * TICK, 10_700 * TICK);
    assert_eq!(apic.read(CURRENT, 10_700 * TICK), 800);
    assert_eq!(apic.deadline(), Some(11_500 * TICK));
    set(&mut apic, LVT_TIMER, DEADLINE_MODE | VECTOR, 10_700 * TICK);
    assert_eq!(apic.write_msr(DEADLINE, 20_000 * TICK, 10_700 * TICK), Ok(None));
    apic.clock_was_set(10_800 * TICK, 19_000 * TICK);
    assert_eq!(apic.deadline(), Some(20_000 * TICK));
    apic.clock_was_set(19_000 * TICK, 30_000 * TICK);
    assert_eq!(apic.pending(), Some(0xec));
}

#[test]
fn nothing_overflows_at_the_end_of_time() {
    let mut apic = apic(0);
    set(&mut apic, DIVIDE, 0b1010, 0);
    set(&mut apic, LVT_TIMER, PERIODIC | VECTOR, 0);
    set(&mut apic, INITIAL, u32::MAX, u64::MAX - 1);
    assert_eq!(apic.deadline(), Some(u64::MAX));
    assert!(fires(&mut apic, u64::MAX));
    let _count = apic.read(CURRENT, 0);
    apic.clock_was_set(u64::MAX, u64::MAX);
    apic.clock_was_set(0, u64::MAX);
}
