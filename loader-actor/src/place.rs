//! Putting a guest's first bytes where they belong.
//!
//! Three steps, in this order: *plan* (parse, check, claim: nothing is written), *hold*
//! (exactly the pages that will be written, all at once), *write*. A plan that stands
//! can only fail for reasons of the host.

use actors::Gpa;
use actors::contract::boot::{BootSource, EntryMode, EntryState, Load, Loaded, MemoryPort};
use actors::layout::MemoryLayout;
use actors::platform::ACPI_TABLES;
use actors::pulse::Pulse;
use actors::{GpaRange, Gva};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage as BzImageLoader;
use linux_loader::loader::elf::Elf as ElfLoader;
use tracing::{debug, instrument};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::claims::Claims;
use crate::command_line;
use crate::error::LoadError;
use crate::guests;
use crate::hold::{Held, pages_of};
use crate::image::Image;
use crate::image::bzimage::{BzImage, ENTRY_OFFSET};
use crate::image::elf::{Elf, Segment, Start};
use crate::initrd;
use crate::input::{Input, Role};
use crate::low_memory::{
    BOOT_STACK, BOOT_STACK_LEN, COMMAND_LINE, DESCRIPTORS, EXTENDED_MEMORY, FIRMWARE, FLAT_IMAGE,
    PAGE_TABLES, START_INFO, ZERO_PAGE,
};
use crate::tables::zero_page::{Facts, plain_header, zero_page};
use crate::tables::{acpi, paging, start_info};

/// Puts what `load` names into the guest's memory and says how vcpu 0 begins.
///
/// The memory must be fresh: whatever is not written (the zero-initialised part of a
/// segment, for instance) is taken for zero. Memory is touched only between
/// [`MemoryPort::hold`] and [`MemoryPort::release`]; on success the pages are given back
/// with `install`. Reads files and waits for the pmap: call it from a thread that may
/// block.
///
/// # Errors
///
/// [`LoadError`], with everything held given back and nothing installed.
pub fn place(
    load: &Load,
    layout: MemoryLayout,
    port: &dyn MemoryPort,
) -> Result<Loaded, LoadError> {
    place_alive(load, layout, port, &Pulse::default())
}

/// [`place`], with signs of life.
#[instrument(level = "debug", name = "boot", skip_all, fields(source = ?load.source))]
pub(crate) fn place_alive(
    load: &Load,
    layout: MemoryLayout,
    port: &dyn MemoryPort,
    pulse: &Pulse,
) -> Result<Loaded, LoadError> {
    let kernel = match &load.source {
        BootSource::Builtin(name) => return builtin(name, load, layout)?.carry_out(port, pulse),
        BootSource::File(path) => Input::open(Role::Kernel, path)?,
    };
    let image = Image::detect(&kernel)?;
    if let Image::Flat = image {
        return flat(&kernel, load, layout)?.carry_out(port, pulse);
    }
    let initrd = match &load.initrd {
        Some(path) => Some(Input::open(Role::Initrd, path)?),
        None => None,
    };
    let initrd = initrd.as_ref();
    let plan = match &image {
        Image::BzImage(image) => bzimage(&kernel, image, initrd, load, layout)?,
        Image::Elf(image) => match image.start {
            Start::Pvh(entry) => pvh(&kernel, image, entry, initrd, load, layout)?,
            Start::Long(entry) => long(&kernel, image, entry, initrd, load, layout)?,
        },
        Image::Flat => unreachable!("flat binaries were started above"),
    };
    if let Some(initrd) = initrd {
        // After the plan, so that a file too big for the guest is not read first.
        initrd::check(initrd, pulse)?.map_err(|why| LoadError::initrd(initrd.path(), why))?;
    }
    plan.carry_out(port, pulse)
}

/// What will be written, and how the guest begins then.
struct Plan<'i> {
    format: &'static str,
    layout: MemoryLayout,
    claims: Claims,
    parts: Vec<Part<'i>>,
    entry: EntryState,
}

