//! Operators: what each may do. The certificate says only who it is, so a demotion acts at once.

use std::{fmt, str::FromStr, time::Duration};

use muster_proto::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Control, ControlError, certificates::note, db::audit, generations, revoke};
use crate::pki::{Issued, PkiError};

/// How long an operator can go on renewing after signing in at the admin socket. Whoever steals a key can go on no
/// longer than that either, even if nobody notices.
pub const LOGIN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a certificate that was renewed is still taken after the new one was first used: programs that were started
/// with it finish.
const HANDOVER: Duration = Duration::from_secs(5 * 60);

/// What an operator may do; each may also do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperatorRole {
    /// Look.
    Viewer,
    /// Acknowledge and silence.
    Operator,
    /// Tokens, hosts, operators.
    Admin,
}

impl OperatorRole {
    fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a role is viewer, operator or admin")]
pub struct RoleError;

impl FromStr for OperatorRole {
    type Err = RoleError;

    fn from_str(word: &str) -> Result<Self, RoleError> {
        [Self::Viewer, Self::Operator, Self::Admin]
            .into_iter()
            .find(|role| role.word() == word)
            .ok_or(RoleError)
    }
}

impl Control {
    /// What an operator may do; none for a name that was never given a certificate.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn operator_role(&self, name: &str) -> Result<Option<OperatorRole>, ControlError> {
        let name = name.to_owned();
        self.read(move |connection| {
            let word: Option<String> = connection
                .prepare_cached("SELECT role FROM operators WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
                .optional()?;
            word.map(|word| word.parse().map_err(|_| ControlError::Row("operators")))
                .transpose()
        })
        .await
    }

    /// What the holder of a certificate may do now: the role of its name, unless the certificate was withdrawn or
    /// another has taken its place. The first use of a renewed certificate is noted.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn operator_admitted(
        &self,
        name: &str,
        serial: Option<&str>,
        now: Timestamp,
    ) -> Result<OperatorStanding, ControlError> {
        let mut standing = OperatorStanding {
            role: self.operator_role(name).await?,
            issued: None,
            refusal: None,
        };
        let Some(serial) = serial.map(str::to_owned) else {
            return Ok(standing);
        };
        let asked = serial.clone();
        let (refusal, known) = self
            .read(move |connection| {
                let refusal = refusal(connection, &asked, now)?;
                Ok((refusal, certificate(connection, &asked)?))
            })
            .await?;
        standing.refusal = refusal;
        if refusal == Some(OperatorRefusal::Revoked) {
            standing.role = None;
        }
        if let Some(known) = known {
            standing.issued = Some(known.issued);
            if known.renewed && known.used.is_none() && refusal.is_none() {
                let epoch = self.epoch;
                let noted = self.write(move |connection| {
                    connection.execute(
                        "UPDATE certificates SET used_ms = ?2
                         WHERE serial = ?1 AND used_ms IS NULL AND epoch = ?3",
                        params![serial, now.as_millis(), epoch],
                    )?;
                    Ok(())
                });
                if let Err(error) = noted.await {
                    // Who looks while the disk is full must not be turned away; the next use is noted.
                    tracing::warn!(
                        operator = name,
                        error = crate::chain(&error),
                        "the first use of a renewed certificate was not noted"
                    );
                }
            }
        }
        Ok(standing)
    }

