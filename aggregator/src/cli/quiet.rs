//! `muster silence` and `muster maintenance`: times in which nobody is told.

use std::time::Duration;

use clap::{Args, Subcommand};
use muster_proto::{
    time::Timestamp,
    v1::{self, paging_client::PagingClient},
};
use serde_json::json;

use super::{
    failure::{Code, Failure},
    incidents,
    moment::{self, minute_of_day, span},
    output::{self, Column, List, Rendered, Shown, moment as json_moment},
    session::{Session, check_selector},
    text::{Text, Tone},
    units::View,
};
use crate::control::QuietKind;

/// `muster silence`
#[derive(Debug, Clone, Subcommand)]
pub enum Silence {
    /// Tell nobody of some incidents for a while; they are opened and shown all the same
    Add(Add),
    /// List silences: what they match, and the live failures they hide
    List {
        /// Those that are over too
        #[arg(long)]
        all: bool,
    },
    /// End a silence now
    Expire {
        /// As muster silence list shows it: S-3
        #[arg(value_name = "ID", value_parser = parse_silence)]
        number: u64,
    },
}

/// `muster maintenance`
#[derive(Debug, Clone, Subcommand)]
pub enum Maintenance {
    /// Plan a time in which nobody is told, once or every week
    Add(AddWindow),
    /// List maintenance windows
    List {
        /// Those that are over too
        #[arg(long)]
        all: bool,
    },
    /// End a window now, and with it those that would follow
    End {
        /// As muster maintenance list shows it: M-2
        #[arg(value_name = "ID", value_parser = parse_window)]
        number: u64,
    },
}

/// What both are about.
#[derive(Debug, Clone, Args)]
pub struct About {
    /// Hosts for which this holds; labels and names only: role=db,site=fra
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: String,
    /// Only incidents of this rule
    #[arg(
        long,
        value_name = "RULE",
        default_value = "",
        hide_default_value = true
    )]
    pub rule: String,
    /// Only of this mount point or unit; a pattern for several
    #[arg(
        long,
        value_name = "PATTERN",
        default_value = "",
        hide_default_value = true
    )]
    pub subject: String,
    /// Why, for the others on call
    #[arg(short, long, value_name = "TEXT")]
    pub message: String,
}

/// `muster silence add`
#[derive(Debug, Clone, Args)]
pub struct Add {
    /// What it is about.
    #[command(flatten)]
    pub about: About,
    /// How long: 30m, 2h, 1d; 90 days at most
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    pub length: Option<Duration>,
    /// Until when: 15:20, "2026-11-22 09:00"
    #[arg(
        long,
        value_name = "WHEN",
        conflicts_with = "length",
        required_unless_present = "length"
    )]
    pub until: Option<String>,
}

/// `muster maintenance add`
#[derive(Debug, Clone, Args)]
pub struct AddWindow {
    /// What it is about.
    #[command(flatten)]
    pub about: About,
    /// How long each time: 30m, 2h, 1d
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    pub length: Duration,
    /// When it begins: 22:00, "2026-11-22 09:00" [default: now]
    #[arg(long, value_name = "WHEN")]
    pub from: Option<String>,
    /// Every week on these days: sat,sun, or day for each day, or workday
    #[arg(long, value_name = "DAY,…", value_delimiter = ',', requires = "at")]
    pub every: Vec<String>,
    /// Time of day at which it begins on these days: 02:00
    #[arg(long, value_name = "HH:MM", requires = "every")]
    pub at: Option<String>,
    /// Time zone of --at: Europe/Berlin [default: this machine's]
    #[arg(long, value_name = "ZONE", requires = "every")]
    pub zone: Option<String>,
}

/// Does what `muster silence …` asks for.
///
/// # Errors
/// Words that cannot be understood, and whatever stood in the way.
pub async fn silence(session: &Session, act: &Silence) -> Result<Rendered, Failure> {
    match act {
        Silence::Add(add) => {
            let view = session.view(None);
            let ends = match (&add.length, &add.until) {
                (Some(length), _) => view.now.plus(*length),
                (None, Some(until)) => moment::future(until, &view).map_err(wrong)?,
                (None, None) => return Err(wrong("say --for or --until: a silence has an end")),
            };
            let quiet = v1::Quiet {
                starts_ms: view.now.as_millis(),
                ends_ms: Some(ends.as_millis()),
                ..quiet(QuietKind::Silence, &add.about)?
            };
            let until = format!("until {}", view.absolute_short(ends));
            self::add(session, quiet, &until).await
        }
        Silence::List { all } => list(session, QuietKind::Silence, *all).await,
        Silence::Expire { number } => end(session, QuietKind::Silence, *number).await,
    }
}