/// One thing to write.
enum Part<'i> {
    Bytes { what: &'static str, at: Gpa, bytes: Vec<u8> },
    File { what: &'static str, at: Gpa, input: &'i Input },
    BzImage { input: &'i Input, image: &'i BzImage },
    Elf { input: &'i Input, image: &'i Elf },
}

fn bzimage<'i>(
    kernel: &'i Input,
    image: &'i BzImage,
    initrd: Option<&'i Input>,
    load: &Load,
    layout: MemoryLayout,
) -> Result<Plan<'i>, LoadError> {
    let mut plan = Plan::new("Linux bzImage", layout);
    plan.firmware(load)?;
    plan.long_mode()?;
    let at = image.load_at();
    plan.claims.claim("the kernel", at, image.memory_len())?;
    plan.parts.push(Part::BzImage { input: kernel, image });
    plan.command_line(load, image.most_cmdline())?;
    let initrd = plan.initrd(initrd, image.initrd_ceiling())?;
    plan.zero_page(image.header, load, initrd)?;
    plan.entry = long_entry(Gva(at.0 + ENTRY_OFFSET));
    Ok(plan)
}

fn pvh<'i>(
    kernel: &'i Input,
    image: &'i Elf,
    entry: Gpa,
    initrd: Option<&'i Input>,
    load: &Load,
    layout: MemoryLayout,
) -> Result<Plan<'i>, LoadError> {
    let mut plan = Plan::new("PVH ELF", layout);
    plan.firmware(load)?;
    // The module list and the memory map are in the same page.
    let page = GpaRange::page_of(START_INFO);
    plan.claims.claim("the PVH start info", page.start(), page.len())?;
    plan.segments(kernel, image)?;
    plan.command_line(load, command_line::LINUX_LIMIT)?;
    let initrd = plan.initrd(initrd, layout.low().end())?;
    let info = start_info::start_info(&layout, COMMAND_LINE, initrd, ACPI_TABLES);
    plan.write("the PVH start info", START_INFO, info);
    plan.entry = EntryState {
        mode: EntryMode::Protected,
        rip: Gva(entry.0),
        rsp: Gva(0),
        rsi: 0,
        rbx: START_INFO.0,
        rflags: RFLAGS,
    };
    Ok(plan)
}

fn long<'i>(
    kernel: &'i Input,
    image: &'i Elf,
    entry: Gpa,
    initrd: Option<&'i Input>,
    load: &Load,
    layout: MemoryLayout,
) -> Result<Plan<'i>, LoadError> {
    let mut plan = Plan::new("64-bit ELF", layout);
    plan.firmware(load)?;
    plan.long_mode()?;
    plan.segments(kernel, image)?;
    plan.command_line(load, command_line::LINUX_LIMIT)?;
    let initrd = plan.initrd(initrd, layout.low().end())?;
    plan.zero_page(plain_header(), load, initrd)?;
    plan.entry = long_entry(Gva(entry.0));
    Ok(plan)
}

fn flat<'i>(kernel: &'i Input, load: &Load, layout: MemoryLayout) -> Result<Plan<'i>, LoadError> {
    let mut plan = Plan::new("flat binary", layout);
    plan.refuse_initrd(load)?;
    plan.firmware_if_it_fits(load)?;
    plan.claims.claim("the flat binary", FLAT_IMAGE, kernel.len())?;
    plan.parts.push(Part::File { what: "the flat binary", at: FLAT_IMAGE, input: kernel });
    plan.entry = EntryState {
        mode: EntryMode::Real { segment: 0 },
        rip: Gva(FLAT_IMAGE.0),
        rsp: Gva(FLAT_IMAGE.0),
        rsi: 0,
        rbx: 0,
        rflags: RFLAGS,
    };
    Ok(plan)
}

fn builtin<'i>(name: &str, load: &Load, layout: MemoryLayout) -> Result<Plan<'i>, LoadError> {
    let guest = guests::find(name).ok_or_else(|| LoadError::NoSuchGuest {
        name: name.to_owned(),
        known: guests::names().collect::<Vec<_>>().join(", "),
    })?;
    let mut plan = Plan::new("built-in guest", layout);
    plan.refuse_initrd(load)?;
    plan.firmware_if_it_fits(load)?;
    for (at, bytes) in guest.pieces(&layout, load.vcpus)? {
        let what = format!("the built-in guest's piece at {at}");
        plan.claims.claim(what, at, bytes.len() as u64)?;
        plan.write("the built-in guest", at, bytes);
    }
    plan.entry = (guest.entry)();
    Ok(plan)
}

