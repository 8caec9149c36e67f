//! Why a guest cannot begin.

use std::path::{Path, PathBuf};

use actors::contract::space::SpaceError;

use crate::claims::Misplaced;
use crate::command_line::BadCommandLine;
use crate::guests::Unsuitable;
use crate::image::BadImage;
use crate::initrd::BadInitrd;
use crate::input::InputError;
use crate::tables::acpi::BadProcessorCount;

/// Why a guest cannot begin, in one sentence. Nothing of the guest has run, and none of
/// its memory is held any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The kernel is not one.
    #[error("the kernel {} {why}", .path.display())]
    Kernel {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadImage,
    },
    /// The initrd is not one.
    #[error("the initrd {} {why}", .path.display())]
    Initrd {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadInitrd,
    },
    /// An initrd for something that cannot take one.
    #[error("a {format} takes no initrd: leave it out")]
    InitrdUnwanted {
        /// What is started.
        format: &'static str,
    },
    /// The command line cannot be handed over.
    #[error(transparent)]
    CommandLine(#[from] BadCommandLine),
    /// Something does not go where it must.
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    /// No tables for so many processors.
    #[error(transparent)]
    Processors(#[from] BadProcessorCount),
    /// No such guest.
    #[error("there is no built-in guest \"{name}\": there are {known}")]
    NoSuchGuest {
        /// What was asked for.
        name: String,
        /// What there is, separated by commas.
        known: String,
    },
    /// A guest that does not run on this machine.
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    /// The pmap would not give us the memory.
    #[error("cannot reach guest memory to load the guest: {0}")]
    Memory(#[from] SpaceError),
    /// The memory was there and could not be written.
    #[error("cannot write {what} into guest memory: {why}")]
    Write {
        /// What was written.
        what: &'static str,
        /// The reason in the words of who tried.
        why: String,
    },
    /// There is no loader any more.
    #[error("the loader {0}")]
    Gone(&'static str),
}

impl LoadError {
    pub(crate) fn kernel(path: &Path, why: BadImage) -> Self {
        Self::Kernel { path: path.to_owned(), why }
    }

    pub(crate) fn initrd(path: &Path, why: BadInitrd) -> Self {
        Self::Initrd { path: path.to_owned(), why }
    }

    /// Whether other files, options or a bigger guest would help: everything but what the
    /// host or another actor failed at.
    #[must_use]
    pub fn is_about_the_input(&self) -> bool {
        !matches!(self, Self::Memory(_) | Self::Write { .. } | Self::Gone(_))
    }
}
