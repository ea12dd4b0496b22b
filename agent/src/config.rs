//! The configuration file: TOML to a [`Config`] that cannot be wrong, and the only home of its defaults.
//!
//! How files are read, overlaid and complained about is [`settings`]; here is the list of keys.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::limits;
use toml::de::DeValue;

use crate::{
    buffer::{BufferLimits, MIN_BUFFER_BYTES},
    check::ChecksConfig,
    collect::{self, CollectConfig},
    settings::{self, Faults, Reader, Section, directory, suggestion, text, texts, truth},
    spool::{MIN_SPOOL_BYTES, SpoolConfig, SpoolLimits},
    telemetry::LogConfig,
    uplink::servers::MAX_SERVERS,
    watch::WatchConfig,
};

/// Where the configuration is when no flag says otherwise.
pub const DEFAULT_PATH: &str = "/etc/muster/agent.toml";

/// Folder beside the main file with files that are applied after it.
const OVERLAYS: &str = "agent.d";

/// Most memory for frames that are not acknowledged: more belongs on a disk.
const MAX_BUFFER_BYTES: u64 = 4095 << 20;

/// A spool beyond this is a mistake in the unit.
const MAX_SPOOL_BYTES: u64 = 1 << 40;
/// Shorter than the shortest restart worth surviving, and longer than any host is away.
const MIN_SPOOL_AGE: Duration = Duration::from_secs(60);
const MAX_SPOOL_AGE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Most processes in a scan: kernel.pid_max of common hosts, and no more than a deadline lets through.
const MAX_PROCESSES: usize = 32_768;