/// Does what `muster maintenance …` asks for.
///
/// # Errors
/// Words that cannot be understood, and whatever stood in the way.
pub async fn maintenance(session: &Session, act: &Maintenance) -> Result<Rendered, Failure> {
    match act {
        Maintenance::Add(add) => {
            let view = session.view(None);
            let starts = match &add.from {
                Some(from) => moment::future(from, &view).map_err(wrong)?,
                None => view.now,
            };
            let weekly = weekly(add, &view)?;
            let ends = weekly.is_none().then(|| starts.plus(add.length));
            let said = match (&weekly, ends) {
                (Some(weekly), _) => every(weekly),
                (None, Some(ends)) => {
                    let from = view.absolute_short(starts);
                    format!("from {from} until {}", view.absolute_short(ends))
                }
                (None, None) => String::new(),
            };
            let quiet = v1::Quiet {
                starts_ms: starts.as_millis(),
                ends_ms: ends.map(Timestamp::as_millis),
                weekly,
                ..quiet(QuietKind::Maintenance, &add.about)?
            };
            self::add(session, quiet, &said).await
        }
        Maintenance::List { all } => list(session, QuietKind::Maintenance, *all).await,
        Maintenance::End { number } => end(session, QuietKind::Maintenance, *number).await,
    }
}

