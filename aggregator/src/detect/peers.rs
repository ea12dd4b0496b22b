//! Hosts against the others of their group, and groups against themselves (design/detection.md, Peer outlier).
//!
//! Once a minute each figure of a host is held against the median of its group. What counts is not how far off it
//! is but how far off it is *for this host*: a machine that is always a tenth busier than its peers, or twice as busy
//! when all are busy, is as it always is. So for each figure of each host a line is learnt, offset by level of the
//! group, beside it a slow average of what the line leaves over, and how large that is in 99.5 % of the time. A host
//! is an outlier when what is left over of late is clearly larger.
//!
//! When a group's median leaves where it was within the last hour, the group has shifted: that is one entry, and no
//! host of it is named while it lasts. Groups of fewer than five hosts that are heard say nothing.
//!
//! A pure fold: minute by minute, from the rows that are handed in. It knows no clock, no host and no disk; what runs
//! it is [`crate::peers`].

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use muster_proto::{id::HostId, time::Timestamp};
use serde::{Deserialize, Serialize};

use super::{Change, Opening, Severity, Transition};

/// Name of the rule.
pub const RULE: &str = "peer_outlier";
/// What is compared; shares from 0 to 1.
pub const FIGURES: [&str; 4] = ["cpu", "memory", "disk time", "pressure"];
/// Fewer hosts have no median worth the name (design/detection.md).
pub const MIN_HOSTS: usize = 5;

/// Nobody is named before so many minutes were seen.
const LEARNING_MINUTES: u32 = 360;
/// Half-lives in minutes: of the line, of what it leaves over, of "lately".
const LINE: f32 = 1440.0;
const BASE: f32 = 180.0;
const LATELY: f32 = 7.0;
/// How far beyond what is usual counts, and the least that ever does: less than a twentieth of a machine is nothing
/// to look at. Chosen on the first half of the seeds of `bench/detect`, told of the other.
const TIMES_USUAL: f32 = 1.4;
const LEAST: f32 = 0.05;
/// Minutes without a break before an outlier is named, and before it is none.
const OPEN_MINUTES: i64 = 5;
const CLEAR_MINUTES: u32 = 15;
/// What lasts for longer is how it is now: learnt, and no more told.
const NEW_NORMAL_MINUTES: u32 = 360;
/// The running quantile: its share, and how fast it moves (the rule of design/detection.md).
const SHARE: f32 = 0.995;
const STEP: f32 = 0.05;
/// Spread of the group's level from which its line is believed; squared shares.
const LEVEL_VARIANCE: f32 = 0.0005;

/// Half-lives of a group's level, in minutes; when it has shifted, and for how many minutes it must.
const GROUP_FAST: f32 = 2.0;
const GROUP_SLOW: f32 = 30.0;
const SHIFT_TIMES_USUAL: f32 = 1.5;
const SHIFT_LEAST: f32 = 0.08;
const SHIFT_MINUTES: u32 = 3;
/// Shifts that are over and still told of.
const PAST_SHIFTS: usize = 32;

/// A pause that breaks what must hold without a break.
const PAUSE: Duration = Duration::from_secs(150);
/// An outlier that could not be compared for so long is none any more.
const GONE: Duration = Duration::from_secs(86_400);
/// Hosts that were not seen for so long are forgotten.
const FORGET: Duration = Duration::from_secs(7 * 86_400);

/// What one host showed in a minute.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Which host.
    pub host: HostId,
    /// Its group, `role=web`.
    pub group: String,
    /// One for each of [`FIGURES`]; NaN where it is not known.
    pub figures: [f32; FIGURES.len()],
}

/// A group whose median left where it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shift {
    /// Which group.
    pub group: String,
    /// Which of [`FIGURES`].
    pub figure: String,
    /// Since when.
    pub since: Timestamp,
    /// When it ended: it went back, or is where it always is now.
    pub until: Option<Timestamp>,
    /// Median of the hour before.
    pub before: f32,
    /// The largest distance from it that the median came to, with its sign.
    pub moved: f32,
    /// Hosts that were heard when it began.
    pub hosts: u32,
}

/// What is known of all groups and hosts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    at: Option<Timestamp>,
    groups: BTreeMap<String, [Level; FIGURES.len()]>,
    hosts: BTreeMap<HostId, Host>,
    past: VecDeque<Shift>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Host {
    group: String,
    seen: Timestamp,
    tracks: [Track; FIGURES.len()],
}

