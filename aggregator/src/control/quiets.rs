//! Silences and maintenance windows: times in which nobody is told of some incidents.
//!
//! A silence always has an end. A maintenance window is planned, and may recur every week at a local time of day: on
//! the day on which clocks change it begins at that time of the clock, or at the first moment after it that exists.
//! Rows are never deleted while they can be asked about; [`KEPT_FOR`] after its end a row goes with the next write.

use std::time::Duration;

use jiff::{
    civil::{Date, Time},
    tz::TimeZone,
};
use muster_proto::{time::Timestamp, v1};
use rusqlite::{Row, params};

use super::{Control, ControlError, db::audit};

/// How long what is over is kept, for `--all`.
const KEPT_FOR: Duration = Duration::from_secs(400 * 86_400);

/// Longest silence: who wants to hear nothing for longer should change the rule.
pub const MAX_SILENCE: Duration = Duration::from_secs(90 * 86_400);

const DAY_MINUTES: u32 = 24 * 60;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuietKind {
    /// Made while something happens.
    Silence,
    /// Planned.
    Maintenance,
}

impl QuietKind {
    /// `S-3`, `M-2`.
    #[must_use]
    pub fn id(self, number: u64) -> String {
        match self {
            Self::Silence => format!("S-{number}"),
            Self::Maintenance => format!("M-{number}"),
        }
    }

    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Maintenance => "maintenance",
        }
    }

    /// As messages and the store carry it.
    #[must_use]
    pub const fn to_wire(self) -> v1::QuietKind {
        match self {
            Self::Silence => v1::QuietKind::Silence,
            Self::Maintenance => v1::QuietKind::Maintenance,
        }
    }

    /// From a message; `None` where it says none.
    #[must_use]
    pub fn of_wire(kind: v1::QuietKind) -> Option<Self> {
        [Self::Silence, Self::Maintenance]
            .into_iter()
            .find(|one| one.to_wire() == kind)
    }
}

/// A window of every week.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weekly {
    /// Bit 0 is Monday; at least one of the lowest seven.
    pub days: u8,
    /// Minutes after midnight, below 1440.
    pub at_minute: u32,
    /// How long, 1 minute to 7 days.
    pub minutes: u32,
    /// Time zone of `at_minute`: an IANA name or a POSIX rule.
    pub zone: String,
}

/// A time in which nobody is told of some incidents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quiet {
    /// Given by the store.
    pub number: u64,
    /// Which of the two.
    pub kind: QuietKind,
    /// Which hosts.
    pub selector: String,
    /// Only this rule; empty: any.
    pub rule: String,
    /// Only subjects of this pattern; empty: any.
    pub subject: String,
    /// When it begins.
    pub starts: Timestamp,
    /// When it ends; `None` only for what recurs.
    pub ends: Option<Timestamp>,
    /// Recurs between `starts` and `ends`.
    pub weekly: Option<Weekly>,
    /// Why.
    pub text: String,
    /// The operator.
    pub made_by: String,
    /// When it was made.
    pub made: Timestamp,
    /// Ended before its time: by whom and when.
    pub ended: Option<(String, Timestamp)>,
}

/// How something stands that begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Holds now, until then.
    Active(Timestamp),
    /// Holds next from then on.
    Waiting(Timestamp),
    /// Will not hold again.
    Over,
}

/// Why a window cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuietError {
    /// It ends before it begins.
    #[error("it would end before it begins")]
    Backwards,
    /// A silence without an end, or one that would be forgotten.
    #[error("a silence ends within {} days", MAX_SILENCE.as_secs() / 86_400)]
    Endless,
    /// It would be over already.
    #[error("it would be over already")]
    Past,
    /// Days, time of day or length are out of range.
    #[error(
        "a weekly window has at least one day, a time before 24:00, and lasts 1 minute to 7 days"
    )]
    Weekly,
    /// The zone is not known.
    #[error("there is no time zone {0:?}; write a name such as Europe/Berlin, or UTC")]
    Zone(String),
}

