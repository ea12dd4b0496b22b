//! The labelled recordings: which series there are, what was labelled in them, and their tables.
//!
//! The format is that of the recordings' own notes: `manifest.csv` with one line a series, `labels.csv` with
//! one line an event, and a gzipped CSV a series with the time in its first column. Nothing here knows a
//! detector.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, bail};
use flate2::read::GzDecoder;

/// One labelled recording.
#[derive(Debug, Clone)]
pub struct Series {
    /// `hosts` or `series`.
    pub track: String,
    pub name: String,
    /// Path of its table below the folder.
    pub file: String,
    /// Where it comes from; figures are also given for each source.
    pub source: String,
    /// Seconds between rows.
    pub step: u32,
    /// First row that is judged; those before are there to learn from.
    pub from: usize,
    /// Labelled events, by time.
    pub events: Vec<Event>,
    /// Rows before and after an event in which a notification still meets it.
    pub tolerance: (usize, usize),
}

/// What people marked as wrong: its first and last row, and the metrics that they blamed.
#[derive(Debug, Clone)]
pub struct Event {
    pub start: usize,
    pub end: usize,
    pub metrics: Vec<String>,
}

/// A table: names of the columns after the time, the times in seconds, and the values row by row.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub names: Vec<String>,
    pub times: Vec<f64>,
    pub values: Vec<f32>,
}

/// The series of a folder, in the order of its manifest.
pub fn load(data: &Path) -> anyhow::Result<Vec<Series>> {
    let mut events = BTreeMap::<String, Vec<Event>>::new();
    for line in lines(&data.join("labels.csv"))? {
        let fields: Vec<&str> = line.split(',').collect();
        let [series, start, end, metrics] = fields[..] else {
            bail!("labels.csv: `{line}` has not four fields");
        };
        let number = |text: &str| {
            text.parse::<usize>()
                .with_context(|| format!("labels.csv: `{text}` is no row number"))
        };
        let metrics = metrics.split(';').filter(|name| !name.is_empty());
        events.entry(series.to_owned()).or_default().push(Event {
            start: number(start)?,
            end: number(end)?,
            metrics: metrics.map(str::to_owned).collect(),
        });
    }
    let mut all = Vec::new();
    for line in lines(&data.join("manifest.csv"))? {
        let fields: Vec<&str> = line.split(',').collect();
        let [track, name, file, step, _, from, _, before, after, source] = fields[..] else {
            bail!("manifest.csv: `{line}` has not ten fields");
        };
        let number = |text: &str| {
            text.parse::<usize>()
                .with_context(|| format!("manifest.csv: `{text}` is no number"))
        };
        let mut events = events.remove(name).unwrap_or_default();
        events.sort_by_key(|event| event.start);
        all.push(Series {
            track: track.to_owned(),
            name: name.to_owned(),
            file: file.to_owned(),
            source: source.to_owned(),
            step: u32::try_from(number(step)?).context("manifest.csv: an interval is too long")?,
            from: number(from)?,
            events,
            tolerance: (number(before)?, number(after)?),
        });
    }
    Ok(all)
}

/// Reads a gzipped table; a field that is no number is absent.
pub fn table(path: &Path) -> anyhow::Result<Table> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = BufReader::new(GzDecoder::new(file)).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    let mut table = Table {
        names: head.split(',').skip(1).map(str::to_owned).collect(),
        ..Table::default()
    };
    for line in lines {
        let line = line?;
        let mut fields = line.split(',');
        let time = fields.next().unwrap_or_default();
        let time = time
            .parse()
            .with_context(|| format!("{}: `{time}` is no time", path.display()))?;
        table.times.push(time);
        let values = fields.map(|field| field.parse().unwrap_or(f32::NAN));
        table.values.extend(values);
    }
    Ok(table)
}

/// The lines of a small file, without the head.
fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().skip(1).map(str::to_owned).collect())
}
