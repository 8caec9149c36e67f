//! Whole runs, short.

use super::*;

fn args(only: &str, rounds: usize) -> InterpArgs {
    InterpArgs {
        only: only.split(',').map(str::to_owned).collect(),
        rounds,
        milliseconds: 1,
        boot: None,
        initrd: None,
        line: String::new(),
        output: crate::cli::OutputArgs::default(),
    }
}

#[test]
fn a_short_run_measures_the_loops_that_were_asked_for_and_no_others() {
    let _turn = crate::ONE_AT_A_TIME.lock();
    let report = run(&args("a1,b2", 1)).unwrap();
    let names: Vec<_> = report.loops.iter().map(|told| told.name).collect();
    assert_eq!(names, ["a1", "b2"]);
    for told in &report.loops {
        let native = told.figures.iter().find(|figure| figure.column == "native").unwrap();
        assert!(native.value > 0.0 && native.rounds == 1, "{native:?}");
        assert!(native.ns_lowest <= native.ns_per_iteration);
        assert!(native.ns_per_iteration <= native.ns_highest);
    }
    let text = render(&report);
    assert!(text.contains("native") && text.contains("pointer chase, 8 pages"), "{text}");
}

#[test]
fn a_loop_that_does_not_exist_is_refused_with_the_names_of_those_that_do() {
    let refused = check(&args("a1,z9", 1)).unwrap_err().to_string();
    assert!(refused.contains("z9") && refused.contains("b4"), "{refused}");
    assert!(check(&args("a1,c2'", 1)).is_ok());
}

#[test]
fn native_loops_leave_memory_as_their_descriptions_say() {
    let mut native = native::Native::new().unwrap();
    for row in rows::all() {
        let done = native.run(&row, 3).unwrap();
        assert_eq!(done.is_some(), row.blob_index().is_some(), "{}", row.name);
    }
}
