//! A set of 4 KiB pages: one bit each.

use std::ops::Range;

/// Which pages of a guest's memory have something in common. A page's number is its frame (its
/// offset in the guest's memory object) in units of 4 KiB, so the hole below 4 GiB costs
/// nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// None of `pages`.
    ///
    /// # Panics
    ///
    /// When so many pages do not fit the address space: memory of that size cannot be mapped.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        // Zeroed lazily by the host: a set for a terabyte costs what is used of it.
        let words = usize::try_from(pages.div_ceil(64)).expect("memory of this size was mapped");
        Self { words: vec![0; words] }
    }

    fn place(page: u64) -> (usize, u64) {
        (usize::try_from(page / 64).expect("as in new"), 1 << (page % 64))
    }

    /// Whether `page` is in the set.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Puts `page` in; whether it was not there before.
    ///
    /// # Panics
    ///
    /// When it is beyond the pages that the set was made for.
    pub fn insert(&mut self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        let was = self.words[word];
        self.words[word] |= bit;
        was & bit == 0
    }

    /// Puts all of `pages` in: 64 at a time, where they are that many.
    ///
    /// # Panics
    ///
    /// As [`PageSet::insert`].
    pub fn insert_all(&mut self, pages: Range<u64>) {
        Self::by_words(pages, |word, mask| self.words[word] |= mask);
    }

    /// Takes `page` out; whether it was there.
    pub fn remove(&mut self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        let Some(word) = self.words.get_mut(word) else { return false };
        let was = *word;
        *word &= !bit;
        was & bit != 0
    }

    /// Puts everything of `other` in.
    pub fn union(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Takes what is in `pages` out of here and puts it into `other`, which has as many pages: 64 at a time.
    ///
    /// # Panics
    ///
    /// As [`PageSet::insert`], of either.
    pub fn drain_into(&mut self, pages: Range<u64>, other: &mut Self) {
        Self::by_words(pages, |word, mask| {
            other.words[word] |= self.words[word] & mask;
            self.words[word] &= !mask;
        });
    }

    /// The words that `pages` lie in, with their bits of each.
    fn by_words(pages: Range<u64>, mut each: impl FnMut(usize, u64)) {
        let mut page = pages.start;
        while page < pages.end {
            let next = (page / 64 + 1).saturating_mul(64).min(pages.end);
            let (word, first) = Self::place(page);
            let (_, last) = Self::place(next - 1);
            // All bits from the first to the last.
            each(word, (last - first) | last);
            page = next;
        }
    }

    /// How many pages are in.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no page is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The pages, upwards.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        (0_u64..).zip(&self.words).flat_map(|(index, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(index * 64 + u64::from(bit))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_and_not_taken_out() {
        let mut set = PageSet::new(130);
        for (page, is_new) in [(0, true), (63, true), (64, true), (129, true), (129, false)] {
            assert_eq!(set.insert(page), is_new);
        }
        assert!(set.remove(64) && !set.remove(64));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 129]);
        assert_eq!(set.count(), 3);
        assert!(set.contains(129) && !set.contains(64) && !set.contains(1 << 40));
    }

    #[test]
    fn a_range_puts_in_what_its_pages_would_one_by_one() {
        let ends = [0, 1, 5, 62, 63, 64, 65, 127, 128, 129, 191, 192, 200];
        for first in ends {
            for end in ends {
                let (mut whole, mut single) = (PageSet::new(200), PageSet::new(200));
                (0..200).step_by(7).for_each(|page| {
                    whole.insert(page);
                    single.insert(page);
                });
                whole.insert_all(first..end);
                (first..end).for_each(|page| {
                    single.insert(page);
                });
                assert_eq!(whole, single, "{first}..{end}");
            }
        }
    }

    #[test]
    fn what_is_drained_is_in_the_other_set_and_no_longer_here() {
        let (mut from, mut to) = (PageSet::new(200), PageSet::new(200));
        from.insert_all(10..190);
        to.insert(3);
        from.drain_into(60..130, &mut to);
        assert_eq!(from.iter().collect::<Vec<_>>(), (10..60).chain(130..190).collect::<Vec<_>>());
        assert_eq!(
            to.iter().collect::<Vec<_>>(),
            [3].into_iter().chain(60..130).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_union_has_the_pages_of_both_even_of_a_longer_one() {
        let (mut short, mut long) = (PageSet::new(10), PageSet::new(1000));
        short.insert(3);
        long.insert(900);
        short.union(&long);
        assert_eq!(short.iter().collect::<Vec<_>>(), [3, 900]);
        assert!(PageSet::new(100).is_empty() && !short.is_empty());
    }
}
