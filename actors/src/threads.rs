//! Named threads whose end is always noticed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crate::ActorName;

/// How a thread of ours ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It returned.
    Returned,
    /// It panicked, with this message.
    Panicked(String),
}

/// A thread with a name.
#[derive(Debug)]
#[must_use = "a thread that is not joined outlives its machine"]
pub struct Joined {
    handle: JoinHandle<()>,
}

impl Joined {
    /// Waits for the thread to end.
    pub fn join(self) {
        // The body catches its own panics, so there is nothing left to learn here.
        drop(self.handle.join());
    }

    /// Whether it has ended already, so that `join` will not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// Starts `body` on a thread called `skep-NAME`, and calls `ended` on that thread when
/// it is over, however it is over.
///
/// # Errors
///
/// The operating system's, when it has no thread to give.
pub fn spawn(
    name: ActorName,
    ended: impl FnOnce(ActorName, Ending) + Send + 'static,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<Joined> {
    // Linux shows 15 bytes: "skep-vcpu-1023" still fits.
    let label = format!("skep-{}", name.to_string().replace(' ', "-"));
    let handle = std::thread::Builder::new().name(label).spawn(move || {
        let ending = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(()) => Ending::Returned,
            Err(payload) => Ending::Panicked(panic_text(payload.as_ref())),
        };
        ended(name, ending);
    })?;
    Ok(Joined { handle })
}

/// The sentence a panic was raised with.
#[must_use]
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending_of(body: impl FnOnce() + Send + 'static) -> (ActorName, Ending) {
        let (tell, hear) = crossbeam_channel::bounded(1);
        let ended = move |name, ending| tell.send((name, ending)).unwrap();
        spawn(ActorName::Pmap, ended, body).unwrap().join();
        hear.recv().unwrap()
    }

    #[test]
    fn a_panic_is_reported_with_its_words_and_its_actor() {
        let ending = ending_of(|| panic!("no frames"));
        assert_eq!(ending, (ActorName::Pmap, Ending::Panicked("no frames".to_owned())));
    }

    #[test]
    fn a_plain_return_is_reported_too() {
        assert_eq!(ending_of(|| {}).1, Ending::Returned);
    }
}
