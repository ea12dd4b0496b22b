//! Operators: what each may do. The certificate says only who it is, so a demotion acts at once.

use std::{fmt, str::FromStr};

use muster_proto::time::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::{Control, ControlError, certificates::note, db::audit, revoke};
use crate::pki::Issued;

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

    /// As [`Control::operator_role`], and none for a certificate that was withdrawn.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn operator_admitted(
        &self,
        name: &str,
        serial: Option<&str>,
    ) -> Result<Option<OperatorRole>, ControlError> {
        if let Some(serial) = serial.map(str::to_owned)
            && self
                .read(move |connection| revoke::serial_denied(connection, &serial))
                .await?
        {
            return Ok(None);
        }
        self.operator_role(name).await
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
