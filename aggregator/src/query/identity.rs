//! The `Identity` service beside `Operator` at the operators' door: certificates of operators, the audit log's chain.

use std::sync::Arc;

use muster_proto::{
    time::Clock,
    v1::{
        self,
        identity_server::{Identity, IdentityServer},
    },
};
use tonic::{Request, Response, Status};

use super::access::Access;
use crate::{
    chain,
    control::{Control, ControlError},
    pki::{self, Authority},
};

/// Largest question: a certificate request.
const MAX_QUESTION_BYTES: usize = 64 * 1024;

/// Answers operators about identity.
#[derive(Clone)]
pub struct IdentityService {
    control: Control,
    authority: Arc<Authority>,
    access: Access,
    clock: Arc<dyn Clock>,
}

impl IdentityService {
    /// Reads from this store and signs with this authority.
    #[must_use]
    pub fn new(control: Control, authority: Arc<Authority>, clock: Arc<dyn Clock>) -> Self {
        Self {
            access: Access::new(control.clone(), Arc::clone(&clock)),
            control,
            authority,
            clock,
        }
    }

    /// As a tonic service with its limits. The transport must give each request its [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(MAX_QUESTION_BYTES)
    }
}

/// Nothing was done; the log of the aggregator says why.
fn failed(what: &'static str, error: &ControlError) -> Status {
    tracing::error!(error = chain(error), "{what}");
    Status::unavailable(format!("{what}, see the aggregator's log"))
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn renew_operator(
        &self,
        request: Request<v1::RenewOperatorRequest>,
    ) -> Result<Response<v1::RenewOperatorResponse>, Status> {
        let caller = self.access.admit(&request, "RenewOperator").await?;
        let serial = caller.peer.serial.clone();
        let serial = serial.ok_or_else(|| Status::internal("the certificate has no serial"))?;
        let csr = pki::Request::check(&request.into_inner().csr).map_err(|error| {
            Status::invalid_argument(format!(
                "the certificate request is not acceptable: {error}"
            ))
        })?;
        let now = self.clock.now();
        let fingerprint = *csr.fingerprint();
        let (authority, name) = (Arc::clone(&self.authority), caller.name.clone());
        let issue = move || authority.issue_operator(&csr, &name, now);
        let renewed = self
            .control
            .renew_operator(&caller.name, &serial, fingerprint, issue, now)
            .await
            .map_err(|error| failed("an operator's certificate could not be renewed", &error))?
            .map_err(|refusal| {
                tracing::warn!(operator = caller.name, address = %caller.peer.addr, why = %refusal, "renewal refused");
                Status::permission_denied(refusal.to_string())
            })?;
        let issued = renewed.issued;
        Ok(Response::new(v1::RenewOperatorResponse {
            certificate_chain: issued.chain.iter().map(|one| one.to_vec()).collect(),
            bundle: Some(self.authority.bundle()),
            expires_ms: issued.not_after.as_millis(),
            login_until_ms: renewed.login_until.as_millis(),
        }))
    }

    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::AuditVerdict>, Status> {
        self.access.admit(&request, "VerifyAudit").await?;
        let asked = request.into_inner();
        let known = i64::try_from(asked.known_seq)
            .map_err(|_| Status::invalid_argument("there is no such line"))?;
        let known = (known > 0).then_some((known, asked.known_hash));
        let verdict = self
            .control
            .verify_audit(known)
            .await
            .map_err(|error| failed("the audit log cannot be read", &error))?;
        if !verdict.faults.is_empty() {
            tracing::error!(
                faults = verdict.faults.len(),
                first = verdict.faults.first(),
                "the audit log was changed"
            );
        }
        let (head, hash) = verdict.head.unwrap_or_default();
        Ok(Response::new(v1::AuditVerdict {
            lines: verdict.lines,
            head_seq: head.unsigned_abs(),
            head_hash: hash,
            faults: verdict.faults,
        }))
    }
}
