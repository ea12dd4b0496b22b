//! `muster doctor`: walks from the configuration to the hosts and says at which step it stops, and what to do.
//!
//! It works when nothing works: every step that needs an earlier one is skipped, not failed, when that one
//! failed, so that there is one thing to repair.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::{
    time::{Clock, SystemClock, Timestamp},
    tls,
    v1::{self, identity_client::IdentityClient, operator_client::OperatorClient},
};
use serde_json::json;
use tonic::transport::Channel;

use super::{
    client::{DialError, Target, channel, split_server, tilde},
    failure::{Failure, chain},
    hosts::state_word,
    output::{Column, List, Shown},
    services::hosts,
    text::{Text, Tone},
    units::short,
};

/// A clock this far from the aggregator's makes ages and certificates hard to believe.
const CLOCK_WARN_MILLIS: u64 = 2_000;
/// The aggregator renews its certificate long before; less than this needs somebody.
const CERTIFICATE_WARN_DAYS: u64 = 14;
/// An operator's certificate lives a day: less than this may not last through the work at hand.
const OPERATOR_WARN: Duration = Duration::from_secs(2 * 3600);

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but look at it.
    Warn,
    /// Does not work.
    Fail,
    /// Could not be tried.
    Skipped,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Check {
    /// Name of the step.
    pub step: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when nothing is to be done.
    pub fix: String,
}

/// Steps in their order.
const STEPS: &[&str] = &[
    "config",
    "name",
    "tcp",
    "tls",
    "you",
    "clock",
    "aggregator",
    "hosts",
    "audit",
];

/// Columns for programs.
static COLUMNS: &[Column<Check>] = &[
    Column {
        key: "step",
        title: "STEP",
        shown: Shown::Always,
        right: false,
        human: |check, _| Text::plain(check.step),
        value: |check| json!(check.step),
    },
    Column {
        key: "result",
        title: "RESULT",
        shown: Shown::Always,
        right: false,
        human: |check, _| word(check.verdict),
        value: |check| match check.verdict {
            Verdict::Skipped => json!("skipped"),
            verdict => json!(plain_word(verdict).to_lowercase()),
        },
    },
    Column {
        key: "detail",
        title: "DETAIL",
        shown: Shown::Always,
        right: false,
        human: |check, _| Text::plain(&check.detail),
        value: |check| json!(check.detail),
    },
    Column {
        key: "fix",
        title: "FIX",
        shown: Shown::Always,
        right: false,
        human: |check, _| Text::plain(&check.fix),
        value: |check| json!(check.fix),
    },
];

/// The steps as a list for programs.
#[must_use]
pub fn list(checks: Vec<Check>) -> List<Check> {
    List {
        columns: COLUMNS,
        rows: checks,
        name: |check| check.step.to_owned(),
        meta: v1::AnswerMeta {
            complete: true,
            missing: Vec::new(),
            as_of_ms: SystemClock.now().as_millis(),
        },
        footer: Vec::new(),
        empty: Text::new(),
    }
}

/// The steps for people.
#[must_use]
pub fn lines(checks: &[Check]) -> String {
    let mut out = String::new();
    for check in checks {
        let mut line = word(check.verdict);
        let pad = 6usize.saturating_sub(line.width());
        line.push(
            Tone::Plain,
            format!("{}{:<13} {}", " ".repeat(pad), check.step, check.detail),
        );
        line.line_to(&mut out);
        if !check.fix.is_empty() {
            Text::plain(" ".repeat(20))
                .with(Tone::Strong, "fix: ")
                .and(&check.fix)
                .line_to(&mut out);
        }
    }
    out
}

/// Whether some step does not work.
#[must_use]
pub fn failed(checks: &[Check]) -> bool {
    checks.iter().any(|check| check.verdict == Verdict::Fail)
}

fn plain_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
        Verdict::Skipped => "–",
    }
}

fn word(verdict: Verdict) -> Text {
    let tone = match verdict {
        Verdict::Ok => Tone::Good,
        Verdict::Warn => Tone::Warn,
        Verdict::Fail => Tone::Bad,
        Verdict::Skipped => Tone::Dim,
    };
    Text::toned(tone, plain_word(verdict))
}

/// Collects the steps as they are walked.
#[derive(Default)]
struct Walk {
    checks: Vec<Check>,
}

impl Walk {
    fn add(
        &mut self,
        step: &'static str,
        verdict: Verdict,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.checks.push(Check {
            step,
            verdict,
            detail: detail.into(),
            fix: fix.into(),
        });
    }

    /// The remaining steps cannot be tried.
    fn stop(mut self) -> Vec<Check> {
        for step in &STEPS[self.checks.len().min(STEPS.len())..] {
            self.add(step, Verdict::Skipped, "not tried", "");
        }
        self.checks
    }
}

