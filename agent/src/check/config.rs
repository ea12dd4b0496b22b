//! `[checks]` and `[[check]]` of the configuration: every key of every kind of check, and its bounds.
//!
//! Keys are those of the check's type; another is a fault that names the key. A check that a later file
//! defines under the same name replaces the earlier one.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use toml::de::DeValue;

use super::{Status, starttls::Protocol};
use crate::settings::{self, Section, duration, text, truth, whole};

/// Most checks of one host: each is a task, and about eight series.
pub const MAX_CHECKS: usize = 200;

/// Most plugins that run at once, whatever the configuration says: the unit allows 64 tasks in all.
pub(super) const MAX_EXEC: usize = 8;

const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// A century; for ages and the days of certificates.
const MAX_SPAN: Duration = Duration::from_secs(36_525 * 24 * 3600);
const MAX_SIZE: u64 = 1 << 60;

/// Longest name of a check, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Longest text that is looked for, sent or given to a plugin.
const MAX_TEXT_BYTES: usize = 4096;
/// Most words of a plugin's command line, headers of a request or values expected.
const MAX_ITEMS: usize = 64;

/// All checks of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksConfig {
    /// Whether checks may run programs.
    pub allow_exec: bool,
    /// Most plugins that run at once.
    pub max_exec: usize,
    /// The checks, by name.
    pub checks: BTreeMap<String, Check>,
}

impl Default for ChecksConfig {
    fn default() -> Self {
        Self {
            allow_exec: false,
            max_exec: 4,
            checks: BTreeMap::new(),
        }
    }
}

impl ChecksConfig {
    /// Whether some check runs a program. If none does, the agent gives up the ability to.
    #[must_use]
    pub fn runs_programs(&self) -> bool {
        self.checks
            .values()
            .any(|check| matches!(check.kind, Kind::Exec(_)))
    }

    /// The keys of `[checks]` and `[[check]]`.
    pub(crate) fn keys(&mut self, root: &mut Section<'_, '_>) {
        root.section("checks", |section| {
            section.value("allow_exec", &mut self.allow_exec, truth);
            section.value("max_exec", &mut self.max_exec, |value| {
                whole(value, 1..=MAX_EXEC)
            });
        });
        let mut seen = Vec::new();
        root.tables("check", |section| {
            let Some(check) = one(section) else {
                return;
            };
            if seen.contains(&check.name) {
                section.complain("name", "there is another check of this name in this file");
            }
            seen.push(check.name.clone());
            self.checks.insert(check.name.clone(), check);
        });
    }

    /// What must hold of all files together: the key concerned, and what is wrong.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        if self.checks.len() > MAX_CHECKS {
            return Some(("check", format!("at most {MAX_CHECKS} checks are allowed")));
        }
        let runs = self
            .checks
            .values()
            .find(|check| matches!(check.kind, Kind::Exec(_)));
        let runs = runs.filter(|_| !self.allow_exec)?;
        Some((
            "checks.allow_exec",
            format!(
                "check {:?} runs a program, which is off; set allow_exec = true in [checks] to let checks run programs",
                runs.name
            ),
        ))
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name: label of its series, subject of its events.
    pub name: String,
    /// The worst status it can have: warning or critical.
    pub severity: Status,
    /// From the start of one run to the start of the next.
    pub interval: Duration,
    /// Longest run.
    pub timeout: Duration,
    /// Runs after the first failure that must fail as well before the status changes.
    pub retries: usize,
    /// From one of these to the next.
    pub retry_interval: Duration,
    /// What is asked.
    pub kind: Kind,
}

