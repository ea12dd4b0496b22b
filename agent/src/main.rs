//! The `muster-agent` program: flags, configuration, run until a signal; no logic of its own.

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use muster_agent::{
    Agent, AgentConfig, Credentials, LiveHost, LogHandle, Monitor,
    capture::{self, Capture, CaptureError},
    check,
    collect::{self, Collection},
    config::{Config, DEFAULT_PATH},
    enrol::{self, Progress, TokenSource},
    goodbye,
    host::{self, HostRoot},
    identity::{Identity, IdentityError},
    lock::{self, LockError},
    machine::{self, MachineError},
    sample, sandbox,
    settings::Faults,
    status::{self, StatusError},
    telemetry::{LogFormat, start_log},
};
use muster_proto::{
    time::{Clock as _, SystemClock},
    v1::FinReason,
    words,
};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    time,
};

/// sysexits.h EX_CONFIG: the unit does not restart it.
const EXIT_CONFIG: u8 = 78;
/// sysexits.h EX_UNAVAILABLE: the host is not enrolled.
const EXIT_NOT_ENROLLED: u8 = 69;

/// Threads for a resolver or a disk that hangs, made when they are needed: each question of the link takes one,
/// with a deadline, and checks have their own beside these.
const BLOCKING_THREADS: usize = 4 + check::BLOCKING;

/// Time between passes of `sample --repeat`, and between its first, silent pass and the one that is shown:
/// services are told over the bus and take a moment.
const PASS_EVERY: Duration = Duration::from_secs(1);
const PRIMING: Duration = Duration::from_millis(300);
/// Where the system bus is, on a host that has one, and how long `sample` waits for systemd's first answer.
const BUS: &str = "/run/dbus/system_bus_socket";
const BUS_PATIENCE: Duration = Duration::from_secs(2);
/// How often systemd is told how the link stands, when there is no watchdog to set the pace.
const STATUS_EVERY: Duration = Duration::from_secs(15);

/// Gathers what this host can tell and streams it to a Muster aggregator.
#[derive(Parser)]
#[command(name = "muster-agent", version, max_term_width = 100)]
struct Cli {
    /// Configuration file [default: /etc/muster/agent.toml, which may be missing]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service (systemd starts this)
    Run {
        /// Shape of the log instead of the configuration's
        #[arg(long, value_enum)]
        log_format: Option<LogShape>,
    },
    /// Join this host to an aggregator
    Enrol(Enrol),
    /// Forget whose host this is: after cloning a machine, before it enrols under its own identity
    ResetIdentity {
        /// Do it
        #[arg(long)]
        yes: bool,
        /// It is the same host, whose machine id was changed on purpose: keep the identity
        #[arg(long)]
        same_host: bool,
    },
    /// Take samples and print them; needs no aggregator and no root
    #[command(alias = "once")]
    Sample(Sample),
    /// Copy what the collectors read of this host into a folder, without secrets: for a report of a fault
    Capture(CaptureFlags),
    /// How the running agent stands
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Shape::Table)]
        output: Shape,
    },
    /// Run the checks of the configuration once, now; exit 0 ok, 1 warning, 2 critical, 3 unknown
    ///
    /// Nothing is told to the aggregator or to a running agent. Run it as the user the agent runs as, to see
    /// what the agent sees.
    Check {
        /// Names of checks [default: all]
        name: Vec<String>,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Shape::Table)]
        output: Shape,
    },
    /// What can be collected, whether it is on, what it reads and needs
    Collectors,
    /// Check a configuration file; exit 1 with line and column of every fault
    CheckConfig {
        /// The file [default: as for run]
        file: Option<PathBuf>,
    },
    /// Print the version
    Version,
}

