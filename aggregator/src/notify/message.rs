//! What is said: one message, as JSON for programs and in words for people.
//!
//! The words answer what, where, since when, how bad, what was seen and what is usual, and what to type next. Hosts name
//! their units and mount points themselves; whatever is not printable is taken out, so that nobody can forge a line.

use std::{collections::BTreeMap, fmt::Write as _};

use muster_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    control::NewDelivery,
    detect::{
        Severity,
        rules::{self, Runbooks},
    },
    incident::{
        pages::{Event, Lead, Scope, Telling},
        roster::Roster,
    },
    selector::pattern,
};

/// Version of the JSON; fields are only added within it.
const VERSION: u32 = 1;
/// Hosts that a message names; the others are counted.
const HOSTS_NAMED: usize = 50;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// `1`.
    pub version: u32,
    /// Names this message: the same when it comes again.
    pub key: String,
    /// `firing`, `grew`, `steady`, `reminder`, `resolved`, `merged`, `limited` or `test`.
    pub event: String,
    /// `I-2041`; empty for what is about no incident.
    pub incident: String,
    /// Names the incident to other systems, from its first message to its last.
    pub id: String,
    /// The incident in which it goes on, once it was merged.
    pub into: Option<String>,
    /// Which fleet.
    pub fleet: String,
    /// `critical`, `warning` or `info`.
    pub severity: String,
    /// It fails and recovers again and again.
    pub flapping: bool,
    /// One line.
    pub title: String,
    /// `web-01`, `rack=r7`, `rack in (r1,r2)`.
    pub scope: String,
    /// Labels that all of its hosts share.
    pub labels: BTreeMap<String, String>,
    /// The incident that gave it its number; stays the same from the first message to the last.
    pub lead: Lead,
    /// The first of its hosts, by name.
    pub hosts: Vec<String>,
    /// How many there are.
    pub host_count: usize,
    /// The gravest and first of its problems.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub problem_count: usize,
    /// When people were told first, RFC 3339 in UTC.
    pub opened: String,
    /// When this was said.
    pub at: String,
    /// Commands to go on with.
    pub next: Vec<String>,
}

/// One of the incidents a message is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `I-2041`.
    pub incident: String,
    /// Name of the host.
    pub host: String,
    /// Name of the rule.
    pub rule: String,
    /// A mount point, a unit; empty for the host.
    pub subject: String,
    /// `critical`, `warning` or `info`.
    pub severity: String,
    /// One line.
    pub summary: String,
    /// The figures.
    pub evidence: String,
    /// Since when, by the host's clock, RFC 3339 in UTC.
    pub since: String,
    /// Whether it fails now.
    pub open: bool,
    /// Where it is read what to do about it; empty for a rule that has no such page.
    #[serde(default)]
    pub runbook: String,
}

impl Message {
    /// What is said of a telling.
    #[must_use]
    pub fn of(telling: &Telling, fleet: &str, roster: &Roster, runbooks: &Runbooks) -> Self {
        let problems: Vec<Problem> = telling
            .members
            .iter()
            .map(|(number, member)| Problem {
                incident: id(*number),
                host: plain(&roster.name(member.subject.host)),
                rule: plain(&member.subject.rule),
                subject: plain(&member.subject.subject),
                severity: member.subject.severity.as_str().to_owned(),
                summary: plain(&member.subject.summary),
                evidence: plain(&member.subject.evidence),
                since: member.subject.since.to_string(),
                open: member.open,
                runbook: runbooks.link(&member.subject.rule).unwrap_or_default(),
            })
            .collect();
        let mut hosts: Vec<String> = telling
            .hosts
            .iter()
            .map(|host| plain(&roster.name(*host)))
            .collect();
        hosts.sort();
        let host_count = hosts.len();
        let scope = match &telling.scope {
            Scope::Host(host) => plain(&roster.name(*host)),
            Scope::Label(shared) => {
                let values: Vec<&str> = shared.values.iter().map(String::as_str).collect();
                match *values {
                    [value] => plain(&format!("{}={value}", shared.key)),
                    _ => plain(&format!("{} in ({})", shared.key, values.join(","))),
                }
            }
            Scope::Alike { .. } => format!("{host_count} hosts at once"),
        };
        let incident = id(telling.number);
        let mut next = vec![format!("muster incident {incident}")];
        if let [host] = &*hosts {
            next.push(format!("muster host {host}"));
        }
        let rule = problems.first().map(|problem| &*problem.rule);
        if let Some(rule) = rule.filter(|rule| rules::runbook(rule).is_some()) {
            next.push(format!("muster rules explain {rule}"));
        }
        if !telling.event.is_end() {
            next.push(format!("muster ack {incident} -m '…'"));
        }
        let mut message = Self {
            version: VERSION,
            key: key(telling),
            event: telling.event.as_str().to_owned(),
            incident,
            id: telling.id.clone(),
            into: telling.into.map(id),
            fleet: fleet.to_owned(),
            severity: telling.severity.as_str().to_owned(),
            flapping: telling.flapping,
            title: String::new(),
            scope,
            labels: shared(telling, roster),
            lead: lead(&telling.lead),
            host_count,
            hosts,
            problem_count: telling.count,
            problems,
            opened: telling.opened.to_string(),
            at: telling.at.to_string(),
            next,
        };
        message.title = message.headline(matches!(telling.scope, Scope::Label(_)));
        message.hosts.truncate(HOSTS_NAMED);
        message
    }