impl Quiet {
    /// `S-3`.
    #[must_use]
    pub fn id(&self) -> String {
        self.kind.id(self.number)
    }

    /// Whether it can be made at `now`.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, now: Timestamp) -> Result<(), QuietError> {
        match self.ends {
            Some(ends) if ends <= self.starts => return Err(QuietError::Backwards),
            Some(ends) if ends <= now => return Err(QuietError::Past),
            None if self.weekly.is_none() => return Err(QuietError::Endless),
            _ => {}
        }
        let longest = self.starts.max(now).plus(MAX_SILENCE);
        let silence = self.kind == QuietKind::Silence;
        if silence && (self.weekly.is_some() || self.ends.is_none_or(|ends| ends > longest)) {
            return Err(QuietError::Endless);
        }
        if let Some(weekly) = &self.weekly {
            let lengths = 1..=7 * DAY_MINUTES;
            if weekly.days & 0x7f == 0
                || weekly.days & 0x80 != 0
                || weekly.at_minute >= DAY_MINUTES
                || !lengths.contains(&weekly.minutes)
            {
                return Err(QuietError::Weekly);
            }
            if zone(&weekly.zone).is_none() {
                return Err(QuietError::Zone(weekly.zone.clone()));
            }
        }
        Ok(())
    }

    /// How it stands.
    #[must_use]
    pub fn phase(&self, now: Timestamp) -> Phase {
        if self.ended.is_some() || self.ends.is_some_and(|ends| ends <= now) {
            return Phase::Over;
        }
        let Some(weekly) = &self.weekly else {
            return match self.ends {
                _ if now < self.starts => Phase::Waiting(self.starts),
                Some(ends) => Phase::Active(ends),
                None => Phase::Over,
            };
        };
        let mut next = None;
        // A window may last a week, and the next may be a week away.
        for (starts, ends) in weekly.around(now.max(self.starts)) {
            let starts = starts.max(self.starts);
            let ends = self.ends.map_or(ends, |last| ends.min(last));
            if starts >= ends {
                continue;
            }
            if starts <= now && now < ends {
                return Phase::Active(ends);
            }
            if now < starts && next.is_none_or(|next| starts < next) {
                next = Some(starts);
            }
        }
        next.map_or(Phase::Over, Phase::Waiting)
    }
}

impl Weekly {
    /// The windows that begin from eight days before a moment to eight days after it, in order.
    fn around(&self, at: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        // The zone was looked up when the window was made; one that went away with the system's tables is UTC.
        let zone = zone(&self.zone).unwrap_or(TimeZone::UTC);
        let Ok(instant) = jiff::Timestamp::from_millisecond(at.as_millis()) else {
            return Vec::new();
        };
        let today = instant.to_zoned(zone.clone()).date();
        let length = Duration::from_secs(u64::from(self.minutes) * 60);
        (-8..=8)
            .filter_map(|offset| {
                let day = today.checked_add(jiff::Span::new().days(offset)).ok()?;
                let bit = day.weekday().to_monday_zero_offset();
                (self.days >> bit & 1 == 1).then_some(())?;
                let starts = self.moment(day, &zone)?;
                Some((starts, starts.plus(length)))
            })
            .collect()
    }

    fn moment(&self, day: Date, zone: &TimeZone) -> Option<Timestamp> {
        let hour = i8::try_from(self.at_minute / 60).ok()?;
        let minute = i8::try_from(self.at_minute % 60).ok()?;
        let time = Time::new(hour, minute, 0, 0).ok()?;
        let zoned = day.to_datetime(time).to_zoned(zone.clone()).ok()?;
        Some(Timestamp::from_millis(zoned.timestamp().as_millisecond()))
    }
}

/// A zone of the system's tables, or one written as a POSIX rule (`CET-1CEST,M3.5.0,M10.5.0/3`); empty: UTC.
fn zone(name: &str) -> Option<TimeZone> {
    match name {
        "" | "UTC" => Some(TimeZone::UTC),
        name => TimeZone::get(name).or_else(|_| TimeZone::posix(name)).ok(),
    }
}

