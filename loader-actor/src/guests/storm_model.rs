//! The storm's dance as a model: the real driver, against vcpus that do what the assembly
//! does, one memory access at a time, in random order, on a machine that has frames and
//! translations and takes them away one vcpu after the other.
//!
//! Two claims: on a right machine no order of events raises an alarm; on a machine that
//! forgets to forget, or loses something, an alarm is raised. And each part of the dance
//! is needed: without it, a right machine raises alarms.

use std::collections::VecDeque;

use actors::Gpa;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::storm::{FOREIGN, LOST, STALE};
use super::storm_control::{
    self, CONTROL, DATA_PAGES, Mode, SLOT_STRIDE, StormControl, VCPUS, control, data_page, sealed,
    vcpu,
};
use super::storm_driver::{Mix, Order, Step, StormDriver};

const MODEL_VCPUS: usize = 3;

/// A storm of 60 rounds takes some ten thousand turns.
const MOST_TURNS: u32 = 1_000_000;

/// What is wrong with the machine, or with the dance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// An invalidation skips vcpu 1's translation.
    KeepsATranslation,
    /// A Forget gives the page a fresh frame.
    ForgetsTheContents,
    /// An Unmap is answered before the translations are gone.
    AnswersTooEarly,
    /// Not the machine: vcpus do not announce their touches.
    NoAnnouncement,
    /// Not the machine: vcpus announce a touch after they have read the page word.
    LateAnnouncement,
}

/// Where a vcpu is in its touch: what it does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Announce,
    ReadWord,
    /// Only with [`Flaw::LateAnnouncement`].
    AnnounceLate,
    ReadOwn,
    ReadOther,
    Write,
    ReadBack,
    End,
}

#[derive(Clone, Debug)]
struct Vcpu {
    at: At,
    page: u16,
    touch: u64,
    generation: u32,
    mode: u32,
    other: usize,
    own: Vec<u64>,
    seen: Vec<u32>,
    /// Its translations: frames by page.
    frames: Vec<Option<usize>>,
}

/// A part of carrying out an order.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Faults find a fresh frame from now on.
    Fresh(usize),
    /// Faults find a hole from now on.
    Hole(usize),
    /// One vcpu forgets its translation.
    Drop(usize, usize),
    /// The monitor writes zero into one slot.
    Zero(usize, usize),
}

struct Model {
    memory: GuestMemoryMmap,
    flaw: Flaw,
    random: u64,
    vcpus: Vec<Vcpu>,
    /// Slots of every frame there ever was.
    frames: Vec<[u64; MODEL_VCPUS]>,
    /// What a fault finds, by page.
    pages: Vec<Option<usize>>,
    /// What is left to do of the order; afterwards the monitor may ask again.
    parts: VecDeque<Part>,
    /// Parts that a machine with [`Flaw::AnswersTooEarly`] still owes.
    owed: VecDeque<Part>,
}

/// How a storm ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Calm,
    Alarm(u8),
    Hole,
}

