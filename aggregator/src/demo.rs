//! A look around without set-up: a throw-away authority, an aggregator on loopback, a real agent of this
//! host over real mTLS, and made-up hosts if asked for.
//!
//! Everything lives in one process and one temporary folder, which is gone afterwards.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use muster_agent::{
    Agent, AgentConfig, Credentials, LiveHost, Source,
    buffer::BufferLimits,
    collect::CollectConfig,
    enrol,
    host::HostRoot,
    settings,
    simulate::SimulatedHost,
    telemetry::{self, LogConfig, LogLevel},
    watch::WatchConfig,
};
use muster_proto::{
    limits,
    time::{Clock as _, SystemClock},
    token::Token,
    v1,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli,
    config::Config,
    control::TokenOptions,
    say,
    serve::{self, Addresses, Aggregator},
    setup,
};

/// Hosts that join at a time.
const JOINING: usize = 16;

/// How long the first samples may take before the demo goes on without them.
const FIRST_SAMPLES: Duration = Duration::from_secs(20);

/// What `muster-aggregator demo` takes.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Made-up hosts beside this one
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(..=20_000))]
    pub hosts: u32,
    /// Interval between the samples of every host
    #[arg(long, default_value = "1s", value_name = "SPAN", value_parser = interval)]
    pub interval: Duration,
    /// End by itself after this time
    #[arg(long = "for", value_name = "SPAN", value_parser = span)]
    pub duration: Option<Duration>,
    /// Log what happens inside
    #[arg(long)]
    pub verbose: bool,
}

fn span(text: &str) -> Result<Duration, String> {
    settings::parse_duration(text).ok_or_else(|| "no span of time: write 10s, 5m or 1h".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    let bounds = limits::MIN_INTERVAL..=limits::MAX_INTERVAL;
    let found = span(text)?;
    bounds.contains(&found).then_some(found).ok_or_else(|| {
        format!(
            "{} to {}",
            settings::show_duration(limits::MIN_INTERVAL),
            settings::show_duration(limits::MAX_INTERVAL)
        )
    })
}

/// Runs until it is interrupted, or its time is over.
///
/// # Errors
/// When a part of it cannot be started.
pub fn run(options: Options) -> anyhow::Result<()> {
    telemetry::start_log(LogConfig {
        level: if options.verbose {
            LogLevel::Info
        } else {
            LogLevel::Error
        },
        ..LogConfig::default()
    })?;
    let folder = Folder::make(&std::env::temp_dir())?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(show(&options, folder.path()))
}

/// Folders of demos begin with this.
const FOLDER: &str = "muster-demo-";
/// The file in each that its demo keeps locked; the system lets go of it however the demo ends.
const LOCK: &str = "lock";

/// A temporary folder that goes when it is dropped. What a demo that was killed left behind goes when the
/// next one starts.
struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    fn make(parent: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;

        sweep(parent);
        let path = parent.join(format!("{FOLDER}{:016x}", fastrand::u64(..)));
        let make = || -> io::Result<File> {
            std::fs::DirBuilder::new().mode(0o700).create(&path)?;
            // Locked before it gets its name: a lock that nobody holds is a dead demo's.
            let new = path.join("lock.new");
            let lock = File::create(&new)?;
            lock.lock()?;
            std::fs::rename(new, path.join(LOCK))?;
            Ok(lock)
        };
        let lock = make().with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{} is left behind: {error}", self.path.display());
        }
    }
}

/// Removes what dead demos of this user left behind. Nothing depends on it, so it fails silently.
fn sweep(parent: &Path) {
    use std::os::unix::fs::MetadataExt as _;

    let me = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let named = entry.file_name().to_string_lossy().starts_with(FOLDER);
        // A link is not followed, nor is another user's folder touched.
        let mine = entry
            .metadata()
            .is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == me);
        if !named || !mine {
            continue;
        }
        let path = entry.path();
        if File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

async fn show(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let stop = serve::stop_signal().context("cannot listen to signals")?;
    let mut stop = std::pin::pin!(stop);
    let mut aggregator = start_aggregator(folder).await?;
    let agents_stop = CancellationToken::new();
    let mut agents = JoinSet::new();
    let shown = async {
        let token = token(&aggregator, options.hosts + 1).await?;
        start_agents(
            options,
            folder,
            &aggregator,
            &token,
            &agents_stop,
            &mut agents,
        )
        .await?;
        first_samples(&aggregator, u64::from(options.hosts) + 1).await;
        introduce(options, folder, &aggregator).await
    };
    let outcome = tokio::select! {
        () = &mut stop => Ok(()),
        shown = shown => match shown {
            Ok(()) => {
                let over = async {
                    match options.duration {
                        Some(duration) => time::sleep(duration).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = &mut stop => Ok(()),
                    () = over => Ok(()),
                    error = aggregator.failed() => Err(error),
                }
            }
            Err(error) => Err(error),
        },
    };
    eprintln!("stopping");
    agents_stop.cancel();
    while agents.join_next().await.is_some() {}
    aggregator.stop().await;
    outcome
}

async fn start_aggregator(folder: &Path) -> anyhow::Result<Aggregator> {
    let state_dir = folder.join("aggregator");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    setup::init(&state_dir, &names)?;
    let defaults = Config::default();
    let mut config = Config {
        fleet_name: "demo".to_owned(),
        runtime_dir: folder.to_owned(),
        state_dir,
        exempt_loopback: true,
        log_max_bytes: 256 << 20,
        ..defaults
    };
    // The usual ports where they are free, so that addresses can be guessed; else what the system gives.
    let usual = [7443, 7444, 7445, 7446];
    let free = usual.iter().all(|&port| {
        std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
    });
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, if free { port } else { 0 }));
    [
        config.uplink,
        config.enrolment,
        config.operator,
        config.http.listen,
    ] = usual.map(at);
    serve::start(&config).await
}