const COLUMNS: &str = "number, kind, selector, rule, subject, starts_ms, ends_ms, days, at_minute, minutes, zone, \
                       text, made_by, made_ms, ended_by, ended_ms";

impl Control {
    /// Makes a silence or a window; its number. `quiet.number` and `quiet.ended` are not looked at.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn add_quiet(&self, quiet: Quiet) -> Result<u64, ControlError> {
        let epoch = self.epoch;
        self.write(move |connection| {
            let weekly = quiet.weekly.as_ref();
            connection
                .prepare_cached("DELETE FROM quiets WHERE coalesce(ended_ms, ends_ms) < ?1")?
                .execute([quiet.made.minus(KEPT_FOR).as_millis()])?;
            connection
                .prepare_cached(
                    "INSERT INTO quiets (kind, selector, rule, subject, starts_ms, ends_ms, days, at_minute,
                                         minutes, zone, text, made_by, made_ms, epoch)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
                )?
                .execute(params![
                    quiet.kind.to_wire() as i32,
                    quiet.selector,
                    quiet.rule,
                    quiet.subject,
                    quiet.starts.as_millis(),
                    quiet.ends.map(Timestamp::as_millis),
                    weekly.map(|weekly| weekly.days),
                    weekly.map(|weekly| weekly.at_minute),
                    weekly.map(|weekly| weekly.minutes),
                    weekly.map(|weekly| &weekly.zone),
                    quiet.text,
                    quiet.made_by,
                    quiet.made.as_millis(),
                    epoch
                ])?;
            let number = u64::try_from(connection.last_insert_rowid()).unwrap_or(0);
            let action = format!("add {}", quiet.kind.as_str());
            let what = format!("{} {}", quiet.kind.id(number), quiet.selector);
            audit(
                connection,
                epoch,
                quiet.made,
                [&quiet.made_by, &action, &what, &quiet.text],
            )?;
            Ok(number)
        })
        .await
    }

    /// Ends a silence or a window; whether it was over already, or `None` when there is none of this number and kind.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn end_quiet(
        &self,
        kind: QuietKind,
        number: u64,
        by: &str,
        at: Timestamp,
    ) -> Result<Option<bool>, ControlError> {
        let (epoch, by) = (self.epoch, by.to_owned());
        self.write(move |connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM quiets WHERE number = ?1 AND kind = ?2"
            ))?;
            let wanted = i64::try_from(number).unwrap_or(i64::MAX);
            let mut rows = query.query(params![wanted, kind.to_wire() as i32])?;
            let Some(found) = rows.next()?.map(quiet).transpose()? else {
                return Ok(None);
            };
            if found.phase(at) == Phase::Over {
                return Ok(Some(true));
            }
            connection
                .prepare_cached("UPDATE quiets SET ended_by = ?2, ended_ms = ?3 WHERE number = ?1")?
                .execute(params![wanted, by, at.as_millis()])?;
            let action = format!("end {}", kind.as_str());
            let what = format!("{} {}", found.id(), found.selector);
            audit(connection, epoch, at, [&by, &action, &what, "done"])?;
            Ok(Some(false))
        })
        .await
    }

    /// Silences and windows, the newest first; without `all` only such as hold or will hold.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn quiets(&self, all: bool, now: Timestamp) -> Result<Vec<Quiet>, ControlError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM quiets ORDER BY number DESC"
            ))?;
            let mut rows = query.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let quiet = quiet(row)?;
                if all || quiet.phase(now) != Phase::Over {
                    found.push(quiet);
                }
            }
            Ok(found)
        })
        .await
    }
}

