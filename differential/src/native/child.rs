//! The child's life: load every register, jump, come back, write down what is left.
//!
//! # Invariant
//!
//! This code runs in a forked process with one thread, which never returns from [`live`]. It allocates nothing
//! and takes no lock. The fixed addresses of [`crate::layout`] are mapped before the first sequence runs and
//! nothing else uses them. While `Control::running` is set, registers are the sequence's: only the assembly
//! below and the signal handlers run, the latter on a stack of their own. A sequence that damages the
//! process nevertheless can make no system call but those of the filter, and the parent sees the process end.

#![expect(unsafe_code, reason = "runs arbitrary code on purpose, in a process of its own")]
#![expect(clippy::cast_possible_truncation, reason = "only 64-bit processes run 64-bit code")]

use std::arch::{asm, global_asm};
use std::mem::{offset_of, zeroed};
use std::ptr::{copy_nonoverlapping, null_mut};
use std::sync::atomic::Ordering;

use super::region::{CHILD, PARENT, Shared, futex_wait, futex_wake};
use crate::layout::{
    CODE, CODE_BYTES, CODE_STRIDE, DATA_BYTES, EXIT, GS_BASE, HIGH, HIGH_PAGES, LOW, LOW_PAGES,
    PAGE, SLOTS, TRAMPOLINE,
};
use crate::state::{FX_MXCSR, State};
use crate::templates;

/// `Slot::kind`: the sequence reached its end.
pub(super) const FINISHED: u64 = 0;
/// It raised an exception.
pub(super) const EXCEPTION: u64 = 1;
/// The timer ended it.
pub(super) const ENDLESS: u64 = 2;

/// Nanoseconds of the child's own processor time between two looks at whether a sequence ends.
const TICK_MICROSECONDS: i64 = 100_000;

/// What lies behind the trampoline's page.
#[repr(C, align(4096))]
struct Control {
    input: State,
    output: State,
    host_stack: u64,
    host_mxcsr: u64,
    /// A sequence's registers are loaded.
    running: u64,
    /// Counts sequences.
    serial: u64,
    /// The serial at the last tick.
    seen: u64,
    kind: u64,
    vector: u64,
    error: u64,
    address: u64,
}

global_asm!(
    ".pushsection .text.differential_trampoline, \"ax\", @progbits",
    ".balign 64",
    ".globl differential_trampoline",
    "differential_trampoline:",
    ".set .Lcontrol, differential_trampoline + 4096",
    // The way in: a function without arguments.
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [rip + .Lcontrol + {host_stack}], rsp",
    "fxrstor64 [rip + .Lcontrol + {input} + {floating}]",
    "push qword ptr [rip + .Lcontrol + {input} + {flags}]",
    "mov rax, [rip + .Lcontrol + {input} + 0]",
    "mov rcx, [rip + .Lcontrol + {input} + 8]",
    "mov rdx, [rip + .Lcontrol + {input} + 16]",
    "mov rbx, [rip + .Lcontrol + {input} + 24]",
    "mov rbp, [rip + .Lcontrol + {input} + 40]",
    "mov rsi, [rip + .Lcontrol + {input} + 48]",
    "mov rdi, [rip + .Lcontrol + {input} + 56]",
    "mov r8, [rip + .Lcontrol + {input} + 64]",
    "mov r9, [rip + .Lcontrol + {input} + 72]",
    "mov r10, [rip + .Lcontrol + {input} + 80]",
    "mov r11, [rip + .Lcontrol + {input} + 88]",
    "mov r12, [rip + .Lcontrol + {input} + 96]",
    "mov r13, [rip + .Lcontrol + {input} + 104]",
    "mov r14, [rip + .Lcontrol + {input} + 112]",
    "mov r15, [rip + .Lcontrol + {input} + 120]",
    "popfq",
    "mov rsp, [rip + .Lcontrol + {input} + 32]",
    "jmp qword ptr [rip + .Lcontrol + {input} + {rip}]",
    // The way out (layout::EXIT), with the sequence's registers.
    ".org differential_trampoline + 0x200, 0xcc",
    "mov [rip + .Lcontrol + {output} + 0], rax",
    "mov [rip + .Lcontrol + {output} + 8], rcx",
    "mov [rip + .Lcontrol + {output} + 16], rdx",
    "mov [rip + .Lcontrol + {output} + 24], rbx",
    "mov [rip + .Lcontrol + {output} + 32], rsp",
    "mov [rip + .Lcontrol + {output} + 40], rbp",
    "mov [rip + .Lcontrol + {output} + 48], rsi",
    "mov [rip + .Lcontrol + {output} + 56], rdi",
    "mov [rip + .Lcontrol + {output} + 64], r8",
    "mov [rip + .Lcontrol + {output} + 72], r9",
    "mov [rip + .Lcontrol + {output} + 80], r10",
    "mov [rip + .Lcontrol + {output} + 88], r11",
    "mov [rip + .Lcontrol + {output} + 96], r12",
    "mov [rip + .Lcontrol + {output} + 104], r13",
    "mov [rip + .Lcontrol + {output} + 112], r14",
    "mov [rip + .Lcontrol + {output} + 120], r15",
    "mov rsp, [rip + .Lcontrol + {host_stack}]",
    "pushfq",
    "pop qword ptr [rip + .Lcontrol + {output} + {flags}]",
    "fxsave64 [rip + .Lcontrol + {output} + {floating}]",
    // The way out after a fault: the handler has written down the registers.
    ".org differential_trampoline + 0x400, 0x90",
    "mov rsp, [rip + .Lcontrol + {host_stack}]",
    "push 0x202",
    "popfq",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "fninit",
    "ldmxcsr [rip + .Lcontrol + {host_mxcsr}]",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    ".globl differential_trampoline_end",
    "differential_trampoline_end:",
    ".popsection",
    host_stack = const offset_of!(Control, host_stack),
    host_mxcsr = const offset_of!(Control, host_mxcsr),
    input = const offset_of!(Control, input),
    output = const offset_of!(Control, output),
    floating = const offset_of!(State, floating),
    flags = const offset_of!(State, flags),
    rip = const offset_of!(State, rip),
);

