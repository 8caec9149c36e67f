//! The interrupt controllers and the timer that a machine without KVM's needs, wired up.
//!
//! ```text
//!   line 0 ◀── PIT            line ──┬──▶ 8259s ──▶ Interrupts::external ──▶ boot processor
//!                                    └──▶ I/O APIC ─▶ Interrupts::send ────▶ Directory
//! ```
//!
//! Lines 0 to 15 lead to both kinds of controller, and the guest listens to one of them.
//! Each line has its own number on the I/O APIC, but for the timer's: that is pin 2, which
//! the tables tell the guest (line 2 is the 8259s' own).
//!
//! Who holds a lock here sends while holding it, so [`Interrupts`] must neither wait nor call
//! back. No two of the locks are ever held at once, but for the ports of a controller and
//! that controller.
//!
//! # What an engine has to do
//!
//! * Before the boot vcpu sleeps or after it has run for a while: compare
//!   [`Chipset::next_edge`] with the time, as with its own timer's deadline; if it is due,
//!   [`Chipset::tick`].
//! * After [`Interrupts::external`] said so, when the boot vcpu can take an interrupt, its
//!   local APIC has none pending that goes first, and it
//!   [accepts it](crate::apic::LocalApic::accepts_external): [`Chipset::acknowledge`].
//! * For each [`Command::EndOfInterrupt`](crate::apic::Command):
//!   [`Chipset::end_of_interrupt`].

use std::sync::Arc;

use actors::device::{Bus, IrqLine, Shared, Taken};
use actors::platform;
use parking_lot::Mutex;

use crate::apic::{Interrupts, IoApic};
use crate::pic::Pic;
use crate::pit::{NextEdge, Pit};

/// The controllers and the timer of one machine.
pub struct Chipset {
    io_apic: Shared<IoApic>,
    pic: Shared<Pic>,
    pit: Shared<Pit>,
    next_edge: NextEdge,
}

impl Chipset {
    /// As after power-on. `clock` says how many nanoseconds have passed, on whatever clock
    /// the engine uses for [`Chipset::next_edge`], and never goes back.
    #[must_use]
    pub fn new(interrupts: &Arc<dyn Interrupts>, clock: impl Fn() -> u64 + Send + 'static) -> Self {
        let pit = Pit::new(Arc::clone(interrupts), clock);
        let next_edge = pit.watch();
        Self {
            io_apic: Arc::new(Mutex::new(IoApic::new(Arc::clone(interrupts)))),
            pic: Arc::new(Mutex::new(Pic::new(Arc::clone(interrupts)))),
            pit: Arc::new(Mutex::new(pit)),
            next_edge,
        }
    }

    /// Gives the controllers and the timer their addresses, beside what
    /// [`attach`](crate::attach) puts there.
    ///
    /// # Errors
    ///
    /// [`Taken`], if somebody else lives there: a mistake in [`actors::platform`].
    pub fn attach(&self, ports: &mut Bus, memory: &mut Bus) -> Result<(), Taken> {
        let [first, second, triggers] = Pic::ports(&self.pic);
        let (timer, speaker) = Pit::ports(&self.pit);
        for (base, len, device) in [
            (platform::FIRST_PIC, platform::PIC_LEN, first),
            (platform::PIT, platform::PIT_LEN, timer),
            (platform::SYSTEM_CONTROL, 1, speaker),
            (platform::SECOND_PIC, platform::PIC_LEN, second),
            (platform::PIC_TRIGGERS, platform::PIC_LEN, triggers),
        ] {
            ports.attach(base.into(), len.into(), device)?;
        }
        let io_apic: Shared<IoApic> = Arc::clone(&self.io_apic);
        memory.attach(platform::IO_APIC.0, platform::IO_APIC_LEN, io_apic)
    }

    /// The interrupt line that global system interrupt `gsi` listens to; `None` if there is
    /// no such line: 2 and 24 and up.
    #[must_use]
    pub fn line(&self, gsi: u32) -> Option<Line> {
        let number = u8::try_from(gsi).ok()?;
        let pin = match number {
            platform::TIMER_IRQ => platform::TIMER_PIN,
            platform::TIMER_PIN => return None,
            pin if pin < platform::IO_APIC_PINS => pin,
            _ => return None,
        };
        Some(self.lead(number, pin))
    }