impl Check {
    /// With the defaults of all kinds, asking for nothing in particular.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            severity: Status::Critical,
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            retries: 2,
            retry_interval: Duration::from_secs(15),
            kind: Kind::File(FileCheck::at("/")),
        }
    }
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An HTTP server.
    Http(HttpCheck),
    /// A TCP port.
    Tcp(TcpCheck),
    /// A certificate, served or in a file.
    Tls(TlsCheck),
    /// A name in the DNS.
    Dns(DnsCheck),
    /// A file's existence, age and size.
    File(FileCheck),
    /// Running processes.
    Process(ProcessCheck),
    /// A monitoring plugin.
    Exec(ExecCheck),
}

impl Kind {
    /// The word of the configuration for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Tcp(_) => "tcp",
            Self::Tls(_) => "tls",
            Self::Dns(_) => "dns",
            Self::File(_) => "file",
            Self::Process(_) => "process",
            Self::Exec(_) => "exec",
        }
    }
}

/// When too little of a certificate's life is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// Warning from here on.
    pub warn: Duration,
    /// Critical from here on.
    pub crit: Duration,
}

impl Default for Expiry {
    /// Certificates of 90 days are renewed 30 days before their end: at 21 that has failed for a while.
    fn default() -> Self {
        Self {
            warn: Duration::from_secs(21 * 24 * 3600),
            crit: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// Whether and by which issuers a certificate is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Whether issuer and name are looked at; the expiry is in any case.
    pub verify: bool,
    /// Issuers in PEM instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Who we are, for servers that ask: a certificate with its chain, and its key, in PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            verify: true,
            ca_file: None,
            client: None,
        }
    }
}

/// A URL taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Url {
    /// Whether it is https.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Host and port as the Host header says them.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

/// See [`Kind::Http`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// Where to ask.
    pub url: Url,
    /// GET or HEAD.
    pub head: bool,
    /// Statuses that are right, as ranges.
    pub status: Vec<(u16, u16)>,
    /// What the body must contain.
    pub contains: String,
    /// Headers that are sent besides Host and User-Agent; a Host among them replaces ours.
    pub headers: BTreeMap<String, String>,
    /// Slower than this is a warning.
    pub slow: Option<Duration>,
    /// How the certificate is judged.
    pub trust: Trust,
    /// When it is too old.
    pub expiry: Expiry,
}

/// See [`Kind::Tcp`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpCheck {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What is sent once connected.
    pub send: String,
    /// What the answer must contain.
    pub expect: String,
    /// Slower than this is a warning.
    pub slow: Option<Duration>,
}

/// See [`Kind::Tls`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsCheck {
    /// Host and port of a server.
    pub address: Option<(String, u16)>,
    /// The name in its certificate, if not that host.
    pub server_name: String,
    /// A certificate in PEM instead.
    pub file: Option<PathBuf>,
    /// What is spoken before TLS begins.
    pub starttls: Option<Protocol>,
    /// How it is judged.
    pub trust: Trust,
    /// When it is too old.
    pub expiry: Expiry,
}

/// Types of records that can be asked for: word, number (RFC 1035, RFC 3596).
pub const RECORDS: [(&str, u16); 8] = [
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("PTR", 12),
    ("MX", 15),
    ("TXT", 16),
    ("AAAA", 28),
];

/// See [`Kind::Dns`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsCheck {
    /// The name that is asked for.
    pub query: String,
    /// The type's number.
    pub record: u16,
    /// Address and port of the server; else the first of `/etc/resolv.conf`.
    pub server: Option<(IpAddr, u16)>,
    /// Values that must be among the answers.
    pub expect: Vec<String>,
}

/// See [`Kind::File`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileCheck {
    /// The file or folder.
    pub path: PathBuf,
    /// It must not be there.
    pub absent: bool,
    /// Longest time since its last change.
    pub max_age: Option<Duration>,
    /// Smallest size.
    pub min_size: Option<u64>,
    /// Largest size.
    pub max_size: Option<u64>,
    /// Most bytes by which it may grow from one run to the next.
    pub max_growth: Option<u64>,
}

impl FileCheck {
    /// That this is there.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }
}

