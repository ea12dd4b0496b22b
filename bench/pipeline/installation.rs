//! A real aggregator process on a throw-away state folder, and what can be read of it from outside.
//!
//! The program is the one beside this one in the build folder, so what is measured or killed is what is
//! shipped, with its own limits. All of it goes when the value is dropped.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::loop_disk::LoopDisk;

/// Longest wait for anything that should take a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A disk for one side: room for minutes of load, small enough to be copied in a moment.
const DISK_BYTES: u64 = 512 * 1024 * 1024;

/// Whose disk loses its power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskOf {
    /// The aggregator's state.
    Aggregator,
    /// The state of all agents, with their spools.
    Agents,
}

/// An aggregator's folders and doors, and its process while it runs.
pub(crate) struct Installation {
    folder: PathBuf,
    state: PathBuf,
    agents: PathBuf,
    disk: Option<LoopDisk>,
    config: PathBuf,
    uplink: SocketAddr,
    enrolment: SocketAddr,
    http: SocketAddr,
    process: Option<Child>,
}

impl Installation {
    /// Makes an authority and a configuration in a folder of its own; one side's state may lie on a disk whose
    /// power can be cut.
    pub(crate) fn make(disk: Option<DiskOf>) -> anyhow::Result<Self> {
        let name = format!("muster-bench-{:016x}", fastrand::u64(..));
        let folder = env::temp_dir().join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut state = folder.join("state");
        let mut agents = folder.join("agents");
        let mut made = None;
        if let Some(whose) = disk {
            let mount = folder.join("disk");
            made = Some(LoopDisk::make(
                folder.join("disk.ext4"),
                mount.clone(),
                DISK_BYTES,
            )?);
            match whose {
                DiskOf::Aggregator => state = mount.join("state"),
                DiskOf::Agents => agents = mount.join("agents"),
            }
        }
        fs::create_dir(&agents)?;
        let config = folder.join("aggregator.toml");
        // Held together, so that they differ; free again when the aggregator wants them.
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let held: Vec<TcpListener> = (0..4)
            .map(|_| TcpListener::bind(any))
            .collect::<Result<_, _>>()
            .context("no free ports")?;
        let ports: Vec<SocketAddr> = held
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<_, _>>()?;
        let text = format!(
            "state_dir = {:?}\nruntime_dir = {:?}\nuplink.listen = \"{}\"\nenrolment.listen = \"{}\"\n\
             operator.listen = \"{}\"\nhttp.listen = \"{}\"\nlog.level = \"warn\"\n",
            state, folder, ports[0], ports[1], ports[2], ports[3]
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let made = Self {
            folder,
            state,
            agents,
            disk: made,
            config,
            uplink: ports[0],
            enrolment: ports[1],
            http: ports[3],
            process: None,
        };
        made.run(&["init", "--name", "127.0.0.1"])?;
        Ok(made)
    }

    /// The folder of this run: the aggregator's `state`, and room for whatever else belongs to it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The aggregator's state folder.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// Where made-up agents keep theirs.
    pub(crate) fn agents(&self) -> &Path {
        &self.agents
    }

    /// The disk whose power can be cut.
    pub(crate) fn disk(&self) -> anyhow::Result<&LoopDisk> {
        self.disk.as_ref().context("no disk of its own was made")
    }

    /// The door for agents.
    pub(crate) fn uplink(&self) -> SocketAddr {
        self.uplink
    }

    /// The door for joining hosts.
    pub(crate) fn enrolment(&self) -> SocketAddr {
        self.enrolment
    }

    /// A token with which so many hosts may join; the door for them is open when this returns.
    pub(crate) fn token(&self, uses: u32) -> anyhow::Result<String> {
        let uses = uses.to_string();
        let token = self.run(&["token", "create", "--uses", &uses, "--ttl", "2h"])?;
        let began = Instant::now();
        while TcpStream::connect(self.enrolment).is_err() {
            ensure!(
                began.elapsed() < PATIENCE,
                "the enrolment door stays closed"
            );
            thread::sleep(LOOK_EVERY);
        }
        Ok(token.trim().to_owned())
    }

    fn program(&self, verb: &[&str]) -> anyhow::Result<Command> {
        let program = env::current_exe()?
            .parent()
            .and_then(Path::parent)
            .context("this program is in no build folder")?
            .join("muster-aggregator");
        ensure!(
            program.exists(),
            "{} is not there: build muster-aggregator first",
            program.display()
        );
        let mut command = Command::new(program);
        command
            .args(verb)
            .env("MUSTER_AGGREGATOR_CONFIG", &self.config);
        Ok(command)
    }

    fn run(&self, verb: &[&str]) -> anyhow::Result<String> {
        let output = self.program(verb)?.output()?;
        ensure!(
            output.status.success(),
            "muster-aggregator {}: {}",
            verb.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts the aggregator and waits until it says that it is ready; how long that took.
    pub(crate) fn start(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let child = self.program(&["serve"])?.stdin(Stdio::null()).spawn()?;
        let child = self.process.insert(child);
        loop {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("the aggregator ended by itself: {status}");
            }
            if matches!(get(self.http, "/-/ready"), Ok((200, _))) {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < PATIENCE, "the aggregator is not ready");
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Ends the aggregator with a signal, SIGKILL or SIGTERM, and waits for it.
    pub(crate) fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.signal(signal)?;
        let mut child = self.process.take().context("no aggregator runs")?;
        let status = child.wait()?;
        ensure!(
            signal == Signal::KILL || status.success(),
            "the aggregator stopped with {status}"
        );
        Ok(())
    }

    /// Sends the aggregator a signal that does not end it.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.process.as_ref().context("no aggregator runs")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.context("no such process")?, signal)?)
    }

    /// The aggregator's process.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.process.as_ref().context("no aggregator runs")?.id())
    }

    /// The aggregator's own page.
    pub(crate) fn metrics(&self) -> anyhow::Result<String> {
        let (status, page) = get(self.http, "/metrics")?;
        ensure!(status == 200, "/metrics answers {status}");
        Ok(page)
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        // Unmounted before its folder goes.
        self.disk = None;
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is left behind: {error}", self.folder.display());
        }
    }
}

/// A number of a scrape page, by its name with labels.
pub(crate) fn value(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(' ')?;
        rest.parse().ok()
    })
}

/// Status and body of a page.
pub(crate) fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer comes in one piece and ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.context("no HTTP answer")?, body.to_owned()))
}
