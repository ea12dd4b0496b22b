//! A host that is made up: about 150 series of the catalogue with a load that follows the time of day.
//!
//! Everything follows from the seed and the ticks, so two runs with the same seed and ticks tell the same.
//! Counters only grow, and from one tick to the next by what the load of that moment gives, whatever the
//! interval is.

use fastrand::Rng;
use muster_proto::{
    catalog::{self, FamilyId},
    id::HostId,
    series::{Raw, Scale, Series, Table},
    time::Timestamp,
    v1,
};

use crate::{agent::Source, telemetry::Own};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const DAY_SECONDS: f64 = 86_400.0;
/// Modes of CPU time in node_exporter's names, with each mode's share of the busy time.
const CPU_MODES: [(&str, f64); 7] = [
    ("user", 0.62),
    ("system", 0.24),
    ("nice", 0.01),
    ("iowait", 0.05),
    ("irq", 0.01),
    ("softirq", 0.04),
    ("steal", 0.03),
];
const UNIT_STATES: [&str; 5] = ["active", "activating", "deactivating", "failed", "inactive"];
const UNITS: [(&str, &str); 6] = [
    ("cron.service", "simple"),
    ("nginx.service", "forking"),
    ("postgresql.service", "oneshot"),
    ("ssh.service", "notify"),
    ("systemd-journald.service", "notify"),
    ("backup.service", "oneshot"),
];
const ROLES: [&str; 4] = ["web", "db", "cache", "batch"];
const SITES: [&str; 3] = ["fra", "ams", "lon"];

/// A made-up host.
#[derive(Debug)]
pub struct SimulatedHost {
    name: String,
    host: HostId,
    random: Rng,
    character: Character,
    table: Table,
    /// Values of the table's places before rounding, in raw units.
    exact: Vec<f64>,
    /// What each place does at a tick.
    rules: Vec<Rule>,
    own_from: usize,
    last_tick: Option<Timestamp>,
}

/// What distinguishes one made-up host from another.
#[derive(Debug)]
struct Character {
    cpus: u32,
    memory_bytes: f64,
    boot_time_s: i64,
    /// Load at night and what the day adds, as shares of all CPUs.
    base: f64,
    daily: f64,
    /// Hour of the largest load as a share of the day.
    peak: f64,
    disk_bytes: f64,
    disk_used: f64,
    failing_unit: Option<usize>,
}

/// How a place gets its next value.
#[derive(Debug, Clone, Copy)]
enum Rule {
    Constant,
    /// Raw units per second at no load, and what a full load adds.
    Counter {
        idle: f64,
        busy: f64,
    },
    /// Share of the load: idle value, and what a full load adds; noise of this share of the value.
    Gauge {
        idle: f64,
        busy: f64,
        noise: f64,
    },
    /// The tick itself.
    Clock,
}

impl SimulatedHost {
    /// The host with this seed. Its name and identity follow from the seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed ^ 0x6d75_7374_6572);
        let mut id = [0; 16];
        random.fill(&mut id);
        let role = ROLES[random.usize(..ROLES.len())];
        let cpus = 1 << random.u32(1..4);
        let memory_bytes = GIB * f64::from(1 << random.u32(2..7));
        let character = Character {
            cpus,
            memory_bytes,
            // Between 1 and 400 days before the beginning of 2026.
            boot_time_s: 1_767_225_600 - random.i64(86_400..34_560_000),
            base: 0.02 + 0.15 * random.f64(),
            daily: 0.05 + 0.45 * random.f64(),
            peak: 0.4 + 0.3 * random.f64(),
            disk_bytes: GIB * f64::from(20 << random.u32(0..5)),
            disk_used: 0.2 + 0.6 * random.f64(),
            failing_unit: (random.u32(..20) == 0).then(|| random.usize(..UNITS.len())),
        };
        let mut host = Self {
            name: format!("{role}-{:02}", seed % 100_000),
            host: HostId::from_bytes(id),
            random,
            character,
            table: Table {
                families: catalog::families(),
                ..Table::default()
            },
            exact: Vec::new(),
            rules: Vec::new(),
            own_from: 0,
            last_tick: None,
        };
        host.populate();
        host
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The identity to enrol it with.
    #[must_use]
    pub fn host_id(&self) -> HostId {
        self.host
    }

