//! What a host's metrics let expect of each other.
//!
//! Load that comes with traffic is not news; load without it is. A running covariance of the host's metrics
//! (half-life a week) is inverted every six hours; from then on each metric's value is compared with the one
//! that all others together let expect. Correlations are shrunk by a tenth, so that two metrics that have always
//! been equal do not make a difference in the last digit an event.
//!
//! Both triangles are part of the state: a restart between two inversions changes no bit.

use serde::{Deserialize, Serialize};

use super::metric::{ABSOLUTE_FLOOR, LEVEL_HALF_LIFE_SECONDS, Metric, RANGE_FLOOR, halvings};

/// The covariance learns at most this often: neighbouring rows say the same.
const LEARN_SECONDS: f32 = 285.0;
/// How often it is inverted.
const REFIT_SECONDS: f32 = 21_600.0;
/// History before it is inverted for the first time.
const WARM_UP_SECONDS: f32 = 86_400.0;
/// What is taken from each correlation.
const SHRINK: f64 = 0.1;
/// Smallest pivot of the factorisation: less is rounding.
const SMALLEST_PIVOT: f64 = 1e-6;

/// The covariance of a host's metrics, and its inverse as of the last fit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Joint {
    /// Lower triangles, row by row.
    covariance: Vec<f32>,
    precision: Vec<f32>,
    /// Scale of each metric as of the last fit.
    scale: Vec<f32>,
    /// Seconds of history, held at a month.
    age: f32,
    since_learnt: f32,
    since_fit: f32,
}

impl Joint {
    /// For each metric, how far its value lies from what the others let expect; empty until there was a fit.
    /// An absent value counts as its mean.
    pub(super) fn residuals(&self, metrics: &[Metric], row: &[f32]) -> Vec<f32> {
        let count = row.len();
        if self.scale.len() != count || self.precision.len() != triangle(count) {
            return Vec::new();
        }
        let standard: Vec<f32> = metrics
            .iter()
            .zip(row)
            .zip(&self.scale)
            .map(|((metric, value), scale)| match value.is_nan() {
                true => 0.0,
                false => (value - metric.level()) / scale,
            })
            .collect();
        let mut sums = vec![0.0_f32; count];
        let mut rest = self.precision.as_slice();
        for one in 0..count {
            let (line, below) = rest.split_at(one + 1);
            rest = below;
            let mut sum = line[one] * standard[one];
            for (other, weight) in line[..one].iter().enumerate() {
                sum += weight * standard[other];
                sums[other] += weight * standard[one];
            }
            sums[one] += sum;
        }
        let mut diagonal = 0;
        for (one, sum) in sums.iter_mut().enumerate() {
            *sum = *sum / self.precision[diagonal] * self.scale[one];
            diagonal += one + 2;
        }
        sums
    }

    /// Takes in a row, before its metrics learn it.
    pub(super) fn learn(&mut self, metrics: &[Metric], row: &[f32], elapsed: f32) {
        let count = row.len();
        if self.covariance.len() != triangle(count) {
            *self = Self {
                covariance: vec![0.0; triangle(count)],
                ..Self::default()
            };
        }
        self.since_learnt += elapsed;
        self.since_fit += elapsed;
        if self.since_learnt >= LEARN_SECONDS {
            let elapsed = std::mem::take(&mut self.since_learnt);
            let share = elapsed / (self.age + elapsed);
            let weight = (1.0 - halvings(elapsed, LEVEL_HALF_LIFE_SECONDS)).max(share);
            let away: Vec<f32> = metrics
                .iter()
                .zip(row)
                .map(|(metric, value)| match metric.age() > 0.0 {
                    true => value - metric.level(),
                    false => f32::NAN,
                })
                .collect();
            let mut entries = self.covariance.iter_mut();
            for (one, first) in away.iter().enumerate() {
                for (second, entry) in away[..=one].iter().zip(entries.by_ref()) {
                    let product = first * second;
                    if product.is_finite() {
                        *entry += weight * (product - *entry);
                    }
                }
            }
            self.age = (self.age + elapsed).min(30.0 * 86_400.0);
        }
        if self.age >= WARM_UP_SECONDS && self.since_fit >= REFIT_SECONDS {
            self.since_fit = 0.0;
            self.fit(metrics);
        }
    }

    fn fit(&mut self, metrics: &[Metric]) {
        let count = metrics.len();
        self.scale = metrics
            .iter()
            .enumerate()
            .map(|(one, metric)| {
                let variance = self.covariance[triangle(one) + one];
                variance.max(0.0).sqrt() + RANGE_FLOOR * metric.range() + ABSOLUTE_FLOOR
            })
            .collect();
        let mut matrix = vec![0.0_f64; triangle(count)];
        for one in 0..count {
            for other in 0..one {
                let scale = f64::from(self.scale[one]) * f64::from(self.scale[other]);
                let place = triangle(one) + other;
                matrix[place] = f64::from(self.covariance[place]) / scale * (1.0 - SHRINK);
            }
            matrix[triangle(one) + one] = 1.0;
        }
        self.precision = inverse(matrix, count);
    }
}

/// Entries of a lower triangle of so many rows; also where the row of that number begins.
const fn triangle(rows: usize) -> usize {
    rows * (rows + 1) / 2
}

/// The inverse of a symmetric positive definite matrix, both as lower triangles (Cholesky).
fn inverse(mut matrix: Vec<f64>, count: usize) -> Vec<f32> {
    for column in 0..count {
        for row in column..count {
            let mut sum = matrix[triangle(row) + column];
            for k in 0..column {
                sum -= matrix[triangle(row) + k] * matrix[triangle(column) + k];
            }
            matrix[triangle(row) + column] = if row == column {
                sum.max(SMALLEST_PIVOT).sqrt()
            } else {
                sum / matrix[triangle(column) + column]
            };
        }
    }
    // The inverse of the factor, in its place.
    for column in 0..count {
        for row in column..count {
            let mut sum = if row == column { 1.0 } else { 0.0 };
            for k in column..row {
                sum -= matrix[triangle(row) + k] * matrix[triangle(k) + column];
            }
            let pivot = matrix[triangle(row) + row];
            matrix[triangle(row) + column] = sum / pivot;
        }
    }
    let mut product = Vec::with_capacity(triangle(count));
    for row in 0..count {
        for column in 0..=row {
            let sum: f64 = (row..count)
                .map(|k| matrix[triangle(k) + row] * matrix[triangle(k) + column])
                .sum();
            #[expect(clippy::cast_possible_truncation, reason = "kept in single precision")]
            product.push(sum as f32);
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_is_one() {
        let matrix = vec![4.0, 2.0, 5.0, 0.6, 0.3, 3.0];
        let full = |lower: &dyn Fn(usize) -> f64, row: usize, column: usize| {
            lower(triangle(row.max(column)) + row.min(column))
        };
        let inverse = inverse(matrix.clone(), 3);
        for row in 0..3 {
            for column in 0..3 {
                let product: f64 = (0..3)
                    .map(|k| {
                        full(&|place| matrix[place], row, k)
                            * full(&|place| f64::from(inverse[place]), k, column)
                    })
                    .sum();
                let wanted = if row == column { 1.0 } else { 0.0 };
                assert!((product - wanted).abs() < 1e-6, "{row} {column}: {product}");
            }
        }
    }
}
