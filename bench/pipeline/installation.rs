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

/// A wall clock of its own for a process: the distribution's libfaketime, which reads the offset from a file. The
/// clocks that nobody sets are the machine's.
struct FakedClock {
    library: PathBuf,
    offset: PathBuf,
}

/// The distribution's libfaketime.
fn faketime() -> anyhow::Result<PathBuf> {
    for folder in fs::read_dir("/usr/lib")? {
        let there = folder?.path().join("faketime/libfaketimeMT.so.1");
        if there.exists() {
            return Ok(there);
        }
    }
    anyhow::bail!("a clock that is wrong needs libfaketime: apt-get install faketime")
}

/// Gives a process a clock that is so many seconds ahead from its start on; no file is read, which an agent may not.
pub(crate) fn give_clock_ahead(command: &mut Command, seconds: i64) -> anyhow::Result<()> {
    command
        .env("LD_PRELOAD", faketime()?)
        .env("FAKETIME", format!("{seconds:+}s"))
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    Ok(())
}

impl FakedClock {
    /// One that is right, its offset in this file.
    fn make(offset: PathBuf) -> anyhow::Result<Self> {
        let made = Self {
            library: faketime()?,
            offset,
        };
        made.set(0)?;
        Ok(made)
    }

    fn set(&self, ahead_seconds: i64) -> anyhow::Result<()> {
        // In one step: the process must not read half of it.
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{ahead_seconds:+}\n"))?;
        Ok(fs::rename(&new, &self.offset)?)
    }

    /// Gives a process this one, which is read from the file again and again.
    fn give(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.offset)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_NO_CACHE", "1");
    }
}

/// An aggregator's folders and doors, and its process while it runs.
pub(crate) struct Installation {
    folder: PathBuf,
    state: PathBuf,
    agents: PathBuf,
    disk: Option<LoopDisk>,
    config: PathBuf,
    /// Holds what the aggregator's wall clock is ahead of the machine's, and what reads it.
    clock: Option<FakedClock>,
    uplink: SocketAddr,
    enrolment: SocketAddr,
    operator: SocketAddr,
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
            clock: None,
            uplink: ports[0],
            enrolment: ports[1],
            operator: ports[2],
            http: ports[3],
            process: None,
        };
        made.run(&["init", "--name", "127.0.0.1"])?;
        Ok(made)
    }

    /// Gives the aggregator a wall clock of its own, from its next start on.
    pub(crate) fn fake_clock(&mut self) -> anyhow::Result<()> {
        self.clock = Some(FakedClock::make(self.folder.join("clock"))?);
        Ok(())
    }

    /// The aggregator's wall clock jumps: it is so many seconds ahead of the machine's from now on.
    pub(crate) fn set_clock(&self, ahead_seconds: i64) -> anyhow::Result<()> {
        let clock = self.clock.as_ref().context("the clock is the machine's")?;
        clock.set(ahead_seconds)
    }

    /// An operator says that the aggregator's clock is right.
    pub(crate) fn confirm_clock(&self) -> anyhow::Result<()> {
        self.run(&["clock", "confirm"]).map(drop)
    }

    /// What an operator with all rights gets for these words.
    pub(crate) fn operator(&self, words: &[&str]) -> anyhow::Result<String> {
        let config = self.folder.join("operator.toml");
        if !config.exists() {
            let socket = self.folder.join("admin.sock");
            let mut login = self.beside("muster")?;
            login.args([
                "login",
                "--role",
                "admin",
                "--name",
                "bench",
                "--admin-socket",
            ]);
            printed(login.arg(socket).env("MUSTER_CONFIG", &config))?;
        }
        let mut command = self.beside("muster")?;
        printed(command.args(words).env("MUSTER_CONFIG", &config))
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

    /// The door for operators.
    pub(crate) fn operator_door(&self) -> SocketAddr {
        self.operator
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

    /// A program that was built beside this one.
    fn beside(&self, name: &str) -> anyhow::Result<Command> {
        let program = env::current_exe()?
            .parent()
            .and_then(Path::parent)
            .context("this program is in no build folder")?
            .join(name);
        ensure!(
            program.exists(),
            "{} is not there: build muster-aggregator first",
            program.display()
        );
        let mut command = Command::new(program);
        command.env("MUSTER_AGGREGATOR_CONFIG", &self.config);
        Ok(command)
    }

    fn program(&self, verb: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.beside("muster-aggregator")?;
        command.args(verb);
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        Ok(command)
    }

    fn run(&self, verb: &[&str]) -> anyhow::Result<String> {
        printed(&mut self.program(verb)?)
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

    /// The door for pages.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// The operator's configuration, who is signed in once [`Self::operator`] was called.
    pub(crate) fn operator_config(&self) -> anyhow::Result<PathBuf> {
        let config = self.folder.join("operator.toml");
        ensure!(config.exists(), "no operator has signed in");
        Ok(config)
    }

    /// A line of the aggregator's `/proc/PID/status`, KiB.
    pub(crate) fn memory(&self, line: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let told = status
            .lines()
            .find_map(|told| told.strip_prefix(line)?.strip_prefix(':'));
        let number = told.and_then(|told| told.split_whitespace().next());
        Ok(number.with_context(|| format!("no {line}"))?.parse()?)
    }

    /// From now on `VmHWM` is of what comes.
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.pid()?), "5")?)
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

/// What a program printed that ended well.
pub(crate) fn printed(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
