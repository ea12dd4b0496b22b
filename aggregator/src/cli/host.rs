//! `muster host NAME`: everything about one host on one screen.

use std::time::Duration;

use muster_proto::{event, time::Timestamp, v1};
use serde_json::{Value, json};

use crate::{
    detect::{Hours, forecast::Forecast},
    fleet::Silence,
};

use super::{
    anomalies::words,
    checks,
    hosts::{self, anomaly, labels, silence_word, state_text},
    incidents,
    output::{Detail, moment, number},
    text::{Text, Tone},
    units::{
        self, View, bits_per_second, bytes, number as decimal, percent, percent_plain, short,
        sparkline,
    },
};

/// A clock that is off by more than this is worth a word.
const CLOCK_OFF_MS: u64 = 5_000;

/// Events and entries of a line that lists things.
const SHOWN: usize = 5;

/// Everything of an answer.
#[must_use]
pub fn detail(host: v1::HostDetail, view: &View) -> Detail {
    let row = host.row.clone().unwrap_or_default();
    let heard = heard(&row);
    let item = item(&host, &row);
    let mut lines = lines(&host, &row, heard, Tense::Now, view);
    lines.push(books(&host));
    lines.push(Text::toned(Tone::Dim, "next: ").and(next(&host, &row)));
    Detail {
        name: row.name.clone(),
        item,
        lines,
        meta: host.meta.unwrap_or_default(),
    }
}

/// What is not kept over time, in [`item`].
const NOT_KEPT: [&str; 9] = [
    "anomalyScore",
    "anomalyCauses",
    "silenceCause",
    "silenceAccount",
    "clockOffsetSeconds",
    "certificateExpires",
    "checkCount",
    "failingChecks",
    "frames",
];

/// Everything of an answer about a time that is past. What was measured is shown also of a host that was not heard: it
/// sent it later.
#[must_use]
pub fn detail_then(host: v1::HostDetail, view: &View) -> Detail {
    let row = host.row.clone().unwrap_or_default();
    let measured = row.load1.is_some() || row.cpu_ratio.is_some() || row.memory_ratio.is_some();
    let mut item = item(&host, &row);
    if let Value::Object(item) = &mut item {
        let mut unknown = NOT_KEPT.to_vec();
        for (key, known) in [
            ("stateSince", row.state_since_ms > 0),
            ("intervalSeconds", row.interval_ms > 0),
            ("series", row.series > 0),
            (
                "cpus",
                host.facts.as_ref().is_some_and(|facts| facts.cpus > 0),
            ),
            ("memoryBytes", row.memory_ratio.is_some()),
        ] {
            if !known {
                unknown.push(key);
            }
        }
        for key in unknown {
            item.insert(key.to_owned(), Value::Null);
        }
        item.insert("bootTime".to_owned(), moment(host.boot_time_ms));
    }
    let mut lines = lines(&host, &row, measured, Tense::Then, view);
    let at = units::rfc3339(view.now);
    lines.push(Text::toned(Tone::Dim, "next: ").and(format!(
        "muster events --host {0} --until {at} · muster plot node_load1 --host {0} --until {at}",
        row.name
    )));
    Detail {
        name: row.name.clone(),
        item,
        lines,
        meta: host.meta.unwrap_or_default(),
    }
}

/// Of which time an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tense {
    Now,
    Then,
}

