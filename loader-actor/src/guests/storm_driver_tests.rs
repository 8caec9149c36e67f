//! The driver against a guest that is a few words in memory.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::guests::storm_control::{self, CONTROL, SLOT_STRIDE, VCPUS, control, page_word, vcpu};

/// A guest of two vcpus that do what the test says.
struct Puppet {
    memory: GuestMemoryMmap,
}

impl Puppet {
    /// Both vcpus have begun.
    fn begun() -> Self {
        let puppet = Self::waiting_to_begin();
        for index in 0..2 {
            puppet.put(index, vcpu::PROGRESS, 1);
        }
        puppet
    }

    fn waiting_to_begin() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        for (at, bytes) in storm_control::pieces(2) {
            memory.write_slice(&bytes, GuestAddress(at.0)).unwrap();
        }
        Self { memory }
    }

    fn control(&self) -> StormControl<'_> {
        StormControl::new(&self.memory, 2)
    }

    fn put(&self, index: u64, offset: u64, word: u64) {
        let at = GuestAddress(VCPUS.0 + index * 4096 + offset);
        self.memory.write_obj(word, at).unwrap();
    }

    /// The page word of `page` as the guest reads it.
    fn page_word(&self, page: u16) -> u64 {
        let at = CONTROL.0 + control::PAGE_WORDS + u64::from(page) * SLOT_STRIDE;
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// The page the monitor aims at.
    fn focus(&self) -> u16 {
        let at = GuestAddress(CONTROL.0 + control::FOCUS);
        self.memory.read_obj::<u16>(at).unwrap()
    }

    /// vcpu 0 looks at the focus once more, if it may.
    fn use_focus(&self) {
        let page = self.focus();
        if self.page_word(page) & 3 != Mode::Closed as u64 {
            let at = VCPUS.0 + vcpu::USES + u64::from(page) * 8;
            let uses: u64 = self.memory.read_obj(GuestAddress(at)).unwrap();
            self.memory.write_obj(uses + 1, GuestAddress(at)).unwrap();
        }
    }

    /// The next order, with the guest using its focus whenever the driver waits.
    fn next_order(&self, driver: &mut StormDriver) -> Option<Order> {
        for _ in 0..100 {
            match driver.step(&self.control()).unwrap() {
                Step::Do(order) => return Some(order),
                Step::Wait => self.use_focus(),
                Step::Finished => return None,
            }
        }
        panic!("the driver waits for ever: {driver:?}");
    }

    fn all_orders(&self, seed: u64, mix: Mix, rounds: u64) -> (Vec<Order>, Storms) {
        let mut driver = StormDriver::new(seed, mix, rounds);
        let orders = std::iter::from_fn(|| self.next_order(&mut driver)).collect();
        (orders, driver.storms())
    }
}

/// A mix of one script.
fn only(set: fn(&mut Mix)) -> Mix {
    let mut mix =
        Mix { forget: 0, protect: 0, replace: 0, discard: 0, harvest: 0, page_out: 0, promote: 0 };
    set(&mut mix);
    mix
}

#[test]
fn the_same_seed_gives_the_same_storm_and_another_one_another() {
    let storm = |seed| Puppet::begun().all_orders(seed, Mix::ALL, 100).0;
    assert_eq!(storm(7), storm(7));
    assert_ne!(storm(7), storm(8));
}

#[test]
fn nothing_happens_before_every_vcpu_has_begun() {
    let puppet = Puppet::waiting_to_begin();
    let mut driver = StormDriver::new(1, Mix::ALL, 10);
    puppet.put(0, vcpu::PROGRESS, 1);
    for _ in 0..10 {
        puppet.use_focus();
        assert_eq!(driver.step(&puppet.control()).unwrap(), Step::Wait);
    }
    puppet.put(1, vcpu::PROGRESS, 1);
    assert!(puppet.next_order(&mut driver).is_some());
}

#[test]
fn an_unmap_is_followed_by_a_map_of_the_same_page_and_comes_only_while_it_is_closed() {
    let puppet = Puppet::begun();
    let mut driver = StormDriver::new(3, Mix::ALL, 200);
    while let Some(order) = puppet.next_order(&mut driver) {
        if let Order::Unmap(range) = order {
            assert_eq!(puppet.page_word(puppet.focus()) & 3, Mode::Closed as u64);
            assert_eq!(range, data_page(puppet.focus()));
            assert_eq!(puppet.next_order(&mut driver), Some(Order::Map(range)));
        }
    }
}