/// One figure of one host against its group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Track {
    /// The line: means of level and offset, variance and covariance.
    level: f32,
    offset: f32,
    variance: f32,
    covariance: f32,
    /// What the line leaves over, slowly and lately, and what that stays below most of the time.
    base: f32,
    lately: f32,
    usual: f32,
    minutes: u32,
    judged: Option<Timestamp>,
    over_since: Option<Timestamp>,
    open: Option<(Severity, Timestamp)>,
    /// Minutes since it opened, and minutes below.
    open_minutes: u32,
    below_minutes: u32,
}

/// One figure of one group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Level {
    fast: f32,
    slow: f32,
    usual: f32,
    minutes: u32,
    over_minutes: u32,
    shift: Option<Shift>,
    shift_minutes: u32,
    below_minutes: u32,
}

/// What the group shows at this minute.
#[derive(Clone, Copy)]
struct Around<'a> {
    at: Timestamp,
    group: &'a str,
    figure: &'static str,
    median: f32,
    hosts: usize,
    /// The group itself has shifted: nobody is named.
    shifted: bool,
}

impl Peers {
    /// Takes in a minute. One that is not later than the last teaches nothing, as after a clock was set back.
    pub fn step(&mut self, at: Timestamp, rows: &[Row], out: &mut Vec<(HostId, Transition)>) {
        let last = self.at.replace(at);
        if last.is_some_and(|last| at <= last) {
            for track in self.hosts.values_mut().flat_map(|host| &mut host.tracks) {
                track.interrupt();
                track.judged = None;
            }
            return;
        }
        let mut by_group: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            by_group.entry(&row.group).or_default().push(row);
        }
        for (group, rows) in by_group {
            self.step_group(at, group, &rows, out);
        }
        self.hosts.retain(|id, host| {
            for (track, figure) in host.tracks.iter_mut().zip(FIGURES) {
                track.give_up(at, figure, *id, out);
            }
            at.since(host.seen) < FORGET
        });
        let hosts = &self.hosts;
        self.groups
            .retain(|group, _| hosts.values().any(|host| host.group == *group));
    }

    fn step_group(
        &mut self,
        at: Timestamp,
        group: &str,
        rows: &[&Row],
        out: &mut Vec<(HostId, Transition)>,
    ) {
        let medians: [Option<(f32, usize)>; FIGURES.len()] =
            std::array::from_fn(|figure| median(rows.iter().map(|row| row.figures[figure])));
        let levels = self.groups.entry(group.to_owned()).or_default();
        for ((level, found), figure) in levels.iter_mut().zip(medians).zip(FIGURES) {
            let Some((median, hosts)) = found else {
                continue;
            };
            if let Some(over) = level.step(at, (group, figure), median, hosts) {
                if self.past.len() == PAST_SHIFTS {
                    self.past.pop_front();
                }
                self.past.push_back(over);
            }
        }
        let shifted = levels.iter().any(|level| level.shift.is_some());
        for row in rows {
            let host = self.hosts.entry(row.host).or_default();
            if host.group != group {
                // What was usual among others says nothing here; what is open clears when it is well again.
                let open = host.tracks.map(|track| track.open);
                *host = Host {
                    group: group.to_owned(),
                    ..Host::default()
                };
                for (track, open) in host.tracks.iter_mut().zip(open) {
                    track.open = open;
                }
            }
            host.seen = at;
            for (figure, track) in host.tracks.iter_mut().enumerate() {
                let value = row.figures[figure];
                if let Some((median, hosts)) = medians[figure]
                    && value.is_finite()
                {
                    let around = Around {
                        at,
                        group,
                        figure: FIGURES[figure],
                        median,
                        hosts,
                        shifted,
                    };
                    if let Some(transition) = track.step(value, &around) {
                        out.push((row.host, transition));
                    }
                }
            }
        }
    }

    /// Makes what counts as open of a host what is open in the store, when it is met first after a start; whether it is
    /// heard or not, so that what cannot be compared any more ends too.
    pub fn adopt(&mut self, host: HostId, open: &[Opening], at: Timestamp) {
        let of_rule = |figure: &str| {
            let mut open = open.iter();
            open.find(|one| one.rule == RULE && one.subject == figure)
        };
        if FIGURES.iter().all(|figure| of_rule(figure).is_none()) && !self.hosts.contains_key(&host)
        {
            return;
        }
        let fresh = || Host {
            seen: at,
            ..Host::default()
        };
        let known = self.hosts.entry(host).or_insert_with(fresh);
        for (track, figure) in known.tracks.iter_mut().zip(FIGURES) {
            track.open = of_rule(figure).map(|one| (one.severity, one.since));
        }
    }

    /// Groups that have shifted: those that go on first, then the last that are over.
    pub fn shifts(&self) -> impl Iterator<Item = &Shift> {
        let now = self.groups.values().flatten();
        now.filter_map(|level| level.shift.as_ref())
            .chain(self.past.iter().rev())
    }

    /// How many groups are compared, and hosts in them.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.groups.len(), self.hosts.len())
    }
}

