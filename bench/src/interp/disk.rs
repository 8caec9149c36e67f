#![expect(unsafe_code, reason = "assembles a boot sector and takes its bytes as a slice")]
//! A disk that boots the payload, for emulators that boot disks only.
//!
//! ```text
//!   sector 0    the boot sector, which a BIOS puts at 0x7c00 and enters in real mode, the drive's number in dl
//!   sector 1..  the payload's image: 127 sectors, which is as many as one request of a BIOS may ask for
//! ```
//!
//! The sector has the BIOS read the image to 64 KiB, goes to protected mode, copies it to where it belongs and enters
//! it as multiboot says (Multiboot Specification 0.6.96, section 3.2): flat segments, A20 on, interrupts off, the magic
//! number in eax. There is no multiboot information: the payload has no use for any. When the disk cannot be read it says
//! `f` over COM1 and stops, whatever COM1 makes of it.
//!
//! Sources: Intel SDM vol. 3, "Switching to Protected Mode"; EDD-3 (T13/1572D), "Extended Read", function 42h.

use std::arch::global_asm;
use std::io;

use super::payload::{self, DATA_PORT, LOAD};

/// The disk could not be read.
pub(crate) const FAILED: u8 = b'f';
/// What multiboot loaders leave in eax.
pub(crate) const MAGIC: u32 = 0x2bad_b002;

/// COM1's line-control register.
const LINE_CONTROL_PORT: u16 = 0x3fb;

const SECTOR: usize = 512;
/// Where a BIOS puts the first sector.
const ORIGIN: u64 = 0x7c00;
/// Where the image is read to: nothing of the BIOS is between here and 640 KiB, but for its last few.
const BUFFER: u64 = 0x1_0000;
/// Sectors that the extended read asks for: as many as it may.
const SECTORS: usize = 127;
/// Disks as old BIOSes like them: cylinders, heads, sectors.
pub(crate) const GEOMETRY: [usize; 3] = [20, 16, 63];
/// The disk.
///
/// # Errors
///
/// When the payload has outgrown one request.
pub(crate) fn image() -> io::Result<Vec<u8>> {
    let payload = payload::image();
    let sectors = payload.len().div_ceil(SECTOR);
    if sectors > SECTORS {
        return Err(io::Error::other(format!(
            "the payload has {sectors} sectors, the boot sector reads {SECTORS}"
        )));
    }
    let mut disk = sector().to_vec();
    disk.extend_from_slice(&payload);
    disk.resize(GEOMETRY.iter().product::<usize>() * SECTOR, 0);
    Ok(disk)
}

fn sector() -> &'static [u8; SECTOR] {
    // SAFETY: the symbol is defined in the block below; only its address is used.
    unsafe extern "C" {
        safe static skep_boot_sector: u8;
    }
    // SAFETY: the block is 512 bytes long, which its last `.org` sees to, in a read-only section: initialised,
    // never written, and live for ever.
    unsafe { &*(&raw const skep_boot_sector).cast() }
}