    /// A message about no incident: a trial, or a word about the channel itself.
    #[must_use]
    pub fn about(event: &str, key: String, fleet: &str, title: String, at: Timestamp) -> Self {
        Self {
            version: VERSION,
            id: key.clone(),
            key,
            event: event.to_owned(),
            incident: String::new(),
            into: None,
            fleet: fleet.to_owned(),
            severity: Severity::Info.as_str().to_owned(),
            flapping: false,
            title,
            scope: String::new(),
            labels: BTreeMap::new(),
            lead: Lead::default(),
            hosts: Vec::new(),
            host_count: 0,
            problems: Vec::new(),
            problem_count: 0,
            opened: at.to_string(),
            at: at.to_string(),
            next: vec!["muster notify status".to_owned()],
        }
    }

    /// Whether the page is over with it.
    #[must_use]
    pub fn is_end(&self) -> bool {
        Event::ALL
            .iter()
            .any(|one| one.is_end() && one.as_str() == self.event)
    }

    /// `CRITICAL`, `RESOLVED` …: what a reader sees first.
    #[must_use]
    pub fn mark(&self) -> String {
        match self.event.as_str() {
            "resolved" | "merged" | "test" | "limited" => self.event.to_uppercase(),
            "grew" | "steady" | "reminder" => {
                format!("{} ({})", self.severity.to_uppercase(), self.event)
            }
            _ if self.flapping => format!("{} (flapping)", self.severity.to_uppercase()),
            _ => self.severity.to_uppercase(),
        }
    }

    /// One line: the subject of a mail.
    #[must_use]
    pub fn subject(&self) -> String {
        let incident = if self.incident.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.incident)
        };
        format!(
            "[muster {}] {} {}{incident}",
            self.fleet,
            self.mark(),
            self.title
        )
    }

    /// The body, in lines.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{} {}\n", self.mark(), self.title);
        if !self.incident.is_empty() {
            let _ = writeln!(
                out,
                "\nincident  {} of fleet {}, first told {}",
                self.incident, self.fleet, self.opened
            );
        }
        if self.host_count > 1 {
            let mut hosts = pattern::fold(self.hosts.iter().map(String::as_str));
            let more = self.host_count - self.hosts.len();
            if more > 0 {
                let _ = write!(hosts, " and {more} more");
            }
            let _ = writeln!(out, "hosts     {} ({hosts})", self.host_count);
        }
        if let Some(into) = &self.into {
            let _ = writeln!(out, "goes on   as {into}");
        }
        if !self.labels.is_empty() {
            let labels: Vec<String> = self
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let _ = writeln!(out, "labels    {}", labels.join(" "));
        }
        for problem in &self.problems {
            let state = if problem.open { "" } else { " (clear now)" };
            let _ = writeln!(
                out,
                "\n{} {}: {}{state}",
                problem.severity, problem.host, problem.summary
            );
            let _ = writeln!(
                out,
                "  since {}, rule {}, {}",
                problem.since, problem.rule, problem.incident
            );
            for line in problem.evidence.lines() {
                let _ = writeln!(out, "  {line}");
            }
            if problem.open && !problem.runbook.is_empty() {
                let _ = writeln!(out, "  to do: {}", problem.runbook);
            }
        }
        let more = self.problem_count - self.problems.len().min(self.problem_count);
        if more > 0 {
            let _ = writeln!(out, "\nand {more} more");
        }
        if !self.next.is_empty() {
            let _ = writeln!(out, "\nnext: {}", self.next.join(" · "));
        }
        out
    }

    /// As a row of the queue of a channel.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which it always can.
    pub fn for_channel(
        &self,
        channel: &str,
        page: u64,
        event: &'static str,
    ) -> Result<NewDelivery, serde_json::Error> {
        Ok(NewDelivery {
            channel: channel.to_owned(),
            key: self.key.clone(),
            page,
            event,
            message: serde_json::to_string(self)?,
        })
    }

    /// Puts what a template asks for into it.
    #[must_use]
    pub fn fill(&self, template: &Template) -> String {
        let mut out = String::new();
        for piece in &template.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Word(word) => out.push_str(&self.word(word)),
            }
        }
        out
    }

    fn word(&self, word: &str) -> String {
        match word {
            "event" => self.event.clone(),
            "mark" => self.mark(),
            "severity" => self.severity.clone(),
            "title" => self.title.clone(),
            "incident" => self.incident.clone(),
            "fleet" => self.fleet.clone(),
            "scope" => self.scope.clone(),
            "hosts" => pattern::fold(self.hosts.iter().map(String::as_str)),
            "host_count" => self.host_count.to_string(),
            "opened" => self.opened.clone(),
            "at" => self.at.clone(),
            "text" => self.text(),
            "next" => self.next.join(" · "),
            "key" => self.key.clone(),
            _ => String::new(),
        }
    }

    fn headline(&self, labelled: bool) -> String {
        let Some(first) = self.problems.first() else {
            return self.scope.clone();
        };
        let more = match self.problem_count {
            0 | 1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        // A summary often names the host already.
        let what = first.summary.as_str();
        match self.host_count {
            0 | 1 if what.contains(&first.host) => format!("{what}{more}"),
            0 | 1 => format!("{}: {what}{more}", first.host),
            hosts if labelled => format!("{hosts} hosts with {}: {what}", self.scope),
            hosts => format!("{hosts} hosts at once: {what}"),
        }
    }
}

