//! The aggregator's configuration: defaults, the file, and the checks of both.
//!
//! Every key has a default that works, so an empty file is a configuration. All faults are reported at
//! once, with their places. A [`Config`] cannot be wrong.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use muster_agent::{
    settings::{Document, Fault, Faults},
    telemetry::{LogConfig, LogFormat, LogLevel},
};
use muster_proto::limits;
use serde::{Deserialize, Serialize};

use crate::detect::DetectConfig;

/// Where the file is looked for without `--config`.
pub const DEFAULT_PATH: &str = "/etc/muster/aggregator.toml";

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
    /// Joining hosts' door; bound only while a join token is valid.
    pub enrolment: SocketAddr,
    /// Operators' door.
    pub operator: SocketAddr,
    /// Scrape and discovery.
    pub http: HttpConfig,
    /// Size at which the log's oldest segments go.
    pub log_max_bytes: u64,
    /// Most series of one host.
    pub series_per_host: usize,
    /// Most bytes one agent may have sent and not seen durable.
    pub credit_bytes: u64,
    /// Whether loopback is exempt from the bound on unauthenticated connections of one address.
    pub exempt_loopback: bool,
    /// Thresholds of the detectors.
    pub detect: DetectConfig,
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

/// The file as it stands. Its default names every key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    fleet_name: String,
    state_dir: PathBuf,
    runtime_dir: PathBuf,
    uplink: RawDoor,
    enrolment: RawDoor,
    operator: RawDoor,
    http: RawHttp,
    storage: RawStorage,
    limits: RawLimits,
    detect: RawDetect,
    log: RawLog,
}

/// Each door has a port of its own, so what stands for "not said" is the empty text, be its table there or not.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawDoor {
    listen: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawHttp {
    listen: String,
    tls: bool,
    token_file: PathBuf,
    hosts: Vec<String>,
    external_address: String,
    instance: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawStorage {
    log_max_size: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLimits {
    series_per_host: i64,
    credit_per_host: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawDetect {
    filesystem_warning_ratio: f64,
    filesystem_critical_ratio: f64,
    filesystem_available: String,
    anomaly_threshold: f64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLog {
    level: String,
    format: String,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            fleet_name: "fleet".into(),
            state_dir: "/var/lib/muster".into(),
            runtime_dir: "/run/muster".into(),
            uplink: RawDoor::default(),
            enrolment: RawDoor::default(),
            operator: RawDoor::default(),
            http: RawHttp::default(),
            storage: RawStorage::default(),
            limits: RawLimits::default(),
            detect: RawDetect::default(),
            log: RawLog::default(),
        }
    }
}

impl Default for RawHttp {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7446".into(),
            tls: false,
            token_file: PathBuf::new(),
            hosts: Vec::new(),
            external_address: String::new(),
            instance: "host".into(),
        }
    }
}

impl Default for RawStorage {
    fn default() -> Self {
        Self {
            log_max_size: "2GiB".into(),
        }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            series_per_host: i64::try_from(limits::DEFAULT_SERIES_QUOTA).unwrap_or(i64::MAX),
            credit_per_host: "1MiB".into(),
        }
    }
}

impl Default for RawDetect {
    fn default() -> Self {
        let detect = DetectConfig::default();
        Self {
            filesystem_warning_ratio: detect.filesystem_warning_ratio,
            filesystem_critical_ratio: detect.filesystem_critical_ratio,
            filesystem_available: "50GiB".into(),
            anomaly_threshold: detect.anomaly_threshold,
        }
    }
}

impl Default for RawLog {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: "text".into(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let (config, _) = parse(Path::new(DEFAULT_PATH), "");
        config
    }
}

/// Reads the file. Without a path, [`DEFAULT_PATH`] if it exists, else the defaults.
///
/// # Errors
/// Everything that is wrong, each with its place.
pub fn load(path: Option<&Path>) -> Result<Config, Faults> {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => String::new(),
        Err(error) => {
            return Err(Faults(vec![Fault {
                file: file.to_owned(),
                line: None,
                column: None,
                problem: format!("cannot be read: {error}"),
            }]));
        }
    };
    let (config, document) = parse(file, &text);
    document.finish().map(|()| config)
}