    /// Issues the next certificate of an operator who shows this one, in one transaction with its audit line. `issue`
    /// makes it. An earlier answer that was never used is withdrawn by it.
    ///
    /// # Errors
    /// When it cannot be decided or written; the operator may ask again.
    pub async fn renew_operator<F>(
        &self,
        name: &str,
        serial: &str,
        fingerprint: [u8; 32],
        issue: F,
        now: Timestamp,
    ) -> Result<Result<RenewedOperator, OperatorRefusal>, ControlError>
    where
        F: FnOnce() -> Result<Issued, PkiError> + Send + 'static,
    {
        let (name, serial, epoch) = (name.to_owned(), serial.to_owned(), self.epoch);
        self.write(move |connection| {
            let asked = Asked {
                name: &name,
                serial: &serial,
                fingerprint,
            };
            let outcome = renew(connection, epoch, &asked, issue, now)?;
            let said = match &outcome {
                Ok(renewed) => format!("serial {}, after {serial}", renewed.issued.serial),
                Err(refusal) => format!("refused: {refusal:?}, serial {serial}"),
            };
            audit(
                connection,
                epoch,
                now,
                [&name, "renew operator", &name, &said],
            )?;
            Ok(outcome)
        })
        .await
    }

    /// Notes a certificate given to an operator, and the role that goes with the name from now on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn operator_issued(
        &self,
        actor: &str,
        name: &str,
        role: OperatorRole,
        issued: &Issued,
        fingerprint: [u8; 32],
        now: Timestamp,
    ) -> Result<(), ControlError> {
        let (actor, name) = (actor.to_owned(), name.to_owned());
        let given = issued.clone();
        let epoch = self.epoch;
        self.write(move |connection| {
            connection.execute(
                "INSERT INTO operators (name, role, created_ms, epoch) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET role = excluded.role",
                params![name, role.word(), now.as_millis(), epoch],
            )?;
            let holder = format!("operator/{name}");
            note(connection, epoch, &holder, fingerprint, &given, now)?;
            let outcome = format!("role {role}, serial {}", given.serial);
            audit(
                connection,
                epoch,
                now,
                [&actor, "issue operator", &name, &outcome],
            )
        })
        .await
    }
}

/// What the holder of a certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperatorStanding {
    /// Of the name; none for a name that was never given a certificate, or was revoked.
    pub role: Option<OperatorRole>,
    /// When the certificate was issued, if it is on record.
    pub issued: Option<Timestamp>,
    /// Why this certificate is not taken any more.
    pub refusal: Option<OperatorRefusal>,
}

/// A certificate that was renewed.
#[derive(Debug, Clone)]
pub struct RenewedOperator {
    /// The new certificate.
    pub issued: Issued,
    /// When the operator must sign in again.
    pub login_until: Timestamp,
}

/// Why an operator's certificate is not accepted, or not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorRefusal {
    /// An operator withdrew it.
    #[error("this certificate was revoked")]
    Revoked,
    /// It was renewed, and the new one is in use.
    #[error(
        "this certificate was renewed and its successor is in use: if that was not you on another machine, somebody has a copy of your key; have it revoked"
    )]
    Replaced,
    /// It was not issued here, or is not this name's.
    #[error("this certificate is not on record here")]
    Unknown,
    /// The operator has no role any more.
    #[error("this operator has no role any more")]
    NoRole,
    /// The sign-in is too long ago.
    #[error("30 days have passed since the sign-in: muster login again")]
    LoginOver,
    /// The key has had a certificate before.
    #[error("a renewal needs a new key")]
    OldKey,
}

/// What the record says of a certificate.
struct Certificate {
    holder: String,
    issued: Timestamp,
    login: Timestamp,
    renewed: bool,
    used: Option<Timestamp>,
}

fn certificate(connection: &Connection, serial: &str) -> Result<Option<Certificate>, ControlError> {
    Ok(connection
        .prepare_cached(
            "SELECT holder, issued_ms, coalesce(login_ms, issued_ms), renewed_from IS NOT NULL, used_ms
             FROM certificates WHERE serial = ?1",
        )?
        .query_row([serial], |row| {
            Ok(Certificate {
                holder: row.get(0)?,
                issued: Timestamp::from_millis(row.get(1)?),
                login: Timestamp::from_millis(row.get(2)?),
                renewed: row.get(3)?,
                used: row.get::<_, Option<i64>>(4)?.map(Timestamp::from_millis),
            })
        })
        .optional()?)
}

