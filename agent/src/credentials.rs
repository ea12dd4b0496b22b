//! What an agent needs to reach its aggregator, from the identity on disk.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use muster_proto::{
    spiffe::peer_id,
    time::Timestamp,
    tls::{TrustedTime, certificate_pin},
    token::pin_of,
    v1,
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    identity::{self, Identity, IdentityError},
    renewal::Life,
    uplink::{
        Memory,
        connect::{Connector, TlsConnector},
        fault::Fault,
        renew::Slots,
        servers::Announced,
    },
};

/// A way to the aggregator, and what must be remembered about it.
pub struct Credentials {
    /// Makes connections that have proven both ends.
    pub connector: Box<dyn Connector>,
    /// What the identity remembers between sessions.
    pub memory: Box<dyn Memory>,
}

impl Credentials {
    /// Those of the identity under `state`, towards `address`. Key and certificates are read anew for each
    /// connection, so that a renewed certificate or a new trust bundle is used without a restart.
    #[must_use]
    pub fn on_disk(state: &Path, address: String) -> Self {
        Self::on_disk_to(state, vec![address])
    }

    /// As [`Credentials::on_disk`], towards several aggregators of one authority, the first of which is preferred.
    #[must_use]
    pub fn on_disk_to(state: &Path, servers: Vec<String>) -> Self {
        let time = TrustedTime::default();
        if let Some(last) = identity::load_time(state) {
            time.remembered(last);
        }
        let (folder, judged_by) = (state.to_owned(), time.clone());
        let choice = Arc::new(Choice::default());
        let made = Arc::clone(&choice);
        let tls = move || {
            let next = !made.avoid_next.load(Ordering::Relaxed);
            let identity = Identity::load_with(&folder, next).map_err(unusable)?;
            made.shown_next.store(identity.is_next, Ordering::Relaxed);
            let config = identity
                .client_config(&judged_by)
                .map_err(|error| Fault::Identity(error.to_string()))?;
            Ok(Arc::new(config))
        };
        Self {
            connector: Box::new(TlsConnector::new(servers, Box::new(tls))),
            memory: Box::new(OnDisk {
                state: state.to_owned(),
                sessions: 0..0,
                time,
                choice,
                asked: None,
            }),
        }
    }
}

/// Most roots of a bundle: one in use, one to come, and some that were forgotten.
const MAX_ROOTS: usize = 8;

/// Why a trust bundle is not taken.
#[derive(Debug, thiserror::Error)]
enum BundleError {
    #[error("a trust bundle has 1 to {MAX_ROOTS} roots, this one has {0}")]
    Count(usize),
    #[error("a root of the trust bundle is no certificate of an authority that is valid now")]
    Root,
    /// It would cut this host off.
    #[error("with the new trust bundle this host would not accept the aggregator that sent it")]
    CutsOff(#[source] muster_proto::tls::TlsFault),
}

/// Looks at a bundle before it takes the place of the one that works. It came over a connection to an aggregator that a
/// root held here vouches for; with the new bundle that aggregator must still be accepted.
fn check_bundle(bundle: &v1::TrustBundle, time: &TrustedTime) -> Result<(), BundleError> {
    if !(1..=MAX_ROOTS).contains(&bundle.roots.len()) {
        return Err(BundleError::Count(bundle.roots.len()));
    }
    let now = time.now();
    for root in &bundle.roots {
        let (rest, parsed) = X509Certificate::from_der(root).map_err(|_| BundleError::Root)?;
        let alive = life(root).is_some_and(|life| now <= life.not_after);
        let own_signature = parsed.subject() == parsed.issuer();
        if !rest.is_empty() || !parsed.is_ca() || !alive || !own_signature {
            return Err(BundleError::Root);
        }
    }
    let roots: Vec<CertificateDer<'static>> = bundle
        .roots
        .iter()
        .map(|root| CertificateDer::from(root.clone()))
        .collect();
    time.would_accept(&roots).map_err(BundleError::CutsOff)
}

/// Life of a certificate; `None` if it cannot be read.
fn life(leaf: &[u8]) -> Option<Life> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let at = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1000));
    Some(Life {
        not_before: at(certificate.validity().not_before.timestamp()),
        not_after: at(certificate.validity().not_after.timestamp()),
    })
}

/// Which of two certificates is shown, where one was renewed.
#[derive(Default)]
struct Choice {
    /// The renewed one was refused: the one before it is shown.
    avoid_next: AtomicBool,
    /// The last connection showed the renewed one.
    shown_next: AtomicBool,
}

fn unusable(error: IdentityError) -> Fault {
    Fault::Identity(error.to_string())
}

/// Session numbers set aside at a time: one write serves so many connections, so that a disk that stalls
/// rarely holds up the sampling, which runs on the same thread.
const SESSIONS_RESERVED: u64 = 64;

/// The files of the identity.
struct OnDisk {
    state: PathBuf,
    sessions: Range<u64>,
    time: TrustedTime,
    choice: Arc<Choice>,
    /// Key of a renewal that was asked for.
    asked: Option<KeyPair>,
}