    /// A processor is done with a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.io_apic.lock().end_of_interrupt(vector);
    }

    /// The boot processor takes the interrupt of the 8259s: which vector; `None` if they ask
    /// for none any more.
    #[must_use]
    pub fn acknowledge(&self) -> Option<u8> {
        let mut pic = self.pic.lock();
        pic.is_requested().then(|| pic.acknowledge())
    }

    /// When the timer's line rises next, on the clock the chipset was made with. May be in
    /// the past: then [`Chipset::tick`] is due. One load. When it moves because of what a
    /// guest wrote, [`Interrupts::next_edge_moved`] says so.
    #[must_use]
    pub fn next_edge(&self) -> Option<u64> {
        self.next_edge.get()
    }

    /// If the timer's line has risen, its controllers hear of it.
    pub fn tick(&self) {
        let has_risen = self.pit.lock().tick();
        if has_risen {
            self.lead(platform::TIMER_IRQ, platform::TIMER_PIN).pulse();
        }
    }

    fn lead(&self, number: u8, pin: u8) -> Line {
        Line { io_apic: Arc::clone(&self.io_apic), pic: Arc::clone(&self.pic), number, pin }
    }
}

/// One interrupt line.
#[derive(Clone)]
pub struct Line {
    io_apic: Shared<IoApic>,
    pic: Shared<Pic>,
    /// On the 8259s, if below 16.
    number: u8,
    /// On the I/O APIC.
    pin: u8,
}

impl Line {
    /// Up, or down. For devices that know how long they want to be heard.
    pub fn set(&self, is_asserted: bool) {
        self.pic.lock().set_line(self.number, is_asserted);
        self.io_apic.lock().set_line(self.pin, is_asserted);
    }
}

impl IrqLine for Line {
    /// An edge; where the guest made the line level-triggered, a level that ends when it was
    /// delivered.
    fn pulse(&self) {
        self.pic.lock().pulse_line(self.number);
        self.io_apic.lock().pulse_line(self.pin);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use actors::device::Effect;

    use super::*;
    use crate::apic::{Delivery, Destination, Message, Trigger};

    #[derive(Default)]
    struct Heard {
        messages: Mutex<Vec<Message>>,
        external: Mutex<Vec<bool>>,
    }

    impl Interrupts for Heard {
        fn send(&self, message: &Message) {
            self.messages.lock().push(*message);
        }
        fn external(&self, is_requested: bool) {
            self.external.lock().push(is_requested);
        }
        fn next_edge_moved(&self) {}
    }

    struct Guest {
        chipset: Chipset,
        ports: Bus,
        memory: Bus,
        heard: Arc<Heard>,
        clock: Arc<AtomicU64>,
    }

    impl Guest {
        fn new() -> Self {
            let heard = Arc::new(Heard::default());
            let clock = Arc::new(AtomicU64::new(0));
            let shown = Arc::clone(&clock);
            let interrupts: Arc<dyn Interrupts> = heard.clone();
            let chipset = Chipset::new(&interrupts, move || shown.load(Ordering::Relaxed));
            let (mut ports, mut memory) = (Bus::default(), Bus::default());
            chipset.attach(&mut ports, &mut memory).unwrap();
            Self { chipset, ports, memory, heard, clock }
        }

        fn out(&self, port: u64, values: &[u8]) {
            for value in values {
                assert_eq!(self.ports.write(port, &[*value]), Some(Effect::None));
            }
        }

        /// `pin` gives `vector` to everybody, as an edge or a level.
        fn redirect(&self, pin: u32, vector: u32, trigger: Trigger) {
            let level = if trigger == Trigger::Level { 0x8000 } else { 0 };
            for (register, value) in [(0x11, 0xff00_0000), (0x10, vector | level)] {
                let select = (register + 2 * pin).to_le_bytes();
                let at = platform::IO_APIC.0;
                assert_eq!(self.memory.write(at, &select), Some(Effect::None));
                let value: u32 = value;
                assert_eq!(self.memory.write(at + 0x10, &value.to_le_bytes()), Some(Effect::None));
            }
        }

        fn initialise_pics(&self) {
            for (port, vector, cascade) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
                self.out(port, &[0x11]);
                self.out(port + 1, &[vector, cascade, 1, 0]);
            }
        }

        fn messages(&self) -> Vec<Delivery> {
            self.heard.messages.lock().iter().map(|message| message.delivery).collect()
        }
    }