    /// Labels by which a selector finds it.
    #[must_use]
    pub fn labels(&self) -> Vec<(String, String)> {
        let role = self.name.split('-').next().unwrap_or_default();
        let site = SITES[usize::try_from(self.host.spread() % 3).unwrap_or(0)];
        [("role", role), ("site", site), ("simulated", "yes")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec()
    }

    fn add(&mut self, family: FamilyId, labels: &[&str], start: f64, rule: Rule) {
        self.table.series.push(Series {
            family: family.0,
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
        });
        self.table.raw.push(Raw(0));
        self.table.present.push(true);
        self.exact.push(start);
        self.rules.push(rule);
    }

    fn constant(&mut self, family: FamilyId, labels: &[&str], value: f64) {
        self.add(family, labels, value, Rule::Constant);
    }

    /// A counter that begins with what an hour of no load gives.
    fn counter(&mut self, family: FamilyId, labels: &[&str], idle: f64, busy: f64) {
        self.add(family, labels, idle * 3600.0, Rule::Counter { idle, busy });
    }

    fn gauge(&mut self, family: FamilyId, labels: &[&str], idle: f64, busy: f64, noise: f64) {
        self.add(family, labels, idle, Rule::Gauge { idle, busy, noise });
    }

    fn populate(&mut self) {
        let name = self.name.clone();
        let labels = [
            "Linux",
            "6.1.0-28-amd64",
            "#1 SMP PREEMPT_DYNAMIC",
            "x86_64",
            &name,
            "(none)",
        ];
        self.constant(catalog::UNAME_INFO, &labels, 1.0);
        let os = [
            "",
            "debian",
            "",
            "",
            "",
            "Debian GNU/Linux",
            "Debian GNU/Linux 12 (bookworm)",
            "",
            "",
            "12 (bookworm)",
            "bookworm",
            "12",
        ];
        self.constant(catalog::OS_INFO, &os, 1.0);
        self.constant(
            catalog::OS_VERSION,
            &["debian", "", "Debian GNU/Linux"],
            12.0,
        );
        self.add(catalog::TIME_SECONDS, &[], 0.0, Rule::Clock);
        self.populate_cpu();
        self.populate_memory();
        self.populate_disks();
        self.populate_network();
        self.populate_services();
        self.populate_agent();
    }

    fn populate_cpu(&mut self) {
        let cpus = f64::from(self.character.cpus);
        for cpu in 0..self.character.cpus {
            let cpu = cpu.to_string();
            // Raw ticks of 1/100 s.
            for (mode, share) in CPU_MODES {
                self.counter(
                    catalog::CPU_SECONDS,
                    &[&cpu, mode],
                    0.02 * share,
                    100.0 * share,
                );
            }
            self.counter(catalog::CPU_SECONDS, &[&cpu, "idle"], 99.9, -99.5);
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds since 1970 are exact in an f64"
        )]
        self.constant(
            catalog::BOOT_TIME_SECONDS,
            &[],
            self.character.boot_time_s as f64,
        );
        self.counter(catalog::CONTEXT_SWITCHES, &[], 900.0, 20_000.0 * cpus);
        self.counter(catalog::FORKS, &[], 2.0, 40.0);
        self.counter(catalog::INTERRUPTS, &[], 500.0, 9_000.0 * cpus);
        self.gauge(catalog::PROCS_RUNNING, &[], 1.0, 2.0 * cpus, 0.2);
        self.gauge(catalog::PROCS_BLOCKED, &[], 0.0, 1.0, 0.2);
        for (family, noise) in [
            (catalog::LOAD1, 0.2),
            (catalog::LOAD5, 0.05),
            (catalog::LOAD15, 0.02),
        ] {
            self.gauge(family, &[], 1.0, 100.0 * cpus, noise);
        }
        // Microseconds per second.
        self.counter(catalog::PRESSURE_CPU_WAITING, &[], 50.0, 80_000.0);
        self.counter(catalog::PRESSURE_MEMORY_WAITING, &[], 0.0, 500.0);
        self.counter(catalog::PRESSURE_MEMORY_STALLED, &[], 0.0, 200.0);
        self.counter(catalog::PRESSURE_IO_WAITING, &[], 100.0, 30_000.0);
        self.counter(catalog::PRESSURE_IO_STALLED, &[], 50.0, 15_000.0);
    }

