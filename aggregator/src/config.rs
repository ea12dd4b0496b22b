//! The aggregator's configuration: defaults, the file, and the checks of both.
//!
//! Every key has a default that works, so an empty file is a configuration. How files are read, overlaid and
//! complained about is [`muster_agent::settings`]; here is the list of keys, and what they must fulfil
//! together. A [`Config`] cannot be wrong.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_agent::{
    settings::{self, Faults, Reader, Section, directory, string, text, texts, truth, word},
    telemetry::LogConfig,
};
use muster_proto::limits;
use toml::de::DeValue;

use crate::{
    detect::{
        DetectConfig, Severity,
        rules::{Override, Overrides, Time, Word},
    },
    events::EventLimits,
    fleet::DEFAULT_SERIES_IN_ALL,
    history::HistoryConfig,
    notify::NotifyConfig,
    pki::is_name,
};

/// Where the file is looked for without `--config`.
pub const DEFAULT_PATH: &str = "/etc/muster/aggregator.toml";

/// Folder beside the main file with files that are applied after it.
const OVERLAYS: &str = "aggregator.d";

/// Shortest bearer token: 128 bits in base 64 have 22 characters.
const MIN_TOKEN: usize = 22;

/// Largest size a key takes: beyond any disk, and exact as a float.
const MAX_SIZE_BYTES: u64 = 1 << 50;

/// Bounds on how long history is kept: a window of samples, and ten years.
const MIN_KEEP: Duration = Duration::from_secs(2 * 3600);
const MAX_KEEP: Duration = Duration::from_secs(3650 * 86_400);
/// Events are kept at least so long; a night's must be there in the morning.
const MIN_EVENTS_AGE: Duration = Duration::from_secs(3600);
/// And at most ten years.
const MAX_EVENTS_AGE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What the aggregator runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the fleet, for people.
    pub fleet_name: String,
    /// Authority, log, checkpoint and control state.
    pub state_dir: PathBuf,
    /// The admin socket.
    pub runtime_dir: PathBuf,
    /// Agents' door.
    pub uplink: SocketAddr,
    /// `host:port` of the uplinks agents may use, in the order in which they are to be tried: told to every agent.
    pub announce: Vec<String>,
    /// Joining hosts' door; bound only while a join token is valid.
    pub enrolment: SocketAddr,
    /// Operators' door.
    pub operator: SocketAddr,
    /// Scrape and discovery.
    pub http: HttpConfig,
    /// Size at which the log's oldest segments go.
    pub log_max_bytes: u64,
    /// What is kept of the past.
    pub history: HistoryConfig,
    /// What is kept of events and recordings.
    pub events: EventLimits,
    /// Most series of one host.
    pub series_per_host: usize,
    /// Most series of all hosts together.
    pub series_in_all: u64,
    /// Most bytes one agent may have sent and not seen durable.
    pub credit_bytes: u64,
    /// Whether loopback is exempt from the bound on unauthenticated connections of one address.
    pub exempt_loopback: bool,
    /// Thresholds of the detectors.
    pub detect: DetectConfig,
    /// Whom to tell.
    pub notify: NotifyConfig,
    /// The aggregator's own log.
    pub log: LogConfig,
}

/// The HTTP door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it speaks TLS; needed beyond loopback.
    pub tls: bool,
    /// The bearer token that readers present; needed beyond loopback.
    pub token: Option<String>,
    /// Names under which it may be asked, beside loopback's own.
    pub hosts: Vec<String>,
    /// `host:port` under which Prometheus reaches it; empty: as discovery itself was asked.
    pub external_address: String,
    /// `host` or `host:9100`: the form of the label `instance`.
    pub instance: String,
}

impl Default for Config {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            fleet_name: "fleet".into(),
            state_dir: "/var/lib/muster".into(),
            runtime_dir: "/run/muster".into(),
            uplink: everywhere(7443),
            announce: Vec::new(),
            enrolment: everywhere(7444),
            operator: everywhere(7445),
            http: HttpConfig::default(),
            log_max_bytes: 2 << 30,
            history: HistoryConfig::default(),
            events: EventLimits::default(),
            series_per_host: limits::DEFAULT_SERIES_QUOTA,
            series_in_all: DEFAULT_SERIES_IN_ALL,
            credit_bytes: 1 << 20,
            exempt_loopback: false,
            detect: DetectConfig::default(),
            notify: NotifyConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 7446).into(),
            tls: false,
            token: None,
            hosts: Vec::new(),
            external_address: String::new(),
            instance: "host".into(),
        }
    }
}

