//! Which certificate speaks for a host now, and renewing it.
//!
//! ```text
//! issued      next_serial    waits; the one in use stays valid
//! first use   cert_serial    the one before it is refused from then on
//! ```
//!
//! So a host whose answer was lost, or that crashed before it could store it, goes on with the certificate it has,
//! and two holders of one identity show: one of them presents a certificate that the other has replaced.

use std::time::Duration;

use muster_proto::{id::HostId, time::Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Control, ControlError, db::audit, generations};
use crate::pki::{Issued, Member, PkiError};

/// How long after its end a certificate may still be renewed: hosts that were switched off for a month come back
/// by themselves (design/identity.md §5).
pub const RENEWAL_GRACE: Duration = muster_proto::tls::EXPIRED_GRACE;

/// Why a host's certificate is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateRefusal {
    /// Not enrolled here, or removed by an operator.
    #[error("this host is not enrolled, or an operator removed it")]
    Removed,
    /// The host has used a newer one since.
    #[error("this host has used a newer certificate since: who presents this one is a copy of it")]
    Superseded,
    /// Expired; a renewal may be up to [`RENEWAL_GRACE`] late.
    #[error("the certificate has expired: the host must enrol again with a new token")]
    Expired,
    /// The authority that issued it is not trusted any more.
    #[error(
        "this certificate is of an authority that is not trusted any more: the host must enrol again"
    )]
    Untrusted,
    /// The key has had a certificate before.
    #[error("a renewal needs a new key")]
    OldKey,
}

/// A host's certificate, as the handshake showed it.
#[derive(Debug, Clone)]
pub struct Presented {
    /// Whose it is.
    pub host_id: HostId,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// End of its life.
    pub not_after: Timestamp,
    /// What orders it among the host's certificates; `None` when its issuer is none that is trusted.
    pub origin: Option<Lineage>,
}

/// What orders the certificates of a host, whichever aggregator of the fleet issued them ([`crate::pki::Origin`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// Since when the host has its identity.
    pub joined: Timestamp,
    /// When the certificate was issued, whole seconds.
    pub issued: Timestamp,
    /// SHA-256 of its key.
    pub fingerprint: [u8; 32],
    /// Which generation of the authority issued it.
    pub generation: u32,
}

