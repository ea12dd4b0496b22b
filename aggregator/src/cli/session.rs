//! What holds for one run of the command line: configuration, form of the answer, whom to ask.

use std::{
    env, fs,
    io::{self, BufRead as _, IsTerminal as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::tz::TimeZone;
use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::{Clock as _, SystemClock, Timestamp},
    tls,
    v1::{
        self, events_client::EventsClient, identity_client::IdentityClient,
        operator_client::OperatorClient,
    },
};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tonic::transport::Channel;

use super::{
    args::{ContextAdd, Global},
    client::{Noted, Target, tilde},
    context::{self, Config, Context},
    failure::{Code, Failure, chain},
    output::{Column, Detail, Format, List, Options, Shown, moment},
    renew,
    text::{Text, Tone},
    units::{View, short},
    user::User,
};
use crate::selector::{Selector, pattern::Pattern};

/// Names read from standard input at most: far above any fleet.
const MAX_STDIN_NAMES: usize = 200_000;

/// One run.
pub struct Session {
    /// Flags of every command.
    pub global: Global,
    /// Where the contexts are.
    pub config: PathBuf,
    /// Form of the answer.
    pub options: Options,
    /// Most rows.
    pub limit: Option<u32>,
    zone: TimeZone,
    width: Option<usize>,
}

impl Session {
    /// Reads the environment.
    ///
    /// # Errors
    /// When there is no place for a configuration.
    pub fn new(global: Global) -> Result<Self, Failure> {
        let config = context::default_path().map_err(|error| {
            Failure::new(
                Code::Failed,
                format!("there is no place for a configuration ({error})"),
            )
            .hint("export MUSTER_CONFIG=FILE", "name the file yourself")
        })?;
        let terminal = io::stdout().is_terminal();
        let default = if terminal { Format::Table } else { Format::Tsv };
        let zone = if global.utc {
            TimeZone::UTC
        } else {
            TimeZone::system()
        };
        Ok(Self {
            options: Options {
                format: global.output.unwrap_or(default),
                columns: global.columns.clone(),
                sort: global.sort.clone(),
                limit: global.limit.and_then(|limit| usize::try_from(limit).ok()),
            },
            limit: global.limit,
            config,
            zone,
            width: terminal.then(terminal_width).flatten(),
            global,
        })
    }

    /// Whether the answer is a table for people.
    #[must_use]
    pub fn for_people(&self) -> bool {
        matches!(self.options.format, Format::Table | Format::Wide)
    }

    /// Where the operator is, for times.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Columns of the terminal, if it is one.
    #[must_use]
    pub fn width(&self) -> Option<usize> {
        self.width
    }

    /// The standpoint of an answer; the machine's own clock without one.
    #[must_use]
    pub fn view(&self, meta: Option<&v1::AnswerMeta>) -> View {
        let now = match meta {
            Some(meta) if meta.as_of_ms > 0 => Timestamp::from_millis(meta.as_of_ms),
            _ => SystemClock.now(),
        };
        View {
            now,
            zone: self.zone.clone(),
            width: self.width,
        }
    }

    /// The aggregator to ask.
    ///
    /// # Errors
    /// When none is known, or its credentials cannot be used.
    pub fn target(&self) -> Result<Target, Failure> {
        let config = self.read()?;
        let (name, context) = self.choose(&config)?;
        let unusable = |error: &dyn std::error::Error| {
            Failure::new(
                Code::Denied,
                format!(
                    "the credentials of context \"{name}\" cannot be used ({})",
                    chain(error)
                ),
            )
            .because(format!("from {}", self.file()))
            .hint(
                "muster login --admin-socket PATH",
                "on the aggregator's host, for new ones",
            )
        };
        let (trust, credentials) = context
            .credentials(&self.config)
            .map_err(|error| unusable(&error))?;
        if let Some(ended) = credentials.chain.first().and_then(ended) {
            return Err(Failure::new(
                Code::Denied,
                format!("your certificate for \"{name}\" ended {} ago", short(ended)),
            )
            .because(format!("from {}, by this machine's clock", self.file()))
            .hint(
                "muster login --admin-socket PATH",
                "on the aggregator's host, for a new one",
            ));
        }
        let tls = tls::client_config(&trust, credentials).map_err(|error| unusable(&error))?;
        Ok(Target {
            context: name.to_owned(),
            file: self.config.clone(),
            server: self
                .global
                .server
                .clone()
                .unwrap_or_else(|| context.server.clone()),
            tls: Arc::new(tls),
            refusal: Noted::default(),
        })
    }

    fn file(&self) -> String {
        tilde(&self.config.display().to_string())
    }

    fn read(&self) -> Result<Config, Failure> {
        context::read(&self.config).map_err(|error| {
            let why = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
            let mut failure = Failure::new(Code::Failed, error.to_string());
            for line in why.lines().filter(|line| !line.trim().is_empty()) {
                failure = failure.because(line);
            }
            failure.hint(
                "",
                format!("correct {}, or move it away and sign in again", self.file()),
            )
        })
    }

    fn choose<'a>(&'a self, config: &'a Config) -> Result<(&'a str, &'a Context), Failure> {
        let wanted = self.global.context.as_deref().or(config.current.as_deref());
        let Some(name) = wanted else {
            let failure = Failure::new(Code::Denied, "you are not signed in to any aggregator");
            if config.contexts.is_empty() {
                return Err(failure
                    .because(format!("{} names none", self.file()))
                    .hint(
                        "muster login --admin-socket PATH",
                        "on the aggregator's host",
                    )
                    .hint(
                        "muster-aggregator demo",
                        "or look around in a made-up fleet",
                    ));
            }
            return Err(failure
                .because(format!("{} has contexts, but none is in use", self.file()))
                .hint(
                    "muster context use NAME",
                    "choose one (muster context list)",
                ));
        };
        match config.contexts.get_key_value(name) {
            Some((name, context)) => Ok((name, context)),
            None => Err(self.unknown_context(name, config)),
        }
    }

    fn unknown_context(&self, name: &str, config: &Config) -> Failure {
        let known: Vec<&str> = config.contexts.keys().map(String::as_str).collect();
        let known = if known.is_empty() {
            "there are none".to_owned()
        } else {
            known.join(", ")
        };
        Failure::new(Code::Usage, format!("there is no context {name:?}"))
            .because(format!("contexts in {}: {known}", self.file()))
            .hint("muster context list", "see what there is")
    }

    /// Asks one question, within the time limit.
    ///
    /// # Errors
    /// Whatever stood in the way, or the aggregator's refusal.
    pub async fn ask<T, F>(
        &self,
        question: impl FnOnce(OperatorClient<Channel>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let to_operator = |channel| {
            question(
                OperatorClient::new(channel).max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES),
            )
        };
        self.ask_door(to_operator).await
    }

    /// As [`Session::ask`], of the service `Identity`.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub async fn ask_identity<T, F>(
        &self,
        question: impl FnOnce(IdentityClient<Channel>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.ask_door(|channel| question(IdentityClient::new(channel)))
            .await
    }

    /// Asks one question of any service of the operators' door, within the time limit; with a certificate that was
    /// renewed first if it was time.
    ///
    /// # Errors
    /// Whatever stood in the way, or the aggregator's refusal.
    pub async fn ask_door<T, F>(&self, question: impl FnOnce(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.ask_door_within(self.global.timeout, question).await
    }

    /// As [`Session::ask_door`], of a question whose answer may take this long; to be let in takes no longer than
    /// ever.
    ///
    /// # Errors
    /// As [`Session::ask_door`].
    pub async fn ask_door_within<T, F>(
        &self,
        patience: Duration,
        question: impl FnOnce(Channel) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let timeout = self.global.timeout;
        if let Ok(config) = self.read()
            && let Ok((_, context)) = self.choose(&config)
        {
            renew::keep_fresh(&self.config, context, timeout, || self.target().ok()).await;
        }
        let target = self.target()?;
        let channel = target
            .channel(timeout)
            .await
            .map_err(|error| target.unreachable(&error))?;
        match tokio::time::timeout(patience, question(channel)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(target.refused(&status)),
            Err(_) => Err(target.late(patience)),
        }
    }

    /// Asks one question about events, within the time limit.
    ///
    /// # Errors
    /// Whatever stood in the way, or the aggregator's refusal.
    pub async fn ask_events<T, F>(
        &self,
        question: impl FnOnce(EventsClient<Channel>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let target = self.target()?;
        let timeout = self.global.timeout;
        let channel = target
            .channel(timeout)
            .await
            .map_err(|error| target.unreachable(&error))?;
        let client =
            EventsClient::new(channel).max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES);
        match tokio::time::timeout(timeout, question(client)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(target.refused(&status)),
            Err(_) => Err(target.late(timeout)),
        }
    }

    /// Opens a stream of events, within the time limit; gives with it what to say when it ends.
    ///
    /// # Errors
    /// As [`Session::ask_events`].
    pub async fn follow_events(
        &self,
        request: v1::FollowEventsRequest,
    ) -> Result<
        (
            tonic::Streaming<v1::EventBatch>,
            impl Fn(&tonic::Status) -> Failure + use<>,
        ),
        Failure,
    > {
        let target = self.target()?;
        let stream = self
            .ask_events(async move |mut client| client.follow_events(request).await)
            .await?;
        Ok((stream, move |status: &tonic::Status| target.refused(status)))
    }

    /// Who we are to the aggregator, and what it says of itself.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub async fn status(&self) -> Result<v1::Status, Failure> {
        let request = v1::GetStatusRequest {
            client_wall_ms: SystemClock.now().as_millis(),
        };
        self.ask(async move |mut client| client.get_status(request).await)
            .await
    }

    /// The roots that the context trusts, in PEM as they are kept.
    ///
    /// # Errors
    /// When there is no context, or its file cannot be read.
    pub fn roots(&self) -> Result<String, Failure> {
        let config = self.read()?;
        let (name, context) = self.choose(&config)?;
        let path = context::beside(&self.config, &context.ca);
        fs::read_to_string(&path).map_err(|error| {
            Failure::new(
                Code::Failed,
                format!(
                    "the roots of context {name:?} cannot be read ({}: {error})",
                    path.display()
                ),
            )
            .hint(
                "muster login --admin-socket PATH",
                "on the aggregator's host, to get them anew",
            )
        })
    }

    /// The contexts as a list.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn contexts(&self) -> Result<List<KnownContext>, Failure> {
        let config = self.read()?;
        let current = self.global.context.as_ref().or(config.current.as_ref());
        let rows = config
            .contexts
            .iter()
            .map(|(name, context)| KnownContext {
                name: name.clone(),
                current: current == Some(name),
                context: context.clone(),
            })
            .collect();
        Ok(List {
            columns: CONTEXT_COLUMNS,
            rows,
            name: |row| row.name.clone(),
            meta: own_meta(),
            footer: Vec::new(),
            empty: Text::plain(format!("no contexts in {}", self.file())),
        })
    }

    /// Makes a context the current one.
    ///
    /// # Errors
    /// When it does not exist, or the file cannot be written.
    pub fn use_context(&self, name: &str) -> Result<String, Failure> {
        let mut config = self.read()?;
        let Some(context) = config.contexts.get(name) else {
            return Err(self.unknown_context(name, &config));
        };
        let said = format!("using {name} ({})", context.server);
        config.current = Some(name.to_owned());
        self.save(&config)?;
        Ok(said)
    }

    /// Adds a context whose files exist already; they stay where they are.
    ///
    /// # Errors
    /// When the files cannot be used together, the name is taken, or the file cannot be written.
    pub fn add_context(&self, add: &ContextAdd) -> Result<String, Failure> {
        let failed = |error: &dyn std::error::Error| {
            Failure::new(
                Code::Failed,
                format!(
                    "context \"{}\" cannot be added ({})",
                    add.name,
                    chain(error)
                ),
            )
        };
        context::check_name(&add.name).map_err(|error| failed(&error))?;
        let Some(server) = &self.global.server else {
            return Err(
                Failure::new(Code::Usage, "a context needs the aggregator's address").hint(
                    format!("muster context add {} --server HOST:PORT …", add.name),
                    "",
                ),
            );
        };
        let mut config = self.read()?;
        if config.contexts.contains_key(&add.name) {
            return Err(Failure::new(
                Code::Failed,
                format!("there is a context {:?} already", add.name),
            )
            .hint(
                format!("muster context remove {}", add.name),
                "first, or choose another name",
            ));
        }
        let whole = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let context = Context {
            server: server.clone(),
            trust_domain: add.trust_domain.clone(),
            fleet: String::new(),
            ca: whole(&add.ca),
            cert: whole(&add.cert),
            key: whole(&add.key),
            role: String::new(),
        };
        let (trust, credentials) = context
            .credentials(&self.config)
            .map_err(|error| failed(&error))?;
        tls::client_config(&trust, credentials).map_err(|error| failed(&error))?;
        config.contexts.insert(add.name.clone(), context);
        config.current.get_or_insert_with(|| add.name.clone());
        self.save(&config)?;
        Ok(format!(
            "added {} ({server})\nnext: muster --context {} doctor",
            add.name, add.name
        ))
    }

    /// Forgets a context. Files that this program wrote go with it, others stay.
    ///
    /// # Errors
    /// When it does not exist, or the file cannot be written.
    pub fn remove_context(&self, name: &str) -> Result<String, Failure> {
        let mut config = self.read()?;
        let Some(context) = config.contexts.remove(name) else {
            return Err(self.unknown_context(name, &config));
        };
        if config.current.as_deref() == Some(name) {
            config.current = None;
        }
        self.save(&config)?;
        let mut said = format!("removed {name} ({})", context.server);
        for path in [&context.key, &context.cert, &context.ca] {
            if path.is_absolute() {
                said.push_str(&format!("\nleft where it is: {}", path.display()));
                continue;
            }
            let path = context::beside(&self.config, path);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    said.push_str(&format!("\nstill there: {} ({error})", path.display()));
                }
                _ => {}
            }
        }
        Ok(said)
    }

    fn save(&self, config: &Config) -> Result<(), Failure> {
        context::save(&self.config, config)
            .map_err(|error| Failure::new(Code::Failed, chain(&error)))
    }
}

