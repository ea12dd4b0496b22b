//! `muster events`, `muster host NAME --changes` and `muster host NAME --recording`.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use jiff::tz::TimeZone;
use muster_proto::{
    event,
    time::Timestamp,
    v1::{self, EventKind, event_field::Value as Field},
};
use serde_json::{Value, json};

use super::{
    args::OfHosts,
    failure::{Code, Failure},
    output::{self, Column, Detail, Format, List, Options, Rendered, Shown, moment, number},
    session::{self, Session},
    text::{Text, Tone},
    units::{View, bits_per_second, bytes, percent},
};

/// Seconds of a recording that are shown to people unless `-n` says otherwise.
const SHOWN_SECONDS: usize = 60;

/// How long before an incident a change is shown with it, and how many.
const CHANGES_BEFORE_MS: i64 = 2 * 3_600_000;
const MAX_CHANGES_BEFORE: u32 = 8;

/// Recordings shown with an incident.
const MAX_RECORDINGS_OF: u32 = 3;

/// Processes and units shown for each moment.
const SHOWN_BUSY: usize = 3;

/// `muster events`
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Print what comes in until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Of which hosts.
    #[command(flatten)]
    pub of: OfHosts,
    /// Only of these kinds: oom_kill, booted, package_changed …; "changes" for all that somebody changed
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub kind: Vec<String>,
    /// Not before: 2h, 3d, 14:30, 2026-11-21T14:30
    #[arg(long, value_name = "TIME", conflicts_with = "follow")]
    pub since: Option<String>,
    /// Not after
    #[arg(long, value_name = "TIME", conflicts_with = "follow")]
    pub until: Option<String>,
}

/// `muster host NAME`: what to look at besides the host as it is now.
#[derive(Debug, Clone, Args)]
pub struct Look {
    /// Show what was changed on it: packages, kernel, unit files, ports, settings
    #[arg(long)]
    pub changes: bool,
    /// Show what its flight recorder held, second by second; the newest without a NUMBER
    #[arg(
        long,
        value_name = "NUMBER",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with = "changes"
    )]
    pub recording: Option<Option<u64>>,
    /// Show what became of the frames of each life of its agent: produced = stored + rejected + lost + outstanding
    #[arg(long, conflicts_with_all = ["changes", "recording"])]
    pub books: bool,
}

/// Every column of an event.
pub static COLUMNS: &[Column<v1::EventRow>] = &[
    Column {
        key: "at",
        title: "WHEN",
        shown: Shown::Always,
        right: true,
        human: |row, view| Text::plain(view.exact(at(row))),
        value: |row| moment(Some(at(row).as_millis())),
    },
    Column {
        key: "host",
        title: "HOST",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.host),
        value: |row| json!(row.host),
    },
    Column {
        key: "what",
        title: "WHAT",
        shown: Shown::Always,
        right: false,
        human: |row, _| what(row),
        value: |row| json!(row.event.as_ref().map(event::words)),
    },
    Column {
        key: "kind",
        title: "KIND",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::toned(Tone::Dim, kind(row)),
        value: |row| json!(kind(row)),
    },
    Column {
        key: "subject",
        title: "SUBJECT",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(row.event.as_ref().map_or("", |event| &event.subject)),
        value: |row| json!(row.event.as_ref().map_or("", |event| &event.subject)),
    },
    Column {
        key: "fields",
        title: "FIELDS",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(fields(row).to_string()),
        value: fields,
    },
    Column {
        key: "late",
        title: "LATE",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(row.late.to_string()),
        value: |row| json!(row.late),
    },
    Column {
        key: "received",
        title: "RECEIVED",
        shown: Shown::Machine,
        right: true,
        human: |row, view| Text::plain(view.exact(Timestamp::from_millis(row.received_ms))),
        value: |row| moment(Some(row.received_ms)),
    },
    Column {
        key: "number",
        title: "NUMBER",
        shown: Shown::Machine,
        right: true,
        human: |row, _| Text::plain(row.number.to_string()),
        value: |row| json!(row.number),
    },
    Column {
        key: "hostId",
        title: "HOSTID",
        shown: Shown::Machine,
        right: false,
        human: |row, _| Text::plain(&row.host_id),
        value: |row| json!(row.host_id),
    },
];

