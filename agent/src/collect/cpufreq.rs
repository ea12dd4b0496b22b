//! `/sys/devices/system/cpu/cpu*/cpufreq`: the frequency of each CPU, and who chooses it. Kernels print kHz.

use std::time::Duration;

use muster_proto::{
    catalog::{self, FamilyId},
    time::Timestamp,
};

use super::{
    About, CollectError, Collector, LOOK_FOR_ABSENT, Outcome, Readings,
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

const CPUS: &[u8] = b"sys/devices/system/cpu/";

const FREQUENCIES: [(&[u8], FamilyId); 6] = [
    (b"/cpufreq/cpuinfo_cur_freq", catalog::CPU_FREQUENCY),
    (b"/cpufreq/cpuinfo_min_freq", catalog::CPU_FREQUENCY_MIN),
    (b"/cpufreq/cpuinfo_max_freq", catalog::CPU_FREQUENCY_MAX),
    (b"/cpufreq/scaling_cur_freq", catalog::CPU_SCALING_FREQUENCY),
    (
        b"/cpufreq/scaling_min_freq",
        catalog::CPU_SCALING_FREQUENCY_MIN,
    ),
    (
        b"/cpufreq/scaling_max_freq",
        catalog::CPU_SCALING_FREQUENCY_MAX,
    ),
];
const GOVERNOR: &[u8] = b"/cpufreq/scaling_governor";
const GOVERNORS: &[u8] = b"/cpufreq/scaling_available_governors";

/// Most governors: kernels have six.
const MAX_GOVERNORS: usize = 10;

static ABOUT: About = About {
    name: "cpufreq",
    every: Duration::from_secs(10),
    reads: "/sys/devices/system/cpu/cpu*/cpufreq",
    needs: "",
    what: "frequency of each CPU and its governor",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Cpufreq {
    names: Names,
    files: Files,
    governors: Files,
    /// When it was found that no CPU tells of its frequency.
    none_at: Option<Timestamp>,
}

impl Collector for Cpufreq {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if self.none_at.is_some() && !super::is_due(self.none_at, LOOK_FOR_ABSENT, out.tick()) {
            return Ok(Outcome::Unchanged);
        }
        self.none_at = None;
        self.names.list(host, CPUS)?;
        let mut found = false;
        for name in self.names.iter() {
            let Some(number) = numbered(name, b"cpu") else {
                continue;
            };
            // Most virtual machines have no such folder: one look, not nine.
            if !self.files.exists(host, &[CPUS, name, b"/cpufreq"]) {
                continue;
            }
            found = true;
            if !out.admits_detail(FREQUENCIES.len() + MAX_GOVERNORS) {
                continue;
            }
            let cpu = text::lossy(number);
            for (file, family) in FREQUENCIES {
                if let Some(khz) = self.files.unsigned(host, &[CPUS, name, file]) {
                    out.unsigned(family, &[&cpu], khz.saturating_mul(1000));
                }
            }
            let chosen = self.files.word(host, &[CPUS, name, GOVERNOR]);
            let all = self.governors.word(host, &[CPUS, name, GOVERNORS]);
            for governor in text::fields(all.unwrap_or_default()).take(MAX_GOVERNORS) {
                let is_chosen = i64::from(Some(governor) == chosen);
                let labels = [&*cpu, &text::lossy(governor)];
                out.int(catalog::CPU_SCALING_GOVERNOR, &labels, is_chosen);
            }
        }
        self.none_at = (!found).then(|| out.tick());
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn frequencies_are_hertz() {
        let mut host = testing::Host::new();
        assert!(host.collect(&mut Cpufreq::default()).is_empty());
        let base = "sys/devices/system/cpu";
        host.write(
            &format!("{base}/cpu3/cpufreq/scaling_cur_freq"),
            "2400000\n",
        );
        host.write(
            &format!("{base}/cpu3/cpufreq/scaling_governor"),
            "powersave\n",
        );
        let governors = format!("{base}/cpu3/cpufreq/scaling_available_governors");
        host.write(&governors, "performance powersave\n");
        host.write(&format!("{base}/cpufreq/x"), "1\n");
        let values = host.collect(&mut Cpufreq::default());
        assert_eq!(
            values[r#"node_cpu_scaling_frequency_hertz{cpu="3"}"#],
            2.4e9
        );
        let governor = |name: &str| {
            values[&format!("node_cpu_scaling_governor{{cpu=\"3\",governor={name:?}}}")]
        };
        assert_eq!((governor("performance"), governor("powersave")), (0.0, 1.0));
        assert_eq!(values.len(), 3);
    }

    testing::garbage!(
        Cpufreq::default(),
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
        "[0-9x-]{0,22}\n"
    );
}
