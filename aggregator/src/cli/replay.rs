//! `muster replay`: what people would have been told by other rules.

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::Timestamp,
    v1::{self, replay_client::ReplayClient},
};
use serde_json::json;

use super::{
    failure::{Code, Failure},
    moment::span,
    output::{self, Column, List, Rendered, Shown},
    session::Session,
    text::{Text, Tone},
};
use crate::detect::Severity;

/// Differences shown in a table; `-o json` has the rules, and `muster incident` each page.
const SHOWN: usize = 20;

/// `muster replay`
#[derive(Debug, Clone, Args)]
pub struct Replay {
    /// Compare what was told in the last so long: 7d, 30d
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "30d")]
    pub since: Duration,
    /// File whose rules tables stand in for those of the aggregator
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
}

/// Asks for it.
///
/// # Errors
/// Whatever stood in the way; rules that would not be taken.
pub async fn replay(session: &Session, replay: &Replay) -> Result<Rendered, Failure> {
    let rules = match &replay.rules {
        None => None,
        Some(path) => Some(fs::read_to_string(path).map_err(|error| {
            Failure::new(Code::Usage, format!("cannot read {}", path.display()))
                .because(error.to_string())
        })?),
    };
    let request = v1::ReplayPagesRequest {
        since_ms: session.view(None).now.minus(replay.since).as_millis(),
        with_rules: rules.is_some(),
        rules: rules.unwrap_or_default(),
    };
    let response = session
        .ask_door(async move |channel| {
            ReplayClient::new(channel)
                .max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
                .replay_pages(request)
                .await
        })
        .await?;
    let view = session.view(response.meta.as_ref());
    output::list(list(response), &session.options, &view)
}

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ReplayPagesResponse) -> List<v1::ReplayRule> {
    let mut footer = vec![whole(&response)];
    for rule in &response.not_judged {
        let said = format!("{rule}: its change can only be judged by samples, and was left out");
        footer.push(Text::toned(Tone::Warn, said));
    }
    for (what, told) in [("no longer", &response.left_out), ("new", &response.added)] {
        footer.extend(told.iter().take(SHOWN).map(|one| difference(what, one)));
        if let Some(more) = told.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            let words = format!("{what}: {more} more");
            footer.push(Text::toned(Tone::Dim, words));
        }
    }
    List {
        columns: COLUMNS,
        rows: response.rules,
        name: |row| row.rule.clone(),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain("nobody was told of anything"),
    }
}

/// Whether the record gives what was told.
fn whole(response: &v1::ReplayPagesResponse) -> Text {
    let Some(since) = response.recorded_since_ms else {
        let words = "nothing is on record yet: it begins with the first incident after the upgrade";
        return Text::toned(Tone::Warn, words);
    };
    let since = Timestamp::from_millis(since);
    if response.told_otherwise == 0 {
        let words = format!(
            "the record, kept since {since}, gives exactly the {} messages that were told",
            response.told
        );
        return Text::toned(Tone::Dim, words);
    }
    Text::toned(
        Tone::Warn,
        format!(
            "the record, kept since {since}, gives {} of the {} messages otherwise: labels of hosts changed, a channel with a selector heard later of a page, or it begins in the middle",
            response.told_otherwise, response.told
        ),
    )
}

/// `no longer: 2026-11-21T14:02:00Z I-12 firing, warning check_failing on web-01`
fn difference(what: &str, one: &v1::ReplayTold) -> Text {
    let severity = Severity::of_wire(one.severity()).map_or("", Severity::as_str);
    Text::plain(format!(
        "{what}: {} I-{} {}, {severity} {} on {}",
        Timestamp::from_millis(one.at_ms),
        one.incident,
        one.event,
        one.rule,
        one.host
    ))
}

macro_rules! count {
    ($key:literal, $title:literal, $field:ident) => {
        Column {
            key: $key,
            title: $title,
            shown: Shown::Always,
            right: true,
            human: |row, _| Text::plain(row.$field.to_string()),
            value: |row| json!(row.$field),
        }
    };
}

/// Every column.
pub static COLUMNS: &[Column<v1::ReplayRule>] = &[
    Column {
        key: "rule",
        title: "RULE",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, &row.rule),
        value: |row| json!(row.rule),
    },
    count!("pages", "PAGES", pages),
    count!("pagesThen", "THEN", pages_then),
    count!("messages", "MESSAGES", messages),
    count!("messagesThen", "THEN MESSAGES", messages_then),
];
