//! Reading configuration files so that every fault is reported at once, with file, line, column and key.
//!
//! A program lists its keys once, as a function that asks a [`Section`] for each of them: the value is parsed
//! where it stands, and keys nobody asked for are faults, with the key that was probably meant. Files of a
//! folder beside the main one are applied after it in the order of their names; what a later file sets
//! replaces what an earlier one set. What several keys must fulfil together is checked by the program after
//! all files, with [`Reader::fault`]. Nothing is guessed, and a fault never stops the search for others.
//!
//! The parsers at the end are those both programs need; a program has its own for what only it knows. They
//! answer what was expected, as the second half of the sentence `key: …`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::suggest;

/// Largest file that is read. A file of all keys with long lists has a few KiB.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1, where they are known.
    pub at: Option<(usize, usize)>,
    /// The key, what is wrong, and what to write, in one sentence.
    pub message: String,
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

/// Everything that is wrong with a configuration; at least one fault. Shown as one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Faults(pub Vec<Fault>);

/// Where a key was set: file, line, column.
type Place = (PathBuf, (usize, usize));

/// Goes through the files of one configuration and gathers what is wrong with them.
#[derive(Debug)]
pub struct Reader {
    /// The main file; faults of keys that no file sets are its own.
    file: PathBuf,
    /// All files that were read, in their order.
    read: Vec<PathBuf>,
    /// Dotted key to where it was set last.
    places: HashMap<String, Place>,
    faults: Vec<Fault>,
}

impl Reader {
    /// A reader of a configuration whose main file this is.
    #[must_use]
    pub fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            read: vec![file.to_owned()],
            places: HashMap::new(),
            faults: Vec::new(),
        }
    }

    /// Reads the main file, then each `*.toml` of the folder named `overlays` beside it. `keys` is called once
    /// for each file. That the main file is missing is a fault unless it is `optional`.
    pub fn files(
        &mut self,
        optional: bool,
        overlays: &str,
        mut keys: impl FnMut(&mut Section<'_, '_>),
    ) {
        let main = self.file.clone();
        match read(&main) {
            Ok(text) => self.text(&main, &text, &mut keys),
            Err(error) if error.kind() == io::ErrorKind::NotFound && optional => {}
            Err(error) => self.unreadable(&main, &error),
        }
        let folder = main.with_file_name(overlays);
        let overlays = overlays_in(&folder).unwrap_or_else(|error| {
            self.unreadable(&folder, &error);
            Vec::new()
        });
        for overlay in overlays {
            match read(&overlay) {
                Ok(text) => self.text(&overlay, &text, &mut keys),
                Err(error) => self.unreadable(&overlay, &error),
            }
        }
    }

    /// Reads a text that stands, or could stand, in `file`.
    pub fn text(&mut self, file: &Path, text: &str, keys: impl FnOnce(&mut Section<'_, '_>)) {
        self.read.push(file.to_owned());
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            self.faults.push(Fault {
                file: file.to_owned(),
                at: error.span().map(|span| position(text, span.start)),
                message: error.message().trim().to_owned(),
            });
        }
        let source = Source { file, text };
        let mut root = Section::new(source, String::new(), table.get_ref(), self);
        keys(&mut root);
        root.finish();
    }

    /// Notes what is wrong with a key in the light of others, at the place where it was set last.
    pub fn fault(&mut self, key: &str, problem: impl fmt::Display) {
        let (file, at) = match self.places.get(key) {
            Some((file, at)) => (file.clone(), Some(*at)),
            None => (self.file.clone(), None),
        };
        self.faults.push(Fault {
            file,
            at,
            message: format!("{key}: {problem}"),
        });
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All faults, if there are any, in the order of the files and of their lines.
    pub fn finish(mut self) -> Result<(), Faults> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let read = &self.read;
        self.faults.sort_by_key(|fault| {
            let file = read.iter().position(|file| *file == fault.file);
            (file.unwrap_or(read.len()), fault.at)
        });
        Err(Faults(self.faults))
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.faults.push(Fault {
            file: path.to_owned(),
            at: None,
            message: format!("cannot be read: {error}"),
        });
    }
}

/// What a table was read from.
#[derive(Debug, Clone, Copy)]
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

/// A table of a file while it is read: knows which keys it was asked for.
#[derive(Debug)]
pub struct Section<'a, 'i> {
    source: Source<'a>,
    /// Dotted name with a trailing dot; empty for the root.
    prefix: String,
    table: &'a DeTable<'i>,
    known: Vec<&'static str>,
    /// Every key is right here.
    takes_all: bool,
    /// Where in the text the table begins, for what is wrong with the whole of it.
    start: usize,
    reader: &'a mut Reader,
}

