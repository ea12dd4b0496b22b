//! What the aggregator's own page says of history.

use std::sync::atomic::Ordering::Relaxed;

use muster_proto::series::Kind;

use super::page::{Own, Writer, whole};
use crate::{
    fleet::start::History,
    history::{SampleStore as _, StoreStats, Tier},
};

/// Figures of history; counters since the aggregator started.
#[derive(Debug, Clone, Default)]
pub struct HistoryTotals {
    /// What the store holds.
    pub store: StoreStats,
    /// Samples of hosts taken.
    pub frames: u64,
    /// Those that are not in history, by reason: a closed set.
    pub lost: [(&'static str, u64); 3],
    /// Offers that were read from the log, since the queue was full.
    pub reread: u64,
    /// Bytes that wait to be taken.
    pub queue_bytes: u64,
}

impl HistoryTotals {
    /// As they are now.
    #[must_use]
    pub fn of(history: &History) -> Self {
        let health = &history.health;
        Self {
            store: history.store.stats(),
            frames: health.frames.load(Relaxed),
            lost: [
                ("missing", health.missing.load(Relaxed)),
                ("too_old", health.too_old.load(Relaxed)),
                ("undecoded", health.undecoded.load(Relaxed)),
            ],
            reread: health.reread.load(Relaxed),
            queue_bytes: health.queued_bytes(),
        }
    }

    pub(super) fn write(&self, page: &mut Writer) {
        let mut family = page.own(&SIZE);
        for tier in Tier::ALL {
            family.sample(
                [("tier", tier.word())],
                whole(self.store.bytes[tier as usize]),
            );
        }
        let mut family = page.own(&POINTS);
        for tier in Tier::ALL {
            family.sample(
                [("tier", tier.word())],
                whole(self.store.points[tier as usize]),
            );
        }
        let mut family = page.own(&DROPPED);
        family.sample([("reason", "age")], whole(self.store.dropped_by_age));
        family.sample([("reason", "size")], whole(self.store.dropped_by_size));
        let mut family = page.own(&LOST);
        for (reason, count) in self.lost {
            family.sample([("reason", reason)], whole(count));
        }
        for (own, value) in [
            (&FRAMES, self.frames),
            (&REREAD, self.reread),
            (&QUEUE, self.queue_bytes),
            (&MEMORY, self.store.head_bytes),
            (&WRITTEN, self.store.written_bytes),
            (&FAILURES, self.store.failures),
        ] {
            page.own(own).sample([], whole(value));
        }
    }
}

const SIZE: Own = Own(
    "muster_aggregator_history_size_bytes",
    Kind::Gauge,
    "Size of history on disk, by tier.",
);
const POINTS: Own = Own(
    "muster_aggregator_history_points",
    Kind::Gauge,
    "Samples and roll-ups on disk, by tier.",
);
const DROPPED: Own = Own(
    "muster_aggregator_history_files_dropped_total",
    Kind::Counter,
    "Files dropped, because of their age or because history was larger than it may be.",
);
const LOST: Own = Own(
    "muster_aggregator_history_frames_lost_total",
    Kind::Counter,
    "Stored frames that did not come into history, by reason.",
);
const FRAMES: Own = Own(
    "muster_aggregator_history_frames_total",
    Kind::Counter,
    "Stored frames that came into history.",
);
const REREAD: Own = Own(
    "muster_aggregator_history_reread_total",
    Kind::Counter,
    "Times that history was slower than the log, and read it again later.",
);
const QUEUE: Own = Own(
    "muster_aggregator_history_queue_bytes",
    Kind::Gauge,
    "Bytes of stored frames that wait to come into history.",
);
const MEMORY: Own = Own(
    "muster_aggregator_history_memory_bytes",
    Kind::Gauge,
    "Memory of samples that are not in files yet.",
);
const WRITTEN: Own = Own(
    "muster_aggregator_history_written_bytes_total",
    Kind::Counter,
    "Bytes of files written, packing included.",
);
const FAILURES: Own = Own(
    "muster_aggregator_history_write_failures_total",
    Kind::Counter,
    "Writes that failed; what they should have written stays in memory and in the log.",
);