async fn token(aggregator: &Aggregator, uses: u32) -> anyhow::Result<Token> {
    let options = TokenOptions {
        uses,
        ..TokenOptions::default()
    };
    let (pin, now) = (aggregator.authority().pin(), SystemClock.now());
    Ok(aggregator
        .control()
        .create_token(pin, options, "demo", now)
        .await?)
}

async fn start_agents(
    options: &Options,
    folder: &Path,
    aggregator: &Aggregator,
    token: &Token,
    stop: &CancellationToken,
    agents: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let Addresses { enrolment, .. } = aggregator.addresses();
    let places = Arc::new(Semaphore::new(JOINING));
    let mut joining = JoinSet::new();
    for number in 0..=u64::from(options.hosts) {
        let state = folder.join("agents").join(number.to_string());
        let (token, interval, places) = (token.clone(), options.interval, Arc::clone(&places));
        joining.spawn(async move {
            let _place = places.acquire_owned().await;
            let source: Box<dyn Source> = if number == 0 {
                let root = HostRoot::at("/");
                let watch = WatchConfig {
                    state_dir: Some(state.clone()),
                    ..WatchConfig::default()
                };
                let live = LiveHost::new(root, &CollectConfig::default(), &[]);
                Box::new(live.watched(&watch, true))
            } else {
                Box::new(SimulatedHost::new(number))
            };
            join(&enrolment.to_string(), &token, source, &state, interval).await
        });
    }
    while let Some(joined) = joining.join_next().await {
        let agent = joined.context("joining panicked")??;
        let stop = stop.clone();
        agents.spawn(async move {
            let stopped = async move {
                stop.cancelled().await;
                v1::FinReason::Stopped
            };
            agent.run(stopped).await;
        });
    }
    Ok(())
}

/// Enrols one host over real TLS and gives its agent.
async fn join(
    enrolment: &str,
    token: &Token,
    source: Box<dyn Source>,
    state: &Path,
    interval: Duration,
) -> anyhow::Result<Agent> {
    std::fs::create_dir_all(state)
        .with_context(|| format!("cannot make the folder {}", state.display()))?;
    let joined = enrol::enrol(enrolment, token, source.facts(), state).await?;
    let credentials = Credentials::on_disk(state, joined.uplink_address);
    let config = AgentConfig {
        host: joined.host_id,
        interval,
        buffer: BufferLimits::default(),
        spool: None,
        status_socket: None,
        seed: fastrand::u64(..),
    };
    Ok(Agent::new(config, credentials, source))
}

/// Waits until every host has sent two samples, so that there are rates to show.
async fn first_samples(aggregator: &Aggregator, hosts: u64) {
    let deadline = Instant::now() + FIRST_SAMPLES;
    while Instant::now() < deadline {
        let ready = aggregator
            .fleet()
            .each(|host, _| host.derived().cpu_ratio.map(|_| ()))
            .await;
        if ready.items.len() as u64 >= hosts {
            return;
        }
        time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("some hosts have not sent two samples yet; the demo goes on");
}

/// Signs an operator in, shows the fleet with the operators' own program, and says what to try.
async fn introduce(
    options: &Options,
    folder: &Path,
    aggregator: &Aggregator,
) -> anyhow::Result<()> {
    let config = folder.join("operator").join("config.toml");
    let socket = aggregator.admin_socket();
    let login = cli::login::login(socket, "demo", "admin", None, None, &config, None).await;
    login.map_err(|failure| anyhow::anyhow!("{}", failure.lines()))?;
    let Addresses { http, uplink, .. } = aggregator.addresses();
    for words in [
        &["muster", "-o", "table"][..],
        &["muster", "hosts", "-o", "table", "-n", "12"],
    ] {
        cli::run_words(words, &config)
            .await
            .map_err(|failure| anyhow::anyhow!("{}", failure.lines()))?;
        say!("");
    }
    let http = format!("http://{http}");
    let config = config.display();
    say!("This host's agent streams to {uplink} over mutually authenticated TLS 1.3.");
    say!("Try, in another terminal (from a checkout, cargo run -q --bin muster -- is muster):");
    say!("  export MUSTER_CONFIG={config}");
    let host = hostname();
    say!("  muster host {host}");
    say!("  muster top --by cpu ; muster services --failed ; muster doctor");
    say!("  curl -s {http}/metrics/hosts/{host}  # what node_exporter would serve");
    say!("  curl -s {http}/sd  # what Prometheus discovers");
    say!("  muster export prometheus-config --url {http}");
    if options.hosts == 0 {
        say!("With made-up hosts beside this one: muster-aggregator demo --hosts 200");
    }
    match options.duration {
        Some(duration) => say!("Ends in {}.", settings::show_duration(duration)),
        None => say!("Ctrl-C ends it and leaves nothing behind."),
    }
    Ok(())
}

fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_demo_is_swept_and_a_living_one_is_not() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let living = Folder::make(parent.path()).expect("a folder");
        let dead = parent.path().join("muster-demo-dead");
        let foreign = parent.path().join("muster-demo-without-lock");
        for folder in [&dead, &foreign] {
            std::fs::create_dir_all(folder.join("agents")).expect("a folder");
        }
        std::fs::write(dead.join(LOCK), "").expect("a file");
        let next = Folder::make(parent.path()).expect("a folder");
        assert!(!dead.exists());
        assert!(foreign.exists() && living.path().exists() && next.path().exists());
        let gone = living.path().to_owned();
        drop(living);
        assert!(!gone.exists());
    }
}
