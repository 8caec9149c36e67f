//! The keyboard controller, with no keyboard and no mouse behind it.
//!
//! Every PC operating system probes it, many use its reset line to reboot, and some wait
//! for its answers with long deadlines (Linux: half a second each). So each command that
//! has an answer gets one at once, "nothing is plugged in" where that can be said, and the
//! input buffer is always empty: nobody ever waits to send.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
//! Controller".

use std::sync::Arc;

use actors::contract::guest::GuestEnd;
use actors::device::{Device, Effect, Shared};
use parking_lot::Mutex;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SELF_TEST_PASSED: u8 = 1 << 2;
const STATUS_LAST_WAS_COMMAND: u8 = 1 << 3;
const STATUS_NOT_LOCKED: u8 = 1 << 4;
const STATUS_TIMEOUT: u8 = 1 << 6;

/// What a controller says for a keyboard that does not answer: "send it again".
const NO_ANSWER: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0x55;
/// Interface tests: the clock line is stuck low, as it is with nothing plugged in.
const CLOCK_STUCK: u8 = 0x01;

/// Command byte after power-on: both interfaces disabled, self test passed.
const COMMAND_BYTE: u8 = 0x34;
/// Output port: processor not in reset, address line 20 enabled.
const OUTPUT_PORT: u8 = 0x03;
const OUTPUT_NOT_RESET: u8 = 1 << 0;

/// What the next byte to the data port is for.
#[derive(Debug)]
enum Expecting {
    /// A keyboard that is not there.
    Keyboard,
    /// Internal memory at this place.
    Memory(u8),
    /// The output port, with the reset line.
    OutputPort,
    /// To come back as if a device had sent it.
    Echo,
    /// A mouse that is not there.
    Mouse,
}

#[derive(Debug)]
struct Controller {
    /// 32 bytes of internal memory; the first one is the command byte.
    memory: [u8; 32],
    output: Option<u8>,
    status: u8,
    expecting: Expecting,
}

impl Controller {
    fn answer(&mut self, byte: u8) {
        self.output = Some(byte);
        self.status &= !STATUS_TIMEOUT;
    }

    fn say_no_answer(&mut self) {
        self.output = Some(NO_ANSWER);
        self.status |= STATUS_TIMEOUT;
    }

    fn read_status(&self) -> u8 {
        let full = if self.output.is_some() { STATUS_OUTPUT_FULL } else { 0 };
        self.status | full | STATUS_NOT_LOCKED | STATUS_SELF_TEST_PASSED
    }

    fn read_data(&mut self) -> u8 {
        self.status &= !STATUS_TIMEOUT;
        self.output.take().unwrap_or(0)
    }

    fn command(&mut self, command: u8) -> Effect {
        self.status |= STATUS_LAST_WAS_COMMAND;
        self.expecting = Expecting::Keyboard;
        match command {
            0x20..=0x3f => self.answer(self.memory[usize::from(command & 0x1f)]),
            0x60..=0x7f => self.expecting = Expecting::Memory(command & 0x1f),
            0xa7 => self.memory[0] |= 0x20,  // Mouse off,
            0xa8 => self.memory[0] &= !0x20, // and on.
            0xaa => self.answer(SELF_TEST_PASSED),
            0xa9 | 0xab => self.answer(CLOCK_STUCK),
            0xad => self.memory[0] |= 0x10,  // Keyboard off,
            0xae => self.memory[0] &= !0x10, // and on.
            0xc0 => self.answer(0),
            0xd0 => self.answer(OUTPUT_PORT),
            0xd1 => self.expecting = Expecting::OutputPort,
            // Without the status bit "from the mouse", even for the mouse's echo: a driver
            // takes that as "no mouse", which is the truth.
            0xd2 | 0xd3 => self.expecting = Expecting::Echo,
            0xd4 => self.expecting = Expecting::Mouse,
            // Pulses the output port's lines whose bits are 0; bit 0 is the reset line.
            0xf0..=0xff if command & OUTPUT_NOT_RESET == 0 => {
                return Effect::Ends(GuestEnd::Reset);
            }
            // Everything else has no answer, and no effect without a keyboard.
            _ => {}
        }
        Effect::None
    }

    fn data(&mut self, byte: u8) -> Effect {
        self.status &= !STATUS_LAST_WAS_COMMAND;
        match std::mem::replace(&mut self.expecting, Expecting::Keyboard) {
            Expecting::Keyboard | Expecting::Mouse => self.say_no_answer(),
            Expecting::Memory(place) => self.memory[usize::from(place)] = byte,
            Expecting::Echo => self.answer(byte),
            Expecting::OutputPort if byte & OUTPUT_NOT_RESET == 0 => {
                return Effect::Ends(GuestEnd::Reset);
            }
            Expecting::OutputPort => {}
        }
        Effect::None
    }
}

/// The controller's data port.
#[derive(Debug)]
struct DataPort(Arc<Mutex<Controller>>);

