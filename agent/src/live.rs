//! The host the agent runs on, as a [`Source`].

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use muster_proto::{catalog, limits, series::Table, time::Timestamp, v1};
use tokio::sync::Notify;

use crate::{
    agent::Source,
    check::{ChecksConfig, schedule::Checks},
    collect::{AgentCounters, CollectConfig, Collection, CollectorFault, Lost},
    host::{self, HostRoot},
    telemetry::Own,
    watch::{Watch, WatchConfig, left_out_event, life::Life},
};

/// Events of one host in a minute; more are counted. A boot of 250 units makes 500.
const EVENTS_PER_MINUTE: u32 = 600;

/// Events beside a sample: what begins and ends an agent must find room there too.
const EVENTS_PER_ROUND: usize = limits::MAX_EVENTS_PER_FRAME - 8;

/// Events that wait for a round; more are counted.
const MAX_WAITING: usize = 4 * limits::MAX_EVENTS_PER_FRAME;

/// A real host: its collectors and what it says about itself.
pub struct LiveHost {
    collection: Collection,
    counters: Arc<AgentCounters>,
    told: Own,
    facts: v1::HostFacts,
    boot_id: [u8; 16],
    boot_id_text: String,
    records: bool,
    life: Option<Arc<Mutex<Life>>>,
    watch: Option<Watch>,
    waiting: Waiting,
    kills: Kills,
}

impl LiveHost {
    /// The host at `root`, with labels of its configuration. Nothing but its facts is read yet.
    #[must_use]
    pub fn new(root: HostRoot, config: &CollectConfig, labels: &[(String, String)]) -> Self {
        let facts = host::facts(&root, labels);
        let boot_id_text = host::boot_id(&root);
        let collection = Collection::new(root, config);
        Self {
            counters: collection.counters(),
            collection,
            told: Own::default(),
            facts,
            boot_id: parse_boot_id(&boot_id_text),
            boot_id_text,
            records: false,
            life: None,
            watch: None,
            waiting: Waiting::default(),
            kills: Kills::default(),
        }
    }

    /// Watches it for changes, in threads of their own, and records every second if `records`.
    #[must_use]
    pub fn watched(mut self, config: &WatchConfig, records: bool) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let life = Life::new(config.state_dir.as_deref(), &self.boot_id_text, version);
        let life = Arc::new(Mutex::new(life));
        self.life = Some(Arc::clone(&life));
        self.watch = Some(Watch::new(
            self.collection.host().clone(),
            config,
            life,
            Arc::clone(&self.counters),
        ));
        self.records = records;
        self
    }

    /// What is done after every pass of the collectors.
    fn attend(&mut self, tick: Timestamp) {
        let killed = self.kills.since(self.collection.table());
        if let Some(watch) = &mut self.watch {
            if killed > 0 {
                watch.killed(killed);
            }
            self.waiting.add(watch.take(tick), tick);
        }
        self.waiting.add(self.collection.take_events(), tick);
    }

    /// Runs the checks of its configuration too.
    #[must_use]
    pub fn with_checks(mut self, config: &ChecksConfig) -> Self {
        if !config.checks.is_empty() {
            let checks = Checks::new(config, self.collection.urgent());
            self.collection.add(Box::new(checks));
        }
        self
    }
}

impl Source for LiveHost {
    fn facts(&self) -> v1::HostFacts {
        self.facts.clone()
    }

    fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    fn sample(&mut self, tick: Timestamp, own: &Own) -> (&Table, Vec<v1::Event>) {
        let counters = &self.counters;
        counters
            .ticks_missed
            .store(own.ticks_missed, Ordering::Relaxed);
        counters
            .frames_produced
            .store(own.frames_produced, Ordering::Relaxed);
        counters
            .frames_queued
            .store(own.frames_queued, Ordering::Relaxed);
        counters.reconnects.store(own.reconnects, Ordering::Relaxed);
        let on_disk = own.frames_lost_on_disk;
        let before = self.told.frames_lost_on_disk;
        let full = own.frames_lost - on_disk.iter().sum::<u64>();
        let full_before = self.told.frames_lost - before.iter().sum::<u64>();
        counters.add_lost(Lost::Full, full - full_before);
        let reasons = [Lost::Age, Lost::Corrupt, Lost::DiskError];
        for ((reason, now), before) in reasons.into_iter().zip(on_disk).zip(before) {
            counters.add_lost(reason, now - before);
        }
        counters.set_spool(own.spool);
        counters.add_lost(Lost::Refused, own.frames_refused - self.told.frames_refused);
        self.told = *own;
        self.collection.run(tick);
        self.attend(tick);
        let events = self.waiting.take(tick);
        (self.collection.table(), events)
    }

