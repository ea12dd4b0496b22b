//! The configuration file: TOML to a [`Config`] that cannot be wrong, and the only home of its defaults.
//!
//! Every fault of every file is reported at once, with file, line, column and key, and with the key that was
//! probably meant. Files of `agent.d` beside the main file are applied after it in the order of their names;
//! what a later file sets replaces what an earlier one set.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_proto::limits;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    buffer::{BufferLimits, MIN_BUFFER_BYTES},
    collect::{self, CollectConfig},
    spool::{MIN_SPOOL_BYTES, SpoolConfig, SpoolLimits},
    telemetry::{LogConfig, LogFormat, LogLevel},
};

/// Where the configuration is when no flag says otherwise.
pub const DEFAULT_PATH: &str = "/etc/muster/agent.toml";

/// Folder beside the main file with files that are applied after it.
const OVERLAYS: &str = "agent.d";

/// Largest file that is read. A file of all keys with long lists has a few KiB.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A spool beyond this is a mistake in the unit.
const MAX_SPOOL_BYTES: u64 = 1 << 40;
/// Shorter than the oldest restart worth surviving, and longer than any host is away.
const MIN_SPOOL_AGE: Duration = Duration::from_secs(60);
const MAX_SPOOL_AGE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Everything an administrator may set, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Identity and what else must survive a restart.
    pub state_dir: PathBuf,
    /// The status socket.
    pub runtime_dir: PathBuf,
    /// Time between ticks, within [`limits::MIN_INTERVAL`] and [`limits::MAX_INTERVAL`].
    pub interval: Duration,
    /// `host:port` of the aggregator's uplink; else the identity says it.
    pub uplink_address: Option<String>,
    /// Labels of this host for selectors. Those of the join token win.
    pub labels: BTreeMap<String, String>,
    /// Collectors.
    pub collect: CollectConfig,
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
            uplink_address: None,
            labels: BTreeMap::new(),
            collect: CollectConfig::default(),
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
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let main = path.unwrap_or(Path::new(DEFAULT_PATH));
        let mut config = Self::default();
        let mut faults = Vec::new();
        match read(main) {
            Ok(text) => config.apply(main, &text, &mut faults),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => {}
            Err(error) => faults.push(Fault::of_file(main, &error)),
        }
        for overlay in overlays(main, &mut faults) {
            match read(&overlay) {
                Ok(text) => config.apply(&overlay, &text, &mut faults),
                Err(error) => faults.push(Fault::of_file(&overlay, &error)),
            }
        }
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError(faults))
        }
    }

    /// Applies one file over what is set; faults are added.
    fn apply(&mut self, file: &Path, text: &str, faults: &mut Vec<Fault>) {
        let before = faults.len();
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map(|span| position(text, span.start));
            let message = error.message().trim().to_owned();
            faults.push(Fault::new(file, at, message));
        }
        let mut root = Section::new(file, text, "", table.get_ref(), faults);
        root.value("state_dir", &mut self.state_dir, directory);
        root.value("runtime_dir", &mut self.runtime_dir, directory);
        root.value("interval", &mut self.interval, interval);
        root.section("uplink", |uplink| {
            uplink.value("address", &mut self.uplink_address, |value| {
                address(value).map(Some)
            });
        });
        root.section("labels", |labels| labels.each(&mut self.labels));
        root.section("buffer", |buffer| {
            buffer.value("max_bytes", &mut self.buffer.max_bytes, buffer_bytes);
        });
        root.section("spool", |spool| {
            spool.value("enabled", &mut self.spool_enabled, truth);
            spool.value("max_size", &mut self.spool.max_bytes, spool_bytes);
            spool.value("max_age", &mut self.spool.max_age, spool_age);
        });
        root.section("log", |log| {
            log.value("format", &mut self.log.format, |value| {
                word(
                    value,
                    &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                )
            });
            log.value("level", &mut self.log.level, |value| {
                word(value, &LogLevel::NAMES)
            });
        });
        root.section("collectors", |section| {
            collectors(section, &mut self.collect)
        });
        root.finish();
        faults[before..].sort_by_key(|fault| fault.at);
        if self.labels.len() > limits::MAX_HOST_LABELS {
            let message = format!("labels: at most {} are allowed", limits::MAX_HOST_LABELS);
            faults.push(Fault::new(file, None, message));
        }
    }
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
        whole(value, 1, limits::MAX_SERIES)
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
    section.section("systemd", |systemd| {
        let config = &mut config.systemd;
        systemd.value("enabled", &mut config.enabled, truth);
        systemd.value("include", &mut config.include, texts);
        systemd.value("exclude", &mut config.exclude, texts);
        systemd.value("max_units", &mut config.max_units, |value| {
            whole(value, 1, 10_000)
        });
    });
}

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    file: PathBuf,
    /// Line and column, from 1.
    at: Option<(usize, usize)>,
    message: String,
}

