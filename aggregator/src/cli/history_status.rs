//! `muster history --status` and `--forget`.

use muster_proto::{
    time::Timestamp,
    v1::{self, history_client::HistoryClient},
};
use serde_json::json;

use super::{
    failure::{Code, Failure},
    output::{self, Detail, Rendered, moment},
    session::Session,
    text::{Text, Tone},
    units::{bytes, short},
};

/// Runs `muster history --status`.
///
/// # Errors
/// What stood in the way.
pub async fn run(session: &Session) -> Result<Rendered, Failure> {
    let status = session
        .ask_door(async |channel| {
            let request = v1::GetHistoryStatusRequest {};
            HistoryClient::new(channel)
                .get_history_status(request)
                .await
        })
        .await?;
    output::detail(detail(status), &session.options)
}

/// Runs `muster history --forget HOST --yes`.
///
/// # Errors
/// What stood in the way.
pub async fn forget(session: &Session, host: &str) -> Result<Rendered, Failure> {
    let request = v1::ForgetHistoryRequest {
        name: host.to_owned(),
    };
    session
        .ask_door(async move |channel| HistoryClient::new(channel).forget_history(request).await)
        .await
        .map_err(|failure| match failure.code {
            Code::NotFound => failure.hint("muster hosts", "the hosts there are"),
            _ => failure,
        })?;
    let mut text = String::new();
    Text::plain(format!(
        "what was recorded of {host} is not answered any more, and leaves the disk with the next packing"
    ))
    .line_to(&mut text);
    Ok(Rendered::text(text))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn detail(status: v1::HistoryStatus) -> Detail {
    let now = Timestamp::from_millis(status.meta.as_ref().map_or(0, |meta| meta.as_of_ms));
    let total: u64 = status.tiers.iter().map(|tier| tier.bytes).sum();
    let mut lines = vec![Text::plain(format!(
        "{} on disk of at most {}, {} hosts; {} in memory",
        bytes(total as f64),
        bytes(status.limit_bytes as f64),
        status.hosts,
        bytes(status.memory_bytes as f64),
    ))];
    for tier in &status.tiers {
        let since = match tier.oldest_ms {
            0 => "nothing yet".to_owned(),
            oldest => {
                let age = short(now.since(Timestamp::from_millis(oldest)));
                let each = tier.bytes as f64 / (tier.points.max(1)) as f64;
                format!(
                    "{} in {} files, since {age}, {each:.2} bytes a point",
                    bytes(tier.bytes as f64),
                    tier.files
                )
            }
        };
        let kept = short(std::time::Duration::from_millis(
            tier.kept_ms.unsigned_abs(),
        ));
        lines.push(Text::plain(format!(
            "  {:<4} kept {kept:<5} {since}",
            tier.name
        )));
    }
    let mut worry = |count: u64, what: &str| {
        if count > 0 {
            lines.push(Text::toned(Tone::Warn, format!("{count} {what}")));
        }
    };
    worry(status.behind_records, "records of the log wait to be taken");
    worry(
        status.frames_undecoded,
        "samples could not be decoded since start",
    );
    worry(
        status.frames_too_old,
        "samples were too old to be kept since start",
    );
    worry(
        status.records_missing,
        "records of the log were gone before they were taken",
    );
    worry(
        status.files_dropped_by_size,
        "files went before their time: history.max_size",
    );
    worry(status.failures, "writes failed since start");
    let tiers = status.tiers.iter().map(|tier| {
        json!({
            "name": tier.name,
            "files": tier.files,
            "bytes": tier.bytes,
            "points": tier.points,
            "oldest": if tier.oldest_ms == 0 { serde_json::Value::Null } else { moment(Some(tier.oldest_ms)) },
            "keptSeconds": tier.kept_ms / 1000,
        })
    });
    let item = json!({
        "tiers": tiers.collect::<Vec<_>>(),
        "hosts": status.hosts,
        "memorySamples": status.memory_samples,
        "memoryBytes": status.memory_bytes,
        "limitBytes": status.limit_bytes,
        "writtenBytes": status.written_bytes,
        "behindRecords": status.behind_records,
        "framesTaken": status.frames_taken,
        "framesUndecoded": status.frames_undecoded,
        "framesTooOld": status.frames_too_old,
        "recordsMissing": status.records_missing,
        "filesDroppedByAge": status.files_dropped_by_age,
        "filesDroppedBySize": status.files_dropped_by_size,
        "failures": status.failures,
    });
    Detail {
        name: "history".to_owned(),
        item,
        lines,
        meta: status.meta.unwrap_or_default(),
    }
}
