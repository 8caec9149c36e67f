//! A guest that uses a device's memory, on every engine: its loads and stores reach the device's file, without a fault.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use actors::contract::boot::BootSource;
use actors::contract::device::{PassthruDevice, ScatterList, Segment};
use actors::contract::guest::GuestEnd;
use actors::{Gpa, GpaRange, PAGE_SIZE, Protection};
use machine::{EngineChoice, Machine, MachineSpec, Outcome};

const DEVICE: Gpa = Gpa(0x9000);

/// Runs the guest with the second page of `device` at 0x9000; says how it ended, and how many faults it had.
fn run(engine: EngineChoice, source: BootSource, device: &Arc<File>, is_passed: bool) -> u64 {
    let mut spec = MachineSpec::new(source);
    spec.engine = engine;
    spec.memory_bytes = 16 << 20;
    spec.fault_around_pages = 1;
    spec.timeout = Some(Duration::from_secs(120));
    let mut machine = Machine::build(spec).expect("a machine");
    let (space, place) = (machine.space(), GpaRange::page_of(DEVICE));
    space.unmap(place).expect("nothing is there yet");
    let registers = Segment { offset: PAGE_SIZE, len: PAGE_SIZE };
    let memory = ScatterList::new(device.clone(), vec![registers]).expect("whole pages");
    space.map_device(place, memory, Protection::READ | Protection::WRITE).expect("it is free");
    if is_passed {
        let function = PassthruDevice { segment: 0, bus: 1, function: 0 };
        let reached = space.assign_passthru(function).expect("16 MiB can be wired");
        let bytes: u64 = reached.iter().map(|mapping| mapping.range.len()).sum();
        assert_eq!(bytes, (16 << 20) - PAGE_SIZE, "all but the device's own memory");
    }
    machine.start().expect("the guest runs");
    let outcome = machine.wait();
    assert_eq!(outcome, Outcome::Guest(GuestEnd::PowerOff));
    assert!(machine.space().verify().expect("it answers").agrees());
    let faults = machine.space().count().expect("a tally").faults.total;
    assert_eq!(machine.finish(outcome).report.left_behind, [""; 0]);
    faults
}

#[test]
fn a_guest_s_loads_and_stores_reach_the_device_and_a_wired_guest_never_faults() {
    let path = format!("{}/uses-a-device.bin", env!("CARGO_TARGET_TMPDIR"));
    // mov al, [0x9004]; inc al; mov [0x9000], al; mov al, 0; out 0xf4, al
    let code = [0xa0, 0x04, 0x90, 0xfe, 0xc0, 0xa2, 0x00, 0x90, 0xb0, 0x00, 0xe6, 0xf4];
    std::fs::write(&path, code).expect("scratch file");
    let engines = match Path::new("/dev/kvm").exists() {
        true => vec![EngineChoice::Soft, EngineChoice::Kvm],
        false => vec![EngineChoice::Soft],
    };
    for engine in engines {
        let name = format!("{}/device", env!("CARGO_TARGET_TMPDIR"));
        let mut file = File::options();
        let file = file.read(true).write(true).create(true).truncate(true).open(name);
        let device = Arc::new(file.expect("scratch file"));
        device.set_len(2 * PAGE_SIZE).expect("room");
        for (is_passed, before) in [(false, 41), (true, 98)] {
            device.write_all_at(&[before], PAGE_SIZE + 4).expect("room");
            let source = BootSource::File(path.clone().into());
            let faults = run(engine, source, &device, is_passed);
            let mut word = [0; 5];
            device.read_exact_at(&mut word, PAGE_SIZE).expect("it is there");
            assert_eq!(word, [before + 1, 0, 0, 0, before], "{engine:?}");
            assert!(!is_passed || faults == 0, "{engine:?}: {faults} faults");
        }
    }
}
