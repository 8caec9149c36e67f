//! What a guest kernel finds as its root: busybox and a script.
//!
//! The script says who it is, in lines a test can look for, and then does what
//! the kernel's command line asks of it. Tests and the demo share it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::cpio::Archive;
use crate::failure::{Outcome, about};
use crate::programs::libraries;

/// What the guest's first process prints before anything else.
pub(crate) const HELLO: &str = "HELLO FROM GUEST";

/// What it prints when it is about to end in the way it was asked to.
pub(crate) const GOODBYE: &str = "GOODBYE FROM GUEST";

/// How each result of [`WORK`] begins.
pub(crate) const WORK_LINE: &str = "work ";

/// Work whose results do not depend on which machine does it: the guest does it, and
/// this machine does it with the same busybox, which is the script's argument. It
/// writes to the current directory.
pub(crate) const WORK: &str = r#"busybox=$1
say() { echo "work $1"; }

# 64 MiB through a pipe and a hash.
say "sha256 $($busybox yes skep | $busybox head -c 67108864 | $busybox sha256sum)"

# Packed, unpacked, compared.
$busybox seq 1 150000 > numbers
$busybox gzip < numbers > numbers.gz
$busybox gunzip < numbers.gz > again
$busybox cmp numbers again && say "gzip $($busybox wc -c < numbers.gz) bytes, the same again"

# A process for each of 300 small answers.
sum=0
round=0
while [ $round -lt 300 ]; do
    sum=$((sum + $($busybox expr $round \* $round % 97)))
    round=$((round + 1))
done
say "forks $sum"

# Four at once, each with something else to compute: integers, floating point,
# 64-bit words, comparisons.
$busybox seq 1 400000 | $busybox md5sum > busy0 &
$busybox seq 1 60000 | $busybox awk '{ s += $1 / 7 * ($1 % 11) } END { printf "%.6f\n", s }' > busy1 &
$busybox yes 1234567890 | $busybox head -c 4000000 | $busybox sha512sum > busy2 &
$busybox seq 60000 -1 1 | $busybox sort -n | $busybox crc32 > busy3 &
wait
for one in 0 1 2 3; do
    say "busy $one: $($busybox cat busy$one)"
done
"#;

/// How each line of [`SOAK`] begins.
pub(crate) const SOAK_LINE: &str = "soak ";

/// Fills memory with data that nothing compresses, and hashes it again and again; between two passes it is idle
/// for a while. Its arguments: how many files of 25 MiB and a few bytes, how many passes, how many seconds of rest. It works in the
/// current directory.
const SOAK: &str = r#"files=$1 passes=$2 rest=$3
say() { echo "soak $1"; }
mkdir -p /sums

# Four at once, so that every processor has its share: each hashes a quarter of the files.
hash() {
    for quarter in 0 1 2 3; do
        (
            file=$quarter
            while [ $file -lt $files ]; do
                sha256sum file$file
                file=$((file + 4))
            done > /sums/$1.$quarter
        ) &
    done
    wait
    cat /sums/$1.0 /sums/$1.1 /sums/$1.2 /sums/$1.3 > /sums/$1
}

# One file of noise, and the others the same a few bytes further on: so no page compresses, and no two are equal.
dd if=/dev/urandom of=file0 bs=1M count=25 2>/dev/null
file=1
while [ $file -lt $files ]; do
    { dd if=/dev/urandom bs=$((file * 37)) count=1 2>/dev/null; cat file0; } > file$file
    file=$((file + 1))
done
hash before
say "filled $(stat -c %s file* | awk '{ sum += $1 } END { print sum }') bytes"

pass=1
while [ $pass -le $passes ]; do
    sleep $rest
    hash $pass
    if cmp -s /sums/before /sums/$pass; then
        say "pass $pass equal"
    else
        say "pass $pass different"
        diff /sums/before /sums/$pass
    fi
    pass=$((pass + 1))
done
"#;

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
beats=0 files=12 passes=2 rest=15
for word in $(cat /proc/cmdline); do
    case "$word" in
        skep.test=*) test="${word#skep.test=}" ;;
        skep.beats=*) beats="${word#skep.beats=}" ;;
        skep.files=*) files="${word#skep.files=}" ;;
        skep.passes=*) passes="${word#skep.passes=}" ;;
        skep.rest=*) rest="${word#skep.rest=}" ;;
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
    work)
        cd /tmp && sh /work /bin/busybox
        # Processors that have spent a tenth of a second and more in user mode.
        echo "busy_cpus=$(awk '/^cpu[0-9]/ && $2 >= 10 { n++ } END { print n + 0 }' /proc/stat)"
        ;;
    soak)
        mkdir -p /data && mount -t tmpfs -o size=90% tmpfs /data
        cd /data && sh /soak "$files" "$passes" "$rest"
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
    archive.file("/work", 0o644, WORK.as_bytes())?;
    archive.file("/soak", 0o644, SOAK.as_bytes())?;
    archive.finish()
}

/// The archive as a file in the cache.
///
/// # Errors
///
/// When busybox cannot be read or the file not be written.
pub(crate) fn write(cache: &Cache, busybox: &Path) -> Outcome<PathBuf> {
    let initrd = cache.path("guest-initrd.cpio");
    // Another chore may be reading it: it changes in one step.
    let part = cache.path(&format!("guest-initrd-{}.part", std::process::id()));
    fs::write(&part, build(busybox)?).map_err(about("write", &part))?;
    fs::rename(&part, &initrd).map_err(about("write", &initrd))?;
    Ok(initrd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_prints_the_lines_the_tests_look_for() {
        assert!(INIT.contains(&format!("echo \"{HELLO}\"")));
        assert!(INIT.contains(&format!("echo \"{GOODBYE}\"")));
        assert!(WORK.contains(&format!("say() {{ echo \"{WORK_LINE}$1\"; }}")));
        assert!(SOAK.contains(&format!("say() {{ echo \"{SOAK_LINE}$1\"; }}")));
    }
}
