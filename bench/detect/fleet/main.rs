//! The synthetic protocols of the fleet detectors: what no data set has, made from seeds.
//!
//! ```text
//! cargo run --release --example detect-fleet -- [disk | leak | peers | cost | floors]
//! ```
//! Each runs the detectors of the aggregator, through their own folds, over made-up hosts whose truth is known,
//! and prints the table of `docs/detection.md`.

mod cost;
mod disk;
mod leak;
mod peers;

use std::env;

fn main() -> anyhow::Result<()> {
    match env::args().nth(1).as_deref() {
        Some("disk") => disk::run(),
        Some("leak") => leak::run(),
        Some("peers") => peers::run(),
        Some("cost") => cost::run(),
        Some("floors") => peers::floors()?,
        None => {
            disk::run();
            leak::run();
            peers::run();
        }
        Some(other) => anyhow::bail!("{other:?} is none of disk, leak, peers, cost and floors"),
    }
    Ok(())
}
