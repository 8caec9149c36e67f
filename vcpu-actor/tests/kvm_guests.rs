//! Tiny guests on this host's KVM: what they do reaches whom it should, and nothing else happens.

mod support;

use actors::contract::boot::{EntryMode, EntryState};
use actors::contract::guest::{GuestEnd, GuestFault, Tidings};
use actors::contract::host::KvmPages;
use actors::{Gpa, Gva, VcpuId};
use support::{CODE, bare, deadline, kvm};
use vcpu_actor::engine::kvm::{Halts, KvmError, KvmVm};
use vcpu_actor::{KickKind, pause_all};

const MEMORY: usize = 256 << 10;

#[test]
fn a_byte_written_to_a_port_reaches_its_device() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_real(&[
        0xba, 0xf8, 0x03, //    mov  dx, 0x3f8
        0xb0, b'h', //          mov  al, 'h'
        0xee, //                out  dx, al
        0xb8, 0x34, 0x12, //    mov  ax, 0x1234
        0xef, //                out  dx, ax
        0xf4, //                hlt
    ]);
    assert_eq!(machine.hear(), b"h");
    assert_eq!(machine.hear(), [0x34, 0x12]);
    machine.retire();
}

#[test]
fn what_a_device_answers_reaches_the_guest() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_real(&[
        0xba, 0xf8, 0x03, //    mov  dx, 0x3f8
        0xec, //                in   al, dx         ; read number 0
        0xec, //                in   al, dx         ; read number 1
        0xee, //                out  dx, al
        0xe5, 0x80, //          in   ax, 0x80       ; nobody lives there
        0xef, //                out  dx, ax
        0xf4, //                hlt
    ]);
    assert_eq!(machine.hear(), [1]);
    assert_eq!(machine.hear(), [0xff, 0xff]);
    machine.retire();
}

#[test]
fn string_instructions_are_one_access_after_the_other() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_real(&[
        0xfc, //                cld
        0xba, 0xf8, 0x03, //    mov  dx, 0x3f8
        0xbf, 0x00, 0x50, //    mov  di, 0x5000
        0xb9, 0x05, 0x00, //    mov  cx, 5
        0xf3, 0x6c, //          rep insb            ; 0 1 2 3 4
        0xbe, 0x00, 0x50, //    mov  si, 0x5000
        0xb9, 0x02, 0x00, //    mov  cx, 2
        0xf3, 0x6f, //          rep outsw           ; 0 1, 2 3
        0x6e, //                outsb               ; 4
        0xf4, //                hlt
    ]);
    assert_eq!(machine.hear(), [0, 1]);
    assert_eq!(machine.hear(), [2, 3]);
    assert_eq!(machine.hear(), [4]);
    machine.retire();
}

#[test]
fn the_hole_for_devices_reads_all_ones_and_swallows_writes() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_real(&[
        0xb8, 0x00, 0x80, //        mov  ax, 0x8000
        0x8e, 0xd8, //              mov  ds, ax         ; memory ends at 0x40000
        0xa1, 0x00, 0x00, //        mov  ax, [0]
        0xba, 0xf8, 0x03, //        mov  dx, 0x3f8
        0xef, //                    out  dx, ax
        0x31, 0xc0, //              xor  ax, ax
        0xa3, 0x00, 0x00, //        mov  [0], ax
        0xa0, 0x00, 0x00, //        mov  al, [0]
        0xee, //                    out  dx, al
        0xf4, //                    hlt
    ]);
    assert_eq!(machine.hear(), [0xff, 0xff]);
    assert_eq!(machine.hear(), [0xff]);
    let handle = machine.vcpus[0].clone();
    machine.retire();
    let tally = handle.tally();
    assert_eq!((tally.mmio_accesses, tally.unclaimed_accesses), (3, 3));
    assert_eq!(tally.port_accesses, 2);
}

#[test]
fn beyond_memory_and_hole_there_is_nothing_to_touch() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, 2 << 20, KickKind::default());
    machine.run_user(&[
        0x8b, 0x04, 0x25, 0x08, 0x00, 0x20, 0x00, //    mov  eax, [0x200008]    ; at 5 GiB
        0xeb, 0xfe, //                                  jmp  $
    ]);
    let hole = GuestFault::Hole { vcpu: Some(VcpuId(0)), at: Gpa((5 << 30) + 8) };
    assert_eq!(machine.tiding(), Tidings::Faulted(hole));
    machine.retire();
}

#[test]
fn a_triple_fault_is_told_with_the_place() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, 2 << 20, KickKind::default());
    machine.run_user(&[
        0x90, //            nop
        0x0f, 0x0b, //      ud2                     ; and there is no handler for anything
    ]);
    match machine.tiding() {
        Tidings::Faulted(GuestFault::Triple { vcpu, .. }) => assert_eq!(vcpu, VcpuId(0)),
        other => panic!("{other:?}"),
    }
    machine.retire();
}

