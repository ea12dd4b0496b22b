//! The synthetic protocols of the fleet detectors: what no data set has, made from seeds.
//!
//! ```text
//! cargo run --release --example detect-fleet -- [disk | leak | peers]
//! ```
//! Each runs the detectors of the aggregator, through their own folds, over made-up hosts whose truth is known,
//! and prints the table of `docs/detection.md`.

mod disk;
mod leak;

use std::env;

fn main() -> anyhow::Result<()> {
    match env::args().nth(1).as_deref() {
        Some("disk") => disk::run(),
        Some("leak") => leak::run(),
        None => {
            disk::run();
            leak::run();
        }
        Some(other) => anyhow::bail!("{other:?} is none of disk, leak and peers"),
    }
    Ok(())
}