    fn populate_memory(&mut self) {
        let total_kib = self.character.memory_bytes / 1024.0;
        for (field, idle, busy, noise) in [
            ("MemTotal", 1.0, 0.0, 0.0),
            ("MemFree", 0.3, -0.2, 0.01),
            ("MemAvailable", 0.8, -0.5, 0.01),
            ("Buffers", 0.02, 0.01, 0.0),
            ("Cached", 0.4, 0.05, 0.002),
            ("Active", 0.3, 0.3, 0.005),
            ("Inactive", 0.25, 0.05, 0.005),
            ("Slab", 0.04, 0.01, 0.002),
            ("Dirty", 0.0005, 0.002, 0.3),
            ("SwapTotal", 0.1, 0.0, 0.0),
            ("SwapFree", 0.1, 0.0, 0.0),
        ] {
            let Some(name) = catalog::memory_name(field, true) else {
                continue;
            };
            let family = self.dynamic_family(name);
            self.gauge(family, &[], total_kib * idle, total_kib * busy, noise);
        }
        for (family, idle, busy) in [
            (catalog::VMSTAT_PGPGIN, 5.0, 4_000.0),
            (catalog::VMSTAT_PGPGOUT, 40.0, 9_000.0),
            (catalog::VMSTAT_PGFAULT, 300.0, 30_000.0),
            (catalog::VMSTAT_PGMAJFAULT, 0.01, 4.0),
            (catalog::VMSTAT_PSWPIN, 0.0, 0.0),
            (catalog::VMSTAT_PSWPOUT, 0.0, 0.0),
            (catalog::VMSTAT_OOM_KILL, 0.0, 0.0),
        ] {
            self.counter(family, &[], idle, busy);
        }
        self.gauge(catalog::FILEFD_ALLOCATED, &[], 1_500.0, 6_000.0, 0.01);
        self.constant(catalog::FILEFD_MAXIMUM, &[], 9_223_372.0);
    }

    /// A family that the catalogue names by a rule.
    fn dynamic_family(&mut self, name: String) -> FamilyId {
        let at = self.table.families.len();
        self.table.families.push(muster_proto::series::Family {
            name,
            kind: muster_proto::series::Kind::Gauge,
            scale: Scale::Kibi,
            labels: Vec::new(),
        });
        FamilyId(u32::try_from(at).unwrap_or(u32::MAX))
    }

    fn populate_disks(&mut self) {
        for (device, weight) in [("sda", 1.0), ("sdb", 0.3)] {
            for (family, idle, busy) in [
                (catalog::DISK_READS_COMPLETED, 0.2, 300.0),
                (catalog::DISK_WRITES_COMPLETED, 3.0, 500.0),
                (catalog::DISK_READ_BYTES, 10.0, 40_000.0),
                (catalog::DISK_WRITTEN_BYTES, 80.0, 60_000.0),
                (catalog::DISK_READ_TIME, 0.2, 200.0),
                (catalog::DISK_WRITE_TIME, 2.0, 600.0),
                (catalog::DISK_IO_TIME, 3.0, 700.0),
                (catalog::DISK_IO_TIME_WEIGHTED, 4.0, 1_500.0),
            ] {
                self.counter(family, &[device], idle * weight, busy * weight);
            }
            self.gauge(catalog::DISK_IO_NOW, &[device], 0.0, 3.0 * weight, 0.3);
        }
        let (size, used) = (self.character.disk_bytes, self.character.disk_used);
        for (device, mountpoint, share) in
            [("/dev/sda1", "/", used), ("/dev/sdb1", "/srv", used * 0.7)]
        {
            let labels = [device, "ext4", mountpoint];
            self.constant(catalog::FILESYSTEM_SIZE, &labels, size);
            for family in [catalog::FILESYSTEM_FREE, catalog::FILESYSTEM_AVAIL] {
                self.gauge(family, &labels, size * (1.0 - share), size * -0.01, 0.0005);
            }
            self.constant(
                catalog::FILESYSTEM_FILES,
                &labels,
                (size / 16_384.0).floor(),
            );
            self.gauge(
                catalog::FILESYSTEM_FILES_FREE,
                &labels,
                size / 20_000.0,
                0.0,
                0.0001,
            );
            self.constant(catalog::FILESYSTEM_READONLY, &labels, 0.0);
            self.constant(catalog::FILESYSTEM_DEVICE_ERROR, &labels, 0.0);
        }
    }