/// Reads the file and its overlays. Without a path, [`DEFAULT_PATH`] if it exists, else the defaults.
///
/// # Errors
/// Everything that is wrong, each with its place.
pub fn load(path: Option<&Path>) -> Result<Config, Faults> {
    let mut reader = Reader::new(path.unwrap_or(Path::new(DEFAULT_PATH)));
    let mut draft = Draft::default();
    reader.files(path.is_none(), OVERLAYS, |root| draft.keys(root));
    let config = draft.check(&mut reader);
    reader.finish().map(|()| config)
}

/// A configuration of which not all files were read.
#[derive(Debug, Default)]
struct Draft {
    config: Config,
    /// Read at the end: a later file may name another.
    token_file: Option<PathBuf>,
}

impl Draft {
    /// Every key there is.
    fn keys(&mut self, root: &mut Section<'_, '_>) {
        let config = &mut self.config;
        root.value("fleet_name", &mut config.fleet_name, string);
        root.value("state_dir", &mut config.state_dir, directory);
        root.value("runtime_dir", &mut config.runtime_dir, directory);
        root.section("uplink", |uplink| {
            uplink.value("listen", &mut config.uplink, listen);
            uplink.value("announce", &mut config.announce, addresses);
        });
        for (door, address) in [
            ("enrolment", &mut config.enrolment),
            ("operator", &mut config.operator),
        ] {
            root.section(door, |section| section.value("listen", address, listen));
        }
        root.section("http", |section| {
            http(section, &mut config.http, &mut self.token_file);
        });
        root.section("storage", |storage| {
            storage.value("log_max_size", &mut config.log_max_bytes, |value| {
                settings::bytes(value, 64 << 20..=MAX_SIZE_BYTES)
            });
            storage.value("events_max_size", &mut config.events.max_bytes, |value| {
                settings::bytes(value, 8 << 20..=MAX_SIZE_BYTES)
            });
            storage.value("events_max_age", &mut config.events.max_age, |value| {
                settings::duration(value, MIN_EVENTS_AGE..=MAX_EVENTS_AGE)
            });
        });
        root.section("history", |section| history(section, &mut config.history));
        root.section("limits", |section| {
            section.value("series_per_host", &mut config.series_per_host, |value| {
                settings::whole(value, 1..=limits::MAX_SERIES)
            });
            section.value("series_in_all", &mut config.series_in_all, |value| {
                let series = settings::whole(value, 1_000..=10_000_000_000)?;
                Ok(series as u64)
            });
            section.value("credit_per_host", &mut config.credit_bytes, |value| {
                settings::bytes(value, limits::MAX_PAYLOAD_BYTES as u64..=64 << 20)
            });
        });
        root.section("detect", |section| detect(section, &mut config.detect));
        root.tables("rules", |section| rule(section, &mut config.detect.rules));
        config.notify.keys(root);
        root.section("log", |log| config.log.keys(log));
    }

    /// What must hold of all files together.
    fn check(mut self, reader: &mut Reader) -> Config {
        let http = &mut self.config.http;
        let protected = http.tls && self.token_file.is_some();
        if !http.listen.ip().is_loopback() && !protected {
            reader.fault(
                "http.listen",
                "beyond loopback the page needs tls = true and a token_file; without them anyone who reaches the port reads the fleet",
            );
        }
        if let Some(file) = &self.token_file {
            match token(file) {
                Ok(token) => http.token = Some(token),
                Err(why) => reader.fault("http.token_file", why),
            }
        }
        shared_doors(&self.config, reader);
        if let Err(error) = Overrides::new(&self.config.detect.rules) {
            reader.fault("rules", error);
        }
        self.config.notify.check(reader);
        in_order(&self.config.detect, reader);
        self.config
    }
}

