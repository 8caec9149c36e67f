//! What only the software engine can: both layouts of the nested tables, checks on every use of a translation, and
//! the names of instructions that it does not know.

use std::fs;

use crate::engines::{Engine, cpus};
use crate::guests::{in_use, number, reported, storm};
use crate::support::{json, scratch, skep};

#[test]
fn guests_run_the_same_with_each_layout_of_the_nested_tables() {
    let _cpus = cpus();
    for who in ["hw", "emulated"] {
        for leaves in ["on", "off"] {
            let options = format!("--ad {who} --superpages {leaves}");
            let name = format!("{who}-{leaves}");
            let smp = format!("-c 4 -m 256 --guest smp --timeout 60 {options}");
            let (ran, _) = reported(Engine::Soft, &format!("smp-{name}"), &smp);
            assert_eq!(ran.status, 0, "{options}: {}", ran.stderr);
            assert_eq!(ran.stdout.lines().count(), 4, "{options}: {}", ran.stdout);
            let stormy = format!("-c 4 --guest storm --storm-invalidations 300 {options}");
            let (_, report) = storm(Engine::Soft, &format!("storm-{name}"), &stormy);
            assert!(in_use(&report) >= 300, "{options}: {}", report["storm"]);
        }
    }
}

#[test]
fn a_storm_of_which_every_use_of_a_translation_is_checked_ends_well() {
    let _cpus = cpus();
    for who in ["hw", "emulated"] {
        let words =
            format!("-c 4 --guest storm --storm-invalidations 300 --check-translations --ad {who}");
        let (_, report) = storm(Engine::Soft, &format!("checked-{who}"), &words);
        assert!(in_use(&report) >= 300, "{}", report["storm"]);
    }
}

#[test]
fn a_flush_that_forgets_nothing_is_caught_by_the_check() {
    let _cpus = cpus();
    let ran = skep(
        "run --engine soft -c 4 --guest storm --check-translations --test-switch skip-flush \
         --timeout 400",
    );
    assert_eq!(ran.status, 9, "{}", ran.stderr);
    let last = ran.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("skep: stale translation: vcpu "), "{}", ran.stderr);
    for words in ["cached at generation ", "the shootdown of generation ", "was complete"] {
        assert!(last.contains(words), "{words}: {last}");
    }
}

#[test]
fn a_flush_that_forgets_nothing_is_noticed_by_the_guest() {
    let _cpus = cpus();
    let ran = skep("run --engine soft -c 4 --guest storm --test-switch skip-flush --timeout 400");
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("the storm guest raised an alarm"), "{}", ran.stderr);
}

#[test]
fn an_instruction_that_the_engine_does_not_know_is_an_exception_and_named() {
    let _cpus = cpus();
    let (guest, report) = (scratch("unknown.bin"), scratch("unknown.json"));
    let code = [
        0xc7, 0x06, 0x18, 0x00, 0x0f,
        0x10, //  mov word [6 * 4], 0x100f     the handler of #UD
        0x0f, 0x0b, //                          ud2                          known, and wanted
        0x66, 0x0f, 0x38, 0xdc, 0xc1, //        aesenc xmm0, xmm1
        0xeb, 0xfe, //                          jmp $
        0xb0, 0x06, //                          mov al, 6                    at 0x100f
        0xe6, 0xf4, //                          out 0xf4, al
    ];
    // Without ud2: the exception is the unknown instruction's.
    let without = [&code[..6], &[0x90, 0x90], &code[8..]].concat();
    fs::write(&guest, without).expect("scratch file");
    let ran = skep(&format!("run --engine soft --kernel {guest} --timeout 60 --report {report}"));
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert!(ran.stderr.ends_with("the guest reported failure 6\n"), "{}", ran.stderr);
    let unknown = json(&report)["unimplemented"].as_object().cloned().expect("a table");
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    let (name, times) = unknown.iter().next().expect("one");
    assert!(name.starts_with("Aesenc"), "{name}");
    assert_eq!(number(times), 1);
    // What every processor refuses is no gap of this one.
    fs::write(&guest, code).expect("scratch file");
    let ran = skep(&format!("run --engine soft --kernel {guest} --timeout 60 --report {report}"));
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert_eq!(json(&report)["unimplemented"], serde_json::json!({}));
}