    fn populate_network(&mut self) {
        for (device, weight) in [("eth0", 1.0), ("lo", 0.1)] {
            for (family, idle, busy) in [
                (catalog::NETWORK_RECEIVE_BYTES, 3_000.0, 20_000_000.0),
                (catalog::NETWORK_TRANSMIT_BYTES, 2_000.0, 30_000_000.0),
                (catalog::NETWORK_RECEIVE_PACKETS, 20.0, 25_000.0),
                (catalog::NETWORK_TRANSMIT_PACKETS, 15.0, 28_000.0),
                (catalog::NETWORK_RECEIVE_ERRS, 0.0, 0.0),
                (catalog::NETWORK_TRANSMIT_ERRS, 0.0, 0.0),
                (catalog::NETWORK_RECEIVE_DROP, 0.01, 0.1),
                (catalog::NETWORK_TRANSMIT_DROP, 0.0, 0.0),
            ] {
                self.counter(family, &[device], idle * weight, busy * weight);
            }
        }
    }

    fn populate_services(&mut self) {
        let failing = self.character.failing_unit;
        for (at, (unit, kind)) in UNITS.into_iter().enumerate() {
            let now = if failing == Some(at) {
                "failed"
            } else {
                "active"
            };
            for state in UNIT_STATES {
                let value = if state == now { 1.0 } else { 0.0 };
                self.constant(catalog::SYSTEMD_UNIT_STATE, &[unit, state, kind], value);
            }
        }
        let failed = f64::from(u8::from(failing.is_some()));
        self.constant(catalog::SYSTEMD_SYSTEM_RUNNING, &[], 1.0 - failed);
        self.constant(catalog::SYSTEMD_UNITS, &["active"], 6.0 - failed);
        self.constant(catalog::SYSTEMD_UNITS, &["failed"], failed);
    }

    fn populate_agent(&mut self) {
        let version = env!("CARGO_PKG_VERSION");
        self.constant(catalog::AGENT_INFO, &[version], 1.0);
        for collector in [
            "cpu",
            "meminfo",
            "diskstats",
            "filesystem",
            "netdev",
            "systemd",
        ] {
            self.constant(catalog::SCRAPE_COLLECTOR_SUCCESS, &[collector], 1.0);
        }
        self.counter(catalog::AGENT_CPU_SECONDS, &[], 150.0, 100.0);
        self.gauge(catalog::AGENT_RESIDENT_BYTES, &[], 7_500_000.0, 0.0, 0.001);
        self.own_from = self.table.series.len();
        for (family, reason, _) in Own::default().series() {
            self.constant(family, reason.as_slice(), 0.0);
        }
    }

    /// Share of all CPUs that is busy at this time, 0 to 1.
    fn load(&mut self, tick: Timestamp) -> f64 {
        let day = (tick.as_seconds_f64() / DAY_SECONDS).rem_euclid(1.0);
        let wave = ((day - self.character.peak) * std::f64::consts::TAU).cos() * 0.5 + 0.5;
        let noise = 0.8 + 0.4 * self.random.f64();
        ((self.character.base + self.character.daily * wave * wave) * noise).clamp(0.0, 0.98)
    }
}

