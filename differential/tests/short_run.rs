//! A short run of every family: the same sequences each time.

use differential::campaign::{Bench, Plan};
use differential::generate::catalogue::Family;
use differential::native::Native;
use differential::sequence::Sequence;
use differential::soft::Soft;
use differential::state::{Ending, Outcome};

/// Sequences of each family.
const COUNT: u64 = 2_000;

fn agrees(family: Family) {
    let mut bench = Bench::start().expect("a child process and a guest");
    if bench.generator.members(family).is_empty() {
        eprintln!(
            "skipped: this host or the software processor has none of the {family} instructions"
        );
        return;
    }
    let plan = Plan { family, seed: 2026, start: 0, count: COUNT, job: 0, jobs: 1, enough: 3 };
    let account = bench.run(&plan).expect("the child process lives, or is replaced");
    assert_eq!(account.mismatches, 0, "\n{}", account.reports.join("\n"));
    assert_eq!(account.unknown, 0, "unknown: {:?}", account.unknown_names);
    assert!(
        account.compared > COUNT * 9 / 10,
        "only {} of {COUNT} were compared",
        account.compared
    );
}

macro_rules! families {
    ($($name:ident $family:ident;)*) => {$(
        #[test]
        fn $name() {
            agrees(Family::$family);
        }
    )*};
}

families! {
    integer_instructions_agree Integer;
    shifts_and_rotates_agree Shifts;
    multiplications_and_divisions_agree Multiply;
    bit_instructions_agree Bits;
    string_instructions_agree Strings;
    stack_and_branches_agree Flow;
    locked_operations_agree Atomics;
    sse_and_sse2_agree Sse;
    later_sse_agrees SseLater;
    later_bit_instructions_agree BitsLater;
    mmx_agrees Mmx;
    x87_agrees X87;
    what_user_mode_may_not_do_is_refused_alike Refused;
}

/// A sequence and what the two processors make of it.
fn both(sequence: &Sequence) -> (Outcome, Outcome) {
    let code = sequence.assemble().expect("it encodes");
    let native = Native::start().expect("a child process").run(&code.input).expect("it lives");
    let mut soft = Outcome::blank();
    Soft::start().expect("a guest").run(&code.input, &mut soft);
    (native, soft)
}

#[test]
fn a_wrong_result_is_found_and_made_small() {
    let mut bench = Bench::start().expect("a child process and a guest");
    // The tester must see a difference in any part of the outcome.
    let sequence = (0..)
        .map(|index| bench.generator.sequence(Family::Integer, 7, index))
        .find(|sequence| both(sequence).0.ending == Ending::Finished)
        .expect("most sequences reach their end");
    let code = sequence.assemble().expect("it encodes");
    let (native, soft) = both(&sequence);
    let found =
        |soft: &Outcome| differential::compare::differences(&sequence, &code, &native, soft);
    assert_eq!(found(&soft), []);
    let spoil: [fn(&mut Outcome); 6] = [
        |outcome| outcome.state.general[15] ^= 1 << 40,
        |outcome| outcome.data[4095] ^= 1,
        |outcome| outcome.state.flags ^= 1 << 10,
        |outcome| outcome.state.floating.0[160 + 255] ^= 0x80,
        |outcome| outcome.state.floating.0[0] ^= 1,
        |outcome| outcome.ending = Ending::Exception { vector: 14, error: 6, address: 8 },
    ];
    for change in spoil {
        let mut wrong = soft.clone();
        change(&mut wrong);
        assert!(!found(&wrong).is_empty());
    }
    let small = differential::shrink::shrink(&sequence, |candidate| !candidate.items.is_empty());
    assert_eq!(small.items.len(), 1);
    assert_eq!(small.state.general, [0; 16]);
}

#[test]
fn a_sequence_follows_from_its_family_seed_and_number() {
    let mut first = Bench::start().expect("a child process and a guest");
    let mut second = Bench::start().expect("a child process and a guest");
    for family in Family::ALL {
        if first.generator.members(family).is_empty() {
            continue;
        }
        for index in [0, 63, 64, 1_000_000] {
            let code = |bench: &mut Bench| {
                let sequence = bench.generator.sequence(family, 3, index);
                (sequence.assemble().expect("it encodes").input.code, sequence.state)
            };
            assert_eq!(code(&mut first), code(&mut second), "{family} {index}");
        }
    }
}

#[test]
fn code_that_never_ends_is_given_up_on_both_sides() {
    let mut bench = Bench::start().expect("a child process and a guest");
    let mut sequence = bench.generator.sequence(Family::Integer, 1, 0);
    let mut jump = iced_x86::Instruction::default();
    jump.set_code(iced_x86::Code::Jmp_rel8_64);
    jump.set_op0_kind(iced_x86::OpKind::NearBranch64);
    sequence.items.truncate(1);
    sequence.items[0].instruction = jump;
    sequence.items[0].target = Some(0);
    let (native, soft) = both(&sequence);
    assert_eq!((native.ending, soft.ending), (Ending::Endless, Ending::Endless));
}

#[test]
fn a_system_call_ends_the_child_and_nothing_else() {
    let mut native = Native::start().expect("a child process");
    let mut input = differential::state::Input {
        slot: 0,
        entry: 0,
        code: vec![0x0f, 0x05],
        state: differential::state::State::initial(),
        template: 0,
    };
    input.state.general[0] = 39;
    assert!(native.run(&input).is_err(), "getpid is not allowed");
    input.code = vec![0x90];
    assert_eq!(native.run(&input).expect("there is a new child").ending, Ending::Finished);
    assert!(native.is_sane().expect("it still works"));
}
