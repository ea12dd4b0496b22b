//! What an agent says of frames that will never come, and of lives that are over; what of it is believed.
//!
//! Whatever changes the books of a host is handed to the log; what cannot be handed over sends the agent away, which says
//! it again when it comes back.

use std::sync::atomic::Ordering;

use muster_proto::{
    id::{HostId, Incarnation},
    v1,
};
use tokio::time::Instant;

use super::{Connection, REFUSALS_LOGGED, Shard, is_open};
use crate::journal::Record;

impl Shard {
    pub(super) fn gap(&mut self, id: HostId, connection: Connection, gap: &v1::Gap) {
        if !self.is_stream(id, connection) {
            return;
        }
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let incarnation = Incarnation(gap.incarnation);
        if gap.first == 0 || gap.first > gap.last {
            self.violation(id, "it names frames as lost that cannot be");
            return;
        }
        if host.knows_up_to(incarnation, gap.last) {
            self.lost(id, incarnation, gap.first, gap.last);
            self.bound_holes(id, incarnation);
        } else {
            self.disbelieved(id, "lost frames", gap.last);
        }
    }

    /// Frames that will never come are noted, and written where that is news.
    pub(super) fn lost(&mut self, id: HostId, incarnation: Incarnation, first: u64, last: u64) {
        let host = self.hosts.get_mut(&id);
        // Told again, or told of frames that came: nothing changed.
        match host.and_then(|host| host.gap(incarnation, first, last)) {
            None | Some(0) => {}
            Some(lost) => self.note_lost(id, incarnation, (first, last), lost),
        }
    }

    fn note_lost(
        &mut self,
        id: HostId,
        incarnation: Incarnation,
        (first, last): (u64, u64),
        lost: u64,
    ) {
        self.counters.frames_lost.fetch_add(lost, Ordering::Relaxed);
        let record = Record::Gap {
            incarnation,
            first,
            last,
        };
        self.write_or_throttle(id, &record);
    }

    /// Books that fall into too many ranges give up their oldest holes.
    pub(super) fn bound_holes(&mut self, id: HostId, incarnation: Incarnation) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        if let Some((first, last, lost)) = host.bound_holes(incarnation) {
            tracing::info!(
                host = %id, name = host.name(), first, last, lost,
                "too many holes in what came of this host; the oldest are counted as lost unless they still come"
            );
            self.note_lost(id, incarnation, (first, last), lost);
        }
    }

    /// A claim about numbers far beyond what was heard of is noted nowhere. A host of a fleet that was restored from a
    /// backup, or has moved here, may well say the truth: it is not sent away for it.
    fn disbelieved(&mut self, id: HostId, what: &str, last: u64) {
        let (Some(stream), Some(host)) = (self.streams.get_mut(&id), self.hosts.get(&id)) else {
            return;
        };
        stream.refused += 1;
        if stream.refused <= REFUSALS_LOGGED {
            tracing::warn!(
                host = %id, name = host.name(), what, last,
                "the host names numbers far beyond those that were heard of here; what it says of them is not counted"
            );
        }
    }

    pub(super) fn fin(&mut self, id: HostId, connection: Connection, fin: v1::Fin) {
        if !self.is_stream(id, connection) {
            return;
        }
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        let reason = v1::FinReason::try_from(fin.reason).unwrap_or_default();
        let incarnation = Incarnation(fin.incarnation);
        if fin.complete {
            let believed = host.knows_up_to(incarnation, fin.last_seq);
            match host.missing(incarnation, fin.last_seq) {
                Some(missing) => self.complete(id, incarnation, &missing),
                None => self.violation(id, "it ends the life that speaks"),
            }
            if !believed {
                self.disbelieved(id, "end of an earlier life", fin.last_seq);
            }
        }
        let Some(host) = self
            .hosts
            .get_mut(&id)
            .filter(|_| is_open(&self.streams, id, connection))
        else {
            return;
        };
        host.fin(incarnation, fin.last_seq, reason);
        let record = Record::Fin {
            incarnation,
            last_seq: fin.last_seq,
            reason: fin.reason,
        };
        self.write_or_throttle(id, &record);
        self.judge_one(id, Instant::now());
    }

    /// Nothing more will come of an earlier life of the agent: what is missing of it is lost.
    fn complete(&mut self, id: HostId, incarnation: Incarnation, missing: &[(u64, u64)]) {
        for &(first, last) in missing {
            self.lost(id, incarnation, first, last);
        }
        let lost: u64 = missing.iter().map(|(first, last)| last - first + 1).sum();
        if let Some(host) = self.hosts.get(&id).filter(|_| lost > 0) {
            tracing::info!(
                host = %id, name = host.name(), frames = lost,
                "an earlier life of the agent is over; what did not come of it is lost"
            );
        }
    }
}
