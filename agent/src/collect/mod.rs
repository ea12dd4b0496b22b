//! Collectors: each reads one part of the host. This file holds what they have in common, the one list of
//! them ([`collectors`]) and the [`Collection`] that runs them at each tick.
//!
//! A collector that fails is reported, loses its values and is tried again when it is next due; it takes
//! no other with it. Nothing here waits for the network or runs a program. When to tick, and what becomes
//! of the values, is the sampler's business.

pub mod agent;
pub mod arp;
pub mod aside;
pub mod attributes;
pub mod bonding;
pub mod btrfs;
pub mod clocksource;
pub mod config;
pub mod conntrack;
pub mod cpu;
pub mod cpufreq;
pub mod cpuinfo;
pub mod diag;
pub mod diskinfo;
pub mod diskstats;
pub mod dmi;
pub mod edac;
pub mod entropy;
pub mod fibrechannel;
pub mod filefd;
pub mod filesystem;
pub mod glob;
pub mod hwmon;
pub mod infiniband;
pub mod ipvs;
pub mod link_news;
pub mod loadavg;
pub mod mdadm;
pub mod meminfo;
pub mod memo;
pub mod mounts;
pub mod netclass;
pub mod netdev;
pub mod netstat;
pub mod nfs;
pub mod nvme;
pub mod os;
pub mod powersupplyclass;
pub mod pressure;
pub mod prober;
pub mod processes;
pub mod promtext;
pub mod rapl;
pub mod readings;
pub mod schedstat;
pub mod selinux;
pub mod sockets;
pub mod sockstat;
pub mod softnet;
pub mod sysfs;
pub mod systemd;
mod systemd_bus;
mod systemd_kinds;
pub mod tapestats;
pub mod tcpstat;
#[cfg(test)]
mod testing;
pub mod text;
pub mod textfile;
pub mod thermal_zone;
pub mod time;
pub mod timex;
pub mod udp_queues;
pub mod uname;
pub mod unit_usage;
pub mod vmstat;
pub mod watchdog;
pub mod xfs;
pub mod zfs;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::{
    catalog, limits,
    series::Table,
    time::Timestamp,
    v1::{self, event_field},
};
use tokio::sync::Notify;

pub use self::{
    agent::{AgentCounters, Lost},
    config::{
        CollectConfig, DiskConfig, FilesystemConfig, NetworkConfig, SystemdConfig, TextfileConfig,
    },
    readings::Readings,
};
use crate::host::{HostRoot, ReadError};

/// How often the pass measures itself. Durations differ each time, so showing them at every tick would
/// be a large part of every frame.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

/// How often it is looked for what the host does not have, if its collector runs more often.
const LOOK_FOR_ABSENT: Duration = Duration::from_secs(60);

/// Ticks follow the aggregator's clock and may come a little early: that must not cost a whole tick.
const SLACK: Duration = Duration::from_millis(250);

/// The pass in which the collection puts what it knows about its collectors; they have 1, 2, ….
const OWN_PASS: usize = 0;

/// Reads one part of the host. Never writes, never runs a program, never leaves the host.
pub trait Collector: Send {
    /// What people are told about it.
    fn about(&self) -> &'static About;

    /// Shortest time between two runs from now on.
    fn every(&self) -> Duration {
        self.about().every
    }

    /// Puts what the host says now: raw counters and gauges, never rates.
    ///
    /// # Errors
    /// [`CollectError`] when what should be there cannot be read or understood. What was put in this
    /// round is then withdrawn.
    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError>;
}

/// What people are told about a collector.
#[derive(Debug)]
pub struct About {
    /// Key in the configuration, value of the `collector` label, field in the log.
    pub name: &'static str,
    /// Shortest time between two runs; nothing means every tick.
    pub every: Duration,
    /// Files and interfaces it reads.
    pub reads: &'static str,
    /// What an unprivileged agent needs besides; empty for nothing.
    pub needs: &'static str,
    /// What it tells.
    pub what: &'static str,
}

/// How a collector's round went, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It put all its values.
    Read,
    /// All that it put in an earlier round still holds; it put nothing in this one.
    Unchanged,
    /// This host does not have what it reads: no values, and no failure either. Its
    /// `node_scrape_collector_success` is 0 all the same, as it is with node_exporter.
    NoData,
}

