//! `cargo xtask fetch`: everything that comes from elsewhere, once.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::apt::{self, Apt};
use crate::cache::{Cache, CacheLock};
use crate::failure::{Failure, Outcome, about};
use crate::kernels::{self, Kernel, LAB_LINE, Unpacked};
use crate::process::{print, say};

/// What `--help` says.
pub(crate) const HELP: &str = "\
Downloads what the lab and the demo boot, and keeps it.

Usage: cargo xtask fetch [--again]

  --again   forget what was downloaded before and take the newest

It takes two stock Debian kernels (the cloud flavour of 6.1 from bookworm and of
6.12 from bookworm-backports) and a static busybox from the Debian mirror that
/etc/apt names, with a private apt state: your sources are read, never changed,
and nothing is installed. About 60 MB are downloaded and 150 MB kept, in
$SKEP_CACHE, else $XDG_CACHE_HOME/skep, else ~/.cache/skep.

Programs needed to unpack them (xz, zstd, lz4) are installed when missing, only
as root, and only after saying which.
";

/// Everything that was downloaded, unpacked.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// A statically linked busybox.
    pub(crate) busybox: PathBuf,
    /// One of each of [`kernels::LINES`].
    pub(crate) kernels: Vec<Guest>,
}

/// A kernel in both its forms.
#[derive(Debug)]
pub(crate) struct Guest {
    /// `6.1`, for example.
    pub(crate) line: &'static str,
    /// As Debian ships it.
    pub(crate) shipped: Kernel,
    /// What was inside.
    pub(crate) unpacked: Unpacked,
}

/// The little that a guest on real hardware needs.
#[derive(Debug)]
pub(crate) struct Essentials {
    /// A statically linked busybox.
    pub(crate) busybox: PathBuf,
    /// The newest kernel we know.
    pub(crate) kernel: Kernel,
}

impl Fetched {
    /// The kernel that hosts the lab.
    pub(crate) fn lab(&self) -> &Guest {
        self.kernels
            .iter()
            .find(|guest| guest.line == LAB_LINE)
            .expect("LAB_LINE is one of LINES, and all of them were fetched")
    }
}

/// The command.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let again = match arguments {
        [] => false,
        [only] if only == "--again" => true,
        [other, ..] => {
            return Err(Failure::usage(format!(
                "fetch does not know {other:?}; see `cargo xtask fetch --help`"
            )));
        }
    };
    let cache = Cache::open()?;
    if again {
        let held = cache.lock()?;
        cache.forget(BUSYBOX, &held)?;
        for line in kernels::LINES {
            kernels::forget(&cache, line, &held)?;
        }
    }
    let fetched = all(&cache)?;
    for guest in &fetched.kernels {
        print(format!(
            "{}: {} and {}",
            guest.shipped.release()?,
            guest.shipped.bzimage().display(),
            guest.unpacked.vmlinux().display()
        ))?;
    }
    print(format!("busybox: {}", fetched.busybox.display()))?;
    Ok(0)
}

const BUSYBOX: &str = "busybox";

/// Everything, downloading what is not there. Silent and offline when all is.
///
/// # Errors
///
/// Whatever [`Apt`] says, and missing programs.
pub(crate) fn all(cache: &Cache) -> Outcome<Fetched> {
    if let Some(fetched) = ready(cache) {
        return Ok(fetched);
    }
    apt::ensure_programs(&kernels::PROGRAMS)?;
    let held = cache.lock()?;
    // Somebody else may have done it all while we waited.
    if let Some(fetched) = ready(cache) {
        return Ok(fetched);
    }
    let is_downloaded = kernels::LINES.iter().all(|line| kernels::shipped(cache, line).is_some());
    if !is_downloaded || cache.ready(BUSYBOX).is_none() {
        let apt = Apt::prepare(cache)?;
        fetch_busybox(cache, &apt, &held)?;
        for line in kernels::LINES {
            kernels::fetch(cache, &apt, line, &held)?;
        }
    }
    for line in kernels::LINES {
        if let Some(kernel) = kernels::shipped(cache, line) {
            kernels::unpack(cache, &kernel, line, &held)?;
        }
    }
    say(format!("downloads are kept in {}", cache.path("").display()));
    ready(cache).ok_or_else(emptied)
}

/// What a guest on real hardware needs: no programs to unpack it with.
///
/// # Errors
///
/// Whatever [`Apt`] says.
pub(crate) fn essentials(cache: &Cache) -> Outcome<Essentials> {
    let ready = || {
        Some(Essentials {
            busybox: cache.ready(BUSYBOX)?.join("busybox"),
            kernel: kernels::shipped(cache, LAB_LINE)?,
        })
    };
    if let Some(ready) = ready() {
        return Ok(ready);
    }
    let held = cache.lock()?;
    let apt = Apt::prepare(cache)?;
    fetch_busybox(cache, &apt, &held)?;
    kernels::fetch(cache, &apt, LAB_LINE, &held)?;
    ready().ok_or_else(emptied)
}

fn emptied() -> Failure {
    Failure::new("what was just downloaded is gone again; is somebody emptying the cache?")
}

fn ready(cache: &Cache) -> Option<Fetched> {
    let guest = |line: &'static str| {
        Some(Guest {
            line,
            shipped: kernels::shipped(cache, line)?,
            unpacked: kernels::unpacked(cache, line)?,
        })
    };
    Some(Fetched {
        busybox: cache.ready(BUSYBOX)?.join("busybox"),
        kernels: kernels::LINES.iter().map(|line| guest(line)).collect::<Option<Vec<_>>>()?,
    })
}

fn fetch_busybox(cache: &Cache, apt: &Apt, held: &CacheLock) -> Outcome {
    cache.entry(BUSYBOX, held, |folder| {
        let package = folder.join("package");
        apt.unpack("busybox-static", &package)?;
        let shipped = ["bin/busybox", "usr/bin/busybox"]
            .map(|path| package.join(path))
            .into_iter()
            .find(|path| path.exists())
            .ok_or_else(|| Failure::new("the busybox-static package holds no busybox"))?;
        fs::copy(&shipped, folder.join("busybox")).map_err(about("copy", &shipped))?;
        fs::remove_dir_all(&package).map_err(about("remove", &package))
    })?;
    Ok(())
}
