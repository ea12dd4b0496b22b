//! What the processors are, which CPUs are in use or set apart, and how often heat made them slow down.
//!
//! From `/proc/cpuinfo` and `/sys/devices/system/cpu`. What the processor is changes at boot only, so its text
//! is read once a minute; ARM kernels print neither vendor nor model there.

use std::{collections::BTreeMap, time::Duration};

use muster_proto::catalog;

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

const CPUINFO: &str = "proc/cpuinfo";
const CPUS: &[u8] = b"sys/devices/system/cpu/";
const ISOLATED: &[u8] = b"isolated";

/// Lines of `/proc/cpuinfo` that become labels of `node_cpu_info`, in the order of its labels.
const KEYS: [&[u8]; 10] = [
    b"physical id",
    b"core id",
    b"processor",
    b"vendor_id",
    b"cpu family",
    b"model",
    b"model name",
    b"microcode",
    b"stepping",
    b"cache size",
];
const PROCESSOR: usize = 2;

/// Info, online, isolated, and its core's throttles.
const SERIES_PER_CPU: usize = 4;

static ABOUT: About = About {
    name: "cpuinfo",
    every: Duration::from_secs(60),
    reads: "/proc/cpuinfo, /sys/devices/system/cpu",
    needs: "",
    what: "make and model of each CPU, CPUs offline or isolated, thermal throttling",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Cpuinfo {
    names: Names,
    files: Files,
}

impl Collector for Cpuinfo {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        // Containers may hide it; the rest is known all the same.
        let cpuinfo = match self.files.read(host, &[CPUINFO.as_bytes()]) {
            Ok(bytes) => bytes,
            Err(error) if error.is_absent() => &[],
            Err(error) => return Err(error.into()),
        };
        for processor in processors(cpuinfo) {
            if !processor[PROCESSOR].is_empty() && out.admits_object(SERIES_PER_CPU) {
                let labels = processor.each_ref().map(|label| &**label);
                out.int(catalog::CPU_INFO, &labels, 1);
            }
        }
        self.put_states(host, out)?;
        Ok(Outcome::Read)
    }
}

impl Cpuinfo {
    fn put_states(&mut self, host: &HostRoot, out: &mut Readings) -> Result<(), CollectError> {
        let isolated = self.files.word(host, &[CPUS, ISOLATED]);
        let isolated = Ranges::parse(isolated.unwrap_or_default());
        self.names.list(host, CPUS)?;
        let mut cores = BTreeMap::new();
        let mut packages = BTreeMap::new();
        for name in self.names.iter() {
            let Some(number) = numbered(name, b"cpu") else {
                continue;
            };
            let Some(cpu) = text::unsigned(number) else {
                continue;
            };
            if !out.admits_object(SERIES_PER_CPU) {
                continue;
            }
            let label = text::lossy(number);
            if isolated.contains(cpu) {
                out.int(catalog::CPU_ISOLATED, &[&label], 1);
            }
            let files = &mut self.files;
            // The first CPU usually cannot be switched off and has no such file.
            if let Some(online) = files.unsigned(host, &[CPUS, name, b"/online"]) {
                out.unsigned(catalog::CPU_ONLINE, &[&label], online);
            }
            let mut number = |file: &[u8]| files.unsigned(host, &[CPUS, name, file]);
            let Some(throttles) = number(b"/thermal_throttle/core_throttle_count") else {
                continue;
            };
            let package = number(b"/topology/physical_package_id").unwrap_or(0);
            let core = number(b"/topology/core_id").unwrap_or(0);
            // Both CPUs of a core count the same.
            cores.insert((package, core), throttles);
            if let Some(throttles) = number(b"/thermal_throttle/package_throttle_count") {
                packages.insert(package, throttles);
            }
        }
        for ((package, core), throttles) in cores {
            let labels = [core.to_string(), package.to_string()];
            let labels = labels.each_ref().map(String::as_str);
            out.unsigned(catalog::CPU_CORE_THROTTLES, &labels, throttles);
        }
        for (package, throttles) in packages {
            let package = package.to_string();
            out.unsigned(catalog::CPU_PACKAGE_THROTTLES, &[&package], throttles);
        }
        Ok(())
    }
}

/// The labels of each processor: blocks of `key : value`, each begun by `processor`.
fn processors(cpuinfo: &[u8]) -> Vec<[String; KEYS.len()]> {
    let mut all: Vec<[String; KEYS.len()]> = Vec::new();
    for line in text::lines(cpuinfo) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            continue;
        };
        let key = line[..colon].trim_ascii();
        let Some(at) = KEYS.iter().position(|known| *known == key) else {
            continue;
        };
        if at == PROCESSOR {
            all.push(Default::default());
        }
        if let Some(processor) = all.last_mut() {
            processor[at] = text::lossy(line[colon + 1..].trim_ascii()).into_owned();
        }
    }
    all
}

/// A list of CPUs as the kernel writes it: `1,4-7`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn parse(list: &[u8]) -> Self {
        let range = |range: &[u8]| {
            let mut ends = range.split(|&byte| byte == b'-');
            let first = text::unsigned(ends.next()?)?;
            let last = match ends.next() {
                Some(last) => text::unsigned(last)?,
                None => first,
            };
            Some((first, last))
        };
        Self(list.split(|&byte| byte == b',').filter_map(range).collect())
    }

    fn contains(&self, cpu: u64) -> bool {
        self.0
            .iter()
            .any(|&(first, last)| (first..=last).contains(&cpu))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn processors_are_told_and_cores_counted_once() {
        let mut host = testing::Host::new();
        assert!(host.collect(&mut Cpuinfo::default()).is_empty());
        host.write(
            CPUINFO,
            "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 94\nmodel name\t: A  B @ 2.6GHz\n\
             flags\t: fpu vme\n\nprocessor\t: 17\nmicrocode\t: 0xc6\n",
        );
        let base = "sys/devices/system/cpu";
        for cpu in ["cpu0", "cpu17"] {
            host.write(
                &format!("{base}/{cpu}/thermal_throttle/core_throttle_count"),
                "5\n",
            );
            host.write(
                &format!("{base}/{cpu}/thermal_throttle/package_throttle_count"),
                "30\n",
            );
            host.write(&format!("{base}/{cpu}/topology/physical_package_id"), "0\n");
            host.write(&format!("{base}/{cpu}/topology/core_id"), "8\n");
        }
        host.write(&format!("{base}/cpu17/online"), "1\n");
        host.write(&format!("{base}/isolated"), "9,16-31\n");
        let values = host.collect(&mut Cpuinfo::default());
        assert_eq!(
            values[r#"node_cpu_core_throttles_total{core="8",package="0"}"#],
            5.0
        );
        assert_eq!(
            values[r#"node_cpu_package_throttles_total{package="0"}"#],
            30.0
        );
        assert_eq!(values[r#"node_cpu_online{cpu="17"}"#], 1.0);
        assert_eq!(values[r#"node_cpu_isolated{cpu="17"}"#], 1.0);
        let models = values
            .keys()
            .filter(|key| key.contains(r#"model_name="A  B @ 2.6GHz""#));
        assert_eq!((models.count(), values.len()), (1, 6));
    }

    testing::garbage!(
        Cpuinfo::default(),
        CPUINFO,
        "(processor|model|x)[\t ]{0,2}:? ?[0-9a-z]{0,4}\n"
    );
}
