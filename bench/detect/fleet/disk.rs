//! When disks will be full: the protocol of design/detection.md.
//!
//! Of each shape 30 traces of 6 days at 1 min. Four shapes fill up: in a line, in office hours, in saw-teeth
//! that rise, and all at once (a runaway, full in 2 to 12 h). Three do not: with large temporary files, flat, and
//! flat saw-teeth. Of those that fill up: the error of the forecast when 24 h are left, whether an alarm came an
//! hour before the end, and when it came. Of those that do not: false alarms a disk and week.

use std::ops::Range;

use fastrand::Rng;
use muster_aggregator::detect::forecast::Level;
use muster_proto::time::Timestamp;

const DAYS: usize = 6;
const MINUTES: usize = DAYS * 24 * 60;
const TRACES: u64 = 30;
/// Hours to full at which someone is called.
const ALARM_HOURS: f64 = 24.0;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Linear,
    OfficeHours,
    SawTooth,
    Runaway,
    TemporaryFiles,
    Flat,
    FlatSawTooth,
}

const SHAPES: [Shape; 7] = [
    Shape::Linear,
    Shape::OfficeHours,
    Shape::SawTooth,
    Shape::Runaway,
    Shape::TemporaryFiles,
    Shape::Flat,
    Shape::FlatSawTooth,
];

impl Shape {
    fn fills(self) -> bool {
        matches!(
            self,
            Self::Linear | Self::OfficeHours | Self::SawTooth | Self::Runaway
        )
    }
}

/// A level for each minute, and the minute at which it is full.
struct Trace {
    levels: Vec<f64>,
    full: Option<usize>,
}

fn trace(shape: Shape, seed: u64) -> Trace {
    let mut random = Rng::with_seed(seed * 100 + shape as u64);
    let start = 0.3 + 0.4 * random.f64();
    // Full between the fourth and the sixth day; a tooth of a saw takes up to a day longer.
    let full_at = (3.4 + 1.6 * random.f64()) * 1440.0;
    let rate = (1.0 - start) / full_at;
    let tooth = 0.03 + 0.09 * random.f64();
    let period = (4.0 + 20.0 * random.f64()) * 60.0;
    let begin = (3.0 + 2.0 * random.f64()) * 1440.0;
    let takes = (2.0 + 10.0 * random.f64()) * 60.0;
    let mut files = Files::default();
    let mut levels = Vec::with_capacity(MINUTES);
    for minute in 0..MINUTES {
        let at = minute as f64;
        let clean = match shape {
            Shape::Linear => start + rate * at,
            Shape::OfficeHours => {
                // Nine to five carries nine tenths of what a day adds.
                let (day, hour) = ((at / 1440.0).floor(), at % 1440.0 / 60.0);
                let of_day = 0.9 * ((hour - 9.0) / 8.0).clamp(0.0, 1.0) + 0.1 * hour / 24.0;
                start + rate * 1440.0 * (day + of_day)
            }
            Shape::SawTooth => start - tooth + rate * at + tooth * (at % period) / period,
            Shape::Runaway => start + (1.0 - start) * ((at - begin) / takes).max(0.0),
            Shape::TemporaryFiles => start * 0.7 + files.size(&mut random),
            Shape::Flat => start,
            Shape::FlatSawTooth => start - tooth + 2.0 * tooth * (at % period) / period,
        };
        let noise = 0.001 * (random.f64() - 0.5);
        levels.push((clean + noise).clamp(0.0, 1.0));
    }
    let full = levels.iter().position(|level| *level >= 0.9995);
    Trace {
        levels,
        full: full.filter(|_| shape.fills()),
    }
}

/// Large files that are written over minutes to hours, stay for a while, and go: about three a day.
#[derive(Default)]
struct Files {
    size: f64,
    target: f64,
    rate: f64,
    stays: f64,
}

impl Files {
    fn size(&mut self, random: &mut Rng) -> f64 {
        if self.target == 0.0 && random.f64() < 3.0 / 1440.0 {
            self.target = 0.05 + 0.20 * random.f64();
            self.rate = self.target / (5.0 + 85.0 * random.f64());
            self.stays = 10.0 + 170.0 * random.f64();
        }
        if self.size < self.target {
            self.size = (self.size + self.rate).min(self.target);
        } else if self.target > 0.0 {
            self.stays -= 1.0;
            if self.stays <= 0.0 {
                *self = Self::default();
            }
        }
        self.size
    }
}

