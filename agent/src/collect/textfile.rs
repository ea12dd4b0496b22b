//! Text files that scripts write for node_exporter (`*.prom`): backups, pending updates, SMART.
//!
//! Folders are looked at every half minute, and a file is read again only when its size or time has changed. A
//! bad file is named in a series, in the log and nowhere hides another's values: it has none until it is mended.
//! What two files tell about one series is told by the first of them, and the other is bad. A file that nobody
//! has written to for long is flagged: its values are shown all the same, because only its script knows how
//! often it runs.

use std::{
    collections::{BTreeMap, HashSet},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    time::Duration,
};

use muster_proto::catalog::{self, FamilyId};

use super::{
    About, CollectError, Collector, Outcome, Readings, TextfileConfig,
    promtext::{self, Sample},
    sysfs::{Files, Names, Stamp},
    text,
};
use crate::host::HostRoot;

/// Largest file that is read: 10,000 series, the most a host may have, with long labels.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Most files of all folders.
const MAX_FILES: usize = 256;

/// Names that files must not use: what the agent says about itself and its host.
const OWN_PREFIX: &str = "muster_";

static ABOUT: About = About {
    name: "textfile",
    every: Duration::from_secs(30),
    reads: "*.prom in /var/lib/prometheus/node-exporter and /var/lib/node_exporter/textfile_collector, or [collectors.textfile] folders",
    needs: "files that the agent's user may read",
    what: "metrics that scripts leave in text files",
};

/// See the module.
#[derive(Debug)]
pub struct Textfile {
    config: TextfileConfig,
    names: Names,
    files: Files,
    /// The files of the last round by path, as they were then.
    known: BTreeMap<Vec<u8>, Known>,
    /// What was said to be wrong with files.
    said: BTreeMap<Vec<u8>, String>,
    first: bool,
}

/// A file.
#[derive(Debug)]
struct Known {
    stamp: Stamp,
    stale: bool,
    /// Its samples, or what is wrong with it.
    content: Result<Vec<Sample>, Wrong>,
}

/// Why a file has no samples.
#[derive(Debug, Clone, PartialEq)]
enum Wrong {
    /// What it says: the same until it is written anew.
    Content(String),
    /// It could not be read. What mends that (another owner, other permissions, a disk that is back) changes neither
    /// its size nor its time, so it is tried again each time.
    Unreadable(String),
}

impl Wrong {
    fn why(&self) -> &str {
        match self {
            Self::Content(why) | Self::Unreadable(why) => why,
        }
    }
}

impl Known {
    /// Whether it stays what it is while its time and size do.
    fn is_settled(&self) -> bool {
        !matches!(self.content, Err(Wrong::Unreadable(_)))
    }
}

impl Textfile {
    /// Looks where the configuration says.
    #[must_use]
    pub fn new(config: &TextfileConfig) -> Self {
        Self {
            config: config.clone(),
            names: Names::default(),
            files: Files::default(),
            known: BTreeMap::new(),
            said: BTreeMap::new(),
            first: true,
        }
    }

    /// Reads what is new; whether anything is other than before, and whether a folder could not be read.
    fn look(&mut self, host: &HostRoot, now: i64) -> (bool, bool) {
        let mut before = std::mem::take(&mut self.known);
        let mut changed = false;
        let mut failed = false;
        for folder in &self.config.folders {
            let folder = folder.as_os_str().as_bytes();
            let folder = folder.strip_prefix(b"/").unwrap_or(folder);
            match self.names.list(host, folder) {
                Ok(_) => {}
                Err(error) => {
                    failed = true;
                    say(&mut self.said, folder, &error.to_string());
                    continue;
                }
            }
            for name in self.names.iter().filter(|name| name.ends_with(b".prom")) {
                let parts = [folder, b"/", name];
                let path = parts.concat();
                let Some(stamp) = self.files.stamp(host, &parts) else {
                    continue;
                };
                if self.known.len() >= MAX_FILES {
                    failed = true;
                    say(&mut self.said, folder, "it has more files than are read");
                    break;
                }
                let stale = now.saturating_sub(stamp.seconds()) > self.config.stale_after_seconds();
                let known = match before.remove(&path) {
                    Some(known) if known.stamp == stamp && known.is_settled() => {
                        changed |= known.stale != stale;
                        Known { stale, ..known }
                    }
                    known => {
                        let content = read(&mut self.files, host, &parts, &stamp);
                        let is_same = |known: Known| {
                            (known.stamp, known.stale) == (stamp, stale) && known.content == content
                        };
                        changed |= !known.is_some_and(is_same);
                        Known {
                            stamp,
                            stale,
                            content,
                        }
                    }
                };
                self.known.insert(path, known);
            }
        }
        (changed || !before.is_empty(), failed)
    }

