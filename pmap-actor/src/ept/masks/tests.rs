//! The bits against FreeBSD's values and Intel's rules.

use actors::{PageSize, Protection};

use super::super::attribute::Attribute;
use super::*;

const WRITE_BACK: u64 = 6;

impl Masks {
    /// A page of memory as tests enter it into bare tables. Nobody has used it; where bits are emulated, that
    /// would make hardware trap, so there it was used for all that is granted.
    pub(crate) fn leaf(&self, frame: u64, protection: Protection) -> u64 {
        let pick = |condition, bits| if condition { bits } else { 0 };
        let writes = protection.contains(Protection::WRITE);
        let executes = protection.contains(Protection::EXECUTE);
        frame
            | self.valid
            | self.user
            | self.attribute(Attribute::MEMORY, PageSize::Size4KiB)
            | pick(self.emulated, self.accessed)
            | pick(writes, self.writable)
            | pick(writes && self.emulated, self.modified)
            | pick(executes, self.executable)
            | pick(!executes, self.no_execute)
    }
}

const RWX: Protection = Protection::all();

fn ept(flags: PmapFlags) -> Masks {
    Masks::of(PmapType::PtEpt, flags)
}

/// The leaf values of FreeBSD's two layouts: managed, write-back, frame omitted.
#[test]
fn leaves_have_freebsds_bits_in_both_layouts() {
    let read_execute = RWX - Protection::WRITE;
    let hardware = ept(PmapFlags::SUPERPAGES);
    assert_eq!(hardware.leaf(0, RWX), 0x477, "nobody has been there yet");
    assert_eq!(hardware.leaf(0, RWX) | hardware.accessed | hardware.modified, 0x777);
    assert_eq!(hardware.leaf(0, read_execute) | hardware.accessed, 0x575);
    let emulated = ept(PmapFlags::EMULATE_AD_BITS);
    assert_eq!(emulated.leaf(0, RWX), 0x0030_0000_0000_0477);
    assert_eq!(emulated.leaf(0, read_execute), 0x0010_0000_0000_0475);
    assert_eq!(emulated.leaf(0, RWX) | emulated.wired, 0x0030_0000_0000_0c77);
}

#[test]
fn tables_have_freebsds_bits_in_both_layouts() {
    assert_eq!(ept(PmapFlags::empty()).table(0x5000), 0x5307);
    assert_eq!(ept(PmapFlags::EMULATE_AD_BITS).table(0x5000), 0x0030_0000_0000_5007);
    assert_eq!(Masks::of(PmapType::PtX86, PmapFlags::empty()).table(0x5000), 0x5067);
}

#[test]
fn a_page_without_execute_really_is_not_executable() {
    for flags in [PmapFlags::empty(), PmapFlags::EMULATE_AD_BITS] {
        assert_eq!(ept(flags).leaf(0, RWX - Protection::EXECUTE) & 4, 0);
    }
    let x86 = Masks::of(PmapType::PtX86, PmapFlags::empty());
    assert_eq!(x86.leaf(0, RWX - Protection::EXECUTE) >> 63, 1);
    assert_eq!(x86.leaf(0, RWX) >> 63, 0);
}

#[test]
fn no_two_meanings_share_a_bit_and_none_lies_in_the_frame() {
    for kind in [PmapType::PtX86, PmapType::PtEpt] {
        for bits in 0..8 {
            let m = Masks::of(kind, PmapFlags::from_bits_retain(bits << 8));
            let all = [
                m.valid,
                m.writable,
                m.accessed,
                m.modified,
                m.global,
                m.executable,
                m.no_execute,
                m.user,
                m.superpage,
                m.managed,
                m.wired,
                m.cache_mask,
                FRAME_MASK,
            ];
            let mut seen = 0;
            for bit in all {
                assert_eq!(seen & bit, 0, "{kind:?} {bits}: {bit:#x}");
                seen |= bit;
            }
        }
    }
}

#[test]
fn nothing_we_write_is_a_misconfiguration() {
    for bits in 0..8 {
        let flags = PmapFlags::from_bits_retain(bits << 8);
        let masks = ept(flags);
        for protection in
            (1..8).map(Protection::from_bits_retain).filter(|p| p.contains(Protection::READ))
        {
            let leaf = masks.leaf(0x7000, protection);
            assert!(!Masks::is_misconfigured(leaf, 1, flags), "{leaf:#x}");
        }
        for level in 2..=4 {
            assert!(!Masks::is_misconfigured(masks.table(0x7000), level, flags));
        }
    }
}

#[test]
fn hardwares_illegal_combinations_are_recognised() {
    let none = PmapFlags::empty();
    for level in 1..=4 {
        assert!(Masks::is_misconfigured(0b010, level, none));
        assert!(Masks::is_misconfigured(0b110, level, none));
        assert!(Masks::is_misconfigured(0b100, level, none));
        assert!(!Masks::is_misconfigured(0b100, level, PmapFlags::EXECUTE_ONLY));
        assert!(!Masks::is_misconfigured(!7, level, none), "not present: all else is ignored");
    }
    assert!(Masks::is_misconfigured(0b001 | 2 << 3, 1, none));
}

#[test]
fn a_superpage_is_legal_at_its_level_only_and_must_be_supported_and_aligned() {
    let entry = 0b111 | WRITE_BACK << 3 | SUPERPAGE;
    let supported = PmapFlags::SUPERPAGES;
    assert!(!Masks::is_misconfigured(entry | 0x20_0000, 2, supported));
    assert!(Masks::is_misconfigured(entry | 0x20_1000, 2, supported));
    assert!(Masks::is_misconfigured(entry, 2, PmapFlags::empty()));
    assert!(Masks::is_misconfigured(entry, 3, supported));
    assert!(Masks::is_misconfigured(entry, 4, supported));
    assert!(
        !Masks::is_misconfigured(entry, 1, supported),
        "bit 7 of a last-level entry is ignored"
    );
}