/// What is known of it, before what only stands for now.
fn lines(
    host: &v1::HostDetail,
    row: &v1::HostRow,
    heard: bool,
    tense: Tense,
    view: &View,
) -> Vec<Text> {
    let mut lines = vec![head(host, row, view), about(host, row, view)];
    if heard {
        lines.push(cpu(host, row));
        lines.push(memory(host, row));
    } else {
        if !host.silence_account.is_empty() {
            let words = Silence::words(row.silence_cause());
            lines.push(
                Text::plain("silence   ")
                    .with(Tone::Strong, words)
                    .and(format!(": {}", host.silence_account)),
            );
        }
        lines.push(Text::toned(
            Tone::Dim,
            match tense {
                Tense::Now => "  not heard from: what it does now, services included, is not known",
                Tense::Then => {
                    "  not heard from: what it did then, services included, is not known"
                }
            },
        ));
    }
    if !host.filesystems.is_empty() {
        lines.push(filesystems(host));
    }
    if !host.disks.is_empty() {
        lines.push(disks(host));
    }
    if !host.interfaces.is_empty() {
        lines.push(network(host));
    }
    if heard {
        lines.push(failing(host, row, view));
        lines.extend(checks::of_host(host.checks, &host.failing_checks, view));
        // Scores are not kept over time.
        if tense == Tense::Now {
            lines.push(unusual(host, row));
        }
    }
    if let Some(past) = host.past_silence.filter(|_| heard) {
        lines.extend(past_silence(&past, &host.silence_account, view));
    }
    for incident in &host.incidents {
        let opened = view.now.since(Timestamp::from_millis(incident.opened_ms));
        lines.push(
            Text::plain("incident  ")
                .with(Tone::Strong, incidents::id(incident.number))
                .and(" ")
                .with(
                    incidents::severity_tone(incident.severity()),
                    incidents::severity(incident.severity()),
                )
                .and(format!(" \"{}\" open {}", incident.summary, short(opened))),
        );
    }
    for doubt in &host.doubts {
        let words = super::history::doubt_words(doubt);
        lines.push(Text::plain("identity  ").with(Tone::Warn, words));
    }
    if !host.failing_collectors.is_empty() {
        lines.push(
            Text::plain("collect   ")
                .with(Tone::Warn, "failing: ")
                .and(host.failing_collectors.join(", ")),
        );
    }
    for happened in host.events.iter().rev().take(SHOWN).rev() {
        lines.push(
            Text::plain("event     ")
                .with(
                    Tone::Dim,
                    view.exact(Timestamp::from_millis(happened.at_ms)),
                )
                .and(format!("  {}", event::words(happened))),
        );
    }
    lines
}

/// How long an ended silence is worth a line.
const PAST_SHOWN: Duration = Duration::from_secs(86_400);

fn past_silence(past: &v1::PastSilence, account: &str, view: &View) -> Option<Text> {
    let since = Timestamp::from_millis(past.since_ms);
    let until = Timestamp::from_millis(past.until_ms);
    if view.now.since(until) > PAST_SHOWN {
        return None;
    }
    let words = format!(
        "  for {}, over since {}: {}; {account}",
        short(until.since(since)),
        view.since(until),
        Silence::words(past.cause()),
    );
    let line = Text::plain("silence   ").with(Tone::Dim, view.exact(since));
    Some(line.and(words))
}

/// Whether what is told of it is how it is now.
fn heard(row: &v1::HostRow) -> bool {
    matches!(row.state(), v1::HostState::Live | v1::HostState::Late)
}

fn head(host: &v1::HostDetail, row: &v1::HostRow, view: &View) -> Text {
    let facts = host.facts.clone().unwrap_or_default();
    let mut line = Text::toned(Tone::Strong, &row.name).and("  ");
    line.append(state_text(row));
    if let Some(cause) = silence_word(row).filter(|cause| *cause != "unknown") {
        line.push(Tone::Plain, format!(" ({cause})"));
    }
    if row.state_since_ms > 0 {
        let since = Timestamp::from_millis(row.state_since_ms);
        line.push(Tone::Plain, format!(" since {}", view.since(since)));
    }
    let mut parts: Vec<String> = [&row.os, &row.kernel]
        .into_iter()
        .filter(|text| !text.is_empty())
        .cloned()
        .collect();
    if facts.cpus > 0 {
        parts.push(format!("{} CPU", facts.cpus));
    }
    if facts.memory_bytes > 0 {
        #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
        parts.push(bytes(facts.memory_bytes as f64));
    }
    line.push(Tone::Plain, format!("    {}", parts.join(", ")));
    if let Some(boot) = host.boot_time_ms.filter(|_| heard(row)) {
        let up = view.now.since(Timestamp::from_millis(boot));
        line.push(Tone::Plain, format!("    up {}", short(up)));
    }
    line
}

