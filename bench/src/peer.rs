//! The floors under every shootdown: what it costs to agree with a thread on another cpu, and
//! what it costs to interrupt it, without any virtual machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::error::{BenchError, host};
use crate::kernel;
use crate::signal::{self, Delivery};

/// How long to watch for the peer's progress.
const WATCH: Duration = Duration::from_millis(2);
/// How long an answer may take before the initiator gives its cpu away between looks.
const SPIN: Duration = Duration::from_micros(50);

const PARK: u8 = 0;
const SPIN_ON: u8 = 1;
const QUIT: u8 = 2;

/// A word on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

#[derive(Debug, Default)]
struct Shared {
    ping: Line,
    pong: Line,
    /// Counts for as long as the peer executes.
    progress: Line,
    mode: AtomicU8,
    thread: AtomicI32,
}

/// A thread that spins on another cpu, until it is interrupted or spoken to.
#[derive(Debug)]
pub(crate) struct Peer {
    shared: Arc<Shared>,
    handle: Thread,
    joined: Option<JoinHandle<()>>,
    process: i32,
}

impl Peer {
    /// Starts it on `cpu`, parked.
    pub(crate) fn start(cpu: usize) -> Result<Self, BenchError> {
        signal::install().map_err(host("install a signal handler"))?;
        kernel::register_membarrier().map_err(host("use membarrier"))?;
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let (tell, hear) = mpsc::channel();
        let joined = std::thread::Builder::new()
            .name("bench-peer".to_owned())
            .spawn(move || {
                let settled =
                    kernel::pin(0, &[cpu]).and_then(|()| signal::deliver(Delivery::Handler));
                let is_settled = settled.is_ok();
                own.thread.store(kernel::own_tid(), Ordering::Release);
                // Whoever starts it waits for this.
                drop(tell.send(settled));
                if is_settled {
                    own.live();
                }
            })
            .map_err(host("start a thread"))?;
        let what = format!("run a thread on cpu {cpu}");
        hear.recv().map_err(host(&what))?.map_err(host(&what))?;
        let handle = joined.thread().clone();
        Ok(Self { shared, handle, joined: Some(joined), process: signal::own_process() })
    }

    fn set(&self, mode: u8) {
        self.shared.mode.store(mode, Ordering::Release);
        self.handle.unpark();
    }

    /// Lets it spin, or stops that.
    pub(crate) fn spin(&self, on: bool) {
        self.set(if on { SPIN_ON } else { PARK });
    }

    /// Waits until the peer is executing at this moment, and says whether that came true.
    pub(crate) fn is_moving(&self) -> bool {
        let progress = || self.shared.progress.0.load(Ordering::Relaxed);
        let (before, began) = (progress(), Instant::now());
        while began.elapsed() < WATCH {
            if progress() != before {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// A signal to the spinning peer, until its handler has run.
    pub(crate) fn signal_round_trip(&self) -> Duration {
        let before = signal::handled();
        let began = Instant::now();
        signal::send(self.process, self.shared.thread.load(Ordering::Relaxed));
        wait(began, || signal::handled() != before)
    }

    /// `membarrier`, while the peer spins.
    pub(crate) fn membarrier() -> Result<Duration, BenchError> {
        let began = Instant::now();
        kernel::membarrier().map_err(host("use membarrier"))?;
        Ok(began.elapsed())
    }

    /// A word there and a word back.
    pub(crate) fn ping_pong(&self) -> Duration {
        let next = self.shared.ping.0.load(Ordering::Relaxed) + 1;
        let began = Instant::now();
        self.shared.ping.0.store(next, Ordering::Release);
        wait(began, || self.shared.pong.0.load(Ordering::Acquire) == next)
    }
}

/// Waits for what the peer will do, and returns how long it took since `began`.
fn wait(began: Instant, is_done: impl Fn() -> bool) -> Duration {
    while !is_done() {
        if began.elapsed() < SPIN {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
    began.elapsed()
}

impl Shared {
    fn live(&self) {
        let mut heard = 0;
        loop {
            match self.mode.load(Ordering::Acquire) {
                PARK => std::thread::park(),
                QUIT => return,
                _ => {
                    let progress = self.progress.0.load(Ordering::Relaxed) + 1;
                    self.progress.0.store(progress, Ordering::Relaxed);
                    let ping = self.ping.0.load(Ordering::Acquire);
                    if ping != heard {
                        heard = ping;
                        self.pong.0.store(ping, Ordering::Release);
                    }
                }
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.set(QUIT);
        if let Some(joined) = self.joined.take() {
            drop(joined.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spinning_peer_answers_and_a_parked_one_does_not_move() {
        let cpu = *kernel::allowed_cpus().unwrap().last().unwrap();
        let peer = Peer::start(cpu).unwrap();
        assert!(!peer.is_moving());
        peer.spin(true);
        peer.ping_pong();
        peer.ping_pong();
        assert_eq!(peer.shared.pong.0.load(Ordering::Acquire), 2);
    }
}