/// Nothing but the bit that is always set: interrupts are off.
const RFLAGS: u64 = 2;

fn long_entry(rip: Gva) -> EntryState {
    EntryState {
        mode: EntryMode::Long {
            cr3: PAGE_TABLES,
            gdt: DESCRIPTORS,
            gdt_limit: u16::try_from(paging::DESCRIPTORS_LEN - 1).expect("four descriptors"),
            code: paging::CODE,
            data: paging::DATA,
            cpl: 0,
        },
        rip,
        rsp: Gva(BOOT_STACK.0 + BOOT_STACK_LEN),
        rsi: ZERO_PAGE.0,
        rbx: 0,
        rflags: RFLAGS,
    }
}

impl<'i> Plan<'i> {
    fn new(format: &'static str, layout: MemoryLayout) -> Self {
        Self {
            format,
            layout,
            claims: Claims::new(layout),
            parts: Vec::new(),
            entry: long_entry(Gva(0)),
        }
    }

    /// Writes bytes that have been claimed.
    fn write(&mut self, what: &'static str, at: Gpa, bytes: Vec<u8>) {
        self.parts.push(Part::Bytes { what, at, bytes });
    }

    /// The area below 1 MiB that the memory map calls reserved, with the ACPI tables in it.
    fn firmware(&mut self, load: &Load) -> Result<(), LoadError> {
        let len = EXTENDED_MEMORY.0 - FIRMWARE.0;
        self.claims.claim("the firmware's area", FIRMWARE, len)?;
        let tables = acpi::tables(load.vcpus)?;
        self.write("the ACPI tables", ACPI_TABLES, tables);
        Ok(())
    }

    /// A flat binary or a built-in guest may have less than 1 MiB, and no tables then.
    fn firmware_if_it_fits(&mut self, load: &Load) -> Result<(), LoadError> {
        if self.layout.low().end() < EXTENDED_MEMORY {
            return Ok(());
        }
        self.firmware(load)
    }

    /// What the 64-bit entry starts with.
    fn long_mode(&mut self) -> Result<(), LoadError> {
        self.claims.claim("the boot stack", BOOT_STACK, BOOT_STACK_LEN)?;
        for (what, at, bytes) in [
            ("the descriptor table", DESCRIPTORS, paging::descriptors()),
            ("the boot page tables", PAGE_TABLES, paging::identity_tables(PAGE_TABLES)),
        ] {
            self.claims.claim(what, at, bytes.len() as u64)?;
            self.write(what, at, bytes);
        }
        let page = GpaRange::page_of(ZERO_PAGE);
        self.claims.claim("the zero page", page.start(), page.len())?;
        Ok(())
    }

    fn segments(&mut self, kernel: &'i Input, image: &'i Elf) -> Result<(), LoadError> {
        for segment in &image.segments {
            let Segment { index, at, memory_len, .. } = *segment;
            let what = format!("segment {index} of the kernel");
            self.claims.claim(what, at, memory_len)?;
        }
        self.parts.push(Part::Elf { input: kernel, image });
        Ok(())
    }

    fn command_line(&mut self, load: &Load, most: u64) -> Result<(), LoadError> {
        let bytes = command_line::to_bytes(&load.cmdline, most)?;
        self.claims.claim("the command line", COMMAND_LINE, bytes.len() as u64)?;
        self.write("the command line", COMMAND_LINE, bytes);
        Ok(())
    }

    /// As high as possible: the kernel unpacks itself upwards from where it is.
    fn initrd(
        &mut self,
        initrd: Option<&'i Input>,
        ceiling: Gpa,
    ) -> Result<Option<(Gpa, u64)>, LoadError> {
        let Some(input) = initrd else {
            return Ok(None);
        };
        let what = "the initrd";
        let at = self.claims.claim_highest(what, input.len(), ceiling)?;
        self.parts.push(Part::File { what, at, input });
        Ok(Some((at, input.len())))
    }

