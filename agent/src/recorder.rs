//! The flight recorder: every second of the last ten minutes, in bounded memory.
//!
//! Rounds are encoded as frames are, in chains of their own, so that a second costs what changed in it: about
//! one byte a series. At most [`MAX_BYTES`] are held; the oldest chain goes first, whole. Nothing leaves the host
//! until the aggregator recalls it ([`Recorder::recall`]); what it may ask for are two moments, and how often is
//! decided here ([`Rate`]). A recording then travels in parts beside the next samples, numbered, spooled and
//! acknowledged with their frames: it outlives the agent and the host from the moment its frames are on disk.

use std::{collections::VecDeque, time::Duration};

use muster_proto::{
    codec::Encoder,
    limits,
    series::Table,
    time::Timestamp,
    v1::{Busiest, RecordedRound, RecordingPart},
};

/// Most memory for rounds.
pub const MAX_BYTES: usize = 2 * 1024 * 1024;

/// Between two rounds.
pub const EVERY: Duration = Duration::from_secs(1);

/// Rounds of a chain: two minutes. A longer one would save key frames and be lost whole.
const CHAIN_ROUNDS: usize = 120;

/// What a round costs besides its payload.
const ROUND_OVERHEAD_BYTES: usize = 40;

/// Recordings that may be asked for at once, and how long it takes until one more may.
const RATE_BURST: u32 = 3;
const RATE_REFILL: Duration = Duration::from_secs(600);

/// A key frame and what builds on it.
#[derive(Debug, Default)]
struct Chain {
    rounds: Vec<(Timestamp, Box<[u8]>)>,
    bytes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Recorder {
    encoder: Encoder,
    chains: VecDeque<Chain>,
    bytes: usize,
    scratch: Vec<u8>,
}

impl Recorder {
    /// Bytes of memory that rounds take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records the values as they are at `tick`, which is later than the last.
    pub fn record(&mut self, table: &Table, tick: Timestamp) {
        let last = self.chains.back().and_then(|chain| chain.rounds.last());
        if last.is_some_and(|(last, _)| *last >= tick) {
            // The clock was set back: what was before it would be in the way for as long.
            self.chains.clear();
            self.bytes = 0;
        }
        let full = |chain: &Chain| chain.rounds.len() >= CHAIN_ROUNDS;
        let key = self.chains.back().is_none_or(full);
        self.scratch.clear();
        if self.encoder.encode(table, &[], key, &mut self.scratch) {
            self.chains.push_back(Chain::default());
        }
        let cost = self.scratch.len() + ROUND_OVERHEAD_BYTES;
        if let Some(chain) = self.chains.back_mut() {
            chain.rounds.push((tick, self.scratch.as_slice().into()));
            chain.bytes += cost;
            self.bytes += cost;
        }
        let oldest = tick.minus(limits::MAX_RECORDING);
        let is_over = |chain: &Chain| chain.rounds.last().is_none_or(|(last, _)| *last < oldest);
        while self.bytes > MAX_BYTES || self.chains.front().is_some_and(is_over) {
            let Some(chain) = self.chains.pop_front() else {
                return;
            };
            self.bytes -= chain.bytes;
        }
    }