fn about(host: &v1::HostDetail, row: &v1::HostRow, view: &View) -> Text {
    let labels = labels(row);
    let mut line = Text::plain("labels  ");
    if labels.is_empty() {
        line.push(Tone::Dim, "none");
    } else {
        line.push(Tone::Plain, labels);
    }
    let mut parts = Vec::new();
    if !row.agent_version.is_empty() {
        parts.push(format!("agent {}", row.agent_version));
    }
    if host.certificate_expires_ms > 0 {
        let left = Timestamp::from_millis(host.certificate_expires_ms).since(view.now);
        parts.push(format!("cert {}", short(left)));
    }
    if let Some(offset) = host.clock_offset_ms.filter(|_| heard(row)) {
        parts.push(format!("clock {offset:+} ms"));
    }
    if let Some(seen) = row.last_seen_ms {
        parts.push(format!("seen {}", view.ago(Timestamp::from_millis(seen))));
    }
    line.push(Tone::Dim, format!("    {}", parts.join(", ")));
    let off = host.clock_offset_ms.filter(|_| heard(row)).unwrap_or(0);
    if off.unsigned_abs() > CLOCK_OFF_MS {
        line.push(
            Tone::Warn,
            format!(
                "  its clock is {} s {}",
                off.unsigned_abs() / 1000,
                if off > 0 { "ahead" } else { "behind" }
            ),
        );
    }
    line
}

fn recent(host: &v1::HostDetail, field: &str, top: Option<f64>) -> String {
    host.recent
        .iter()
        .find(|recent| recent.field == field)
        .map_or(String::new(), |recent| sparkline(&recent.values, top))
}

/// A name of seven columns, a percentage of five, what the last values were.
fn measure(name: &str, value: Text, recent: &str) -> Text {
    let pad = " ".repeat(5usize.saturating_sub(value.width()));
    let mut line = Text::plain(format!("  {name:<7} {pad}"));
    line.append(value);
    let missing = " ".repeat(10usize.saturating_sub(recent.chars().count()));
    line.and(format!("  {recent}{missing}"))
}

fn cpu(host: &v1::HostDetail, row: &v1::HostRow) -> Text {
    let mut line = measure(
        "CPU",
        percent(row.cpu_ratio),
        &recent(host, "cpu_ratio", Some(1.0)),
    );
    for mode in ["user", "system", "iowait", "steal"] {
        if let Some(ratio) = host.cpu_modes.get(mode) {
            line.push(Tone::Plain, format!("  {mode} {:.0}", ratio * 100.0));
        }
    }
    line.push(Tone::Plain, "  load ");
    line.append(decimal(row.load1, 1));
    stalled(&mut line, host, "cpu some");
    line
}

fn memory(host: &v1::HostDetail, row: &v1::HostRow) -> Text {
    let mut line = measure(
        "memory",
        percent(row.memory_ratio),
        &recent(host, "memory_ratio", Some(1.0)),
    );
    stalled(&mut line, host, "memory some");
    line
}

/// What pressure stall information says, when it says anything.
fn stalled(line: &mut Text, host: &v1::HostDetail, what: &str) {
    if let Some(&ratio) = host.pressure.get(what) {
        let tone = if ratio >= 0.1 {
            Tone::Warn
        } else {
            Tone::Plain
        };
        line.push(Tone::Plain, "  stalled ");
        line.push(tone, percent_plain(ratio));
        line.push(Tone::Plain, " of the time");
    }
}