impl Control {
    /// Whether this certificate may speak for its host now. One that was issued and never used is put in the place
    /// of the one before it, and so is a later one that another aggregator of the fleet issued.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub async fn admit_host(
        &self,
        presented: Presented,
        now: Timestamp,
    ) -> Result<Result<(), CertificateRefusal>, ControlError> {
        if presented.not_after < now {
            return Ok(Err(CertificateRefusal::Expired));
        }
        let asked = presented.clone();
        let standing = self
            .read(move |connection| standing(connection, &asked))
            .await?;
        match standing {
            Ok(Standing::InUse) => Ok(Ok(())),
            Ok(Standing::Waiting | Standing::Elsewhere(_)) => {
                let epoch = self.epoch;
                self.write(move |connection| activate(connection, epoch, &presented, now))
                    .await
            }
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Issues the next certificate of a host that presents this one, in one transaction with its audit line.
    /// `issue` makes it. The one presented stays valid until the new one is used.
    ///
    /// # Errors
    /// When it cannot be decided or written; the host may ask again.
    pub async fn renew_host<F>(
        &self,
        presented: Presented,
        fingerprint: [u8; 32],
        issue: F,
        now: Timestamp,
    ) -> Result<Result<Issued, CertificateRefusal>, ControlError>
    where
        F: FnOnce(Member) -> Result<Issued, PkiError> + Send + 'static,
    {
        let epoch = self.epoch;
        self.write(move |connection| {
            let outcome = renew(connection, epoch, &presented, fingerprint, issue, now)?;
            let said = match &outcome {
                Ok(issued) => {
                    let late = if presented.not_after < now {
                        " (the old one had expired)"
                    } else {
                        ""
                    };
                    format!("serial {} until {}{late}", issued.serial, issued.not_after)
                }
                Err(refusal) => format!("refused: {refusal:?}, serial {}", presented.serial),
            };
            let host = presented.host_id.to_string();
            let actor = format!("agent/{host}");
            audit(connection, epoch, now, [&actor, "renew", &host, &said])?;
            Ok(outcome)
        })
        .await
    }
}

/// What a certificate is to its host.
enum Standing {
    InUse,
    Waiting,
    /// Another aggregator of the fleet issued it, later than the one in use.
    Elsewhere(Lineage),
}

fn standing(
    connection: &Connection,
    presented: &Presented,
) -> Result<Result<Standing, CertificateRefusal>, ControlError> {
    let known: Option<(String, Option<String>, i64)> = connection
        .prepare_cached(
            "SELECT cert_serial, next_serial, joined_ms FROM hosts WHERE host_id = ?1 AND removed_ms IS NULL",
        )?
        .query_row([presented.host_id.to_string()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    if generations::is_refused(connection, &presented.serial)? {
        return Ok(Err(CertificateRefusal::Untrusted));
    }
    let (in_use, joined) = match known {
        None => return Ok(Err(CertificateRefusal::Removed)),
        Some((in_use, ..)) if in_use == presented.serial => return Ok(Ok(Standing::InUse)),
        Some((_, Some(next), _)) if next == presented.serial => return Ok(Ok(Standing::Waiting)),
        Some((in_use, _, joined)) => (in_use, joined),
    };
    Ok(match later(connection, presented, &in_use, joined)? {
        Some(lineage) => Ok(Standing::Elsewhere(lineage)),
        None => Err(CertificateRefusal::Superseded),
    })
}

/// What a certificate that is not on record says of itself, if it is later than the one in use: another aggregator of
/// the fleet issued it, from a backup of this one or the other way round. What this one issued is on record, and was
/// replaced; so is every key that it has certified.
fn later(
    connection: &Connection,
    presented: &Presented,
    in_use: &str,
    joined_ms: i64,
) -> Result<Option<Lineage>, ControlError> {
    let Some(lineage) = &presented.origin else {
        return Ok(None);
    };
    let known = connection
        .prepare_cached("SELECT 1 FROM certificates WHERE serial = ?1 OR spki_hash = ?2")?
        .exists(params![presented.serial, lineage.fingerprint])?;
    if known || generations::is_denied(connection, lineage.generation)? {
        return Ok(None);
    }
    let issued_ms: Option<i64> = connection
        .prepare_cached("SELECT issued_ms FROM certificates WHERE serial = ?1")?
        .query_row([in_use], |row| row.get(0))
        .optional()?;
    let Some(issued_ms) = issued_ms else {
        return Ok(None);
    };
    // In certificates times are whole seconds.
    let order = |joined: i64, issued: i64| (joined, issued.div_euclid(1000));
    let is_later =
        order(lineage.joined.as_millis(), lineage.issued.as_millis()) > order(joined_ms, issued_ms);
    Ok(is_later.then(|| lineage.clone()))
}

/// For whom a certificate of this host is.
pub(super) fn member(connection: &Connection, host: HostId) -> Result<Member, ControlError> {
    let joined: i64 = connection
        .prepare_cached("SELECT joined_ms FROM hosts WHERE host_id = ?1")?
        .query_row([host.to_string()], |row| row.get(0))
        .optional()?
        .ok_or(ControlError::UnknownHost(host))?;
    Ok(Member {
        host,
        joined: Timestamp::from_millis(joined),
    })
}

/// Puts a waiting certificate in use; one that is in use stays so.
fn activate(
    connection: &Connection,
    epoch: i64,
    presented: &Presented,
    now: Timestamp,
) -> Result<Result<(), CertificateRefusal>, ControlError> {
    match standing(connection, presented)? {
        Err(refusal) => return Ok(Err(refusal)),
        Ok(Standing::InUse) => return Ok(Ok(())),
        Ok(Standing::Elsewhere(lineage)) => {
            adopt(connection, epoch, presented, &lineage, now)?;
            return Ok(Ok(()));
        }
        Ok(Standing::Waiting) => {}
    }
    let host = presented.host_id.to_string();
    connection.execute(
        "UPDATE hosts SET cert_serial = next_serial, cert_not_after_ms = next_not_after_ms,
                          next_serial = NULL, next_not_after_ms = NULL
         WHERE host_id = ?1 AND epoch = ?2",
        params![host, epoch],
    )?;
    let actor = format!("agent/{host}");
    let said = format!("serial {}, the one before is refused now", presented.serial);
    audit(
        connection,
        epoch,
        now,
        [&actor, "use renewed certificate", &host, &said],
    )?;
    Ok(Ok(()))
}

/// Puts a certificate of another aggregator of the fleet in use, and on record.
fn adopt(
    connection: &Connection,
    epoch: i64,
    presented: &Presented,
    lineage: &Lineage,
    now: Timestamp,
) -> Result<(), ControlError> {
    let host = presented.host_id.to_string();
    let actor = format!("agent/{host}");
    connection.execute(
        "UPDATE hosts SET cert_serial = ?2, cert_not_after_ms = ?3, joined_ms = ?4,
                          next_serial = NULL, next_not_after_ms = NULL
         WHERE host_id = ?1 AND epoch = ?5",
        params![
            host,
            presented.serial,
            presented.not_after.as_millis(),
            lineage.joined.as_millis(),
            epoch
        ],
    )?;
    let issued = Issued {
        chain: Vec::new(),
        serial: presented.serial.clone(),
        not_after: presented.not_after,
        generation: lineage.generation,
    };
    note(
        connection,
        epoch,
        &actor,
        lineage.fingerprint,
        &issued,
        lineage.issued,
    )?;
    let said = format!(
        "serial {}, issued {} by another aggregator of this authority; the one before is refused now",
        presented.serial, lineage.issued
    );
    audit(
        connection,
        epoch,
        now,
        [&actor, "use certificate issued elsewhere", &host, &said],
    )?;
    tracing::warn!(%host, serial = presented.serial, issued = %lineage.issued,
        "a host shows a later certificate that another aggregator of this authority issued; it is in use from now on");
    Ok(())
}

fn renew(
    connection: &Connection,
    epoch: i64,
    presented: &Presented,
    fingerprint: [u8; 32],
    issue: impl FnOnce(Member) -> Result<Issued, PkiError>,
    now: Timestamp,
) -> Result<Result<Issued, CertificateRefusal>, ControlError> {
    if presented.not_after.plus(RENEWAL_GRACE) < now {
        return Ok(Err(CertificateRefusal::Expired));
    }
    if let Err(refusal) = activate(connection, epoch, presented, now)? {
        return Ok(Err(refusal));
    }
    let host_id = presented.host_id;
    let known_key = connection
        .prepare_cached("SELECT 1 FROM certificates WHERE spki_hash = ?1")?
        .exists([fingerprint])?;
    if known_key {
        return Ok(Err(CertificateRefusal::OldKey));
    }
    let member = member(connection, host_id)?;
    let issued = issue(member).map_err(|error| ControlError::Issue(crate::chain(&error)))?;
    connection.execute(
        "UPDATE hosts SET next_serial = ?2, next_not_after_ms = ?3
         WHERE host_id = ?1 AND epoch = ?4",
        params![
            host_id.to_string(),
            issued.serial,
            issued.not_after.as_millis(),
            epoch
        ],
    )?;
    note(
        connection,
        epoch,
        &format!("agent/{host_id}"),
        fingerprint,
        &issued,
        now,
    )?;
    Ok(Ok(issued))
}

/// Whether the certificate in use of a host is one of this key.
pub(super) fn is_key_of(
    connection: &Connection,
    host: HostId,
    fingerprint: [u8; 32],
) -> Result<bool, ControlError> {
    Ok(connection
        .prepare_cached(
            "SELECT 1 FROM hosts JOIN certificates ON certificates.serial = hosts.cert_serial
             WHERE host_id = ?1 AND spki_hash = ?2",
        )?
        .exists(params![host.to_string(), fingerprint])?)
}

/// Notes a certificate that was issued to a holder.
pub(super) fn note(
    connection: &Connection,
    epoch: i64,
    holder: &str,
    fingerprint: [u8; 32],
    issued: &Issued,
    now: Timestamp,
) -> Result<(), ControlError> {
    connection.execute(
        "INSERT INTO certificates (serial, holder, spki_hash, issued_ms, not_after_ms, epoch, generation)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            issued.serial,
            holder,
            fingerprint,
            now.as_millis(),
            issued.not_after.as_millis(),
            epoch,
            issued.generation
        ],
    )?;
    Ok(())
}
