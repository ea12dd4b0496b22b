//! Points to the numbers that people ask for: one value a step, rates of counters.
//!
//! The one place where resets of counters in history are seen. A counter that is lower than before began anew
//! at 0, so what it shows is what it grew by; what stood before is not lost from a sum. In roll-ups what was lost
//! within a point stands beside it, so minutes give the same increase as the samples they were made of.

use muster_proto::series::Kind;

use super::Point;

/// What becomes of the points of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// The last value.
    Last,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// The mean of the samples.
    Avg,
    /// The sum of the samples.
    Sum,
    /// How many samples.
    Count,
    /// What a counter grew by, per second.
    Rate,
    /// What a counter grew by.
    Increase,
    /// [`Fold::Rate`] of counters, [`Fold::Avg`] of everything else.
    Auto,
}

impl Fold {
    /// What [`Fold::Auto`] means for a kind.
    #[must_use]
    pub fn of(self, kind: Kind) -> Self {
        match (self, kind) {
            (Self::Auto, Kind::Counter) => Self::Rate,
            (Self::Auto, _) => Self::Avg,
            (fold, _) => fold,
        }
    }

    /// Whether it looks at the point before.
    #[must_use]
    pub const fn looks_back(self) -> bool {
        matches!(self, Self::Rate | Self::Increase | Self::Auto)
    }
}

/// Between two points further apart nobody knows when a counter grew: no rate, as in the fleet's own.
pub const MAX_RATE_SPAN_MS: i64 = 3_600_000;

/// What a counter grew by from one point to the next.
#[must_use]
pub fn increase(before: &Point, point: &Point) -> f64 {
    let grown = point.last - before.last + point.dropped;
    if grown < 0.0 { point.last } else { grown }
}

/// Times and values of one series, `step_ms` apart (0: a value a point), of points from `from` on; earlier ones
/// are only looked back at. `fold` must not be [`Fold::Auto`].
#[must_use]
pub fn fold(points: &[Point], fold: Fold, step_ms: i64, from: i64) -> Vec<(i64, f64)> {
    let mut out: Vec<(i64, f64)> = Vec::new();
    let mut step = Step::default();
    let mut current = None;
    let mut before: Option<&Point> = None;
    for point in points {
        if point.at >= from {
            let bucket = if step_ms > 0 {
                point.at - point.at.rem_euclid(step_ms)
            } else {
                point.at
            };
            if current != Some(bucket) {
                push(&mut out, current, &step, fold);
                (current, step) = (Some(bucket), Step::default());
            }
            step.add(before, point);
        }
        before = Some(point);
    }
    push(&mut out, current, &step, fold);
    out
}

fn push(out: &mut Vec<(i64, f64)>, at: Option<i64>, step: &Step, fold: Fold) {
    if let Some(at) = at
        && let Some(value) = step.value(fold)
    {
        out.push((at, value));
    }
}

/// What is gathered of one step.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    last: f64,
    min: Option<f64>,
    max: Option<f64>,
    sum: f64,
    count: u64,
    grown: f64,
    span_ms: i64,
}

impl Step {
    fn add(&mut self, before: Option<&Point>, point: &Point) {
        self.last = point.last;
        // Roll-ups of counters tell the last value only.
        let or_last = |value: f64| if value.is_nan() { point.last } else { value };
        let (min, max) = (or_last(point.min), or_last(point.max));
        self.min = Some(self.min.map_or(min, |held| held.min(min)));
        self.max = Some(self.max.map_or(max, |held| held.max(max)));
        self.sum += if point.sum.is_nan() {
            point.last * f64::from(point.count)
        } else {
            point.sum
        };
        self.count += u64::from(point.count);
        if let Some(before) = before {
            let span = point.at - before.at;
            if span > 0 && span <= MAX_RATE_SPAN_MS {
                self.grown += increase(before, point);
                self.span_ms += span;
            }
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "counts and spans are far below 2^53"
    )]
    fn value(&self, fold: Fold) -> Option<f64> {
        let counted = self.span_ms > 0;
        match fold {
            Fold::Last => Some(self.last),
            Fold::Min => self.min,
            Fold::Max => self.max,
            Fold::Avg | Fold::Auto => Some(self.sum / self.count as f64),
            Fold::Sum => Some(self.sum),
            Fold::Count => Some(self.count as f64),
            Fold::Rate => counted.then(|| self.grown / (self.span_ms as f64 / 1000.0)),
            Fold::Increase => counted.then_some(self.grown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Vec<Point> {
        let points = (0i64..).zip(values);
        points
            .map(|(at, value)| Point::sample(at * 10_000, *value))
            .collect()
    }

    #[test]
    fn a_counter_that_began_anew_grew_by_what_it_shows() {
        let points = samples(&[100.0, 150.0, 20.0, 30.0]);
        let rates = fold(&points, Fold::Rate, 0, 0);
        assert_eq!(rates, [(10_000, 5.0), (20_000, 2.0), (30_000, 1.0)]);
        let whole = fold(&points, Fold::Increase, 60_000, 0);
        assert_eq!(whole, [(0, 80.0)]);
    }

    #[test]
    fn a_minute_tells_the_same_increase_as_its_samples() {
        // 100 → 150, reset, 20 → 30 within one point; then on.
        let rolled = [
            Point {
                dropped: 0.0,
                count: 6,
                ..Point::sample(0, 100.0)
            },
            Point {
                dropped: 150.0,
                count: 6,
                ..Point::sample(60_000, 30.0)
            },
            Point {
                dropped: 0.0,
                count: 6,
                ..Point::sample(120_000, 90.0)
            },
        ];
        let grown = fold(&rolled, Fold::Increase, 600_000, 60_000);
        assert_eq!(grown, [(0, 80.0 + 60.0)]);
    }

    #[test]
    fn steps() {
        let points = samples(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        for (how, expected) in [
            (Fold::Last, [6.0, 7.0]),
            (Fold::Min, [1.0, 7.0]),
            (Fold::Max, [6.0, 7.0]),
            (Fold::Avg, [3.5, 7.0]),
            (Fold::Sum, [21.0, 7.0]),
            (Fold::Count, [6.0, 1.0]),
        ] {
            let values = fold(&points, how, 60_000, 0);
            assert_eq!(values, [(0, expected[0]), (60_000, expected[1])], "{how:?}");
        }
        let none: [(i64, f64); 0] = [];
        assert_eq!(
            fold(&points[..1], Fold::Rate, 0, 0),
            none,
            "one sample has no rate"
        );
        assert_eq!(
            fold(&points, Fold::Last, 0, 50_000),
            [(50_000, 6.0), (60_000, 7.0)]
        );
    }

    #[test]
    fn a_long_silence_has_no_rate() {
        let points = [
            Point::sample(0, 1.0),
            Point::sample(MAX_RATE_SPAN_MS + 1, 2.0),
        ];
        let none: [(i64, f64); 0] = [];
        assert_eq!(fold(&points, Fold::Rate, 0, 0), none);
    }
}