fn at(row: &v1::EventRow) -> Timestamp {
    Timestamp::from_millis(row.event.as_ref().map_or(0, |event| event.at_ms))
}

fn kind(row: &v1::EventRow) -> String {
    row.event
        .as_ref()
        .map_or_else(String::new, |event| event::kind_word(event.kind()))
}

/// What happened, with the tone of how bad it is.
fn what(row: &v1::EventRow) -> Text {
    let Some(happened) = &row.event else {
        return Text::unknown();
    };
    let word = |key| event::get_word(happened, key);
    let to = word(v1::EventFieldKey::To);
    let unclean = event::get_integer(happened, v1::EventFieldKey::Clean) == Some(0);
    let tone = match happened.kind() {
        EventKind::OomKill => Tone::Bad,
        EventKind::UnitStateChanged if to == Some("failed") => Tone::Bad,
        EventKind::Booted if unclean => Tone::Bad,
        EventKind::FilesystemHung if to == Some("hung") => Tone::Bad,
        EventKind::MountModeChanged if to == Some("ro") => Tone::Warn,
        EventKind::LinkChanged if to == Some("down") => Tone::Warn,
        EventKind::EventsLeftOut | EventKind::ClockStepped => Tone::Warn,
        _ => Tone::Plain,
    };
    let text = Text::toned(tone, event::words(happened));
    if row.late {
        return text.with(Tone::Dim, "  (late)");
    }
    text
}

fn fields(row: &v1::EventRow) -> Value {
    let fields = row.event.iter().flat_map(|event| &event.fields);
    let field = |field: &v1::EventField| {
        let value = match &field.value {
            Some(Field::Integer(number)) => json!(number),
            Some(Field::Word(word)) => json!(word),
            None => Value::Null,
        };
        (event::key_word(field.key()), value)
    };
    Value::Object(fields.map(field).collect())
}

/// Answers `muster events` without `--follow`.
///
/// # Errors
/// What cannot be asked, or whatever stood in the way.
pub async fn list(session: &Session, args: &EventsArgs) -> Result<Rendered, Failure> {
    let choice = choice(args)?;
    let view = session.view(None);
    let bound = |text: &Option<String>| {
        let text = text.as_deref();
        let parsed = text.map(|text| parse_time(text, view.now, &view.zone));
        parsed.transpose().map(|at| at.map(Timestamp::as_millis))
    };
    let request = v1::ListEventsRequest {
        choice: Some(choice),
        since_ms: bound(&args.since)?,
        until_ms: bound(&args.until)?,
        limit: session.limit.unwrap_or(0),
    };
    ask(session, request, "no events").await
}

/// Answers `muster host NAME --changes`.
///
/// # Errors
/// Whatever stood in the way.
pub async fn changes(session: &Session, host: &str) -> Result<Rendered, Failure> {
    let request = v1::ListEventsRequest {
        choice: Some(v1::EventChoice {
            host: host.to_owned(),
            kinds: changes_kinds(),
            ..v1::EventChoice::default()
        }),
        limit: session.limit.unwrap_or(0),
        ..v1::ListEventsRequest::default()
    };
    ask(session, request, "no change was seen on it").await
}

async fn ask(
    session: &Session,
    request: v1::ListEventsRequest,
    empty: &str,
) -> Result<Rendered, Failure> {
    let response = session
        .ask_events(async move |mut client| client.list_events(request).await)
        .await?;
    let view = session.view(response.meta.as_ref());
    output::list(rows(response, empty, &view), &session.options, &view)
}

