//! Numbers and times as a person reads them.
//!
//! Absent is an en dash, never a zero. Times are told relative to the aggregator's clock, so that an operator
//! whose own clock is off still reads true ages.

use std::time::Duration;

use jiff::tz::TimeZone;
use muster_proto::time::Timestamp;

use super::text::{Text, Tone};
pub use crate::rfc3339;

/// From what standpoint times are told.
#[derive(Debug, Clone)]
pub struct View {
    /// Now by the aggregator's clock.
    pub now: Timestamp,
    /// Zone in which absolute times are written.
    pub zone: TimeZone,
    /// Columns of the terminal; `None` when nothing limits a line.
    pub width: Option<usize>,
}

impl View {
    /// `4m ago` within the hour, then the time of day, then the date.
    #[must_use]
    pub fn when(&self, at: Timestamp) -> String {
        let age = self.now.since(at);
        if age < Duration::from_secs(3600) {
            return format!("{} ago", short(age));
        }
        let format = if age < Duration::from_secs(20 * 3600) {
            "%H:%M"
        } else {
            "%Y-%m-%d %H:%M"
        };
        self.absolute(at, format)
    }

    /// `14:02 (11m)`: a time of day, or a date when it is long ago, and how long ago.
    #[must_use]
    pub fn since(&self, at: Timestamp) -> String {
        let age = self.now.since(at);
        let format = if age < Duration::from_secs(20 * 3600) {
            "%H:%M"
        } else {
            "%Y-%m-%d %H:%M"
        };
        format!("{} ({})", self.absolute(at, format), short(age))
    }

    /// A time of day with seconds, with the date when it is long ago.
    #[must_use]
    pub fn exact(&self, at: Timestamp) -> String {
        let format = if self.now.since(at) < Duration::from_secs(20 * 3600) {
            "%H:%M:%S"
        } else {
            "%Y-%m-%d %H:%M:%S"
        };
        self.absolute(at, format)
    }

    /// `15:20` within the next day, else with the date.
    #[must_use]
    pub fn absolute_short(&self, at: Timestamp) -> String {
        let away = at.since(self.now).max(self.now.since(at));
        let format = if away < Duration::from_secs(20 * 3600) {
            "%H:%M"
        } else {
            "%Y-%m-%d %H:%M"
        };
        self.absolute(at, format)
    }

    fn absolute(&self, at: Timestamp, format: &str) -> String {
        let Ok(instant) = jiff::Timestamp::from_millisecond(at.as_millis()) else {
            return "–".to_owned();
        };
        let text = instant
            .to_zoned(self.zone.clone())
            .strftime(format)
            .to_string();
        if self.zone == TimeZone::UTC {
            return format!("{text}Z");
        }
        text
    }

    /// Age of a moment, `1s ago`.
    #[must_use]
    pub fn ago(&self, at: Timestamp) -> String {
        format!("{} ago", short(self.now.since(at)))
    }
}

/// A duration in its largest unit: `0.8s`, `12s`, `11m`, `3h`, `41d`.
#[must_use]
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.subsec_millis() >= 100 => format!("0.{}s", duration.subsec_millis() / 100),
        0 => "0s".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A ratio as whole percent, with the tone of its height.
#[must_use]
pub fn percent(ratio: Option<f64>) -> Text {
    let Some(ratio) = ratio.filter(|ratio| ratio.is_finite()) else {
        return Text::unknown();
    };
    let tone = match ratio {
        0.97.. => Tone::Bad,
        0.90.. => Tone::Warn,
        _ => Tone::Plain,
    };
    Text::toned(tone, percent_plain(ratio))
}

/// A ratio as whole percent.
#[must_use]
pub fn percent_plain(ratio: f64) -> String {
    format!("{:.0}%", ratio * 100.0)
}

/// A number with `digits` decimals.
#[must_use]
pub fn number(value: Option<f64>, digits: usize) -> Text {
    value
        .filter(|value| value.is_finite())
        .map_or_else(Text::unknown, |value| {
            Text::plain(format!("{value:.digits$}"))
        })
}

