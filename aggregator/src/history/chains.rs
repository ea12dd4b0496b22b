//! From the frames of the log to the values of a host at a tick.
//!
//! A frame is decoded after those of its chain before it (`docs/decisions/003`). The log holds the frames of
//! both chains of a stream, each frame once, in the order in which they were stored; a chain that was broken
//! off by a lost connection goes on later, beside a newer one. So the last few chains of each host are kept,
//! and a frame finds its own by incarnation and number.

use std::sync::Arc;

use muster_proto::{
    codec::{self, Changes, DecodeError, Decoder},
    id::Incarnation,
    limits,
    series::Raw,
};
use serde::{Deserialize, Serialize};

use super::SeriesKey;
use crate::fleet::{host::FrameIn, names::Names};

/// Chains kept for a host: the live one, the one beside it, and what both of them had before a connection
/// was lost.
const MAX_CHAINS: usize = 4;

/// A chain that none of so many frames belonged to goes on no more: agents end chains after 360 frames.
const IDLE_FRAMES: u32 = 1_000;

/// The chains of one host, the one used last first.
#[derive(Debug, Default)]
pub struct Chains(Vec<Chain>);

#[derive(Debug)]
struct Chain {
    incarnation: Incarnation,
    decoder: Decoder<Arc<SeriesKey>>,
    idle: u32,
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
        for chain in &mut self.0 {
            chain.idle += 1;
        }
        match self.0.iter().position(follows) {
            Some(at) => self.0[..=at].rotate_right(1),
            None if codec::is_key_frame(&frame.payload) => {
                self.0.truncate(MAX_CHAINS - 1);
                self.0.retain(|chain| chain.idle < IDLE_FRAMES);
                let chain = Chain {
                    incarnation: frame.incarnation,
                    decoder: Decoder::default(),
                    idle: 0,
                };
                self.0.insert(0, chain);
            }
            None => {
                return Err(DecodeError::NoKeyFrame {
                    seq: frame.seq,
                    decoded_to: self.0.first().map_or(0, |chain| chain.decoder.decoded_to()),
                });
            }
        }
        let chain = &mut self.0[0];
        chain.idle = 0;
        let decoded = chain.decoder.apply(
            frame.seq,
            &frame.payload,
            limits::MAX_SERIES,
            names,
            changes,
        );
        if let Err(error) = decoded {
            self.0.remove(0);
            return Err(error);
        }
        let slots = self.0[0].decoder.slots().iter();
        Ok(slots
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
            })
        };
        Self(kept.iter().take(MAX_CHAINS).filter_map(restore).collect())
    }
}