#[derive(Args)]
struct Enrol {
    /// The aggregator: host or host:port of its enrolment door. Of several the first that can be reached; all are held
    /// against the fingerprint in the token
    #[arg(required = true, value_parser = door)]
    address: Vec<String>,
    /// Read the join token from a file; - is standard input. Without it the token is taken from
    /// MUSTER_TOKEN or asked for
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The join token itself: other users of this host can see it
    #[arg(long)]
    token: Option<String>,
}

#[derive(Args)]
struct Sample {
    /// How to print it
    #[arg(long, value_enum, default_value_t = SampleShape::Text)]
    format: SampleShape,
    /// Only these collectors; may be given more than once
    #[arg(long, value_name = "NAME")]
    collector: Vec<String>,
    /// How many samples, one a second
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Look at another host than this: a captured one, or one mounted at this folder
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Args)]
struct CaptureFlags {
    /// Where to; must not exist, or be empty
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Keep serial numbers and UUIDs of disks and batteries
    #[arg(long)]
    with_serials: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum SampleShape {
    Text,
    Json,
    Prometheus,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    Table,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogShape {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run { log_format } => return run(cli.config.as_deref(), log_format),
        Command::Check { name, output } => return run_checks(cli.config.as_deref(), &name, output),
        Command::CheckConfig { file } => check_config(file.or(cli.config).as_deref()),
        Command::Enrol(flags) => enrol(cli.config.as_deref(), flags),
        Command::ResetIdentity { yes, same_host } => {
            reset_identity(cli.config.as_deref(), yes, same_host)
        }
        Command::Sample(flags) => take_samples(cli.config.as_deref(), &flags),
        Command::Capture(flags) => capture_host(cli.config.as_deref(), &flags),
        Command::Status { output } => print_status(cli.config.as_deref(), output),
        Command::Collectors => print_collectors(cli.config.as_deref()),
        Command::Version => {
            print(concat!("muster-agent ", env!("CARGO_PKG_VERSION"), "\n").as_bytes())
        }
    };
    match outcome {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// What to do about an error; put around it as context.
#[derive(Debug)]
struct Hint(&'static str);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What failed, why, and what to do, one line each.
fn complain(error: &anyhow::Error) {
    let hint = error.downcast_ref::<Hint>();
    let mut lines = error.chain().skip(usize::from(hint.is_some()));
    if let Some(what) = lines.next() {
        eprintln!("error: {what}");
    }
    for why in lines {
        for line in why.to_string().lines() {
            eprintln!("  because: {line}");
        }
    }
    if let Some(hint) = hint {
        eprintln!("  try: {hint}");
    }
}

/// Writes to standard output. False when the reader has gone away, which is no failure.
fn print(bytes: &[u8]) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// One thread: an agent does little, and little at a time.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .context("cannot start the runtime")
}

// ---- run ---------------------------------------------------------------------------------------------

fn run(path: Option<&Path>, log_format: Option<LogShape>) -> ExitCode {
    let mut config = match Config::load(path) {
        Ok(config) => config,
        Err(faults) => {
            report(&faults);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match log_format {
        Some(LogShape::Text) => config.log.format = LogFormat::Text,
        Some(LogShape::Json) => config.log.format = LogFormat::Json,
        None => {}
    }
    // Held until the end of the process: two agents with one identity would push each other out.
    let _lock = match lock::take(&config.state_dir) {
        Ok(lock) => lock,
        Err(error) => {
            let hint = match &error {
                LockError::Taken(_) => {
                    "stop it first: systemctl stop muster-agent; or give this one a state_dir of its own"
                }
                LockError::Io { .. } => "run the agent as the user that owns this folder",
            };
            complain(&anyhow::Error::new(error).context(Hint(hint)));
            return ExitCode::FAILURE;
        }
    };
    let identity = match Identity::load(&config.state_dir) {
        Ok(identity) => identity,
        Err(error @ IdentityError::Missing(_)) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_NOT_ENROLLED);
        }
        Err(error) => {
            complain(&error.into());
            return ExitCode::FAILURE;
        }
    };
    let facts = host::facts(&HostRoot::at("/"), &[]);
    if let Err(error) = machine::check(&config.state_dir, identity.host_id, &facts.machine_id_hash)
    {
        let is_copy = matches!(error, MachineError::Copy { .. });
        complain(&anyhow::Error::new(error).context(Hint(
            "muster-agent reset-identity, then muster-agent enrol; or, if the machine id of this host was changed on purpose, muster-agent reset-identity --same-host",
        )));
        return match is_copy {
            true => ExitCode::from(EXIT_NOT_ENROLLED),
            false => ExitCode::FAILURE,
        };
    }
    match serve(path, config, &identity) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(path: Option<&Path>, config: Config, identity: &Identity) -> anyhow::Result<()> {
    let log = start_log(config.log).context("cannot start the log")?;
    // Before there are other threads, and before anything is read that others write.
    if !config.checks.runs_programs()
        && let Err(error) = sandbox::give_up_programs()
    {
        tracing::warn!(
            error = %format_args!("{:#}", anyhow::Error::new(error)),
            "the agent keeps the ability to run programs, which it does not use"
        );
    }
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let labels: Vec<_> = config.labels.clone().into_iter().collect();
        let source = LiveHost::new(HostRoot::at("/"), &config.collect, &labels)
            .with_checks(&config.checks)
            .watched(&config.watch(), config.recorder);
        let servers = match &config.uplink_addresses[..] {
            [] => vec![identity.uplink_address.clone()],
            given => given.to_vec(),
        };
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            host_id = %identity.host_id,
            servers = servers.join(", "),
            interval_ms = config.interval.as_millis(),
            "agent starts"
        );
        let credentials = Credentials::on_disk_to(&config.state_dir, servers);
        let agent = Agent::new(
            AgentConfig {
                host: identity.host_id,
                interval: config.interval,
                buffer: config.buffer,
                spool: config.spool(),
                status_socket: Some(config.status_socket()),
                seed: fastrand::u64(..),
            },
            credentials,
            Box::new(source),
        )
        .with_page(config.node_exporter)
        .alone();
        let monitor = agent.monitor();
        let stopped = stop_signal()?;
        tell_systemd(&[NotifyState::Ready, NotifyState::Status(&monitor.line())]);
        // A task of its own: what wakes the future of `block_on` goes through the kernel, what wakes a task of the
        // same thread does not.
        let running = tokio::spawn(agent.run(stopped));
        tokio::select! {
            ended = running => drop(ended.context("the agent ended before its time")?),
            end = attend(path, &config, &monitor, &log) => end?,
        }
        Ok(())
    });
    // A resolver that does not answer holds a thread for as long as it likes; the end does not wait for it.
    runtime.shutdown_background();
    served
}

/// Completes on SIGTERM or SIGINT, with the reason for the goodbye.
fn stop_signal() -> anyhow::Result<impl Future<Output = FinReason>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot await SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot await SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tell_systemd(&[NotifyState::Stopping]);
        let reason = goodbye::reason().await;
        tracing::info!(reason = words::goodbye(reason), "agent stops");
        reason
    })
}

