//! A set of interrupt vectors: 256 bits, as the local APIC shows them.

/// The set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    fn place(vector: u8) -> (usize, u64) {
        (usize::from(vector >> 6), 1 << (vector & 63))
    }

    pub(super) fn insert(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.0[word] |= bit;
    }

    pub(super) fn remove(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.0[word] &= !bit;
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.0[word] & bit != 0
    }

    pub(super) fn highest(&self) -> Option<u8> {
        let place = self.0.iter().rposition(|word| *word != 0)?;
        let bit = u64::BITS - 1 - self.0[place].leading_zeros();
        u8::try_from(u32::try_from(place).ok()? * u64::BITS + bit).ok()
    }

    /// Vectors `32 * part` to `32 * part + 31`, the lowest in bit 0.
    pub(super) fn part(&self, part: u8) -> u32 {
        let word = self.0[usize::from(part >> 1 & 3)];
        let half = if part & 1 == 0 { word } else { word >> 32 };
        u32::try_from(half & u64::from(u32::MAX)).unwrap_or_default()
    }
}