    /// What is held of the moments from `from` to `to` (widened to the chains they lie in), and of who used most
    /// in them; empty if nothing is. `asked` tells this recording from others.
    #[must_use]
    pub fn recall(
        &self,
        from: Timestamp,
        to: Timestamp,
        asked: Timestamp,
        busiest: Vec<Busiest>,
    ) -> VecDeque<RecordingPart> {
        let from = from.max(asked.minus(limits::MAX_RECORDING));
        let to = to.min(asked);
        if from > to {
            return VecDeque::new();
        }
        let lies_in = |chain: &&Chain| {
            let ends = (chain.rounds.first(), chain.rounds.last());
            matches!(ends, (Some((first, _)), Some((last, _))) if *last >= from && *first <= to)
        };
        let rounds: Vec<&(Timestamp, Box<[u8]>)> = self
            .chains
            .iter()
            .filter(lies_in)
            .flat_map(|chain| &chain.rounds)
            .filter(|(tick, _)| *tick <= to)
            .collect();
        let (Some((first, _)), Some((last, _))) = (rounds.first(), rounds.last()) else {
            return VecDeque::new();
        };
        let whole = RecordingPart {
            asked_ms: asked.as_millis(),
            from_ms: first.as_millis(),
            to_ms: last.as_millis(),
            ..RecordingPart::default()
        };
        let mut parts = VecDeque::from([whole.clone()]);
        let mut bytes = 0;
        for (tick, payload) in rounds {
            let cost = payload.len() + ROUND_OVERHEAD_BYTES;
            if bytes > 0 && bytes + cost > limits::MAX_RECORDING_PART_BYTES {
                parts.push_back(whole.clone());
                bytes = 0;
            }
            bytes += cost;
            if let Some(part) = parts.back_mut() {
                part.rounds.push(RecordedRound {
                    tick_ms: tick.as_millis(),
                    payload: payload.to_vec(),
                });
            }
        }
        let in_time = |scan: &Busiest| (from.as_millis()..=to.as_millis()).contains(&scan.at_ms);
        // Who used most is what is looked at first, and comes first.
        parts[0].busiest = busiest.into_iter().filter(in_time).collect();
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        for (number, part) in (0..).zip(&mut parts) {
            part.number = number;
            part.parts = count;
        }
        parts
    }
}

/// How often recordings are given: a captured aggregator gets no more than these.
#[derive(Debug)]
pub struct Rate {
    left: u32,
    /// When the next one is earned.
    since: Option<Timestamp>,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            left: RATE_BURST,
            since: None,
        }
    }
}