/// Everything an administrator may set, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Identity and what else must survive a restart.
    pub state_dir: PathBuf,
    /// The status socket.
    pub runtime_dir: PathBuf,
    /// Time between ticks, within [`limits::MIN_INTERVAL`] and [`limits::MAX_INTERVAL`].
    pub interval: Duration,
    /// `host:port` of the uplinks of aggregators, in the order in which they are tried; when empty, the identity says
    /// it.
    pub uplink_addresses: Vec<String>,
    /// Labels of this host for selectors. Those of the join token win.
    pub labels: BTreeMap<String, String>,
    /// Collectors.
    pub collect: CollectConfig,
    /// Checks of this host's own.
    pub checks: ChecksConfig,
    /// What is watched for changes, and who uses most.
    pub watch: WatchConfig,
    /// Whether every second of the last ten minutes is held.
    pub recorder: bool,
    /// Where the page of node_exporter is served; nowhere by default.
    pub node_exporter: Option<SocketAddr>,
    /// Whether that may be an address that others than this host reach.
    pub allow_remote: bool,
    /// Memory for frames that are not acknowledged.
    pub buffer: BufferLimits,
    /// Whether frames are kept on disk until they are acknowledged.
    pub spool_enabled: bool,
    /// How many of them.
    pub spool: SpoolLimits,
    /// The agent's own log.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/muster-agent"),
            runtime_dir: PathBuf::from("/run/muster-agent"),
            interval: Duration::from_secs(10),
            uplink_addresses: Vec::new(),
            labels: BTreeMap::new(),
            collect: CollectConfig::default(),
            checks: ChecksConfig::default(),
            watch: WatchConfig::default(),
            recorder: true,
            node_exporter: None,
            allow_remote: false,
            buffer: BufferLimits::default(),
            spool_enabled: true,
            spool: SpoolLimits::default(),
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// Where `muster-agent status` finds the running agent.
    #[must_use]
    pub fn status_socket(&self) -> PathBuf {
        self.runtime_dir.join("status.sock")
    }

    /// How the host is watched, with what is known kept in the state folder.
    #[must_use]
    pub fn watch(&self) -> WatchConfig {
        WatchConfig {
            state_dir: Some(self.state_dir.clone()),
            ..self.watch.clone()
        }
    }

    /// Where frames are kept on disk, if they are.
    #[must_use]
    pub fn spool(&self) -> Option<SpoolConfig> {
        self.spool_enabled.then(|| SpoolConfig {
            folder: self.state_dir.join("spool"),
            limits: self.spool,
        })
    }

    /// Whether anything but the level of the log is set differently: that much holds only after a restart.
    #[must_use]
    pub fn differs_beyond_log_level(&self, other: &Self) -> bool {
        let same_level = Self {
            log: LogConfig {
                level: self.log.level,
                ..other.log
            },
            ..other.clone()
        };
        *self != same_level
    }

    /// Reads a file and its overlays. `None` for the default place, where a missing file means defaults.
    ///
    /// # Errors
    /// All faults of all files.
    pub fn load(path: Option<&Path>) -> Result<Self, Faults> {
        let mut reader = Reader::new(path.unwrap_or(Path::new(DEFAULT_PATH)));
        let mut config = Self::default();
        reader.files(path.is_none(), OVERLAYS, |root| config.keys(root));
        config.check(&mut reader);
        reader.finish().map(|()| config)
    }

    /// Every key there is.
    fn keys(&mut self, root: &mut Section<'_, '_>) {
        root.value("state_dir", &mut self.state_dir, directory);
        root.value("runtime_dir", &mut self.runtime_dir, directory);
        root.value("interval", &mut self.interval, interval);
        root.section("uplink", |uplink| {
            uplink.value("address", &mut self.uplink_addresses, addresses);
        });
        root.section("labels", |labels| labels.each(&mut self.labels, label));
        root.section("buffer", |buffer| {
            buffer.value("max_bytes", &mut self.buffer.max_bytes, buffer_bytes);
        });
        root.section("spool", |spool| {
            spool.value("enabled", &mut self.spool_enabled, truth);
            spool.value("max_size", &mut self.spool.max_bytes, |value| {
                settings::bytes(value, MIN_SPOOL_BYTES..=MAX_SPOOL_BYTES)
            });
            spool.value("max_age", &mut self.spool.max_age, |value| {
                settings::duration(value, MIN_SPOOL_AGE..=MAX_SPOOL_AGE)
            });
        });
        root.section("log", |log| self.log.keys(log));
        root.section("collectors", |section| {
            collectors(section, &mut self.collect)
        });
        root.section("listen", |listen| {
            listen.value("node_exporter", &mut self.node_exporter, |value| {
                let given = text(value)?;
                let address: Option<SocketAddr> = given.parse().ok();
                address
                    .filter(|address| address.port() > 0)
                    .map(Some)
                    .ok_or_else(|| {
                        format!("{given:?} is no address:port, for example \"127.0.0.1:9100\"")
                    })
            });
            listen.value("allow_remote", &mut self.allow_remote, truth);
        });
        self.checks.keys(root);
        root.section("changes", |changes| {
            changes.value("enabled", &mut self.watch.enabled, truth);
            changes.value("links_exclude", &mut self.watch.links_exclude, texts);
        });
        root.section("busiest", |busiest| {
            let config = &mut self.watch.busiest;
            busiest.value("enabled", &mut config.enabled, truth);
            busiest.value("max_processes", &mut config.max_processes, |value| {
                settings::whole(value, 1..=MAX_PROCESSES)
            });
        });
        root.section("recorder", |recorder| {
            recorder.value("enabled", &mut self.recorder, truth);
        });
    }

    /// What must hold of all files together.
    fn check(&self, reader: &mut Reader) {
        if self.labels.len() > limits::MAX_HOST_LABELS {
            let most = limits::MAX_HOST_LABELS;
            reader.fault("labels", format_args!("at most {most} are allowed"));
        }
        let remote = self
            .node_exporter
            .filter(|address| !address.ip().is_loopback());
        if let Some(address) = remote.filter(|_| !self.allow_remote) {
            reader.fault(
                "listen.node_exporter",
                format_args!(
                    "{address} can be reached from elsewhere, and the page asks for no password; use 127.0.0.1, or set allow_remote = true under [listen] if that is meant"
                ),
            );
        }
        if let Some((key, why)) = self.checks.problem() {
            reader.fault(key, why);
        }
    }
}

