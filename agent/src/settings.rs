//! Reading a configuration file so that every fault is reported at once, with file, line and key.
//!
//! The shape of a file is given by a type whose default names every key: unknown keys are found by
//! comparing the file with it, and the nearest known key is suggested. Checks of meaning come after, by
//! the caller, against [`Document`], which knows on which line each key stands.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use toml::de::{DeTable, DeValue};

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// Line from 1, where it is known.
    pub line: Option<usize>,
    /// Column from 1, where it is known.
    pub column: Option<usize>,
    /// What is wrong and what to do, in one sentence.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// Everything that is wrong in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Faults(pub Vec<Fault>);

/// A file that was read: where its keys stand, and what was found wrong so far.
#[derive(Debug)]
pub struct Document {
    file: PathBuf,
    /// Dotted key → offset in bytes.
    places: HashMap<String, usize>,
    text: String,
    faults: Vec<Fault>,
}

impl Document {
    /// Reads `text`, which came from `file`, as a `T`.
    ///
    /// Below the keys named in `free` anything may stand (labels of a host). The value is the default where
    /// the file could not be read; [`finish`](Self::finish) tells.
    #[must_use]
    pub fn read<T>(file: &Path, text: &str, free: &[&str]) -> (T, Self)
    where
        T: Serialize + DeserializeOwned + Default,
    {
        let mut document = Self {
            file: file.to_owned(),
            places: HashMap::new(),
            text: text.to_owned(),
            faults: Vec::new(),
        };
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                let at = error.span().map(|span| span.start);
                document.push(at, error.message().to_owned());
                return (T::default(), document);
            }
        };
        // Every key is in the default, so what it cannot express is a mistake in this program.
        let known = toml::Table::try_from(T::default()).unwrap_or_default();
        document.compare("", table.get_ref(), &known, free);
        if !document.faults.is_empty() {
            return (T::default(), document);
        }
        match toml::from_str(text) {
            Ok(value) => (value, document),
            Err(error) => {
                let at = error.span().map(|span| span.start);
                document.push(at, error.message().to_owned());
                (T::default(), document)
            }
        }
    }

    /// Notes that the value of a key is wrong.
    pub fn fault(&mut self, key: &str, problem: impl fmt::Display) {
        let at = self.places.get(key).copied();
        self.push(at, format!("{key}: {problem}"));
    }

    /// The value of a key given as text, or a fault and the default.
    pub fn value<T>(&mut self, key: &str, text: &str, default: T) -> T
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        match text.parse() {
            Ok(value) => value,
            Err(error) => {
                self.fault(key, format_args!("{text:?} is not understood: {error}"));
                default
            }
        }
    }

    /// A span of time given as `"15s"`, within bounds.
    pub fn duration(
        &mut self,
        key: &str,
        text: &str,
        bounds: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        match parse_duration(text) {
            Some(duration) if bounds.contains(&duration) => return duration,
            Some(_) => self.fault(
                key,
                format_args!(
                    "{text:?} is out of bounds: {} to {}",
                    show_duration(*bounds.start()),
                    show_duration(*bounds.end())
                ),
            ),
            None => self.fault(
                key,
                format_args!(
                    "{text:?} is no span of time: write \"500ms\", \"15s\", \"10m\" or \"2h\""
                ),
            ),
        }
        *bounds.start()
    }

    /// A size given as `"64MiB"`, within bounds.
    pub fn bytes(&mut self, key: &str, text: &str, bounds: std::ops::RangeInclusive<u64>) -> u64 {
        match parse_bytes(text) {
            Some(bytes) if bounds.contains(&bytes) => return bytes,
            Some(_) => self.fault(
                key,
                format_args!(
                    "{text:?} is out of bounds: {} to {} bytes",
                    bounds.start(),
                    bounds.end()
                ),
            ),
            None => self.fault(
                key,
                format_args!(
                    "{text:?} is no size: write \"4096\", \"64KiB\", \"16MiB\" or \"2GiB\""
                ),
            ),
        }
        *bounds.start()
    }

    /// All faults, if there are any.
    pub fn finish(self) -> Result<(), Faults> {
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(Faults(self.faults))
    }

    fn push(&mut self, at: Option<usize>, problem: String) {
        let (line, column) = at.map(|at| position(&self.text, at)).unzip();
        self.faults.push(Fault {
            file: self.file.clone(),
            line,
            column,
            problem,
        });
    }

    fn compare(&mut self, prefix: &str, found: &DeTable<'_>, known: &toml::Table, free: &[&str]) {
        for (key, value) in found {
            let name: &str = key.get_ref();
            let dotted = if prefix.is_empty() {
                name.to_owned()
            } else {
                format!("{prefix}.{name}")
            };
            self.places.insert(dotted.clone(), key.span().start);
            let at = Some(key.span().start);
            match (known.get(name), value.get_ref()) {
                (None, _) if free.contains(&prefix) => {}
                (None, _) => {
                    let problem = match nearest(name, known.keys()) {
                        Some(near) => format!("unknown key {dotted}; did you mean {near}?"),
                        None => format!("unknown key {dotted}; known here: {}", list(known)),
                    };
                    self.push(at, problem);
                }
                (Some(toml::Value::Table(known)), DeValue::Table(found)) => {
                    self.compare(&dotted, found, known, free);
                }
                (Some(wanted), found) => {
                    let (wanted, given) = (wanted.type_str(), found.type_str());
                    if wanted != given {
                        self.push(at, format!("{dotted}: expected {wanted}, found {given}"));
                    }
                }
            }
        }
    }
}

