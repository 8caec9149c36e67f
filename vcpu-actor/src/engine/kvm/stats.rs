//! KVM's own statistics of one virtual machine (`Documentation/virt/kvm/api.rst`, "`KVM_GET_STATS_FD`": Linux
//! 5.14).
//!
//! The kernel gives a file: a header says where names and values are, and what is read at a
//! value's place is the value now.

#![expect(unsafe_code, reason = "the ioctl that opens the file has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use actors::contract::host::KvmPages;
use kvm_bindings::{kvm_stats_desc, kvm_stats_header};

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: u64 = 0xaece;
/// More than any kernel has (6.18: 18 of them, names of 48 bytes).
const MOST: u32 = 4096;

/// One machine's statistics, to be read at any time. It keeps the machine alive in the kernel.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// Where the values of `pages_4k`, `pages_2m` and `pages_1g` are.
    places: [u64; 3],
}

const NAMES: [&str; 3] = ["pages_4k", "pages_2m", "pages_1g"];

impl KvmStats {
    /// Opens those of the machine behind `vm`; `None` where its KVM has none.
    pub(super) fn open(vm: &impl AsRawFd) -> Option<Self> {
        // SAFETY: this ioctl takes no argument.
        let fd = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: `fd` was just created and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let places = find(&file).ok()??;
        Some(Self { file, places })
    }

    /// What KVM maps for the guest now.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn pages(&self) -> io::Result<KvmPages> {
        let value = |place| {
            let mut bytes = [0; 8];
            self.file.read_exact_at(&mut bytes, place)?;
            io::Result::Ok(u64::from_ne_bytes(bytes))
        };
        let [pages_4k, pages_2m, pages_1g] = self.places;
        Ok(KvmPages {
            pages_4k: value(pages_4k)?,
            pages_2m: value(pages_2m)?,
            pages_1g: value(pages_1g)?,
        })
    }
}

/// Where the values of [`NAMES`] are; none when one is missing.
fn find(file: &impl FileExt) -> io::Result<Option<[u64; 3]>> {
    let mut header = [0; size_of::<kvm_stats_header>()];
    file.read_exact_at(&mut header, 0)?;
    // Six words: flags, name size, how many, and where ids, descriptors and values are.
    let [_, name_size, count, _, descriptors, values] = words(&header);
    if count > MOST || name_size > MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let fixed = size_of::<kvm_stats_desc>();
    let each = fixed + usize::try_from(name_size).map_err(io::Error::other)?;
    let mut places = [None; 3];
    let mut descriptor = vec![0; each];
    for index in 0..u64::from(count) {
        file.read_exact_at(&mut descriptor, u64::from(descriptors) + index * each as u64)?;
        let (numbers, name) = descriptor.split_at(fixed);
        // Flags, exponent and size, offset, bucket size.
        let [_, _, offset, _] = words(numbers);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        for (place, wanted) in places.iter_mut().zip(NAMES) {
            if name == wanted.as_bytes() {
                *place = Some(u64::from(values) + u64::from(offset));
            }
        }
    }
    let [Some(first), Some(second), Some(third)] = places else { return Ok(None) };
    Ok(Some([first, second, third]))
}

fn words<const COUNT: usize>(bytes: &[u8]) -> [u32; COUNT] {
    let mut words = [0; COUNT];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A statistics file as a kernel could make it.
    fn file(names: &[&str], name_size: u32) -> io::Result<File> {
        let count = u32::try_from(names.len()).unwrap();
        let values = 64 + count * (16 + name_size);
        let mut bytes = Vec::new();
        for word in [0, name_size, count, 24, 64, values] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.resize(64, 0);
        for (index, name) in (0u32..).zip(names) {
            for word in [0, 1 << 16, index * 8, 0] {
                bytes.extend(word.to_ne_bytes());
            }
            let mut name = name.as_bytes().to_vec();
            name.resize(name_size as usize, 0);
            bytes.extend(name);
        }
        for value in 0..u64::from(count) {
            bytes.extend((100 + value).to_ne_bytes());
        }
        // SAFETY: the name is a C string; no other pointers are involved.
        let fd = unsafe { libc::memfd_create(c"stats".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: `fd` was just created and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.write_all_at(&bytes, 0)?;
        Ok(file)
    }

    #[test]
    fn values_are_found_by_their_names_wherever_they_are() {
        let file = file(&["mmu_flush", "pages_2m", "pages_4k", "x", "pages_1g"], 48).unwrap();
        let places = find(&file).unwrap().unwrap();
        let stats = KvmStats { file, places };
        let expected = KvmPages { pages_4k: 102, pages_2m: 101, pages_1g: 104 };
        assert_eq!(stats.pages().unwrap(), expected);
    }

    #[test]
    fn a_kernel_without_them_has_none_and_nonsense_is_an_error() {
        assert_eq!(find(&file(&["pages_4k", "pages_2m"], 48).unwrap()).unwrap(), None);
        assert!(find(&file(&["pages_4k"], MOST + 1).unwrap()).is_err());
        let cut = file(&["pages_4k"], 48).unwrap();
        cut.set_len(30).unwrap();
        assert!(find(&cut).is_err());
    }
}