/// One `host:port`, or a list of them.
fn addresses(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let Some(items) = value.as_array() else {
        return settings::address(value).map(|address| vec![address]);
    };
    if !(1..=MAX_SERVERS).contains(&items.len()) {
        return Err(format!("expected 1 to {MAX_SERVERS} addresses"));
    }
    items
        .iter()
        .map(|item| settings::address(item.get_ref()))
        .collect()
}

fn collectors(section: &mut Section<'_, '_>, config: &mut CollectConfig) {
    let names: Vec<&str> = collect::describe(config)
        .iter()
        .map(|info| info.about.name)
        .collect();
    section.value("disable", &mut config.disabled, |value| {
        let disabled = texts(value)?;
        match disabled.iter().find(|name| !names.contains(&name.as_str())) {
            None => Ok(disabled),
            Some(unknown) => {
                let meant = suggestion(unknown, names.iter().copied());
                Err(format!(
                    "there is no collector {unknown:?}{meant}; muster-agent collectors lists them"
                ))
            }
        }
    });
    section.value("max_series", &mut config.max_series, |value| {
        settings::whole(value, 1..=limits::MAX_SERIES)
    });
    section.section("disk", |disk| {
        disk.value("devices_exclude", &mut config.disk.devices_exclude, texts);
    });
    section.section("filesystem", |filesystem| {
        let config = &mut config.filesystem;
        filesystem.value(
            "mount_points_exclude",
            &mut config.mount_points_exclude,
            texts,
        );
        filesystem.value("types_exclude", &mut config.types_exclude, texts);
    });
    section.section("network", |network| {
        network.value(
            "devices_exclude",
            &mut config.network.devices_exclude,
            texts,
        );
    });
    section.section("textfile", |textfile| {
        let config = &mut config.textfile;
        textfile.value("folders", &mut config.folders, folders);
        textfile.value("stale_after", &mut config.stale_after, |value| {
            settings::duration(
                value,
                Duration::from_secs(60)..=Duration::from_secs(366 * 86_400),
            )
        });
    });
    section.section("systemd", |systemd| {
        let config = &mut config.systemd;
        systemd.value("enabled", &mut config.enabled, truth);
        systemd.value("include", &mut config.include, texts);
        systemd.value("exclude", &mut config.exclude, texts);
        systemd.value("max_units", &mut config.max_units, |value| {
            settings::whole(value, 1..=10_000)
        });
    });
}

/// Folders that do not depend on where the program was started.
fn folders(value: &DeValue<'_>) -> Result<Vec<PathBuf>, String> {
    let folders = texts(value)?;
    match folders.iter().find(|folder| !folder.starts_with('/')) {
        Some(relative) => Err(format!("expected absolute paths, found {relative:?}")),
        None => Ok(folders.into_iter().map(PathBuf::from).collect()),
    }
}

fn interval(value: &DeValue<'_>) -> Result<Duration, String> {
    settings::duration(value, limits::MIN_INTERVAL..=limits::MAX_INTERVAL)
}

fn buffer_bytes(value: &DeValue<'_>) -> Result<usize, String> {
    let bytes = settings::bytes(value, MIN_BUFFER_BYTES as u64..=MAX_BUFFER_BYTES)?;
    usize::try_from(bytes).map_err(|_| "is more than this machine can address".to_owned())
}

