//! Flat binaries: bytes without a header, entered in 16-bit real mode at `0000:1000`.
//!
//! Nothing in such a file says that it is meant to run, so it must say so by its name,
//! `*.bin` or `*.flat`: garbage under any other name is refused.

use std::path::Path;

use crate::low_memory::{FLAT_END, FLAT_IMAGE};

/// Most bytes a flat binary may have: it lies below the firmware's area.
const MOST: u64 = FLAT_END.0 - FLAT_IMAGE.0;

/// Why a flat binary cannot be placed. Reads on after "the kernel FILE".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFlat {
    /// It would reach the firmware's area.
    #[error(
        "is a flat binary of {len} bytes: at most {MOST} fit between {FLAT_IMAGE} and {FLAT_END}"
    )]
    TooBig {
        /// Its length in bytes.
        len: u64,
    },
}

pub(crate) fn is_named_like_one(path: &Path) -> bool {
    path.extension()
        .is_some_and(|name| name.eq_ignore_ascii_case("bin") || name.eq_ignore_ascii_case("flat"))
}

pub(crate) fn check(len: u64) -> Result<(), BadFlat> {
    if len > MOST {
        return Err(BadFlat::TooBig { len });
    }
    Ok(())
}
