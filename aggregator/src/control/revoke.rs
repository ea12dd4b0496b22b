//! Withdrawing identities: hosts that are evicted or banned, operators that are revoked.
//!
//! Each is one transaction with its audit line, on disk before it is confirmed. A removed host gives its name free,
//! so that it can come back under it; what was recorded of it stays under its id. What is open on it ends in the same
//! transaction: nobody is to be reminded of a host that is not there.

use muster_proto::{id::HostId, spiffe::hex, time::Timestamp};
use rusqlite::{Connection, params};

use super::{Control, ControlError, db::audit, hosts, incidents};

/// How thoroughly a host is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Its identity is refused; a token lets it in again as a new host.
    Evict,
    /// The machine is refused as well.
    Ban,
}

/// A host that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// What it was called.
    pub name: String,
    /// Whether the host had told a machine id, by which a ban can know it.
    pub machine_known: bool,
}

impl Control {
    /// Refuses a host from now on. `None` when nobody has this id. Doing it twice changes nothing more.
    ///
    /// # Errors
    /// When it cannot be written; nothing has changed then.
    pub async fn remove_host(
        &self,
        host_id: HostId,
        removal: Removal,
        actor: &str,
        now: Timestamp,
    ) -> Result<Option<Removed>, ControlError> {
        let (actor, epoch) = (actor.to_owned(), self.epoch);
        self.write(move |connection| {
            let Some(host) = hosts::find(connection, host_id)? else {
                return Ok(None);
            };
            let id = host_id.to_string();
            if host.removed.is_none() {
                let kept_as = format!("{}{}{id}", host.name, hosts::REMOVED);
                connection.execute(
                    "UPDATE hosts SET removed_ms = ?2, name = ?3 WHERE host_id = ?1 AND epoch = ?4",
                    params![id, now.as_millis(), kept_as, epoch],
                )?;
            }
            let machine = &host.facts.machine_id_hash;
            if removal == Removal::Ban && !machine.is_empty() {
                deny(connection, epoch, &machine_subject(machine), now)?;
            }
            let action = match removal {
                Removal::Evict => "evict host",
                Removal::Ban => "ban host",
            };
            let ended = match removal {
                Removal::Evict => format!("host evicted by {actor}"),
                Removal::Ban => format!("host banned by {actor}"),
            };
            let incidents = incidents::resolve_all(connection, epoch, host_id, &ended, now)?;
            let said = match incidents {
                0 => format!("it was called {}", host.name),
                _ => format!(
                    "it was called {}; {incidents} open incidents ended with it",
                    host.name
                ),
            };
            audit(connection, epoch, now, [&actor, action, &id, &said])?;
            Ok(Some(Removed {
                name: host.name,
                machine_known: !machine.is_empty(),
            }))
        })
        .await
    }

    /// Refuses every certificate an operator has, and takes the role; how many would still have been valid. A
    /// certificate issued later at the admin socket is good.
    ///
    /// # Errors
    /// When it cannot be written; nothing has changed then.
    pub async fn revoke_operator(
        &self,
        name: &str,
        actor: &str,
        now: Timestamp,
    ) -> Result<u32, ControlError> {
        let (name, actor, epoch) = (name.to_owned(), actor.to_owned(), self.epoch);
        self.write(move |connection| {
            let holder = format!("operator/{name}");
            let serials: Vec<String> = connection
                .prepare(
                    "SELECT serial FROM certificates WHERE holder = ?1 AND not_after_ms >= ?2",
                )?
                .query_map(params![holder, now.as_millis()], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for serial in &serials {
                deny_serial(connection, epoch, serial, now)?;
            }
            connection.execute(
                "DELETE FROM operators WHERE name = ?1 AND epoch = ?2",
                params![name, epoch],
            )?;
            let said = format!("{} certificates", serials.len());
            audit(
                connection,
                epoch,
                now,
                [&actor, "revoke operator", &name, &said],
            )?;
            Ok(u32::try_from(serials.len()).unwrap_or(u32::MAX))
        })
        .await
    }
}

pub(super) fn deny(
    connection: &Connection,
    epoch: i64,
    subject: &str,
    now: Timestamp,
) -> Result<(), ControlError> {
    connection.execute(
        "INSERT INTO denied (subject, at_ms, epoch) VALUES (?1, ?2, ?3)
         ON CONFLICT (subject) DO NOTHING",
        params![subject, now.as_millis(), epoch],
    )?;
    Ok(())
}

/// Withdraws an operator's certificate.
pub(super) fn deny_serial(
    connection: &Connection,
    epoch: i64,
    serial: &str,
    now: Timestamp,
) -> Result<(), ControlError> {
    deny(connection, epoch, &format!("serial/{serial}"), now)
}

fn machine_subject(hash: &[u8]) -> String {
    format!("machine/{}", hex(hash))
}

/// Whether a machine may not enrol. One that tells no machine id cannot be known.
pub(super) fn machine_denied(connection: &Connection, hash: &[u8]) -> Result<bool, ControlError> {
    Ok(!hash.is_empty() && denied(connection, &machine_subject(hash))?)
}

/// Whether an operator's certificate was withdrawn.
pub(super) fn serial_denied(connection: &Connection, serial: &str) -> Result<bool, ControlError> {
    denied(connection, &format!("serial/{serial}"))
}

fn denied(connection: &Connection, subject: &str) -> Result<bool, ControlError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM denied WHERE subject = ?1")?
        .exists([subject])?)
}