    #[test]
    fn everybody_answers_at_the_platforms_addresses() {
        let guest = Guest::new();
        for port in [0x20, 0x21, 0x40, 0x43, 0x61, 0xa0, 0xa1, 0x4d0, 0x4d1] {
            assert!(guest.ports.read(port, &mut [0]), "{port:#x}");
        }
        for port in [0x1f, 0x22, 0x3f, 0x44, 0x60, 0x62, 0x9f, 0xa2, 0x4cf, 0x4d2] {
            assert!(!guest.ports.read(port, &mut [0]), "{port:#x}");
        }
        let mut version = [0; 4];
        assert_eq!(guest.memory.write(0xfec0_0000, &[1]), Some(Effect::None));
        assert!(guest.memory.read(0xfec0_0010, &mut version));
        assert_eq!(u32::from_le_bytes(version), 0x0017_0020);
    }

    #[test]
    fn the_timer_reaches_pin_2_and_line_0() {
        let guest = Guest::new();
        guest.initialise_pics();
        guest.redirect(2, 0x51, Trigger::Edge);
        guest.redirect(0, 0x52, Trigger::Edge);
        guest.out(0x43, &[0x34]);
        guest.out(0x40, &[100, 0]);
        let edge = guest.chipset.next_edge().unwrap();
        guest.clock.store(edge - 1, Ordering::Relaxed);
        guest.chipset.tick();
        assert_eq!(guest.messages(), []);
        guest.clock.store(edge, Ordering::Relaxed);
        guest.chipset.tick();
        assert_eq!(guest.messages(), [Delivery::Fixed(0x51)]);
        assert_eq!(*guest.heard.external.lock(), [true]);
        assert_eq!((guest.chipset.acknowledge(), guest.chipset.acknowledge()), (Some(0x30), None));
        assert_eq!(*guest.heard.external.lock(), [true, false]);
    }

    #[test]
    fn a_line_reaches_its_pin_and_the_8259s() {
        let guest = Guest::new();
        guest.initialise_pics();
        guest.redirect(4, 0x51, Trigger::Edge);
        guest.redirect(20, 0x52, Trigger::Edge);
        guest.chipset.line(4).unwrap().pulse();
        guest.chipset.line(20).unwrap().pulse();
        assert_eq!(guest.messages(), [Delivery::Fixed(0x51), Delivery::Fixed(0x52)]);
        assert_eq!((guest.chipset.acknowledge(), guest.chipset.acknowledge()), (Some(0x34), None));
    }

    #[test]
    fn a_pulse_of_the_system_control_interrupt_is_one_level_interrupt() {
        let guest = Guest::new();
        guest.redirect(9, 0x51, Trigger::Level);
        let line = guest.chipset.line(9).unwrap();
        line.pulse();
        let message = Message {
            destination: Destination::All,
            delivery: Delivery::Fixed(0x51),
            trigger: Trigger::Level,
        };
        assert_eq!(*guest.heard.messages.lock(), [message]);
        line.pulse();
        guest.chipset.end_of_interrupt(0x51);
        guest.chipset.end_of_interrupt(0x51);
        assert_eq!(guest.messages().len(), 2);
    }

    #[test]
    fn a_line_that_stays_up_interrupts_until_it_goes_down() {
        let guest = Guest::new();
        guest.redirect(9, 0x51, Trigger::Level);
        let line = guest.chipset.line(9).unwrap();
        line.set(true);
        guest.chipset.end_of_interrupt(0x51);
        assert_eq!(guest.messages().len(), 2);
        line.set(false);
        guest.chipset.end_of_interrupt(0x51);
        assert_eq!(guest.messages().len(), 2);
    }

    #[test]
    fn there_is_no_line_2_and_none_from_24_up() {
        let guest = Guest::new();
        let lines: Vec<u32> = (0..300).filter(|gsi| guest.chipset.line(*gsi).is_some()).collect();
        assert_eq!(lines, [vec![0, 1], (3..24).collect()].concat());
    }
}
