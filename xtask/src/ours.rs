//! Our own workspace: where it is, and building what is in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Outcome};
use crate::process::visible;

/// The root of the checkout this was built from.
///
/// # Panics
///
/// Never: this crate is one folder below it.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// A call of the cargo that runs us, in the root of the checkout.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The release build of our command, up to date.
///
/// # Errors
///
/// When it does not compile.
pub(crate) fn build_skep() -> Outcome<PathBuf> {
    visible(cargo().args(["build", "--release", "--quiet", "--bin", "skep"]))?;
    Ok(target()?.join("release/skep"))
}

/// Cargo's target directory: we are in `TARGET/PROFILE/`.
///
/// # Errors
///
/// As [`ourselves`].
pub(crate) fn target() -> Outcome<PathBuf> {
    let ourselves = ourselves()?;
    ourselves
        .parent()
        .and_then(Path::parent)
        .map(Path::to_owned)
        .ok_or_else(|| Failure::new(format!("{} is in no target directory", ourselves.display())))
}

/// This very program.
///
/// # Errors
///
/// When the kernel does not say.
pub(crate) fn ourselves() -> Outcome<PathBuf> {
    std::env::current_exe()
        .map_err(|error| Failure::new(format!("cannot find out which program this is: {error}")))
}
