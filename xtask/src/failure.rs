//! How a chore ends badly: one sentence, and the status to leave with.

use std::fmt;
use std::io;
use std::path::Path;

/// What every step of a chore returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a chore ended, in a sentence for the person who typed it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What went wrong, where, and what to do about it.
    pub(crate) message: String,
    /// The exit status `cargo xtask` leaves with.
    pub(crate) status: u8,
}

impl Failure {
    /// A failure with the ordinary status, 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: 1 }
    }

    /// The person typed something this command does not understand: status 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: 2 }
    }

    /// The same failure, leaving with another status.
    pub(crate) fn with_status(self, status: u8) -> Self {
        Self { status, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

/// Turns an I/O error into a sentence that names the file.
///
/// `doing` completes "cannot ...": `read`, `create`, `write`.
pub(crate) fn about<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Failure + 'a {
    move |error| Failure::new(format!("cannot {doing} {}: {error}", path.display()))
}
