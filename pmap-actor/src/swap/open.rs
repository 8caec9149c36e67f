//! Opening a swap file without harm to anybody's data.
//!
//! Whoever types a file's name may mistype it. So, in this order, and nothing is changed
//! before the last step:
//!
//! 1. It is a regular file, a block device, or nothing yet. Opened for us alone to read.
//! 2. It is locked (`flock`; a block device also by `O_EXCL`, which mounts respect), so two
//!    machines never share it. The lock goes with the file descriptor, however skep ends.
//! 3. It is empty, or it begins with our mark: then an earlier run made it. A device is empty
//!    if its first 128 KiB are zeroes, where every common file system, partition table and
//!    volume manager has something.
//! 4. Old contents are dropped, room is made, and the mark is written.

#![expect(
    unsafe_code,
    reason = "fallocate and fcntl are system calls without a safe wrapper in std"
)]

use std::fs::{File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::swap::PAGE_BYTES;
use crate::swap::file::{CreateError, Room, RunBuffer};

/// What our files begin with.
const MARK: &[u8] =
    b"skep swap file, version 1. What it holds is of no use without the run that wrote it.\n";

/// Bytes of a device that must be zeroes for it to be empty: btrfs's first mark is at 64 KiB.
const EMPTY_BYTES: usize = 128 << 10;

/// Bytes written at once where the file system cannot reserve room.
const FILL_PAGES: usize = 256;

/// A file that is ours.
pub(super) struct Opened {
    pub(super) file: File,
    /// The same, if it grows as it is written.
    pub(super) sparse: Option<File>,
    pub(super) slots: u32,
    pub(super) bypasses_cache: bool,
}

pub(super) fn open(path: &Path, room: Room) -> Result<Opened, CreateError> {
    let host = |what| move |why| CreateError::Host { what, path: path.to_owned(), why };
    let wanted = slots_in(room.bytes())?;
    let is_device = match path.metadata() {
        Ok(metadata) => is_device(path, &metadata)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(why) => return Err(host("look at")(why)),
    };
    // Not blocking: what is a pipe only now must not stop us here.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK | if is_device { libc::O_EXCL } else { 0 };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(!is_device)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(CreateError::InUse { path: path.to_owned() });
        }
        Err(why) => return Err(host("open")(why)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(CreateError::InUse { path: path.to_owned() });
        }
        Err(TryLockError::Error(why)) => return Err(host("lock")(why)),
    }
    // Again, of what was opened: the name may have become another's.
    let metadata = file.metadata().map_err(host("look at"))?;
    let is_device = self::is_device(path, &metadata)?;
    let size = file.seek(SeekFrom::End(0)).map_err(host("find the end of"))?;
    if !is_ours(&file, size, is_device).map_err(host("read"))? {
        return Err(CreateError::NotOurs { path: path.to_owned() });
    }

    let slots = if is_device {
        let there = slots_in(size.saturating_sub(PAGE_BYTES as u64))?;
        if there < wanted && matches!(room, Room::Reserved(_)) {
            let why = io::Error::other(format!("the device has {size} bytes"));
            return Err(CreateError::NoRoom { path: path.to_owned(), bytes: room.bytes(), why });
        }
        there.min(wanted)
    } else {
        if metadata.permissions().mode() & 0o077 != 0 {
            // It is empty or ours, and will hold what a guest has in memory.
            file.set_permissions(Permissions::from_mode(0o600))
                .map_err(host("forbid others to read"))?;
        }
        file.set_len(0).map_err(host("empty"))?;
        let bytes = (u64::from(wanted) + 1) * PAGE_BYTES as u64;
        if let Err(why) = make_room(&file, bytes, room) {
            // What was taken is given back; the error is what counts.
            drop(file.set_len(0));
            let is_full = matches!(why.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
            return Err(if is_full {
                CreateError::NoRoom { path: path.to_owned(), bytes: room.bytes(), why }
            } else {
                host("make room in")(why)
            });
        }
        wanted
    };
    let bypasses_cache = mark(&file).map_err(host("write to"))?;
    let is_sparse = !is_device && matches!(room, Room::Sparse(_));
    let sparse = is_sparse.then(|| file.try_clone()).transpose().map_err(host("open"))?;
    Ok(Opened { file, sparse, slots, bypasses_cache })
}

/// How many whole slots so many bytes are.
fn slots_in(bytes: u64) -> Result<u32, CreateError> {
    match u32::try_from(bytes / PAGE_BYTES as u64) {
        Ok(0) => Err(CreateError::TooSmall { bytes }),
        Ok(slots) => Ok(slots),
        Err(_) => Err(CreateError::TooLarge { bytes }),
    }
}

fn is_device(path: &Path, metadata: &Metadata) -> Result<bool, CreateError> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(false),
        () if kind.is_block_device() => return Ok(true),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () => "something else",
    };
    Err(CreateError::NotAFile { path: path.to_owned(), what })
}

