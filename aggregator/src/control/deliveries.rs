//! The queue of messages for each channel: what waits, what was delivered, what could not be.

use std::time::Duration;

use muster_proto::time::Timestamp;
use rusqlite::{OptionalExtension as _, Row, params};

use super::{Control, ControlError, NewDelivery, pages::sql};

/// How long what has ended is kept, for `muster notify status` and the noise ledger.
const KEPT_FOR: Duration = Duration::from_secs(90 * 86_400);

/// Messages from one look for what is too old to the next; a look reads all that ended.
const LOOK_EVERY: i64 = 256;

const WAITING: i32 = 1;

/// A message that waits for its channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Place in the queue.
    pub seq: i64,
    /// Names the message: the same however often it is sent.
    pub key: String,
    /// Number of the page.
    pub page: u64,
    /// Why it is sent.
    pub event: String,
    /// The message, JSON.
    pub message: String,
    /// When it was queued.
    pub made: Timestamp,
    /// How often it was tried in vain.
    pub attempts: u32,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The other side has it.
    Delivered,
    /// The channel's limit kept it back.
    HeldBack,
    /// Tried in vain; to be tried again then.
    Again {
        /// When.
        due: Timestamp,
        /// Why it failed.
        error: String,
    },
    /// Not tried any more.
    GivenUp {
        /// Why it failed.
        error: String,
    },
}

/// How a channel stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelBooks {
    /// Messages that wait.
    pub waiting: u32,
    /// When the oldest of them was queued.
    pub oldest: Option<Timestamp>,
    /// When the next is tried.
    pub next: Option<Timestamp>,
    /// Delivered since the time asked about.
    pub delivered: u32,
    /// Kept back by the limit since then.
    pub held_back: u32,
    /// Given up since then.
    pub given_up: u32,
    /// When the last was delivered.
    pub last_delivered: Option<Timestamp>,
    /// Why the last attempt of what waits or was given up failed; empty when none did.
    pub error: String,
}

