//! The `Identity` service beside `Operator` at the operators' door: certificates of operators, the audit log's chain.

use std::{sync::Arc, time::Duration};

use muster_proto::{
    limits,
    time::{Clock, Timestamp},
    v1::{
        self,
        identity_server::{Identity, IdentityServer},
    },
};
use tonic::{Request, Response, Status};

use super::{access::Access, rotation};
use crate::{
    chain,
    control::{Control, ControlError, Network, NetworkError, TokenOptions, TokenRow},
    detect::Change,
    fleet::{Fleet, shard::TransitionSink},
    ingest,
    pki::{self, Authority, Doors},
};

/// Largest question: a certificate request.
const MAX_QUESTION_BYTES: usize = 64 * 1024;

/// What the service works with.
#[derive(Clone)]
pub struct IdentityParts {
    /// Certificates, tokens, who waits, the audit log.
    pub control: Control,
    /// Signs.
    pub authority: Arc<Authority>,
    /// Present and trust what the authority says.
    pub doors: Arc<Doors>,
    /// The hosts.
    pub fleet: Fleet,
    /// Told when a host leaves quarantine.
    pub sink: Arc<dyn TransitionSink>,
    /// Where hosts join: host:port, of which `:port` means the host at which operators ask.
    pub enrolment_address: String,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

/// Answers operators about identity.
#[derive(Clone)]
pub struct IdentityService {
    parts: Arc<IdentityParts>,
    access: Access,
}

impl IdentityService {
    /// Works with these.
    #[must_use]
    pub fn new(parts: IdentityParts) -> Self {
        Self {
            access: Access::new(parts.control.clone(), Arc::clone(&parts.clock)),
            parts: Arc::new(parts),
        }
    }

    /// As a tonic service with its limits. The transport must give each request its [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(MAX_QUESTION_BYTES)
    }
}

