//! The host score over a recorded table, through the very fold that the aggregator runs.
//!
//! For measuring it on labelled data and for looking at a host's past; any number of metrics of any name.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
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
    /// The column that moved most, from 0 after the time, while an anomaly goes on.
    pub first: Option<u32>,
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
    /// A file of the folder, or the result.
    #[error("cannot {action} {path}", path = .path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<OfflineError>,
    },
    /// The manifest has ten fields a line.
    #[error("line {line}: `{text}` is no line of a manifest")]
    Manifest {
        /// Number of the line, the header being 1.
        line: usize,
        /// What stands there.
        text: String,
    },
}

impl OfflineError {
    /// Wraps an error with the file it is about.
    fn at(action: &'static str, path: &Path) -> impl FnOnce(Self) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source: Box::new(source),
        }
    }
}

/// Scores every host's table that `manifest.csv` in `data` names, and writes `series,i,score,alert` to `out`, one
/// line for each row from the one on that the manifest says is judged.
///
/// The tables are gzipped. How many were scored is returned.
pub fn score_folder(data: &Path, out: &Path, config: &DetectConfig) -> Result<usize, OfflineError> {
    let file = File::create(out).map_err(OfflineError::from);
    let file = file.map_err(OfflineError::at("write", out))?;
    let mut result = BufWriter::new(file);
    let manifest = data.join("manifest.csv");
    let text = fs::read_to_string(&manifest).map_err(OfflineError::from);
    let text = text.map_err(OfflineError::at("read", &manifest))?;
    let written = |outcome: io::Result<()>| {
        let outcome = outcome.map_err(OfflineError::from);
        outcome.map_err(OfflineError::at("write", out))
    };
    written(writeln!(result, "series,i,score,alert"))?;
    let mut scored = 0;
    for (line, text) in text.lines().enumerate().skip(1) {
        let fields: Vec<&str> = text.split(',').collect();
        let [track, series, table, _, _, from, ..] = fields[..] else {
            let wrong = OfflineError::Manifest {
                line: line + 1,
                text: text.to_owned(),
            };
            return Err(OfflineError::at("read", &manifest)(wrong));
        };
        if track != "hosts" {
            continue;
        }
        let from: usize = from.parse().map_err(|_| {
            let wrong = OfflineError::Manifest {
                line: line + 1,
                text: text.to_owned(),
            };
            OfflineError::at("read", &manifest)(wrong)
        })?;
        let path = data.join(table);
        let rows = score_file(&path, config).map_err(OfflineError::at("score", &path))?;
        for row in rows.iter().filter(|row| row.row >= from) {
            let alert = u8::from(row.alert);
            written(writeln!(
                result,
                "{series},{},{},{alert}",
                row.row, row.score
            ))?;
        }
        scored += 1;
    }
    written(result.flush())?;
    Ok(scored)
}

/// Scores one gzipped table.
pub fn score_file(path: &Path, config: &DetectConfig) -> Result<Vec<Scored>, OfflineError> {
    let table = BufReader::new(GzDecoder::new(File::open(path)?));
    score_csv(table, config)
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
        watch.step(tick, &values, config.budget_per_host_week);
        scored.push(Scored {
            row,
            score: watch.score.score().unwrap_or(0.0),
            alert: watch.episode.is_some(),
            first: watch
                .episode
                .as_ref()
                .and_then(|episode| episode.moved.first())
                .map(|moved| moved.metric),
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
