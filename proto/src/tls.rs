//! TLS of all Muster's doors: version 1.3 only, one crypto provider, trust by issuer and SPIFFE id.
//!
//! Each door trusts one issuer and one kind of identity, so that forgetting a check later fails closed: an
//! agent's certificate is refused in the handshake on the operators' door and the other way round. Sessions
//! are never resumed, because a resumed session would skip the verification of a certificate that expired or
//! was withdrawn meanwhile. Clients do not look at host names: an aggregator is who its SPIFFE id says, so a new
//! address needs no new certificate.
//!
//! What went wrong in a handshake is told by [`fault`], for messages that help.

use std::{
    cell::RefCell,
    error::Error as StdError,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    OtherError, PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, SignatureVerificationAlgorithm, TrustAnchor,
    UnixTime,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::{
    spiffe::{PeerIdError, SpiffeId, TrustDomain, hex, peer_id},
    time::{Clock, SystemClock, Timestamp},
    token::pin_of,
};

/// No honest clock shows an earlier time: 2026-11-01T00:00:00Z, before the first release. A machine whose clock
/// fell back to 1970 can still verify its aggregator.
pub const EARLIEST_CREDIBLE: Timestamp = Timestamp::from_millis(1_793_491_200_000);

/// How long after its end an agent's certificate still opens the agents' door, where it can do nothing but renew
/// itself: a host that was switched off for a month comes back without a person.
pub const EXPIRED_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// ALPN of gRPC's doors.
const ALPN_H2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// A name for interfaces that want one; it is neither sent nor checked.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("aggregator.muster.internal").expect("a valid DNS name")
}

/// The one crypto provider of the program.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What went wrong with the other side's identity, or what it said about ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// Enrolment: the server's root is not the one in the token.
    #[error("the server's root has the fingerprint {found}, the token says {expected}")]
    WrongPin {
        /// Of the token, hexadecimal.
        expected: String,
        /// Of the certificate that the server sent last.
        found: String,
    },
    /// The certificate's life is over by the clock used here.
    #[error("the certificate expired at {}, it is now {}", utc(.not_after), utc(.now))]
    Expired {
        /// End of its life.
        not_after: Timestamp,
        /// The time it was compared with.
        now: Timestamp,
    },
    /// The certificate's life has not begun by the clock used here.
    #[error("the certificate is valid from {}, it is only {} here", utc(.not_before), utc(.now))]
    NotYetValid {
        /// Begin of its life.
        not_before: Timestamp,
        /// The time it was compared with.
        now: Timestamp,
    },
    /// It does not chain to what is trusted here.
    #[error("the certificate was not issued by an authority that is trusted here")]
    WrongIssuer,
    /// It chains, but is another's: an agent answers where the aggregator should, for example.
    #[error("the certificate speaks for {found}, which is not expected here")]
    WrongRole {
        /// Whom it names.
        found: String,
    },
    /// It is of another installation.
    #[error("the certificate belongs to the trust domain {found}, expected {expected}")]
    OtherTrustDomain {
        /// Ours.
        expected: TrustDomain,
        /// Theirs.
        found: TrustDomain,
    },
    /// It names nobody that we know how to read.
    #[error(transparent)]
    Nameless(PeerIdError),
    /// It cannot be used for another reason.
    #[error("the certificate cannot be used: {0}")]
    Unusable(String),
    /// The other side wants a certificate and got none.
    #[error("the other side wants a certificate")]
    CertificateRequired,
    /// The other side does not accept our certificate.
    #[error("the other side refused our certificate: {0}")]
    Refused(&'static str),
    /// What answers does not speak TLS.
    #[error("the other side does not speak TLS")]
    NotTls,
    /// It speaks TLS, but not version 1.3 or not HTTP/2.
    #[error("the other side does not speak TLS 1.3 with HTTP/2")]
    Incompatible,
}

/// Date and time for people, in UTC to the second.
fn utc(at: &Timestamp) -> String {
    let whole_seconds = at.as_millis().div_euclid(1000) * 1000;
    Timestamp::from_millis(whole_seconds).to_string()
}

