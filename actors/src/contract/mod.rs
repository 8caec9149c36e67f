//! What actors say to each other: one file per conversation.

pub mod boot;
pub mod device;
pub mod guest;
pub mod host;
pub mod page;
pub mod space;
pub mod vcpu;
pub mod verify;
