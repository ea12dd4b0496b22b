//! Who holds what of the authority's generations: which trust bundle a host has, and whose certificates are still of the
//! generation before.

use muster_proto::{id::HostId, time::Timestamp};
use rusqlite::{Connection, params};

use super::{Control, ControlError, RENEWAL_GRACE, db::audit, revoke};

/// A host and how far it is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Which host.
    pub host_id: HostId,
    /// For people.
    pub name: String,
    /// Version of the trust bundle it is known to hold; 0 when it never said.
    pub bundle_version: u64,
    /// Whether its certificate is of an older generation than asked, and can still be used or renewed.
    pub old_certificate: bool,
}

impl Control {
    /// Every host that is not removed, by name, against the generation that signs.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn bundle_holders(
        &self,
        generation: u32,
        now: Timestamp,
    ) -> Result<Vec<Holder>, ControlError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT host_id, name, coalesce(bundle_version, 0),
                        coalesce(generation, 1) < ?1 AND cert_not_after_ms > ?2
                 FROM hosts LEFT JOIN certificates ON serial = cert_serial
                 WHERE removed_ms IS NULL ORDER BY name",
            )?;
            let oldest = now.minus(RENEWAL_GRACE).as_millis();
            let mut rows = query.query(params![generation, oldest])?;
            let mut holders = Vec::new();
            while let Some(row) = rows.next()? {
                let id: String = row.get(0)?;
                holders.push(Holder {
                    host_id: id.parse().map_err(|_| ControlError::Row("hosts"))?,
                    name: row.get(1)?,
                    bundle_version: row.get::<_, i64>(2)?.cast_unsigned(),
                    old_certificate: row.get(3)?,
                });
            }
            Ok(holders)
        })
        .await
    }

    /// How many certificates of a generation could still be used: of hosts those in use or waiting, of operators those
    /// that are not over or withdrawn.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn certificates_of(
        &self,
        generation: u32,
        now: Timestamp,
    ) -> Result<u32, ControlError> {
        self.read(move |connection| {
            Ok(connection.query_row(
                "SELECT count(*) FROM certificates WHERE generation = ?1 AND not_after_ms > ?2
                   AND (serial IN (SELECT cert_serial FROM hosts WHERE removed_ms IS NULL)
                     OR serial IN (SELECT next_serial FROM hosts WHERE removed_ms IS NULL)
                     OR (holder LIKE 'operator/%'
                         AND 'serial/' || serial NOT IN (SELECT subject FROM denied)))",
                params![generation, now.as_millis()],
                |row| row.get(0),
            )?)
        })
        .await
    }

    /// A host was given a trust bundle and went on after that, so it holds it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn bundle_taken(&self, host: HostId, version: u64) -> Result<(), ControlError> {
        let epoch = self.epoch;
        self.write(move |connection| {
            connection.execute(
                "UPDATE hosts SET bundle_version = ?2 WHERE host_id = ?1 AND epoch = ?3",
                params![host.to_string(), version.cast_signed(), epoch],
            )?;
            Ok(())
        })
        .await
    }

    /// Refuses every certificate of these generations from now on, wherever it is shown, and writes down the step that
    /// makes it so.
    ///
    /// # Errors
    /// When it cannot be written; nothing is refused then.
    pub async fn rotated(
        &self,
        step: &'static str,
        refused: Vec<u32>,
        outcome: String,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), ControlError> {
        let (actor, epoch) = (actor.to_owned(), self.epoch);
        self.write(move |connection| {
            for generation in refused {
                revoke::deny(connection, epoch, &subject(generation), now)?;
            }
            audit(
                connection,
                epoch,
                now,
                [&actor, "rotate authority", step, &outcome],
            )
        })
        .await
    }
}

fn subject(generation: u32) -> String {
    format!("generation/{generation}")
}

/// Whether certificates of this generation are refused.
pub(super) fn is_denied(connection: &Connection, generation: u32) -> Result<bool, ControlError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM denied WHERE subject = ?1")?
        .exists([subject(generation)])?)
}

/// Whether the certificate with this serial is of a generation that is not trusted any more.
pub(super) fn is_refused(connection: &Connection, serial: &str) -> Result<bool, ControlError> {
    Ok(connection
        .prepare_cached(
            "SELECT 1 FROM certificates JOIN denied ON subject = 'generation/' || generation
             WHERE serial = ?1",
        )?
        .exists([serial])?)
}
