//! `/sys/fs/cgroup`: memory and processor time of services, from the cgroups that systemd puts them into.
//!
//! systemd names a cgroup after its unit, so nobody has to be asked: services below slices are found by their
//! names. With cgroup v2 memory is `memory.current` and time `cpu.stat`; with v1, and where both are mounted
//! (hybrid), `memory.usage_in_bytes` and `cpuacct.usage` of the controllers' own trees, which have a unit only if
//! its accounting is on. Both numbers include all that runs below a unit, as `systemctl status` has it.
//! What a user's own manager runs counts for `user@….service`. Which services are told is what the configuration
//! says of units. With a thousand of them they are asked less often.

use std::time::Duration;

use muster_proto::{catalog, time::Timestamp};

use super::{
    About, CollectError, Collector, Outcome, Readings, SystemdConfig, glob,
    processes::{pause, thread_cpu},
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

/// There with v2 only: the controllers of the whole tree.
const CONTROLLERS: &[u8] = b"sys/fs/cgroup/cgroup.controllers";

/// Where the units are: the one tree of v2, and systemd's own of v1.
const UNIFIED: &[u8] = b"sys/fs/cgroup";
const NAMED: &[u8] = b"sys/fs/cgroup/systemd";

/// The trees of the controllers of v1. `cpuacct` is a link to where it is mounted, with `cpu`.
const MEMORY: &[u8] = b"sys/fs/cgroup/memory";
const CPUACCT: &[u8] = b"sys/fs/cgroup/cpuacct";

/// Slices below slices that are looked into: system-a-b.slice is in system-a.slice in system.slice.
const MAX_DEPTH: usize = 4;

/// Most slices that are looked into: one a user who is logged in, and a few.
const MAX_SLICES: usize = 1_000;

/// Series of one service.
const SERIES: usize = 2;

static ABOUT: About = About {
    name: "unit_usage",
    every: Duration::from_secs(30),
    reads: "/sys/fs/cgroup: memory.current and cpu.stat of services, or memory and cpuacct of cgroup v1",
    needs: "systemd",
    what: "memory and processor time of each service",
};

/// See the module.
#[derive(Debug)]
pub struct UnitUsage {
    config: SystemdConfig,
    names: Names,
    files: Files,
    /// Slices to look into: path below the tree, and how deep it is.
    slices: Vec<(Vec<u8>, usize)>,
    /// Services by their paths below the tree, each beginning with a slash.
    services: Vec<Vec<u8>>,
    /// When they were asked last, if that went well, and how much of a CPU's time it took.
    asked: Option<(Timestamp, Duration)>,
}

/// Which kind of tree there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl UnitUsage {
    /// Services that these patterns name, and as many.
    #[must_use]
    pub fn new(config: &SystemdConfig) -> Self {
        Self {
            config: config.clone(),
            names: Names::default(),
            files: Files::default(),
            slices: Vec::new(),
            services: Vec::new(),
            asked: None,
        }
    }

    fn version(&mut self, host: &HostRoot) -> Option<Version> {
        if self.files.exists(host, &[CONTROLLERS]) {
            Some(Version::Two)
        } else if self.files.exists(host, &[NAMED]) {
            Some(Version::One)
        } else {
            None
        }
    }

    /// Finds the services.
    fn find(&mut self, host: &HostRoot, tree: &[u8]) -> Result<(), CollectError> {
        self.services.clear();
        self.slices.clear();
        self.slices.push((Vec::new(), 0));
        let mut looked_into = 0;
        while let Some((slice, depth)) = self.slices.pop() {
            looked_into += 1;
            // One that ended meanwhile has nothing.
            if !self.names.list(host, &[tree, slice.as_slice()].concat())? {
                continue;
            }
            for name in self.names.iter() {
                let room = self.slices.len() + looked_into < MAX_SLICES;
                if name.ends_with(b".slice") && depth < MAX_DEPTH && room {
                    self.slices
                        .push(([slice.as_slice(), name].join(&b'/'), depth + 1));
                } else if name.ends_with(b".service")
                    && self.services.len() < self.config.max_units
                    && glob::any(&self.config.include, name)
                    && !glob::any(&self.config.exclude, name)
                {
                    self.services.push([slice.as_slice(), name].join(&b'/'));
                }
            }
        }
        // The same services in the same order let series be found where they were.
        self.services.sort_unstable();
        Ok(())
    }
}

