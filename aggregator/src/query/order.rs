//! Ordering of host rows by any of their fields. What is not known comes last, whichever way.

use std::{borrow::Cow, cmp::Ordering};

use muster_proto::{id::HostId, v1};

/// Order of a list of hosts.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    key: Key,
    descending: bool,
}

#[derive(Debug, Clone, Copy)]
enum Key {
    Text(fn(&v1::HostRow) -> Cow<'_, str>),
    Number(fn(&v1::HostRow) -> Option<f64>),
}

/// Fields by the words that stand for them: the field of the contract, then the headings people see.
const KEYS: &[(&[&str], Key)] = &[
    (&["name", ""], Key::Text(|row| Cow::from(&row.name))),
    (&["state"], Key::Number(|row| Some(f64::from(row.state)))),
    (&["cpu_ratio", "cpu"], Key::Number(|row| row.cpu_ratio)),
    (
        &["memory_ratio", "mem"],
        Key::Number(|row| row.memory_ratio),
    ),
    (&["disk_ratio", "disk"], Key::Number(|row| row.disk_ratio)),
    (&["load1", "load"], Key::Number(|row| row.load1)),
    (&["io_ratio", "io"], Key::Number(|row| row.io_ratio)),
    (
        &["pressure_ratio", "psi"],
        Key::Number(|row| row.pressure_ratio),
    ),
    (&["net"], Key::Number(network)),
    (
        &["network_receive_bytes_per_second", "net in"],
        Key::Number(|row| row.network_receive_bytes_per_second),
    ),
    (
        &["network_transmit_bytes_per_second", "net out"],
        Key::Number(|row| row.network_transmit_bytes_per_second),
    ),
    (
        &["services"],
        Key::Number(|row| row.services.map(f64::from)),
    ),
    (
        &["services_failed", "failed"],
        Key::Number(|row| row.services_failed.map(f64::from)),
    ),
    (
        &["anomaly_score", "anomaly"],
        Key::Number(|row| row.anomaly_score),
    ),
    (
        &["open_incidents", "inc"],
        Key::Number(|row| Some(f64::from(row.open_incidents))),
    ),
    (
        &["last_seen", "seen"],
        Key::Number(|row| row.last_seen_ms.map(millis)),
    ),
    (
        &["state_since", "since"],
        Key::Number(|row| Some(millis(row.state_since_ms))),
    ),
    (
        &["agent_version", "agent"],
        Key::Text(|row| Cow::from(&row.agent_version)),
    ),
    (&["os"], Key::Text(|row| Cow::from(&row.os))),
    (&["kernel"], Key::Text(|row| Cow::from(&row.kernel))),
    (&["series"], Key::Number(|row| Some(f64::from(row.series)))),
    (
        &["interval_seconds", "interval"],
        Key::Number(|row| Some(f64::from(row.interval_ms))),
    ),
    (&["labels"], Key::Text(labels)),
    (
        &["disk_mountpoint", "mount"],
        Key::Text(|row| Cow::from(&row.disk_mountpoint)),
    ),
    (
        &["silence_cause", "cause"],
        Key::Number(|row| Some(f64::from(row.silence_cause))),
    ),
    (
        &["host_id", "id"],
        Key::Text(|row| {
            HostId::from_slice(&row.host_id).map_or(Cow::from(""), |id| id.to_string().into())
        }),
    ),
];

fn labels(row: &v1::HostRow) -> Cow<'_, str> {
    let pairs = row.labels.iter();
    let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(" ").into()
}

/// Both directions of the network together, when both are known.
#[must_use]
pub fn network(row: &v1::HostRow) -> Option<f64> {
    row.network_receive_bytes_per_second
        .zip(row.network_transmit_bytes_per_second)
        .map(|(received, sent)| received + sent)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds stay exact in an f64"
)]
fn millis(at: i64) -> f64 {
    at as f64
}

impl Order {
    /// Reads a field's name, with `-` before it for the largest first; nothing stands for the name.
    ///
    /// # Errors
    /// The words that could have stood there.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (word, descending) = match text.strip_prefix('-') {
            Some(word) => (word, true),
            None => (text, false),
        };
        let word = word.to_lowercase();
        let found = KEYS
            .iter()
            .find(|(words, _)| words.contains(&word.as_str()));
        let Some((_, key)) = found else {
            let words: Vec<&str> = KEYS
                .iter()
                .filter_map(|(words, _)| words.first())
                .copied()
                .collect();
            return Err(format!(
                "hosts cannot be sorted by {word:?}; fields: {}",
                words.join(", ")
            ));
        };
        Ok(Self {
            key: *key,
            descending,
        })
    }

    /// Sorts; equal rows by name.
    pub fn sort(self, rows: &mut [v1::HostRow]) {
        rows.sort_by(|a, b| self.compare(a, b).then_with(|| a.name.cmp(&b.name)));
    }

    fn compare(self, a: &v1::HostRow, b: &v1::HostRow) -> Ordering {
        let directed = |order: Ordering| {
            if self.descending {
                order.reverse()
            } else {
                order
            }
        };
        match self.key {
            Key::Text(text) => directed(text(a).cmp(&text(b))),
            Key::Number(number) => match (number(a), number(b)) {
                (Some(a), Some(b)) => directed(a.total_cmp(&b)),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => Ordering::Equal,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, cpu: Option<f64>) -> v1::HostRow {
        v1::HostRow {
            name: name.to_owned(),
            cpu_ratio: cpu,
            ..v1::HostRow::default()
        }
    }

    #[test]
    fn unknown_comes_last_both_ways() {
        for (sort, expected) in [
            ("", ["a", "b", "c", "d"]),
            ("-name", ["d", "c", "b", "a"]),
            ("cpu", ["d", "a", "c", "b"]),
            ("-cpu_ratio", ["a", "c", "d", "b"]),
            ("-CPU", ["a", "c", "d", "b"]),
        ] {
            let mut rows = vec![
                row("c", Some(0.9)),
                row("b", None),
                row("d", Some(0.1)),
                row("a", Some(0.9)),
            ];
            Order::parse(sort).expect(sort).sort(&mut rows);
            let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
            assert_eq!(names, expected, "{sort}");
        }
        let error = Order::parse("-colour").expect_err("no such field");
        assert!(
            error.starts_with(
                "hosts cannot be sorted by \"colour\"; fields: name, state, cpu_ratio"
            ),
            "{error}"
        );
    }
}
