//! `muster login`: a key made here, a certificate from the aggregator's admin socket, a context to use it.
//!
//! Who may open the socket is decided by its mode and the caller's uid. The private key never leaves this
//! process but into a file with mode 0600.

use std::path::Path;

use muster_proto::{
    spiffe::{TrustDomain, check_operator_name},
    time::Timestamp,
    v1::{IssueOperatorRequest, IssueOperatorResponse, admin_client::AdminClient},
};
use rustls_pki_types::CertificateDer;
use tokio::net::UnixStream;

use super::{
    client::{Noted, channel, tilde},
    context::{self, Material},
    failure::{Code, Failure, chain},
    units::rfc3339,
    user::User,
};

/// Gets a certificate and writes the context, as `owner` from then on; says what was done.
///
/// # Errors
/// Whatever stood in the way.
pub async fn login(
    socket: &Path,
    name: &str,
    role: &str,
    context_name: Option<&str>,
    server: Option<&str>,
    config: &Path,
    owner: Option<&User>,
) -> Result<String, Failure> {
    check_operator_name(name).map_err(|error| {
        Failure::new(
            Code::Usage,
            format!("{name:?} cannot be an operator's name ({error})"),
        )
        .hint("muster login --name NAME …", "choose another")
    })?;
    let failed = |what: &str, error: &dyn std::error::Error| {
        Failure::new(Code::Failed, format!("{what} ({})", chain(error)))
    };
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| failed("no key could be made", &error))?;
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .map_err(|error| failed("no request could be made", &error))?;
    let answer = issue(socket, name, role, csr.der().to_vec()).await?;
    let domain: TrustDomain = answer.trust_domain.parse().map_err(|error| {
        failed(
            "the aggregator answered with a trust domain that is none",
            &error,
        )
    })?;
    let der = |certificates: &[Vec<u8>]| -> Vec<CertificateDer<'static>> {
        certificates
            .iter()
            .cloned()
            .map(CertificateDer::from)
            .collect()
    };
    let roots = answer
        .bundle
        .map_or(Vec::new(), |bundle| der(&bundle.roots));
    let fleet = answer.fleet_name;
    let suggested = if context::check_name(&fleet).is_ok() {
        fleet.as_str()
    } else {
        "default"
    };
    let context_name = context_name.unwrap_or(suggested);
    if let Some(owner) = owner {
        owner.act_as().map_err(|error| {
            failed(
                &format!("the context cannot be written as {}", owner.name),
                &error,
            )
        })?;
    }
    check_place(config, context_name, &domain)?;
    let server = server.unwrap_or(&answer.operator_address);
    let material = Material {
        server,
        trust_domain: &domain,
        fleet: &fleet,
        roots: &roots,
        chain: &der(&answer.certificate_chain),
        key_pem: &key.serialize_pem(),
        role,
    };
    context::write(config, context_name, &material, true)
        .map_err(|error| failed("the context cannot be kept", &error))?;
    Ok(format!(
        "signed in to {server} as {name}, role {role}, until {}\ncontext \"{context_name}\" is in {} and in use\nnext: muster",
        rfc3339(Timestamp::from_millis(answer.expires_ms)),
        tilde(&config.display().to_string()),
    ))
}

/// A context of this name must not belong to another installation: its key would be gone.
fn check_place(config: &Path, name: &str, domain: &TrustDomain) -> Result<(), Failure> {
    let known = context::read(config).map_err(|error| {
        Failure::new(
            Code::Failed,
            format!("the contexts cannot be read ({})", chain(&error)),
        )
    })?;
    match known.contexts.get(name) {
        Some(context) if context.trust_domain != *domain => Err(Failure::new(
            Code::Failed,
            format!("context {name:?} belongs to another aggregator and is kept"),
        )
        .because(format!(
            "it is for {} at {}, this aggregator is {domain}",
            context.trust_domain, context.server
        ))
        .hint("muster login --context NAME …", "under another name")
        .hint(
            format!("muster context remove {name}"),
            "if the other aggregator is gone",
        )),
        _ => Ok(()),
    }
}

async fn issue(
    socket: &Path,
    name: &str,
    role: &str,
    csr: Vec<u8>,
) -> Result<IssueOperatorResponse, Failure> {
    let path = socket.display();
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::PermissionDenied {
            Code::Denied
        } else {
            Code::Unreachable
        };
        let failure = Failure::new(
            code,
            format!("cannot open the admin socket {path} ({error})"),
        );
        if code == Code::Denied {
            failure.hint("", "run this as root or as the aggregator's own user")
        } else {
            failure.hint(
                "systemctl status muster-aggregator",
                "is it running on this machine?",
            )
        }
    })?;
    let unreachable = |why: String| {
        Failure::new(
            Code::Unreachable,
            format!("the admin socket {path} does not answer ({why})"),
        )
    };
    let channel = channel(stream, Noted::default())
        .await
        .map_err(|error| unreachable(chain(&error)))?;
    let request = IssueOperatorRequest {
        name: name.to_owned(),
        role: role.to_owned(),
        csr,
    };
    let answer = AdminClient::new(channel)
        .issue_operator(request)
        .await
        .map_err(|status| match status.code() {
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Failure::new(
                Code::Denied,
                format!("the aggregator issues no certificate to {name}"),
            )
            .because(status.message())
            .hint("", "run this as root or as the aggregator's own user"),
            tonic::Code::Unavailable => unreachable(status.message().to_owned()),
            _ => Failure::new(
                Code::Failed,
                format!("the aggregator issues no certificate to {name}"),
            )
            .because(status.message())
            .hint("journalctl -u muster-aggregator", "what went wrong there"),
        })?;
    Ok(answer.into_inner())
}