impl Fault {
    fn new(file: &Path, at: Option<(usize, usize)>, message: String) -> Self {
        Self {
            file: file.to_owned(),
            at,
            message,
        }
    }

    fn of_file(file: &Path, error: &io::Error) -> Self {
        Self::new(file, None, format!("cannot be read: {error}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with a configuration; at least one fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Fault>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(fault, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A table of the file while it is read: knows which keys it was asked for.
struct Section<'a, 'i> {
    file: &'a Path,
    text: &'a str,
    /// Dotted name with a trailing dot; empty for the root.
    prefix: String,
    table: &'a DeTable<'i>,
    known: Vec<&'static str>,
    /// Every key is right here.
    takes_all: bool,
    faults: &'a mut Vec<Fault>,
}

impl<'a, 'i> Section<'a, 'i> {
    fn new(
        file: &'a Path,
        text: &'a str,
        prefix: &str,
        table: &'a DeTable<'i>,
        faults: &'a mut Vec<Fault>,
    ) -> Self {
        Self {
            file,
            text,
            prefix: prefix.to_owned(),
            table,
            known: Vec::new(),
            takes_all: false,
            faults,
        }
    }

    fn fault(&mut self, start: usize, message: String) {
        let at = Some(position(self.text, start));
        self.faults.push(Fault::new(self.file, at, message));
    }

    /// Sets `target` if the key is there and its value is right.
    fn value<T>(
        &mut self,
        key: &'static str,
        target: &mut T,
        parse: impl FnOnce(&DeValue<'i>) -> Result<T, String>,
    ) {
        self.known.push(key);
        let Some(value) = self.table.get(key) else {
            return;
        };
        match parse(value.get_ref()) {
            Ok(value) => *target = value,
            Err(why) => self.fault(value.span().start, format!("{}{key}: {why}", self.prefix)),
        }
    }

    /// Reads the table of this name, if there is one.
    fn section(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 'i>)) {
        self.known.push(key);
        let Some(value) = self.table.get(key) else {
            return;
        };
        match value.get_ref() {
            DeValue::Table(table) => {
                let prefix = format!("{}{key}.", self.prefix);
                let mut section = Section::new(self.file, self.text, &prefix, table, self.faults);
                read(&mut section);
                section.finish();
            }
            other => {
                let why = format!(
                    "{}{key}: expected a table, found {}",
                    self.prefix,
                    kind(other)
                );
                self.fault(value.span().start, why);
            }
        }
    }

    /// Takes every key as a label.
    fn each(&mut self, labels: &mut BTreeMap<String, String>) {
        for (key, value) in self.table {
            match label(key.get_ref(), value.get_ref()) {
                Ok(text) => {
                    labels.insert(key.get_ref().to_string(), text);
                }
                Err(why) => {
                    let message = format!("{}{}: {why}", self.prefix, key.get_ref());
                    self.fault(key.span().start, message);
                }
            }
        }
        self.takes_all = true;
    }

    /// Reports the keys nobody asked for.
    fn finish(&mut self) {
        let unknown: Vec<&Spanned<_>> = self
            .table
            .keys()
            .filter(|key| !self.takes_all && !self.known.iter().any(|known| known == key.get_ref()))
            .collect();
        for key in unknown {
            let meant = suggestion(key.get_ref(), self.known.iter().copied());
            let message = format!(
                "{}{}: there is no such key{meant}",
                self.prefix,
                key.get_ref()
            );
            self.fault(key.span().start, message);
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let length = fs::metadata(path)?.len();
    if length > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "it has {length} bytes, at most {MAX_FILE_BYTES} are read"
        )));
    }
    fs::read_to_string(path)
}

fn overlays(main: &Path, faults: &mut Vec<Fault>) -> Vec<PathBuf> {
    let folder = main.with_file_name(OVERLAYS);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                faults.push(Fault::of_file(&folder, &error));
            }
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    paths
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    (line, column)
}

fn kind(value: &DeValue<'_>) -> &'static str {
    value.type_str()
}

fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("expected a text in quotes, found {}", kind(value)))
}

fn texts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let items = value
        .as_array()
        .ok_or_else(|| format!("expected a list of texts, found {}", kind(value)))?;
    items
        .iter()
        .map(|item| text(item.get_ref()).map(ToOwned::to_owned))
        .collect()
}

fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| format!("expected true or false, found {}", kind(value)))
}

fn integer(value: &DeValue<'_>) -> Option<usize> {
    let integer = value.as_integer()?;
    usize::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn whole(value: &DeValue<'_>, least: usize, most: usize) -> Result<usize, String> {
    integer(value)
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, String> {
    let given = text(value)?;
    let found = words.iter().find(|(word, _)| *word == given);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("expected one of {}, found {given:?}", all.join(", "))
    })
}

fn directory(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("expected an absolute path".into())
    }
}

fn interval(value: &DeValue<'_>) -> Result<Duration, String> {
    let given =
        text(value).map_err(|_| "expected a duration in quotes such as \"10s\"".to_owned())?;
    let duration = parse_duration(given)
        .ok_or_else(|| format!("{given:?} is no duration; write for example \"10s\" or \"1m\""))?;
    let (least, most) = (limits::MIN_INTERVAL, limits::MAX_INTERVAL);
    if (least..=most).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!(
            "{given:?} is not between {}s and {}m",
            least.as_secs(),
            most.as_secs() / 60
        ))
    }
}

/// A whole number and one of ms, s, m, h.
fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..unit].parse().ok()?;
    let millis = match &text[unit..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(millis)?))
}

fn buffer_bytes(value: &DeValue<'_>) -> Result<usize, String> {
    let bytes = match value {
        DeValue::String(text) => parse_bytes(text),
        other => integer(other),
    };
    let most = usize::try_from(u32::MAX).unwrap_or(usize::MAX);
    bytes
        .filter(|bytes| (MIN_BUFFER_BYTES..=most).contains(bytes))
        .ok_or_else(|| {
            "expected a size from \"1MiB\" to \"4095MiB\", or a number of bytes".to_owned()
        })
}

fn spool_bytes(value: &DeValue<'_>) -> Result<u64, String> {
    let bytes = match value {
        DeValue::String(text) => parse_bytes(text),
        other => integer(other),
    };
    bytes
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| (MIN_SPOOL_BYTES..=MAX_SPOOL_BYTES).contains(bytes))
        .ok_or_else(|| {
            "expected a size from \"2MiB\" to \"1024GiB\", or a number of bytes".to_owned()
        })
}

fn spool_age(value: &DeValue<'_>) -> Result<Duration, String> {
    let given =
        text(value).map_err(|_| "expected a duration in quotes such as \"7d\"".to_owned())?;
    crate::settings::parse_duration(given)
        .filter(|age| (MIN_SPOOL_AGE..=MAX_SPOOL_AGE).contains(age))
        .ok_or_else(|| format!("{given:?} is no duration from \"1m\" to \"365d\""))
}