fn filesystems(host: &v1::HostDetail) -> Text {
    let mut fullest: Vec<&v1::Filesystem> = host.filesystems.iter().collect();
    fullest.sort_by(|a, b| b.used_ratio.total_cmp(&a.used_ratio));
    let mut line = Text::plain("  disk   ");
    for filesystem in fullest.iter().take(SHOWN) {
        line.push(Tone::Plain, format!(" {} ", filesystem.mountpoint));
        if filesystem.hung {
            line.push(Tone::Bad, "does not answer");
        } else {
            line.append(percent(Some(filesystem.used_ratio)));
            line.push(
                Tone::Dim,
                format!(" ({} free)", bytes(filesystem.available_bytes)),
            );
        }
        if filesystem.readonly {
            line.push(Tone::Warn, " read-only");
        }
        for (what, forecast) in [
            ("", &filesystem.full_in),
            (" of inodes", &filesystem.inodes_full_in),
        ] {
            if let Some(forecast) = forecast.filter(|at| at.hours <= FORECAST_SHOWN_HOURS) {
                let near = forecast.hours <= FORECAST_NEAR_HOURS;
                let tone = if near { Tone::Warn } else { Tone::Dim };
                line.push(tone, format!(" full{what} in {}", full_in(forecast)));
            }
        }
        if filesystem
            .inodes_used_ratio
            .is_some_and(|ratio| ratio >= 0.9)
        {
            line.push(Tone::Plain, " inodes ");
            line.append(percent(filesystem.inodes_used_ratio));
        }
        line.push(Tone::Plain, "   ");
    }
    let more = fullest.len().saturating_sub(SHOWN);
    if more > 0 {
        line.push(Tone::Dim, format!("and {more} more"));
    }
    line
}

/// Forecasts beyond a fortnight are not worth a line; those within a day are what to look at.
const FORECAST_SHOWN_HOURS: f64 = 14.0 * 24.0;
const FORECAST_NEAR_HOURS: f64 = 24.0;

fn full_in(at: v1::FullIn) -> Hours {
    Hours(Forecast {
        hours: at.hours,
        low: at.low,
        high: at.high,
    })
}

fn disks(host: &v1::HostDetail) -> Text {
    let mut busiest: Vec<&v1::Disk> = host.disks.iter().collect();
    busiest.sort_by(|a, b| {
        let busy = |disk: &v1::Disk| disk.busy_ratio.unwrap_or(-1.0);
        busy(b).total_cmp(&busy(a))
    });
    let mut line = Text::plain("  io     ");
    for disk in busiest.iter().take(3) {
        line.push(Tone::Plain, format!(" {} ", disk.device));
        line.append(percent(disk.busy_ratio));
        line.push(Tone::Plain, " busy");
        let rates = [
            ("read", disk.read_bytes_per_second),
            ("write", disk.written_bytes_per_second),
        ];
        for (what, rate) in rates {
            if let Some(rate) = rate {
                line.push(Tone::Plain, format!(" {what} {}/s", bytes(rate)));
            }
        }
        line.push(Tone::Plain, "   ");
    }
    line
}

fn network(host: &v1::HostDetail) -> Text {
    let mut busiest: Vec<&v1::Interface> = host.interfaces.iter().collect();
    let traffic = |interface: &v1::Interface| {
        interface.receive_bytes_per_second.unwrap_or(0.0)
            + interface.transmit_bytes_per_second.unwrap_or(0.0)
    };
    busiest.sort_by(|a, b| traffic(b).total_cmp(&traffic(a)));
    let mut line = Text::plain("  net    ");
    for interface in busiest.iter().take(3) {
        line.push(Tone::Plain, format!(" {}", interface.device));
        let rates = [
            ("in", interface.receive_bytes_per_second),
            ("out", interface.transmit_bytes_per_second),
        ];
        for (what, rate) in rates {
            let rate = rate.map_or_else(|| "–".to_owned(), bits_per_second);
            line.push(Tone::Plain, format!(" {what} {rate}"));
        }
        if let Some(errors) = interface.errors_per_second.filter(|errors| *errors > 0.0) {
            line.push(Tone::Warn, format!(" {errors:.1} errors/s"));
        }
        line.push(Tone::Plain, "   ");
    }
    line
}