/// See [`Kind::Process`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessCheck {
    /// Name of the program: what the kernel calls it, or the last part of its first argument.
    pub process: String,
    /// A file with its number instead.
    pub pidfile: Option<PathBuf>,
    /// Fewest that must run.
    pub min: usize,
    /// Most that may run.
    pub max: Option<usize>,
}

/// See [`Kind::Exec`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecCheck {
    /// Absolute path and arguments. No shell is involved.
    pub command: Vec<String>,
    /// The user it runs as; the agent's own if none is named.
    pub user: Option<String>,
}

// ---- reading -----------------------------------------------------------------------------------------

/// Reads one `[[check]]`. `None` where so much is wrong that there is no check; what, is noted.
fn one(section: &mut Section<'_, '_>) -> Option<Check> {
    let mut check = Check::named("");
    section.value("name", &mut check.name, name);
    if !section.has("name") {
        section.complain("name", "is needed: every check has a name of its own");
    }
    let mut word = String::new();
    section.value("type", &mut word, |value| kind(value).map(str::to_owned));
    if !section.has("type") {
        section.complain("type", &format!("is needed: one of {}", KINDS.join(", ")));
    }
    section.value("severity", &mut check.severity, |value| {
        settings::word(
            value,
            &[("warning", Status::Warning), ("critical", Status::Critical)],
        )
    });
    section.value("interval", &mut check.interval, |value| {
        duration(value, MIN_INTERVAL..=MAX_INTERVAL)
    });
    check.timeout = check.timeout.min(check.interval);
    check.retry_interval = check.retry_interval.min(check.interval);
    section.value("timeout", &mut check.timeout, |value| {
        duration(value, MIN_TIMEOUT..=MAX_TIMEOUT)
    });
    section.value("retries", &mut check.retries, |value| whole(value, 0..=100));
    section.value("retry_interval", &mut check.retry_interval, |value| {
        duration(value, MIN_INTERVAL..=MAX_INTERVAL)
    });
    if check.timeout > check.interval {
        section.complain("timeout", "is longer than the interval");
    }
    check.kind = match word.as_str() {
        "http" => Kind::Http(http(section)),
        "tcp" => Kind::Tcp(tcp(section)),
        "tls" => Kind::Tls(tls(section)),
        "dns" => Kind::Dns(dns(section)),
        "file" => Kind::File(file(section)),
        "process" => Kind::Process(process(section)),
        "exec" => Kind::Exec(exec(section)),
        // Which keys are right is not known then.
        _ => {
            section.any_key();
            return None;
        }
    };
    (!check.name.is_empty()).then_some(check)
}

const KINDS: [&str; 7] = ["http", "tcp", "tls", "dns", "file", "process", "exec"];

fn kind(value: &DeValue<'_>) -> Result<&'static str, String> {
    settings::word(value, &KINDS.map(|kind| (kind, kind)))
}

fn name(value: &DeValue<'_>) -> Result<String, String> {
    let given = text(value)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if given.is_empty() || given.len() > MAX_NAME_BYTES || !given.chars().all(legal) {
        return Err(format!(
            "a check's name is 1 to {MAX_NAME_BYTES} of a-z A-Z 0-9 . _ - /"
        ));
    }
    Ok(given.to_owned())
}

/// A text of bounded length, in which nothing ends a line.
fn short_line(value: &DeValue<'_>) -> Result<String, String> {
    let given = short(value)?;
    match given.chars().any(char::is_control) {
        true => Err("expected a text without control characters".into()),
        false => Ok(given),
    }
}

fn short(value: &DeValue<'_>) -> Result<String, String> {
    let given = text(value)?;
    match given.len() > MAX_TEXT_BYTES || given.contains('\0') {
        true => Err(format!("expected a text of at most {MAX_TEXT_BYTES} bytes")),
        false => Ok(given.to_owned()),
    }
}

fn few(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let items = value
        .as_array()
        .ok_or_else(|| format!("expected a list of texts, found {}", value.type_str()))?;
    if items.len() > MAX_ITEMS {
        return Err(format!("at most {MAX_ITEMS} are allowed"));
    }
    items.iter().map(|item| short(item.get_ref())).collect()
}

fn path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = PathBuf::from(short(value)?);
    match path.is_absolute() {
        true => Ok(path),
        false => Err("expected an absolute path".into()),
    }
}