/// For how long a certificate's life has been over, if it is.
fn ended(certificate: &CertificateDer<'_>) -> Option<Duration> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let end = Timestamp::from_millis(parsed.validity().not_after.timestamp().saturating_mul(1000));
    let now = SystemClock.now();
    (now > end).then(|| now.since(end))
}

/// One context of the file.
#[derive(Debug, Clone)]
pub struct KnownContext {
    name: String,
    current: bool,
    context: Context,
}

static CONTEXT_COLUMNS: &[Column<KnownContext>] = &[
    Column {
        key: "current",
        title: "",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Good, if row.current { "*" } else { "" }),
        value: |row| json!(row.current),
    },
    Column {
        key: "name",
        title: "NAME",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.name),
        value: |row| json!(row.name),
    },
    Column {
        key: "server",
        title: "SERVER",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.context.server),
        value: |row| json!(row.context.server),
    },
    Column {
        key: "fleet",
        title: "FLEET",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.context.fleet),
        value: |row| json!(row.context.fleet),
    },
    Column {
        key: "trustDomain",
        title: "TRUST DOMAIN",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(row.context.trust_domain.as_str()),
        value: |row| json!(row.context.trust_domain.as_str()),
    },
];

/// `muster whoami`.
#[must_use]
pub fn whoami(status: v1::Status, target: &Target) -> Detail {
    let now = Timestamp::from_millis(status.server_wall_ms);
    let left = Timestamp::from_millis(status.certificate_expires_ms).since(now);
    let lines = vec![
        Text::toned(Tone::Strong, &status.operator_name).and(format!(
            ", role {}, certificate {} left",
            status.role,
            short(left)
        )),
        Text::plain(format!(
            "{} at {}, muster-aggregator {}, context {}",
            status.fleet_name, target.server, status.version, target.context
        )),
    ];
    Detail {
        name: status.operator_name.clone(),
        item: json!({
            "name": status.operator_name,
            "role": status.role,
            "certificateExpires": moment(Some(status.certificate_expires_ms)),
            "fleet": status.fleet_name,
            "server": target.server,
            "serverVersion": status.version,
            "context": target.context,
        }),
        lines,
        meta: status.meta.unwrap_or_default(),
    }
}