unsafe extern "C" {
    static differential_trampoline: u8;
    static differential_trampoline_end: u8;
}

const _: () = assert!(EXIT == TRAMPOLINE + 0x200, "the assembly and the layout agree");
/// Where a signal handler lets the thread go on.
const LEAVE: u64 = TRAMPOLINE + 0x400;

/// The control block.
fn control() -> *mut Control {
    std::ptr::with_exposed_provenance_mut((TRAMPOLINE + PAGE) as usize)
}

/// Ends the process with `status`, which tells the parent where.
fn give_up(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Maps `bytes` at exactly `address`.
fn map(address: u64, bytes: usize, protection: i32, memory: libc::c_int, offset: usize) {
    let kind = if memory < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    let at = std::ptr::without_provenance_mut(address as usize);
    let flags = kind | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    // SAFETY: a new mapping that replaces none.
    let mapped =
        unsafe { libc::mmap(at, bytes, protection, flags, memory, offset.cast_signed() as i64) };
    if mapped.addr() as u64 != address {
        give_up(71);
    }
}

/// Everything at its place.
///
/// # Safety
///
/// The module's invariant: called once, first.
unsafe fn settle(shared: *mut Shared, memory: libc::c_int) {
    let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    map(LOW, (LOW_PAGES * PAGE) as usize, read | write, -1, 0);
    map(LOW + LOW_PAGES * PAGE, PAGE as usize, read | write, -1, 0);
    map(HIGH, (HIGH_PAGES * PAGE) as usize, read | write, -1, 0);
    for slot in 0..SLOTS {
        let offset = offset_of!(Shared, code) + slot * CODE_BYTES;
        map(CODE + slot as u64 * CODE_STRIDE, CODE_BYTES, read | execute, memory, offset);
    }
    map(TRAMPOLINE, 2 * PAGE as usize, read | write, -1, 0);
    let start = &raw const differential_trampoline;
    let length = (&raw const differential_trampoline_end).addr() - start.addr();
    // SAFETY: the bytes between the two symbols, into the page just mapped (they are fewer than it holds).
    unsafe {
        copy_nonoverlapping(
            start,
            std::ptr::with_exposed_provenance_mut(TRAMPOLINE as usize),
            length,
        )
    };
    // SAFETY: the page is all ours.
    unsafe {
        libc::mprotect(
            std::ptr::without_provenance_mut(TRAMPOLINE as usize),
            PAGE as usize,
            read | execute,
        )
    };
    let read_only: *mut u8 =
        std::ptr::with_exposed_provenance_mut((LOW + LOW_PAGES * PAGE) as usize);
    let contents = &templates::all().read_only;
    // SAFETY: one page, into the page just mapped.
    unsafe { copy_nonoverlapping(contents.as_ptr(), read_only, PAGE as usize) };
    // SAFETY: the page is all ours.
    unsafe { libc::mprotect(read_only.cast(), PAGE as usize, read) };
    // SAFETY: GS is nobody's in a 64-bit process of this host.
    unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, GS_BASE) };
    let _ = shared;
}

