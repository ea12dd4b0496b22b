//! An expression's answer, at some moments.
//!
//! Every metric in it is read once, over all moments together; the points read count together against the bound on
//! what a question may cost. Series are matched by their labels, the host's name among them.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
};

use muster_proto::id::HostId;

use super::{Expr, Group, Op, Over, Select};
use crate::history::{GiveUp, HistoryError, Needs, Point, SampleQuery, SampleStore, fold, glob};

/// How far before a moment a value is still that of the moment, unless a span says otherwise.
pub const SPAN_MS: i64 = 300_000;

/// Labels of a series in an answer.
pub type Labels = BTreeMap<String, String>;

/// A series of an answer: a value for each moment, where there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// What tells it apart.
    pub labels: Labels,
    /// As many as moments.
    pub values: Vec<Option<f64>>,
}

/// Values that an answer may have at a time, with those it is made of: 64 MiB.
pub const MAX_CELLS: u64 = (64 << 20) / size_of::<Option<f64>>() as u64;

/// What a series costs besides its values: its labels and their places.
const CELLS_OF_LABELS: u64 = 32;

/// What an expression is evaluated against.
pub struct Context<'a> {
    /// Samples.
    pub store: &'a dyn SampleStore,
    /// Hosts that are asked about: name and labels.
    pub hosts: &'a HashMap<HostId, (String, BTreeMap<String, String>)>,
    /// Moments, rising, UTC milliseconds.
    pub moments: Vec<i64>,
    /// The span of metrics that name none.
    pub span_ms: i64,
    /// Points that may still be read.
    pub points_left: u64,
    /// Points read.
    pub points: u64,
    /// What could not be read.
    pub missing: Vec<String>,
    /// What is held at a time.
    pub cells: Cells,
    /// Looked at with every series.
    pub give_up: GiveUp,
}

/// How much is held at a time, and may be.
#[derive(Debug, Clone, Copy)]
pub struct Cells {
    held: u64,
    most: u64,
    of_series: u64,
}

impl Cells {
    /// Nothing is held, of at most so many, in series over this many moments.
    #[must_use]
    pub fn new(most: u64, moments: usize) -> Self {
        Self {
            held: 0,
            most,
            of_series: moments as u64 + CELLS_OF_LABELS,
        }
    }

    fn take(&mut self, series: usize) -> Result<(), HistoryError> {
        self.held += self.of_series * series as u64;
        if self.held > self.most {
            return Err(HistoryError::TooWide { limit: self.most });
        }
        Ok(())
    }

    fn give_back(&mut self, series: usize) {
        self.held = self.held.saturating_sub(self.of_series * series as u64);
    }
}

