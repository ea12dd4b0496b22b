//! The host's identity on disk: key, certificates, trust bundle, and two counters that tell copies apart.
//!
//! ```text
//! <state>/identity/key.pem         0600, made here, never leaves
//! <state>/identity/chain.pem       leaf, then its issuer
//! <state>/identity/current.pem     0600, key, leaf, issuer: after the first renewal, in the place of the two above
//! <state>/identity/next.pem        the same, renewed and not yet accepted by the aggregator
//! <state>/identity/bundle.pem      roots; the first line is "version <n>"
//! <state>/identity/identity.toml   host id, trust domain, uplink address
//! <state>/identity/session         the last session number set aside
//! <state>/identity/ratchet         the value of the last Welcome
//! <state>/identity/time            the aggregator's time at the last Welcome, milliseconds
//! <state>/identity/servers         what an aggregator announced: id and address of each further one, a line each
//! <state>/identity/machine         which machine this is ([`crate::machine`])
//! <state>/enrolling/               the same while joining; takes its final name when complete
//! ```
//!
//! Every file is replaced whole: written beside, synced, renamed, the folder synced. After a crash there is the
//! old content or the new, and one usable identity: a renewed certificate is whole in `next.pem` before it is used,
//! and takes the place of the one before it by a rename once the aggregator has accepted it. Root makes them for the service's user ([`owner`]).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    ops::Range,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    machine,
    uplink::servers::{self, Announced},
};
use muster_proto::{
    id::HostId,
    owner,
    spiffe::TrustDomain,
    time::Timestamp,
    tls::{Credentials, TlsConfigError, Trust, TrustedTime, client_config},
    v1::TrustBundle,
};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};

const FOLDER: &str = "identity";
const JOINING: &str = "enrolling";
const KEY: &str = "key.pem";
const CHAIN: &str = "chain.pem";
const CURRENT: &str = "current.pem";
const NEXT: &str = "next.pem";
const BUNDLE: &str = "bundle.pem";
const SETTINGS: &str = "identity.toml";
const SESSION: &str = "session";
const RATCHET: &str = "ratchet";
const TIME: &str = "time";
const SERVERS: &str = "servers";
/// Folders that make this machine the host it is, samples that wait included.
pub(crate) const OF_THE_HOST: [&str; 3] = [FOLDER, JOINING, "spool"];

/// Longest ratchet value kept: the aggregator's are 16 bytes.
const MAX_RATCHET: usize = 64;

/// Why there is no usable identity, or it cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The host has not joined.
    #[error("this host is not enrolled ({} does not exist): run `muster-agent enrol <aggregator>` with a join token", .0.display())]
    Missing(PathBuf),
    /// The host has joined already.
    #[error("this host is enrolled already ({}): to join again as a new host, stop the agent and remove that folder", .0.display())]
    Exists(PathBuf),
    /// A key that others can read.
    #[error("others can read the key {path} (mode {mode:04o}): run `chmod 600 {path}`; if it may have been read, enrol again", path = path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file cannot be read.
    #[error("cannot read {}: does it belong to the user the agent runs as?", path.display())]
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
    #[error("{} does not hold {wanted}: restore it, or remove the folder and enrol again", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    host_id: HostIdText,
    trust_domain: TrustDomain,
    uplink_address: String,
}

/// A host id as people read it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct HostIdText(HostId);

impl TryFrom<String> for HostIdText {
    type Error = muster_proto::id::HostIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl From<HostIdText> for String {
    fn from(id: HostIdText) -> Self {
        id.0.to_string()
    }
}

/// The identity, loaded.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who this host is.
    pub host_id: HostId,
    /// The installation it belongs to.
    pub trust_domain: TrustDomain,
    /// host:port of the aggregator's uplink.
    pub uplink_address: String,
    /// Chain and key.
    pub credentials: Credentials,
    /// Roots of the trust bundle.
    pub roots: Vec<CertificateDer<'static>>,
    /// Version of the trust bundle.
    pub bundle_version: u64,
    /// The credentials were renewed and the aggregator has not accepted them yet.
    pub is_next: bool,
}

impl Identity {
    /// Loads what enrolment stored under the state folder.
    ///
    /// # Errors
    /// When the host has not joined, a file cannot be read or is damaged, or others can read the key.
    pub fn load(state: &Path) -> Result<Self, IdentityError> {
        Self::load_with(state, true)
    }

