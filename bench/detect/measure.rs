//! The measures of a detector on labelled recordings, as the recordings' own scorer defines them.
//!
//! What counts is what a person would receive: an episode of alert rows notifies at its first row and every
//! four hours while it stays on; an event is detected by a notification in its zone. Beside it the areas
//! under the precision-recall curve, row by row, with and without a tolerance in time (Paparrizos et al.,
//! "Volume under the surface", VLDB 2022), and the score of the Numenta benchmark (Lavin and Ahmad, 2015).

use std::ops::Range;

use crate::data;

/// An episode ends after this long without an alert.
const CLEAR_SECONDS: u32 = 900;
/// One that stays on notifies again after this long.
const REPEAT_SECONDS: u32 = 4 * 3600;
/// An event that begins within this long of a right notification belongs to the same incident.
const COVER_SECONDS: u32 = 3600;
/// Beyond so many false notifications a series-day no threshold is of interest.
const MAX_RATE: f64 = 6.0;
const SECONDS_A_DAY: f64 = 86_400.0;

/// The judged rows of a series, with what the detector said of them.
pub struct Judged {
    pub source: String,
    pub step: u32,
    /// First and last row of each event, counted from the first judged row.
    events: Vec<(usize, usize)>,
    /// The same with the tolerance of notifications.
    zones: Vec<(usize, usize)>,
    in_zone: Vec<bool>,
    in_event: Vec<bool>,
    pub score: Vec<f32>,
    pub alert: Vec<bool>,
}

/// What a detector's alerts are worth.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    pub events: usize,
    pub detected: usize,
    /// Notifications in no event's zone.
    pub false_alerts: usize,
    /// Days outside all zones.
    pub days: f64,
    /// Seconds from an event's start to its notification, median of those detected.
    pub delay: f64,
    pub threshold: f32,
}

impl Tally {
    pub fn recall(&self) -> f64 {
        self.detected as f64 / self.events.max(1) as f64
    }

    pub fn precision(&self) -> f64 {
        self.detected as f64 / (self.detected + self.false_alerts).max(1) as f64
    }

    pub fn f1(&self) -> f64 {
        let (precision, recall) = (self.precision(), self.recall());
        2.0 * precision * recall / (precision + recall).max(f64::MIN_POSITIVE)
    }

    /// False notifications a series-day.
    pub fn rate(&self) -> f64 {
        self.false_alerts as f64 / self.days.max(f64::MIN_POSITIVE)
    }
}

/// What one threshold for all could reach.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reach {
    pub a_week: Tally,
    pub a_day: Tally,
    pub best: Tally,
}

impl Judged {
    pub fn new(series: &data::Series, score: Vec<f32>, alert: Vec<bool>) -> Self {
        let rows = score.len();
        let last = rows.saturating_sub(1);
        let events: Vec<(usize, usize)> = series
            .events
            .iter()
            .map(|event| {
                (
                    event.start.saturating_sub(series.from),
                    event.end - series.from,
                )
            })
            .collect();
        let (before, after) = series.tolerance;
        let zones: Vec<(usize, usize)> = events
            .iter()
            .map(|&(start, end)| (start.saturating_sub(before), (end + after).min(last)))
            .collect();
        let mark = |ranges: &[(usize, usize)]| {
            let mut marks = vec![false; rows];
            for &(start, end) in ranges {
                marks[start..=end].fill(true);
            }
            marks
        };
        Self {
            source: series.source.clone(),
            step: series.step,
            in_zone: mark(&zones),
            in_event: mark(&events),
            events,
            zones,
            score,
            alert,
        }
    }

    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Rows at which a person is notified.
    pub fn notifications(&self, on: impl Fn(usize) -> bool) -> Vec<usize> {
        let clear = CLEAR_SECONDS.div_ceil(self.step).max(3) as usize;
        let repeat = (f64::from(REPEAT_SECONDS) / f64::from(self.step)).round() as usize;
        let repeat = repeat.max(4);
        let mut notes = Vec::new();
        let mut last: Option<(usize, usize)> = None;
        for row in (0..self.score.len()).filter(|&row| on(row)) {
            let told = match last {
                Some((seen, told)) if row - seen <= clear && row - told < repeat => told,
                _ => {
                    notes.push(row);
                    row
                }
            };
            last = Some((row, told));
        }
        notes
    }