impl OnDisk {
    fn store_bundle(&self, bundle: &v1::TrustBundle) -> io::Result<()> {
        if bundle.version > self.bundle_version() {
            check_bundle(bundle, &self.time).map_err(io::Error::other)?;
            identity::store_bundle(&self.state, bundle).map_err(io::Error::other)?;
            tracing::info!(version = bundle.version, "new trust bundle stored");
        }
        Ok(())
    }

    /// The identity as the next connection shows it.
    fn shown(&self) -> Result<Identity, IdentityError> {
        let next = !self.choice.avoid_next.load(Ordering::Relaxed);
        Identity::load_with(&self.state, next)
    }
}

impl Memory for OnDisk {
    fn next_session(&mut self) -> Result<u64, Fault> {
        if self.sessions.is_empty() {
            self.sessions =
                identity::reserve_sessions(&self.state, SESSIONS_RESERVED).map_err(unusable)?;
        }
        let next = self.sessions.next();
        next.ok_or_else(|| Fault::Identity("no session number is left".into()))
    }

    fn ratchet(&self) -> Vec<u8> {
        identity::load_ratchet(&self.state).unwrap_or_default()
    }

    fn bundle_version(&self) -> u64 {
        Identity::load(&self.state).map_or(0, |identity| identity.bundle_version)
    }

    fn servers(&self) -> Vec<Announced> {
        identity::load_servers(&self.state)
    }

    fn keep_servers(&mut self, servers: &[Announced]) -> io::Result<()> {
        identity::store_servers(&self.state, servers).map_err(io::Error::other)
    }

    fn certificate_expires(&self) -> Option<Timestamp> {
        Some(self.life()?.not_after)
    }

    fn slots(&mut self) -> Option<&mut dyn Slots> {
        Some(self)
    }

    fn welcomed(&mut self, welcome: &v1::Welcome) -> io::Result<()> {
        self.time
            .seen(Timestamp::from_millis(welcome.server_wall_ms));
        identity::store_ratchet(&self.state, &welcome.ratchet).map_err(io::Error::other)?;
        identity::store_time(&self.state, self.time.last()).map_err(io::Error::other)?;
        match &welcome.bundle {
            Some(bundle) => self.store_bundle(bundle),
            None => Ok(()),
        }
    }
}

impl Slots for OnDisk {
    fn life(&self) -> Option<Life> {
        life(self.shown().ok()?.credentials.chain.first()?)
    }

    fn waiting(&self) -> bool {
        identity::has_next(&self.state)
    }

    fn request(&mut self) -> Result<Vec<u8>, Fault> {
        let made = KeyPair::generate().and_then(|key| {
            let csr = CertificateParams::default().serialize_request(&key)?;
            Ok((key, csr.der().to_vec()))
        });
        let (key, csr) = made.map_err(|error| Fault::Identity(error.to_string()))?;
        self.asked = Some(key);
        Ok(csr)
    }

    fn keep(&mut self, answer: v1::RenewResponse) -> Result<Timestamp, Fault> {
        let key = self
            .asked
            .take()
            .ok_or(Fault::Protocol("a certificate nobody asked for"))?;
        let identity = self.shown().map_err(unusable)?;
        let chain: Vec<CertificateDer<'static>> = answer
            .certificate_chain
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let leaf = chain
            .first()
            .ok_or(Fault::Protocol("a renewal without a certificate"))?;
        let peer = peer_id(leaf).map_err(|_| Fault::Protocol("a certificate for nobody"))?;
        if peer.id.host() != Some(identity.host_id) || *peer.id.domain() != identity.trust_domain {
            return Err(Fault::Protocol("a certificate for another host"));
        }
        if certificate_pin(leaf).ok() != Some(pin_of(&key.subject_public_key_info())) {
            return Err(Fault::Protocol("a certificate for another key"));
        }
        let life = life(leaf).ok_or(Fault::Protocol("a certificate without a life"))?;
        identity::store_next(&self.state, &key.serialize_pem(), &chain).map_err(unusable)?;
        self.choice.avoid_next.store(false, Ordering::Relaxed);
        self.time
            .seen(Timestamp::from_millis(answer.server_wall_ms));
        if let Some(bundle) = &answer.bundle
            && let Err(error) = self.store_bundle(bundle)
        {
            // It comes again with the next Welcome.
            tracing::warn!(%error, "the trust bundle of a renewal was not stored");
        }
        Ok(life.not_after)
    }

    fn accepted(&mut self) {
        if !self.waiting() {
            return;
        }
        let done = if self.choice.shown_next.load(Ordering::Relaxed) {
            identity::promote_next(&self.state)
        } else {
            tracing::warn!(
                "the aggregator does not accept the renewed certificate; it is thrown away"
            );
            identity::discard_next(&self.state)
        };
        self.choice.avoid_next.store(false, Ordering::Relaxed);
        if let Err(error) = done {
            // Both certificates are still there; the next connection tries again.
            tracing::warn!(%error, "the renewed certificate was not put in its place");
        }
    }

    fn refused(&mut self) {
        if self.waiting() {
            let showed_next = self.choice.shown_next.load(Ordering::Relaxed);
            self.choice.avoid_next.store(showed_next, Ordering::Relaxed);
        }
    }
}
