//! SSE and SSE2 against a naive evaluation, element by element.

mod complete;
mod exceptions;
mod float;
mod integer;
mod moves;
mod third;

use iced_x86::code_asm::*;

use super::{DATA, Guest};
use crate::Stop;

/// Values with all that elements can have: signs, extremes, neighbours that would show a carry.
const VALUES: [u128; 8] = [
    0,
    u128::MAX,
    0x8000_7fff_0001_ffff_8080_7f7f_0180_ff01,
    0x7fff_8000_ffff_0001_7f80_807f_8001_00ff,
    0x8000_0000_7fff_ffff_8000_0000_0000_0000,
    0x0123_4567_89ab_cdef_fedc_ba98_7654_3210,
    0x7fff_ffff_ffff_ffff_0000_0000_ffff_ffff,
    0x00ff_ff00_1234_8765_a5a5_5a5a_c3c3_3c3c,
];

/// Runs one instruction with `a` in xmm1, and `b` in xmm9 and where RDI points; what is in xmm1 then.
fn applied(
    guest: &mut Guest,
    a: u128,
    b: u128,
    instruction: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> u128 {
    guest.processor.cpu.xmm[1] = a;
    guest.processor.cpu.xmm[9] = b;
    guest.processor.cpu.gpr[7] = DATA;
    guest.memory.write(DATA, &b.to_le_bytes());
    let stop = guest.run(|code| {
        instruction(code).unwrap();
        code.mov(r15d, 77).unwrap();
        code.ud2().unwrap();
    });
    assert_eq!(stop, Stop::TripleFault);
    assert_eq!(guest.processor.cpu.gpr[15], 77, "the instruction was not done");
    guest.processor.cpu.gpr[15] = 0;
    guest.processor.cpu.xmm[1]
}

/// Each pair of values through the register form and the memory form, compared with `expected`.
macro_rules! agrees {
    ($guest:ident, $name:ident, $expected:expr) => {
        for a in super::VALUES {
            for b in super::VALUES {
                let expected: u128 = $expected(a, b);
                let text = stringify!($name);
                let got = super::applied(&mut $guest, a, b, |code| code.$name(xmm1, xmm9));
                assert_eq!(got, expected, "{text} {a:#x}, {b:#x}: {got:#x}");
                let got =
                    super::applied(&mut $guest, a, b, |code| code.$name(xmm1, xmmword_ptr(rdi)));
                assert_eq!(got, expected, "{text} {a:#x}, [{b:#x}]: {got:#x}");
            }
        }
    };
}
use agrees;
