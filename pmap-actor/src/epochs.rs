//! Who wants to know which pages were stored to, and since when.
//!
//! A consumer *takes* an epoch: the pages stored to since the one before. It has it until it
//! *settles* it: acknowledged, and the pages are forgotten; or put back, and the next epoch
//! has them again. A consumer that fails between the two loses nothing: it takes again, and
//! what it never settled is in the answer.
//!
//! Each consumer has its own set, so one that takes often does not blind another. The
//! modified bits in the tables are shared, and whoever clears them must tell all ([`Epochs::stored`]).

use std::collections::BTreeMap;
use std::ops::Range;

use actors::contract::page::{DirtyConsumer, Settled};
use actors::pages::PageSet;

/// Why a consumer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EpochError {
    /// It never began, or has ended.
    #[error("there is no consumer {} of dirty pages", .0.0)]
    NoConsumer(DirtyConsumer),
    /// It settles an epoch that it does not have.
    #[error("consumer {} has not taken epoch {number} of dirty pages, or has settled it", consumer.0)]
    NotTaken {
        /// Who.
        consumer: DirtyConsumer,
        /// Which.
        number: u64,
    },
}

#[derive(Debug)]
struct Consumer {
    /// Stored to, and not yet taken.
    pending: PageSet,
    /// Taken, and not yet settled.
    taken: Option<PageSet>,
    /// Of the last taking.
    number: u64,
}

/// All consumers of one vmspace.
#[derive(Debug)]
pub(crate) struct Epochs {
    consumers: BTreeMap<DirtyConsumer, Consumer>,
    next: u32,
    pages: u64,
}

impl Epochs {
    /// Nobody wants to know, of a guest with so many pages.
    pub(crate) fn new(pages: u64) -> Self {
        Self { consumers: BTreeMap::new(), next: 0, pages }
    }

    /// A new consumer. Its first epoch has what is stored from now on, and `already`.
    pub(crate) fn begin(&mut self, already: PageSet) -> DirtyConsumer {
        let consumer = DirtyConsumer(self.next);
        self.next += 1;
        self.consumers.insert(consumer, Consumer { pending: already, taken: None, number: 0 });
        consumer
    }

    /// The consumer wants to know nothing more.
    ///
    /// # Errors
    ///
    /// [`EpochError::NoConsumer`].
    pub(crate) fn end(&mut self, consumer: DirtyConsumer) -> Result<(), EpochError> {
        self.consumers.remove(&consumer).map(drop).ok_or(EpochError::NoConsumer(consumer))
    }

    /// Somebody stored to `page`.
    pub(crate) fn stored(&mut self, page: u64) {
        for consumer in self.consumers.values_mut() {
            consumer.pending.insert(page);
        }
    }

    /// Somebody stored to all of `pages`.
    pub(crate) fn stored_to_all(&mut self, pages: Range<u64>) {
        for consumer in self.consumers.values_mut() {
            consumer.pending.insert_all(pages.clone());
        }
    }

    /// Whether everybody who wants to know has heard that `page` was stored to: another store
    /// to it would tell nobody anything new.
    pub(crate) fn all_know(&self, page: u64) -> bool {
        self.consumers.values().all(|consumer| consumer.pending.contains(page))
    }

    /// Whether anybody wants to know.
    pub(crate) fn is_watched(&self) -> bool {
        !self.consumers.is_empty()
    }

    /// `Ok` when the consumer exists.
    ///
    /// # Errors
    ///
    /// [`EpochError::NoConsumer`].
    pub(crate) fn must_exist(&self, consumer: DirtyConsumer) -> Result<(), EpochError> {
        if self.consumers.contains_key(&consumer) {
            Ok(())
        } else {
            Err(EpochError::NoConsumer(consumer))
        }
    }

