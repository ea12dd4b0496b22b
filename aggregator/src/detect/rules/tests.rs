//! The pack reads, and each of its rules says true, false and not observed.

use muster_proto::series::{Kind, Scale};

use super::*;
use crate::{
    detect::{Coverage, Findings, Observation, Verdict},
    fleet::{SIGNALS, Signals},
};
use muster_proto::{series::Family, time::Timestamp};

/// What a rule says of each subject it finds.
type Said = Vec<(String, &'static str)>;

/// One series with its value, its rate and its growth.
struct Shown {
    family: Family,
    labels: Vec<String>,
    value: f64,
    rate: f64,
}

fn shown(metric: &str, labels: &[(&str, &str)], value: f64) -> Shown {
    Shown {
        family: Family {
            name: metric.into(),
            kind: Kind::Gauge,
            scale: Scale::One,
            labels: labels.iter().map(|(key, _)| (*key).into()).collect(),
        },
        labels: labels.iter().map(|(_, value)| (*value).into()).collect(),
        value,
        rate: value,
    }
}

/// A number of the rule's so that it comes to `value`; every part of the rule at once.
fn showing(definition: &Definition, value: f64, and: f64) -> (Vec<Shown>, Signals) {
    let mut signals = [f32::NAN; SIGNALS.len()];
    let subject = definition.subject.as_deref();
    let mut labels: Vec<(&str, &str)> = subject.map(|key| (key, "one")).into_iter().collect();
    for (key, allowed) in &definition.value.labels {
        labels.push((key, &allowed[0]));
    }
    let mut all = Vec::new();
    match (&definition.value.metric, &definition.value.signal) {
        (Some(metric), _) => {
            let over = if definition.value.per.is_some() {
                1000.0
            } else {
                1.0
            };
            all.push(shown(metric, &labels, value * over));
            if let Some(per) = &definition.value.per {
                let per_labels: Vec<_> = subject.map(|key| (key, "one")).into_iter().collect();
                all.push(shown(per, &per_labels, over));
            }
        }
        (None, Some(signal)) => {
            let at = SIGNALS.iter().position(|known| known == signal);
            #[expect(clippy::cast_possible_truncation, reason = "a few digits")]
            {
                signals[at.expect("the pack names signals that there are")] = value as f32;
            }
        }
        (None, None) => panic!("{} looks at nothing", definition.name),
    }
    if let Some(metric) = definition
        .and
        .as_ref()
        .and_then(|and| and.metric.as_deref())
    {
        all.push(shown(metric, &[], and));
    }
    (all, signals)
}

fn say(at: usize, shown: &[Shown], signals: &Signals) -> (Coverage, Said) {
    let mut samples = Vec::new();
    for one in shown {
        for used in uses_of(&one.family, &one.labels) {
            samples.push(Sample {
                used,
                family: &one.family,
                labels: &one.labels,
                value: one.value,
                rate: Some(one.rate),
                grown: Some(one.rate),
            });
        }
    }
    let seen = Observation {
        tick: Timestamp::from_millis(1_700_000_000_000),
        interval: Duration::from_secs(10),
        live: true,
        signals,
        filesystems: &[],
        filesystems_known: false,
        units: &[],
        units_known: false,
        samples: &samples,
        who: None,
    };
    let mut said = Said::new();
    let sink = &mut |subject: &str, verdict: Verdict<'_>| {
        let word = match verdict {
            Verdict::Abnormal { .. } => "true",
            Verdict::Normal(_) => "false",
            Verdict::Unknown => "not observed",
        };
        said.push((subject.to_owned(), word));
    };
    let overrides = Overrides::default();
    let (bounds, _) = overrides.of(at, None);
    let watcher = Watcher::new(&seen, &mut Grown::default());
    let coverage = watcher.judge(at, &pack()[at], &bounds, &mut Findings { sink });
    (coverage, said)
}

#[test]
fn every_rule_of_the_pack_is_true_false_and_not_observed() {
    assert!(
        pack().len() <= 25 - 5,
        "{} rules beside those in the program",
        pack().len()
    );
    for (at, definition) in pack().iter().enumerate() {
        let name = &definition.name;
        assert_eq!(definition.fault(), None, "{name}");
        assert!(
            definition.runbook.len() > 40,
            "{name}: a runbook says what to do"
        );
        let subject = definition.subject.as_ref().map_or("", |_| "one").to_owned();
        let (opens, clears) = match (definition.above, definition.below) {
            // What is flagged by a level has only two.
            (Some(above), _) => (
                definition.above_is_unknown.unwrap_or(above * 2.0 + 1.0) - 0.1,
                definition.clear * 0.5,
            ),
            (None, Some(below)) => (below * 0.5, definition.clear + 0.3),
            (None, None) => panic!("{name} never opens"),
        };
        for (value, and, expected) in [(opens, 1.0, "true"), (clears, 0.0, "false")] {
            let (series, signals) = showing(definition, value, and);
            let answer = say(at, &series, &signals);
            let expected = vec![(subject.clone(), expected)];
            assert_eq!(answer, (Coverage::Complete, expected), "{name} at {value}");
        }
        let (coverage, said) = say(at, &[], &[f32::NAN; SIGNALS.len()]);
        assert_eq!((coverage, said.len()), (Coverage::Partial, 0), "{name}");
        // Half of what it needs is not observed either: removing samples never makes it true or false.
        let (series, signals) = showing(definition, opens, 1.0);
        for left_out in 0..series.len() {
            let part: Vec<Shown> = series
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != left_out)
                .map(|(_, one)| shown(&one.family.name, &pairs(one), one.value))
                .collect();
            let (_, said) = say(at, &part, &signals);
            let unknown = said.iter().all(|(_, word)| *word == "not observed");
            assert!(unknown, "{name} without {left_out}: {said:?}");
        }
        let sentence = definition.sentence("eth0", opens);
        assert!(!sentence.contains('{'), "{sentence}");
    }
}

