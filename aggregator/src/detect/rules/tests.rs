//! The pack reads, and each of its rules says true, false and not observed.

use muster_proto::series::{Kind, Scale};

use super::*;
use crate::{
    detect::{Coverage, Findings, Observation, Verdict},
    fleet::{SIGNALS, Signals},
};
use muster_proto::{catalog::METRICS, series::Family, time::Timestamp};

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
            let value = match definition.value.reading {
                // Both name a moment.
                Reading::Age | Reading::Overdue => NOW - value,
                _ => value * over,
            };
            all.push(shown(metric, &labels, value));
            if let Some(done) = &definition.value.done {
                all.push(shown(done, &labels, 0.0));
            }
            if let Some(per) = &definition.value.per {
                let per_labels: Vec<_> = subject.map(|key| (key, "one")).into_iter().collect();
                all.push(shown(per, &per_labels, over));
            }
        }
        (None, signal) => {
            let signal = signal.as_ref().expect("a rule looks at something");
            let at = SIGNALS.iter().position(|known| known == signal);
            #[expect(clippy::cast_possible_truncation, reason = "a few digits")]
            {
                signals[at.expect("the pack names signals that there are")] = value as f32;
            }
        }
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

/// Seconds since 1970 at which [`say`] looks.
const NOW: f64 = 1.7e9;

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
    let mut grown = Grown::default();
    // What a rule must have seen before: a promise, or that it was not so.
    let turned = pack()[at].value.reading == Reading::Turned;
    let before: Vec<Sample<'_>> = samples
        .iter()
        .map(|sample| Sample {
            value: if turned { 0.0 } else { sample.value },
            ..*sample
        })
        .collect();
    let seen = Observation {
        tick: Timestamp::from_millis(1_699_900_000_000),
        interval: Duration::from_secs(10),
        live: true,
        signals,
        filesystems: &[],
        filesystems_known: false,
        units: &[],
        units_known: false,
        samples: &before,
        who: None,
    };
    Watcher::new(&seen, Attention::default(), &mut grown);
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
    let watcher = Watcher::new(&seen, Attention::default(), &mut grown);
    let coverage = watcher.judge(at, &pack()[at], &bounds, &mut Findings { sink });
    (coverage, said)
}

#[test]
fn every_rule_of_the_pack_is_true_false_and_not_observed() {
    assert!(
        pack().len() <= 25,
        "{} rules are more than anybody reads",
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
            (None, below) => {
                let below = below.expect("a rule opens at a bound");
                (below * 0.5, definition.clear + 0.3)
            }
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
        let sentence = definition.sentence("eth0", opens, None);
        assert!(!sentence.contains('{'), "{sentence}");
    }
}

fn pairs(one: &Shown) -> Vec<(&str, &str)> {
    let keys = one.family.labels.iter().map(AsRef::as_ref);
    keys.zip(one.labels.iter().map(String::as_str)).collect()
}

fn place(name: &str) -> usize {
    let at = pack().iter().position(|rule| rule.name == name);
    at.expect("it is in the pack")
}

#[test]
fn what_the_pack_looks_at_is_there() {
    let agent = muster_agent::config::Config::default();
    let described = muster_agent::collect::describe(&agent.collect);
    let collectors: Vec<&str> = described
        .iter()
        .map(|collector| collector.about.name)
        .chain([muster_agent::check::schedule::NAME])
        .collect();
    for rule in pack() {
        let value = &rule.value;
        if let Some(signal) = &value.signal {
            let made_of = crate::fleet::derive::made_of(signal);
            assert!(!made_of.is_empty(), "{}: of what is {signal}?", rule.name);
        }
        let detail = rule.detail.as_ref();
        let and = rule.and.as_ref().and_then(|and| and.metric.as_deref());
        let metrics = [
            value.metric.as_deref(),
            value.per.as_deref(),
            value.done.as_deref(),
            and,
            detail.map(|detail| &*detail.metric),
            rule.unless.as_deref(),
        ];
        for name in metrics.into_iter().flatten() {
            let known = METRICS.iter().find(|metric| metric.name == name);
            // /proc/meminfo and the hardware's sensors have families that the catalogue does not list.
            let made = ["node_hwmon_", "node_memory_"];
            let made = made.iter().any(|start| name.starts_with(start));
            assert!(made || known.is_some(), "{}: no metric {name}", rule.name);
            if let (Some(known), Some(subject)) = (known, &rule.subject) {
                let has = known.labels.contains(&subject.as_str());
                assert!(
                    has || Some(name) == and,
                    "{}: {name} by {subject}",
                    rule.name
                );
            }
        }
        if let Some(collector) = &rule.collector {
            assert!(
                collectors.contains(&collector.as_str()),
                "{}: no collector {collector}",
                rule.name
            );
        }
    }
}

