//! What the aggregator's own page says of telling people, of events, and of groups of hosts that have shifted.

use std::sync::atomic::Ordering::Relaxed;

use muster_proto::{series::Kind, time::Timestamp};

use super::page::{Own, Writer, whole};
use crate::{
    events::EventsHealth,
    notify::{Books, Told},
    peers::PeerWatch,
};

/// Figures of what follows from incidents; counters since the aggregator started.
#[derive(Debug, Clone, Default)]
pub struct TellingTotals {
    /// Whether what changes is still judged.
    pub works: bool,
    /// Each channel with how it stands.
    pub channels: Vec<ChannelTotals>,
    /// Events kept.
    pub events_kept: u64,
    /// Events that were not, by reason: a closed set.
    pub events_left_out: [(&'static str, u64); 3],
    /// Whether events cannot be written now.
    pub events_failing: bool,
    /// Groups of hosts that have shifted and are not back.
    pub groups_shifted: u64,
}

/// How a channel stands.
#[derive(Debug, Clone, Default)]
pub struct ChannelTotals {
    /// Its name in the configuration.
    pub name: String,
    /// Messages that wait.
    pub waiting: u64,
    /// For how long the oldest of them has; 0 when none does.
    pub oldest_seconds: f64,
    /// What became of the others, a closed set.
    pub ended: [(&'static str, u64); 3],
}

impl TellingTotals {
    /// As they are now.
    #[must_use]
    pub fn of(
        told: &Told,
        books: &Books,
        events: &EventsHealth,
        peers: &PeerWatch,
        now: Timestamp,
    ) -> Self {
        let channels = books.read().into_iter().map(|(name, books)| ChannelTotals {
            name,
            waiting: books.waiting.into(),
            oldest_seconds: books
                .oldest
                .map_or(0.0, |oldest| now.since(oldest).as_secs_f64()),
            ended: [
                ("delivered", books.delivered.into()),
                ("held_back", books.held_back.into()),
                ("given_up", books.given_up.into()),
            ],
        });
        let shifts = peers.shifts(now);
        let going_on = shifts.iter().filter(|shift| shift.until.is_none());
        Self {
            works: told.is_working(),
            channels: channels.collect(),
            events_kept: events.kept.load(Relaxed),
            events_left_out: [
                ("unsound", events.unsound.load(Relaxed)),
                ("too_many", events.too_many.load(Relaxed)),
                ("overflow", events.overflowed.load(Relaxed)),
            ],
            events_failing: events.problem().is_some(),
            groups_shifted: going_on.count() as u64,
        }
    }

    pub(super) fn write(&self, page: &mut Writer) {
        page.own(&WORKS).sample([], f64::from(u8::from(self.works)));
        let mut family = page.own(&WAITING);
        for channel in &self.channels {
            family.sample([("channel", &*channel.name)], whole(channel.waiting));
        }
        let mut family = page.own(&OLDEST);
        for channel in &self.channels {
            family.sample([("channel", &*channel.name)], channel.oldest_seconds);
        }
        let mut family = page.own(&ENDED);
        for channel in &self.channels {
            for (outcome, count) in channel.ended {
                let labels = [("channel", &*channel.name), ("outcome", outcome)];
                family.sample(labels, whole(count));
            }
        }
        page.own(&KEPT).sample([], whole(self.events_kept));
        let mut family = page.own(&LEFT_OUT);
        for (reason, count) in self.events_left_out {
            family.sample([("reason", reason)], whole(count));
        }
        let failing = f64::from(u8::from(self.events_failing));
        page.own(&FAILING).sample([], failing);
        page.own(&SHIFTED).sample([], whole(self.groups_shifted));
    }
}

const WORKS: Own = Own(
    "muster_aggregator_telling_works",
    Kind::Gauge,
    "1 while what changes in incidents is judged; at 0 nobody is told of anything.",
);
const WAITING: Own = Own(
    "muster_aggregator_notifications_waiting",
    Kind::Gauge,
    "Messages that wait for their channel.",
);
const OLDEST: Own = Own(
    "muster_aggregator_notification_oldest_seconds",
    Kind::Gauge,
    "For how long the oldest message of a channel has waited; 0 when none does.",
);
const ENDED: Own = Own(
    "muster_aggregator_notifications_total",
    Kind::Counter,
    "Messages delivered, held back by the channel's limit, or given up.",
);
const KEPT: Own = Own(
    "muster_aggregator_events_kept_total",
    Kind::Counter,
    "Events of hosts that were kept.",
);
const LEFT_OUT: Own = Own(
    "muster_aggregator_events_left_out_total",
    Kind::Counter,
    "Events of hosts that are kept nowhere but in the log, by reason.",
);
const FAILING: Own = Own(
    "muster_aggregator_events_failing",
    Kind::Gauge,
    "1 while events cannot be written.",
);
const SHIFTED: Own = Own(
    "muster_fleet_groups_shifted",
    Kind::Gauge,
    "Groups of hosts whose median left where it was, and is not back.",
);
