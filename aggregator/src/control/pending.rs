//! Hosts that showed a good token and wait for a person to approve them.
//!
//! ```text
//! asked ─▸ waits ─▸ approved ─▸ joined
//!              └──▸ denied
//! ```
//!
//! A waiting host takes one of its token's uses, outlives the token's own end for a week, and ends with the token's
//! withdrawal. The host asks again every few seconds with the same key, by which it is known; nothing is sent to it.

use std::time::Duration;

use muster_proto::{id::HostId, time::Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Control, ControlError, EnrolRequest, db::audit, hosts::json};

/// How long a host may wait.
pub const WAITING_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the door stays open for a host that is to be told that it was denied.
const TOLD_WITHIN: Duration = Duration::from_secs(120);
/// Hosts that wait at a time: a list for people.
const MAX_WAITING: u32 = 10_000;

/// A host that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// By which it is approved.
    pub number: u32,
    /// Which token it showed.
    pub token_id: String,
    /// SHA-256 of its key's SubjectPublicKeyInfo: the host shows the begin of it.
    pub fingerprint: Vec<u8>,
    /// What it calls itself.
    pub hostname: String,
    /// Distribution as it says.
    pub os: String,
    /// Where it calls from.
    pub address: String,
    /// When it asked first.
    pub asked: Timestamp,
}

/// What was decided about a host that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parked {
    /// It has not asked before.
    Unknown,
    /// Nothing yet.
    Waits(u32),
    Approved,
    /// It was approved and has joined: what its token says counts again.
    Joined,
    Denied,
}

impl Control {
    /// Hosts that wait, oldest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn waiting_hosts(&self, now: Timestamp) -> Result<Vec<Waiting>, ControlError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT number, token_id, spki_hash, hostname, facts, address, asked_ms FROM pending
                 WHERE decision IS NULL AND asked_ms > ?1 ORDER BY number",
            )?;
            let rows = query.query_map([now.minus(WAITING_LIFE).as_millis()], |row| {
                let facts: String = row.get(4)?;
                let facts: super::Facts = serde_json::from_str(&facts).unwrap_or_default();
                Ok(Waiting {
                    number: row.get(0)?,
                    token_id: row.get(1)?,
                    fingerprint: row.get(2)?,
                    hostname: row.get(3)?,
                    os: facts.os_pretty,
                    address: row.get(5)?,
                    asked: Timestamp::from_millis(row.get(6)?),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Approves or denies a host that waits; its host name, or `None` when none waits under this number.
    ///
    /// # Errors
    /// When it cannot be written; nothing was decided then.
    pub async fn decide_waiting(
        &self,
        number: u32,
        approve: bool,
        actor: &str,
        now: Timestamp,
    ) -> Result<Option<String>, ControlError> {
        let (actor, epoch) = (actor.to_owned(), self.epoch);
        self.write(move |connection| {
            let hostname: Option<String> = connection
                .query_row(
                    "SELECT hostname FROM pending
                     WHERE number = ?1 AND decision IS NULL AND asked_ms > ?2",
                    params![number, now.minus(WAITING_LIFE).as_millis()],
                    |row| row.get(0),
                )
                .optional()?;
            let (word, action) = if approve {
                ("approved", "approve host")
            } else {
                ("denied", "deny host")
            };
            let outcome = match &hostname {
                Some(hostname) => {
                    connection.execute(
                        "UPDATE pending SET decision = ?2, decided_by = ?3, decided_ms = ?4
                         WHERE number = ?1 AND epoch = ?5",
                        params![number, word, actor, now.as_millis(), epoch],
                    )?;
                    format!("it calls itself {hostname}")
                }
                None => "nobody waits under this number".to_owned(),
            };
            let subject = format!("waiting/{number}");
            audit(connection, epoch, now, [&actor, action, &subject, &outcome])?;
            Ok(hostname)
        })
        .await
    }
}

/// How a host that asks again stands.
pub(super) fn standing(
    connection: &Connection,
    request: &EnrolRequest,
    now: Timestamp,
) -> Result<Parked, ControlError> {
    let row: Option<(u32, Option<String>)> = connection
        .prepare_cached(
            "SELECT number, decision FROM pending
             WHERE token_id = ?1 AND spki_hash = ?2 AND asked_ms > ?3",
        )?
        .query_row(
            params![
                request.token_id,
                request.fingerprint,
                now.minus(WAITING_LIFE).as_millis()
            ],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    Ok(match row {
        None => Parked::Unknown,
        Some((number, None)) => Parked::Waits(number),
        Some((_, Some(word))) if word == "denied" => Parked::Denied,
        Some((_, Some(word))) if word == "joined" => Parked::Joined,
        Some(_) => Parked::Approved,
    })
}

/// Lets a host wait: its number, `None` when too many wait already.
pub(super) fn park(
    connection: &Connection,
    epoch: i64,
    request: &EnrolRequest,
    now: Timestamp,
) -> Result<Option<u32>, ControlError> {
    let since = now.minus(WAITING_LIFE).as_millis();
    let waiting: u32 = connection
        .prepare_cached("SELECT count(*) FROM pending WHERE decision IS NULL AND asked_ms > ?1")?
        .query_row([since], |row| row.get(0))?;
    if waiting >= MAX_WAITING {
        return Ok(None);
    }
    connection.execute(
        "DELETE FROM pending WHERE token_id = ?1 AND spki_hash = ?2",
        params![request.token_id, request.fingerprint],
    )?;
    connection.execute(
        "INSERT INTO pending (token_id, spki_hash, hostname, facts, address, asked_ms, epoch)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            request.token_id,
            request.fingerprint,
            request.facts.hostname,
            json(&request.facts),
            request.from,
            now.as_millis(),
            epoch
        ],
    )?;
    Ok(u32::try_from(connection.last_insert_rowid()).ok())
}

/// A host that was approved has joined.
pub(super) fn joined(
    connection: &Connection,
    epoch: i64,
    request: &EnrolRequest,
) -> Result<(), ControlError> {
    connection.execute(
        "UPDATE pending SET decision = 'joined'
         WHERE token_id = ?1 AND spki_hash = ?2 AND epoch = ?3",
        params![request.token_id, request.fingerprint, epoch],
    )?;
    Ok(())
}

/// Whether the enrolment door must be open for somebody who waits, or is to be told of a denial.
pub(super) fn door_needed(connection: &Connection, now: Timestamp) -> Result<bool, ControlError> {
    Ok(connection
        .prepare_cached(
            "SELECT 1 FROM pending JOIN tokens ON tokens.id = pending.token_id
             WHERE tokens.revoked_ms IS NULL AND asked_ms > ?1
               AND (decision IS NULL OR decision = 'approved'
                    OR (decision = 'denied' AND decided_ms > ?2)) LIMIT 1",
        )?
        .exists(params![
            now.minus(WAITING_LIFE).as_millis(),
            now.minus(TOLD_WITHIN).as_millis()
        ])?)
}

/// A host as a person names it for `--replaces`: its id or its name; of those that were removed, the id only.
pub(super) fn named_host(
    connection: &Connection,
    name: &str,
) -> Result<Option<HostId>, ControlError> {
    let id: Option<String> = connection
        .query_row(
            "SELECT host_id FROM hosts WHERE host_id = ?1 OR (name = ?1 AND removed_ms IS NULL)",
            [name],
            |row| row.get(0),
        )
        .optional()?;
    id.map(|id| id.parse().map_err(|_| ControlError::Row("hosts")))
        .transpose()
}
