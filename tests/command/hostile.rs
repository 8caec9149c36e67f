//! Guests that do what no decent guest does. Each ends, with the status and the sentence that fit, and none of them
//! takes skep with it.

use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction};

use crate::engines::{Engine, cpus, on_every_engine};
use crate::flat::{
    GATES, Guest, LEAF, LEAVES, LOCAL_APIC, NO_DEVICE, ROOT, TABLE, TASK, USER_CODE, USER_DATA,
    address_of, garbage, unless_equal, well,
};

#[test]
fn garbage_ends_for_a_reason() {
    let _cpus = cpus();
    for seed in 1..=24 {
        let ran = Guest::real(&garbage(seed)).run(Engine::Soft, "-m 16 --timeout 1");
        // Whatever it happens to mean: a triple fault mostly, an endless loop, a word to the reset register.
        assert!([0, 3, 4, 5, 6, 9].contains(&ran.status), "seed {seed}: {}", ran.stderr);
    }
}

#[test]
fn an_instruction_that_does_not_exist_without_a_handler_is_a_triple_fault() {
    Guest::protected(|a| a.ud2()).ends("", 4, "triple fault");
    Guest::reporting(|a| a.ud2()).ends("", 5, "the guest reported failure 6");
}

#[test]
fn a_jump_to_where_devices_or_nobody_lives_is_named() {
    for target in [LOCAL_APIC, NO_DEVICE] {
        let jump = Guest::protected(|a| {
            a.mov(eax, target)?;
            a.jmp(eax)
        });
        jump.ends("-m 16 --timeout 60", 9, "cannot go on");
    }
}

#[test]
fn an_instruction_that_begins_in_memory_and_ends_beyond_it_cannot_be_fetched() {
    let straddles = Guest::protected(|a| {
        // mov eax, imm32, of which only the first byte is there.
        a.mov(byte_ptr(0xff_ffff), 0xb8)?;
        a.mov(eax, 0xff_ffff)?;
        a.jmp(eax)
    });
    straddles.ends("-m 16 --timeout 60", 9, "cannot go on");
}

#[test]
fn a_store_beyond_all_memory_touches_a_hole() {
    let stores = Guest::long(|a| {
        // Its 2 MiB at 2 MiB are those at 5 GiB.
        a.mov(rax, 0x1_4000_0083u64)?;
        a.mov(qword_ptr(LEAVES + 8), rax)?;
        a.mov(rax, u64::from(ROOT))?;
        a.mov(cr3, rax)?;
        a.mov(dword_ptr(0x20_0010), 1)
    });
    stores.ends("-m 16 --timeout 60", 9, "touched a hole at guest-physical 0x140000010");
}

#[test]
fn where_devices_could_be_and_none_is_stores_are_lost_and_loads_are_all_ones() {
    let probes = Guest::reporting(|a| {
        a.mov(dword_ptr(NO_DEVICE), 5)?;
        a.cmp(dword_ptr(NO_DEVICE), -1)?;
        unless_equal(a, 0x44)?;
        // The end of 16 MiB of memory, and a little of what comes behind it.
        a.mov(edi, 0xff_f000)?;
        a.mov(ecx, 0x1040)?;
        a.mov(al, 0x77)?;
        a.rep().stosb()?;
        a.cmp(dword_ptr(0xff_fffc), 0x7777_7777)?;
        unless_equal(a, 0x45)?;
        a.cmp(dword_ptr(0x100_0000), -1)?;
        unless_equal(a, 0x46)?;
        well(a)
    });
    probes.ends("-m 16 --timeout 60", 0, "the guest powered off");
}