/// A whole number and one of KiB, MiB, GiB.
fn parse_bytes(text: &str) -> Option<usize> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let number: usize = text[..unit].parse().ok()?;
    let factor = match text[unit..].trim_start() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// `host:port`, the host in brackets if it is an IPv6 address.
fn address(value: &DeValue<'_>) -> Result<String, String> {
    let given = text(value)?;
    let wrong = || format!("{given:?} is no host:port, for example \"muster.example:7443\"");
    let (host, port) = given.rsplit_once(':').ok_or_else(wrong)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let port_is_right = port.parse::<u16>().is_ok_and(|port| port > 0);
    if host.is_empty() || !port_is_right || (host.contains(':') && !bracketed) {
        return Err(wrong());
    }
    Ok(given.to_owned())
}

fn label(key: &str, value: &DeValue<'_>) -> Result<String, String> {
    let given = text(value)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if key.is_empty() || key.len() > limits::MAX_HOST_LABEL_KEY_BYTES || !key.chars().all(legal) {
        let most = limits::MAX_HOST_LABEL_KEY_BYTES;
        return Err(format!(
            "a label's key is 1 to {most} of a-z A-Z 0-9 . _ - /"
        ));
    }
    if given.len() > limits::MAX_HOST_LABEL_VALUE_BYTES || given.chars().any(char::is_control) {
        let most = limits::MAX_HOST_LABEL_VALUE_BYTES;
        return Err(format!(
            "a label's value is at most {most} bytes without control characters"
        ));
    }
    Ok(given.to_owned())
}

/// `; did you mean "x"?`, when one of the words is close.
fn suggestion<'w>(given: &str, words: impl Iterator<Item = &'w str>) -> String {
    let best = words.map(|word| (distance(given, word), word)).min();
    match best {
        Some((distance, word)) if distance <= 1 + given.chars().count() / 4 => {
            format!("; did you mean {word:?}?")
        }
        _ => String::new(),
    }
}

/// Levenshtein's distance in characters.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, c) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (place, &d) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(c != d);
            diagonal = row[place + 1];
            row[place + 1] = replaced.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> (Config, Vec<String>) {
        let mut config = Config::default();
        let mut faults = Vec::new();
        config.apply(Path::new("a.toml"), text, &mut faults);
        (config, faults.iter().map(ToString::to_string).collect())
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
            "#,
        );
        assert_eq!(faults, [""; 0]);
        assert_eq!(config.state_dir, Path::new("/srv/agent"));
        assert_eq!(config.status_socket(), Path::new("/run/x/status.sock"));
        assert_eq!(config.interval, Duration::from_secs(60));
        assert_eq!(config.uplink_address.as_deref(), Some("[::1]:7443"));
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
                "a.toml:2:12: interval: expected a duration in quotes such as \"10s\"",
                "a.toml:3:13: state_dir: expected an absolute path",
                "a.toml:5:1: uplink.adress: there is no such key; did you mean \"address\"?",
                "a.toml:6:11: uplink.address: \"no port\" is no host:port, for example \"muster.example:7443\"",
                "a.toml:8:13: collectors.disable: there is no collector \"cpus\"; did you mean \"cpu\"?; muster-agent collectors lists them",
                "a.toml:10:13: buffer.max_bytes: expected a size from \"1MiB\" to \"4095MiB\", or a number of bytes",
                "a.toml:12:9: log.level: expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\", found \"loud\"",
                "a.toml:13:2: wholly_else: there is no such key",
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
        ] {
            assert_eq!(applied(text).1.is_empty(), right, "{text}");
        }
    }

    #[test]
    fn broken_toml_is_placed_and_the_rest_is_read_too() {
        let (_, faults) = applied("interval = \nintervall = \"1s\"\n");
        assert!(
            faults.len() >= 2 && faults[0].starts_with("a.toml:1:"),
            "{faults:?}"
        );
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
