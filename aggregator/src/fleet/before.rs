//! The value a series had at the tick before, in eight bytes: there is one for each series of each host.

use muster_proto::series::Raw;

/// A value, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before(u64);

impl Before {
    /// No value. Its bits are those of the smallest integer, and of the float -0.0: no counter has them, and one
    /// that had would only miss a rate.
    pub(super) const NONE: Self = Self(1 << 63);

    /// This value.
    pub(super) const fn of(raw: Raw) -> Self {
        Self(raw.0)
    }

    /// The value, if there is one.
    pub(super) fn get(self) -> Option<Raw> {
        (self != Self::NONE).then_some(Raw(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_counts_is_a_value() {
        for raw in [Raw(0), Raw::int(-1), Raw::int(i64::MAX), Raw::float(0.0)] {
            assert_eq!(Before::of(raw).get(), Some(raw));
        }
        assert_eq!(Before::NONE.get(), None);
    }
}