/// Finds what TLS has against the other side (or it against us) anywhere in an error's chain of causes.
#[must_use]
pub fn fault(error: &(dyn StdError + 'static)) -> Option<TlsFault> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(fault) = error.downcast_ref::<TlsFault>() {
            return Some(fault.clone());
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return fault_of_rustls(tls);
        }
        // An io::Error hides what it wraps from `source` and skips one link.
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn fault_of_rustls(error: &rustls::Error) -> Option<TlsFault> {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(invalid) => Some(fault_of_certificate(invalid)),
        rustls::Error::NoCertificatesPresented => Some(TlsFault::CertificateRequired),
        rustls::Error::InvalidMessage(_) => Some(TlsFault::NotTls),
        rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => {
            Some(TlsFault::Incompatible)
        }
        rustls::Error::AlertReceived(alert) => match alert {
            Alert::CertificateRequired => Some(TlsFault::CertificateRequired),
            Alert::CertificateExpired => Some(TlsFault::Refused("it is expired")),
            Alert::CertificateRevoked => Some(TlsFault::Refused("it was revoked")),
            // The second: an authority made anew, with the names of the old one and other keys.
            Alert::UnknownCA | Alert::DecryptError => Some(TlsFault::Refused(
                "it was issued by another authority than this door trusts",
            )),
            Alert::BadCertificate | Alert::CertificateUnknown | Alert::AccessDenied => {
                Some(TlsFault::Refused("it is not accepted at this door"))
            }
            Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::NoApplicationProtocol => {
                Some(TlsFault::Incompatible)
            }
            _ => None,
        },
        _ => None,
    }
}

fn fault_of_certificate(error: &CertificateError) -> TlsFault {
    match error {
        CertificateError::ExpiredContext { time, not_after } => TlsFault::Expired {
            not_after: timestamp(*not_after),
            now: timestamp(*time),
        },
        CertificateError::NotValidYetContext { time, not_before } => TlsFault::NotYetValid {
            not_before: timestamp(*not_before),
            now: timestamp(*time),
        },
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsFault::WrongIssuer,
        CertificateError::Other(OtherError(inner)) => inner
            .downcast_ref::<TlsFault>()
            .cloned()
            .unwrap_or_else(|| TlsFault::Unusable(inner.to_string())),
        other => TlsFault::Unusable(other.to_string()),
    }
}

/// A fault in the form in which rustls passes it on; the alert to the other side stays general.
fn refuse(fault: TlsFault) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
}

fn timestamp(time: UnixTime) -> Timestamp {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 1000);
    Timestamp::from_millis(seconds.saturating_mul(1000))
}

fn unix_time(at: Timestamp) -> UnixTime {
    let millis = u64::try_from(at.as_millis()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_millis(millis))
}

// ---- what both ends present --------------------------------------------------------------------------