fn failing(host: &v1::HostDetail, row: &v1::HostRow, view: &View) -> Text {
    let mut line = Text::plain("failing   ");
    let Some(services) = row.services else {
        return line.with(Tone::Dim, "– no service manager could be asked");
    };
    if host.failing_services.is_empty() {
        return line.and(format!("none of {services} services"));
    }
    for (at, unit) in host.failing_services.iter().enumerate() {
        let between = if at > 0 { ", " } else { "" };
        line = line.and(between).with(Tone::Bad, &unit.name);
        if let Some(since) = unit.since_ms {
            line.push(
                Tone::Plain,
                format!(" {}", view.when(Timestamp::from_millis(since))),
            );
        }
        if unit.restarts > 0 {
            line.push(Tone::Plain, format!(" {} restarts", unit.restarts));
        }
    }
    line.and(format!("  of {services} services"))
}

fn unusual(host: &v1::HostDetail, row: &v1::HostRow) -> Text {
    let mut line = Text::plain("anomaly   ");
    line.append(anomaly(row.anomaly_score));
    if row.anomaly_score.is_none() {
        line.push(Tone::Dim, " still learning what is usual");
    } else if !host.anomaly_causes.is_empty() {
        let causes: Vec<String> = host
            .anomaly_causes
            .iter()
            .map(|signal| words(signal))
            .collect();
        line.push(Tone::Plain, format!(" {}", causes.join(", ")));
    }
    line
}

fn books(host: &v1::HostDetail) -> Text {
    let books = host.books.unwrap_or_default();
    let dropped = books.lost + books.rejected;
    let tone = if dropped > 0 { Tone::Warn } else { Tone::Dim };
    Text::plain("frames    ")
        .with(Tone::Dim, format!("{} stored, ", books.stored))
        .with(
            tone,
            format!("{} lost, {} rejected", books.lost, books.rejected),
        )
}

fn next(host: &v1::HostDetail, row: &v1::HostRow) -> String {
    if let Some(incident) = host.incidents.first() {
        return format!("muster incident {}", incidents::id(incident.number));
    }
    if let Some(unit) = host.failing_services.first() {
        return format!("ssh {} journalctl -u {} -e", row.name, unit.name);
    }
    if row.state() == v1::HostState::Silent {
        return format!("ssh {} systemctl status muster-agent", row.name);
    }
    format!("muster services --host {}", row.name)
}