#[test]
fn accesses_across_pages_and_half_registers_are_whole() {
    let misaligned = Guest::reporting(|a| {
        // Across two pages, one of them touched for the first time; locked.
        a.mov(dword_ptr(0x10_0ffd), 0x0403_0201)?;
        a.mov(eax, 0x1010_1010)?;
        a.lock().add(dword_ptr(0x10_0ffd), eax)?;
        a.cmp(dword_ptr(0x10_0ffd), 0x1413_1211)?;
        unless_equal(a, 0x41)?;
        a.cmp(byte_ptr(0x10_1000), 0x14)?;
        unless_equal(a, 0x42)?;
        // A word across the end of the local APIC's version register: no answer is wrong, none may hurt.
        a.mov(eax, dword_ptr(LOCAL_APIC + 0x31))?;
        a.mov(dword_ptr(LOCAL_APIC + 0x82), eax)?;
        a.mov(eax, dword_ptr(LOCAL_APIC + 0xffd))?;
        well(a)
    });
    misaligned.ends("-m 16 --timeout 60", 0, "the guest powered off");
}

#[test]
fn a_misaligned_vector_is_a_general_protection_fault() {
    let misaligned = Guest::reporting(|a| {
        // Vectors exist.
        a.mov(eax, 1 << 9)?;
        a.mov(cr4, eax)?;
        a.movaps(xmm0, xmmword_ptr(0x10_0000))?;
        a.movaps(xmm0, xmmword_ptr(0x10_0001))?;
        well(a)
    });
    misaligned.ends("-m 16 --timeout 60", 5, "the guest reported failure 13");
}

#[test]
fn a_misaligned_word_at_cpl_3_is_an_alignment_check_where_that_is_on() {
    let misaligned = Guest::long(|a| {
        // A task state at 0x7000 with a stack for CPL 0; everything is open to CPL 3; alignment is checked.
        a.mov(dword_ptr(0x7004), 0x8000)?;
        a.mov(eax, u32::from(TASK))?;
        a.ltr(ax)?;
        for table in [ROOT, 0xa000, LEAVES, LEAVES + 8] {
            a.or(dword_ptr(table), 4)?;
        }
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(rax, cr0)?;
        a.or(eax, 1 << 18)?;
        a.mov(cr0, rax)?;
        // Down to CPL 3 with the flag AC: stack, flags, code.
        a.push(USER_DATA)?;
        a.push(0x5000)?;
        a.push(1 << 18 | 2)?;
        a.push(USER_CODE)?;
        let mut user = a.create_label();
        a.lea(rax, ptr(user))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut user)?;
        a.mov(eax, dword_ptr(0x10_0000))?;
        a.mov(eax, dword_ptr(0x10_0001))?;
        a.hlt()
    });
    misaligned.ends("-m 16 --timeout 60", 5, "the guest reported failure 17");
}

#[test]
fn a_stack_that_runs_into_nothing_is_a_triple_fault() {
    // Below 2 MiB there are 2 MiB, and below these nothing: the fault finds no stack to be reported on.
    let overflows = Guest::long(|a| {
        a.mov(dword_ptr(LEAVES + 8 * 8), 0x20_0000 | LEAF)?;
        a.mov(esp, 0x108_0000)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.push(rax)?;
        a.jmp(again)
    });
    overflows.ends("-m 16 --timeout 60", 4, "triple fault");
}

#[test]
fn recursion_without_an_end_ends() {
    // The calls run down through everything below the stack, which is where their code is.
    let recurses = Guest::protected(|a| {
        let mut again = a.create_label();
        a.mov(esp, 0x5000)?;
        a.set_label(&mut again)?;
        a.call(again)
    });
    let _cpus = cpus();
    let ran = recurses.run(Engine::Soft, "-m 16 --timeout 1");
    assert!([4, 6, 9].contains(&ran.status), "{}", ran.stderr);
}

#[test]
fn page_tables_of_nonsense_are_a_triple_fault() {
    // Nothing is present; a leaf with reserved bits; a root that is a leaf; a table that is its own table.
    for (at, entry) in [(ROOT, 0), (LEAVES, 0x2083), (ROOT, LEAF), (ROOT, ROOT | TABLE)] {
        let nonsense = Guest::long(|a| {
            a.mov(dword_ptr(at), entry)?;
            a.mov(rax, u64::from(ROOT))?;
            a.mov(cr3, rax)?;
            a.ud2()
        });
        nonsense.ends("-m 16 --timeout 60", 4, "triple fault");
    }
}