/// Two doors cannot listen at one address. One of all addresses takes the port at each of them; port 0 is
/// left to the system, which gives everyone another.
fn shared_doors(config: &Config, reader: &mut Reader) {
    let doors = [
        ("uplink.listen", config.uplink),
        ("enrolment.listen", config.enrolment),
        ("operator.listen", config.operator),
        ("http.listen", config.http.listen),
    ];
    for (at, (key, address)) in doors.iter().enumerate() {
        let taken = doors[..at].iter().find(|(_, other)| {
            let (ip, other_ip) = (address.ip(), other.ip());
            address.port() != 0
                && address.port() == other.port()
                && (ip == other_ip || ip.is_unspecified() || other_ip.is_unspecified())
        });
        if let Some((other, taken)) = taken {
            reader.fault(
                key,
                format_args!(
                    "{address} and {other} {taken} are one address: give each door its own port"
                ),
            );
        }
    }
}

/// Most servers that an agent takes.
const MAX_ANNOUNCED: usize = 16;

/// A list of `host:port`.
fn addresses(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let items = value
        .as_array()
        .ok_or_else(|| format!("expected a list of addresses, found {}", value.type_str()))?;
    if items.len() > MAX_ANNOUNCED {
        return Err(format!("at most {MAX_ANNOUNCED} addresses are announced"));
    }
    items
        .iter()
        .map(|item| settings::address(item.get_ref()))
        .collect()
}

/// Names as a `Host` header has them, without the port.
fn hosts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let names = texts(value)?;
    match names.iter().find(|name| !is_name(name)) {
        Some(wrong) => Err(format!(
            "{wrong:?} is neither a DNS name nor an IP address: write it without scheme and port, for example \"muster.example\""
        )),
        None => Ok(names),
    }
}

fn http(section: &mut Section<'_, '_>, http: &mut HttpConfig, token_file: &mut Option<PathBuf>) {
    section.value("listen", &mut http.listen, listen);
    section.value("tls", &mut http.tls, truth);
    section.value("token_file", token_file, |value| {
        let path = Some(text(value)?).filter(|path| !path.is_empty());
        Ok(path.map(PathBuf::from))
    });
    section.value("hosts", &mut http.hosts, hosts);
    section.value("external_address", &mut http.external_address, |value| {
        if text(value)?.is_empty() {
            return Ok(String::new());
        }
        settings::address(value)
    });
    section.value("instance", &mut http.instance, |value| {
        let forms = ["host", "host:9100"].map(|form| (form, form));
        word(value, &forms).map(ToOwned::to_owned)
    });
}

/// More than an alert an hour is no budget.
const MAX_BUDGET_PER_WEEK: f64 = 168.0;
/// A month of 30 days.
const WEEKS_A_MONTH: f64 = 30.0 / 7.0;
fn history(section: &mut Section<'_, '_>, history: &mut HistoryConfig) {
    section.value("enabled", &mut history.enabled, truth);
    for (key, keep) in [
        ("keep_raw", &mut history.raw),
        ("keep_1m", &mut history.minute),
        ("keep_15m", &mut history.quarter),
    ] {
        section.value(key, keep, |value| {
            settings::duration(value, MIN_KEEP..=MAX_KEEP)
        });
    }
    section.value("max_size", &mut history.max_bytes, |value| {
        settings::bytes(value, 64 << 20..=MAX_SIZE_BYTES)
    });
    section.value("memory_per_host", &mut history.memory_per_host, |value| {
        let bytes = settings::bytes(value, 4 << 10..=16 << 20)?;
        usize::try_from(bytes).map_err(|error| error.to_string())
    });
    section.value("max_points", &mut history.max_points, |value| {
        let points = settings::whole(value, 10_000..=10_000_000_000)?;
        Ok(points as u64)
    });
}

/// The bounds of a text's `[detect]` table, its other tables left aside; `None` without one.
///
/// # Errors
/// Everything that is wrong with the table, each with its place.
pub fn detect_of(text: &str) -> Result<Option<DetectConfig>, Faults> {
    let mut reader = Reader::new(Path::new("these rules"));
    let mut config = DetectConfig::default();
    let mut given = false;
    reader.text(Path::new("these rules"), text, |root| {
        given = root.has("detect");
        root.section("detect", |section| detect(section, &mut config));
        root.any_key();
    });
    in_order(&config, &mut reader);
    reader.finish().map(|()| given.then_some(config))
}

fn in_order(detect: &DetectConfig, reader: &mut Reader) {
    if detect.filesystem_warning_ratio > detect.filesystem_critical_ratio {
        reader.fault(
            "detect.filesystem_warning_ratio",
            format_args!(
                "{} is above filesystem_critical_ratio, {}",
                detect.filesystem_warning_ratio, detect.filesystem_critical_ratio
            ),
        );
    }
}

