//! When an incident begins, the recording of the minutes before is asked of its host, and not too often.

use std::{collections::HashMap, time::Duration};

use muster_proto::{id::HostId, limits, v1};
use tokio::time::Instant;

use super::{Shard, send};
use crate::detect::{Change, Severity, Transition};

impl Shard {
    /// Something begins on a host: what its flight recorder holds of the minutes before is evidence. The agent
    /// sends it beside its next samples, if it wants to.
    pub(super) fn recall(&mut self, id: HostId) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        if !self.recalls.admits(id, Instant::now()) {
            return;
        }
        let now = self.clock.now();
        let recall = v1::Recall {
            from_ms: now.minus(limits::MAX_RECORDING).as_millis(),
            to_ms: now.as_millis(),
        };
        let message = v1::aggregator_message::Message::Recall(recall);
        send(&stream.to_agent, message);
    }
}

/// Whether an incident begins that is worth a recording.
pub(super) fn begins_incident(transition: &Transition) -> bool {
    let opened = matches!(transition.change, Change::Opened { .. });
    opened && matches!(transition.severity, Severity::Critical | Severity::Warning)
}

/// A host is asked again after what its recorder holds.
const RECALL_EVERY: Duration = limits::MAX_RECORDING;

/// Recordings of a shard's hosts at once, and a second over time.
const RECALL_BURST: f64 = 10.0;
const RECALLS_PER_SECOND: f64 = 1.0 / 30.0;

/// How often recordings are asked for: a storm of incidents must not become a storm of recordings, of up to
/// 2 MiB each, in the log.
#[derive(Debug)]
pub(super) struct Recalls {
    /// Hosts that were asked, and when.
    pub(super) asked: HashMap<HostId, Instant>,
    tokens: f64,
    as_of: Option<Instant>,
}

impl Default for Recalls {
    fn default() -> Self {
        Self {
            asked: HashMap::new(),
            tokens: RECALL_BURST,
            as_of: None,
        }
    }
}

impl Recalls {
    pub(super) fn admits(&mut self, host: HostId, now: Instant) -> bool {
        let as_of = self.as_of.replace(now).unwrap_or(now);
        let earned = (now - as_of).as_secs_f64() * RECALLS_PER_SECOND;
        self.tokens = (self.tokens + earned).min(RECALL_BURST);
        self.asked.retain(|_, at| now - *at < RECALL_EVERY);
        if self.tokens < 1.0 || self.asked.contains_key(&host) {
            return false;
        }
        self.tokens -= 1.0;
        self.asked.insert(host, now);
        true
    }
}
