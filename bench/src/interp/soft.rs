//! The payload on our own processor, in this process.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};

use soft_cpu::cpu::{cr0, reg, seg};
use soft_cpu::event::Access;
use soft_cpu::guest_memory::PAGE;
use soft_cpu::nested::{NestedPage, NestedRefusal};
use soft_cpu::segment::Segment;
use soft_cpu::{CodeMap, Processor, SecondStage, Stop, Surroundings};

use super::measure::Runner;
use super::pages::{Pages, own_cpu_time};
use super::payload::{self, DATA_PORT, ENDED, READY, STARTED, STATUS_PORT};
use super::rows::Row;
use crate::error::{BenchError, host};

/// COM1's status: a byte may be sent; one was received.
const CAN_SEND: u64 = 0x60;
const RECEIVED: u64 = 0x01;

/// A processor with the payload in its memory.
pub(crate) struct Soft {
    processor: Processor,
    knock: AtomicU8,
    orders: VecDeque<u8>,
}

/// One dimension: guest-physical memory is this mapping.
pub(crate) struct Flat(pub(crate) Arc<Pages>);

impl SecondStage for Flat {
    fn translate(&mut self, gpa: u64, _access: Access) -> Result<NestedPage, NestedRefusal> {
        let host = self.0.page(gpa).ok_or(NestedRefusal::Device)?;
        let frame = u32::try_from(gpa / PAGE).map_err(|_| NestedRefusal::Device)?;
        Ok(NestedPage { host, frame, writable: true, executable: true })
    }
}

/// No APIC, no timer: the payload has interrupts off. Ports but COM1's are deaf, as unused ones are in a machine.
struct Alone(Instant);

impl Surroundings for Alone {
    fn now(&mut self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
    fn poll(&mut self) -> bool {
        false
    }
    fn port_is_deaf(&mut self, port: u16) -> bool {
        port != DATA_PORT
    }
    fn unimplemented(&mut self, rip: u64, name: &str) {
        eprintln!("the software processor does not know {name}, at {rip:#x}");
    }
}

impl Soft {
    /// A processor over `second_stage`, which leads to memory with the payload's image in it; it runs until
    /// it takes orders.
    pub(crate) fn start(
        second_stage: Box<dyn SecondStage>,
        frames: usize,
    ) -> Result<Self, BenchError> {
        let surroundings = Box::new(Alone(Instant::now()));
        let processor = Processor::new(surroundings, second_stage, CodeMap::new(frames, 1), 0);
        let mut soft = Self { processor, knock: AtomicU8::new(0), orders: VecDeque::new() };
        soft.begin();
        soft.hear(READY)?;
        Ok(soft)
    }

    /// As multiboot loaders hand over: protected mode, flat segments, no paging.
    fn begin(&mut self) {
        let cpu = &mut self.processor.cpu;
        cpu.cr0 = cr0::PE | cr0::ET;
        let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 };
        for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            cpu.set_segment(which, data);
        }
        cpu.set_segment(seg::CS, Segment { selector: 8, attributes: 0xc09b, ..data });
        cpu.mode_changed();
        cpu.gpr[reg::RAX] = 0x2bad_b002;
        cpu.rip = payload::entry();
    }

    /// Runs until the payload says `letter`; the thread's cpu time then.
    fn hear(&mut self, letter: u8) -> Result<Duration, BenchError> {
        loop {
            match self.processor.run(&self.knock) {
                Stop::Again => {}
                Stop::PortWrite(access) if access.at == u64::from(DATA_PORT) => {
                    if access.value == Some(u64::from(letter)) {
                        return own_cpu_time().map_err(host("read the clock of cpu time"));
                    }
                }
                Stop::PortWrite(_) => {}
                Stop::PortRead(access) => {
                    let answer = self.read_port(access.at);
                    self.processor.answer(answer);
                }
                other => {
                    let rip = self.processor.cpu.rip;
                    let why = format!("the payload stopped at {rip:#x} with {other:?}");
                    return Err(BenchError::Ended(why));
                }
            }
        }
    }

    fn read_port(&mut self, port: u64) -> u64 {
        if port == u64::from(STATUS_PORT) {
            let waits = !self.orders.is_empty();
            CAN_SEND | if waits { RECEIVED } else { 0 }
        } else if port == u64::from(DATA_PORT) {
            self.orders.pop_front().map_or(0, u64::from)
        } else {
            u64::MAX
        }
    }
}

impl Runner for Soft {
    fn run(&mut self, row: &Row, iterations: u64) -> Result<Option<Duration>, BenchError> {
        self.orders.extend(payload::command(row.number, iterations));
        let before = self.hear(STARTED)?;
        let after = self.hear(ENDED)?;
        Ok(Some(after.saturating_sub(before)))
    }
}

/// Memory with the payload in it, and a processor that reaches it in one dimension.
pub(crate) fn flat() -> Result<Soft, BenchError> {
    let memory = Pages::new(payload::MEMORY).map_err(host("map memory for the payload"))?;
    memory.write(payload::LOAD, &payload::image());
    let frames = usize::try_from(payload::MEMORY / PAGE).expect("65,536");
    Soft::start(Box::new(Flat(Arc::new(memory))), frames)
}