    fn begin(&mut self, at: Timestamp) -> (Vec<v1::Event>, Vec<v1::EventField>) {
        let life = self.life.as_ref();
        life.map_or_else(Default::default, |life| {
            life.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .begin(at)
        })
    }

    fn end(&mut self, at: Timestamp, reason: v1::FinReason) -> Option<v1::Event> {
        let life = self.life.as_ref()?;
        let mut life = life.lock().unwrap_or_else(PoisonError::into_inner);
        Some(life.stop(at, reason))
    }

    fn records(&self) -> bool {
        self.records
    }

    fn record(&mut self, at: Timestamp) -> Option<&Table> {
        self.collection.run(at);
        self.attend(at);
        Some(self.collection.table())
    }

    fn busiest(&self) -> Vec<v1::Busiest> {
        self.watch.as_ref().map_or_else(Vec::new, Watch::busiest)
    }

    fn table(&self) -> Option<&Table> {
        Some(self.collection.table())
    }

    fn faults(&self) -> Vec<CollectorFault> {
        self.collection.faults()
    }

    fn urgent(&self) -> Option<Arc<Notify>> {
        Some(self.collection.urgent())
    }
}

/// Events on their way into a sample: bounded in number and in a minute, and what is beyond is told as a number.
#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<v1::Event>,
    left_out: u64,
    /// Begin of the minute that is counted, and the events in it.
    minute: Option<(Timestamp, u32)>,
}

impl Waiting {
    fn add(&mut self, events: Vec<v1::Event>, at: Timestamp) {
        for event in events {
            let (began, count) = self.minute.get_or_insert((at, 0));
            let age = at.millis_since(*began);
            if !(0..60_000).contains(&age) {
                (*began, *count) = (at, 0);
            }
            if *count >= EVENTS_PER_MINUTE || self.events.len() >= MAX_WAITING {
                self.left_out += 1;
                continue;
            }
            *count += 1;
            self.events.push_back(event);
        }
    }

    fn take(&mut self, at: Timestamp) -> Vec<v1::Event> {
        let count = self.events.len().min(EVENTS_PER_ROUND);
        let mut events: Vec<v1::Event> = self.events.drain(..count).collect();
        match std::mem::take(&mut self.left_out) {
            0 => {}
            left_out => events.push(left_out_event(at, left_out)),
        }
        events
    }
}

/// The kernel's count of processes killed for want of memory, as the sampler has read it.
#[derive(Debug, Default)]
struct Kills {
    place: usize,
    last: Option<i64>,
}

impl Kills {
    /// Kills since the pass before.
    fn since(&mut self, table: &Table) -> u64 {
        let family = catalog::VMSTAT_OOM_KILL.0;
        let is_it = |place: usize| {
            let series = table.series.get(place);
            series.is_some_and(|series| series.family == family) && table.present[place]
        };
        if !is_it(self.place) {
            match (0..table.series.len()).find(|&place| is_it(place)) {
                Some(place) => self.place = place,
                None => return 0,
            }
        }
        let now = table.raw[self.place].as_int();
        let before = self.last.replace(now).unwrap_or(now);
        u64::try_from(now.saturating_sub(before)).unwrap_or(0)
    }
}