/// Patterns as given, with `@-` replaced by the names on standard input; each is checked here, so that a
/// mistake is shown where it was made.
///
/// # Errors
/// A pattern that is none, or too many names.
pub fn names(given: &[String]) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for name in given {
        if name != "@-" {
            names.push(name.clone());
            continue;
        }
        for line in io::stdin().lock().lines().take(MAX_STDIN_NAMES + 1) {
            let line = line.map_err(|error| {
                Failure::new(
                    Code::Failed,
                    format!("cannot read names from standard input ({error})"),
                )
            })?;
            names.extend(line.split_whitespace().map(ToOwned::to_owned));
        }
    }
    if names.len() > MAX_STDIN_NAMES {
        return Err(Failure::new(
            Code::Usage,
            format!("{} names are more than {MAX_STDIN_NAMES}", names.len()),
        ));
    }
    for name in &names {
        patterns(name)?;
    }
    Ok(names)
}

fn patterns(name: &str) -> Result<Vec<Pattern>, Failure> {
    Pattern::parse_list(name).map_err(|error| {
        pointed(
            "this is no name or pattern",
            name,
            error.column,
            &error.to_string(),
        )
    })
}

/// Checks what `--host` was given: nothing, a name, or patterns.
///
/// # Errors
/// Points at the place.
pub fn check_hosts(host: &str) -> Result<(), Failure> {
    if host.is_empty() {
        return Ok(());
    }
    patterns(host).map(|_| ())
}

