//! The figures behind a verdict, and the words in which people read them.
//!
//! A verdict is given for every unit and filesystem at every tick, and told once in a while; so the
//! figures travel as they are and become text only when something opens or clears.

use std::fmt;

use muster_proto::time::Timestamp;

use super::{forecast::Forecast, rules::Definition};
use crate::fleet::{Silence, UnitState, silence::Past};

/// Why a detector said what it said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reason<'a> {
    /// Space of a filesystem.
    Space {
        /// Used / (used + available), 0 to 1.
        used_ratio: f64,
        /// Bytes left to ordinary users.
        available_bytes: f64,
    },
    /// Inodes of a filesystem.
    Inodes {
        /// Where it is mounted.
        mountpoint: &'a str,
        /// Share in use, 0 to 1.
        used_ratio: f64,
    },
    /// A level that grows and will be full.
    FullIn {
        /// When.
        forecast: Forecast,
        /// Share in use now.
        used_ratio: f64,
    },
    /// Memory that is used more every day.
    Leak {
        /// When all of it will be used.
        forecast: Forecast,
        /// Share in use now.
        used_ratio: f64,
    },
    /// Memory that does not.
    NoLeak {
        /// Share in use now.
        used_ratio: f64,
    },
    /// A number that a rule of the pack looks at.
    Number {
        /// The rule.
        definition: &'static Definition,
        /// The number.
        value: f64,
        /// Above or below which it opens here, and where it clears.
        bounds: (Option<f64>, Option<f64>, f64),
        /// What more is said of the subject.
        detail: Option<&'a str>,
    },
    /// A level that does not fill up soon.
    NotFullSoon {
        /// When it would be full, if it grows at all.
        forecast: Option<Forecast>,
        /// Share in use now.
        used_ratio: f64,
    },
    /// State of a unit.
    Unit {
        /// As the service manager reports it.
        state: UnitState,
        /// Automatic restarts so far.
        restarts: u64,
    },
    /// Nothing is heard from the host, and it did not say goodbye.
    Silence {
        /// The host's own time of its last sample.
        last_tick: Option<Timestamp>,
        /// Why, as far as what was seen tells.
        cause: Silence,
        /// What was seen.
        account: &'a str,
    },
    /// The host is heard.
    Heard {
        /// Its last silence.
        past: Option<Past>,
        /// What its return showed of it.
        account: &'a str,
    },
    /// The host score.
    Score(f64),
    /// The subject is no longer there.
    Gone,
    /// The rule is switched off for this host.
    Off,
    /// So many subjects beyond those that are followed one by one.
    More {
        /// How many.
        count: u32,
        /// How many are followed one by one.
        followed: usize,
    },
}

impl Reason<'_> {
    /// One line for people that says what is wrong with `subject`.
    #[must_use]
    pub fn summary(&self, subject: &str) -> String {
        match self {
            Self::Space {
                used_ratio,
                available_bytes,
            } => format!(
                "{subject} is {} full, {} left",
                Percent(*used_ratio),
                Bytes(*available_bytes)
            ),
            Self::Inodes {
                mountpoint,
                used_ratio,
            } => {
                format!(
                    "{mountpoint} has {} of its inodes in use",
                    Percent(*used_ratio)
                )
            }
            Self::FullIn {
                forecast,
                used_ratio,
            } => format!(
                "{subject} full in {}, {} used now",
                Hours(*forecast),
                Percent(*used_ratio)
            ),
            Self::Leak { forecast, .. } => {
                format!("memory leaks: all used in {}", Hours(*forecast))
            }
            Self::NoLeak { .. } => "memory does not leak".to_owned(),
            Self::Number {
                definition,
                value,
                detail,
                ..
            } => definition.sentence(subject, *value, *detail),
            Self::NotFullSoon { .. } => format!("{subject} does not fill up soon"),
            Self::Unit { state, .. } => format!("{subject} is {}", state.as_str()),
            Self::Silence {
                cause: Silence::Overdue,
                account,
                ..
            } => (*account).to_owned(),
            Self::Silence { cause, .. } => {
                format!("silent: {}", Silence::words(cause.to_wire()))
            }
            Self::Heard { .. } => "heard again".to_owned(),
            Self::Score(score) => format!("unusual: score {score:.1}"),
            Self::Gone => format!("{subject} is gone"),
            Self::Off => format!("{subject} is not judged"),
            Self::More { count, followed } => {
                format!("{count} {subject}, beyond the {followed} that have incidents of their own")
            }
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Space {
                used_ratio,
                available_bytes,
            } => {
                write!(
                    f,
                    "used {}, available {}",
                    Percent(*used_ratio),
                    Bytes(*available_bytes)
                )
            }
            Self::Inodes { used_ratio, .. } => {
                write!(f, "inodes used {}", Percent(*used_ratio))
            }
            Self::FullIn {
                forecast,
                used_ratio,
            } => write!(
                f,
                "used {}, full in {} as it grows now",
                Percent(*used_ratio),
                Hours(*forecast)
            ),
            Self::Leak {
                forecast,
                used_ratio,
            } => write!(
                f,
                "used {}; the least of each six hours rises from day to day, all used in {}",
                Percent(*used_ratio),
                Hours(*forecast)
            ),
            Self::Number {
                definition,
                value,
                bounds: (above, below, clear),
                detail,
            } => {
                f.write_str(&definition.unit.show(*value))?;
                if let Some(detail) = detail {
                    write!(f, ", {detail}")?;
                }
                let condition = definition.condition_of(*above, *below, *clear);
                write!(f, " (opens {condition})")
            }
            Self::NoLeak { used_ratio } => write!(
                f,
                "used {}, not rising from day to day",
                Percent(*used_ratio)
            ),
            Self::NotFullSoon {
                forecast,
                used_ratio,
            } => {
                write!(f, "used {}", Percent(*used_ratio))?;
                match forecast {
                    Some(forecast) => write!(f, ", full in {}", Hours(*forecast)),
                    None => f.write_str(", not growing"),
                }
            }
            Self::Unit { state, restarts } => {
                write!(f, "state {}, automatic restarts {restarts}", state.as_str())
            }
            Self::Silence {
                last_tick, account, ..
            } => {
                if !account.is_empty() {
                    write!(f, "{account}; ")?;
                }
                match last_tick.map(jiff_time) {
                    Some(Some(time)) => write!(f, "last sample {time} by the host's clock"),
                    Some(None) => f.write_str("last sample at a time that is no date"),
                    None => f.write_str("no sample since this state began"),
                }
            }
            Self::Heard { past: None, .. } => f.write_str("heard again"),
            Self::Heard {
                past: Some(past),
                account,
            } => {
                let seconds = past.until.since(past.since).as_secs();
                let cause = Silence::words(past.cause.to_wire());
                write!(f, "heard again after {seconds} s; {cause}: {account}")
            }
            Self::Score(score) => write!(f, "score {score:.2}"),
            Self::Gone => f.write_str("no longer reported by the host"),
            Self::Off => f.write_str("the rule is switched off for this host"),
            Self::More { count, followed } => {
                write!(
                    f,
                    "{count} beyond the {followed} that are followed one by one"
                )
            }
        }
    }
}

