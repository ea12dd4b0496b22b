//! The authority: a root and three issuers, on disk, and what they sign.
//!
//! ```text
//! <state>/ca/authority.toml          trust domain, names of the aggregator
//! <state>/ca/{root,server,agent,operator}.crt    PEM
//! <state>/ca/{root,server,agent,operator}.key    PEM, 0600; root.key may be taken offline after init
//! ```
//!
//! One generation of these can follow another ([`Step`]); files of later ones stand in folders of their own.
//!
//! Three issuers instead of a role in the certificate: each door trusts one of them alone, so a forgotten check
//! fails closed. Of a certificate request only the key and the signature are used; names, lives and usages are
//! decided here. Who may ask is decided by the callers ([`crate::enrol`], [`crate::admin`]).

mod csr;
mod doors;
mod files;
mod origin;
mod rotation;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;

use muster_proto::{
    spiffe::{MAIN_CELL, SpiffeError, SpiffeId, TrustDomain, check_operator_name, hex},
    time::{Clock as _, Timestamp},
    tls::{Credentials, certificate_pin},
    v1,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use crate::time_guard::GuardedClock;

pub use csr::{CsrError, Request};
pub use doors::Doors;
pub use origin::{Member, Origin};
pub use rotation::{GenerationView, Phase, Step};

use rotation::{Generation, Rotation};

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Life of the root.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * YEAR.as_secs());
/// Life of an issuer.
pub const ISSUER_LIFE: Duration = Duration::from_secs(3 * YEAR.as_secs());
/// Life of the aggregator's certificate.
pub const SERVER_LIFE: Duration = Duration::from_secs(90 * DAY.as_secs());
/// Life of an agent's certificate: an outage of weeks must not expire a fleet.
pub const AGENT_LIFE: Duration = Duration::from_secs(30 * DAY.as_secs());
/// Life of an operator's certificate.
pub const OPERATOR_LIFE: Duration = DAY;

/// Certificates begin this much earlier, so that clocks that are a little behind can use them at once. The
/// aggregator's begin a day earlier, because it is judged by the clocks of a whole fleet.
const BACKDATED: Duration = Duration::from_secs(3600);
const SERVER_BACKDATED: Duration = DAY;

const FOLDER: &str = "ca";
const SETTINGS: &str = "authority.toml";

/// Why the authority cannot be made, opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// `init` where there is an authority already.
    #[error("there is an authority in {} already: it is never overwritten, remove it yourself if you mean to lose it", .0.display())]
    Exists(PathBuf),
    /// No authority where one is needed.
    #[error("there is no authority in {}: run `muster-aggregator init` first", .0.display())]
    Missing(PathBuf),
    /// A key that others can read.
    #[error("others can read the key {path} (mode {mode:04o}): run `chmod 600 {path}`, and if it may have been read, make a new authority", path = path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} does not hold {wanted}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Not a DNS name or IP address that a certificate can carry.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// Not an operator's name.
    #[error(transparent)]
    OperatorName(#[from] SpiffeError),
    /// The request is not acceptable.
    #[error("the certificate request is not acceptable")]
    Request(#[from] CsrError),
    /// A step of a rotation that cannot be done now.
    #[error("{}", cannot_step(*.step, *.phase))]
    Step {
        /// Which.
        step: Step,
        /// How far the rotation is.
        phase: Phase,
    },
    /// The root's key that was brought along is not that of the root in use, or comes with another step.
    #[error(
        "the key is not that of the present root, or is not wanted for this step: only preparing needs it"
    )]
    RootKey,
    /// The clock has jumped, and what it shows must not stand in a certificate.
    #[error(
        "the aggregator's clock has jumped and nothing is issued: set it right, or say that it is with `muster-aggregator clock confirm`"
    )]
    Clock,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// A certificate cannot be made.
    #[error("a certificate cannot be made")]
    Make(#[from] rcgen::Error),
    /// The certificates cannot be put to use.
    #[error("the aggregator's TLS cannot be set up")]
    Tls(#[from] muster_proto::tls::TlsConfigError),
}

/// One of the three issuers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The aggregator's own certificate.
    Server,
    /// Agents' certificates.
    Agent,
    /// Operators' certificates.
    Operator,
}

impl Role {
    const ALL: [Self; 3] = [Self::Server, Self::Agent, Self::Operator];

    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
            Self::Operator => "operator",
        }
    }

    fn usage(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Agent | Self::Operator => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    trust_domain: TrustDomain,
    /// DNS names and IP addresses in the aggregator's certificate, for browsers and scrapers.
    names: Vec<String>,
}

