//! `/sys/class/powercap`: energy that parts of the processors have used, in microjoules.
//!
//! Since Linux 5.10 only root may read the counters (CVE-2020-8694); then there are none.

use std::{collections::HashMap, time::Duration};

use muster_proto::series::{Kind, Scale};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/powercap/";
const ZONE: &[u8] = b"intel-rapl:";

static ABOUT: About = About {
    name: "rapl",
    every: Duration::from_secs(10),
    reads: "/sys/class/powercap",
    needs: "root: kernels since 5.10 refuse it to all others",
    what: "energy used by processors and memory",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Rapl {
    names: Names,
    files: Files,
}

impl Collector for Rapl {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.names.list(host, CLASS)?;
        let mut outcome = Outcome::NoData;
        // Zones of one name are counted where the name has no number of its own.
        let mut met: HashMap<String, u64> = HashMap::new();
        for zone in self.names.iter().filter(|name| name.starts_with(ZONE)) {
            let Some(name) = self.files.word(host, &[CLASS, zone, b"/name"]) else {
                continue;
            };
            let (name, number) = split(&text::lossy(name));
            let count = met.entry(name.clone()).or_insert(0);
            let index = number.unwrap_or(*count).to_string();
            *count += 1;
            let Some(energy) = self.files.unsigned(host, &[CLASS, zone, b"/energy_uj"]) else {
                continue;
            };
            let full = format!("node_rapl_{name}_joules_total");
            let labels = ["index", "path"];
            let Some(family) = out.dynamic_family(&full, Kind::Counter, Scale::Micro, &labels)
            else {
                continue;
            };
            let path = format!("/sys/class/powercap/{}", text::lossy(zone));
            if out.admits_object(1) {
                out.unsigned(family, &[&index, &path], energy);
                outcome = Outcome::Read;
            }
        }
        Ok(outcome)
    }
}

/// `package-0` is package 0, `dram` has no number. What may not stand in a metric's name becomes an underscore.
fn split(name: &str) -> (String, Option<u64>) {
    let (name, number) = match name.rsplit_once('-') {
        Some((name, number)) if text::unsigned(number.as_bytes()).is_some() => {
            (name, text::unsigned(number.as_bytes()))
        }
        _ => (name, None),
    };
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    (name.chars().map(legal).collect(), number)
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn zones_are_named_and_counted() {
        let mut host = testing::Host::new();
        let mut rapl = Rapl::default();
        assert_eq!(host.run(&mut rapl).ok(), Some(Outcome::NoData));
        for (zone, name, energy) in [
            ("intel-rapl:0", "package-0", "240422366267"),
            ("intel-rapl:0:0", "core", "118821284256"),
            ("intel-rapl:1", "package-10", "1500000"),
            ("intel-rapl:1:0", "core", "2500000"),
        ] {
            host.write(
                &format!("sys/class/powercap/{zone}/name"),
                format!("{name}\n"),
            );
            host.write(
                &format!("sys/class/powercap/{zone}/energy_uj"),
                format!("{energy}\n"),
            );
        }
        host.write("sys/class/powercap/intel-rapl:2/name", "package-2\n");
        let values = host.collect(&mut rapl);
        let of = |name: &str, index: u8, path: &str| {
            values[&format!(
                "node_rapl_{name}_joules_total{{index=\"{index}\",path=\"/sys/class/powercap/{path}\"}}"
            )]
        };
        assert_eq!(of("package", 0, "intel-rapl:0"), 240_422.366_267);
        assert_eq!(of("package", 10, "intel-rapl:1"), 1.5);
        assert_eq!(of("core", 1, "intel-rapl:1:0"), 2.5);
        assert_eq!(values.len(), 4);
    }

    testing::garbage!(
        Rapl::default(),
        "sys/class/powercap/intel-rapl:0/name",
        "[a-z0-9-]{0,9}\n"
    );
}