fn detect(section: &mut Section<'_, '_>, detect: &mut DetectConfig) {
    for (key, ratio) in [
        (
            "filesystem_warning_ratio",
            &mut detect.filesystem_warning_ratio,
        ),
        (
            "filesystem_critical_ratio",
            &mut detect.filesystem_critical_ratio,
        ),
    ] {
        section.value(key, ratio, |value| settings::positive(value, 1.0));
    }
    let available = &mut detect.filesystem_available_bytes;
    section.value("filesystem_available", available, |value| {
        let bytes = settings::bytes(value, 0..=MAX_SIZE_BYTES)?;
        #[expect(clippy::cast_precision_loss, reason = "at most 2^50")]
        let bytes = bytes as f64;
        Ok(bytes)
    });
    let budget = &mut detect.budget_per_host_week;
    section.value("budget_per_host_week", budget, |value| {
        settings::positive(value, MAX_BUDGET_PER_WEEK)
    });
    section.value("peer_labels", &mut detect.peer_labels, texts);
    section.value("budget_per_host_month", budget, |value| {
        let month = settings::positive(value, MAX_BUDGET_PER_WEEK * WEEKS_A_MONTH)?;
        Ok(month / WEEKS_A_MONTH)
    });
}

/// Longest time that a rule may ask for.
const MAX_HOLD: Duration = Duration::from_secs(7 * 86_400);

/// One change of a rule of the pack; whether it fits the rule is checked when all are read.
fn rule(section: &mut Section<'_, '_>, rules: &mut Vec<Override>) {
    let mut one = Override::default();
    section.value("rule", &mut one.rule, string);
    section.value("hosts", &mut one.hosts, string);
    section.value("enabled", &mut one.enabled, |value| truth(value).map(Some));
    for (key, bound) in [
        ("above", &mut one.above),
        ("below", &mut one.below),
        ("clear", &mut one.clear),
    ] {
        section.value(key, bound, |value| {
            settings::positive(value, f64::MAX).map(Some)
        });
    }
    for (key, time) in [
        ("for", &mut one.open_after),
        ("clear_for", &mut one.clear_after),
    ] {
        section.value(key, time, |value| {
            let time = settings::duration(value, Duration::ZERO..=MAX_HOLD)?;
            Ok(Some(Time(time)))
        });
    }
    section.value("severity", &mut one.severity, |value| {
        let words = Severity::ALL.map(|one| (one.as_str(), one));
        word(value, &words).map(|severity| Some(Word(severity)))
    });
    rules.push(one);
}

fn listen(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let given = text(value)?;
    given.parse().map_err(|_| {
        format!("{given:?} is no address to listen on: write \"0.0.0.0:7443\" or \"[::]:7443\"")
    })
}

