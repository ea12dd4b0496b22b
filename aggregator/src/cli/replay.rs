//! `muster replay`: what people would have been told by other rules.

use std::{
    fs,
    io::IsTerminal as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::Timestamp,
    v1::{self, replay_client::ReplayClient, replay_samples_response::Part},
};
use serde_json::json;

use super::{
    failure::{Code, Failure},
    moment::span,
    output::{self, Column, List, Rendered, Shown},
    session::Session,
    text::{Text, Tone},
};
use crate::{detect::Severity, incident::replay::MADE_UP};

/// Differences shown in a table; `-o json` has the rules, and `muster incident` each page.
const SHOWN: usize = 20;

/// `muster replay`
#[derive(Debug, Clone, Args)]
pub struct Replay {
    /// Compare what was told in the last so long: 7d, 30d
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "30d")]
    pub since: Duration,
    /// File whose rules tables stand in for those of the aggregator, and its detect table if it has one
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Go by the record of incidents alone: bounds of rules and shorter times are not judged
    #[arg(long)]
    pub record_only: bool,
    /// Judge every rule again that samples can judge, not only those that FILE changes
    #[arg(long, conflicts_with = "record_only")]
    pub all: bool,
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
    let since_ms = session.view(None).now.minus(replay.since).as_millis();
    let response = if replay.record_only {
        let request = v1::ReplayPagesRequest {
            since_ms,
            with_rules: rules.is_some(),
            rules: rules.unwrap_or_default(),
        };
        session
            .ask_door(async move |channel| {
                ReplayClient::new(channel)
                    .max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
                    .replay_pages(request)
                    .await
            })
            .await?
    } else {
        let request = v1::ReplaySamplesRequest {
            since_ms,
            with_rules: rules.is_some(),
            rules: rules.unwrap_or_default(),
            all: replay.all,
        };
        over_samples(session, request).await?
    };
    let view = session.view(response.meta.as_ref());
    output::list(list(response), &session.options, &view)
}

/// Longest silence of an aggregator that reads old files: a window of some hosts.
const MIN_SILENCE: Duration = Duration::from_secs(120);
/// How often people are told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Asks for the answer over samples and tells on standard error how far it is, where that is a terminal.
async fn over_samples(
    session: &Session,
    request: v1::ReplaySamplesRequest,
) -> Result<v1::ReplayPagesResponse, Failure> {
    let mut stream = session
        .ask_door(async move |channel| {
            ReplayClient::new(channel)
                .max_decoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
                .replay_samples(request)
                .await
        })
        .await?;
    let target = session.target()?;
    let watched = std::io::stderr().is_terminal();
    let mut told: Option<Instant> = None;
    loop {
        // The time limit is for silence: a long answer may take long.
        let silence = session.global.timeout.max(MIN_SILENCE);
        let next = tokio::time::timeout(silence, stream.message()).await;
        match next {
            Ok(Ok(Some(message))) => match message.part {
                Some(Part::Answer(answer)) => {
                    if told.is_some() {
                        eprint!("\r\x1b[K");
                    }
                    return Ok(answer);
                }
                Some(Part::Progress(v1::ReplayProgress { done, of }))
                    if watched && told.is_none_or(|told| told.elapsed() > TELL_EVERY) =>
                {
                    let percent = done.saturating_mul(100).checked_div(of).unwrap_or(100);
                    eprint!("\rreading samples: {percent} %");
                    told = Some(Instant::now());
                }
                Some(Part::Progress(_)) | None => {}
            },
            Ok(Ok(None)) => {
                let words = format!("{} broke off its answer", target.server);
                return Err(Failure::new(Code::Partial, words));
            }
            Ok(Err(status)) => return Err(target.refused(&status)),
            Err(_) => return Err(target.late(silence)),
        }
    }
}

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ReplayPagesResponse) -> List<v1::ReplayRule> {
    let mut footer = vec![whole(&response)];
    footer.extend(judged(&response));
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
    let moved = response.moved.iter().filter_map(|one| {
        let at = Timestamp::from_millis(one.at_then_ms);
        let line = difference("moved", one.told.as_ref()?);
        Some(line.and(format!(", then at {at}")))
    });
    footer.extend(moved.take(SHOWN));
    if let Some(more) = response
        .moved
        .len()
        .checked_sub(SHOWN)
        .filter(|more| *more > 0)
    {
        footer.push(Text::toned(Tone::Dim, format!("moved: {more} more")));
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

/// What samples were asked, and how well they give what is on record.
fn judged(response: &v1::ReplayPagesResponse) -> Vec<Text> {
    let mut lines: Vec<Text> = response
        .judged
        .iter()
        .map(|one| {
            let words = format!(
                "{}: over samples {} incidents; on record {}, of which the samples give {} by the rules as they are, and {} beside",
                one.rule, one.then, one.recorded, one.found, one.beside
            );
            let exact = one.found == one.recorded && one.beside == 0;
            Text::toned(if exact { Tone::Dim } else { Tone::Warn }, words)
        })
        .collect();
    lines.extend(response.by_record.iter().map(|one| {
        let words = format!(
            "{}: on record {}, taken as they are: {}",
            one.rule, one.recorded, one.why
        );
        Text::toned(Tone::Dim, words)
    }));
    if let Some(since) = response.every_sample_since_ms {
        let words = format!(
            "before {} one sample stands for a minute or a quarter of an hour ({} of {} ticks): what is said of that time is near the truth",
            Timestamp::from_millis(since),
            response.coarse_ticks,
            response.ticks
        );
        lines.push(Text::toned(Tone::Warn, words));
    }
    lines
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
    // What nobody was ever told of has no number that one could look up.
    let number = match one.incident {
        number if number < MADE_UP => format!("I-{number} "),
        _ => String::new(),
    };
    Text::plain(format!(
        "{what}: {} {number}{}, {severity} {} on {}",
        Timestamp::from_millis(one.at_ms),
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