    /// As [`Identity::load`]; a renewed certificate that waits is taken only if `next`.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn load_with(state: &Path, next: bool) -> Result<Self, IdentityError> {
        let folder = state.join(FOLDER);
        match fs::metadata(&folder) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(IdentityError::Missing(folder));
            }
            Err(source) => {
                return Err(IdentityError::Read {
                    path: folder,
                    source,
                });
            }
        }
        let path = folder.join(SETTINGS);
        let settings: Settings = toml::from_str(&read(&path)?)
            .map_err(|_| wrong(path, "a host id, a trust domain and an uplink address"))?;
        let (credentials, is_next) = load_credentials(&folder, next)?;
        let (bundle_version, roots) = load_bundle(&folder.join(BUNDLE))?;
        Ok(Self {
            host_id: settings.host_id.0,
            trust_domain: settings.trust_domain,
            uplink_address: settings.uplink_address,
            credentials,
            roots,
            bundle_version,
            is_next,
        })
    }

    /// TLS towards the aggregator with this identity.
    ///
    /// # Errors
    /// When chain, key or roots cannot be used.
    pub fn client_config(&self, time: &TrustedTime) -> Result<ClientConfig, TlsConfigError> {
        let trust = Trust {
            roots: self.roots.clone(),
            domain: self.trust_domain.clone(),
            time: time.clone(),
        };
        client_config(&trust, self.credentials.clone())
    }
}

/// Replaces the trust bundle.
///
/// # Errors
/// When it holds no root, or cannot be written.
pub fn store_bundle(state: &Path, bundle: &TrustBundle) -> Result<(), IdentityError> {
    write_bundle(&state.join(FOLDER), bundle)
}

