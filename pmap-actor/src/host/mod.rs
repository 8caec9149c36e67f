//! What the host gives: the memory object and its two views, and userfaultfd.

pub mod memory;
pub mod userfault;
