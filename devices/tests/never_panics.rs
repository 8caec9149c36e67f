//! Whatever a guest does to the ports, the devices survive it.

mod support;

use std::sync::Arc;

use actors::device::{Device, IrqLine, Shared};
use devices::apic::{Interrupts, IoApic, Message};
use devices::debug_exit::DebugExit;
use devices::pic::Pic;
use devices::pit::Pit;
use devices::power::PowerManagement;
use devices::reset::ResetRegister;
use devices::rtc::Rtc;
use devices::{Wiring, attach, i8042};
use parking_lot::Mutex;
use proptest::prelude::*;
use support::Guest;

/// A line that leads nowhere.
struct Nowhere;

impl IrqLine for Nowhere {
    fn pulse(&self) {}
}

impl Interrupts for Nowhere {
    fn send(&self, _message: &Message) {}
    fn external(&self, _is_requested: bool) {}
    fn next_edge_moved(&self) {}
}

#[derive(Clone, Debug)]
enum Step {
    Read { port: u64, width: usize },
    Write { port: u64, bytes: Vec<u8> },
    Type(Vec<u8>),
    Room,
}

/// Ports of devices, their neighbours, and any other.
fn port() -> impl Strategy<Value = u64> {
    let bases = [0x60, 0x64, 0x70, 0xf4, 0x3f8, 0x600, 0xcf9];
    let near = (prop::sample::select(bases.to_vec()), -2_i64..10)
        .prop_map(|(base, offset)| (base + offset).cast_unsigned());
    prop_oneof![20 => near, 1 => any::<u64>()]
}

fn width() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 2, 4, 8])
}

fn step() -> impl Strategy<Value = Step> {
    let read = (port(), width()).prop_map(|(port, width)| Step::Read { port, width });
    let bytes = width().prop_flat_map(|width| prop::collection::vec(any::<u8>(), width));
    let write = (port(), bytes).prop_map(|(port, bytes)| Step::Write { port, bytes });
    let typed = prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Type);
    prop_oneof![8 => read, 8 => write, 1 => typed, 1 => Just(Step::Room)]
}

/// Every device, without a bus that keeps accesses inside it.
fn devices() -> [Shared<dyn Device>; 13] {
    let (keyboard_data, keyboard_command) = i8042::ports();
    let [first, second, triggers] = Pic::ports(&Arc::new(Mutex::new(Pic::new(Arc::new(Nowhere)))));
    let pit = Pit::new(Arc::new(Nowhere), || 1_000_000_007);
    let (timer, speaker) = Pit::ports(&Arc::new(Mutex::new(pit)));
    [
        Arc::new(Mutex::new(IoApic::new(Arc::new(Nowhere)))),
        first,
        second,
        triggers,
        timer,
        speaker,
        Guest::new().serial,
        Arc::new(Mutex::new(PowerManagement::new(Arc::new(Nowhere)))),
        Arc::new(Mutex::new(Rtc::of_the_host())),
        Arc::new(Mutex::new(ResetRegister::default())),
        Arc::new(Mutex::new(DebugExit)),
        keyboard_data,
        keyboard_command,
    ]
}

/// Offsets of registers, and those where arithmetic ends.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![0..16_u64, u64::MAX - 16..=u64::MAX, any::<u64>()]
}

proptest! {
    #[test]
    fn no_offset_and_no_width_panics(offset in offset(), bytes in prop::collection::vec(any::<u8>(), 0..9)) {
        for device in devices() {
            let _effect = device.lock().write(offset, &bytes);
            device.lock().read(offset, &mut bytes.clone());
        }
    }

    #[test]
    fn no_access_to_any_port_panics(steps in prop::collection::vec(step(), 1..400)) {
        let guest = Guest::new();
        let wiring = Wiring {
            serial: guest.serial.clone(),
            power: Arc::new(Mutex::new(PowerManagement::new(Arc::new(Nowhere)))),
        };
        let (ports, memory) = attach(wiring).unwrap();
        for step in steps {
            match step {
                Step::Read { port, width } => {
                    let mut data = vec![0; width];
                    ports.read(port, &mut data);
                    memory.read(port, &mut data);
                }
                Step::Write { port, bytes } => {
                    let _effect = ports.write(port, &bytes);
                    let _effect = memory.write(port, &bytes);
                }
                Step::Type(bytes) => {
                    let taken = guest.serial.lock().receive(&bytes);
                    prop_assert!(taken <= bytes.len());
                }
                Step::Room => guest.serial.lock().room(),
            }
        }
    }
}