/// Answers systemd's watchdog and the signals that do not stop; never ends by itself.
async fn attend(
    path: Option<&Path>,
    config: &Config,
    monitor: &Monitor,
    log: &LogHandle,
) -> anyhow::Result<()> {
    let mut reload = signal(SignalKind::hangup()).context("cannot await SIGHUP")?;
    let mut summary = signal(SignalKind::user_defined1()).context("cannot await SIGUSR1")?;
    // This runs on the thread of the agent: if that hangs, the watchdog hears nothing.
    let watchdog = sd_notify::watchdog_enabled();
    let pace = watchdog.map_or(STATUS_EVERY, |limit| (limit / 2).min(STATUS_EVERY));
    let mut beat = time::interval(pace);
    let mut told = String::new();
    loop {
        tokio::select! {
            _ = beat.tick() => {
                if watchdog.is_some() {
                    tell_systemd(&[NotifyState::Watchdog]);
                }
                let line = monitor.line();
                if line != told {
                    tell_systemd(&[NotifyState::Status(&line)]);
                    told = line;
                }
            }
            _ = reload.recv() => reload_config(path, config, log),
            _ = summary.recv() => {
                let books = monitor.books();
                tracing::info!(
                    link = monitor.line(),
                    produced = books.produced,
                    durable = books.durable,
                    rejected = books.rejected,
                    lost = books.lost,
                    queued = books.held,
                    "state"
                );
            }
        }
    }
}

