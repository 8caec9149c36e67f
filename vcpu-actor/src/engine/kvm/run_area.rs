//! The memory a vcpu shares with the kernel.

#![expect(
    unsafe_code,
    reason = "maps memory the kernel writes, and splits it between the vcpu's thread and its knockers"
)]

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use kvm_bindings::kvm_run;

use crate::knock::ExitFlag;

/// Where the part begins that only the vcpu's thread and the kernel touch.
const REPORT: usize = offset_of!(kvm_run, exit_reason);
const _: () = assert!(offset_of!(kvm_run, immediate_exit) < REPORT);

/// A mapping of a vcpu's run area (`struct kvm_run` and the data of port accesses behind it).
///
/// It is a mapping of our own: kvm-ioctls hands out `&mut kvm_run` of *its* mapping, immediate-exit byte
/// included, which other threads write at any time. A mapping keeps the vcpu alive inside the
/// kernel, and the virtual machine with it.
///
/// # Invariants
///
/// * `base .. base + len` is mapped, readable and writable, while the value lives, and `len` is at
///   least the size of `kvm_run`.
/// * The byte `immediate_exit` is touched as an atomic only.
/// * The bytes from [`REPORT`] on are touched through the one [`RunReport`] only, and by the kernel during
///   `KVM_RUN`.
#[derive(Debug)]
pub(crate) struct RunArea {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the invariants split the area into an atomic and a part with one owner.
unsafe impl Send for RunArea {}
// SAFETY: as above; `&RunArea` only leads to the atomic.
unsafe impl Sync for RunArea {}

/// The one owner of what the kernel reports in the run area.
#[derive(Debug)]
pub(crate) struct RunReport {
    area: Arc<RunArea>,
}

impl RunArea {
    /// Maps the run area of the vcpu behind `fd`: `len` bytes, as the kernel told.
    ///
    /// # Errors
    ///
    /// The operating system's; or `InvalidInput` when `len` is too short for a run area.
    pub(crate) fn map(fd: &impl AsRawFd, len: usize) -> io::Result<(Arc<Self>, RunReport)> {
        if len < size_of::<kvm_run>() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: a new shared mapping wherever the kernel likes; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrInUse)?;
        let area = Arc::new(Self { base, len });
        let report = RunReport { area: Arc::clone(&area) };
        Ok((area, report))
    }
}

impl ExitFlag for Arc<RunArea> {
    fn byte(&self) -> &AtomicU8 {
        let byte = self.base.as_ptr().wrapping_add(offset_of!(kvm_run, immediate_exit));
        // SAFETY: mapped while `self` lives, and only ever used as an atomic, by the invariants.
        unsafe { AtomicU8::from_ptr(byte) }
    }
}

impl RunReport {
    /// What the kernel left after the last `KVM_RUN`, from `exit_reason` on. Not to be kept over the
    /// next one, which is why it borrows the report mutably.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let start = self.area.base.as_ptr().wrapping_add(REPORT);
        // SAFETY: mapped while `self` lives; nobody else touches these bytes while it is borrowed, by
        // the invariants: there is one report, and the kernel writes during `KVM_RUN` only.
        unsafe { slice::from_raw_parts_mut(start, self.area.len - REPORT) }
    }
}

impl Drop for RunReport {
    /// Lets go of the kernel's memory. Whoever may still knock keeps the addresses, with plain memory
    /// behind them: a knocker that outlives its vcpu must not keep the virtual machine alive, whose end
    /// may wait for page faults that the knocker's owner has to answer.
    fn drop(&mut self) {
        let RunArea { base, len } = *self.area;
        // SAFETY: replaces exactly what `map` mapped, in one step; the addresses stay readable and
        // writable, as the invariants want, and nobody keeps anything in them but the flag.
        let plain = unsafe {
            libc::mmap(
                base.as_ptr().cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if plain == libc::MAP_FAILED {
            // The old mapping is still there: the machine then lives as long as its knockers.
            tracing::debug!("a run area could not be given back early");
        }
    }
}

impl Drop for RunArea {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; nobody can reach it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering;

    use super::*;

    /// A file stands for the kernel: what we map it sees, and the other way round.
    fn kernel(len: u64) -> File {
        // SAFETY: a name without interior NUL, and no other pointers.
        let fd = unsafe { libc::memfd_create(c"run-area".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: just created, owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn the_flag_is_the_byte_the_kernel_reads() {
        let kernel = kernel(8192);
        let (area, _report) = RunArea::map(&kernel, 8192).unwrap();
        area.byte().store(1, Ordering::Relaxed);
        let mut head = [0; 3];
        kernel.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(head, [0, 1, 0]);
    }

    #[test]
    fn the_report_begins_with_the_reason_and_ends_with_the_area() {
        let kernel = kernel(8192);
        let (_area, mut report) = RunArea::map(&kernel, 8192).unwrap();
        kernel.write_all_at(&8u32.to_ne_bytes(), 8).unwrap();
        assert_eq!(report.bytes()[..4], 8u32.to_ne_bytes());
        assert_eq!(report.bytes().len(), 8192 - 8);
    }

    #[test]
    fn a_knocker_that_outlives_the_vcpu_knocks_on_plain_memory() {
        let kernel = kernel(8192);
        let (area, report) = RunArea::map(&kernel, 8192).unwrap();
        drop(report);
        area.byte().store(1, Ordering::Relaxed);
        assert_eq!(area.byte().load(Ordering::Relaxed), 1);
        let mut head = [9; 3];
        kernel.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(head, [0, 0, 0]);
    }

    #[test]
    fn an_area_that_is_too_small_or_not_mappable_is_refused() {
        assert!(RunArea::map(&kernel(8192), 64).is_err());
        let not_mappable = File::open("/proc/self/status").unwrap();
        assert!(RunArea::map(&not_mappable, 8192).is_err());
    }
}
