//! Scores labelled recordings with the host score, in the format that their scorer reads.
//!
//! ```text
//! cargo run --example detect-score -- DATA OUT.csv [THRESHOLD]
//! ```
//!
//! DATA holds `manifest.csv` and the gzipped tables that it names; only its `hosts` track is scored. What
//! runs is `muster_aggregator::detect::offline`, the fold of the server, with one configuration for all.

use std::{
    env,
    fs::{self, File},
    io::{BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use flate2::read::GzDecoder;
use muster_aggregator::detect::{DetectConfig, offline};

fn main() -> anyhow::Result<()> {
    let mut args = env::args_os().skip(1);
    let (Some(data), Some(out)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: detect-score DATA OUT.csv [THRESHOLD]");
    };
    let mut config = DetectConfig::default();
    if let Some(threshold) = args.next() {
        let threshold = threshold.to_string_lossy();
        config.anomaly_threshold = threshold
            .parse()
            .with_context(|| format!("`{threshold}` is no threshold"))?;
    }
    let data = PathBuf::from(data);
    let manifest = data.join("manifest.csv");
    let manifest = fs::read_to_string(&manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    let file = File::create(&out)
        .with_context(|| format!("cannot write {}", Path::new(&out).display()))?;
    let mut out = BufWriter::new(file);
    writeln!(out, "series,i,score,alert")?;
    for line in manifest.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [track, series, file, _interval, _rows, from, ..] = fields[..] else {
            anyhow::bail!("manifest.csv: `{line}` has too few fields");
        };
        if track != "hosts" {
            continue;
        }
        let from: usize = from
            .parse()
            .with_context(|| format!("manifest.csv: `{from}` is no row number"))?;
        let path = data.join(file);
        let table = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let table = BufReader::new(GzDecoder::new(table));
        let scored = offline::score_csv(table, &config)
            .with_context(|| format!("cannot score {}", path.display()))?;
        for row in scored.iter().filter(|row| row.row >= from) {
            writeln!(
                out,
                "{series},{},{},{}",
                row.row,
                row.score,
                u8::from(row.alert)
            )?;
        }
    }
    out.flush()?;
    Ok(())
}
