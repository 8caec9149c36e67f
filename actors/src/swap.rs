//! Where pages go that leave memory: a file, as it is asked for.

use std::path::PathBuf;
use std::str::FromStr;

use crate::layout::{BadSize, parse_memory_size};

/// A swap file, as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapSpec {
    /// The file or block device. A file is made if it is not there.
    pub path: PathBuf,
    /// How much it takes at most, in bytes; nothing: as much as the guest has memory.
    pub bytes: Option<u64>,
}

/// Why what was typed is no swap file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSwap {
    /// No name.
    #[error("\"{0}\" names no file: write FILE or FILE,size=SIZE")]
    NoFile(String),
    /// A comma, and then not `size=`.
    #[error(
        "\"{0}\" has a comma without \"size=\" after it: write FILE or FILE,size=SIZE, and give the file a name without one"
    )]
    StrayComma(String),
    /// Its size cannot be read.
    #[error(transparent)]
    Size(#[from] BadSize),
}

impl FromStr for SwapSpec {
    type Err = BadSwap;

    /// Reads `FILE` or `FILE,size=SIZE`; sizes as in [`parse_memory_size`].
    fn from_str(text: &str) -> Result<Self, BadSwap> {
        let (file, size) = match text.split_once(',') {
            None => (text, None),
            Some((file, option)) => match option.strip_prefix("size=") {
                Some(size) if !size.contains(',') => (file, Some(size)),
                _ => return Err(BadSwap::StrayComma(text.to_owned())),
            },
        };
        if file.is_empty() {
            return Err(BadSwap::NoFile(text.to_owned()));
        }
        let bytes = size.map(parse_memory_size).transpose()?;
        Ok(Self { path: file.into(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SwapSpec, BadSwap> {
        text.parse()
    }

    #[test]
    fn a_file_alone_has_no_size_and_a_size_is_read_like_memory() {
        let at = |path: &str, bytes| Ok(SwapSpec { path: path.into(), bytes });
        assert_eq!(read("/tmp/swap"), at("/tmp/swap", None));
        assert_eq!(read("swap,size=64"), at("swap", Some(64 << 20)));
        assert_eq!(read("a=b,size=12K"), at("a=b", Some(12 << 10)));
    }

    #[test]
    fn what_is_no_swap_file_is_named() {
        for text in ["", ",size=1G"] {
            assert_eq!(read(text), Err(BadSwap::NoFile(text.to_owned())));
        }
        for text in ["swap,", "swap,sise=1G", "a,b", "swap,size=1G,size=2G"] {
            assert_eq!(read(text), Err(BadSwap::StrayComma(text.to_owned())));
        }
        assert!(matches!(read("swap,size=large"), Err(BadSwap::Size(_))));
    }
}
