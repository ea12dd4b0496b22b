//! Agents and an aggregator in virtual time, some dozen seeds of them; `bench/faults simulation --times 1000` is more.

#[path = "../../bench/pipeline/simulation.rs"]
mod simulation;

use simulation::{Seen, Stage, partition, run};

#[test]
fn whatever_happens_the_books_balance() {
    let stage = Stage::make().expect("a folder");
    let mut total = Seen::default();
    for seed in 1..=30 {
        let seen = run(&stage, seed).map_err(|error| format!("{error:#}"));
        total.add(&seen.expect("bench/faults simulation --times 1 --seed N shows it"));
    }
    // Something did happen.
    assert!(total.stored > 1_000 && total.agent_lives > 150, "{total:?}");
    assert!(total.aggregator_lives > 50, "{total:?}");
}

#[test]
fn after_a_partition_the_last_agent_is_fresh_within_half_a_minute() {
    let stage = Stage::make().expect("a folder");
    for seed in 1..=8 {
        let fresh = partition(&stage, seed).map_err(|error| format!("{error:#}"));
        fresh.expect("fresh in time");
    }
}

#[test]
fn a_seed_decides_all() {
    let stage = Stage::make().expect("a folder");
    for seed in [3, 17, 29] {
        let (first, second) = (run(&stage, seed), run(&stage, seed));
        assert_eq!(
            first.expect("balanced"),
            second.expect("balanced"),
            "{seed}"
        );
    }
}