    fn put(&mut self, failed: bool, out: &mut Readings) {
        let mut met: HashSet<(&str, Vec<&(String, String)>)> = HashSet::new();
        let mut any_failed = failed;
        let mut wrong: Vec<(Vec<u8>, String)> = Vec::new();
        for (path, known) in &self.known {
            let outcome = match &known.content {
                Ok(samples) => check(samples, &met).and_then(|()| open(samples, out)),
                Err(wrong) => Err(wrong.why().to_owned()),
            };
            if let (Ok(samples), Ok(_)) = (&known.content, &outcome) {
                met.extend(samples.iter().map(identity));
            }
            if let Err(why) = &outcome {
                any_failed = true;
                wrong.push((path.clone(), why.clone()));
            }
        }
        // All families are open now: no label is added to one behind its first value.
        for (path, known) in &self.known {
            let is_wrong = wrong.iter().any(|(bad, _)| bad == path);
            if !is_wrong && let Ok(samples) = &known.content {
                put_samples(samples, out);
            }
            let file = format!("/{}", text::lossy(path));
            out.int(catalog::TEXTFILE_ERROR, &[&file], i64::from(is_wrong));
            out.int(catalog::TEXTFILE_STALE, &[&file], i64::from(known.stale));
            if !is_wrong {
                out.int(catalog::TEXTFILE_MTIME, &[&file], known.stamp.millis);
            }
        }
        out.int(catalog::TEXTFILE_SCRAPE_ERROR, &[], i64::from(any_failed));
        self.said
            .retain(|path, _| failed || wrong.iter().any(|(bad, _)| bad == path));
        for (path, why) in wrong {
            say(&mut self.said, &path, &why);
        }
    }
}

impl Collector for Textfile {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let now = out.tick().as_millis() / 1000;
        let (changed, failed) = self.look(host, now);
        if !changed && !failed && !self.first {
            return Ok(Outcome::Unchanged);
        }
        // A folder that cannot be read is looked at anew, and so is what it had.
        self.first = failed;
        self.put(failed, out);
        Ok(Outcome::Read)
    }
}

/// Says once what is wrong with a file or folder.
fn say(said: &mut BTreeMap<Vec<u8>, String>, path: &[u8], why: &str) {
    if said.get(path).is_none_or(|before| before != why) {
        let file = format!("/{}", text::lossy(path));
        tracing::warn!(file, why, "text file is left out until it is mended");
        said.insert(path.to_owned(), why.to_owned());
    }
}

fn read(
    files: &mut Files,
    host: &HostRoot,
    parts: &[&[u8]],
    stamp: &Stamp,
) -> Result<Vec<Sample>, Wrong> {
    if stamp.bytes > MAX_FILE_BYTES {
        let bytes = stamp.bytes;
        return Err(Wrong::Content(format!(
            "it has {bytes} bytes, at most {MAX_FILE_BYTES} are read"
        )));
    }
    let path = parts.concat();
    let path = Path::new(std::ffi::OsStr::from_bytes(&path));
    files.note_time(host, parts, stamp);
    let bytes = host.read(path);
    let bytes = bytes.map_err(|error| Wrong::Unreadable(super::chain(&error)))?;
    promtext::parse(&bytes).map_err(|error| Wrong::Content(error.to_string()))
}

/// What tells a series from others.
fn identity(sample: &Sample) -> (&str, Vec<&(String, String)>) {
    let mut labels: Vec<_> = sample.labels.iter().collect();
    labels.sort_unstable();
    (&sample.name, labels)
}

/// Whether no series is there twice, in this file or in those before.
fn check(samples: &[Sample], met: &HashSet<(&str, Vec<&(String, String)>)>) -> Result<(), String> {
    let mut own = HashSet::new();
    for sample in samples {
        let identity = identity(sample);
        let name = &sample.name;
        if met.contains(&identity) {
            return Err(format!("{name}: a file before it has the same series"));
        }
        if !own.insert(identity) {
            return Err(format!("{name}: it has the same series twice"));
        }
    }
    Ok(())
}

/// Opens the families of a file.
fn open(samples: &[Sample], out: &mut Readings) -> Result<(), String> {
    for sample in samples {
        let labels: Vec<&str> = sample
            .labels
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let name = &sample.name;
        let taken = name.starts_with(OWN_PREFIX);
        if taken || out.open_family(name, sample.kind, &labels).is_none() {
            return Err(format!(
                "{name}: the agent has this metric itself, or there is no room for one more"
            ));
        }
    }
    Ok(())
}

fn put_samples(samples: &[Sample], out: &mut Readings) {
    let mut names: BTreeMap<&str, Option<(FamilyId, Vec<String>)>> = BTreeMap::new();
    for sample in samples {
        let family = names
            .entry(&sample.name)
            .or_insert_with(|| find(&sample.name, out));
        let Some((family, order)) = family else {
            continue;
        };
        let value_of = |label: &String| {
            let known = sample.labels.iter().find(|(name, _)| name == label);
            known.map_or("", |(_, value)| value.as_str())
        };
        let labels: Vec<&str> = order.iter().map(value_of).collect();
        if out.admits_object(1) {
            out.float(*family, &labels, sample.value);
        }
    }
}

