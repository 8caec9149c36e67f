//! Orders to vcpus that are busy in the guest: none is lost, none waits for ever.

mod support;

use std::sync::atomic::Ordering;
use std::time::Instant;

use actors::ActorName;
use actors::VcpuId;
use actors::contract::guest::Tidings;
use actors::contract::vcpu::Break;
use actors::threads::Ending;
use shootdown::{SeatId, Whom};
use support::{Bare, COUNT, PATIENCE, bare, bare_with, deadline, kvm, skipped};
use vcpu_actor::engine::kvm::Halts;
use vcpu_actor::{KickKind, OrderError, pause_all, run_all};

const MEMORY: usize = 2 << 20;
const KINDS: [KickKind; 2] = [KickKind::Handler, KickKind::Mask];

/// Pauses and resumes busy vcpus again and again: each time all come out, none moves while it is
/// out, and in the end all have moved.
fn pause_and_resume(vcpus: u16, times: u32, kick: KickKind) {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, vcpus, MEMORY, kick);
    machine.run_user(COUNT);
    machine.await_progress(&vec![0; vcpus.into()]);
    for round in 0..times {
        pause_all(&machine.vcpus).wait(deadline()).unwrap();
        let parked = machine.counts();
        std::thread::yield_now();
        assert_eq!(machine.counts(), parked, "a parked vcpu moves");
        run_all(&machine.vcpus).unwrap();
        // On an overcommitted host this costs a turn of its scheduler.
        if round % 8 == 0 {
            machine.await_any_progress(&parked);
        }
    }
    let before = machine.counts();
    machine.await_progress(&before);
    machine.retire();
}

#[test]
fn two_busy_vcpus_come_out_a_thousand_times() {
    for kick in KINDS {
        pause_and_resume(2, 1000, kick);
    }
}

#[test]
fn four_busy_vcpus_come_out_a_thousand_times() {
    pause_and_resume(4, 1000, KickKind::default());
}

#[test]
fn a_guest_at_level_0_comes_out_too() {
    let Some(kvm) = kvm() else { return };
    for kick in KINDS {
        let machine = bare(&kvm, 1, MEMORY, kick);
        machine.run_real(&[
            0xeb, 0xfe, //      jmp  $
        ]);
        for _ in 0..20 {
            pause_all(&machine.vcpus).wait(deadline()).unwrap();
            run_all(&machine.vcpus).unwrap();
        }
        machine.retire();
    }
}

#[test]
fn a_halted_guest_comes_out_too() {
    let Some(kvm) = kvm() else { return };
    for kick in KINDS {
        let machine = bare(&kvm, 1, MEMORY, kick);
        machine.run_real(&[
            0xf4, //            hlt
        ]);
        for _ in 0..20 {
            pause_all(&machine.vcpus).wait(deadline()).unwrap();
            run_all(&machine.vcpus).unwrap();
        }
        machine.retire();
    }
}

#[test]
fn a_vcpu_that_halts_on_its_cpu_comes_out_too() {
    let Some(kvm) = kvm() else { return };
    if !kvm.facts().can_disable_halt_exits {
        return skipped(&"this KVM cannot let a halted vcpu stay on its cpu");
    }
    let machine = bare_with(&kvm, 1, MEMORY, KickKind::default(), Halts::OccupyTheCpu);
    machine.run_real(&[
        0xba, 0xf8, 0x03, //    mov  dx, 0x3f8
        0xee, //                out  dx, al
        0xf4, //                hlt
    ]);
    machine.hear();
    for _ in 0..20 {
        pause_all(&machine.vcpus).wait(deadline()).unwrap();
        run_all(&machine.vcpus).unwrap();
    }
    machine.retire();
}

#[test]
fn a_busy_vcpu_retires_when_told() {
    let Some(kvm) = kvm() else { return };
    for kick in KINDS {
        let mut machine = bare(&kvm, 2, MEMORY, kick);
        machine.run_user(COUNT);
        machine.await_progress(&[0, 0]);
        machine.vcpus[0].retire().unwrap();
        let actor = ActorName::Vcpu(VcpuId(0));
        let ending = Ending::Returned;
        assert_eq!(machine.tiding(), Tidings::Gone { actor, ending });
        let before = machine.count(1);
        let still = [machine.count(0), before];
        machine.await_progress(&[u64::MAX, before]);
        assert_eq!(machine.count(0), still[0], "a retired vcpu moves");
        machine.vcpus[1].retire().unwrap();
        machine.join();
        assert_eq!(machine.vcpus[0].run(), Err(OrderError::Gone { vcpu: VcpuId(0) }));
        assert_eq!(machine.vcpus[0].tid(), None);
    }
}

#[test]
fn a_vcpu_nobody_can_order_any_more_retires() {
    let Some(kvm) = kvm() else { return };
    let mut machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_user(COUNT);
    machine.await_progress(&[0]);
    machine.vcpus.clear();
    machine.join();
}

#[test]
fn a_tally_is_complete_when_the_thread_has_ended() {
    let Some(kvm) = kvm() else { return };
    let mut machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_user(COUNT);
    machine.await_progress(&[0]);
    pause_all(&machine.vcpus).wait(deadline()).unwrap();
    machine.vcpus[0].retire().unwrap();
    machine.join();
    let tally = machine.vcpus[0].tally();
    assert!(tally.entries > 0);
    assert_eq!(tally.entries, tally.knocked_out);
    assert_eq!((tally.port_accesses, tally.other_exits), (0, 0));
}

