//! TLS of checks: connections to other people's servers, and how long their certificates last.
//!
//! Unlike Muster's own connections these speak TLS 1.2 as well, as half of the world does. A handshake is
//! finished even with a certificate that is not trusted, so that its expiry is known; whoever would send
//! something asks [`Peer::fault`] first.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Cause, Finding, Run, Status, Threads,
    config::{Expiry, TlsCheck, Trust},
    net, starttls,
};
use crate::settings::show_duration;

/// Where distributions keep the issuers they trust: Debian, RHEL, SUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Largest file of certificates that is read; the bundles have about 250 KB.
const MAX_PEM_BYTES: u64 = 4 * 1024 * 1024;

/// The issuers of the latest file that was read: parsing a bundle at each run would be the dearest part of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Clients {
    kept: Arc<Mutex<Vec<Kept>>>,
}

#[derive(Debug, Clone)]
struct Kept {
    path: PathBuf,
    changed: Option<SystemTime>,
    trusted: Trusted,
}

/// Who is trusted.
#[derive(Debug, Clone)]
struct Trusted {
    roots: Arc<RootCertStore>,
    /// Certificates that a `ca_file` has: a server that shows one of them is that server, whatever it says about
    /// itself. `openssl req -x509` makes such, and webpki takes none that calls itself an authority.
    pinned: Arc<[CertificateDer<'static>]>,
}

impl Clients {
    /// The issuers that are trusted; read again when their file has changed.
    async fn trusted(&self, run: &Run<'_>, trust: &Trust) -> Result<Trusted, Finding> {
        let kept = Arc::clone(&self.kept);
        let wanted = trust.ca_file.clone();
        run.aside(Threads::Files, move || trusted(&kept, wanted))
            .await?
            .map_err(|(path, error)| {
                Finding::unknown(
                    Cause::Error,
                    format!("trusted issuers: {}: {error}", path.display()),
                )
            })
    }
}

fn trusted(
    kept: &Mutex<Vec<Kept>>,
    wanted: Option<PathBuf>,
) -> Result<Trusted, (PathBuf, io::Error)> {
    let is_own = wanted.is_some();
    let path = wanted.unwrap_or_else(|| {
        let there = BUNDLES.iter().map(PathBuf::from).find(|path| path.exists());
        there.unwrap_or_else(|| PathBuf::from(BUNDLES[0]))
    });
    let changed = fs::metadata(&path).and_then(|about| about.modified()).ok();
    // Not held while a file is read: one that hangs is one check's trouble.
    let lock = || kept.lock().unwrap_or_else(PoisonError::into_inner);
    let is_it = |known: &&Kept| known.path == path && known.changed == changed;
    if let Some(known) = lock().iter().find(is_it) {
        return Ok(known.trusted.clone());
    }
    let mut store = RootCertStore::empty();
    let certificates = certificates(&path).map_err(|error| (path.clone(), error))?;
    let pinned = match is_own {
        true => certificates.clone().into(),
        false => Arc::default(),
    };
    // One that is not understood, as there always is, is no reason to trust none.
    store.add_parsable_certificates(certificates);
    if store.is_empty() {
        return Err((
            path,
            io::Error::other("no certificate of an issuer is in it"),
        ));
    }
    let trusted = Trusted {
        roots: Arc::new(store),
        pinned,
    };
    let mut kept = lock();
    kept.retain(|known| known.path != path);
    kept.push(Kept {
        path,
        changed,
        trusted: trusted.clone(),
    });
    Ok(trusted)
}

/// The certificates of a file in PEM.
fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let bytes = super::file::read_bounded(path, MAX_PEM_BYTES)?;
    CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| io::Error::other(format!("is no PEM: {error}")))
}

/// A server that we spoke TLS with.
pub(super) struct Peer {
    /// The connection.
    pub(super) stream: TlsStream<TcpStream>,
    /// When its certificate expires, in seconds since 1970.
    pub(super) expires: Option<i64>,
    /// Why it is not trusted.
    pub(super) fault: Option<Finding>,
}