impl Control {
    /// The first message of a channel that is due. Messages of one page go in their order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn due_delivery(
        &self,
        channel: &str,
        now: Timestamp,
    ) -> Result<Option<Delivery>, ControlError> {
        let channel = channel.to_owned();
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT seq, key, page, event, message, made_ms, attempts FROM deliveries d
                 WHERE channel = ?1 AND state = 1 AND due_ms <= ?2
                   AND NOT EXISTS (SELECT 1 FROM deliveries e WHERE e.channel = d.channel AND e.state = 1
                                   AND e.page = d.page AND e.seq < d.seq)
                 ORDER BY seq LIMIT 1",
            )?;
            Ok(query
                .query_row(params![channel, now.as_millis()], delivery)
                .optional()?)
        })
        .await
    }

    /// When the next message of a channel is due.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn next_due(&self, channel: &str) -> Result<Option<Timestamp>, ControlError> {
        let channel = channel.to_owned();
        self.read(move |connection| {
            let due: Option<i64> = connection
                .prepare_cached(
                    "SELECT min(due_ms) FROM deliveries WHERE channel = ?1 AND state = 1",
                )?
                .query_row([channel], |row| row.get(0))?;
            Ok(due.map(Timestamp::from_millis))
        })
        .await
    }

    /// Messages of a channel that were delivered since then, ends of pages aside: those are never kept back.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn delivered_since(
        &self,
        channel: &str,
        since: Timestamp,
    ) -> Result<u32, ControlError> {
        let channel = channel.to_owned();
        self.read(move |connection| {
            Ok(connection
                .prepare_cached(
                    "SELECT count(*) FROM deliveries WHERE channel = ?1 AND state = 2 AND ended_ms >= ?2
                       AND event NOT IN ('resolved', 'merged')",
                )?
                .query_row(params![channel, since.as_millis()], |row| row.get(0))?)
        })
        .await
    }

    /// Whether a channel was told that a page opened: nobody is told of the end of what they never heard of.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn was_told(&self, channel: &str, page: u64) -> Result<bool, ControlError> {
        let channel = channel.to_owned();
        self.read(move |connection| {
            Ok(connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM deliveries WHERE channel = ?1 AND page = ?2 AND state = 2)",
                )?
                .query_row(params![channel, sql(page)], |row| row.get(0))?)
        })
        .await
    }

    /// Notes what became of a message, and queues what follows from that.
    ///
    /// # Errors
    /// When it cannot be written; then the message is tried again.
    pub async fn delivery_ended(
        &self,
        seq: i64,
        fate: Fate,
        next: Option<NewDelivery>,
        now: Timestamp,
    ) -> Result<(), ControlError> {
        let epoch = self.epoch;
        self.write(move |connection| {
            let (state, error, due) = match &fate {
                Fate::Delivered => (2, "", None),
                Fate::HeldBack => (3, "", None),
                Fate::Again { due, error } => (WAITING, error.as_str(), Some(*due)),
                Fate::GivenUp { error } => (4, error.as_str(), None),
            };
            let ended = (state != WAITING).then_some(now.as_millis());
            connection
                .prepare_cached(
                    "UPDATE deliveries SET state = ?2, error = ?3, due_ms = coalesce(?4, due_ms), ended_ms = ?5,
                            attempts = attempts + 1
                     WHERE seq = ?1",
                )?
                .execute(params![seq, state, error, due.map(Timestamp::as_millis), ended])?;
            if seq % LOOK_EVERY == 0 {
                connection
                    .prepare_cached("DELETE FROM deliveries WHERE state <> 1 AND ended_ms < ?1")?
                    .execute([now.minus(KEPT_FOR).as_millis()])?;
            }
            if let Some(next) = next {
                connection
                    .prepare_cached(
                        "INSERT INTO deliveries (channel, key, page, event, message, state, made_ms, due_ms,
                                                 attempts, error, epoch)
                         VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?6, 0, '', ?7) ON CONFLICT DO NOTHING",
                    )?
                    .execute(params![
                        next.channel,
                        next.key,
                        sql(next.page),
                        next.event,
                        next.message,
                        now.as_millis(),
                        epoch
                    ])?;
            }
            Ok(())
        })
        .await
    }

    /// How a channel stands; counts are of what ended since `since`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn channel_books(
        &self,
        channel: &str,
        since: Timestamp,
    ) -> Result<ChannelBooks, ControlError> {
        let channel = channel.to_owned();
        self.read(move |connection| {
            let at = |millis: Option<i64>| millis.map(Timestamp::from_millis);
            let mut books = connection
                .prepare_cached(
                    "SELECT count(*), min(made_ms), min(due_ms) FROM deliveries WHERE channel = ?1 AND state = 1",
                )?
                .query_row([&channel], |row| {
                    Ok(ChannelBooks {
                        waiting: row.get(0)?,
                        oldest: at(row.get(1)?),
                        next: at(row.get(2)?),
                        ..ChannelBooks::default()
                    })
                })?;
            let mut ended = connection.prepare_cached(
                "SELECT state, count(*) FROM deliveries WHERE channel = ?1 AND state <> 1 AND ended_ms >= ?2
                 GROUP BY state",
            )?;
            let mut rows = ended.query(params![channel, since.as_millis()])?;
            while let Some(row) = rows.next()? {
                let number = row.get(1)?;
                match row.get(0)? {
                    2 => books.delivered = number,
                    3 => books.held_back = number,
                    _ => books.given_up = number,
                }
            }
            books.last_delivered = connection
                .prepare_cached("SELECT max(ended_ms) FROM deliveries WHERE channel = ?1 AND state = 2")?
                .query_row([&channel], |row| Ok(at(row.get(0)?)))?;
            let error: Option<String> = connection
                .prepare_cached(
                    "SELECT error FROM deliveries WHERE channel = ?1 AND error <> '' ORDER BY state, seq DESC LIMIT 1",
                )?
                .query_row([&channel], |row| row.get(0))
                .optional()?;
            books.error = error.unwrap_or_default();
            Ok(books)
        })
        .await
    }
}

fn delivery(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        seq: row.get(0)?,
        key: row.get(1)?,
        page: row.get::<_, u32>(2)?.into(),
        event: row.get(3)?,
        message: row.get(4)?,
        made: Timestamp::from_millis(row.get(5)?),
        attempts: row.get(6)?,
    })
}