/// The list of an answer.
#[must_use]
pub fn rows(response: v1::ListEventsResponse, empty: &str, view: &View) -> List<v1::EventRow> {
    let mut footer = Vec::new();
    if let Some(before) = response.more_before_ms {
        let before = view.exact(Timestamp::from_millis(before));
        footer.push(Text::toned(
            Tone::Dim,
            format!("more before {before}: --since, or -n for more of them"),
        ));
    }
    if response.not_kept > 0 {
        footer.push(Text::toned(
            Tone::Warn,
            format!(
                "{} events could not be kept since the aggregator started",
                response.not_kept
            ),
        ));
    }
    List {
        columns: COLUMNS,
        rows: response.events,
        name: |row| row.host.clone(),
        meta: response.meta.unwrap_or_default(),
        footer,
        empty: Text::plain(empty),
    }
}

/// Prints events as they come in; ends with the connection.
///
/// # Errors
/// What cannot be asked, or what ended the stream.
pub async fn follow(session: &Session, args: &EventsArgs) -> Result<(), Failure> {
    let request = v1::FollowEventsRequest {
        choice: Some(choice(args)?),
    };
    let mut options = session.options.clone();
    if options.format == Format::Json {
        // An object that never ends is of no use to anybody.
        options.format = Format::Jsonl;
    }
    options.limit = None;
    let (mut stream, refused) = session.follow_events(request).await?;
    loop {
        match stream.message().await {
            Ok(Some(batch)) => {
                let text = lines(batch.events, &options, &session.view(None))?;
                let mut out = anstream::stdout().lock();
                match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                    Ok(()) => {}
                    // Who reads us (`| head`) has enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => {
                        let why = format!("cannot write the events ({error})");
                        return Err(Failure::new(Code::Failed, why));
                    }
                }
            }
            Ok(None) => {
                return Err(
                    Failure::new(Code::Unreachable, "the aggregator ended the stream")
                        .hint("muster events --since 5m", "what came meanwhile"),
                );
            }
            Err(status) => return Err(refused(&status)),
        }
    }
}

fn lines(rows: Vec<v1::EventRow>, options: &Options, view: &View) -> Result<String, Failure> {
    if !matches!(options.format, Format::Table | Format::Wide) {
        let list = List {
            columns: COLUMNS,
            rows,
            name: |row: &v1::EventRow| row.host.clone(),
            meta: session::own_meta(),
            footer: Vec::new(),
            empty: Text::new(),
        };
        return output::list(list, options, view).map(|rendered| rendered.text);
    }
    let mut text = String::new();
    for row in rows {
        Text::toned(Tone::Dim, view.exact(at(&row)))
            .and("  ")
            .with(Tone::Strong, &row.host)
            .and("  ")
            .joined(what(&row))
            .line_to(&mut text);
    }
    Ok(text)
}

fn choice(args: &EventsArgs) -> Result<v1::EventChoice, Failure> {
    session::check_selector(&args.of.selector)?;
    session::check_hosts(&args.of.host)?;
    let mut kinds = Vec::new();
    for word in &args.kind {
        if word == "changes" {
            kinds.extend(changes_kinds());
        } else if event::parse_kind(word).is_some() {
            kinds.push(word.clone());
        } else {
            let known: Vec<String> = event::kinds().map(event::kind_word).collect();
            return Err(
                Failure::new(Code::Usage, format!("{word:?} is no kind of event"))
                    .because(format!("kinds are changes, {}", known.join(", "))),
            );
        }
    }
    Ok(v1::EventChoice {
        selector: args.of.selector.clone(),
        host: args.of.host.clone(),
        kinds,
    })
}

fn changes_kinds() -> Vec<String> {
    event::CHANGES.into_iter().map(event::kind_word).collect()
}

