//! However a run ends, it ends, on every engine: every actor's death and hang, Ctrl-C, a reader that goes.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::engines::{Engine, on_every_engine};
use crate::support::{command, ran, scratch, skep};

/// Breaks an actor in the middle of a storm; the run must name it.
fn broken(actor: &str, how: &str, status: i32) {
    on_every_engine(|engine| {
        let trace = scratch(&format!("{actor}-{how}-{engine}.jsonl"));
        let ran = skep(&format!(
            "run --engine {engine} -c 4 --guest storm --storm-invalidations 1000000000 \
             --trace {trace} --test-switch {actor}-{how} --timeout 300"
        ));
        assert_eq!(ran.status, status, "{}", ran.stderr);
        let name = actor.replace("vcpu", "vcpu ");
        let verb = if how == "panic" { "died" } else { "hangs" };
        let sentence = format!("skep: the {name} actor {verb}");
        assert!(ran.stderr.lines().any(|line| line.starts_with(&sentence)), "{}", ran.stderr);
        // Whoever hangs cannot be joined; everybody else was.
        let left = ran.stderr.lines().filter(|line| line.contains("left behind"));
        let foreign = left.filter(|line| !line.contains(&name) && !follows(&name, line));
        assert_eq!(foreign.count(), 0, "{}", ran.stderr);
        ran.observed()
    });
}

/// The loader's desk lives on the machine actor's thread, and the tracer ends when the pmap does.
fn follows(name: &str, line: &str) -> bool {
    (name == "machine" && line.contains("loader")) || (name == "pmap" && line.contains("tracer"))
}

macro_rules! deaths {
    ($($name:ident: $actor:literal $how:literal $status:literal;)*) => {
        $(#[test] fn $name() { broken($actor, $how, $status); })*
    };
}

deaths! {
    a_machine_actor_that_panics_ends_the_run: "machine" "panic" 8;
    a_pmap_that_panics_ends_the_run: "pmap" "panic" 7;
    a_loader_that_panics_ends_the_run: "loader" "panic" 8;
    a_console_that_panics_ends_the_run: "console" "panic" 8;
    a_tracer_that_panics_ends_the_run: "tracer" "panic" 8;
    a_boot_vcpu_that_panics_ends_the_run: "vcpu0" "panic" 8;
    another_vcpu_that_panics_ends_the_run: "vcpu3" "panic" 8;
    a_machine_actor_that_hangs_is_noticed: "machine" "hang" 8;
    a_pmap_that_hangs_is_noticed: "pmap" "hang" 7;
    a_loader_that_hangs_is_noticed: "loader" "hang" 8;
    a_console_that_hangs_is_noticed: "console" "hang" 8;
    a_tracer_that_hangs_is_noticed: "tracer" "hang" 8;
    a_vcpu_that_hangs_is_noticed: "vcpu1" "hang" 8;
}

/// A guest with four vcpus that says `x` and then is busy for ever, told to end by `signal` once it is busy.
fn signalled(engine: Engine, signal: i32) -> std::process::Output {
    let guest = scratch("says-x-for-ever.bin");
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; mov al, 10; out dx, al; jmp $
    let code = [0xba, 0xf8, 0x03, 0xb0, 0x78, 0xee, 0xb0, 0x0a, 0xee, 0xeb, 0xfe];
    std::fs::write(&guest, code).expect("scratch file");
    let mut child = command()
        .args(["run", "--engine", &engine.to_string(), "-c", "4", "--kernel", &guest])
        .args(["--timeout", "300"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    // The guest says when it runs.
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "x\n");
    let process = i32::try_from(child.id()).expect("a process id");
    // SAFETY: no pointers; the process is our child and has not been waited for.
    #[expect(unsafe_code, reason = "kill has no safe wrapper in std")]
    let sent = unsafe { libc::kill(process, signal) };
    assert_eq!(sent, 0);
    // Ends when nobody has it open any more: no thread and no child is left.
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the rest of stdout");
    child.wait_with_output().expect("it ends")
}

#[test]
fn an_interrupt_ends_a_busy_guest_cleanly() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        on_every_engine(|engine| {
            let ended = ran(&signalled(engine, signal));
            assert_eq!(ended.status, 130, "{}", ended.stderr);
            assert!(ended.stderr.ends_with("skep: interrupted\n"), "{}", ended.stderr);
            assert!(!ended.stderr.contains("left behind"), "{}", ended.stderr);
            ended.observed()
        });
    }
}

#[test]
fn a_run_that_is_killed_leaves_nothing_behind() {
    on_every_engine(|engine| {
        let ended = signalled(engine, libc::SIGKILL);
        assert_eq!(ended.status.signal(), Some(libc::SIGKILL));
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    });
}

#[test]
fn a_closed_stdout_ends_the_run() {
    on_every_engine(|engine| {
        let mut child = command()
            .args(["run", "--engine", &engine.to_string(), "-c", "4", "--guest", "smp"])
            .args(["--timeout", "300"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command can be started");
        drop(child.stdout.take());
        let ended = ran(&child.wait_with_output().expect("it ends"));
        assert_eq!(ended.status, 12, "{}", ended.stderr);
        assert!(ended.stderr.contains("stdout was closed"), "{}", ended.stderr);
        ended.observed()
    });
}
