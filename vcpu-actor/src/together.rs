//! All vcpus of a machine at once: tell everybody, then wait.
//!
//! Bringing a vcpu out takes a signal and however long its guest needs to leave. Told one after the
//! other and waited for one after the other, N vcpus take N times that; told first and waited for
//! afterwards they come out at the same time.

use std::fmt;
use std::time::Instant;

use actors::VcpuId;
use actors::contract::vcpu::Parked;
use tokio::sync::oneshot;

use crate::{OrderError, VcpuHandle};
use actors::ask::until;

/// Everybody has been told to come out; not everybody has.
#[derive(Debug)]
#[must_use = "a vcpu that was told to come out is not out yet"]
pub struct Pausing {
    replies: Vec<(VcpuId, oneshot::Receiver<Parked>)>,
    late: Vec<Late>,
}

/// Why a vcpu did not come out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Late {
    /// It had not answered when the deadline passed.
    Silent(VcpuId),
    /// It ended instead of answering.
    Gone(VcpuId),
    /// It could not even be told.
    NotTold(OrderError),
}

/// Some vcpus did not come out of the guest, by name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Overdue {
    late: Vec<Late>,
}

impl fmt::Display for Overdue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, late) in self.late.iter().enumerate() {
            if index > 0 {
                out.write_str("; ")?;
            }
            match late {
                Late::Silent(id) => write!(out, "{id} has not come out of the guest in time")?,
                Late::Gone(id) => write!(out, "{id} ended when it was asked to come out")?,
                Late::NotTold(why) => write!(out, "{why}")?,
            }
        }
        Ok(())
    }
}

/// Tells every vcpu to come out and stay out. Returns at once.
///
/// A vcpu that cannot be told is reported by the wait; the others are told all the same.
pub fn pause_all(vcpus: &[VcpuHandle]) -> Pausing {
    let mut pausing = Pausing { replies: Vec::with_capacity(vcpus.len()), late: Vec::new() };
    for vcpu in vcpus {
        match vcpu.pause() {
            Ok(reply) => pausing.replies.push((vcpu.id(), reply)),
            Err(why) => pausing.late.push(Late::NotTold(why)),
        }
    }
    pausing
}

/// Tells every vcpu to run. Returns at once.
///
/// # Errors
///
/// The first vcpu that cannot be told; the others are told all the same.
pub fn run_all(vcpus: &[VcpuHandle]) -> Result<(), OrderError> {
    let told: Vec<_> = vcpus.iter().map(VcpuHandle::run).collect();
    told.into_iter().collect()
}

impl Pausing {
    /// Waits on a plain thread until all are out.
    ///
    /// # Errors
    ///
    /// [`Overdue`] names those that are not out when the `deadline` passes.
    pub fn wait(self, deadline: Instant) -> Result<(), Overdue> {
        let mut late = self.late;
        for (id, reply) in self.replies {
            match until(deadline, reply) {
                Some(Ok(_)) => {}
                Some(Err(_)) => late.push(Late::Gone(id)),
                None => late.push(Late::Silent(id)),
            }
        }
        Self::verdict(late)
    }

    /// Waits in an asynchronous handler until all are out. The deadline is the caller's.
    ///
    /// # Errors
    ///
    /// [`Overdue`] names those that ended instead.
    pub async fn done(self) -> Result<(), Overdue> {
        let mut late = self.late;
        for (id, reply) in self.replies {
            if reply.await.is_err() {
                late.push(Late::Gone(id));
            }
        }
        Self::verdict(late)
    }

    fn verdict(late: Vec<Late>) -> Result<(), Overdue> {
        if late.is_empty() { Ok(()) } else { Err(Overdue { late }) }
    }
}
