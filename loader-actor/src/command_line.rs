//! The kernel command line: bytes that end with a zero.

use crate::low_memory::COMMAND_LINE_ROOM;

/// Why a command line cannot be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommandLine {
    /// Longer than the kernel reads.
    #[error("the command line has {len} bytes: this kernel reads at most {most}")]
    TooLong {
        /// Its length in bytes.
        len: u64,
        /// The kernel's limit in bytes.
        most: u64,
    },
    /// It would end early.
    #[error("the command line has a zero byte at position {at}, where the kernel would stop")]
    HasZero {
        /// Where, counted from 0.
        at: usize,
    },
}

/// What Linux reads on x86 (`COMMAND_LINE_SIZE` less the final zero), for kernels that
/// have no header to say so.
pub(crate) const LINUX_LIMIT: u64 = 2047;

/// The bytes to place: `text` and a zero. `most` is the kernel's limit.
pub(crate) fn to_bytes(text: &str, most: u64) -> Result<Vec<u8>, BadCommandLine> {
    let most = most.min(COMMAND_LINE_ROOM - 1);
    let len = text.len() as u64;
    if len > most {
        return Err(BadCommandLine::TooLong { len, most });
    }
    if let Some(at) = text.bytes().position(|byte| byte == 0) {
        return Err(BadCommandLine::HasZero { at });
    }
    Ok([text.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_kernels_or_the_rooms_whichever_is_less() {
        assert_eq!(to_bytes("ab", 2), Ok(b"ab\0".to_vec()));
        let refused = to_bytes("abc", 2);
        assert_eq!(refused, Err(BadCommandLine::TooLong { len: 3, most: 2 }));
        let endless = "x".repeat(0x1_0000);
        assert!(to_bytes(&endless, u64::MAX).is_err());
        assert!(to_bytes(&endless[1..], u64::MAX).is_ok());
    }

    #[test]
    fn a_zero_byte_inside_is_refused() {
        let refused = to_bytes("quiet\0init=/evil", 100);
        assert_eq!(refused, Err(BadCommandLine::HasZero { at: 5 }));
    }
}