fn span(value: &DeValue<'_>) -> Result<Duration, String> {
    duration(value, Duration::ZERO..=MAX_SPAN)
}

fn size(value: &DeValue<'_>) -> Result<Option<u64>, String> {
    settings::bytes(value, 0..=MAX_SIZE).map(Some)
}

fn host_and_port(value: &DeValue<'_>) -> Result<(String, u16), String> {
    let given = settings::address(value)?;
    split_address(&given).ok_or_else(|| format!("{given:?} is no host:port"))
}

/// `host:port` with a right port; brackets around an address are taken away.
fn split_address(given: &str) -> Option<(String, u16)> {
    let (host, port) = given.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let legal = |c: char| !c.is_whitespace() && !c.is_control() && !"/@?#[]".contains(c);
    let right = !host.is_empty() && host.chars().all(legal);
    right.then(|| (host.to_owned(), port))
}

fn required(section: &mut Section<'_, '_>, key: &str, what: &str) {
    if !section.has(key) {
        section.complain(key, &format!("is needed: {what}"));
    }
}

fn slow(section: &mut Section<'_, '_>) -> Option<Duration> {
    let mut slow = None;
    section.value("slow", &mut slow, |value| {
        duration(value, Duration::from_millis(1)..=MAX_TIMEOUT).map(Some)
    });
    slow
}

fn trust(section: &mut Section<'_, '_>) -> Trust {
    let mut trust = Trust::default();
    section.value("verify", &mut trust.verify, truth);
    section.value("ca_file", &mut trust.ca_file, |value| path(value).map(Some));
    let (mut certificate, mut key) = (None, None);
    section.value("client_cert", &mut certificate, |value| {
        path(value).map(Some)
    });
    section.value("client_key", &mut key, |value| path(value).map(Some));
    match (section.has("client_cert"), section.has("client_key")) {
        (true, false) => section.complain("client_cert", "needs client_key, the file with its key"),
        (false, true) => section.complain("client_key", "needs client_cert, its certificate"),
        _ => trust.client = certificate.zip(key),
    }
    trust
}

fn expiry(section: &mut Section<'_, '_>) -> Expiry {
    let mut expiry = Expiry::default();
    section.value("expiry_warn", &mut expiry.warn, span);
    section.value("expiry_crit", &mut expiry.crit, span);
    if expiry.crit > expiry.warn {
        section.complain(
            "expiry_crit",
            "is longer than expiry_warn, so that there would never be a warning",
        );
    }
    expiry
}

fn http(section: &mut Section<'_, '_>) -> HttpCheck {
    let mut check = HttpCheck {
        url: Url::default(),
        head: false,
        status: vec![(200, 399)],
        contains: String::new(),
        headers: BTreeMap::new(),
        slow: slow(section),
        trust: trust(section),
        expiry: expiry(section),
    };
    section.value("url", &mut check.url, |value| url(text(value)?));
    required(section, "url", "for example \"https://localhost/health\"");
    section.value("method", &mut check.head, |value| {
        settings::word(value, &[("GET", false), ("HEAD", true)])
    });
    section.value("status", &mut check.status, statuses);
    section.value("contains", &mut check.contains, short);
    if check.head && !check.contains.is_empty() {
        section.complain("contains", "the answer to HEAD has no body");
    }
    section.section("headers", |headers| {
        headers.each(&mut check.headers, |name, value| {
            let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if name.is_empty() || !name.chars().all(legal) {
                return Err("a header's name has letters, digits and - only".into());
            }
            short_line(value)
        });
    });
    if check.headers.len() > MAX_ITEMS {
        section.complain("headers", &format!("at most {MAX_ITEMS} are allowed"));
    }
    check
}

