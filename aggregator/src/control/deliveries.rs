//! The queue of messages for each channel: what waits, what was delivered, what could not be.

use std::time::Duration;

use muster_proto::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Control, ControlError, NewDelivery, pages::sql};

/// How long what has ended is kept, for `muster notify status` and the noise ledger.
const KEPT_FOR: Duration = Duration::from_secs(90 * 86_400);

/// Messages from one look for what is too old to the next; a look reads all that ended.
const LOOK_EVERY: i64 = 256;

const WAITING: i32 = 1;

/// Nothing waits longer from one attempt to the next: what is due later than this was dated before a clock was set back.
const LONGEST_WAIT: Duration = Duration::from_secs(900);

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
    /// Of a mail that others have: the one to whom it is still to go. Empty: to all.
    pub reader: String,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The other side has it.
    Delivered {
        /// Whom it did not take it for, and why; empty when it took it for all.
        refused: String,
        /// Readers of a mail who have not got it: to each it goes as a copy of its own, after those that wait for
        /// the same reader.
        later: Vec<String>,
        /// When the first such copy of a reader is tried. Those that waited already are tried now: there is more to
        /// say.
        again: Timestamp,
    },
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
    /// Delivered since the time asked about; of a mail that went to some of its readers later, once.
    pub delivered: u32,
    /// Kept back by the limit since then.
    pub held_back: u32,
    /// Given up since then.
    pub given_up: u32,
    /// When the last was delivered.
    pub last_delivered: Option<Timestamp>,
    /// Why the last attempt of what waits failed; else why, since the time asked about, something was given up or not
    /// taken for everybody. Empty when nothing of that is.
    pub error: String,
}

/// Nothing that goes before it waits: of its page; of a copy for one reader, for that reader. So whom their mail server
/// refuses keeps nobody else waiting, and is asked once at a time however much there is to say.
macro_rules! first {
    () => {
        "CASE reader WHEN '' THEN
            NOT EXISTS (SELECT 1 FROM deliveries e INDEXED BY deliveries_of_page
                        WHERE e.channel = d.channel AND e.state = 1 AND e.reader = '' AND e.page = d.page
                          AND e.seq < d.seq)
        ELSE
            NOT EXISTS (SELECT 1 FROM deliveries e INDEXED BY deliveries_of_reader
                        WHERE e.channel = d.channel AND e.state = 1 AND e.reader <> '' AND e.reader = d.reader
                          AND e.seq < d.seq)
        END"
    };
}

/// In the order of the queue, so that the first that is due ends the search.
const DUE: &str = concat!(
    "
    SELECT seq, key, page, event, message, made_ms, attempts, reader FROM deliveries d INDEXED BY deliveries_in_order
    WHERE channel = ?1 AND state = 1 AND (due_ms <= ?2 OR due_ms > ?3 OR attempts = 0) AND ",
    first!(),
    " ORDER BY seq LIMIT 1"
);

/// Of what waits only that may be due which is the first of its page or, where it is for one reader, of that reader.
const NEXT_DUE: &str = concat!(
    "SELECT min(due_ms) FROM deliveries d INDEXED BY deliveries_in_order WHERE channel = ?1 AND state = 1 AND ",
    first!()
);

impl Control {
    /// The first message of a channel that is due. Messages of one page go in their order, and so do the copies for one
    /// reader.
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
            let mut query = connection.prepare_cached(DUE)?;
            let (now, beyond) = (now.as_millis(), now.plus(LONGEST_WAIT).as_millis());
            Ok(query
                .query_row(params![channel, now, beyond], delivery)
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
                .prepare_cached(NEXT_DUE)?
                .query_row([channel], |row| row.get(0))?;
            Ok(due.map(Timestamp::from_millis))
        })
        .await
    }

    /// Readers of a channel for whom copies wait, and who are not to hear of what comes after those before.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn readers_behind(&self, channel: &str) -> Result<Vec<String>, ControlError> {
        let channel = channel.to_owned();
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT DISTINCT reader FROM deliveries INDEXED BY deliveries_of_reader
                 WHERE channel = ?1 AND state = 1 AND reader <> ''",
            )?;
            let readers = query.query_map([channel], |row| row.get(0))?;
            Ok(readers.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Messages of a channel that were delivered since then, ends of pages aside: those are never kept back. Copies for
    /// single readers count with the message.
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
                       AND reader = '' AND event NOT IN ('resolved', 'merged')",
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
                Fate::Delivered { refused, .. } => (2, refused.as_str(), None),
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
            if let Fate::Delivered { later, again, .. } = &fate {
                copies(connection, seq, later, *again, now)?;
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

    /// Proves that the store takes what is written, and gives up what was queued before then for channels that there are
    /// no more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn keep_house(
        &self,
        channels: &[String],
        before: Timestamp,
        now: Timestamp,
    ) -> Result<(), ControlError> {
        let channels =
            serde_json::to_string(channels).map_err(|_| ControlError::Row("deliveries"))?;
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO meta (key, value) VALUES ('written_ms', ?1)
                     ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                )?
                .execute([now.as_millis().to_string()])?;
            connection
                .prepare_cached(
                    "UPDATE deliveries SET state = 4, error = 'its channel is not configured any more', ended_ms = ?1
                     WHERE state = 1 AND made_ms < ?2 AND channel NOT IN (SELECT value FROM json_each(?3))",
                )?
                .execute(params![now.as_millis(), before.as_millis(), channels])?;
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
                   AND (state <> 2 OR reader = '') GROUP BY state",
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
                .prepare_cached("SELECT max(ended_ms) FROM deliveries WHERE channel = ?1 AND state <> 1 AND state = 2")?
                .query_row([&channel], |row| Ok(at(row.get(0)?)))?;
            // Two questions, each by its index.
            let waits: Option<String> = connection
                .prepare_cached(
                    "SELECT error FROM deliveries WHERE channel = ?1 AND state = 1 AND error <> ''
                     ORDER BY seq DESC LIMIT 1",
                )?
                .query_row([&channel], |row| row.get(0))
                .optional()?;
            let ended = || {
                connection
                    .prepare_cached(
                        "SELECT error FROM deliveries
                         WHERE channel = ?1 AND state <> 1 AND ended_ms >= ?2 AND error <> ''
                         ORDER BY ended_ms DESC, seq DESC LIMIT 1",
                    )?
                    .query_row(params![channel, since.as_millis()], |row| row.get(0))
                    .optional()
            };
            books.error = match waits {
                Some(error) => error,
                None => ended()?.unwrap_or_default(),
            };
            Ok(books)
        })
        .await
    }
}

