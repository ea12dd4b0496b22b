//! One message to one channel, in the form that each kind of receiver expects.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use http::{Method, Request, Uri, header};
use http_body_util::Full;
use hyper::body::Bytes;
use muster_proto::{spiffe::hex, time::Timestamp};
use ring::hmac;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    config::{Channel, Kind},
    http::{Client, SendError},
    message::Message,
    smtp,
};

/// An Alertmanager forgets an alert that it has not heard of for so long; it is told again every minute.
const ALERT_LIVES: Duration = Duration::from_secs(300);
/// Longest summary that PagerDuty takes (Events API v2).
const PAGERDUTY_SUMMARY: usize = 1024;
/// Longest text that is put into a chat.
const CHAT_CHARS: usize = 3000;

/// Whom a message that was taken did not reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// Readers of a mail for whom the server does not take it now.
    pub later: Vec<String>,
    /// Those for whom it never will, and what it said; empty when there are none.
    pub refused: String,
}

/// Who of the readers of a mail is to get it; other channels are one reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// All of them.
    All,
    /// All but these.
    AllBut(Vec<String>),
    /// This one, if it is still one of them.
    One(String),
}

impl To {
    fn picks(&self, reader: &str) -> bool {
        match self {
            Self::All => true,
            Self::AllBut(others) => others.iter().all(|other| other != reader),
            Self::One(one) => one == reader,
        }
    }
}

/// Sends a message.
///
/// # Errors
/// Whatever stood in the way of all of it; the message is then to be tried again, unless that is in vain.
pub async fn send(
    channel: &Channel,
    message: &Message,
    to: &To,
    now: Timestamp,
) -> Result<Taken, SendError> {
    let client = &channel.client;
    let title = || match &channel.title {
        Some(template) => message.fill(template),
        None => message.subject(),
    };
    let text = || match &channel.text {
        Some(template) => message.fill(template),
        None => message.text(),
    };
    match &channel.kind {
        Kind::Webhook { url, secret } => {
            let body = serde_json::to_vec(message).map_err(not_json)?;
            let request = signed(url, body, &message.key, secret.as_deref(), now)?;
            post(channel, client, url, request).await?;
        }
        Kind::Slack { url } => {
            let body = json!({"text": chat(&title(), &text())});
            let request = json_request(url, &body)?;
            post(channel, client, url, request).await?;
        }
        Kind::PagerDuty { url, routing_key } => {
            let request = json_request(url, &pagerduty(message, routing_key, &title()))?;
            post(channel, client, url, request).await?;
        }
        Kind::Alertmanager {
            urls,
            authorization,
        } => {
            let body = json!([alert(message, &title(), &text(), now)]);
            alertmanagers(channel, client, urls, authorization.as_deref(), &body).await?;
        }
        Kind::Email(settings) => {
            let mail = smtp::mail(settings, message, &title(), &text(), now);
            let all = settings.to.iter().map(String::as_str);
            let readers: Vec<&str> = all.filter(|reader| to.picks(reader)).collect();
            return smtp::send(client, settings, &readers, &mail, channel.timeout).await;
        }
        Kind::Exec { program } => run(channel, program, message).await?,
    }
    Ok(Taken::default())
}

/// Tells Alertmanagers again of what goes on, so that they do not take it for over.
///
/// # Errors
/// When none of them took it.
pub async fn refresh(
    channel: &Channel,
    client: &Client,
    messages: &[Message],
    now: Timestamp,
) -> Result<(), SendError> {
    let Kind::Alertmanager {
        urls,
        authorization,
    } = &channel.kind
    else {
        return Ok(());
    };
    let alerts: Vec<Value> = messages
        .iter()
        .map(|message| {
            let title = channel.title.as_ref().map(|one| message.fill(one));
            let text = channel.text.as_ref().map(|one| message.fill(one));
            let title = title.unwrap_or_else(|| message.subject());
            alert(
                message,
                &title,
                &text.unwrap_or_else(|| message.text()),
                now,
            )
        })
        .collect();
    let body = Value::Array(alerts);
    alertmanagers(channel, client, urls, authorization.as_deref(), &body).await
}

async fn post(
    channel: &Channel,
    client: &Client,
    url: &Uri,
    request: Request<Full<Bytes>>,
) -> Result<(), SendError> {
    let reply = client.send(request, channel.timeout).await?;
    reply.accepted(url).map(|_| ())
}

