//! The smallest guest both monitors boot: it says its line and asks for a reset.
//!
//! An ELF with a PVH note (Xen's note type 18, `XEN_ELFNOTE_PHYS32_ENTRY`), which
//! is entered in 32-bit protected mode without paging. What it takes to reach its
//! line is what the monitor itself costs.

use crate::initrd::HELLO;

/// Where it is loaded and entered: 1 MiB, above everything a PC keeps below.
const ENTRY: u32 = 0x10_0000;

/// Offset of the code in the file, after the headers and the note.
const CODE: usize = 0x1000;

/// The code; the line's text follows it.
#[rustfmt::skip]
const INSTRUCTIONS: [u8; 33] = [
    0xbe, 0x21, 0x00, 0x10, 0x00,        //       mov  esi, line
    0x66, 0xba, 0xf8, 0x03,              //       mov  dx, 0x3f8      ; serial port
    0xac,                                // next: lodsb
    0x84, 0xc0,                          //       test al, al
    0x74, 0x03,                          //       jz   end
    0xee,                                //       out  dx, al
    0xeb, 0xf8,                          //       jmp  next
    0xb0, 0xfe,                          // end:  mov  al, 0xfe       ; pulse the reset line
    0xe6, 0x64,                          //       out  0x64, al       ; keyboard controller
    0x6a, 0x00,                          //       push 0              ; where nobody listens
    0x6a, 0x00,                          //       push 0              ; there: an empty table
    0x0f, 0x01, 0x1c, 0x24,              //       lidt [esp]          ; of interrupts, and
    0xcc,                                //       int3                ; a triple fault
    0xf4,                                // stop: hlt
    0xeb, 0xfd,                          //       jmp  stop
];

/// The file.
pub(super) fn elf() -> Vec<u8> {
    let mut code = INSTRUCTIONS.to_vec();
    code.extend_from_slice(HELLO.as_bytes());
    code.extend_from_slice(b"\n\0");

    let note = note();
    let headers_end = 64 + 2 * 56;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    put16(&mut file, &[2, 62]); // an executable, for x86-64
    put32(&mut file, &[1]);
    put64(&mut file, &[u64::from(ENTRY), 64, 0]); // entry; program headers at 64; no sections
    put32(&mut file, &[0]);
    put16(&mut file, &[64, 56, 2, 64, 0, 0]); // two program headers of 56 bytes

    put32(&mut file, &[1, 7]); // to be loaded; readable, writable, executable
    put64(&mut file, &[CODE as u64, u64::from(ENTRY), u64::from(ENTRY)]);
    // Room above the code for its stack.
    put64(&mut file, &[code.len() as u64, 0x1000, 0x1000]);
    put32(&mut file, &[4, 4]); // a note
    put64(&mut file, &[headers_end, 0, 0]);
    put64(&mut file, &[note.len() as u64, note.len() as u64, 4]);

    file.extend_from_slice(&note);
    file.resize(CODE, 0);
    file.extend_from_slice(&code);
    file
}

fn note() -> Vec<u8> {
    let mut note = Vec::new();
    put32(&mut note, &[4, 8, 18]); // sizes of the name and of the value; the type
    note.extend_from_slice(b"Xen\0");
    put64(&mut note, &[u64::from(ENTRY)]);
    note
}

fn put16(file: &mut Vec<u8>, values: &[u16]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put32(file: &mut Vec<u8>, values: &[u32]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put64(file: &mut Vec<u8>, values: &[u64]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_follows_the_code_where_the_code_expects_it() {
        let line = u32::from_le_bytes(INSTRUCTIONS[1..5].try_into().unwrap());
        assert_eq!(line, ENTRY + u32::try_from(INSTRUCTIONS.len()).unwrap());
    }

    #[test]
    fn the_headers_end_where_the_note_begins() {
        let file = elf();
        let note_at = u64::from_le_bytes(file[64 + 56 + 8..][..8].try_into().unwrap());
        let note_at = usize::try_from(note_at).unwrap();
        assert_eq!(&file[note_at + 12..note_at + 16], b"Xen\0");
        assert_eq!(&file[CODE..CODE + 33], &INSTRUCTIONS);
    }
}
