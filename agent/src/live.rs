//! The host the agent runs on, as a [`Source`].

use std::sync::{Arc, atomic::Ordering};

use muster_proto::{series::Table, time::Timestamp, v1};
use tokio::sync::Notify;

use crate::{
    agent::Source,
    check::{ChecksConfig, schedule::Checks},
    collect::{AgentCounters, CollectConfig, Collection, CollectorFault, Lost},
    host::{self, HostRoot},
    telemetry::Own,
};

/// A real host: its collectors and what it says about itself.
pub struct LiveHost {
    collection: Collection,
    counters: Arc<AgentCounters>,
    told: Own,
    facts: v1::HostFacts,
    boot_id: [u8; 16],
}

impl LiveHost {
    /// The host at `root`, with labels of its configuration. Nothing but its facts is read yet.
    #[must_use]
    pub fn new(root: HostRoot, config: &CollectConfig, labels: &[(String, String)]) -> Self {
        let facts = host::facts(&root, labels);
        let boot_id = parse_boot_id(&host::boot_id(&root));
        let collection = Collection::new(root, config);
        Self {
            counters: collection.counters(),
            collection,
            told: Own::default(),
            facts,
            boot_id,
        }
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
        let events = self.collection.take_events();
        (self.collection.table(), events)
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
        let value = |family: muster_proto::catalog::FamilyId, label: &[&str]| {
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
