//! The Linux kernels we boot, as Debian ships them and as the ELF inside.
//!
//! Debian packages a `bzImage`: a small unpacker with the real kernel, a
//! compressed ELF, as its payload. Where that payload is stands in the setup
//! header (`payload_offset` and `payload_length`, boot protocol 2.08 and later;
//! the kernel's `Documentation/arch/x86/boot.rst`). We take it out, because the
//! ELF carries the PVH note and can be entered directly.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::Apt;
use crate::cache::{Cache, CacheLock};
use crate::failure::{Failure, Outcome, about};
use crate::process::say;

/// The lines of kernels we boot, oldest first.
pub(crate) const LINES: [&str; 2] = ["6.1", "6.12"];

/// The line that also hosts the lab.
pub(crate) const LAB_LINE: &str = "6.12";

/// What the lab's host needs to offer `/dev/kvm`, in the order of loading.
pub(crate) const LAB_MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];

/// Where those are in the package, below `lib/modules/RELEASE/kernel`.
const LAB_MODULE_FOLDERS: [&str; 3] = ["virt/lib", "arch/x86/kvm", "arch/x86/kvm"];

/// The programs that unpack kernels and modules, and their Debian packages.
pub(crate) const PROGRAMS: [(&str, &str); 3] =
    [("xz", "xz-utils"), ("zstd", "zstd"), ("lz4", "lz4")];

/// A downloaded kernel, as Debian ships it.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// The boot image.
    pub(crate) fn bzimage(&self) -> PathBuf {
        self.folder.join("bzImage")
    }

    /// What `uname -r` will say.
    ///
    /// # Errors
    ///
    /// When the cache was emptied meanwhile.
    pub(crate) fn release(&self) -> Outcome<String> {
        let file = self.folder.join("release");
        fs::read_to_string(&file).map(|text| text.trim().to_owned()).map_err(about("read", &file))
    }
}

/// What was packed inside a downloaded kernel.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    folder: PathBuf,
}

impl Unpacked {
    /// The ELF from inside the boot image.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// One of [`LAB_MODULES`]. Only [`LAB_LINE`] has them.
    pub(crate) fn module(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.ko"))
    }
}

/// The name of an entry says what is in it: one whose contents change gets another.
fn shipped_name(line: &str) -> String {
    format!("shipped-{line}")
}

fn unpacked_name(line: &str) -> String {
    format!("unpacked-{line}")
}

/// The kernel of this line, if it was downloaded before.
pub(crate) fn shipped(cache: &Cache, line: &str) -> Option<Kernel> {
    let folder = cache.ready(&shipped_name(line))?;
    Some(Kernel { folder })
}

/// What is inside the kernel of this line, if it was unpacked before.
pub(crate) fn unpacked(cache: &Cache, line: &str) -> Option<Unpacked> {
    let folder = cache.ready(&unpacked_name(line))?;
    Some(Unpacked { folder })
}

/// Forgets the kernel of this line.
///
/// # Errors
///
/// A file system that refuses.
pub(crate) fn forget(cache: &Cache, line: &str, held: &CacheLock) -> Outcome {
    cache.forget(&unpacked_name(line), held)?;
    cache.forget(&shipped_name(line), held)
}

/// Downloads the newest cloud kernel of this line, unless it is there already.
///
/// # Errors
///
/// A mirror that has none, a package that does not look as expected.
pub(crate) fn fetch(cache: &Cache, apt: &Apt, line: &str, held: &CacheLock) -> Outcome<Kernel> {
    // What was unpacked from an earlier download must not outlive it.
    if shipped(cache, line).is_none() {
        cache.forget(&unpacked_name(line), held)?;
    }
    let folder = cache.entry(&shipped_name(line), held, |folder| {
        let release = apt.newest_cloud_kernel(line)?;
        let package = folder.join("package");
        apt.unpack(&format!("linux-image-{release}-unsigned"), &package)?;
        keep(&package.join(format!("boot/vmlinuz-{release}")), &folder.join("bzImage"))?;
        if line == LAB_LINE {
            let modules = package.join(format!("lib/modules/{release}/kernel"));
            for (name, below) in LAB_MODULES.iter().zip(LAB_MODULE_FOLDERS) {
                let packed = format!("{name}.ko.xz");
                keep(&modules.join(below).join(&packed), &folder.join(&packed))?;
            }
        }
        let stamp = folder.join("release");
        fs::write(&stamp, format!("{release}\n")).map_err(about("write", &stamp))?;
        fs::remove_dir_all(&package).map_err(about("remove", &package))
    })?;
    Ok(Kernel { folder })
}

