//! Many sequences, both processors, and the account of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::compare::{Difference, differences};
use crate::generate::Generator;
use crate::generate::catalogue::Family;
use crate::layout::SLOTS;
use crate::native::{Native, NativeError};
use crate::report;
use crate::sequence::{Assembled, Sequence};
use crate::shrink::shrink;
use crate::soft::Soft;
use crate::state::{Ending, Input, Outcome};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Instructions.
    pub family: Family,
    /// Stream.
    pub seed: u64,
    /// First sequence; rounded down to a batch of [`SLOTS`] where several are run.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// This thread's share: every `jobs`th batch from the `job`th on.
    pub job: u64,
    /// How many threads share.
    pub jobs: u64,
    /// After so many mismatches there is nothing new to learn.
    pub enough: usize,
}

/// What one form saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Sequences in which it was reached, on the real processor, and the outcomes agreed.
    pub sequences: u64,
    /// Sequences in which the software processor said that it does not know it.
    pub unknown: u64,
}

impl Count {
    /// Adds another count of the same form.
    pub fn add(&mut self, other: Self) {
        self.sequences += other.sequences;
        self.unknown += other.unknown;
    }
}

/// What came of a [`Plan`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct Account {
    /// Sequences compared.
    pub compared: u64,
    /// Of these, ended by an exception on both sides.
    pub exceptions: u64,
    /// Not compared: the software processor does not know an instruction.
    pub unknown: u64,
    /// Not compared: the real processor did not come back, or its process died.
    pub skipped: u64,
    /// Not the same.
    pub mismatches: u64,
    /// By form (an index into [`Generator::forms`]).
    #[serde(skip)]
    pub forms: BTreeMap<usize, Count>,
    /// The first mismatches, shrunk, as text.
    pub reports: Vec<String>,
    /// Instructions the software processor did not know, with how often.
    pub unknown_names: BTreeMap<String, u64>,
}

impl Account {
    /// Adds another thread's.
    pub fn add(&mut self, other: Self) {
        self.compared += other.compared;
        self.exceptions += other.exceptions;
        self.unknown += other.unknown;
        self.skipped += other.skipped;
        self.mismatches += other.mismatches;
        self.reports.extend(other.reports);
        for (form, count) in other.forms {
            self.forms.entry(form).or_default().add(count);
        }
        for (name, count) in other.unknown_names {
            *self.unknown_names.entry(name).or_default() += count;
        }
    }
}

/// Both processors and a source of sequences.
#[derive(Debug)]
pub struct Bench {
    native: Native,
    soft: Soft,
    /// Makes the sequences.
    pub generator: Generator,
}

impl Bench {
    /// Starts both.
    ///
    /// # Errors
    ///
    /// [`NativeError`]: the host refuses the child process or memory.
    pub fn start() -> Result<Self, NativeError> {
        let mut soft = Soft::start()?;
        let generator = Generator::new(&soft.features());
        Ok(Self { native: Native::start()?, soft, generator })
    }

    /// Runs one sequence on both; nothing if it cannot be compared.
    fn both(
        &mut self,
        sequence: &Sequence,
    ) -> Option<(Assembled, Outcome, Outcome, Vec<Difference>)> {
        let code = sequence.assemble().ok()?;
        let native = self.native.run(&code.input).ok()?;
        let mut soft = Outcome::blank();
        self.soft.run(&code.input, &mut soft);
        if native.ending == Ending::Endless || soft.ending == Ending::Unknown {
            return None;
        }
        let found = differences(sequence, &code, &native, &soft);
        Some((code, native, soft, found))
    }

    /// Carries out a plan.
    ///
    /// # Errors
    ///
    /// [`NativeError`], if no new child can be started in place of one that died.
    pub fn run(&mut self, plan: &Plan) -> Result<Account, NativeError> {
        let mut account = Account::default();
        if self.generator.members(plan.family).is_empty() {
            return Ok(account);
        }
        let slots = SLOTS as u64;
        let end = plan.start + plan.count;
        let mut batch = plan.start / slots + plan.job;
        let mut outcomes: Vec<Outcome> = (0..SLOTS).map(|_| Outcome::blank()).collect();
        while batch * slots < end && account.reports.len() < plan.enough {
            let indices = (batch * slots).max(plan.start)..((batch + 1) * slots).min(end);
            batch += plan.jobs;
            let sequences: Vec<Sequence> = indices
                .clone()
                .map(|index| self.generator.sequence(plan.family, plan.seed, index))
                .collect();
            let codes: Vec<Assembled> =
                sequences.iter().filter_map(|each| each.assemble().ok()).collect();
            assert_eq!(codes.len(), sequences.len(), "the generator asks the encoder beforehand");
            self.one_batch(plan, indices.start, &sequences, &codes, &mut outcomes, &mut account)?;
        }
        Ok(account)
    }

