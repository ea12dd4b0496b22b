//! A set of sequence numbers kept as inclusive ranges.

use serde::{Deserialize, Serialize};

use crate::v1;

/// Sequence numbers as sorted, disjoint, non-adjacent inclusive ranges.
///
/// In normal running there is one range; a hole costs one more. Callers bound the number of ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeSet {
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Whether `seq` is in the set.
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        let after = self.ranges.partition_point(|&(first, _)| first <= seq);
        after > 0 && seq <= self.ranges[after - 1].1
    }

    /// Adds one number; false if it was there.
    pub fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return false;
        }
        self.insert_range(seq, seq);
        true
    }

    /// Adds `first..=last`; an empty range adds nothing.
    pub fn insert_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        // Those that overlap or touch first..=last become one with it.
        let from = self
            .ranges
            .partition_point(|&(_, end)| end.saturating_add(1) < first);
        let to = self
            .ranges
            .partition_point(|&(start, _)| start <= last.saturating_add(1));
        let (mut low, mut high) = (first, last);
        if from < to {
            low = low.min(self.ranges[from].0);
            high = high.max(self.ranges[to - 1].1);
        }
        self.ranges.splice(from..to, [(low, high)]);
    }

    /// Takes one number out; false if it was not there.
    pub fn remove(&mut self, seq: u64) -> bool {
        if !self.contains(seq) {
            return false;
        }
        let at = self.ranges.partition_point(|&(first, _)| first <= seq) - 1;
        let (first, last) = self.ranges[at];
        let below = (first < seq).then(|| (first, seq - 1));
        let above = (seq < last).then(|| (seq + 1, last));
        self.ranges.splice(at..=at, below.into_iter().chain(above));
        true
    }

    /// The smallest number from `from` on that is in the set.
    #[must_use]
    pub fn next_present(&self, from: u64) -> Option<u64> {
        let at = self.ranges.partition_point(|&(_, last)| last < from);
        self.ranges.get(at).map(|&(first, _)| first.max(from))
    }

    /// How many numbers of `first..=last` are in the set.
    #[must_use]
    pub fn count_in(&self, first: u64, last: u64) -> u64 {
        self.ranges
            .iter()
            .map(|&(start, end)| {
                let (low, high) = (start.max(first), end.min(last));
                if low <= high { high - low + 1 } else { 0 }
            })
            .sum()
    }

    /// The smallest number from `from` on that is not in the set.
    #[must_use]
    pub fn first_missing(&self, from: u64) -> u64 {
        let after = self.ranges.partition_point(|&(first, _)| first <= from);
        match after.checked_sub(1).map(|at| self.ranges[at]) {
            Some((_, last)) if last >= from => last.saturating_add(1),
            _ => from,
        }
    }

    /// Largest number, if any.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.ranges.last().map(|&(_, last)| last)
    }

    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied()
    }

    /// The `most` highest ranges as message fields, lowest first.
    #[must_use]
    pub fn to_wire(&self, most: usize) -> Vec<v1::Range> {
        let skip = self.ranges.len().saturating_sub(most);
        self.ranges[skip..]
            .iter()
            .map(|&(first, last)| v1::Range { first, last })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_plain_set(steps in prop::collection::vec((0u64..60, 0u64..6), 0..60)) {
            let mut set = RangeSet::new();
            let mut plain = BTreeSet::new();
            for (first, length) in steps {
                if length == 5 {
                    prop_assert_eq!(set.remove(first), plain.remove(&first));
                } else if length == 0 {
                    prop_assert_eq!(set.insert(first), plain.insert(first));
                } else {
                    set.insert_range(first, first + length - 1);
                    plain.extend(first..first + length);
                }
            }
            for seq in 0..70 {
                prop_assert_eq!(set.contains(seq), plain.contains(&seq));
                let missing = (seq..).find(|s| !plain.contains(s)).expect("the set is finite");
                prop_assert_eq!(set.first_missing(seq), missing);
                prop_assert_eq!(set.next_present(seq), plain.range(seq..).next().copied());
            }
            prop_assert_eq!(set.last(), plain.last().copied());
            prop_assert_eq!(set.count_in(10, 40), plain.range(10..=40).count() as u64);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|w| w[0].1 + 1 < w[1].0));
        }
    }

    #[test]
    fn the_ends_of_the_number_line_hold() {
        let mut set = RangeSet::new();
        set.insert_range(u64::MAX - 1, u64::MAX);
        set.insert_range(0, 0);
        assert!(set.contains(u64::MAX) && set.contains(0) && !set.contains(1));
        assert_eq!(set.first_missing(u64::MAX), u64::MAX);
        set.insert_range(5, 4);
        assert_eq!(set.len(), 2);
    }
}
