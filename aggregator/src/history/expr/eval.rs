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

use super::{Expr, Group, Over, Select};
use crate::history::{HistoryError, Point, SampleQuery, SampleStore, fold, glob};

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
}

impl Context<'_> {
    /// The answer, in the order of labels.
    ///
    /// # Errors
    /// When it would cost too much.
    pub fn eval(&mut self, expr: &Expr) -> Result<Vec<Answer>, HistoryError> {
        match expr {
            Expr::Number(number) => Ok(vec![Answer {
                labels: Labels::new(),
                values: vec![Some(*number); self.moments.len()],
            }]),
            Expr::Select(select) => self.select(select),
            Expr::Group { how, by, of } => {
                let series = self.eval(of)?;
                Ok(self.group(*how, by, series))
            }
            Expr::Top { count, largest, of } => {
                let series = self.eval(of)?;
                Ok(top(series, *count, *largest, self.moments.len()))
            }
            Expr::Binary { op, left, right } => {
                let (one, other) = (self.eval(left)?, self.eval(right)?);
                let pair = |one: &Answer, other: &Answer, labels: &Labels| {
                    let both = one.values.iter().zip(&other.values);
                    Answer {
                        labels: labels.clone(),
                        values: both.map(|(a, b)| op.apply((*a)?, (*b)?)).collect(),
                    }
                };
                let out: Vec<Answer> = match (&**left, &**right) {
                    (Expr::Number(_), _) => other
                        .iter()
                        .map(|series| pair(&one[0], series, &series.labels))
                        .collect(),
                    (_, Expr::Number(_)) => one
                        .iter()
                        .map(|series| pair(series, &other[0], &series.labels))
                        .collect(),
                    _ => {
                        let by_labels: HashMap<&Labels, &Answer> = other
                            .iter()
                            .map(|series| (&series.labels, series))
                            .collect();
                        let same = |series: &Answer| {
                            let other = by_labels.get(&series.labels)?;
                            Some(pair(series, other, &series.labels))
                        };
                        one.iter().filter_map(same).collect()
                    }
                };
                Ok(known(out))
            }
        }
    }

    fn select(&mut self, select: &Select) -> Result<Vec<Answer>, HistoryError> {
        let span = select.span_ms.unwrap_or(self.span_ms);
        let (Some(first), Some(last)) = (self.moments.first(), self.moments.last()) else {
            return Ok(Vec::new());
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
            max_points: self.points_left,
        };
        let (mut out, moments) = (Vec::new(), &self.moments);
        let names = self.hosts;
        let report = self.store.read(&query, &mut |series| {
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
            let values = moments
                .iter()
                .map(|at| over(&series.points, *at, span, select.over));
            out.push(Answer {
                labels,
                values: values.collect(),
            });
            ControlFlow::Continue(())
        })?;
        self.points += report.points;
        self.points_left -= report.points;
        self.missing.extend(report.missing);
        let mut out = known(out);
        out.sort_by(|one, other| one.labels.cmp(&other.labels));
        Ok(out)
    }

    fn group(&self, how: Group, by: &[String], series: Vec<Answer>) -> Vec<Answer> {
        let mut groups: BTreeMap<Labels, Vec<Answer>> = BTreeMap::new();
        let attributes: HashMap<&str, &BTreeMap<String, String>> = self
            .hosts
            .values()
            .map(|(name, labels)| (name.as_str(), labels))
            .collect();
        for series in series {
            let value = |label: &String| {
                series.labels.get(label).or_else(|| {
                    // Of labels that the series does not have, the host may have one.
                    attributes
                        .get(series.labels.get("host")?.as_str())?
                        .get(label)
                })
            };
            let key = by
                .iter()
                .map(|label| (label.clone(), value(label).cloned().unwrap_or_default()));
            groups.entry(key.collect()).or_default().push(series);
        }
        let fold = |(labels, members): (Labels, Vec<Answer>)| {
            let at = |moment: usize| {
                let mut values: Vec<f64> = members
                    .iter()
                    .filter_map(|series| series.values[moment])
                    .collect();
                one_of(&mut values, how)
            };
            Answer {
                labels,
                values: (0..self.moments.len()).map(at).collect(),
            }
        };
        known(groups.into_iter().map(fold).collect())
    }
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

fn top(series: Vec<Answer>, count: usize, largest: bool, moments: usize) -> Vec<Answer> {
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
    for (at, moment) in (0..moments).flat_map(leaders) {
        keep[at][moment] = true;
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
    out
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
        };
        let expr = parse("g[5m] + c_total[5m]").expect("an expression");
        let refused = context.eval(&expr);
        assert!(matches!(refused, Err(HistoryError::TooMuch { .. })));
    }
}