impl Rate {
    /// Whether one more may be given at `now`, which never goes back (CLOCK_BOOTTIME); counts it if so.
    pub fn admits(&mut self, now: Timestamp) -> bool {
        let since = *self.since.get_or_insert(now);
        let earned = now.since(since).as_millis() / RATE_REFILL.as_millis();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(RATE_BURST);
            self.since = Some(now);
        }
        if self.left == RATE_BURST {
            self.since = Some(now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use muster_proto::{
        codec::{Changes, Decoder, Intern},
        series::{Family, Kind, Raw, Scale, Series},
    };
    use prost::Message as _;

    use super::*;

    /// So many series, of which all change from round to round.
    fn table(series: usize, round: i64) -> Table {
        let each = |number: usize| Series {
            family: 0,
            labels: vec![format!("a-device-with-a-name-{number}")],
        };
        Table {
            families: vec![Family {
                name: "x_total".to_owned(),
                kind: Kind::Counter,
                scale: Scale::One,
                labels: vec!["device".to_owned()],
            }],
            series: (0..series).map(each).collect(),
            raw: vec![Raw::int(round); series],
            present: vec![true; series],
            ..Table::default()
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000 + seconds * 1000)
    }

    fn recorded(series: usize, seconds: i64) -> Recorder {
        let mut recorder = Recorder::default();
        for second in 0..seconds {
            recorder.record(&table(series, second), at(second));
        }
        recorder
    }

    struct Names;

    impl Intern for Names {
        type Key = ();
        fn series(&mut self, _: &Arc<Family>, _: &[String]) {}
    }

    /// The value of the first series in each round that reads.
    fn values(parts: &VecDeque<RecordingPart>) -> Vec<i64> {
        let (mut decoder, mut changes) = (Decoder::default(), Changes::default());
        let rounds = parts.iter().flat_map(|part| &part.rounds);
        rounds
            .zip(1..)
            .filter_map(|(round, seq)| {
                let read = decoder.apply(seq, &round.payload, 10_000, &mut Names, &mut changes);
                read.ok().map(|()| decoder.slots()[0].raw.as_int())
            })
            .collect()
    }

    #[test]
    fn ten_minutes_are_held_and_given_back_in_parts_that_read() {
        let recorder = recorded(700, 1_500);
        assert!(recorder.bytes() < MAX_BYTES, "{}", recorder.bytes());
        let parts = recorder.recall(at(0), at(5_000), at(1_499), Vec::new());
        let expected: Vec<i64> = (840..1_500).collect();
        assert_eq!(
            values(&parts),
            expected,
            "from the chain in which ten minutes ago lies"
        );
        for part in &parts {
            assert!(part.encoded_len() <= limits::MAX_RECORDING_PART_BYTES);
            assert_eq!(
                (part.parts as usize, part.asked_ms),
                (parts.len(), at(1_499).as_millis())
            );
        }
        let numbers: Vec<u32> = parts.iter().map(|part| part.number).collect();
        assert!(
            numbers
                .iter()
                .copied()
                .eq(0..u32::try_from(parts.len()).expect("few"))
        );
        let (first, last) = (&parts[0], &parts[parts.len() - 1]);
        assert_eq!(
            (first.from_ms, last.to_ms),
            (at(840).as_millis(), at(1_499).as_millis())
        );
    }

    #[test]
    fn memory_is_bounded_whatever_the_host() {
        for (series, seconds) in [(4_000, 300), (10_000, 60)] {
            let mut recorder = Recorder::default();
            for second in 0..seconds {
                // Large differences: several bytes a series.
                recorder.record(&table(series, second * second * 1_000_003), at(second));
                assert!(recorder.bytes() <= MAX_BYTES);
            }
            let parts = recorder.recall(at(0), at(seconds), at(seconds), Vec::new());
            let most = u32::try_from(parts.len()).expect("few");
            assert!(
                most <= limits::MAX_RECORDING_PARTS,
                "{series}: {most} parts"
            );
        }
    }

    #[test]
    fn only_what_was_asked_for_and_only_of_ten_minutes() {
        let recorder = recorded(5, 900);
        let seconds = |from, to| {
            let parts = recorder.recall(at(from), at(to), at(899), Vec::new());
            let ends = (
                parts.front().map(|part| part.from_ms),
                parts.back().map(|part| part.to_ms),
            );
            ends.0.zip(ends.1).map(|(first, last)| {
                (
                    (first - at(0).as_millis()) / 1000,
                    (last - at(0).as_millis()) / 1000,
                )
            })
        };
        assert_eq!(seconds(500, 550), Some((480, 550)));
        assert_eq!(seconds(-99_999, 99_999), Some((240, 899)));
        assert_eq!(seconds(0, 100), None, "longer ago than it says");
        assert_eq!(seconds(700, 600), None);
        assert_eq!(
            seconds(i64::MIN / 4_000, i64::MAX / 4_000),
            Some((240, 899))
        );
        let scan = |second: i64| Busiest {
            at_ms: at(second).as_millis(),
            ..Busiest::default()
        };
        let parts = recorder.recall(at(500), at(550), at(899), vec![scan(400), scan(520)]);
        assert_eq!(parts[0].busiest, [scan(520)]);
    }

    #[test]
    fn a_clock_that_goes_back_begins_anew() {
        let mut recorder = recorded(5, 100);
        recorder.record(&table(5, 7), at(50));
        recorder.record(&table(5, 8), at(51));
        assert_eq!(
            values(&recorder.recall(at(0), at(100), at(100), Vec::new())),
            [7, 8]
        );
    }

    #[test]
    fn recordings_are_given_seldom() {
        let mut rate = Rate::default();
        let given: Vec<i64> = (0..36_000)
            .filter(|second| rate.admits(at(*second)))
            .collect();
        assert_eq!(given[..3], [0, 1, 2], "three at once");
        let hour = given
            .iter()
            .filter(|second| (3_600..7_200).contains(*second))
            .count();
        assert_eq!(hour, 6, "then one in ten minutes");
    }
}
