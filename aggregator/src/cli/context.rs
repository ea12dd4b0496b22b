//! Which aggregators this operator knows, and the credentials for each: `~/.config/muster/config.toml`.
//!
//! ```toml
//! current = "prod"
//!
//! [contexts.prod]
//! server = "muster.example:7445"
//! trust_domain = "m-abcdefghij"
//! fleet = "prod"
//! ca = "prod/ca.pem"          # relative to this file's folder
//! cert = "prod/cert.pem"
//! key = "prod/key.pem"
//! ```
//!
//! Private keys are written with mode 0600 into folders with mode 0700, and each file is replaced whole.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use muster_proto::{
    spiffe::TrustDomain,
    tls::{Credentials, Trust, TrustedTime},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

/// Names a context may have: they become folders.
const MAX_NAME_CHARS: usize = 64;

/// The file with all contexts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the context that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

/// One aggregator and who the operator is to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `host:port` of the operator door.
    pub server: String,
    /// The installation's trust domain.
    pub trust_domain: TrustDomain,
    /// The fleet's name for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fleet: String,
    /// Roots that are trusted, PEM; relative paths start at the file's folder.
    pub ca: PathBuf,
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM. Certificates in this file are the chain, in place of those of `cert`: so a renewal replaces
    /// both at once.
    pub key: PathBuf,
    /// What the operator signed in as; the aggregator's store decides what holds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
}

/// Everything a new context is made of.
#[derive(Debug)]
pub struct Material<'a> {
    /// `host:port` of the operator door.
    pub server: &'a str,
    /// The installation's trust domain.
    pub trust_domain: &'a TrustDomain,
    /// The fleet's name for people.
    pub fleet: &'a str,
    /// Roots that are trusted, DER.
    pub roots: &'a [CertificateDer<'a>],
    /// Operator's certificate, then its issuers, DER.
    pub chain: &'a [CertificateDer<'a>],
    /// The operator's private key, PEM.
    pub key_pem: &'a str,
    /// What the operator signed in as.
    pub role: &'a str,
}

/// Why contexts cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// There is no home folder to look into.
    #[error("neither MUSTER_CONFIG, XDG_CONFIG_HOME nor HOME is set")]
    NoHome,
    /// A file is there and cannot be read, or is not there.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} cannot be understood", path = .path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A file cannot be written.
    #[error("cannot write {path}", path = .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate or key is no PEM.
    #[error("{path} holds no usable {what}", path = .path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A name that cannot be a folder.
    #[error("{0:?} cannot be a context's name; use 1 to {MAX_NAME_CHARS} of a-z A-Z 0-9 . _ -")]
    Name(String),
    /// The configuration cannot be written as TOML.
    #[error("the contexts cannot be written as TOML")]
    Toml(#[source] toml::ser::Error),
}

/// Where the file is: `MUSTER_CONFIG`, or below `XDG_CONFIG_HOME` or `HOME`.
///
/// # Errors
/// When none of the variables is set.
pub fn default_path() -> Result<PathBuf, ContextError> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = set("MUSTER_CONFIG") {
        return Ok(path.into());
    }
    let base = match set("XDG_CONFIG_HOME") {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(set("HOME").ok_or(ContextError::NoHome)?).join(".config"),
    };
    Ok(base.join("muster/config.toml"))
}

/// Reads the file; one that does not exist has no contexts.
///
/// # Errors
/// When it is there and cannot be read or understood.
pub fn read(path: &Path) -> Result<Config, ContextError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Config::default()),
        Err(source) => {
            let path = path.to_owned();
            return Err(ContextError::Read { path, source });
        }
    };
    toml::from_str(&text).map_err(|source| ContextError::Syntax {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Replaces the file.
///
/// # Errors
/// When it cannot be written.
pub fn save(path: &Path, config: &Config) -> Result<(), ContextError> {
    let text = toml::to_string_pretty(config).map_err(ContextError::Toml)?;
    replace(path, text.as_bytes())
}

/// Writes credentials and a context of this name, in the place of one that was there, and makes it the
/// current one when there is no other or when `make_current`.
///
/// # Errors
/// When the name is none, or a file cannot be read or written.
pub fn write(
    path: &Path,
    name: &str,
    material: &Material<'_>,
    make_current: bool,
) -> Result<(), ContextError> {
    check_name(name)?;
    let mut config = read(path)?;
    let file = |file: &str| PathBuf::from(name).join(file);
    let context = Context {
        server: material.server.to_owned(),
        trust_domain: material.trust_domain.clone(),
        fleet: material.fleet.to_owned(),
        ca: file("ca.pem"),
        cert: file("cert.pem"),
        key: file("key.pem"),
        role: material.role.to_owned(),
    };
    let Material {
        key_pem,
        chain,
        roots,
        ..
    } = material;
    replace_credentials(path, &context, key_pem, chain, roots)?;
    config.contexts.insert(name.to_owned(), context);
    if make_current || config.current.is_none() {
        config.current = Some(name.to_owned());
    }
    save(path, &config)
}

/// Puts new credentials in the place of a context's. Key and chain are replaced in one step, the copy of the chain for
/// other programs and the roots (if any are given) after it.
///
/// # Errors
/// When a file cannot be written.
pub fn replace_credentials(
    config: &Path,
    context: &Context,
    key_pem: &str,
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
) -> Result<(), ContextError> {
    let pem = |certificates: &[CertificateDer<'_>]| {
        certificates
            .iter()
            .map(|certificate| to_pem("CERTIFICATE", certificate))
            .collect::<String>()
    };
    let chain = pem(chain);
    let whole = format!("{}\n{chain}", key_pem.trim_end());
    replace(&beside(config, &context.key), whole.as_bytes())?;
    replace(&beside(config, &context.cert), chain.as_bytes())?;
    if !roots.is_empty() {
        replace(&beside(config, &context.ca), pem(roots).as_bytes())?;
    }
    Ok(())
}

/// Whether a context may be called this.
///
/// # Errors
/// When not.
pub fn check_name(name: &str) -> Result<(), ContextError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty()
        || name.len() > MAX_NAME_CHARS
        || name.starts_with('.')
        || !name.chars().all(legal)
    {
        return Err(ContextError::Name(name.to_owned()));
    }
    Ok(())
}

/// A path of a context, seen from the file it stands in.
#[must_use]
pub fn beside(config: &Path, path: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new(".")).join(path)
}