/// Signals to their handlers, on a stack of their own; a timer; no system calls but for those below.
///
/// # Safety
///
/// The module's invariant: called once, after [`settle`].
unsafe fn be_careful() {
    const STACK_BYTES: usize = 256 << 10;
    // SAFETY: a new mapping.
    let stack = unsafe {
        libc::mmap(
            null_mut(),
            STACK_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK_BYTES };
    // SAFETY: the mapping above is for nothing else.
    unsafe { libc::sigaltstack(&raw const alternate, null_mut()) };
    for signal in
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGVTALRM]
    {
        // SAFETY: all zero is a valid action without flags.
        let mut action: libc::sigaction = unsafe { zeroed() };
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::ucontext_t) = on_signal;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for. While it runs, the timer waits.
        unsafe { libc::sigaddset(&raw mut action.sa_mask, libc::SIGVTALRM) };
        // SAFETY: as above.
        if unsafe { libc::sigaction(signal, &raw const action, null_mut()) } != 0 {
            give_up(72);
        }
    }
    let tick = libc::timeval { tv_sec: 0, tv_usec: TICK_MICROSECONDS };
    let timer = libc::itimerval { it_interval: tick, it_value: tick };
    // SAFETY: a timer of this process.
    unsafe {
        libc::syscall(libc::SYS_setitimer, 1 /* ITIMER_VIRTUAL */, &raw const timer, 0)
    };
    // SAFETY: dies with its parent.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    filter_system_calls();
}

/// From here on: waiting, waking, returning from handlers, ending. Anything else kills the process.
fn filter_system_calls() {
    let statement = |code: u32, yes: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: yes,
        jf: 0,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let number = |call: i64| u32::try_from(call).unwrap_or(u32::MAX);
    let mut program = [
        statement(load, 0, 4), // seccomp_data.arch
        libc::sock_filter { jf: 6, ..statement(equal, 0, 0xc000_003e) }, // AUDIT_ARCH_X86_64
        statement(load, 0, 0), // seccomp_data.nr
        statement(equal, 4, number(libc::SYS_futex)),
        statement(equal, 3, number(libc::SYS_rt_sigreturn)),
        statement(equal, 2, number(libc::SYS_exit_group)),
        statement(equal, 1, number(libc::SYS_restart_syscall)),
        statement(answer, 0, libc::SECCOMP_RET_KILL_PROCESS),
        statement(answer, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: 9, filter: program.as_mut_ptr() };
    // SAFETY: a promise about this process.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the program lives until the call has copied it.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) }
        != 0
    {
        give_up(73);
    }
}

/// A fault, or a tick of the timer.
extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the handler runs on the only thread, and the loop that uses the block is interrupted.
    let control = unsafe { &mut *control() };
    // SAFETY: the kernel's frame, which is ours until the handler returns.
    let machine = unsafe { &mut (*context).uc_mcontext };
    let register = |name: i32| machine.gregs[name.cast_unsigned() as usize].cast_unsigned();
    let rip = register(libc::REG_RIP);
    if signal == libc::SIGVTALRM {
        let in_code = rip.wrapping_sub(CODE) < SLOTS as u64 * CODE_STRIDE;
        let is_same = control.seen == control.serial;
        control.seen = control.serial;
        if !(control.running == 1 && in_code && is_same) {
            return;
        }
        control.kind = ENDLESS;
    } else {
        if control.running != 1 {
            give_up(74);
        }
        control.kind = EXCEPTION;
        control.vector = register(libc::REG_TRAPNO);
        control.error = register(libc::REG_ERR);
        control.address = register(libc::REG_CR2);
    }
    let order = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    for (to, from) in control.output.general.iter_mut().zip(order) {
        *to = register(from);
    }
    control.output.rip = rip;
    control.output.flags = register(libc::REG_EFL);
    // SAFETY: the frame holds the 512 bytes that FXSAVE64 writes (arch/x86/include/uapi/asm/sigcontext.h).
    unsafe {
        copy_nonoverlapping(
            machine.fpregs.cast::<u8>(),
            control.output.floating.0.as_mut_ptr(),
            512,
        );
    }
    machine.gregs[libc::REG_RIP.cast_unsigned() as usize] = LEAVE.cast_signed();
    machine.gregs[libc::REG_EFL.cast_unsigned() as usize] = 0x202;
}