/// Queues a message for those of its readers who have not got it.
fn copies(
    connection: &Connection,
    seq: i64,
    readers: &[String],
    again: Timestamp,
    now: Timestamp,
) -> Result<(), ControlError> {
    let mut hurry = connection.prepare_cached(
        "UPDATE deliveries SET due_ms = ?3
         WHERE due_ms > ?3 AND seq = (SELECT min(e.seq) FROM deliveries e INDEXED BY deliveries_of_reader
                      WHERE e.channel = (SELECT channel FROM deliveries WHERE seq = ?1)
                        AND e.state = 1 AND e.reader <> '' AND e.reader = ?2)",
    )?;
    let mut queue = connection.prepare_cached(
        "INSERT INTO deliveries (channel, key, page, event, message, state, made_ms, due_ms, attempts, error, epoch, reader)
         SELECT channel, key || '.' || ?2, page, event, message, 1, made_ms, ?3, 1, '', epoch, ?2
         FROM deliveries WHERE seq = ?1 ON CONFLICT DO NOTHING",
    )?;
    for reader in readers {
        let waits = hurry.execute(params![seq, reader, now.as_millis()])? > 0;
        let due = if waits { now } else { again };
        queue.execute(params![seq, reader, due.as_millis()])?;
    }
    Ok(())
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
        reader: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Consequence;

    const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    async fn queue(control: &Control, channel: &str, pages: std::ops::Range<u64>) {
        let one = |page: u64| NewDelivery {
            channel: channel.to_owned(),
            key: format!("{page}"),
            page,
            event: "firing",
            message: String::new(),
        };
        let all = Consequence {
            deliveries: pages.map(one).collect(),
            at: START,
            ..Consequence::default()
        };
        control.conclude(all).await.expect("written");
    }

    #[tokio::test]
    async fn the_next_message_is_found_without_a_look_at_all_that_wait() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a store");
        let plan = control.read(|connection| {
            let mut query = connection.prepare(&format!("EXPLAIN QUERY PLAN {DUE}"))?;
            let rows =
                query.query_map(params!["ops", 0, 0], |row| row.get::<_, String>("detail"))?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        });
        let plan = plan.await.expect("readable").join("; ");
        assert!(
            !plan.contains("TEMP B-TREE") && !plan.contains("SCAN"),
            "{plan}"
        );
        for index in ["page=? AND seq<?", "reader=? AND seq<?"] {
            assert!(plan.contains(index), "{plan}");
        }
    }

    #[tokio::test]
    async fn what_was_queued_before_the_clock_was_set_back_is_due() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a store");
        queue(&control, "ops", 1..2).await;
        let hour = Duration::from_secs(3600);
        let before = START.minus(hour);
        let due = control.due_delivery("ops", before).await.expect("readable");
        let due = due.expect("it was never tried");
        let again = |due| Fate::Again {
            due,
            error: "refused".to_owned(),
        };
        let soon = before.plus(Duration::from_secs(600));
        for (at, is_due) in [(START, true), (soon, false)] {
            control
                .delivery_ended(due.seq, again(at), None, before)
                .await
                .expect("written");
            let found = control.due_delivery("ops", before).await.expect("readable");
            assert_eq!(found.is_some(), is_due, "{at}");
        }
    }

    #[tokio::test]
    async fn what_waits_for_a_channel_that_is_gone_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a store");
        queue(&control, "ops", 1..3).await;
        queue(&control, "gone", 1..3).await;
        let later = START.plus(Duration::from_secs(1));
        for (before, waiting) in [(START, 2), (later, 0)] {
            let ops = ["ops".to_owned()];
            control
                .keep_house(&ops, before, later)
                .await
                .expect("written");
            let gone = control
                .channel_books("gone", START)
                .await
                .expect("readable");
            assert_eq!((gone.waiting, gone.given_up), (waiting, 2 - waiting));
            let ops = control.channel_books("ops", START).await.expect("readable");
            assert_eq!(ops.waiting, 2);
        }
    }
}