fn item(host: &v1::HostDetail, row: &v1::HostRow) -> Value {
    let mut item = serde_json::Map::new();
    for column in hosts::COLUMNS {
        item.insert(column.key.to_owned(), (column.value)(row));
    }
    let facts = host.facts.clone().unwrap_or_default();
    let books = host.books.unwrap_or_default();
    let past = host.past_silence.map(|past| {
        json!({
            "since": moment(Some(past.since_ms)),
            "until": moment(Some(past.until_ms)),
            "cause": Silence::word(past.cause()),
        })
    });
    let rest = json!({
        "silenceAccount": host.silence_account,
        "pastSilence": past,
        "hostname": facts.hostname,
        "architecture": facts.architecture,
        "cpus": facts.cpus,
        "memoryBytes": facts.memory_bytes,
        "bootTime": moment(host.boot_time_ms.filter(|_| heard(row))),
        "clockOffsetSeconds": host.clock_offset_ms.filter(|_| heard(row)).map(|ms| Duration::from_millis(ms.unsigned_abs()).as_secs_f64() * if ms < 0 { -1.0 } else { 1.0 }),
        "certificateExpires": moment(Some(host.certificate_expires_ms)),
        "cpuModes": object(&host.cpu_modes),
        "pressure": camel_case(object(&host.pressure)),
        "filesystems": host.filesystems.iter().map(|filesystem| json!({
            "mountpoint": filesystem.mountpoint,
            "device": filesystem.device,
            "fstype": filesystem.fstype,
            "sizeBytes": whole(filesystem.size_bytes),
            "availableBytes": whole(filesystem.available_bytes),
            "usedRatio": number(Some(filesystem.used_ratio)),
            "inodesUsedRatio": number(filesystem.inodes_used_ratio),
            "readonly": filesystem.readonly,
            "hung": filesystem.hung,
            "fullInHours": filesystem.full_in.map(|at| at.hours),
            "inodesFullInHours": filesystem.inodes_full_in.map(|at| at.hours),
        })).collect::<Value>(),
        "disks": host.disks.iter().map(|disk| json!({
            "device": disk.device,
            "busyRatio": number(disk.busy_ratio),
            "readBytesPerSecond": number(disk.read_bytes_per_second),
            "writtenBytesPerSecond": number(disk.written_bytes_per_second),
        })).collect::<Value>(),
        "interfaces": host.interfaces.iter().map(|interface| json!({
            "device": interface.device,
            "receiveBytesPerSecond": number(interface.receive_bytes_per_second),
            "transmitBytesPerSecond": number(interface.transmit_bytes_per_second),
            "errorsPerSecond": number(interface.errors_per_second),
        })).collect::<Value>(),
        "checkCount": host.checks,
        "failingChecks": host.failing_checks.iter().map(checks::item).collect::<Value>(),
        "failingServices": host.failing_services.iter().map(|unit| json!({
            "service": unit.name,
            "state": unit.state,
            "since": moment(unit.since_ms),
            "restarts": unit.restarts,
        })).collect::<Value>(),
        "incidents": host.incidents.iter().map(|incident| json!({
            "id": incidents::id(incident.number),
            "severity": incidents::severity(incident.severity()),
            "summary": incident.summary,
            "opened": moment(Some(incident.opened_ms)),
        })).collect::<Value>(),
        "events": host.events.iter().map(|event| json!({
            "at": moment(Some(event.at_ms)),
            "kind": event::kind_word(event.kind()),
            "subject": event.subject,
            "what": event::words(event),
        })).collect::<Value>(),
        "failingCollectors": host.failing_collectors,
        "anomalyCauses": host.anomaly_causes,
        "frames": {
            "produced": books.produced,
            "stored": books.stored,
            "rejected": books.rejected,
            "lost": books.lost,
            "duplicate": books.duplicate,
        },
        "doubts": host.doubts.iter().map(|doubt| json!({
            "from": moment(Some(doubt.from_ms)),
            "until": moment(Some(doubt.until_ms)),
        })).collect::<Value>(),
    });
    if let Value::Object(rest) = rest {
        item.extend(rest);
    }
    Value::Object(item)
}

/// A count of bytes as an integer; null when it is not finite.
fn whole(bytes: f64) -> Value {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no filesystem has 2^64 bytes, and a float beyond saturates"
    )]
    bytes.is_finite().then_some(bytes as u64).into()
}

/// `cpu some`, as the contract names it, is `cpuSome` in JSON.
fn camel_case(object: Value) -> Value {
    let Value::Object(object) = object else {
        return object;
    };
    let key = |key: String| {
        let mut words = key.split(' ');
        let mut out = words.next().unwrap_or_default().to_owned();
        for word in words {
            let mut letters = word.chars();
            out.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            out.push_str(letters.as_str());
        }
        out
    };
    Value::Object(
        object
            .into_iter()
            .map(|(name, value)| (key(name), value))
            .collect(),
    )
}

fn object(map: &std::collections::BTreeMap<String, f64>) -> Value {
    let object: serde_json::Map<String, Value> = map
        .iter()
        .map(|(key, value)| (key.clone(), number(Some(*value))))
        .collect();
    Value::Object(object)
}
