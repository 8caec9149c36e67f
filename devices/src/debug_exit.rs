//! A port at which a test guest says how it went.

use actors::contract::guest::GuestEnd;
use actors::device::{Device, Effect};

/// Ports it answers at, so that a guest may write one, two or four bytes.
pub const LEN: u64 = 4;

/// Writing 0 ends the guest well; any other value is a failure with that number, or with
/// 255 if it does not fit into a byte. Reads give zeroes.
#[derive(Debug)]
pub struct DebugExit;

impl Device for DebugExit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        let Some((&low, high)) = data.split_first() else {
            return Effect::None;
        };
        Effect::Ends(if high.iter().any(|&byte| byte != 0) {
            GuestEnd::Failed(u8::MAX)
        } else if low != 0 {
            GuestEnd::Failed(low)
        } else {
            GuestEnd::PowerOff
        })
    }
}
