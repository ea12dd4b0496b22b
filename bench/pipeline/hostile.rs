//! Agents that were let in and should not be: one that floods the fleet with series, and one that is banned.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_proto::{limits, v1};
use prost::Message as _;

use crate::{
    intruders::Returning,
    load::{Load, Plan, Report},
    run::Run,
    scenarios::resident_bytes,
};

/// Series in each sample of a host that floods: about 300 KB, which every aggregator takes as a message.
const EACH: u32 = 20_000;

/// How long acknowledgements are timed before the flood.
const QUIET: Duration = Duration::from_secs(15);

/// What one host may cost the aggregator's memory.
const MORE_MIB: f64 = 32.0;

/// A quotient of a few milliseconds says nothing.
const SLOW_MS: f64 = 250.0;

/// A banned host's stream ends within this; the fleet is looked at as often as that is worth.
const BANNED: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One host tells of so many series beside the fleet, each of them new.
pub(crate) fn series(run: &mut Run, wanted: u32) -> anyhow::Result<()> {
    run.load()?.books()?;
    run.pass_unseen(QUIET)?;
    let before = ack_p99(&run.load()?.books()?);
    let resident = resident_bytes(run)?;
    let folder = run.installation.folder().join("flood");
    let mut flood = Load::start(&Plan {
        hosts: 1,
        folder,
        interval: limits::MIN_INTERVAL,
        spool: false,
        fresh_series: EACH,
        ..run.plan().clone()
    })?;
    let samples = u64::from(wanted.div_ceil(EACH));
    let deadline = Instant::now() + Duration::from_secs(samples * 2 + 60);
    let mut most = resident;
    let mut told = 0;
    let mut refused = 0;
    while told < samples {
        ensure!(
            Instant::now() < deadline,
            "the host with too many series was heard only {told} times"
        );
        run.pass_unseen(Duration::from_millis(500))?;
        most = resident_bytes(run)?.max(most);
        let report = flood.books()?;
        refused = report.sum(|agent| agent.rejected);
        told = report.sum(|agent| agent.durable + agent.lost) + refused;
    }
    let during = ack_p99(&run.load()?.books()?);
    drop(flood);
    ensure!(
        refused > 0,
        "{wanted} series of one host, and none was refused"
    );
    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    let more = most.saturating_sub(resident) as f64 / (1024.0 * 1024.0);
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    run.worst("series", (told * u64::from(EACH)) as f64);
    run.worst("resident_mib_more", more);
    run.worst("ack_ms_p99_before", before);
    run.worst("ack_ms_p99_during", during);
    ensure!(more <= MORE_MIB, "one host cost {more:.0} MiB");
    ensure!(
        during <= (2.0 * before).max(SLOW_MS),
        "acknowledgements of the others took {during:.0} ms, and {before:.0} ms before"
    );
    Ok(())
}

fn ack_p99(report: &Report) -> f64 {
    let mut ack_ms = report.ack_ms.clone();
    ack_ms.sort_unstable_by(f64::total_cmp);
    let rank = (ack_ms.len() * 99).div_ceil(100);
    let found = rank.checked_sub(1).and_then(|at| ack_ms.get(at));
    found.copied().unwrap_or_default()
}

/// A host of the fleet is banned while it sends, and tries to come back with what TLS remembers of it.
pub(crate) fn revoke(run: &mut Run, time: u32) -> anyhow::Result<()> {
    let at = time as usize - 1;
    let report = run.load()?.books()?;
    let agent = report.agents.get(at).context("as many hosts as bans")?;
    let host = agent.host.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let state = run.state_of(&host)?;
    let door = run.installation.uplink();
    let returning = runtime.block_on(Returning::after_a_visit(state, door))?;

    let asked = Instant::now();
    run.installation
        .operator(&["host", &host, "ban", "--yes"])?;
    let answered = Instant::now();
    run.ban(&host);
    while run
        .load()?
        .books()?
        .agents
        .iter()
        .any(|agent| agent.host == host && agent.connected)
    {
        ensure!(
            answered.elapsed() < BANNED * 10,
            "a host that was banned is still connected"
        );
        thread::sleep(LOOK_EVERY);
    }
    let (whole, after) = (asked.elapsed(), answered.elapsed());
    run.worst("cut_ms_max", after.as_secs_f64() * 1000.0);
    run.worst("asked_to_cut_ms_max", whole.as_secs_f64() * 1000.0);
    ensure!(
        after <= BANNED,
        "the stream of a banned host lived for {} ms",
        after.as_millis()
    );

    let (resumed, reason) = runtime.block_on(returning.is_denied(&hello()))?;
    run.add("bans", 1.0);
    run.add("sessions_resumed", f64::from(u8::from(resumed)));
    ensure!(
        reason == v1::DenyReason::Removed,
        "a banned host that came back was told {reason:?}"
    );
    Ok(())
}

/// What a host says first, as gRPC sends it.
fn hello() -> Vec<u8> {
    let hello = v1::Hello {
        protocol: limits::PROTOCOL_VERSION,
        incarnation: 1,
        session: u64::MAX,
        boot_id: vec![7; 16],
        interval_ms: 1_000,
        ..v1::Hello::default()
    };
    let message = v1::AgentMessage {
        message: Some(v1::agent_message::Message::Hello(hello)),
    }
    .encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut bytes = vec![0];
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    bytes
}