/// Statuses such as 200 and ranges such as "200-299".
fn statuses(value: &DeValue<'_>) -> Result<Vec<(u16, u16)>, String> {
    let wrong = || "expected a list of statuses such as 200 or \"200-299\"".to_owned();
    let items = value.as_array().ok_or_else(wrong)?;
    let one = |item: &DeValue<'_>| -> Option<(u16, u16)> {
        let (first, last) = match item {
            DeValue::Integer(number) => {
                let number = number.as_str().parse().ok()?;
                (number, number)
            }
            DeValue::String(range) => match range.split_once('-') {
                Some((first, last)) => (first.trim().parse().ok()?, last.trim().parse().ok()?),
                None => {
                    let number = range.parse().ok()?;
                    (number, number)
                }
            },
            _ => return None,
        };
        (100 <= first && first <= last && last <= 599).then_some((first, last))
    };
    let all: Option<Vec<_>> = items.iter().map(|item| one(item.get_ref())).collect();
    all.filter(|all| !all.is_empty() && all.len() <= MAX_ITEMS)
        .ok_or_else(wrong)
}

/// Takes a URL apart: http or https, host, port, path and query. User and password have no place in it.
fn url(given: &str) -> Result<Url, String> {
    let wrong = || format!("{given:?} is no URL such as \"https://localhost:8443/health\"");
    let (scheme, rest) = given.split_once("://").ok_or_else(wrong)?;
    let tls = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err("only http:// and https:// are known".into()),
    };
    let rest = rest.split('#').next().unwrap_or("");
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err("a user has no place in a URL; send it as a header".into());
    }
    let legal = |c: char| c.is_ascii_graphic();
    if given.len() > MAX_TEXT_BYTES || !path.chars().all(legal) {
        return Err("expected printable ASCII; write other characters as %XX".into());
    }
    let default = if tls { 443 } else { 80 };
    let bare = !authority.contains(':') || authority.ends_with(']');
    let address = match bare {
        true => format!("{authority}:{default}"),
        false => authority.to_owned(),
    };
    let (host, port) = split_address(&address).ok_or_else(wrong)?;
    if !host.is_ascii() || (host.contains(':') && !authority.starts_with('[')) {
        return Err(wrong());
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(Url {
        tls,
        host,
        port,
        authority: authority.to_owned(),
        path: format!("{slash}{path}"),
    })
}

fn tcp(section: &mut Section<'_, '_>) -> TcpCheck {
    let mut check = TcpCheck {
        slow: slow(section),
        ..TcpCheck::default()
    };
    let mut address = (String::new(), 0);
    section.value("address", &mut address, host_and_port);
    required(section, "address", "for example \"localhost:5432\"");
    (check.host, check.port) = address;
    section.value("send", &mut check.send, short);
    section.value("expect", &mut check.expect, short);
    check
}

fn tls(section: &mut Section<'_, '_>) -> TlsCheck {
    let mut check = TlsCheck {
        trust: trust(section),
        expiry: expiry(section),
        ..TlsCheck::default()
    };
    section.value("address", &mut check.address, |value| {
        host_and_port(value).map(Some)
    });
    section.value("server_name", &mut check.server_name, short_line);
    section.value("file", &mut check.file, |value| path(value).map(Some));
    section.value("starttls", &mut check.starttls, |value| {
        settings::word(value, &Protocol::WORDS).map(Some)
    });
    if section.has("file") && section.has("starttls") {
        section.complain("starttls", "file is set: nobody is connected to");
    }
    match (section.has("address"), section.has("file")) {
        (false, false) => section.complain(
            "address",
            "is needed: host:port of a server, or file with a certificate in PEM",
        ),
        (true, true) => {
            section.complain("file", "address is set too; a check looks at one of them")
        }
        _ => {}
    }
    check
}

