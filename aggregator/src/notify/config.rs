//! The keys `[[notify]]`, `[heartbeat]`, `allow_notify_exec` and `runbook_url`: where people are told, and of what.

use std::{collections::BTreeMap, fmt, fs, path::Path, time::Duration};

use http::Uri;
use muster_agent::settings::{self, Reader, Section, address, string, text, texts, truth, word};
use toml::de::DeValue;

use super::{
    http::{Client, parse_uri},
    message::{Message, Template},
    smtp::{Protection, Smtp},
};
use crate::{
    detect::{Severity, rules::Runbooks},
    incident::{
        pages::{Event, Telling},
        roster::Roster,
    },
    selector::Selector,
};

/// Shortest secret of a webhook: 128 bits in base 64 have 22 characters.
const MIN_SECRET: usize = 22;
/// Where PagerDuty takes events.
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";
/// Messages of one channel in an hour, unless it says otherwise.
const LIMIT: u32 = 60;
const TIMEOUT: Duration = Duration::from_secs(15);
/// A program may send a mail of its own.
const INTERVAL: Duration = Duration::from_secs(60);

/// Whom to tell.
#[derive(Debug, Clone, Default)]
pub struct NotifyConfig {
    /// By name.
    pub channels: BTreeMap<String, Channel>,
    /// Tells somebody outside that this aggregator lives.
    pub heartbeat: Option<Heartbeat>,
    /// Whether channels may run programs.
    pub allow_exec: bool,
    /// Where messages say that it is read what to do.
    pub runbooks: Runbooks,
}

/// One way to tell people.
#[derive(Clone)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// How they are told.
    pub kind: Kind,
    /// Of incidents of these severities.
    pub severities: Vec<Severity>,
    /// Of pages with a host that this matches.
    pub selector: Selector,
    /// Also when it is over.
    pub resolved: bool,
    /// Messages in an hour; 0: no limit.
    pub limit_per_hour: u32,
    /// The first line; `None`: as [`Message::subject`].
    pub title: Option<Template>,
    /// The rest; `None`: as [`Message::text`].
    pub text: Option<Template>,
    /// Longest time for one attempt.
    pub timeout: Duration,
    /// Trusts what it should.
    pub client: Client,
}

/// How people are told.
#[derive(Clone)]
pub enum Kind {
    /// JSON to an address, signed if there is a secret.
    Webhook {
        /// Where.
        url: Uri,
        /// Signs what is sent.
        secret: Option<Vec<u8>>,
    },
    /// Alertmanagers of one cluster.
    Alertmanager {
        /// `…/api/v2/alerts` of each.
        urls: Vec<Uri>,
        /// Value of the header `Authorization`.
        authorization: Option<String>,
    },
    /// Mail.
    Email(Smtp),
    /// An incoming webhook of Slack, Mattermost, Rocket.Chat …
    Slack {
        /// Where; whoever knows it can write there.
        url: Uri,
    },
    /// PagerDuty's Events API v2.
    PagerDuty {
        /// Where.
        url: Uri,
        /// Names the service.
        routing_key: String,
    },
    /// A program of this machine.
    Exec {
        /// Path and arguments.
        program: Vec<String>,
    },
}

/// A sign of life to somebody outside.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// Asked with GET.
    pub url: Uri,
    /// How often.
    pub interval: Duration,
    /// Trusts what it should.
    pub client: Client,
}

impl Kind {
    /// The word for it in the configuration.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Alertmanager { .. } => "alertmanager",
            Self::Email(_) => "email",
            Self::Slack { .. } => "slack",
            Self::PagerDuty { .. } => "pagerduty",
            Self::Exec { .. } => "exec",
        }
    }

    /// Whether the other side keeps books of what is open, and so must hear of every end.
    #[must_use]
    pub const fn keeps_books(&self) -> bool {
        matches!(
            self,
            Self::Webhook { .. }
                | Self::Alertmanager { .. }
                | Self::PagerDuty { .. }
                | Self::Exec { .. }
        )
    }
}

impl fmt::Debug for Channel {
    /// Without addresses and keys: those of chats are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel({} {})", self.kind.as_str(), self.name)
    }
}

