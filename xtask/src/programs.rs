//! Taking a program somewhere else, with the libraries it needs.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Outcome, about};
use crate::process::output;

/// The shared libraries and the dynamic loader a program needs; none for a
/// static one and for what is no program at all.
///
/// # Errors
///
/// When the file cannot be read.
pub(crate) fn libraries(program: &Path) -> Outcome<Vec<PathBuf>> {
    let mut magic = [0; 4];
    let is_elf =
        File::open(program).map_err(about("read", program))?.read_exact(&mut magic).is_ok()
            && &magic == b"\x7fELF";
    if !is_elf {
        return Ok(Vec::new());
    }
    // A static program makes ldd fail, which is the answer "none".
    let said = output(Command::new("ldd").arg(program)).unwrap_or_default();
    Ok(libraries_named(&String::from_utf8_lossy(&said))
        .into_iter()
        .filter(|path| fs::metadata(path).is_ok())
        .collect())
}

fn libraries_named(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            // "libc.so.6 => /lib/libc.so.6 (0x7f...)" or "/lib64/ld-linux.so.2 (0x7f...)"
            let place = line.split_once("=>").map_or(line, |(_, place)| place);
            let path = place.split_whitespace().next()?;
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                   \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries_named(ldd),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(libraries_named("\tstatically linked\n").is_empty());
    }

    #[test]
    fn what_is_no_program_needs_no_libraries() {
        assert!(libraries(Path::new("/proc/version")).unwrap().is_empty());
    }
}
