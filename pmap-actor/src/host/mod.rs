//! What the host gives: the memory object and its two views, userfaultfd, huge pages, and what
//! the host says of its own mapping.

mod blocks;
mod device_view;
pub mod huge;
pub mod memory;
mod object;
pub mod pagemap;
mod smaps;
pub mod userfault;
mod window;
