//! What the lab's host kernel finds as its root: our commands, the guests they
//! boot, and a first process that runs one script and reports how it ended.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::failure::{Failure, Outcome, about};
use crate::fetch::Fetched;
use crate::initrd;
use crate::kernels::LAB_MODULES;
use crate::process::find;
use crate::programs::libraries;

/// Where the lab keeps the guests' initrd.
pub(crate) const GUEST_INITRD: &str = "/guests/initrd";

/// Where the lab keeps a guest kernel as Debian ships it.
pub(crate) fn guest_bzimage(line: &str) -> String {
    format!("/guests/{line}/bzImage")
}

/// Where the lab keeps the ELF of a guest kernel.
pub(crate) fn guest_vmlinux(line: &str) -> String {
    format!("/guests/{line}/vmlinux")
}

/// Where our own programs are in the lab; first in its `PATH`.
pub(crate) const PROGRAMS: &str = "/usr/local/bin";

/// Firmware that QEMU's microvm machine loads, below `/usr/share/qemu`.
const MICROVM_FIRMWARE: [&str; 4] =
    ["bios-microvm.bin", "qboot.rom", "linuxboot_dma.bin", "pvh.bin"];

/// The lab's first process.
///
/// The three ports are virtio-serial ports, made by [`super::run`]: 1 is the
/// command's stdout (and stdin), 2 its stderr, 3 tells the outside how things
/// stand. The kernel's own log is on `ttyS0`, apart from all three, so nothing is
/// ever mixed into what the command says. A port may be open only once, so it is
/// opened here and inherited.
///
/// What is told on port 3: `ready`, or `broken` and why; then `status` and the
/// command's; then for each file asked for `file`, its size and name, and as many
/// bytes, or `missing` and its name; then `done`.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mkdir -p /dev/pts /dev/shm
/bin/busybox mount -t devpts devpts /dev/pts
/bin/busybox mount -t tmpfs tmpfs /dev/shm
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/usr/local/bin:/bin:/usr/bin:/sbin:/usr/sbin HOME=/root TERM=linux SKEP_LAB=1
hostname lab
ifconfig lo up
ulimit -l unlimited
ulimit -n 65536

# The ports appear a moment after the bus they are on.
while [ ! -c /dev/vport0p3 ] && [ ! -c /dev/vport1p3 ]; do sleep 0.02; done
ports=/dev/vport0p
[ -c /dev/vport0p3 ] || ports=/dev/vport1p
exec 7<>"${ports}1" 8<>"${ports}2" 9<>"${ports}3"

for module in /modules/*.ko; do
    insmod "$module" || why="insmod $module failed"
done
[ -c /dev/kvm ] || why="no /dev/kvm appeared"
dmesg | grep -q 'Nested Paging enabled' || why="KVM reports no nested paging"
[ -c /dev/userfaultfd ] || why="${why:-no /dev/userfaultfd appeared}"
if [ -n "$why" ]; then
    echo "broken $why" >&9
else
    echo "ready" >&9
fi

cd /root
sh /lab/command <&7 >&7 2>&8 7<&- 8<&- 9<&-
echo "status $?" >&9

while read -r file; do
    if [ -f "$file" ]; then
        # A copy, so that its size holds while it is sent.
        cp "$file" /run/result
        echo "file $(stat -c %s /run/result) $file" >&9
        cat /run/result >&9
    else
        echo "missing $file" >&9
    fi
done < /lab/results
echo "done" >&9
poweroff -f
"#;

/// A root for the lab, on its way to a file.
pub(crate) struct Image {
    archive: Archive<BufWriter<File>>,
    /// What is in it already, by path: libraries are shared by many programs.
    present: BTreeSet<PathBuf>,
}

impl Image {
    /// A root that boots: the first process and what it needs.
    ///
    /// # Errors
    ///
    /// Files that cannot be read or written; the same for all that follow.
    pub(crate) fn create(path: &Path, fetched: &Fetched) -> Outcome<Self> {
        let file = File::create(path).map_err(about("create", path))?;
        let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, file));
        archive.console()?;
        archive.copy(&fetched.busybox, "/bin/busybox", 0o755)?;
        archive.file("/init", 0o755, INIT.as_bytes())?;
        let host = &fetched.lab().unpacked;
        for (order, name) in LAB_MODULES.iter().enumerate() {
            let inside = format!("/modules/{order}-{name}.ko");
            archive.copy(&host.module(name), &inside, 0o644)?;
        }
        Ok(Self { archive, present: BTreeSet::new() })
    }

    /// Adds the guests: each kernel in both forms, and their initrd.
    pub(crate) fn guests(&mut self, fetched: &Fetched) -> Outcome {
        for guest in &fetched.kernels {
            let (bzimage, vmlinux) = (guest.shipped.bzimage(), guest.unpacked.vmlinux());
            let archive = &mut self.archive;
            archive.copy(&bzimage, &guest_bzimage(guest.line), 0o644)?;
            archive.copy(&vmlinux, &guest_vmlinux(guest.line), 0o644)?;
        }
        let initrd = initrd::build(&fetched.busybox)?;
        self.archive.file(GUEST_INITRD, 0o644, &initrd)
    }

    /// Adds the script to run, and the names of the files to bring back after it.
    pub(crate) fn command(&mut self, script: &str, results: &[String]) -> Outcome {
        let archive = &mut self.archive;
        archive.file("/lab/command", 0o755, script.as_bytes())?;
        let results: String = results.iter().map(|name| format!("{name}\n")).collect();
        archive.file("/lab/results", 0o644, results.as_bytes())
    }

    /// Adds a file of this machine; with its libraries when it is a program.
    pub(crate) fn add(&mut self, from: &Path, inside: &str) -> Outcome {
        if !self.present.insert(PathBuf::from(inside)) {
            return Ok(());
        }
        self.archive.copy(from, inside, 0o755)?;
        for library in libraries(from)? {
            if self.present.insert(library.clone()) {
                let place = library.display().to_string();
                self.archive.copy(&library, &place, 0o755)?;
            }
        }
        Ok(())
    }

    /// Adds QEMU with what its microvm machine loads, to compare us with.
    pub(crate) fn qemu(&mut self) -> Outcome {
        let program = find("qemu-system-x86_64")
            .ok_or_else(|| Failure::new("qemu-system-x86_64 is not installed"))?;
        self.add(&program, "/usr/bin/qemu-system-x86_64")?;
        for name in MICROVM_FIRMWARE {
            let path = format!("/usr/share/qemu/{name}");
            if Path::new(&path).exists() {
                self.add(Path::new(&path), &path)?;
            }
        }
        Ok(())
    }

    /// Ends the file.
    pub(crate) fn finish(self) -> Outcome {
        let mut out = self.archive.finish()?;
        out.flush().map_err(|error| Failure::new(format!("cannot write the lab's root: {error}")))
    }
}