/// What came of one trace.
#[derive(Default)]
struct Outcome {
    /// Relative error of the forecast when 24 h were left.
    error: Option<f64>,
    /// Hours between the alarm that lasted and the end.
    lead: Option<f64>,
    /// Alarms that began.
    alarms: u32,
}

fn watch(trace: &Trace) -> Outcome {
    let mut level = Level::default();
    let mut outcome = Outcome::default();
    let (mut alarmed, mut since) = (false, None);
    for (minute, value) in trace.levels.iter().enumerate() {
        if trace.full == Some(minute) {
            break;
        }
        let at = i64::try_from(minute).unwrap_or(0) * 60_000;
        // Some Monday, at midnight.
        level.step(Timestamp::from_millis(1_704_067_200_000 + at), *value);
        let alarm = level.alarm(ALARM_HOURS).is_some();
        if alarm && !alarmed {
            outcome.alarms += 1;
            since = Some(minute);
        }
        alarmed = alarm;
        if trace.full == Some(minute + 1440) {
            let hours = level.forecast().map(|forecast| forecast.hours);
            outcome.error = Some(hours.map_or(5.0, |hours| ((hours - 24.0).abs() / 24.0).min(5.0)));
        }
    }
    if let (Some(full), Some(since)) = (trace.full, since.filter(|_| alarmed)) {
        outcome.lead = Some((full - since) as f64 / 60.0);
    }
    outcome
}

pub(crate) fn run() {
    println!("The traces that the constants were chosen on:");
    table(0..TRACES);
    println!("\nOthers:");
    table(1000..1000 + 4 * TRACES);
}

fn table(seeds: Range<u64>) {
    let traces = seeds.end - seeds.start;
    println!("{traces} traces of each shape, {DAYS} days at 1 min");
    println!(
        "{:<16} {:>22} {:>26} {:>18}",
        "shape", "error at 24 h p50/p90", "lead hours min/p50, < 1 h", "false a disk-week"
    );
    let (mut errors, mut leads, mut late, mut alarms) = (Vec::new(), Vec::new(), 0, 0);
    let mut quiet = 0.0;
    for shape in SHAPES {
        let outcomes: Vec<Outcome> = seeds
            .clone()
            .map(|seed| watch(&trace(shape, seed)))
            .collect();
        if !shape.fills() {
            let false_alarms: u32 = outcomes.iter().map(|outcome| outcome.alarms).sum();
            let weeks = traces as f64 * DAYS as f64 / 7.0;
            println!(
                "{:<16} {:>68.3}",
                format!("{shape:?}"),
                f64::from(false_alarms) / weeks
            );
            alarms += false_alarms;
            quiet += weeks;
            continue;
        }
        let mut own: Vec<f64> = outcomes
            .iter()
            .filter_map(|outcome| outcome.error)
            .collect();
        let mut lead: Vec<f64> = outcomes.iter().map(|o| o.lead.unwrap_or(0.0)).collect();
        let missed = lead.iter().filter(|lead| **lead < 1.0).count();
        println!(
            "{:<16} {:>22} {:>26}",
            format!("{shape:?}"),
            // A runaway is not there yet a day before.
            if shape == Shape::Runaway {
                "-".to_owned()
            } else {
                format!("{:.2} / {:.2}", rank(&mut own, 50), rank(&mut own, 90))
            },
            format!(
                "{:.1} / {:.1}, {missed}",
                rank(&mut lead, 0),
                rank(&mut lead, 50)
            ),
        );
        late += missed;
        leads.extend(lead);
        if shape != Shape::Runaway {
            errors.extend(own);
        }
    }
    println!(
        "error at 24 h: median {:.2}, p90 {:.2}; without an hour's lead: {late} of {}; false: {:.3} a quiet disk-week",
        rank(&mut errors, 50),
        rank(&mut errors, 90),
        leads.len(),
        f64::from(alarms) / quiet
    );
    let bytes = postcard::to_stdvec(&{
        let mut level = Level::default();
        for (minute, value) in trace(Shape::Linear, 1).levels.iter().enumerate() {
            let minute = i64::try_from(minute).unwrap_or(0);
            level.step(Timestamp::from_millis(minute * 60_000), *value);
        }
        level
    });
    println!(
        "state: {} bytes in memory, {} in a checkpoint",
        size_of::<Level>(),
        bytes.map_or(0, |bytes| bytes.len())
    );
}

/// The value that so many percent of them do not exceed.
pub(crate) fn rank(values: &mut [f64], percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = (values.len().saturating_sub(1) * percent + 50) / 100;
    values.get(at).copied().unwrap_or(f64::NAN)
}