#[test]
fn the_page_of_runbooks_says_what_the_program_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/runbooks.md");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, page()).expect("the page can be written");
    }
    let there = std::fs::read_to_string(path).expect("the page is there");
    assert!(
        there == page(),
        "docs/runbooks.md is not of this program: UPDATE_EXPECT=1"
    );
    for name in ["host_silent", "check_failing"] {
        assert!(link(name).is_some_and(|link| link.ends_with(&format!("runbooks.md#{name}"))));
        assert!(page().contains(&format!("\n## {name}\n")));
    }
    assert_eq!(link("made up"), None);
}

#[test]
fn a_check_that_cannot_tell_is_unknown() {
    for (rule, words) in [
        ("check_failing", ["false", "true", "true", "not observed"]),
        ("check_unknown", ["false", "false", "false", "true"]),
    ] {
        for (status, word) in [0.0, 1.0, 2.0, 3.0].into_iter().zip(words) {
            let series = [shown("muster_check_status", &[("check", "web")], status)];
            let (_, said) = say(place(rule), &series, &[f32::NAN; SIGNALS.len()]);
            assert_eq!(said, [("web".to_owned(), word)], "{rule} at {status}");
        }
    }
}

#[test]
fn a_sensor_is_held_against_its_own_limit() {
    let sensor =
        |metric, sensor, value| shown(metric, &[("chip", "k10"), ("sensor", sensor)], value);
    let mut series = vec![
        sensor("node_hwmon_temp_celsius", "temp1", 80.0),
        sensor("node_hwmon_temp_celsius", "temp2", 50.0),
        sensor("node_hwmon_temp_crit_celsius", "temp1", 100.0),
        sensor("node_hwmon_temp_crit_celsius", "temp2", 60.0),
    ];
    let at = place("temperature_critical");
    let quiet = [f32::NAN; SIGNALS.len()];
    assert_eq!(say(at, &series, &quiet).1, [("k10".to_owned(), "false")]);
    series[1].value = 61.0;
    assert_eq!(say(at, &series, &quiet).1, [("k10".to_owned(), "true")]);
    // The limit of one is not known: the other is still too hot.
    series.remove(2);
    assert_eq!(say(at, &series[..], &quiet).1, [("k10".to_owned(), "true")]);
}

#[test]
fn a_collector_that_has_nothing_to_read_does_not_fail() {
    let success = |value| {
        shown(
            "node_scrape_collector_success",
            &[("collector", "hwmon")],
            value,
        )
    };
    let absent = shown(
        "muster_agent_collector_absent",
        &[("collector", "hwmon")],
        1.0,
    );
    let quiet = [f32::NAN; SIGNALS.len()];
    let at = place("collector_failing");
    assert_eq!(
        say(at, &[success(0.0)], &quiet).1,
        [("hwmon".to_owned(), "true")]
    );
    assert_eq!(say(at, &[success(0.0), absent], &quiet).1, []);
}

