//! `muster notify status|test` and `muster noise`: how people are told, and whether it was of use to them.

use std::time::Duration;

use clap::{Args, Subcommand};
use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::Timestamp,
    v1::{self, paging_client::PagingClient},
};
use serde_json::json;

use super::{
    failure::{Code, Failure},
    moment::span,
    output::{self, Column, List, Rendered, Shown, moment},
    quiet,
    session::Session,
    text::{Text, Tone},
    units::short,
};
use crate::control::QuietKind;

/// `muster notify`
#[derive(Debug, Clone, Subcommand)]
pub enum Notify {
    /// List the channels: what waits, what was delivered, what went wrong
    Status,
    /// Send a trial message through a channel, now
    Test {
        /// As muster notify status shows it
        #[arg(value_name = "CHANNEL")]
        name: String,
    },
}

/// `muster noise`
#[derive(Debug, Clone, Args)]
pub struct Noise {
    /// Of the last so long: 7d, 30d
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "30d")]
    pub since: Duration,
}

/// Does what `muster notify …` asks for.
///
/// # Errors
/// Whatever stood in the way; a trial that did not arrive.
pub async fn notify(session: &Session, act: &Notify) -> Result<Rendered, Failure> {
    match act {
        Notify::Status => {
            let request = v1::ListChannelsRequest {};
            let response = session
                .ask_door(async move |channel| {
                    PagingClient::new(channel).list_channels(request).await
                })
                .await?;
            let bad = response
                .channels
                .iter()
                .any(|row| row.given_up > 0 || (row.waiting > 0 && !row.error.is_empty()));
            let view = session.view(response.meta.as_ref());
            let rendered = output::list(channels(response), &session.options, &view)?;
            Ok(Rendered { bad, ..rendered })
        }
        Notify::Test { name } => {
            let request = v1::TestChannelRequest { name: name.clone() };
            let done = session
                .ask_door(async move |channel| {
                    PagingClient::new(channel).test_channel(request).await
                })
                .await
                .map_err(|failure| {
                    super::not_found(failure, "muster notify status", "the channels there are")
                })?;
            if done.error.is_empty() {
                return Ok(super::said_lines(&format!(
                    "{name} ({}) took the message in {} ms; see that it arrived",
                    done.kind, done.millis
                )));
            }
            Err(Failure::new(
                Code::Failed,
                format!("{name} ({}) did not take the message", done.kind),
            )
            .because(done.error)
            .hint(
                "",
                format!("look at [[notify]] {name} in the aggregator's configuration"),
            ))
        }
    }
}

/// Asks what `muster noise` shows.
///
/// # Errors
/// Whatever stood in the way.
pub async fn noise(session: &Session, noise: &Noise) -> Result<Rendered, Failure> {
    let since = session.view(None).now.minus(noise.since);
    let request = v1::ListNoiseRequest {
        since_ms: since.as_millis(),
    };
    let response = session
        .ask_door(async move |channel| {
            PagingClient::new(channel)
                .max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
                .list_noise(request)
                .await
        })
        .await?;
    let view = session.view(response.meta.as_ref());
    output::list(ledger(response), &session.options, &view)
}

/// The list of channels.
#[must_use]
pub fn channels(response: v1::ListChannelsResponse) -> List<v1::ChannelRow> {
    let failing = response
        .channels
        .iter()
        .filter(|row| !row.error.is_empty() && (row.waiting > 0 || row.given_up > 0));
    let footer = failing
        .map(|row| Text::toned(Tone::Bad, format!("{}: ", row.name)).and(&row.error))
        .collect();
    List {
        columns: CHANNELS,
        rows: response.channels,
        name: |row| row.name.clone(),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain("nobody is told: no [[notify]] in the aggregator's configuration"),
    }
}

/// The noise ledger.
#[must_use]
pub fn ledger(response: v1::ListNoiseResponse) -> List<v1::NoiseRow> {
    let sum = |of: fn(&v1::NoiseRow) -> u32| response.rows.iter().map(of).sum::<u32>();
    let (pages, fast) = (sum(|row| row.pages), sum(|row| row.cleared_fast));
    let mut footer = Vec::new();
    if pages > 0 {
        footer.push(Text::toned(
            Tone::Dim,
            format!(
                "{pages} pages, {} acted on; {fast} cleared within 5 minutes by themselves",
                sum(|row| row.acted_on)
            ),
        ));
    }
    for (what, quiets) in [
        ("matches no host", &response.idle),
        ("hides a failure that goes on", &response.hiding),
    ] {
        for row in quiets {
            let quiet = row.quiet.clone().unwrap_or_default();
            let kind = QuietKind::of_wire(quiet.kind()).unwrap_or(QuietKind::Silence);
            let line = Text::toned(Tone::Warn, kind.id(quiet.number))
                .and(format!(" {what}: {} ({})", quiet.selector, quiet.made_by));
            footer.push(match row.hides.as_slice() {
                [] => line,
                hides => line.and(format!(" {}", quiet::hidden(hides))),
            });
        }
    }
    List {
        columns: LEDGER,
        rows: response.rows,
        name: |row| row.rule.clone(),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain("nobody was told of anything"),
    }
}