    /// Gives out what was stored to since the last settled epoch: its number and its pages.
    ///
    /// # Errors
    ///
    /// [`EpochError::NoConsumer`].
    pub(crate) fn take(&mut self, consumer: DirtyConsumer) -> Result<(u64, PageSet), EpochError> {
        let found = self.consumers.get_mut(&consumer).ok_or(EpochError::NoConsumer(consumer))?;
        let mut pages = std::mem::replace(&mut found.pending, PageSet::new(self.pages));
        // An epoch that was never settled is lost on nobody.
        if let Some(unsettled) = found.taken.take() {
            pages.union(&unsettled);
        }
        found.number += 1;
        found.taken = Some(pages.clone());
        Ok((found.number, pages))
    }

    /// The consumer says what became of the epoch.
    ///
    /// # Errors
    ///
    /// [`EpochError`].
    pub(crate) fn settle(
        &mut self,
        consumer: DirtyConsumer,
        number: u64,
        how: Settled,
    ) -> Result<(), EpochError> {
        let found = self.consumers.get_mut(&consumer).ok_or(EpochError::NoConsumer(consumer))?;
        let not_taken = EpochError::NotTaken { consumer, number };
        if found.number != number {
            return Err(not_taken);
        }
        let pages = found.taken.take().ok_or(not_taken)?;
        if how == Settled::PutBack {
            found.pending.union(&pages);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(epochs: &mut Epochs, consumer: DirtyConsumer) -> (u64, Vec<u64>) {
        let (number, pages) = epochs.take(consumer).unwrap();
        (number, pages.iter().collect())
    }

    fn epochs() -> (Epochs, DirtyConsumer) {
        let mut epochs = Epochs::new(100);
        let consumer = epochs.begin(PageSet::new(100));
        (epochs, consumer)
    }

    #[test]
    fn an_epoch_has_what_was_stored_since_the_one_before() {
        let (mut epochs, one) = epochs();
        epochs.stored(5);
        assert_eq!(taken(&mut epochs, one), (1, vec![5]));
        epochs.stored(6);
        epochs.settle(one, 1, Settled::Acknowledged).unwrap();
        assert_eq!(taken(&mut epochs, one), (2, vec![6]));
    }

    #[test]
    fn what_was_put_back_or_never_settled_is_in_the_next_epoch() {
        let (mut epochs, one) = epochs();
        epochs.stored(5);
        assert_eq!(taken(&mut epochs, one), (1, vec![5]));
        epochs.settle(one, 1, Settled::PutBack).unwrap();
        epochs.stored(7);
        assert_eq!(taken(&mut epochs, one), (2, vec![5, 7]));
        assert_eq!(taken(&mut epochs, one), (3, vec![5, 7]), "2 was never settled");
        epochs.settle(one, 3, Settled::Acknowledged).unwrap();
        assert_eq!(taken(&mut epochs, one), (4, vec![]));
    }

    #[test]
    fn one_consumer_does_not_blind_another() {
        let (mut epochs, one) = epochs();
        epochs.stored(5);
        let two = epochs.begin(PageSet::new(100));
        assert!(!epochs.all_know(5), "the second was not there");
        epochs.stored(5);
        assert!(epochs.all_know(5));
        assert_eq!(taken(&mut epochs, one).1, [5]);
        assert!(!epochs.all_know(5), "the first would learn of another store");
        assert_eq!(taken(&mut epochs, two).1, [5]);
    }

    #[test]
    fn strangers_and_epochs_that_nobody_has_are_refused() {
        let (mut epochs, one) = epochs();
        let not_taken = |number| Err(EpochError::NotTaken { consumer: one, number });
        assert_eq!(epochs.settle(one, 0, Settled::Acknowledged), not_taken(0));
        epochs.take(one).unwrap();
        assert_eq!(epochs.settle(one, 2, Settled::Acknowledged), not_taken(2));
        epochs.settle(one, 1, Settled::Acknowledged).unwrap();
        assert_eq!(epochs.settle(one, 1, Settled::Acknowledged), not_taken(1));
        epochs.end(one).unwrap();
        assert_eq!(epochs.end(one), Err(EpochError::NoConsumer(one)));
        assert!(epochs.take(one).is_err() && epochs.must_exist(one).is_err());
        assert!(!epochs.is_watched() && epochs.all_know(1));
    }
}
