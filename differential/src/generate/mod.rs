//! Making sequences: everything follows from a seed, a family and a number.
//!
//! Reading order: [`catalogue`] (which instructions) → [`operands`] (their operands) → [`prepare`] (what must come
//! before so that they do something interesting) → [`flow`] (branches and calls) → this file.

pub mod catalogue;
mod flow;
mod known;
mod operands;
mod prepare;

use iced_x86::{Code, Instruction, InstructionInfoFactory};

use crate::layout::{CODE_BYTES, PAGE, SLOTS};
use crate::random::Random;
use crate::sequence::{Item, Sequence, reads};
use crate::state::State;
use crate::{templates, values};
use catalogue::{Family, Features, Form};
use known::Known;

/// Makes sequences.
#[derive(Debug)]
pub struct Generator {
    /// All forms; items name them by index.
    pub forms: Vec<Form>,
    by_family: Vec<Vec<usize>>,
    factory: InstructionInfoFactory,
}

impl Generator {
    /// One for what the processor can do.
    #[must_use]
    pub fn new(features: &Features) -> Self {
        let forms = catalogue::forms(features);
        let by_family = Family::ALL
            .iter()
            .map(|family| (0..forms.len()).filter(|at| forms[*at].family == *family).collect())
            .collect();
        Self { forms, by_family, factory: InstructionInfoFactory::new() }
    }

    /// The indices of a family's forms.
    #[must_use]
    pub fn members(&self, family: Family) -> &[usize] {
        let at = Family::ALL.iter().position(|each| *each == family).unwrap_or(0);
        &self.by_family[at]
    }

    /// Sequence number `index` of the stream `seed` of `family`, whose forms must not be empty.
    #[must_use]
    pub fn sequence(&mut self, family: Family, seed: u64, index: u64) -> Sequence {
        let slot = usize::try_from(index % SLOTS as u64).unwrap_or(0);
        for attempt in 0_u64.. {
            let salt = (family as u64) << 8 | attempt << 16 | 7;
            let mut random = Random::new(seed, salt, index);
            let sequence = self.attempt(family, &mut random, slot);
            if sequence.undefined().is_some() {
                return sequence;
            }
        }
        unreachable!("some attempt makes a sequence whose flags are defined")
    }

    /// One attempt; its flags may be nonsense.
    fn attempt(&mut self, family: Family, random: &mut Random, slot: usize) -> Sequence {
        let state = initial(random, family);
        let count = match random.below(10) {
            0..=2 => 1,
            3..=7 => 2 + random.index(4),
            _ => 6 + random.index(5),
        };
        let mut draft = Draft {
            items: Vec::new(),
            known: Known::new(&state.general),
            group: 0,
            undefined: 0,
            factory: &mut self.factory,
        };
        let members = Family::ALL.iter().position(|each| *each == family).unwrap_or(0);
        for _ in 0..count {
            let chosen = random.pick(&self.by_family[members]);
            draft.add(&self.forms, chosen, random);
        }
        let items = settle(draft.items);
        let entry = match random.below(10) {
            // Some instruction lies across the border between the pages.
            0 | 1 => usize::try_from(PAGE).unwrap_or(0) - 1 - random.index(40),
            2 => 0,
            _ => random.index(CODE_BYTES - 1200),
        };
        Sequence { family, items, state, template: template(random, family), slot, entry }
    }
}

/// A sequence in the making.
struct Draft<'f> {
    items: Vec<Item>,
    known: Known,
    group: u32,
    /// The flags that mean nothing here, if no branch comes in.
    undefined: u32,
    factory: &'f mut InstructionInfoFactory,
}

impl Draft<'_> {
    /// Adds one of `forms` and what it needs before.
    fn add(&mut self, forms: &[Form], chosen: usize, random: &mut Random) {
        let form = &forms[chosen];
        self.group += 1;
        if flow::is_about(form.code) {
            return self.branch(form, chosen, random);
        }
        for _ in 0..8 {
            let Some(mut instruction) = operands::fill(form, random, &self.known) else { continue };
            self.define(&instruction);
            if !self.prepare(&mut instruction, random) {
                continue;
            }
            self.push(instruction, Some(chosen));
            self.clean_up(&instruction);
            return;
        }
    }

    /// Gives the flags that `instruction` reads a meaning, should they have none.
    fn define(&mut self, instruction: &Instruction) {
        let wanted = reads(instruction) & self.undefined;
        if wanted & crate::sequence::ARITHMETIC != 0 {
            // All six are defined after a comparison.
            self.helper(Instruction::with2(Code::Cmp_AL_imm8, iced_x86::Register::AL, 0x55));
        }
        if wanted & !crate::sequence::ARITHMETIC != 0 {
            self.helper(Ok(Instruction::with(Code::Fxam)));
        }
    }

    /// Adds an instruction that only prepares the ground.
    fn helper(&mut self, made: Result<Instruction, iced_x86::IcedError>) {
        if let Ok(instruction) = made
            && (operands::encodes(&instruction))
        {
            self.push(instruction, None);
        }
    }

    /// Adds an instruction.
    fn push(&mut self, instruction: Instruction, form: Option<usize>) {
        self.known.pass(self.factory, &instruction);
        self.items.push(Item { instruction, target: None, group: self.group, form });
        self.undefined = crate::sequence::after(&instruction, self.undefined);
    }
}

/// Lets branches lead to the end at most, and never into the middle of another's preparations.
fn settle(items: Vec<Item>) -> Vec<Item> {
    let groups: Vec<u32> = items.iter().map(|item| item.group).collect();
    let whole = |target: usize, own: u32| {
        let mut at = target.min(groups.len());
        while 0 < at && at < groups.len() && groups[at] != own && groups[at] == groups[at - 1] {
            at += 1;
        }
        at
    };
    items
        .into_iter()
        .map(|item| Item { target: item.target.map(|at| whole(at, item.group)), ..item })
        .collect()
}

/// The registers at the start.
fn initial(random: &mut Random, family: Family) -> State {
    let mut state = State::initial();
    for value in &mut state.general {
        *value = match random.below(100) {
            0..=34 => values::address(random, 8, true, false),
            35..=49 => values::address(random, 8, false, true),
            50..=64 => random.below(70),
            _ => values::integer(random),
        };
    }
    // Away from the edges, mostly, and aligned, mostly.
    let stack = values::address(random, 8, false, true);
    let page = stack & !0xfff;
    let inside = page + 0x300 + random.below(0xa00);
    let stack = if random.percent(95) { inside } else { stack };
    state.general[4] = if random.percent(85) { stack & !7 } else { stack };
    let backwards = if family == Family::Strings { 40 } else { 8 };
    state.flags = 0x202 | random.bits() & 0x8d5 | if random.percent(backwards) { 0x400 } else { 0 };
    if matches!(family, Family::Sse | Family::SseLater | Family::Mmx | Family::X87)
        || random.percent(5)
    {
        state.floating = templates::floating(random);
    }
    state
}

/// Which data suits the family.
fn template(random: &mut Random, family: Family) -> usize {
    let flavour = match family {
        Family::Strings if random.percent(50) => 7,
        Family::Sse | Family::SseLater if random.percent(70) => random.pick(&[3, 4]),
        Family::Mmx if random.percent(30) => 3,
        Family::X87 if random.percent(70) => random.pick(&[3, 4, 5, 5, 6]),
        Family::Flow if random.percent(50) => 8,
        _ => random.index(10),
    };
    flavour + 10 * random.index(templates::COUNT / 10)
}
