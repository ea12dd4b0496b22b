//! The seam between incidents and the control store: what is written, and what is read back at the start.
//!
//! The store is SQLite; the seam is there because tests must be able to let it fail and to kill it between a
//! commit and its answer. People's questions about incidents go to the control store directly.

use std::future::Future;

use muster_proto::{id::HostId, time::Timestamp};

use super::machine::Key;
use crate::{
    control::{Control, ControlError, IncidentFilter, NewIncident, Opened, Resolution},
    detect::Severity,
};

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

impl IncidentStore for Control {
    type Error = ControlError;

    async fn open(&self, incident: NewIncident) -> Result<Opened, ControlError> {
        self.open_incident(incident).await
    }

    async fn resolve(&self, resolution: Resolution) -> Result<Option<u64>, ControlError> {
        self.resolve_incident(resolution).await
    }

    async fn list_open(&self, host: Option<HostId>) -> Result<Vec<OpenIncident>, ControlError> {
        let filter = IncidentFilter {
            host_id: host,
            ..IncidentFilter::default()
        };
        let (open, _) = self.incidents(filter).await?;
        let open = open.into_iter().filter_map(|incident| {
            Some(OpenIncident {
                key: Key {
                    host: incident.host_id,
                    rule: incident.rule,
                    subject: incident.subject,
                },
                // The column holds nothing else.
                severity: Severity::of_wire(incident.severity)?,
                since: incident.since,
            })
        });
        Ok(open.collect())
    }
}
