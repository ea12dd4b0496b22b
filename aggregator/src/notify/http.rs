//! A small HTTPS client: one request, one connection, a bounded answer.
//!
//! Certificates are judged by the roots of the system (the bundle the distribution keeps, or `SSL_CERT_FILE`), because
//! most receivers are inside and their authority is known there and to no list compiled into a program; a channel can
//! name a file of its own instead. Redirects are not followed: they would carry secrets elsewhere. TLS 1.2 is spoken to
//! receivers beside 1.3, as many have nothing newer; our own doors do not.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use muster_proto::tls::provider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// Where distributions keep the roots they trust: Debian and Ubuntu, Fedora and RHEL, SUSE, Alpine.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Of an answer so much is read: enough to say why something was refused.
const MAX_REPLY_BYTES: usize = 16 * 1024;
/// Of a refusal so many characters are kept for people.
const SHOWN: usize = 300;

/// Why a message did not go out.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The certificates to trust cannot be read.
    #[error("the root certificates in {path} cannot be used: {why}")]
    Roots {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// No connection.
    #[error("no connection to {to}")]
    Connect {
        /// `host:port`.
        to: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The other side is not who it should be, or speaks no TLS.
    #[error("no TLS with {to}")]
    Tls {
        /// `host:port`.
        to: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the conversation with {to} broke off: {why}")]
    Broken {
        /// `host:port`.
        to: String,
        /// What happened.
        why: String,
    },
    /// It took too long.
    #[error("no answer from {to} within {} s", .after.as_secs())]
    Late {
        /// `host:port`.
        to: String,
        /// The time allowed.
        after: Duration,
    },
    /// The other side refused.
    #[error("{to} answered {answer}")]
    Refused {
        /// `host:port`.
        to: String,
        /// Status and the beginning of what it said.
        answer: String,
        /// Whether the same message will be refused again.
        for_good: bool,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// The message cannot be sent as it is.
    #[error("the message cannot be sent: {0}")]
    Message(String),
}

impl SendError {
    /// Whether trying the same message again is in vain.
    #[must_use]
    pub fn is_for_good(&self) -> bool {
        matches!(
            self,
            Self::Refused { for_good: true, .. } | Self::Message(_)
        )
    }

    /// When the other side wants to be asked again.
    #[must_use]
    pub fn after(&self) -> Option<Duration> {
        match self {
            Self::Refused { after, .. } => *after,
            _ => None,
        }
    }
}

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// `Retry-After` in seconds.
    pub after: Option<Duration>,
    /// The beginning of the body.
    pub body: String,
}

impl Reply {
    /// Fails unless the status says that the message was taken.
    ///
    /// # Errors
    /// The refusal.
    pub fn accepted(self, to: &Uri) -> Result<Self, SendError> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let said: String = self.body.trim().chars().take(SHOWN).collect();
        let said = said.replace(|c: char| c.is_control(), " ");
        Err(SendError::Refused {
            to: authority(to),
            answer: format!("{} {said}", self.status).trim_end().to_owned(),
            // Wrong for good: malformed, too large, not understood. Others may be mended on the other side.
            for_good: matches!(self.status, 400 | 411 | 413 | 414 | 415 | 422),
            after: self.after,
        })
    }
}

/// Speaks TLS and HTTP/1.1.
#[derive(Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// Trusts the certificates in `roots`, or those of the system. A system without any can only be spoken to in plain.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn new(roots: Option<&Path>) -> Result<Self, SendError> {
        let store = match roots {
            Some(path) => roots_in(path)?,
            None => system_roots(),
        };
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| SendError::Message(error.to_string()))?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    /// Sends a request to its absolute address and reads the answer.
    ///
    /// # Errors
    /// Whatever stood in the way; a refusal is an answer.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Reply, SendError> {
        let to = authority(request.uri());
        let late = || SendError::Late {
            to: to.clone(),
            after: timeout,
        };
        tokio::time::timeout(timeout, self.exchange(request, &to))
            .await
            .map_err(|_| late())?
    }

    /// A TLS connection over one that is there.
    ///
    /// # Errors
    /// When the other side is not who it should be.
    pub async fn secure(
        &self,
        stream: TcpStream,
        host: &str,
        to: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, SendError> {
        let failed = |source| SendError::Tls {
            to: to.to_owned(),
            source,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        connector.connect(name, stream).await.map_err(failed)
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        to: &str,
    ) -> Result<Reply, SendError> {
        let uri = request.uri().clone();
        let host = uri.host().unwrap_or_default().to_owned();
        let stream = connect(to).await?;
        if let Ok(value) = uri.authority().map_or("", |one| one.as_str()).parse() {
            request.headers_mut().insert(header::HOST, value);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path
            .parse()
            .map_err(|error| SendError::Message(format!("{path:?} is no path: {error}")))?;
        if uri.scheme_str() == Some("https") {
            let stream = self.secure(stream, &host, to).await?;
            converse(TokioIo::new(stream), request, to).await
        } else {
            converse(TokioIo::new(stream), request, to).await
        }
    }
}

/// Connects to `host:port`.
///
/// # Errors
/// When nobody answers there.
pub async fn connect(to: &str) -> Result<TcpStream, SendError> {
    let connected = TcpStream::connect(to).await;
    connected.map_err(|source| SendError::Connect {
        to: to.to_owned(),
        source,
    })
}

async fn converse<S>(
    stream: TokioIo<S>,
    request: Request<Full<Bytes>>,
    to: &str,
) -> Result<Reply, SendError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| SendError::Broken {
        to: to.to_owned(),
        why: crate::chain(&error),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(broken)?;
    // It ends with this function, whatever happens.
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let sent = sender.send_request(request).await;
    let reply = sent.map_err(broken)?;
    let status = reply.status().as_u16();
    let after = reply
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    // What comes after the bound, or breaks off, is not needed to know the status.
    let body = Limited::new(reply.into_body(), MAX_REPLY_BYTES)
        .collect()
        .await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(Reply {
        status,
        after,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// `host:port` of an address, with the port of its scheme if it names none.
#[must_use]
pub fn authority(uri: &Uri) -> String {
    let port = match (uri.port_u16(), uri.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("http")) => 80,
        (None, _) => 443,
    };
    format!("{}:{port}", uri.host().unwrap_or_default())
}

/// An address to send to: `http` or `https`, with a host.
///
/// # Errors
/// What was expected.
pub fn parse_uri(text: &str) -> Result<Uri, String> {
    let wrong = || format!("{text:?} is no address: write https://HOST/PATH");
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let host = uri.host().is_some_and(|host| !host.is_empty());
    match uri.scheme_str() {
        Some("http" | "https") if host => {}
        _ => return Err(wrong()),
    }
    if uri
        .authority()
        .is_some_and(|one| one.as_str().contains('@'))
    {
        return Err("an address has no room for a password: every log would show it".to_owned());
    }
    Ok(uri)
}

fn roots_in(path: &Path) -> Result<RootCertStore, SendError> {
    let wrong = |why: String| SendError::Roots {
        path: path.display().to_string(),
        why,
    };
    let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    Ok(store)
}

/// The roots of the system; such as cannot be understood are left out, as every program does.
fn system_roots() -> RootCertStore {
    let mut store = RootCertStore::empty();
    let named = std::env::var("SSL_CERT_FILE").ok();
    let places = named
        .iter()
        .map(String::as_str)
        .chain(SYSTEM_ROOTS.iter().copied());
    for place in places {
        if let Ok(pem) = fs::read(place) {
            let certificates = CertificateDer::pem_slice_iter(&pem).flatten();
            store.add_parsable_certificates(certificates);
            break;
        }
    }
    if store.is_empty() {
        tracing::debug!(
            "this system has no root certificates: only channels with a ca_file can use TLS"
        );
    }
    store
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_have_a_port() {
        for (text, expected) in [
            ("https://hooks.example/a?b=c", Ok("hooks.example:443")),
            ("http://127.0.0.1:9093/", Ok("127.0.0.1:9093")),
            ("http://[::1]:9093", Ok("[::1]:9093")),
            ("http://am", Ok("am:80")),
            ("ftp://x/", Err(())),
            ("hooks.example", Err(())),
            ("https:///x", Err(())),
            ("https://me:secret@x/", Err(())),
            ("", Err(())),
        ] {
            let found = parse_uri(text).map(|uri| authority(&uri));
            assert_eq!(found.as_deref().map_err(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn what_can_be_mended_is_tried_again() {
        let uri: Uri = "https://x/".parse().expect("an address");
        for (status, for_good) in [
            (400, true),
            (422, true),
            (401, false),
            (404, false),
            (429, false),
            (500, false),
            (302, false),
        ] {
            let reply = Reply {
                status,
                after: None,
                body: "no\u{1b}[31m".to_owned(),
            };
            let error = reply.accepted(&uri).expect_err("no success");
            assert_eq!(error.is_for_good(), for_good, "{status}");
            assert_eq!(
                error.to_string(),
                format!("x:443 answered {status} no [31m")
            );
        }
    }
}