/// Bytes in powers of 1024: `31 GiB`.
#[must_use]
pub fn bytes(value: f64) -> String {
    scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// Bytes per second as the bits per second that links are sold by: `610 Mb/s`.
#[must_use]
pub fn bits_per_second(bytes_per_second: f64) -> String {
    scaled(
        bytes_per_second * 8.0,
        1000.0,
        &["b/s", "kb/s", "Mb/s", "Gb/s", "Tb/s"],
    )
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let (mut value, mut unit) = (value, 0);
    // 999.5 would be written as "1000".
    while value.abs() >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = usize::from(value.abs() < 9.95 && unit > 0);
    format!("{value:.digits$} {}", units[unit])
}

/// The last values as ten blocks of mean height; a gap where nothing is known.
///
/// `top` is the height of a full block; without it the largest value is.
#[must_use]
pub fn sparkline(values: &[f32], top: Option<f64>) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const WIDTH: usize = 10;
    if values.is_empty() {
        return String::new();
    }
    let known = values.iter().filter(|value| value.is_finite());
    let largest = known.fold(0.0, |largest: f64, &value| largest.max(f64::from(value)));
    let top = top.unwrap_or(largest).max(f64::MIN_POSITIVE);
    let group = values.len().div_ceil(WIDTH);
    values
        .chunks(group)
        .map(|chunk| {
            let known: Vec<f64> = chunk
                .iter()
                .filter(|value| value.is_finite())
                .map(|&value| f64::from(value))
                .collect();
            if known.is_empty() {
                return ' ';
            }
            #[expect(clippy::cast_precision_loss, reason = "at most 30 values")]
            let mean = known.iter().sum::<f64>() / known.len() as f64;
            // The first block whose upper edge is not below the mean.
            let eighths = (mean / top * 8.0).clamp(0.0, 8.0);
            let edges = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
            BLOCKS[edges.iter().take_while(|&&edge| eighths > edge).count()]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &Text) -> String {
        let mut out = String::new();
        text.write_to(&mut out);
        anstream::adapter::strip_str(&out).to_string()
    }

    #[test]
    fn durations_have_one_unit() {
        let cases = [
            (0, "0s"),
            (840, "0.8s"),
            (59_999, "59s"),
            (60_000, "1m"),
            (3_600_000, "1h"),
            (47 * 3_600_000, "47h"),
            (41 * 86_400_000, "41d"),
        ];
        for (millis, expected) in cases {
            assert_eq!(short(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn numbers_are_rounded_and_absence_is_told() {
        assert_eq!(plain(&percent(Some(0.967))), "97%");
        assert_eq!(plain(&percent(Some(0.0))), "0%");
        assert_eq!(plain(&percent(None)), "–");
        assert_eq!(plain(&percent(Some(f64::NAN))), "–");
        assert_eq!(plain(&number(Some(14.23), 1)), "14.2");
        assert_eq!(bytes(31.4 * 1024.0 * 1024.0 * 1024.0), "31 GiB");
        assert_eq!(bytes(1023.9), "1.0 KiB");
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bits_per_second(76.3e6), "610 Mb/s");
        assert_eq!(bits_per_second(124.99e6), "1.0 Gb/s");
    }

    #[test]
    fn times_are_relative_then_absolute() {
        let view = View {
            now: Timestamp::from_millis(1_767_225_600_000),
            zone: TimeZone::UTC,
            width: None,
        };
        let before = |minutes: u64| view.now.minus(Duration::from_secs(minutes * 60));
        assert_eq!(view.when(before(4)), "4m ago");
        assert_eq!(view.when(before(120)), "22:00Z");
        assert_eq!(view.when(before(3 * 1440)), "2025-12-29 00:00Z");
        assert_eq!(view.since(before(11)), "23:49Z (11m)");
        assert_eq!(rfc3339(view.now), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn sparklines_show_gaps() {
        let values: Vec<f32> = (0u8..10).map(|n| f32::from(n) / 9.0).collect();
        assert_eq!(sparkline(&values, Some(1.0)), "▁▁▂▃▄▅▆▇██");
        assert_eq!(sparkline(&[f32::NAN, 0.0, 1.0], None), " ▁█");
        assert_eq!(sparkline(&[], None), "");
        assert_eq!(sparkline(&[0.0; 60], None), "▁▁▁▁▁▁▁▁▁▁");
    }
}