fn dns(section: &mut Section<'_, '_>) -> DnsCheck {
    let mut check = DnsCheck {
        record: 1,
        ..DnsCheck::default()
    };
    section.value("query", &mut check.query, |value| {
        let name = text(value)?;
        match super::dns::is_name(name) {
            true => Ok(name.to_owned()),
            false => Err(format!("{name:?} is no name in the DNS")),
        }
    });
    required(section, "query", "the name to ask for");
    section.value("record", &mut check.record, |value| {
        settings::word(value, &RECORDS)
    });
    section.value("server", &mut check.server, |value| {
        let given = text(value)?;
        let wrong = || {
            format!("{given:?} is no address of a server, for example \"192.0.2.53\" or \"[2001:db8::53]:5353\"")
        };
        if let Ok(address) = given.parse() {
            return Ok(Some((address, 53)));
        }
        let (host, port) = split_address(given).ok_or_else(wrong)?;
        let address = host.parse().map_err(|_| wrong())?;
        Ok(Some((address, port)))
    });
    section.value("expect", &mut check.expect, few);
    check
}

fn file(section: &mut Section<'_, '_>) -> FileCheck {
    let mut check = FileCheck::default();
    section.value("path", &mut check.path, path);
    required(section, "path", "the file or folder to look at");
    section.value("absent", &mut check.absent, truth);
    section.value("max_age", &mut check.max_age, |value| span(value).map(Some));
    section.value("min_size", &mut check.min_size, size);
    section.value("max_size", &mut check.max_size, size);
    section.value("max_growth", &mut check.max_growth, size);
    if check.absent {
        for key in ["max_age", "min_size", "max_size", "max_growth"] {
            if section.has(key) {
                section.complain(key, "absent is set: what is not there has no age or size");
            }
        }
    }
    if let (Some(min), Some(max)) = (check.min_size, check.max_size)
        && min > max
    {
        section.complain("min_size", "is larger than max_size");
    }
    check
}

fn process(section: &mut Section<'_, '_>) -> ProcessCheck {
    let mut check = ProcessCheck {
        min: 1,
        ..ProcessCheck::default()
    };
    section.value("process", &mut check.process, |value| {
        let given = short_line(value)?;
        match given.is_empty() || given.contains('/') {
            true => Err("expected the name of a program without its folder".into()),
            false => Ok(given),
        }
    });
    section.value("pidfile", &mut check.pidfile, |value| path(value).map(Some));
    match (section.has("process"), section.has("pidfile")) {
        (false, false) => section.complain("process", "is needed: a program's name, or pidfile"),
        (true, true) => section.complain(
            "pidfile",
            "process is set too; a check looks at one of them",
        ),
        _ => {}
    }
    section.value("min", &mut check.min, |value| whole(value, 0..=1_000_000));
    section.value("max", &mut check.max, |value| {
        whole(value, 0..=1_000_000).map(Some)
    });
    if check.max.is_some_and(|max| max < check.min) {
        section.complain("max", "is smaller than min");
    }
    check
}

