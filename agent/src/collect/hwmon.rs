//! `/sys/class/hwmon`: temperatures, fans, voltages, currents and power, as the chips' drivers tell them.
//!
//! A chip's files are `<type><number>_<property>`, such as `temp1_crit`; units are fixed by type (kernel
//! Documentation/hwmon/sysfs-interface.rst): thousandths of degrees, volts and amperes, millionths of watts
//! and joules. Names and labels are node_exporter's, its habits included: alarms of temperatures go through
//! the same division. Chips on slow buses take milliseconds for a value; when a round has taken a second, the
//! chips that are left wait for the next.

use std::{
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use muster_proto::{
    catalog::{self, FamilyId},
    series::{Kind, Scale},
};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    memo::Memo,
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/hwmon/";

/// Kinds of sensors; what begins with none of these is no sensor.
const TYPES: [&str; 14] = [
    "beep_enable",
    "cpu",
    "curr",
    "energy",
    "fan",
    "freq",
    "humidity",
    "in",
    "intrusion",
    "power",
    "pwm",
    "temp",
    "update_interval",
    "vrm",
];

/// Most chips, and most files of one.
const MAX_CHIPS: usize = 256;
const MAX_FILES: usize = 512;

/// Time after which a round asks no further chip.
const PATIENCE: Duration = Duration::from_secs(1);

static ABOUT: About = About {
    name: "hwmon",
    every: Duration::from_secs(30),
    reads: "/sys/class/hwmon",
    needs: "",
    what: "temperatures, fans, voltages and power, as sensors tell them",
};

/// See the module.
#[derive(Debug, Default)]
pub struct Hwmon {
    chips: Names,
    sensors: Names,
    files: Files,
    folder: Vec<u8>,
    known: Memo<Option<Sensor>>,
    /// The chip at which the next round begins.
    first: usize,
}

/// What a file of a chip becomes.
#[derive(Debug, Clone, Copy)]
enum Sensor {
    /// A value; its sensor is the first so many bytes of the file's name.
    Value(FamilyId, usize),
    /// The name of a sensor.
    Label(usize),
}

impl Collector for Hwmon {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        self.collect_within(host, out, PATIENCE)
    }
}

impl Hwmon {
    fn collect_within(
        &mut self,
        host: &HostRoot,
        out: &mut Readings,
        patience: Duration,
    ) -> Result<Outcome, CollectError> {
        if !self.chips.list(host, CLASS)? {
            return Ok(Outcome::NoData);
        }
        let began = Instant::now();
        let count = self.chips.count().min(MAX_CHIPS);
        for step in 0..count {
            let number = (self.first + step) % count;
            if step > 0 && began.elapsed() >= patience {
                self.first = number;
                tracing::debug!(
                    chips = count,
                    asked = step,
                    "sensors are slow; the others are asked next time"
                );
                break;
            }
            let Some(name) = self.chips.iter().nth(number).map(<[u8]>::to_vec) else {
                break;
            };
            self.put_chip(host, number, &name, out)?;
        }
        Ok(Outcome::Read)
    }

