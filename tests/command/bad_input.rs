//! Each mistake gets one clear sentence on stderr, nothing on stdout, and its own status.

use std::fs;

use crate::engines::{Engine, Observed, kvm, on_every_engine};
use crate::support::{scratch, skep};

/// What was typed, the status, and what the sentence says.
fn refused(words: &str, status: i32, says: &str) -> Observed {
    let ran = skep(words);
    assert_eq!(ran.status, status, "{words}: {}", ran.stderr);
    assert!(ran.stderr.contains(says), "{words}: {}", ran.stderr);
    assert_eq!(ran.stdout, "", "{words}");
    let sentences =
        ran.stderr.lines().filter(|line| line.starts_with("skep: ") && line.contains(says));
    assert!(status == 2 || sentences.count() == 1, "{words}: {}", ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{words}: {}", ran.stderr);
    ran.observed()
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
    refused("run --engine kvm --guest hello -c 0", 2, "at least one vcpu");
    refused("run --engine kvm --guest hello -c 65535", 2, "65535 vcpus were asked for");
}

#[test]
fn vcpus_that_the_software_engine_does_not_have_are_refused() {
    refused("run --engine soft --guest hello -c 0", 2, "1 to 255 vcpus, and 0 were asked for");
    refused("run --engine soft --guest hello -c 256", 2, "256 were asked for");
    refused("run --engine soft --guest hello -c 65535", 2, "65535 were asked for");
}

#[test]
fn an_engine_refuses_by_name_what_it_cannot_do() {
    refused("run --engine kvm --guest smp --ad hw", 2, "the kvm engine cannot do that: --ad hw");
    refused(
        "run --engine kvm --guest smp --check-translations",
        2,
        "the kvm engine cannot do that: --check-translations",
    );
    refused(
        "run --engine kvm --guest storm --test-switch skip-flush",
        2,
        "the kvm engine cannot do that",
    );
    refused(
        "run --engine soft --guest storm --shootdown kernel",
        2,
        "the soft engine cannot do that: --shootdown kernel",
    );
    refused(
        "run --engine soft --guest storm --test-switch keep-host-mappings",
        2,
        "the soft engine cannot do that: stale host mappings",
    );
    refused("run --guest storm --shootdown kernel --ad hw", 2, "no engine does both");
}

#[test]
fn paging_that_makes_no_sense_is_refused_by_the_names_of_its_options() {
    let run = "run --guest hello";
    let swap = scratch("unused.swap");
    refused(&format!("{run} --resident lots"), 2, "--resident: \"lots\" is not a memory size");
    refused(&format!("{run} -m 64 --resident 65M"), 2, "would limit nothing");
    refused(&format!("{run} --resident 4M"), 2, "5242880 is the least");
    refused(&format!("{run} -c 4 --resident 6M"), 2, "too few for 4 vcpus: 8388608 is the least");
    refused(&format!("{run} --resident 8190K"), 2, "not whole 4 KiB pages");
    refused(&format!("{run} -S --resident 128M"), 2, "-S keeps all 268435456 bytes");
    refused(&format!("{run} -S --swap {swap}"), 2, "-S keeps all memory resident");
    refused(&format!("{run} --swap ,size=1M"), 2, "names no file");
    refused(&format!("{run} --swap {swap},sise=1M"), 2, "a comma without \"size=\"");
    refused(&format!("{run} --swap {swap},size=0"), 2, "no room");
    refused(&format!("{run} --swap {swap},size=6K"), 2, "not whole 4 KiB pages");
    refused(&format!("{run} --swap {swap},size=2T"), 2, "more than 268435456 pages");
    refused(&format!("{run} --harvest-every 0"), 2, "--harvest-every");
    assert!(!fs::exists(&swap).expect("a look"), "a refused run made {swap}");
}

#[test]
fn reserved_huge_pages_with_what_they_cannot_do_are_refused_by_the_names_of_both_options() {
    let run = "run --guest hello --huge-pages reserved";
    let swap = scratch("unused-reserved.swap");
    for (other, says) in [
        (format!("--swap {swap}"), format!("would ever go to --swap {swap}")),
        ("--resident 64M".to_owned(), "--resident allows 67108864".to_owned()),
        ("--superpages off".to_owned(), "--superpages off maps".to_owned()),
        ("--harvest-every 100".to_owned(), "--harvest-every looks".to_owned()),
        ("-m 3M".to_owned(), "-m 3145728 bytes are not a multiple".to_owned()),
    ] {
        let observed = refused(&format!("{run} {other}"), 2, &says);
        assert!(observed.says("--huge-pages reserved"), "{observed:?}");
    }
    assert!(!fs::exists(&swap).expect("a look"), "a refused run made {swap}");
    for guest in ["storm", "storm0", "tour"] {
        let run = format!("run --guest {guest} --huge-pages reserved");
        refused(&run, 2, "--huge-pages reserved");
    }
    refused("run --guest storm -S", 2, "-S keeps them");
    refused("run --guest hello --huge-pages gigantic", 2, "transparent, reserved");
}

#[test]
fn reserved_huge_pages_that_no_host_has_are_missed_at_the_start_and_counted() {
    on_every_engine(|engine| {
        let run = format!("run --engine {engine} --guest hello --huge-pages reserved -m 200T");
        let observed = refused(&run, 11, "--huge-pages reserved: ");
        // How many the guest needs; or that this kernel has no such pages at all.
        let counted = observed
            .says("needs 104857600 reserved huge pages of 2 MiB and the host has ")
            && observed.says(" to spare: sudo sysctl vm.nr_hugepages=");
        assert!(counted || observed.says("this kernel has no reserved huge pages"), "{observed:?}");
    });
}

#[test]
fn a_swap_file_that_cannot_be_one_is_refused_before_anything_runs() {
    let directory = env!("CARGO_TARGET_TMPDIR");
    on_every_engine(|engine| {
        let run = format!("run --engine {engine} --guest hello --swap");
        [
            refused(&format!("{run} {directory}"), 1, "is a directory"),
            refused(&format!("{run} /dev/null"), 1, "neither a regular file"),
            refused(&format!("{run} /nonexistent/swap"), 1, "/nonexistent/swap cannot be written"),
        ]
    });
}

#[test]
fn memory_that_the_host_does_not_have_is_refused() {
    on_every_engine(|engine| {
        let run = format!("run --engine {engine} --guest hello");
        refused(&format!("{run} -m 200T"), 11, "no room for");
        refused(&format!("{run} -m 900G -S"), 11, "cannot be wired (-S)");
    });
}

#[test]
fn more_memory_than_the_host_has_is_allowed_and_said() {
    on_every_engine(|engine| {
        let ran = skep(&format!("run --engine {engine} --guest hello -m 900G --timeout 60"));
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stderr.contains("what the guest touches must fit"), "{}", ran.stderr);
        ran.observed()
    });
}

