//! `muster enrol`: join tokens over the network, and the hosts that wait to be approved.

use std::time::Duration;

use muster_agent::settings;
use muster_proto::{limits, spiffe::hex, time::Timestamp, v1};
use serde_json::json;

use super::{
    client::split_server,
    failure::{Code, Failure},
    output::{self, Column, List, Rendered, Shown, moment},
    session::Session,
    text::Text,
};
use crate::control::{MAX_TOKEN_TTL, MAX_USES, Network};

/// Characters of a key's fingerprint that people compare, as the host shows them.
const SHOWN_KEY: usize = 16;

/// `muster enrol …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Enrol {
    /// Join tokens: make, list, withdraw
    #[command(subcommand)]
    Token(TokenAct),
    /// List the hosts that wait to be approved
    Pending,
    /// Let a waiting host in
    Approve {
        /// As muster enrol pending shows it
        #[arg(value_name = "NUMBER", required = true)]
        numbers: Vec<u32>,
    },
    /// Turn a waiting host away
    Deny {
        /// As muster enrol pending shows it
        #[arg(value_name = "NUMBER", required = true)]
        numbers: Vec<u32>,
    },
}

/// `muster enrol token …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum TokenAct {
    /// Make a join token and print it: it is shown this once
    Create(Create),
    /// List tokens, newest first
    List,
    /// Withdraw a token
    Revoke {
        /// Its id: the eight characters after mj1-
        id: String,
    },
}

/// `muster enrol token create`
#[derive(Debug, Clone, clap::Args)]
pub struct Create {
    /// How many hosts may join with it
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_USES)))]
    pub uses: u32,
    /// For how long, e.g. 15m, 2h; at most 7d
    #[arg(long, default_value = "15m", value_name = "SPAN", value_parser = span)]
    pub ttl: Duration,
    /// Label that hosts get that join with it (several times for several)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Network from which they call, e.g. 10.0.0.0/8 (several times for several) [default: anywhere]
    #[arg(long = "cidr", value_name = "NETWORK")]
    pub networks: Vec<Network>,
    /// A person must approve each of them: muster enrol pending
    #[arg(long)]
    pub approve: bool,
    /// The host that joins takes this one's place: its history and name stay, its certificates are refused
    #[arg(long, value_name = "HOST", conflicts_with = "uses")]
    pub replaces: Option<String>,
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

/// Does it and says what was done.
///
/// # Errors
/// Whatever stood in the way.
pub async fn answer(session: &Session, act: &Enrol) -> Result<Rendered, Failure> {
    match act {
        Enrol::Token(TokenAct::Create(create)) => make(session, create).await,
        Enrol::Token(TokenAct::List) => {
            let request = v1::ListTokensRequest {};
            let answer = session
                .ask_identity(async move |mut client| client.list_tokens(request).await)
                .await?;
            let view = session.view(answer.meta.as_ref());
            output::list(tokens(answer), &session.options, &view)
        }
        Enrol::Token(TokenAct::Revoke { id }) => {
            let request = v1::RevokeTokenRequest { id: id.clone() };
            session
                .ask_identity(async move |mut client| client.revoke_token(request).await)
                .await
                .map_err(|failure| {
                    hinted(failure, "muster enrol token list", "the tokens there are")
                })?;
            Ok(said(&format!("token {id} lets nobody in any more")))
        }
        Enrol::Pending => {
            let request = v1::ListWaitingRequest {};
            let answer = session
                .ask_identity(async move |mut client| client.list_waiting(request).await)
                .await?;
            let view = session.view(answer.meta.as_ref());
            output::list(waiting(answer), &session.options, &view)
        }
        Enrol::Approve { numbers } => decide(session, numbers, true).await,
        Enrol::Deny { numbers } => decide(session, numbers, false).await,
    }
}

async fn make(session: &Session, create: &Create) -> Result<Rendered, Failure> {
    let request = v1::CreateTokenRequest {
        uses: create.uses,
        ttl_seconds: create.ttl.as_secs(),
        labels: create.labels.iter().cloned().collect(),
        networks: create.networks.iter().map(Network::to_string).collect(),
        approve: create.approve,
        replaces: create.replaces.clone().unwrap_or_default(),
    };
    let server = session.target()?.server;
    let made = session
        .ask_identity(async move |mut client| client.create_token(request).await)
        .await?;
    let address = if made.enrolment_address.starts_with(':') {
        let (host, _) = split_server(&server);
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        format!("{host}{}", made.enrolment_address)
    } else {
        made.enrolment_address
    };
    if session.for_people() {
        eprintln!(
            "shown this once; good for {} {} within {}\non each host: muster-agent enrol {address}",
            create.uses,
            if create.uses == 1 { "host" } else { "hosts" },
            settings::show_duration(create.ttl)
        );
    }
    Ok(said(&made.token))
}