#[test]
fn a_panic_leaves_the_domain_wakes_the_raiser_and_is_told() {
    let Some(kvm) = kvm() else { return };
    let mut machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_user(COUNT);
    machine.await_progress(&[0]);
    machine.vcpus[0].break_(Break::Panic).unwrap();
    let Tidings::Gone { actor, ending } = machine.tiding() else {
        panic!("something else was told");
    };
    assert_eq!(actor, ActorName::Vcpu(VcpuId(0)));
    let words = "asked to break, by a test".to_owned();
    assert_eq!(ending, Ending::Panicked(words));
    machine.join();
    assert!(machine.wakes.load(Ordering::Relaxed) > 0);
    assert_eq!(shoot_down(&machine), 0, "nobody is left to knock on");
}

/// Waits until a vcpu rests, or is busy. A knock that comes late may make it busy for a moment.
fn await_pulse(machine: &Bare, busy: bool) {
    let patience = deadline();
    while machine.pulses[0].look().is_busy() != busy {
        assert!(Instant::now() < patience, "its pulse never says busy: {busy}");
        std::thread::yield_now();
    }
}

#[test]
fn a_vcpu_that_hangs_stays_busy_and_does_not_come_out() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_user(COUNT);
    machine.await_progress(&[0]);
    pause_all(&machine.vcpus).wait(deadline()).unwrap();
    await_pulse(&machine, false);
    // Parked, it is busy only with what it is told now.
    machine.vcpus[0].break_(Break::Hang).unwrap();
    await_pulse(&machine, true);
    let hung = machine.pulses[0].look();
    let overdue = pause_all(&machine.vcpus).wait(Instant::now()).unwrap_err();
    assert_eq!(overdue.to_string(), "vcpu 0 has not come out of the guest in time");
    assert_eq!(machine.pulses[0].look(), hung);
    // Its thread cannot be ended; the test program's end takes it along.
}

#[test]
fn a_vcpu_in_the_guest_or_parked_rests() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_user(COUNT);
    machine.await_progress(&[0]);
    await_pulse(&machine, false);
    let before = machine.pulses[0].look();
    pause_all(&machine.vcpus).wait(deadline()).unwrap();
    await_pulse(&machine, false);
    assert_ne!(before, machine.pulses[0].look(), "coming out is a beat");
    machine.retire();
}

/// Raises once, knocks on whoever is in, waits for the last to come out. Returns how many.
fn shoot_down(machine: &Bare) -> usize {
    let mut knocked = 0;
    let knock = |seat: SeatId| {
        knocked += 1;
        machine.vcpus[seat.0].knocker().knock();
    };
    let mut ticket = machine.domain.raise((), Whom::Everyone, knock);
    let patience = deadline();
    while let Err(early) = machine.domain.redeem(ticket) {
        std::thread::park_timeout(PATIENCE);
        assert!(Instant::now() < patience, "nobody woke us: {:?}", early.waiting());
        ticket = early;
    }
    knocked
}

#[test]
fn every_shootdown_of_busy_vcpus_ends_and_is_accounted_for_once() {
    let Some(kvm) = kvm() else { return };
    for kick in KINDS {
        let mut machine = bare(&kvm, 2, MEMORY, kick);
        machine.run_user(COUNT);
        machine.await_progress(&[0, 0]);
        let knocked: usize = (0..1000).map(|_| shoot_down(&machine)).sum();
        assert!(knocked > 0);
        let before = machine.counts();
        machine.await_progress(&before);
        // These find nobody in the guest, and nobody ever flushes for them.
        pause_all(&machine.vcpus).wait(deadline()).unwrap();
        assert_eq!((0..10).map(|_| shoot_down(&machine)).sum::<usize>(), 0);
        let handles = machine.vcpus.clone();
        for vcpu in &handles {
            vcpu.retire().unwrap();
        }
        machine.join();
        for count in machine.domain.counts() {
            assert_eq!(count.done + count.saved, 1010);
        }
    }
}

#[test]
fn a_knock_on_a_parked_vcpu_costs_it_nothing() {
    let Some(kvm) = kvm() else { return };
    let mut machine = bare(&kvm, 1, MEMORY, KickKind::default());
    machine.run_user(COUNT);
    machine.await_progress(&[0]);
    pause_all(&machine.vcpus).wait(deadline()).unwrap();
    for _ in 0..100 {
        machine.vcpus[0].knocker().knock();
    }
    run_all(&machine.vcpus).unwrap();
    let before = machine.counts();
    machine.await_progress(&before);
    machine.vcpus[0].retire().unwrap();
    machine.join();
    let tally = machine.vcpus[0].tally();
    // The four orders may knock twice each (a signal may come after its flag was heeded); the
    // hundred knocks in between find it parked.
    assert!(tally.knocked_out <= 10, "{tally:?}");
}

#[test]
fn the_thread_of_a_vcpu_is_known_by_the_kernels_number() {
    let Some(kvm) = kvm() else { return };
    let machine = bare(&kvm, 2, MEMORY, KickKind::default());
    pause_all(&machine.vcpus).wait(deadline()).unwrap();
    for (index, vcpu) in machine.vcpus.iter().enumerate() {
        let name = format!("/proc/self/task/{}/comm", vcpu.tid().unwrap());
        let name = std::fs::read_to_string(name).unwrap();
        assert_eq!(name.trim(), format!("skep-vcpu-{index}"));
    }
    machine.retire();
}
