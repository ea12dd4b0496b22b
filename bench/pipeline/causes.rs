//! Why hosts are silent, end to end: real agents, a real aggregator, and what `muster hosts` says of each.
//!
//! Each host of [`FATES`] is a process of its own with its own state. When all are live each meets its fate; some of them
//! are mended after a while, and what is said then is asked again. Hosts to which nothing happens stand by, so that a
//! fleet of silent hosts is not one silent fleet.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_agent::identity::Identity;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    installation::{Installation, give_clock_ahead, printed},
    intruders,
    proxy::{Proxy, Weather},
};

/// Hosts to which nothing happens.
const BYSTANDERS: usize = 8;
/// A host is silent 15 s after its last sample; the rest is for machines that are busy.
const SILENT_WITHIN: Duration = Duration::from_secs(90);
/// How long what stands still does so.
const STANDS_STILL: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How far ahead a wrong clock is, in seconds.
const AHEAD: i64 = 3_600;

/// What happens to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its agent is stopped in order.
    Stopped,
    /// Its agent is killed, and started again later.
    Killed,
    /// Its agent stands still, and goes on later.
    Paused,
    /// Its agent starts anew with a clock that is an hour ahead.
    Clock,
    /// Its agent starts anew with a certificate of its own making.
    Certificate,
    /// What it sends vanishes.
    CutOff,
    /// Its connections are reset, and refused.
    Reset,
    /// Nothing.
    None,
}

/// Each fate with the place of its host, what is right while it is silent, and what once it is back, if it comes back.
const FATES: [(Fate, &str, &str, Option<&str>); 11] = [
    (Fate::Stopped, "a", "stopped", None),
    (Fate::Killed, "b", "crashed", Some("crashed")),
    // That a process stands still and that a host is gone look the same from outside.
    (Fate::Paused, "c", "unknown", Some("paused")),
    // Its ticks are put right by the aggregator's time: a wrong clock silences no agent of ours.
    (Fate::Clock, "d", "live", None),
    (Fate::Certificate, "e", "certificate", None),
    (Fate::CutOff, "dark", "network", Some("network")),
    (Fate::CutOff, "dark", "network", Some("network")),
    (Fate::CutOff, "dark", "network", Some("network")),
    (Fate::Reset, "reset", "network", Some("network")),
    (Fate::Reset, "reset", "network", Some("network")),
    (Fate::Reset, "reset", "network", Some("network")),
];

/// One host: its agent's folder and process.
struct Host {
    label: String,
    fate: Fate,
    silent: &'static str,
    back: Option<&'static str>,
    config: PathBuf,
    state: PathBuf,
    process: Option<Child>,
}

impl Host {
    /// Makes a configuration and joins.
    fn join(
        installation: &Installation,
        token: &str,
        number: usize,
        uplink: SocketAddr,
    ) -> anyhow::Result<Self> {
        let fate = FATES.get(number);
        let (fate, rack, silent, back) =
            fate.copied()
                .unwrap_or((Fate::None, "standing-by", "", None));
        let folder = installation.folder().join(format!("host-{number}"));
        fs::create_dir(&folder)?;
        let (config, state) = (folder.join("agent.toml"), folder.join("state"));
        let label = format!("h{number}");
        let text = format!(
            "state_dir = {state:?}\nruntime_dir = {folder:?}\ninterval = \"1s\"\n[uplink]\naddress = \"{uplink}\"\n\
             [labels]\nfate = \"{label}\"\nrack = \"{rack}\"\n[log]\nlevel = \"error\"\n"
        );
        fs::write(&config, text)?;
        let host = Self {
            label,
            fate,
            silent,
            back,
            config,
            state,
            process: None,
        };
        let door = installation.enrolment().to_string();
        printed(
            host.program()?
                .args(["enrol", &door])
                .env("MUSTER_TOKEN", token),
        )?;
        Ok(host)
    }

    fn program(&self) -> anyhow::Result<Command> {
        let here = env::current_exe()?;
        let folder = here.parent().and_then(Path::parent);
        let program = folder
            .context("this program is in no build folder")?
            .join("muster-agent");
        ensure!(
            program.exists(),
            "{} is not there: build it first",
            program.display()
        );
        let mut command = Command::new(program);
        command.arg("--config").arg(&self.config);
        Ok(command)
    }

