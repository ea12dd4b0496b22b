//! A recording as figures: what the fleet derives from each tick, for each second that a flight recorder held.

use std::sync::Arc;

use muster_proto::{
    codec::{Changes, Decoder},
    limits,
    series::Raw,
    time::Timestamp,
    v1,
};

use crate::fleet::{
    SIGNALS, Signals,
    derive::{self, Gather},
    names::{Names, SeriesKey},
};

/// The seconds of a recording whose parts are in order. Rounds that build on a part that is missing are left
/// out, up to the next key frame.
#[must_use]
pub fn seconds(parts: &[v1::RecordingPart]) -> Vec<v1::RecordedSecond> {
    let mut seconds = Vec::new();
    let mut names = Names::default();
    let mut reel = Reel::default();
    let mut seq = 0;
    let mut expected = 0;
    for part in parts {
        if part.number != expected {
            // What follows does not build on what was read last.
            reel.decoder.reset();
        }
        expected = part.number + 1;
        for round in &part.rounds {
            seq += 1;
            seconds.extend(reel.second(seq, round, &mut names));
        }
    }
    seconds
}

/// What the next round builds on.
#[derive(Default)]
struct Reel {
    decoder: Decoder<Arc<SeriesKey>>,
    changes: Changes,
    before: std::collections::HashMap<*const SeriesKey, Raw>,
    last: Option<Timestamp>,
}

impl Reel {
    fn second(
        &mut self,
        seq: u64,
        round: &v1::RecordedRound,
        names: &mut Names,
    ) -> Option<v1::RecordedSecond> {
        self.decoder
            .apply(
                seq,
                &round.payload,
                limits::MAX_SERIES,
                names,
                &mut self.changes,
            )
            .ok()?;
        let tick = Timestamp::from_millis(round.tick_ms);
        let span = self.last.replace(tick).map(|last| tick.since(last));
        let span = span
            .filter(|span| !span.is_zero())
            .map(|span| span.as_secs_f64());
        let mut gather = Gather::default();
        for slot in self.decoder.slots().iter().filter(|slot| slot.present) {
            let value = slot.scale.value(slot.raw);
            let mut per_second = None;
            if slot.key.rated {
                let before = self.before.insert(Arc::as_ptr(&slot.key), slot.raw);
                let before = before.map(|raw| slot.scale.value(raw));
                per_second = before
                    .zip(span)
                    .and_then(|(before, span)| derive::rate(before, value, span));
            }
            gather.add(slot.key.input, value, per_second);
        }
        let derived = gather.derived(Vec::new());
        Some(second(tick, &gather.signals(&derived)))
    }
}

fn second(tick: Timestamp, signals: &Signals) -> v1::RecordedSecond {
    let of = |name: &str| {
        let at = SIGNALS.iter().position(|signal| *signal == name)?;
        Some(f64::from(signals[at])).filter(|value| value.is_finite())
    };
    let sum = |one, other| match (of(one), of(other)) {
        (None, None) => None,
        (one, other) => Some(one.unwrap_or(0.0) + other.unwrap_or(0.0)),
    };
    v1::RecordedSecond {
        tick_ms: tick.as_millis(),
        cpu_ratio: of("cpu_busy_ratio"),
        iowait_ratio: of("cpu_iowait_ratio"),
        memory_ratio: of("memory_used_ratio"),
        load1: of("load1"),
        disk_busy_ratio: of("disk_busy_ratio_max"),
        disk_bytes_per_second: sum(
            "disk_read_bytes_per_second",
            "disk_written_bytes_per_second",
        ),
        network_bytes_per_second: sum(
            "network_receive_bytes_per_second",
            "network_transmit_bytes_per_second",
        ),
        pressure_cpu_ratio: of("pressure_cpu_ratio"),
        pressure_memory_ratio: of("pressure_memory_ratio"),
        pressure_io_ratio: of("pressure_io_ratio"),
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        codec::Encoder,
        series::{Family, Kind, Scale, Series, Table},
    };

    use super::*;

    /// A host whose CPU is idle for so many of the milliseconds since it began.
    fn table(idle_ms: i64, busy_ms: i64) -> Table {
        let mode = |mode: &str| Series {
            family: 0,
            labels: vec!["0".to_owned(), mode.to_owned()],
        };
        Table {
            families: vec![Family {
                name: "node_cpu_seconds_total".to_owned(),
                kind: Kind::Counter,
                scale: Scale::Nano,
                labels: vec!["cpu".to_owned(), "mode".to_owned()],
            }],
            series: vec![mode("idle"), mode("user")],
            raw: vec![Raw::int(idle_ms * 1_000_000), Raw::int(busy_ms * 1_000_000)],
            present: vec![true, true],
            ..Table::default()
        }
    }

    fn part(number: u32, from: i64, count: i64) -> v1::RecordingPart {
        let mut encoder = Encoder::new();
        let rounds = (from..from + count).map(|second| {
            let mut payload = Vec::new();
            encoder.encode(
                &table(second * 250, second * 750),
                &[],
                second == from,
                &mut payload,
            );
            v1::RecordedRound {
                tick_ms: second * 1000,
                payload,
            }
        });
        v1::RecordingPart {
            number,
            parts: 3,
            rounds: rounds.collect(),
            ..v1::RecordingPart::default()
        }
    }

    #[test]
    fn each_second_is_derived_over_the_borders_of_parts_and_gaps() {
        let seconds = seconds(&[part(0, 10, 3), part(1, 13, 2), part(2, 30, 2)]);
        let cpu: Vec<Option<f64>> = seconds.iter().map(|second| second.cpu_ratio).collect();
        assert_eq!(seconds.len(), 7);
        assert_eq!(cpu[0], None, "the first has nothing before it");
        for value in &cpu[1..] {
            assert!(
                value.is_some_and(|value| (value - 0.75).abs() < 1e-6),
                "{cpu:?}"
            );
        }
    }

    #[test]
    fn what_does_not_read_is_left_out() {
        let mut broken = part(0, 10, 4);
        broken.rounds[2].payload.truncate(3);
        assert_eq!(seconds(&[broken, part(1, 20, 2)]).len(), 2 + 2);
    }
}
