//! Where downloads are kept, so that a half-done one never looks done.
//!
//! An entry is a directory. It is made elsewhere, listed in its own `complete`
//! file, and only then moved to its name in one step. Whoever opens it later
//! checks that every listed file still has the listed size, and makes the entry
//! again otherwise.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome, about};
use crate::process::say;

/// The file that lists what a complete entry holds: `SIZE NAME` a line.
const STAMP: &str = "complete";

/// The directory all downloads live in.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// Held while downloading: two chores at once would do the same work twice.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub(crate) struct CacheLock {
    _file: File,
}

impl Cache {
    /// Opens `$SKEP_CACHE`, else `$XDG_CACHE_HOME/skep`, else `~/.cache/skep`.
    ///
    /// # Errors
    ///
    /// When none of these is set or the directory cannot be made.
    pub(crate) fn open() -> Outcome<Self> {
        let root = place(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
        fs::create_dir_all(&root).map_err(about("create the cache directory", &root))?;
        let root = fs::canonicalize(&root).map_err(about("open", &root))?;
        Ok(Self { root })
    }

    /// A cache in a directory of the caller's.
    #[cfg(test)]
    fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A path inside the cache; nothing is made there.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Waits until no other chore is downloading.
    ///
    /// # Errors
    ///
    /// When the lock file cannot be made.
    pub(crate) fn lock(&self) -> Outcome<CacheLock> {
        let path = self.path("lock");
        let file = File::create(&path).map_err(about("create", &path))?;
        if file.try_lock().is_err() {
            say("waiting for another `cargo xtask` that is downloading");
            file.lock().map_err(about("lock", &path))?;
        }
        Ok(CacheLock { _file: file })
    }

    /// The entry of this name, if it is there and whole.
    pub(crate) fn ready(&self, name: &str) -> Option<PathBuf> {
        let entry = self.path(name);
        is_whole(&entry).then_some(entry)
    }

    /// Returns the entry of this name, making it first when it is not there.
    ///
    /// `make` fills an empty directory. Whatever happens to it, the entry's name
    /// only ever holds a whole one.
    ///
    /// # Errors
    ///
    /// What `make` says, or a file system that refuses.
    pub(crate) fn entry(
        &self,
        name: &str,
        _held: &CacheLock,
        make: impl FnOnce(&Path) -> Outcome,
    ) -> Outcome<PathBuf> {
        if let Some(entry) = self.ready(name) {
            return Ok(entry);
        }
        let entry = self.path(name);
        let making = self.path(&format!(".making-{name}"));
        clear(&making)?;
        clear(&entry)?;
        fs::create_dir_all(&making).map_err(about("create", &making))?;
        make(&making)?;
        let stamp = making.join(STAMP);
        fs::write(&stamp, listing(&making)?).map_err(about("write", &stamp))?;
        fs::rename(&making, &entry).map_err(about("move into place", &entry))?;
        Ok(entry)
    }

    /// Forgets an entry, so that the next use makes it again.
    ///
    /// # Errors
    ///
    /// A file system that refuses.
    pub(crate) fn forget(&self, name: &str, _held: &CacheLock) -> Outcome {
        clear(&self.path(name))
    }
}

/// Which directory the environment asks for.
fn place(variable: impl Fn(&str) -> Option<String>) -> Outcome<PathBuf> {
    variable("SKEP_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("XDG_CACHE_HOME")?).join("skep")))
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache/skep")))
        .ok_or_else(|| {
            Failure::new(
                "no place for downloads: neither SKEP_CACHE nor XDG_CACHE_HOME nor HOME is set; \
                 set SKEP_CACHE to a directory",
            )
        })
}

fn clear(directory: &Path) -> Outcome {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(about("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

/// `SIZE NAME` for each file directly inside `directory`, in order of name.
fn listing(directory: &Path) -> Outcome<String> {
    let mut lines = Vec::new();
    for item in fs::read_dir(directory).map_err(about("list", directory))? {
        let item = item.map_err(about("list", directory))?;
        let meta = item.metadata().map_err(about("examine", directory))?;
        if meta.is_file() {
            lines.push(format!("{} {}\n", meta.len(), item.file_name().display()));
        }
    }
    lines.sort();
    Ok(lines.concat())
}

fn is_whole(entry: &Path) -> bool {
    let Ok(stamp) = fs::read_to_string(entry.join(STAMP)) else {
        return false;
    };
    stamp.lines().all(|line| {
        line.split_once(' ').is_some_and(|(size, name)| {
            fs::metadata(entry.join(name)).is_ok_and(|meta| meta.len().to_string() == size)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache in a directory that goes away with it.
    struct Scratch {
        cache: Cache,
    }

    impl Scratch {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("skep-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self { cache: Cache::at(&root) }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.cache.root).unwrap();
        }
    }

    fn write_kernel(directory: &Path) -> Outcome {
        fs::write(directory.join("kernel"), b"whole").map_err(about("write", directory))
    }

    #[test]
    fn an_entry_is_made_once_and_then_found() {
        let scratch = Scratch::new("made-once");
        let lock = scratch.cache.lock().unwrap();
        let first = scratch.cache.entry("k", &lock, write_kernel).unwrap();
        let second = scratch.cache.entry("k", &lock, |_| Err(Failure::new("made twice"))).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read(second.join("kernel")).unwrap(), b"whole");
    }

    #[test]
    fn a_failed_making_leaves_no_entry() {
        let scratch = Scratch::new("failed");
        let lock = scratch.cache.lock().unwrap();
        let made = scratch.cache.entry("k", &lock, |directory| {
            write_kernel(directory)?;
            Err(Failure::new("the network went away"))
        });
        assert!(made.is_err());
        assert_eq!(scratch.cache.ready("k"), None);
    }

    #[test]
    fn a_truncated_file_makes_the_entry_unready() {
        let scratch = Scratch::new("truncated");
        let lock = scratch.cache.lock().unwrap();
        let entry = scratch.cache.entry("k", &lock, write_kernel).unwrap();
        fs::write(entry.join("kernel"), b"who").unwrap();
        assert_eq!(scratch.cache.ready("k"), None);
        scratch.cache.entry("k", &lock, write_kernel).unwrap();
        assert_eq!(scratch.cache.ready("k"), Some(entry));
    }

    #[test]
    fn the_most_particular_variable_decides_the_place() {
        let all = |name: &str| Some(format!("/{name}"));
        let home = |name: &str| (name == "HOME").then(|| "/home/ada".to_owned());
        assert_eq!(place(all).unwrap(), PathBuf::from("/SKEP_CACHE"));
        assert_eq!(place(home).unwrap(), PathBuf::from("/home/ada/.cache/skep"));
        assert!(place(|_| None).is_err());
    }
}
