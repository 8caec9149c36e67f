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
    let until = Instant::now() + deadline;
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut answer = pin!(answer);
    loop {
        match answer.as_mut().poll(&mut context) {
            Poll::Ready(Ok(value)) => return Ok(value),
            Poll::Ready(Err(_)) => return Err(NoAnswer::Gone),
            Poll::Pending => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NoAnswer::TooLate);
        }
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
