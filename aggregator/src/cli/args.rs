//! What may be typed after `muster`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{
    ack::Ack,
    at::At,
    events::{EventsArgs, Look},
    incidents::parse_id,
    notify::{Noise, Notify},
    output::Format,
    quiet::{Maintenance, Silence},
    replay::Replay,
};

/// See what a fleet of Linux hosts is doing.
///
/// Without a command: the fleet on one screen.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    after_help = "Hosts are chosen by names ('web-*', web-[01-40], @- for standard input) and by selectors \
                  (-l 'env=prod,cpu>90').\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not \
                  allowed, 5 not reachable, 6 done in part."
)]
pub struct Cli {
    /// What goes with every command.
    #[command(flatten)]
    pub global: Global,
    /// Of which time, without a command.
    #[command(flatten)]
    pub at: At,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Form of the answer [default: table on a terminal, tab-separated in a pipe]
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        hide_possible_values = true,
        value_name = "table|wide|json|jsonl|csv|name|tsv"
    )]
    pub output: Option<Format>,
    /// Columns to show, by heading or JSON name, separated by commas
    #[arg(
        short,
        long,
        global = true,
        value_delimiter = ',',
        value_name = "COLUMN,…"
    )]
    pub columns: Vec<String>,
    /// Column to order by; - before it for the largest first
    #[arg(
        short = 'S',
        long,
        global = true,
        value_name = "[-]COLUMN",
        allow_hyphen_values = true
    )]
    pub sort: Option<String>,
    /// At most this many rows
    #[arg(short = 'n', long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Redraw every SECONDS (default 2); for answers about hosts, services and incidents
    #[arg(short, long, global = true, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2", value_parser = seconds)]
    pub watch: Option<Duration>,
    /// Aggregator to ask, by its name in the configuration
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "MUSTER_CONTEXT",
        hide_env = true
    )]
    pub context: Option<String>,
    /// Address to ask in place of the context's
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub server: Option<String>,
    /// Longest time to wait for an answer, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub timeout: Duration,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "auto|always|never", hide_possible_values = true)]
    pub color: Color,
    /// Show times in UTC
    #[arg(long, global = true)]
    pub utc: bool,
}

/// `-w1` as `-w=1`: the flag takes a value only with `=`, or `-w hosts` would lose its command.
pub fn spelled(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags = true;
    let spell = |word: OsString| {
        flags &= word != "--";
        match word.to_str().and_then(|text| text.strip_prefix("-w")) {
            Some(value) if flags && value.starts_with(|c: char| c.is_ascii_digit()) => {
                format!("-w={value}").into()
            }
            _ => word,
        }
    };
    words.into_iter().map(spell).collect()
}

impl Command {
    /// The time that it asks about, of those that can.
    #[must_use]
    pub fn at(&self) -> Option<&At> {
        match self {
            Self::Hosts(hosts) => Some(&hosts.at),
            Self::Host { at, .. } => Some(at),
            Self::Top(top) => Some(&top.at),
            Self::Services(services) => Some(&services.at),
            Self::Incidents(incidents) => Some(&incidents.at),
            _ => None,
        }
    }