/// Words that a template may ask for.
const WORDS: &[&str] = &[
    "event",
    "mark",
    "severity",
    "title",
    "incident",
    "fleet",
    "scope",
    "hosts",
    "host_count",
    "opened",
    "at",
    "text",
    "next",
    "key",
];

/// A text with places for what a message says: `{title}`, and `{{` for a brace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Word(&'static str),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A place for something that no message says.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            pieces.push(Piece::Text(before.to_owned()));
            if let Some(after) = from.strip_prefix("{{") {
                pieces.push(Piece::Text("{".to_owned()));
                rest = after;
                continue;
            }
            let Some((name, after)) = from[1..].split_once('}') else {
                return Err("a { without }; for a brace itself write {{".to_owned());
            };
            let Some(word) = WORDS.iter().find(|word| **word == name) else {
                return Err(format!(
                    "no message says {{{name}}}; there are {}",
                    WORDS.join(", ")
                ));
            };
            pieces.push(Piece::Word(word));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }
}

/// The key of a telling: for ever the same, whoever makes it anew.
fn key(telling: &Telling) -> String {
    format!(
        "{}.{}.{}.{}",
        telling.id,
        telling.opened.as_millis(),
        telling.ordinal,
        telling.event.as_str()
    )
}

fn lead(lead: &Lead) -> Lead {
    Lead {
        rule: plain(&lead.rule),
        host: plain(&lead.host),
        labels: lead
            .labels
            .iter()
            .map(|(key, value)| (plain(key), plain(value)))
            .collect(),
    }
}

/// Labels that all hosts of a telling share.
fn shared(telling: &Telling, roster: &Roster) -> BTreeMap<String, String> {
    let mut cards = telling.hosts.iter().map(|host| roster.card(*host));
    let Some(Some(first)) = cards.next() else {
        return BTreeMap::new();
    };
    let mut labels = first.labels.clone();
    for card in cards {
        match card {
            Some(card) => labels.retain(|key, value| card.labels.get(key) == Some(value)),
            None => labels.clear(),
        }
    }
    labels
        .iter()
        .map(|(key, value)| (plain(key), plain(value)))
        .collect()
}

/// `I-2041`.
fn id(number: u64) -> String {
    format!("I-{number}")
}

/// Without control characters and such as reorder a line; line breaks stay in evidence only as spaces.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            let reorders = matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || reorders { ' ' } else { c }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_or_refused() {
        let message = Message {
            severity: "critical".to_owned(),
            ..Message::about(
                "test",
                "k".to_owned(),
                "prod",
                "a {trial}".to_owned(),
                Timestamp::from_millis(0),
            )
        };
        for (template, expected) in [
            ("", ""),
            ("{mark}: {title}", "TEST: a {trial}"),
            ("{{x} {severity}", "{x} critical"),
        ] {
            let template = Template::parse(template).expect("sound");
            assert_eq!(message.fill(&template), expected);
        }
        for (wrong, why) in [
            ("{titel}", "no message says {titel}"),
            ("a {title", "without }"),
        ] {
            let error = Template::parse(wrong).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
        for word in WORDS {
            assert!(Template::parse(&format!("{{{word}}}")).is_ok());
        }
    }

    #[test]
    fn nobody_forges_a_line() {
        assert_eq!(plain("a\nb\u{202e}c\u{1b}[2J"), "a b c [2J");
    }
}