/// A family and the order of its labels.
fn find(name: &str, out: &Readings) -> Option<(FamilyId, Vec<String>)> {
    let families = &out.table().families;
    let at = families.iter().position(|family| family.name == name)?;
    Some((
        FamilyId(u32::try_from(at).ok()?),
        families[at].labels.clone(),
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    const FOLDER: &str = "var/lib/prometheus/node-exporter";

    fn textfile() -> Textfile {
        Textfile::new(&TextfileConfig::default())
    }

    fn write(host: &mut testing::Host, name: &str, content: &str) {
        host.write(&format!("{FOLDER}/{name}"), content);
    }

    #[test]
    fn good_files_are_shown_and_bad_ones_named() {
        let mut host = testing::Host::new();
        let mut textfile = textfile();
        let values = host.collect(&mut textfile);
        assert_eq!(values.len(), 1, "no folder");
        assert_eq!(values["node_textfile_scrape_error"], 0.0);
        write(&mut host, "a.prom", "# TYPE a gauge\na 1\nb{x=\"1\"} 2\n");
        write(&mut host, "b.prom", "b{y=\"2\"} 3\nb{x=\"2\",y=\"2\"} 4\n");
        write(&mut host, "bad.prom", "c 1\nc{\n");
        write(&mut host, "half.prom.tmp", "d 1\n");
        write(&mut host, "own.prom", "node_load1 1\n");
        write(&mut host, "twice.prom", "e 1\na 2\n");
        let values = host.collect(&mut textfile);
        assert_eq!(values["a"], 1.0);
        assert_eq!(values[r#"b{x="1",y=""}"#], 2.0);
        assert_eq!(values[r#"b{x="",y="2"}"#], 3.0);
        assert_eq!(values[r#"b{x="2",y="2"}"#], 4.0);
        assert_eq!(values["node_textfile_scrape_error"], 1.0);
        let bad = |name: &str| {
            values[&format!("muster_host_textfile_error{{file=\"/{FOLDER}/{name}\"}}")]
        };
        let all = ["a.prom", "b.prom", "bad.prom", "own.prom", "twice.prom"].map(bad);
        assert_eq!(all, [0.0, 0.0, 1.0, 1.0, 1.0]);
        assert!(
            !values.contains_key("c") && !values.contains_key("e") && !values.contains_key("d")
        );
        let mtimes = values
            .keys()
            .filter(|key| key.starts_with("node_textfile_mtime"));
        assert_eq!(mtimes.count(), 2);
        assert_eq!(textfile.said.len(), 3, "{:?}", textfile.said);
        assert_eq!(host.run(&mut textfile).ok(), Some(Outcome::Unchanged));
        // Mended, and another goes.
        write(&mut host, "bad.prom", "c 11\n");
        host.remove(&format!("{FOLDER}/a.prom"));
        let values = host.collect(&mut textfile);
        assert_eq!((values["c"], values["a"]), (11.0, 2.0));
        assert_eq!(textfile.said.len(), 1);
    }

    #[test]
    fn a_file_that_could_not_be_read_is_tried_again_though_it_has_not_changed() {
        let mut host = testing::Host::new();
        write(&mut host, "a.prom", "a 1\n");
        let mut textfile = textfile();
        host.collect(&mut textfile);
        // As a mode that forbids it leaves it; root, as which tests may run, reads any.
        for known in textfile.known.values_mut() {
            known.content = Err(Wrong::Unreadable("permission denied".into()));
        }
        assert_eq!(host.collect(&mut textfile)["a"], 1.0);
        assert_eq!(host.run(&mut textfile).ok(), Some(Outcome::Unchanged));
    }

    #[test]
    fn a_file_that_nobody_writes_to_is_flagged() {
        let mut host = testing::Host::new();
        write(&mut host, "a.prom", "a 1\n");
        let mut textfile = textfile();
        let stale = format!("muster_host_textfile_stale{{file=\"/{FOLDER}/a.prom\"}}");
        host.set_tick(0);
        assert_eq!(host.collect(&mut textfile)[&stale], 0.0);
        // Far behind any clock this runs on.
        host.set_tick(10_000_000_000);
        let values = host.collect(&mut textfile);
        assert_eq!((values[&stale], values["a"]), (1.0, 1.0));
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let mut host = testing::Host::new();
        write(&mut host, "a.prom", &"a 1\n".repeat(300_000));
        let values = host.collect(&mut textfile());
        assert_eq!(values["node_textfile_scrape_error"], 1.0);
        assert!(!values.contains_key("a"));
    }

    testing::garbage!(
        textfile(),
        "var/lib/prometheus/node-exporter/a.prom",
        "(# TYPE a gauge|a)(\\{[a-z=\",]{0,6}\\})? [0-9x]{0,4}\n"
    );
}