impl<'a, 'i> Section<'a, 'i> {
    fn new(
        source: Source<'a>,
        prefix: String,
        table: &'a DeTable<'i>,
        reader: &'a mut Reader,
    ) -> Self {
        Self {
            source,
            prefix,
            table,
            known: Vec::new(),
            takes_all: false,
            start: 0,
            reader,
        }
    }

    /// Sets `target` if the key is there and its value is right.
    pub fn value<T>(
        &mut self,
        key: &'static str,
        target: &mut T,
        parse: impl FnOnce(&DeValue<'i>) -> Result<T, String>,
    ) {
        let Some(value) = self.asked(key) else {
            return;
        };
        match parse(value.get_ref()) {
            Ok(value) => *target = value,
            Err(why) => self.fault(key, value.span().start, &why),
        }
    }

    /// Reads the table of this name, if there is one.
    pub fn section(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 'i>)) {
        let Some(value) = self.asked(key) else {
            return;
        };
        match value.get_ref() {
            DeValue::Table(table) => {
                let prefix = format!("{}{key}.", self.prefix);
                let mut section = Section::new(self.source, prefix, table, self.reader);
                read(&mut section);
                section.finish();
            }
            other => {
                let why = format!("expected a table, found {}", other.type_str());
                self.fault(key, value.span().start, &why);
            }
        }
    }

    /// Reads each table of a list (`[[key]]`). A table that says its `name` is called `key.name` in faults,
    /// another `key[1]`, counted from 1.
    pub fn tables(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'_, 'i>)) {
        let Some(value) = self.asked(key) else {
            return;
        };
        let Some(items) = value.get_ref().as_array() else {
            let why = format!(
                "expected tables, each under [[{key}]], found {}",
                value.get_ref().type_str()
            );
            self.fault(key, value.span().start, &why);
            return;
        };
        for (at, item) in items.iter().enumerate() {
            let DeValue::Table(table) = item.get_ref() else {
                let why = format!("expected a table, found {}", item.get_ref().type_str());
                self.fault(key, item.span().start, &why);
                continue;
            };
            let name = table
                .get("name")
                .and_then(|name| name.get_ref().as_str())
                .filter(|name| !name.is_empty());
            let prefix = match name {
                Some(name) => format!("{}{key}.{name}.", self.prefix),
                None => format!("{}{key}[{}].", self.prefix, at + 1),
            };
            let mut section = Section::new(self.source, prefix, table, self.reader);
            section.start = item.span().start;
            read(&mut section);
            section.finish();
        }
    }

    /// Notes what is wrong with a key of this table in the light of others: where it stands, or where the
    /// table begins if it is not there.
    pub fn complain(&mut self, key: &str, why: &str) {
        let found = self.table.get(key).map(|value| value.span().start);
        self.fault(key, found.unwrap_or(self.start), why);
    }

    /// Lets every key be, when it is not known which are right.
    pub fn any_key(&mut self) {
        self.takes_all = true;
    }

    /// Whether the key is set here.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Takes every key of this table: what people name themselves, such as labels.
    pub fn each<T>(
        &mut self,
        target: &mut BTreeMap<String, T>,
        parse: impl Fn(&str, &DeValue<'i>) -> Result<T, String>,
    ) {
        self.takes_all = true;
        for (key, value) in self.table {
            let name: &str = key.get_ref();
            match parse(name, value.get_ref()) {
                Ok(value) => {
                    target.insert(name.to_owned(), value);
                }
                Err(why) => self.fault(name, key.span().start, &why),
            }
        }
    }

    /// The value of a key, which is known from now on.
    fn asked(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.known.push(key);
        let value = self.table.get(key)?;
        let at = position(self.source.text, value.span().start);
        self.reader.places.insert(
            format!("{}{key}", self.prefix),
            (self.source.file.to_owned(), at),
        );
        Some(value)
    }

    fn fault(&mut self, key: &str, offset: usize, why: &str) {
        self.reader.faults.push(Fault {
            file: self.source.file.to_owned(),
            at: Some(position(self.source.text, offset)),
            message: format!("{}{key}: {why}", self.prefix),
        });
    }

    /// Reports the keys nobody asked for.
    fn finish(mut self) {
        if self.takes_all {
            return;
        }
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let meant = match suggestion(name, self.known.iter().copied()) {
                meant if meant.is_empty() => format!("; known here: {}", self.known.join(", ")),
                meant => meant,
            };
            let why = format!("there is no such key{meant}");
            self.fault(name, key.span().start, &why);
        }
    }
}

/// `; did you mean "x"?`, when one of the words is close: one slip, and one more for every four letters.
pub fn suggestion<'w>(given: &str, words: impl IntoIterator<Item = &'w str>) -> String {
    match suggest::nearest(given, words, 1 + given.chars().count() / 4) {
        Some(word) => format!("; did you mean {word:?}?"),
        None => String::new(),
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

/// The files of a folder that are read, in their order; none where there is no folder.
fn overlays_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // What begins with a dot is an editor's or a package manager's, half written or put aside.
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|end| end == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

// ---- values ------------------------------------------------------------------------------------------

/// A text.
///
/// # Errors
/// What was expected and found, as for all parsers here.
pub fn text<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("expected a text in quotes, found {}", value.type_str()))
}