/// The 16 bytes of a boot id written as a UUID; all zero if it is none.
fn parse_boot_id(text: &str) -> [u8; 16] {
    let digits: Option<Vec<u32>> = text
        .chars()
        .filter(|&c| c != '-')
        .map(|c| c.to_digit(16))
        .collect();
    let mut bytes = [0; 16];
    if let Some(digits) = digits.filter(|digits| digits.len() == 32) {
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::try_from(pair[0] << 4 | pair[1]).unwrap_or(0);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> v1::Event {
        v1::Event {
            kind: v1::EventKind::PortChanged.into(),
            subject: number.to_string(),
            ..v1::Event::default()
        }
    }

    #[test]
    fn events_are_bounded_in_a_round_and_in_a_minute_and_the_rest_is_counted() {
        let mut waiting = Waiting::default();
        let at = |seconds: i64| Timestamp::from_millis(1_000_000 + seconds * 1_000);
        waiting.add((0..700).map(event).collect(), at(0));
        let first = waiting.take(at(0));
        assert_eq!(first.len(), EVENTS_PER_ROUND + 1);
        let counted = &first[EVENTS_PER_ROUND];
        assert_eq!(
            muster_proto::event::words(counted),
            "100 events were left out"
        );
        let mut rest = Vec::new();
        while let Some(more) = Some(waiting.take(at(1))).filter(|more| !more.is_empty()) {
            rest.extend(more);
        }
        let subjects = first[..EVENTS_PER_ROUND].iter().chain(&rest);
        let subjects: Vec<&str> = subjects.map(|event| event.subject.as_str()).collect();
        let expected: Vec<String> = (0..600).map(|number| number.to_string()).collect();
        assert_eq!(subjects, expected, "in order, none twice");
        waiting.add(vec![event(1)], at(59));
        assert_eq!(waiting.take(at(59))[0].kind(), v1::EventKind::EventsLeftOut);
        waiting.add(vec![event(1)], at(60));
        assert_eq!(waiting.take(at(60)), [event(1)]);
        waiting.add(vec![event(2)], at(-99_999));
        assert_eq!(
            waiting.take(at(0)),
            [event(2)],
            "a clock set back begins a new minute"
        );
    }

    #[test]
    fn kills_are_those_since_the_pass_before() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let vmstat = |kills: u32| {
            std::fs::create_dir_all(root.path().join("proc")).expect("made");
            let text = format!(
                "pgpgin 1\npgpgout 1\npswpin 1\npswpout 1\npgfault 1\npgmajfault 1\noom_kill {kills}\n"
            );
            std::fs::write(root.path().join("proc/vmstat"), text).expect("written");
        };
        let config = CollectConfig::default();
        let mut live = LiveHost::new(HostRoot::at(root.path()), &config, &[]);
        for (second, kills, new) in [(0, 4, 0), (10, 4, 0), (20, 6, 2), (30, 1, 0)] {
            vmstat(kills);
            live.collection.run(Timestamp::from_millis(second * 1_000));
            assert_eq!(live.kills.since(live.collection.table()), new, "{second}");
        }
    }

    #[test]
    fn boot_ids_are_uuids_or_nothing() {
        let id = parse_boot_id("0001020f-1011-1213-1415-16171819ffee");
        assert_eq!(
            id,
            *b"\x00\x01\x02\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\xff\xee"
        );
        for wrong in ["", "0001020f", "0001020f-1011-1213-1415-16171819ffeg"] {
            assert_eq!(parse_boot_id(wrong), [0; 16], "{wrong}");
        }
    }

    #[test]
    fn what_the_agent_counts_stands_in_the_table() {
        let empty = tempfile::tempdir().expect("a temporary directory");
        let config = CollectConfig::default();
        let mut live = LiveHost::new(HostRoot::at(empty.path()), &config, &[]);
        let own = Own {
            frames_queued: 7,
            frames_lost: 3,
            ..Own::default()
        };
        let (table, _) = live.sample(Timestamp::from_millis(1_000_000), &own);
        let value = |family: catalog::FamilyId, label: &[&str]| {
            let at = table
                .series
                .iter()
                .position(|series| series.family == family.0 && series.labels == label)?;
            Some(table.raw[at].as_int())
        };
        use muster_proto::catalog::{AGENT_FRAMES_LOST, AGENT_FRAMES_QUEUED};
        assert_eq!(value(AGENT_FRAMES_QUEUED, &[]), Some(7));
        assert_eq!(value(AGENT_FRAMES_LOST, &["full"]), Some(3));
    }
}