struct Signer {
    certificate: CertificateDer<'static>,
    /// Identifier of its key, as it stands in what it signs.
    key_id: Option<Box<[u8]>>,
    issuer: Issuer<'static, KeyPair>,
}

/// What to say of a step at the wrong time.
fn cannot_step(step: Step, phase: Phase) -> String {
    let needed = match step {
        Step::Prepare => "a rotation is under way: activate and retire it, or take it back",
        Step::Activate => "there is no new authority that could sign: prepare one first",
        Step::Retire => "the new authority does not sign yet: activate it first",
        Step::Back => "there is nothing to take back",
        Step::Now => "it cannot be rotated now",
    };
    format!("{needed} (the authority is {})", phase.word())
}

/// The authority, opened.
pub struct Authority {
    state: PathBuf,
    settings: Settings,
    held: ArcSwap<Held>,
    /// Held through a rotation's step.
    stepping: Mutex<()>,
    /// Whose dates are put into certificates.
    guard: OnceLock<Arc<GuardedClock>>,
    random: SystemRandom,
}

/// The generations, as they are now.
struct Held {
    rotation: Rotation,
    /// Those that are trusted, oldest first.
    generations: Vec<Generation>,
}

impl Held {
    fn open(folder: &Path) -> Result<Self, PkiError> {
        let rotation = Rotation::open(folder)?;
        let opened = rotation.trusted.iter();
        let generations = opened
            .map(|number| Generation::open(folder, *number))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            rotation,
            generations,
        })
    }

    fn active(&self) -> &Generation {
        self.generations
            .iter()
            .find(|one| one.number == self.rotation.active)
            .expect("a rotation whose active generation is not among the trusted does not open")
    }
}

/// A certificate that was made.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf, then its issuer.
    pub chain: Vec<CertificateDer<'static>>,
    /// Of the leaf, lower-case hexadecimal.
    pub serial: String,
    /// End of its life.
    pub not_after: Timestamp,
    /// Which generation of the authority signed it.
    pub generation: u32,
}

impl Authority {
    /// Makes a new authority under the state folder: all of it or nothing.
    ///
    /// # Errors
    /// When there is one already, a name cannot stand in a certificate, or it cannot be written.
    pub fn init(state: &Path, names: &[String], now: Timestamp) -> Result<Self, PkiError> {
        let folder = state.join(FOLDER);
        if folder.exists() {
            return Err(PkiError::Exists(folder));
        }
        let random = SystemRandom::new();
        let settings = Settings {
            trust_domain: TrustDomain::generate(&random).map_err(|_| PkiError::Random)?,
            names: names.to_vec(),
        };
        for name in names {
            subject_name(name)?;
        }
        let made = files::Fresh::begin(&folder)?;
        let text = toml::to_string(&settings).expect("two plain fields can be written as TOML");
        made.write(SETTINGS, text.as_bytes(), 0o644)?;

        rotation::write_generation(&made, &settings.trust_domain, 1, None, now)?;
        made.finish(&folder)?;
        Self::open(state)
    }

    /// Opens what [`Authority::init`] made.
    ///
    /// # Errors
    /// When there is none, a key can be read by others, or a file is not what it should be.
    pub fn open(state: &Path) -> Result<Self, PkiError> {
        let folder = state.join(FOLDER);
        if !folder.exists() {
            return Err(PkiError::Missing(folder));
        }
        let path = folder.join(SETTINGS);
        let settings = toml::from_str(&files::read(&path)?).map_err(|_| PkiError::Content {
            path,
            wanted: "the authority's settings",
        })?;
        Ok(Self {
            held: ArcSwap::from_pointee(Held::open(&folder)?),
            state: state.to_owned(),
            settings,
            stepping: Mutex::new(()),
            guard: OnceLock::new(),
            random: SystemRandom::new(),
        })
    }

    /// Issues nothing from now on while this clock is in doubt.
    pub fn guarded_by(&self, guard: Arc<GuardedClock>) {
        // There is one call of this, at the start.
        let _ = self.guard.set(guard);
    }

    fn held(&self) -> Arc<Held> {
        self.held.load_full()
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.stepping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the generations anew.
    fn reopen(&self) -> Result<(), PkiError> {
        let held = Held::open(&self.state.join(FOLDER))?;
        self.held.store(Arc::new(held));
        Ok(())
    }

    /// The installation's name.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.settings.trust_domain
    }