impl Context<'_> {
    /// The answer, in the order of labels.
    ///
    /// # Errors
    /// When it would cost too much, or is not wanted any more.
    pub fn eval(&mut self, expr: &Expr) -> Result<Vec<Answer>, HistoryError> {
        self.give_up.check()?;
        match expr {
            Expr::Number(number) => {
                self.cells.take(1)?;
                Ok(vec![Answer {
                    labels: Labels::new(),
                    values: vec![Some(*number); self.moments.len()],
                }])
            }
            Expr::Select(select) => self.select(select),
            Expr::Group { how, by, of } => match (&**of, how) {
                // All that a quantile needs are the values themselves.
                (Expr::Select(select), how) if !matches!(how, Group::Quantile(_)) => {
                    self.grouped(*how, by, select)
                }
                _ => {
                    let series = self.eval(of)?;
                    self.group(*how, by, series)
                }
            },
            Expr::Top { count, largest, of } => {
                let series = self.eval(of)?;
                let before = series.len();
                let out = top(series, *count, *largest, self.moments.len(), &self.give_up)?;
                self.cells.give_back(before - out.len());
                Ok(out)
            }
            Expr::Binary { op, left, right } => {
                let (one, other) = (self.eval(left)?, self.eval(right)?);
                let before = one.len() + other.len();
                let out = match (&**left, &**right) {
                    (Expr::Number(number), _) => {
                        each_value(other, &self.give_up, |value| op.apply(*number, value))?
                    }
                    (_, Expr::Number(number)) => {
                        each_value(one, &self.give_up, |value| op.apply(value, *number))?
                    }
                    _ => paired(one, &other, *op, &self.give_up)?,
                };
                self.cells.give_back(before - out.len());
                Ok(out)
            }
        }
    }

    fn select(&mut self, select: &Select) -> Result<Vec<Answer>, HistoryError> {
        let mut cells = self.cells;
        let mut out = Vec::new();
        self.each(select, &mut |answer| {
            cells.take(1)?;
            out.push(answer);
            Ok(())
        })?;
        self.cells = cells;
        out.sort_by(|one, other| one.labels.cmp(&other.labels));
        Ok(out)
    }

    /// Reads a metric, and hands over each series that has any value.
    fn each(
        &mut self,
        select: &Select,
        sink: &mut dyn FnMut(Answer) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let span = select.span_ms.unwrap_or(self.span_ms);
        let (Some(first), Some(last)) = (self.moments.first(), self.moments.last()) else {
            return Ok(());
        };
        let wanted = |name: &str| {
            select.hosts.is_empty() || select.hosts.iter().any(|pattern| glob(pattern, name))
        };
        let hosts = self.hosts.iter().filter(|(_, (name, _))| wanted(name));
        let query = SampleQuery {
            hosts: hosts.map(|(id, _)| *id).collect(),
            metric: Some(select.metric.clone()),
            labels: select.labels.clone(),
            from: first.saturating_sub(span),
            to: last.saturating_add(1),
            // A span of a quarter of an hour is told as well by minutes; but a quantile needs the samples.
            step_ms: match select.over {
                Over::Fold(_) => span / 15,
                Over::Quantile(_) => 0,
            },
            needs: Needs::of(match select.over {
                Over::Fold(fold) => fold,
                Over::Quantile(_) => fold::Fold::Last,
            }),
            max_points: self.points_left,
            give_up: self.give_up.clone(),
        };
        let (moments, names) = (&self.moments, self.hosts);
        let mut failed = None;
        let report = self.store.read(&query, &mut |series| {
            let values = values(&series.points, moments, span, select.over, &query.give_up);
            let values = match values {
                Ok(values) if values.iter().any(Option::is_some) => values,
                Ok(_) => return ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let family = &series.name.family;
            let pairs = family
                .labels
                .iter()
                .cloned()
                .zip(series.name.labels.iter().cloned());
            let mut labels: Labels = pairs.collect();
            if let Some((name, _)) = names.get(&series.host) {
                labels.insert("host".into(), name.clone());
            }
            match sink(Answer { labels, values }) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        self.points += report.points;
        self.points_left = self.points_left.saturating_sub(report.points);
        self.missing.extend(report.missing);
        Ok(())
    }

    /// Series of a metric put together as they are read: a sum over a fleet holds the sums and not the fleet.
    fn grouped(
        &mut self,
        how: Group,
        by: &[String],
        select: &Select,
    ) -> Result<Vec<Answer>, HistoryError> {
        let attributes = attributes(self.hosts);
        let (mut cells, moments) = (self.cells, self.moments.len());
        let mut groups: BTreeMap<Labels, Vec<Gathered>> = BTreeMap::new();
        self.each(select, &mut |series| {
            let key = group_of(&series.labels, by, &attributes);
            if !groups.contains_key(&key) {
                // What is gathered of a moment takes the room of two values, and its outcome that of one.
                cells.take(3)?;
            }
            let gathered = groups
                .entry(key)
                .or_insert_with(|| vec![Gathered::default(); moments]);
            for (gathered, value) in gathered.iter_mut().zip(&series.values) {
                gathered.add(*value);
            }
            Ok(())
        })?;
        self.cells = cells;
        self.cells.give_back(groups.len() * 2);
        let answer = |(labels, gathered): (Labels, Vec<Gathered>)| Answer {
            labels,
            values: gathered.iter().map(|one| one.value(how)).collect(),
        };
        Ok(groups.into_iter().map(answer).collect())
    }

    fn group(
        &mut self,
        how: Group,
        by: &[String],
        series: Vec<Answer>,
    ) -> Result<Vec<Answer>, HistoryError> {
        let attributes = attributes(self.hosts);
        let before = series.len();
        let mut groups: BTreeMap<Labels, Vec<Answer>> = BTreeMap::new();
        for series in series {
            let key = group_of(&series.labels, by, &attributes);
            groups.entry(key).or_default().push(series);
        }
        let mut out = Vec::with_capacity(groups.len());
        for (labels, members) in groups {
            self.give_up.check()?;
            self.cells.take(1)?;
            let at = |moment: usize| {
                let mut values: Vec<f64> = members
                    .iter()
                    .filter_map(|series| series.values[moment])
                    .collect();
                one_of(&mut values, how)
            };
            let values = (0..self.moments.len()).map(at).collect();
            out.push(Answer { labels, values });
        }
        self.cells.give_back(before);
        Ok(known(out))
    }
}

/// Labels of hosts by their names.
fn attributes(
    hosts: &HashMap<HostId, (String, BTreeMap<String, String>)>,
) -> HashMap<&str, &BTreeMap<String, String>> {
    let each = hosts.values();
    each.map(|(name, labels)| (name.as_str(), labels)).collect()
}

fn group_of(
    labels: &Labels,
    by: &[String],
    attributes: &HashMap<&str, &BTreeMap<String, String>>,
) -> Labels {
    let value = |label: &String| {
        labels.get(label).or_else(|| {
            // Of labels that the series does not have, the host may have one.
            attributes.get(labels.get("host")?.as_str())?.get(label)
        })
    };
    by.iter()
        .map(|label| (label.clone(), value(label).cloned().unwrap_or_default()))
        .collect()
}

/// What is gathered of a group at a moment.
#[derive(Debug, Clone, Copy, Default)]
struct Gathered {
    sum: f64,
    min: f64,
    max: f64,
    count: u32,
}

impl Gathered {
    fn add(&mut self, value: Option<f64>) {
        let Some(value) = value else { return };
        if self.count == 0 {
            (self.min, self.max) = (f64::INFINITY, f64::NEG_INFINITY);
        }
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.count += 1;
    }

    fn value(&self, how: Group) -> Option<f64> {
        let count = f64::from(self.count);
        (self.count > 0).then_some(match how {
            Group::Sum => self.sum,
            Group::Avg => self.sum / count,
            Group::Min => self.min,
            Group::Max => self.max,
            // A quantile is not gathered.
            Group::Count | Group::Quantile(_) => count,
        })
    }
}

/// The value of each moment.
fn values(
    points: &[Point],
    moments: &[i64],
    span: i64,
    how: Over,
    give_up: &GiveUp,
) -> Result<Vec<Option<f64>>, HistoryError> {
    let mut values = Vec::with_capacity(moments.len());
    for at in moments {
        give_up.check()?;
        values.push(over(points, *at, span, how));
    }
    Ok(values)
}

/// What becomes of all values, in place.
fn each_value(
    mut series: Vec<Answer>,
    give_up: &GiveUp,
    becomes: impl Fn(f64) -> Option<f64>,
) -> Result<Vec<Answer>, HistoryError> {
    for series in &mut series {
        give_up.check()?;
        for value in &mut series.values {
            *value = value.and_then(&becomes);
        }
    }
    Ok(known(series))
}

/// Series of both sides that have the same labels, in the place of those of one side.
fn paired(
    mut one: Vec<Answer>,
    other: &[Answer],
    op: Op,
    give_up: &GiveUp,
) -> Result<Vec<Answer>, HistoryError> {
    let by_labels: HashMap<&Labels, &Answer> = other
        .iter()
        .map(|series| (&series.labels, series))
        .collect();
    for series in &mut one {
        give_up.check()?;
        match by_labels.get(&series.labels) {
            Some(other) => {
                for (value, other) in series.values.iter_mut().zip(&other.values) {
                    *value = value.zip(*other).and_then(|(a, b)| op.apply(a, b));
                }
            }
            None => series.values.fill(None),
        }
    }
    Ok(known(one))
}

/// Those that have any value.
fn known(mut series: Vec<Answer>) -> Vec<Answer> {
    series.retain(|series| series.values.iter().any(Option::is_some));
    series
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53 series")]
fn one_of(values: &mut [f64], how: Group) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let sum: f64 = values.iter().sum();
    Some(match how {
        Group::Sum => sum,
        Group::Avg => sum / values.len() as f64,
        Group::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
        Group::Max => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        Group::Count => values.len() as f64,
        Group::Quantile(share) => quantile(values, share),
    })
}

/// The value below which this share lies, between the two nearest.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index below the length, the share being 0 to 1"
)]
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = share * (values.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(values.len() - 1);
    values[low] + (values[high] - values[low]) * (at - at.floor())
}

