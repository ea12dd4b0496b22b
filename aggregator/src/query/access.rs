//! Who may ask what, and how often. A method without a row in [`ACCESS`] is refused.
//!
//! Who is asking comes from the connection's certificate; what they may do comes from the control store at
//! each call, so that a demotion acts at once; so does the end of the certificate's life, which the handshake has
//! seen once and a connection may outlive. Refusals for want of a role are audited, a few a minute of each operator
//! and the rest as a number, so that the audit log cannot be filled by asking.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_proto::time::{Clock, Timestamp};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    chain,
    control::{Control, OperatorRole},
    listen::Peer,
};

/// What one method asks of its caller.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Name of the rpc.
    pub method: &'static str,
    /// Least role.
    pub role: OperatorRole,
    /// Calls a minute of one operator.
    pub per_minute: u32,
}

impl Rule {
    /// Calls that may come at once: a tenth of a minute's, and those of somebody who tries things out.
    fn at_once(&self) -> u32 {
        (self.per_minute / 10).max(5)
    }
}

const fn rule(method: &'static str, role: OperatorRole, per_minute: u32) -> Rule {
    Rule {
        method,
        role,
        per_minute,
    }
}

/// Every method of the service. A screen redrawn each second is 60 calls a minute; scripts run several
/// side by side.
pub const ACCESS: &[Rule] = &[
    rule("GetStatus", OperatorRole::Viewer, 600),
    rule("GetSummary", OperatorRole::Viewer, 600),
    rule("ListHosts", OperatorRole::Viewer, 600),
    rule("GetHost", OperatorRole::Viewer, 1_200),
    rule("ListServices", OperatorRole::Viewer, 300),
    rule("ListAnomalies", OperatorRole::Viewer, 600),
    rule("ListIncidents", OperatorRole::Viewer, 600),
    rule("GetIncident", OperatorRole::Viewer, 1_200),
    rule("ListEvents", OperatorRole::Viewer, 600),
    rule("FollowEvents", OperatorRole::Viewer, 60),
    rule("ListRecordings", OperatorRole::Viewer, 600),
    rule("GetRecording", OperatorRole::Viewer, 60),
    rule("EvictHost", OperatorRole::Admin, 600),
    rule("BanHost", OperatorRole::Admin, 600),
    rule("RevokeOperator", OperatorRole::Admin, 60),
    rule("ListAudit", OperatorRole::Admin, 60),
    // The service Identity.
    rule("RenewOperator", OperatorRole::Viewer, 60),
    rule("VerifyAudit", OperatorRole::Admin, 60),
    // Scripts that set up many machines make a token for each.
    rule("CreateToken", OperatorRole::Admin, 600),
    rule("ListTokens", OperatorRole::Admin, 120),
    rule("RevokeToken", OperatorRole::Admin, 600),
    rule("ListWaiting", OperatorRole::Admin, 120),
    rule("DecideWaiting", OperatorRole::Admin, 600),
    rule("ReleaseHost", OperatorRole::Admin, 600),
    rule("GetAuthority", OperatorRole::Admin, 120),
    rule("RotateAuthority", OperatorRole::Admin, 120),
    rule("ListChecks", OperatorRole::Viewer, 300),
    rule("AcknowledgeIncident", OperatorRole::Operator, 600),
    rule("UnacknowledgeIncident", OperatorRole::Operator, 600),
    rule("AddQuiet", OperatorRole::Operator, 600),
    rule("ListQuiets", OperatorRole::Viewer, 600),
    rule("EndQuiet", OperatorRole::Operator, 600),
    rule("ListChannels", OperatorRole::Viewer, 600),
    rule("TestChannel", OperatorRole::Operator, 60),
    rule("ListNoise", OperatorRole::Viewer, 60),
    // Goes through the whole record.
    rule("ReplayPages", OperatorRole::Viewer, 20),
    // One at a time, of low priority.
    rule("ReplaySamples", OperatorRole::Viewer, 20),
    // The service History: what one question may cost is bounded by itself.
    rule("ReadHistory", OperatorRole::Viewer, 600),
    rule("QueryHistory", OperatorRole::Viewer, 600),
    rule("GetHistoryStatus", OperatorRole::Viewer, 600),
    rule("ForgetHistory", OperatorRole::Admin, 60),
    // The service Past: each reads history, within the same bounds.
    rule("HostsAt", OperatorRole::Viewer, 120),
    rule("HostAt", OperatorRole::Viewer, 600),
    rule("SummaryAt", OperatorRole::Viewer, 120),
    rule("ServicesAt", OperatorRole::Viewer, 120),
    rule("IncidentsAt", OperatorRole::Viewer, 600),
];

