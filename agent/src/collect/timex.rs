//! How the kernel's clock is kept: offset, errors, whether it is synchronised, as adjtimex(2) tells.
//!
//! The call only reads: no mode is set, and the agent has no right to set one. Where a sandbox refuses it
//! there is no data. A captured host has the numbers beside its root.

use std::{io, time::Duration};

use muster_proto::catalog;
use rtime_clock::adjtime::{Timex as Call, adjtimex};

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, ReadError};

/// Beside a captured host's root: one line of the numbers of [`State`], in its order.
pub const CAPTURED: &str = "../timex.txt";

/// Returned instead of a state when the clock is not synchronised (sys/timex.h).
const TIME_ERROR: i64 = 5;
/// Status bit: offset and jitter are nanoseconds, not microseconds.
const STA_NANO: i64 = 0x2000;
/// Frequencies are millionths with 16 bits behind the point.
const PARTS: f64 = 1_000_000.0 * 65_536.0;

static ABOUT: About = About {
    name: "timex",
    every: Duration::from_secs(10),
    reads: "adjtimex(2)",
    needs: "a sandbox that allows adjtimex, as the agent's unit does",
    what: "whether the clock is synchronised, its offset and errors",
};

/// What adjtimex(2) returns and fills in, but for times that the collector does not show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    numbers: [i64; NUMBERS],
}

const NUMBERS: usize = 17;

impl State {
    /// The machine's own.
    ///
    /// # Errors
    /// What the kernel said; EPERM in a sandbox that refuses the call.
    pub fn of_this_machine() -> io::Result<Self> {
        let mut call = Call::new();
        let returned = adjtimex(&mut call)?;
        let timex = &call.0;
        Ok(Self {
            numbers: [
                returned.into(),
                timex.offset,
                timex.freq,
                timex.maxerror,
                timex.esterror,
                timex.status.into(),
                timex.constant,
                timex.tick,
                timex.ppsfreq,
                timex.jitter,
                timex.shift.into(),
                timex.stabil,
                timex.jitcnt,
                timex.calcnt,
                timex.errcnt,
                timex.stbcnt,
                timex.tai.into(),
            ],
        })
    }

    /// The line of a captured host.
    #[must_use]
    pub fn to_line(self) -> String {
        let numbers: Vec<String> = self.numbers.iter().map(ToString::to_string).collect();
        numbers.join(" ") + "\n"
    }

    fn from_line(line: &[u8]) -> Option<Self> {
        let mut state = Self::default();
        let mut fields = text::fields(line.trim_ascii());
        for number in &mut state.numbers {
            *number = text::signed(fields.next()?)?;
        }
        fields.next().is_none().then_some(state)
    }

    #[expect(clippy::cast_precision_loss, reason = "frequencies have 32 bits")]
    fn put(self, out: &mut Readings) {
        let [
            returned,
            offset,
            freq,
            maxerror,
            esterror,
            status,
            constant,
            tick,
            ppsfreq,
            jitter,
            shift,
            stabil,
            jitcnt,
            calcnt,
            errcnt,
            stbcnt,
            tai,
        ] = self.numbers;
        let nanos = |value: i64| match status & STA_NANO {
            0 => value.saturating_mul(1000),
            _ => value,
        };
        for (family, value) in [
            (
                catalog::TIMEX_SYNC_STATUS,
                i64::from(returned != TIME_ERROR),
            ),
            (catalog::TIMEX_OFFSET, nanos(offset)),
            (catalog::TIMEX_MAXERROR, maxerror),
            (catalog::TIMEX_ESTERROR, esterror),
            (catalog::TIMEX_STATUS, status),
            (catalog::TIMEX_LOOP_TIME_CONSTANT, constant),
            (catalog::TIMEX_TICK, tick),
            (catalog::TIMEX_PPS_JITTER, nanos(jitter)),
            (catalog::TIMEX_PPS_SHIFT, shift),
            (catalog::TIMEX_PPS_JITTERS, jitcnt),
            (catalog::TIMEX_PPS_CALIBRATIONS, calcnt),
            (catalog::TIMEX_PPS_ERRORS, errcnt),
            (catalog::TIMEX_PPS_STABILITY_EXCEEDED, stbcnt),
            (catalog::TIMEX_TAI_OFFSET, tai),
        ] {
            out.int(family, &[], value);
        }
        out.float(catalog::TIMEX_FREQUENCY, &[], 1.0 + freq as f64 / PARTS);
        out.float(catalog::TIMEX_PPS_FREQUENCY, &[], ppsfreq as f64 / PARTS);
        out.float(catalog::TIMEX_PPS_STABILITY, &[], stabil as f64 / PARTS);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Timex(());

impl Collector for Timex {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if host.is_live() {
            return match State::of_this_machine() {
                Ok(state) => {
                    state.put(out);
                    Ok(Outcome::Read)
                }
                // As with node_exporter: what a sandbox keeps from us is no failure.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    Ok(Outcome::NoData)
                }
                Err(source) => {
                    let path = "adjtimex(2)".into();
                    Err(ReadError::Io { path, source }.into())
                }
            };
        }
        let line = match host.read(CAPTURED) {
            Ok(line) => line,
            Err(error) if error.is_absent() => return Ok(Outcome::NoData),
            Err(error) => return Err(error.into()),
        };
        let state = State::from_line(&line).ok_or(CollectError::Malformed {
            path: CAPTURED,
            what: "seventeen numbers",
        })?;
        state.put(out);
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn units_follow_the_status() {
        let mut host = testing::Host::new();
        assert_eq!(host.run(&mut Timex::default()).ok(), Some(Outcome::NoData));
        // Status 0x2001: nanoseconds.
        host.write(
            CAPTURED,
            "0 -500000000 32768000000 1500000 250000 8193 7 10000 0 3000 4 0 1 2 3 5 37\n",
        );
        let values = host.collect(&mut Timex::default());
        for (name, value) in [
            ("sync_status", 1.0),
            ("offset_seconds", -0.5),
            ("frequency_adjustment_ratio", 1.5),
            ("maxerror_seconds", 1.5),
            ("estimated_error_seconds", 0.25),
            ("tick_seconds", 0.01),
            ("pps_jitter_seconds", 0.000_003),
            ("pps_error_total", 3.0),
            ("tai_offset_seconds", 37.0),
        ] {
            let name = format!("node_timex_{name}");
            assert_eq!(values[&name], value, "{name}");
        }
        assert_eq!(values.len(), 17);
        host.write(
            CAPTURED,
            "5 1500000 0 16000000 16000000 64 2 10000 0 0 0 0 0 0 0 0 0\n",
        );
        let values = host.collect(&mut Timex::default());
        assert_eq!(values["node_timex_offset_seconds"], 1.5, "microseconds");
        assert_eq!(values["node_timex_sync_status"], 0.0);
        assert_eq!(values["node_timex_frequency_adjustment_ratio"], 1.0);
        for wrong in [
            "",
            "1 2 3\n",
            "a\n",
            "5 1 0 16 16 64 2 1 0 0 0 0 0 0 0 0 0 0\n",
        ] {
            host.write(CAPTURED, wrong);
            assert!(host.fails(&mut Timex::default()), "{wrong:?}");
        }
    }

    #[test]
    fn a_line_comes_back() {
        let state = State {
            numbers: std::array::from_fn(|at| at as i64 - 8),
        };
        assert_eq!(State::from_line(state.to_line().as_bytes()), Some(state));
    }

    testing::garbage!(Timex::default(), CAPTURED, "(-?[0-9x]{1,20} ){16,17}\n");
}