/// Nothing was done; the log of the aggregator says why.
pub(super) fn failed(what: &'static str, error: &ControlError) -> Status {
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
        let now = self.parts.clock.now();
        let fingerprint = *csr.fingerprint();
        let (authority, name) = (Arc::clone(&self.parts.authority), caller.name.clone());
        let issue = move || authority.issue_operator(&csr, &name, now);
        let renewed = self
            .parts
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
            bundle: Some(self.parts.authority.bundle()),
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
            .parts
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

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = self.access.admit(&request, "CreateToken").await?;
        let asked = request.into_inner();
        let wrong = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        for (key, value) in &asked.labels {
            limits::check_host_label(key, value).map_err(|error| wrong(&error))?;
        }
        let networks = asked.networks.iter().map(|text| text.parse());
        let options = TokenOptions {
            uses: asked.uses,
            ttl: Duration::from_secs(asked.ttl_seconds),
            labels: asked.labels,
            networks: networks
                .collect::<Result<_, NetworkError>>()
                .map_err(|error| wrong(&error))?,
            approve: asked.approve,
            replaces: Some(asked.replaces).filter(|name| !name.is_empty()),
        };
        let (now, ttl) = (self.parts.clock.now(), options.ttl);
        let token = self
            .parts
            .control
            .create_token(self.parts.authority.pin(), options, &caller.name, now)
            .await
            .map_err(|error| match error {
                ControlError::TokenOption(_) => wrong(&error),
                error => failed("the token could not be made", &error),
            })?;
        Ok(Response::new(v1::CreateTokenResponse {
            token: token.to_string(),
            expires_ms: now.plus(ttl).as_millis(),
            enrolment_address: self.parts.enrolment_address.clone(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        self.access.admit(&request, "ListTokens").await?;
        let now = self.parts.clock.now();
        let tokens = self.parts.control.list_tokens(now).await;
        let tokens = tokens.map_err(|error| failed("the tokens cannot be read", &error))?;
        Ok(Response::new(v1::ListTokensResponse {
            meta: Some(complete(now)),
            tokens: tokens.into_iter().map(token_line).collect(),
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let caller = self.access.admit(&request, "RevokeToken").await?;
        let id = request.into_inner().id;
        let done = self
            .parts
            .control
            .revoke_token(&id, &caller.name, self.parts.clock.now())
            .await
            .map_err(|error| failed("the token could not be revoked", &error))?;
        if done {
            return Ok(Response::new(v1::RevokeTokenResponse {}));
        }
        Err(Status::not_found(
            "there is no such token that could still be used",
        ))
    }

    async fn list_waiting(
        &self,
        request: Request<v1::ListWaitingRequest>,
    ) -> Result<Response<v1::ListWaitingResponse>, Status> {
        self.access.admit(&request, "ListWaiting").await?;
        let now = self.parts.clock.now();
        let hosts = self.parts.control.waiting_hosts(now).await;
        let hosts = hosts.map_err(|error| failed("who waits cannot be read", &error))?;
        Ok(Response::new(v1::ListWaitingResponse {
            meta: Some(complete(now)),
            hosts: hosts
                .into_iter()
                .map(|host| v1::WaitingLine {
                    number: host.number,
                    hostname: host.hostname,
                    os: host.os,
                    address: host.address,
                    fingerprint: host.fingerprint,
                    token_id: host.token_id,
                    asked_ms: host.asked.as_millis(),
                })
                .collect(),
        }))
    }

    async fn decide_waiting(
        &self,
        request: Request<v1::DecideWaitingRequest>,
    ) -> Result<Response<v1::DecideWaitingResponse>, Status> {
        let caller = self.access.admit(&request, "DecideWaiting").await?;
        let asked = request.into_inner();
        let decided = self
            .parts
            .control
            .decide_waiting(
                asked.number,
                asked.approve,
                &caller.name,
                self.parts.clock.now(),
            )
            .await
            .map_err(|error| failed("nothing was decided", &error))?;
        match decided {
            Some(hostname) => Ok(Response::new(v1::DecideWaitingResponse { hostname })),
            None => Err(Status::not_found(format!(
                "no host waits under the number {}",
                asked.number
            ))),
        }
    }

    async fn release_host(
        &self,
        request: Request<v1::ReleaseHostRequest>,
    ) -> Result<Response<v1::ReleaseHostResponse>, Status> {
        let caller = self.access.admit(&request, "ReleaseHost").await?;
        let name = request.into_inner().name;
        let fleet = &self.parts.fleet;
        let found = fleet.host(&name, |host, _| (host.id(), host.name().to_owned()));
        let Some((id, name)) = found.await else {
            return Err(Status::not_found(format!("no host is called {name}")));
        };
        let now = self.parts.clock.now();
        let released = self
            .parts
            .control
            .release_host(id, &caller.name, now)
            .await
            .map_err(|error| failed("the host was not released", &error))?;
        let Some(since) = released else {
            return Err(Status::not_found(format!("{name} is not in quarantine")));
        };
        let evidence = format!("released by {}", caller.name);
        let cleared = ingest::copy_transition(since, now, Change::Cleared { evidence });
        self.parts.sink.report(id, &name, vec![cleared]);
        // Whichever machine is the host says Hello anew.
        fleet.cut(id).await;
        Ok(Response::new(v1::ReleaseHostResponse { name }))
    }

    async fn get_authority(
        &self,
        request: Request<v1::GetAuthorityRequest>,
    ) -> Result<Response<v1::AuthorityStatus>, Status> {
        self.access.admit(&request, "GetAuthority").await?;
        rotation::status(&self.parts).await.map(Response::new)
    }

    async fn rotate_authority(
        &self,
        request: Request<v1::RotateAuthorityRequest>,
    ) -> Result<Response<v1::AuthorityStatus>, Status> {
        let caller = self.access.admit(&request, "RotateAuthority").await?;
        let asked = request.into_inner();
        let how = (asked.force, &asked.root_key[..]);
        rotation::step(&self.parts, asked.step(), how, &caller.name).await?;
        rotation::status(&self.parts).await.map(Response::new)
    }
}

pub(super) fn complete(now: Timestamp) -> v1::AnswerMeta {
    v1::AnswerMeta {
        complete: true,
        missing: Vec::new(),
        as_of_ms: now.as_millis(),
    }
}

fn token_line(row: TokenRow) -> v1::TokenLine {
    v1::TokenLine {
        id: row.id,
        state: row.state.word().to_owned(),
        uses: row.uses,
        used: row.used,
        labels: row.labels,
        created_ms: row.created.as_millis(),
        expires_ms: row.expires.as_millis(),
        networks: row.networks.iter().map(Network::to_string).collect(),
        approve: row.approve,
        replaces: row
            .replaces
            .map_or_else(String::new, |host| host.to_string()),
    }
}
