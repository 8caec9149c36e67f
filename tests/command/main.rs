//! What the `skep` command promises, tried as a user would: each scenario on every engine of this host.

mod bad_input;
mod endings;
mod engines;
mod examples;
mod failing_store;
mod flat;
mod guests;
mod hostile;
mod paging;
mod soft;
mod support;
mod verify;