#[test]
fn what_a_working_collector_does_not_name_is_gone() {
    let collector = |metric: &str, name: &str, value| shown(metric, &[("collector", name)], value);
    let success = "node_scrape_collector_success";
    let quiet = [f32::NAN; SIGNALS.len()];
    let failed = shown(
        "node_md_disks",
        &[("device", "md0"), ("state", "active")],
        1.0,
    );
    let works = collector(success, "mdadm", 1.0);
    let fails = collector(success, "mdadm", 0.0);
    let empty = collector("muster_agent_collector_absent", "mdadm", 1.0);
    let other = collector(success, "edac", 1.0);
    let at = place("raid_degraded");
    for (series, expected) in [
        (vec![works], Coverage::Complete),
        (vec![fails], Coverage::Partial),
        (
            vec![collector(success, "mdadm", 0.0), empty],
            Coverage::Complete,
        ),
        (vec![other], Coverage::Complete),
        (vec![], Coverage::Partial),
        (vec![failed], Coverage::Complete),
        (
            vec![
                shown(
                    "node_md_disks",
                    &[("device", "md0"), ("state", "active")],
                    1.0,
                ),
                collector(success, "mdadm", 0.0),
            ],
            Coverage::Partial,
        ),
    ] {
        let named: Vec<&str> = series.iter().map(|one| &*one.family.name).collect();
        assert_eq!(say(at, &series, &quiet).0, expected, "{named:?}");
    }
}

