//! What the data pages hold when a sequence starts: a few dozen fixed patterns, so that an input names one by number.

use std::sync::OnceLock;

use crate::layout::{DATA_BYTES, PAGE, data_address};
use crate::random::Random;
use crate::state::FloatingState;
use crate::values;

/// How many patterns there are.
pub const COUNT: usize = 40;

/// The one that is all zero.
pub const ZERO: usize = 0;

/// All patterns.
#[derive(Debug)]
pub struct Templates {
    /// [`COUNT`] times [`DATA_BYTES`].
    pub pages: Vec<Box<[u8]>>,
    /// The read-only page.
    pub read_only: Box<[u8]>,
}

/// The patterns, made at the first call.
pub fn all() -> &'static Templates {
    static ALL: OnceLock<Templates> = OnceLock::new();
    ALL.get_or_init(|| {
        let pages = (0..COUNT).map(|number| fill(number, DATA_BYTES)).collect();
        Templates { pages, read_only: fill(7, usize::try_from(PAGE).unwrap_or(0)) }
    })
}

/// Pattern `number`.
fn fill(number: usize, bytes: usize) -> Box<[u8]> {
    let mut random = Random::new(0x7e57_da7a, 1, number as u64);
    let mut page = vec![0_u8; bytes].into_boxed_slice();
    if number == ZERO {
        return page;
    }
    for (line, sixteen) in page.chunks_mut(16).enumerate() {
        let flavour = if number % 10 == 9 { random.index(9) } else { number % 10 };
        sixteen.copy_from_slice(&line_of(&mut random, flavour, line * 16));
    }
    if number % 10 == 5 {
        // Images for FXRSTOR where it expects them.
        for image in page.chunks_mut(512) {
            image.copy_from_slice(&floating(&mut random).0);
        }
    }
    page
}

/// Sixteen bytes of one flavour.
fn line_of(random: &mut Random, flavour: usize, at: usize) -> [u8; 16] {
    let mut line = [0_u8; 16];
    match flavour {
        0 | 1 => line
            .chunks_mut(8)
            .for_each(|part| part.copy_from_slice(&values::integer(random).to_le_bytes())),
        2 => line.iter_mut().for_each(|byte| *byte = random.byte()),
        3 => line
            .chunks_mut(4)
            .for_each(|part| part.copy_from_slice(&values::single(random).to_le_bytes())),
        4 => line
            .chunks_mut(8)
            .for_each(|part| part.copy_from_slice(&values::double(random).to_le_bytes())),
        5 | 6 => {
            line[..10].copy_from_slice(&values::extended(random));
            line[10..].copy_from_slice(&values::integer(random).to_le_bytes()[..6]);
        }
        // Long runs of the same byte, for comparisons and searches.
        7 => {
            line = [random.pick(&[0, b'a', 0xff, 0x80]); 16];
            if random.percent(30) {
                line[random.index(16)] = random.byte();
            }
        }
        // Addresses of data, and packed decimal digits.
        _ => {
            let target = data_address((at + random.index(256)) % DATA_BYTES);
            line[..8].copy_from_slice(&target.to_le_bytes());
            line[8..]
                .iter_mut()
                .for_each(|byte| *byte = random.pick(&[0x00, 0x12, 0x34, 0x99, 0x80, 0x07]));
        }
    }
    line
}

/// A floating-point state that FXRSTOR accepts, with interesting registers.
pub fn floating(random: &mut Random) -> FloatingState {
    let mut image = FloatingState::initial();
    for register in 0..8 {
        image.put(32 + 16 * register, &values::extended(random));
    }
    for register in 0..16 {
        image.put(160 + 16 * register, &vector(random));
    }
    let some_tags = random.byte();
    image.0[4] = random.pick(&[0, 0xff, 0xff, 0xff, 0x80, 0x0f, some_tags]);
    let control = match random.below(8) {
        0 => 0x037f & !(1 << random.below(6)),
        1..=4 => 0x037f,
        _ => 0x007f | u16::from(random.byte()) << 8 & 0x0f00,
    };
    image.put(0, &(control | 0x40).to_le_bytes());
    // Top, condition codes and sticky flags; the summary bit follows from flags and masks.
    let status = u16::from(random.byte() & 0x7f) | u16::from(random.byte() & 0x7f) << 8;
    let status = if random.percent(50) { status & 0x7f00 } else { status };
    let pending = status & 0x3f & !control != 0;
    let status = if pending && random.percent(90) { status & 0x7f00 } else { status };
    let pending = status & 0x3f & !control != 0;
    image.put(2, &(status | if pending { 0x8080 } else { 0 }).to_le_bytes());
    let mxcsr = match random.below(8) {
        0..=2 => 0x1f80,
        3 => 0x1f80 & !(0x80 << random.below(6)),
        4 => 0x1f80 | u32::from(random.byte()) << 8 & 0xff00,
        _ => {
            0x1f80
                | u32::from(random.byte() & 0x7f)
                | random.pick(&[0, 0x2000, 0x4000, 0x6000, 0x8000, 0x8040])
        }
    };
    image.put(24, &mxcsr.to_le_bytes());
    image
}

/// Sixteen bytes for an XMM register.
fn vector(random: &mut Random) -> [u8; 16] {
    let flavour = random.pick(&[0, 2, 3, 4, 3, 4, 7]);
    line_of(random, flavour, 0)
}
