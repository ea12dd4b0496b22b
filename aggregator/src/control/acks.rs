//! Acknowledging: an operator says that they see to an incident. It holds until the incident clears, or until a time
//! they name; a new failure after that is a new incident, and nobody's.

use muster_proto::{time::Timestamp, v1};
use rusqlite::{Connection, params};

use super::{
    Control, ControlError,
    db::audit,
    pages::{leave_news, sql},
};
use crate::incident::pages::Turn;

const OPEN: i32 = v1::IncidentState::Open as i32;

/// Longest text of an operator that is kept, in bytes.
pub const MAX_TEXT_BYTES: usize = 1000;

/// Who sees to an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The operator.
    pub by: String,
    /// Since when.
    pub at: Timestamp,
    /// When it ends, should the incident still be open; `None`: with the incident.
    pub until: Option<Timestamp>,
    /// For the others on call; may be empty.
    pub text: String,
}

impl Ack {
    /// Whether it holds.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// What became of a request that changes who sees to an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AckOutcome {
    /// Done, for these incidents.
    Done(Vec<u64>),
    /// No incident has the number.
    Unknown,
    /// It has cleared already, so there is nothing to see to.
    Resolved,
    /// Nobody had acknowledged it.
    NotAcknowledged,
}

impl Control {
    /// Acknowledges an open incident, and writes that to its timeline and to the audit log. Doing it again replaces the
    /// text and the end.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn acknowledge(&self, number: u64, ack: Ack) -> Result<AckOutcome, ControlError> {
        let epoch = self.epoch;
        self.write(move |connection| {
            let open = match found(connection, number)? {
                Ok(open) => open,
                Err(outcome) => return Ok(outcome),
            };
            for (id, _) in &open {
                connection
                    .prepare_cached(
                        "UPDATE incidents SET ack_by = ?2, ack_ms = ?3, ack_until_ms = ?4, ack_text = ?5
                         WHERE id = ?1",
                    )?
                    .execute(params![
                        id,
                        ack.by,
                        ack.at.as_millis(),
                        ack.until.map(Timestamp::as_millis),
                        ack.text
                    ])?;
                note(connection, epoch, id, ack.at, "acknowledged", &ack.by, &ack.text)?;
            }
            for (_, number) in &open {
                leave_news(connection, epoch, *number, Turn::Acknowledged(ack.until))?;
            }
            connection
                .prepare_cached(
                    "UPDATE pages SET acted_ms = coalesce(acted_ms, ?2)
                     WHERE closed_ms IS NULL AND number = (SELECT page FROM incidents WHERE number = ?1)",
                )?
                .execute(params![sql(number), ack.at.as_millis()])?;
            let said = [&ack.by, "acknowledge", &format!("I-{number}"), &ack.text];
            audit(connection, epoch, ack.at, said)?;
            Ok(AckOutcome::Done(numbers(open)))
        })
        .await
    }

    /// Takes an acknowledgement back.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn unacknowledge(
        &self,
        number: u64,
        by: &str,
        at: Timestamp,
    ) -> Result<AckOutcome, ControlError> {
        let (epoch, by) = (self.epoch, by.to_owned());
        self.write(move |connection| {
            let mut open = match found(connection, number)? {
                Ok(open) => open,
                Err(outcome) => return Ok(outcome),
            };
            let mut clear = connection.prepare_cached(
                "UPDATE incidents SET ack_by = NULL, ack_ms = NULL, ack_until_ms = NULL, ack_text = NULL
                 WHERE id = ?1 AND ack_by IS NOT NULL",
            )?;
            let mut cleared = Vec::new();
            for (id, number) in open.drain(..) {
                if clear.execute([&id])? > 0 {
                    leave_news(connection, epoch, number, Turn::Unacknowledged)?;
                    note(connection, epoch, &id, at, "unacknowledged", &by, "")?;
                    cleared.push((id, number));
                }
            }
            if cleared.is_empty() {
                return Ok(AckOutcome::NotAcknowledged);
            }
            let said = [&by, "unacknowledge", &format!("I-{number}"), "done"];
            audit(connection, epoch, at, said)?;
            Ok(AckOutcome::Done(numbers(cleared)))
        })
        .await
    }
}

fn numbers(rows: Vec<(String, u64)>) -> Vec<u64> {
    rows.into_iter().map(|(_, number)| number).collect()
}

type Open = Vec<(String, u64)>;

/// The open incidents that are meant by a number: it, and those people were told of with it.
fn found(connection: &Connection, number: u64) -> Result<Result<Open, AckOutcome>, ControlError> {
    let wanted = sql(number);
    let known: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM incidents WHERE number = ?1)")?
        .query_row([wanted], |row| row.get(0))?;
    if !known {
        return Ok(Err(AckOutcome::Unknown));
    }
    let mut query = connection.prepare_cached(&format!(
        "SELECT id, number FROM incidents
         WHERE state = {OPEN} AND (number = ?1 OR page = (SELECT i.page FROM incidents i
             JOIN pages p ON p.number = i.page AND p.closed_ms IS NULL WHERE i.number = ?1))
         ORDER BY number"
    ))?;
    let rows = query.query_map([wanted], |row| {
        Ok((row.get(0)?, row.get::<_, u32>(1)?.into()))
    })?;
    let open: Open = rows.collect::<Result<_, _>>()?;
    if open.is_empty() {
        return Ok(Err(AckOutcome::Resolved));
    }
    Ok(Ok(open))
}

/// Writes a line of an incident's timeline inside a write.
pub(super) fn note(
    connection: &Connection,
    epoch: i64,
    incident: &str,
    at: Timestamp,
    what: &str,
    actor: &str,
    text: &str,
) -> Result<(), ControlError> {
    connection
        .prepare_cached(
            "INSERT INTO incident_notes (incident_id, at_ms, what, actor, text, epoch)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![incident, at.as_millis(), what, actor, text, epoch])?;
    Ok(())
}
