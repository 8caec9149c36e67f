//! What the `skep` command promises, tried as a user would.

mod bad_input;
mod endings;
mod examples;
mod guests;
mod support;
