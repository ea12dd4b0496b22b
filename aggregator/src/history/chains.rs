//! From the frames of the log to the values of a host at a tick.
//!
//! A frame is decoded after those of its chain before it (`docs/decisions/003`). The log holds the frames of
//! both chains of a stream, each frame once, in the order in which they were stored; a chain that was broken
//! off by a lost connection goes on later, beside a newer one. So the last few chains of each host are kept,
//! and a frame finds its own by incarnation and number. A key frame without series (an outline: what happened, where the
//! samples are gone) begins no chain; hundreds of them may come at once, and must not push out those that go on.

use std::{sync::Arc, time::Duration};

use muster_proto::{
    codec::{self, Changes, DecodeError, Decoder},
    id::Incarnation,
    limits,
    series::Raw,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::SeriesKey;
use crate::fleet::{host::FrameIn, names::Names};

/// Chains kept for a host: the live one, the one beside it, and what both of them had before a connection
/// was lost.
const MAX_CHAINS: usize = 4;

/// A chain that none of so many frames belonged to, over so long a time, goes on no more: agents end chains after 360
/// frames or ten minutes. A backlog brings as many frames in a few seconds, in which the live chain has none.
const IDLE_FRAMES: u32 = 1_000;
const IDLE_TIME: Duration = Duration::from_secs(3600);

/// The chains of one host, the one used last first.
#[derive(Debug, Default)]
pub struct Chains(Vec<Chain>);

#[derive(Debug)]
struct Chain {
    incarnation: Incarnation,
    decoder: Decoder<Arc<SeriesKey>>,
    idle: u32,
    /// When its last frame was received; not known of one from before a restart.
    used: Option<Timestamp>,
}

impl Chain {
    fn is_over(&self, now: Timestamp) -> bool {
        let recent = |used: Timestamp| now.since(used) < IDLE_TIME;
        self.idle >= IDLE_FRAMES && !self.used.is_some_and(recent)
    }
}

/// A chain as it is carried over a restart.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeptChain {
    incarnation: u64,
    decoded_to: u64,
    state: Vec<u8>,
}

impl Chains {
    /// Decodes a frame; what the host had at its tick.
    ///
    /// # Errors
    /// When the state it builds on is not here, or it is not what an agent writes.
    pub fn apply(
        &mut self,
        frame: &FrameIn,
        names: &mut Names,
        changes: &mut Changes,
    ) -> Result<impl Iterator<Item = (&Arc<SeriesKey>, Raw)>, DecodeError> {
        let follows = |chain: &Chain| {
            chain.incarnation == frame.incarnation && chain.decoder.decoded_to() + 1 == frame.seq
        };
        let at = self.0.iter().position(follows);
        let begins = codec::is_key_frame(&frame.payload);
        let mut decoder = match at {
            // If it does not decode, its chain is gone.
            Some(at) if !begins => self.0.remove(at).decoder,
            None if !begins => {
                return Err(DecodeError::NoKeyFrame {
                    seq: frame.seq,
                    decoded_to: self.0.first().map_or(0, |chain| chain.decoder.decoded_to()),
                });
            }
            _ => Decoder::default(),
        };
        decoder.apply(
            frame.seq,
            &frame.payload,
            limits::MAX_SERIES,
            names,
            changes,
        )?;
        let goes_on = !decoder.slots().is_empty();
        if goes_on {
            match at {
                Some(at) if begins => drop(self.0.remove(at)),
                Some(_) => {}
                None => {
                    self.0.truncate(MAX_CHAINS - 1);
                    self.0.retain(|chain| !chain.is_over(frame.received));
                }
            }
            for chain in &mut self.0 {
                chain.idle = chain.idle.saturating_add(1);
            }
            let chain = Chain {
                incarnation: frame.incarnation,
                decoder,
                idle: 0,
                used: Some(frame.received),
            };
            self.0.insert(0, chain);
        }
        let slots = self.0.first().filter(|_| goes_on);
        Ok(slots
            .into_iter()
            .flat_map(|chain| chain.decoder.slots())
            .filter(|slot| slot.present)
            .map(|slot| (&slot.key, slot.raw)))
    }

    /// What is carried over a restart.
    #[must_use]
    pub fn keep(&self) -> Vec<KeptChain> {
        let chains = self
            .0
            .iter()
            .filter(|chain| chain.decoder.decoded_to() != 0);
        chains
            .map(|chain| {
                let mut state = Vec::new();
                chain.decoder.snapshot(|key| &key.labels[..], &mut state);
                KeptChain {
                    incarnation: chain.incarnation.0,
                    decoded_to: chain.decoder.decoded_to(),
                    state,
                }
            })
            .collect()
    }