/// To each of a group of Alertmanagers, which forget duplicates among themselves. One that took it is enough: the others
/// hear it with the next refresh.
async fn alertmanagers(
    channel: &Channel,
    client: &Client,
    urls: &[Uri],
    authorization: Option<&str>,
    body: &Value,
) -> Result<(), SendError> {
    let sent = urls.iter().map(async |url| {
        let mut request = json_request(url, body)?;
        if let Some(Ok(value)) = authorization.map(str::parse) {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        post(channel, client, url, request).await
    });
    let mut failed = None;
    let mut taken = false;
    for outcome in futures_util::future::join_all(sent).await {
        match outcome {
            Ok(()) => taken = true,
            Err(error) => {
                tracing::debug!(channel = channel.name, error = %crate::chain(&error), "an Alertmanager did not take it");
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if !taken => Err(error),
        _ => Ok(()),
    }
}

fn json_request(url: &Uri, body: &Value) -> Result<Request<Full<Bytes>>, SendError> {
    request(url, body.to_string().into_bytes())
}

fn request(url: &Uri, body: Vec<u8>) -> Result<Request<Full<Bytes>>, SendError> {
    Request::builder()
        .method(Method::POST)
        .uri(url.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .header(
            header::USER_AGENT,
            concat!("muster/", env!("CARGO_PKG_VERSION")),
        )
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| SendError::Message(error.to_string()))
}

/// A webhook's request. `Muster-Signature` is `v1=` and the HMAC-SHA256, in hexadecimal, of the time in
/// `Muster-Timestamp`, a dot and the body: a receiver that checks both takes nothing forged and nothing replayed.
fn signed(
    url: &Uri,
    body: Vec<u8>,
    key: &str,
    secret: Option<&[u8]>,
    now: Timestamp,
) -> Result<Request<Full<Bytes>>, SendError> {
    let seconds = (now.as_millis() / 1000).to_string();
    let signature = secret.map(|secret| signature(secret, &seconds, &body));
    let mut request = request(url, body)?;
    let headers = request.headers_mut();
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    };
    put("idempotency-key", key);
    put("muster-timestamp", &seconds);
    if let Some(signature) = signature {
        put("muster-signature", &signature);
    }
    Ok(request)
}

/// The signature of a body sent at a time.
#[must_use]
pub fn signature(secret: &[u8], seconds: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut context = hmac::Context::with_key(&key);
    context.update(seconds.as_bytes());
    context.update(b".");
    context.update(body);
    format!("v1={}", hex(context.sign().as_ref()))
}

/// An alert as Alertmanager's API v2 takes it. Its labels are its identity, so they are of what does not change from
/// the first message to the last: rule, severity, number, and the host that was first with its labels.
fn alert(message: &Message, title: &str, text: &str, now: Timestamp) -> Value {
    let mut labels: BTreeMap<String, &str> = message
        .lead
        .labels
        .iter()
        .map(|(key, value)| (label_name(key), value.as_str()))
        .collect();
    let rule = if message.lead.rule.is_empty() {
        "muster_test"
    } else {
        &message.lead.rule
    };
    labels.insert("alertname".to_owned(), rule);
    labels.insert("severity".to_owned(), &message.severity);
    labels.insert("fleet".to_owned(), &message.fleet);
    for (key, value) in [
        ("incident", &message.incident),
        ("instance", &message.lead.host),
    ] {
        if !value.is_empty() {
            labels.insert(key.to_owned(), value);
        }
    }
    // A trial is over at once.
    let over = message.is_end() || message.event == "test";
    let ends = if over { now } else { now.plus(ALERT_LIVES) };
    json!({
        "labels": labels,
        "annotations": {"summary": title, "description": text, "scope": message.scope, "next": message.next.join(" · ")},
        "startsAt": message.opened,
        "endsAt": ends.to_string(),
    })
}

/// A label's name as Prometheus has them.
fn label_name(key: &str) -> String {
    let fits = |(at, c): (usize, char)| {
        let letter = c.is_ascii_alphabetic() || c == '_' || (at > 0 && c.is_ascii_digit());
        if letter { c } else { '_' }
    };
    key.chars().enumerate().map(fits).collect()
}

fn pagerduty(message: &Message, routing_key: &str, title: &str) -> Value {
    let action = if message.is_end() {
        "resolve"
    } else {
        "trigger"
    };
    let source = match message.lead.host.as_str() {
        "" => message.fleet.as_str(),
        host => host,
    };
    json!({
        "routing_key": routing_key,
        "event_action": action,
        "dedup_key": message.id,
        "client": format!("Muster, fleet {}", message.fleet),
        "payload": {
            "summary": cut(title, PAGERDUTY_SUMMARY),
            "source": source,
            "severity": message.severity,
            "timestamp": message.at,
            "class": message.lead.rule,
            "group": message.scope,
            "custom_details": {
                "incident": message.incident,
                "event": message.event,
                "hosts": message.hosts,
                "host_count": message.host_count,
                "labels": message.labels,
                "text": message.text(),
                "next": message.next,
            },
        },
    })
}

/// A text for a chat: no `<…>` that it would act on (links, `<!channel>`).
fn chat(title: &str, text: &str) -> String {
    let escape = |text: &str| {
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    };
    // The first line of the default text says the title again.
    let body = text.split_once('\n').map_or(text, |(_, rest)| rest).trim();
    format!(
        "*{}*\n```{}```",
        escape(title).replace('*', "∗"),
        escape(&cut(body, CHAT_CHARS)).replace("```", "'''")
    )
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Runs a program of this machine, with the message as JSON at its standard input. It says nothing back but how it
/// ended, and is ended itself when it takes too long.
async fn run(channel: &Channel, program: &[String], message: &Message) -> Result<(), SendError> {
    let Some((name, arguments)) = program.split_first() else {
        return Err(SendError::Message("there is no program".to_owned()));
    };
    let failed = |why: String| SendError::Broken {
        to: name.clone(),
        why,
    };
    let body = serde_json::to_vec(message).map_err(not_json)?;
    let mut child = Command::new(name)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("MUSTER_KEY", &message.key)
        .env("MUSTER_EVENT", &message.event)
        .env("MUSTER_INCIDENT", &message.incident)
        .env("MUSTER_SEVERITY", &message.severity)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("it cannot be started: {error}")))?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read is right to do so; how it ends decides.
            let _ = stdin.write_all(&body).await;
        }
        child.wait().await
    };
    let ended = tokio::time::timeout(channel.timeout, work).await;
    let status = ended
        .map_err(|_| SendError::Late {
            to: name.clone(),
            after: channel.timeout,
        })?
        .map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(format!("it ended with {status}")))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn not_json(error: serde_json::Error) -> SendError {
    SendError::Message(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let now = Timestamp::from_millis(1_795_270_380_000);
        let mut message = Message::about(
            "firing",
            "k".to_owned(),
            "prod",
            "web-01: nginx <!channel> is failed".to_owned(),
            now,
        );
        message.severity = "critical".to_owned();
        message.incident = "I-7".to_owned();
        message.lead.rule = "unit_failed".to_owned();
        message.lead.host = "web-01".to_owned();
        message.lead.labels = [
            ("role".to_owned(), "web".to_owned()),
            ("rack-no".to_owned(), "7".to_owned()),
        ]
        .into();
        message
    }

    #[test]
    fn the_signature_is_that_of_the_documentation() {
        // Checked with: printf '1795270380.{}' | openssl dgst -sha256 -hmac secret
        let found = signature(b"secret", "1795270380", b"{}");
        assert_eq!(
            found,
            "v1=22057b159ee9328077fb0c76483bbff5a5cc3a07a00fb112aca16643541bc067"
        );
    }

    #[test]
    fn an_alert_keeps_its_labels_to_its_end() {
        let now = Timestamp::from_millis(1_795_270_380_000);
        let firing = alert(&message(), "t", "x", now);
        let mut over = message();
        over.event = "resolved".to_owned();
        let resolved = alert(&over, "t", "x", now);
        assert_eq!(firing["labels"], resolved["labels"]);
        assert_eq!(
            firing["labels"],
            json!({
                "alertname": "unit_failed", "severity": "critical", "fleet": "prod", "incident": "I-7",
                "instance": "web-01", "role": "web", "rack_no": "7",
            })
        );
        assert_eq!(firing["endsAt"], "2026-11-21T14:18:00Z");
        assert_eq!(resolved["endsAt"], "2026-11-21T14:13:00Z");
    }

    #[test]
    fn a_chat_is_not_acted_on() {
        let said = chat("a <!channel> & *b*", "first\nhost ``` <x>");
        assert_eq!(
            said,
            "*a &lt;!channel&gt; &amp; ∗b∗*\n```host ''' &lt;x&gt;```"
        );
    }

    #[test]
    fn pagerduty_hears_one_key_from_trigger_to_resolve() {
        let firing = pagerduty(&message(), "R", "t");
        assert_eq!(firing["event_action"], "trigger");
        assert_eq!(firing["payload"]["source"], "web-01");
        let mut over = message();
        over.event = "merged".to_owned();
        let resolved = pagerduty(&over, "R", "t");
        assert_eq!(resolved["event_action"], "resolve");
        assert_eq!(firing["dedup_key"], resolved["dedup_key"]);
    }
}
