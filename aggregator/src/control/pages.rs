//! Pages, the news they are made of, and what of both is written together with the messages that follow.
//!
//! A change of an incident leaves a row of news in the same transaction. Whoever tells people reads them in order, and
//! writes what follows (pages, messages for channels) in one transaction with their deletion. So a kill at any moment
//! either leaves the news to be read again or leaves everything that followed from them.

use muster_proto::{time::Timestamp, v1};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Control, ControlError, acks::note, turns::record};
use crate::{
    detect::Severity,
    incident::{
        flap::Flap,
        pages::{Changes, Member, News, Page, Subject, Turn},
    },
};

const OPEN: i32 = v1::IncidentState::Open as i32;

/// News that are read at once: ten thousand in a second are one page, not many.
const NEWS_AT_ONCE: u32 = 20_000;

/// Values of `news.change`.
const OPENED: i32 = 1;
const CLEARED: i32 = 2;
const ACKNOWLEDGED: i32 = 3;
const UNACKNOWLEDGED: i32 = 4;

/// A message for one channel, to be queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDelivery {
    /// Name of the channel.
    pub channel: String,
    /// Names the message: the same however often it is sent.
    pub key: String,
    /// Number of the page.
    pub page: u64,
    /// Why it is sent.
    pub event: &'static str,
    /// The message, JSON.
    pub message: String,
}

/// What follows from news.
#[derive(Debug, Clone, Default)]
pub struct Consequence {
    /// Pages and members.
    pub changes: Changes,
    /// Messages.
    pub deliveries: Vec<NewDelivery>,
    /// The last news that were taken in.
    pub through: i64,
    /// Now.
    pub at: Timestamp,
}

const MEMBER: &str = "i.number, i.id, i.host_id, i.rule, i.subject, i.severity, i.state, i.summary, i.since_ms, \
                      i.page, i.joined_ms, i.flap, i.flap_ms, i.flapping, i.ack_by, i.ack_until_ms,
                      coalesce((SELECT evidence FROM incident_transitions t WHERE t.incident_id = i.id
                                AND t.to_state = 1 ORDER BY seq DESC LIMIT 1), '') AS evidence";

impl Control {
    /// The pages that are open, and every incident that is open or in one of them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn open_pages(&self) -> Result<(Vec<(u64, Page)>, Vec<(u64, Member)>), ControlError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT number, id, scope, severity, opened_ms, grown_ms, clear_ms, tellings, told_hosts, lead
                 FROM pages WHERE closed_ms IS NULL",
            )?;
            let mut rows = query.query([])?;
            let mut pages = Vec::new();
            while let Some(row) = rows.next()? {
                pages.push(page(row)?);
            }
            // What is still news comes as such.
            let mut query = connection.prepare_cached(&format!(
                "SELECT {MEMBER} FROM incidents i
                 WHERE i.flap_ms > 0 AND (i.state = {OPEN} OR i.flapping = 1 OR i.page IN (SELECT number FROM pages WHERE closed_ms IS NULL))"
            ))?;
            let mut rows = query.query([])?;
            let mut members = Vec::new();
            while let Some(row) = rows.next()? {
                members.push(member(row)?);
            }
            Ok((pages, members))
        })
        .await
    }

    /// The channels that have a message of a page which is open, by its number.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn told_channels(&self) -> Result<Vec<(u64, String)>, ControlError> {
        self.read(|connection| {
            // A number comes again when what was closed fails anew; its messages of before are not of this page.
            let mut query = connection.prepare_cached(
                "SELECT DISTINCT d.page, d.channel FROM deliveries d JOIN pages p ON p.number = d.page
                 WHERE p.closed_ms IS NULL AND d.made_ms >= p.opened_ms",
            )?;
            let rows = query.query_map([], |row| Ok((row.get::<_, u32>(0)?.into(), row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// When a page opened last, and whether it is over since; `None` of one that is not kept.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn page_stands(&self, page: u64) -> Result<Option<(Timestamp, bool)>, ControlError> {
        self.read(move |connection| {
            Ok(connection
                .prepare_cached(
                    "SELECT opened_ms, closed_ms IS NOT NULL FROM pages WHERE number = ?1",
                )?
                .query_row([sql(page)], |row| {
                    Ok((Timestamp::from_millis(row.get(0)?), row.get(1)?))
                })
                .optional()?)
        })
        .await
    }

    /// News after this one, in their order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn news(&self, after: i64) -> Result<Vec<News>, ControlError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT n.seq AS seq, n.change AS change, {MEMBER} FROM news n JOIN incidents i ON i.number = n.number
                 WHERE n.seq > ?1 ORDER BY n.seq LIMIT {NEWS_AT_ONCE}"
            ))?;
            let mut rows = query.query([after])?;
            let mut news = Vec::new();
            while let Some(row) = rows.next()? {
                let (number, member) = member(row)?;
                let until: Option<i64> = row.get("ack_until_ms")?;
                let turn = turn_of(row.get("change")?, until)?;
                news.push(News {
                    seq: row.get("seq")?,
                    number,
                    subject: member.subject,
                    flap: member.flap,
                    turn,
                });
            }
            Ok(news)
        })
        .await
    }

    /// Writes what follows from news, and forgets them.
    ///
    /// # Errors
    /// When it cannot be written; then nothing of it is.
    pub async fn conclude(&self, consequence: Consequence) -> Result<(), ControlError> {
        let epoch = self.epoch;
        self.write(move |connection| conclude(connection, epoch, &consequence))
            .await
    }
}