/// Why a collector failed.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The system bus was there and went away.
    #[error("the system bus is not reached: {why}")]
    Bus {
        /// What the connection ended with.
        why: String,
    },
    /// A file has been read for so long that it hangs.
    #[error("a read has not returned for {seconds} s: a device or a server does not answer")]
    Hangs {
        /// How long.
        seconds: u64,
    },
    /// There was no thread for it, or the thread ended.
    #[error("there is no thread to read in; the limit on tasks may be reached")]
    Lost,
    /// A file was read and not understood.
    #[error("{path} is not understood: {what}")]
    Malformed {
        /// Path below the host's root.
        path: &'static str,
        /// What was expected and not found.
        what: &'static str,
    },
}

/// A collector whose values are absent, or not all there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CollectorFault {
    /// Its name.
    pub collector: String,
    /// Whether it failed; else there was no room for all of its values.
    pub failed: bool,
    /// Why.
    pub why: String,
}

/// Every collector, in the order in which they run; those that are switched off included. Building one
/// opens nothing and starts nothing.
#[must_use]
pub fn collectors(
    config: &CollectConfig,
    counters: &Arc<AgentCounters>,
    urgent: &Arc<Notify>,
) -> Vec<Box<dyn Collector>> {
    // Their files may hang.
    let aside = aside::Aside::around;
    vec![
        Box::new(uname::Uname::default()),
        Box::new(os::Os::default()),
        Box::new(time::Time::default()),
        Box::new(dmi::Dmi::default()),
        Box::new(cpu::Cpu::default()),
        Box::new(meminfo::Meminfo::default()),
        Box::new(loadavg::Loadavg::default()),
        Box::new(diskstats::Diskstats::new(&config.disk)),
        Box::new(filesystem::Filesystem::new(&config.filesystem)),
        Box::new(netdev::Netdev::new(&config.network)),
        Box::new(vmstat::Vmstat::default()),
        Box::new(pressure::Pressure::default()),
        Box::new(filefd::Filefd::default()),
        Box::new(netstat::Netstat::default()),
        Box::new(sockstat::Sockstat::default()),
        Box::new(timex::Timex::default()),
        Box::new(tcpstat::Tcpstat::default()),
        Box::new(netclass::Netclass::new(&config.network)),
        Box::new(softnet::Softnet::default()),
        Box::new(conntrack::Conntrack::default()),
        Box::new(udp_queues::UdpQueues::default()),
        Box::new(arp::Arp::default()),
        Box::new(bonding::Bonding::default()),
        Box::new(processes::Processes::new(Arc::clone(counters))),
        Box::new(schedstat::Schedstat::default()),
        Box::new(cpuinfo::Cpuinfo::default()),
        Box::new(cpufreq::Cpufreq::default()),
        Box::new(clocksource::Clocksource::default()),
        Box::new(entropy::Entropy::default()),
        aside(Box::<hwmon::Hwmon>::default(), Some("sys/class/hwmon")),
        aside(
            Box::<thermal_zone::ThermalZone>::default(),
            Some("sys/class/thermal"),
        ),
        aside(
            Box::<powersupplyclass::PowerSupplyClass>::default(),
            Some("sys/class/power_supply"),
        ),
        aside(Box::<rapl::Rapl>::default(), Some("sys/class/powercap")),
        aside(
            Box::<edac::Edac>::default(),
            Some("sys/devices/system/edac/mc"),
        ),
        Box::new(mdadm::Mdadm::default()),
        Box::new(diskinfo::Diskinfo::new(&config.disk)),
        aside(Box::<nvme::Nvme>::default(), Some("sys/class/nvme")),
        Box::new(watchdog::Watchdog::default()),
        Box::new(selinux::Selinux::default()),
        Box::new(xfs::Xfs::default()),
        Box::new(btrfs::Btrfs::default()),
        Box::new(zfs::Zfs::default()),
        Box::new(nfs::Nfs::client()),
        Box::new(nfs::Nfs::server()),
        Box::new(ipvs::Ipvs::default()),
        aside(
            Box::<infiniband::Infiniband>::default(),
            Some("sys/class/infiniband"),
        ),
        aside(
            Box::<fibrechannel::Fibrechannel>::default(),
            Some("sys/class/fc_host"),
        ),
        aside(
            Box::<tapestats::Tapestats>::default(),
            Some("sys/class/scsi_tape"),
        ),
        aside(Box::new(textfile::Textfile::new(&config.textfile)), None),
        Box::new(systemd::Systemd::new(
            &config.systemd_in_quota(),
            Arc::clone(urgent),
        )),
        Box::new(unit_usage::UnitUsage::new(&config.systemd_in_quota())),
        Box::new(agent::Agent::new(Arc::clone(counters))),
    ]
}

