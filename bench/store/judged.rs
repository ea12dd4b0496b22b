//! What it costs to judge all rules again over what is in the store ([`muster_aggregator::rejudge`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_aggregator::{
    detect::{Engine, SAMPLED, rules},
    fleet::Enrolled,
    history::{GiveUp, SampleStore},
    rejudge::{self, Question, Subject},
};
use muster_proto::{id::HostId, time::Timestamp, v1};
use serde::Serialize;

use super::cpu;

/// What it took.
#[derive(Debug, Serialize)]
pub(crate) struct JudgeFigures {
    days: f64,
    ticks: u64,
    coarse_ticks: u64,
    transitions: usize,
    cpu_seconds: f64,
    seconds: f64,
    /// Processor time for a host and a day.
    cpu_ms_host_day: f64,
    /// Memory of this process at its most while it judged, and before.
    resident_mib_before: f64,
    resident_mib_max: f64,
}

/// Judges every rule that samples can judge of all these hosts, under the same rules twice, as `muster replay --all` does.
pub(crate) fn judge(
    store: &dyn SampleStore,
    hosts: &[HostId],
    interval: Duration,
    (from, to): (i64, i64),
) -> anyhow::Result<JudgeFigures> {
    let in_program = SAMPLED.iter().map(|known| known.rule);
    let of_pack = rules::pack().iter().map(|rule| &*rule.name);
    let all: BTreeSet<&'static str> = in_program.chain(of_pack).collect();
    let subject = |(number, id): (usize, &HostId)| Subject {
        who: Enrolled {
            id: *id,
            name: format!("host-{number}"),
            labels: BTreeMap::new(),
            facts: v1::HostFacts::default(),
            certificate_not_after: None,
        },
        interval,
        open: Vec::new(),
        rules: all.clone(),
    };
    let question = Question {
        store,
        hosts: hosts.iter().enumerate().map(subject).collect(),
        old: Engine::default(),
        new: Engine::default(),
        from: Timestamp::from_millis(from),
        to: Timestamp::from_millis(to),
        give_up: GiveUp::default(),
    };
    // Writing 5 there makes the most that was resident begin anew (proc(5)).
    fs::write("/proc/self/clear_refs", "5")?;
    let resident_before = status("VmRSS:")?;
    let (before, began) = (cpu(), Instant::now());
    let mut transitions = 0;
    let mut each = |judged: rejudge::Judged| transitions += judged.old.len();
    let report = rejudge::judge(question, &mut each, &mut |_, _| {})?;
    let (cpu, wall) = (cpu() - before, began.elapsed());
    ensure!(report.missing.is_empty(), "{:?}", report.missing);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (days, count) = ((to - from) as f64 / 86_400_000.0, hosts.len() as f64);
    Ok(JudgeFigures {
        days,
        ticks: report.ticks,
        coarse_ticks: report.coarse,
        transitions,
        cpu_seconds: cpu.as_secs_f64(),
        seconds: wall.as_secs_f64(),
        cpu_ms_host_day: cpu.as_secs_f64() * 1e3 / (days * count),
        resident_mib_before: resident_before,
        resident_mib_max: status("VmHWM:")?,
    })
}

/// A line of this process's status, in MiB.
fn status(name: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|line| {
        let words = line.strip_prefix(name)?;
        words.split_whitespace().next()?.parse::<f64>().ok()
    });
    Ok(kib.with_context(|| format!("no {name}"))? / 1024.0)
}