/// What ends of what is open on a host where nobody is compared any more.
#[must_use]
pub fn ended(open: &[Opening], at: Timestamp) -> Vec<Transition> {
    let open = open.iter().filter(|one| one.rule == RULE);
    open.map(|one| {
        let evidence = "hosts are not compared any more: peer_labels is empty".to_owned();
        let change = Change::Cleared { evidence };
        transition(&one.subject, one.severity, one.since, at, change)
    })
    .collect()
}

/// The median of what is known, and of how many; `None` where they are too few.
fn median(values: impl Iterator<Item = f32>) -> Option<(f32, usize)> {
    let mut values: Vec<f32> = values.filter(|value| value.is_finite()).collect();
    let count = values.len();
    if count < MIN_HOSTS {
        return None;
    }
    let (below, middle, _) = values.select_nth_unstable_by(count / 2, f32::total_cmp);
    let middle = *middle;
    if count % 2 == 1 {
        return Some((middle, count));
    }
    let lower = below.iter().copied().fold(f32::MIN, f32::max);
    Some((f32::midpoint(lower, middle), count))
}

/// Weight of a minute in an average of this half-life.
fn weight(half_life: f32) -> f32 {
    1.0 - 0.5_f32.powf(1.0 / half_life)
}

/// The weight while little was seen: that of a plain mean.
fn early(half_life: f32, minutes: u32) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "it fades long before that")]
    weight(half_life).max(1.0 / minutes.max(1) as f32)
}

/// Moves a running quantile after it was compared with `value`.
fn learn(usual: &mut f32, value: f32, least: f32) {
    let step = if value > *usual {
        STEP * SHARE
    } else {
        -STEP * (1.0 - SHARE)
    };
    *usual = (*usual * step.exp()).max(least / 10.0);
}

impl Track {
    /// Something was not observed.
    fn interrupt(&mut self) {
        self.over_since = None;
        self.below_minutes = 0;
        self.lately = 0.0;
    }

    fn step(&mut self, value: f32, around: &Around<'_>) -> Option<Transition> {
        let at = around.at;
        if self
            .judged
            .replace(at)
            .is_some_and(|last| at.since(last) > PAUSE)
        {
            self.interrupt();
        }
        let offset = value - around.median;
        if self.minutes == 0 {
            (self.level, self.offset) = (around.median, offset);
        }
        let slope = self.covariance / (self.variance + LEVEL_VARIANCE);
        let expected = self.offset + slope * (around.median - self.level) + self.base;
        let left = offset - expected;
        self.lately += weight(LATELY) * (left - self.lately);
        let far = self.lately.abs();
        self.minutes = self.minutes.saturating_add(1);
        if self.minutes <= LEARNING_MINUTES {
            self.usual = far.max(0.999 * self.usual);
            self.learn_line(around.median, offset);
            self.base += early(BASE, self.minutes) * left;
            return None;
        }
        let limit = (TIMES_USUAL * self.usual).max(LEAST);
        let over = far > limit;
        if self.open.is_some() {
            return self.go_on(far < limit / 2.0, value, expected, around);
        }
        if !over || around.shifted {
            self.over_since = None;
            learn(&mut self.usual, far, LEAST);
            self.learn_line(around.median, offset);
            self.base += weight(BASE) * left;
            return None;
        }
        let since = *self.over_since.get_or_insert(at);
        if at.millis_since(since) < OPEN_MINUTES * 60_000 {
            return None;
        }
        // A lone host that is unlike its peers pages nobody (design/detection.md, What follows for people).
        self.open = Some((Severity::Info, since));
        (self.open_minutes, self.below_minutes, self.over_since) = (0, 0, None);
        let change = Change::Opened {
            summary: format!(
                "{} {} while {} is at {}",
                around.figure,
                percent(value),
                around.group,
                percent(around.median)
            ),
            evidence: self.evidence(value, expected, around),
        };
        Some(transition(around.figure, Severity::Info, since, at, change))
    }