global_asm!(
    r#"
    .pushsection .rodata.skep_boot_sector, "a", @progbits
    .globl skep_boot_sector
    .hidden skep_boot_sector
    .set .Lboot_start_at, .Lboot_start - skep_boot_sector + {ORIGIN}
    .set .Lboot_packet_at, .Lboot_packet - skep_boot_sector + {ORIGIN}
    .set .Lboot_gdtr_at, .Lboot_gdtr - skep_boot_sector + {ORIGIN}
    .set .Lboot_protected_at, .Lboot_protected - skep_boot_sector + {ORIGIN}
    .set .Lboot_gdt_at, .Lboot_gdt - skep_boot_sector + {ORIGIN}
    .code16
skep_boot_sector:
    // BIOSes differ in which segment and offset make 0x7c00: from here on it is 0.
    cli
    cld
    .byte   0xea
    .short  .Lboot_start_at, 0
.Lboot_start:
    xor     eax, eax
    mov     ds, ax
    mov     es, ax
    mov     ss, ax
    mov     sp, {ORIGIN}

    // Extended read: dl says of which drive, the packet at ds:si what and where to. Carry: it failed.
    // The BIOS may want its interrupts meanwhile.
    mov     si, offset .Lboot_packet_at
    mov     ah, 0x42
    sti
    int     0x13
    cli
    jc      .Lboot_failed

    // A20 by the system control port; bit 0 there would reset the machine.
    in      al, 0x92
    or      al, 2
    and     al, 0xfe
    out     0x92, al

    lgdt    [.Lboot_gdtr_at]
    mov     eax, cr0
    or      al, 1
    mov     cr0, eax
    .byte   0xea
    .short  .Lboot_protected_at, 8

.Lboot_failed:
    mov     dx, {DATA_PORT}
    mov     al, {FAILED}
    out     dx, al
.Lboot_rest:
    hlt
    jmp     .Lboot_rest

    .code32
.Lboot_protected:
    mov     eax, 0x10
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     fs, eax
    mov     gs, eax
    mov     esi, {BUFFER}
    mov     edi, {LOAD}
    mov     ecx, {SECTORS} * 512 / 4
    rep movsd
    // COM1: eight bits, no parity. There are BIOSes that leave it at five.
    mov     edx, {LINE_CONTROL_PORT}
    mov     al, 3
    out     dx, al
    mov     eax, {MAGIC}
    xor     ebx, ebx
    // The header's last word.
    jmp     dword ptr [{LOAD} + 28]

    .balign 8
    // Nothing; flat code; flat data, both of 32 bits.
.Lboot_gdt:
    .quad   0, 0x00cf9b000000ffff, 0x00cf93000000ffff
.Lboot_gdtr:
    .short  0x17
    .long   .Lboot_gdt_at

    // The packet: its size, how many sectors, to which offset and segment, from which sector on.
    .balign 4
.Lboot_packet:
    .short  0x10, {SECTORS}, 0, {BUFFER} >> 4
    .quad   1
    .org    skep_boot_sector + 0x1fe
    .short  0xaa55
    .popsection
    "#,
    ORIGIN = const ORIGIN,
    BUFFER = const BUFFER,
    LOAD = const LOAD,
    MAGIC = const MAGIC,
    DATA_PORT = const DATA_PORT,
    LINE_CONTROL_PORT = const LINE_CONTROL_PORT,
    FAILED = const FAILED,
    SECTORS = const SECTORS,
);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU8;

    use soft_cpu::cpu::{cr0, reg};
    use soft_cpu::guest_memory::PAGE;
    use soft_cpu::{CodeMap, Processor, Stop, Surroundings};

    use super::*;
    use crate::interp::pages::Pages;
    use crate::interp::soft::Flat;

    /// The port by which the stub asks for what a BIOS does.
    const SERVICE: u64 = 0x13;
    const STUB: u64 = 0x500;
    const PORT_92: u64 = 0x92;

    const CLC: u8 = 0xf8;
    const STC: u8 = 0xf9;

    struct Quiet;

    impl Surroundings for Quiet {
        fn now(&mut self) -> u64 {
            0
        }
        fn poll(&mut self) -> bool {
            false
        }
        fn unimplemented(&mut self, rip: u64, name: &str) {
            panic!("the boot sector uses {name} at {rip:#x}");
        }
    }

    struct Booting {
        processor: Processor,
        memory: Arc<Pages>,
        disk: Vec<u8>,
        /// What was written to COM1.
        said: Vec<u64>,
        is_a20_on: bool,
    }

    impl Booting {
        /// The boot sector in its place, and a BIOS that is a stub: interrupt 13h asks us, and returns with carry as
        /// `carry` (the instruction `clc` or `stc`) says.
        fn new(carry: u8, disk: Vec<u8>) -> Self {
            let memory = Arc::new(Pages::new(payload::MEMORY).unwrap());
            memory.write(ORIGIN, &disk[..SECTOR]);
            memory.write(0x13 * 4, &[0x00, 0x05, 0, 0]);
            // out 0x13, al; clc or stc; retf 2
            memory.write(STUB, &[0xe6, 0x13, carry, 0xca, 2, 0]);
            let frames = usize::try_from(payload::MEMORY / PAGE).unwrap();
            let flat = Box::new(Flat(memory.clone()));
            let mut processor = Processor::new(Box::new(Quiet), flat, CodeMap::new(frames, 1), 0);
            // Where some BIOSes enter: 0x07c0:0.
            processor.start_at(7);
            processor.cpu.rip = ORIGIN - 0x7000;
            processor.cpu.gpr[reg::RDX] = 0x80;
            Self { processor, memory, disk, said: Vec::new(), is_a20_on: false }
        }

        /// A number in the boot sector, by its address.
        fn word(&self, address: u64, bytes: usize) -> u64 {
            let at = usize::try_from(address - ORIGIN).unwrap();
            let mut word = [0; 8];
            word[..bytes].copy_from_slice(&self.disk[at..at + bytes]);
            u64::from_le_bytes(word)
        }

        fn read_disk(&self) {
            let cpu = &self.processor.cpu;
            assert_eq!(cpu.gpr[reg::RAX] >> 8 & 0xff, 0x42, "an extended read");
            assert_eq!(cpu.gpr[reg::RDX] & 0xff, 0x80, "of the drive it came from");
            let packet = cpu.gpr[reg::RSI] & 0xffff;
            assert_eq!(self.word(packet, 2), 0x10);
            let sectors = usize::try_from(self.word(packet + 2, 2)).unwrap();
            let to = self.word(packet + 4, 2) + (self.word(packet + 6, 2) << 4);
            let first = usize::try_from(self.word(packet + 8, 8)).unwrap();
            assert!(sectors <= 127);
            self.memory.write(to, &self.disk[first * SECTOR..(first + sectors) * SECTOR]);
        }

        /// Until the payload is entered, or the sector says something.
        fn run(&mut self) {
            for _ in 0..100_000 {
                match self.processor.run(&AtomicU8::new(0)) {
                    Stop::PortWrite(access) if access.at == SERVICE => self.read_disk(),
                    Stop::PortWrite(access) if access.at == PORT_92 => {
                        assert_eq!(
                            access.value,
                            Some(0x0e),
                            "A20 on, no reset, the rest as it was"
                        );
                        self.is_a20_on = true;
                    }
                    Stop::PortRead(access) if access.at == PORT_92 => self.processor.answer(0x0d),
                    Stop::PortRead(access) => {
                        assert_eq!(access.at, u64::from(payload::STATUS_PORT));
                        self.processor.answer(0x60);
                    }
                    Stop::PortWrite(access) if access.at == u64::from(LINE_CONTROL_PORT) => {
                        assert_eq!(access.value, Some(3), "eight bits, no parity");
                    }
                    Stop::PortWrite(access) => {
                        assert_eq!(access.at, u64::from(DATA_PORT));
                        self.said.extend(access.value);
                        return;
                    }
                    Stop::Again => {}
                    other => panic!("{other:?} at {:#x}", self.processor.cpu.rip),
                }
            }
            panic!("nothing more came of it");
        }
    }

    #[test]
    fn the_sector_is_one_that_a_bios_boots_and_the_payload_follows_it() {
        let disk = image().unwrap();
        assert_eq!(disk[510..512], [0x55, 0xaa]);
        let payload = payload::image();
        assert_eq!(disk[SECTOR..SECTOR + payload.len()], payload);
        assert_eq!(disk.len(), 20 * 16 * 63 * 512);
        // What is read lies below the BIOS's own data at the end of 640 KiB.
        assert!(BUFFER + (SECTORS * SECTOR) as u64 <= 0x8_0000);
    }

    #[test]
    fn on_our_own_processor_the_payload_is_entered_and_takes_orders() {
        let mut booting = Booting::new(CLC, image().unwrap());
        booting.run();
        assert!(booting.is_a20_on);
        assert_eq!(booting.said, [u64::from(payload::READY)]);
    }

    #[test]
    fn what_is_entered_finds_what_multiboot_promises() {
        let mut disk = image().unwrap();
        // mov dx, DATA_PORT; out dx, eax; in code of 32 bits.
        disk[SECTOR + 32..SECTOR + 37].copy_from_slice(&[0x66, 0xba, 0xf8, 0x03, 0xef]);
        let entry = u32::try_from(LOAD + 32).unwrap();
        disk[SECTOR + 28..SECTOR + 32].copy_from_slice(&entry.to_le_bytes());
        let mut booting = Booting::new(CLC, disk);
        booting.run();
        assert_eq!(booting.said, [u64::from(MAGIC)]);
        let cpu = &booting.processor.cpu;
        assert_eq!(cpu.cr0 & (cr0::PE | cr0::PG), cr0::PE);
        assert_eq!(cpu.rflags() & 1 << 9, 0, "interrupts are off");
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_told_of() {
        let mut booting = Booting::new(STC, image().unwrap());
        booting.run();
        assert_eq!(booting.said, [u64::from(FAILED)]);
    }
}