    fn zero_page(
        &mut self,
        header: linux_loader::bootparam::setup_header,
        load: &Load,
        initrd: Option<(Gpa, u64)>,
    ) -> Result<(), LoadError> {
        let facts = Facts {
            layout: &self.layout,
            cmdline: COMMAND_LINE,
            cmdline_len: load.cmdline.len() as u64,
            initrd,
            rsdp: ACPI_TABLES,
        };
        let page = zero_page(header, &facts);
        self.write("the zero page", ZERO_PAGE, page);
        Ok(())
    }

    fn refuse_initrd(&self, load: &Load) -> Result<(), LoadError> {
        match load.initrd {
            Some(_) => Err(LoadError::InitrdUnwanted { format: self.format }),
            None => Ok(()),
        }
    }

    /// Holds, writes, gives back.
    fn carry_out(self, port: &dyn MemoryPort, pulse: &Pulse) -> Result<Loaded, LoadError> {
        let stretches = || self.parts.iter().flat_map(Part::stretches);
        let bytes = stretches().map(|(_, len)| len).sum();
        let held = Held::for_writing(port, pages_of(stretches()), pulse)?;
        for part in &self.parts {
            part.write(held.memory(), pulse)?;
        }
        held.finish();
        debug!(format = self.format, bytes, rip = %self.entry.rip, "loaded");
        Ok(Loaded { format: self.format, entry: self.entry, bytes })
    }
}

impl Part<'_> {
    /// What it writes: where, and how many bytes.
    fn stretches(&self) -> Vec<(Gpa, u64)> {
        match self {
            Self::Bytes { at, bytes, .. } => vec![(*at, bytes.len() as u64)],
            Self::File { at, input, .. } => vec![(*at, input.len())],
            Self::BzImage { image, .. } => vec![(image.load_at(), image.payload_len)],
            Self::Elf { image, .. } => {
                image.segments.iter().map(|segment| (segment.at, segment.file_len)).collect()
            }
        }
    }

    fn write(&self, memory: &GuestMemoryMmap, pulse: &Pulse) -> Result<(), LoadError> {
        let failed =
            |what, why: &dyn std::fmt::Display| LoadError::Write { what, why: why.to_string() };
        let (input, what, end) = match self {
            Self::Bytes { what, at, bytes } => {
                pulse.beat();
                let written = memory.write_slice(bytes, GuestAddress(at.0));
                return written.map_err(|why| failed(what, &why));
            }
            Self::File { input, what, .. } => (input, *what, input.len()),
            Self::BzImage { input, image } => (input, "the kernel", image.end),
            Self::Elf { input, .. } => (input, "the kernel", input.len()),
        };
        // Straight from the file into the guest's memory, without a copy of our own.
        let mut reader = input.reader(end, pulse);
        let copied = match self {
            Self::Bytes { .. } => unreachable!("written above"),
            Self::File { at, .. } => {
                usize::try_from(end).map_err(|why| failed(what, &why)).and_then(|len| {
                    memory
                        .read_exact_volatile_from(GuestAddress(at.0), &mut reader, len)
                        .map_err(|why| failed(what, &why))
                })
            }
            Self::BzImage { image, .. } => {
                reader.pin(image.pin.clone());
                let at = Some(GuestAddress(image.load_at().0));
                BzImageLoader::load(memory, at, &mut reader, None)
                    .map(drop)
                    .map_err(|why| failed(what, &why))
            }
            Self::Elf { image, .. } => {
                image.pins.iter().for_each(|pin| reader.pin(pin.clone()));
                ElfLoader::load(memory, None, &mut reader, None)
                    .map(drop)
                    .map_err(|why| failed(what, &why))
            }
        };
        // linux-loader and vm-memory keep the operating system's reason to themselves.
        copied.map_err(|error| reader.trouble().map_or(error, LoadError::Input))
    }
}
