//! Who may ask what, and how often. A method without a row in [`ACCESS`] is refused.
//!
//! Who is asking comes from the connection's certificate; what they may do comes from the control store at
//! each call, so that a demotion acts at once. Refusals for want of a role are audited; the limit on calls
//! comes first, so the audit log cannot be filled by asking.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_proto::time::Clock;
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
    /// Calls a minute of one operator. A tenth of them may come at once.
    pub per_minute: u32,
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
    // The service History: what one question may cost is bounded by itself.
    rule("ReadHistory", OperatorRole::Viewer, 600),
    rule("QueryHistory", OperatorRole::Viewer, 600),
    rule("GetHistoryStatus", OperatorRole::Viewer, 600),
    rule("ForgetHistory", OperatorRole::Admin, 60),
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
                "{name} asked {method} more than {} times a minute",
                rule.per_minute
            )));
        }
        let now = self.clock.now();
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

    async fn audit(&self, name: &str, method: &str, outcome: &str) {
        let at = self.clock.now();
        let written = self.control.audit(at, name, "ask", method, outcome).await;
        if let Err(error) = written {
            // The refusal stands all the same.
            tracing::warn!(operator = name, method, error = %chain(&error), "a refusal could not be audited");
        }
    }

    fn take(&self, name: &str, rule: &Rule) -> bool {
        let now = Instant::now();
        let most = (f64::from(rule.per_minute) / 10.0).max(1.0);
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