/// Oldest certificate with which what needs [`OperatorRole::Admin`] can be done (design/threats.md, T22): the program
/// renews an older one by itself, and whoever has stolen one shows by doing the same.
pub const ADMIN_CERTIFICATE_AGE: Duration = Duration::from_secs(3600);
/// Key in the metadata of a refusal that a renewed certificate would not get.
pub const RENEW_FIRST: &str = "muster-renew-first";

/// Buckets kept before full ones are thrown away; far above the number of operators.
const MAX_BUCKETS: usize = 4_096;

/// Somebody who may ask.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Name in the certificate.
    pub name: String,
    /// What the store lets them do.
    pub role: OperatorRole,
    /// The connection.
    pub peer: Peer,
}

/// Judges callers.
#[derive(Clone)]
pub struct Access {
    control: Control,
    clock: Arc<dyn Clock>,
    buckets: Arc<Mutex<HashMap<(String, &'static str), Bucket>>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Access {
    /// Roles come from this store, times of the audit log from this clock.
    #[must_use]
    pub fn new(control: Control, clock: Arc<dyn Clock>) -> Self {
        Self {
            control,
            clock,
            buckets: Arc::default(),
        }
    }

    /// Who asks, if they may ask this.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` without a row, an identity or the role, `RESOURCE_EXHAUSTED` over the limit,
    /// `UNAVAILABLE` when the store cannot be read.
    pub async fn admit<T>(
        &self,
        request: &tonic::Request<T>,
        method: &str,
    ) -> Result<Caller, Status> {
        let Some(rule) = ACCESS.iter().find(|rule| rule.method == method) else {
            return Err(Status::permission_denied(format!(
                "{method} is open to nobody"
            )));
        };
        let peer = request.extensions().get::<Peer>();
        let name = peer.and_then(Peer::operator);
        let (Some(peer), Some(name)) = (peer, name) else {
            return Err(Status::permission_denied(
                "the certificate of this connection names no operator",
            ));
        };
        if !self.take(name, rule) {
            return Err(Status::resource_exhausted(format!(
                "{name} asks {method} too often: {} times a minute are allowed, {} at once",
                rule.per_minute,
                rule.at_once()
            )));
        }
        let now = self.clock.now();
        in_life(peer, now)?;
        let standing = self
            .control
            .operator_admitted(name, peer.serial.as_deref(), now)
            .await
            .map_err(|error| {
                tracing::error!(error = %chain(&error), "cannot read an operator's role");
                Status::unavailable("the control store cannot be read, see the aggregator's log")
            })?;
        if let Some(refusal) = standing.refusal {
            self.audit(name, method, &format!("refused, {refusal:?} certificate"))
                .await;
            return Err(Status::permission_denied(refusal.to_string()));
        }
        match standing.role {
            // One that is not on record, as a test may have, has no known age.
            Some(role)
                if role >= rule.role
                    && rule.role == OperatorRole::Admin
                    && standing
                        .issued
                        .is_some_and(|issued| now.since(issued) > ADMIN_CERTIFICATE_AGE) =>
            {
                let mut status = Status::failed_precondition(format!(
                    "{method} needs a certificate younger than an hour"
                ));
                let mark = tonic::metadata::MetadataValue::from_static("1");
                status.metadata_mut().insert(RENEW_FIRST, mark);
                Err(status)
            }
            Some(role) if role >= rule.role => Ok(Caller {
                name: name.to_owned(),
                role,
                peer: peer.clone(),
            }),
            role => {
                let has = role.map_or_else(|| "no role".to_owned(), |role| format!("role {role}"));
                self.audit(name, method, &format!("refused, {has}")).await;
                Err(Status::permission_denied(format!(
                    "{name} has {has}, {method} needs {}",
                    rule.role
                )))
            }
        }
    }

    /// Whether a caller who was admitted would be again, for streams that stay open. Counts and writes nothing; while
    /// the store cannot be read, whoever is there stays.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when the certificate's life is over, or it or the role was taken away.
    pub async fn still(&self, caller: &Caller, method: &str) -> Result<(), Status> {
        let now = self.clock.now();
        in_life(&caller.peer, now)?;
        let serial = caller.peer.serial.as_deref();
        let standing = self.control.operator_admitted(&caller.name, serial, now);
        let Ok(standing) = standing.await else {
            return Ok(());
        };
        if let Some(refusal) = standing.refusal {
            return Err(Status::permission_denied(refusal.to_string()));
        }
        let needed = ACCESS.iter().find(|rule| rule.method == method);
        match (standing.role, needed) {
            (Some(role), Some(rule)) if role >= rule.role => Ok(()),
            _ => Err(Status::permission_denied(format!(
                "{} may not ask {method} any more",
                caller.name
            ))),
        }
    }

    async fn audit(&self, name: &str, method: &str, outcome: &str) {
        let at = self.clock.now();
        let written = self
            .control
            .audit_refusal(at, name, "ask", method, outcome)
            .await;
        if let Err(error) = written {
            // The refusal stands all the same.
            tracing::warn!(operator = name, method, error = %chain(&error), "a refusal could not be audited");
        }
    }

    fn take(&self, name: &str, rule: &Rule) -> bool {
        let now = Instant::now();
        let most = f64::from(rule.at_once());
        let per_second = f64::from(rule.per_minute) / 60.0;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS {
            // An hour fills any bucket, and a full bucket is as good as none.
            buckets.retain(|_, bucket| now.duration_since(bucket.filled).as_secs() < 3_600);
        }
        let bucket = buckets
            .entry((name.to_owned(), rule.method))
            .or_insert(Bucket {
                tokens: most,
                filled: now,
            });
        let passed = now.duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * per_second).min(most);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

/// A connection may outlive the certificate it was opened with.
fn in_life(peer: &Peer, now: Timestamp) -> Result<(), Status> {
    match peer.cert_not_after {
        Some(end) if end < now => Err(Status::permission_denied(
            "the certificate of this connection has expired since it was opened: connect again",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use muster_proto::time::FakeClock;

    use super::*;
    use crate::listen::Ending;

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    /// An empty store, a clock, and an operator whose certificate ends in a minute.
    pub(in crate::query) struct Lab {
        _folder: tempfile::TempDir,
        pub(in crate::query) clock: Arc<FakeClock>,
        pub(in crate::query) access: Access,
        pub(in crate::query) caller: Caller,
        control: Control,
    }

    impl Lab {
        pub(in crate::query) fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let control = Control::open(folder.path()).expect("a store");
            let clock = Arc::new(FakeClock::at(NOW));
            let id = "spiffe://m-abcdefghij/operator/eve".parse();
            let peer = Peer {
                addr: ([127, 0, 0, 1], 1).into(),
                id: Some(id.expect("an operator")),
                serial: None,
                cert_not_after: Some(NOW.plus(MINUTE)),
                origin: None,
                ending: Ending::default(),
            };
            Self {
                _folder: folder,
                access: Access::new(control.clone(), Arc::clone(&clock) as Arc<dyn Clock>),
                caller: Caller {
                    name: "eve".to_owned(),
                    role: OperatorRole::Viewer,
                    peer,
                },
                clock,
                control,
            }
        }

        async fn refusal(&self) -> String {
            let mut request = tonic::Request::new(());
            request.extensions_mut().insert(self.caller.peer.clone());
            let admitted = self.access.admit(&request, "EvictHost").await;
            admitted.expect_err("refused").message().to_owned()
        }
    }

    #[tokio::test]
    async fn a_connection_does_not_outlive_its_certificate() {
        let lab = Lab::new();
        lab.clock.advance(MINUTE);
        assert!(lab.refusal().await.contains("has no role"));
        lab.clock.advance(Duration::from_millis(1));
        assert!(lab.refusal().await.contains("expired since"));
        let still = lab.access.still(&lab.caller, "FollowEvents").await;
        assert!(still.expect_err("over").message().contains("expired since"));
    }

    #[tokio::test]
    async fn who_has_lost_the_role_is_not_there_still() {
        let lab = Lab::new();
        let still = lab.access.still(&lab.caller, "FollowEvents").await;
        assert!(still.expect_err("no role").message().contains("any more"));
    }

    #[tokio::test]
    async fn refusals_do_not_fill_the_audit_log() {
        let lab = Lab::new();
        for _ in 0..50 {
            assert!(lab.refusal().await.contains("has no role"));
        }
        let log = lab.control.audit_log(1_000).await.expect("readable");
        assert_eq!(log.len(), 10);
    }
}