/// A text to keep.
///
/// # Errors
/// As [`text`].
pub fn string(value: &DeValue<'_>) -> Result<String, String> {
    text(value).map(ToOwned::to_owned)
}

/// A list of texts.
///
/// # Errors
/// As [`text`].
pub fn texts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let items = value
        .as_array()
        .ok_or_else(|| format!("expected a list of texts, found {}", value.type_str()))?;
    items.iter().map(|item| string(item.get_ref())).collect()
}

/// `true` or `false`.
///
/// # Errors
/// As [`text`].
pub fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| format!("expected true or false, found {}", value.type_str()))
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A whole number within bounds.
///
/// # Errors
/// As [`text`].
pub fn whole(value: &DeValue<'_>, bounds: RangeInclusive<usize>) -> Result<usize, String> {
    integer(value)
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| bounds.contains(number))
        .ok_or_else(|| {
            let (least, most) = bounds.into_inner();
            format!("expected a whole number from {least} to {most}")
        })
}

/// A number above nothing, and at most `most`; written with or without a fraction.
///
/// # Errors
/// As [`text`].
pub fn positive(value: &DeValue<'_>, most: f64) -> Result<f64, String> {
    let digits = match value {
        DeValue::Float(number) => number.as_str(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
        _ => "",
    };
    digits
        .parse()
        .ok()
        .filter(|number| *number > 0.0 && *number <= most && f64::is_finite(*number))
        .ok_or_else(|| match most {
            f64::INFINITY => "expected a number above 0".to_owned(),
            most => format!("expected a number above 0 and at most {most}"),
        })
}

/// One of several words.
///
/// # Errors
/// As [`text`].
pub fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, String> {
    let given = text(value)?;
    let found = words.iter().find(|(word, _)| *word == given);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("expected one of {}, found {given:?}", all.join(", "))
    })
}

/// A folder that does not depend on where the program was started.
///
/// # Errors
/// As [`text`].
pub fn directory(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("expected an absolute path".into())
    }
}

/// `host:port`, the host in brackets if it is an IPv6 address.
///
/// # Errors
/// As [`text`].
pub fn address(value: &DeValue<'_>) -> Result<String, String> {
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

/// A span of time such as `"15s"` ([`parse_duration`]), within bounds.
///
/// # Errors
/// As [`text`].
pub fn duration(value: &DeValue<'_>, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let given = text(value)
        .map_err(|_| "expected a duration in quotes such as \"10s\" or \"1m\"".to_owned())?;
    let duration = parse_duration(given)
        .ok_or_else(|| format!("{given:?} is no duration; write for example \"10s\" or \"1m\""))?;
    if bounds.contains(&duration) {
        Ok(duration)
    } else {
        let (least, most) = bounds.into_inner();
        Err(format!(
            "{given:?} is not between {} and {}",
            show_duration(least),
            show_duration(most)
        ))
    }
}

/// A size such as `"64MiB"` ([`parse_bytes`]) or a number of bytes, within bounds.
///
/// # Errors
/// As [`text`].
pub fn bytes(value: &DeValue<'_>, bounds: RangeInclusive<u64>) -> Result<u64, String> {
    let given = match value {
        DeValue::String(text) => parse_bytes(text),
        other => integer(other),
    };
    given.filter(|given| bounds.contains(given)).ok_or_else(|| {
        let (least, most) = bounds.into_inner();
        format!(
            "expected a size from {:?} to {:?}, or a number of bytes",
            show_bytes(least),
            show_bytes(most)
        )
    })
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

/// Units of sizes, the largest first.
const SIZES: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// `"4096"`, `"64KiB"`, `"16MiB"`, `"2GiB"`, `"1TiB"`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        named => SIZES.iter().find(|(name, _)| *name == named)?.1,
    };
    number.checked_mul(unit)
}

