//! How fast and how rightly a silent host is told, in virtual time over the aggregator's own fold.
//!
//! ```text
//! cargo run --release --example silence -- [gaps [DAYS] | causes [RUNS]]
//! ```
//! `gaps`: hosts that send each second over four kinds of lines; how often a host that lives is called late or
//! silent, and after how long a dead one is. `causes`: a table of faults in fleets of three racks, with what was
//! said while the hosts were silent and once they were back, as a confusion matrix. All from seeds.

mod causes;
mod fleet;
mod gaps;

use std::env;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |default: u32| match args.get(1) {
        Some(text) => text.parse(),
        None => Ok(default),
    };
    match args.first().map(String::as_str) {
        Some("gaps") => gaps::run(number(250)?),
        Some("causes") => causes::run(number(20)?),
        None => {
            gaps::run(250);
            causes::run(20);
        }
        Some(other) => anyhow::bail!("{other:?} is neither gaps nor causes"),
    }
    Ok(())
}