impl Source for SimulatedHost {
    fn facts(&self) -> v1::HostFacts {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a made-up size: a whole number of GiB below 128"
        )]
        let memory_bytes = self.character.memory_bytes as u64;
        v1::HostFacts {
            hostname: self.name.clone(),
            os_id: "debian".into(),
            os_version: "12".into(),
            os_pretty: "Debian GNU/Linux 12 (bookworm)".into(),
            kernel: "6.1.0-28-amd64".into(),
            architecture: "x86_64".into(),
            cpus: self.character.cpus,
            memory_bytes,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            machine_id_hash: [*self.host.as_bytes(); 2].concat(),
            labels: self.labels().into_iter().collect(),
        }
    }

    fn boot_id(&self) -> [u8; 16] {
        self.host.as_bytes().map(|byte| !byte)
    }

    fn sample(&mut self, tick: Timestamp, own: &Own) -> (&Table, Vec<v1::Event>) {
        let load = self.load(tick);
        let seconds = self
            .last_tick
            .map_or(0.0, |last| tick.since(last).as_secs_f64());
        self.last_tick = Some(tick);
        for at in 0..self.rules.len() {
            let exact = &mut self.exact[at];
            let raw = match self.rules[at] {
                Rule::Constant => *exact,
                Rule::Counter { idle, busy } => {
                    let noise = 0.9 + 0.2 * self.random.f64();
                    *exact += (idle + busy * load).max(0.0) * noise * seconds;
                    exact.floor()
                }
                Rule::Gauge { idle, busy, noise } => {
                    let value = idle + busy * load;
                    (value * (1.0 + noise * (self.random.f64() - 0.5))).round()
                }
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "milliseconds stay exact in an f64"
                )]
                Rule::Clock => tick.as_millis() as f64,
            };
            let family = self.table.series[at].family as usize;
            self.table.raw[at] = match self.table.families[family].scale {
                Scale::Float => Raw::float(raw),
                #[expect(clippy::cast_possible_truncation, reason = "made up, far below 2^53")]
                _ => Raw::int(raw as i64),
            };
        }
        for (offset, (_, _, value)) in own.series().into_iter().enumerate() {
            self.table.raw[self.own_from + offset] = Raw::unsigned(value);
        }
        (&self.table, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::series::Kind;

    use super::*;

    fn tick(at: i64) -> Timestamp {
        Timestamp::from_millis(1_780_000_000_000 + at * 10_000)
    }

    #[test]
    fn a_seed_is_a_host() {
        let run = |seed| {
            let mut host = SimulatedHost::new(seed);
            let mut all = Vec::new();
            for at in 0..50 {
                all.extend(host.sample(tick(at), &Own::default()).0.raw.clone());
            }
            (host.host_id(), host.facts(), all)
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5).0, run(6).0);
    }

    #[test]
    fn a_made_up_host_could_be_real() {
        for seed in 0..40 {
            let mut host = SimulatedHost::new(seed);
            let before = host.sample(tick(0), &Own::default()).0.raw.clone();
            let (table, _) = host.sample(tick(1), &Own::default());
            assert!(
                (100..260).contains(&table.present_count()),
                "{}",
                table.present_count()
            );
            for (at, series) in table.series.iter().enumerate() {
                let family = &table.families[series.family as usize];
                assert_eq!(series.labels.len(), family.labels.len(), "{}", family.name);
                if family.kind == Kind::Counter {
                    assert!(
                        table.raw[at].as_int() >= before[at].as_int(),
                        "{}",
                        family.name
                    );
                }
            }
            // Ten seconds of one CPU are about ten seconds, whatever the load.
            let cpu0: i64 = (0..table.series.len())
                .filter(|&at| {
                    table.series[at].family == catalog::CPU_SECONDS.0
                        && table.series[at].labels[0] == "0"
                })
                .map(|at| table.raw[at].as_int() - before[at].as_int())
                .sum();
            assert!((850..1_150).contains(&cpu0), "{cpu0}");
        }
    }

    #[test]
    fn what_the_agent_counts_is_told() {
        let mut host = SimulatedHost::new(1);
        let own = Own {
            frames_queued: 17,
            ..Own::default()
        };
        let (table, _) = host.sample(tick(0), &own);
        let at = table
            .series
            .iter()
            .position(|series| series.family == catalog::AGENT_FRAMES_QUEUED.0);
        assert_eq!(at.map(|at| table.raw[at]), Some(Raw::int(17)));
    }
}