impl Channel {
    /// Whether it is told of such a thing, whatever host it is about.
    #[must_use]
    pub fn wants(&self, telling: &Telling) -> bool {
        let wanted = match telling.event {
            Event::Merged => self.resolved && self.kind.keeps_books(),
            Event::Resolved => self.resolved,
            _ => true,
        };
        wanted && self.severities.contains(&telling.severity)
    }

    /// Whether it is told of this.
    #[must_use]
    pub fn takes(&self, telling: &Telling, roster: &Roster) -> bool {
        self.wants(telling)
            && (self.selector.is_all()
                || telling.hosts.iter().any(|host| {
                    roster
                        .card(*host)
                        .is_some_and(|card| self.selector.matches(card))
                }))
    }
}

/// What a file says of a channel, before it is checked.
#[derive(Default)]
struct Draft {
    name: String,
    kind: String,
    url: Option<Uri>,
    url_file: String,
    urls: Vec<String>,
    secret_file: String,
    token_file: String,
    routing_key_file: String,
    ca_file: String,
    server: String,
    tls: Option<Protection>,
    username: String,
    password_file: String,
    from: String,
    to: Vec<String>,
    program: Vec<String>,
}

impl NotifyConfig {
    /// Every key there is. A channel of a later file replaces one of the same name.
    pub fn keys(&mut self, root: &mut Section<'_, '_>) {
        root.value("allow_notify_exec", &mut self.allow_exec, truth);
        root.value("runbook_url", &mut self.runbooks, |value| {
            Runbooks::at(text(value)?)
        });
        let channels = &mut self.channels;
        root.tables("notify", |section| {
            if let Some(channel) = channel(section) {
                channels.insert(channel.name.clone(), channel);
            }
        });
        let heartbeat = &mut self.heartbeat;
        root.section("heartbeat", |section| {
            let (mut url, mut interval, mut ca) = (None, INTERVAL, String::new());
            section.value("url", &mut url, |value| parse_uri(text(value)?).map(Some));
            let bounds = Duration::from_secs(5)..=Duration::from_secs(86_400);
            section.value("interval", &mut interval, |value| {
                settings::duration(value, bounds)
            });
            section.value("ca_file", &mut ca, string);
            if let (Some(url), Some(client)) = (url, client(section, &ca)) {
                *heartbeat = Some(Heartbeat {
                    url,
                    interval,
                    client,
                });
            }
        });
    }

    /// What must hold of all files together.
    pub fn check(&self, reader: &mut Reader) {
        let runs = self
            .channels
            .values()
            .find(|one| matches!(one.kind, Kind::Exec { .. }));
        if let (Some(channel), false) = (runs, self.allow_exec) {
            reader.fault(
                "allow_notify_exec",
                format_args!(
                    "channel {} runs a program of this machine; allow that with allow_notify_exec = true",
                    channel.name
                ),
            );
        }
    }
}

/// One `[[notify]]`; `None` when something about it is wrong, which is noted.
fn channel(section: &mut Section<'_, '_>) -> Option<Channel> {
    let mut draft = Draft::default();
    let mut sound = true;
    section.value("name", &mut draft.name, name);
    let kinds = [
        "webhook",
        "alertmanager",
        "email",
        "slack",
        "pagerduty",
        "exec",
    ]
    .map(|kind| (kind, kind));
    section.value("type", &mut draft.kind, |value| {
        word(value, &kinds).map(ToOwned::to_owned)
    });
    for key in ["name", "type"] {
        if !section.has(key) {
            section.complain(key, "every channel needs one");
            sound = false;
        }
    }
    let mut severities = vec![Severity::Warning, Severity::Critical];
    section.value("severities", &mut severities, |value| {
        texts(value)?
            .iter()
            .map(|given| {
                let found = Severity::ALL.into_iter().find(|one| one.as_str() == given);
                found.ok_or_else(|| format!("{given:?} is no severity: critical, warning or info"))
            })
            .collect()
    });
    let mut selector = Selector::default();
    section.value("selector", &mut selector, |value| {
        let selector = Selector::parse(text(value)?).map_err(|error| error.to_string())?;
        match selector.fleeting() {
            Some(field) => Err(format!(
                "{field} changes from minute to minute; use labels or names"
            )),
            None => Ok(selector),
        }
    });
    let mut resolved = true;
    section.value("resolved", &mut resolved, truth);
    let mut limit = None;
    section.value("limit_per_hour", &mut limit, |value| {
        settings::whole(value, 0..=100_000).map(Some)
    });
    let (mut title, mut body) = (None, None);
    section.value("title", &mut title, template);
    section.value("text", &mut body, template);
    let mut timeout = TIMEOUT;
    let bounds = Duration::from_secs(1)..=Duration::from_secs(300);
    section.value("timeout", &mut timeout, |value| {
        settings::duration(value, bounds)
    });
    section.value("ca_file", &mut draft.ca_file, string);
    let kind = kind(section, draft.kind.clone(), &mut draft);
    let client = client(section, &draft.ca_file)?;
    let kind = kind?;
    let limit = limit.and_then(|limit| u32::try_from(limit).ok());
    // What keeps its own books and routes is not to be kept from knowing.
    let usual = if matches!(kind, Kind::Alertmanager { .. }) {
        0
    } else {
        LIMIT
    };
    sound.then(|| Channel {
        name: draft.name,
        kind,
        severities,
        selector,
        resolved,
        limit_per_hour: limit.unwrap_or(usual),
        title,
        text: body,
        timeout,
        client,
    })
}

