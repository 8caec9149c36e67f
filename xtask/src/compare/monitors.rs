//! How each monitor is called for the same guest.

use std::process::Command;

/// Where skep writes its report, which holds what its faults cost.
pub(super) const REPORT: &str = "/tmp/report.json";

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Monitor {
    Qemu,
    Skep,
}

/// What the guest's memory is made of, under QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// As QEMU does it by itself: anonymous memory.
    Plain,
    /// A shared memfd, which is what skep's is.
    Memfd,
}

/// A guest both can boot.
#[derive(Clone, Debug)]
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a str,
    pub(super) initrd: Option<&'a str>,
    pub(super) cmdline: &'a str,
    pub(super) cpus: u32,
    pub(super) backing: Backing,
}

/// Memory of every guest here, in MiB.
pub(super) const MEMORY_MIB: u64 = 512;

impl Monitor {
    /// The name in the tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Monitor::Qemu => "QEMU microvm",
            Monitor::Skep => "skep",
        }
    }

    /// The command that boots `guest` with its console on stdout.
    pub(super) fn command(self, guest: &Guest<'_>) -> Command {
        match self {
            Monitor::Qemu => qemu(guest),
            Monitor::Skep => skep(guest),
        }
    }
}

fn skep(guest: &Guest<'_>) -> Command {
    let mut command = Command::new("skep");
    command
        .args(["run", "--engine", "kvm", "--report", REPORT])
        .args(["-c", &guest.cpus.to_string()])
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["--kernel", guest.kernel]);
    if let Some(initrd) = guest.initrd {
        command.args(["--initrd", initrd]);
    }
    if !guest.cmdline.is_empty() {
        command.args(["--cmdline", guest.cmdline]);
    }
    command
}

fn qemu(guest: &Guest<'_>) -> Command {
    let machine = "microvm,x-option-roms=off,rtc=on";
    let mut command = Command::new("qemu-system-x86_64");
    match guest.backing {
        Backing::Plain => command.args(["-M", machine]),
        Backing::Memfd => command
            .args(["-M", &format!("{machine},memory-backend=ram")])
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=ram,share=on,size={MEMORY_MIB}M")),
    };
    command
        .args(["-enable-kvm", "-cpu", "host"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio"])
        .args(["-smp", &guest.cpus.to_string()])
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["-kernel", guest.kernel]);
    if let Some(initrd) = guest.initrd {
        command.args(["-initrd", initrd]);
    }
    if !guest.cmdline.is_empty() {
        command.args(["-append", guest.cmdline]);
    }
    command
}
