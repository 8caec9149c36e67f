//! The tracer: one line of JSON for each nested fault.
//!
//! A thread of its own, because writing a file may block and the pmap must not. The channel
//! between them is bounded; a tracer that falls behind slows the pmap down rather than lose
//! a record, so the lines always add up to the report's faults.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use actors::contract::guest::{TellMachine, Tidings};
use actors::contract::vcpu::Break;
use actors::pulse::Pulse;
use actors::threads::{Joined, spawn};
use actors::{Access, ActorName};
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use pmap_actor::record::{Action, FaultRecord};
use serde::Serialize;

/// Records that may wait to be written.
const WAITING: usize = 1 << 16;

/// A line of the trace.
#[derive(Serialize)]
struct Line {
    time_ns: u64,
    vcpu: Option<u16>,
    gpa: String,
    access: Access,
    gva: Option<String>,
    table_walk: Option<bool>,
    rip: Option<String>,
    cr3: Option<String>,
    action: Action,
    pages: u64,
    service_ns: u64,
}

impl From<FaultRecord> for Line {
    fn from(record: FaultRecord) -> Self {
        let origin = record.origin;
        Self {
            time_ns: record.time_ns,
            vcpu: record.vcpu.map(|vcpu| vcpu.0),
            gpa: record.gpa.to_string(),
            access: record.access,
            gva: origin.and_then(|origin| origin.gva).map(|gva| gva.to_string()),
            table_walk: origin.map(|origin| origin.is_table_walk),
            rip: origin.map(|origin| format!("{:#x}", origin.rip)),
            cr3: origin.map(|origin| format!("{:#x}", origin.cr3)),
            action: record.action,
            pages: record.pages,
            service_ns: record.service_ns,
        }
    }
}

/// What the machine holds of the tracer.
#[derive(Clone, Default)]
pub(crate) struct Handle {
    pulse: Pulse,
    broken: Arc<Mutex<Option<Break>>>,
}

impl Handle {
    /// Its sign of life.
    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// For tests of the supervision: it breaks at the next record.
    pub(crate) fn break_(&self, how: Break) {
        *self.broken.lock() = Some(how);
    }
}

/// Starts the tracer. It ends when the last sender is dropped, with the file complete.
///
/// # Errors
///
/// The operating system's, when the file cannot be made or there is no thread to give.
pub(crate) fn start(
    path: &Path,
    tell: TellMachine,
) -> std::io::Result<(Sender<FaultRecord>, Handle, Joined)> {
    let file = BufWriter::with_capacity(1 << 16, File::create(path)?);
    let (records, inbox) = bounded(WAITING);
    let handle = Handle::default();
    let (own, name, told) = (handle.clone(), path.display().to_string(), tell.clone());
    let body = move || {
        if let Err(error) = write_all(file, &inbox, &own) {
            let what = format!("the fault trace {name} cannot be written: {error}");
            told(Tidings::HostFailed { actor: ActorName::Tracer, what });
            // The machine is ending; until then nobody may wait for room in the channel.
            inbox.iter().for_each(drop);
        }
        own.pulse.rest();
    };
    let ended = move |actor, ending| tell(Tidings::Gone { actor, ending });
    let thread = spawn(ActorName::Tracer, ended, body)?;
    Ok((records, handle, thread))
}

fn write_all(
    mut file: impl Write,
    inbox: &Receiver<FaultRecord>,
    own: &Handle,
) -> std::io::Result<()> {
    while let Ok(record) = inbox.recv() {
        own.pulse.beat();
        if let Some(how) = own.broken.lock().take() {
            how.happen();
        }
        serde_json::to_writer(&mut file, &Line::from(record))?;
        file.write_all(b"\n")?;
        own.pulse.rest();
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use actors::contract::space::FaultOrigin;
    use actors::{Gpa, Gva, VcpuId};

    use super::*;

    #[test]
    fn a_record_is_one_line_with_units_in_its_keys() {
        let origin =
            FaultOrigin { gva: Some(Gva(0xf000)), is_table_walk: true, rip: 0x10, cr3: 0x2000 };
        let record = FaultRecord {
            time_ns: 5,
            vcpu: Some(VcpuId(1)),
            gpa: Gpa(0x1000),
            access: Access::Write,
            origin: Some(origin),
            action: Action::ZeroFilled,
            pages: 16,
            service_ns: 7,
        };
        let (send, inbox) = bounded(2);
        send.send(record).unwrap();
        let unknown = FaultRecord { vcpu: None, access: Access::Read, origin: None, ..record };
        send.send(unknown).unwrap();
        drop(send);
        let mut text = Vec::new();
        write_all(&mut text, &inbox, &Handle::default()).unwrap();
        let first = concat!(
            r#"{"time_ns":5,"vcpu":1,"gpa":"0x1000","access":"write","gva":"0xf000","#,
            r#""table_walk":true,"rip":"0x10","cr3":"0x2000","#,
            r#""action":"zero_filled","pages":16,"service_ns":7}"#,
        );
        let second = concat!(
            r#"{"time_ns":5,"vcpu":null,"gpa":"0x1000","access":"read","gva":null,"#,
            r#""table_walk":null,"rip":null,"cr3":null,"#,
            r#""action":"zero_filled","pages":16,"service_ns":7}"#,
        );
        assert_eq!(String::from_utf8(text).unwrap(), format!("{first}\n{second}\n"));
    }
}