fn kind(section: &mut Section<'_, '_>, kind: String, draft: &mut Draft) -> Option<Kind> {
    match kind.as_str() {
        "webhook" => {
            section.value("url", &mut draft.url, |value| {
                parse_uri(text(value)?).map(Some)
            });
            section.value("secret_file", &mut draft.secret_file, string);
            let secret = optional(section, "secret_file", &draft.secret_file, MIN_SECRET)?;
            Some(Kind::Webhook {
                url: needed(section, "url", draft.url.take())?,
                secret: secret.map(String::into_bytes),
            })
        }
        "slack" => {
            section.value("url", &mut draft.url, |value| {
                parse_uri(text(value)?).map(Some)
            });
            section.value("url_file", &mut draft.url_file, string);
            let from_file = optional(section, "url_file", &draft.url_file, 1)?;
            let url = match from_file.as_deref().map(parse_uri) {
                None => draft.url.take(),
                Some(Ok(url)) => Some(url),
                Some(Err(_)) => {
                    section.complain("url_file", "the file holds no address");
                    return None;
                }
            };
            Some(Kind::Slack {
                url: needed(section, "url_file", url)?,
            })
        }
        "pagerduty" => {
            section.value("url", &mut draft.url, |value| {
                parse_uri(text(value)?).map(Some)
            });
            section.value("routing_key_file", &mut draft.routing_key_file, string);
            let key = optional(section, "routing_key_file", &draft.routing_key_file, 1)?;
            Some(Kind::PagerDuty {
                url: draft.url.take().unwrap_or(Uri::from_static(PAGERDUTY)),
                routing_key: needed(section, "routing_key_file", key)?,
            })
        }
        "alertmanager" => {
            section.value("urls", &mut draft.urls, texts);
            section.value("token_file", &mut draft.token_file, string);
            let token = optional(section, "token_file", &draft.token_file, 1)?;
            if draft.urls.is_empty() {
                section.complain("urls", "name at least one: [\"http://alertmanager:9093\"]");
                return None;
            }
            let mut urls = Vec::new();
            for url in &draft.urls {
                let url = format!("{}/api/v2/alerts", url.trim_end_matches('/'));
                match parse_uri(&url) {
                    Ok(url) => urls.push(url),
                    Err(why) => {
                        section.complain("urls", &why);
                        return None;
                    }
                }
            }
            Some(Kind::Alertmanager {
                urls,
                authorization: token.map(|token| format!("Bearer {token}")),
            })
        }
        "email" => email(section, draft),
        "exec" => {
            section.value("program", &mut draft.program, texts);
            let absolute = draft
                .program
                .first()
                .is_some_and(|path| path.starts_with('/'));
            if !absolute {
                section.complain(
                    "program",
                    "expected a list: the absolute path of a program, and its arguments",
                );
                return None;
            }
            Some(Kind::Exec {
                program: std::mem::take(&mut draft.program),
            })
        }
        // What is wrong with `type` was said; which of the other keys are right is not known.
        _ => {
            section.any_key();
            None
        }
    }
}