fn label(key: &str, value: &DeValue<'_>) -> Result<String, String> {
    let given = text(value)?;
    limits::check_host_label(key, given)?;
    Ok(given.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::telemetry::{LogFormat, LogLevel};

    fn applied(text: &str) -> (Config, Vec<String>) {
        let file = Path::new("a.toml");
        let (mut config, mut reader) = (Config::default(), Reader::new(file));
        reader.text(file, text, |root| config.keys(root));
        config.check(&mut reader);
        let faults = reader.finish().err().map_or_else(Vec::new, |faults| {
            faults.0.iter().map(ToString::to_string).collect()
        });
        (config, faults)
    }

    #[test]
    fn every_key_is_read() {
        let (config, faults) = applied(
            r#"
            state_dir = "/srv/agent"
            runtime_dir = "/run/x"
            interval = "1m"
            uplink.address = "[::1]:7443"
            labels = { role = "web", "site/rack" = "fra 3" }
            buffer.max_bytes = "8 MiB"
            log = { format = "json", level = "debug" }
            [collectors]
            disable = ["dmi"]
            max_series = 500
            disk.devices_exclude = ["sd*"]
            filesystem = { mount_points_exclude = ["/mnt/*"], types_exclude = [] }
            network.devices_exclude = ["veth*"]
            systemd = { enabled = false, include = ["a*"], exclude = [], max_units = 7 }
            textfile = { folders = ["/srv/metrics"], stale_after = "2h" }
            "#,
        );
        assert_eq!(faults, [""; 0]);
        assert_eq!(config.state_dir, Path::new("/srv/agent"));
        assert_eq!(config.status_socket(), Path::new("/run/x/status.sock"));
        assert_eq!(config.interval, Duration::from_secs(60));
        assert_eq!(config.uplink_addresses, ["[::1]:7443"]);
        assert_eq!(config.labels["site/rack"], "fra 3");
        assert_eq!(config.buffer.max_bytes, 8 << 20);
        assert_eq!(
            (config.log.format, config.log.level),
            (LogFormat::Json, LogLevel::Debug)
        );
        let collect = &config.collect;
        assert_eq!(
            (&collect.disabled[..], collect.max_series),
            (&["dmi".to_owned()][..], 500)
        );
        assert_eq!(collect.disk.devices_exclude, ["sd*"]);
        assert_eq!(collect.filesystem.mount_points_exclude, ["/mnt/*"]);
        assert!(collect.filesystem.types_exclude.is_empty());
        assert_eq!(collect.network.devices_exclude, ["veth*"]);
        assert_eq!(collect.textfile.folders, [Path::new("/srv/metrics")]);
        assert_eq!(collect.textfile.stale_after, Duration::from_secs(7200));
        assert_eq!(
            (collect.systemd.enabled, collect.systemd.max_units),
            (false, 7)
        );
    }

    #[test]
    fn all_faults_come_at_once_with_their_place() {
        let (_, faults) = applied(
            "intervall = \"10s\"\n\
             interval = 10\n\
             state_dir = \"here\"\n\
             [uplink]\n\
             adress = \"x:1\"\n\
             address = \"no port\"\n\
             [collectors]\n  disable = [\"cpus\"]\n\
             [buffer]\n\
             max_bytes = \"1KiB\"\n\
             [log]\n\
             level = \"loud\"\n\
             [wholly_else]\n",
        );
        assert_eq!(
            faults,
            [
                "a.toml:1:1: intervall: there is no such key; did you mean \"interval\"?",
                "a.toml:2:12: interval: expected a duration in quotes such as \"10s\" or \"1m\"",
                "a.toml:3:13: state_dir: expected an absolute path",
                "a.toml:5:1: uplink.adress: there is no such key; did you mean \"address\"?",
                "a.toml:6:11: uplink.address: \"no port\" is no host:port, for example \"muster.example:7443\"",
                "a.toml:8:13: collectors.disable: there is no collector \"cpus\"; did you mean \"cpu\"?; muster-agent collectors lists them",
                "a.toml:10:13: buffer.max_bytes: expected a size from \"1MiB\" to \"4095MiB\", or a number of bytes",
                "a.toml:12:9: log.level: expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\", found \"loud\"",
                "a.toml:13:2: wholly_else: there is no such key; known here: state_dir, runtime_dir, interval, uplink, labels, buffer, spool, log, collectors, listen, checks, check, changes, busiest, recorder",
            ]
        );
    }

    #[test]
    fn bounds_hold() {
        for (text, right) in [
            ("interval = \"1s\"", true),
            ("interval = \"999ms\"", false),
            ("interval = \"10m\"", true),
            ("interval = \"601s\"", false),
            ("interval = \"99999999999999999999s\"", false),
            ("interval = \"s\"", false),
            ("buffer.max_bytes = 1048576", true),
            ("buffer.max_bytes = 1048575", false),
            ("buffer.max_bytes = -1", false),
            ("spool.max_size = \"2MiB\"", true),
            ("spool.max_size = \"1MiB\"", false),
            ("spool.max_age = \"30d\"", true),
            ("spool.max_age = \"1s\"", false),
            ("spool.enabled = false", true),
            ("uplink.address = \"a:0\"", false),
            ("uplink.address = \"::1:7443\"", false),
            ("uplink.address = \"a:65536\"", false),
            ("labels.x = 3", false),
            ("labels.\"a b\" = \"c\"", false),
            ("collectors.max_series = 10001", false),
            ("collectors = 3", false),
            ("listen.node_exporter = \"127.0.0.1:9100\"", true),
            ("listen.node_exporter = \"[::1]:9100\"", true),
            ("listen.node_exporter = \":9100\"", false),
            ("listen.node_exporter = \"0.0.0.0:9100\"", false),
            (
                "listen = { node_exporter = \"0.0.0.0:9100\", allow_remote = true }",
                true,
            ),
        ] {
            assert_eq!(applied(text).1.is_empty(), right, "{text}");
        }
    }

    #[test]
    fn overlays_win_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("agent.d")).expect("created");
        for (name, text) in [
            ("agent.toml", "interval = \"5s\"\nlabels.a = \"1\""),
            ("agent.d/20.toml", "interval = \"7s\""),
            ("agent.d/10.toml", "interval = \"6s\"\nlabels.b = \"2\""),
            ("agent.d/30.toml.bak", "nonsense"),
        ] {
            fs::write(path(name), text).expect("written");
        }
        let config = Config::load(Some(&path("agent.toml"))).expect("right");
        assert_eq!(config.interval, Duration::from_secs(7));
        assert_eq!(config.labels.len(), 2);
        let missing = Config::load(Some(&path("other.toml"))).expect_err("not there");
        assert!(
            missing.to_string().contains("other.toml: cannot be read"),
            "{missing}"
        );
    }

    #[test]
    fn labels_are_counted_over_all_of_a_file() {
        let labels = |count| {
            (0..count).fold("[labels]\n".to_owned(), |all, at| {
                format!("{all}l{at} = \"\"\n")
            })
        };
        assert_eq!(applied(&labels(limits::MAX_HOST_LABELS)).1, [""; 0]);
        let (_, faults) = applied(&labels(limits::MAX_HOST_LABELS + 1));
        assert!(
            faults[0].starts_with("a.toml:1:1: labels: at most"),
            "{faults:?}"
        );
    }

    #[test]
    fn only_the_log_level_changes_without_a_restart() {
        let with = |text| applied(text).0;
        let running = with("");
        assert!(!with("log.level = \"debug\"").differs_beyond_log_level(&running));
        for text in [
            "log.format = \"json\"",
            "interval = \"1s\"",
            "labels.a = \"b\"",
        ] {
            assert!(with(text).differs_beyond_log_level(&running), "{text}");
        }
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let example = include_str!("../../packaging/agent.toml");
        let (config, faults) = applied(example);
        assert_eq!(faults, [""; 0]);
        assert_eq!(config.interval, Config::default().interval);
        // What stands behind "#" directly is a setting: with all of them taken the file still loads.
        let all: Vec<&str> = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(' ') => setting,
                _ => line,
            })
            .collect();
        let (taken, faults) = applied(&all.join("\n"));
        assert_eq!(faults, [""; 0]);
        let default = Config::default();
        assert_eq!(taken.state_dir, default.state_dir);
        assert_eq!(taken.interval, default.interval);
        assert_eq!(taken.buffer, default.buffer);
        assert_eq!(taken.spool(), default.spool());
        assert_eq!(taken.collect.max_series, default.collect.max_series);
        assert_eq!(
            taken.collect.filesystem.types_exclude,
            default.collect.filesystem.types_exclude
        );
        assert_eq!(
            taken.collect.systemd.exclude,
            default.collect.systemd.exclude
        );
        assert_eq!(taken.log, default.log);
    }
}