async fn decide(session: &Session, numbers: &[u32], approve: bool) -> Result<Rendered, Failure> {
    let mut out = String::new();
    for &number in numbers {
        let request = v1::DecideWaitingRequest { number, approve };
        let decided = session
            .ask_identity(async move |mut client| client.decide_waiting(request).await)
            .await
            .map_err(|failure| hinted(failure, "muster enrol pending", "the hosts that wait"))?;
        let (what, then) = if approve {
            ("approved", "it joins within seconds, if it still asks")
        } else {
            ("denied", "it is told so")
        };
        let text = format!("{what} {number} ({}): {then}", decided.hostname);
        Text::plain(text).line_to(&mut out);
    }
    Ok(Rendered::text(out))
}

fn hinted(failure: Failure, command: &str, what: &str) -> Failure {
    if failure.code == Code::NotFound {
        return failure.hint(command, what);
    }
    failure
}

fn said(text: &str) -> Rendered {
    let mut out = String::new();
    Text::plain(text).line_to(&mut out);
    Rendered::text(out)
}

static TOKENS: &[Column<v1::TokenLine>] = &[
    Column {
        key: "id",
        title: "ID",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.id),
        value: |row| json!(row.id),
    },
    Column {
        key: "state",
        title: "STATE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.state),
        value: |row| json!(row.state),
    },
    Column {
        key: "used",
        title: "USED",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(format!("{}/{}", row.used, row.uses)),
        value: |row| json!({"used": row.used, "uses": row.uses}),
    },
    Column {
        key: "expires",
        title: "EXPIRES",
        shown: Shown::Always,
        right: true,
        human: |row, view| Text::plain(view.when(Timestamp::from_millis(row.expires_ms))),
        value: |row| moment(Some(row.expires_ms)),
    },
    Column {
        key: "networks",
        title: "FROM",
        shown: Shown::Always,
        right: false,
        human: |row, _| {
            Text::plain(if row.networks.is_empty() {
                "anywhere".to_owned()
            } else {
                row.networks.join(",")
            })
        },
        value: |row| json!(row.networks),
    },
    Column {
        key: "approve",
        title: "APPROVE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(if row.approve { "yes" } else { "no" }),
        value: |row| json!(row.approve),
    },
    Column {
        key: "labels",
        title: "LABELS",
        shown: Shown::Always,
        right: false,
        human: |row, _| {
            let labels = row
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"));
            Text::plain(labels.collect::<Vec<_>>().join(","))
        },
        value: |row| json!(row.labels),
    },
    Column {
        key: "replaces",
        title: "REPLACES",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(&row.replaces),
        value: |row| json!(row.replaces),
    },
];

fn tokens(answer: v1::ListTokensResponse) -> List<v1::TokenLine> {
    List {
        columns: TOKENS,
        rows: answer.tokens,
        name: |row| row.id.clone(),
        meta: answer.meta.unwrap_or_default(),
        footer: Vec::new(),
        empty: Text::plain("there are no tokens; make one with muster enrol token create"),
    }
}

static WAITING: &[Column<v1::WaitingLine>] = &[
    Column {
        key: "number",
        title: "NUMBER",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.number.to_string()),
        value: |row| json!(row.number),
    },
    Column {
        key: "hostname",
        title: "CALLS ITSELF",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.hostname),
        value: |row| json!(row.hostname),
    },
    Column {
        key: "os",
        title: "OS",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.os),
        value: |row| json!(row.os),
    },
    Column {
        key: "address",
        title: "FROM",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.address),
        value: |row| json!(row.address),
    },
    Column {
        key: "key",
        title: "KEY",
        shown: Shown::Always,
        right: false,
        human: |row, _| {
            let digits: String = hex(&row.fingerprint).chars().take(SHOWN_KEY).collect();
            Text::plain(digits)
        },
        value: |row| json!(hex(&row.fingerprint)),
    },
    Column {
        key: "asked",
        title: "SINCE",
        shown: Shown::Always,
        right: true,
        human: |row, view| Text::plain(view.when(Timestamp::from_millis(row.asked_ms))),
        value: |row| moment(Some(row.asked_ms)),
    },
    Column {
        key: "token",
        title: "TOKEN",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(&row.token_id),
        value: |row| json!(row.token_id),
    },
];

fn waiting(answer: v1::ListWaitingResponse) -> List<v1::WaitingLine> {
    List {
        columns: WAITING,
        rows: answer.hosts,
        name: |row| row.number.to_string(),
        meta: answer.meta.unwrap_or_default(),
        footer: Vec::new(),
        empty: Text::plain("nobody waits to be approved"),
    }
}
