//! Joining: from a token to an identity.
//!
//! The key is made here and never leaves. Nothing is sent before the aggregator has shown the root whose
//! fingerprint stands in the token. An attempt that broke off can be repeated with the same token: the key is kept,
//! so the aggregator answers with the same identity.

use std::{
    fs,
    io::{self, BufRead as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use muster_proto::{
    id::HostId,
    limits::MAX_DOWNLINK_MESSAGE_BYTES,
    spiffe::{TrustDomain, peer_id},
    tls::{TlsFault, client_config_enrolment, fault, server_name},
    token::{Token, TokenError},
    v1::{self, enrolment_client::EnrolmentClient},
};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Endpoint;

use crate::identity::{IdentityError, Joining};

/// Port of the enrolment door when none is given.
pub const DEFAULT_PORT: u16 = 7444;

/// Name of the environment variable that may hold the token.
pub const TOKEN_VARIABLE: &str = "MUSTER_TOKEN";

/// How long a closed door is knocked at, and how often.
const DOOR_OPENS: Duration = Duration::from_secs(3);
const DOOR_KNOCK: Duration = Duration::from_millis(200);

/// Bound on connecting, and again on the answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why the host did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// Nobody answers.
    #[error(
        "cannot reach {address}: is the aggregator running, is a token live (the enrolment port is open only then), does a firewall stand between?"
    )]
    Unreachable {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The aggregator is not the one that made the token, or cannot be trusted for another reason. Nothing was sent.
    #[error("{address} is not trusted, nothing was sent to it")]
    Untrusted {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: TlsFault,
    },
    /// The handshake broke.
    #[error("the TLS handshake with {address} broke")]
    Handshake {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The aggregator says no.
    #[error("the aggregator refused: {0}")]
    Refused(String),
    /// The aggregator cannot answer now; the same token works again later.
    #[error("the aggregator gave no answer ({0}): run the same command again, with the same token")]
    NoAnswer(String),
    /// The answer is not what it should be.
    #[error("the aggregator's answer cannot be used: {0}")]
    Answer(&'static str),
    /// The key cannot be made or used.
    #[error("the host's key cannot be used")]
    Key(#[source] rcgen::Error),
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What joining gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Who this host is from now on.
    pub host_id: HostId,
    /// The installation it belongs to.
    pub trust_domain: TrustDomain,
    /// host:port of the uplink.
    pub uplink_address: String,
}

/// Joins the aggregator at `address` (host, or host:port) and stores the identity under `state`.
///
/// # Errors
/// When the host has joined before, the aggregator cannot be reached, is another than the token's, refuses, or the
/// identity cannot be stored.
pub async fn enrol(
    address: &str,
    token: &Token,
    facts: v1::HostFacts,
    state: &Path,
) -> Result<Joined, EnrolError> {
    let joining = Joining::begin(state)?;
    let key = match joining.key()? {
        Some(pem) => KeyPair::from_pem(&pem).map_err(EnrolError::Key)?,
        None => {
            let key = KeyPair::generate().map_err(EnrolError::Key)?;
            joining.store_key(&key.serialize_pem())?;
            key
        }
    };
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .map_err(EnrolError::Key)?;

    let (host, port) = split_address(address);
    let dialled = format!("{host}:{port}");
    let stream = connect(&dialled, token).await?;
    let trust_domain = domain_of(&stream)?;
    let request = v1::EnrolRequest {
        token_id: token.id().to_owned(),
        token_secret: token.secret().to_owned(),
        csr: csr.der().to_vec(),
        facts: Some(facts),
    };
    let answer = ask(stream, request).await?;

    let host_id = HostId::from_slice(&answer.host_id)
        .map_err(|_| EnrolError::Answer("it carries no host id"))?;
    let chain: Vec<CertificateDer<'static>> = answer
        .certificate_chain
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    check_leaf(chain.first(), host_id, &trust_domain)?;
    let bundle = answer
        .bundle
        .filter(|bundle| !bundle.roots.is_empty())
        .ok_or(EnrolError::Answer("it carries no trust bundle"))?;
    let uplink_address = if answer.uplink_address.starts_with(':') {
        format!("{host}{}", answer.uplink_address)
    } else {
        answer.uplink_address
    };
    let joined = Joined {
        host_id,
        trust_domain: trust_domain.clone(),
        uplink_address: uplink_address.clone(),
    };
    joining.finish(host_id, trust_domain, uplink_address, &chain, &bundle)?;
    Ok(joined)
}

/// Host and port; an IPv6 address keeps its brackets.
fn split_address(address: &str) -> (&str, u16) {
    let bracketed_or_name = address.ends_with(']') || address.matches(':').count() != 1;
    if bracketed_or_name && !address.contains("]:") {
        return (address, DEFAULT_PORT);
    }
    match address.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => (address, DEFAULT_PORT),
        },
        None => (address, DEFAULT_PORT),
    }
}

async fn connect(address: &str, token: &Token) -> Result<TlsStream<TcpStream>, EnrolError> {
    let unreachable = |source| EnrolError::Unreachable {
        address: address.to_owned(),
        source,
    };
    let tcp = timeout(PATIENCE, dial(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    let config = Arc::new(client_config_enrolment(*token.pin()));
    timeout(
        PATIENCE,
        TlsConnector::from(config).connect(server_name(), tcp),
    )
    .await
    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    .map_err(|error| match fault(&error) {
        Some(source) => EnrolError::Untrusted {
            address: address.to_owned(),
            source,
        },
        None => EnrolError::Handshake {
            address: address.to_owned(),
            source: error,
        },
    })
}

/// Connects. The door opens within a second after a token was made, so a refusal is tried again for a little
/// longer than that: whoever makes a token and uses it at once is not turned away.
async fn dial(address: &str) -> io::Result<TcpStream> {
    let began = Instant::now();
    loop {
        match TcpStream::connect(address).await {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && began.elapsed() < DOOR_OPENS =>
            {
                sleep(DOOR_KNOCK).await;
            }
            outcome => return outcome,
        }
    }
}

/// The installation as the verified leaf names it.
fn domain_of(stream: &TlsStream<TcpStream>) -> Result<TrustDomain, EnrolError> {
    let (_, session) = stream.get_ref();
    session
        .peer_certificates()
        .and_then(|chain| peer_id(chain.first()?).ok())
        .map(|peer| peer.id.domain().clone())
        .ok_or(EnrolError::Answer("its certificate names nobody"))
}

async fn ask(
    stream: TlsStream<TcpStream>,
    request: v1::EnrolRequest,
) -> Result<v1::EnrolResponse, EnrolError> {
    let mut one = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = one.take();
        async move {
            stream
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
        }
    });
    let channel = Endpoint::from_static("https://aggregator.muster.internal")
        .timeout(PATIENCE)
        .connect_with_connector(connector)
        .await
        .map_err(|error| EnrolError::NoAnswer(error.to_string()))?;
    let answer = EnrolmentClient::new(channel)
        .max_decoding_message_size(MAX_DOWNLINK_MESSAGE_BYTES)
        .enrol(request)
        .await;
    answer.map(tonic::Response::into_inner).map_err(|status| {
        use tonic::Code;
        let said = status.message().to_owned();
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::ResourceExhausted => EnrolError::Refused(said),
            code => EnrolError::NoAnswer(format!("{code:?}: {said}")),
        }
    })
}

