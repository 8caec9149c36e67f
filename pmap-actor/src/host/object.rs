//! The file that a guest's memory is.
//!
//! Huge pages of shared memory are allocated in one piece only where the file's mount says so, and the mount behind
//! memfds says what `shmem_enabled` says: "never", by default. Then a block has to be 512 pages first, copied together
//! afterwards, which takes about five times as long. So where we may mount (as root, mostly) the object is a file of a tmpfs of its
//! own, mounted nowhere, which takes advice. It is gone with the file.

use std::ffi::CStr;
use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::huge::{HugeSupport, memfd};

/// How `/proc/PID/maps` and `/proc/PID/fd` name a guest's memory, whatever it is made of.
pub(super) const NAME: &CStr = c"skep-guest-memory";

/// An empty object, and whether a block of it can be allocated as one huge page.
///
/// # Errors
///
/// The operating system's.
pub(super) fn create() -> io::Result<(File, bool)> {
    match on_a_mount_that_takes_advice() {
        Ok(file) => Ok((file, true)),
        // Not allowed, too old a kernel, or one without huge pages: all of it is as well with a memfd.
        Err(why) => {
            tracing::debug!(%why, "no tmpfs of our own for guest memory");
            Ok((memfd(NAME, 0)?, HugeSupport::is_advice_taken_by_memfds()))
        }
    }
}

fn on_a_mount_that_takes_advice() -> io::Result<File> {
    let system = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&system, "huge", "advise")?;
    // No limit but the host's memory, as with a memfd. (A tmpfs takes half of it by default.)
    fsconfig_set_string(&system, "size", "0")?;
    fsconfig_create(&system)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(&mount, NAME, flags, Mode::RUSR | Mode::WUSR)?;
    unlinkat(&mount, NAME, AtFlags::empty())?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn an_object_is_empty_in_no_directory_known_by_its_name_and_keeps_what_is_written() {
        let (file, _) = create().unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert!(link.to_string_lossy().contains(NAME.to_str().unwrap()), "{}", link.display());
        file.set_len(64 << 30).unwrap();
        let found = file.metadata().unwrap();
        assert_eq!((found.blocks(), found.nlink()), (0, 0));
        file.write_all_at(b"here", 1 << 33).unwrap();
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 1 << 33).unwrap();
        assert_eq!(&bytes, b"here");
        assert_eq!(file.metadata().unwrap().blocks(), 8);
    }
}