/// Its command port, which reads as its status.
#[derive(Debug)]
struct CommandPort(Arc<Mutex<Controller>>);

/// One controller, as its data port and its command port. They are not neighbours: between
/// them lies a port of the timer.
#[must_use]
pub fn ports() -> (Shared<dyn Device>, Shared<dyn Device>) {
    let mut memory = [0; 32];
    memory[0] = COMMAND_BYTE;
    let controller = Arc::new(Mutex::new(Controller {
        memory,
        output: None,
        status: 0,
        expecting: Expecting::Keyboard,
    }));
    (
        Arc::new(Mutex::new(DataPort(controller.clone()))),
        Arc::new(Mutex::new(CommandPort(controller))),
    )
}

impl Device for DataPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(byte) = data.first_mut() {
            *byte = self.0.lock().read_data();
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        data.first().map_or(Effect::None, |&byte| self.0.lock().data(byte))
    }
}

impl Device for CommandPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0.lock().read_status());
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        data.first().map_or(Effect::None, |&byte| self.0.lock().command(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        data: Shared<dyn Device>,
        command: Shared<dyn Device>,
    }

    fn bench() -> Bench {
        let (data, command) = ports();
        Bench { data, command }
    }

    impl Bench {
        fn status(&self) -> u8 {
            let mut data = [0];
            self.command.lock().read(0, &mut data);
            data[0]
        }

        fn read(&self) -> u8 {
            let mut data = [0];
            self.data.lock().read(0, &mut data);
            data[0]
        }

        fn command(&self, command: u8) -> Effect {
            self.command.lock().write(0, &[command])
        }

        fn write(&self, byte: u8) -> Effect {
            self.data.lock().write(0, &[byte])
        }

        /// What a driver gets that waits for the output buffer.
        fn answer(&self) -> Option<u8> {
            (self.status() & STATUS_OUTPUT_FULL != 0).then(|| self.read())
        }

        fn ask(&self, command: u8) -> Option<u8> {
            assert_eq!(self.command(command), Effect::None);
            self.answer()
        }
    }

    const INPUT_FULL: u8 = 1 << 1;

    #[test]
    fn nobody_ever_waits_to_send_or_to_flush() {
        let bench = bench();
        for command in 0..=0xef {
            assert_eq!(bench.command(command), Effect::None);
            assert_eq!(bench.status() & INPUT_FULL, 0);
            bench.answer();
            assert_eq!(bench.answer(), None, "{command:#x}");
        }
    }

    #[test]
    fn the_self_test_passes_and_nothing_is_plugged_in() {
        let bench = bench();
        assert_eq!(bench.ask(0xaa), Some(SELF_TEST_PASSED));
        assert_eq!(bench.ask(0xab), Some(CLOCK_STUCK));
        assert_eq!(bench.ask(0xa9), Some(CLOCK_STUCK));
    }

    #[test]
    fn the_command_byte_reads_back_as_a_driver_wrote_it() {
        let bench = bench();
        assert_eq!(bench.command(0x60), Effect::None);
        assert_eq!(bench.write(0x45), Effect::None);
        assert_eq!(bench.ask(0x20), Some(0x45));
        assert_eq!(bench.command(0xad), Effect::None);
        assert_eq!(bench.command(0xa7), Effect::None);
        assert_eq!(bench.ask(0x20), Some(0x75));
    }

    #[test]
    fn a_keyboard_that_is_not_there_times_out_at_once() {
        let bench = bench();
        assert_eq!(bench.write(0xf2), Effect::None);
        assert_ne!(bench.status() & STATUS_TIMEOUT, 0);
        assert_eq!(bench.answer(), Some(NO_ANSWER));
        assert_eq!(bench.status() & STATUS_TIMEOUT, 0);
    }

    #[test]
    fn an_echo_of_the_mouse_does_not_claim_to_come_from_one() {
        const FROM_MOUSE: u8 = 1 << 5;
        let bench = bench();
        assert_eq!(bench.command(0xd3), Effect::None);
        assert_eq!(bench.write(0x5a), Effect::None);
        assert_eq!(bench.status() & FROM_MOUSE, 0);
        assert_eq!(bench.answer(), Some(0x5a));
    }

    #[test]
    fn an_answer_replaces_one_that_nobody_read() {
        let bench = bench();
        assert_eq!(bench.write(0xf2), Effect::None);
        assert_eq!(bench.ask(0xaa), Some(SELF_TEST_PASSED));
    }

    #[test]
    fn pulling_the_reset_line_resets_and_pulling_others_does_not() {
        let reset = Effect::Ends(GuestEnd::Reset);
        assert_eq!(bench().command(0xfe), reset);
        assert_eq!(bench().command(0xf0), reset);
        assert_eq!(bench().command(0xff), Effect::None);
        let bench = bench();
        assert_eq!(bench.command(0xd1), Effect::None);
        assert_eq!(bench.write(0x03), Effect::None);
        assert_eq!(bench.command(0xd1), Effect::None);
        assert_eq!(bench.write(0x02), reset);
    }
}