/// Checks the name of the one host that is meant.
///
/// # Errors
/// A pattern, which is for lists.
pub fn check_one(name: &str) -> Result<(), Failure> {
    match patterns(name)?.as_slice() {
        [pattern] if pattern.as_literal().is_some() => Ok(()),
        _ => Err(Failure::new(
            Code::Usage,
            format!("{name:?} is a pattern, and muster host shows one host"),
        )
        .hint(format!("muster hosts '{name}'"), "the hosts it stands for")),
    }
}

/// Whether names were asked for and standard input had none. That means nothing, never everything.
#[must_use]
pub fn chose_nothing(given: &[String], names: &[String]) -> bool {
    !given.is_empty() && names.is_empty()
}

/// For an answer that needed nobody's help.
#[must_use]
pub fn own_meta() -> v1::AnswerMeta {
    v1::AnswerMeta {
        complete: true,
        missing: Vec::new(),
        as_of_ms: SystemClock.now().as_millis(),
    }
}

/// Checks a selector before anything is asked.
///
/// # Errors
/// Points at the place.
pub fn check_selector(selector: &str) -> Result<(), Failure> {
    Selector::parse(selector).map(|_| ()).map_err(|error| {
        pointed(
            "this is no selector",
            selector,
            error.column,
            &error.to_string(),
        )
    })
}

/// A mistake in something typed, with its place.
#[must_use]
pub fn pointed(what: &str, text: &str, column: usize, error: &str) -> Failure {
    Failure::new(Code::Usage, format!("{what}: {error}"))
        .because(text)
        .because(format!("{}^", " ".repeat(column.saturating_sub(1))))
}

/// The user's name as an operator may be called; empty when neither the environment nor the system tells.
#[must_use]
pub fn user_name() -> String {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let name = set("SUDO_USER")
        .or_else(|| set("USER"))
        .or_else(|| set("LOGNAME"))
        .or_else(|| User::own().map(|user| user.name))
        .unwrap_or_default();
    name.to_lowercase()
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(*c))
        .take(64)
        .collect()
}

/// Columns of the terminal; COLUMNS wins, as in other programs.
fn terminal_width() -> Option<usize> {
    if let Ok(columns) = env::var("COLUMNS")
        && let Ok(columns) = columns.parse::<usize>()
    {
        return Some(columns).filter(|columns| *columns > 0);
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}
