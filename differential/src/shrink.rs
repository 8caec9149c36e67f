//! Making a failing sequence small: fewer instructions, then plainer values.

use crate::sequence::{Item, Sequence};
use crate::state::{FX_STACK, FX_XMM, FloatingState};
use crate::templates;

/// The smallest sequence this finds for which `fails` still says yes.
pub fn shrink(sequence: &Sequence, mut fails: impl FnMut(&Sequence) -> bool) -> Sequence {
    let mut best = sequence.clone();
    let mut try_it = |best: &mut Sequence, candidate: Sequence| {
        let is_sound = candidate.undefined().is_some() && candidate.assemble().is_ok();
        let is_worse = is_sound && fails(&candidate);
        if is_worse {
            *best = candidate;
        }
        is_worse
    };
    // Whole groups, then single instructions that only prepare, until nothing more can go.
    loop {
        let mut groups: Vec<u32> = best.items.iter().map(|item| item.group).collect();
        groups.dedup();
        let mut went = false;
        for group in groups {
            let candidate = without(&best, |item| item.group == group);
            went |= !candidate.items.is_empty() && try_it(&mut best, candidate);
        }
        if !went {
            break;
        }
    }
    plain_values(&mut best, &mut try_it);
    best
}

/// The sequence without some of its items.
fn without(sequence: &Sequence, drop: impl Fn(&Item) -> bool) -> Sequence {
    let kept_before: Vec<usize> = sequence
        .items
        .iter()
        .scan(0, |kept, item| {
            let before = *kept;
            *kept += usize::from(!drop(item));
            Some(before)
        })
        .collect();
    let total = sequence.items.iter().filter(|item| !drop(item)).count();
    let items = sequence
        .items
        .iter()
        .filter(|item| !drop(item))
        .map(|item| Item {
            target: item.target.map(|at| kept_before.get(at).copied().unwrap_or(total)),
            ..*item
        })
        .collect();
    Sequence { items, ..sequence.clone() }
}

/// Zeroes what can be zero.
fn plain_values(best: &mut Sequence, try_it: &mut impl FnMut(&mut Sequence, Sequence) -> bool) {
    let mut attempt = |best: &mut Sequence, change: &dyn Fn(&mut Sequence)| {
        let mut candidate = best.clone();
        change(&mut candidate);
        try_it(best, candidate);
    };
    attempt(best, &|sequence| sequence.template = templates::ZERO);
    attempt(best, &|sequence| sequence.entry = 0);
    attempt(best, &|sequence| sequence.state.flags = 0x202);
    attempt(best, &|sequence| sequence.state.floating = FloatingState::initial());
    for number in 0..16 {
        attempt(best, &|sequence| sequence.state.general[number] = 0);
        attempt(best, &|sequence| sequence.state.general[number] &= 0xff);
        attempt(best, &|sequence| sequence.state.floating.put(FX_XMM + 16 * number, &[0; 16]));
    }
    for number in 0..8 {
        attempt(best, &|sequence| sequence.state.floating.put(FX_STACK + 16 * number, &[0; 10]));
    }
    for bit in [0, 2, 4, 6, 7, 10, 11] {
        attempt(best, &|sequence| sequence.state.flags &= !(1 << bit));
    }
}