/// Lets the processor notice that code has changed: `cpuid` serialises (Intel SDM vol. 3, "Handling Self- and
/// Cross-Modifying Code").
fn serialise() {
    // SAFETY: no memory is touched; rbx, which the compiler reserves, is put back.
    unsafe {
        asm!("push rbx", "cpuid", "pop rbx", inout("eax") 0 => _, out("ecx") _, out("edx") _);
    }
}

/// The child's whole life.
///
/// # Safety
///
/// Called in the forked child only, with the mapping it inherited and the descriptor behind it.
pub(super) unsafe fn live(shared: *mut Shared, memory: libc::c_int) -> ! {
    // SAFETY: this is the one call, and the first.
    unsafe { settle(shared, memory) };
    // SAFETY: as above.
    unsafe { be_careful() };
    let templates = templates::all();
    // SAFETY: the block was mapped by `settle`, and no handler runs while no sequence does.
    let control = unsafe { &mut *control() };
    control.host_mxcsr = 0x1f80;
    let low: *mut u8 = std::ptr::with_exposed_provenance_mut(LOW as usize);
    let high: *mut u8 = std::ptr::with_exposed_provenance_mut(HIGH as usize);
    let (low_bytes, high_bytes) = ((LOW_PAGES * PAGE) as usize, (HIGH_PAGES * PAGE) as usize);
    // SAFETY: the trampoline's first bytes are a function without arguments that keeps the callee's registers.
    let enter: extern "C" fn() = unsafe {
        std::mem::transmute(std::ptr::with_exposed_provenance::<()>(TRAMPOLINE as usize))
    };
    // SAFETY: only atomics are behind the reference.
    let header = unsafe { &(*shared).header };
    loop {
        // Acquire pairs with the parent's release: slots and code are written.
        while header.turn.load(Ordering::Acquire) != CHILD {
            futex_wait(&header.turn, PARENT, 999_999_999);
        }
        serialise();
        for place in 0..header.count.load(Ordering::Relaxed).min(SLOTS as u32) {
            header.current.store(place, Ordering::Relaxed);
            // SAFETY: it is the child's turn (the invariant of `region`).
            let slot = unsafe { &mut (*shared).slots[place as usize] };
            let data = &templates.pages[slot.template % templates.pages.len()];
            // SAFETY: the low pages, from a template that is as long as both areas.
            unsafe { copy_nonoverlapping(data.as_ptr(), low, low_bytes) };
            // SAFETY: the high pages, likewise.
            unsafe { copy_nonoverlapping(data.as_ptr().wrapping_add(low_bytes), high, high_bytes) };
            control.input = slot.input;
            control.kind = FINISHED;
            control.serial += 1;
            // SAFETY: volatile, because the handler reads it.
            unsafe { (&raw mut control.running).write_volatile(1) };
            enter();
            // SAFETY: as above.
            unsafe { (&raw mut control.running).write_volatile(0) };
            slot.output = control.output;
            if control.kind == FINISHED {
                slot.output.rip = EXIT;
            }
            (slot.kind, slot.vector) = (control.kind, control.vector);
            (slot.error, slot.address) = (control.error, control.address);
            let saved = slot.data.as_mut_ptr();
            // SAFETY: both areas into the slot, which is as long.
            unsafe { copy_nonoverlapping(low, saved, low_bytes) };
            // SAFETY: likewise.
            unsafe { copy_nonoverlapping(high, saved.wrapping_add(low_bytes), high_bytes) };
        }
        header.turn.store(PARENT, Ordering::Release); // Pairs with the parent's acquire: outcomes are written.
        futex_wake(&header.turn);
    }
}

const _: () =
    assert!(DATA_BYTES == ((LOW_PAGES + HIGH_PAGES) * PAGE) as usize, "both areas fit a slot");
const _: () = assert!(FX_MXCSR == 24, "FXSAVE's layout");