    /// Both processors at the same time, then the comparison.
    fn one_batch(
        &mut self,
        plan: &Plan,
        first: u64,
        sequences: &[Sequence],
        codes: &[Assembled],
        outcomes: &mut [Outcome],
        account: &mut Account,
    ) -> Result<(), NativeError> {
        // The places of a batch are its sequences' own, so that a code's address follows from its number.
        let mut inputs: Vec<Input> = Vec::with_capacity(SLOTS);
        let offset = sequences.first().map_or(0, |sequence| sequence.slot);
        inputs.extend(codes.iter().map(|code| code.input.clone()));
        self.native.submit(&inputs)?;
        let mut remarks = Vec::with_capacity(inputs.len());
        for (place, input) in inputs.iter().enumerate() {
            self.soft.run(input, &mut outcomes[place]);
            remarks.push(std::mem::take(&mut self.soft.remark));
        }
        let mut failed = Vec::new();
        let collected = self.native.collect(|place, native| {
            let (sequence, code, soft) = (&sequences[place], &codes[place], &outcomes[place]);
            debug_assert_eq!(sequence.slot, offset + place);
            if native.ending == Ending::Endless {
                account.skipped += 1;
            } else if soft.ending == Ending::Unknown {
                account.unknown += 1;
                *account.unknown_names.entry(std::mem::take(&mut remarks[place])).or_default() += 1;
                if let Some(form) = form_at(sequence, code, soft) {
                    account.forms.entry(form).or_default().unknown += 1;
                }
            } else {
                account.compared += 1;
                if differences(sequence, code, native, soft).is_empty() {
                    account.exceptions += u64::from(native.ending != Ending::Finished);
                    for form in reached(sequence, code, native) {
                        account.forms.entry(form).or_default().sequences += 1;
                    }
                } else {
                    account.mismatches += 1;
                    failed.push(place);
                }
            }
        });
        match collected {
            Ok(()) => {}
            Err(NativeError::Died { .. }) => account.skipped += sequences.len() as u64,
            Err(other) => return Err(other),
        }
        for place in failed {
            if account.reports.len() < plan.enough {
                let report = self.explain(plan, first + place as u64, &sequences[place]);
                account.reports.push(report);
            }
        }
        Ok(())
    }

    /// Shrinks a mismatch and describes it.
    fn explain(&mut self, plan: &Plan, index: u64, sequence: &Sequence) -> String {
        let small = shrink(sequence, |candidate| {
            self.both(candidate).is_some_and(|(.., found)| !found.is_empty())
        });
        match self.both(&small) {
            Some((code, native, soft, found)) if !found.is_empty() => report::mismatch(
                plan.family,
                plan.seed,
                index,
                &small,
                &code,
                (&native, &soft),
                &found,
            ),
            _ => format!(
                "family {}, seed {}, sequence {index}: differs in its batch, and not alone\n",
                plan.family, plan.seed
            ),
        }
    }

    /// Describes one sequence and what both made of it, whether they agree or not.
    #[must_use]
    pub fn describe(&mut self, family: Family, seed: u64, index: u64) -> String {
        let sequence = self.generator.sequence(family, seed, index);
        match self.both(&sequence) {
            Some((code, native, soft, found)) => {
                report::mismatch(family, seed, index, &sequence, &code, (&native, &soft), &found)
            }
            None => format!("family {family}, seed {seed}, sequence {index}: cannot be compared\n"),
        }
    }
}

/// The form of the instruction at which the software processor stopped.
fn form_at(sequence: &Sequence, code: &Assembled, soft: &Outcome) -> Option<usize> {
    let base = crate::layout::code_of_slot(sequence.slot) + sequence.entry as u64;
    let offset = soft.state.rip.wrapping_sub(base);
    let at = code.offsets.iter().position(|start| *start as u64 == offset)?;
    sequence.items.get(at)?.form
}

/// The forms that were executed, or raised the exception: all up to where the sequence ended.
fn reached(sequence: &Sequence, code: &Assembled, native: &Outcome) -> impl Iterator<Item = usize> {
    let base = crate::layout::code_of_slot(sequence.slot) + sequence.entry as u64;
    let end = native.state.rip.wrapping_sub(base);
    let last = match native.ending {
        Ending::Finished => sequence.items.len(),
        _ => code.offsets.iter().position(|start| *start as u64 == end).map_or(0, |at| at + 1),
    };
    sequence.items.iter().take(last).filter_map(|item| item.form)
}
