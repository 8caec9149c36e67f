//! The bytes between two labels, as a slice: the small room every guest's image comes from.

/// Defines `fn $name() -> &'static [u8]`: the bytes from the symbol `$start` up to `$end`.
///
/// # Invariant
///
/// Both symbols are defined in one `global_asm!` block, in this order, in one read-only
/// section: so all bytes between them belong to that block, are initialised, are never
/// written, and live as long as the program.
///
/// The module that uses this opts in to `unsafe_code`, as it must for `global_asm!`.
macro_rules! image_between {
    ($(#[$doc:meta])* $visible:vis $name:ident, $start:ident, $end:ident) => {
        $(#[$doc])*
        $visible fn $name() -> &'static [u8] {
            // SAFETY: the symbols exist (the invariant above); only their addresses are
            // used, never a value of this type behind them.
            unsafe extern "C" {
                safe static $start: u8;
                safe static $end: u8;
            }
            let start = &raw const $start;
            let length = (&raw const $end).addr() - start.addr();
            // SAFETY: by the invariant above, `length` initialised, immutable bytes
            // start at `start` and live for ever.
            unsafe { std::slice::from_raw_parts(start, length) }
        }
    };
}

pub(super) use image_between;
