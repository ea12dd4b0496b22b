//! The last values of something, one for each slot of time, in two bytes each.
//!
//! Slots that passed without a value are absent, not zero; so are those before the first. A value in the slot of
//! the last one is put together with it.

use serde::{Deserialize, Serialize};

/// Stands for a slot without a value.
const ABSENT: u16 = u16::MAX;

/// Values of the last `N` slots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub(super) struct Ring<const N: usize> {
    /// Number of the newest slot since 1970.
    newest: i64,
    values: [u16; N],
}

/// As it stands in a checkpoint: newest first, without the absent ones at the end.
#[derive(Serialize, Deserialize)]
struct Kept {
    newest: i64,
    values: Vec<u16>,
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self {
            newest: i64::MIN,
            values: [ABSENT; N],
        }
    }
}

impl<const N: usize> Ring<N> {
    /// Takes a value, 0 to 1; true if its slot is a new one. A slot older than the newest is ignored.
    pub(super) fn put(&mut self, slot: i64, value: f64, join: fn(f64, f64) -> f64) -> bool {
        if slot < self.newest {
            return false;
        }
        let new = slot > self.newest;
        if new {
            // The newest stands first.
            let passed = slot.saturating_sub(self.newest);
            let passed = usize::try_from(passed).unwrap_or(N).min(N);
            self.values.rotate_right(passed % N);
            self.values[..passed].fill(ABSENT);
            self.newest = slot;
        }
        let joined = self.at(0).map_or(value, |before| join(before, value));
        self.values[0] = pack(joined);
        new
    }

    /// The value so many slots before the newest.
    pub(super) fn at(&self, age: usize) -> Option<f64> {
        let value = *self.values.get(age)?;
        (value != ABSENT).then(|| f64::from(value) / f64::from(ABSENT - 1))
    }

    /// Those of the last `slots` that have a value, as (slots before the newest, value).
    pub(super) fn last(&self, slots: usize) -> impl Iterator<Item = (f64, f64)> + '_ {
        let slots = slots.min(N);
        (0..slots).filter_map(|age| Some((age as f64, self.at(age)?)))
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and the largest that is not absent"
)]
fn pack(value: f64) -> u16 {
    (value.clamp(0.0, 1.0) * f64::from(ABSENT - 1)).round() as u16
}

impl<const N: usize> From<Kept> for Ring<N> {
    fn from(kept: Kept) -> Self {
        let mut ring = Self {
            newest: kept.newest,
            ..Self::default()
        };
        for (place, value) in ring.values.iter_mut().zip(kept.values) {
            *place = value;
        }
        ring
    }
}

impl<const N: usize> From<Ring<N>> for Kept {
    fn from(ring: Ring<N>) -> Self {
        let filled = ring.values.iter().rposition(|value| *value != ABSENT);
        Self {
            newest: ring.newest,
            values: ring.values[..filled.map_or(0, |at| at + 1)].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ring: &Ring<4>) -> Vec<Option<u32>> {
        let whole = |value: f64| format!("{:.0}", value * 100.0).parse().expect("a number");
        (0..4).map(|age| ring.at(age).map(whole)).collect()
    }

    #[test]
    fn slots_that_passed_are_absent() {
        let mut ring = Ring::<4>::default();
        assert_eq!(shown(&ring), [None; 4]);
        assert!(ring.put(100, 0.1, f64::max));
        assert!(!ring.put(100, 0.3, f64::max));
        assert!(!ring.put(100, 0.2, f64::max));
        assert!(ring.put(101, 0.4, f64::max));
        assert!(ring.put(103, 0.5, f64::max));
        assert!(!ring.put(102, 0.9, f64::max), "older than the newest");
        assert_eq!(shown(&ring), [Some(50), None, Some(40), Some(30)]);
        assert_eq!(ring.last(3).collect::<Vec<_>>().len(), 2);
        let kept = postcard::to_stdvec(&ring).expect("it serialises");
        let restored: Ring<4> = postcard::from_bytes(&kept).expect("and back");
        assert_eq!(restored, ring);
        assert!(ring.put(9_000_000, 1.0, f64::max));
        assert_eq!(shown(&ring), [Some(100), None, None, None]);
    }
}