fn pairs(one: &Shown) -> Vec<(&str, &str)> {
    let keys = one.family.labels.iter().map(AsRef::as_ref);
    keys.zip(one.labels.iter().map(String::as_str)).collect()
}

#[test]
fn a_check_that_cannot_tell_is_unknown() {
    let at = pack()
        .iter()
        .position(|rule| rule.name == "check_failing")
        .expect("it is there");
    for (status, word) in [
        (0.0, "false"),
        (1.0, "not observed"),
        (2.0, "true"),
        (3.0, "not observed"),
    ] {
        let series = [shown("muster_check_status", &[("check", "web")], status)];
        let (_, said) = say(at, &series, &[f32::NAN; SIGNALS.len()]);
        assert_eq!(said, [("web".to_owned(), word)], "{status}");
    }
}

#[test]
fn what_grew_lately_fades() {
    let at = pack()
        .iter()
        .position(|rule| rule.name == "unit_crash_looping")
        .expect("it is there");
    let mut grown = Grown::default();
    let mut say = |second: i64, restarts: f64| {
        let one = shown(
            "node_systemd_service_restart_total",
            &[("name", "web.service")],
            0.0,
        );
        let samples: Vec<Sample<'_>> = uses_of(&one.family, &one.labels)
            .iter()
            .map(|&used| Sample {
                used,
                family: &one.family,
                labels: &one.labels,
                value: 0.0,
                rate: None,
                grown: Some(restarts),
            })
            .collect();
        let seen = Observation {
            tick: Timestamp::from_millis(second * 1000),
            interval: Duration::from_secs(10),
            live: true,
            signals: &[f32::NAN; SIGNALS.len()],
            filesystems: &[],
            filesystems_known: false,
            units: &[],
            units_known: false,
            samples: &samples,
            who: None,
        };
        let watcher = Watcher::new(&seen, &mut grown);
        let mut word = "";
        let sink = &mut |_: &str, verdict: Verdict<'_>| {
            word = match verdict {
                Verdict::Abnormal { .. } => "true",
                Verdict::Normal(_) => "false",
                Verdict::Unknown => "not observed",
            };
        };
        let overrides = Overrides::default();
        let (bounds, _) = overrides.of(at, None);
        watcher.judge(at, &pack()[at], &bounds, &mut Findings { sink });
        word
    };
    assert_eq!(say(0, 0.0), "false");
    // One restart every half minute: from the fifth on it is a loop.
    let words: Vec<&str> = (1..=6).map(|time| say(time * 30, 1.0)).collect();
    assert_eq!(
        words,
        [
            "false",
            "not observed",
            "not observed",
            "not observed",
            "true",
            "true"
        ]
    );
    assert_eq!(say(600, 0.0), "not observed");
    assert_eq!(say(4000, 0.0), "false");
}

#[test]
fn overrides_hold_for_the_hosts_they_pick() {
    use crate::fleet::Enrolled;
    use muster_proto::id::HostId;

    let text = r#"
        fleet_name = "other keys of the file are not looked at"
        [[rules]]
        rule = "cpu_saturated"
        hosts = "role=batch"
        enabled = false
        [[rules]]
        rule = "conntrack_full"
        above = 0.7
        clear = 0.6
        for = "10m"
        severity = "warning"
    "#;
    let overrides = Overrides::parse(text).expect("it reads");
    assert_eq!(overrides.len(), 2);
    let host = |role: &str| Enrolled {
        id: HostId::from_bytes([1; 16]),
        name: "one".into(),
        labels: [("role".to_owned(), role.to_owned())].into(),
        facts: muster_proto::v1::HostFacts::default(),
        certificate_not_after: None,
    };
    let at = |name: &str| {
        pack()
            .iter()
            .position(|rule| rule.name == name)
            .expect("it is there")
    };
    let on = |role: &str| {
        overrides
            .of(at("cpu_saturated"), Some(&host(role)))
            .0
            .enabled()
    };
    assert_eq!((on("web"), on("batch")), (true, false));
    let (bounds, rule) = overrides.of(at("conntrack_full"), Some(&host("web")));
    assert_eq!(
        (bounds.above, bounds.clear, bounds.severity),
        (Some(0.7), 0.6, Severity::Warning)
    );
    assert_eq!(rule.open_after, Duration::from_secs(600));
    assert_eq!(
        rule.clear_after,
        Duration::from_secs(300),
        "as the pack has it"
    );
}

#[test]
fn wrong_overrides_are_told_what_is_wrong() {
    for (text, expected) in [
        (
            "rule = \"cpu\"",
            "rule \"cpu\" is not in the pack; `muster rules list` shows those that can be changed",
        ),
        (
            "rule = \"conntrack_full\"\nbelow = 0.5",
            "rule conntrack_full: `below = 0.5` does not fit it: it opens above 90.0 %, clears below 80.0 %",
        ),
        (
            "rule = \"conntrack_full\"\nabove = 0.5",
            "rule conntrack_full: clears below 0.8, which is above 0.5, where it opens",
        ),
        (
            "rule = \"swapping\"\nfor = \"soon\"",
            "\"soon\" is no time: write 90s, 5m, 2h or 1d",
        ),
        (
            "rule = \"swapping\"\nseverity = \"bad\"",
            "\"bad\" is no severity: write info, warning or critical",
        ),
        (
            "rule = \"swapping\"\nhosts = \"role=\"",
            "rule swapping: hosts = \"role=\":",
        ),
    ] {
        let error = Overrides::parse(&format!("[[rules]]\n{text}\n")).expect_err(text);
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}
