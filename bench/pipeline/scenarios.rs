//! What can happen to a fleet. Each function makes one fault; the run judges what is left.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::{
    installation::value,
    load::allow_descriptors,
    run::{Run, rank},
};

/// Longest pause of a process that was stopped for a while.
const PAUSE_MS: u64 = 3_000;

/// Longest absence of the aggregator before the agents' power goes: more than the spool waits with a sync.
const AWAY_MS: u64 = 15_000;

/// Longest that a connection may live which never says anything (design/threats.md, T12).
const SILENT_LIMIT: Duration = Duration::from_secs(15);

/// Connections a made-up source address opens: as many as one address may have.
const PER_ADDRESS: u32 = 32;

/// The power of the aggregator's disk goes at some moment.
///
/// Stopped first, so that what agents were told was told before the disk is copied.
pub(crate) fn power_cut_of_aggregator(run: &mut Run) -> anyhow::Result<()> {
    run.installation.signal(Signal::STOP)?;
    let report = run.load()?.books()?;
    run.installation.disk()?.copy()?;
    run.installation.end(Signal::KILL)?;
    run.installation.disk()?.cut()?;
    run.check_log(&report)?;
    run.outcome.kills += 1;
    run.start_aggregator()
}

/// The power of the disk with all agents' spools goes at some moment, half the time while the aggregator is
/// away, so that the spool has something to lose.
pub(crate) fn power_cut_of_agents(run: &mut Run) -> anyhow::Result<()> {
    let away = run.random.bool();
    if away {
        run.installation.end(Signal::TERM)?;
        thread::sleep(Duration::from_millis(run.random.u64(..AWAY_MS)));
    }
    run.installation.disk()?.copy()?;
    run.kill_agents(|run| {
        run.installation.disk()?.cut()?;
        if away {
            run.start_aggregator()?;
        }
        Ok(())
    })
}

/// Something, by chance: either side is killed, stopped in order, or stands still for a while.
pub(crate) fn something(run: &mut Run) -> anyhow::Result<()> {
    match run.random.u8(..5) {
        0 => run.kill_aggregator(),
        1 => run.kill_agents(|_| Ok(())),
        2 => {
            run.installation.end(Signal::TERM)?;
            run.start_aggregator()
        }
        3 => {
            let pause = Duration::from_millis(run.random.u64(..PAUSE_MS));
            run.installation.signal(Signal::STOP)?;
            thread::sleep(pause);
            run.installation.signal(Signal::CONT)
        }
        _ => {
            let pause = Duration::from_millis(run.random.u64(..PAUSE_MS));
            run.load()?.signal(Signal::STOP)?;
            thread::sleep(pause);
            run.load()?.signal(Signal::CONT)
        }
    }
}

/// All agents come back at once after a kill -9 of the aggregator.
pub(crate) fn storm(run: &mut Run) -> anyhow::Result<()> {
    let before = run.load()?.books()?;
    let durable: Vec<u64> = before.agents.iter().map(|agent| agent.durable).collect();
    run.kill_aggregator()?;
    let page = run.installation.metrics()?;
    let cpu_before =
        value(&page, "process_cpu_seconds_total").context("no CPU time on the page")?;
    let began = Instant::now();
    let mut fresh_at: Vec<Option<Duration>> = vec![None; durable.len()];
    let mut asked = Vec::new();
    while fresh_at.iter().any(Option::is_none) {
        ensure!(
            began.elapsed() < Duration::from_secs(300),
            "{} agents are not back after five minutes",
            fresh_at.iter().filter(|at| at.is_none()).count()
        );
        let report = run.load()?.books()?;
        for ((at, agent), &durable) in fresh_at.iter_mut().zip(&report.agents).zip(&durable) {
            if agent.connected && agent.durable > durable {
                at.get_or_insert(began.elapsed());
            }
        }
        let question = Instant::now();
        run.installation.metrics()?;
        asked.push(question.elapsed());
        thread::sleep(run.look_every(Duration::from_millis(50)));
    }
    let page = run.installation.metrics()?;
    let cpu = value(&page, "process_cpu_seconds_total").context("no CPU time on the page")?;
    let mut waits: Vec<Duration> = fresh_at.into_iter().flatten().collect();
    waits.sort_unstable();
    asked.sort_unstable();
    let more = &mut run.outcome.more;
    let mut worst = |name, value: f64| {
        let kept = more.entry(name).or_insert(0.0);
        *kept = kept.max(value);
    };
    worst("fresh_seconds_p50", rank(&waits, 50).as_secs_f64());
    worst("fresh_seconds_max", rank(&waits, 100).as_secs_f64());
    worst("answer_ms_p99", rank(&asked, 99).as_secs_f64() * 1000.0);
    worst("cpu_seconds", cpu - cpu_before);
    Ok(())
}

/// Connections from many addresses that say nothing, or a byte, beside agents that work.
pub(crate) fn silent_connections(run: &mut Run, connections: u32) -> anyhow::Result<()> {
    allow_descriptors()?;
    let door = run.installation.uplink();
    let resident = resident_bytes(run)?;
    let began = Instant::now();
    let mut open = Vec::new();
    let mut refused = 0_u32;
    for number in 0..connections {
        let [_, _, third, fourth] = (number / PER_ADDRESS + 2).to_be_bytes();
        let from = SocketAddr::from((Ipv4Addr::new(127, 1, third, fourth), 0));
        match connect_from(from, door) {
            Ok(mut stream) => {
                if number % 2 == 1 {
                    // Half of them begin a TLS record and stall. One that is closed already is seen below.
                    let _sent = stream.write(&[22]);
                }
                open.push((stream, Instant::now()));
            }
            Err(_) => refused += 1,
        }
    }
    let mut resident_max = resident;
    let mut oldest = Duration::ZERO;
    while !open.is_empty() {
        let mut still = Vec::new();
        for (mut stream, since) in open {
            match stream.read(&mut [0; 1]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => still.push((stream, since)),
                // A byte, the end, or a reset: it was answered or closed.
                _ => oldest = oldest.max(since.elapsed()),
            }
        }
        open = still;
        resident_max = resident_max.max(resident_bytes(run)?);
        ensure!(
            began.elapsed() < Duration::from_secs(120),
            "{} silent connections are still open after two minutes",
            open.len()
        );
        run.pass(Duration::from_millis(200))?;
    }
    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    let grown = resident_max.saturating_sub(resident) as f64 / (1024.0 * 1024.0);
    let more = &mut run.outcome.more;
    more.insert("connections", f64::from(connections));
    more.insert("connections_refused", f64::from(refused));
    more.insert("closed_after_seconds_max", oldest.as_secs_f64());
    more.insert("resident_mib_more", grown);
    ensure!(
        oldest <= SILENT_LIMIT,
        "a silent connection lived for {} s",
        oldest.as_secs()
    );
    Ok(())
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> anyhow::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(socket.as_fd(), &from)?;
    connect(socket.as_fd(), &to)?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Resident memory of the aggregator.
pub(crate) fn resident_bytes(run: &Run) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", run.installation.pid()?))?;
    let kib = status.lines().find_map(|line| {
        let words = line.strip_prefix("VmRSS:")?;
        words.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(kib.context("no VmRSS")? * 1024)
}