/// The certificate must be for the host id beside it, in the aggregator's own installation.
fn check_leaf(
    leaf: Option<&CertificateDer<'_>>,
    host_id: HostId,
    trust_domain: &TrustDomain,
) -> Result<(), EnrolError> {
    let leaf = leaf.ok_or(EnrolError::Answer("it carries no certificate"))?;
    let peer = peer_id(leaf).map_err(|_| EnrolError::Answer("its certificate names nobody"))?;
    if peer.id.host() == Some(host_id) && peer.id.domain() == trust_domain {
        return Ok(());
    }
    Err(EnrolError::Answer("its certificate is for another host"))
}

// ---- where the token comes from ----------------------------------------------------------------------

/// Where a token is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// Given on the command line, where other users of the host can see it.
    Argument(String),
    /// A file; `-` is standard input.
    File(PathBuf),
    /// [`TOKEN_VARIABLE`] if it is set, else asked for.
    Ask,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenSourceError {
    /// It cannot be read.
    #[error("cannot read the join token from {from}")]
    Read {
        /// Where from.
        from: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was read is no token.
    #[error("what was given is no join token")]
    Token(#[from] TokenError),
}

/// Reads the token. One given as an argument is taken, with a warning on standard error.
///
/// # Errors
/// When it cannot be read or is no token.
pub fn read_token(source: &TokenSource) -> Result<Token, TokenSourceError> {
    let text = match source {
        TokenSource::Argument(text) => {
            eprintln!(
                "warning: every user of this host can see a token on the command line; use --token-file or paste it when asked"
            );
            text.clone()
        }
        TokenSource::File(path) if path == Path::new("-") => first_line()?,
        TokenSource::File(path) => {
            fs::read_to_string(path).map_err(|source| TokenSourceError::Read {
                from: path.display().to_string(),
                source,
            })?
        }
        TokenSource::Ask => match std::env::var(TOKEN_VARIABLE) {
            Ok(text) => text,
            Err(_) => {
                eprint!("Join token: ");
                // Without a prompt the question is only less clear.
                let _shown = io::stderr().flush();
                first_line()?
            }
        },
    };
    Ok(text.parse()?)
}

fn first_line() -> Result<String, TokenSourceError> {
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|source| TokenSourceError::Read {
            from: "standard input".to_owned(),
            source,
        })?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_come_without_its_port() {
        for (address, wanted) in [
            ("agg", ("agg", 7444)),
            ("agg.example:9000", ("agg.example", 9000)),
            ("192.0.2.1", ("192.0.2.1", 7444)),
            ("[2001:db8::1]", ("[2001:db8::1]", 7444)),
            ("[2001:db8::1]:9000", ("[2001:db8::1]", 9000)),
        ] {
            assert_eq!(split_address(address), wanted);
        }
    }

    #[test]
    fn a_token_file_may_end_with_a_line_break() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let token = Token::generate([1; 32], &ring::rand::SystemRandom::new()).expect("random");
        fs::write(&path, format!("{token}\n")).expect("written");
        let read = read_token(&TokenSource::File(path.clone())).expect("a token");
        assert_eq!(read, token);
        fs::write(&path, "mj1-zzz").expect("written");
        assert!(matches!(
            read_token(&TokenSource::File(path)),
            Err(TokenSourceError::Token(_))
        ));
    }
}