fn email(section: &mut Section<'_, '_>, draft: &mut Draft) -> Option<Kind> {
    section.value("server", &mut draft.server, address);
    let kinds = [
        ("tls", Protection::Tls),
        ("starttls", Protection::StartTls),
        ("none", Protection::None),
    ];
    section.value("tls", &mut draft.tls, |value| word(value, &kinds).map(Some));
    section.value("username", &mut draft.username, string);
    section.value("password_file", &mut draft.password_file, string);
    section.value("from", &mut draft.from, mailbox);
    section.value("to", &mut draft.to, |value| {
        let DeValue::Array(items) = value else {
            return Err("expected a list of addresses".to_owned());
        };
        items.iter().map(|item| mailbox(item.get_ref())).collect()
    });
    for (key, given) in [
        ("server", !draft.server.is_empty()),
        ("from", !draft.from.is_empty()),
        ("to", !draft.to.is_empty()),
    ] {
        if !given {
            section.complain(key, "a mail needs it");
            return None;
        }
    }
    let password = optional(section, "password_file", &draft.password_file, 1)?;
    let protection = draft.tls.unwrap_or(if draft.server.ends_with(":465") {
        Protection::Tls
    } else {
        Protection::StartTls
    });
    let login = match (draft.username.as_str(), password) {
        ("", None) => None,
        (name, Some(password)) if !name.is_empty() => Some((name.to_owned(), password)),
        _ => {
            section.complain("username", "username and password_file go together");
            return None;
        }
    };
    if login.is_some() && protection == Protection::None {
        section.complain("tls", "a password is not sent without TLS");
        return None;
    }
    Some(Kind::Email(Smtp {
        server: std::mem::take(&mut draft.server),
        protection,
        login,
        from: std::mem::take(&mut draft.from),
        to: std::mem::take(&mut draft.to),
    }))
}

fn needed<T>(section: &mut Section<'_, '_>, key: &str, value: Option<T>) -> Option<T> {
    if value.is_none() {
        section.complain(key, "this type of channel needs it");
    }
    value
}

/// What stands in a file: `Some(None)` when none is named, `None` when it cannot be used, which is noted.
#[expect(
    clippy::option_option,
    reason = "not named, and unusable, are two things"
)]
fn optional(
    section: &mut Section<'_, '_>,
    key: &str,
    file: &str,
    least: usize,
) -> Option<Option<String>> {
    if file.is_empty() {
        return Some(None);
    }
    match fs::read_to_string(file) {
        Err(error) => section.complain(key, &format!("{file} cannot be read: {error}")),
        Ok(found) if found.trim().len() < least => {
            section.complain(key, &format!("{file} holds less than {least} characters"));
        }
        Ok(found) if found.trim().contains(char::is_control) => {
            section.complain(key, &format!("{file} holds more than one line"));
        }
        Ok(found) => return Some(Some(found.trim().to_owned())),
    }
    None
}

fn client(section: &mut Section<'_, '_>, ca_file: &str) -> Option<Client> {
    let path = (!ca_file.is_empty()).then(|| Path::new(ca_file));
    match Client::new(path) {
        Ok(client) => Some(client),
        Err(error) => {
            section.complain("ca_file", &crate::chain(&error));
            None
        }
    }
}

fn name(value: &DeValue<'_>) -> Result<String, String> {
    let name = text(value)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if (1..=64).contains(&name.len()) && name.chars().all(fits) {
        return Ok(name.to_owned());
    }
    Err("a name is 1 to 64 letters, digits, - _ or .".to_owned())
}

fn template(value: &DeValue<'_>) -> Result<Option<Template>, String> {
    Template::parse(text(value)?).map(Some)
}

fn mailbox(value: &DeValue<'_>) -> Result<String, String> {
    let given = text(value)?;
    let plain = |c: char| c.is_ascii_graphic() && !"<>,;:\"\\ ".contains(c);
    match given.split_once('@') {
        Some((user, domain))
            if !user.is_empty() && !domain.is_empty() && given.chars().all(plain) =>
        {
            Ok(given.to_owned())
        }
        _ => Err(format!(
            "{given:?} is no mail address: write user@example.org, without a name"
        )),
    }
}

impl Heartbeat {
    /// Whom it goes to, without what may be a secret.
    #[must_use]
    pub fn shown(&self) -> String {
        super::http::authority(&self.url)
    }
}

/// Whether a message is one that a channel's limit may keep back.
#[must_use]
pub fn is_limited(message: &Message) -> bool {
    !message.is_end() && message.event != "limited" && message.event != "test"
}