#[test]
fn page_tables_where_no_memory_is_are_named() {
    for root in [LOCAL_APIC, NO_DEVICE] {
        let nowhere = Guest::long(|a| {
            a.mov(eax, root)?;
            a.mov(cr3, rax)
        });
        on_every_engine(|engine| {
            let ran = nowhere.run(engine, "-m 16 --timeout 60");
            match engine {
                // Its walker reads nothing from there, and finds the page absent.
                Engine::Kvm => assert!([4, 9].contains(&ran.status), "{}", ran.stderr),
                Engine::Soft => {
                    assert_eq!(ran.status, 9, "{}", ran.stderr);
                    assert!(ran.stderr.contains("has page tables at"), "{}", ran.stderr);
                }
            }
        });
    }
}

#[test]
fn an_interrupt_table_where_no_memory_is_ends_the_guest() {
    for table in [LOCAL_APIC, NO_DEVICE] {
        let nowhere = Guest::protected(|a| {
            a.mov(dword_ptr(0xa000), 0xffff)?;
            a.mov(dword_ptr(0xa002), table)?;
            a.lidt(ptr(0xa000))?;
            a.ud2()
        });
        on_every_engine(|engine| {
            let ran = nowhere.run(engine, "-m 16 --timeout 60");
            assert!([4, 9].contains(&ran.status), "on {engine}: {}", ran.stderr);
        });
    }
}

#[test]
fn a_jump_through_a_descriptor_that_is_no_code_is_a_general_protection_fault() {
    for selector in [0x10, TASK, 0x7ff8] {
        let jumps = Guest::reporting(|a| {
            a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, selector, 0x1058)?)
        });
        on_every_engine(|engine| {
            let ran = jumps.run(engine, "-m 16 --timeout 60");
            // A processor without task switches may refuse it in its own way.
            let may = if selector == TASK { vec![4, 5, 9] } else { vec![5] };
            assert!(may.contains(&ran.status), "{selector:#x} on {engine}: {}", ran.stderr);
        });
    }
}

#[test]
fn floods_of_ports_end_when_their_time_is_up() {
    // Nobody's, the keyboard controller's, the interval timer's, the second 8259's.
    for port in [0x80_u16, 0x60, 0x40, 0xa1] {
        let floods = Guest::protected(|a| {
            let mut again = a.create_label();
            a.mov(edx, u32::from(port))?;
            a.set_label(&mut again)?;
            a.in_(al, dx)?;
            a.out(dx, al)?;
            a.out(dx, eax)?;
            a.jmp(again)
        });
        floods.goes_on("-m 16");
    }
}

#[test]
fn a_flood_of_the_console_arrives_and_ends() {
    let floods = Guest::protected(|a| {
        let mut again = a.create_label();
        a.mov(edi, 0x10_0000)?;
        a.mov(al, u32::from(b'x'))?;
        a.mov(ecx, 64)?;
        a.rep().stosb()?;
        a.mov(byte_ptr(0x10_003f), u32::from(b'\n'))?;
        a.mov(edx, 0x3f8)?;
        a.set_label(&mut again)?;
        a.mov(esi, 0x10_0000)?;
        a.mov(ecx, 64)?;
        a.rep().outsb()?;
        a.jmp(again)
    });
    for observed in floods.goes_on("-m 16") {
        let line = "x".repeat(63);
        assert!(observed.printed(&line), "not one whole line");
    }
}

#[test]
fn a_guest_that_sleeps_for_ever_is_ended_by_its_timeout() {
    Guest::real(&[0xfa, 0xf4, 0xeb, 0xfd]).goes_on("-m 16"); // cli; hlt; jmp back to it
}