    fn start(&mut self, ahead: Option<i64>) -> anyhow::Result<()> {
        let mut command = self.program()?;
        if let Some(seconds) = ahead {
            give_clock_ahead(&mut command, seconds)?;
        }
        self.process = Some(command.arg("run").stdin(Stdio::null()).spawn()?);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.process.as_ref().context("its agent does not run")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.context("no such process")?, signal)?)
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.signal(signal)?;
        if let Some(mut child) = self.process.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Puts a certificate that names it, and that nobody issued, in the place of its own.
    fn forge_certificate(&self) -> anyhow::Result<()> {
        let (certificate, key) = intruders::self_made(&Identity::load(&self.state)?)?;
        let folder = self.state.join("identity");
        fs::write(folder.join("chain.pem"), certificate.pem())?;
        Ok(fs::write(folder.join("key.pem"), key.serialize_pem())?)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Everything that takes part.
struct Stage {
    installation: Installation,
    hosts: Vec<Host>,
    dark: Proxy,
    reset: Proxy,
}

impl Stage {
    fn make(seed: u64) -> anyhow::Result<Self> {
        let mut installation = Installation::make(None)?;
        installation.start()?;
        let door = installation.uplink();
        let (dark, reset) = (Proxy::before(door, seed)?, Proxy::before(door, !seed)?);
        let count = FATES.len() + BYSTANDERS;
        let token = installation.token(u32::try_from(count)?)?;
        let mut stage = Self {
            installation,
            hosts: Vec::new(),
            dark,
            reset,
        };
        for number in 0..count {
            let uplink = match FATES.get(number) {
                Some((Fate::CutOff, ..)) => stage.dark.address(),
                Some((Fate::Reset, ..)) => stage.reset.address(),
                _ => door,
            };
            let mut host = Host::join(&stage.installation, &token, number, uplink)?;
            host.start(None)?;
            stage.hosts.push(host);
        }
        Ok(stage)
    }

    /// What an operator sees of the host.
    fn seen(&self, host: &Host) -> anyhow::Result<Value> {
        let selector = format!("fate={}", host.label);
        let answer = self
            .installation
            .operator(&["-o", "json", "hosts", "-l", &selector])?;
        let answer: Value = serde_json::from_str(&answer)?;
        let items = answer.get("items").unwrap_or(&answer);
        let one = items.get(0).cloned();
        one.with_context(|| format!("{} is not there: {answer}", host.label))
    }

    /// Waits until the hosts are in that state, whatever is said of them.
    fn wait(
        &self,
        state: &str,
        which: impl Fn(&Host) -> bool,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        for host in self.hosts.iter().filter(|host| which(host)) {
            loop {
                let seen = self.seen(host)?;
                if seen["state"] == state {
                    break;
                }
                ensure!(
                    began.elapsed() < patience,
                    "{} ({:?}) is not {state}: {seen}",
                    host.label,
                    host.fate
                );
                thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    /// Everybody meets their fate.
    fn strike(&mut self) -> anyhow::Result<()> {
        for host in &mut self.hosts {
            match host.fate {
                Fate::Stopped => host.end(Signal::TERM)?,
                Fate::Killed => host.end(Signal::KILL)?,
                Fate::Paused => host.signal(Signal::STOP)?,
                Fate::Clock => {
                    host.end(Signal::KILL)?;
                    host.start(Some(AHEAD))?;
                }
                Fate::Certificate => {
                    host.end(Signal::KILL)?;
                    host.forge_certificate()?;
                    host.start(None)?;
                }
                Fate::CutOff | Fate::Reset | Fate::None => {}
            }
        }
        self.dark.set(Weather::Blackhole);
        self.reset.set(Weather::Refused);
        Ok(())
    }

    /// Those that come back do.
    fn mend(&mut self) -> anyhow::Result<()> {
        for host in &mut self.hosts {
            match host.fate {
                Fate::Killed => host.start(None)?,
                Fate::Paused => host.signal(Signal::CONT)?,
                _ => {}
            }
        }
        self.dark.set(Weather::Clear);
        self.reset.set(Weather::Clear);
        Ok(())
    }
}

/// Whether what is said is right; tells it.
fn judge(host: &Host, when: &str, said: &Value, right: &str) -> (&'static str, u32) {
    let said = said.as_str().unwrap_or("nothing");
    let verdict = match said {
        said if said == right => "right",
        "unknown" => "unknown",
        _ => "wrong",
    };
    eprintln!(
        "{:<12} {when:<14} {said:<12} {verdict}",
        format!("{:?}", host.fate)
    );
    (verdict, u32::from(verdict != "right"))
}

/// Runs it; fails unless every cause is right.
pub(crate) fn run(seed: u64) -> anyhow::Result<Value> {
    let mut stage = Stage::make(seed)?;
    stage.wait("live", |_| true, SILENT_WITHIN)?;
    stage.strike()?;
    let began = Instant::now();
    let mut counts = serde_json::Map::new();
    let mut not_right = 0;
    let mut count = |when: &str, (verdict, miss): (&str, u32)| {
        let key = format!("{verdict}_{when}");
        let before = counts.get(&key).and_then(Value::as_u64).unwrap_or(0);
        counts.insert(key, (before + 1).into());
        not_right += miss;
    };
    let struck = |host: &Host| !matches!(host.silent, "" | "live" | "stopped");
    // Who is not is judged as such.
    if let Err(error) = stage.wait("silent", struck, SILENT_WITHIN) {
        eprintln!("{error}");
    }
    // What is presumed of those that were silent first sharpens with the others.
    thread::sleep(
        STANDS_STILL
            .saturating_sub(began.elapsed())
            .max(Duration::from_secs(3)),
    );
    for host in &stage.hosts {
        let seen = stage.seen(host)?;
        if host.fate == Fate::None {
            ensure!(seen["state"] == "live", "a bystander is not live: {seen}");
            continue;
        }
        let cause = Some(&seen["silenceCause"]).filter(|cause| !cause.is_null());
        let said = cause.unwrap_or(&seen["state"]);
        count(
            "while_silent",
            judge(host, "while silent", said, host.silent),
        );
    }
    stage.mend()?;
    stage.wait("live", |host| host.back.is_some(), SILENT_WITHIN)?;
    for host in &stage.hosts {
        let Some(right) = host.back else {
            continue;
        };
        let name = stage.seen(host)?["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let answer = stage
            .installation
            .operator(&["-o", "json", "host", &name])?;
        let answer: Value = serde_json::from_str(&answer)?;
        let detail = answer.pointer("/items/0").unwrap_or(&answer);
        count(
            "once_back",
            judge(host, "once back", &detail["pastSilence"]["cause"], right),
        );
    }
    let mut line = Value::Object(counts);
    line["scenario"] = "causes".into();
    line["hosts"] = stage.hosts.len().into();
    line["not_right"] = not_right.into();
    Ok(line)
}
