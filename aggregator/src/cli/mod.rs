//! The `muster` command line: parse, ask, print.
//!
//! Each noun has a file that turns one answer of the operator API into columns or lines; [`output`] makes
//! every form of them, [`text`] is the one sink through which remote text reaches a terminal, [`failure`]
//! says what went wrong, and [`client`] is the way to the aggregator. Answers go to stdout, everything
//! else to stderr; the exit codes are those of `docs/cli.md`.

pub mod ack;
pub mod anomalies;
pub mod args;
pub mod at;
pub mod audit;
pub mod books;
pub mod ca;
pub mod checks;
pub mod client;
pub mod context;
pub mod doctor;
pub mod enrol;
pub mod events;
pub mod export;
pub mod export_metrics;
pub mod failure;
pub mod history;
pub mod history_status;
pub mod host;
pub mod hosts;
pub mod incidents;
pub mod login;
pub mod moment;
pub mod notify;
pub mod output;
pub mod plot;
pub mod query;
pub mod quiet;
pub mod removal;
pub mod renew;
pub mod replay;
pub mod rules;
pub mod services;
pub mod session;
pub mod summary;
pub mod table;
pub mod text;
pub mod units;
pub mod user;
pub mod when;

#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use muster_proto::v1;

use args::{By, Cli, Color, Command, ContextCommand, Export, Role, Severity, Shell};
use export::{Door, Scrape};
use failure::{Code, Failure};
use output::Rendered;
use session::Session;
use text::{Text, Tone};
use user::User;

/// Rows of `muster top` unless `-n` says otherwise: what fits on a screen.
const TOP_ROWS: u32 = 20;
/// How often `muster top` redraws on a terminal.
const TOP_REDRAW: std::time::Duration = std::time::Duration::from_secs(2);
/// Clears the screen and goes to its first line.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(args::spelled(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for: stdout and 0. The rest is wrong usage.
            let code = if error.use_stderr() {
                Code::Usage as u8
            } else {
                0
            };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let choice = match cli.global.color {
        Color::Auto => anstream::ColorChoice::Auto,
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    };
    choice.write_global();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, format!("cannot start ({error})")))
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            let _ = write!(anstream::stderr(), "{}", failure.lines());
            ExitCode::from(failure.code as u8)
        }
    }
}

/// Runs one command given as words, with the contexts of this file: for the demo, which shows the fleet with
/// the operators' own program.
///
/// # Errors
/// As the program would say it.
pub async fn run_words(words: &[&str], config: &Path) -> Result<ExitCode, Failure> {
    let cli =
        Cli::try_parse_from(words).map_err(|error| Failure::new(Code::Usage, error.to_string()))?;
    let mut session = Session::new(cli.global.clone())?;
    session.config = config.to_owned();
    run_in(session, cli).await
}

async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    run_in(Session::new(cli.global.clone())?, cli).await
}