/// The collectors that the configuration leaves on.
#[must_use]
pub fn enabled(
    config: &CollectConfig,
    counters: &Arc<AgentCounters>,
    urgent: &Arc<Notify>,
) -> Vec<Box<dyn Collector>> {
    let mut all = collectors(config, counters, urgent);
    all.retain(|collector| config.is_enabled(collector.about().name));
    all
}

/// One line of `muster-agent collectors`.
#[derive(Debug)]
pub struct CollectorInfo {
    /// Whether the configuration leaves it on.
    pub on: bool,
    /// What people are told about it.
    pub about: &'static About,
}

/// What `muster-agent collectors` lists.
#[must_use]
pub fn describe(config: &CollectConfig) -> Vec<CollectorInfo> {
    let info = |collector: Box<dyn Collector>| CollectorInfo {
        on: config.is_enabled(collector.about().name),
        about: collector.about(),
    };
    collectors(config, &Arc::default(), &Arc::default())
        .into_iter()
        .map(info)
        .collect()
}

/// A host and the collectors that look at it.
pub struct Collection {
    host: HostRoot,
    slots: Vec<Slot>,
    readings: Readings,
    max_series: usize,
    measured: Option<Timestamp>,
    counters: Arc<AgentCounters>,
    urgent: Arc<Notify>,
}

struct Slot {
    collector: Box<dyn Collector>,
    ran: Option<Timestamp>,
    /// Whether the last run went well; `None` before the first.
    ok: Option<bool>,
    /// Whether the host did not have what it reads.
    absent: bool,
    /// Why it did not.
    why: Option<String>,
    /// Whether it was said that not all of its values have room.
    cut_short: bool,
    took: Duration,
}

impl Slot {
    fn new(collector: Box<dyn Collector>) -> Self {
        Self {
            collector,
            ran: None,
            ok: None,
            absent: false,
            why: None,
            cut_short: false,
            took: Duration::ZERO,
        }
    }

    /// Whether it is to run. What the host did not have (a driver, a kind of device) comes seldom: of those collectors
    /// that do not run at every tick anyway.
    fn is_due(&self, tick: Timestamp) -> bool {
        let every = match self.collector.every() {
            Duration::ZERO => Duration::ZERO,
            every if self.absent => every.max(LOOK_FOR_ABSENT),
            every => every,
        };
        is_due(self.ran, every, tick)
    }
}

impl Collection {
    /// The collectors that `config` leaves on, looking at `host`. Nothing is read yet.
    #[must_use]
    pub fn new(host: HostRoot, config: &CollectConfig) -> Self {
        let (counters, urgent) = (Arc::default(), Arc::default());
        let collectors = enabled(config, &counters, &urgent);
        Self {
            counters,
            urgent,
            ..Self::with(host, collectors, config.max_series)
        }
    }

    /// These collectors, looking at `host`; at most `max_series` series.
    #[must_use]
    pub fn with(host: HostRoot, collectors: Vec<Box<dyn Collector>>, max_series: usize) -> Self {
        let slots: Vec<Slot> = collectors.into_iter().map(Slot::new).collect();
        let max_series = max_series.min(limits::MAX_SERIES);
        let mut readings = Readings::with_quota(max_series);
        // What says that something is missing must not be missing itself.
        readings.favour(OWN_PASS);
        for (number, slot) in slots.iter().enumerate() {
            if slot.collector.about().name == agent::NAME {
                readings.favour(number + 1);
            }
        }
        Self {
            host,
            slots,
            readings,
            max_series,
            measured: None,
            counters: Arc::default(),
            urgent: Arc::default(),
        }
    }

    /// Runs another collector after those that are there.
    pub fn add(&mut self, collector: Box<dyn Collector>) {
        self.slots.push(Slot::new(collector));
    }

    /// Runs every collector that is due at `tick`; the values as they are then.
    pub fn run(&mut self, tick: Timestamp) -> &Table {
        let began = Instant::now();
        self.readings.set_tick(tick);
        let mut changed = false;
        for number in 0..self.slots.len() {
            if self.slots[number].is_due(tick) {
                changed |= self.run_one(number, tick);
                self.warn_of_room(number);
            }
        }
        if changed || is_due(self.measured, MEASURE_EVERY, tick) {
            self.measured = Some(tick);
            self.put_own(began);
        }
        self.readings.table()
    }