impl Model {
    fn new(seed: u64, flaw: Flaw) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let vcpus = u16::try_from(MODEL_VCPUS).unwrap();
        for (at, bytes) in storm_control::pieces(vcpus) {
            memory.write_slice(&bytes, GuestAddress(at.0)).unwrap();
        }
        let pages = usize::from(DATA_PAGES);
        let vcpu = Vcpu {
            at: At::Announce,
            page: 0,
            touch: 0,
            generation: 0,
            mode: 0,
            other: 0,
            own: vec![0; pages],
            seen: vec![storm_control::FIRST_GENERATION; pages],
            frames: vec![None; pages],
        };
        Self {
            memory,
            flaw,
            random: seed,
            vcpus: vec![vcpu; MODEL_VCPUS],
            frames: vec![[0; MODEL_VCPUS]; pages],
            pages: (0..pages).map(Some).collect(),
            parts: VecDeque::new(),
            owed: VecDeque::new(),
        }
    }

    /// Runs a storm of `rounds` rounds to its end, or to the first alarm.
    fn run(mut self, mix: Mix, rounds: u64) -> Outcome {
        let mut driver = StormDriver::new(self.random, mix, rounds);
        for _ in 0..MOST_TURNS {
            // Mostly one step each; sometimes one runs while the others stand still.
            let who = self.draw(MODEL_VCPUS + 1);
            let steps = if self.draw(4) == 0 { 40 } else { 1 };
            for _ in 0..steps {
                if who < MODEL_VCPUS {
                    if let Err(outcome) = self.vcpu_step(who) {
                        return outcome;
                    }
                } else if !self.monitor_step(&mut driver) {
                    return Outcome::Calm;
                }
            }
        }
        panic!("the storm does not end: {driver:?}");
    }

    /// One part of the order at hand, or the next order. False when all rounds are done.
    fn monitor_step(&mut self, driver: &mut StormDriver) -> bool {
        if let Some(part) = self.parts.pop_front() {
            self.carry_out(part);
            return true;
        }
        let vcpus = u16::try_from(MODEL_VCPUS).unwrap();
        let step = driver.step(&StormControl::new(&self.memory, vcpus)).unwrap();
        match step {
            Step::Do(order) => self.take_apart(order),
            Step::Wait => {}
            Step::Finished => return false,
        }
        // What is owed is paid late, and not in time.
        if self.draw(40) == 0
            && let Some(part) = self.owed.pop_front()
        {
            self.carry_out(part);
        }
        true
    }

    fn take_apart(&mut self, order: Order) {
        let page_of = |range| (0..DATA_PAGES).position(|page| data_page(page) == range).unwrap();
        let drops = |page| (0..MODEL_VCPUS).map(move |vcpu| Part::Drop(vcpu, page));
        match order {
            Order::Forget(range) => {
                let page = page_of(range);
                if self.flaw == Flaw::ForgetsTheContents {
                    self.parts.push_back(Part::Fresh(page));
                }
                self.parts.extend(drops(page));
            }
            Order::Protect(range, _) | Order::Harvest(range) | Order::PageOut(range) => {
                self.parts.extend(drops(page_of(range)));
            }
            // Nothing that a vcpu could notice.
            Order::Promote(_) => {}
            Order::Unmap(range) => {
                let page = page_of(range);
                self.parts.push_back(Part::Hole(page));
                match self.flaw {
                    Flaw::AnswersTooEarly => self.owed.extend(drops(page)),
                    _ => self.parts.extend(drops(page)),
                }
            }
            Order::Map(range) => self.parts.push_back(Part::Fresh(page_of(range))),
            Order::Discard(range) => {
                self.parts.push_back(Part::Fresh(page_of(range)));
                self.parts.extend(drops(page_of(range)));
            }
            Order::Zero(range) => {
                let page = page_of(range);
                self.parts.extend((0..MODEL_VCPUS).map(|slot| Part::Zero(page, slot)));
            }
        }
    }

    fn carry_out(&mut self, part: Part) {
        match part {
            Part::Fresh(page) => {
                self.pages[page] = Some(self.frames.len());
                self.frames.push([0; MODEL_VCPUS]);
            }
            Part::Hole(page) => self.pages[page] = None,
            Part::Drop(1, _) if self.flaw == Flaw::KeepsATranslation => {}
            Part::Drop(vcpu, page) => self.vcpus[vcpu].frames[page] = None,
            Part::Zero(page, slot) => {
                let frame = self.pages[page].unwrap();
                self.frames[frame][slot] = 0;
            }
        }
    }

    /// One access of one vcpu: the assembly's blocks of the same names.
    fn vcpu_step(&mut self, who: usize) -> Result<(), Outcome> {
        let page = usize::from(self.vcpus[who].page);
        let mut me = self.vcpus[who].clone();
        me.at = match me.at {
            At::Announce => {
                me.touch += 1;
                me.page = self.choose_page(me.touch);
                if self.flaw != Flaw::LateAnnouncement {
                    self.announce(who, &me);
                }
                At::ReadWord
            }
            At::ReadWord => {
                let at = CONTROL.0 + control::PAGE_WORDS + page as u64 * SLOT_STRIDE;
                let word = self.word(Gpa(at)) & 0xffff_ffff;
                let word = u32::try_from(word).unwrap();
                (me.generation, me.mode) = (word >> 2, word & 3);
                if me.mode == Mode::Closed as u32 {
                    At::End
                } else {
                    if me.seen[page] != me.generation {
                        me.seen[page] = me.generation;
                        me.own[page] = 0;
                    }
                    match self.flaw {
                        Flaw::LateAnnouncement => At::AnnounceLate,
                        _ => At::ReadOwn,
                    }
                }
            }
            At::AnnounceLate => {
                self.announce(who, &me);
                At::ReadOwn
            }
            At::ReadOwn => {
                let found = self.frame(&mut me, page)?[who];
                let changing = me.mode == Mode::Changing as u32;
                if found != me.own[page] && !(found == 0 && changing) {
                    return Err(Outcome::Alarm(if found == 0 { LOST } else { me.judge(found) }));
                }
                At::ReadOther
            }
            At::ReadOther => {
                let found = self.frame(&mut me, page)?[me.other];
                let generation = found >> 16 & 0xffff;
                let next = u64::from(me.generation) + 1;
                let may_be_next = me.mode == Mode::Changing as u32;
                if found != 0
                    && generation != u64::from(me.generation)
                    && !(may_be_next && generation == next)
                {
                    return Err(Outcome::Alarm(me.judge(found)));
                }
                me.other = (me.other + 1) % MODEL_VCPUS;
                if me.mode == Mode::Open as u32 { At::Write } else { At::End }
            }
            At::Write => {
                let count = u32::try_from(me.touch & 0xffff).unwrap();
                let stamp = sealed(me.generation << 16 | count);
                me.own[page] = stamp;
                self.frame(&mut me, page)?[who] = stamp;
                At::ReadBack
            }
            At::ReadBack => {
                let found = self.frame(&mut me, page)?[who];
                if found != me.own[page] {
                    return Err(Outcome::Alarm(me.judge(found)));
                }
                At::End
            }
            At::End => {
                let uses = VCPUS.0 + who as u64 * 4096 + vcpu::USES + page as u64 * 8;
                if me.mode != Mode::Closed as u32 {
                    self.put(Gpa(uses), me.touch);
                }
                self.put(Gpa(VCPUS.0 + who as u64 * 4096 + vcpu::TOUCHING), 0);
                self.put(Gpa(VCPUS.0 + who as u64 * 4096 + vcpu::PROGRESS), me.touch);
                At::Announce
            }
        };
        self.vcpus[who] = me;
        Ok(())
    }

    /// The frame a vcpu reaches: through its translation, or through a fault that gives it
    /// one.
    fn frame(&mut self, me: &mut Vcpu, page: usize) -> Result<&mut [u64; MODEL_VCPUS], Outcome> {
        let frame = me.frames[page].or(self.pages[page]).ok_or(Outcome::Hole)?;
        me.frames[page] = Some(frame);
        Ok(&mut self.frames[frame])
    }

    fn announce(&self, who: usize, me: &Vcpu) {
        if self.flaw != Flaw::NoAnnouncement {
            let at = VCPUS.0 + who as u64 * 4096 + vcpu::TOUCHING;
            self.put(Gpa(at), me.touch << 8 | (u64::from(me.page) + 1));
        }
    }

    /// The focus and one of four pages, in turn.
    fn choose_page(&mut self, touch: u64) -> u16 {
        if touch.is_multiple_of(2) {
            u16::try_from(self.draw(4)).unwrap()
        } else {
            u16::try_from(self.word(Gpa(CONTROL.0 + control::FOCUS))).unwrap()
        }
    }

    fn word(&self, at: Gpa) -> u64 {
        self.memory.read_obj(GuestAddress(at.0)).unwrap()
    }

    fn put(&self, at: Gpa, word: u64) {
        self.memory.write_obj(word, GuestAddress(at.0)).unwrap();
    }

    /// A number below `limit`, by xorshift.
    fn draw(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 33).unwrap() % limit
    }
}