#[test]
fn a_page_is_taken_away_only_when_every_touch_under_way_is_over() {
    let puppet = Puppet::begun();
    let mut driver = StormDriver::new(1, only(|mix| mix.discard = 1), 1);
    assert_eq!(driver.step(&puppet.control()).unwrap(), Step::Wait);
    let page = puppet.focus();
    // vcpu 1 is in the middle of a touch of that page, in whichever mode it saw.
    let touch = |number: u64| number << 8 | (u64::from(page) + 1);
    puppet.put(1, vcpu::TOUCHING, touch(5));
    for _ in 0..10 {
        puppet.use_focus();
        assert_eq!(driver.step(&puppet.control()).unwrap(), Step::Wait);
    }
    assert_eq!(puppet.page_word(page), page_word(1, Mode::Changing));
    // Its next touch has seen the page word: no need to wait for that one.
    puppet.put(1, vcpu::TOUCHING, touch(6));
    assert_eq!(puppet.next_order(&mut driver), Some(Order::Discard(data_page(page))));
    assert_eq!(puppet.page_word(page), page_word(1, Mode::Changing));
    assert_eq!(driver.step(&puppet.control()).unwrap(), Step::Wait);
    assert_eq!(puppet.page_word(page), page_word(2, Mode::Open));
}

#[test]
fn a_touch_of_another_page_is_not_waited_for() {
    let puppet = Puppet::begun();
    let mut driver = StormDriver::new(1, only(|mix| mix.replace = 1), 1);
    assert_eq!(driver.step(&puppet.control()).unwrap(), Step::Wait);
    let page = puppet.focus();
    puppet.put(1, vcpu::TOUCHING, 5 << 8 | (u64::from(page) + 2));
    assert_eq!(puppet.next_order(&mut driver), Some(Order::Unmap(data_page(page))));
}

#[test]
fn the_guests_own_counters_decide_what_was_in_use() {
    let rounds = 50;
    let of = |mix| Puppet::begun().all_orders(9, mix, rounds).1;
    for mix in [
        only(|mix| mix.forget = 1),
        only(|mix| mix.protect = 1),
        only(|mix| mix.discard = 1),
        only(|mix| mix.harvest = 1),
        only(|mix| mix.page_out = 1),
    ] {
        let storms = of(mix);
        assert_eq!((storms.invalidations, storms.in_use), (rounds, rounds), "{mix:?}");
    }
    let replaced = of(only(|mix| mix.replace = 1));
    assert_eq!((replaced.invalidations, replaced.in_use), (rounds, 0));
    // A superpage takes nothing away.
    assert_eq!(of(only(|mix| mix.promote = 1)).invalidations, 0);
}

#[test]
fn a_use_while_the_order_is_carried_out_is_counted_apart() {
    let puppet = Puppet::begun();
    let mut driver = StormDriver::new(1, only(|mix| mix.forget = 1), 2);
    assert!(puppet.next_order(&mut driver).is_some());
    puppet.use_focus();
    assert!(puppet.next_order(&mut driver).is_some());
    assert!(puppet.next_order(&mut driver).is_none());
    assert_eq!(driver.storms().used_meanwhile, 1);
}

#[test]
fn without_discard_no_order_is_a_discard_and_an_empty_mix_forgets() {
    let orders = |mix| Puppet::begun().all_orders(5, mix, 300).0;
    let plain = orders(Mix::WITHOUT_DISCARD);
    assert!(!plain.iter().any(|order| matches!(order, Order::Discard(_))));
    assert!(plain.iter().any(|order| matches!(order, Order::Unmap(_))));
    let nothing = orders(only(|_| ()));
    assert!(nothing.iter().all(|order| matches!(order, Order::Forget(_))));
}

#[test]
fn at_the_end_the_guest_is_told_to_stop() {
    let puppet = Puppet::begun();
    puppet.all_orders(1, Mix::ALL, 3);
    let stop: u64 = puppet.memory.read_obj(GuestAddress(CONTROL.0 + control::STOP)).unwrap();
    assert_eq!(stop, 1);
}

#[test]
fn two_drivers_aim_at_pages_of_their_own_and_stop_nobody() {
    let puppet = Puppet::begun();
    let half = DATA_PAGES / 2;
    let mut low = StormDriver::one_of_many(1, Mix::ALL, 3, 0..half);
    let mut high = StormDriver::one_of_many(2, Mix::ALL, 3, half..DATA_PAGES);
    assert_eq!(low.step(&puppet.control()).unwrap(), Step::Wait);
    assert_eq!(high.step(&puppet.control()).unwrap(), Step::Wait);
    let focus = |index: u64| {
        let at = GuestAddress(CONTROL.0 + control::FOCUS + index * 8);
        puppet.memory.read_obj::<u64>(at).unwrap()
    };
    assert!((0..4).all(|index| focus(index) == focus(0) && focus(index) < u64::from(half)));
    assert!((4..8).all(|index| focus(index) == focus(4) && focus(index) >= u64::from(half)));
    while puppet.next_order(&mut low).is_some() {}
    assert_eq!(puppet.memory.read_obj::<u64>(GuestAddress(CONTROL.0)).unwrap(), 0);
}