    /// Takes over what was kept. A chain that does not read is left out: its next key frame begins it anew.
    pub fn restore(kept: &[KeptChain], names: &mut Names, changes: &mut Changes) -> Self {
        let restore = |kept: &KeptChain| {
            let mut decoder = Decoder::default();
            decoder
                .apply(
                    kept.decoded_to,
                    &kept.state,
                    limits::MAX_SERIES,
                    names,
                    changes,
                )
                .ok()?;
            Some(Chain {
                incarnation: Incarnation(kept.incarnation),
                decoder,
                idle: 0,
                used: None,
            })
        };
        Self(kept.iter().take(MAX_CHAINS).filter_map(restore).collect())
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::{
        codec::Encoder,
        series::{Family, Kind, Scale, Series, Table},
        v1,
    };

    use super::*;
    use crate::fleet::host::Lane;

    fn table(value: i64) -> Table {
        Table {
            families: vec![Family {
                name: "node_load1".into(),
                kind: Kind::Gauge,
                scale: Scale::One,
                labels: Vec::new(),
            }],
            series: vec![Series {
                family: 0,
                labels: Vec::new(),
            }],
            raw: vec![Raw::int(value)],
            present: vec![true],
            ..Table::default()
        }
    }

    fn frame(incarnation: u64, seq: u64, payload: Vec<u8>, second: i64) -> FrameIn {
        let at = Timestamp::from_millis(1_795_000_000_000 + second * 1000);
        FrameIn {
            incarnation: Incarnation(incarnation),
            seq,
            lane: Lane::Live,
            tick: at,
            received: at,
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        }
    }

    struct Lab {
        chains: Chains,
        names: Names,
        changes: Changes,
    }

    impl Lab {
        fn new() -> Self {
            Self {
                chains: Chains::default(),
                names: Names::default(),
                changes: Changes::default(),
            }
        }

        fn values(&mut self, frame: &FrameIn) -> Result<Vec<i64>, DecodeError> {
            let values = self
                .chains
                .apply(frame, &mut self.names, &mut self.changes)?;
            Ok(values.map(|(_, raw)| raw.as_int()).collect())
        }
    }

    fn payload(encoder: &mut Encoder, value: i64, key: bool) -> Vec<u8> {
        let mut payload = Vec::new();
        encoder.encode(&table(value), &[], key, &mut payload);
        payload
    }

    #[test]
    fn what_happened_without_samples_pushes_no_chain_out() {
        let (mut lab, mut live) = (Lab::new(), Encoder::new());
        let begin = frame(2, 1, payload(&mut live, 7, true), 0);
        assert_eq!(lab.values(&begin).expect("decodes"), [7]);
        let happened = [v1::Event {
            kind: v1::EventKind::UnitStateChanged.into(),
            subject: "cron.service".into(),
            ..v1::Event::default()
        }];
        for seq in 1..=2_000 {
            let mut outline = Vec::new();
            Encoder::new().encode(&Table::default(), &happened, true, &mut outline);
            let outline = frame(1, 3 * seq, outline, 1);
            assert!(lab.values(&outline).expect("decodes").is_empty());
            assert_eq!(lab.changes.events.len(), 1, "what happened is read");
        }
        assert_eq!(lab.chains.keep().len(), 1);
        let next = frame(2, 2, payload(&mut live, 8, false), 10);
        assert_eq!(lab.values(&next).expect("the live chain goes on"), [8]);
    }

    #[test]
    fn a_backlog_between_two_live_frames_ends_the_live_chain_only_with_time() {
        for (away, goes_on) in [(10, true), (4_000, false)] {
            let (mut lab, mut live) = (Lab::new(), Encoder::new());
            let begin = frame(2, 1, payload(&mut live, 7, true), 0);
            lab.values(&begin).expect("decodes");
            let mut backlog = Encoder::new();
            for seq in 1..=1_500 {
                let frame = frame(1, seq, payload(&mut backlog, 1, seq % 360 == 1), away);
                lab.values(&frame).expect("decodes");
            }
            // A chain that begins finds it idle for many frames.
            let other = frame(3, 1, payload(&mut Encoder::new(), 1, true), away);
            lab.values(&other).expect("decodes");
            let next = frame(2, 2, payload(&mut live, 8, false), away);
            assert_eq!(lab.values(&next).is_ok(), goes_on, "{away} s");
        }
    }
}
