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
use crate::pki::{Issued, PkiError};

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
}

impl Control {
    /// Whether this certificate may speak for its host now. One that was issued and never used is put in the place
    /// of the one before it.
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
            Ok(Standing::Waiting) => {
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
        F: FnOnce(HostId) -> Result<Issued, PkiError> + Send + 'static,
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
}

fn standing(
    connection: &Connection,
    presented: &Presented,
) -> Result<Result<Standing, CertificateRefusal>, ControlError> {
    let serials: Option<(String, Option<String>)> = connection
        .prepare_cached(
            "SELECT cert_serial, next_serial FROM hosts WHERE host_id = ?1 AND removed_ms IS NULL",
        )?
        .query_row([presented.host_id.to_string()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    if generations::is_refused(connection, &presented.serial)? {
        return Ok(Err(CertificateRefusal::Untrusted));
    }
    Ok(match serials {
        None => Err(CertificateRefusal::Removed),
        Some((in_use, _)) if in_use == presented.serial => Ok(Standing::InUse),
        Some((_, Some(next))) if next == presented.serial => Ok(Standing::Waiting),
        Some(_) => Err(CertificateRefusal::Superseded),
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

fn renew(
    connection: &Connection,
    epoch: i64,
    presented: &Presented,
    fingerprint: [u8; 32],
    issue: impl FnOnce(HostId) -> Result<Issued, PkiError>,
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
    let issued = issue(host_id).map_err(|error| ControlError::Issue(crate::chain(&error)))?;
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