async fn run_in(session: Session, cli: Cli) -> Result<ExitCode, Failure> {
    let on_terminal = io::stdout().is_terminal();
    let mut redraw = cli.global.watch;
    let past = match &cli.command {
        None => cli.at.at.is_some(),
        Some(command) => command.at().is_some_and(|at| at.at.is_some()),
    };
    if cli.at.at.is_some() && cli.command.is_some() {
        return Err(Failure::new(Code::Usage, "--at stands behind the command")
            .hint("muster hosts --at 2h", "as it was two hours ago"));
    }
    if past && redraw.is_some() {
        return Err(Failure::new(
            Code::Usage,
            "--watch is for what changes, and --at is for what was",
        ));
    }
    if redraw.is_some()
        && cli
            .command
            .as_ref()
            .is_some_and(|command| !command.can_be_watched())
    {
        return Err(Failure::new(
            Code::Usage,
            "--watch is for answers that change: hosts, services, checks, incidents, doctor",
        ));
    }
    if let Some(Command::Top(top)) = &cli.command
        && on_terminal
        && !top.once
        && !past
        && cli.global.output.is_none()
    {
        redraw = redraw.or(Some(TOP_REDRAW));
    }
    if let Some(Command::Events(args)) = &cli.command
        && args.follow
    {
        return events::follow(&session, args)
            .await
            .map(|()| ExitCode::SUCCESS);
    }
    let Some(pause) = redraw else {
        if let (None, Some(at)) = (&cli.command, cli.at.moment(&session)?) {
            return print(&at::summary(&session, at).await?);
        }
        return print(&answer(&session, cli.command.as_ref()).await?);
    };
    if !on_terminal {
        return Err(
            Failure::new(Code::Usage, "--watch redraws a terminal, and this is none")
                .hint("watch -n 2 muster …", "or call it again from a loop"),
        );
    }
    loop {
        // A redraw that fails says so and goes on: the aggregator may come back.
        match answer(&session, cli.command.as_ref()).await {
            Ok(rendered) => {
                let _ = write!(io::stdout(), "{CLEAR}");
                print(&rendered)?;
            }
            Err(failure) if failure.code == Code::Unreachable => {
                let _ = write!(anstream::stderr(), "{}", failure.lines());
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Writes an answer; one that lacks parts of the fleet is told apart by its exit code.
fn print(rendered: &Rendered) -> Result<ExitCode, Failure> {
    let mut out = anstream::stdout().lock();
    let written = out
        .write_all(rendered.text.as_bytes())
        .and_then(|()| out.flush());
    match written {
        // Who reads us (`| head`) has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        Err(error) => {
            return Err(Failure::new(
                Code::Failed,
                format!("cannot write the answer ({error})"),
            ));
        }
        Ok(()) => {}
    }
    for note in &rendered.notes {
        let mut text = String::new();
        Text::toned(Tone::Warn, "note:")
            .and(format!(" {note}"))
            .line_to(&mut text);
        let _ = write!(anstream::stderr(), "{text}");
    }
    for (what, names) in [
        ("no answer from", &rendered.missing),
        ("no host is called", &rendered.unknown),
    ] {
        if !names.is_empty() {
            let mut text = String::new();
            Text::toned(Tone::Warn, "incomplete:")
                .and(format!(" {what} {}", names.join(", ")))
                .line_to(&mut text);
            let _ = write!(anstream::stderr(), "{text}");
        }
    }
    if !rendered.missing.is_empty() || !rendered.unknown.is_empty() {
        return Ok(ExitCode::from(Code::Partial as u8));
    }
    if rendered.bad {
        return Ok(ExitCode::from(Code::Failed as u8));
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks what the command wants to know and makes it text.
async fn answer(session: &Session, command: Option<&Command>) -> Result<Rendered, Failure> {
    let Some(command) = command else {
        let request = v1::GetSummaryRequest::default();
        let summary = session
            .ask(async move |mut client| client.get_summary(request).await)
            .await?;
        return output::detail(summary::detail(summary), &session.options);
    };
    match command {
        Command::Hosts(hosts) => {
            let names = session::names(&hosts.names)?;
            if session::chose_nothing(&hosts.names, &names) {
                let response = v1::ListHostsResponse {
                    meta: Some(session::own_meta()),
                    ..v1::ListHostsResponse::default()
                };
                let list = hosts::list(response, session.limit);
                return output::list(list, &session.options, &session.view(None));
            }
            let sort = hosts::sort(session.options.sort.as_deref().unwrap_or_default())?;
            let at = hosts.at.moment(session)?;
            list_hosts(session, at, &hosts.selector, names, sort, session.limit).await
        }
        Command::Top(top) => {
            let sort = format!("-{}", by_word(top.by));
            let limit = session.limit.or(Some(TOP_ROWS));
            let at = top.at.moment(session)?;
            list_hosts(session, at, &top.selector, Vec::new(), sort, limit).await
        }
        Command::Host {
            look,
            act: Some(_),
            at,
            ..
        } if look.changes || look.recording.is_some() || look.books || at.at.is_some() => {
            Err(Failure::new(
                Code::Usage,
                "--changes, --recording, --books and --at show a host, evict and ban remove it",
            ))
        }
        Command::Host {
            look,
            at,
            act: None,
            ..
        } if at.at.is_some() && (look.changes || look.recording.is_some() || look.books) => {
            Err(Failure::new(
                Code::Usage,
                "--changes, --recording and --books tell their own times, --at is for the rest",
            ))
        }
        Command::Host {
            name,
            act: Some(act),
            ..
        } => {
            session::check_one(name)?;
            let said = removal::host(session, name, *act)
                .await
                .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are"))?;
            Ok(said_lines(&said))
        }
        Command::Operator { name, act } => {
            let said = removal::operator(session, name, *act).await?;
            Ok(said_lines(&said))
        }
        Command::Ca(act) => ca::answer(session, act).await,
        Command::Enrol(act) => enrol::answer(session, act).await,
        Command::Checks(args) => checks::answer(session, args).await,
        Command::Audit(args) => audit::answer(session, args).await,
        Command::History(args) => history::run(session, args).await,
        Command::Plot(args) => plot::run(session, args).await,
        Command::Query(args) => query::run(session, args).await,
        Command::Events(args) => events::list(session, args)
            .await
            .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are")),
        Command::Host {
            name,
            look,
            at,
            act: None,
        } => {
            session::check_one(name)?;
            if let Some(at) = at.moment(session)? {
                return at::host(session, at, name)
                    .await
                    .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are"));
            }
            if look.changes {
                return events::changes(session, name)
                    .await
                    .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are"));
            }
            if let Some(number) = look.recording {
                return events::recording(session, name, number).await;
            }
            let request = v1::GetHostRequest { name: name.clone() };
            let host = session
                .ask(async move |mut client| client.get_host(request).await)
                .await
                .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are"))?;
            if look.books {
                return output::detail(books::detail(host), &session.options);
            }
            let view = session.view(host.meta.as_ref());
            output::detail(host::detail(host, &view), &session.options)
        }
        Command::Services(services) => {
            session::check_selector(&services.of.selector)?;
            session::check_hosts(&services.of.host)?;
            let names = session::names(&services.names)?;
            if session::chose_nothing(&services.names, &names) {
                let response = v1::ListServicesResponse {
                    meta: Some(session::own_meta()),
                    ..v1::ListServicesResponse::default()
                };
                let list = services::list(response, services.failed);
                return output::list(list, &session.options, &session.view(None));
            }
            let request = v1::ListServicesRequest {
                selector: services.of.selector.clone(),
                names,
                failed_only: services.failed,
                host: services.of.host.clone(),
            };
            if let Some(at) = services.at.moment(session)? {
                return at::services(session, at, request)
                    .await
                    .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are"));
            }
            let response = session
                .ask(async move |mut client| client.list_services(request).await)
                .await
                .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are"))?;
            let view = session.view(response.meta.as_ref());
            let list = services::list(response, services.failed);
            output::list(list, &session.options, &view)
        }
        Command::Anomalies(anomalies) => {
            session::check_selector(&anomalies.of.selector)?;
            session::check_hosts(&anomalies.of.host)?;
            let request = v1::ListAnomaliesRequest {
                selector: anomalies.of.selector.clone(),
                min_score: anomalies.min_score,
                host: anomalies.of.host.clone(),
            };
            let response = session
                .ask(async move |mut client| client.list_anomalies(request).await)
                .await
                .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are"))?;
            let view = session.view(response.meta.as_ref());
            output::list(anomalies::list(response), &session.options, &view)
        }
        Command::Incidents(incidents) => {
            session::check_selector(&incidents.of.selector)?;
            session::check_hosts(&incidents.of.host)?;
            let severity = match incidents.severity {
                None => "",
                Some(Severity::Critical) => "critical",
                Some(Severity::Warning) => "warning",
                Some(Severity::Info) => "info",
            };
            let request = v1::ListIncidentsRequest {
                all: incidents.all,
                selector: incidents.of.selector.clone(),
                severity: severity.to_owned(),
                host: incidents.of.host.clone(),
                limit: session.limit.unwrap_or(0),
            };
            if let Some(at) = incidents.at.moment(session)? {
                return at::incidents(session, at, request).await;
            }
            let response = session
                .ask(async move |mut client| client.list_incidents(request).await)
                .await
                .map_err(|failure| not_found(failure, "muster hosts", "the hosts there are"))?;
            let view = session.view(response.meta.as_ref());
            let list = incidents::list(response, incidents.all, incidents.each);
            output::list(list, &session.options, &view)
        }
        Command::Incident { number } => {
            let request = v1::GetIncidentRequest { number: *number };
            let incident = session
                .ask(async move |mut client| client.get_incident(request).await)
                .await
                .map_err(|failure| {
                    not_found(failure, "muster incidents --all", "the incidents there are")
                })?;
            let view = session.view(incident.meta.as_ref());
            let row = incident.row.clone().unwrap_or_default();
            let mut detail = incidents::detail(incident, &view);
            events::surround(session, &row, &mut detail, &view).await;
            output::detail(detail, &session.options)
        }
        Command::Ack(act) => Ok(said_lines(&ack::ack(session, act).await?)),
        Command::Unack { number } => Ok(said_lines(&ack::unack(session, *number).await?)),
        Command::Silence(act) => quiet::silence(session, act).await,
        Command::Maintenance(act) => quiet::maintenance(session, act).await,
        Command::Notify(act) => notify::notify(session, act).await,
        Command::Noise(act) => notify::noise(session, act).await,
        Command::Replay(act) => replay::replay(session, act).await,
        Command::Doctor => {
            let timeout = session.global.timeout;
            let checks = doctor::walk(session.target(), &session.config, timeout).await;
            let bad = doctor::failed(&checks);
            let rendered = if session.for_people() {
                Rendered::text(doctor::lines(&checks))
            } else {
                let view = session.view(None);
                output::list(doctor::list(checks), &session.options, &view)?
            };
            Ok(Rendered { bad, ..rendered })
        }
        Command::Context(command) => contexts(session, command),
        Command::Login(login) => {
            let name = login.name.clone().unwrap_or_else(session::user_name);
            let role = match login.role {
                Role::Viewer => "viewer",
                Role::Operator => "operator",
                Role::Admin => "admin",
            };
            // What is named by hand is meant as it is named.
            let owner = match std::env::var_os("MUSTER_CONFIG") {
                Some(_) => None,
                None => User::behind_sudo(),
            };
            let config = owner.as_ref().map(User::config);
            let said = login::login(
                &login.admin_socket,
                &name,
                role,
                session.global.context.as_deref(),
                session.global.server.as_deref(),
                config.as_ref().unwrap_or(&session.config),
                owner.as_ref(),
            )
            .await?;
            Ok(said_lines(&said))
        }
        Command::Whoami => {
            let status = session.status().await?;
            output::detail(
                session::whoami(status, &session.target()?),
                &session.options,
            )
        }
        Command::Export(Export::PrometheusConfig {
            url,
            selector,
            ca,
            credentials,
        }) => {
            session::check_selector(selector)?;
            let door = match url {
                Some(url) => Door::of_url(url).ok_or_else(|| {
                    Failure::new(
                        Code::Usage,
                        format!("{url:?} is not the address of an HTTP door"),
                    )
                    .because("expected http://HOST:PORT or https://HOST:PORT")
                })?,
                None => {
                    let server = session.target()?.server;
                    let status = session.status().await?;
                    Door::of_status(&status, &server).ok_or_else(|| {
                        Failure::new(
                            Code::Failed,
                            format!("{server} is too old to say how it is scraped"),
                        )
                        .hint("--url https://HOST:7446", "name its HTTP door")
                    })?
                }
            };
            let scrape = Scrape {
                door,
                ca: ca.clone(),
                credentials: credentials.clone(),
                selector: selector.clone(),
            };
            Ok(Rendered::text(scrape.yaml()))
        }
        Command::Rules(command) => rules::run(command, &session.options, &session.view(None)),
        Command::Export(Export::Metrics(args)) => export_metrics::run(session, args).await,
        Command::Export(Export::Ca) => session.roots().map(Rendered::text),
        Command::Completion { shell } => {
            let shell = match shell {
                Shell::Bash => clap_complete::Shell::Bash,
                Shell::Zsh => clap_complete::Shell::Zsh,
                Shell::Fish => clap_complete::Shell::Fish,
            };
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "muster", &mut script);
            Ok(Rendered::text(
                String::from_utf8_lossy(&script).into_owned(),
            ))
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(|error| Failure::new(Code::Failed, format!("no manual page ({error})")))?;
            Ok(Rendered::text(String::from_utf8_lossy(&page).into_owned()))
        }
        Command::Version => Ok(Rendered::text(format!(
            "muster {}\n",
            env!("CARGO_PKG_VERSION")
        ))),
    }
}

async fn list_hosts(
    session: &Session,
    at: Option<i64>,
    selector: &str,
    names: Vec<String>,
    sort: String,
    limit: Option<u32>,
) -> Result<Rendered, Failure> {
    session::check_selector(selector)?;
    let literal = names.clone();
    let request = v1::ListHostsRequest {
        selector: selector.to_owned(),
        names,
        sort,
        limit: limit.unwrap_or(0),
    };
    let (list, notes, unknown) = match at {
        Some(at) => at::hosts(session, at, request).await?,
        None => {
            let response = session
                .ask(async move |mut client| client.list_hosts(request).await)
                .await?;
            let unknown = response.unknown_names.clone();
            (hosts::list(response, limit), Vec::new(), unknown)
        }
    };
    // An answer without a word about itself is of an aggregator that knows no better.
    let complete = list.meta.complete || list.meta == v1::AnswerMeta::default();
    if list.rows.is_empty() && !literal.is_empty() && complete {
        let (what, names) = match unknown.as_slice() {
            [] => ("no host that is selected is called", &literal[..]),
            unknown => ("no host is called", unknown),
        };
        return Err(
            Failure::new(Code::NotFound, format!("{what} {}", names.join(", ")))
                .hint("muster hosts", "the hosts there are"),
        );
    }
    let view = session.view(Some(&list.meta));
    // The aggregator has ordered and cut already.
    let options = output::Options {
        sort: None,
        limit: None,
        ..session.options.clone()
    };
    let rendered = output::list(list, &options, &view)?;
    Ok(Rendered {
        notes,
        unknown,
        ..rendered
    })
}

fn by_word(by: By) -> &'static str {
    match by {
        By::Cpu => "cpu",
        By::Mem => "mem",
        By::Disk => "disk",
        By::Io => "io",
        By::Net => "net",
        By::Psi => "psi",
        By::Load => "load",
        By::Anomaly => "anomaly",
    }
}

fn not_found(failure: Failure, command: &str, what: &str) -> Failure {
    if failure.code == Code::NotFound && failure.tries.is_empty() {
        return failure.hint(command, what);
    }
    failure
}

fn contexts(session: &Session, command: &ContextCommand) -> Result<Rendered, Failure> {
    match command {
        ContextCommand::List => {
            let view = session.view(None);
            output::list(session.contexts()?, &session.options, &view)
        }
        ContextCommand::Use { name } => session.use_context(name).map(|said| said_lines(&said)),
        ContextCommand::Add(add) => session.add_context(add).map(|said| said_lines(&said)),
        ContextCommand::Remove { name } => {
            session.remove_context(name).map(|said| said_lines(&said))
        }
    }
}

fn said_lines(said: &str) -> Rendered {
    let mut out = String::new();
    for line in said.lines() {
        Text::plain(line).line_to(&mut out);
    }
    Rendered::text(out)
}
