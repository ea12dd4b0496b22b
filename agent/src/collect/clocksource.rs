//! What the kernel tells time by, what else it could (`/sys/devices/system/clocksource`), and the host's time
//! zone (`/etc/localtime`; a host without it is on UTC).

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use muster_proto::catalog;

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names, Stamp, numbered},
    text,
};
use crate::host::HostRoot;

const LOCALTIME: &str = "etc/localtime";
const FOLDER: &[u8] = b"sys/devices/system/clocksource/";

/// Most sources that are told; kernels know about five.
const MAX_SOURCES: usize = 16;

static ABOUT: About = About {
    name: "clocksource",
    every: Duration::from_secs(60),
    reads: "/sys/devices/system/clocksource, /etc/localtime",
    needs: "",
    what: "the clock source in use and the others there are, the time zone's offset",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Clocksource {
    names: Names,
    files: Files,
    zone: Option<(Option<Stamp>, TimeZone)>,
}

impl Collector for Clocksource {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.names.list(host, FOLDER)?;
        let mut outcome = Outcome::NoData;
        for name in self.names.iter() {
            let Some(number) = numbered(name, b"clocksource") else {
                continue;
            };
            outcome = Outcome::Read;
            let device = text::lossy(number);
            let path: [&[u8]; 3] = [FOLDER, name, b"/available_clocksource"];
            let available = self.files.word(host, &path);
            for source in text::fields(available.unwrap_or_default()).take(MAX_SOURCES) {
                let labels = [&*device, &text::lossy(source)];
                out.int(catalog::CLOCKSOURCE_AVAILABLE, &labels, 1);
            }
            let path: [&[u8]; 3] = [FOLDER, name, b"/current_clocksource"];
            if let Some(source) = self.files.word(host, &path) {
                let labels = [&*device, &text::lossy(source)];
                out.int(catalog::CLOCKSOURCE_CURRENT, &labels, 1);
            }
        }
        self.put_time_zone(host, out);
        Ok(match self.zone {
            Some((Some(_), _)) => Outcome::Read,
            _ => outcome,
        })
    }
}

impl Clocksource {
    fn put_time_zone(&mut self, host: &HostRoot, out: &mut Readings) {
        let stamp = self.files.stamp(host, &[LOCALTIME.as_bytes()]);
        if self.zone.as_ref().is_none_or(|(known, _)| *known != stamp) {
            let zone = match stamp {
                None => TimeZone::UTC,
                Some(_) => {
                    let bytes = host.read(LOCALTIME).unwrap_or_default();
                    // A file that is no time zone's is as good as none, as it is to programs.
                    TimeZone::tzif("localtime", &bytes).unwrap_or(TimeZone::UTC)
                }
            };
            self.zone = Some((stamp, zone));
        }
        let now = Timestamp::from_millisecond(out.tick().as_millis());
        if let (Ok(now), Some((_, zone))) = (now, &self.zone) {
            let info = zone.to_offset_info(now);
            let seconds = i64::from(info.offset().seconds());
            out.int(catalog::TIME_ZONE_OFFSET, &[info.abbreviation()], seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn sources_are_told() {
        let mut host = testing::Host::new();
        let mut collector = Clocksource::default();
        assert_eq!(host.run(&mut collector).ok(), Some(Outcome::NoData));
        let base = "sys/devices/system/clocksource/clocksource0";
        host.write(
            &format!("{base}/available_clocksource"),
            "tsc hpet acpi_pm \n",
        );
        host.write(&format!("{base}/current_clocksource"), "tsc\n");
        let values = host.collect(&mut collector);
        assert!(
            values.contains_key(
                r#"node_time_clocksource_current_info{device="0",clocksource="tsc"}"#
            )
        );
        assert_eq!(values.len(), 5);
        assert_eq!(
            values[r#"node_time_zone_offset_seconds{time_zone="UTC"}"#],
            0.0
        );
    }

    #[test]
    fn the_time_zone_is_that_of_the_moment() {
        let mut host = testing::Host::new();
        let mut collector = Clocksource::default();
        // A TZif file of version 2 without transitions: the rule at its end holds.
        let header = |version: u8| {
            let mut header = b"TZif".to_vec();
            header.push(version);
            header.resize(20, 0);
            // Counts of UT indicators, standard indicators, leap seconds, transitions, types, letters.
            for count in [0u32, 0, 0, 0, 1, 4] {
                header.extend(count.to_be_bytes());
            }
            header.extend(3600i32.to_be_bytes());
            header.extend([0, 0]);
            header.extend(b"CET\0");
            header
        };
        let rule = b"\nCET-1CEST,M3.5.0,M10.5.0/3\n".to_vec();
        host.write(LOCALTIME, [header(b'2'), header(b'2'), rule].concat());
        // 2026-01-01 and 2026-07-01, UTC.
        for (tick, zone, offset) in [
            (1_767_225_600, "CET", 3600.0),
            (1_782_864_000, "CEST", 7200.0),
        ] {
            host.set_tick(tick);
            let values = host.collect(&mut collector);
            assert_eq!(
                values[&format!("node_time_zone_offset_seconds{{time_zone={zone:?}}}")],
                offset
            );
            assert_eq!(values.len(), 1);
        }
        host.write(LOCALTIME, "no zone");
        let values = host.collect(&mut collector);
        assert_eq!(
            values[r#"node_time_zone_offset_seconds{time_zone="UTC"}"#],
            0.0
        );
    }

    testing::garbage!(
        Clocksource::default(),
        "sys/devices/system/clocksource/clocksource0/available_clocksource",
        "[a-z ]{0,20}\n"
    );
}