/// The shortest of the forms that [`parse_bytes`] reads.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    for (unit, size) in SIZES {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Settings {
        interval: Duration,
        address: String,
        port: usize,
        ratio: f64,
        size: u64,
        labels: BTreeMap<String, String>,
    }

    impl Settings {
        fn keys(&mut self, root: &mut Section<'_, '_>) {
            root.value("interval", &mut self.interval, |value| {
                duration(value, Duration::from_secs(1)..=Duration::from_secs(600))
            });
            root.section("uplink", |uplink| {
                uplink.value("address", &mut self.address, address);
                uplink.value("port", &mut self.port, |value| whole(value, 1..=65_535));
            });
            root.value("ratio", &mut self.ratio, |value| positive(value, 1.0));
            root.value("size", &mut self.size, |value| bytes(value, 1024..=1 << 30));
            root.section("labels", |labels| {
                labels.each(&mut self.labels, |_, value| string(value));
            });
        }
    }

    fn read_text(text: &str) -> (Settings, Vec<String>) {
        let file = Path::new("a.toml");
        let (mut settings, mut reader) = (Settings::default(), Reader::new(file));
        reader.text(file, text, |root| settings.keys(root));
        let faults = reader.finish().err().map_or_else(Vec::new, |faults| {
            faults.0.iter().map(ToString::to_string).collect()
        });
        (settings, faults)
    }

    #[test]
    fn values_are_read() {
        let (settings, faults) = read_text(
            "interval = \"1m30s\"\nratio = 1\nsize = 1_024\nuplink = { address = \"a:1\", port = 0x50 }\nlabels.role = \"web\"\n",
        );
        assert_eq!(faults, [""; 0]);
        let expected = Settings {
            interval: Duration::from_secs(90),
            address: "a:1".into(),
            port: 80,
            ratio: 1.0,
            size: 1024,
            labels: BTreeMap::from([("role".into(), "web".into())]),
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn all_faults_come_at_once_with_their_places() {
        let (settings, faults) = read_text(
            "intervall = \"1s\"\ninterval = \"11m\"\nratio = nan\nsize = \"64MB\"\n[uplink]\nadress = \"a\"\nport = \"x\"\nfrobnicate = 1\n[labels]\nrole = 3\n",
        );
        assert_eq!(
            faults,
            [
                "a.toml:1:1: intervall: there is no such key; did you mean \"interval\"?",
                "a.toml:2:12: interval: \"11m\" is not between 1s and 10m",
                "a.toml:3:9: ratio: expected a number above 0 and at most 1",
                "a.toml:4:8: size: expected a size from \"1KiB\" to \"1GiB\", or a number of bytes",
                "a.toml:6:1: uplink.adress: there is no such key; did you mean \"address\"?",
                "a.toml:7:8: uplink.port: expected a whole number from 1 to 65535",
                "a.toml:8:1: uplink.frobnicate: there is no such key; known here: address, port",
                "a.toml:10:1: labels.role: expected a text in quotes, found integer",
            ]
        );
        assert_eq!(settings, Settings::default(), "nothing is guessed");
    }

    #[test]
    fn broken_syntax_is_placed_and_the_rest_is_read_too() {
        let (_, faults) = read_text("interval = \nintervall = \"1s\"\n");
        assert!(
            faults.len() >= 2 && faults[0].starts_with("a.toml:1:"),
            "{faults:?}"
        );
    }

    #[test]
    fn what_keys_must_fulfil_together_is_said_where_the_key_was_set_last() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("a.d")).expect("created");
        for (name, text) in [
            ("a.toml", "ratio = 0.1\nsize = \"1MiB\""),
            ("a.d/20.toml", "\nratio = 0.3"),
            ("a.d/10.toml", "ratio = 0.2\nlabels.b = \"2\""),
            ("a.d/.30.toml", "ratio = nonsense"),
            ("a.d/30.toml.bak", "nonsense"),
        ] {
            fs::write(path(name), text).expect("written");
        }
        let (mut settings, mut reader) = (Settings::default(), Reader::new(&path("a.toml")));
        reader.files(false, "a.d", |root| settings.keys(root));
        assert_eq!((settings.ratio, settings.size), (0.3, 1 << 20));
        assert_eq!(settings.labels.len(), 1);
        reader.fault("ratio", "is too much");
        reader.fault("interval", "is needed");
        let Faults(faults) = reader.finish().expect_err("two faults");
        assert_eq!((&faults[0].file, faults[0].at), (&path("a.toml"), None));
        assert_eq!(faults[0].message, "interval: is needed");
        assert_eq!(faults[1].file, path("a.d/20.toml"));
        assert_eq!(faults[1].at, Some((2, 9)));
        assert_eq!(faults.len(), 2);
    }

    #[test]
    fn a_missing_file_is_a_fault_unless_it_is_optional() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for (optional, expected) in [(true, 0), (false, 1)] {
            let mut reader = Reader::new(&folder.path().join("a.toml"));
            reader.files(optional, "a.d", |_| ());
            assert_eq!(reader.faults.len(), expected);
        }
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
        for (text, bytes) in [("2GiB", 2 << 30), ("4095MiB", 4095 << 20), ("4097", 4097)] {
            assert_eq!(parse_bytes(text), Some(bytes));
            assert_eq!(show_bytes(bytes), text);
        }
        assert_eq!(parse_bytes("8 MiB"), Some(8 << 20));
        for wrong in ["", "4 KB", "KiB", "-1", "99999999999TiB"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong:?}");
        }
    }
}
