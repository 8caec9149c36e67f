//! Waiting for an answer on a plain thread, but not for ever.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs `future` on the calling thread until it is ready or the `deadline` passes (`None`).
pub(crate) fn until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        // A needless unpark only costs one more look.
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actors::threads::spawn;
    use actors::{ActorName, VcpuId};
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn an_answer_from_another_thread_is_heard() {
        for _ in 0..1000 {
            let (tell, hear) = oneshot::channel();
            let body = move || tell.send(7).unwrap();
            let thread = spawn(ActorName::Vcpu(VcpuId(0)), |_, _| {}, body).unwrap();
            let far = Instant::now() + Duration::from_secs(60);
            assert_eq!(until(far, hear), Some(Ok(7)));
            thread.join();
        }
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let (_tell, hear) = oneshot::channel::<()>();
        assert_eq!(until(Instant::now(), hear), None);
    }
}
