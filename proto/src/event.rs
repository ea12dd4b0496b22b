//! Events: their words, their fields, and what an acceptable one looks like.
//!
//! Kinds and keys are closed sets of the contract. This file is the one place that gives them words, for
//! selecting and for JSON, and that says what both ends hold to: the agent makes no other events, and the
//! aggregator keeps no other.

use std::fmt::Write as _;

use crate::{
    limits,
    v1::{Event, EventField, EventFieldKey, EventKind, event_field::Value},
};

/// Kinds that say that somebody changed something, as opposed to something having failed.
pub const CHANGES: [EventKind; 10] = [
    EventKind::AgentUpgraded,
    EventKind::Booted,
    EventKind::KernelChanged,
    EventKind::PackageChanged,
    EventKind::PackagesChanged,
    EventKind::UnitFileChanged,
    EventKind::PortChanged,
    EventKind::SysctlChanged,
    EventKind::RebootWanted,
    EventKind::ClockStepped,
];

/// Every kind, in the order of the contract.
pub fn kinds() -> impl Iterator<Item = EventKind> {
    // Numbers are given from 1 on, with room between groups.
    (1..256).filter_map(|number| EventKind::try_from(number).ok())
}

/// The word of a kind: `oom_kill`.
#[must_use]
pub fn kind_word(kind: EventKind) -> String {
    without(kind.as_str_name(), "EVENT_KIND_")
}

/// The kind of a word; dashes are taken for underscores.
#[must_use]
pub fn parse_kind(word: &str) -> Option<EventKind> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    kinds().find(|kind| kind_word(*kind) == word)
}

/// The word of a field's key: `by_ms`.
#[must_use]
pub fn key_word(key: EventFieldKey) -> String {
    without(key.as_str_name(), "EVENT_FIELD_KEY_")
}

fn without(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}

/// A field with a word, made printable and cut to its bound.
#[must_use]
pub fn word(key: EventFieldKey, word: &str) -> EventField {
    EventField {
        key: key.into(),
        value: Some(Value::Word(printable(word, limits::MAX_EVENT_WORD_BYTES))),
    }
}

/// A field with a number.
#[must_use]
pub fn integer(key: EventFieldKey, number: i64) -> EventField {
    EventField {
        key: key.into(),
        value: Some(Value::Integer(number)),
    }
}

/// Text without control characters, of at most `most` bytes.
#[must_use]
pub fn printable(text: &str, most: usize) -> String {
    let mut plain: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    plain.truncate(plain.floor_char_boundary(most));
    plain
}

/// The word of a field, if the event has it.
#[must_use]
pub fn get_word(event: &Event, key: EventFieldKey) -> Option<&str> {
    event.fields.iter().find_map(|field| match &field.value {
        Some(Value::Word(word)) if field.key() == key => Some(word.as_str()),
        _ => None,
    })
}

/// The number of a field, if the event has it.
#[must_use]
pub fn get_integer(event: &Event, key: EventFieldKey) -> Option<i64> {
    event.fields.iter().find_map(|field| match field.value {
        Some(Value::Integer(number)) if field.key() == key => Some(number),
        _ => None,
    })
}

/// Whether an event keeps to the contract. Kinds and keys of a later version do: they are kept and shown by
/// number.
#[must_use]
pub fn is_sound(event: &Event) -> bool {
    let plain = |text: &str, most: usize| text.len() <= most && !text.chars().any(char::is_control);
    event.kind > 0
        && plain(&event.subject, limits::MAX_EVENT_SUBJECT_BYTES)
        && event.fields.len() <= limits::MAX_EVENT_FIELDS
        && event.fields.iter().all(|field| match &field.value {
            Some(Value::Word(word)) => plain(word, limits::MAX_EVENT_WORD_BYTES),
            Some(Value::Integer(_)) | None => true,
        })
}

