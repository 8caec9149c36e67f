//! Waiting for an answer on a plain thread, with a deadline.
//!
//! Async code awaits the same receivers; only threads that may block come here.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The actor dropped the question: it is gone, or ended before it came to it.
    #[error("is gone")]
    Gone,
    /// The deadline passed.
    #[error("did not answer in time")]
    TooLate,
}

/// Unparks the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the answer, for `deadline` at most.
///
/// # Errors
///
/// [`NoAnswer`].
pub fn wait<T>(answer: oneshot::Receiver<T>, deadline: Duration) -> Result<T, NoAnswer> {
    match until(Instant::now() + deadline, answer) {
        Some(Ok(value)) => Ok(value),
        Some(Err(_)) => Err(NoAnswer::Gone),
        None => Err(NoAnswer::TooLate),
    }
}

/// Runs `future` on the calling thread until it is ready or the `deadline` passes (`None`).
pub fn until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        // A needless unpark only costs one more look.
        std::thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ActorName;
    use crate::threads::spawn;

    #[test]
    fn an_answer_from_another_thread_arrives() {
        let (reply, answer) = oneshot::channel();
        let thread = spawn(ActorName::Pmap, |_, _| {}, move || reply.send(7).unwrap()).unwrap();
        assert_eq!(wait(answer, Duration::from_secs(60)), Ok(7));
        thread.join();
    }

    #[test]
    fn a_dropped_question_is_answered_at_once_and_a_kept_one_too_late() {
        let (reply, answer) = oneshot::channel::<()>();
        drop(reply);
        assert_eq!(wait(answer, Duration::from_secs(60)), Err(NoAnswer::Gone));
        let (_kept, answer) = oneshot::channel::<()>();
        assert_eq!(wait(answer, Duration::ZERO), Err(NoAnswer::TooLate));
    }
}