fn quiet(row: &Row<'_>) -> Result<Quiet, ControlError> {
    let wrong = || ControlError::Row("quiets");
    let kind = v1::QuietKind::try_from(row.get::<_, i32>("kind")?).map_err(|_| wrong())?;
    let weekly = match row.get::<_, Option<u8>>("days")? {
        None => None,
        Some(days) => Some(Weekly {
            days,
            at_minute: row.get("at_minute")?,
            minutes: row.get("minutes")?,
            zone: row.get("zone")?,
        }),
    };
    let millis = |name: &str| -> Result<Option<Timestamp>, ControlError> {
        Ok(row.get::<_, Option<i64>>(name)?.map(Timestamp::from_millis))
    };
    let ended = match (row.get("ended_by")?, millis("ended_ms")?) {
        (Some(by), Some(at)) => Some((by, at)),
        _ => None,
    };
    Ok(Quiet {
        number: row.get::<_, u32>("number")?.into(),
        kind: QuietKind::of_wire(kind).ok_or_else(wrong)?,
        selector: row.get("selector")?,
        rule: row.get("rule")?,
        subject: row.get("subject")?,
        starts: Timestamp::from_millis(row.get("starts_ms")?),
        ends: millis("ends_ms")?,
        weekly,
        text: row.get("text")?,
        made_by: row.get("made_by")?,
        made: Timestamp::from_millis(row.get("made_ms")?),
        ended,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-03-25T00:00:00Z, a Wednesday; clocks in Berlin go forward on Sunday the 29th, from 02:00 to 03:00.
    const WEDNESDAY: Timestamp = Timestamp::from_millis(1_774_396_800_000);
    const HOUR: u64 = 3600;

    fn after(hours: u64) -> Timestamp {
        WEDNESDAY.plus(Duration::from_secs(hours * HOUR))
    }

    fn window(weekly: Option<Weekly>, starts: Timestamp, ends: Option<Timestamp>) -> Quiet {
        Quiet {
            number: 1,
            kind: QuietKind::Maintenance,
            selector: "role=web".to_owned(),
            rule: String::new(),
            subject: String::new(),
            starts,
            ends,
            weekly,
            text: "patching".to_owned(),
            made_by: "anna".to_owned(),
            made: WEDNESDAY,
            ended: None,
        }
    }

    fn weekly(days: u8, hour: u32, hours: u32) -> Option<Weekly> {
        Some(Weekly {
            days,
            at_minute: hour * 60,
            minutes: hours * 60,
            zone: "CET-1CEST,M3.5.0,M10.5.0/3".to_owned(),
        })
    }

    #[test]
    fn a_window_holds_from_its_beginning_to_its_end() {
        let once = window(None, after(2), Some(after(4)));
        assert_eq!(once.phase(after(0)), Phase::Waiting(after(2)));
        assert_eq!(once.phase(after(2)), Phase::Active(after(4)));
        assert_eq!(once.phase(after(4)), Phase::Over);
        let mut ended = once;
        ended.ended = Some(("anna".to_owned(), after(3)));
        assert_eq!(ended.phase(after(3)), Phase::Over);
    }

    #[test]
    fn a_weekly_window_keeps_to_the_clock_on_the_wall() {
        // Saturdays and Sundays at 02:00 for two hours; 02:00 in Berlin is 01:00Z, and from the 29th on 00:00Z.
        let window = window(weekly(0b110_0000, 2, 2), after(0), None);
        let saturday = after(3 * 24 + 1);
        assert_eq!(window.phase(after(1)), Phase::Waiting(saturday));
        assert_eq!(window.phase(saturday), Phase::Active(after(3 * 24 + 3)));
        // On Sunday there is no 02:00; the window begins at 03:00, which is 01:00Z.
        let sunday = after(4 * 24 + 1);
        assert_eq!(window.phase(after(3 * 24 + 3)), Phase::Waiting(sunday));
        assert_eq!(
            window.phase(after(4 * 24 + 2)),
            Phase::Active(after(4 * 24 + 3))
        );
        assert_eq!(
            window.phase(after(4 * 24 + 3)),
            Phase::Waiting(after(10 * 24)),
            "summer time: an hour earlier by UTC"
        );
    }

    #[test]
    fn a_weekly_window_may_be_long_and_may_end() {
        let long = window(weekly(1, 0, 7 * 24), after(0), Some(after(24 * 30)));
        assert!(matches!(long.phase(after(24 * 8)), Phase::Active(_)));
        assert_eq!(long.phase(after(24 * 30)), Phase::Over);
        let last = window(weekly(1, 0, 1), after(0), Some(after(24 * 2)));
        assert_eq!(
            last.phase(after(1)),
            Phase::Over,
            "no Monday before its end"
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let now = after(1);
        for (quiet, expected) in [
            (window(None, after(2), Some(after(4))), Ok(())),
            (window(weekly(1, 0, 1), after(0), None), Ok(())),
            (
                window(None, after(2), Some(after(2))),
                Err(QuietError::Backwards),
            ),
            (window(None, after(0), Some(now)), Err(QuietError::Past)),
            (window(None, after(0), None), Err(QuietError::Endless)),
            (
                window(weekly(0, 0, 1), after(0), None),
                Err(QuietError::Weekly),
            ),
            (
                window(weekly(128, 0, 1), after(0), None),
                Err(QuietError::Weekly),
            ),
            (
                window(weekly(1, 24, 1), after(0), None),
                Err(QuietError::Weekly),
            ),
            (
                window(weekly(1, 0, 0), after(0), None),
                Err(QuietError::Weekly),
            ),
            (
                window(weekly(1, 0, 169), after(0), None),
                Err(QuietError::Weekly),
            ),
        ] {
            assert_eq!(quiet.check(now), expected, "{quiet:?}");
        }
        let mut silence = window(None, after(0), Some(after(24 * 91)));
        silence.kind = QuietKind::Silence;
        assert_eq!(silence.check(now), Err(QuietError::Endless));
        silence.ends = Some(after(24 * 90));
        assert_eq!(silence.check(now), Ok(()));
        let mut nowhere = window(weekly(1, 0, 1), after(0), None);
        if let Some(weekly) = &mut nowhere.weekly {
            weekly.zone = "Mars/Phobos".to_owned();
        }
        assert_eq!(
            nowhere.check(now),
            Err(QuietError::Zone("Mars/Phobos".to_owned()))
        );
    }

    #[tokio::test]
    async fn they_are_kept_listed_and_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = Control::open(folder.path()).expect("a new store");
        let once = window(None, after(0), Some(after(4)));
        let recurring = window(weekly(1, 0, 1), after(0), None);
        assert_eq!(control.add_quiet(once.clone()).await.expect("written"), 1);
        assert_eq!(
            control.add_quiet(recurring.clone()).await.expect("written"),
            2
        );
        let listed = control.quiets(false, after(5)).await.expect("readable");
        assert_eq!(
            listed,
            [Quiet {
                number: 2,
                ..recurring
            }]
        );
        let listed = control.quiets(true, after(5)).await.expect("readable");
        assert_eq!(listed[1], once);
        let end = async |kind, number, at| {
            let ended = control.end_quiet(kind, number, "jo", at).await;
            ended.expect("written")
        };
        assert_eq!(end(QuietKind::Silence, 1, after(1)).await, None);
        assert_eq!(end(QuietKind::Maintenance, 3, after(1)).await, None);
        assert_eq!(end(QuietKind::Maintenance, 1, after(5)).await, Some(true));
        assert_eq!(end(QuietKind::Maintenance, 2, after(5)).await, Some(false));
        assert_eq!(end(QuietKind::Maintenance, 2, after(5)).await, Some(true));
        assert!(
            control
                .quiets(false, after(5))
                .await
                .expect("readable")
                .is_empty()
        );
        let log = control.audit_log(9).await.expect("readable");
        let actions: Vec<_> = log
            .iter()
            .map(|(_, [by, what, ..])| format!("{by} {what}"))
            .collect();
        assert_eq!(
            actions,
            [
                "jo end maintenance",
                "anna add maintenance",
                "anna add maintenance"
            ]
        );
    }
}
