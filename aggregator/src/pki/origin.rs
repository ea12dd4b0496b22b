//! What orders the certificates of a host, whichever aggregator of the fleet issued them.
//!
//! Aggregators of one authority stand in for one another and do not talk to each other, so one meets certificates that
//! another has issued. Which of two is the later one, each can tell from what stands in them:
//!
//! ```text
//! subject      CN = host id, dnQualifier (X.520, 5.2.11) = "joined <UTC milliseconds>"
//! not before   one hour before it was issued
//! ```
//!
//! *Joined* is when the host got its identity, or another machine took its place (`--replaces`). A renewal keeps it, so
//! the certificates of a machine that was replaced stay older than those of its successor, however late they were renewed
//! somewhere. Certificates from before this was written have none, and joined in 1970.

use muster_proto::{id::HostId, time::Timestamp, token::pin_of};
use rcgen::{DnType, DnValue};
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, oid_registry::asn1_rs::oid,
    prelude::FromDer as _,
};

use super::{BACKDATED, PkiError};

/// Where the time stands in the subject (RFC 4519, 2.8).
const QUALIFIER: [u64; 4] = [2, 5, 4, 46];
const PREFIX: &str = "joined ";

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Which host.
    pub host: HostId,
    /// Since when it has its identity.
    pub joined: Timestamp,
}

impl Member {
    /// What goes into the subject beside the host's id; nothing for a host that joined before this was written down.
    pub(super) fn qualifier(&self) -> Result<Option<(DnType, DnValue)>, PkiError> {
        let millis = self.joined.as_millis();
        if millis <= 0 {
            return Ok(None);
        }
        let text = format!("{PREFIX}{millis}").try_into()?;
        let name = DnType::CustomDnType(QUALIFIER.to_vec());
        Ok(Some((name, DnValue::PrintableString(text))))
    }
}

/// What a host's certificate says of where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// When it was issued, whole seconds.
    pub issued: Timestamp,
    /// See [`Member`].
    pub joined: Timestamp,
    /// SHA-256 of its key's SubjectPublicKeyInfo.
    pub fingerprint: [u8; 32],
    /// Identifier of the key that signed it.
    pub issuer: Box<[u8]>,
}

impl Origin {
    /// Reads a certificate whose chain was verified; `None` if it is none that an authority of ours makes.
    #[must_use]
    pub fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        let begin = parsed.validity().not_before.timestamp().checked_mul(1000)?;
        let qualifier = oid!(2.5.4.46);
        let joined = parsed
            .subject()
            .iter_attributes()
            .find(|attribute| *attribute.attr_type() == qualifier)
            .and_then(|attribute| attribute.as_str().ok()?.strip_prefix(PREFIX)?.parse().ok());
        Some(Self {
            issued: Timestamp::from_millis(begin).plus(BACKDATED),
            joined: Timestamp::from_millis(joined.unwrap_or(0)),
            fingerprint: pin_of(parsed.public_key().raw),
            issuer: authority_key(&parsed)?,
        })
    }
}

/// Identifier of the key that signed this certificate.
fn authority_key(parsed: &X509Certificate<'_>) -> Option<Box<[u8]>> {
    parsed.extensions().iter().find_map(|extension| {
        let ParsedExtension::AuthorityKeyIdentifier(named) = extension.parsed_extension() else {
            return None;
        };
        named.key_identifier.as_ref().map(|key| key.0.into())
    })
}

/// Identifier of an issuer's own key, as it stands in what it signs.
pub(super) fn own_key(issuer: &CertificateDer<'_>) -> Option<Box<[u8]>> {
    let (_, parsed) = X509Certificate::from_der(issuer).ok()?;
    parsed.extensions().iter().find_map(|extension| {
        let ParsedExtension::SubjectKeyIdentifier(key) = extension.parsed_extension() else {
            return None;
        };
        Some(key.0.into())
    })
}
