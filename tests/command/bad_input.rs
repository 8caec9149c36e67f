//! Each mistake gets one clear sentence on stderr, nothing on stdout, and its own status.

use std::fs;

use crate::support::{kvm, scratch, skep};

/// What was typed, the status, and what the sentence says.
fn refused(words: &str, status: i32, says: &str) {
    let ran = skep(words);
    assert_eq!(ran.status, status, "{words}: {}", ran.stderr);
    assert!(ran.stderr.contains(says), "{words}: {}", ran.stderr);
    assert_eq!(ran.stdout, "", "{words}");
    let sentences =
        ran.stderr.lines().filter(|line| line.starts_with("skep: ") && line.contains(says));
    assert!(status == 2 || sentences.count() == 1, "{words}: {}", ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{words}: {}", ran.stderr);
}

#[test]
fn memory_that_makes_no_sense_is_refused() {
    refused("run --guest hello -m 0", 2, "a guest needs memory");
    refused("run --guest hello -m abc", 2, "is not a memory size");
    refused("run --guest hello -m 99999999T", 2, "more bytes than 64 bits can count");
    refused("run --guest hello -m 300000G", 2, "48 bits of guest-physical address");
}

#[test]
fn the_old_option_names_its_successor() {
    refused("run --guest hello -M 512", 2, "with -m");
    refused("run --guest hello -M", 2, "with -m");
}

#[test]
fn nothing_to_boot_and_guests_that_are_not_there_are_refused() {
    refused("run", 2, "--kernel");
    refused("run --guest nope", 2, "hello, smp, storm");
    refused("run --guest hello --kernel x", 2, "cannot be used with");
}

#[test]
fn vcpus_that_kvm_does_not_have_are_refused() {
    let Some(_cpus) = kvm() else { return };
    refused("run --guest hello -c 0", 2, "at least one vcpu");
    refused("run --guest hello -c 65535", 2, "65535 vcpus were asked for");
}

#[test]
fn memory_that_the_host_does_not_have_is_refused() {
    let Some(_cpus) = kvm() else { return };
    refused("run --guest hello -m 200T", 11, "no room for");
    refused("run --guest hello -m 900G -S", 11, "cannot be wired (-S)");
}

#[test]
fn more_memory_than_the_host_has_is_allowed_and_said() {
    let Some(_cpus) = kvm() else { return };
    let ran = skep("run --guest hello -m 900G --timeout 60");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("what the guest touches must fit"), "{}", ran.stderr);
}

#[test]
fn kernels_and_initrds_that_are_none_are_refused_by_name() {
    let Some(_cpus) = kvm() else { return };
    let (empty, garbage, cut) = (scratch("empty"), scratch("garbage"), scratch("cut-elf"));
    fs::write(&empty, []).expect("scratch file");
    fs::write(&garbage, [0x5a; 4096]).expect("scratch file");
    fs::write(&cut, b"\x7fELF\x02\x01\x01").expect("scratch file");
    refused("run --kernel /nonexistent", 10, "/nonexistent");
    refused("run --kernel /dev/zero", 10, "not a file");
    refused(&format!("run --kernel {empty}"), 10, "is empty");
    refused(&format!("run --kernel {garbage}"), 10, "neither a Linux bzImage nor an ELF");
    refused(&format!("run --kernel {cut}"), 10, "cut-elf");
}

#[test]
fn files_that_cannot_be_written_are_refused_before_anything_runs() {
    let Some(_cpus) = kvm() else { return };
    refused("run --guest hello --report /nonexistent/r.json", 1, "/nonexistent/r.json");
    refused("run --guest hello --trace /nonexistent/t.jsonl", 1, "/nonexistent/t.jsonl");
}

#[test]
fn guests_that_cannot_go_on_say_where_and_why() {
    let Some(_cpus) = kvm() else { return };
    let flat = |name: &str, code: &[u8]| {
        let path = scratch(&format!("{name}.bin"));
        fs::write(&path, code).expect("scratch file");
        path
    };
    // xor eax, eax; inc ax; lidt [0x7000] (an empty table); mov cr0, eax; ud2
    let code = [0x66, 0x31, 0xc0, 0x40, 0x0f, 0x01, 0x1e, 0x00, 0x70, 0x0f, 0x22, 0xc0, 0x0f, 0x0b];
    let triple = flat("triple", &code);
    refused(&format!("run --kernel {triple} --timeout 60"), 4, "triple fault");
    // mov al, 7; out 0xf4, al
    let failed = flat("failed", &[0xb0, 0x07, 0xe6, 0xf4]);
    refused(&format!("run --kernel {failed} --timeout 60"), 5, "the guest reported failure 7");
    // mov al, 6; mov dx, 0xcf9; out dx, al
    let reset = flat("reset", &[0xb0, 0x06, 0xba, 0xf9, 0x0c, 0xee]);
    refused(&format!("run --kernel {reset} --timeout 60"), 3, "asked for a reset");
    // jmp $
    let endless = flat("endless", &[0xeb, 0xfe]);
    refused(&format!("run --kernel {endless} --timeout 1"), 6, "did not end within 1 s");
}
