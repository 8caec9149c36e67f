//! Why there is no answer.

use std::fmt::Display;

use machine::{BuildError, ExitStatus};

/// Why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The subject could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The subject ended before it was measured.
    #[error("the machine under test ended while it was measured: {0}")]
    Ended(String),
    /// Subject and reference did not do the same work.
    #[error("the samples cannot be compared: {0}")]
    Unlike(String),
    /// The host refused something.
    #[error("cannot {what}: {why}")]
    Host {
        /// What was tried.
        what: String,
        /// The reason.
        why: String,
    },
    /// The result cannot be kept where it was wanted.
    #[error("the result cannot be written to {path}: {why}")]
    File {
        /// Where.
        path: String,
        /// The operating system's reason.
        why: std::io::Error,
    },
    /// Nobody reads the result.
    #[error("the result cannot be written to stdout: {0}")]
    Stdout(std::io::Error),
}

impl BenchError {
    /// The command's exit status.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Usage(_) => ExitStatus::Usage,
            Self::Build(why) => why.exit_status(),
            Self::Ended(_) | Self::Unlike(_) | Self::File { .. } => ExitStatus::Error,
            Self::Host { .. } => ExitStatus::HostLacks,
            Self::Stdout(_) => ExitStatus::ConsoleClosed,
        }
    }
}

/// Says what the host refused.
pub(crate) fn host<E: Display>(what: impl Into<String>) -> impl FnOnce(E) -> BenchError {
    let what = what.into();
    move |why| BenchError::Host { what, why: why.to_string() }
}