/// The bearer token in a file.
fn token(file: &Path) -> Result<String, String> {
    let shown = file.display();
    let text =
        fs::read_to_string(file).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let token = text.trim();
    if token.len() < MIN_TOKEN {
        return Err(format!(
            "{shown} holds less than {MIN_TOKEN} characters, which can be guessed"
        ));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> (Config, Vec<String>) {
        let file = Path::new("aggregator.toml");
        let (mut draft, mut reader) = (Draft::default(), Reader::new(file));
        reader.text(file, text, |root| draft.keys(root));
        let config = draft.check(&mut reader);
        let faults = reader.finish().err().map_or_else(Vec::new, |faults| {
            faults.0.iter().map(ToString::to_string).collect()
        });
        (config, faults)
    }

    fn faults(text: &str) -> Vec<String> {
        applied(text).1
    }

    #[test]
    fn nothing_is_a_configuration() {
        assert_eq!(faults(""), [""; 0]);
        let config = Config::default();
        assert_eq!(config.uplink.port(), 7443);
        assert!(config.http.listen.ip().is_loopback());
    }

    #[test]
    fn the_example_is_the_default() {
        let text = include_str!("../../packaging/aggregator.toml");
        assert_eq!(faults(text), [""; 0]);
        // As it stands, with tables whose keys are all commented out.
        let (config, _) = applied(text);
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
        // With every commented key made live it still loads, and says what is said without it.
        let live: String = text
            .lines()
            .map(|line| {
                line.strip_prefix("#")
                    .filter(|rest| rest.contains(" = ") && !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .fold(String::new(), |all, line| all + line + "\n");
        assert_ne!(live, text);
        let (config, faults) = applied(&live);
        assert_eq!(faults, [""; 0]);
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn faults_are_found_together() {
        let found = faults(
            "fleet_nam = \"x\"\nstate_dir = \"var\"\n[http]\nlisten = \"0.0.0.0:7446\"\ninstance = \"h\"\ntoken_file = \"no/such/file\"\n[storage]\nlog_max_size = 5\n[log]\nlevel = \"loud\"\n[uplink]\nlisten = \"7443\"\n[detect]\nfilesystem_warning_ratio = 0.98\nbudget_per_host_week = 0\n",
        );
        let expected = [
            "1:1: fleet_nam: there is no such key; did you mean \"fleet_name\"?",
            "2:13: state_dir: expected an absolute path",
            "4:10: http.listen: beyond loopback the page needs tls = true",
            "5:12: http.instance: expected one of \"host\", \"host:9100\", found \"h\"",
            "6:14: http.token_file: no/such/file cannot be read",
            "8:16: storage.log_max_size: expected a size from \"64MiB\" to \"1024TiB\"",
            "10:9: log.level: expected one of \"error\", \"warn\",",
            "12:10: uplink.listen: \"7443\" is no address to listen on",
            "14:28: detect.filesystem_warning_ratio: 0.98 is above filesystem_critical_ratio, 0.97",
            "15:24: detect.budget_per_host_week: expected a number above 0",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            let expected = format!("aggregator.toml:{expected}");
            assert!(found.starts_with(&expected), "{found}\n{expected}");
        }
    }

    #[test]
    fn two_doors_need_two_addresses() {
        for (text, fault) in [
            (
                "operator.listen = \"0.0.0.0:7443\"",
                Some("1:19: operator.listen: 0.0.0.0:7443 and uplink.listen"),
            ),
            (
                "operator.listen = \"127.0.0.1:7443\"",
                Some("1:19: operator.listen: "),
            ),
            (
                "http.listen = \"[::1]:7445\"",
                Some("1:15: http.listen: [::1]:7445 and operator.listen"),
            ),
            ("uplink.listen = \"127.0.0.2:7446\"", None),
            (
                "uplink.listen = \"127.0.0.1:0\"\noperator.listen = \"127.0.0.1:0\"",
                None,
            ),
        ] {
            let found = faults(text);
            assert_eq!(
                found.len(),
                usize::from(fault.is_some()),
                "{text}: {found:?}"
            );
            let expected = format!("aggregator.toml:{}", fault.unwrap_or_default());
            assert!(
                found.iter().all(|found| found.starts_with(&expected)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_share_may_be_written_whole_and_hosts_are_names() {
        assert_eq!(faults("detect.filesystem_critical_ratio = 1"), [""; 0]);
        assert_eq!(
            faults("http.hosts = [\"muster.example\", \"192.0.2.1\"]"),
            [""; 0]
        );
        for wrong in ["https://muster.example", "muster.example:7446", "a b", ""] {
            let found = faults(&format!("http.hosts = [{wrong:?}]"));
            assert_eq!(found.len(), 1, "{wrong}");
            assert!(found[0].contains("without scheme and port"), "{found:?}");
        }
    }

    #[test]
    fn overlays_are_checked_together_with_the_main_file() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("aggregator.d")).expect("created");
        let token = "t".repeat(MIN_TOKEN);
        let token_file = path("token");
        let main = path("aggregator.toml");
        fs::write(
            &main,
            "fleet_name = \"a\"\n[http]\nlisten = \"0.0.0.0:7446\"\n",
        )
        .expect("written");
        let Faults(faults) = load(Some(&main)).expect_err("an open page without a token");
        assert_eq!((faults.len(), faults[0].at), (1, Some((3, 10))));
        let overlay =
            format!("fleet_name = \"b\"\nhttp = {{ tls = true, token_file = {token_file:?} }}");
        fs::write(path("aggregator.d/http.toml"), overlay).expect("written");
        fs::write(&token_file, &token[1..]).expect("written");
        let Faults(faults) = load(Some(&main)).expect_err("a token that can be guessed");
        assert_eq!(faults[0].file, path("aggregator.d/http.toml"));
        fs::write(&token_file, &token).expect("written");
        let config = load(Some(&main)).expect("right");
        assert_eq!(
            (config.fleet_name.as_str(), config.http.token),
            ("b", Some(token))
        );
    }
}