/// Sets session numbers aside: larger than all before them, whatever happens in between. Those that are
/// not used before the process ends are never used.
///
/// # Errors
/// When the counter cannot be read or written; the host must not connect then.
pub fn reserve_sessions(state: &Path, count: u64) -> Result<Range<u64>, IdentityError> {
    let folder = state.join(FOLDER);
    let path = folder.join(SESSION);
    let last = match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse::<u64>()
            .map_err(|_| wrong(path, "the number of the last session"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(source) => return Err(IdentityError::Read { path, source }),
    };
    let last_reserved = last
        .checked_add(count)
        .ok_or_else(|| wrong(folder.join(SESSION), "a number with others after it"))?;
    replace(
        &folder,
        SESSION,
        format!("{last_reserved}\n").as_bytes(),
        0o600,
    )?;
    Ok(last + 1..last_reserved + 1)
}

/// The value of the last Welcome; empty before the first.
///
/// # Errors
/// When it cannot be read.
pub fn load_ratchet(state: &Path) -> Result<Vec<u8>, IdentityError> {
    let path = state.join(FOLDER).join(RATCHET);
    match fs::read(&path) {
        Ok(value) if value.len() <= MAX_RATCHET => Ok(value),
        Ok(_) => Err(wrong(path, "a ratchet value")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(IdentityError::Read { path, source }),
    }
}

/// Keeps the value of a Welcome.
///
/// # Errors
/// When it is too long or cannot be written.
pub fn store_ratchet(state: &Path, value: &[u8]) -> Result<(), IdentityError> {
    let folder = state.join(FOLDER);
    if value.len() > MAX_RATCHET {
        return Err(wrong(folder.join(RATCHET), "a ratchet value"));
    }
    replace(&folder, RATCHET, value, 0o600)
}

/// The aggregator's time at the last Welcome, if it was kept: a machine whose clock fell back knows that it is later.
#[must_use]
pub fn load_time(state: &Path) -> Option<Timestamp> {
    let text = fs::read_to_string(state.join(FOLDER).join(TIME)).ok()?;
    text.trim().parse().ok().map(Timestamp::from_millis)
}

/// Keeps the aggregator's time.
///
/// # Errors
/// When it cannot be written.
pub fn store_time(state: &Path, time: Timestamp) -> Result<(), IdentityError> {
    let text = format!("{}\n", time.as_millis());
    replace(&state.join(FOLDER), TIME, text.as_bytes(), 0o600)
}

/// The aggregators that were announced last; none if nothing that reads was kept.
#[must_use]
pub fn load_servers(state: &Path) -> Vec<Announced> {
    let text = fs::read_to_string(state.join(FOLDER).join(SERVERS)).unwrap_or_default();
    let servers = text.lines().filter_map(|line| {
        let (id, address) = line.split_once(' ')?;
        let server = Announced {
            id: id.to_owned(),
            address: address.to_owned(),
        };
        servers::is_sound(&server).then_some(server)
    });
    servers.take(servers::MAX_SERVERS).collect()
}

/// Keeps the aggregators that were announced.
///
/// # Errors
/// When it cannot be written.
pub fn store_servers(state: &Path, servers: &[Announced]) -> Result<(), IdentityError> {
    let lines = servers
        .iter()
        .map(|server| format!("{} {}\n", server.id, server.address));
    let text: String = lines.collect();
    replace(&state.join(FOLDER), SERVERS, text.as_bytes(), 0o600)
}

/// Where the identity is.
pub(crate) fn folder(state: &Path) -> PathBuf {
    state.join(FOLDER)
}

// ---- renewing ----------------------------------------------------------------------------------------

/// Whether a renewed certificate waits to be accepted.
#[must_use]
pub fn has_next(state: &Path) -> bool {
    state.join(FOLDER).join(NEXT).exists()
}

/// Stores a renewed certificate beside the one in use.
///
/// # Errors
/// When it cannot be written; the identity is as it was.
pub fn store_next(
    state: &Path,
    key_pem: &str,
    chain: &[CertificateDer<'_>],
) -> Result<(), IdentityError> {
    let mut text = key_pem.to_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    for certificate in chain {
        text.push_str(&pem(certificate));
    }
    replace(&state.join(FOLDER), NEXT, text.as_bytes(), 0o600)
}

/// The renewed certificate was accepted: it takes the place of the one before it.
///
/// # Errors
/// When it cannot be moved; it is found as the renewed one again.
pub fn promote_next(state: &Path) -> Result<(), IdentityError> {
    let folder = state.join(FOLDER);
    let place = folder.join(CURRENT);
    fs::rename(folder.join(NEXT), &place)
        .and_then(|()| File::open(&folder)?.sync_all())
        .map_err(|source| IdentityError::Write {
            path: place,
            source,
        })?;
    // What enrolment gave is refused from now on.
    for old in [KEY, CHAIN] {
        remove(&folder.join(old))?;
    }
    Ok(())
}

/// The renewed certificate is of no use: the one before it was accepted.
///
/// # Errors
/// When it cannot be removed.
pub fn discard_next(state: &Path) -> Result<(), IdentityError> {
    remove(&state.join(FOLDER).join(NEXT))
}

fn remove(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(IdentityError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// The credentials to show, and whether they are the renewed ones. Those that are damaged give way to the ones
/// before them.
fn load_credentials(folder: &Path, next: bool) -> Result<(Credentials, bool), IdentityError> {
    if next {
        match load_slot(&folder.join(NEXT)) {
            Ok(Some(credentials)) => return Ok((credentials, true)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the renewed certificate cannot be used; the one before it is");
            }
        }
    }
    if let Some(credentials) = load_slot(&folder.join(CURRENT))? {
        return Ok((credentials, false));
    }
    let key = load_key(&folder.join(KEY))?;
    let chain = certificates(&folder.join(CHAIN))?;
    Ok((Credentials { chain, key }, false))
}

fn load_slot(path: &Path) -> Result<Option<Credentials>, IdentityError> {
    if !path.exists() {
        return Ok(None);
    }
    let key = load_key(path)?;
    let chain = certificates(path)?;
    Ok(Some(Credentials { chain, key }))
}

// ---- joining -----------------------------------------------------------------------------------------

/// An identity that is being made.
pub(crate) struct Joining {
    folder: PathBuf,
    place: PathBuf,
}

impl Joining {
    /// Begins, or goes on with what an interrupted attempt left.
    pub(crate) fn begin(state: &Path) -> Result<Self, IdentityError> {
        let place = state.join(FOLDER);
        if place.exists() {
            return Err(IdentityError::Exists(place));
        }
        let folder = state.join(JOINING);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .and_then(|()| owner::give_folder(&folder))
            .map_err(|source| IdentityError::Write {
                path: folder.clone(),
                source,
            })?;
        Ok(Self { folder, place })
    }

    /// The key of an earlier attempt, PEM: with the same key the aggregator gives the same identity again.
    pub(crate) fn key(&self) -> Result<Option<String>, IdentityError> {
        let path = self.folder.join(KEY);
        if !path.exists() {
            return Ok(None);
        }
        check_private(&path)?;
        read(&path).map(Some)
    }

    pub(crate) fn store_key(&self, pem: &str) -> Result<(), IdentityError> {
        replace(&self.folder, KEY, pem.as_bytes(), 0o600)
    }

    /// Completes it; from here on [`Identity::load`] finds it.
    pub(crate) fn finish(
        self,
        host_id: HostId,
        trust_domain: TrustDomain,
        uplink_address: String,
        chain: &[CertificateDer<'_>],
        bundle: &TrustBundle,
        machine_id_hash: &[u8],
    ) -> Result<(), IdentityError> {
        let settings = Settings {
            host_id: HostIdText(host_id),
            trust_domain,
            uplink_address,
        };
        let text = toml::to_string(&settings).expect("three plain fields can be written as TOML");
        let chain: String = chain.iter().map(|certificate| pem(certificate)).collect();
        replace(&self.folder, CHAIN, chain.as_bytes(), 0o644)?;
        write_bundle(&self.folder, bundle)?;
        machine::mark(&self.folder, machine_id_hash)?;
        replace(&self.folder, SETTINGS, text.as_bytes(), 0o644)?;
        let parent = self.place.parent().unwrap_or(Path::new("."));
        fs::rename(&self.folder, &self.place)
            .and_then(|()| File::open(parent)?.sync_all())
            .map_err(|source| IdentityError::Write {
                path: self.place.clone(),
                source,
            })
    }
}

fn write_bundle(folder: &Path, bundle: &TrustBundle) -> Result<(), IdentityError> {
    let mut text = format!("version {}\n", bundle.version);
    for root in &bundle.roots {
        text.push_str(&pem(root));
    }
    if bundle.roots.is_empty() {
        return Err(wrong(folder.join(BUNDLE), "a root certificate"));
    }
    replace(folder, BUNDLE, text.as_bytes(), 0o644)
}

// ---- files -------------------------------------------------------------------------------------------

fn wrong(path: PathBuf, wanted: &'static str) -> IdentityError {
    IdentityError::Content { path, wanted }
}

fn read(path: &Path) -> Result<String, IdentityError> {
    fs::read_to_string(path).map_err(|source| IdentityError::Read {
        path: path.to_owned(),
        source,
    })
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    check_private(path)?;
    PrivateKeyDer::from_pem_slice(read(path)?.as_bytes())
        .map_err(|_| wrong(path.to_owned(), "a PEM private key"))
}

fn check_private(path: &Path) -> Result<(), IdentityError> {
    let metadata = fs::metadata(path).map_err(|source| IdentityError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(IdentityError::Exposed {
        path: path.to_owned(),
        mode,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(wrong(path.to_owned(), "PEM certificates")),
    }
}

fn load_bundle(path: &Path) -> Result<(u64, Vec<CertificateDer<'static>>), IdentityError> {
    let text = read(path)?;
    let version = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("version "))
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| wrong(path.to_owned(), "the version of the trust bundle"))?;
    Ok((version, certificates(path)?))
}

/// Replaces a file whole: the old content or the new, never a part.
pub(crate) fn replace(
    folder: &Path,
    name: &str,
    content: &[u8],
    mode: u32,
) -> Result<(), IdentityError> {
    let (path, beside) = (folder.join(name), folder.join(format!("{name}.new")));
    let written = match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside),
    };
    written
        .and_then(|mut file| {
            owner::give_file(&file, folder)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(folder)?.sync_all()
        })
        .map_err(|source| IdentityError::Write { path, source })
}

/// A certificate as PEM (RFC 7468).
fn pem(certificate: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    // 48 bytes are 64 characters, a line's length.
    for line in certificate.chunks(48) {
        text.push_str(&base64(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| usize::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = ALPHABET[bits >> (18 - 6 * at) & 63];
            text.push(if at <= group.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &[u8] = &[0x30; 100];

    fn joined() -> tempfile::TempDir {
        let state = tempfile::tempdir().expect("a folder");
        let joining = Joining::begin(state.path()).expect("begun");
        let key = rcgen::KeyPair::generate().expect("a key");
        joining.store_key(&key.serialize_pem()).expect("stored");
        let chain = [CertificateDer::from(CERTIFICATE)];
        let bundle = TrustBundle {
            version: 3,
            roots: vec![CERTIFICATE.to_vec()],
        };
        let domain = "m-abcdefghij".parse().expect("a domain");
        let id = HostId::from_bytes([9; 16]);
        joining
            .finish(id, domain, "agg:7443".to_owned(), &chain, &bundle, &[1; 32])
            .expect("finished");
        state
    }

    #[test]
    fn what_joining_stored_is_loaded() {
        let state = joined();
        let identity = Identity::load(state.path()).expect("loaded");
        assert_eq!(identity.host_id, HostId::from_bytes([9; 16]));
        assert_eq!(identity.uplink_address, "agg:7443");
        assert_eq!(identity.bundle_version, 3);
        assert_eq!(identity.roots, [CertificateDer::from(CERTIFICATE)]);
        assert_eq!(identity.credentials.chain.len(), 1);
        assert!(matches!(
            Joining::begin(state.path()),
            Err(IdentityError::Exists(_))
        ));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let state = tempfile::tempdir().expect("a folder");
        let missing = Identity::load(state.path()).expect_err("not enrolled");
        assert!(
            missing.to_string().contains("muster-agent enrol"),
            "{missing}"
        );

        for (file, content, said) in [
            (KEY, "nonsense", "a PEM private key"),
            (CHAIN, "", "PEM certificates"),
            (BUNDLE, "vers", "the version"),
            (SETTINGS, "host_id = 3", "a host id"),
        ] {
            let state = joined();
            fs::write(state.path().join(FOLDER).join(file), content).expect("damaged");
            let error = Identity::load(state.path()).expect_err("damaged");
            assert!(error.to_string().contains(said), "{error}");
            assert!(error.to_string().contains(file), "{error}");
        }

        let state = joined();
        let key = state.path().join(FOLDER).join(KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("chmod");
        let exposed = Identity::load(state.path()).expect_err("readable by others");
        assert!(exposed.to_string().contains("chmod 600"), "{exposed}");
    }

    #[test]
    fn a_crash_at_any_step_of_a_renewal_leaves_one_usable_identity() {
        let state = joined();
        let folder = state.path().join(FOLDER);
        let shown = |next| {
            let identity = Identity::load_with(state.path(), next).expect("usable");
            (identity.credentials.chain[0].to_vec(), identity.is_next)
        };
        let (old, new) = (CERTIFICATE.to_vec(), vec![0x31; 90]);
        let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        // Torn while it was written.
        fs::write(folder.join("next.pem.new"), &key[..20]).expect("written");
        assert_eq!(shown(true), (old.clone(), false));
        store_next(state.path(), &key, &[CertificateDer::from(new.clone())]).expect("stored");
        // Stored; perhaps used, perhaps not: both are there.
        assert!(has_next(state.path()));
        assert_eq!(shown(true), (new.clone(), true));
        assert_eq!(shown(false), (old.clone(), false));
        // Renamed, and the enrolment's files still there.
        fs::copy(folder.join(NEXT), folder.join("kept")).expect("copied");
        fs::rename(folder.join(NEXT), folder.join(CURRENT)).expect("renamed");
        assert_eq!(shown(true), (new.clone(), false));
        // And done to the end.
        fs::rename(folder.join("kept"), folder.join(NEXT)).expect("renamed");
        promote_next(state.path()).expect("promoted");
        assert_eq!(shown(true), (new.clone(), false));
        assert!(!folder.join(KEY).exists() && !has_next(state.path()));
        // A damaged one gives way to the one in use, and one of no use goes.
        fs::write(folder.join(NEXT), "nonsense").expect("written");
        fs::set_permissions(folder.join(NEXT), fs::Permissions::from_mode(0o600)).expect("chmod");
        assert_eq!(shown(true), (new, false));
        discard_next(state.path()).expect("removed");
        discard_next(state.path()).expect("nothing to do");
        assert!(!has_next(state.path()));
    }

    #[test]
    fn sessions_grow_and_a_damaged_counter_stops_them() {
        let state = joined();
        let blocks: Vec<Range<u64>> = (0..3)
            .map(|_| reserve_sessions(state.path(), 64).expect("numbers"))
            .collect();
        assert_eq!(blocks, [1..65, 65..129, 129..193]);
        fs::write(state.path().join("identity/session"), "x").expect("damaged");
        assert!(reserve_sessions(state.path(), 1).is_err());
        fs::write(state.path().join("identity/session"), u64::MAX.to_string()).expect("damaged");
        assert!(
            reserve_sessions(state.path(), 1).is_err(),
            "never the same again"
        );
    }

    #[test]
    fn the_ratchet_is_kept() {
        let state = joined();
        assert_eq!(load_ratchet(state.path()).expect("none yet"), b"");
        store_ratchet(state.path(), b"one").expect("stored");
        store_ratchet(state.path(), b"two").expect("stored");
        assert_eq!(load_ratchet(state.path()).expect("there"), b"two");
        assert!(store_ratchet(state.path(), &[0; 65]).is_err());
    }

    #[test]
    fn base64_as_in_the_rfc() {
        for (bytes, wanted) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), wanted);
        }
    }
}
