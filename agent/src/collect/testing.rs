//! What the collectors' tests share: a host made of a few files, and a run of one collector on it.

use std::collections::BTreeMap;

use muster_proto::time::Timestamp;

use super::{CollectError, Collector, Outcome, Readings};
use crate::host::HostRoot;

/// A host in a temporary folder.
pub(super) struct Host {
    folder: tempfile::TempDir,
    root: HostRoot,
    readings: Readings,
}

impl Host {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = HostRoot::at(folder.path().join("root"));
        Self {
            folder,
            root,
            readings: Readings::default(),
        }
    }

    /// Writes a file below the host's root.
    pub(super) fn write(&mut self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.path().join("root").join(path);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        std::fs::write(path, content).expect("written");
    }

    /// Removes a file below the host's root.
    pub(super) fn remove(&mut self, path: &str) {
        std::fs::remove_file(self.folder.path().join("root").join(path)).expect("removed");
    }

    /// Makes a link below the host's root.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        let path = self.folder.path().join("root").join(path);
        std::fs::create_dir_all(path.parent().expect("below the folder")).expect("made");
        std::os::unix::fs::symlink(target, path).expect("linked");
    }

    /// Where its files are.
    pub(super) fn root(&self) -> HostRoot {
        self.root.clone()
    }

    pub(super) fn readings(&mut self) -> &mut Readings {
        &mut self.readings
    }

    pub(super) fn set_tick(&mut self, seconds: i64) {
        self.readings
            .set_tick(Timestamp::from_millis(seconds * 1000));
    }

    /// Runs the collector.
    pub(super) fn run(&mut self, collector: &mut dyn Collector) -> Result<Outcome, CollectError> {
        let root = self.root.clone();
        self.run_on(collector, &root)
    }

    /// Runs the collector as on the machine itself; only for one that reads no files.
    pub(super) fn run_live(
        &mut self,
        collector: &mut dyn Collector,
    ) -> Result<Outcome, CollectError> {
        self.run_on(collector, &HostRoot::at("/"))
    }

    fn run_on(
        &mut self,
        collector: &mut dyn Collector,
        root: &HostRoot,
    ) -> Result<Outcome, CollectError> {
        self.readings.begin(0);
        let outcome = collector.collect(root, &mut self.readings);
        match outcome {
            Ok(Outcome::Unchanged) => {}
            Ok(Outcome::Read) => self.readings.end(true),
            _ => self.readings.end(false),
        }
        outcome
    }

    /// Runs the collector, which must not fail; the values it has now.
    pub(super) fn collect(&mut self, collector: &mut dyn Collector) -> BTreeMap<String, f64> {
        self.run(collector).expect("collects");
        self.values()
    }

    /// Runs the collector; true if it fails and leaves no values.
    pub(super) fn fails(&mut self, collector: &mut dyn Collector) -> bool {
        self.run(collector).is_err() && self.values().is_empty()
    }

    /// All values there are, by name and labels as a scrape page shows them.
    pub(super) fn values(&self) -> BTreeMap<String, f64> {
        let table = self.readings.table();
        let mut values = BTreeMap::new();
        for (place, series) in table.series.iter().enumerate() {
            if !table.present[place] {
                continue;
            }
            let family = &table.families[series.family as usize];
            let labels = family.labels.iter().zip(&series.labels);
            let labels: Vec<String> = labels.map(|(k, v)| format!("{k}={v:?}")).collect();
            let name = if labels.is_empty() {
                family.name.clone()
            } else {
                format!("{}{{{}}}", family.name, labels.join(","))
            };
            values.insert(name, family.scale.value(table.raw[place]));
        }
        values
    }
}

/// A test that the collector survives garbage in its file: any bytes, and lines that are nearly right.
macro_rules! garbage {
    ($collector:expr, $path:expr, $lines:literal) => {
        proptest::proptest! {
            #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
            #[test]
            fn garbage_is_survived(
                bytes: Vec<u8>,
                lines in proptest::collection::vec($lines, 0..8),
            ) {
                let mut host = testing::Host::new();
                let mut collector = $collector;
                host.write($path, lines.concat());
                let _ = host.run(&mut collector);
                host.write($path, bytes);
                let _ = host.run(&mut collector);
            }
        }
    };
}

pub(super) use garbage;
