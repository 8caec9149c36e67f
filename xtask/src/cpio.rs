//! Writing the archives a Linux kernel unpacks as its first root: `newc` cpio.
//!
//! The format is in the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`: per item a
//! header of 110 ASCII characters, the name with a zero byte, and the contents,
//! both padded to four bytes; an item named `TRAILER!!!` ends it. Archives made
//! here belong to root whoever makes them, and may hold device nodes, so nobody
//! needs to be root to make one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::failure::{Failure, Outcome, about};

/// What kind of item it is: the `S_IF*` bits of a mode.
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;

/// A number of a character device: major, minor.
#[derive(Clone, Copy, Debug, Default)]
struct Device {
    major: u32,
    minor: u32,
}

/// An archive on its way to `out`.
#[derive(Debug)]
pub(crate) struct Archive<W: Write> {
    out: W,
    items: u32,
    written: u64,
    /// Directories that are in it already, so parents are added by themselves.
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub(crate) fn new(out: W) -> Self {
        Self { out, items: 0, written: 0, directories: BTreeSet::new() }
    }

    /// Adds a directory and those above it. Paths are absolute in the new root.
    ///
    /// # Errors
    ///
    /// When `out` refuses; the same for all that follow.
    pub(crate) fn directory(&mut self, path: &str) -> Outcome {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.parent_of(path)?;
        self.item(path, DIRECTORY | 0o755, Device::default(), &[])?;
        self.directories.insert(path.to_owned());
        Ok(())
    }

    /// Adds a file with these contents. `mode` holds the permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Outcome {
        self.parent_of(path)?;
        self.item(path, REGULAR | mode, Device::default(), contents)
    }

    /// Adds a copy of a file of this machine, with these permission bits.
    pub(crate) fn copy(&mut self, from: &Path, path: &str, mode: u32) -> Outcome {
        self.parent_of(path)?;
        let file = File::open(from).map_err(about("read", from))?;
        let size = file.metadata().map_err(about("read", from))?.len();
        self.header(path, REGULAR | mode, Device::default(), size)?;
        // The header has promised exactly `size` bytes, so a file that grows
        // meanwhile is cut there, and one that shrinks is an error.
        let copied = io::copy(&mut file.take(size), &mut self.out)
            .map_err(|error| Failure::new(format!("cannot copy {}: {error}", from.display())))?;
        if copied != size {
            return Err(Failure::new(format!(
                "{} shrank from {size} to {copied} bytes while it was copied",
                from.display()
            )));
        }
        self.written += size;
        self.pad()
    }

    /// Adds `/dev/console` (character device 5:1), without which the first
    /// process has nowhere to write.
    pub(crate) fn console(&mut self) -> Outcome {
        self.directory("/dev")?;
        let console = Device { major: 5, minor: 1 };
        self.item("dev/console", CHARACTER | 0o600, console, &[])
    }

    /// Ends the archive and gives back what it was written to.
    pub(crate) fn finish(mut self) -> Outcome<W> {
        self.item("TRAILER!!!", 0, Device::default(), &[])?;
        self.out.flush().map_err(refused)?;
        Ok(self.out)
    }

    fn parent_of(&mut self, path: &str) -> Outcome {
        match path.trim_start_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn item(&mut self, path: &str, mode: u32, device: Device, contents: &[u8]) -> Outcome {
        self.header(path, mode, device, contents.len() as u64)?;
        self.put(contents)?;
        self.pad()
    }

    fn header(&mut self, path: &str, mode: u32, device: Device, size: u64) -> Outcome {
        let name = path.trim_start_matches('/');
        let size = u32::try_from(size).map_err(|_| {
            Failure::new(format!("{name} has {size} bytes; a cpio item holds less than 4 GiB"))
        })?;
        self.items += 1;
        let Device { major, minor } = device;
        let (inode, links, owner, time, checksum) = (self.items, 1, 0, 0, 0);
        let mut header = String::from("070701");
        for field in [
            inode,
            mode,
            owner,
            owner,
            links,
            time,
            size,
            0, // the device the file was on
            0,
            major,
            minor,
            u32::try_from(name.len() + 1).expect("a path of less than 4 GiB"),
            checksum,
        ] {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> Outcome {
        self.out.write_all(bytes).map_err(refused)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> Outcome {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 4][..usize::try_from(missing).expect("less than 4")])
    }
}

fn refused(error: io::Error) -> Failure {
    Failure::new(format!("cannot write the cpio archive: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header, name and contents of each item, as the kernel's reader would take them.
    fn items(mut bytes: &[u8]) -> Vec<(u32, String, Vec<u8>)> {
        let mut items = Vec::new();
        while !bytes.is_empty() {
            let field = |index: usize| {
                let at = 6 + index * 8;
                let text = std::str::from_utf8(&bytes[at..at + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            items.push((mode, name, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
        items
    }

    fn item(mode: u32, name: &str, contents: &[u8]) -> (u32, String, Vec<u8>) {
        (mode, name.to_owned(), contents.to_vec())
    }

    #[test]
    fn what_was_put_in_is_read_back_with_parents_before_children() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/bin/sh", 0o755, b"12345").unwrap();
        archive.file("/init", 0o700, b"").unwrap();
        let bytes = archive.finish().unwrap();

        assert_eq!(
            items(&bytes),
            [
                item(0o040_755, "bin", b""),
                item(0o100_755, "bin/sh", b"12345"),
                item(0o100_700, "init", b""),
                item(0, "TRAILER!!!", b""),
            ]
        );
    }

    #[test]
    fn the_console_is_character_device_five_one() {
        let mut archive = Archive::new(Vec::new());
        archive.console().unwrap();
        let bytes = archive.finish().unwrap();
        let header = std::str::from_utf8(&bytes[116..226]).unwrap();
        assert!(items(&bytes).contains(&item(0o020_600, "dev/console", b"")));
        assert_eq!(&header[6 + 9 * 8..6 + 11 * 8], "0000000500000001");
    }

    #[test]
    fn a_copied_file_keeps_its_bytes() {
        let from = std::env::temp_dir().join(format!("skep-cpio-{}", std::process::id()));
        std::fs::write(&from, b"seven b").unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.copy(&from, "/copied", 0o644).unwrap();
        let bytes = archive.finish().unwrap();
        std::fs::remove_file(&from).unwrap();
        assert_eq!(items(&bytes)[0], item(0o100_644, "copied", b"seven b"));
    }
}