#[test]
fn kernels_and_initrds_that_are_none_are_refused_by_name() {
    let (empty, garbage, cut) = (scratch("empty"), scratch("garbage"), scratch("cut-elf"));
    fs::write(&empty, []).expect("scratch file");
    fs::write(&garbage, [0x5a; 4096]).expect("scratch file");
    fs::write(&cut, b"\x7fELF\x02\x01\x01").expect("scratch file");
    on_every_engine(|engine| {
        let kernel = format!("run --engine {engine} --kernel");
        [
            refused(&format!("{kernel} /nonexistent"), 10, "/nonexistent"),
            refused(&format!("{kernel} /dev/zero"), 10, "not a file"),
            refused(&format!("{kernel} {empty}"), 10, "is empty"),
            refused(&format!("{kernel} {garbage}"), 10, "neither a Linux bzImage nor an ELF"),
            refused(&format!("{kernel} {cut}"), 10, "cut-elf"),
        ]
    });
}

#[test]
fn files_that_cannot_be_written_are_refused_before_anything_runs() {
    on_every_engine(|engine| {
        let run = format!("run --engine {engine} --guest hello");
        [
            refused(&format!("{run} --report /nonexistent/r.json"), 1, "/nonexistent/r.json"),
            refused(&format!("{run} --trace /nonexistent/t.jsonl"), 1, "/nonexistent/t.jsonl"),
        ]
    });
}

#[test]
fn guests_that_cannot_go_on_say_where_and_why() {
    let flat = |name: &str, code: &[u8]| {
        let path = scratch(&format!("{name}.bin"));
        fs::write(&path, code).expect("scratch file");
        path
    };
    // xor eax, eax; inc ax; lidt [0x7000] (an empty table); mov cr0, eax; ud2
    let code = [0x66, 0x31, 0xc0, 0x40, 0x0f, 0x01, 0x1e, 0x00, 0x70, 0x0f, 0x22, 0xc0, 0x0f, 0x0b];
    let triple = flat("triple", &code);
    // mov al, 7; out 0xf4, al
    let failed = flat("failed", &[0xb0, 0x07, 0xe6, 0xf4]);
    // mov al, 6; mov dx, 0xcf9; out dx, al
    let reset = flat("reset", &[0xb0, 0x06, 0xba, 0xf9, 0x0c, 0xee]);
    // jmp $
    let endless = flat("endless", &[0xeb, 0xfe]);
    on_every_engine(|engine| {
        let kernel = format!("run --engine {engine} --kernel");
        let tripled = refused(&format!("{kernel} {triple} --timeout 60"), 4, "triple fault");
        // Where it happened is known exactly only to an engine that executes instructions itself.
        assert!(engine == Engine::Kvm || tripled.says("at rip 0x100c"), "{tripled:?}");
        [
            refused(&format!("{kernel} {failed} --timeout 60"), 5, "the guest reported failure 7"),
            refused(&format!("{kernel} {reset} --timeout 60"), 3, "asked for a reset"),
            refused(&format!("{kernel} {endless} --timeout 1"), 6, "did not end within 1 s"),
        ]
    });
}