/// Why a certificate is not taken, if so.
fn refusal(
    connection: &Connection,
    serial: &str,
    now: Timestamp,
) -> Result<Option<OperatorRefusal>, ControlError> {
    if revoke::serial_denied(connection, serial)? || generations::is_refused(connection, serial)? {
        return Ok(Some(OperatorRefusal::Revoked));
    }
    let replaced = successor_used(connection, serial)?;
    Ok(replaced
        .filter(|since| now.since(*since) >= HANDOVER)
        .map(|_| OperatorRefusal::Replaced))
}

/// Since when a certificate that took this one's place is in use.
fn successor_used(
    connection: &Connection,
    serial: &str,
) -> Result<Option<Timestamp>, ControlError> {
    let used: Option<i64> = connection
        .prepare_cached("SELECT min(used_ms) FROM certificates WHERE renewed_from = ?1")?
        .query_row([serial], |row| row.get(0))?;
    Ok(used.map(Timestamp::from_millis))
}

/// Who asks for a renewal.
struct Asked<'a> {
    name: &'a str,
    serial: &'a str,
    fingerprint: [u8; 32],
}

fn renew(
    connection: &Connection,
    epoch: i64,
    asked: &Asked<'_>,
    issue: impl FnOnce() -> Result<Issued, PkiError>,
    now: Timestamp,
) -> Result<Result<RenewedOperator, OperatorRefusal>, ControlError> {
    let holder = format!("operator/{}", asked.name);
    let Some(shown) = certificate(connection, asked.serial)?.filter(|known| known.holder == holder)
    else {
        return Ok(Err(OperatorRefusal::Unknown));
    };
    if revoke::serial_denied(connection, asked.serial)?
        || generations::is_refused(connection, asked.serial)?
    {
        return Ok(Err(OperatorRefusal::Revoked));
    }
    // No time for handing over here: of two who renew the same certificate one is a thief.
    if successor_used(connection, asked.serial)?.is_some() {
        return Ok(Err(OperatorRefusal::Replaced));
    }
    let has_role = connection
        .prepare_cached("SELECT 1 FROM operators WHERE name = ?1")?
        .exists([asked.name])?;
    if !has_role {
        return Ok(Err(OperatorRefusal::NoRole));
    }
    let login_until = shown.login.plus(LOGIN_LIFE);
    if now >= login_until {
        return Ok(Err(OperatorRefusal::LoginOver));
    }
    let known_key = connection
        .prepare_cached("SELECT 1 FROM certificates WHERE spki_hash = ?1")?
        .exists([asked.fingerprint])?;
    if known_key {
        return Ok(Err(OperatorRefusal::OldKey));
    }
    let unused: Vec<String> = connection
        .prepare_cached("SELECT serial FROM certificates WHERE renewed_from = ?1")?
        .query_map([asked.serial], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for serial in unused {
        revoke::deny_serial(connection, epoch, &serial, now)?;
    }
    let issued = issue().map_err(|error| ControlError::Issue(crate::chain(&error)))?;
    note(connection, epoch, &holder, asked.fingerprint, &issued, now)?;
    connection.execute(
        "UPDATE certificates SET renewed_from = ?2, login_ms = ?3 WHERE serial = ?1",
        params![issued.serial, asked.serial, shown.login.as_millis()],
    )?;
    Ok(Ok(RenewedOperator {
        issued,
        login_until,
    }))
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    /// A certificate with this serial; nothing here looks into it.
    fn made(serial: &str, now: Timestamp) -> Issued {
        Issued {
            chain: vec![CertificateDer::from(vec![0])],
            serial: serial.to_owned(),
            not_after: now.plus(HOUR * 24),
            generation: 1,
        }
    }

    struct Lab {
        _folder: tempfile::TempDir,
        control: Control,
    }

    impl Lab {
        async fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let control = Control::open(folder.path()).expect("a store");
            let first = made("a", NOW);
            control
                .operator_issued("uid 0", "jo", OperatorRole::Admin, &first, [1; 32], NOW)
                .await
                .expect("written");
            Self {
                _folder: folder,
                control,
            }
        }

        /// Shows `serial` and gets the certificate `next` with the key `key`.
        async fn renew(
            &self,
            serial: &str,
            next: &'static str,
            key: u8,
            now: Timestamp,
        ) -> Result<Timestamp, OperatorRefusal> {
            let issue = move || Ok(made(next, now));
            let done = self
                .control
                .renew_operator("jo", serial, [key; 32], issue, now);
            done.await.expect("written").map(|new| new.login_until)
        }

        async fn shown(&self, serial: &str, now: Timestamp) -> Option<OperatorRefusal> {
            let standing = self.control.operator_admitted("jo", Some(serial), now);
            standing.await.expect("readable").refusal
        }
    }

    #[tokio::test]
    async fn a_renewed_certificate_takes_the_place_of_the_one_before_once_it_is_used() {
        let lab = Lab::new().await;
        assert_eq!(lab.renew("a", "b", 2, NOW).await, Ok(NOW.plus(LOGIN_LIFE)));
        let later = NOW.plus(HOUR * 10);
        assert_eq!(
            lab.shown("a", later).await,
            None,
            "its successor is not in use"
        );
        assert_eq!(lab.shown("b", later).await, None);
        assert_eq!(lab.shown("a", later).await, None, "programs finish");
        let after = later.plus(HANDOVER);
        assert_eq!(lab.shown("a", after).await, Some(OperatorRefusal::Replaced));
        assert_eq!(lab.shown("b", after).await, None);
    }

    #[tokio::test]
    async fn of_two_who_renew_one_certificate_the_second_is_refused_and_shows() {
        let lab = Lab::new().await;
        assert!(lab.renew("a", "b", 2, NOW).await.is_ok());
        assert_eq!(lab.shown("b", NOW).await, None);
        let second = lab.renew("a", "c", 3, NOW).await;
        assert_eq!(second, Err(OperatorRefusal::Replaced));
        let line = lab
            .control
            .audit_log(1)
            .await
            .expect("readable")
            .remove(0)
            .1;
        assert!(line[3].contains("refused: Replaced"), "{line:?}");
    }

    #[tokio::test]
    async fn a_lost_answer_can_be_asked_for_again_and_is_then_worth_nothing() {
        let lab = Lab::new().await;
        assert!(lab.renew("a", "b", 2, NOW).await.is_ok());
        assert!(lab.renew("a", "c", 3, NOW).await.is_ok());
        assert_eq!(lab.shown("b", NOW).await, Some(OperatorRefusal::Revoked));
        assert_eq!(lab.shown("c", NOW).await, None);
    }

    #[tokio::test]
    async fn what_is_not_renewed() {
        let lab = Lab::new().await;
        assert_eq!(
            lab.renew("zz", "b", 2, NOW).await,
            Err(OperatorRefusal::Unknown)
        );
        assert_eq!(
            lab.renew("a", "b", 1, NOW).await,
            Err(OperatorRefusal::OldKey)
        );
        let over = NOW.plus(LOGIN_LIFE);
        assert_eq!(
            lab.renew("a", "b", 2, over).await,
            Err(OperatorRefusal::LoginOver)
        );
        // Renewing does not move the end.
        let last = over.minus(HOUR);
        assert_eq!(lab.renew("a", "b", 2, last).await, Ok(over));
        assert_eq!(lab.shown("b", last).await, None);
        assert_eq!(
            lab.renew("b", "c", 3, over).await,
            Err(OperatorRefusal::LoginOver)
        );
        lab.control
            .revoke_operator("jo", "root", NOW)
            .await
            .expect("written");
        assert_eq!(
            lab.renew("b", "d", 4, last).await,
            Err(OperatorRefusal::Revoked)
        );
        let standing = lab.control.operator_admitted("jo", Some("b"), last);
        assert_eq!(standing.await.expect("readable").role, None);
    }
}
