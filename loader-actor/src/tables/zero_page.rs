//! The zero page, `struct boot_params`: what Linux reads when it is entered in 64-bit mode.
//!
//! Source: the kernel's `Documentation/arch/x86/zero-page.rst` and `boot.rst`.

use actors::Gpa;
use actors::layout::MemoryLayout;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

use crate::tables::memory_map::memory_map;

/// `type_of_loader`: one without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// `vid_mode`: "normal", that is: ask nothing.
const NORMAL_VIDEO: u16 = 0xffff;
/// `boot_flag` and `header`, where there is no header to copy.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
/// `kernel_alignment`, where there is no header to copy: what Linux is configured with.
const KERNEL_ALIGNMENT: u32 = 16 << 20;

/// What goes into the zero page beside the header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'l> {
    pub(crate) layout: &'l MemoryLayout,
    pub(crate) cmdline: Gpa,
    /// Characters, the final zero not counted.
    pub(crate) cmdline_len: u64,
    /// Where the initrd lies, and its length in bytes.
    pub(crate) initrd: Option<(Gpa, u64)>,
    /// The ACPI root pointer.
    pub(crate) rsdp: Gpa,
}

/// The header a kernel without one (an ELF) is given: only what the kernel itself reads.
pub(crate) fn plain_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..setup_header::default()
    }
}

/// The zero page's 4096 bytes.
///
/// # Panics
///
/// When an address or length does not fit the 32-bit fields of the header: the callers
/// place all of it below 4 GiB.
pub(crate) fn zero_page(header: setup_header, facts: &Facts<'_>) -> Vec<u8> {
    let narrow = |number: u64| u32::try_from(number).expect("placed below 4 GiB");
    let mut page =
        boot_params { hdr: header, acpi_rsdp_addr: facts.rsdp.0, ..boot_params::default() };
    page.hdr.type_of_loader = UNDEFINED_LOADER;
    page.hdr.vid_mode = NORMAL_VIDEO;
    page.hdr.cmd_line_ptr = narrow(facts.cmdline.0);
    if header.cmdline_size == 0 {
        page.hdr.cmdline_size = narrow(facts.cmdline_len);
    }
    if let Some((at, len)) = facts.initrd {
        page.hdr.ramdisk_image = narrow(at.0);
        page.hdr.ramdisk_size = narrow(len);
    }
    let map = memory_map(facts.layout);
    page.e820_entries = u8::try_from(map.len()).expect("at most four lines");
    for (index, line) in map.iter().enumerate() {
        page.e820_table[index] =
            boot_e820_entry { addr: line.start.0, size: line.len, r#type: line.kind };
    }
    page.as_slice().to_vec()
}

/// A zero page fills a page.
const _: () = assert!(size_of::<boot_params>() == 4096);