fn jiff_time(at: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(at.as_millis()).ok()
}

/// `9 h (7..12 h)`, `40 min (30..55 min)`, `6 d (5..9 d)`.
pub struct Hours(pub Forecast);

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Forecast { hours, low, high } = self.0;
        let (unit, of_hour) = match hours {
            hours if hours < 2.0 => ("min", 60.0),
            hours if hours < 48.0 => ("h", 1.0),
            _ => ("d", 1.0 / 24.0),
        };
        let whole = |hours: f64| (hours * of_hour).round();
        write!(f, "{} {unit} ({}..", whole(hours), whole(low))?;
        if high.is_finite() {
            write!(f, "{} {unit})", whole(high))
        } else {
            f.write_str("never)")
        }
    }
}

struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Down, not to the nearest: 99.96 % is not full yet.
        write!(f, "{:.1} %", (self.0 * 1000.0).floor() / 10.0)
    }
}

struct Bytes(f64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0.max(0.0);
        let mut unit = UNITS[0];
        for larger in &UNITS[1..] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = larger;
        }
        if unit == "B" {
            write!(f, "{value:.0} {unit}")
        } else {
            write!(f, "{value:.1} {unit}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_a_person_would_write_it() {
        let space = |used_ratio, available_bytes| Reason::Space {
            used_ratio,
            available_bytes,
        };
        let unit = Reason::Unit {
            state: UnitState::Failed,
            restarts: 5,
        };
        let last_tick = Some(Timestamp::from_millis(1_700_000_000_000));
        for (reason, subject, summary, evidence) in [
            (
                space(0.9345, 4_400_000_000.0),
                "/var",
                "/var is 93.4 % full, 4.1 GiB left",
                "used 93.4 %, available 4.1 GiB",
            ),
            (
                space(0.9999, 12.0),
                "/",
                "/ is 99.9 % full, 12 B left",
                "used 99.9 %, available 12 B",
            ),
            (
                Reason::Inodes {
                    mountpoint: "/srv",
                    used_ratio: 1.0,
                },
                "/srv inodes",
                "/srv has 100.0 % of its inodes in use",
                "inodes used 100.0 %",
            ),
            (
                Reason::FullIn {
                    forecast: Forecast {
                        hours: 9.2,
                        low: 7.4,
                        high: 12.0,
                    },
                    used_ratio: 0.81,
                },
                "/var",
                "/var full in 9 h (7..12 h), 81.0 % used now",
                "used 81.0 %, full in 9 h (7..12 h) as it grows now",
            ),
            (
                Reason::FullIn {
                    forecast: Forecast {
                        hours: 0.7,
                        low: 0.5,
                        high: f64::INFINITY,
                    },
                    used_ratio: 0.95,
                },
                "/var",
                "/var full in 42 min (30..never), 95.0 % used now",
                "used 95.0 %, full in 42 min (30..never) as it grows now",
            ),
            (
                unit,
                "cron.service",
                "cron.service is failed",
                "state failed, automatic restarts 5",
            ),
            (
                Reason::Silence {
                    last_tick,
                    cause: Silence::Network,
                    account: "11 of the 12 other hosts of rack=r3 fell silent with it",
                },
                "",
                "silent: network or power, shared with its neighbours",
                "11 of the 12 other hosts of rack=r3 fell silent with it; last sample 2023-11-14T22:13:20Z by the host's clock",
            ),
            (
                Reason::Silence {
                    last_tick: None,
                    cause: Silence::Overdue,
                    account: "planned reboot, 9 min overdue; the last one took 2 min",
                },
                "",
                "planned reboot, 9 min overdue; the last one took 2 min",
                "planned reboot, 9 min overdue; the last one took 2 min; no sample since this state began",
            ),
            (
                Reason::More {
                    count: 37,
                    followed: 64,
                },
                "more units",
                "37 more units, beyond the 64 that have incidents of their own",
                "37 beyond the 64 that are followed one by one",
            ),
        ] {
            assert_eq!(reason.summary(subject), summary);
            assert_eq!(reason.to_string(), evidence);
        }
    }
}