#[test]
fn memory_that_the_host_takes_away_ends_the_guest_and_is_told() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, 2 << 20, KickKind::default());
    machine.memory.forbid(0x5000);
    machine.run_user(&[
        0x89, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, //    mov  [0x5000], eax
        0xeb, 0xfe, //                                  jmp  $
    ]);
    match machine.tiding() {
        Tidings::Faulted(GuestFault::Engine { rip, what, .. }) => {
            assert_eq!(rip, support::USER_CODE);
            assert!(what.starts_with("the host refused an access"), "{what}");
        }
        other => panic!("{other:?}"),
    }
    machine.retire();
}

#[test]
fn a_guest_that_ends_itself_is_told_once_and_never_runs_again() {
    let Some(kvm) = kvm() else { return };
    for (code, end) in [(0, GuestEnd::PowerOff), (7, GuestEnd::Failed(7))] {
        let machine = bare(&kvm, 1, MEMORY, KickKind::default());
        machine.run_real(&[
            0xb0, code, //          mov  al, code
            0xe6, 0xf4, //          out  0xf4, al
            0xba, 0xf8, 0x03, //    mov  dx, 0x3f8
            0xee, //                out  dx, al
            0xf4, //                hlt
        ]);
        let by = VcpuId(0);
        assert_eq!(machine.tiding(), Tidings::Ended { by, end });
        machine.vcpus[0].run().unwrap();
        let parked = machine.vcpus[0].pause().unwrap();
        assert_eq!(parked.blocking_recv().unwrap().vcpu, by);
        assert!(machine.said.is_empty(), "the guest went on");
        assert!(machine.tidings.is_empty(), "told twice");
        machine.retire();
    }
}

#[test]
fn a_parked_vcpu_shows_the_registers_of_whole_instructions() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_real(&[
        0xba, 0xf8, 0x03, //    mov  dx, 0x3f8
        0xee, //                out  dx, al
        0xeb, 0xfd, //          jmp  $ - 1          ; to the out
    ]);
    machine.hear();
    for _ in 0..20 {
        pause_all(&machine.vcpus).wait(deadline()).unwrap();
        let looks = machine.vcpus[0].look().unwrap().blocking_recv().unwrap();
        let at = looks.rip.0 - CODE;
        // Either instruction may be next, but none is half done.
        assert!(at == 3 || at == 4, "stopped at {at:#x}");
        assert_eq!((looks.rsp, looks.cr3), (Gva(0x800), Gpa(0)));
        assert_eq!(looks.rflags & 2, 2);
        machine.vcpus[0].run().unwrap();
    }
    machine.retire();
}

#[test]
fn a_running_vcpu_lets_the_question_for_its_looks_fall() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, 2 << 20, KickKind::default());
    machine.run_user(support::COUNT);
    machine.await_progress(&[0]);
    let question = machine.vcpus[0].look().unwrap();
    assert!(question.blocking_recv().is_err());
    machine.retire();
}

#[test]
fn registers_are_taken_before_the_first_run_only() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, 2 << 20, KickKind::default());
    machine.run_user(support::COUNT);
    let again = EntryState {
        mode: EntryMode::Real { segment: 0 },
        rip: Gva(CODE),
        rsp: Gva(0),
        rsi: 0,
        rbx: 0,
        rflags: 2,
    };
    let refused = machine.vcpus[0].begin(again).unwrap();
    let why = refused.blocking_recv().unwrap().unwrap_err();
    assert!(why.contains("vcpu 0 has begun already"), "{why}");
    machine.retire();
}

#[test]
fn another_processor_starts_when_the_first_one_says_so() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 2, MEMORY, KickKind::default());
    machine.memory.write(
        0x2000,
        &[
            0xba, 0xf8, 0x03, //    mov  dx, 0x3f8
            0xb0, b'2', //          mov  al, '2'
            0xee, //                out  dx, al
            0xf4, //                hlt
        ],
    );
    machine.memory.write(
        CODE,
        &[
            0xbb, 0x00, 0x03, 0xe0, 0xfe, //                mov  ebx, 0xfee00300    ; ICR, low
            0xc7, 0x43, 0x10, 0x00, 0x00, 0x00, 0x01, //    mov  dword [ebx+16], 1 << 24
            0xc7, 0x03, 0x00, 0x45, 0x00, 0x00, //          mov  dword [ebx], 0x4500 ; INIT
            0xc7, 0x03, 0x02, 0x46, 0x00,
            0x00, //          mov  dword [ebx], 0x4602 ; SIPI 0x2000
            0xf4, //                                        hlt
        ],
    );
    machine.begin(
        0,
        EntryState {
            mode: EntryMode::Protected,
            rip: Gva(CODE),
            rsp: Gva(0x800),
            rsi: 0,
            rbx: 0,
            rflags: 2,
        },
    );
    machine.vcpus[1].run().unwrap();
    machine.vcpus[0].run().unwrap();
    assert_eq!(machine.hear(), b"2");
    // One is halted and one was: both are asleep in the kernel, and both come out.
    pause_all(&machine.vcpus).wait(deadline()).unwrap();
    machine.retire();
}

