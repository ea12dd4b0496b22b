//! Hosts that make up subjects: what they can open, and what is kept of them, is bounded.

use super::*;
use crate::detect::engine::MAX_TRACKS;

/// So many failed units, numbered from `first`.
fn failed(first: usize, count: usize) -> Shown {
    units((first..first + count).map(|at| (at, UnitState::Failed)))
}

fn units(states: impl Iterator<Item = (usize, UnitState)>) -> Shown {
    let units = states.map(|(at, state)| Unit {
        name: format!("made-up-{at:06}.service"),
        state,
        since: None,
        restarts: 0,
        restarts_recent: 0,
    });
    Shown {
        units: Some(units.collect()),
        ..Shown::default()
    }
}

fn tracks(host: &Host) -> usize {
    host.state.tracks_of("unit_failed")
}

#[test]
fn a_flood_of_new_units_is_one_incident_more() {
    let mut host = Host::default();
    let mut told = 0;
    for (tick, second) in (0..500).zip((0..).step_by(10)) {
        // 800 names, none of which was there before.
        host.show(second, &failed(tick * 800, 800));
        assert!(tracks(&host) <= MAX_TRACKS + 1, "tick {tick}");
        told += host.told.drain(..).count();
        if tick == 0 {
            assert_eq!(told, MAX_TRACKS + 1);
        }
    }
    // Those of a quarter of an hour are cleared and others take their places: 5,000 s have five such turns.
    assert!(told < 12 * MAX_TRACKS, "{told} in 400,000 names");
    let kept = postcard::to_stdvec(&host.state).expect("it serialises");
    // Most of it is the score's: what is usual of each signal, and of each hour.
    assert!(
        kept.len() < 16 * 1024,
        "{} bytes in a checkpoint",
        kept.len()
    );
}

#[test]
fn the_rest_is_counted_and_ends_when_it_fits_again() {
    let mut host = Host::default();
    host.show(0, &failed(0, MAX_TRACKS));
    assert_eq!(host.told().len(), MAX_TRACKS);
    host.show(10, &failed(0, MAX_TRACKS + 3));
    let summary = match &host.told[0].change {
        Change::Opened { summary, .. } => Some(summary.as_str()),
        Change::Cleared { .. } => None,
    };
    assert_eq!(
        summary,
        Some("3 more units, beyond the 64 that have incidents of their own")
    );
    assert_eq!(host.told(), ["+warning more units 10..10"]);
    // Not observed is not well.
    let starting = |at: usize| match at {
        at if at < MAX_TRACKS => UnitState::Failed,
        _ => UnitState::Activating,
    };
    for second in (20..5000).step_by(10) {
        let shown = units((0..MAX_TRACKS + 3).map(|at| (at, starting(at))));
        host.show(second, &shown);
        host.show(second + 5, &Shown::default());
    }
    assert!(host.told().is_empty());
    for second in (5000..5920).step_by(10) {
        host.show(second, &failed(0, MAX_TRACKS));
    }
    assert_eq!(host.told(), ["-warning more units 10..5900"]);
    assert_eq!(tracks(&host), MAX_TRACKS);
}

#[test]
fn a_place_that_is_free_is_given_to_one_of_the_rest() {
    let mut host = Host::default();
    host.show(0, &failed(0, MAX_TRACKS + 1));
    assert_eq!(host.told().len(), MAX_TRACKS + 1);
    let first_well = |at| match at {
        0 => UnitState::Active,
        _ => UnitState::Failed,
    };
    for second in (10..=80).step_by(10) {
        host.show(
            second,
            &units((0..=MAX_TRACKS).map(|at| (at, first_well(at)))),
        );
    }
    assert_eq!(
        host.told(),
        [
            "-warning made-up-000000.service 0..70",
            "+warning made-up-000064.service 70..70"
        ]
    );
}

#[test]
fn a_unit_cannot_pass_for_the_rest() {
    let mut host = Host::default();
    let mut shown = failed(0, 1);
    for unit in shown.units.iter_mut().flatten() {
        unit.name = "more units".to_owned();
    }
    host.show(0, &shown);
    assert_eq!(host.told(), ["+warning more units 0..0"]);
    assert_eq!(tracks(&host), 1);
}
