//! What a page must look like, and whether it does.

use std::fmt::{self, Display, Formatter};

use actors::PageSize;
use actors::contract::page::{PageState, Place};

/// The kinds of [`Place`], as far as the itinerary knows them beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nowhere, and zeroes.
    Absent,
    /// In memory, and different from any copy in the store.
    Dirty,
    /// In memory, and the same as the copy in the store.
    Clean,
    /// In memory, of either kind.
    Resident,
    /// In the store, as all zeroes.
    Zero,
    /// In the store's compressed tier.
    Compressed,
    /// On disk.
    Disk,
}

impl Kind {
    fn is(self, place: Place) -> bool {
        matches!(
            (self, place),
            (Self::Absent, Place::Absent)
                | (Self::Dirty, Place::Resident { dirty: true })
                | (Self::Clean, Place::Resident { dirty: false })
                | (Self::Resident, Place::Resident { .. })
                | (Self::Zero, Place::Zero)
                | (Self::Compressed, Place::Compressed)
                | (Self::Disk, Place::Disk { .. })
        )
    }
}

/// What a page must look like. What is not said does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Where it is.
    pub kind: Option<Kind>,
    /// Its translation.
    pub mapped: Option<Option<PageSize>>,
    /// Whether the guest may store to it.
    pub writable: Option<bool>,
    /// Whether it was used since the last harvest.
    pub accessed: Option<bool>,
    /// Whether it was stored to since the last harvest.
    pub modified: Option<bool>,
    /// Whether it is wired.
    pub wired: Option<bool>,
    /// Whether it is held.
    pub held: Option<bool>,
}

impl Sight {
    /// A page that is there.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }

    /// It has no translation.
    #[must_use]
    pub fn unmapped(self) -> Self {
        Self { mapped: Some(None), ..self }
    }

    /// It has a translation of this size.
    #[must_use]
    pub fn mapped(self, size: PageSize) -> Self {
        Self { mapped: Some(Some(size)), ..self }
    }

    /// It was used, or not.
    #[must_use]
    pub fn accessed(self, is: bool) -> Self {
        Self { accessed: Some(is), ..self }
    }

    /// It was stored to, or not.
    #[must_use]
    pub fn modified(self, is: bool) -> Self {
        Self { modified: Some(is), ..self }
    }

    /// It may be stored to, or not.
    #[must_use]
    pub fn writable(self, is: bool) -> Self {
        Self { writable: Some(is), ..self }
    }

    /// It is wired, or not.
    #[must_use]
    pub fn wired(self, is: bool) -> Self {
        Self { wired: Some(is), ..self }
    }

    /// It is held, or not.
    #[must_use]
    pub fn held(self, is: bool) -> Self {
        Self { held: Some(is), ..self }
    }

    /// Whether a page in this state looks like that.
    #[must_use]
    pub fn fits(&self, state: &PageState) -> bool {
        fn same<T: PartialEq>(wanted: Option<T>, is: &T) -> bool {
            wanted.is_none_or(|wanted| wanted == *is)
        }
        self.kind.is_none_or(|kind| kind.is(state.place))
            && same(self.mapped, &state.mapped)
            && same(self.writable, &state.writable)
            && same(self.accessed, &state.accessed)
            && same(self.modified, &state.modified)
            && same(self.wired, &state.wired)
            && same(self.held, &state.held)
    }
}

impl Display for Sight {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.kind.map(|kind| format!("{kind:?}").to_lowercase()));
        words.extend(self.mapped.map(size));
        let flags = [
            (self.writable, "writable"),
            (self.accessed, "accessed"),
            (self.modified, "modified"),
            (self.wired, "wired"),
            (self.held, "held"),
        ];
        words.extend(flags.iter().filter_map(|(is, name)| is.map(|is| flag(is, name))));
        out.write_str(&words.join(", "))
    }
}

/// A state in the words of [`Sight`].
pub(super) fn describe(state: &PageState) -> String {
    let place = match state.place {
        Place::Resident { dirty: true } => "dirty".to_owned(),
        Place::Resident { dirty: false } => "clean".to_owned(),
        Place::Disk { slot } => format!("disk (slot {slot})"),
        other => format!("{other:?}").to_lowercase(),
    };
    let flags = [
        (state.writable, "writable"),
        (state.accessed, "accessed"),
        (state.modified, "modified"),
        (state.wired, "wired"),
        (state.held, "held"),
    ];
    let flags: Vec<_> = flags.iter().map(|(is, name)| flag(*is, name)).collect();
    format!("{place}, {}, {}", size(state.mapped), flags.join(", "))
}

fn size(mapped: Option<PageSize>) -> String {
    match mapped {
        None => "not mapped".to_owned(),
        Some(size) => format!("mapped by {} KiB", size.bytes() >> 10),
    }
}

fn flag(is: bool, name: &str) -> String {
    if is { name.to_owned() } else { format!("not {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: PageState = PageState {
        place: Place::Resident { dirty: true },
        mapped: Some(PageSize::Size4KiB),
        writable: true,
        accessed: true,
        modified: false,
        wired: false,
        held: false,
    };

    #[test]
    fn what_is_not_said_does_not_matter_and_everything_that_is_does() {
        assert!(Sight::default().fits(&STATE));
        let exact =
            Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).accessed(true).modified(false);
        assert!(exact.writable(true).wired(false).held(false).fits(&STATE));
        for wrong in [
            Sight::of(Kind::Clean),
            Sight::of(Kind::Absent),
            exact.unmapped(),
            exact.accessed(false),
            exact.modified(true),
            exact.writable(false),
            exact.wired(true),
            exact.held(true),
        ] {
            assert!(!wrong.fits(&STATE), "{wrong}");
        }
        assert!(Sight::of(Kind::Resident).fits(&STATE));
    }

    #[test]
    fn both_are_said_in_the_same_words() {
        let wanted = Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).modified(true);
        assert_eq!(wanted.to_string(), "dirty, mapped by 4 KiB, modified");
        assert_eq!(
            describe(&STATE),
            "dirty, mapped by 4 KiB, writable, accessed, not modified, not wired, not held"
        );
    }
}