/// Whether nothing is lost when it is overwritten.
fn is_ours(file: &File, size: u64, is_device: bool) -> io::Result<bool> {
    let mut start = vec![0; if is_device { EMPTY_BYTES } else { MARK.len() }];
    let mut done = 0;
    while done < start.len() {
        match file.read_at(&mut start[done..], done as u64) {
            Ok(0) => break,
            Ok(some) => done += some,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let start = &start[..done];
    let is_empty = if is_device { start.iter().all(|byte| *byte == 0) } else { size == 0 };
    Ok(is_empty || start.starts_with(MARK))
}

/// Makes the file `bytes` long, and takes the room from the disk if that was asked for.
fn make_room(file: &File, bytes: u64, room: Room) -> io::Result<()> {
    if let Room::Sparse(_) = room {
        return file.set_len(bytes);
    }
    let len = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    loop {
        // SAFETY: no pointers are involved.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // A file system that cannot reserve: what is written has room.
            Some(libc::EOPNOTSUPP) => return fill(file, bytes),
            _ => return Err(error),
        }
    }
}

fn fill(file: &File, bytes: u64) -> io::Result<()> {
    let zeroes = RunBuffer::new(FILL_PAGES);
    let zeroes = zeroes.pages().as_flattened();
    let mut done = 0;
    while done < bytes {
        let len = usize::try_from(bytes - done).map_or(zeroes.len(), |left| left.min(zeroes.len()));
        file.write_all_at(&zeroes[..len], done)?;
        done += len as u64;
    }
    // Only now is the disk asked.
    file.sync_data()
}

/// Writes the mark, past the page cache if the file system lets us; says whether it does.
fn mark(file: &File) -> io::Result<bool> {
    let mut run = RunBuffer::new(1);
    let page = run.pages_mut().as_flattened_mut();
    page[..MARK.len()].copy_from_slice(MARK);
    // Some file systems refuse the flag, others the first write.
    let bypasses = set_direct(file, true).is_ok() && file.write_all_at(page, 0).is_ok();
    if !bypasses {
        set_direct(file, false)?;
        file.write_all_at(page, 0)?;
    }
    Ok(bypasses)
}

/// Sets or clears `O_DIRECT`; clears `O_NONBLOCK`, which was for opening only.
fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    // SAFETY: the flags of a descriptor of ours; no pointers are involved.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::swap::SwapFile;

    const MIB: u64 = 1 << 20;

    fn refusal(path: &Path, room: Room) -> CreateError {
        SwapFile::create(path, room).err().expect("it was to be refused")
    }

    #[test]
    fn a_new_file_is_for_nobody_else_to_read_and_has_its_room_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let file = SwapFile::create(&path, Room::Reserved(MIB)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(metadata.len(), MIB + 4096);
        assert!(metadata.blocks() * 512 > MIB);
        assert_eq!(file.slots(), 256);
    }

    #[test]
    fn a_sparse_file_takes_its_room_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let file = SwapFile::create(&path, Room::Sparse(MIB)).unwrap();
        assert_eq!(file.slots(), 256);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < MIB / 2);
    }

    #[test]
    fn a_sparse_file_is_cut_back_at_the_end_and_a_reserved_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        for (room, left) in [(Room::Sparse(MIB), 4096), (Room::Reserved(MIB), MIB + 4096)] {
            let file = SwapFile::create(&path, room).unwrap();
            file.write(crate::swap::Slot(200), RunBuffer::new(1).pages()).unwrap();
            drop(file);
            assert_eq!(fs::metadata(&path).unwrap().len(), left);
        }
    }

    #[test]
    fn an_empty_file_that_others_could_read_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        SwapFile::create(&path, Room::Sparse(MIB)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_file_of_an_earlier_run_is_used_again_at_another_size_and_without_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let file = SwapFile::create(&path, Room::Reserved(2 * MIB)).unwrap();
        let mut run = RunBuffer::new(1);
        run.pages_mut()[0].fill(7);
        file.write(crate::swap::Slot(3), run.pages()).unwrap();
        drop(file);
        let file = SwapFile::create(&path, Room::Reserved(MIB)).unwrap();
        assert_eq!((file.slots(), fs::metadata(&path).unwrap().len()), (256, MIB + 4096));
        assert!(!fs::read(&path).unwrap().contains(&7));
    }

    #[test]
    fn somebody_elses_file_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thesis.txt");
        fs::write(&path, "chapter one").unwrap();
        symlink(&path, dir.path().join("link")).unwrap();
        for name in ["thesis.txt", "link"] {
            let error = refusal(&dir.path().join(name), Room::Reserved(MIB));
            assert!(matches!(error, CreateError::NotOurs { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), b"chapter one");
        }
    }

    #[test]
    fn two_machines_do_not_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        let _first = SwapFile::create(&path, Room::Sparse(MIB)).unwrap();
        let error = refusal(&path, Room::Sparse(MIB));
        assert!(matches!(error, CreateError::InUse { .. }), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), MIB + 4096, "the first still has it");
    }

    #[test]
    fn directories_and_terminals_and_missing_places_are_called_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = refusal(dir.path(), Room::Sparse(MIB)).to_string();
        assert!(text.contains("is a directory"), "{text}");
        let text = refusal(Path::new("/dev/null"), Room::Sparse(MIB)).to_string();
        assert!(text.contains("is a character device"), "{text}");
        let text = refusal(&dir.path().join("no/such/place"), Room::Sparse(MIB)).to_string();
        assert!(text.contains("the host refused to open"), "{text}");
    }

    #[test]
    fn more_than_the_disk_has_is_refused_at_the_start_and_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swap");
        // 16 TiB, less a slot: more than any disk that tests run on.
        let bytes = u64::from(u32::MAX) * 4096;
        let error = refusal(&path, Room::Reserved(bytes));
        let is_named = matches!(error, CreateError::NoRoom { .. } | CreateError::Host { .. });
        assert!(is_named, "{error}");
        assert_eq!(fs::metadata(&path).unwrap().blocks(), 0);
        assert!(matches!(refusal(&path, Room::Sparse(bytes + 4096)), CreateError::TooLarge { .. }));
        assert!(matches!(refusal(&path, Room::Sparse(4095)), CreateError::TooSmall { .. }));
    }

    #[test]
    fn a_file_system_that_cannot_reserve_gets_zeroes() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 3 * MIB + 4096;
        fill(&file, bytes).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), bytes);
        assert!(metadata.blocks() * 512 >= bytes);
    }
}
