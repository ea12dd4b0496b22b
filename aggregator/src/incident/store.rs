//! The seam between incidents and the control store: what is written, and what is read back at the start.
//!
//! The store is SQLite; the seam is there because tests must be able to let it fail and to kill it between a
//! commit and its answer. People's questions about incidents go to the control store directly.

use std::future::Future;

use muster_proto::{id::HostId, time::Timestamp, v1};

use super::machine::Key;
use crate::detect::Severity;

/// An incident that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenIncident {
    /// What it is about.
    pub key: Key,
    /// How much it matters.
    pub severity: Severity,
    /// Since when it holds.
    pub since: Timestamp,
}

/// Where incidents are kept. Operations are idempotent by their id and have happened when they return; one that
/// failed may be tried again, unchanged.
pub trait IncidentStore: Send + Sync + 'static {
    /// Why it did not do what it was asked.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Opens an incident under the next number, unless one is open for its key or the operation was done before.
    fn open(
        &self,
        incident: NewIncident,
    ) -> impl Future<Output = Result<Opened, Self::Error>> + Send;

    /// Resolves what is open for the key, unless the operation was done before; the number of what it resolved.
    fn resolve(
        &self,
        resolution: Resolution,
    ) -> impl Future<Output = Result<Option<u64>, Self::Error>> + Send;

    /// What is open, of one host or of all.
    fn list_open(
        &self,
        host: Option<HostId>,
    ) -> impl Future<Output = Result<Vec<OpenIncident>, Self::Error>> + Send;
}

/// Something to open an incident for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIncident {
    /// Names this operation: repeating it changes nothing.
    pub op_id: String,
    /// Which host.
    pub host_id: HostId,
    /// Name of the detector.
    pub rule: String,
    /// What it is about: a mount point, a unit; empty for the host.
    pub subject: String,
    /// How bad.
    pub severity: v1::Severity,
    /// One line for people.
    pub summary: String,
    /// What was seen.
    pub evidence: String,
    /// Since when it holds, in the host's own time.
    pub since: Timestamp,
    /// Now.
    pub at: Timestamp,
}

/// What became of an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The incident's number.
    pub number: u64,
    /// It was opened by this very call; otherwise it was open already, or the operation had been done before.
    pub new: bool,
}

/// The end of an incident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Names this operation: repeating it changes nothing.
    pub op_id: String,
    /// Which host.
    pub host_id: HostId,
    /// Name of the detector.
    pub rule: String,
    /// What it is about.
    pub subject: String,
    /// What was seen.
    pub evidence: String,
    /// Now.
    pub at: Timestamp,
}