fn quiet(kind: QuietKind, about: &About) -> Result<v1::Quiet, Failure> {
    check_selector(&about.selector)?;
    Ok(v1::Quiet {
        kind: kind.to_wire().into(),
        selector: about.selector.clone(),
        rule: about.rule.clone(),
        subject: about.subject.clone(),
        text: about.message.clone(),
        ..v1::Quiet::default()
    })
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn weekly(add: &AddWindow, view: &View) -> Result<Option<v1::Weekly>, Failure> {
    let Some(at) = &add.at else {
        return Ok(None);
    };
    let at_minute =
        minute_of_day(at).ok_or_else(|| wrong(format!("{at:?} is no time of day: write 02:00")))?;
    let mut days = 0;
    for word in &add.every {
        days |= match word.as_str() {
            "day" => 0b111_1111,
            "workday" => 0b001_1111,
            "weekend" => 0b110_0000,
            word => {
                let found = DAYS.iter().position(|day| *day == word);
                1 << found.ok_or_else(|| {
                    wrong(format!(
                        "{word:?} is no day: write mon to sun, day, workday or weekend"
                    ))
                })?
            }
        };
    }
    let minutes = u32::try_from(add.length.as_secs().div_ceil(60)).unwrap_or(u32::MAX);
    let zone = match &add.zone {
        Some(zone) => zone.clone(),
        None => view.zone.iana_name().unwrap_or("UTC").to_owned(),
    };
    Ok(Some(v1::Weekly {
        days,
        at_minute,
        minutes,
        zone,
    }))
}

/// `sat,sun 02:00 Europe/Berlin for 2h`.
fn every(weekly: &v1::Weekly) -> String {
    let days = match weekly.days {
        0b111_1111 => "every day".to_owned(),
        days => DAYS
            .iter()
            .enumerate()
            .filter(|(bit, _)| days >> bit & 1 == 1)
            .map(|(_, day)| *day)
            .collect::<Vec<_>>()
            .join(","),
    };
    let (hour, minute) = (weekly.at_minute / 60, weekly.at_minute % 60);
    let length = Duration::from_secs(u64::from(weekly.minutes) * 60);
    format!(
        "{days} {hour:02}:{minute:02} {} for {}",
        weekly.zone,
        muster_agent::settings::show_duration(length)
    )
}

async fn add(session: &Session, quiet: v1::Quiet, when: &str) -> Result<Rendered, Failure> {
    let kind = kind_of(&quiet);
    let selector = quiet.selector.clone();
    let request = v1::AddQuietRequest { quiet: Some(quiet) };
    let done = session
        .ask_door(async move |channel| PagingClient::new(channel).add_quiet(request).await)
        .await?;
    let id = kind.id(done.number);
    let mut said = format!(
        "{} {id}: {selector} {when}, {} now",
        kind.as_str(),
        counted(done.hosts, "host")
    );
    if done.hosts == 0 {
        said.push_str("\nit matches no host: is the selector right? (muster hosts -l '…')");
    }
    if done.hides > 0 {
        said.push_str(&format!(
            "\nof {} nobody is told while it holds (muster incidents)",
            counted(done.hides, "open incident")
        ));
    }
    let verb = match kind {
        QuietKind::Silence => "expire",
        QuietKind::Maintenance => "end",
    };
    said.push_str(&format!("\nundo: muster {} {verb} {id}", kind.as_str()));
    Ok(super::said_lines(&said))
}

async fn end(session: &Session, kind: QuietKind, number: u64) -> Result<Rendered, Failure> {
    let request = v1::EndQuietRequest {
        kind: kind.to_wire().into(),
        number,
    };
    let list = format!("muster {} list --all", kind.as_str());
    let done = session
        .ask_door(async move |channel| PagingClient::new(channel).end_quiet(request).await)
        .await
        .map_err(|failure| super::not_found(failure, &list, "those there are"))?;
    let id = kind.id(number);
    Ok(super::said_lines(&if done.was_over {
        format!("{id} was over already")
    } else {
        format!("{id} is over; what is still open is told now")
    }))
}

async fn list(session: &Session, kind: QuietKind, all: bool) -> Result<Rendered, Failure> {
    let request = v1::ListQuietsRequest {
        kind: kind.to_wire().into(),
        all,
    };
    let response = session
        .ask_door(async move |channel| PagingClient::new(channel).list_quiets(request).await)
        .await?;
    let view = session.view(response.meta.as_ref());
    output::list(rows(response, kind), &session.options, &view)
}

/// The list of an answer.
#[must_use]
pub fn rows(response: v1::ListQuietsResponse, kind: QuietKind) -> List<v1::QuietRow> {
    let (mut idle, mut hiding) = (0, 0);
    for row in response
        .quiets
        .iter()
        .filter(|row| row.changes_ms.is_some())
    {
        idle += u32::from(row.hosts == 0);
        hiding += u32::from(row.active && !row.hides.is_empty());
    }
    let mut footer = Vec::new();
    if hiding > 0 {
        footer.push(Text::toned(
            Tone::Warn,
            format!("hiding failures that go on now: {hiding}"),
        ));
    }
    if idle > 0 {
        footer.push(Text::toned(
            Tone::Warn,
            format!("matching no host, by a slip or no longer needed: {idle}"),
        ));
    }
    List {
        columns: COLUMNS,
        rows: response.quiets,
        name: |row| {
            let quiet = row.quiet.clone().unwrap_or_default();
            kind_of(&quiet).id(quiet.number)
        },
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain(match kind {
            QuietKind::Silence => "no silences",
            QuietKind::Maintenance => "no maintenance windows",
        }),
    }
}

fn of(row: &v1::QuietRow) -> &v1::Quiet {
    static NONE: std::sync::OnceLock<v1::Quiet> = std::sync::OnceLock::new();
    row.quiet
        .as_ref()
        .unwrap_or_else(|| NONE.get_or_init(v1::Quiet::default))
}

fn kind_of(quiet: &v1::Quiet) -> QuietKind {
    QuietKind::of_wire(quiet.kind()).unwrap_or(QuietKind::Silence)
}

fn standing(row: &v1::QuietRow) -> &'static str {
    match (row.active, row.changes_ms) {
        (true, _) => "active",
        (false, Some(_)) => "waiting",
        (false, None) => "over",
    }
}