#[test]
fn a_first_vcpu_that_resets_itself_begins_where_firmware_would_be() {
    let resets_itself = Guest::protected(|a| {
        a.mov(dword_ptr(LOCAL_APIC + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(LOCAL_APIC + 0x310), 0)?;
        a.mov(dword_ptr(LOCAL_APIC + 0x300), 0x4500)?;
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.jmp(here)
    });
    resets_itself.ends("-m 16 -c 2 --timeout 60", 9, "vcpu 0 cannot go on at rip 0xfff0");
}

#[test]
fn floods_of_interrupts_end_when_their_time_is_up() {
    // To itself, as fast as it can, and to everybody else: start-up messages, resets, non-maskable ones.
    for command in [0x0004_4020, 0x000c_4601, 0x000c_4500, 0x000c_4400_u32] {
        let floods = Guest::protected(|a| {
            let mut again = a.create_label();
            a.mov(dword_ptr(LOCAL_APIC + 0xf0), 0x1ff)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(LOCAL_APIC + 0x300), command)?;
            a.jmp(again)
        });
        // Others that are started at page 1 run the same guest from real mode: floods from everybody.
        on_every_engine(|engine| {
            let ran = floods.run(engine, "-m 16 -c 3 --timeout 1");
            assert!([4, 6].contains(&ran.status), "{command:#x} on {engine}: {}", ran.stderr);
        });
    }
}

#[test]
fn a_timer_that_fires_all_the_time_ends_when_its_time_is_up() {
    let floods = Guest::long(|a| {
        // The local APIC is where it always is, in the second 2 MiB.
        a.mov(dword_ptr(LEAVES + 8), LOCAL_APIC & !0x1f_ffff | LEAF)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        let apic = 0x20_0000 + (LOCAL_APIC & 0x1f_ffff);
        // The gate of vector 0x1f leads to the handler below.
        let (mut handler, mut again) = (a.create_label(), a.create_label());
        a.lea(rax, ptr(handler))?;
        a.mov(word_ptr(GATES + 0x1f * 16), ax)?;
        a.mov(dword_ptr(apic + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(apic + 0x3e0), 0xb)?; // divide by 1
        a.mov(dword_ptr(apic + 0x320), 1 << 17 | 0x1f)?; // periodic
        a.mov(dword_ptr(apic + 0x380), 1)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.jmp(again)?;
        a.set_label(&mut handler)?;
        a.mov(dword_ptr(apic + 0xb0), 0)?;
        a.iretq()
    });
    floods.goes_on("-m 16");
}

#[test]
fn code_that_changes_itself_does_what_it_has_become() {
    let changes = Guest::reporting(|a| {
        // Adds 1 to 100 by writing each into the instruction that comes next.
        address_of(a, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(byte_ptr(ebx + 4), cl)?; // three bytes long
            a.add(eax, 0x55)?; // the number is its second byte
            a.dec(ecx)?;
            a.jne(again)?;
            a.ret()
        })?;
        a.mov(ebx, eax)?;
        a.xor(eax, eax)?;
        a.mov(ecx, 100)?;
        a.call(ebx)?;
        a.cmp(eax, 5050)?;
        unless_equal(a, 0x43)?;
        well(a)
    });
    changes.ends("-m 16 --timeout 60", 0, "the guest powered off");
}

#[test]
fn registers_that_no_processor_has_are_a_general_protection_fault() {
    for number in [0x1234_5678_u32, 0xffff_ffff] {
        let reads = Guest::reporting(|a| {
            a.mov(ecx, number)?;
            a.rdmsr()
        });
        reads.ends("-m 16 --timeout 60", 5, "the guest reported failure 13");
        let writes = Guest::reporting(|a| {
            a.mov(ecx, number)?;
            a.wrmsr()
        });
        writes.ends("-m 16 --timeout 60", 5, "the guest reported failure 13");
    }
    // Bits of CR4 that nobody has.
    let control = Guest::reporting(|a| {
        a.mov(eax, 0x8000_0000u32)?;
        a.mov(cr4, eax)
    });
    control.ends("-m 16 --timeout 60", 5, "the guest reported failure 13");
}
