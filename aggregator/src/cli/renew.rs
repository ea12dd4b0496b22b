//! The operator's certificate renews itself: whoever works with `muster` signs in once a month, not once a day.
//!
//! A renewal takes the certificate that is still valid, over the ordinary door, and a new key. It happens before a
//! question when less than a third of the life is left; for administrators also when the certificate is older than 45
//! minutes, because the aggregator takes no administration from one that is older than an hour. It says nothing, and
//! one that fails is not worth a word either: the certificate at hand may do, and if not, the question fails and says
//! why.
//!
//! Key and chain stand in one file, which is replaced whole. A lock beside it keeps programs that run side by side
//! from renewing the same certificate twice, which to the aggregator looks like a thief.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::{
    time::{Clock as _, SystemClock, Timestamp},
    v1::{RenewOperatorRequest, RenewOperatorResponse, identity_client::IdentityClient},
};
use rustls_pki_types::CertificateDer;

use super::{
    client::Target,
    context::{self, Context},
};

/// Left of a life when it is time.
const LEFT: u32 = 3;
/// Age at which an administrator's certificate is renewed: what it is asked for next may take a while to come.
const ADMIN_AGE: Duration = Duration::from_secs(45 * 60);
/// Certificates begin this much before they are issued.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Begin and end of a certificate's life.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Life {
    /// Of a certificate; `None` if it cannot be read.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let at = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1000));
        Some(Self {
            not_before: at(parsed.validity().not_before.timestamp()),
            not_after: at(parsed.validity().not_after.timestamp()),
        })
    }

    /// Whether it is time to renew. What is over cannot be renewed.
    #[must_use]
    pub fn is_due(self, admin: bool, now: Timestamp) -> bool {
        if now >= self.not_after {
            return false;
        }
        let issued = self.not_before.plus(BACKDATED);
        let life = self.not_after.since(issued);
        self.not_after.since(now) < life / LEFT || (admin && now.since(issued) > ADMIN_AGE)
    }
}

/// Renews the certificate of a context if it is time. `target` makes the way to the aggregator with what is on disk.
pub async fn keep_fresh(
    config: &Path,
    context: &Context,
    timeout: Duration,
    target: impl Fn() -> Option<Target>,
) {
    // Files that somebody else looks after are left to them.
    if context.key.is_absolute() || !is_due(config, context) {
        return;
    }
    let key = context::beside(config, &context.key);
    let Some(_lock) = lock(&key).await else {
        return;
    };
    // Another program may have done it while this one waited.
    if !is_due(config, context) {
        return;
    }
    let Some(target) = target() else {
        return;
    };
    if let Err(why) = renew(config, context, &target, timeout).await {
        tracing::debug!(why, "the operator's certificate was not renewed");
    }
}

fn is_due(config: &Path, context: &Context) -> bool {
    let Ok((_, credentials)) = context.credentials(config) else {
        return false;
    };
    let life = credentials.chain.first().and_then(Life::of);
    life.is_some_and(|life| life.is_due(context.role == "admin", SystemClock.now()))
}

/// Waits for the lock off the runtime. Without it nothing is renewed.
async fn lock(key: &Path) -> Option<File> {
    let mut name = key.file_name()?.to_owned();
    name.push(".lock");
    let path: PathBuf = key.with_file_name(name);
    let taken = tokio::task::spawn_blocking(move || {
        let file = File::options().create(true).append(true).open(path)?;
        file.lock().map(|()| file)
    });
    taken.await.ok()?.ok()
}

async fn renew(
    config: &Path,
    context: &Context,
    target: &Target,
    timeout: Duration,
) -> Result<(), String> {
    let said = |error: &dyn std::error::Error| super::failure::chain(error);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| said(&error))?;
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .map_err(|error| said(&error))?;
    let channel = target
        .channel(timeout)
        .await
        .map_err(|error| said(&error))?;
    let request = RenewOperatorRequest {
        csr: csr.der().to_vec(),
    };
    let mut client = IdentityClient::new(channel);
    let asked = tokio::time::timeout(timeout, client.renew_operator(request)).await;
    let answer = asked
        .map_err(|_| "no answer in time".to_owned())?
        .map_err(|status| status.message().to_owned())?;
    store(config, context, &key, answer.into_inner())
}

fn store(
    config: &Path,
    context: &Context,
    key: &rcgen::KeyPair,
    answer: RenewOperatorResponse,
) -> Result<(), String> {
    let der = |all: Vec<Vec<u8>>| -> Vec<CertificateDer<'static>> {
        all.into_iter().map(CertificateDer::from).collect()
    };
    let chain = der(answer.certificate_chain);
    let fits = chain.first().is_some_and(|leaf| {
        muster_proto::tls::certificate_pin(leaf).ok()
            == Some(muster_proto::token::pin_of(
                &rcgen::PublicKeyData::subject_public_key_info(key),
            ))
    });
    if !fits {
        return Err("the answer is no certificate for the key that was made".to_owned());
    }
    let roots = der(answer.bundle.map_or_else(Vec::new, |bundle| bundle.roots));
    context::replace_credentials(config, context, &key.serialize_pem(), &chain, &roots)
        .map_err(|error| super::failure::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_a_life_or_an_administrators_hour() {
        let begin = Timestamp::from_millis(1_795_000_000_000);
        let issued = begin.plus(BACKDATED);
        let life = Life {
            not_before: begin,
            not_after: issued.plus(Duration::from_secs(24 * 3600)),
        };
        let minutes = |minutes: u64| issued.plus(Duration::from_secs(60 * minutes));
        for (at, viewer, admin) in [
            (0, false, false),
            (45, false, false),
            (46, false, true),
            (16 * 60, false, true),
            (16 * 60 + 1, true, true),
            (24 * 60, false, false),
            (48 * 60, false, false),
        ] {
            assert_eq!(life.is_due(false, minutes(at)), viewer, "{at}");
            assert_eq!(life.is_due(true, minutes(at)), admin, "{at}");
        }
    }
}
