//! `cargo xtask fetch`: everything that comes from elsewhere, once.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::apt::{self, Apt};
use crate::cache::{Cache, CacheLock};
use crate::failure::{Failure, Outcome, about};
use crate::kernels::{self, Kernel};
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

/// Everything that was downloaded.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// A statically linked busybox.
    pub(crate) busybox: PathBuf,
    /// Each line of kernels, with its name (`6.1`).
    pub(crate) kernels: Vec<(&'static str, Kernel)>,
}

impl Fetched {
    /// The kernel of a line we fetch.
    pub(crate) fn kernel(&self, line: &str) -> &Kernel {
        self.kernels
            .iter()
            .find(|(name, _)| *name == line)
            .map(|(_, kernel)| kernel)
            .expect("every line of LINES was fetched")
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
    for (_, kernel) in &fetched.kernels {
        print(format!(
            "{}: {} and {}",
            kernel.release()?,
            kernel.bzimage().display(),
            kernel.vmlinux().display()
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
    let apt = Apt::prepare(cache)?;
    fetch_busybox(cache, &apt, &held)?;
    for line in kernels::LINES {
        kernels::fetch(cache, &apt, line, &held)?;
    }
    say(format!("downloads are kept in {}", cache.path("").display()));
    ready(cache).ok_or_else(|| {
        Failure::new("what was just downloaded is gone again; is somebody emptying the cache?")
    })
}

fn ready(cache: &Cache) -> Option<Fetched> {
    let kernels = kernels::LINES
        .iter()
        .map(|&line| Some((line, kernels::ready(cache, line)?)))
        .collect::<Option<Vec<_>>>()?;
    let busybox = cache.ready(BUSYBOX)?.join("busybox");
    Some(Fetched { busybox, kernels })
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