/// Speaks TLS on a connection.
pub(super) async fn handshake(
    run: &Run<'_>,
    stream: TcpStream,
    name: &str,
    trust: &Trust,
) -> Result<Peer, Finding> {
    let server = ServerName::try_from(name.to_owned())
        .map_err(|_| Finding::unknown(Cause::Error, format!("{name:?} is no name of a server")))?;
    let provider = Arc::new(ring::default_provider());
    let judge = match trust.verify {
        true => {
            let Trusted { roots, pinned } = run.tools.tls.trusted(run, trust).await?;
            let built = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
            let built = built.build().map_err(|error| {
                Finding::unknown(Cause::Error, format!("trusted issuers: {error}"))
            })?;
            Some((built, pinned))
        }
        false => None,
    };
    let client = match &trust.client {
        Some((certificate, key)) => Some(own_identity(run, certificate, key).await?),
        None => None,
    };
    let witness = Arc::new(Witness {
        judge,
        strict: client.is_some(),
        provider: Arc::clone(&provider),
        objection: Mutex::new(None),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| Finding::unknown(Cause::Error, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>);
    let config = match client {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| {
            Finding::unknown(Cause::Error, format!("client_cert and client_key: {error}"))
        })?,
        None => config.with_no_client_auth(),
    };
    let stream = TlsConnector::from(Arc::new(config))
        .connect(server, stream)
        .await
        .map_err(|error| match (witness.take(), error.get_ref()) {
            (Some(objection), _) => objected(&objection),
            (None, Some(inner)) if inner.is::<Error>() => {
                Finding::critical(Cause::Tls, format!("TLS: {inner}"))
            }
            _ => net::failed("TLS", &error),
        })?;
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let expires = leaf.and_then(|leaf| expires(leaf));
    Ok(Peer {
        stream,
        expires,
        fault: witness.take().map(|error| Finding {
            expires,
            ..objected(&error)
        }),
    })
}

/// The certificate and key that say who we are.
async fn own_identity(
    run: &Run<'_>,
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Finding> {
    let (chain_file, key_file) = (certificate.to_owned(), key.to_owned());
    let read = move || {
        let chain = certificates(&chain_file).map_err(|error| (chain_file, error))?;
        let key = super::file::read_bounded(&key_file, MAX_PEM_BYTES).and_then(|bytes| {
            PrivateKeyDer::from_pem_slice(&bytes)
                .map_err(|error| io::Error::other(format!("has no key in PEM: {error}")))
        });
        Ok((chain, key.map_err(|error| (key_file, error))?))
    };
    let read = run.aside(Threads::Files, read).await?;
    read.map_err(|(path, error): (PathBuf, io::Error)| {
        let message = format!("client certificate: {}: {error}", path.display());
        Finding::unknown(Cause::Error, message)
    })
}

/// What an objection against a certificate means.
fn objected(error: &Error) -> Finding {
    use CertificateError as Wrong;
    let cause = match error {
        Error::InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. }) => {
            Cause::CertificateExpiry
        }
        Error::InvalidCertificate(
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. },
        ) => Cause::CertificateName,
        _ => Cause::CertificateUntrusted,
    };
    Finding::critical(cause, format!("certificate: {error}"))
}