fn standing(row: &v1::ChannelRow) -> &'static str {
    match (row.waiting, row.error.is_empty(), row.given_up) {
        (0, _, 0) => "ok",
        (0, ..) => "gave up",
        (_, true, _) => "sending",
        (_, false, _) => "failing",
    }
}

/// Every column of a channel.
pub static CHANNELS: &[Column<v1::ChannelRow>] = &[
    Column {
        key: "name",
        title: "CHANNEL",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.name),
        value: |row| json!(row.name),
    },
    Column {
        key: "kind",
        title: "TYPE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.kind),
        value: |row| json!(row.kind),
    },
    Column {
        key: "state",
        title: "STATE",
        shown: Shown::Always,
        right: false,
        human: |row, _| match standing(row) {
            "ok" => Text::toned(Tone::Good, "ok"),
            "sending" => Text::plain("sending"),
            bad => Text::toned(Tone::Bad, bad),
        },
        value: |row| json!(standing(row)),
    },
    Column {
        key: "waiting",
        title: "WAITING",
        shown: Shown::Always,
        right: true,
        human: |row, view| match row.oldest_ms {
            Some(oldest) => {
                let age = short(view.now.since(Timestamp::from_millis(oldest)));
                Text::plain(format!("{} ({age})", row.waiting))
            }
            None => Text::plain(row.waiting.to_string()),
        },
        value: |row| json!(row.waiting),
    },
    Column {
        key: "delivered",
        title: "DELIVERED",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.delivered.to_string()),
        value: |row| json!(row.delivered),
    },
    Column {
        key: "heldBack",
        title: "HELD BACK",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.held_back.to_string()),
        value: |row| json!(row.held_back),
    },
    Column {
        key: "givenUp",
        title: "GIVEN UP",
        shown: Shown::Always,
        right: true,
        human: |row, _| {
            let tone = if row.given_up > 0 {
                Tone::Bad
            } else {
                Tone::Plain
            };
            Text::toned(tone, row.given_up.to_string())
        },
        value: |row| json!(row.given_up),
    },
    Column {
        key: "lastDelivered",
        title: "LAST",
        shown: Shown::Always,
        right: true,
        human: |row, view| {
            row.last_delivered_ms.map_or_else(Text::unknown, |at| {
                Text::plain(view.when(Timestamp::from_millis(at)))
            })
        },
        value: |row| moment(row.last_delivered_ms),
    },
    Column {
        key: "severities",
        title: "OF",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(row.severities.join(",")),
        value: |row| json!(row.severities),
    },
    Column {
        key: "oldest",
        title: "OLDEST",
        shown: Shown::Machine,
        right: true,
        human: |_, _| Text::new(),
        value: |row| moment(row.oldest_ms),
    },
    Column {
        key: "next",
        title: "NEXT",
        shown: Shown::Wide,
        right: true,
        human: |row, view| {
            row.next_ms.map_or_else(Text::unknown, |at| {
                Text::plain(view.absolute_short(Timestamp::from_millis(at)))
            })
        },
        value: |row| moment(row.next_ms),
    },
    Column {
        key: "error",
        title: "ERROR",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(&row.error),
        value: |row| json!(Some(&row.error).filter(|error| !error.is_empty())),
    },
];

/// Every column of the noise ledger.
pub static LEDGER: &[Column<v1::NoiseRow>] = &[
    Column {
        key: "rule",
        title: "RULE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.rule),
        value: |row| json!(row.rule),
    },
    Column {
        key: "pages",
        title: "PAGES",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.pages.to_string()),
        value: |row| json!(row.pages),
    },
    Column {
        key: "actedOn",
        title: "ACTED ON",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.acted_on.to_string()),
        value: |row| json!(row.acted_on),
    },
    Column {
        key: "clearedFast",
        title: "CLEARED IN 5M",
        shown: Shown::Always,
        right: true,
        human: |row, _| {
            let mostly = row.pages > 0 && row.cleared_fast * 2 > row.pages;
            let tone = if mostly { Tone::Warn } else { Tone::Plain };
            Text::toned(tone, row.cleared_fast.to_string())
        },
        value: |row| json!(row.cleared_fast),
    },
    Column {
        key: "messages",
        title: "MESSAGES",
        shown: Shown::Always,
        right: true,
        human: |row, _| Text::plain(row.messages.to_string()),
        value: |row| json!(row.messages),
    },
];
