//! Bytes that no honest peer or healthy disk would give, at everything that reads bytes.
//!
//! ```text
//! bench/fuzz list
//! bench/fuzz all --times 100000 --seed 1
//! ```
//!
//! Each target starts from something valid and is given mutations of it: flipped bits, cut ends, moved and repeated
//! pieces, numbers that break arithmetic. It must neither panic nor serve what was never written; whether it
//! succeeds or says why is its own affair. A case follows from the seed, the target and its number alone, so what a
//! failure prints repeats it: `bench/fuzz TARGET --seed S --first N --times 1`. There is no coverage to guide it; it
//! needs no other toolchain than the one that builds Muster, so CI runs it too. The last line is one JSON object.

mod disk;
mod mutate;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, ensure};
use clap::Parser;
use mutate::mutate;
use serde::Serialize;

#[derive(Parser)]
struct Options {
    /// What is tried: the name of a target, all, or list
    target: String,
    /// Cases of each target
    #[arg(long, default_value_t = 10_000)]
    times: u64,
    /// Number of the first case
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Seed of all cases
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Something that reads bytes.
pub(crate) trait Target {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// Valid inputs: of the network one message each, of the disk the bytes of one file each.
    fn seeds(&self) -> Vec<Vec<u8>>;
    /// Reads one of them, `at` in the list, as it was changed. True if it was accepted.
    ///
    /// # Errors
    /// When something was served that was never written.
    fn read(&mut self, at: usize, bytes: &[u8]) -> anyhow::Result<bool>;
}

/// The last line.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    seed: u64,
    cases: u64,
    accepted: u64,
    panics: u64,
    wrong: u64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let mut targets: Vec<Box<dyn Target>> = wire::targets()?;
    targets.extend(disk::targets(scratch.path())?);
    if options.target == "list" {
        for target in &targets {
            println!("{}", target.name());
        }
        return Ok(());
    }
    let mut outcome = Outcome {
        seed: options.seed,
        ..Outcome::default()
    };
    let mut known = false;
    for target in &mut targets {
        if options.target == "all" || options.target == target.name() {
            known = true;
            run(target.as_mut(), &options, &mut outcome)?;
        }
    }
    ensure!(known, "no target {:?}: see bench/fuzz list", options.target);
    println!("{}", serde_json::to_string(&outcome)?);
    ensure!(outcome.panics + outcome.wrong == 0, "a promise was broken");
    Ok(())
}

fn run(target: &mut dyn Target, options: &Options, outcome: &mut Outcome) -> anyhow::Result<()> {
    let name = target.name();
    let seeds = target.seeds();
    for (at, seed) in seeds.iter().enumerate() {
        let accepted = target.read(at, seed)?;
        ensure!(accepted, "{name}: its own seed {at} is refused");
    }
    let mut accepted = 0;
    for number in options.first..options.first + options.times {
        let mut random = fastrand::Rng::with_seed(case_seed(options.seed, name, number));
        let at = random.usize(..seeds.len());
        let mut bytes = seeds[at].clone();
        mutate(&mut bytes, &mut random);
        let read = catch_unwind(AssertUnwindSafe(|| target.read(at, &bytes)));
        match read {
            Ok(Ok(was_accepted)) => accepted += u64::from(was_accepted),
            Ok(Err(error)) => {
                outcome.wrong += 1;
                eprintln!("{name} case {number} of seed {}: {error:#}", options.seed);
            }
            Err(_) => {
                outcome.panics += 1;
                eprintln!("{name} case {number} of seed {}: panicked", options.seed);
            }
        }
    }
    eprintln!("{name:<18} {} cases, {accepted} accepted", options.times);
    outcome.cases += options.times;
    outcome.accepted += accepted;
    Ok(())
}

/// FNV-1a over what names a case.
fn case_seed(seed: u64, name: &str, number: u64) -> u64 {
    let parts = [
        &seed.to_le_bytes()[..],
        name.as_bytes(),
        &number.to_le_bytes(),
    ];
    parts
        .concat()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}
