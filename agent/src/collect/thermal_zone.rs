//! `/sys/class/thermal`: temperatures of zones, and how hard cooling devices work.

use std::time::Duration;

use muster_proto::catalog;

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names, numbered},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/thermal/";

static ABOUT: About = About {
    name: "thermal_zone",
    every: Duration::from_secs(30),
    reads: "/sys/class/thermal",
    needs: "",
    what: "temperatures of thermal zones, state of cooling devices",
};

/// See the module.
#[derive(Debug, Default)]
pub struct ThermalZone {
    names: Names,
    files: Files,
}

impl Collector for ThermalZone {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.names.list(host, CLASS)?;
        for name in self.names.iter() {
            let zone = numbered(name, b"thermal_zone");
            let device = numbered(name, b"cooling_device");
            let Some(number) = zone.or(device) else {
                continue;
            };
            if !out.admits_object(2) {
                continue;
            }
            let files = &mut self.files;
            let kind = files.word(host, &[CLASS, name, b"/type"]);
            let kind = text::lossy(kind.unwrap_or_default()).into_owned();
            let labels = [&*text::lossy(number), &kind];
            if zone.is_some() {
                // A sensor that is switched off refuses.
                if let Some(milli) = files.signed(host, &[CLASS, name, b"/temp"]) {
                    out.int(catalog::THERMAL_ZONE_TEMP, &labels, milli);
                }
                continue;
            }
            if let Some(state) = files.signed(host, &[CLASS, name, b"/cur_state"]) {
                out.int(catalog::COOLING_DEVICE_CURRENT, &labels, state);
            }
            if let Some(state) = files.signed(host, &[CLASS, name, b"/max_state"]) {
                out.int(catalog::COOLING_DEVICE_MAX, &labels, state);
            }
        }
        Ok(Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn zones_and_devices_are_told() {
        let mut host = testing::Host::new();
        assert!(host.collect(&mut ThermalZone::default()).is_empty());
        let base = "sys/class/thermal";
        host.write(&format!("{base}/thermal_zone0/type"), "x86_pkg_temp\n");
        host.write(&format!("{base}/thermal_zone0/temp"), "-12376\n");
        host.write(&format!("{base}/thermal_zone1/type"), "off\n");
        host.write(&format!("{base}/cooling_device10/type"), "Processor\n");
        host.write(&format!("{base}/cooling_device10/cur_state"), "2\n");
        host.write(&format!("{base}/cooling_device10/max_state"), "3\n");
        let values = host.collect(&mut ThermalZone::default());
        let zone = r#"node_thermal_zone_temp{zone="0",type="x86_pkg_temp"}"#;
        assert_eq!(values[zone], -12.376);
        let device = r#"node_cooling_device_cur_state{name="10",type="Processor"}"#;
        assert_eq!(values[device], 2.0);
        assert_eq!(values.len(), 3);
    }

    testing::garbage!(
        ThermalZone::default(),
        "sys/class/thermal/thermal_zone0/temp",
        "-?[0-9x]{0,22}\n"
    );
}
