//! The devices every machine has, and the console they talk to.
//!
//! A device here knows a bus, an interrupt line and bytes. It does not know its address,
//! who runs the guest, or what becomes of the machine: what a write *means* travels back as
//! an [`Effect`](actors::device::Effect). Addresses are in [`actors::platform`], and who
//! lives at which is in one table, [`attach`].
//!
//! The console is an actor: a thread of its own between the guest's serial port and this
//! process's stdin, stdout and signals. No vcpu ever waits for it.
//!
//! Reading order: [`attach`], the small devices ([`reset`], [`debug_exit`], [`i8042`],
//! [`power`], [`rtc`]), then the way of a byte: [`serial`] → [`cable`] → [`console`]. The
//! interrupt controllers and the timer that KVM has in the kernel, for engines that have no
//! kernel: [`chipset`], then [`apic`], [`pic`] and [`pit`].
//!
//! Known holes, and what follows from them:
//!
//! * The clock's alarm, update and periodic interrupts never come (`rtc`): a guest that
//!   sleeps until an alarm sleeps until something else wakes it.
//! * There is no keyboard and no mouse behind the keyboard controller.
//! * The serial port sends as fast as the console takes: baud rates are remembered and
//!   otherwise ignored.

use std::sync::Arc;

use actors::device::{Bus, Device, Shared, Taken};
use actors::platform;
use parking_lot::Mutex;

pub mod apic;
pub mod cable;
pub mod chipset;
pub mod console;
pub mod debug_exit;
pub mod i8042;
pub mod pic;
pub mod pit;
pub mod power;
pub mod reset;
pub mod rtc;
pub mod serial;
mod sys;
pub mod terminal;

/// The devices somebody else holds too.
pub struct Wiring {
    /// The first serial port, which the console feeds.
    pub serial: Shared<serial::Serial>,
    /// Power management, whose button the machine may press.
    pub power: Shared<power::PowerManagement>,
}

/// Puts every device at its address: the bus of ports, and the bus of guest-physical
/// addresses, on which nobody lives yet. Interrupt controllers and the interval timer are the
/// engine's business: where it has none, [`chipset::Chipset::attach`] adds ours.
///
/// # Errors
///
/// [`Taken`], if two rows of the table overlap: a mistake in [`actors::platform`].
pub fn attach(wiring: Wiring) -> Result<(Bus, Bus), Taken> {
    let (keyboard_data, keyboard_command) = i8042::ports();
    let com1_len = u64::from(platform::COM1_LEN);
    let rtc_len = u64::from(platform::RTC_LEN);
    let power_len = u64::from(platform::PM1_EVENT_LEN) + u64::from(platform::PM1_CONTROL_LEN);

    let residents: [(u16, u64, Shared<dyn Device>); 7] = [
        (platform::I8042_DATA, 1, keyboard_data),
        (platform::I8042_COMMAND, 1, keyboard_command),
        (platform::RTC, rtc_len, share(rtc::Rtc::of_the_host())),
        (platform::DEBUG_EXIT, debug_exit::LEN, share(debug_exit::DebugExit)),
        (platform::COM1, com1_len, wiring.serial),
        // The control block follows the event block.
        (platform::PM1_EVENT, power_len, wiring.power),
        // Inside the four ports of PCI's configuration address (0xcf8), where nobody lives:
        // only a one-byte access to exactly this port is a reset.
        (platform::RESET_PORT, 1, share(reset::ResetRegister::default())),
    ];
    let mut ports = Bus::default();
    for (base, len, device) in residents {
        ports.attach(u64::from(base), len, device)?;
    }
    Ok((ports, Bus::default()))
}

fn share<D: Device + 'static>(device: D) -> Shared<dyn Device> {
    Arc::new(Mutex::new(device))
}

/// The one-byte registers that an access at `offset` meets, one after the other. All these
/// devices are eight bits wide, and that is how a bus gives them a wider access.
fn registers(offset: u64) -> impl Iterator<Item = u8> {
    // Beyond 255 no device has a register: 255 stands for all of those.
    (0..8).map(move |byte| u8::try_from(offset.saturating_add(byte)).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests;