    /// The values as the last round left them.
    #[must_use]
    pub fn table(&self) -> &Table {
        self.readings.table()
    }

    /// What the other parts of the agent count, for its own metrics.
    #[must_use]
    pub fn counters(&self) -> Arc<AgentCounters> {
        Arc::clone(&self.counters)
    }

    /// Is told when something happened that should not wait for the next tick: a unit changed its
    /// state, or systemd's units were listed for the first time. The next [`Collection::run`], at
    /// whatever moment, has it.
    #[must_use]
    pub fn urgent(&self) -> Arc<Notify> {
        Arc::clone(&self.urgent)
    }

    /// The host that is looked at.
    #[must_use]
    pub fn host(&self) -> &HostRoot {
        &self.host
    }

    /// Takes the oldest events, at most as many as one frame may carry.
    pub fn take_events(&mut self) -> Vec<v1::Event> {
        self.readings.take_events()
    }

    /// Reports an event of the agent itself, at the latest tick.
    pub fn event(&mut self, kind: v1::EventKind, subject: &str, fields: Vec<v1::EventField>) {
        self.readings.event(kind, subject, fields);
    }

    /// The collectors that failed when they last ran or had no room for all of their values, and why.
    pub fn faults(&self) -> Vec<CollectorFault> {
        let fault = |(number, slot): (usize, &Slot)| {
            let why = match slot.ok {
                Some(false) => slot.why.clone().unwrap_or_default(),
                _ => self.no_room(self.readings.left_out(number + 1))?,
            };
            Some(CollectorFault {
                collector: slot.collector.about().name.to_owned(),
                failed: slot.ok == Some(false),
                why,
            })
        };
        self.slots.iter().enumerate().filter_map(fault).collect()
    }

    fn no_room(&self, left_out: u64) -> Option<String> {
        let most = self.max_series;
        (left_out > 0).then(|| {
            format!("no room for {left_out} of its values: max_series is {most}, and no kind of thing gets more than half")
        })
    }

    /// Says once that a collector has no room for all of its values.
    fn warn_of_room(&mut self, number: usize) {
        let left_out = self.readings.left_out(number + 1);
        let no_room = self.no_room(left_out);
        let slot = &mut self.slots[number];
        let before = std::mem::replace(&mut slot.cut_short, no_room.is_some());
        if let Some(why) = no_room.filter(|_| !before) {
            tracing::warn!(
                collector = slot.collector.about().name,
                why,
                "values are left out; exclude some in the configuration or raise [collectors] max_series"
            );
        }
    }

    /// Runs one collector; true if it fails and did not before, or the other way round.
    fn run_one(&mut self, number: usize, tick: Timestamp) -> bool {
        let slot = &mut self.slots[number];
        let name = slot.collector.about().name;
        slot.ran = Some(tick);
        self.readings.begin(number + 1);
        let began = Instant::now();
        let outcome = slot.collector.collect(&self.host, &mut self.readings);
        slot.took = began.elapsed();
        match &outcome {
            Ok(Outcome::Unchanged) => {}
            Ok(Outcome::Read) => self.readings.end(true),
            Ok(Outcome::NoData) | Err(_) => self.readings.end(false),
        }
        if !matches!(outcome, Ok(Outcome::Unchanged)) {
            slot.absent = matches!(outcome, Ok(Outcome::NoData));
        }
        let why = outcome.as_ref().err();
        slot.why = why.map(|error| chain(error));
        let ok = outcome.is_ok();
        let before = slot.ok.replace(ok);
        if before.unwrap_or(true) == ok {
            return before.is_none();
        }
        match &outcome {
            Err(error) => {
                tracing::warn!(collector = name, error = %chain(error), "collector failed; its values are absent until it works again");
            }
            Ok(_) => tracing::info!(collector = name, "collector works again"),
        }
        let to = if ok { "ok" } else { "failed" };
        let fields = vec![word(v1::EventFieldKey::To, to)];
        self.readings
            .event(v1::EventKind::CollectorChanged, name, fields);
        true
    }

