//! What a guest kernel finds as its root: busybox and a script.
//!
//! The script says who it is, in lines a test can look for, and then does what
//! the kernel's command line asks of it. Tests and the demo share it.

use std::path::Path;

use crate::cpio::Archive;
use crate::failure::Outcome;
use crate::programs::libraries;

/// What the guest's first process prints before anything else.
pub(crate) const HELLO: &str = "HELLO FROM GUEST";

/// What it prints when it is about to end in the way it was asked to.
pub(crate) const GOODBYE: &str = "GOODBYE FROM GUEST";

/// The first process. `HELLO` comes before any mount, so that time to it is time
/// to user space.
const INIT: &str = r#"#!/bin/busybox sh
echo "HELLO FROM GUEST"
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin HOME=/ TERM=linux

test=poweroff
beats=0
for word in $(cat /proc/cmdline); do
    case "$word" in
        skep.test=*) test="${word#skep.test=}" ;;
        skep.beats=*) beats="${word#skep.beats=}" ;;
    esac
done

echo "kernel=$(uname -r)"
echo "nproc=$(nproc)"
echo "memtotal_kb=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)"

case "$test" in
    shell)
        echo "A shell inside the guest. Leave it with: exit"
        setsid cttyhack sh
        ;;
    stay)
        beat=0
        while [ "$beats" -eq 0 ] || [ "$beat" -lt "$beats" ]; do
            beat=$((beat + 1))
            echo "HEARTBEAT $beat"
            sleep 1
        done
        ;;
esac

echo "GOODBYE FROM GUEST"
case "$test" in
    reboot) reboot -f ;;
    *) poweroff -f ;;
esac
"#;

/// The archive, ready to be given to a kernel.
///
/// # Errors
///
/// When busybox cannot be read.
pub(crate) fn build(busybox: &Path) -> Outcome<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.console()?;
    archive.copy(busybox, "/bin/busybox", 0o755)?;
    // Debian's is static; another distribution's may not be.
    for library in libraries(busybox)? {
        archive.copy(&library, &library.display().to_string(), 0o755)?;
    }
    archive.file("/init", 0o755, INIT.as_bytes())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_prints_the_lines_the_tests_look_for() {
        assert!(INIT.contains(&format!("echo \"{HELLO}\"")));
        assert!(INIT.contains(&format!("echo \"{GOODBYE}\"")));
    }
}