impl Version {
    fn memory(self, files: &mut Files, host: &HostRoot, service: &[u8]) -> Option<u64> {
        match self {
            Self::Two => files.unsigned(host, &[UNIFIED, service, b"/memory.current"]),
            Self::One => files.unsigned(host, &[MEMORY, service, b"/memory.usage_in_bytes"]),
        }
    }

    /// In microseconds.
    fn cpu(self, files: &mut Files, host: &HostRoot, service: &[u8]) -> Option<u64> {
        match self {
            Self::Two => {
                let stat = files
                    .read(host, &[UNIFIED, service, b"/cpu.stat"])
                    .unwrap_or_default();
                text::lines(stat).find_map(|line| {
                    let number = line.strip_prefix(b"usage_usec ")?;
                    text::unsigned(number.trim_ascii())
                })
            }
            Self::One => {
                let nanos = files.unsigned(host, &[CPUACCT, service, b"/cpuacct.usage"])?;
                Some(nanos / 1_000)
            }
        }
    }
}

impl Collector for UnitUsage {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        // A capture leaves units out: their names say too much.
        if host.recorder().is_some() {
            return Ok(Outcome::NoData);
        }
        if let Some((at, took)) = self.asked
            && !super::is_due(Some(at), pause(took), out.tick())
        {
            return Ok(Outcome::Unchanged);
        }
        self.asked = None;
        let Some(version) = self.version(host) else {
            return Ok(Outcome::NoData);
        };
        let began = thread_cpu();
        let tree = match version {
            Version::Two => UNIFIED,
            Version::One => NAMED,
        };
        self.find(host, tree)?;
        let mut any = false;
        for service in &self.services {
            let memory = version.memory(&mut self.files, host, service);
            let cpu = version.cpu(&mut self.files, host, service);
            // Without accounting there is nothing to tell; one that ended meanwhile has nothing either.
            if (memory.is_none() && cpu.is_none()) || !out.admits_detail(SERIES) {
                continue;
            }
            any = true;
            let name = service.rsplit(|&byte| byte == b'/').next();
            let name = text::lossy(name.unwrap_or_default());
            if let Some(bytes) = memory {
                out.unsigned(catalog::SYSTEMD_UNIT_MEMORY, &[&name], bytes);
            }
            if let Some(micros) = cpu {
                out.unsigned(catalog::SYSTEMD_UNIT_CPU, &[&name], micros);
            }
        }
        if !any {
            return Ok(Outcome::NoData);
        }
        self.asked = Some((out.tick(), thread_cpu().saturating_sub(began)));
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::testing, *};

    fn usage(config: SystemdConfig) -> UnitUsage {
        UnitUsage::new(&config)
    }

    fn memory(name: &str) -> String {
        format!("muster_host_systemd_unit_memory_bytes{{name=\"{name}\"}}")
    }

    fn cpu(name: &str) -> String {
        format!("muster_host_systemd_unit_cpu_seconds_total{{name=\"{name}\"}}")
    }

    fn unified(host: &mut testing::Host, unit: &str, bytes: &str, micros: u64) {
        let folder = format!("sys/fs/cgroup/{unit}");
        host.write(&format!("{folder}/memory.current"), format!("{bytes}\n"));
        let stat = format!("usage_usec {micros}\nuser_usec 1\nsystem_usec 2\n");
        host.write(&format!("{folder}/cpu.stat"), stat);
    }

    #[test]
    fn services_are_found_below_slices_and_told_with_what_is_below_them() {
        let mut host = testing::Host::new();
        let mut usage = usage(SystemdConfig::default());
        assert_eq!(host.run(&mut usage).ok(), Some(Outcome::NoData));
        host.write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        unified(&mut host, "system.slice/db.service", "4096", 1_500_000);
        unified(&mut host, "system.slice/db.service/worker.service", "1", 1);
        unified(
            &mut host,
            "system.slice/system-getty.slice/getty@tty1.service",
            "8192",
            500_000,
        );
        unified(
            &mut host,
            "user.slice/user-1.slice/user@1.service",
            "3",
            2_500_000,
        );
        unified(&mut host, "user.slice/user-1.slice/session-1.scope", "9", 9);
        unified(&mut host, "init.scope", "9", 9);
        // Its memory is not accounted for, and what is told of its time is not understood.
        host.write(
            "sys/fs/cgroup/system.slice/odd.service/cpu.stat",
            "usage_usec x\n",
        );
        let values = host.collect(&mut usage);
        let expected = [
            (cpu("db.service"), 1.5),
            (cpu("getty@tty1.service"), 0.5),
            (cpu("user@1.service"), 2.5),
            (memory("db.service"), 4096.0),
            (memory("getty@tty1.service"), 8192.0),
            (memory("user@1.service"), 3.0),
        ];
        assert_eq!(values, BTreeMap::from(expected));
    }

    #[test]
    fn cgroup_v1_has_a_tree_for_each() {
        let mut host = testing::Host::new();
        // As a hybrid host has it: the unified tree is elsewhere, without controllers.
        host.write("sys/fs/cgroup/unified/system.slice/a.service/cpu.stat", "");
        for unit in ["a.service", "b.service", "c.service"] {
            let path = format!("sys/fs/cgroup/systemd/system.slice/{unit}/tasks");
            host.write(&path, "");
        }
        host.write(
            "sys/fs/cgroup/memory/system.slice/a.service/memory.usage_in_bytes",
            "12288\n",
        );
        for (unit, nanos) in [("a.service", "2500000000\n"), ("b.service", "500000999\n")] {
            let path = format!("sys/fs/cgroup/cpuacct/system.slice/{unit}/cpuacct.usage");
            host.write(&path, nanos);
        }
        let values = host.collect(&mut usage(SystemdConfig::default()));
        let expected = [
            (cpu("a.service"), 2.5),
            (cpu("b.service"), 0.5),
            (memory("a.service"), 12288.0),
        ];
        assert_eq!(values, BTreeMap::from(expected));
    }

    #[test]
    fn patterns_and_bounds_are_those_of_units() {
        let mut host = testing::Host::new();
        host.write("sys/fs/cgroup/cgroup.controllers", "");
        for unit in ["a", "b", "c", "not-this"] {
            unified(&mut host, &format!("system.slice/{unit}.service"), "1", 1);
        }
        let values = host.collect(&mut usage(SystemdConfig {
            exclude: vec!["not-*".to_owned()],
            max_units: 2,
            ..SystemdConfig::default()
        }));
        assert_eq!(values.len(), 2 * SERIES);
        assert!(!values.contains_key(&memory("not-this.service")));
    }

    #[test]
    fn when_it_took_long_it_is_asked_less_often() {
        let mut host = testing::Host::new();
        let mut usage = usage(SystemdConfig::default());
        host.write("sys/fs/cgroup/cgroup.controllers", "");
        unified(&mut host, "system.slice/a.service", "1", 1);
        host.set_tick(1_000);
        host.collect(&mut usage);
        let (at, _) = usage.asked.expect("it went well");
        usage.asked = Some((at, Duration::from_millis(12)));
        unified(&mut host, "system.slice/a.service", "2", 1);
        for (second, bytes) in [(1_030, 1.0), (1_061, 2.0)] {
            host.set_tick(second);
            let _ = host.run(&mut usage);
            assert_eq!(host.values()[&memory("a.service")], bytes, "{second}");
        }
    }

    #[test]
    fn slices_without_end_are_not_followed() {
        let mut host = testing::Host::new();
        host.write("sys/fs/cgroup/cgroup.controllers", "");
        let mut path = String::new();
        for depth in 0..10 {
            path.push_str("x.slice/");
            unified(&mut host, &format!("{path}at-{depth}.service"), "1", 1);
        }
        let values = host.collect(&mut usage(SystemdConfig::default()));
        assert_eq!(values.len(), MAX_DEPTH * SERIES);
    }
}