    /// Whether its answer changes while one looks at it.
    #[must_use]
    pub fn can_be_watched(&self) -> bool {
        matches!(
            self,
            Self::Hosts(_)
                | Self::Host { .. }
                | Self::Top(_)
                | Self::Services(_)
                | Self::Checks(_)
                | Self::Anomalies(_)
                | Self::Incidents(_)
                | Self::Incident { .. }
                | Self::Doctor
        )
    }
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// List hosts
    #[command(visible_alias = "h")]
    Hosts(Hosts),
    /// Show everything about one host, or remove it
    Host {
        /// Name or 32-digit id
        name: String,
        /// What to look at besides.
        #[command(flatten)]
        look: Look,
        /// Of which time.
        #[command(flatten)]
        at: At,
        /// What to do with it.
        #[command(subcommand)]
        act: Option<HostAct>,
    },
    /// Withdraw an operator's certificates
    Operator {
        /// As muster audit shows it
        name: String,
        /// What to do.
        #[command(subcommand)]
        act: OperatorAct,
    },
    /// The authority behind all certificates, and how one follows another
    #[command(subcommand)]
    Ca(super::ca::Ca),
    /// Let hosts join: tokens, and those that wait to be approved
    #[command(subcommand)]
    Enrol(super::enrol::Enrol),
    /// Show who did what, newest first
    Audit(super::audit::Args),
    /// Show numbers over time
    History(super::history::History),
    /// Draw a metric over time
    Plot(super::plot::Plot),
    /// Ask an expression: rates, sums by label, the top few, comparisons
    Query(super::query::Query),
    /// Show the hosts that use most of something, redrawn on a terminal
    Top(Top),
    /// List units over all hosts, failing first
    #[command(visible_alias = "svc")]
    Services(Services),
    /// List checks that hosts define, failing first
    Checks(super::checks::Args),
    /// List hosts that are off their usual range, and what moved
    #[command(visible_alias = "an")]
    Anomalies(Anomalies),
    /// List incidents, open ones unless --all
    #[command(visible_alias = "inc")]
    Incidents(Incidents),
    /// Show one incident and its evidence
    Incident {
        /// As muster incidents shows it: I-2041
        #[arg(value_name = "ID", value_parser = parse_id)]
        number: u64,
    },
    /// Show what happened on hosts: boots, kills, units, changes
    #[command(visible_alias = "ev")]
    Events(EventsArgs),
    /// Say that you see to an incident
    Ack(Ack),
    /// Take an acknowledgement back
    Unack {
        /// As muster incidents shows it: I-2041
        #[arg(value_name = "ID", value_parser = parse_id)]
        number: u64,
    },
    /// Tell nobody of some incidents for a while
    #[command(subcommand)]
    Silence(Silence),
    /// Plan times in which nobody is told
    #[command(subcommand)]
    Maintenance(Maintenance),
    /// See and try the channels by which people are told
    #[command(subcommand)]
    Notify(Notify),
    /// Show what each rule told people, and whether it was of use
    Noise(Noise),
    /// Tell again what was told, or what other rules would have told
    Replay(Replay),
    /// Find out why it does not work, step by step
    Doctor,
    /// Choose between aggregators
    #[command(subcommand)]
    Context(ContextCommand),
    /// Get an operator certificate from an aggregator on this machine
    Login(Login),
    /// Show who you are to the aggregator
    Whoami,
    /// Show what Muster calls wrong, and check changes of it
    #[command(subcommand)]
    Rules(super::rules::Rules),
    /// Print what other programs need
    #[command(subcommand)]
    Export(Export),
    /// Print a completion script for a shell
    Completion {
        /// bash, zsh or fish
        #[arg(value_enum, hide_possible_values = true)]
        shell: Shell,
    },
    /// Print the manual page (muster man | man -l -)
    Man,
    /// Print the version
    Version,
}

/// `muster host NAME …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum HostAct {
    /// Cut it off; with a new token it may enrol again, as a new host
    Evict {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// End its quarantine, after two machines spoke with its identity
    Release {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Cut it off, and refuse tokens to the machine
    Ban {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// `muster operator NAME …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum OperatorAct {
    /// Refuse every certificate the operator has
    Revoke {
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// `muster hosts`
#[derive(Debug, Clone, Args)]
pub struct Hosts {
    /// Names or patterns; @- reads them from standard input
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Only hosts for which this holds: env=prod,role!=db,cpu>90
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    pub selector: String,
    /// Of which time.
    #[command(flatten)]
    pub at: At,
}

/// `muster top`
#[derive(Debug, Clone, Args)]
pub struct Top {
    /// What to compare by
    #[arg(long, value_enum, default_value_t = By::Cpu)]
    pub by: By,
    /// Only hosts for which this holds
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    pub selector: String,
    /// Show it once, do not redraw
    #[arg(long)]
    pub once: bool,
    /// Of which time.
    #[command(flatten)]
    pub at: At,
}

/// What `muster top` compares by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Share of CPU time not idle
    Cpu,
    /// Share of memory in use
    Mem,
    /// Share in use of the fullest filesystem
    Disk,
    /// Busiest disk's share of time busy
    Io,
    /// Bytes received and sent
    Net,
    /// Worst pressure stall
    Psi,
    /// Load average over 1 minute
    Load,
    /// How unusual the host is
    Anomaly,
}

/// Of which hosts: the same two flags wherever a list can be about some of them.
#[derive(Debug, Clone, Args)]
pub struct OfHosts {
    /// Only of this host; a pattern for several
    #[arg(
        long,
        value_name = "HOST",
        default_value = "",
        hide_default_value = true
    )]
    pub host: String,
    /// Only of hosts for which this holds
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    pub selector: String,
}

/// `muster services`
#[derive(Debug, Clone, Args)]
pub struct Services {
    /// Units or patterns: nginx.service, 'php*'
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Only those that have failed
    #[arg(long)]
    pub failed: bool,
    /// Of which hosts.
    #[command(flatten)]
    pub of: OfHosts,
    /// Of which time.
    #[command(flatten)]
    pub at: At,
}

/// `muster anomalies`
#[derive(Debug, Clone, Args)]
pub struct Anomalies {
    /// Of which hosts.
    #[command(flatten)]
    pub of: OfHosts,
    /// Only from this score on; hosts are listed from 1 on
    #[arg(long, value_name = "SCORE")]
    pub min_score: Option<f64>,
}

/// `muster incidents`
#[derive(Debug, Clone, Args)]
pub struct Incidents {
    /// Resolved ones too
    #[arg(long, conflicts_with = "at")]
    pub all: bool,
    /// Each one, also those that people were told of under another
    #[arg(long)]
    pub each: bool,
    /// Only of this severity
    #[arg(long, value_enum)]
    pub severity: Option<Severity>,
    /// Of which hosts.
    #[command(flatten)]
    pub of: OfHosts,
    /// Of which time.
    #[command(flatten)]
    pub at: At,
}

/// Severities that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Severity {
    /// Somebody should get up.
    Critical,
    /// Somebody should look today.
    Warning,
    /// Good to know.
    Info,
}

