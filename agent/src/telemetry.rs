//! What the agent tells about itself: its counters and its log.

/// What the agent counts about its own work since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Own {
    /// Ticks at which no sample was taken.
    pub ticks_missed: u64,
    /// Frames numbered.
    pub frames_produced: u64,
    /// Frames given up for lack of room.
    pub frames_lost: u64,
    /// Frames the aggregator refused.
    pub frames_rejected: u64,
    /// Frames that wait for an acknowledgement.
    pub frames_queued: u64,
    /// Sessions after the first.
    pub reconnects: u64,
}

impl Own {
    /// The families of the catalogue with the value of each; the label value is the `reason` where the family
    /// has one.
    #[must_use]
    pub fn series(&self) -> [(FamilyId, Option<&'static str>, u64); 6] {
        [
            (catalog::AGENT_TICKS_MISSED, None, self.ticks_missed),
            (catalog::AGENT_FRAMES_PRODUCED, None, self.frames_produced),
            (catalog::AGENT_FRAMES_LOST, Some("full"), self.frames_lost),
            (
                catalog::AGENT_FRAMES_LOST,
                Some("rejected"),
                self.frames_rejected,
            ),
            (catalog::AGENT_FRAMES_QUEUED, None, self.frames_queued),
            (catalog::AGENT_RECONNECTS, None, self.reconnects),
        ]
    }
}

use muster_proto::catalog::{self, FamilyId};
