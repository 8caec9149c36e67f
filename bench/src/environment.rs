//! Where a measurement takes place: labels for its result, and who runs on which cpu.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use machine::Machine;
use serde::Serialize;

use crate::error::{BenchError, host};
use crate::kernel;

/// What a result must say about the host, or it means nothing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Labels {
    /// Which engine ran the guest.
    pub(crate) engine: &'static str,
    /// What this host's KVM is.
    pub(crate) kvm: String,
    /// The host kernel's release.
    pub(crate) kernel: String,
    /// The processor's name.
    pub(crate) processor: String,
    /// Cpus that are online.
    pub(crate) cpus: usize,
    /// Those of them that this process may use.
    pub(crate) allowed_cpus: Vec<usize>,
    /// Whether spinners of the lowest priority kept idle cpus awake.
    pub(crate) idle_poll: bool,
    /// Whether skep was built with optimisation: "release" or "debug".
    pub(crate) build: &'static str,
    /// skep's version.
    pub(crate) version: &'static str,
}

impl Labels {
    /// Reads them off the host; what it does not tell is "unknown".
    pub(crate) fn of(kvm: &str, cpus: &Cpus, idle_poll: bool) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let name = info.lines().find_map(|line| line.strip_prefix("model name"));
        let known = |text: &str| match text.trim_matches([' ', '\t', ':', '\n']) {
            "" => "unknown".to_owned(),
            text => text.to_owned(),
        };
        Self {
            engine: "kvm",
            kvm: kvm.to_owned(),
            kernel: known(&read("/proc/sys/kernel/osrelease")),
            processor: known(name.unwrap_or_default()),
            cpus: info.lines().filter(|line| line.starts_with("processor")).count(),
            allowed_cpus: cpus.all.clone(),
            idle_poll,
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// The cpus that a measurement may use.
#[derive(Clone, Debug)]
pub(crate) struct Cpus {
    all: Vec<usize>,
}

impl Cpus {
    /// Those that the calling thread may use.
    pub(crate) fn allowed() -> Result<Self, BenchError> {
        let all = kernel::allowed_cpus().map_err(host("tell which cpus there are"))?;
        Self::these(all).ok_or("there are none").map_err(host("tell which cpus there are"))
    }

    fn these(all: Vec<usize>) -> Option<Self> {
        (!all.is_empty()).then_some(Self { all })
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn all(&self) -> &[usize] {
        &self.all
    }

    /// Where whoever starts things runs: the pmap, and the reference's initiator.
    pub(crate) fn initiator(&self) -> usize {
        self.all[0]
    }

    /// Where vcpu `index` runs: away from the initiator as long as there are cpus.
    pub(crate) fn of_vcpu(&self, index: usize) -> usize {
        self.all[(index + 1) % self.all.len()]
    }

    /// Whether `vcpus` of them can run all the time while the initiator does.
    pub(crate) fn has_room_for(&self, vcpus: u16) -> bool {
        usize::from(vcpus) < self.count()
    }
}

/// Pins the calling thread, and lets it go again.
#[derive(Debug)]
pub(crate) struct Pinned {
    before: Vec<usize>,
}

impl Pinned {
    /// Threads that are started meanwhile inherit it.
    pub(crate) fn to(cpus: &[usize]) -> Result<Self, BenchError> {
        let before = kernel::allowed_cpus().map_err(host("tell which cpus there are"))?;
        kernel::pin(0, cpus).map_err(host(format!("run on cpu {cpus:?}")))?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // They were allowed before; if they are not any more, that is nobody's error.
        drop(kernel::pin(0, &self.before));
    }
}

/// Pins the pmap's thread and those of the vcpus of a machine that has been built.
pub(crate) fn pin_machine(
    machine: &Machine,
    pmap: &[usize],
    vcpu: impl Fn(usize) -> Vec<usize>,
) -> Result<(), BenchError> {
    let thread = thread_named("skep-pmap")?;
    kernel::pin(thread, pmap).map_err(host(format!("run the pmap on cpu {pmap:?}")))?;
    for (index, handle) in machine.vcpus().iter().enumerate() {
        let cpus = vcpu(index);
        let why = host(format!("run {} on cpu {cpus:?}", handle.id()));
        let done = match handle.tid() {
            Some(thread) => kernel::pin(thread, &cpus),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        done.map_err(why)?;
    }
    Ok(())
}

/// The one thread of this process that is called `name`.
fn thread_named(name: &str) -> Result<i32, BenchError> {
    let what = format!("find the thread {name}");
    let entries = fs::read_dir("/proc/self/task").map_err(host(&what))?;
    let mut found = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let called = fs::read_to_string(path.join("comm")).ok()?;
        (called.trim_end() == name).then(|| path.file_name()?.to_str()?.parse().ok()).flatten()
    });
    match (found.next(), found.next()) {
        (Some(thread), None) => Ok(thread),
        (None, _) => Err(host(what)("there is none")),
        (Some(_), Some(_)) => Err(host(what)("another machine lives in this process")),
    }
}

/// One spinner per cpu that runs only when nobody else wants to: an idle cpu never sleeps,
/// so waking a thread on it costs no exit from idleness.
#[derive(Debug)]
pub(crate) struct IdlePoll {
    over: Arc<AtomicBool>,
    spinners: Vec<JoinHandle<()>>,
}

impl IdlePoll {
    pub(crate) fn start(cpus: &Cpus) -> Result<Self, BenchError> {
        let over = Arc::new(AtomicBool::new(false));
        let mut all = Self { over: over.clone(), spinners: Vec::new() };
        for &cpu in cpus.all() {
            let over = over.clone();
            let spin = move || {
                // Where either is refused the spinner would be in the way.
                if kernel::pin(0, &[cpu]).and_then(|()| kernel::run_only_when_idle()).is_err() {
                    return;
                }
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let thread = std::thread::Builder::new().name("bench-idle".to_owned()).spawn(spin);
            all.spinners.push(thread.map_err(host("start a thread"))?);
        }
        Ok(all)
    }
}

impl Drop for IdlePoll {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for spinner in self.spinners.drain(..) {
            drop(spinner.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_keep_away_from_the_initiator_as_long_as_there_are_cpus() {
        let cpus = Cpus::these(vec![2, 3, 7]).unwrap();
        assert_eq!(cpus.initiator(), 2);
        assert_eq!([0, 1, 2, 3].map(|vcpu| cpus.of_vcpu(vcpu)), [3, 7, 2, 3]);
        assert!(cpus.has_room_for(2));
        assert!(!cpus.has_room_for(3));
    }

    #[test]
    fn a_single_cpu_is_everybodys_and_has_room_for_no_vcpu() {
        let cpus = Cpus::these(vec![5]).unwrap();
        assert_eq!((cpus.initiator(), cpus.of_vcpu(0)), (5, 5));
        assert!(!cpus.has_room_for(1));
        assert!(Cpus::these(Vec::new()).is_none());
    }

    #[test]
    fn a_thread_that_does_not_exist_is_not_found() {
        assert!(thread_named("no-such-thread").is_err());
    }
}