    /// Adds what these alerts are worth; the delays of detected events in seconds are appended.
    fn add_to(&self, tally: &mut Tally, delays: &mut Vec<f64>, on: impl Fn(usize) -> bool) {
        let notes = self.notifications(&on);
        let right: Vec<usize> = notes
            .iter()
            .copied()
            .filter(|&row| self.in_zone[row])
            .collect();
        tally.false_alerts += notes.len() - right.len();
        tally.events += self.events.len();
        let outside = self.in_zone.iter().filter(|zone| !**zone).count();
        tally.days += outside as f64 * f64::from(self.step) / SECONDS_A_DAY;
        let cover = ((COVER_SECONDS / self.step) as usize).max(1);
        for (&(start, end), &(zone_start, zone_end)) in self.events.iter().zip(&self.zones) {
            let within =
                |range: Range<usize>| right.iter().copied().find(|row| range.contains(row));
            let delay = within(zone_start..zone_end + 1).map(|row| row.saturating_sub(start));
            let delay = delay.or_else(|| {
                within(start.saturating_sub(cover)..zone_start)?;
                Some((start..=end).find(|&row| on(row))? - start)
            });
            if let Some(rows) = delay {
                tally.detected += 1;
                delays.push(rows as f64 * f64::from(self.step));
            }
        }
    }

    /// Average precision over the rows.
    pub fn auc_pr(&self) -> f64 {
        let order = self.by_score();
        let total = self.in_event.iter().filter(|&&event| event).count() as f64;
        let (mut area, mut hits, mut recall) = (0.0, 0.0, 0.0);
        for (place, &row) in order.iter().enumerate() {
            hits += f64::from(u8::from(self.in_event[row]));
            let tied = order
                .get(place + 1)
                .is_some_and(|&next| self.score[next] == self.score[row]);
            if !tied {
                area += (hits / total - recall) * hits / (place + 1) as f64;
                recall = hits / total;
            }
        }
        area
    }

    /// Volume under the precision-recall surface, buffers of 0 to an hour of rows within 8..60.
    pub fn vus_pr(&self) -> f64 {
        const THRESHOLDS: usize = 250;
        let rows = self.score.len();
        let window = (3600.0 / f64::from(self.step)).round().clamp(8.0, 60.0) as usize;
        let order = self.by_score();
        let thresholds: Vec<f32> = (0..THRESHOLDS)
            .map(|k| self.score[order[k * (rows - 1) / (THRESHOLDS - 1)]])
            .collect();
        let above: Vec<usize> = thresholds
            .iter()
            .map(|least| order.partition_point(|&row| self.score[row] >= *least))
            .collect();
        let segments = segments(&self.in_event);
        let total = self.in_event.iter().filter(|&&event| event).count() as f64;
        let mut volume = 0.0;
        for width in 0..=window {
            let label = self.buffered(&segments, width);
            let (mut hits, mut buffer) =
                (Vec::with_capacity(rows + 1), Vec::with_capacity(rows + 1));
            hits.push(0.0);
            buffer.push(0.0);
            let (mut hit, mut soft) = (0.0, 0.0);
            for &row in &order {
                hit += label[row];
                soft += if self.in_event[row] { 0.0 } else { label[row] };
                hits.push(hit);
                buffer.push(soft);
            }
            let mut largest: Vec<f32> = merged(&segments, width / 2, rows)
                .into_iter()
                .map(|range| self.score[range].iter().copied().fold(f32::MIN, f32::max))
                .collect();
            largest.sort_by(f32::total_cmp);
            let mut before = 0.0;
            for (least, &count) in thresholds.iter().zip(&above) {
                let met = largest.len() - largest.partition_point(|one| one < least);
                let met = met as f64 / largest.len() as f64;
                let recall = (hits[count] / (total + buffer[count] / 2.0)).min(1.0) * met;
                volume += (recall - before) * hits[count] / count as f64;
                before = recall;
            }
        }
        volume / (window + 1) as f64
    }

