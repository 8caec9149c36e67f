//! The start info: what a kernel reads when it is entered through its PVH entry point.
//!
//! Source: Xen's `include/public/arch-x86/hvm/start_info.h`, version 1.

use actors::Gpa;
use actors::layout::MemoryLayout;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use crate::low_memory::{START_INFO, START_INFO_MEMORY_MAP, START_INFO_MODULES};
use crate::tables::memory_map::memory_map;

/// The bytes to be placed at [`START_INFO`]: start info, module list, memory map.
pub(crate) fn start_info(
    layout: &MemoryLayout,
    cmdline: Gpa,
    initrd: Option<(Gpa, u64)>,
    rsdp: Gpa,
) -> Vec<u8> {
    let map: Vec<hvm_memmap_table_entry> = memory_map(layout)
        .iter()
        .map(|line| hvm_memmap_table_entry {
            addr: line.start.0,
            size: line.len,
            type_: line.kind,
            reserved: 0,
        })
        .collect();
    let module = initrd.map(|(at, len)| hvm_modlist_entry {
        paddr: at.0,
        size: len,
        ..hvm_modlist_entry::default()
    });
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: initrd.map_or(0, |_| START_INFO_MODULES.0),
        cmdline_paddr: cmdline.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: START_INFO_MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).expect("at most four lines"),
        ..hvm_start_info::default()
    };
    let mut bytes = info.as_slice().to_vec();
    let mut put = |at: Gpa, more: &[u8]| {
        let offset = usize::try_from(at.0 - START_INFO.0).expect("inside one page");
        bytes.resize(offset, 0);
        bytes.extend_from_slice(more);
    };
    if let Some(module) = &module {
        put(START_INFO_MODULES, module.as_slice());
    }
    let map: Vec<u8> = map.iter().flat_map(|line| line.as_slice().to_vec()).collect();
    put(START_INFO_MEMORY_MAP, &map);
    bytes
}

/// The start info and the module list end before what follows them.
const _: () = {
    assert!(START_INFO.0 + size_of::<hvm_start_info>() as u64 <= START_INFO_MODULES.0);
    assert!(
        START_INFO_MODULES.0 + size_of::<hvm_modlist_entry>() as u64 <= START_INFO_MEMORY_MAP.0
    );
};