impl Context {
    /// What TLS needs to know of the aggregator and of us. `config` is the file the context stands in.
    ///
    /// # Errors
    /// When a file cannot be read or holds nothing usable.
    pub fn credentials(&self, config: &Path) -> Result<(Trust, Credentials), ContextError> {
        let roots = certificates(&beside(config, &self.ca))?;
        let key_path = beside(config, &self.key);
        let text = read_file(&key_path)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| ContextError::Pem {
            path: key_path.clone(),
            what: "private key",
        })?;
        let beside_key: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|_| ContextError::Pem {
                path: key_path,
                what: "certificate",
            })?;
        let chain = if beside_key.is_empty() {
            certificates(&beside(config, &self.cert))?
        } else {
            beside_key
        };
        let trust = Trust {
            roots,
            domain: self.trust_domain.clone(),
            time: TrustedTime::default(),
        };
        Ok((trust, Credentials { chain, key }))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ContextError> {
    let text = read_file(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(ContextError::Pem {
            path: path.to_owned(),
            what: "certificate",
        }),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, ContextError> {
    fs::read(path).map_err(|source| ContextError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Puts a file with mode 0600 in the place of the old one, whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), ContextError> {
    let failed = |source| ContextError::Write {
        path: path.to_owned(),
        source,
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = folder.join(name);
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // The first error is the one to tell; a left-over file only takes space.
        let _ = fs::remove_file(&new);
    }
    written.map_err(failed)
}

/// RFC 7468: base64 in lines of 64 between two labels.
fn to_pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = format!("-----BEGIN {label}-----\n");
    // 48 bytes are 64 characters.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for at in 0..4 {
                let sextet = usize::try_from(bits >> (18 - 6 * at) & 63).unwrap_or(0);
                let padding = at > group.len();
                out.push(if padding {
                    '='
                } else {
                    char::from(ALPHABET[sextet])
                });
            }
        }
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn domain() -> TrustDomain {
        "m-abcdefghij".parse().expect("a trust domain")
    }

    #[test]
    fn what_is_written_is_read_back_and_private() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("muster/config.toml");
        let key = rcgen::KeyPair::generate().expect("a key");
        // 50 and 3 bytes: with padding and without.
        let (root, leaf) = (
            CertificateDer::from(vec![7; 50]),
            CertificateDer::from(vec![1, 2, 3]),
        );
        let domain = domain();
        let material = Material {
            server: "muster.example:7445",
            trust_domain: &domain,
            fleet: "prod",
            roots: std::slice::from_ref(&root),
            chain: &[leaf.clone(), root.clone()],
            key_pem: &key.serialize_pem(),
            role: "admin",
        };
        write(&path, "prod", &material, false).expect("written");
        write(&path, "lab", &material, false).expect("written");
        let config = read(&path).expect("read");
        assert_eq!(config.current.as_deref(), Some("prod"));
        assert_eq!(config.contexts.len(), 2);
        let (trust, credentials) = config.contexts["lab"]
            .credentials(&path)
            .expect("credentials");
        assert_eq!(trust.roots, std::slice::from_ref(&root));
        assert_eq!(credentials.chain, [leaf.clone(), root.clone()]);
        // A renewal that was cut off after its first file: key and chain fit all the same.
        let lab = &config.contexts["lab"];
        assert_eq!(lab.role, "admin");
        fs::write(folder.path().join("muster/lab/cert.pem"), "old").expect("written");
        let (_, credentials) = lab.credentials(&path).expect("credentials");
        assert_eq!(credentials.chain, [leaf.clone(), root.clone()]);
        let mode = |path: PathBuf| {
            let metadata = fs::metadata(path).expect("metadata");
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(mode(folder.path().join("muster/lab/key.pem")), 0o600);
        assert_eq!(mode(folder.path().join("muster/lab")), 0o700);
        write(&path, "lab", &material, true).expect("written again");
        assert_eq!(read(&path).expect("read").current.as_deref(), Some("lab"));
    }

    #[test]
    fn names_are_no_paths() {
        for name in ["", ".", "..", "a/b", "../x", "ü", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("prod-eu_1.a").is_ok());
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("config.toml");
        fs::write(&path, "current = \"a\"\ncontext = 1\n").expect("written");
        let error = read(&path).expect_err("refused");
        let source = std::error::Error::source(&error)
            .expect("a source")
            .to_string();
        assert!(source.contains("line 2"), "{source}");
    }
}
