//! `muster-aggregator`: flags, configuration, and one call into the library for each command.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use muster_agent::{settings, telemetry};
use muster_aggregator::{
    backup, chain,
    cli::audit::head,
    config::{self, Config, DEFAULT_PATH},
    control::{MAX_TOKEN_TTL, MAX_USES, Network, TokenOptions},
    demo,
    detect::offline,
    history,
    pki::Authority,
    say, serve, setup, status,
};
use muster_proto::{limits, log::DiskStorage, spiffe::hex, time::Timestamp};

/// The configuration is wrong, which does not get better by trying again (sysexits.h).
const EX_CONFIG: u8 = 78;

/// Keeps the state of a fleet, detects what is wrong, answers operators and Prometheus.
#[derive(Parser)]
#[command(name = "muster-aggregator", version, max_term_width = 100)]
struct Cli {
    /// Configuration file; without it, the default one if it exists
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MUSTER_AGGREGATOR_CONFIG"
    )]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look around: an aggregator on loopback with a real agent of this host, and made-up hosts if asked for
    Demo(demo::Options),
    /// Make the authority and the state of a new aggregator
    Init {
        /// DNS name or address under which browsers, scrapers and operators reach this aggregator
        /// (several times for several)
        #[arg(long = "name", value_name = "NAME")]
        names: Vec<String>,
    },
    /// Run the service; systemd starts this
    Serve,
    /// Join tokens; works with and without a running aggregator
    #[command(subcommand)]
    Token(Token),
    /// The clock that certificates are judged by
    #[command(subcommand)]
    Clock(ClockVerb),
    /// The audit log, as its database has it; works with and without a running aggregator
    #[command(subcommand)]
    Audit(Audit),
    /// What the running aggregator does, against its limits, and what it refused or dropped
    Status,
    /// Read all of the history and say what is damaged; beside a running aggregator too
    CheckStore,
    /// Write the whole state to one file, while the aggregator runs: keys of the authority, database, latest values,
    /// history, and the log behind it. Whoever has the file is this fleet
    Backup {
        /// Where to; never replaced. - is standard output
        file: PathBuf,
    },
    /// Make the state of an aggregator from a backup, in an empty state folder
    Restore {
        /// The backup; - is standard input
        file: PathBuf,
    },
    /// Score recorded hosts and series with the detectors of this aggregator
    ///
    /// To measure them, or to look at a past. DIR holds manifest.csv and the gzipped tables it names
    /// (docs/detection.md has the format). The result has one line for each judged row: series, row, score, and
    /// whether it would have been listed.
    Detect {
        /// Folder of the recordings
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// File for the result
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Check a configuration file and say everything that is wrong with it
    CheckConfig {
        /// The file; without it, that of --config, or the default one
        file: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum Token {
    /// Make a join token and print it: it is shown this once
    Create {
        /// How many hosts may join with it
        #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_USES)))]
        uses: u32,
        /// For how long, e.g. 15m, 2h; at most 7d
        #[arg(long, default_value = "15m", value_name = "SPAN", value_parser = span)]
        ttl: Duration,
        /// Label that hosts get that join with it (several times for several)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Network from which they call, e.g. 10.0.0.0/8 (several times for several) [default: anywhere]
        #[arg(long = "cidr", value_name = "NETWORK")]
        networks: Vec<Network>,
        /// A person must approve each of them: muster enrol pending
        #[arg(long)]
        approve: bool,
        /// The host that joins takes this one's place: its history and name stay, its certificates are refused
        #[arg(long, value_name = "HOST")]
        replaces: Option<String>,
    },
    /// List tokens, newest first
    List {
        /// Form of the list
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
    },
    /// Withdraw a token
    Revoke {
        /// Its id: the eight characters after mj1-
        id: String,
    },
}

#[derive(Subcommand)]
enum ClockVerb {
    /// Say that this machine's clock is right, after it jumped by more than an hour
    Confirm,
}

#[derive(Subcommand)]
enum Audit {
    /// Say whether a line was changed, removed or put in between; exit code 1 if so
    Verify {
        /// A newest line as an earlier verify told it, noted down elsewhere
        #[arg(long, value_name = "LINE:HASH", value_parser = head)]
        head: Option<(u64, Vec<u8>)>,
    },
    /// Print lines as JSON, one a line, oldest first, to be kept elsewhere
    Export {
        /// Only those after the line with this number
        #[arg(long, value_name = "LINE", default_value_t = 0)]
        after: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// For programs, in the style of `muster -o json`
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let file = cli.config.as_deref();
    match cli.command {
        Command::Demo(options) => finish(demo::run(options)),
        Command::Init { names } => with_config(file, |config| init(config, &names)),
        Command::Serve => with_config(file, serve),
        Command::Token(verb) => with_config(file, |config| token(config, verb)),
        Command::Clock(ClockVerb::Confirm) => with_config(file, confirm_clock),
        Command::Audit(verb) => with_config(file, |config| audit(config, verb)),
        Command::Detect { data, out } => with_config(file, |config| detect(config, &data, &out)),
        Command::Status => with_config(file, |config| {
            say!("{}", status::status(config)?.trim_end());
            Ok(())
        }),
        Command::CheckStore => with_config(file, check_store),
        Command::Backup { file: to } => with_config(file, |config| {
            let done = backup::backup(&config.state_dir, &to)?;
            eprintln!(
                "{} files, {}; keep it like a key",
                done.files,
                settings::show_bytes(done.bytes)
            );
            Ok(())
        }),
        Command::Restore { file: from } => with_config(file, |config| {
            let done = backup::restore(&from, &config.state_dir)?;
            setup::hand_over(&config.state_dir)?;
            eprintln!(
                "{} files, {}, in {}; the aggregator can be started",
                done.files,
                settings::show_bytes(done.bytes),
                config.state_dir.display()
            );
            Ok(())
        }),
        Command::CheckConfig { file: named } => {
            let file = named.as_deref().or(file);
            let file = file.unwrap_or(Path::new(DEFAULT_PATH));
            match config::load(Some(file)) {
                Ok(config) => {
                    say!("{}: ok", file.display());
                    if config.http.tls {
                        say!("{}", certificate_names(&config));
                    }
                    ExitCode::SUCCESS
                }
                Err(faults) => {
                    eprintln!("{faults}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn detect(config: &Config, data: &Path, out: &Path) -> anyhow::Result<()> {
    let scored = offline::score_folder(data, out, &config.detect)?;
    say!("{scored} recordings scored, result in {}", out.display());
    Ok(())
}

/// What a scraper may call the http door. Only the owner of the state folder can look.
fn certificate_names(config: &Config) -> String {
    match Authority::open(&config.state_dir) {
        Ok(authority) => format!(
            "http.tls: the certificate carries the names {}; http.hosts adds more",
            authority.server_names(&config.http.hosts).join(", ")
        ),
        Err(error) => format!(
            "http.tls: which names the certificate carries cannot be told: {}",
            chain(&error)
        ),
    }
}

fn with_config(file: Option<&Path>, run: impl FnOnce(&Config) -> anyhow::Result<()>) -> ExitCode {
    match config::load(file) {
        Ok(config) => finish(run(&config)),
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(EX_CONFIG)
        }
    }
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn init(config: &Config, names: &[String]) -> anyhow::Result<()> {
    let state = &config.state_dir;
    let authority = setup::init(state, names)?;
    let host = names.first().cloned().unwrap_or_else(|| {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    });
    say!(
        "authority {} made in {}",
        authority.trust_domain(),
        state.display()
    );
    say!(
        "keep a copy of {}/ca somewhere safe: whoever has it is this fleet",
        state.display()
    );
    say!("");
    say!("next, on this machine:");
    say!(
        "  the service starts by itself where the package installed it; else: muster-aggregator serve"
    );
    say!(
        "  muster login --admin-socket {}/admin.sock    an operator's certificate for you",
        config.runtime_dir.display()
    );
    say!("  muster-aggregator token create     a join token, good for one host and 15 minutes");
    say!("then on each host, which asks for the token:");
    say!("  muster-agent enrol {host}:{}", config.enrolment.port());
    Ok(())
}

fn serve(config: &Config) -> anyhow::Result<()> {
    telemetry::start_log(config.log)?;
    runtime()?.block_on(async {
        let stop = serve::stop_signal().context("cannot listen to signals")?;
        let mut aggregator = serve::start(config).await?;
        let addresses = aggregator.addresses();
        tracing::info!(
            uplink = %addresses.uplink,
            operator = %addresses.operator,
            http = %addresses.http,
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
        let watchdog = serve::notify_ready(aggregator.fleet().clone());
        let outcome = tokio::select! {
            () = stop => Ok(()),
            error = aggregator.failed() => Err(error),
            () = watchdog => Ok(()),
        };
        serve::notify_stopping();
        tracing::info!("stopping");
        aggregator.stop().await;
        outcome
    })
}

fn check_store(config: &Config) -> anyhow::Result<()> {
    let folder = config.state_dir.join("history");
    if !folder.exists() {
        say!("{}: no history yet", folder.display());
        return Ok(());
    }
    let report = history::check::check(&DiskStorage::open_to_read(&folder)?)?;
    say!(
        "{}: {} files, {}, {} points",
        folder.display(),
        report.files,
        settings::show_bytes(report.bytes),
        report.points
    );
    for problem in &report.problems {
        say!("damaged: {problem}");
    }
    anyhow::ensure!(
        report.problems.is_empty(),
        "{} of the files are damaged; what is in the others is answered. A backup has them as they were, else move \
         the folder away to begin a new history",
        report.problems.len()
    );
    Ok(())
}

fn token(config: &Config, verb: Token) -> anyhow::Result<()> {
    let state = &config.state_dir;
    let runtime = runtime()?;
    match verb {
        Token::Create {
            uses,
            ttl,
            labels,
            networks,
            approve,
            replaces,
        } => {
            let options = TokenOptions {
                uses,
                ttl,
                labels: labels.into_iter().collect::<BTreeMap<_, _>>(),
                networks,
                approve,
                replaces,
            };
            let token = runtime.block_on(setup::token_create(state, options))?;
            say!("{token}");
            eprintln!(
                "shown this once; good for {uses} {} within {}",
                if uses == 1 { "host" } else { "hosts" },
                settings::show_duration(ttl)
            );
            eprintln!(
                "on each host: muster-agent enrol HOST:{}",
                config.enrolment.port()
            );
        }
        Token::List { output: Form::Json } => {
            let rows = runtime.block_on(setup::token_list(state))?;
            let document = serde_json::json!({
                "apiVersion": "muster/v1",
                "items": rows.iter().map(|row| serde_json::json!({
                    "id": row.id,
                    "state": row.state.word(),
                    "used": row.used,
                    "uses": row.uses,
                    "created": date(row.created),
                    "expires": date(row.expires),
                    "labels": row.labels,
                    "networks": row.networks.iter().map(Network::to_string).collect::<Vec<_>>(),
                    "approve": row.approve,
                    "replaces": row.replaces.map(|host| host.to_string()),
                })).collect::<Vec<_>>(),
            });
            say!("{document:#}");
        }
        Token::List {
            output: Form::Table,
        } => {
            say!("ID        STATE    USED  EXPIRES               LABELS");
            for row in runtime.block_on(setup::token_list(state))? {
                let labels: Vec<String> = row
                    .labels
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                say!(
                    "{}  {:<7}  {:>4}  {}  {}",
                    row.id,
                    row.state.word(),
                    format!("{}/{}", row.used, row.uses),
                    date(row.expires),
                    labels.join(",")
                );
            }
        }
        Token::Revoke { id } => {
            anyhow::ensure!(
                runtime.block_on(setup::token_revoke(state, &id))?,
                "no token {id} that could still be used; muster-aggregator token list shows all"
            );
            say!("token {id} lets nobody in any more");
        }
    }
    Ok(())
}

fn confirm_clock(config: &Config) -> anyhow::Result<()> {
    let now = runtime()?.block_on(setup::clock_confirm(&config.state_dir))?;
    say!("confirmed: it is {}", date(now));
    say!("a running aggregator takes it up within seconds");
    Ok(())
}

fn audit(config: &Config, verb: Audit) -> anyhow::Result<()> {
    let state = &config.state_dir;
    let runtime = runtime()?;
    match verb {
        Audit::Verify { head } => {
            let verdict = runtime.block_on(setup::audit_verify(state, head))?;
            for fault in &verdict.faults {
                say!("{fault}");
            }
            anyhow::ensure!(
                verdict.faults.is_empty(),
                "the audit log was changed; compare with a copy from before (muster-aggregator audit export)"
            );
            say!("{} lines, each follows from the one before", verdict.lines);
            if let Some((seq, hash)) = verdict.head {
                say!("newest: {seq}:{}", hex(&hash));
            }
            Ok(())
        }
        Audit::Export { after } => runtime.block_on(setup::audit_export(state, after, |line| {
            say!(
                "{}",
                serde_json::json!({
                    "line": line.seq,
                    "at": date(line.at),
                    "atMs": line.at.as_millis(),
                    "actor": line.actor,
                    "action": line.action,
                    "on": line.subject,
                    "outcome": line.outcome,
                    "epoch": line.epoch,
                    "hash": hex(&line.hash),
                })
            );
        })),
    }
}

fn date(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.as_millis()).map_or_else(
        |_| "-".to_owned(),
        |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}

fn span(text: &str) -> Result<Duration, String> {
    let span = settings::parse_duration(text)
        .ok_or_else(|| "no span of time: write 15m, 2h or 7d".to_owned())?;
    if span.is_zero() || span > MAX_TOKEN_TTL {
        return Err("a token lives for more than nothing and at most 7d".to_owned());
    }
    Ok(span)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| "a label is KEY=VALUE".to_owned())?;
    limits::check_host_label(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_token_can_be_is_wrong_usage() {
        for (option, right) in [
            ("--uses=1", true),
            ("--uses=0", false),
            ("--uses=100001", false),
            ("--ttl=7d", true),
            ("--ttl=8d", false),
            ("--ttl=0s", false),
            ("--ttl=soon", false),
            ("--label=site/rack=fra 3", true),
            ("--label=a b=c", false),
            ("--label=role", false),
            ("--label==web", false),
            ("--label=role=\u{7}", false),
            ("--cidr=10.0.0.0/8", true),
            ("--cidr=10.0.0.1/8", false),
            ("--cidr=ten", false),
        ] {
            let parsed = Cli::try_parse_from(["muster-aggregator", "token", "create", option]);
            let exit = parsed.err().map(|error| error.exit_code());
            assert_eq!(exit, (!right).then_some(2), "{option}");
        }
    }
}
