//! Moments to come, as an operator types them: `2h`, `15:20`, `2026-11-22 09:00`, RFC 3339.

use std::time::Duration;

use jiff::{civil::DateTime, tz::TimeZone};
use muster_agent::settings::parse_duration;
use muster_proto::time::Timestamp;

use super::units::View;

/// What a moment may look like, for messages.
pub const FORMS: &str = "2h, 15:20, \"2026-11-22 09:00\" or 2026-11-22T09:00:00Z";

/// Reads a moment after `view.now`. A time of day is the next one in the zone of the view.
///
/// # Errors
/// What was expected.
pub fn future(text: &str, view: &View) -> Result<Timestamp, String> {
    let given = text.trim();
    if let Some(duration) = parse_duration(given) {
        return Ok(view.now.plus(duration));
    }
    let wrong = || format!("{text:?} is no time: write {FORMS}");
    if let Ok(instant) = given.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_millis(instant.as_millisecond()));
    }
    if let Ok(local) = DateTime::strptime("%Y-%m-%d %H:%M", given) {
        return zoned(local, &view.zone).ok_or_else(wrong);
    }
    let time = minute_of_day(given).ok_or_else(wrong)?;
    let today = jiff::Timestamp::from_millisecond(view.now.as_millis())
        .map_err(|_| wrong())?
        .to_zoned(view.zone.clone())
        .date();
    let hour = i8::try_from(time / 60).map_err(|_| wrong())?;
    let minute = i8::try_from(time % 60).map_err(|_| wrong())?;
    (0..=1)
        .filter_map(|days| {
            let day = today.checked_add(jiff::Span::new().days(days)).ok()?;
            zoned(day.at(hour, minute, 0, 0), &view.zone)
        })
        .find(|at| *at > view.now)
        .ok_or_else(wrong)
}

/// Minutes after midnight of `HH:MM`.
#[must_use]
pub fn minute_of_day(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |text: &str| text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(hour) || !digits(minute) || minute.len() != 2 {
        return None;
    }
    let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
    (hour < 24 && minute < 60).then_some(hour * 60 + minute)
}

/// A span of time such as `2h` or `1d12h`.
///
/// # Errors
/// What was expected.
pub fn span(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|span| !span.is_zero())
        .ok_or_else(|| format!("{text:?} is no duration: write 30m, 2h, 1d or 1d12h"))
}

fn zoned(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let at = local.to_zoned(zone.clone()).ok()?.timestamp();
    Some(Timestamp::from_millis(at.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_the_zone_of_the_reader() {
        // 2026-11-21T14:13:00Z, 15:13 in the zone.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a rule");
        let view = View {
            now: Timestamp::from_millis(1_795_270_380_000),
            zone,
            width: None,
        };
        for (text, expected) in [
            ("2h", "2026-11-21T16:13:00Z"),
            ("15:20", "2026-11-21T14:20:00Z"),
            ("9:05", "2026-11-22T08:05:00Z"),
            ("2026-12-01 09:00", "2026-12-01T08:00:00Z"),
            ("2026-12-01T09:00:00Z", "2026-12-01T09:00:00Z"),
        ] {
            let read = future(text, &view).map(|at| at.to_string());
            assert_eq!(read.as_deref(), Ok(expected), "{text}");
        }
        for wrong in ["", "2", "25:00", "9:5", "tomorrow", "2h ago", "12:60"] {
            assert!(future(wrong, &view).is_err(), "{wrong}");
        }
        assert!(span("0s").is_err());
        assert_eq!(span("1d12h"), Ok(Duration::from_secs(36 * 3600)));
    }
}