fn exec(section: &mut Section<'_, '_>) -> ExecCheck {
    let mut check = ExecCheck::default();
    section.value("command", &mut check.command, |value| {
        let words = few(value)?;
        match words.first() {
            Some(program) if program.starts_with('/') => Ok(words),
            _ => Err("expected a list: the absolute path of a program, and its arguments".into()),
        }
    });
    required(
        section,
        "command",
        "for example [\"/usr/lib/nagios/plugins/check_load\", \"-w\", \"10\"]",
    );
    section.value("user", &mut check.user, |value| short_line(value).map(Some));
    check
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::Reader;

    fn read(text: &str) -> (ChecksConfig, Vec<String>) {
        let file = Path::new("a.toml");
        let (mut checks, mut reader) = (ChecksConfig::default(), Reader::new(file));
        reader.text(file, text, |root| checks.keys(root));
        if let Some((key, why)) = checks.problem() {
            reader.fault(key, why);
        }
        let faults = reader.finish().err().map_or_else(Vec::new, |faults| {
            faults.0.iter().map(ToString::to_string).collect()
        });
        (checks, faults)
    }

    #[test]
    fn every_kind_is_read() {
        let (checks, faults) = read(
            r#"
            checks = { allow_exec = true, max_exec = 2 }
            [[check]]
            name = "web"
            type = "http"
            url = "https://[::1]:8443/a?b#c"
            status = [200, "300-302"]
            contains = "fine"
            headers = { Authorization = "Bearer x" }
            slow = "500ms"
            verify = false
            severity = "warning"
            interval = "5s"
            retries = 0
            [[check]]
            name = "db"
            type = "tcp"
            address = "localhost:5432"
            [[check]]
            name = "cert"
            type = "tls"
            file = "/etc/ssl/x.pem"
            expiry_warn = "30d"
            [[check]]
            name = "resolve"
            type = "dns"
            query = "www.example.org"
            record = "AAAA"
            server = "[2001:db8::53]:5353"
            expect = ["2001:db8::1"]
            [[check]]
            name = "backup"
            type = "file"
            path = "/var/backups/x"
            max_age = "26h"
            min_size = "1KiB"
            [[check]]
            name = "sshd"
            type = "process"
            process = "sshd"
            max = 50
            [[check]]
            name = "load"
            type = "exec"
            command = ["/usr/lib/nagios/plugins/check_load", "-w", "10"]
            user = "nagios"
            "#,
        );
        assert_eq!(faults, [""; 0]);
        let names: Vec<_> = checks.checks.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["backup", "cert", "db", "load", "resolve", "sshd", "web"]
        );
        assert!(checks.runs_programs());
        let web = &checks.checks["web"];
        assert_eq!(
            web.timeout,
            Duration::from_secs(5),
            "not above the interval"
        );
        assert_eq!((web.severity, web.retries), (Status::Warning, 0));
        let Kind::Http(http) = &web.kind else {
            unreachable!("a check of type http");
        };
        let url = Url {
            tls: true,
            host: "::1".into(),
            port: 8443,
            authority: "[::1]:8443".into(),
            path: "/a?b".into(),
        };
        assert_eq!(http.url, url);
        assert_eq!(http.status, [(200, 200), (300, 302)]);
        let Kind::Dns(dns) = &checks.checks["resolve"].kind else {
            unreachable!("a check of type dns");
        };
        assert_eq!(dns.record, 28);
        assert_eq!(dns.server.map(|(_, port)| port), Some(5353));
    }

    #[test]
    fn faults_name_the_check_and_the_key() {
        for (text, fault) in [
            ("type = \"tcp\"", "1:1: check[1].name: is needed"),
            (
                "name = \"a\"",
                "1:1: check.a.type: is needed: one of http, tcp",
            ),
            (
                "name = \"a b\"\ntype = \"file\"\npath = \"/\"",
                "2:8: check.a b.name: a check's name is",
            ),
            (
                "name = \"a\"\ntype = \"htpt\"",
                "check.a.type: expected one of",
            ),
            (
                "name = \"a\"\ntype = \"http\"",
                "1:1: check.a.url: is needed",
            ),
            (
                "name = \"a\"\ntype = \"http\"\nurl = \"ftp://x\"",
                "4:7: check.a.url: only http",
            ),
            (
                "name = \"a\"\ntype = \"http\"\nurl = \"http://u:p@x\"",
                "check.a.url: a user has no place",
            ),
            (
                "name = \"a\"\ntype = \"http\"\nurl = \"http://x\"\nheaders.\"a:b\" = \"\"",
                "check.a.headers.a:b: a header's name",
            ),
            (
                "name = \"a\"\ntype = \"http\"\nurl = \"http://x\"\nstatus = [20]",
                "check.a.status: expected a list of statuses",
            ),
            (
                "name = \"a\"\ntype = \"http\"\nurl = \"http://x\"\nmethod = \"HEAD\"\ncontains = \"x\"",
                "check.a.contains: the answer to HEAD",
            ),
            (
                "name = \"a\"\ntype = \"tcp\"\naddress = \"x:1\"\ntimout = \"1s\"",
                "check.a.timout: there is no such key; did you mean \"timeout\"?",
            ),
            (
                "name = \"a\"\ntype = \"tcp\"\naddress = \"x:1\"\ninterval = \"5s\"\ntimeout = \"6s\"",
                "6:11: check.a.timeout: is longer",
            ),
            (
                "name = \"a\"\ntype = \"tcp\"\naddress = \"x:1\"\ninterval = \"0s\"",
                "check.a.interval: \"0s\" is not between 1s and 1d",
            ),
            ("name = \"a\"\ntype = \"tls\"", "check.a.address: is needed"),
            (
                "name = \"a\"\ntype = \"tls\"\nfile = \"/a\"\nexpiry_crit = \"60d\"",
                "check.a.expiry_crit: is longer",
            ),
            (
                "name = \"a\"\ntype = \"tls\"\naddress = \"x:25\"\nstarttls = \"xmpp\"",
                "check.a.starttls: expected one of",
            ),
            (
                "name = \"a\"\ntype = \"tls\"\nfile = \"/a\"\nstarttls = \"smtp\"",
                "check.a.starttls: file is set",
            ),
            (
                "name = \"a\"\ntype = \"tls\"\naddress = \"x:1\"\nclient_cert = \"/a\"",
                "check.a.client_cert: needs client_key",
            ),
            (
                "name = \"a\"\ntype = \"dns\"\nquery = \"a..b\"",
                "check.a.query: \"a..b\" is no name",
            ),
            (
                "name = \"a\"\ntype = \"file\"\npath = \"x\"",
                "check.a.path: expected an absolute path",
            ),
            (
                "name = \"a\"\ntype = \"file\"\npath = \"/x\"\nabsent = true\nmax_size = 3",
                "check.a.max_size: absent is set",
            ),
            (
                "name = \"a\"\ntype = \"process\"\nprocess = \"a\"\nmin = 3\nmax = 2",
                "check.a.max: is smaller",
            ),
            (
                "name = \"a\"\ntype = \"exec\"\ncommand = [\"ls\"]",
                "check.a.command: expected a list: the absolute",
            ),
            (
                "name = \"a\"\ntype = \"exec\"\ncommand = [\"/bin/ls\"]",
                "checks.allow_exec: check \"a\" runs a program, which is off",
            ),
        ] {
            let (_, faults) = read(&format!("[[check]]\n{text}\n"));
            assert!(
                faults.iter().any(|found| found.contains(fault)),
                "{text}: {faults:?}"
            );
        }
        let (_, faults) = read("check = 3");
        assert!(faults[0].contains("check: expected tables, each under [[check]]"));
        let twice = "[[check]]\nname = \"a\"\ntype = \"file\"\npath = \"/\"\n".repeat(2);
        assert!(read(&twice).1[0].contains("another check of this name"));
    }

    #[test]
    fn urls() {
        for (given, host, port, path) in [
            ("http://a", "a", 80, "/"),
            ("https://a?x=1", "a", 443, "/?x=1"),
            ("http://[::1]/", "::1", 80, "/"),
            ("http://1.2.3.4:8080/a#b", "1.2.3.4", 8080, "/a"),
        ] {
            let url = url(given).expect("right");
            assert_eq!((&*url.host, url.port, &*url.path), (host, port, path));
        }
        for wrong in [
            "",
            "a",
            "http://",
            "http://a:0",
            "http://::1/",
            "http://a b/",
            "http://a/ü",
        ] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }
}