    /// It is open: it clears when it is well for long enough, or when this is how it is now.
    fn go_on(
        &mut self,
        well: bool,
        value: f32,
        expected: f32,
        around: &Around<'_>,
    ) -> Option<Transition> {
        self.open_minutes += 1;
        self.below_minutes = if well { self.below_minutes + 1 } else { 0 };
        let lasting = self.open_minutes > NEW_NORMAL_MINUTES;
        if self.below_minutes < CLEAR_MINUTES && !lasting {
            return None;
        }
        let (severity, since) = self.open.take()?;
        let mut evidence = self.evidence(value, expected, around);
        if lasting {
            evidence.push_str("; it has been so for six hours and counts as usual from now on");
            self.base += self.lately;
            self.lately = 0.0;
        }
        (self.open_minutes, self.below_minutes) = (0, 0);
        let change = Change::Cleared { evidence };
        Some(transition(
            around.figure,
            severity,
            since,
            around.at,
            change,
        ))
    }

    fn learn_line(&mut self, level: f32, offset: f32) {
        let weight = early(LINE, self.minutes);
        let (level_off, offset_off) = (level - self.level, offset - self.offset);
        self.level += weight * level_off;
        self.offset += weight * offset_off;
        self.variance = (1.0 - weight) * (self.variance + weight * level_off * level_off);
        self.covariance = (1.0 - weight) * (self.covariance + weight * level_off * offset_off);
    }

    /// Ends what could not be compared for a day.
    fn give_up(
        &mut self,
        at: Timestamp,
        figure: &'static str,
        host: HostId,
        out: &mut Vec<(HostId, Transition)>,
    ) {
        let judged = *self.judged.get_or_insert(at);
        if at.since(judged) < GONE {
            return;
        }
        if let Some((severity, since)) = self.open.take() {
            let evidence = "could not be compared with its group for a day".to_owned();
            let change = Change::Cleared { evidence };
            out.push((host, transition(figure, severity, since, at, change)));
        }
    }

    fn evidence(&self, value: f32, expected: f32, around: &Around<'_>) -> String {
        format!(
            "{} {}; median of {} {} of {} hosts; usual for this host would be {}",
            around.figure,
            percent(value),
            around.group,
            percent(around.median),
            around.hosts,
            percent((around.median + expected).clamp(0.0, 1.0)),
        )
    }
}

impl Level {
    /// Takes in the median of a minute; the shift that ended with it.
    fn step(
        &mut self,
        at: Timestamp,
        (group, figure): (&str, &str),
        median: f32,
        hosts: usize,
    ) -> Option<Shift> {
        if self.minutes == 0 {
            (self.fast, self.slow) = (median, median);
        }
        self.minutes = self.minutes.saturating_add(1);
        self.fast += weight(GROUP_FAST) * (median - self.fast);
        let moved = self.fast - self.slow;
        let far = moved.abs();
        if self.minutes <= LEARNING_MINUTES {
            self.usual = far.max(0.999 * self.usual);
            self.slow += weight(GROUP_SLOW) * (median - self.slow);
            return None;
        }
        let limit = (SHIFT_TIMES_USUAL * self.usual).max(SHIFT_LEAST);
        if let Some(shift) = &mut self.shift {
            if far > shift.moved.abs() {
                shift.moved = moved;
            }
            self.shift_minutes += 1;
            self.below_minutes = if far < limit / 2.0 {
                self.below_minutes + 1
            } else {
                0
            };
            let lasting = self.shift_minutes > NEW_NORMAL_MINUTES;
            if self.below_minutes < CLEAR_MINUTES && !lasting {
                return None;
            }
            if lasting {
                self.slow = self.fast;
            }
            (self.shift_minutes, self.below_minutes, self.over_minutes) = (0, 0, 0);
            let mut over = self.shift.take()?;
            over.until = Some(at);
            return Some(over);
        }
        if far <= limit {
            self.over_minutes = 0;
            learn(&mut self.usual, far, SHIFT_LEAST);
            self.slow += weight(GROUP_SLOW) * (median - self.slow);
            return None;
        }
        self.over_minutes += 1;
        if self.over_minutes >= SHIFT_MINUTES {
            self.shift = Some(Shift {
                group: group.to_owned(),
                figure: figure.to_owned(),
                since: at,
                until: None,
                before: self.slow,
                moved,
                hosts: u32::try_from(hosts).unwrap_or(u32::MAX),
            });
        }
        None
    }
}

fn transition(
    figure: &str,
    severity: Severity,
    since: Timestamp,
    at: Timestamp,
    change: Change,
) -> Transition {
    Transition {
        rule: RULE,
        subject: figure.to_owned(),
        severity,
        since,
        at,
        change,
    }
}

fn percent(share: f32) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
mod tests;