/// An event in words for people. Whoever prints it escapes it: the names in it are the host's.
#[must_use]
pub fn words(event: &Event) -> String {
    let subject = &event.subject;
    let word = |key| get_word(event, key);
    let number = |key| get_integer(event, key);
    let from = word(EventFieldKey::From).unwrap_or("–");
    let to = word(EventFieldKey::To).unwrap_or("–");
    let count = number(EventFieldKey::Count);
    match event.kind() {
        EventKind::Unspecified => {
            format!(
                "something this version does not know ({}) {subject}",
                event.kind
            )
        }
        EventKind::AgentStarted => match word(EventFieldKey::To) {
            Some(version) => format!("agent {version} started"),
            None => "agent started".to_owned(),
        },
        EventKind::AgentStopped => match word(EventFieldKey::Result) {
            Some("reboot") => "agent stopped: the host reboots".to_owned(),
            Some("shutdown") => "agent stopped: the host shuts down".to_owned(),
            _ => "agent stopped".to_owned(),
        },
        EventKind::AgentUpgraded => format!("agent {from} → {to}"),
        EventKind::Booted => {
            let how = match number(EventFieldKey::Clean) {
                Some(0) => ", without having been shut down",
                Some(_) => " after a shutdown",
                None => "",
            };
            let down = number(EventFieldKey::DownMs).map_or_else(String::new, |ms| {
                format!(", away for {} s", ms.max(0) / 1000)
            });
            format!("booted{how}{down}")
        }
        EventKind::UnitStateChanged => {
            let mut why = word(EventFieldKey::Result)
                .filter(|result| *result != "success")
                .map_or_else(String::new, ToOwned::to_owned);
            for (key, name) in [
                (EventFieldKey::Code, "exit"),
                (EventFieldKey::Signal, "signal"),
            ] {
                if let Some(number) = number(key) {
                    let comma = if why.is_empty() { "" } else { ", " };
                    // Writing to a String cannot fail.
                    let _ = write!(why, "{comma}{name} {number}");
                }
            }
            if why.is_empty() {
                format!("{subject} {from} → {to}")
            } else {
                format!("{subject} {from} → {to} ({why})")
            }
        }
        EventKind::CollectorChanged => format!("collector {subject} {to}"),
        EventKind::FilesystemHung => format!("filesystem {subject} {to}"),
        EventKind::CheckChanged => match word(EventFieldKey::Result).filter(|why| *why != "ok") {
            Some(why) => format!("check {subject} {to} ({why})"),
            None => format!("check {subject} {to}"),
        },
        EventKind::OomKill => {
            let unit = if subject.is_empty() { "" } else { " in " };
            format!(
                "out of memory: {} killed{unit}{subject}",
                count.unwrap_or(1)
            )
        }
        EventKind::MountAppeared => format!("{subject} mounted ({})", mounted(event)),
        EventKind::MountGone => format!("{subject} unmounted ({})", mounted(event)),
        EventKind::MountModeChanged => match to {
            "ro" => format!("{subject} became read-only"),
            _ => format!("{subject} became writable"),
        },
        EventKind::ClockStepped => {
            let by = number(EventFieldKey::ByMs).unwrap_or(0);
            let sign = if by < 0 { "-" } else { "+" };
            let by = by.unsigned_abs();
            format!("clock set by {sign}{}.{:03} s", by / 1000, by % 1000)
        }
        EventKind::LinkChanged => match count {
            Some(count) if from == to => format!("link {subject} {to}, after {count} changes"),
            _ => format!("link {subject} {to}"),
        },
        EventKind::KernelChanged => format!("kernel {from} → {to}"),
        EventKind::PackageChanged => match (word(EventFieldKey::From), word(EventFieldKey::To)) {
            (None, _) => format!("package {subject} {to} installed"),
            (_, None) => format!("package {subject} {from} removed"),
            _ => format!("package {subject} {from} → {to}"),
        },
        EventKind::PackagesChanged => match count {
            Some(count) => format!("{count} packages changed ({subject})"),
            None => format!("packages changed ({subject})"),
        },
        EventKind::UnitFileChanged => format!("unit file {subject} {to}"),
        EventKind::PortChanged => format!("port {subject} {to}"),
        EventKind::SysctlChanged => format!("{subject} {from} → {to}"),
        EventKind::RebootWanted => match to {
            "wanted" => "a reboot is wanted by the packages".to_owned(),
            _ => "a reboot is no longer wanted".to_owned(),
        },
        EventKind::EventsLeftOut => format!("{} events were left out", count.unwrap_or(0)),
    }
}