/// The value of the span up to a moment. A rate also needs the point before the span.
fn over(points: &[Point], at: i64, span: i64, over: Over) -> Option<f64> {
    let end = points.partition_point(|point| point.at <= at);
    let begin = points.partition_point(|point| point.at <= at - span);
    let within = points.get(begin..end).filter(|within| !within.is_empty())?;
    match over {
        Over::Quantile(share) => {
            let mut values: Vec<f64> = within.iter().map(|point| point.last).collect();
            Some(quantile(&mut values, share))
        }
        Over::Fold(how) => fold::whole(within, how),
    }
}

fn top(
    series: Vec<Answer>,
    count: usize,
    largest: bool,
    moments: usize,
    give_up: &GiveUp,
) -> Result<Vec<Answer>, HistoryError> {
    let leaders = |moment: usize| {
        let mut order: Vec<(f64, usize)> = series
            .iter()
            .enumerate()
            .filter_map(|(at, series)| Some((series.values[moment]?, at)))
            .collect();
        order.sort_by(|one, other| {
            let order = one.0.total_cmp(&other.0);
            let order = if largest { order.reverse() } else { order };
            order.then(one.1.cmp(&other.1))
        });
        order.truncate(count);
        order.into_iter().map(move |(_, at)| (at, moment))
    };
    let mut keep = vec![vec![false; moments]; series.len()];
    for moment in 0..moments {
        give_up.check()?;
        for (at, moment) in leaders(moment) {
            keep[at][moment] = true;
        }
    }
    let mut out = Vec::new();
    for (mut series, keep) in series.into_iter().zip(keep) {
        for (value, keep) in series.values.iter_mut().zip(keep) {
            *value = value.filter(|_| keep);
        }
        out.push(series);
    }
    let mut out = known(out);
    // The first of the list is the one that was asked for.
    out.sort_by(|one, other| {
        let last = |series: &Answer| series.values.iter().rev().flatten().next().copied();
        let order = match (last(one), last(other)) {
            (Some(one), Some(other)) => one.total_cmp(&other),
            _ => Ordering::Equal,
        };
        if largest { order.reverse() } else { order }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use muster_proto::{
        codec::Intern as _,
        series::{Family, Kind, Raw, Scale},
    };

    use super::*;
    use crate::{
        fleet::names::Names,
        history::{PlainStore, SeriesKey, expr::parse::parse},
    };

    fn hosts() -> HashMap<HostId, (String, BTreeMap<String, String>)> {
        let host = |number: u8, name: &str, role: &str| {
            let labels = BTreeMap::from([("role".to_owned(), role.to_owned())]);
            (HostId::from_bytes([number; 16]), (name.to_owned(), labels))
        };
        HashMap::from([
            host(1, "web-1", "web"),
            host(2, "web-2", "web"),
            host(3, "db-1", "db"),
        ])
    }

    /// Three hosts, a sample each ten seconds: a gauge that is 1, 2, 3 and a counter that grows by as much a second.
    fn store() -> PlainStore {
        let store = PlainStore::default();
        let mut names = Names::default();
        let mut key = |name: &str, kind| -> Arc<SeriesKey> {
            let family = Family {
                name: name.into(),
                kind,
                scale: Scale::One,
                labels: vec!["device".into()],
            };
            let family = names.family(family);
            names.series(&family, &["a".into()])
        };
        let (gauge, counter) = (key("g", Kind::Gauge), key("c_total", Kind::Counter));
        for step in 0..100i64 {
            for number in 1..=3u8 {
                let n = i64::from(number);
                let values = [(&gauge, Raw::int(n)), (&counter, Raw::int(n * step * 10))];
                let mut values = values.into_iter();
                let host = HostId::from_bytes([number; 16]);
                store
                    .append(1, host, step * 10_000, &mut values)
                    .expect("memory");
            }
        }
        store
    }

    /// `labels=value` of each series at the last moment.
    fn ask(text: &str) -> Vec<String> {
        let (store, hosts) = (store(), hosts());
        let mut context = Context {
            store: &store,
            hosts: &hosts,
            moments: vec![600_000, 990_000],
            span_ms: SPAN_MS,
            points_left: 100_000,
            points: 0,
            missing: Vec::new(),
            cells: Cells::new(MAX_CELLS, 2),
            give_up: GiveUp::default(),
        };
        let answer = context
            .eval(&parse(text).expect(text))
            .expect("not too much");
        answer
            .iter()
            .map(|series| {
                let labels: Vec<&str> = series
                    .labels
                    .iter()
                    .filter(|(label, _)| *label != "device")
                    .map(|(_, value)| value.as_str())
                    .collect();
                format!(
                    "{}={}",
                    labels.join(","),
                    series.values[1].unwrap_or(f64::NAN)
                )
            })
            .collect()
    }

    #[test]
    fn answers() {
        for (text, expected) in [
            ("g", &["db-1=3", "web-1=1", "web-2=2"][..]),
            ("g@web-*", &["web-1=1", "web-2=2"]),
            ("g{device=b}", &[]),
            ("g{device=a} >= 2", &["db-1=3", "web-2=2"]),
            ("rate(c_total)", &["db-1=3", "web-1=1", "web-2=2"]),
            (
                "increase(c_total[1m])",
                &["db-1=150", "web-1=50", "web-2=100"],
            ),
            ("sum(g)", &["=6"]),
            ("sum by (role) (g)", &["db=3", "web=3"]),
            ("avg by (role) (g) * 2 + 1", &["db=7", "web=4"]),
            ("count(g > 1)", &["=2"]),
            ("quantile(0.5, g)", &["=2"]),
            ("quantile_over(1, g[1h])", &["db-1=3", "web-1=1", "web-2=2"]),
            ("topk(2, g)", &["db-1=3", "web-2=2"]),
            ("bottomk(1, g)", &["web-1=1"]),
            ("g / g", &["db-1=1", "web-1=1", "web-2=1"]),
            ("10 - g@db-1", &["db-1=7"]),
            (
                "max_over(g[1m]) - min_over(g[1m])",
                &["db-1=0", "web-1=0", "web-2=0"],
            ),
            ("count_over(g@db-1[1m])", &["db-1=6"]),
            ("nothing", &[]),
        ] {
            assert_eq!(ask(text), expected, "{text}");
        }
    }

    #[test]
    fn a_question_costs_no_more_than_it_may() {
        let (store, hosts) = (store(), hosts());
        let mut context = Context {
            store: &store,
            hosts: &hosts,
            moments: vec![990_000],
            span_ms: SPAN_MS,
            points_left: 100,
            points: 0,
            missing: Vec::new(),
            cells: Cells::new(MAX_CELLS, 1),
            give_up: GiveUp::default(),
        };
        let expr = parse("g[5m] + c_total[5m]").expect("an expression");
        let refused = context.eval(&expr);
        assert!(matches!(refused, Err(HistoryError::TooMuch { .. })));
    }

    /// Outcome of a question over so many moments, with room for so many series at a time; what is held at its end.
    fn narrow(
        text: &str,
        moments: i64,
        room: u64,
        give_up: &GiveUp,
    ) -> (Result<usize, HistoryError>, u64) {
        let (store, hosts) = (store(), hosts());
        let moments: Vec<i64> = (0..moments).map(|at| 300_000 + at).collect();
        let cells = Cells::new(
            room * (moments.len() as u64 + CELLS_OF_LABELS),
            moments.len(),
        );
        let mut context = Context {
            store: &store,
            hosts: &hosts,
            moments,
            span_ms: SPAN_MS,
            points_left: 100_000,
            points: 0,
            missing: Vec::new(),
            cells,
            give_up: give_up.clone(),
        };
        let answer = context.eval(&parse(text).expect(text));
        let of_series = context.cells.of_series;
        (
            answer.map(|series| series.len()),
            context.cells.held / of_series,
        )
    }

    #[test]
    fn an_answer_is_held_in_bounded_memory() {
        let go_on = GiveUp::default();
        // Three hosts; what stands there is the most series that there are at a time.
        for (text, most, series) in [
            ("g", 3, 3),
            ("g + g", 6, 3),
            ("g + g + g", 6, 3),
            ("(g + g) + (g + g)", 9, 3),
            ("g * 2", 4, 3),
            ("sum(g)", 3, 1),
            ("sum by (host) (g)", 9, 3),
            ("quantile(0.5, g)", 4, 1),
            ("topk(1, g)", 3, 1),
            ("1", 1, 1),
        ] {
            let (enough, held) = narrow(text, 100, most, &go_on);
            assert_eq!(enough.expect(text), series, "{text}");
            assert_eq!(held, series as u64, "{text}: the rest was given back");
            let (refused, _) = narrow(text, 100, most - 1, &go_on);
            assert!(
                matches!(refused, Err(HistoryError::TooWide { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn a_question_that_nobody_waits_for_is_given_up() {
        let over = GiveUp::default();
        over.now();
        let (given_up, _) = narrow("g", 100, 10, &over);
        assert!(matches!(given_up, Err(HistoryError::GivenUp)));
    }
}