/// `I-12, I-14`; of many the first three and how many more.
pub(super) fn hidden(numbers: &[u64]) -> String {
    let shown: Vec<String> = numbers
        .iter()
        .take(3)
        .map(|one| incidents::id(*one))
        .collect();
    match numbers.len().saturating_sub(3) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Every column of a silence or window.
pub static COLUMNS: &[Column<v1::QuietRow>] = &[
    Column {
        key: "id",
        title: "ID",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::toned(Tone::Strong, kind_of(of(row)).id(of(row).number)),
        value: |row| json!(kind_of(of(row)).id(of(row).number)),
    },
    Column {
        key: "state",
        title: "STATE",
        shown: Shown::Always,
        right: false,
        human: |row, _| match standing(row) {
            "active" => Text::plain("active"),
            other => Text::toned(Tone::Dim, other),
        },
        value: |row| json!(standing(row)),
    },
    Column {
        key: "changes",
        title: "UNTIL",
        shown: Shown::Always,
        right: false,
        human: |row, view| match row.changes_ms {
            Some(at) if row.active => Text::plain(view.absolute_short(Timestamp::from_millis(at))),
            Some(at) => Text::toned(
                Tone::Dim,
                format!("from {}", view.absolute_short(Timestamp::from_millis(at))),
            ),
            None => Text::unknown(),
        },
        value: |row| json_moment(row.changes_ms),
    },
    Column {
        key: "selector",
        title: "FOR",
        shown: Shown::Always,
        right: false,
        human: |row, _| {
            let quiet = of(row);
            let mut text = Text::plain(&quiet.selector);
            for (word, only) in [("rule", &quiet.rule), ("subject", &quiet.subject)] {
                if !only.is_empty() {
                    text = text.and(format!(" {word} {only}"));
                }
            }
            text
        },
        value: |row| json!(of(row).selector),
    },
    Column {
        key: "hosts",
        title: "HOSTS",
        shown: Shown::Always,
        right: true,
        human: |row, _| {
            let tone = if row.hosts == 0 {
                Tone::Warn
            } else {
                Tone::Plain
            };
            Text::toned(tone, row.hosts.to_string())
        },
        value: |row| json!(row.hosts),
    },
    Column {
        key: "hides",
        title: "HIDES",
        shown: Shown::Always,
        right: false,
        human: |row, _| {
            let tone = if row.active { Tone::Warn } else { Tone::Dim };
            Text::toned(tone, hidden(&row.hides))
        },
        value: |row| {
            row.hides
                .iter()
                .map(|one| json!(incidents::id(*one)))
                .collect()
        },
    },
    Column {
        key: "weekly",
        title: "EVERY",
        shown: Shown::Wide,
        right: false,
        human: |row, _| {
            of(row)
                .weekly
                .as_ref()
                .map_or_else(Text::new, |w| Text::plain(every(w)))
        },
        value: |row| json!(of(row).weekly.as_ref().map(every)),
    },
    Column {
        key: "by",
        title: "BY",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&of(row).made_by),
        value: |row| json!(of(row).made_by),
    },
    Column {
        key: "text",
        title: "WHY",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&of(row).text),
        value: |row| json!(of(row).text),
    },
    Column {
        key: "rule",
        title: "RULE",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(&of(row).rule),
        value: |row| json!(of(row).rule),
    },
    Column {
        key: "subject",
        title: "SUBJECT",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(&of(row).subject),
        value: |row| json!(of(row).subject),
    },
    Column {
        key: "made",
        title: "MADE",
        shown: Shown::Wide,
        right: true,
        human: |row, view| Text::plain(view.when(Timestamp::from_millis(of(row).made_ms))),
        value: |row| json_moment(Some(of(row).made_ms)),
    },
    Column {
        key: "endedBy",
        title: "ENDED BY",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(&of(row).ended_by),
        value: |row| json!(Some(&of(row).ended_by).filter(|by| !by.is_empty())),
    },
];

/// `1 host`, `3 hosts`.
fn counted(number: u32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn wrong(why: impl Into<String>) -> Failure {
    Failure::new(Code::Usage, why)
}

/// Reads `S-3`, `s-3` or `3`.
fn parse_silence(text: &str) -> Result<u64, String> {
    parse(
        text,
        'S',
        "a silence is S- and a number, as muster silence list shows it",
    )
}

/// Reads `M-2`, `m-2` or `2`.
fn parse_window(text: &str) -> Result<u64, String> {
    parse(
        text,
        'M',
        "a window is M- and a number, as muster maintenance list shows it",
    )
}

fn parse(text: &str, letter: char, expected: &str) -> Result<u64, String> {
    let (upper, lower) = (letter, letter.to_ascii_lowercase());
    let digits = text
        .strip_prefix([upper, lower])
        .and_then(|rest| rest.strip_prefix('-'))
        .unwrap_or(text);
    digits.parse().map_err(|_| expected.to_owned())
}
