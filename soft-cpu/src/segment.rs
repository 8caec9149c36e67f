//! Segments: a selector and the descriptor that was loaded with it.

/// A segment register, hidden part included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Where it starts.
    pub base: u64,
    /// The last offset in it, in bytes.
    pub limit: u32,
    /// Type, S, DPL and P in bits 0–7, AVL, L, D/B and G in bits 12–15: the descriptor's second
    /// doubleword shifted right by 8 (as VMX and SVM keep it).
    pub attributes: u16,
}

impl Segment {
    /// What real mode makes of a selector.
    #[must_use]
    pub const fn real(selector: u16) -> Self {
        Self { selector, base: (selector as u64) << 4, limit: 0xffff, attributes: 0x93 }
    }

    /// The same for code.
    #[must_use]
    pub const fn real_code(selector: u16) -> Self {
        Self { attributes: 0x9b, ..Self::real(selector) }
    }

    /// A system segment that leads nowhere.
    #[must_use]
    pub const fn null_system(attributes: u16) -> Self {
        Self { selector: 0, base: 0, limit: 0xffff, attributes }
    }

    /// A null selector was loaded.
    #[must_use]
    pub const fn null(selector: u16) -> Self {
        Self { selector, base: 0, limit: 0, attributes: 0 }
    }

    /// From the eight bytes of a descriptor (Intel SDM vol. 3, "Segment Descriptors").
    #[must_use]
    pub fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let attributes = u16::try_from(descriptor >> 40 & 0xf0ff).expect("sixteen bits");
        let base = descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000;
        let raw =
            u32::try_from(descriptor & 0xffff | descriptor >> 32 & 0xf_0000).expect("twenty bits");
        let limit = if attributes & 0x8000 != 0 { raw << 12 | 0xfff } else { raw };
        Self { selector, base, limit, attributes }
    }

    /// P.
    #[must_use]
    pub const fn is_present(&self) -> bool {
        self.attributes & 0x80 != 0
    }

    /// DPL.
    #[must_use]
    pub const fn privilege(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// The type, with S as bit 4: 16 and up are code and data.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        (self.attributes & 0x1f) as u8
    }

    /// L: 64-bit code.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.attributes & 0x2000 != 0
    }

    /// D/B: 32-bit code or stack.
    #[must_use]
    pub const fn is_big(&self) -> bool {
        self.attributes & 0x4000 != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address.
    pub base: u64,
    /// Last byte's offset.
    pub limit: u16,
}