fn conclude(connection: &Connection, epoch: i64, all: &Consequence) -> Result<(), ControlError> {
    // First: what follows may change the rows that it reads.
    record(connection, epoch, all.through, all.at)?;
    let changes = &all.changes;
    for (number, page) in &changes.pages {
        connection
            .prepare_cached(
                "INSERT INTO pages (number, id, scope, severity, opened_ms, grown_ms, clear_ms, tellings,
                                    told_hosts, closed_ms, epoch, lead)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
                 ON CONFLICT (number) DO UPDATE SET
                     scope = excluded.scope, severity = excluded.severity, opened_ms = excluded.opened_ms,
                     grown_ms = excluded.grown_ms, clear_ms = excluded.clear_ms, tellings = excluded.tellings,
                     told_hosts = excluded.told_hosts, closed_ms = excluded.closed_ms,
                     lead = excluded.lead",
            )?
            .execute(params![
                sql(*number),
                page.id,
                serde_json::to_string(&page.scope).map_err(|_| ControlError::Row("pages"))?,
                page.severity.to_wire() as i32,
                page.opened.as_millis(),
                page.grown.as_millis(),
                page.clear.map(Timestamp::as_millis),
                page.tellings,
                page.told_hosts,
                changes.closed.contains(number).then_some(all.at.as_millis()),
                epoch,
                lead(page)?
            ])?;
    }
    let mut update = connection.prepare_cached(
        "UPDATE incidents SET page = ?2, joined_ms = ?3, flap = ?4, flap_ms = ?5, flapping = ?6
         WHERE number = ?1",
    )?;
    for (number, (page, flap)) in &changes.members {
        update.execute(params![
            sql(*number),
            page.map(|(page, _)| sql(page)),
            page.map(|(_, joined)| joined.as_millis()),
            flap.count,
            flap.at.as_millis(),
            flap.flapping
        ])?;
    }
    for (number, begins) in &changes.turned {
        let (what, text) = if *begins {
            (
                "flapping",
                "fails and recovers again and again: nobody is told of each time",
            )
        } else {
            ("settled", "has not changed for long enough")
        };
        note_of(connection, epoch, *number, all.at, what, text)?;
    }
    for number in &changes.lapsed {
        connection
            .prepare_cached(
                "UPDATE incidents SET ack_by = NULL, ack_ms = NULL, ack_until_ms = NULL, ack_text = NULL
                 WHERE number = ?1",
            )?
            .execute([sql(*number)])?;
        note_of(
            connection,
            epoch,
            *number,
            all.at,
            "lapsed",
            "the acknowledgement ran out",
        )?;
    }
    for telling in &changes.tellings {
        let to: Vec<&str> = all
            .deliveries
            .iter()
            .filter(|one| one.page == telling.number && one.event == telling.event.as_str())
            .map(|one| one.channel.as_str())
            .collect();
        let to = if to.is_empty() {
            "no channel takes it".to_owned()
        } else {
            format!("to {}", to.join(", "))
        };
        let text = format!("{} {to}", telling.event.as_str());
        note_of(connection, epoch, telling.number, all.at, "told", &text)?;
    }
    let mut queue = connection.prepare_cached(
        "INSERT INTO deliveries (channel, key, page, event, message, state, made_ms, due_ms, attempts, error, epoch)
         VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?6, 0, '', ?7) ON CONFLICT DO NOTHING",
    )?;
    for one in &all.deliveries {
        queue.execute(params![
            one.channel,
            one.key,
            sql(one.page),
            one.event,
            one.message,
            all.at.as_millis(),
            epoch
        ])?;
    }
    connection
        .prepare_cached("DELETE FROM news WHERE seq <= ?1")?
        .execute([all.through])?;
    Ok(())
}