/// A moment: so long ago (`90s`, `2h`, `3d`), a time of today (`14:30`), a date and time in the zone, or
/// RFC 3339.
///
/// # Errors
/// What a time looks like.
pub fn parse_time(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, Failure> {
    let ago = || {
        let unit = match text.chars().last()? {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            _ => return None,
        };
        let count: u64 = text[..text.len() - 1].parse().ok()?;
        Some(now.minus(Duration::from_secs(count.checked_mul(unit)?)))
    };
    let absolute = || {
        if let Ok(at) = text.parse::<jiff::Timestamp>() {
            return Some(at);
        }
        let civil = match text.parse::<jiff::civil::Time>() {
            Ok(time) if text.contains(':') && !text.contains('-') => {
                let today = jiff::Timestamp::from_millisecond(now.as_millis()).ok()?;
                today.to_zoned(zone.clone()).date().to_datetime(time)
            }
            _ => text.replace(' ', "T").parse().ok()?,
        };
        Some(civil.to_zoned(zone.clone()).ok()?.timestamp())
    };
    ago()
        .or_else(|| absolute().map(|at| Timestamp::from_millis(at.as_millisecond())))
        .ok_or_else(|| {
            Failure::new(Code::Usage, format!("{text:?} is no time"))
                .because("a time is 90s, 15m, 2h, 3d (ago), 14:30, 2026-11-21 or 2026-11-21T14:30")
        })
}

/// Adds to an incident what was changed on its host before, and the recordings of its beginning. An aggregator
/// that cannot tell leaves the incident as it is, and is named as missing.
pub async fn surround(session: &Session, row: &v1::IncidentRow, detail: &mut Detail, view: &View) {
    let since = row.since_ms.min(row.opened_ms);
    let changes = v1::ListEventsRequest {
        choice: Some(v1::EventChoice {
            host: row.host.clone(),
            kinds: changes_kinds(),
            ..v1::EventChoice::default()
        }),
        since_ms: Some(since.saturating_sub(CHANGES_BEFORE_MS)),
        until_ms: Some(row.opened_ms),
        limit: MAX_CHANGES_BEFORE,
    };
    let recordings = v1::ListRecordingsRequest {
        host: row.host.clone(),
        since_ms: Some(since),
        until_ms: Some(row.opened_ms),
        limit: MAX_RECORDINGS_OF,
    };
    let asked = session.ask_events(async move |mut client| {
        let changes = client.list_events(changes).await?.into_inner();
        let recordings = client.list_recordings(recordings).await?.into_inner();
        Ok(tonic::Response::new((
            changes.events,
            recordings.recordings,
        )))
    });
    match asked.await {
        Ok((changes, recordings)) => add(&changes, &recordings, row, detail, view),
        // The host may be gone: then there is nobody to ask about.
        Err(failure) if failure.code == Code::NotFound => {}
        Err(_) => {
            detail.meta.complete = false;
            detail
                .meta
                .missing
                .push("changes and recordings".to_owned());
        }
    }
}

/// Puts them before the last line, which says what to do next.
fn add(
    changes: &[v1::EventRow],
    recordings: &[v1::RecordingRow],
    row: &v1::IncidentRow,
    detail: &mut Detail,
    view: &View,
) {
    let exact = |ms| view.exact(Timestamp::from_millis(ms));
    let changed = changes.iter().map(|change| {
        Text::toned(Tone::Dim, exact(at(change).as_millis()))
            .and("  changed   ")
            .joined(what(change))
    });
    let recorded = recordings.iter().map(|recording| {
        let (from, to) = (exact(recording.from_ms), exact(recording.to_ms));
        Text::plain(format!("recorded  {from} to {to}, each second: ")).and(format!(
            "muster host {} --recording={}",
            row.host, recording.number
        ))
    });
    let last = detail.lines.len().saturating_sub(1);
    let added: Vec<Text> = changed.chain(recorded).collect();
    detail.lines.splice(last..last, added);
    if let Value::Object(item) = &mut detail.item {
        let change = |change: &v1::EventRow| {
            let words = change.event.as_ref().map(event::words);
            json!({"at": moment(Some(at(change).as_millis())), "kind": kind(change), "what": words})
        };
        item.insert("changes".to_owned(), changes.iter().map(change).collect());
        let recording = |recording: &v1::RecordingRow| {
            json!({
                "number": recording.number,
                "from": moment(Some(recording.from_ms)),
                "to": moment(Some(recording.to_ms)),
            })
        };
        let recordings = recordings.iter().map(recording);
        item.insert("recordings".to_owned(), recordings.collect());
    }
}

/// Answers `muster host NAME --recording`.
///
/// # Errors
/// Whatever stood in the way, or that there is none.
pub async fn recording(
    session: &Session,
    host: &str,
    number: Option<u64>,
) -> Result<Rendered, Failure> {
    let number = match number {
        Some(number) => number,
        None => {
            let request = v1::ListRecordingsRequest {
                host: host.to_owned(),
                limit: 1,
                ..v1::ListRecordingsRequest::default()
            };
            let listed = session
                .ask_events(async move |mut client| client.list_recordings(request).await)
                .await?;
            let newest = listed.recordings.first().map(|row| row.number);
            newest.ok_or_else(|| {
                Failure::new(Code::NotFound, format!("there is no recording of {host}"))
                    .because("one is asked for when an incident begins on a host that is connected")
            })?
        }
    };
    let request = v1::GetRecordingRequest { number };
    let recording = session
        .ask_events(async move |mut client| client.get_recording(request).await)
        .await?;
    let view = session.view(recording.meta.as_ref());
    let shown = session.options.limit.unwrap_or(SHOWN_SECONDS);
    let mut options = session.options.clone();
    options.limit = None;
    output::detail(recorded(recording, shown, &view), &options)
}

/// One recording, its last `shown` seconds for people.
#[must_use]
pub fn recorded(recording: v1::Recording, shown: usize, view: &View) -> Detail {
    let row = recording.row.clone().unwrap_or_default();
    let exact = |ms| view.exact(Timestamp::from_millis(ms));
    let mut lines = vec![
        Text::plain("recording ")
            .with(Tone::Strong, row.number.to_string())
            .and(format!("  {}", row.host)),
        Text::plain(format!(
            "{} to {}, {} rounds",
            exact(row.from_ms),
            exact(row.to_ms),
            recording.seconds.len()
        )),
        Text::new(),
        Text::toned(
            Tone::Dim,
            format!(
                "{:<10} {:>5} {:>6} {:>5} {:>7} {:>5} {:>12} {:>11} {:>17}",
                "TIME",
                "CPU",
                "IOWAIT",
                "MEM",
                "LOAD",
                "DISK",
                "DISK B/S",
                "NET",
                "STALL cpu/mem/io"
            ),
        ),
    ];
    let skipped = recording.seconds.len().saturating_sub(shown);
    if skipped > 0 {
        lines.push(Text::toned(
            Tone::Dim,
            format!(
                "… {skipped} before (-n {} for all)",
                recording.seconds.len()
            ),
        ));
    }
    lines.extend(
        recording.seconds[skipped..]
            .iter()
            .map(|second| second_line(second, view)),
    );
    if let Some(busiest) = recording.busiest.last() {
        lines.push(Text::new());
        lines.push(Text::plain(format!("busiest at {}", exact(busiest.at_ms))));
        for (title, all) in [("unit", &busiest.units), ("process", &busiest.processes)] {
            lines.extend(
                all.iter()
                    .take(SHOWN_BUSY)
                    .map(|busy| busy_line(title, busy)),
            );
        }
    }
    Detail {
        name: row.number.to_string(),
        item: json!({
            "number": row.number,
            "host": row.host,
            "hostId": row.host_id,
            "asked": moment(Some(row.asked_ms)),
            "from": moment(Some(row.from_ms)),
            "to": moment(Some(row.to_ms)),
            "seconds": recording.seconds.iter().map(second_item).collect::<Vec<_>>(),
            "busiest": recording.busiest.iter().map(busiest_item).collect::<Vec<_>>(),
        }),
        lines,
        meta: recording.meta.unwrap_or_default(),
    }
}

fn second_line(second: &v1::RecordedSecond, view: &View) -> Text {
    let cell = |text: Text, width: usize| {
        let pad = width.saturating_sub(text.width());
        Text::plain(" ".repeat(pad + 1)).joined(text)
    };
    let share = |value| percent(value);
    let rate = |value: Option<f64>, unit: fn(f64) -> String| {
        value.map_or_else(Text::unknown, |value| Text::plain(unit(value)))
    };
    let load = second
        .load1
        .map_or_else(Text::unknown, |load| Text::plain(format!("{load:.2}")));
    let time = view.exact(Timestamp::from_millis(second.tick_ms));
    let stalls = share(second.pressure_cpu_ratio)
        .and("/")
        .joined(share(second.pressure_memory_ratio))
        .and("/")
        .joined(share(second.pressure_io_ratio));
    Text::toned(Tone::Dim, format!("{time:<10}"))
        .joined(cell(share(second.cpu_ratio), 5))
        .joined(cell(share(second.iowait_ratio), 6))
        .joined(cell(share(second.memory_ratio), 5))
        .joined(cell(load, 7))
        .joined(cell(share(second.disk_busy_ratio), 5))
        .joined(cell(rate(second.disk_bytes_per_second, bytes), 12))
        .joined(cell(
            rate(second.network_bytes_per_second, bits_per_second),
            11,
        ))
        .joined(cell(stalls, 17))
}

fn busy_line(title: &str, busy: &v1::Busy) -> Text {
    let pid = match busy.pid {
        0 => String::new(),
        pid => format!(" ({pid})"),
    };
    let io = busy.io_bytes_per_second.map_or_else(String::new, |rate| {
        format!(", {}/s read and written", bytes(f64::from(rate)))
    });
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let memory = bytes(busy.memory_bytes as f64);
    Text::plain(format!("  {title:<8} "))
        .with(Tone::Strong, &busy.name)
        .and(format!("{pid}  {:.2} cpus, {memory}{io}", busy.cpus))
}

fn second_item(second: &v1::RecordedSecond) -> Value {
    json!({
        "tick": moment(Some(second.tick_ms)),
        "cpuRatio": number(second.cpu_ratio),
        "iowaitRatio": number(second.iowait_ratio),
        "memoryRatio": number(second.memory_ratio),
        "load1": number(second.load1),
        "diskBusyRatio": number(second.disk_busy_ratio),
        "diskBytesPerSecond": number(second.disk_bytes_per_second),
        "networkBytesPerSecond": number(second.network_bytes_per_second),
        "pressureCpuRatio": number(second.pressure_cpu_ratio),
        "pressureMemoryRatio": number(second.pressure_memory_ratio),
        "pressureIoRatio": number(second.pressure_io_ratio),
    })
}

fn busiest_item(busiest: &v1::Busiest) -> Value {
    let busy = |busy: &v1::Busy| {
        json!({
            "name": busy.name,
            "pid": Some(busy.pid).filter(|pid| *pid != 0),
            "cpus": number(Some(busy.cpus.into())),
            "memoryBytes": busy.memory_bytes,
            "ioBytesPerSecond": number(busy.io_bytes_per_second.map(f64::from)),
        })
    };
    json!({
        "at": moment(Some(busiest.at_ms)),
        "units": busiest.units.iter().map(busy).collect::<Vec<_>>(),
        "processes": busiest.processes.iter().map(busy).collect::<Vec<_>>(),
        "processesLeftOut": busiest.left_out,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_270_380_000);

    fn view() -> View {
        View {
            now: NOW,
            zone: TimeZone::UTC,
            width: None,
        }
    }

    fn row(
        kind: EventKind,
        subject: &str,
        late: bool,
        fields: Vec<v1::EventField>,
    ) -> v1::EventRow {
        v1::EventRow {
            number: 7,
            host: "web-01".to_owned(),
            host_id: "00".repeat(16),
            received_ms: NOW.as_millis(),
            late,
            event: Some(v1::Event {
                kind: kind.into(),
                subject: subject.to_owned(),
                at_ms: NOW.as_millis() - 5_000,
                fields,
            }),
        }
    }

    #[test]
    fn times_are_ago_today_or_dated() {
        let parse = |text| {
            parse_time(text, NOW, &TimeZone::UTC)
                .map(Timestamp::as_millis)
                .ok()
        };
        let second = 1_000;
        for (text, expected) in [
            ("90s", Some(NOW.as_millis() - 90 * second)),
            ("2h", Some(NOW.as_millis() - 7_200 * second)),
            ("3d", Some(NOW.as_millis() - 3 * 86_400 * second)),
            ("14:00", Some(NOW.as_millis() - 13 * 60 * second)),
            ("2026-11-21T14:12:00", Some(NOW.as_millis() - 60 * second)),
            ("2026-11-21 14:12", Some(NOW.as_millis() - 60 * second)),
            ("2026-11-21T15:13:00+01:00", Some(NOW.as_millis())),
            (
                "2026-11-21",
                Some(NOW.as_millis() - (14 * 3_600 + 13 * 60) * second),
            ),
            ("yesterday", None),
            ("h", None),
            ("", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn remote_text_is_escaped_in_every_form_of_a_stream() {
        let evil = row(
            EventKind::UnitStateChanged,
            "a\u{1b}[2J\n.service",
            true,
            Vec::new(),
        );
        for format in [Format::Table, Format::Tsv, Format::Jsonl, Format::Name] {
            let options = Options {
                format,
                columns: Vec::new(),
                sort: None,
                limit: None,
            };
            let text = lines(vec![evil.clone()], &options, &view()).expect("renders");
            assert!(!text.contains("\u{1b}[2J"), "{format:?}: {text:?}");
            assert_eq!(text.lines().count(), 1, "{format:?}: {text:?}");
        }
    }

    #[test]
    fn an_incident_shows_what_was_changed_before_and_where_its_record_is() {
        let incident = v1::IncidentRow {
            host: "web-01".to_owned(),
            ..v1::IncidentRow::default()
        };
        let mut detail = Detail {
            name: "I-1".to_owned(),
            item: json!({"id": "I-1"}),
            lines: vec![Text::plain("head"), Text::plain("next: x")],
            meta: session::own_meta(),
        };
        let to = vec![event::word(v1::EventFieldKey::To, "2\u{1b}")];
        let change = row(EventKind::PackageChanged, "nginx", false, to);
        let recording = v1::RecordingRow {
            number: 3,
            from_ms: NOW.as_millis() - 600_000,
            to_ms: NOW.as_millis(),
            ..v1::RecordingRow::default()
        };
        add(&[change], &[recording], &incident, &mut detail, &view());
        let mut text = String::new();
        detail.lines.iter().for_each(|line| line.line_to(&mut text));
        let text = anstream::adapter::strip_str(&text).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "14:12:55Z  changed   package nginx 2\u{fffd} installed"
        );
        assert_eq!(
            lines[2],
            "recorded  14:03:00Z to 14:13:00Z, each second: muster host web-01 --recording=3"
        );
        assert_eq!(lines[3], "next: x");
        assert_eq!(detail.item["recordings"][0]["number"], 3);
        assert_eq!(detail.item["changes"][0]["kind"], "package_changed");
    }

    #[test]
    fn late_events_say_so_and_columns_hold_the_fields() {
        let count = vec![event::integer(v1::EventFieldKey::Count, 2)];
        let row = row(EventKind::OomKill, "db.service", true, count);
        let mut text = String::new();
        what(&row).line_to(&mut text);
        assert!(
            text.contains("2 killed in db.service") && text.contains("(late)"),
            "{text}"
        );
        assert_eq!(fields(&row), json!({"count": 2}));
        assert_eq!(kind(&row), "oom_kill");
    }
}
