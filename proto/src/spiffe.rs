//! Who a certificate speaks for: SPIFFE ids, parsed byte for byte.
//!
//! An id is read from the one URI in a certificate's subject alternative names and from nowhere else. There
//! is exactly one spelling of each id, so that comparing ids is comparing bytes; anything a URI library would
//! normalise (case, percent-encoding, dot segments, a trailing slash) is refused instead. That the certificate
//! chains to the right issuer is decided by [`crate::tls`] before anything here is believed.

use std::{fmt, str::FromStr};

use ring::rand::SecureRandom;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::id::HostId;

/// Longest id in bytes; SPIFFE allows 2048, ours are under 160.
pub const MAX_SPIFFE_ID_BYTES: usize = 255;

/// The cell of a fleet that has only one.
pub const MAIN_CELL: &str = "main";

const SCHEME: &str = "spiffe://";
const DOMAIN_PREFIX: &str = "m-";
const DOMAIN_RANDOM_CHARS: usize = 10;
/// RFC 4648 base32 in lower case: 32 letters and digits that are valid in a host name.
const DOMAIN_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Name of one installation: `m-` and 10 characters of `a-z2-7`, drawn at `init`, so that two installations
/// never accept each other's certificates by accident.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

/// Why a text is no trust domain or SPIFFE id of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeError {
    /// Longer than [`MAX_SPIFFE_ID_BYTES`].
    #[error("the id is longer than {MAX_SPIFFE_ID_BYTES} bytes")]
    TooLong,
    /// Does not begin with `spiffe://`.
    #[error("the id does not begin with {SCHEME}")]
    Scheme,
    /// Not `m-` and 10 characters of `a-z2-7`.
    #[error("a trust domain is m- and 10 characters of a-z and 2-7")]
    Domain,
    /// A path that is neither an agent's, an operator's nor the aggregator's.
    #[error("the path is not that of an agent, an operator or an aggregator")]
    Path,
    /// A cell's name that is not 1 to 32 of `a-z 0-9 -`.
    #[error("a cell's name is 1 to 32 characters of a-z, 0-9 and -")]
    Cell,
    /// A host id that is not 32 lower-case hexadecimal digits.
    #[error("a host id is 32 lower-case hexadecimal digits")]
    Host,
    /// An operator's name that is not 1 to 64 of `a-z 0-9 . _ -`.
    #[error("an operator's name is 1 to 64 characters of a-z, 0-9, dot, underscore and -")]
    Operator,
}

impl TrustDomain {
    /// A new random one: 50 bits.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, ring::error::Unspecified> {
        let mut bytes = [0; DOMAIN_RANDOM_CHARS];
        random.fill(&mut bytes)?;
        let mut text = String::from(DOMAIN_PREFIX);
        text.extend(
            bytes
                .iter()
                .map(|byte| char::from(DOMAIN_ALPHABET[usize::from(byte % 32)])),
        );
        Ok(Self(text))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let random = text
            .strip_prefix(DOMAIN_PREFIX)
            .ok_or(SpiffeError::Domain)?;
        let good = random.len() == DOMAIN_RANDOM_CHARS
            && random.bytes().all(|byte| DOMAIN_ALPHABET.contains(&byte));
        good.then(|| Self(text.to_owned()))
            .ok_or(SpiffeError::Domain)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeError;

    fn try_from(text: String) -> Result<Self, SpiffeError> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SpiffeId {
    /// `spiffe://<domain>/cell/<cell>/agent/<host id>`
    Agent {
        /// The installation.
        domain: TrustDomain,
        /// Part of the fleet with its own issuers; [`MAIN_CELL`] until there are several.
        cell: String,
        /// Which host.
        host: HostId,
    },
    /// `spiffe://<domain>/operator/<name>`; what the operator may do stands in the aggregator's store.
    Operator {
        /// The installation.
        domain: TrustDomain,
        /// 1 to 64 characters of `a-z 0-9 . _ -`.
        name: String,
    },
    /// `spiffe://<domain>/aggregator`
    Aggregator {
        /// The installation.
        domain: TrustDomain,
    },
}

impl SpiffeId {
    /// The installation it belongs to.
    #[must_use]
    pub fn domain(&self) -> &TrustDomain {
        match self {
            Self::Agent { domain, .. }
            | Self::Operator { domain, .. }
            | Self::Aggregator { domain } => domain,
        }
    }

