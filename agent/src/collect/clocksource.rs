//! `/sys/devices/system/clocksource`: what the kernel tells time by, and what else it could.

use std::time::Duration;

use muster_proto::catalog;

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

const FOLDER: &[u8] = b"sys/devices/system/clocksource/";

/// Most sources that are told; kernels know about five.
const MAX_SOURCES: usize = 16;

static ABOUT: About = About {
    name: "clocksource",
    every: Duration::from_secs(60),
    reads: "/sys/devices/system/clocksource",
    needs: "",
    what: "the clock source in use, and the others there are",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Clocksource {
    names: Names,
    files: Files,
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
        Ok(outcome)
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
        assert_eq!(values.len(), 4);
    }

    testing::garbage!(
        Clocksource::default(),
        "sys/devices/system/clocksource/clocksource0/available_clocksource",
        "[a-z ]{0,20}\n"
    );
}