    /// DNS names and IP addresses given at `init`.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.settings.names
    }

    /// All names that the aggregator's certificate carries: those given at `init`, `more`, this machine's host
    /// name, and loopback's own, so that a check on the spot works without any.
    #[must_use]
    pub fn server_names(&self, more: &[String]) -> Vec<String> {
        let machine = rustix::system::uname();
        let machine = machine.nodename().to_string_lossy();
        names_with(&self.settings.names, more, &machine)
    }

    /// The certificate of the root that signs.
    #[must_use]
    pub fn root(&self) -> CertificateDer<'static> {
        self.held().active().root.clone()
    }

    /// The certificates of all roots that are trusted, the one that signs last: a joining host may have been told of any.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        let held = self.held();
        let (mut roots, active): (Vec<_>, Vec<_>) = held
            .generations
            .iter()
            .partition(|one| one.number != held.rotation.active);
        roots.extend(active);
        roots.into_iter().map(|one| one.root.clone()).collect()
    }

    /// The fingerprint of the root that signs, as tokens carry it.
    #[must_use]
    pub fn pin(&self) -> [u8; 32] {
        certificate_pin(&self.root()).expect("the root was parsed when it was opened")
    }

    /// Certificates of all issuers of a kind that are trusted.
    #[must_use]
    pub fn issuers(&self, role: Role) -> Vec<CertificateDer<'static>> {
        let held = self.held();
        let signers = held.generations.iter().map(|one| one.signer(role));
        signers.map(|signer| signer.certificate.clone()).collect()
    }

    /// Version of [`Authority::bundle`].
    #[must_use]
    pub fn bundle_version(&self) -> u64 {
        self.held().rotation.version
    }

    /// What holders are told to trust.
    #[must_use]
    pub fn bundle(&self) -> v1::TrustBundle {
        let held = self.held();
        let roots = held.generations.iter().map(|one| one.root.to_vec());
        v1::TrustBundle {
            version: held.rotation.version,
            roots: roots.collect(),
        }
    }

    /// A certificate for a host.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn issue_agent(
        &self,
        request: &Request,
        member: Member,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let id = SpiffeId::Agent {
            domain: self.trust_domain().clone(),
            cell: MAIN_CELL.to_owned(),
            host: member.host,
        };
        let life = Life::at(now, BACKDATED, AGENT_LIFE);
        let names = vec![uri(&id)?];
        let mut subject = named(&member.host.to_string());
        if let Some((kind, text)) = member.qualifier()? {
            subject.push(kind, text);
        }
        self.issue(Role::Agent, request.key(), subject, names, life)
    }

    /// Which generation issued a host's certificate; `None` if it is none that is trusted.
    #[must_use]
    pub fn generation_of(&self, origin: &Origin) -> Option<u32> {
        let held = self.held();
        let trusted = &held.rotation.trusted;
        let mut generations = held.generations.iter();
        generations
            .find(|one| {
                trusted.contains(&one.number)
                    && one.signer(Role::Agent).key_id.as_ref() == Some(&origin.issuer)
            })
            .map(|one| one.number)
    }

    /// A certificate for a person.
    ///
    /// # Errors
    /// When the name cannot be an operator's or it cannot be signed.
    pub fn issue_operator(
        &self,
        request: &Request,
        name: &str,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        check_operator_name(name)?;
        let id = SpiffeId::Operator {
            domain: self.trust_domain().clone(),
            name: name.to_owned(),
        };
        let life = Life::at(now, BACKDATED, OPERATOR_LIFE);
        let names = vec![uri(&id)?];
        self.issue(Role::Operator, request.key(), named(name), names, life)
    }

    /// A certificate for the aggregator itself, with a new key, and the end of its life. `names` are DNS names
    /// and IP addresses.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate or it cannot be signed.
    pub fn issue_server(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<(Credentials, Timestamp), PkiError> {
        let id = SpiffeId::Aggregator {
            domain: self.trust_domain().clone(),
        };
        let mut subject_names = vec![uri(&id)?];
        for name in names {
            subject_names.push(subject_name(name)?);
        }
        let key = KeyPair::generate()?;
        let life = Life::at(now, SERVER_BACKDATED, SERVER_LIFE);
        let issued = self.issue(Role::Server, &key, named("aggregator"), subject_names, life)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let credentials = Credentials {
            chain: issued.chain,
            key,
        };
        Ok((credentials, issued.not_after))
    }

    fn issue(
        &self,
        role: Role,
        key: &impl PublicKeyData,
        subject: DistinguishedName,
        names: Vec<SanType>,
        life: Life,
    ) -> Result<Issued, PkiError> {
        if self.guard.get().is_some_and(|guard| guard.in_doubt()) {
            return Err(PkiError::Clock);
        }
        let serial = serial(&self.random)?;
        let mut params = base_params(subject, life);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![role.usage()];
        let held = self.held();
        let generation = held.active();
        let signer = generation.signer(role);
        let leaf = params.signed_by(key, &signer.issuer)?;
        let mut chain = vec![leaf.der().clone(), signer.certificate.clone()];
        // For those who know the root before only, while that is trusted.
        if role == Role::Server && held.generations.len() > 1 {
            chain.extend(generation.cross.clone());
        }
        Ok(Issued {
            chain,
            serial: hex(&serial),
            not_after: life.not_after,
            generation: generation.number,
        })
    }
}