    /// The host, when it is an agent's.
    #[must_use]
    pub fn host(&self) -> Option<HostId> {
        match self {
            Self::Agent { host, .. } => Some(*host),
            _ => None,
        }
    }

    /// The name, when it is an operator's.
    #[must_use]
    pub fn operator(&self) -> Option<&str> {
        match self {
            Self::Operator { name, .. } => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { domain, cell, host } => {
                write!(f, "{SCHEME}{domain}/cell/{cell}/agent/{host}")
            }
            Self::Operator { domain, name } => write!(f, "{SCHEME}{domain}/operator/{name}"),
            Self::Aggregator { domain } => write!(f, "{SCHEME}{domain}/aggregator"),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return Err(SpiffeError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or(SpiffeError::Path)?;
        let domain = domain.parse()?;
        let segments: Vec<&str> = path.split('/').collect();
        match segments[..] {
            ["cell", cell, "agent", host] => {
                check_cell(cell)?;
                let host = host.parse().map_err(|_| SpiffeError::Host)?;
                Ok(Self::Agent {
                    domain,
                    cell: cell.to_owned(),
                    host,
                })
            }
            ["operator", name] => {
                check_operator_name(name)?;
                Ok(Self::Operator {
                    domain,
                    name: name.to_owned(),
                })
            }
            ["aggregator"] => Ok(Self::Aggregator { domain }),
            _ => Err(SpiffeError::Path),
        }
    }
}

fn check_cell(cell: &str) -> Result<(), SpiffeError> {
    let good = (1..=32).contains(&cell.len())
        && cell
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    good.then_some(()).ok_or(SpiffeError::Cell)
}

/// Whether a text can name an operator: 1 to 64 characters of `a-z 0-9 . _ -`, and not a dot segment.
///
/// # Errors
/// [`SpiffeError::Operator`] when it cannot.
pub fn check_operator_name(name: &str) -> Result<(), SpiffeError> {
    let good = (1..=64).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
    good.then_some(()).ok_or(SpiffeError::Operator)
}

/// What a certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Whom it names.
    pub id: SpiffeId,
    /// Its serial number: lower-case hexadecimal, without separators.
    pub serial: String,
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerIdError {
    /// The bytes are no X.509 version 3 certificate.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// Not exactly one URI among the subject alternative names.
    #[error("the certificate carries {0} URIs where exactly one is needed")]
    UriCount(usize),
    /// The one URI is not an id of ours.
    #[error("the certificate's URI is not a Muster identity")]
    Id(#[source] SpiffeError),
}

/// Reads the one SPIFFE id and the serial of a DER certificate. It checks no signature: that is TLS's work,
/// done before.
///
/// # Errors
/// When the certificate cannot be read, carries no or more than one URI, or the URI is not ours.
pub fn peer_id(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, PeerIdError> {
    let parsed =
        webpki::EndEntityCert::try_from(certificate).map_err(|_| PeerIdError::Unreadable)?;
    let uris: Vec<&str> = parsed.valid_uri_names().collect();
    let [uri] = uris[..] else {
        return Err(PeerIdError::UriCount(uris.len()));
    };
    let id = uri.parse().map_err(PeerIdError::Id)?;
    Ok(PeerIdentity {
        id,
        serial: hex(parsed.serial()),
    })
}

/// Lower-case hexadecimal digits of some bytes.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    const DOMAIN: &str = "m-abcdefgh27";
    const HOST: &str = "000102030405060708090a0b0c0d0e0f";

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("valid name");
        params.serial_number = Some(vec![0x4a, 0, 0xff].into());
        for uri in uris {
            let uri = (*uri).try_into().expect("ASCII");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let made = params.self_signed(&key).expect("it can be signed");
        made.der().clone()
    }

    #[test]
    fn an_id_reads_what_it_writes() {
        for text in [
            format!("spiffe://{DOMAIN}/cell/main/agent/{HOST}"),
            format!("spiffe://{DOMAIN}/operator/jo.do_e-2"),
            format!("spiffe://{DOMAIN}/aggregator"),
        ] {
            let id: SpiffeId = text.parse().expect("a good id");
            assert_eq!(id.to_string(), text);
            assert_eq!(id.domain().as_str(), DOMAIN);
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        use SpiffeError::{Cell, Domain, Host, Operator, Path, Scheme, TooLong};
        let long = "a".repeat(300);
        let long_name = "a".repeat(65);
        let cases: &[(String, SpiffeError)] = &[
            (String::new(), Scheme),
            (format!("https://{DOMAIN}/aggregator"), Scheme),
            (format!("SPIFFE://{DOMAIN}/aggregator"), Scheme),
            (format!(" spiffe://{DOMAIN}/aggregator"), Scheme),
            (format!("spiffe://{DOMAIN}"), Path),
            (format!("spiffe://{DOMAIN}/"), Path),
            (format!("spiffe://{DOMAIN}/aggregator/"), Path),
            (format!("spiffe://{DOMAIN}//aggregator"), Path),
            (format!("spiffe://{DOMAIN}/./aggregator"), Path),
            (format!("spiffe://{DOMAIN}/x/../aggregator"), Path),
            (format!("spiffe://{DOMAIN}/aggregator?x"), Path),
            (format!("spiffe://{DOMAIN}/aggregator#x"), Path),
            (format!("spiffe://{DOMAIN}/%61ggregator"), Path),
            (format!("spiffe://{DOMAIN}/Aggregator"), Path),
            (format!("spiffe://{DOMAIN}:443/aggregator"), Domain),
            (format!("spiffe://user@{DOMAIN}/aggregator"), Domain),
            ("spiffe://M-ABCDEFGH27/aggregator".to_owned(), Domain),
            ("spiffe://m-abcdefgh2/aggregator".to_owned(), Domain),
            ("spiffe://m-abcdefgh18/aggregator".to_owned(), Domain),
            ("spiffe:///aggregator".to_owned(), Domain),
            (format!("spiffe://{DOMAIN}/operator/"), Operator),
            (format!("spiffe://{DOMAIN}/operator/.."), Operator),
            (format!("spiffe://{DOMAIN}/operator/Jo"), Operator),
            (format!("spiffe://{DOMAIN}/operator/j%6f"), Operator),
            (format!("spiffe://{DOMAIN}/operator/{long_name}"), Operator),
            (format!("spiffe://{DOMAIN}/operator/jo/x"), Path),
            (format!("spiffe://{DOMAIN}/cell//agent/{HOST}"), Cell),
            (format!("spiffe://{DOMAIN}/cell/../agent/{HOST}"), Cell),
            (format!("spiffe://{DOMAIN}/cell/main/agent/{HOST}0"), Host),
            (
                format!("spiffe://{DOMAIN}/cell/main/agent/{}", HOST.to_uppercase()),
                Host,
            ),
            (format!("spiffe://{DOMAIN}/operator/{long}"), TooLong),
        ];
        for (text, wanted) in cases {
            assert_eq!(text.parse::<SpiffeId>(), Err(*wanted), "{text}");
        }
    }

    #[test]
    fn a_new_trust_domain_is_valid_and_another_each_time() {
        let random = ring::rand::SystemRandom::new();
        let one = TrustDomain::generate(&random).expect("random bytes");
        let two = TrustDomain::generate(&random).expect("random bytes");
        assert_eq!(one.as_str().parse(), Ok(one.clone()));
        assert_ne!(one, two);
    }

    #[test]
    fn a_certificate_names_exactly_one() {
        let agent = format!("spiffe://{DOMAIN}/cell/main/agent/{HOST}");
        let aggregator = format!("spiffe://{DOMAIN}/aggregator");

        let one = peer_id(&certificate(&[&agent])).expect("one URI");
        assert_eq!(one.id.host(), Some(HOST.parse().expect("a host id")));
        assert_eq!(one.serial, "4a00ff");

        assert_eq!(peer_id(&certificate(&[])), Err(PeerIdError::UriCount(0)));
        let two = certificate(&[&agent, &aggregator]);
        assert_eq!(peer_id(&two), Err(PeerIdError::UriCount(2)));
        let twice = certificate(&[&agent, &agent]);
        assert_eq!(peer_id(&twice), Err(PeerIdError::UriCount(2)));
        let foreign = certificate(&["https://example.com/"]);
        assert_eq!(peer_id(&foreign), Err(PeerIdError::Id(SpiffeError::Scheme)));
        let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
        assert_eq!(peer_id(&garbage), Err(PeerIdError::Unreadable));
    }
}