/// Takes over what can change while the agent runs and says what cannot.
fn reload_config(path: Option<&Path>, running: &Config, log: &LogHandle) {
    let fresh = match Config::load(path) {
        Ok(fresh) => fresh,
        Err(faults) => {
            for fault in &faults.0 {
                tracing::error!(%fault, "configuration not taken over");
            }
            return;
        }
    };
    log.set_level(fresh.log.level);
    let needs_restart = fresh.differs_beyond_log_level(running);
    tracing::info!(
        log_level = ?fresh.log.level,
        needs_restart,
        "configuration read again: the log level holds now, other changes need systemctl restart muster-agent"
    );
}

/// Tells systemd, when it asked to be told.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}

// ---- the other commands ------------------------------------------------------------------------------

fn report(faults: &Faults) {
    eprintln!("error: the configuration cannot be used");
    for fault in &faults.0 {
        eprintln!("  {fault}");
    }
}

fn check_config(path: Option<&Path>) -> anyhow::Result<bool> {
    let shown = path.unwrap_or(Path::new(DEFAULT_PATH)).display();
    match Config::load(path) {
        Ok(_) => print(format!("{shown}: ok\n").as_bytes()),
        Err(faults) => Err(faults).context("the configuration cannot be used"),
    }
}

fn load(path: Option<&Path>) -> anyhow::Result<Config> {
    Config::load(path).context("the configuration cannot be used")
}

/// Refused as wrong usage, before anything is dialled or a token is asked for.
fn door(address: &str) -> Result<String, enrol::AddressError> {
    enrol::check_address(address).map(|()| address.to_owned())
}

fn enrol(path: Option<&Path>, flags: Enrol) -> anyhow::Result<bool> {
    let config = load(path)?;
    let source = match (flags.token, flags.token_file) {
        (Some(token), _) => TokenSource::Argument(token),
        (None, Some(file)) => TokenSource::File(file),
        (None, None) => TokenSource::Ask,
    };
    let token = enrol::read_token(&source)?;
    let labels: Vec<_> = config.labels.into_iter().collect();
    let facts = host::facts(&HostRoot::at("/"), &labels);
    let joining = enrol::enrol_telling(
        &flags.address,
        &token,
        facts,
        &config.state_dir,
        tell_progress,
    );
    let joined = runtime()?.block_on(joining)?;
    let text = format!(
        "enrolled as {} in {}\nuplink {}\nnext: systemctl enable --now muster-agent\n",
        joined.host_id, joined.trust_domain, joined.uplink_address
    );
    print(text.as_bytes())
}

fn reset_identity(path: Option<&Path>, yes: bool, same_host: bool) -> anyhow::Result<bool> {
    let state = load(path)?.state_dir;
    // An agent that runs would go on with what it has read.
    let _lock = lock::take(&state).context(Hint("stop it first: systemctl stop muster-agent"))?;
    let identity = Identity::load(&state);
    let who = identity.as_ref().map_or_else(
        |_| "no usable identity".to_owned(),
        |identity| format!("the identity of host {}", identity.host_id),
    );
    let here = state.display();
    if !yes {
        anyhow::bail!("{here} holds {who}; nothing was done without --yes");
    }
    if same_host {
        let identity = identity?;
        let facts = host::facts(&HostRoot::at("/"), &[]);
        machine::mark(&state.join("identity"), &facts.machine_id_hash)?;
        let text = format!("this machine is host {} from now on\n", identity.host_id);
        return print(text.as_bytes());
    }
    machine::reset(&state)?;
    let text = format!(
        "{here} held {who}; it is removed, and the samples that waited to be sent with it\nnext: muster-agent enrol HOST with a new token\n"
    );
    print(text.as_bytes())
}