#[derive(Clone, Copy)]
struct Life {
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Life {
    /// Certificates count whole seconds.
    fn at(now: Timestamp, backdated: Duration, life: Duration) -> Self {
        let whole = Timestamp::from_millis(now.as_millis().div_euclid(1000) * 1000);
        Self {
            not_before: whole.minus(backdated),
            not_after: whole.plus(life),
        }
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn base_params(subject: DistinguishedName, life: Life) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |at: Timestamp| Duration::from_millis(u64::try_from(at.as_millis()).unwrap_or(0));
    params.not_before = epoch + since(life.not_before);
    params.not_after = epoch + since(life.not_after);
    params.use_authority_key_identifier_extension = true;
    params
}

/// No URI name constraints here: rustls-webpki refuses every chain that has them.
fn ca_params(
    domain: &TrustDomain,
    name: &str,
    path_length: u8,
    life: Life,
    random: &dyn SecureRandom,
) -> Result<CertificateParams, PkiError> {
    let mut params = base_params(named(&format!("Muster {domain} {name}")), life);
    params.serial_number = Some(SerialNumber::from_slice(&serial(random)?));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// 128 bits, of which 126 are random: positive, and no leading zero byte, so that it has one spelling.
fn serial(random: &dyn SecureRandom) -> Result<[u8; 16], PkiError> {
    let mut bytes = [0; 16];
    random.fill(&mut bytes).map_err(|_| PkiError::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(bytes)
}

fn uri(id: &SpiffeId) -> Result<SanType, PkiError> {
    Ok(SanType::URI(id.to_string().try_into()?))
}

/// Names under which the machine itself can always ask.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Each once, in this order. The machine may be called what no certificate can carry: then it is left out.
fn names_with(given: &[String], more: &[String], machine: &str) -> Vec<String> {
    let machine = Some(machine).filter(|name| is_name(name));
    let mut names: Vec<String> = Vec::new();
    for name in given
        .iter()
        .chain(more)
        .map(String::as_str)
        .chain(machine)
        .chain(LOOPBACK_NAMES)
    {
        if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Whether a certificate can carry this as a DNS name or IP address.
#[must_use]
pub fn is_name(name: &str) -> bool {
    subject_name(name).is_ok()
}

fn subject_name(name: &str) -> Result<SanType, PkiError> {
    let wrong = || PkiError::Name(name.to_owned());
    if let Ok(address) = name.parse() {
        return Ok(SanType::IpAddress(address));
    }
    rustls_pki_types::DnsName::try_from(name).map_err(|_| wrong())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| wrong())?))
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    let wrong = || PkiError::Content {
        path: path.to_owned(),
        wanted: "a PEM certificate",
    };
    let text = files::read(path)?;
    let certificate = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong())?;
    certificate_pin(&certificate).map_err(|_| wrong())?;
    Ok(certificate)
}

fn read_signer(folder: &Path, role: Role) -> Result<Signer, PkiError> {
    let certificate = read_certificate(&folder.join(format!("{}.crt", role.name())))?;
    let path = folder.join(format!("{}.key", role.name()));
    files::check_private(&path)?;
    let key = KeyPair::from_pem(&files::read(&path)?).map_err(|_| PkiError::Content {
        path: path.clone(),
        wanted: "a PEM private key",
    })?;
    let matches = certificate_pin(&certificate)
        .is_ok_and(|pin| pin == muster_proto::token::pin_of(&key.subject_public_key_info()));
    if !matches {
        return Err(PkiError::Content {
            path,
            wanted: "the key of the certificate beside it",
        });
    }
    let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
    Ok(Signer {
        key_id: origin::own_key(&certificate),
        certificate,
        issuer,
    })
}

#[cfg(test)]
mod tests;