/// Walks all steps; each takes at most `timeout`.
pub async fn walk(target: Result<Target, Failure>, config: &Path, timeout: Duration) -> Vec<Check> {
    let mut walk = Walk::default();
    let target = match target {
        Ok(target) => target,
        Err(failure) => {
            let fix = failure.tries.first().map_or(String::new(), |hint| {
                format!("{} {}", hint.command, hint.what).trim().to_owned()
            });
            let mut detail = failure.what.clone();
            for why in &failure.why {
                detail.push_str(": ");
                detail.push_str(why);
            }
            walk.add("config", Verdict::Fail, detail, fix);
            return walk.stop();
        }
    };
    let file = tilde(&config.display().to_string());
    walk.add(
        "config",
        Verdict::Ok,
        format!("{file}, context {}", target.context),
        "",
    );
    match connect(&mut walk, &target, timeout).await {
        Some(channel) => ask(walk, &target, channel, timeout).await,
        None => walk.stop(),
    }
}

/// Name, TCP, TLS.
async fn connect(walk: &mut Walk, target: &Target, timeout: Duration) -> Option<Channel> {
    let (name, port) = split_server(&target.server);
    let addresses = match limited(timeout, target.resolve()).await {
        Ok(addresses) => addresses,
        Err(error) => {
            walk.add(
                "name",
                Verdict::Fail,
                chain(&error),
                format!("is {name} spelt right? try: getent hosts {name}"),
            );
            return None;
        }
    };
    let ips: Vec<String> = addresses
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    walk.add(
        "name",
        Verdict::Ok,
        format!("{name} → {}", ips.join(", ")),
        "",
    );

    let started = Instant::now();
    let stream = match limited(timeout, Target::tcp(&addresses)).await {
        Ok(stream) => stream,
        Err(error) => {
            let fix = format!(
                "is muster-aggregator running there, and does the firewall let port {port} through?"
            );
            walk.add("tcp", Verdict::Fail, chain(&error), fix);
            return None;
        }
    };
    walk.add(
        "tcp",
        Verdict::Ok,
        format!("{port} in {} ms", started.elapsed().as_millis()),
        "",
    );

    let stream = match limited(timeout, target.handshake(stream)).await {
        Ok(stream) => stream,
        Err(error) => {
            let (detail, fix) = tls_words(&error, None);
            walk.add("tls", Verdict::Fail, detail, fix);
            return None;
        }
    };
    let left = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| days_left(chain.first()?));
    match channel(stream, Arc::clone(&target.refusal)).await {
        Ok(channel) => {
            let (verdict, life) = match left {
                Some(days) if days < CERTIFICATE_WARN_DAYS => {
                    (Verdict::Warn, format!("{days} days left"))
                }
                Some(days) => (Verdict::Ok, format!("{days} days left")),
                None => (Verdict::Warn, "of unknown life".to_owned()),
            };
            let fix = if verdict == Verdict::Warn {
                "the aggregator renews it by itself; see its log: journalctl -u muster-aggregator"
            } else {
                ""
            };
            walk.add(
                "tls",
                verdict,
                format!("TLS 1.3, server certificate {life}"),
                fix,
            );
            Some(channel)
        }
        Err(error) => {
            let (detail, fix) = tls_words(&DialError::Http { source: error }, target.refusal());
            walk.add("tls", Verdict::Fail, detail, fix);
            None
        }
    }
}

