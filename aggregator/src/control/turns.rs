//! The record of what whoever tells people took in, for telling it again.

use std::{collections::BTreeMap, time::Duration};

use muster_proto::{time::Timestamp, v1};
use rusqlite::{Connection, params};

use super::{Control, ControlError, pages::turn_of};
use crate::{
    detect::Severity,
    incident::{
        pages::Subject,
        replay::{Said, Turned},
    },
};

/// How long the record is kept: three months, as messages are.
const KEPT_FOR: Duration = Duration::from_secs(90 * 86_400);

/// What is on record of incidents and of what people were told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TurnRecord {
    /// In their order.
    pub turns: Vec<Turned>,
    /// The incidents that there are, by number.
    pub subjects: BTreeMap<u64, Subject>,
    /// What people were told, in its order.
    pub told: Vec<Said>,
}

impl Control {
    /// The whole record, read beside all others: three months of it hold nobody up.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn turn_record(&self) -> Result<TurnRecord, ControlError> {
        self.read_beside(|connection| {
            Ok(TurnRecord {
                turns: turns(connection)?,
                subjects: subjects(connection)?,
                told: told(connection)?,
            })
        })
        .await
    }
}

fn turns(connection: &Connection) -> Result<Vec<Turned>, ControlError> {
    let mut query =
        connection.prepare("SELECT at_ms, number, change, until_ms FROM turns ORDER BY seq")?;
    let mut rows = query.query([])?;
    let mut turns = Vec::new();
    while let Some(row) = rows.next()? {
        let change: i32 = row.get(2)?;
        let until: Option<i64> = row.get(3)?;
        turns.push(Turned {
            at: Timestamp::from_millis(row.get(0)?),
            turn: match change {
                0 => None,
                change => Some((row.get::<_, u32>(1)?.into(), turn_of(change, until)?)),
            },
        });
    }
    Ok(turns)
}

fn subjects(connection: &Connection) -> Result<BTreeMap<u64, Subject>, ControlError> {
    let wrong = || ControlError::Row("incidents");
    let mut query = connection.prepare(
        "SELECT number, id, host_id, rule, subject, severity, summary, since_ms FROM incidents",
    )?;
    let mut rows = query.query([])?;
    let mut subjects = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let host: String = row.get(2)?;
        let severity = v1::Severity::try_from(row.get::<_, i32>(5)?).map_err(|_| wrong())?;
        let subject = Subject {
            id: row.get(1)?,
            host: host.parse().map_err(|_| wrong())?,
            rule: row.get(3)?,
            subject: row.get(4)?,
            severity: Severity::of_wire(severity).ok_or_else(wrong)?,
            summary: row.get(6)?,
            evidence: String::new(),
            since: Timestamp::from_millis(row.get(7)?),
        };
        subjects.insert(row.get::<_, u32>(0)?.into(), subject);
    }
    Ok(subjects)
}

fn told(connection: &Connection) -> Result<Vec<Said>, ControlError> {
    let mut query = connection.prepare(
        "SELECT n.at_ms, i.number, n.text FROM incident_notes n JOIN incidents i ON i.id = n.incident_id
         WHERE n.what = 'told' AND n.at_ms >= (SELECT coalesce(min(at_ms), 0) FROM turns) ORDER BY n.seq",
    )?;
    let mut rows = query.query([])?;
    let mut told = Vec::new();
    while let Some(row) = rows.next()? {
        let text: String = row.get(2)?;
        told.push(Said {
            at: Timestamp::from_millis(row.get(0)?),
            page: row.get::<_, u32>(1)?.into(),
            // "firing to oncall": the word, and to whom.
            event: text.split(' ').next().unwrap_or_default().to_owned(),
        });
    }
    Ok(told)
}

/// Records the news up to `through` as taken in at `at`, or, if there are none, that something followed from time.
pub(super) fn record(
    connection: &Connection,
    epoch: i64,
    through: i64,
    at: Timestamp,
) -> Result<(), ControlError> {
    let taken = connection
        .prepare_cached(
            "INSERT INTO turns (at_ms, number, change, until_ms, epoch)
             SELECT ?2, n.number, n.change, i.ack_until_ms, ?3 FROM news n JOIN incidents i ON i.number = n.number
             WHERE n.seq <= ?1 ORDER BY n.seq",
        )?
        .execute(params![through, at.as_millis(), epoch])?;
    if taken == 0 {
        connection
            .prepare_cached(
                "INSERT INTO turns (at_ms, number, change, epoch) VALUES (?1, 0, 0, ?2)",
            )?
            .execute(params![at.as_millis(), epoch])?;
    }
    connection
        .prepare_cached("DELETE FROM turns WHERE at_ms < ?1")?
        .execute([at.minus(KEPT_FOR).as_millis()])?;
    Ok(())
}