fn mounted(event: &Event) -> String {
    let kind = get_word(event, EventFieldKey::Type).unwrap_or("–");
    match get_word(event, EventFieldKey::Source) {
        Some(source) => format!("{kind} {source}"),
        None => kind.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_word_of_its_own_and_words_for_people() {
        let all: Vec<EventKind> = kinds().collect();
        assert!(all.len() >= 22 && all.contains(&EventKind::CheckChanged));
        for kind in all {
            let word = kind_word(kind);
            assert_eq!(parse_kind(&word), Some(kind));
            assert_eq!(parse_kind(&word.replace('_', "-")), Some(kind));
            let bare = Event {
                kind: kind.into(),
                subject: "x".to_owned(),
                ..Event::default()
            };
            assert!(!words(&bare).contains("does not know"), "{word}");
            assert!(is_sound(&bare));
        }
        assert_eq!(parse_kind("unspecified"), None);
    }

    #[test]
    fn events_in_words() {
        use EventFieldKey as Key;
        let table = [
            (
                EventKind::UnitStateChanged,
                "nginx.service",
                vec![
                    word(Key::From, "active"),
                    word(Key::To, "failed"),
                    word(Key::Result, "exit-code"),
                    integer(Key::Code, 1),
                ],
                "nginx.service active → failed (exit-code, exit 1)",
            ),
            (
                EventKind::OomKill,
                "db.service",
                vec![integer(Key::Count, 2)],
                "out of memory: 2 killed in db.service",
            ),
            (
                EventKind::Booted,
                "",
                vec![integer(Key::Clean, 0), integer(Key::DownMs, 42_000)],
                "booted, without having been shut down, away for 42 s",
            ),
            (
                EventKind::PackageChanged,
                "vim",
                vec![word(Key::From, "1"), word(Key::To, "2")],
                "package vim 1 → 2",
            ),
            (
                EventKind::PackageChanged,
                "vim",
                vec![word(Key::To, "2")],
                "package vim 2 installed",
            ),
            (
                EventKind::ClockStepped,
                "",
                vec![integer(Key::ByMs, -1_500)],
                "clock set by -1.500 s",
            ),
        ];
        for (kind, subject, fields, expected) in table {
            let event = Event {
                kind: kind.into(),
                subject: subject.to_owned(),
                at_ms: 0,
                fields,
            };
            assert_eq!(words(&event), expected);
        }
    }

    #[test]
    fn what_breaks_the_contract_is_told_apart() {
        let good = Event {
            kind: 3,
            subject: "a.service".to_owned(),
            at_ms: 5,
            fields: vec![word(EventFieldKey::From, &"x".repeat(200))],
        };
        assert!(is_sound(&good), "words are cut where they are made");
        let with = |change: fn(&mut Event)| {
            let mut event = good.clone();
            change(&mut event);
            event
        };
        for bad in [
            with(|event| event.kind = 0),
            with(|event| event.subject = "x".repeat(257)),
            with(|event| event.subject = "a\u{1b}[2J".to_owned()),
            with(|event| event.fields = vec![integer(EventFieldKey::Count, 1); 9]),
            with(|event| event.fields[0].value = Some(Value::Word("y".repeat(65)))),
        ] {
            assert!(!is_sound(&bad), "{bad:?}");
        }
    }
}