/// When a certificate expires, in seconds since 1970; `None` if it is not understood.
fn expires(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// What remains of a certificate's life, judged. `now` in seconds since 1970.
pub(super) fn judge_expiry(expires: i64, expiry: &Expiry, now: i64) -> Finding {
    let left = expires.saturating_sub(now);
    let days = left / 86_400;
    let below = |limit: Duration| i64::try_from(limit.as_secs()).is_ok_and(|limit| left < limit);
    let (status, cause, message) = if left <= 0 {
        let message = format!("the certificate has expired {} days ago", -days);
        (Status::Critical, Cause::CertificateExpiry, message)
    } else if below(expiry.crit) || below(expiry.warn) {
        let (status, limit) = match below(expiry.crit) {
            true => (Status::Critical, expiry.crit),
            false => (Status::Warning, expiry.warn),
        };
        let limit = show_duration(limit);
        let message = format!("the certificate expires in {days} days, in less than {limit}");
        (status, Cause::CertificateExpiry, message)
    } else {
        let message = format!("the certificate is good for {days} days");
        (Status::Ok, Cause::Ok, message)
    };
    Finding {
        expires: Some(expires),
        ..Finding::new(status, cause, message)
    }
}

pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// The check of a certificate.
pub(super) async fn ask(run: &Run<'_>, check: &TlsCheck) -> Result<Finding, Finding> {
    if let Some(path) = &check.file {
        return in_file(run, path, &check.expiry).await;
    }
    let (host, port) = check.address.clone().unwrap_or_default();
    let mut stream = net::connect(run, &host, port).await?;
    if let Some(protocol) = check.starttls {
        starttls::upgrade(&mut stream, protocol).await?;
    }
    let name = match check.server_name.as_str() {
        "" => &host,
        name => name,
    };
    let peer = handshake(run, stream, name, &check.trust).await?;
    if let Some(fault) = peer.fault {
        return Err(fault);
    }
    peer.expires
        .map(|expires| judge_expiry(expires, &check.expiry, now()))
        .ok_or_else(|| Finding::unknown(Cause::Error, "the certificate is not understood"))
}

/// The one of all certificates in a file that expires first.
async fn in_file(run: &Run<'_>, path: &Path, expiry: &Expiry) -> Result<Finding, Finding> {
    let owned = path.to_owned();
    let found = run
        .aside(Threads::Files, move || certificates(&owned))
        .await?;
    let shown = path.display();
    let found = found.map_err(|error| super::file::failed(path, &error))?;
    let first = found.iter().map(expires).min();
    match first {
        None => Err(Finding::critical(
            Cause::Content,
            format!("{shown}: no certificate is in it"),
        )),
        // Least of all: one of them is not understood.
        Some(None) => Err(Finding::unknown(
            Cause::Content,
            format!("{shown}: a certificate in it is not understood"),
        )),
        Some(Some(expires)) => Ok(judge_expiry(expires, expiry, now())),
    }
}

/// Lets every handshake end, and remembers what is wrong with the certificate.
#[derive(Debug)]
struct Witness {
    /// Ends the handshake at once: nobody is told who we are before it is known whom.
    strict: bool,
    /// Judges name and issuer; `None` for not at all.
    judge: Option<(Arc<WebPkiServerVerifier>, Arc<[CertificateDer<'static>]>)>,
    provider: Arc<CryptoProvider>,
    objection: Mutex<Option<Error>>,
}

impl Witness {
    fn take(&self) -> Option<Error> {
        let objection = self.objection.lock();
        objection.unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = match &self.judge {
            // Issuer and purpose are beyond doubt; when it expires is judged later in any case.
            Some((_, pinned)) if pinned.contains(leaf) => {
                ParsedCertificate::try_from(leaf).and_then(|leaf| verify_server_name(&leaf, name))
            }
            Some((judge, _)) => judge
                .verify_server_cert(leaf, intermediates, name, ocsp, now)
                .map(drop),
            None => Ok(()),
        };
        if let Err(error) = judged {
            let mut objection = self
                .objection
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *objection = Some(error.clone());
            if self.strict {
                return Err(error);
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let known = &self.provider.signature_verification_algorithms;
        known.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rustls::{ServerConfig, server::WebPkiClientVerifier};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::check::{Kind, testing};

    const DAY: i64 = 86_400;

    #[test]
    fn expiry_is_judged() {
        let expiry = Expiry::default();
        for (days, status, said) in [
            (90, Status::Ok, "good for 90 days"),
            (20, Status::Warning, "in 20 days, in less than 21d"),
            (6, Status::Critical, "in 6 days, in less than 7d"),
            (-3, Status::Critical, "expired 3 days ago"),
        ] {
            let finding = judge_expiry(1_000_000 + days * DAY, &expiry, 1_000_000);
            assert_eq!(finding.status, status, "{days}");
            assert!(finding.message.contains(said), "{}", finding.message);
            assert_eq!(finding.expires, Some(1_000_000 + days * DAY));
        }
        assert_eq!(
            judge_expiry(i64::MIN, &expiry, i64::MAX).status,
            Status::Critical
        );
    }

    /// A server with a certificate of its own making, which a file vouches for.
    async fn server(name: &str) -> (u16, tempfile::NamedTempFile) {
        server_for(name, None).await
    }

    /// The same, for clients that show this certificate only.
    async fn server_for(
        name: &str,
        client: Option<CertificateDer<'static>>,
    ) -> (u16, tempfile::NamedTempFile) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let chain = vec![made.cert.der().clone()];
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("TLS 1.2");
        let config = match client {
            Some(client) => {
                let mut roots = RootCertStore::empty();
                roots.add(client).expect("a certificate");
                let roots = Arc::new(roots);
                let judge = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                config.with_client_cert_verifier(judge.expect("a verifier"))
            }
            None => config.with_no_client_auth(),
        };
        let config = config.with_single_cert(chain, key).expect("a server");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(made.cert.pem().as_bytes()).expect("written");
        (port, file)
    }

    #[tokio::test]
    async fn issuer_and_name_are_judged_and_the_expiry_is_known_in_any_case() {
        let (port, file) = server("good.example").await;
        let check = |server_name: &str, trust| TlsCheck {
            address: Some(("127.0.0.1".to_owned(), port)),
            server_name: server_name.to_owned(),
            trust,
            ..TlsCheck::default()
        };
        let pinned = Trust {
            ca_file: Some(file.path().to_owned()),
            ..Trust::default()
        };
        let (_, stranger) = server("other.example").await;
        let strange = Trust {
            ca_file: Some(stranger.path().to_owned()),
            ..Trust::default()
        };
        let any = Trust {
            verify: false,
            ..Trust::default()
        };
        for (name, trust, cause) in [
            ("good.example", &pinned, Cause::Ok),
            ("bad.example", &pinned, Cause::CertificateName),
            ("good.example", &strange, Cause::CertificateUntrusted),
            ("bad.example", &any, Cause::Ok),
        ] {
            let finding = testing::run(Kind::Tls(check(name, trust.clone()))).await;
            assert_eq!(finding.cause, cause, "{name}: {}", finding.message);
            assert!(finding.expires.is_some(), "{name}");
        }
        let in_file = TlsCheck {
            file: Some(file.path().to_owned()),
            ..TlsCheck::default()
        };
        assert_eq!(testing::run(Kind::Tls(in_file)).await.status, Status::Ok);
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    #[tokio::test]
    async fn a_client_certificate_is_shown_to_whom_we_trust() {
        let own = rcgen::generate_simple_self_signed(["host-1".to_owned()]).expect("a certificate");
        let (port, trusted) = server_for("good.example", Some(own.cert.der().clone())).await;
        let certificate = written(&own.cert.pem());
        let key = written(&own.signing_key.serialize_pem());
        let path = |file: &tempfile::NamedTempFile| file.path().to_owned();
        let missing = || PathBuf::from("/does/not/exist");
        for (ca_file, client, cause) in [
            (path(&trusted), None, Cause::Tls),
            (
                path(&trusted),
                Some((path(&certificate), path(&key))),
                Cause::Ok,
            ),
            (
                path(&trusted),
                Some((path(&certificate), missing())),
                Cause::Error,
            ),
            // Its own certificate: the server is another, and hears nothing of us.
            (
                path(&certificate),
                Some((path(&certificate), path(&key))),
                Cause::CertificateUntrusted,
            ),
        ] {
            let check = TlsCheck {
                address: Some(("127.0.0.1".to_owned(), port)),
                server_name: "good.example".to_owned(),
                trust: Trust {
                    ca_file: Some(ca_file),
                    client: client.clone(),
                    ..Trust::default()
                },
                ..TlsCheck::default()
            };
            let finding = testing::run(Kind::Tls(check)).await;
            assert_eq!(finding.cause, cause, "{client:?}: {}", finding.message);
        }
    }

    #[tokio::test]
    async fn what_does_not_speak_tls_is_said_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").await;
            }
        });
        let check = TlsCheck {
            address: Some(("127.0.0.1".to_owned(), port)),
            trust: Trust {
                verify: false,
                ..Trust::default()
            },
            ..TlsCheck::default()
        };
        let finding = testing::run(Kind::Tls(check)).await;
        assert!(
            matches!(finding.cause, Cause::Tls | Cause::Protocol),
            "{finding:?}"
        );
    }

    #[tokio::test]
    async fn a_file_without_certificates_is_not_ok() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"nothing").expect("written");
        let check = |path: &Path| {
            Kind::Tls(TlsCheck {
                file: Some(path.to_owned()),
                ..TlsCheck::default()
            })
        };
        let finding = testing::run(check(file.path())).await;
        assert_eq!(finding.cause, Cause::Content);
        let finding = testing::run(check(Path::new("/does/not/exist"))).await;
        assert_eq!(finding.cause, Cause::Missing);
    }
}