    fn put_chip(
        &mut self,
        host: &HostRoot,
        number: usize,
        name: &[u8],
        out: &mut Readings,
    ) -> Result<(), CollectError> {
        let Some(chip) = self.chip(host, name) else {
            return Ok(());
        };
        if let Some(word) = self.files.word(host, &[CLASS, name, b"/name"]) {
            let readable = clean(word);
            out.int(catalog::HWMON_CHIP_NAMES, &[&chip, &readable], 1);
        }
        // Old drivers have their files with the device.
        for (half, folder) in [&b""[..], b"/device"].into_iter().enumerate() {
            self.folder.clear();
            for part in [CLASS, name, folder] {
                self.folder.extend_from_slice(part);
            }
            self.sensors.list(host, &self.folder)?;
            for (at, file) in self.sensors.iter().take(MAX_FILES).enumerate() {
                let place = (number * 2 + half) * MAX_FILES + at;
                let Some(sensor) = self.known.get(place, file, |file| sensor(file, out)) else {
                    continue;
                };
                let path: [&[u8]; 3] = [&self.folder, b"/", file];
                match sensor {
                    Sensor::Value(family, length) => {
                        let Some(value) = self.files.signed(host, &path) else {
                            continue;
                        };
                        if out.admits_object(1) {
                            out.int(family, &[&chip, &text::lossy(&file[..length])], value);
                        }
                    }
                    Sensor::Label(length) => {
                        let Some(label) = self.files.word(host, &path) else {
                            continue;
                        };
                        let labels = [&*chip, &text::lossy(&file[..length]), &text::lossy(label)];
                        out.int(catalog::HWMON_SENSOR_LABEL, &labels, 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// A name that stays when numbers of chips change: bus and name of the device, else the driver's name for it,
    /// else where the chip is.
    fn chip(&mut self, host: &HostRoot, name: &[u8]) -> Option<String> {
        if let Some(device) = self.files.canonical(host, &[CLASS, name, b"/device"]) {
            let mut parts = device.iter().rev().map(|part| clean(part.as_bytes()));
            let device = parts.next().unwrap_or_default();
            let bus = parts.next().unwrap_or_default();
            if !device.is_empty() && !bus.is_empty() {
                return Some(format!("{bus}_{device}"));
            }
        }
        if let Some(word) = self.files.word(host, &[CLASS, name, b"/name"]) {
            let readable = clean(word);
            if !readable.is_empty() {
                return Some(readable);
            }
        }
        let own = clean(name);
        (!own.is_empty()).then_some(own)
    }
}

/// Lower case; what may not stand in a metric's name becomes an underscore, but not at the ends.
fn clean(name: &[u8]) -> String {
    let allowed = |byte: u8| {
        let lower = byte.to_ascii_lowercase();
        match lower {
            b'a'..=b'z' | b'0'..=b'9' | b':' | b'_' => char::from(lower),
            _ => '_',
        }
    };
    let name: String = name.iter().map(|&byte| allowed(byte)).collect();
    name.trim_matches('_').to_owned()
}

/// What a file's name says; `None` if it is no sensor's, or its name makes no legal metric.
fn sensor(file: &[u8], out: &mut Readings) -> Option<Sensor> {
    let name = std::str::from_utf8(file).ok()?;
    let kind_end = name
        .find(|c: char| c.is_ascii_digit())
        .unwrap_or(name.len());
    let (kind, rest) = match TYPES.iter().find(|kind| **kind == &name[..kind_end]) {
        Some(kind) => (*kind, &name[kind_end..]),
        None => return None,
    };
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let length = kind_end + digits;
    let property = match rest[digits..].strip_prefix('_') {
        Some(property) => property,
        None if rest[digits..].is_empty() => "",
        None => return None,
    };
    if property == "label" {
        return Some(Sensor::Label(length));
    }
    let (name, type_of, scale) = metric(kind, property)?;
    let family = out.dynamic_family(&name, type_of, scale, &["chip", "sensor"])?;
    Some(Sensor::Value(family, length))
}

/// Name, type and unit of the metric.
fn metric(kind: &str, property: &str) -> Option<(String, Kind, Scale)> {
    let plain = match property {
        "" | "input" => format!("node_hwmon_{kind}"),
        property => format!("node_hwmon_{kind}_{}", clean(property.as_bytes())),
    };
    let gauge = |name: String, scale| Some((name, Kind::Gauge, scale));
    match (kind, property) {
        ("beep_enable", _) => gauge("node_hwmon_beep_enabled".to_owned(), Scale::One),
        ("vrm", _) => gauge(
            "node_hwmon_voltage_regulator_version".to_owned(),
            Scale::One,
        ),
        ("update_interval", _) => gauge(
            "node_hwmon_update_interval_seconds".to_owned(),
            Scale::Milli,
        ),
        (_, "fault" | "alarm") => gauge(plain, Scale::One),
        (_, "beep") => gauge(format!("{plain}_enabled"), Scale::One),
        ("in" | "cpu", _) => gauge(format!("{plain}_volts"), Scale::Milli),
        ("temp", "type") => gauge(plain, Scale::One),
        ("temp", _) => gauge(format!("{plain}_celsius"), Scale::Milli),
        ("curr", _) => gauge(format!("{plain}_amps"), Scale::Milli),
        ("energy", _) => Some((format!("{plain}_joule_total"), Kind::Counter, Scale::Micro)),
        ("power", "accuracy") => gauge(plain, Scale::Micro),
        ("power", "average_interval" | "average_interval_min" | "average_interval_max") => {
            gauge(format!("{plain}_seconds"), Scale::Milli)
        }
        ("power", _) => gauge(format!("{plain}_watt"), Scale::Micro),
        ("humidity", _) => gauge(plain, Scale::Micro),
        ("fan", "input" | "min" | "max" | "target") => gauge(format!("{plain}_rpm"), Scale::One),
        ("freq", "input") => gauge("node_hwmon_freq_freq_mhz".to_owned(), Scale::Micro),
        _ => gauge(plain, Scale::One),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    fn host() -> testing::Host {
        let mut host = testing::Host::new();
        let device = "sys/devices/platform/coretemp.0";
        let chip = &format!("{device}/hwmon/hwmon3");
        for (file, content) in [
            ("name", "coretemp"),
            ("temp1_input", "55000"),
            ("temp1_crit", "100000"),
            ("temp1_crit_alarm", "1"),
            ("temp1_label", "Package id 0"),
            ("fan2_input", "1098"),
            ("fan2_alarm", "0"),
            ("in0_input", "-1208"),
            ("power1_average", "97000000"),
            ("power1_average_interval", "300"),
            ("energy1_input", "1500000"),
            ("pwm1", "110"),
            ("pwm1_enable", "1"),
            ("temp2_input", ""),
            ("uevent", "x"),
            ("inx", "3"),
        ] {
            host.write(&format!("{chip}/{file}"), format!("{content}\n"));
        }
        host.write(&format!("{device}/temp9_input"), "1000\n");
        host.link(
            "sys/class/hwmon/hwmon3",
            "../../devices/platform/coretemp.0/hwmon/hwmon3",
        );
        host.link(&format!("{chip}/device"), "../../../coretemp.0");
        host
    }

    #[test]
    fn sensors_have_node_exporters_names_and_units() {
        let mut none = testing::Host::new();
        assert_eq!(none.run(&mut Hwmon::default()).ok(), Some(Outcome::NoData));
        let values = host().collect(&mut Hwmon::default());
        let chip = "platform_coretemp_0";
        let table = [
            ("temp_celsius", "temp1", 55.0),
            ("temp_crit_celsius", "temp1", 100.0),
            ("temp_crit_alarm_celsius", "temp1", 0.001),
            ("temp_celsius", "temp9", 1.0),
            ("fan_rpm", "fan2", 1098.0),
            ("fan_alarm", "fan2", 0.0),
            ("in_volts", "in0", -1.208),
            ("power_average_watt", "power1", 97.0),
            ("power_average_interval_seconds", "power1", 0.3),
            ("energy_joule_total", "energy1", 1.5),
            ("pwm", "pwm1", 110.0),
            ("pwm_enable", "pwm1", 1.0),
        ];
        for (name, sensor, value) in table {
            let series = format!("node_hwmon_{name}{{chip={chip:?},sensor={sensor:?}}}");
            assert_eq!(values.get(&series), Some(&value), "{series}");
        }
        let names = format!("node_hwmon_chip_names{{chip={chip:?},chip_name=\"coretemp\"}}");
        let label = format!(
            "node_hwmon_sensor_label{{chip={chip:?},sensor=\"temp1\",label=\"Package id 0\"}}"
        );
        assert!(values.contains_key(&names) && values.contains_key(&label));
        assert_eq!(values.len(), table.len() + 2, "{values:#?}");
    }

    #[test]
    fn slow_chips_take_turns() {
        let mut host = testing::Host::new();
        for chip in ["hwmon0", "hwmon1", "hwmon2"] {
            host.write(
                &format!("sys/class/hwmon/{chip}/name"),
                format!("chip{chip}\n"),
            );
        }
        let mut hwmon = Hwmon::default();
        let root = host.root();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let readings = host.readings();
            readings.begin(0);
            hwmon
                .collect_within(&root, readings, Duration::ZERO)
                .expect("collects");
            readings.end(true);
            let values = host.values();
            assert_eq!(values.len(), 1);
            seen.extend(values.into_keys());
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn names_are_cleaned() {
        assert_eq!(clean(b"0000:00:01.0"), "0000:00:01_0");
        assert_eq!(clean(b" Intel-5500_\xff"), "intel_5500");
    }

    testing::garbage!(
        Hwmon::default(),
        "sys/class/hwmon/hwmon0/temp1_input",
        "-?[0-9x]{0,22}\n"
    );
}