fn lead(page: &Page) -> Result<Option<String>, ControlError> {
    let lead = page.lead.as_ref().map(serde_json::to_string);
    lead.transpose().map_err(|_| ControlError::Row("pages"))
}

fn note_of(
    connection: &Connection,
    epoch: i64,
    number: u64,
    at: Timestamp,
    what: &str,
    text: &str,
) -> Result<(), ControlError> {
    let mut query = connection.prepare_cached("SELECT id FROM incidents WHERE number = ?1")?;
    let mut rows = query.query([sql(number)])?;
    match rows.next()? {
        Some(row) => note(
            connection,
            epoch,
            &row.get::<_, String>(0)?,
            at,
            what,
            "",
            text,
        ),
        // Let go meanwhile.
        None => Ok(()),
    }
}

/// Leaves a row of news inside the write of a change.
pub(super) fn leave_news(
    connection: &Connection,
    epoch: i64,
    number: u64,
    turn: Turn,
) -> Result<(), ControlError> {
    let change = match turn {
        Turn::Opened => OPENED,
        Turn::Cleared => CLEARED,
        Turn::Acknowledged(_) => ACKNOWLEDGED,
        Turn::Unacknowledged => UNACKNOWLEDGED,
    };
    connection
        .prepare_cached("INSERT INTO news (number, change, epoch) VALUES (?1, ?2, ?3)")?
        .execute(params![sql(number), change, epoch])?;
    Ok(())
}

/// What a value of `change` says.
pub(super) fn turn_of(change: i32, until: Option<i64>) -> Result<Turn, ControlError> {
    match change {
        OPENED => Ok(Turn::Opened),
        CLEARED => Ok(Turn::Cleared),
        ACKNOWLEDGED => Ok(Turn::Acknowledged(until.map(Timestamp::from_millis))),
        UNACKNOWLEDGED => Ok(Turn::Unacknowledged),
        _ => Err(ControlError::Row("news")),
    }
}

/// Numbers of incidents are 32 bits in the store.
pub(super) fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn millis(row: &Row<'_>, name: &str) -> Result<Timestamp, ControlError> {
    Ok(Timestamp::from_millis(row.get(name)?))
}

fn page(row: &Row<'_>) -> Result<(u64, Page), ControlError> {
    let wrong = || ControlError::Row("pages");
    let scope: String = row.get("scope")?;
    let clear: Option<i64> = row.get("clear_ms")?;
    let lead: Option<String> = row.get("lead")?;
    let lead = lead.map(|lead| serde_json::from_str(&lead)).transpose();
    let page = Page {
        id: row.get("id")?,
        scope: serde_json::from_str(&scope).map_err(|_| wrong())?,
        lead: lead.map_err(|_| wrong())?,
        severity: severity(row).ok_or_else(wrong)?,
        opened: millis(row, "opened_ms")?,
        grown: millis(row, "grown_ms")?,
        clear: clear.map(Timestamp::from_millis),
        tellings: row.get("tellings")?,
        told_hosts: row.get("told_hosts")?,
    };
    Ok((row.get::<_, u32>("number")?.into(), page))
}

fn severity(row: &Row<'_>) -> Option<Severity> {
    let severity = v1::Severity::try_from(row.get::<_, i32>("severity").ok()?).ok()?;
    Severity::of_wire(severity)
}

fn member(row: &Row<'_>) -> Result<(u64, Member), ControlError> {
    let wrong = || ControlError::Row("incidents");
    let host: String = row.get("host_id")?;
    let page: Option<u32> = row.get("page")?;
    let joined: Option<i64> = row.get("joined_ms")?;
    let by: Option<String> = row.get("ack_by")?;
    let until: Option<i64> = row.get("ack_until_ms")?;
    let member = Member {
        subject: Subject {
            id: row.get("id")?,
            host: host.parse().map_err(|_| wrong())?,
            rule: row.get("rule")?,
            subject: row.get("subject")?,
            severity: severity(row).ok_or_else(wrong)?,
            summary: row.get("summary")?,
            evidence: row.get("evidence")?,
            since: millis(row, "since_ms")?,
        },
        open: row.get::<_, i32>("state")? == OPEN,
        flap: Flap {
            count: row.get("flap")?,
            at: millis(row, "flap_ms")?,
            flapping: row.get("flapping")?,
        },
        ack: by.map(|_| until.map(Timestamp::from_millis)),
        page: page
            .zip(joined)
            .map(|(page, joined)| (page.into(), Timestamp::from_millis(joined))),
    };
    Ok((row.get::<_, u32>("number")?.into(), member))
}
