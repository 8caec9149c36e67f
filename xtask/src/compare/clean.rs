//! Free memory in which the emulator remembers no code.
//!
//! Where code was translated, TCG pays for the next store: a block of 2 MiB that held a kernel's text takes 30 to 130 ms
//! to clear instead of 1.2. No processor does so, and whom it hits is chance: a boot gets the memory that the one before it left,
//! in whatever order. So before each boot that is timed nearly all free memory is stored to once, by this program, for whoever comes next.

use std::fs;
use std::hint::black_box;
use std::path::Path;

use crate::failure::{Failure, Outcome, about};

/// What is left to the rest of the lab meanwhile, in bytes.
const LEFT: usize = 128 << 20;

/// Stores to nearly all memory that is free, and gives it back.
///
/// # Errors
///
/// The kernel does not say how much is free.
pub(super) fn clean_free_memory() -> Outcome {
    let path = Path::new("/proc/meminfo");
    let text = fs::read_to_string(path).map_err(about("read", path))?;
    let free = free_bytes(&text).ok_or_else(|| Failure::new("/proc/meminfo has no MemFree"))?;
    // The kernel clears each page at its first store, which is all that is wanted.
    let mut memory: Vec<u8> = vec![0; free.saturating_sub(LEFT)];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    black_box(&memory);
    Ok(())
}

fn free_bytes(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
    let kb: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_the_line_of_that_name() {
        let text = "MemTotal:  3000 kB\nMemFree:   200 kB\nMemAvailable: 999 kB\n";
        assert_eq!(free_bytes(text), Some(200 << 10));
        assert_eq!(free_bytes("MemAvailable: 999 kB\n"), None);
    }
}
