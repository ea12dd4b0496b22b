//! `muster audit`: who did what, newest first, and whether anybody changed the record of it.

use muster_agent::settings;
use muster_proto::{
    spiffe::hex,
    time::{Clock as _, SystemClock, Timestamp},
    v1,
};
use serde_json::json;

use super::{
    failure::{Code, Failure},
    output::{self, Column, List, Rendered, Shown, moment},
    session::Session,
    text::Text,
};

/// `muster audit`
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Only from then on: a span of time ago (2h, 7d) or a date (2026-11-01, 2026-11-01T06:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<Timestamp>,
    /// Only what was done by these: part of a name
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub actor: String,
    /// Only such actions: part of one, for example evict
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub action: String,
    /// Only what was done to these: part of a host's id, an operator's name
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub on: String,
    /// Walk the whole log and say whether anything in it was changed, removed or put in between
    #[arg(long)]
    pub verify: bool,
    /// With --verify: a newest line as an earlier --verify told it, noted down elsewhere
    #[arg(long, value_name = "LINE:HASH", requires = "verify", value_parser = head)]
    pub head: Option<(u64, Vec<u8>)>,
}

/// A moment: a span before now, a date, or date and time.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Some(span) = settings::parse_duration(text) {
        return Ok(SystemClock.now().minus(span));
    }
    let day = || {
        let date: jiff::civil::Date = text.parse().ok()?;
        Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    let at = text.parse::<jiff::Timestamp>().ok().or_else(day);
    at.map(|at| Timestamp::from_millis(at.as_millisecond()))
        .ok_or_else(|| "no moment: write 2h, 7d, 2026-11-01 or 2026-11-01T06:00:00Z".to_owned())
}

/// `number:hash` as it is printed. Both programs take it.
///
/// # Errors
/// When it is none.
pub fn head(text: &str) -> Result<(u64, Vec<u8>), String> {
    let wrong = || "not a line and its hash, as --verify prints them: 17:3fa9…".to_owned();
    let (seq, digits) = text.split_once(':').ok_or_else(wrong)?;
    let seq = seq.parse().ok().filter(|seq| *seq > 0).ok_or_else(wrong)?;
    if digits.len() != 64 || !digits.is_ascii() {
        return Err(wrong());
    }
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let hash: Option<Vec<u8>> = (0..32).map(|at| byte(at * 2)).collect();
    Ok((seq, hash.ok_or_else(wrong)?))
}

/// Asks and answers.
///
/// # Errors
/// Whatever stood in the way.
pub async fn answer(session: &Session, args: &Args) -> Result<Rendered, Failure> {
    if args.verify {
        let (known_seq, known_hash) = args.head.clone().unwrap_or_default();
        let request = v1::VerifyAuditRequest {
            known_seq,
            known_hash,
        };
        let verdict = session
            .ask_identity(async move |mut client| client.verify_audit(request).await)
            .await?;
        return verdict_of(&verdict);
    }
    let request = v1::ListAuditRequest {
        limit: session.limit.unwrap_or(0),
        since_ms: args.since.map_or(0, Timestamp::as_millis),
        actor: args.actor.clone(),
        action: args.action.clone(),
        subject: args.on.clone(),
    };
    let response = session
        .ask(async move |mut client| client.list_audit(request).await)
        .await?;
    let view = session.view(response.meta.as_ref());
    output::list(list(response), &session.options, &view)
}

fn verdict_of(verdict: &v1::AuditVerdict) -> Result<Rendered, Failure> {
    let head = format!("{}:{}", verdict.head_seq, hex(&verdict.head_hash));
    if verdict.faults.is_empty() {
        let mut out = String::new();
        let text = format!("{} lines, each follows from the one before", verdict.lines);
        Text::plain(text).line_to(&mut out);
        if verdict.lines > 0 {
            Text::plain(format!("newest: {head}")).line_to(&mut out);
            Text::plain("note it down elsewhere: muster audit --verify --head compares with it")
                .line_to(&mut out);
        }
        return Ok(Rendered::text(out));
    }
    let mut failure = Failure::new(Code::Failed, "the audit log was changed");
    for fault in &verdict.faults {
        failure = failure.because(fault);
    }
    Err(failure.hint(
        "muster-aggregator audit export",
        "on the aggregator's host: compare with a copy from before",
    ))
}

/// Every column of a line.
pub static COLUMNS: &[Column<v1::AuditLine>] = &[
    Column {
        key: "at",
        title: "WHEN",
        shown: Shown::Always,
        right: true,
        human: |row, view| Text::plain(view.when(Timestamp::from_millis(row.at_ms))),
        value: |row| moment(Some(row.at_ms)),
    },
    Column {
        key: "actor",
        title: "WHO",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.actor),
        value: |row| json!(row.actor),
    },
    Column {
        key: "action",
        title: "ACTION",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.action),
        value: |row| json!(row.action),
    },
    Column {
        key: "subject",
        title: "ON",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.subject),
        value: |row| json!(row.subject),
    },
    Column {
        key: "outcome",
        title: "OUTCOME",
        shown: Shown::Always,
        right: false,
        human: |row, _| Text::plain(&row.outcome),
        value: |row| json!(row.outcome),
    },
    Column {
        key: "line",
        title: "LINE",
        shown: Shown::Wide,
        right: true,
        human: |row, _| Text::plain(row.seq.to_string()),
        value: |row| json!(row.seq),
    },
    Column {
        key: "hash",
        title: "HASH",
        shown: Shown::Wide,
        right: false,
        human: |row, _| Text::plain(hex(&row.hash).chars().take(12).collect::<String>()),
        value: |row| json!(hex(&row.hash)),
    },
];

/// The list of an answer.
#[must_use]
pub fn list(response: v1::ListAuditResponse) -> List<v1::AuditLine> {
    List {
        columns: COLUMNS,
        rows: response.lines,
        name: |row| row.subject.clone(),
        meta: response.meta.unwrap_or_default(),
        footer: Vec::new(),
        empty: Text::plain("nothing like this was recorded"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_printed() {
        let hash: Vec<u8> = (0..32).collect();
        assert_eq!(head(&format!("17:{}", hex(&hash))), Ok((17, hash)));
        for wrong in [
            "",
            "17",
            "0:00",
            "17:zz",
            &format!("x:{}", "0".repeat(64)),
            &format!("1:{}", "é".repeat(32)),
        ] {
            assert!(head(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn moments_are_spans_or_dates() {
        let at = |text: &str| since(text).map(Timestamp::as_millis);
        assert_eq!(at("2026-11-01"), Ok(1_793_491_200_000));
        assert_eq!(at("2026-11-01T06:00:00Z"), Ok(1_793_512_800_000));
        assert!(at("2h").is_ok());
        assert!(at("yesterday").is_err());
    }
}
