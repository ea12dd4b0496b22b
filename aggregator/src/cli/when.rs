//! Moments and spans as people write them: `2h`, `2h ago`, `now`, `today 09:00`, `yesterday`, a date, a date and
//! time, RFC 3339.

use jiff::{Unit, civil, tz::TimeZone};
use muster_agent::settings;
use muster_proto::time::Timestamp;

/// The moment that `text` means at `now`, for somebody in `zone`.
///
/// # Errors
/// How to write it.
pub fn moment(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    let given = text.trim();
    if given == "now" {
        return Ok(now);
    }
    let span = given.strip_suffix("ago").map_or(given, str::trim_end);
    if let Some(span) = settings::parse_duration(&span.replace(' ', "")) {
        return Ok(now.minus(span));
    }
    if let Ok(at) = given.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_millis(at.as_millisecond()));
    }
    local(given, now, zone).ok_or_else(|| {
        format!(
            "{text:?} is no moment: write 2h, \"today 09:00\", 2026-11-01, \"2026-11-01 06:00\" or 2026-11-01T06:00:00Z"
        )
    })
}

fn local(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let today = jiff::Timestamp::from_millisecond(now.as_millis())
        .ok()?
        .to_zoned(zone.clone())
        .date();
    let (day, time) = match text.split_once([' ', 'T']) {
        Some((day, time)) => (day, Some(time.trim())),
        None if text.contains(':') => ("today", Some(text)),
        None => (text, None),
    };
    let date = match day {
        "today" => today,
        "yesterday" => today.yesterday().ok()?,
        day => day.parse::<civil::Date>().ok()?,
    };
    let time = match time {
        None => civil::Time::midnight(),
        Some(time) => time.parse::<civil::Time>().ok()?,
    };
    let at = date.to_datetime(time).to_zoned(zone.clone()).ok()?;
    Some(Timestamp::from_millis(at.timestamp().as_millisecond()))
}

/// A moment rounded for an axis: seconds, minutes or days, as the range needs.
#[must_use]
pub fn axis(at: Timestamp, range_ms: i64, zone: &TimeZone) -> String {
    let Ok(instant) = jiff::Timestamp::from_millisecond(at.as_millis()) else {
        return String::new();
    };
    let format = match range_ms {
        ..600_000 => "%H:%M:%S",
        600_000..129_600_000 => "%H:%M",
        _ => "%m-%d %H:%M",
    };
    let zoned = instant.to_zoned(zone.clone());
    let rounded = zoned.round(Unit::Second).unwrap_or(zoned);
    rounded.strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now = Timestamp::from_millis(1_767_225_600_000); // 2026-01-01T00:00:00Z
        let zone = TimeZone::UTC;
        for (text, expected) in [
            ("now", "2026-01-01T00:00:00Z"),
            ("2h", "2025-12-31T22:00:00Z"),
            ("15m ago", "2025-12-31T23:45:00Z"),
            ("today 09:00", "2026-01-01T09:00:00Z"),
            ("yesterday", "2025-12-31T00:00:00Z"),
            ("06:30", "2026-01-01T06:30:00Z"),
            ("2025-11-01", "2025-11-01T00:00:00Z"),
            ("2025-11-01 06:00", "2025-11-01T06:00:00Z"),
            ("2025-11-01T06:00:00+02:00", "2025-11-01T04:00:00Z"),
        ] {
            let at = moment(text, now, &zone).map(super::super::units::rfc3339);
            assert_eq!(at.as_deref(), Ok(expected), "{text}");
        }
        for wrong in ["", "soon", "2025-13-01", "25:00", "ago"] {
            assert!(moment(wrong, now, &zone).is_err(), "{wrong}");
        }
    }
}