/// A certificate chain, leaf first, with the leaf's private key.
#[derive(Debug)]
pub struct Credentials {
    /// Leaf, then its issuers.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// Why a configuration cannot be made of what is there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// A certificate that should be trusted cannot be read.
    #[error("a trusted certificate cannot be read")]
    Anchor(#[source] webpki::Error),
    /// No certificate to trust was given.
    #[error("there is no certificate to trust")]
    NoAnchor,
    /// Chain and key do not fit, or the key cannot be used.
    #[error("the certificate chain and its key cannot be used")]
    Credentials(#[source] rustls::Error),
    /// The verifier cannot be made.
    #[error("the verifier of client certificates cannot be made")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

// ---- servers -----------------------------------------------------------------------------------------

/// Which identities a door lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Agents only.
    Agents,
    /// Operators only.
    Operators,
}

impl Door {
    fn admits(self, id: &SpiffeId) -> bool {
        matches!(
            (self, id),
            (Self::Agents, SpiffeId::Agent { .. }) | (Self::Operators, SpiffeId::Operator { .. })
        )
    }
}

/// The agents' door: client certificates of one of `issuers` that name an agent of `domain`. One that expired less than
/// [`EXPIRED_GRACE`] ago gets through, so whoever serves the connection must look at the end of its life and answer
/// nothing but a renewal.
///
/// # Errors
/// When the issuer cannot be read or the credentials do not fit.
pub fn server_config_agents(
    credentials: Credentials,
    issuers: &[CertificateDer<'_>],
    domain: &TrustDomain,
) -> Result<ServerConfig, TlsConfigError> {
    mutual(credentials, Door::Agents, issuers, domain)
}

/// The operators' door: client certificates of one of `issuers` that name an operator of `domain`.
///
/// # Errors
/// When the issuer cannot be read or the credentials do not fit.
pub fn server_config_operators(
    credentials: Credentials,
    issuers: &[CertificateDer<'_>],
    domain: &TrustDomain,
) -> Result<ServerConfig, TlsConfigError> {
    mutual(credentials, Door::Operators, issuers, domain)
}

/// The enrolment door: only the server is authenticated. The chain must end with the root, because a joining
/// host knows nothing but the root's fingerprint.
///
/// # Errors
/// When the credentials do not fit.
pub fn server_config_enrolment(credentials: Credentials) -> Result<ServerConfig, TlsConfigError> {
    server(credentials, None, &[ALPN_H2])
}

/// The page and scrape door when it is more than loopback: HTTP/1.1 and HTTP/2; with `operators` (the
/// operators' issuers and the trust domain) only operators' certificates are let in.
///
/// # Errors
/// When the issuer cannot be read or the credentials do not fit.
pub fn server_config_http(
    credentials: Credentials,
    operators: Option<(&[CertificateDer<'_>], &TrustDomain)>,
) -> Result<ServerConfig, TlsConfigError> {
    let verifier = operators
        .map(|(issuers, domain)| DoorKeeper::new(Door::Operators, issuers, domain))
        .transpose()?;
    server(credentials, verifier, &[ALPN_H2, ALPN_HTTP1])
}

fn mutual(
    credentials: Credentials,
    door: Door,
    issuers: &[CertificateDer<'_>],
    domain: &TrustDomain,
) -> Result<ServerConfig, TlsConfigError> {
    let keeper = DoorKeeper::new(door, issuers, domain)?;
    server(credentials, Some(keeper), &[ALPN_H2])
}

fn server(
    credentials: Credentials,
    keeper: Option<DoorKeeper>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsConfigError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites");
    let builder = match keeper {
        Some(keeper) => builder.with_client_cert_verifier(Arc::new(keeper)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(credentials.chain, credentials.key)
        .map_err(TlsConfigError::Credentials)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

thread_local! {
    static REFUSED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Whom the certificate claims to name that a door on this thread refused last, and forgets it. Nothing of it is
/// proved: for the log, where it tells a machine of another fleet from an attack. rustls passes on why a chain was
/// refused but not whose it was; to be asked right after a handshake failed.
#[must_use]
pub fn refused_certificate() -> Option<String> {
    REFUSED.take()
}

/// Verifies a client's chain against the issuers of its kind, then whom it names.
#[derive(Debug)]
struct DoorKeeper {
    chain: Arc<dyn ClientCertVerifier>,
    door: Door,
    domain: TrustDomain,
}

impl DoorKeeper {
    fn new(
        door: Door,
        issuers: &[CertificateDer<'_>],
        domain: &TrustDomain,
    ) -> Result<Self, TlsConfigError> {
        let roots = RootCertStore {
            roots: issuers.iter().map(anchor).collect::<Result<_, _>>()?,
        };
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(TlsConfigError::Verifier)?;
        Ok(Self {
            chain,
            door,
            domain: domain.clone(),
        })
    }
}

impl DoorKeeper {
    /// Judges the chain at `now`; an agent's certificate that has just expired is judged by the last second of its
    /// life instead, with everything else the same.
    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) = &verified
        else {
            return verified;
        };
        let late = timestamp(now).since(timestamp(*not_after));
        if self.door != Door::Agents || late > EXPIRED_GRACE {
            return verified;
        }
        let in_time = timestamp(*not_after).minus(Duration::from_secs(1));
        // Nothing else gets younger by this: the issuer is the anchor, and an anchor's life is not judged.
        self.chain
            .verify_client_cert(end_entity, intermediates, unix_time(in_time))
    }
}

impl ClientCertVerifier for DoorKeeper {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .verify_chain(end_entity, intermediates, now)
            .inspect_err(|_| {
                REFUSED.set(peer_id(end_entity).ok().map(|peer| peer.id.to_string()))
            })?;
        let peer = peer_id(end_entity).map_err(|error| refuse(TlsFault::Nameless(error)))?;
        check_domain(&peer.id, &self.domain).map_err(refuse)?;
        if !self.door.admits(&peer.id) {
            let found = peer.id.to_string();
            return Err(refuse(TlsFault::WrongRole { found }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn check_domain(id: &SpiffeId, expected: &TrustDomain) -> Result<(), TlsFault> {
    if id.domain() == expected {
        return Ok(());
    }
    Err(TlsFault::OtherTrustDomain {
        expected: expected.clone(),
        found: id.domain().clone(),
    })
}

// ---- clients -----------------------------------------------------------------------------------------

/// The time that certificates are judged by on the client's side: the latest of the machine's clock, the time of
/// the build and what the aggregator last said, so that a clock reset to 1970 cuts nobody off.
///
/// An aggregator is believed no further than its own certificate lasts: whoever holds a stolen one cannot
/// make all others look expired by telling a time far ahead.
#[derive(Debug, Clone)]
pub struct TrustedTime {
    server: Arc<AtomicI64>,
    /// End of life of the certificate that the aggregator showed last.
    until: Arc<AtomicI64>,
    /// That certificate and what came with it; empty before the first.
    shown: Arc<Mutex<Vec<CertificateDer<'static>>>>,
}

impl Default for TrustedTime {
    fn default() -> Self {
        Self {
            server: Arc::new(AtomicI64::new(EARLIEST_CREDIBLE.as_millis())),
            until: Arc::new(AtomicI64::new(EARLIEST_CREDIBLE.as_millis())),
            shown: Arc::default(),
        }
    }
}

impl TrustedTime {
    /// Takes note of a time that the aggregator gave whose certificate was accepted last; of no more than
    /// the end of that certificate's life.
    pub fn seen(&self, server: Timestamp) {
        let until = self.until.load(Ordering::Relaxed);
        let server = server.as_millis().min(until);
        self.server.fetch_max(server, Ordering::Relaxed);
    }

    /// Takes note of a time that was [`TrustedTime::last`] in an earlier life of the process.
    pub fn remembered(&self, last: Timestamp) {
        self.server.fetch_max(last.as_millis(), Ordering::Relaxed);
    }

    /// The latest time that an aggregator gave.
    #[must_use]
    pub fn last(&self) -> Timestamp {
        Timestamp::from_millis(self.server.load(Ordering::Relaxed))
    }

    /// Whether the aggregator that was accepted last would be with these roots too. Before the first there is nothing
    /// to say against them.
    ///
    /// # Errors
    /// Why it would not be.
    pub fn would_accept(&self, roots: &[CertificateDer<'_>]) -> Result<(), TlsFault> {
        let anchors: Vec<TrustAnchor<'static>> = roots
            .iter()
            .map(anchor)
            .collect::<Result<_, _>>()
            .map_err(|error| TlsFault::Unusable(error.to_string()))?;
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match shown.split_first() {
            Some((leaf, others)) => chain_to(leaf, others, &anchors, self.now(), algorithms().all),
            None => Ok(()),
        }
    }

    /// A certificate was accepted that lasts until then.
    fn accepted(&self, until: Timestamp) {
        self.until.store(until.as_millis(), Ordering::Relaxed);
    }

    /// The chain of that certificate.
    fn keep(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) {
        let chain = std::iter::once(leaf).chain(others);
        let chain = chain.map(|one| one.clone().into_owned()).collect();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = chain;
    }

    /// The time to judge by.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.at(SystemClock.now())
    }

    fn at(&self, machine: Timestamp) -> Timestamp {
        let server = Timestamp::from_millis(self.server.load(Ordering::Relaxed));
        machine.max(server)
    }
}

/// What an agent or operator believes about its aggregator.
#[derive(Debug, Clone)]
pub struct Trust {
    /// DER certificates of the roots: the trust bundle.
    pub roots: Vec<CertificateDer<'static>>,
    /// The installation.
    pub domain: TrustDomain,
    /// What to judge lives by.
    pub time: TrustedTime,
}

/// An agent's or operator's side: presents `credentials`, accepts only the aggregator of `trust`.
///
/// # Errors
/// When a root cannot be read or the credentials do not fit.
pub fn client_config(
    trust: &Trust,
    credentials: Credentials,
) -> Result<ClientConfig, TlsConfigError> {
    if trust.roots.is_empty() {
        return Err(TlsConfigError::NoAnchor);
    }
    let anchors = trust.roots.iter().map(anchor).collect::<Result<_, _>>()?;
    let verifier = AggregatorVerifier {
        anchors: Anchors::Bundle {
            anchors,
            domain: trust.domain.clone(),
        },
        time: trust.time.clone(),
        algorithms: algorithms(),
    };
    let mut config = client_builder(verifier)
        .with_client_auth_cert(credentials.chain, credentials.key)
        .map_err(TlsConfigError::Credentials)?;
    finish_client(&mut config);
    Ok(config)
}

/// A joining host's side: accepts only the aggregator whose root has this fingerprint. The trust domain is
/// learnt from the leaf the server presented: [`peer_id`] of `peer_certificates()[0]` after the handshake.
#[must_use]
pub fn client_config_enrolment(pin: [u8; 32]) -> ClientConfig {
    let verifier = AggregatorVerifier {
        anchors: Anchors::Pin(pin),
        time: TrustedTime::default(),
        algorithms: algorithms(),
    };
    let mut config = client_builder(verifier).with_no_client_auth();
    finish_client(&mut config);
    config
}

fn client_builder(
    verifier: AggregatorVerifier,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
}

fn finish_client(config: &mut ClientConfig) {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

fn anchor(certificate: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, TlsConfigError> {
    anchor_from_trusted_cert(certificate)
        .map(|anchor| anchor.to_owned())
        .map_err(TlsConfigError::Anchor)
}

#[derive(Debug)]
enum Anchors {
    Bundle {
        anchors: Vec<TrustAnchor<'static>>,
        domain: TrustDomain,
    },
    /// SHA-256 of the root's SubjectPublicKeyInfo; the server brings the root.
    Pin([u8; 32]),
}

#[derive(Debug)]
struct AggregatorVerifier {
    anchors: Anchors,
    time: TrustedTime,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AggregatorVerifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), TlsFault> {
        let now = self.time.at(timestamp(now));
        let pinned;
        let (anchors, domain) = match &self.anchors {
            Anchors::Bundle { anchors, domain } => (anchors.as_slice(), Some(domain)),
            Anchors::Pin(pin) => {
                pinned = [pinned_root(*pin, leaf, others)?];
                (pinned.as_slice(), None)
            }
        };
        chain_to(leaf, others, anchors, now, self.algorithms.all)?;
        let peer = peer_id(leaf).map_err(TlsFault::Nameless)?;
        if let Some(domain) = domain {
            check_domain(&peer.id, domain)?;
        }
        match peer.id {
            SpiffeId::Aggregator { .. } => {
                self.time.accepted(self.end_of_life(leaf, others, anchors));
                self.time.keep(leaf, others);
                Ok(())
            }
            other => Err(TlsFault::WrongRole {
                found: other.to_string(),
            }),
        }
    }
}

impl AggregatorVerifier {
    /// When this leaf's life ends, or its issuer's if that is found sooner: webpki says so only of a chain
    /// that has expired, as every chain has by the last moment there is.
    fn end_of_life(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        anchors: &[TrustAnchor<'_>],
    ) -> Timestamp {
        let last = Timestamp::from_millis(i64::MAX);
        match chain_to(leaf, others, anchors, last, self.algorithms.all) {
            Err(TlsFault::Expired { not_after, .. }) => not_after,
            // A chain for ever: nothing is learnt from whoever has one.
            _ => EARLIEST_CREDIBLE,
        }
    }
}

/// The root that the server sent, at the end of its chain, when its key has the fingerprint that the token says. While
/// one authority follows another there are two.
fn pinned_root(
    pin: [u8; 32],
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
) -> Result<TrustAnchor<'static>, TlsFault> {
    let last = others.last().unwrap_or(leaf);
    for root in others.iter().rev() {
        let found =
            certificate_pin(root).map_err(|_| TlsFault::Nameless(PeerIdError::Unreadable))?;
        if found == pin {
            return anchor(root).map_err(|error| TlsFault::Unusable(error.to_string()));
        }
    }
    let found = certificate_pin(last).map_err(|_| TlsFault::Nameless(PeerIdError::Unreadable))?;
    Err(TlsFault::WrongPin {
        expected: hex(&pin),
        found: hex(&found),
    })
}

/// The fingerprint of a certificate's key, as tokens carry it: SHA-256 of its SubjectPublicKeyInfo.
///
/// # Errors
/// When the certificate cannot be read.
pub fn certificate_pin(certificate: &CertificateDer<'_>) -> Result<[u8; 32], PeerIdError> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|_| PeerIdError::Unreadable)?;
    Ok(pin_of(&parsed.subject_public_key_info()))
}

fn chain_to(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    now: Timestamp,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<(), TlsFault> {
    let parsed =
        EndEntityCert::try_from(leaf).map_err(|_| TlsFault::Nameless(PeerIdError::Unreadable))?;
    let usage = KeyUsage::server_auth();
    parsed
        .verify_for_usage(
            algorithms,
            anchors,
            others,
            unix_time(now),
            usage,
            None,
            None,
        )
        .map(|_| ())
        .map_err(|error| match error {
            webpki::Error::CertExpired { not_after, .. } => TlsFault::Expired {
                not_after: timestamp(not_after),
                now,
            },
            webpki::Error::CertNotValidYet { not_before, .. } => TlsFault::NotYetValid {
                not_before: timestamp(not_before),
                now,
            },
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                TlsFault::WrongIssuer
            }
            other => TlsFault::Unusable(other.to_string()),
        })
}

impl ServerCertVerifier for AggregatorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(refuse)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_in_utc() {
        for (millis, wanted) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59Z"),
            (EARLIEST_CREDIBLE.as_millis(), "2026-11-01T00:00:00Z"),
        ] {
            assert_eq!(utc(&Timestamp::from_millis(millis)), wanted);
        }
    }

    #[test]
    fn trusted_time_never_falls_behind_what_was_seen() {
        let time = TrustedTime::default();
        let at = Timestamp::from_millis;
        assert_eq!(time.at(at(0)), EARLIEST_CREDIBLE);
        let later = EARLIEST_CREDIBLE.plus(Duration::from_secs(1000));
        assert_eq!(time.at(later), later);
        time.seen(later);
        assert_eq!(
            time.at(at(0)),
            EARLIEST_CREDIBLE,
            "nobody has shown a certificate"
        );
        time.accepted(later.plus(Duration::from_secs(1)));
        time.seen(later);
        time.seen(EARLIEST_CREDIBLE);
        assert_eq!(time.at(at(0)), later);
        time.seen(at(i64::MAX));
        let end = later.plus(Duration::from_secs(1));
        assert_eq!(time.at(at(0)), end, "no further than the certificate lasts");
    }

    #[test]
    fn a_fault_is_found_below_other_errors() {
        let fault_in = TlsFault::WrongRole {
            found: "x".to_owned(),
        };
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, refuse(fault_in.clone()));
        let twice = io::Error::other(wrapped);
        assert_eq!(fault(&twice), Some(fault_in));
        assert_eq!(fault(&io::Error::other("x")), None);
        let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        assert!(matches!(fault(&alert), Some(TlsFault::Refused(_))));
    }
}