    /// Puts what the pass knows about itself.
    fn put_own(&mut self, began: Instant) {
        let out = &mut self.readings;
        out.begin(OWN_PASS);
        for slot in &self.slots {
            let labels = [slot.collector.about().name];
            out.unsigned(
                catalog::SCRAPE_COLLECTOR_DURATION,
                &labels,
                nanos(slot.took),
            );
            let success = i64::from(slot.ok == Some(true) && !slot.absent);
            out.int(catalog::SCRAPE_COLLECTOR_SUCCESS, &labels, success);
            if slot.absent {
                out.int(catalog::AGENT_COLLECTOR_ABSENT, &labels, 1);
            }
        }
        out.unsigned(catalog::AGENT_SERIES_REFUSED, &[], out.refused());
        let series = out.table().present_count() as u64;
        out.unsigned(catalog::AGENT_SERIES, &[], series);
        out.unsigned(catalog::AGENT_ROUND_SECONDS, &[], nanos(began.elapsed()));
        out.end(true);
    }
}

/// Whether what ran at `last` and runs every `every` is due. A clock that was set back makes it due.
fn is_due(last: Option<Timestamp>, every: Duration, tick: Timestamp) -> bool {
    last.is_none_or(|last| tick < last || tick.since(last) + SLACK >= every)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A field of an event that holds a word.
#[must_use]
pub fn word(key: v1::EventFieldKey, word: &str) -> v1::EventField {
    v1::EventField {
        key: key.into(),
        value: Some(event_field::Value::Word(word.to_owned())),
    }
}

/// An error and all its sources, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line = format!("{line}: {source}");
        next = source.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use muster_proto::catalog::{AGENT_SERIES, LOAD1, LOAD5, SCRAPE_COLLECTOR_SUCCESS};

    use super::*;

    /// Does what the script says, one entry a run.
    struct Scripted {
        about: &'static About,
        family: catalog::FamilyId,
        script: Vec<Result<Outcome, ()>>,
    }

    static OFTEN: About = About {
        name: "often",
        every: Duration::ZERO,
        reads: "",
        needs: "",
        what: "",
    };
    static SELDOM: About = About {
        name: "seldom",
        every: Duration::from_secs(30),
        ..OFTEN
    };

    impl Collector for Scripted {
        fn about(&self) -> &'static About {
            self.about
        }

        fn collect(&mut self, _: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
            let next = if self.script.is_empty() {
                Ok(Outcome::Read)
            } else {
                self.script.remove(0)
            };
            if next != Ok(Outcome::Unchanged) {
                out.int(self.family, &[], out.tick().as_millis());
            }
            next.map_err(|()| CollectError::Malformed {
                path: "proc/scripted",
                what: "anything",
            })
        }
    }

    fn collection(script: Vec<Result<Outcome, ()>>) -> Collection {
        let often = Scripted {
            about: &OFTEN,
            family: LOAD1,
            script,
        };
        let seldom = Scripted {
            about: &SELDOM,
            family: LOAD5,
            script: Vec::new(),
        };
        let both: Vec<Box<dyn Collector>> = vec![Box::new(often), Box::new(seldom)];
        Collection::with(HostRoot::at("/nowhere"), both, 100)
    }

    fn value(table: &Table, family: catalog::FamilyId, label: Option<&str>) -> Option<i64> {
        let at = table.series.iter().position(|series| {
            series.family == family.0 && series.labels.first().map(String::as_str) == label
        })?;
        table.present[at].then(|| table.raw[at].as_int())
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn collectors_run_when_they_are_due_and_values_stay_between() {
        let mut collection = collection(vec![Ok(Outcome::Read), Ok(Outcome::Unchanged)]);
        let table = collection.run(at(100));
        assert_eq!(value(table, LOAD1, None), Some(100_000));
        assert_eq!(value(table, LOAD5, None), Some(100_000));
        let table = collection.run(at(115));
        assert_eq!(value(table, LOAD1, None), Some(100_000), "unchanged");
        assert_eq!(value(table, LOAD5, None), Some(100_000), "not due");
        let early = Timestamp::from_millis(129_990);
        let table = collection.run(early);
        assert_eq!(value(table, LOAD5, None), Some(129_990));
        let table = collection.run(at(10));
        assert_eq!(value(table, LOAD5, None), Some(10_000), "clock set back");
        assert!(collection.take_events().is_empty());
    }

    #[test]
    fn a_failure_is_reported_once_and_takes_no_other_with_it() {
        let mut collection = collection(vec![Err(()), Err(()), Ok(Outcome::Read)]);
        let table = collection.run(at(0));
        assert_eq!(value(table, LOAD1, None), None);
        assert_eq!(value(table, LOAD5, None), Some(0));
        let success = |table: &Table| value(table, SCRAPE_COLLECTOR_SUCCESS, Some("often"));
        assert_eq!(success(table), Some(0));
        let faults = collection.faults();
        assert_eq!((faults.len(), faults[0].collector.as_str()), (1, "often"));
        assert_eq!(faults[0].why, "proc/scripted is not understood: anything");
        collection.run(at(1));
        assert_eq!(collection.take_events().len(), 1);
        let table = collection.run(at(2));
        assert_eq!(value(table, LOAD1, None), Some(2_000));
        assert_eq!(success(table), Some(1));
        let events = collection.take_events();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].subject, "often");
        assert_eq!(events[0].fields, [word(v1::EventFieldKey::To, "ok")]);
    }

    /// Has more objects than there is room for.
    struct Greedy;

    impl Collector for Greedy {
        fn about(&self) -> &'static About {
            &OFTEN
        }

        fn collect(&mut self, _: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
            for number in 0..200 {
                out.int(catalog::DISK_IO_NOW, &[&number.to_string()], number);
            }
            Ok(Outcome::Read)
        }
    }

    #[test]
    fn a_greedy_collector_is_named_and_hides_neither_itself_nor_the_agent() {
        let counters = Arc::new(AgentCounters::default());
        let both: Vec<Box<dyn Collector>> =
            vec![Box::new(Greedy), Box::new(agent::Agent::new(counters))];
        let mut collection = Collection::with(HostRoot::at("/nowhere"), both, 200);
        let table = collection.run(at(0));
        let refused = value(table, catalog::AGENT_SERIES_REFUSED, None);
        assert_eq!(refused, Some(20), "ten in a hundred places are reserved");
        assert!(value(table, catalog::AGENT_START_TIME, None).is_some());
        let faults = collection.faults();
        assert_eq!((faults.len(), faults[0].collector.as_str()), (1, "often"));
        assert!(!faults[0].failed && faults[0].why.starts_with("no room for 20"));
    }

    #[test]
    fn what_a_host_does_not_have_is_absent_and_no_failure() {
        let mut collection = collection(vec![Ok(Outcome::NoData)]);
        let table = collection.run(at(0));
        assert_eq!(value(table, LOAD1, None), None);
        assert_eq!(
            value(table, SCRAPE_COLLECTOR_SUCCESS, Some("often")),
            Some(0),
            "as node_exporter has it"
        );
        let absent = value(table, catalog::AGENT_COLLECTOR_ABSENT, Some("often"));
        assert_eq!(absent, Some(1));
        assert!(collection.faults().is_empty());
        let table = collection.table();
        assert!(value(table, AGENT_SERIES, None).is_some());
        assert!(collection.take_events().is_empty());
    }

    #[test]
    fn what_a_host_does_not_have_is_looked_for_once_a_minute() {
        let seldom = |about, family| Scripted {
            about,
            family,
            script: vec![Ok(Outcome::NoData)],
        };
        let both: Vec<Box<dyn Collector>> = vec![
            Box::new(seldom(&OFTEN, LOAD1)),
            Box::new(seldom(&SELDOM, LOAD5)),
        ];
        let mut collection = Collection::with(HostRoot::at("/nowhere"), both, 100);
        let mut ran = |seconds| {
            let table = collection.run(at(seconds));
            [LOAD1, LOAD5].map(|family| value(table, family, None))
        };
        assert_eq!(ran(0), [None, None]);
        assert_eq!(
            ran(30),
            [Some(30_000), None],
            "each tick, whatever it found"
        );
        assert_eq!(ran(59), [Some(59_000), None]);
        assert_eq!(ran(60), [Some(60_000); 2]);
        assert_eq!(ran(90), [Some(90_000); 2], "there: as often as it is due");
    }

    #[test]
    fn names_are_unique_and_can_be_switched_off() {
        let all = describe(&CollectConfig::default());
        for info in &all {
            let same = all
                .iter()
                .filter(|other| other.about.name == info.about.name);
            assert_eq!(same.count(), 1, "{}", info.about.name);
            assert!(!info.about.what.is_empty() && !info.about.reads.is_empty());
        }
        let config = CollectConfig {
            disabled: vec!["cpu".to_owned()],
            ..CollectConfig::default()
        };
        let left = enabled(&config, &Arc::default(), &Arc::default());
        assert_eq!(left.iter().filter(|c| c.about().name == "cpu").count(), 0);
        assert!(
            describe(&config)
                .iter()
                .any(|info| info.about.name == "cpu" && !info.on)
        );
    }
}