impl Vcpu {
    /// The code for a stamp that must not be there.
    fn judge(&self, found: u64) -> u8 {
        match (found >> 16 & 0xffff).cmp(&u64::from(self.generation)) {
            std::cmp::Ordering::Less => STALE,
            std::cmp::Ordering::Equal => LOST,
            std::cmp::Ordering::Greater => FOREIGN,
        }
    }
}

/// How 40 storms of different seeds end.
fn outcomes(flaw: Flaw, mix: Mix) -> Vec<Outcome> {
    (1..=40).map(|seed| Model::new(seed, flaw).run(mix, 60)).collect()
}

fn raise_an_alarm(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|&&outcome| outcome != Outcome::Calm).count()
}

#[test]
fn on_a_right_machine_no_order_of_events_raises_an_alarm() {
    for mix in [Mix::ALL, Mix::WITHOUT_DISCARD] {
        assert_eq!(outcomes(Flaw::None, mix), [Outcome::Calm; 40], "{mix:?}");
    }
}

#[test]
fn a_translation_that_is_kept_is_a_stale_read_every_time() {
    let outcomes = outcomes(Flaw::KeepsATranslation, Mix::WITHOUT_DISCARD);
    let caught = outcomes.iter().filter(|&&outcome| outcome == Outcome::Alarm(STALE)).count();
    assert!(caught >= 35, "{outcomes:?}");
    assert_eq!(raise_an_alarm(&outcomes), 40, "{outcomes:?}");
}

#[test]
fn an_answer_before_the_translations_are_gone_is_a_stale_read() {
    let outcomes = outcomes(Flaw::AnswersTooEarly, Mix::WITHOUT_DISCARD);
    assert!(outcomes.contains(&Outcome::Alarm(STALE)), "{outcomes:?}");
}

#[test]
fn contents_lost_by_a_forget_are_noticed_every_time() {
    let outcomes = outcomes(Flaw::ForgetsTheContents, Mix::ALL);
    assert_eq!(raise_an_alarm(&outcomes), 40, "{outcomes:?}");
}

#[test]
fn without_announcements_or_with_late_ones_a_right_machine_would_be_accused() {
    for flaw in [Flaw::NoAnnouncement, Flaw::LateAnnouncement] {
        assert!(raise_an_alarm(&outcomes(flaw, Mix::ALL)) > 0, "{flaw:?}");
    }
}