/// To standard error: what is printed is the end.
fn tell_progress(progress: Progress) {
    match progress {
        Progress::Waiting { number, key } => eprintln!(
            "waiting for an operator to approve this host: number {number}, key {key}\n  there: muster enrol pending, then muster enrol approve {number}\n  Ctrl-C and the same command again is no harm"
        ),
        Progress::Busy => eprintln!("many hosts join at the moment; asking again"),
        Progress::Unanswered(cause) => {
            eprintln!("still waiting, the aggregator does not answer: {cause}");
        }
    }
}

fn take_samples(path: Option<&Path>, flags: &Sample) -> anyhow::Result<bool> {
    let mut config = load(path)?.collect;
    let all = collect::describe(&config);
    if let Some(unknown) = flags
        .collector
        .iter()
        .find(|wanted| !all.iter().any(|info| info.about.name == **wanted))
    {
        anyhow::bail!("there is no collector {unknown:?}; muster-agent collectors lists them");
    }
    if !flags.collector.is_empty() {
        let others = all.iter().map(|info| info.about.name.to_owned());
        config.disabled = others
            .filter(|name| !flags.collector.contains(name))
            .collect();
    }
    // A round by hand is what the service would send: under the same filter, where there is one.
    let _ = sandbox::give_up_programs();
    let format = match flags.format {
        SampleShape::Text => sample::Format::Text,
        SampleShape::Json => sample::Format::Json,
        SampleShape::Prometheus => sample::Format::Prometheus,
    };
    let runtime = runtime()?;
    let sampled = runtime.block_on(async {
        let host = flags.root.as_deref().map_or(HostRoot::at("/"), captured);
        let has_bus = host.is_live() && Path::new(BUS).exists();
        let mut collection = Collection::new(host, &config);
        let urgent = collection.urgent();
        collection.run(SystemClock.now());
        time::sleep(PRIMING).await;
        if config.is_enabled(collect::systemd::NAME) && has_bus {
            // It answers the first question by telling that there is news.
            if time::timeout(BUS_PATIENCE, urgent.notified())
                .await
                .is_err()
            {
                eprintln!(
                    "warning: systemd did not answer on the bus within {} s; its units are absent",
                    BUS_PATIENCE.as_secs()
                );
            }
        }
        for pass in 0..flags.repeat {
            if pass > 0 {
                time::sleep(PASS_EVERY).await;
            }
            let now = SystemClock.now();
            if !print(&sample::render(collection.run(now), now, format))? {
                break;
            }
        }
        for fault in collection.faults() {
            let state = if fault.failed {
                "failed; its values are absent"
            } else {
                "is cut short"
            };
            eprintln!(
                "warning: collector {} {state}: {}",
                fault.collector, fault.why
            );
        }
        Ok(true)
    });
    runtime.shutdown_background();
    sampled
}

/// The host in this folder: what `capture` wrote has it one level below.
fn captured(folder: &Path) -> HostRoot {
    let below = folder.join("root");
    if below.is_dir() && !folder.join("proc").is_dir() {
        HostRoot::at(below)
    } else {
        HostRoot::at(folder)
    }
}

