//! A store that is a map in memory: what any other store is compared with.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_proto::{id::HostId, series::Raw};

use super::{
    Caps, HistoryError, HostSeries, Point, ReadReport, SampleQuery, SampleStore, SeriesKey,
    SeriesName, StoreStats, Token,
};

/// Name, label names, label values, host: the order of answers.
type Key = (String, Vec<String>, Vec<String>, HostId);

/// The map. Nothing of it outlives the process.
#[derive(Debug, Default)]
pub struct PlainStore(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    series: BTreeMap<Key, (SeriesName, BTreeMap<i64, f64>)>,
    token: Token,
}

impl PlainStore {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SampleStore for PlainStore {
    fn caps(&self) -> Caps {
        Caps {
            deduplicates: true,
            takes_late: true,
            reads_own_writes: true,
            forgets: true,
        }
    }

    fn append(
        &self,
        token: Token,
        host: HostId,
        tick: i64,
        values: &mut dyn Iterator<Item = (&Arc<SeriesKey>, Raw)>,
    ) -> Result<(), HistoryError> {
        let mut inner = self.inner();
        inner.token = inner.token.max(token);
        for (key, raw) in values {
            let family = &key.family;
            let at = (
                family.name.clone(),
                family.labels.clone(),
                key.labels.clone(),
                host,
            );
            let (_, points) = inner.series.entry(at).or_insert_with(|| {
                let name = SeriesName {
                    family: Arc::clone(family),
                    labels: key.labels.clone(),
                };
                (name, BTreeMap::new())
            });
            points.entry(tick).or_insert(family.scale.value(raw));
        }
        Ok(())
    }

    fn durable(&self) -> Token {
        0
    }

    fn read(
        &self,
        query: &SampleQuery,
        sink: &mut dyn FnMut(HostSeries) -> ControlFlow<()>,
    ) -> Result<ReadReport, HistoryError> {
        let mut report = ReadReport::default();
        for ((_, _, _, host), (name, points)) in &self.inner().series {
            if !query.hosts.contains(host) || !query.wants(&name.family, &name.labels) {
                continue;
            }
            query.give_up.check()?;
            let points: Vec<Point> = points
                .range(query.from..query.to.max(query.from))
                .map(|(at, value)| Point::sample(*at, *value))
                .collect();
            if points.is_empty() {
                continue;
            }
            report.points += points.len() as u64;
            if report.points > query.max_points {
                return Err(HistoryError::TooMuch {
                    limit: query.max_points,
                });
            }
            let series = HostSeries {
                host: *host,
                name: name.clone(),
                points,
            };
            if sink(series).is_break() {
                break;
            }
        }
        Ok(report)
    }

    fn forget(&self, host: HostId, _upto: Token) -> Result<(), HistoryError> {
        self.inner().series.retain(|key, _| key.3 != host);
        Ok(())
    }

    fn stats(&self) -> StoreStats {
        let inner = self.inner();
        let samples = inner.series.values().map(|(_, points)| points.len() as u64);
        StoreStats {
            head_samples: samples.sum(),
            ..StoreStats::default()
        }
    }
}