/// Unpacks what is inside a downloaded kernel, unless that was done already.
///
/// # Errors
///
/// An image that does not look as expected.
pub(crate) fn unpack(cache: &Cache, kernel: &Kernel, line: &str, held: &CacheLock) -> Outcome {
    cache.entry(&unpacked_name(line), held, |folder| {
        say(format!("unpacking {}", kernel.release()?));
        extract_vmlinux(&kernel.bzimage(), &folder.join("vmlinux"))?;
        if line == LAB_LINE {
            for name in LAB_MODULES {
                let packed = kernel.folder.join(format!("{name}.ko.xz"));
                filter(&["xz", "-dc"], &packed, &folder.join(format!("{name}.ko")))?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn keep(from: &Path, to: &Path) -> Outcome {
    fs::copy(from, to).map(drop).map_err(about("copy", from))
}

/// Writes the ELF inside a bzImage to `vmlinux`.
fn extract_vmlinux(bzimage: &Path, vmlinux: &Path) -> Outcome {
    let image = fs::read(bzimage).map_err(about("read", bzimage))?;
    let named = |failure: Failure| Failure::new(format!("{}: {failure}", bzimage.display()));
    let payload = payload(&image).map_err(named)?;
    let (unpacker, packed) = unpacker(payload).map_err(named)?;
    let part = vmlinux.with_extension("packed");
    fs::write(&part, packed).map_err(about("write", &part))?;
    filter(unpacker, &part, vmlinux)?;
    fs::remove_file(&part).map_err(about("remove", &part))?;

    let size = fs::metadata(vmlinux).map_err(about("read", vmlinux))?.len();
    let promised = unpacked_size(payload);
    if promised != Some(size) {
        return Err(Failure::new(format!(
            "{}: the kernel inside has {size} bytes, and {promised:?} were promised",
            bzimage.display()
        )));
    }
    let mut magic = [0; 4];
    File::open(vmlinux)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic))
        .map_err(about("read", vmlinux))?;
    if &magic != b"\x7fELF" {
        return Err(Failure::new(format!("{}: what is inside is not an ELF", bzimage.display())));
    }
    Ok(())
}

/// The compressed kernel inside a bzImage.
fn payload(image: &[u8]) -> Outcome<&[u8]> {
    let word = |at: usize| -> Option<u32> {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let found = || -> Option<&[u8]> {
        let is_bzimage = image.get(0x202..0x206)? == b"HdrS" && word(0x206)? & 0xffff >= 0x208;
        let setup_sectors = match *image.get(0x1f1)? {
            0 => 4, // what the boot protocol says a zero means
            sectors => usize::from(sectors),
        };
        let start = (setup_sectors + 1) * 512 + usize::try_from(word(0x248)?).ok()?;
        let length = usize::try_from(word(0x24c)?).ok()?;
        let payload = image.get(start..start.checked_add(length)?)?;
        is_bzimage.then_some(payload)
    };
    found().ok_or_else(|| Failure::new("not a bzImage with a payload (boot protocol 2.08)"))
}

/// Which program unpacks this payload, and what to give it.
///
/// The kernel's build appends the unpacked size, four bytes that are no part of
/// the compressed stream and that some of the programs stumble over.
fn unpacker(payload: &[u8]) -> Outcome<(&'static [&'static str], &[u8])> {
    let (packed, _size) = payload.split_at(payload.len().saturating_sub(4));
    let program: &[&str] = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-dcq"],
        [0x02, 0x21, 0x4c, 0x18, ..] => &["lz4", "-dcq"],
        [0xfd, b'7', b'z', b'X', b'Z', ..] => &["xz", "-dc"],
        // gzip's own last four bytes are that size, so nothing was appended.
        [0x1f, 0x8b, ..] => return Ok((&["gzip", "-dc"], payload)),
        _ => {
            return Err(Failure::new(format!(
                "packed in a way nobody here knows (first bytes {:02x?})",
                &payload[..payload.len().min(6)]
            )));
        }
    };
    Ok((program, packed))
}

fn unpacked_size(payload: &[u8]) -> Option<u64> {
    let size = payload.last_chunk::<4>()?;
    Some(u64::from(u32::from_le_bytes(*size)))
}

/// Runs `program < from > to`.
fn filter(program: &[&str], from: &Path, to: &Path) -> Outcome {
    let input = File::open(from).map_err(about("read", from))?;
    let output = File::create(to).map_err(about("write", to))?;
    let status = Command::new(program[0])
        .args(&program[1..])
        .stdin(input)
        .stdout(output)
        .stderr(Stdio::inherit())
        .status()
        .map_err(|error| Failure::new(format!("cannot start {}: {error}", program[0])))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} ended with {status} while unpacking {}",
        program[0],
        from.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one setup sector and this payload at offset 0x10 of the rest.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 0x10];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&0x10_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_where_the_setup_header_says() {
        let image = bzimage(b"packed kernel");
        assert_eq!(payload(&image).unwrap(), b"packed kernel");
    }

    #[test]
    fn a_truncated_image_and_one_of_another_kind_are_refused() {
        let image = bzimage(b"packed kernel");
        assert!(payload(&image[..image.len() - 1]).is_err());
        assert!(payload(b"\x7fELF").is_err());
        let mut wild = image;
        wild[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(payload(&wild).is_err());
    }

    #[test]
    fn the_packing_is_known_by_its_first_bytes_and_the_size_at_the_end_is_left_out() {
        let zstd = b"\x28\xb5\x2f\xfdxyz\x07\0\0\0";
        assert_eq!(unpacker(zstd).unwrap(), (&["zstd", "-dcq"][..], &zstd[..7]));
        assert_eq!(unpacked_size(zstd), Some(7));
        let gzip = b"\x1f\x8bxyz\x07\0\0\0";
        assert_eq!(unpacker(gzip).unwrap(), (&["gzip", "-dc"][..], &gzip[..]));
        assert!(unpacker(b"BZh9").is_err());
    }
}