/// `muster context`
#[derive(Debug, Clone, Subcommand)]
pub enum ContextCommand {
    /// List the aggregators you know
    List,
    /// Use this one from now on
    Use {
        /// Its name
        name: String,
    },
    /// Add one whose certificate files you have
    Add(ContextAdd),
    /// Forget one, its private key included
    Remove {
        /// Its name
        name: String,
    },
}

/// `muster context add`; the address is given by `--server`.
#[derive(Debug, Clone, Args)]
pub struct ContextAdd {
    /// Its name
    pub name: String,
    /// Trust domain of the installation: m-…
    #[arg(long, value_name = "DOMAIN")]
    pub trust_domain: muster_proto::spiffe::TrustDomain,
    /// Root certificates, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,
    /// Your certificate and its issuer, PEM
    #[arg(long, value_name = "FILE")]
    pub cert: PathBuf,
    /// Your private key, PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}

/// `muster login`
#[derive(Debug, Clone, Args)]
pub struct Login {
    /// The aggregator's admin socket on this machine
    #[arg(long, value_name = "PATH")]
    pub admin_socket: PathBuf,
    /// Your name in the audit log [default: your user name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What you may do
    #[arg(long, value_enum, default_value_t = Role::Operator)]
    pub role: Role,
}

/// Roles that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Look
    Viewer,
    /// Look and acknowledge
    Operator,
    /// Everything
    Admin,
}

/// `muster export`
#[derive(Debug, Clone, Subcommand)]
pub enum Export {
    /// The scrape_configs block for Prometheus
    PrometheusConfig {
        /// The aggregator's HTTP door [default: as the aggregator says]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// Only hosts for which this holds
        #[arg(
            short = 'l',
            long,
            value_name = "SELECTOR",
            default_value = "",
            hide_default_value = true
        )]
        selector: String,
        /// Root certificates as Prometheus finds them
        #[arg(long, value_name = "FILE", default_value = "muster-ca.pem")]
        ca: String,
        /// File with the bearer token as Prometheus finds it
        #[arg(long, value_name = "FILE", default_value = "muster.token")]
        credentials: String,
    },
    /// The root certificates that the context trusts, PEM
    Ca,
    /// Samples over time, as OpenMetrics text or CSV
    Metrics(super::export_metrics::Metrics),
}

/// Shells with completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash
    Bash,
    /// Zsh
    Zsh,
    /// fish
    Fish,
}

/// `10`, `0.5`, `10s`, `2m`; from 0.1 s to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let seconds: f64 = digits.parse().unwrap_or(f64::NAN);
    let seconds = seconds * unit;
    if (0.1..=86_400.0).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err("a time is a number of seconds from 0.1 on: 10, 0.5, 2m".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_anywhere() {
        let cli = Cli::try_parse_from([
            "muster",
            "hosts",
            "-l",
            "env=prod",
            "--sort",
            "-cpu",
            "-n",
            "4",
            "web-[01-40]",
            "-o",
            "json",
            "-w=5",
        ])
        .expect("parsed");
        assert_eq!(cli.global.sort.as_deref(), Some("-cpu"));
        assert_eq!(cli.global.watch, Some(Duration::from_secs(5)));
        assert_eq!(cli.global.output, Some(Format::Json));
        let Some(Command::Hosts(hosts)) = cli.command else {
            unreachable!("it was hosts");
        };
        assert_eq!(hosts.names, ["web-[01-40]"]);
    }

    #[test]
    fn watch_takes_its_seconds_with_and_without_a_sign() {
        let spelled = |words: &[&str]| spelled(words.iter().map(OsString::from));
        assert_eq!(
            spelled(&["muster", "-w1", "-w", "--", "-w2"]),
            ["muster", "-w=1", "-w", "--", "-w2"]
        );
        let cli = Cli::try_parse_from(spelled(&["muster", "-w0.5", "hosts"])).expect("parsed");
        assert_eq!(cli.global.watch, Some(Duration::from_millis(500)));
        assert!(cli.command.is_some_and(|command| command.can_be_watched()));
    }

    #[test]
    fn times_have_bounds() {
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "0", "-1", "x", "nan", "1e9", "inf"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