/// What the aggregator says about us, itself and the hosts.
async fn ask(mut walk: Walk, target: &Target, channel: Channel, timeout: Duration) -> Vec<Check> {
    let mut client = OperatorClient::new(channel.clone());
    let sent = SystemClock.now();
    let request = v1::GetStatusRequest {
        client_wall_ms: sent.as_millis(),
    };
    let status = match tokio::time::timeout(timeout, client.get_status(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => {
            let failure = target.refused(&status);
            let why = failure
                .why
                .first()
                .map_or(String::new(), |why| format!(": {why}"));
            // This is the doctor: sending there goes round in a circle.
            let mut tries = failure.tries.iter();
            let hint =
                tries.find(|hint| !["muster doctor", "muster whoami"].contains(&&*hint.command));
            let fix = hint.map_or_else(
                || "see the aggregator's log: journalctl -u muster-aggregator".to_owned(),
                |hint| format!("{} {}", hint.command, hint.what).trim().to_owned(),
            );
            walk.add("you", Verdict::Fail, format!("{}{why}", failure.what), fix);
            return walk.stop();
        }
        Err(_) => {
            let fix = "see its load and log: journalctl -u muster-aggregator";
            walk.add(
                "you",
                Verdict::Fail,
                chain(&DialError::Timeout(timeout)),
                fix,
            );
            return walk.stop();
        }
    };
    let received = SystemClock.now();
    you(&mut walk, &status);
    clock(&mut walk, &status, sent, received);
    let summary = client.get_summary(v1::GetSummaryRequest::default());
    match tokio::time::timeout(timeout, summary).await {
        Ok(Ok(summary)) => {
            let summary = summary.into_inner();
            aggregator(&mut walk, &status, Some(&summary));
            fleet(&mut walk, &summary, &status.version);
        }
        failed => {
            aggregator(&mut walk, &status, None);
            let why = match failed {
                Ok(Err(error)) => error.message().to_owned(),
                _ => chain(&DialError::Timeout(timeout)),
            };
            walk.add("hosts", Verdict::Fail, why, "");
        }
    }
    let mut identity = IdentityClient::new(channel);
    let verified = identity.verify_audit(v1::VerifyAuditRequest::default());
    let answer = match tokio::time::timeout(timeout, verified).await {
        Ok(Ok(verdict)) => Ok(verdict.into_inner()),
        Ok(Err(status)) => Err(Some(status)),
        Err(_) => Err(None),
    };
    audit(&mut walk, answer, timeout);
    walk.stop()
}

/// Whether somebody changed the record of who did what; `None` is for no answer in time.
fn audit(
    walk: &mut Walk,
    answer: Result<v1::AuditVerdict, Option<tonic::Status>>,
    timeout: Duration,
) {
    let verdict = match answer {
        Ok(verdict) => verdict,
        Err(Some(status)) if status.code() == tonic::Code::PermissionDenied => {
            walk.add(
                "audit",
                Verdict::Skipped,
                "only an administrator may have the audit log walked",
                "",
            );
            return;
        }
        Err(failed) => {
            let why = failed.map_or_else(
                || chain(&DialError::Timeout(timeout)),
                |status| status.message().to_owned(),
            );
            walk.add("audit", Verdict::Warn, why, "muster audit --verify");
            return;
        }
    };
    match verdict.faults.split_first() {
        None => {
            let detail = format!("{} lines, none changed or removed", verdict.lines);
            walk.add("audit", Verdict::Ok, detail, "");
        }
        Some((first, rest)) => {
            let more = match rest.len() {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            walk.add(
                "audit",
                Verdict::Fail,
                format!("the audit log was changed: {first}{more}"),
                "somebody wrote to control.db behind the aggregator: compare with your copy, muster audit --verify",
            );
        }
    }
}

fn you(walk: &mut Walk, status: &v1::Status) {
    let left = Timestamp::from_millis(status.certificate_expires_ms)
        .since(Timestamp::from_millis(status.server_wall_ms));
    let soon = left < OPERATOR_WARN;
    walk.add(
        "you",
        if soon { Verdict::Warn } else { Verdict::Ok },
        format!(
            "{}, role {}, certificate {} left",
            status.operator_name,
            status.role,
            short(left)
        ),
        if soon {
            "muster login --admin-socket PATH on the aggregator's host, for a new certificate"
        } else {
            ""
        },
    );
}

fn clock(walk: &mut Walk, status: &v1::Status, sent: Timestamp, received: Timestamp) {
    // The answer was made somewhere between sending and receiving; the middle is the best guess.
    let middle = sent.plus(received.since(sent) / 2);
    let offset = middle.millis_since(Timestamp::from_millis(status.server_wall_ms));
    let apart = Duration::from_millis(offset.unsigned_abs());
    let side = if offset < 0 { "behind" } else { "ahead of" };
    if offset.unsigned_abs() >= CLOCK_WARN_MILLIS {
        let detail = format!(
            "this machine is {:.1} s {side} the aggregator",
            apart.as_secs_f64()
        );
        walk.add(
            "clock",
            Verdict::Warn,
            detail,
            "check chrony or systemd-timesyncd here",
        );
    } else {
        walk.add(
            "clock",
            Verdict::Ok,
            format!("{} ms {side} the aggregator", apart.as_millis()),
            "",
        );
    }
}

fn aggregator(walk: &mut Walk, status: &v1::Status, summary: Option<&v1::Summary>) {
    let total = hosts(u32::try_from(status.hosts).unwrap_or(u32::MAX));
    let mut detail = format!("{}, {total}", status.version);
    let dropped = summary.map(|summary| summary.frames_dropped);
    if let Some(dropped) = dropped {
        detail.push_str(&format!(", {dropped} frames dropped"));
    }
    let most = summary.filter(|summary| summary.most_dropped > 0);
    match status.problems.split_first() {
        None if most.is_some() => {
            let fix = most.map_or_else(String::new, |most| {
                let (host, frames) = (&most.most_dropped_host, most.most_dropped);
                format!("most on {host} ({frames}): muster host {host}, and its agent's log")
            });
            walk.add("aggregator", Verdict::Warn, detail, fix);
        }
        None => walk.add("aggregator", Verdict::Ok, detail, ""),
        Some((first, rest)) => {
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(" (and {} more)", rest.len())
            };
            walk.add(
                "aggregator",
                Verdict::Warn,
                detail,
                format!("{first}{more}"),
            );
        }
    }
}

fn fleet(walk: &mut Walk, summary: &v1::Summary, version: &str) {
    let total: u32 = summary.states.iter().map(|entry| entry.hosts).sum();
    if total == 0 {
        walk.add(
            "hosts",
            Verdict::Warn,
            "no host is enrolled",
            "muster-aggregator token create, then muster-agent enrol ADDR on each host",
        );
        return;
    }
    let counts: Vec<String> = summary
        .states
        .iter()
        .filter(|entry| entry.hosts > 0)
        .map(|entry| format!("{} {}", entry.hosts, state_word(entry.state())))
        .collect();
    let silent: u32 = summary
        .states
        .iter()
        .filter(|entry| entry.state() == v1::HostState::Silent)
        .map(|entry| entry.hosts)
        .sum();
    let others: u32 = summary
        .agent_versions
        .iter()
        .filter(|entry| entry.version != version)
        .map(|entry| entry.hosts)
        .sum();
    let mut detail = counts.join(", ");
    let mut fix = String::new();
    if others > 0 {
        detail.push_str(&format!(
            "; {} with another version than the aggregator's {version}",
            hosts(others)
        ));
        fix = format!("muster hosts -l 'agent!=\"{version}\"' lists them");
    }
    if silent > 0 {
        fix = "muster hosts -l state=silent lists the silent ones".to_owned();
    }
    let verdict = if silent > 0 || others > 0 {
        Verdict::Warn
    } else {
        Verdict::Ok
    };
    walk.add("hosts", verdict, detail, fix);
}

fn tls_words(error: &DialError, refusal: Option<tls::TlsFault>) -> (String, &'static str) {
    use tls::TlsFault as Fault;
    let source: &(dyn std::error::Error + 'static) = error;
    let Some(fault) = refusal.or_else(|| tls::fault(source)) else {
        return (chain(error), "is this the operator door (port 7445)?");
    };
    let fix = match fault {
        Fault::Expired { .. } | Fault::NotYetValid { .. } => {
            "check the clocks here and there: date -u"
        }
        Fault::WrongIssuer | Fault::OtherTrustDomain { .. } => {
            "another aggregator answers at this address, or it was set up anew: sign in again with muster login"
        }
        Fault::WrongRole { .. } | Fault::NotTls | Fault::Incompatible => {
            "is this the operator door (port 7445)?"
        }
        Fault::Refused(_) | Fault::CertificateRequired => {
            "sign in again on the aggregator's host: muster login --admin-socket PATH"
        }
        _ => "",
    };
    (fault.to_string(), fix)
}

/// Whole days until a certificate's life is over.
fn days_left(certificate: &rustls_pki_types::CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let left = parsed.validity().not_after.timestamp() - SystemClock.now().as_millis() / 1000;
    Some(u64::try_from(left).unwrap_or(0) / 86_400)
}

async fn limited<T>(
    timeout: Duration,
    step: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    tokio::time::timeout(timeout, step)
        .await
        .unwrap_or(Err(DialError::Timeout(timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_audit_log_fails_and_one_that_may_not_be_asked_for_does_not() {
        let verdict = |faults: &[&str]| {
            Ok(v1::AuditVerdict {
                lines: 7,
                faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
                ..v1::AuditVerdict::default()
            })
        };
        for (answer, expected, said) in [
            (verdict(&[]), Verdict::Ok, "7 lines"),
            (
                verdict(&["line 3 was changed", "b"]),
                Verdict::Fail,
                "line 3 was changed (and 1 more)",
            ),
            (
                Err(Some(tonic::Status::permission_denied("no"))),
                Verdict::Skipped,
                "only an administrator",
            ),
            (
                Err(Some(tonic::Status::unavailable("sick"))),
                Verdict::Warn,
                "sick",
            ),
            (Err(None), Verdict::Warn, ""),
        ] {
            let mut walk = Walk::default();
            audit(&mut walk, answer, Duration::from_secs(1));
            let check = &walk.checks[0];
            assert_eq!((check.step, check.verdict), ("audit", expected));
            assert!(check.detail.contains(said), "{}", check.detail);
        }
    }
}