#[test]
fn what_grew_lately_fades() {
    let at = place("link_down");
    let mut grown = Grown::default();
    let mut say = |second: i64, times: f64| {
        let one = shown(
            "node_network_carrier_down_changes_total",
            &[("device", "eth0")],
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
                grown: Some(times),
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
        let watcher = Watcher::new(&seen, Attention::default(), &mut grown);
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
    // Once every half minute: from the third time on it is told.
    let words: Vec<&str> = (1..=4).map(|time| say(time * 30, 1.0)).collect();
    assert_eq!(words, ["not observed", "not observed", "true", "true"]);
    assert_eq!(say(1200, 0.0), "not observed");
    assert_eq!(say(4000, 0.0), "false");
}

/// A host with a check and a unit that crashes, shown to the engine for a while.
fn transitions(ticks: impl IntoIterator<Item = Vec<Shown>>) -> Vec<String> {
    use crate::detect::{Change, Engine, HostDetection};

    let (engine, mut state) = (Engine::default(), HostDetection::default());
    let mut told = Vec::new();
    for (second, mut shown_now) in (0..).step_by(10).zip(ticks) {
        let success = "node_scrape_collector_success";
        shown_now.push(shown(success, &[("collector", "checks")], 1.0));
        shown_now.push(shown(success, &[("collector", "systemd")], 1.0));
        let samples: Vec<Sample<'_>> = shown_now
            .iter()
            .flat_map(|one| {
                uses_of(&one.family, &one.labels)
                    .into_iter()
                    .map(move |used| (one, used))
            })
            .map(|(one, used)| Sample {
                used,
                family: &one.family,
                labels: &one.labels,
                value: one.value,
                rate: None,
                grown: None,
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
        let mut out = Vec::new();
        engine.step(&mut state, &seen, &mut out);
        told.extend(out.into_iter().map(|one| {
            let words = match one.change {
                Change::Opened { summary, evidence } => format!("{summary} | {evidence}"),
                Change::Cleared { evidence } => format!("cleared {evidence}"),
            };
            let severity = one.severity.as_str();
            format!("{second} {} {severity} {}: {words}", one.rule, one.subject)
        }));
    }
    told
}

fn check(status: f64, result: &str) -> Vec<Shown> {
    vec![
        shown("muster_check_status", &[("check", "shop")], status),
        shown(
            "muster_check_result",
            &[("check", "shop"), ("result", result)],
            1.0,
        ),
    ]
}

#[test]
fn a_check_that_fails_is_an_incident_by_its_state() {
    let mut ticks = vec![check(0.0, "ok"), check(1.0, "slow"), check(2.0, "timeout")];
    // Cannot tell for a moment: that is no recovery.
    ticks.push(check(3.0, "error"));
    ticks.extend((0..5).map(|_| check(0.0, "ok")));
    let opens = "(opens above 0.5 (critical: above 1.5) and up to 2.5, clears below 0.5)";
    assert_eq!(
        transitions(ticks),
        [
            format!(
                "10 check_failing warning shop: check shop is warning: slow | warning, slow {opens}"
            ),
            format!(
                "20 check_failing warning shop: cleared became critical: critical, timeout {opens}"
            ),
            format!(
                "20 check_failing critical shop: check shop is critical: timeout | critical, timeout {opens}"
            ),
            format!("70 check_failing critical shop: cleared ok, ok {opens}"),
        ]
    );
}

#[test]
fn a_check_that_cannot_tell_for_long_is_told_and_one_that_is_taken_away_ends() {
    let lasting = (0..182).map(|_| check(3.0, "denied"));
    let told = transitions(lasting.chain((0..95).map(|_| Vec::new())));
    let words: Vec<&str> = told
        .iter()
        .map(|one| one.split(" (").next().unwrap_or_default())
        .collect();
    assert_eq!(
        words,
        [
            "1800 check_unknown warning shop: check shop cannot tell: denied | unknown, denied",
            "2720 check_unknown warning shop: cleared no longer reported by the host",
        ]
    );
}

#[test]
fn a_crash_loop_is_one_incident() {
    // Restarted every 50 s for 20 min by the agent's own count of the last 10 min, then mended.
    let looping = (0..120_u32).map(|tick| f64::from((tick / 5).min(12)));
    let after = (0..60_u32).map(|tick| f64::from(12 - (tick / 5).min(12)));
    let ticks = looping.chain(after).map(|count| {
        let mut series = Vec::new();
        if count > 0.0 {
            let name = "muster_host_systemd_unit_restarts_recent";
            series.push(shown(name, &[("name", "web.service")], count));
            let result = [("name", "web.service"), ("result", "exit-code")];
            series.push(shown("muster_host_systemd_unit_result", &result, 1.0));
        }
        series
    });
    let quiet = (0..40).map(|_| Vec::new());
    let told = transitions(ticks.chain(quiet));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("250 unit_crash_looping warning web.service: web.service was restarted 5 times in 10 min: exit-code"),
        "{}",
        told[0]
    );
    assert!(told[1].contains("unit_crash_looping warning web.service: cleared"));
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
        (
            "rule = \"swapping\"\nhosts = \"role=web,state!=live\"",
            "state changes from minute to minute; use labels, names, os, kernel or agent",
        ),
        (
            "rule = \"swapping\"\nhosts = \"cpu>0.5\"",
            "cpu changes from minute to minute",
        ),
    ] {
        let error = Overrides::parse(&format!("[[rules]]\n{text}\n")).expect_err(text);
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

/// What the rule says at each of these moments: (second, series, what is said of the only subject).
fn over_time(rule: &str, moments: &[(i64, Vec<Shown>, &str)]) {
    let at = place(rule);
    let (mut grown, overrides) = (Grown::default(), Overrides::default());
    let (bounds, _) = overrides.of(at, None);
    for (second, series, expected) in moments {
        let samples: Vec<Sample<'_>> = series
            .iter()
            .flat_map(|one| {
                uses_of(&one.family, &one.labels)
                    .into_iter()
                    .map(move |used| (one, used))
            })
            .map(|(one, used)| Sample {
                used,
                family: &one.family,
                labels: &one.labels,
                value: one.value,
                rate: None,
                grown: None,
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
        let watcher = Watcher::new(&seen, Attention::default(), &mut grown);
        let mut word = "nothing".to_owned();
        let sink = &mut |_: &str, verdict: Verdict<'_>| {
            word = match verdict {
                Verdict::Abnormal { reason, .. } => reason.summary("it"),
                Verdict::Normal(_) => "well".to_owned(),
                Verdict::Unknown => "not observed".to_owned(),
            };
        };
        watcher.judge(at, &pack()[at], &bounds, &mut Findings { sink });
        assert_eq!(word, *expected, "{rule} at {second} s");
    }
}

#[test]
fn a_filesystem_that_was_always_read_only_did_not_become_so() {
    let mounted = |fstype: &str, readonly: f64| {
        let labels = [("device", "sda1"), ("fstype", fstype), ("mountpoint", "/")];
        vec![shown("node_filesystem_readonly", &labels, readonly)]
    };
    over_time(
        "filesystem_readonly",
        &[
            (0, mounted("ext4", 1.0), "not observed"),
            (10, mounted("ext4", 1.0), "not observed"),
            (20, mounted("ext4", 0.0), "well"),
            (30, Vec::new(), "nothing"),
            (40, mounted("ext4", 1.0), "it became read-only"),
            (50, mounted("squashfs", 1.0), "nothing"),
            (60, mounted("ext4", 0.0), "well"),
        ],
    );
}

#[test]
fn a_timer_is_missed_when_what_it_promised_passes() {
    const DAY: i64 = 86_400;
    let timer = |next: i64, last: i64| {
        let name = [("name", "backup.timer")];
        #[expect(clippy::cast_precision_loss, reason = "a few days")]
        let series = |metric, second: i64| shown(metric, &name, second as f64);
        let last = series("node_systemd_timer_last_trigger_seconds", last);
        let next =
            (next > 0).then(|| series("muster_host_systemd_timer_next_trigger_seconds", next));
        next.into_iter().chain([last]).collect::<Vec<_>>()
    };
    let three = 3 * 3600;
    over_time(
        "timer_missed",
        &[
            (0, timer(three, 0), "well"),
            // It runs for two hours: the next time stands in the past, and is the one that is kept.
            (three + 10, timer(three, three + 2), "well"),
            (three + 7200, timer(three, three + 2), "well"),
            (three + 7210, timer(DAY + three, three + 2), "well"),
            // Put off by an hour before it was due: that is no miss.
            (DAY, timer(DAY + three + 3600, three + 2), "well"),
            (
                DAY + three + 3590,
                timer(DAY + three + 3600, three + 2),
                "well",
            ),
            // The host was off at that time and has forgotten when it last ran.
            (
                DAY + three + 4000,
                timer(2 * DAY + three, 0),
                "not observed",
            ),
            (
                DAY + three + 3600 + 7200,
                timer(2 * DAY + three, 0),
                "it was to run 2 h ago and did not",
            ),
            (DAY + three + 3600 + 7300, Vec::new(), "nothing"),
            (
                2 * DAY + three + 5,
                timer(3 * DAY + three, 2 * DAY + three),
                "well",
            ),
            // Stopped by somebody, whatever it had promised.
            (3 * DAY + three + 7200, timer(0, 2 * DAY + three), "nothing"),
            (4 * DAY, timer(4 * DAY + three, 2 * DAY + three), "well"),
        ],
    );
}

#[test]
fn a_reboot_is_wanted_for_long_only_by_its_own_time() {
    const DAY: i64 = 86_400;
    let metric = "muster_host_reboot_required_since_seconds";
    let wanted = |since: f64| vec![shown(metric, &[], since)];
    over_time(
        "reboot_wanted",
        &[
            (1_000, wanted(0.0), "well"),
            (1_010, Vec::new(), "nothing"),
            (1_020, wanted(1_000.0), "well"),
            (13 * DAY, wanted(1_000.0), "not observed"),
            (
                15 * DAY,
                wanted(1_000.0),
                "its packages have wanted a reboot for 15 days",
            ),
            (15 * DAY + 600, wanted(0.0), "well"),
        ],
    );
}

#[test]
fn runbooks_can_be_at_an_address_of_ones_own() {
    let own = Runbooks::at("https://wiki.example/ops#{rule}").expect("it reads");
    let link = own.link("disk_saturated");
    assert_eq!(
        link.as_deref(),
        Some("https://wiki.example/ops#disk_saturated")
    );
    assert!(
        own.link("peer_outlier").is_some(),
        "their page, their rules"
    );
    let ours = Runbooks::at("").expect("it reads");
    assert_eq!(ours, Runbooks::default());
    assert_eq!(ours.link("disk_saturated"), super::link("disk_saturated"));
    for (address, why) in [
        ("wiki.example/{rule}", "is no address"),
        ("https:///{rule}", "is no address"),
        ("javascript:{rule}", "is no address"),
        ("https://wiki.example/", "is the same for all rules"),
        ("https://wiki.example/{rule}/{host}", "no braces"),
        ("https://wiki.example/a b/{rule}", "all of them ASCII"),
    ] {
        let error = Runbooks::at(address).expect_err(address);
        assert!(error.contains(why), "{address}: {error}");
    }
}
