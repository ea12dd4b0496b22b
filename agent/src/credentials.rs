//! What an agent needs to reach its aggregator, from the identity on disk.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_proto::{time::Timestamp, tls::TrustedTime, v1};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    identity::{self, Identity, IdentityError},
    uplink::{
        Memory,
        connect::{Connector, TlsConnector},
        fault::Fault,
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
        let time = TrustedTime::default();
        let (folder, judged_by) = (state.to_owned(), time.clone());
        let tls = move || {
            let identity = Identity::load(&folder).map_err(unusable)?;
            let config = identity
                .client_config(&judged_by)
                .map_err(|error| Fault::Identity(error.to_string()))?;
            Ok(Arc::new(config))
        };
        Self {
            connector: Box::new(TlsConnector::new(address, Box::new(tls))),
            memory: Box::new(OnDisk {
                state: state.to_owned(),
                sessions: 0..0,
                time,
            }),
        }
    }
}

/// End of life of the identity's certificate; `None` if it cannot be read.
fn certificate_expires(identity: &Identity) -> Option<Timestamp> {
    let leaf = identity.credentials.chain.first()?;
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    Some(Timestamp::from_millis(seconds.saturating_mul(1000)))
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

    fn certificate_expires(&self) -> Option<Timestamp> {
        certificate_expires(&Identity::load(&self.state).ok()?)
    }

    fn welcomed(&mut self, welcome: &v1::Welcome) -> io::Result<()> {
        self.time
            .seen(Timestamp::from_millis(welcome.server_wall_ms));
        identity::store_ratchet(&self.state, &welcome.ratchet).map_err(io::Error::other)?;
        match &welcome.bundle {
            Some(bundle) if bundle.version > self.bundle_version() => {
                identity::store_bundle(&self.state, bundle).map_err(io::Error::other)?;
                tracing::info!(version = bundle.version, "new trust bundle stored");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