    fn by_score(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.score.len()).collect();
        order.sort_by(|&a, &b| self.score[b].total_cmp(&self.score[a]));
        order
    }

    /// Labels that fade out over `width / 2` rows on both sides of each segment.
    fn buffered(&self, segments: &[(usize, usize)], width: usize) -> Vec<f64> {
        let rows = self.in_event.len();
        let mut label: Vec<f64> = self
            .in_event
            .iter()
            .map(|&event| f64::from(u8::from(event)))
            .collect();
        let soft = |distance: usize| (1.0 - distance as f64 / width as f64).max(0.0).sqrt();
        for &(start, end) in segments {
            for row in end + 1..(end + width / 2 + 1).min(rows) {
                label[row] += soft(row - end);
            }
            for row in start.saturating_sub(width / 2)..start {
                label[row] += soft(start - row);
            }
        }
        label.iter_mut().for_each(|one| *one = one.min(1.0));
        label
    }
}

/// Runs of true: first and last.
fn segments(marks: &[bool]) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = Vec::new();
    for row in (0..marks.len()).filter(|&row| marks[row]) {
        match all.last_mut() {
            Some((_, end)) if *end + 1 == row => *end = row,
            _ => all.push((row, row)),
        }
    }
    all
}

/// Segments widened by `reach` on both sides; those that touch are one.
fn merged(segments: &[(usize, usize)], reach: usize, rows: usize) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = Vec::new();
    let mut last_end: Option<usize> = None;
    for &(start, end) in segments {
        let stop = (end + reach + 1).min(rows);
        match (all.last_mut(), last_end) {
            (Some(range), Some(before)) if before + reach >= start.saturating_sub(reach) => {
                range.end = stop;
            }
            _ => all.push(start.saturating_sub(reach)..stop),
        }
        last_end = Some(end);
    }
    all
}

/// What alerts are worth over several series.
pub fn tally(series: &[&Judged], on: impl Fn(&Judged, usize) -> bool) -> Tally {
    let mut tally = Tally::default();
    let mut delays = Vec::new();
    for one in series {
        one.add_to(&mut tally, &mut delays, |row| on(one, row));
    }
    delays.sort_by(f64::total_cmp);
    tally.delay = match delays.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => delays[n / 2],
        n => f64::midpoint(delays[n / 2 - 1], delays[n / 2]),
    };
    tally
}

/// What the score could do with one threshold for all: the best within each budget, and the best F1.
pub fn reach(series: &[&Judged]) -> Reach {
    let mut reach = Reach::default();
    for threshold in thresholds(series) {
        let mut now = tally(series, |one, row| one.score[row] >= threshold);
        now.threshold = threshold;
        for (budget, best) in [(1.0 / 7.0, &mut reach.a_week), (1.0, &mut reach.a_day)] {
            if now.rate() <= budget && now.recall() > best.recall() {
                *best = now;
            }
        }
        if now.f1() > reach.best.f1() {
            reach.best = now;
        }
        if now.rate() > MAX_RATE {
            break;
        }
    }
    reach
}

/// About 340 thresholds from strict to loose, denser at the strict end.
fn thresholds(series: &[&Judged]) -> Vec<f32> {
    const STEPS: usize = 300;
    let mut all: Vec<f32> = series
        .iter()
        .flat_map(|one| one.score.iter().copied())
        .collect();
    all.sort_by(|a, b| b.total_cmp(a));
    let rows = all.len();
    let (first, last) = (40.0_f64, rows as f64 * 0.35);
    let spaced = (0..STEPS).map(|k| {
        let share = k as f64 / (STEPS - 1) as f64;
        (first * (last / first).powf(share)) as usize
    });
    let mut thresholds: Vec<f32> = (1..40)
        .chain(spaced)
        .filter_map(|k| all.get(k.min(rows.saturating_sub(1))).copied())
        .collect();
    thresholds.dedup();
    thresholds
}

/// Mean of a measure over those series that have events.
pub fn mean(series: &[&Judged], measure: impl Fn(&Judged) -> f64) -> f64 {
    let with: Vec<f64> = series
        .iter()
        .filter(|one| one.has_events())
        .map(|one| measure(one))
        .collect();
    with.iter().sum::<f64>() / with.len().max(1) as f64
}