#[test]
fn a_processor_that_nobody_starts_sleeps_and_comes_out_when_told() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 2, MEMORY, KickKind::default());
    for _ in 0..10 {
        machine.vcpus[1].run().unwrap();
        let parked = machine.vcpus[1].pause().unwrap();
        assert_eq!(parked.blocking_recv().unwrap().vcpu, VcpuId(1));
    }
    machine.retire();
}

#[test]
fn a_pulled_interrupt_line_wakes_a_halted_guest() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    let line = machine.vm.irq_line(4).unwrap();
    // The vector of interrupt 4 (8 + 4, four bytes each) leads to 0x3000.
    machine.memory.write(0x30, &[0x00, 0x30, 0x00, 0x00]);
    machine.memory.write(
        0x3000,
        &[
            0x50, //                push ax
            0xba, 0xf8, 0x03, //    mov  dx, 0x3f8
            0xb0, b'!', //          mov  al, '!'
            0xee, //                out  dx, al
            0xb0, 0x20, //          mov  al, 0x20
            0xe6, 0x20, //          out  0x20, al       ; end of interrupt
            0x58, //                pop  ax
            0xcf, //                iret
        ],
    );
    machine.run_real(&[
        0xb0, 0x11, 0xe6, 0x20, //  the controller: initialise,
        0xb0, 0x08, 0xe6, 0x21, //  vectors from 8,
        0xb0, 0x04, 0xe6, 0x21, //  the second one on line 2,
        0xb0, 0x01, 0xe6, 0x21, //  8086 mode,
        0xb0, 0xef, 0xe6, 0x21, //  only line 4 open
        0xba, 0xf8, 0x03, //        mov  dx, 0x3f8
        0xb0, b'.', 0xee, //        "."
        0xfb, //            again:  sti
        0xf4, //                    hlt
        0xeb, 0xfc, //              jmp  again
    ]);
    assert_eq!(machine.hear(), b".");
    for _ in 0..3 {
        line.pulse();
        assert_eq!(machine.hear(), b"!");
    }
    machine.retire();
}

#[test]
fn impossible_numbers_of_vcpus_are_refused() {
    let Some(kvm) = kvm() else { return };
    let halts = Halts::SleepInTheKernel;
    assert_eq!(KvmVm::create(&kvm, 0, halts).unwrap_err(), KvmError::NoVcpus);
    let most = kvm.facts().max_vcpus;
    let asked = u16::try_from(most + 1).unwrap();
    assert_eq!(
        KvmVm::create(&kvm, asked, halts).unwrap_err(),
        KvmError::TooManyVcpus { asked, most }
    );
}

#[test]
fn what_the_kernel_refuses_is_named() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    let twice = machine.vm.create_vcpu(VcpuId(0)).unwrap_err();
    assert!(twice.to_string().starts_with("KVM refused to create vcpu 0: "));
    let nowhere = machine.vm.irq_line(24).err().unwrap();
    assert!(nowhere.to_string().contains("connect interrupt 24"));
    machine.retire();
}

#[test]
fn kvm_counts_what_it_maps_and_maps_nothing_of_a_guest_that_never_ran() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    let Some(stats) = machine.vm.stats() else {
        eprintln!("not tested here: this KVM counts nothing (Linux 5.14 does)");
        return machine.retire();
    };
    let nothing = KvmPages { pages_4k: 0, pages_2m: 0, pages_1g: 0 };
    assert_eq!(stats.pages().unwrap(), nothing);
    machine.retire();
}

#[test]
fn halted_vcpus_can_be_made_to_stay_where_the_host_allows_it() {
    let Some(kvm) = kvm() else { return };
    let created = KvmVm::create(&kvm, 1, Halts::OccupyTheCpu);
    match (kvm.facts().can_disable_halt_exits, created) {
        (true, Ok(vm)) => drop(vm.create_vcpu(VcpuId(0)).unwrap()),
        (false, Err(KvmError::Refused { what, .. })) => assert!(what.contains("stay")),
        (can, other) => panic!("can: {can}, did: {other:?}"),
    }
}
