//! The host score over a recorded table, through the very fold that the aggregator runs.
//!
//! For measuring it on labelled data and for looking at a host's past; any number of metrics of any name.

use std::io::{self, BufRead};

use muster_proto::time::Timestamp;

use super::{DetectConfig, host_score::Watch};

/// The score after one row of a table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Number of the data row, from 0.
    pub row: usize,
    /// Host score; 0 while it learns or too little is observed.
    pub score: f32,
    /// Whether an anomaly goes on.
    pub alert: bool,
}

/// Why a table cannot be scored.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The source failed.
    #[error("cannot read the table")]
    Read(#[from] io::Error),
    /// Every line begins with the time.
    #[error("line {line}: `{text}` is no time in seconds")]
    Time {
        /// Number of the line, the header being 1.
        line: usize,
        /// What stands there.
        text: String,
    },
}

/// Scores a table with a header, the time in seconds in the first column and a metric in each other one.
///
/// A field that is empty or no number is an absent value.
pub fn score_csv(reader: impl BufRead, config: &DetectConfig) -> Result<Vec<Scored>, OfflineError> {
    let mut watch = Watch::default();
    let mut scored = Vec::new();
    for (row, line) in reader.lines().skip(1).enumerate() {
        let line = line?;
        let mut fields = line.split(',');
        let time = fields.next().unwrap_or_default();
        let tick = time
            .trim()
            .parse()
            .ok()
            .and_then(timestamp)
            .ok_or_else(|| OfflineError::Time {
                line: row + 2,
                text: time.to_owned(),
            })?;
        let values: Vec<f32> = fields
            .map(|field| field.trim().parse().unwrap_or(f32::NAN))
            .collect();
        watch.step(tick, &values, config.anomaly_threshold);
        scored.push(Scored {
            row,
            score: watch.score.score().unwrap_or(0.0),
            alert: watch.episode.is_some(),
        });
    }
    Ok(scored)
}

/// A time in seconds to the millisecond, unless it is beyond all dates.
fn timestamp(seconds: f64) -> Option<Timestamp> {
    /// Year 9999.
    const LIMIT_SECONDS: f64 = 253_402_300_799.0;
    let valid = seconds.is_finite() && seconds.abs() <= LIMIT_SECONDS;
    #[expect(clippy::cast_possible_truncation, reason = "within the limit above")]
    valid.then(|| Timestamp::from_millis((seconds * 1000.0).round() as i64))
}
