//! Floating-point instructions while some exception is not masked: rare, and slow.
//!
//! The host runs them with every exception masked; what it flags tells which exceptions there are, with three
//! corrections (Intel SDM vol. 1, "SSE, SSE2, and SSE3 Exceptions"):
//!
//! * Once an operand itself raises an exception that is not masked, nothing is calculated: no overflow, underflow or
//!   inexact result is flagged.
//! * Underflow that is not masked is raised by every tiny result, also by an exact one; and tiny results are not
//!   flushed.
//! * An overflow or underflow that is not masked is inexact only if rounding alone, as if exponents had no limits,
//!   changed the result. The x87 unit finds that out: its exponents are wide enough, and it rounds
//!   as precisely as it is told to.

use crate::cpu::{Cpu, cr4};
use crate::event::{Exception, Raised};
use crate::float_lanes::{Arithmetic, Lanes};
use crate::host_sse::{Float, mxcsr};
use crate::host_x87::{self, Around};
use crate::x87_state::X87;

/// Found before anything is calculated.
const BEFORE: u32 = mxcsr::IE | mxcsr::DE | mxcsr::ZE;

/// See [`super::float::calculate`].
#[cold]
#[inline(never)]
pub(super) fn calculate_unmasked<O: Float>(
    cpu: &mut Cpu,
    destination: O::Destination,
    source: O::Source,
) -> Result<O::Result, Raised> {
    let unmasked = !(cpu.mxcsr >> mxcsr::TO_MASK) & mxcsr::FLAGS;
    let modes = cpu.mxcsr & (mxcsr::ROUNDING | mxcsr::DAZ) | mxcsr::ALL_MASKED;
    let flush = if unmasked & mxcsr::UE == 0 { cpu.mxcsr & mxcsr::FTZ } else { 0 };
    let (result, mut flagged) = O::apply(modes | flush, destination, source);
    if flagged & unmasked & BEFORE != 0 {
        flagged &= BEFORE;
    } else {
        if unmasked & mxcsr::UE != 0 {
            // Masked, a tiny result is flagged only if it is inexact too; flushed, always.
            flagged |= O::apply(modes | mxcsr::FTZ, destination, source).1 & mxcsr::UE;
        }
        if flagged & unmasked & (mxcsr::OE | mxcsr::UE) != 0
            && flagged & mxcsr::PE != 0
            && let Some((lanes, destination, source)) = O::lanes(destination, source)
            && !lanes.any_inexact(modes | flush, unmasked, destination, source)
        {
            flagged &= !mxcsr::PE;
        }
    }
    cpu.mxcsr |= flagged;
    if flagged & unmasked == 0 {
        return Ok(result);
    }
    let names_it = cpu.cr4 & cr4::OSXMMEXCPT != 0;
    Err(cpu.throw(if names_it { Exception::SIMD } else { Exception::UNDEFINED }))
}

impl Lanes {
    /// Whether the inexact flag is set by some element.
    fn any_inexact(&self, modes: u32, unmasked: u32, destination: u128, source: u128) -> bool {
        let bits = 8 * self.from;
        (0..self.count).any(|lane| {
            let element = |value: u128| {
                let value = super::low(value >> (lane * bits));
                if bits == 32 { value & 0xffff_ffff } else { value }
            };
            self.is_inexact(modes, unmasked, element(destination), element(source))
        })
    }

    fn is_inexact(&self, modes: u32, unmasked: u32, a: u64, b: u64) -> bool {
        /// Exponents of 80-bit numbers count from here.
        const BIAS: i32 = 16383;
        /// Every exception masked.
        const MASKED: u16 = 0x3f;
        let (precision, least, most) = match self.to {
            4 => (0, -126, 127),
            _ => (0x200, -1022, 1023),
        };
        let mut unit = X87::new();
        unit.initialise();
        let rounding = u16::try_from(modes >> 13 & 3).unwrap_or(0) << 10;
        unit.set_control(MASKED | precision | rounding);
        let flattened = |value| if modes & mxcsr::DAZ != 0 { self.flat(value) } else { value };
        let (a, b) = (flattened(a), flattened(b));
        let mut run = |bytes: u16, operand: u64| {
            let mut around = Around::default();
            around.operand[..8].copy_from_slice(&operand.to_le_bytes());
            if let Some(number) = host_x87::find(bytes) {
                host_x87::run(number, &mut unit, &mut around);
            }
            let inexact = unit.status() & 0x20 != 0;
            (inexact, unit.stack(0))
        };
        // Memory at RDX, of 4 or 8 bytes.
        let (load, calculate) = if self.from == 4 { (0xd902, 0xd802) } else { (0xdd02, 0xdc02) };
        let (inexact, rounded) = match self.operation {
            Arithmetic::Narrow => {
                run(load, b);
                // The sum with zero is rounded.
                run(calculate, 0)
            }
            operation => {
                run(load, a);
                run(calculate | (operation as u16) << 3, b)
            }
        };
        let is_finite = rounded.exponent & 0x7fff != 0x7fff;
        let exponent = i32::from(rounded.exponent & 0x7fff) - BIAS;
        let tiny = rounded.significand != 0 && exponent < least;
        if is_finite && exponent > most && unmasked & mxcsr::OE != 0
            || tiny && unmasked & mxcsr::UE != 0
        {
            return inexact;
        }
        if tiny && modes & mxcsr::FTZ != 0 {
            return true;
        }
        // What rounding left is put into the format after all.
        run(if self.to == 4 { 0xd91a } else { 0xdd1a }, 0).0
    }

    /// A denormal number becomes a zero.
    fn flat(&self, value: u64) -> u64 {
        let (sign, exponents) = match self.from {
            4 => (1 << 31, 0x7f80_0000),
            _ => (1 << 63, 0x7ff0_0000_0000_0000),
        };
        if value & exponents == 0 { value & sign } else { value }
    }
}
