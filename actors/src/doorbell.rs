//! Waking a thread that sleeps in `poll`.
//!
//! A mailbox alone cannot wake a thread that also waits for a file descriptor
//! (userfaultfd, a terminal). So a sender puts its message into the mailbox and then
//! *rings*; the sleeper polls [`Doorbell::as_raw_fd`] beside its other descriptors.
//!
//! Ringing a thread that is awake costs one atomic swap and no system call:
//!
//! ```text
//!   sender                              sleeper
//!   S1  message into the mailbox        W1  asleep = true
//!   S2  ── fence SeqCst ──              W2  ── fence SeqCst ──
//!   S3  asleep? then write the eventfd  W3  mailbox still empty? then poll
//! ```
//!
//! The fences forbid that both look too early: either the sender sees a sleeper at S3
//! or the sleeper sees the message at W3.

#![expect(unsafe_code, reason = "eventfd and poll are system calls without a safe wrapper in std")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// An eventfd that is only written when somebody sleeps on it.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
    asleep: AtomicBool,
}

impl Doorbell {
    /// A bell nobody sleeps at.
    ///
    /// # Errors
    ///
    /// The operating system's, when it is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, asleep: AtomicBool::new(false) })
    }

    /// Wakes the sleeper, if there is one. Call after the message is in its mailbox.
    pub fn ring(&self) {
        fence(Ordering::SeqCst); // S2: pairs with W2.
        // S3: the swap makes one of many ringers pay for the system call.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            let one = 1u64;
            // SAFETY: eight readable bytes, as eventfd wants; a full counter is a rung bell.
            unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }

    /// Sleeps until the bell rings, a descriptor of `others` is readable, or `timeout`
    /// milliseconds passed (-1: never), unless `has_mail` says that there is no need.
    ///
    /// Returns, for each of `others`, the events poll reported (0: none).
    pub fn sleep<const N: usize>(
        &self,
        others: [RawFd; N],
        timeout_ms: i32,
        has_mail: impl FnOnce() -> bool,
    ) -> [i16; N] {
        self.asleep.store(true, Ordering::Relaxed); // W1: ordered by the fence below.
        fence(Ordering::SeqCst); // W2: pairs with S2.
        let mut events = [0; N];
        if !has_mail() {
            let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut list: Vec<libc::pollfd> = Vec::with_capacity(N + 1);
            list.push(entry(self.fd.as_raw_fd()));
            list.extend(others.map(entry));
            let count = libc::nfds_t::try_from(list.len()).expect("a handful of descriptors");
            // SAFETY: `list` holds `count` initialised entries and outlives the call.
            let ready = unsafe { libc::poll(list.as_mut_ptr(), count, timeout_ms) };
            if ready > 0 {
                if list[0].revents != 0 {
                    self.hush();
                }
                for (event, polled) in events.iter_mut().zip(&list[1..]) {
                    *event = polled.revents;
                }
            }
        }
        self.asleep.store(false, Ordering::Relaxed);
        events
    }

    /// Takes the ring out of the eventfd, so that the next poll sleeps.
    fn hush(&self) {
        let mut count = 0u64;
        // SAFETY: eight writable bytes, as eventfd wants.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ActorName;
    use crate::threads::spawn;

    #[test]
    fn no_message_is_slept_through() {
        let bell = Arc::new(Doorbell::new().unwrap());
        let (send, receive) = crossbeam_channel::bounded::<u32>(4);
        let ringer = bell.clone();
        let thread = spawn(
            ActorName::Pmap,
            |_, _| {},
            move || {
                for number in 0..20_000 {
                    send.send(number).unwrap();
                    ringer.ring();
                }
            },
        )
        .unwrap();
        let mut expected = 0;
        while expected < 20_000 {
            while let Ok(number) = receive.try_recv() {
                assert_eq!(number, expected);
                expected += 1;
            }
            if expected < 20_000 {
                // For ever: a lost ring would hang this test.
                let _: [i16; 0] = bell.sleep([], -1, || !receive.is_empty());
            }
        }
        thread.join();
    }
}