fn parse(file: &Path, text: &str) -> (Config, Document) {
    let (raw, mut document) = Document::read::<Raw>(file, text, &[]);
    let any: SocketAddr = ([0, 0, 0, 0], 0).into();
    let mut address = |key: &str, listen: &str, port: u16| match listen.parse() {
        _ if listen.is_empty() => ([0, 0, 0, 0], port).into(),
        Ok(address) => address,
        Err(_) => {
            document.fault(
                key,
                format_args!(
                    "{listen:?} is no address to listen on: write \"0.0.0.0:7443\" or \"[::]:7443\""
                ),
            );
            any
        }
    };
    let uplink = address("uplink.listen", &raw.uplink.listen, 7443);
    let enrolment = address("enrolment.listen", &raw.enrolment.listen, 7444);
    let operator = address("operator.listen", &raw.operator.listen, 7445);
    let http_listen = address("http.listen", &raw.http.listen, 7446);
    let series = usize::try_from(raw.limits.series_per_host).unwrap_or(0);
    if series == 0 || series > limits::MAX_SERIES {
        let bound = limits::MAX_SERIES;
        document.fault(
            "limits.series_per_host",
            format_args!(
                "{} is out of bounds: 1 to {bound}",
                raw.limits.series_per_host
            ),
        );
    }
    let http = http(&raw.http, http_listen, &mut document);
    let format = match raw.log.format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => {
            document.fault(
                "log.format",
                format_args!("{other:?} is neither \"text\" nor \"json\""),
            );
            LogFormat::Text
        }
    };
    let level = LogLevel::NAMES
        .iter()
        .find(|(name, _)| *name == raw.log.level);
    if level.is_none() {
        document.fault(
            "log.level",
            format_args!(
                "{:?} is none of error, warn, info, debug, trace",
                raw.log.level
            ),
        );
    }
    for (key, folder) in [
        ("state_dir", &raw.state_dir),
        ("runtime_dir", &raw.runtime_dir),
    ] {
        if !folder.is_absolute() {
            document.fault(key, format_args!("{} must begin with /", folder.display()));
        }
    }
    let config = Config {
        uplink,
        enrolment,
        operator,
        http,
        log_max_bytes: document.bytes(
            "storage.log_max_size",
            &raw.storage.log_max_size,
            64 << 20..=1 << 50,
        ),
        series_per_host: series,
        credit_bytes: document.bytes(
            "limits.credit_per_host",
            &raw.limits.credit_per_host,
            limits::MAX_PAYLOAD_BYTES as u64..=64 << 20,
        ),
        exempt_loopback: false,
        detect: detect(&raw.detect, &mut document),
        log: LogConfig {
            format,
            level: level.map_or(LogLevel::Info, |(_, level)| *level),
        },
        fleet_name: raw.fleet_name,
        state_dir: raw.state_dir,
        runtime_dir: raw.runtime_dir,
    };
    (config, document)
}

fn http(raw: &RawHttp, listen: SocketAddr, document: &mut Document) -> HttpConfig {
    let mut token = None;
    if !raw.token_file.as_os_str().is_empty() {
        match fs::read_to_string(&raw.token_file) {
            Ok(text) if text.trim().len() >= MIN_TOKEN => token = Some(text.trim().to_owned()),
            Ok(_) => document.fault(
                "http.token_file",
                format_args!(
                    "{} holds less than {MIN_TOKEN} characters, which can be guessed",
                    raw.token_file.display()
                ),
            ),
            Err(error) => document.fault(
                "http.token_file",
                format_args!("{} cannot be read: {error}", raw.token_file.display()),
            ),
        }
    }
    let protected = raw.tls && !raw.token_file.as_os_str().is_empty();
    if !listen.ip().is_loopback() && !protected {
        document.fault(
            "http.listen",
            "beyond loopback the page needs tls = true and a token_file; without them anyone who reaches the port reads the fleet",
        );
    }
    if !["host", "host:9100"].contains(&raw.instance.as_str()) {
        document.fault(
            "http.instance",
            format_args!("{:?} is neither \"host\" nor \"host:9100\"", raw.instance),
        );
    }
    HttpConfig {
        listen,
        tls: raw.tls,
        token,
        hosts: raw.hosts.clone(),
        external_address: raw.external_address.clone(),
        instance: raw.instance.clone(),
    }
}

/// Shortest bearer token: 128 bits in base 64 have 22 characters.
const MIN_TOKEN: usize = 22;

fn detect(raw: &RawDetect, document: &mut Document) -> DetectConfig {
    let (warning, critical) = (raw.filesystem_warning_ratio, raw.filesystem_critical_ratio);
    if !(warning > 0.0 && warning <= critical && critical <= 1.0) {
        document.fault(
            "detect.filesystem_warning_ratio",
            format_args!("{warning} and filesystem_critical_ratio {critical} must be above 0, rising, and at most 1"),
        );
    }
    if !(raw.anomaly_threshold.is_finite() && raw.anomaly_threshold > 0.0) {
        document.fault("detect.anomaly_threshold", "must be above 0");
    }
    #[expect(clippy::cast_precision_loss, reason = "bytes below 2^53")]
    let available = document.bytes(
        "detect.filesystem_available",
        &raw.filesystem_available,
        0..=1 << 50,
    ) as f64;
    DetectConfig {
        filesystem_warning_ratio: warning,
        filesystem_critical_ratio: critical,
        filesystem_available_bytes: available,
        anomaly_threshold: raw.anomaly_threshold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let (_, document) = parse(Path::new("aggregator.toml"), text);
        match document.finish() {
            Ok(()) => Vec::new(),
            Err(Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
        }
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
        let (config, _) = parse(Path::new("aggregator.toml"), text);
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
        let (config, document) = parse(Path::new("aggregator.toml"), &live);
        assert_eq!(document.finish(), Ok(()));
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn faults_are_found_together() {
        let found = faults(
            "fleet_nam = \"x\"\n[http]\nlisten = \"0.0.0.0:7446\"\n[storage]\nlog_max_size = 5\n",
        );
        assert_eq!(
            found,
            [
                "aggregator.toml:1:1: unknown key fleet_nam; did you mean fleet_name?",
                "aggregator.toml:5:1: storage.log_max_size: expected string, found integer",
            ]
        );
        let found = faults(
            "state_dir = \"var\"\n[http]\nlisten = \"0.0.0.0:7446\"\ninstance = \"h\"\n[log]\nlevel = \"loud\"\n[uplink]\nlisten = \"7443\"\n",
        );
        assert_eq!(found.len(), 5, "{found:#?}");
        assert!(
            found
                .iter()
                .any(|fault| fault.contains(":3:1: http.listen: beyond loopback"))
        );
    }
}
