//! What a comparison of the pmap's tables with everything else found.

use serde::Serialize;

use crate::Gpa;

/// How many differences are kept; the rest is only counted.
pub const KEPT_DIFFERENCES: usize = 20;

/// Something that two sources say differently about one page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Where; none for a sum over all of memory.
    #[serde(serialize_with = "as_number")]
    pub at: Option<Gpa>,
    /// What the pmap's tables and books say.
    pub ours: String,
    /// What the other side says.
    pub theirs: String,
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn as_number<S: serde::Serializer>(at: &Option<Gpa>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(|at| at.0).serialize(serializer)
}

impl std::fmt::Display for Difference {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            Some(at) => write!(out, "guest-physical {at}: {}, but {}", self.ours, self.theirs),
            None => write!(out, "altogether: {}, but {}", self.ours, self.theirs),
        }
    }
}

/// The outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Pages of 4 KiB that were looked at, whether or not anything is there.
    pub pages: u64,
    /// Of those: with a translation.
    pub mapped_pages: u64,
    /// Leaves of 2 MiB.
    pub superpages: u64,
    /// Pages our tables let the guest read and the host does not map at this moment. The host may drop any
    /// mapping that is not locked; the next touch is a fault that maps it again. No difference.
    pub dropped_pages: u64,
    /// Leaves of 2 MiB that the host does not map by one entry at this moment: as above.
    pub split_superpages: u64,
    /// Pages that our books gave back and the host still holds, as zeroes: it zeroes a part of a huge page that it
    /// cannot split just then, and keeps it until all of the huge page is free. They read as what is not there
    /// would. No difference.
    pub kept_pages: u64,
    /// Whether the host was asked what it maps by entries of 2 MiB (Linux 6.7 can tell).
    pub compared_superpages: bool,
    /// The first differences.
    pub differences: Vec<Difference>,
    /// All differences.
    pub count: u64,
}

impl Verified {
    /// Whether everything agrees.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.count == 0
    }

    /// Notes a difference.
    pub fn differs(&mut self, at: Option<Gpa>, ours: impl Into<String>, theirs: impl Into<String>) {
        self.count += 1;
        if self.differences.len() < KEPT_DIFFERENCES {
            self.differences.push(Difference { at, ours: ours.into(), theirs: theirs.into() });
        }
    }

    /// Puts the differences that an earlier comparison found before its own.
    pub fn come_after(&mut self, earlier: &Self) {
        self.count += earlier.count;
        self.differences.splice(0..0, earlier.differences.iter().cloned());
        self.differences.truncate(KEPT_DIFFERENCES);
    }
}

impl std::fmt::Display for Verified {
    /// Lines: a summary, and the differences that were kept.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{} pages compared, {} mapped, {} superpages: {} differences",
            self.pages, self.mapped_pages, self.superpages, self.count
        )?;
        if self.dropped_pages + self.split_superpages > 0 {
            write!(
                out,
                "; the host maps {} of the pages and {} of the superpages not at this moment",
                self.dropped_pages, self.split_superpages
            )?;
        }
        if self.kept_pages > 0 {
            write!(out, "; the host keeps {} free pages, as zeroes", self.kept_pages)?;
        }
        for difference in &self.differences {
            write!(out, "\n  {difference}")?;
        }
        match self.count.saturating_sub(self.differences.len() as u64) {
            0 => Ok(()),
            more => write!(out, "\n  and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_differences_are_kept_and_all_are_counted() {
        let mut verified = Verified { pages: 100, ..Verified::default() };
        assert!(verified.agrees());
        for page in 0..30 {
            verified.differs(Some(Gpa(page * 4096)), "our tables forbid it", "the host maps it");
        }
        assert!(!verified.agrees());
        assert_eq!((verified.count, verified.differences.len()), (30, KEPT_DIFFERENCES));
        let text = verified.to_string();
        assert!(text.starts_with("100 pages compared"));
        assert!(text.contains("our tables forbid it, but the host maps it"));
        assert!(text.ends_with("and 10 more"));
    }
}
