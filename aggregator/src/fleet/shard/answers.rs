//! What an agent is told of its frames: what is on disk, and what was refused.
//!
//! On the way to an agent there is room for a few messages only, and a shard waits for nobody. What finds no room is
//! kept, joined with what comes later, and said before long: of an earlier life of the agent there may be nothing else to
//! answer, and a refusal is told once only, so its agent would wait for either for ever.

use std::sync::atomic::Ordering;

use muster_proto::{
    id::{HostId, Incarnation},
    limits, v1,
};

use super::{Shard, Stream};
use crate::{
    fleet::{FleetConfig, HostState, host::Noted},
    journal::Stored,
};

/// Refusals of one life that are kept for an agent that does not read; beyond, they are told when the frame comes again.
const MAX_REFUSALS: usize = 1024;

/// Lives of an agent of which anything is kept so.
const MAX_LIVES: usize = 64;

/// What an agent is to be told about frames of one of its lives.
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// First and last number of those that have come to the disk.
    frames: Option<(u64, u64)>,
    rejected: Vec<v1::Rejected>,
}

impl Untold {
    /// These are on disk, as far as the books of the host say so.
    pub(super) fn frames(frames: (u64, u64)) -> Self {
        Self {
            frames: Some(frames),
            rejected: Vec::new(),
        }
    }

    /// This one was refused.
    pub(super) fn refused(frame: v1::Rejected) -> Self {
        Self {
            frames: None,
            rejected: vec![frame],
        }
    }

    fn join(&mut self, later: Self) {
        self.frames = match (self.frames, later.frames) {
            (Some(these), Some(those)) => Some((these.0.min(those.0), these.1.max(those.1))),
            (these, those) => these.or(those),
        };
        self.rejected.extend(later.rejected);
    }
}

impl Shard {
    /// Frames came to the disk, or did not.
    pub(super) fn settled(&mut self, stored: &[Stored], durable: bool) {
        // Neighbours are usually of one host: one answer for all of them.
        let mut run: Option<(HostId, Incarnation, (u64, u64))> = None;
        for key in stored {
            let Some(host) = self.hosts.get_mut(&key.host) else {
                continue;
            };
            if durable {
                let noted = host.stored(key.incarnation, key.seq);
                if noted != Noted::Before {
                    self.counters.frames_stored.fetch_add(1, Ordering::Relaxed);
                }
                if noted == Noted::Found {
                    self.counters.frames_found.fetch_add(1, Ordering::Relaxed);
                }
            } else {
                host.not_stored(key.incarnation, key.seq);
            }
            match &mut run {
                Some((host, incarnation, (first, last)))
                    if (*host, *incarnation) == (key.host, key.incarnation) =>
                {
                    *first = key.seq.min(*first);
                    *last = key.seq.max(*last);
                }
                _ => {
                    let this = (key.host, key.incarnation, (key.seq, key.seq));
                    if let Some(before) = run.replace(this) {
                        self.answer(before, durable);
                    }
                }
            }
        }
        if let Some(last) = run {
            self.answer(last, durable);
        }
    }

    fn answer(
        &mut self,
        (host, incarnation, frames): (HostId, Incarnation, (u64, u64)),
        durable: bool,
    ) {
        if durable {
            self.tell(host, incarnation, Untold::frames(frames));
        } else {
            self.throttle(host);
        }
    }

    /// Tells the host's agent this and what is untold of the same life, or keeps it until there is room.
    pub(super) fn tell(&mut self, id: HostId, incarnation: Incarnation, news: Untold) {
        let (Some(host), Some(stream)) = (self.hosts.get(&id), self.streams.get_mut(&id)) else {
            return;
        };
        let mut untold = match stream.untold.remove(&incarnation) {
            Some(mut before) => {
                before.join(news);
                before
            }
            None => news,
        };
        if !stream.tell(&self.config, host, incarnation, &mut untold) {
            untold.rejected.truncate(MAX_REFUSALS);
            if stream.untold.len() < MAX_LIVES {
                stream.untold.insert(incarnation, untold);
            }
        }
    }

    /// Tells agents what found no room on its way to them.
    pub(super) fn tell_untold(&mut self) {
        let streams = self.streams.iter();
        let untold: Vec<(HostId, Incarnation)> = streams
            .flat_map(|(id, stream)| stream.untold.keys().map(|whose| (*id, *whose)))
            .collect();
        for (id, incarnation) in untold {
            self.tell(id, incarnation, Untold::default());
        }
    }
}

impl Stream {
    /// Says what is on disk: all of it, where one Ack can say so. Of books with more holes than that at least what is
    /// there of these frames: an agent that sends what lies scattered (events whose samples are gone) hears of each.
    /// False when not all of it could be said; what was is taken out all the same.
    fn tell(
        &self,
        config: &FleetConfig,
        host: &HostState,
        incarnation: Incarnation,
        untold: &mut Untold,
    ) -> bool {
        let Untold { frames, rejected } = untold;
        let all = host.durable(incarnation);
        let lowest = all.first().map_or(u64::MAX, |range| range.first);
        if let Some((first, last)) = frames
            && all.len() >= limits::MAX_ACK_RANGES
            && *first < lowest
        {
            let newest = all.last().copied();
            let within: Vec<v1::Range> = host.durable_within(incarnation, *first, *last).collect();
            for part in within.chunks(limits::MAX_ACK_RANGES - 1) {
                let durable = part.iter().copied().chain(newest).collect();
                if !self.acknowledge(config, incarnation, durable, rejected) {
                    return false;
                }
                if let Some(said) = part.last() {
                    *first = said.last;
                }
            }
            if rejected.is_empty() {
                return true;
            }
        }
        self.acknowledge(config, incarnation, all, rejected)
    }

    /// False, with the refusals left as they are, when there is no room, or nobody hears any more.
    fn acknowledge(
        &self,
        config: &FleetConfig,
        incarnation: Incarnation,
        durable: Vec<v1::Range>,
        rejected: &mut Vec<v1::Rejected>,
    ) -> bool {
        let Ok(room) = self.to_agent.try_reserve() else {
            return false;
        };
        let ack = v1::Ack {
            incarnation: incarnation.0,
            received: self.received,
            durable,
            rejected: std::mem::take(rejected),
            credit_bytes: config.credit_bytes,
            epoch: config.epoch,
        };
        room.send(Box::new(v1::AggregatorMessage {
            message: Some(v1::aggregator_message::Message::Ack(ack)),
        }));
        true
    }
}
