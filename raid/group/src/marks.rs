//! What is known of the stripes that are written in one flush interval.
//!
//! Layer: pure, under write. A stripe has a mark from its first record on until the flush. Tens of
//! thousands of stripes may have one, and what their records say is mostly the same: they share it.
//!
//! Invariant: `stable` is the record of the stripe that is stable, when it has no payload and none
//! came after it.

use std::collections::{BTreeMap, btree_map};

use cairn_sys::mutant;
use cairn_units::GroupNo;

use crate::stripe_log::{BareRecord, Record};

/// Number of a record that stripes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shared(u32);

/// What is known of one stripe.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Data columns modified since the last flush, or about to be.
    mask: [u64; 4],
    /// See the module.
    stable: Option<Shared>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    of: BTreeMap<(GroupNo, u64), Mark>,
    /// Those that some stripe had last; neighbours share theirs.
    bare: Vec<BareRecord>,
}

impl Marks {
    /// Takes note of a record that is about to be written. What it says when it is stable, if that
    /// is all in the record itself.
    pub(crate) fn begin(&mut self, record: &Record) -> Option<Shared> {
        let bare = record.bare().map(|bare| self.share(bare));
        let stable = bare.filter(|_| mutant("ahead-believed-before-stable"));
        self.of.insert((record.group, record.stripe), Mark { mask: record.mask, stable });
        bare
    }

    /// The record of [`Self::begin`] is stable.
    pub(crate) fn believe(&mut self, group: GroupNo, stripe: u64, bare: Option<Shared>) {
        if let Some(mark) = self.of.get_mut(&(group, stripe)) {
            mark.stable = bare;
        }
    }

    fn share(&mut self, bare: BareRecord) -> Shared {
        if self.bare.last() != Some(&bare) {
            self.bare.push(bare);
        }
        Shared(u32::try_from(self.bare.len() - 1).unwrap_or(u32::MAX))
    }

    /// For looking up stripes of a group one after the other, from `first` on.
    pub(crate) fn from(&self, group: GroupNo, first: u64) -> Cursor<'_> {
        let range = self.of.range((group, first)..=(group, u64::MAX));
        Cursor { range: range.peekable(), bare: &self.bare }
    }

    /// Everything was flushed.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Looks up the marks of stripes in ascending order.
pub(crate) struct Cursor<'m> {
    range: core::iter::Peekable<btree_map::Range<'m, (GroupNo, u64), Mark>>,
    bare: &'m [BareRecord],
}

impl<'m> Cursor<'m> {
    fn find(&mut self, stripe: u64) -> Option<&'m Mark> {
        while self.range.next_if(|((_, at), _)| *at < stripe).is_some() {}
        self.range.peek().filter(|((_, at), _)| *at == stripe).map(|(_, mark)| *mark)
    }
    /// Data columns of the stripe modified since the last flush.
    pub(crate) fn mask(&mut self, stripe: u64) -> [u64; 4] {
        self.find(stripe).map_or_else(Default::default, |mark| mark.mask)
    }
    /// Whether what the record says is stable.
    pub(crate) fn has(&mut self, record: &Record) -> bool {
        let stable = self.find(record.stripe).and_then(|mark| mark.stable);
        let stable = stable.and_then(|of| self.bare.get(usize::try_from(of.0).ok()?));
        stable.is_some_and(|stable| record.bare().as_ref() == Some(stable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripe_log::Rest;

    fn record(group: u16, stripe: u64, mask: u64) -> Record {
        let (mask, fresh) = ([mask, 0, 0, 0], [0; 5]);
        Record { group: GroupNo::new(group), stripe, mask, fresh, twin: None, rest: Rest::None }
    }

    #[test]
    fn a_record_counts_once_it_is_stable_and_until_another_one_begins() {
        let mut marks = Marks::default();
        let has = |marks: &Marks, record: &Record| marks.from(record.group, 0).has(record);
        let first: Vec<Record> = (3..9).map(|stripe| record(1, stripe, 6)).collect();
        let shared: Vec<_> = first.iter().map(|r| marks.begin(r)).collect();
        assert_eq!(marks.bare.len(), 1, "they say the same");
        assert!(!first.iter().any(|r| has(&marks, r)), "none is stable");
        for (record, shared) in first.iter().zip(&shared).skip(1) {
            marks.believe(record.group, record.stripe, *shared);
        }
        let mut cursor = marks.from(GroupNo::new(1), 3);
        assert_eq!(
            first.iter().map(|r| cursor.has(r)).collect::<Vec<_>>(),
            [false, true, true, true, true, true]
        );
        assert!(!has(&marks, &record(1, 4, 2)), "another mask");
        assert!(!has(&marks, &record(2, 4, 6)), "another group");
        let rest = Rest::Zero;
        assert!(!has(&marks, &Record { rest, ..record(1, 4, 6) }), "it says more");
        marks.begin(&record(1, 4, 7));
        assert!(!has(&marks, &record(1, 4, 6)) && !has(&marks, &record(1, 4, 7)));
        assert!(has(&marks, &record(1, 5, 6)), "its neighbour is as it was");
        let mut cursor = marks.from(GroupNo::new(1), 0);
        let masks: Vec<u64> = [0, 3, 4, 4, 8, 9].map(|stripe| cursor.mask(stripe)[0]).into();
        assert_eq!(masks, [0, 6, 7, 7, 6, 0]);
        marks.clear();
        assert!(!has(&marks, &record(1, 5, 6)) && marks.bare.is_empty());
    }
}
