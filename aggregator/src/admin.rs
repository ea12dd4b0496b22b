//! The admin socket's service: the first operator certificate, and recovery when all have expired.
//!
//! Who may call is decided by the socket's mode and the caller's uid ([`crate::listen::unix`]); whoever may could
//! read the authority's keys as well.

use std::{io, path::Path, sync::Arc, time::Duration};

use muster_proto::{
    spiffe::check_operator_name,
    time::Clock,
    v1::{
        self,
        admin_server::{Admin, AdminServer},
    },
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    control::{Control, OperatorRole},
    listen::unix::{self, LocalConn, LocalPeer},
    pki::{self, Authority},
};

/// What the service needs.
#[derive(Clone)]
pub struct AdminSocket {
    /// Roles and the audit log.
    pub control: Control,
    /// Signs.
    pub authority: Arc<Authority>,
    /// Told to operators: host:port of the operators' door.
    pub operator_address: String,
    /// Told to operators.
    pub fleet_name: String,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

impl AdminSocket {
    /// Serves on the socket at `path` until `stop`.
    ///
    /// # Errors
    /// When the socket cannot be made or serving ends.
    pub async fn run(self, path: &Path, stop: CancellationToken) -> anyhow::Result<()> {
        let incoming = unix::listen(path, stop.clone()).map_err(|error| {
            anyhow::Error::new(error).context(format!("admin socket {}", path.display()))
        })?;
        Ok(self.serve(incoming, stop).await?)
    }

    /// Serves on connections that were accepted elsewhere, until `stop`.
    ///
    /// # Errors
    /// When serving ends before it was told to.
    pub async fn serve(
        self,
        incoming: ReceiverStream<io::Result<LocalConn>>,
        stop: CancellationToken,
    ) -> Result<(), tonic::transport::Error> {
        Server::builder()
            .timeout(Duration::from_secs(10))
            .add_service(AdminServer::new(self))
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await
    }
}

#[tonic::async_trait]
impl Admin for AdminSocket {
    async fn issue_operator(
        &self,
        request: Request<v1::IssueOperatorRequest>,
    ) -> Result<Response<v1::IssueOperatorResponse>, Status> {
        let uid = request
            .extensions()
            .get::<LocalPeer>()
            .map(|peer| peer.uid)
            .ok_or_else(|| Status::internal("the caller's uid is not known"))?;
        let asked = request.into_inner();
        let now = self.clock.now();
        let wrong = |why: String| Status::invalid_argument(why);
        check_operator_name(&asked.name).map_err(|error| wrong(error.to_string()))?;
        let role: OperatorRole = asked
            .role
            .parse()
            .map_err(|error: crate::control::RoleError| wrong(error.to_string()))?;
        let csr = pki::Request::check(&asked.csr).map_err(|error| {
            wrong(format!(
                "the certificate request is not acceptable: {error}"
            ))
        })?;
        let failed = |error: &(dyn std::error::Error + 'static)| {
            tracing::error!(
                error = crate::chain(error),
                "an operator certificate could not be issued"
            );
            Status::unavailable("the aggregator cannot issue now; its log says why")
        };
        let issued = self
            .authority
            .issue_operator(&csr, &asked.name, now)
            .map_err(|error| failed(&error))?;
        let actor = format!("uid {uid}");
        self.control
            .operator_issued(&actor, &asked.name, role, &issued, *csr.fingerprint(), now)
            .await
            .map_err(|error| failed(&error))?;
        Ok(Response::new(v1::IssueOperatorResponse {
            certificate_chain: issued
                .chain
                .iter()
                .map(|certificate| certificate.to_vec())
                .collect(),
            bundle: Some(self.authority.bundle()),
            operator_address: self.operator_address.clone(),
            fleet_name: self.fleet_name.clone(),
            trust_domain: self.authority.trust_domain().to_string(),
            expires_ms: issued.not_after.as_millis(),
        }))
    }
}
