//! What firmware would have told the kernel. Pure: bytes out, nothing written.

pub mod acpi;
pub(crate) mod memory_map;
pub(crate) mod paging;
pub(crate) mod start_info;
pub(crate) mod zero_page;
