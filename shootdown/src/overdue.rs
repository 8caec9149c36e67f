//! Naming the vcpu that does not come out.
//!
//! There is no clock here: whoever waits knows since when.

use std::time::Duration;

use crate::domain::{SeatId, Ticket};

/// Somebody has not left the guest in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} not left the guest {:.1} s after an invalidation was raised",
    who_has(.seats),
    .waited.as_secs_f64()
)]
pub struct Overdue {
    /// Who, as of the last look at the ticket. Never empty; ascending.
    pub seats: Vec<SeatId>,
    /// How long ago the invalidation was raised.
    pub waited: Duration,
}

impl Overdue {
    /// Says who is late when an invalidation was raised `waited` ago and vcpus have
    /// `deadline` to come out.
    ///
    /// Goes by the last look at the ticket, so call it with a ticket that
    /// [`Domain::redeem`](crate::Domain::redeem) has just given back.
    ///
    /// # Errors
    ///
    /// Who is late, when `waited` exceeds `deadline` and somebody is waited for.
    pub fn check<R>(ticket: &Ticket<R>, waited: Duration, deadline: Duration) -> Result<(), Self> {
        if waited <= deadline || ticket.waiting().is_empty() {
            return Ok(());
        }
        Err(Self { seats: ticket.waiting().to_vec(), waited })
    }
}

/// "vcpu 2 has", "vcpus 0 and 3 have", "vcpus 1, 2 and 5 have".
fn who_has(seats: &[SeatId]) -> String {
    let number = |seat: &SeatId| seat.0.to_string();
    match seats {
        [] => "no vcpu has".to_owned(),
        [seat] => format!("vcpu {} has", seat.0),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(number).collect();
            format!("vcpus {} and {} have", first.join(", "), last.0)
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::domain::{Domain, Generation, Whom};

    const DEADLINE: Duration = Duration::from_secs(1);
    const LATE: Duration = Duration::from_secs(2);

    /// What is said about an invalidation that found `inside` in the guest.
    fn verdict(inside: &[usize], waited: Duration) -> Result<(), Overdue> {
        let domain = Domain::new(6);
        let mut cached = Generation::default();
        let guards: Vec<_> =
            inside.iter().map(|&seat| domain.enter(SeatId(seat), &mut cached, |_| ())).collect();
        let ticket = domain.raise((), Whom::Everyone, |_| ());
        let verdict = Overdue::check(&ticket, waited, DEADLINE);
        drop(guards);
        verdict
    }

    #[test]
    fn one_late_vcpu_is_named() {
        assert_eq!(
            verdict(&[2], LATE).unwrap_err().to_string(),
            "vcpu 2 has not left the guest 2.0 s after an invalidation was raised"
        );
    }

    #[test]
    fn several_late_vcpus_are_all_named() {
        assert_eq!(
            verdict(&[0, 3], LATE).unwrap_err().to_string(),
            "vcpus 0 and 3 have not left the guest 2.0 s after an invalidation was raised"
        );
        assert_eq!(
            verdict(&[1, 2, 5], LATE).unwrap_err().to_string(),
            "vcpus 1, 2 and 5 have not left the guest 2.0 s after an invalidation was raised"
        );
    }

    #[test]
    fn nobody_is_late_before_the_deadline_has_passed() {
        assert_eq!(verdict(&[2], DEADLINE), Ok(()));
    }

    #[test]
    fn nobody_is_late_when_nobody_was_in_the_guest() {
        assert_eq!(verdict(&[], LATE), Ok(()));
    }
}