fn capture_host(path: Option<&Path>, flags: &CaptureFlags) -> anyhow::Result<bool> {
    let config = load(path)?.collect;
    let mut capture = Capture::new(&HostRoot::at("/"), &config, flags.with_serials);
    // Within a runtime: collectors may start tasks, though none that is captured does.
    let runtime = runtime()?;
    runtime.block_on(async {
        capture.round(SystemClock.now());
        time::sleep(capture::PAUSE).await;
        capture.round(SystemClock.now());
    });
    runtime.shutdown_background();
    let written = capture.write(&flags.folder).map_err(|error| {
        let hint = match &error {
            CaptureError::NotEmpty(_) => "name a folder that does not exist yet",
            CaptureError::Write { .. } => "name a folder that you may write to, with 64 MiB free",
        };
        anyhow::Error::new(error).context(Hint(hint))
    })?;
    let folder = flags.folder.display();
    if written.left_out > 0 {
        eprintln!(
            "warning: {} files and folders had no room and are left out",
            written.left_out
        );
    }
    let text = format!(
        "{} files, {} bytes in {folder}\nnext: look through it, it names this host's disks, mounts and interfaces; then\n      \
         muster-agent sample --root {folder} shows what it tells, tar -czf capture.tar.gz {folder} packs it\n",
        written.files, written.bytes
    );
    print(text.as_bytes())
}

/// As a monitoring plugin would end: usable from cron and by other monitors.
fn run_checks(path: Option<&Path>, names: &[String], output: Shape) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(faults) => {
            report(&faults);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let asked = || -> anyhow::Result<check::Status> {
        let chosen = check::by_hand::choose(&config.checks, names)?;
        // Whoever looks for help here learns it from `run` if this kernel has no such filter.
        if !config.checks.runs_programs() {
            let _ = sandbox::give_up_programs();
        }
        let reports = runtime()?.block_on(check::by_hand::run(&config.checks, &chosen));
        let text = match output {
            Shape::Table => check::by_hand::render(&reports),
            Shape::Json => check::by_hand::json(&reports),
        };
        print(text.as_bytes())?;
        Ok(check::by_hand::worst(&reports))
    };
    match asked() {
        Ok(worst) => ExitCode::from(worst as u8),
        Err(error) => {
            complain(&error);
            ExitCode::from(check::Status::Unknown as u8)
        }
    }
}

fn print_status(path: Option<&Path>, output: Shape) -> anyhow::Result<bool> {
    let config = load(path)?;
    let status = status::fetch(&config.status_socket()).map_err(|error| {
        let hint = match &error {
            StatusError::NotRunning { .. }
                if matches!(
                    Identity::load(&config.state_dir),
                    Err(IdentityError::Missing(_))
                ) =>
            {
                "muster-agent enrol ADDRESS, then systemctl start muster-agent"
            }
            StatusError::NotRunning { .. } => "systemctl start muster-agent",
            _ => "as root, or as the user the agent runs as",
        };
        anyhow::Error::new(error).context(Hint(hint))
    })?;
    match output {
        Shape::Table => print(status::render(&status).as_bytes()),
        Shape::Json => {
            let mut text = serde_json::to_string_pretty(&status).context("cannot print")?;
            text.push('\n');
            print(text.as_bytes())
        }
    }
}

fn print_collectors(path: Option<&Path>) -> anyhow::Result<bool> {
    let all = collect::describe(&load(path)?.collect);
    let width = |of: fn(&collect::About) -> &str| {
        let longest = all.iter().map(|info| of(info.about).len()).max();
        longest.unwrap_or(0)
    };
    let name_width = width(|about| about.name).max("COLLECTOR".len());
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = writeln!(out, "{:name_width$}  ON   WHAT", "COLLECTOR");
    for info in &all {
        let about = info.about;
        let on = if info.on { "yes" } else { "no" };
        let _ = writeln!(out, "{:name_width$}  {on:3}  {}", about.name, about.what);
        let _ = writeln!(out, "{:name_width$}       reads {}", "", about.reads);
        if !about.needs.is_empty() {
            let _ = writeln!(out, "{:name_width$}       needs {}", "", about.needs);
        }
    }
    print(out.as_bytes())
}