fn list(known: &toml::Table) -> String {
    known.keys().cloned().collect::<Vec<_>>().join(", ")
}

/// Line and column from 1 of an offset in bytes.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

/// The known word that was probably meant: at most a third of its letters differ.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate.as_str()))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to add, remove or change (Levenshtein 1966).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, candidate) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *candidate);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

/// `"500ms"`, `"15s"`, `"10m"`, `"2h"`, `"7d"`, or several of them: `"1h30m"`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &rest[unit..];
    }
    Some(total)
}

/// The shortest of the forms that [`parse_duration`] reads.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
    ] {
        if millis >= size && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

/// `"4096"`, `"64KiB"`, `"16MiB"`, `"2GiB"`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(default)]
    struct Raw {
        interval: String,
        uplink: RawUplink,
        labels: BTreeMap<String, String>,
    }

    #[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
    #[serde(default)]
    struct RawUplink {
        address: String,
        port: u16,
    }

    impl Default for Raw {
        fn default() -> Self {
            Self {
                interval: "10s".into(),
                uplink: RawUplink::default(),
                labels: BTreeMap::new(),
            }
        }
    }

    fn faults(text: &str) -> Vec<String> {
        let (_, document) = Document::read::<Raw>(Path::new("agent.toml"), text, &["labels"]);
        match document.finish() {
            Ok(()) => Vec::new(),
            Err(Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn all_faults_come_at_once_with_their_places() {
        let text = "intervall = \"1s\"\n[uplink]\nadress = \"a\"\nport = \"x\"\n[labels]\nrole = \"web\"\n";
        assert_eq!(
            faults(text),
            [
                "agent.toml:1:1: unknown key intervall; did you mean interval?",
                "agent.toml:3:1: unknown key uplink.adress; did you mean address?",
                "agent.toml:4:1: uplink.port: expected integer, found string",
            ]
        );
    }

    #[test]
    fn a_key_like_no_other_gets_the_list() {
        assert_eq!(
            faults("[uplink]\nfrobnicate = 1\n"),
            ["agent.toml:2:1: unknown key uplink.frobnicate; known here: address, port"]
        );
    }

    #[test]
    fn broken_syntax_has_a_place() {
        let found = faults("interval = \"10s\"\nuplink = [\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("agent.toml:"), "{}", found[0]);
    }

    #[test]
    fn values_are_checked_where_they_stand() {
        let text = "# how often\ninterval = \"10 apples\"\n";
        let (raw, mut document) = Document::read::<Raw>(Path::new("a.toml"), text, &[]);
        let bounds = Duration::from_secs(1)..=Duration::from_secs(600);
        document.duration("interval", &raw.interval, bounds.clone());
        document.duration("interval", "11m", bounds);
        document.bytes("uplink.size", "64MB", 0..=1);
        let Faults(faults) = document.finish().expect_err("three faults");
        assert_eq!((faults[0].line, faults[0].column), (Some(2), Some(1)));
        assert!(faults[1].problem.contains("1s to 10m"), "{}", faults[1]);
        assert_eq!(faults.len(), 3);
    }

    #[test]
    fn spans_and_sizes() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(parse_duration("1h30m"), seconds(5400));
        assert_eq!(parse_duration("7d"), seconds(7 * 86_400));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        for wrong in ["", "10", "s", "-1s", "1.5s", "10 s", "99999999999999999d"] {
            assert_eq!(parse_duration(wrong), None, "{wrong:?}");
        }
        for text in ["1s", "90s", "10m", "3d", "1500ms"] {
            let duration = parse_duration(text).expect("reads");
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
        assert_eq!(parse_bytes("2GiB"), Some(2 << 30));
        assert_eq!(parse_bytes("4096"), Some(4096));
        assert_eq!(parse_bytes("4 KB"), None);
    }
}
