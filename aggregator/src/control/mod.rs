//! The control state: hosts, tokens, operators, certificates, incidents, audit; in SQLite, `<state>/control.db`.
//!
//! What decisions rest on is here, samples are not. [`Control`] is the seam: it speaks of hosts and incidents, not
//! of SQL. All writes go through one thread that commits what is waiting in one transaction; an answer comes
//! after the commit, so what was answered is on disk. Reads use a second connection and go on when writing has
//! become impossible. Another process may work on the same file (`muster-aggregator token create` does).

mod acks;
mod audit;
mod certificates;
mod copies;
mod db;
mod deliveries;
mod generations;
mod hosts;
mod incidents;
mod network;
mod noise;
mod operators;
mod pages;
mod pending;
mod quiets;
mod refusals;
mod revoke;
mod time;
mod tokens;
mod turns;

use std::path::PathBuf;

pub use acks::{Ack, AckOutcome, MAX_TEXT_BYTES};
pub use audit::{AuditFilter, AuditLine, AuditVerdict};
pub use certificates::{CertificateRefusal, Lineage, Presented, RENEWAL_GRACE};
pub use copies::{COPY_SIGNS, COPY_WINDOW, Doubt, Greeted, Greeting};
pub use db::Control;
pub use deliveries::{ChannelBooks, Delivery, Fate};
pub use generations::Holder;
pub use hosts::{Facts, Host, Labels};
pub use incidents::{
    Incident, IncidentFilter, KEPT_FOR as INCIDENTS_KEPT_FOR, NewIncident, Opened, Resolution,
    Transition,
};
pub use network::{Network, NetworkError};
pub use noise::NoiseRow;
pub use operators::{
    LOGIN_LIFE, OperatorRefusal, OperatorRole, OperatorStanding, RenewedOperator, RoleError,
};
pub use pages::{Consequence, NewDelivery};
pub use pending::{WAITING_LIFE, Waiting};
pub use quiets::{MAX_SILENCE, Phase, Quiet, QuietError, QuietKind, Weekly};
pub use revoke::{Removal, Removed};
pub use tokens::{
    DEFAULT_TOKEN_TTL, EnrolRefusal, EnrolRequest, Enrolled, MAX_TOKEN_TTL, MAX_USES, TokenOptions,
    TokenRow, TokenState,
};
pub use turns::TurnRecord;

/// Why the control state cannot be opened, read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Made by a newer aggregator; it was not touched.
    #[error("{path} has version {found}, this program knows {known}: it was left untouched, install the newer aggregator again", path = path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest this program knows.
        known: i64,
    },
    /// The file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: SharedSqlError,
    },
    /// The disk is full; nothing was written, reading goes on.
    #[error("the disk of the control database is full: nothing was written")]
    Full,
    /// It cannot be written; reading goes on.
    #[error("the control database is read-only: nothing was written")]
    ReadOnly,
    /// Another failure of the database.
    #[error("the control database failed")]
    Sql(#[from] SharedSqlError),
    /// A row does not hold what it should.
    #[error("a row of {0} in the control database cannot be understood")]
    Row(&'static str),
    /// Nobody has this host id.
    #[error("host {0} is not known")]
    UnknownHost(muster_proto::id::HostId),
    /// An option that a token cannot have.
    #[error("{0}")]
    TokenOption(&'static str),
    /// A certificate could not be issued inside the transaction.
    #[error("no certificate could be issued: {0}")]
    Issue(String),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The store is shutting down.
    #[error("the control database is closed")]
    Closed,
}

/// A database error that several answers of one batch can share.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct SharedSqlError(std::sync::Arc<rusqlite::Error>);

impl From<rusqlite::Error> for ControlError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            _ => Self::Sql(SharedSqlError(std::sync::Arc::new(error))),
        }
    }
}

#[cfg(test)]
mod tests;
