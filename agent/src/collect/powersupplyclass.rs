//! `/sys/class/power_supply`: batteries and mains. Kernels print millionths, and tenths of degrees.

use std::time::Duration;

use muster_proto::{
    catalog::FamilyId,
    series::{Kind, Scale},
};

use super::{
    About, CollectError, Collector, Outcome, Readings,
    sysfs::{Files, Names},
    text,
};
use crate::host::HostRoot;

const CLASS: &[u8] = b"sys/class/power_supply/";

/// Unit of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Plain,
    Micro,
    /// Tenths, of degrees.
    Deci,
}

/// File, what follows `node_power_supply_`, unit.
const FILES: [(&str, &str, Unit); 51] = [
    ("authentic", "authentic", Unit::Plain),
    ("calibrate", "calibrate", Unit::Plain),
    ("capacity", "capacity", Unit::Plain),
    ("capacity_alert_max", "capacity_alert_max", Unit::Plain),
    ("capacity_alert_min", "capacity_alert_min", Unit::Plain),
    ("cycle_count", "cyclecount", Unit::Plain),
    ("online", "online", Unit::Plain),
    ("present", "present", Unit::Plain),
    ("time_to_empty_now", "time_to_empty_seconds", Unit::Plain),
    ("time_to_full_now", "time_to_full_seconds", Unit::Plain),
    ("current_boot", "current_boot", Unit::Micro),
    ("current_max", "current_max", Unit::Micro),
    ("current_now", "current_ampere", Unit::Micro),
    ("energy_empty", "energy_empty", Unit::Micro),
    ("energy_empty_design", "energy_empty_design", Unit::Micro),
    ("energy_full", "energy_full", Unit::Micro),
    ("energy_full_design", "energy_full_design", Unit::Micro),
    ("energy_now", "energy_watthour", Unit::Micro),
    ("voltage_boot", "voltage_boot", Unit::Micro),
    ("voltage_max", "voltage_max", Unit::Micro),
    ("voltage_max_design", "voltage_max_design", Unit::Micro),
    ("voltage_min", "voltage_min", Unit::Micro),
    ("voltage_min_design", "voltage_min_design", Unit::Micro),
    ("voltage_now", "voltage_volt", Unit::Micro),
    ("voltage_ocv", "voltage_ocv", Unit::Micro),
    ("charge_control_limit", "charge_control_limit", Unit::Micro),
    (
        "charge_control_limit_max",
        "charge_control_limit_max",
        Unit::Micro,
    ),
    ("charge_counter", "charge_counter", Unit::Micro),
    ("charge_empty", "charge_empty", Unit::Micro),
    ("charge_empty_design", "charge_empty_design", Unit::Micro),
    ("charge_full", "charge_full", Unit::Micro),
    ("charge_full_design", "charge_full_design", Unit::Micro),
    ("charge_now", "charge_ampere", Unit::Micro),
    ("charge_term_current", "charge_term_current", Unit::Micro),
    (
        "constant_charge_current",
        "constant_charge_current",
        Unit::Micro,
    ),
    (
        "constant_charge_current_max",
        "constant_charge_current_max",
        Unit::Micro,
    ),
    (
        "constant_charge_voltage",
        "constant_charge_voltage",
        Unit::Micro,
    ),
    (
        "constant_charge_voltage_max",
        "constant_charge_voltage_max",
        Unit::Micro,
    ),
    ("precharge_current", "precharge_current", Unit::Micro),
    ("input_current_limit", "input_current_limit", Unit::Micro),
    ("input_voltage_limit", "input_voltage_limit", Unit::Micro),
    ("input_power_limit", "input_power_limit", Unit::Micro),
    ("power_now", "power_watt", Unit::Micro),
    ("temp", "temp_celsius", Unit::Deci),
    ("temp_alert_max", "temp_alert_max_celsius", Unit::Deci),
    ("temp_alert_min", "temp_alert_min_celsius", Unit::Deci),
    ("temp_ambient", "temp_ambient_celsius", Unit::Deci),
    ("temp_ambient_max", "temp_ambient_max_celsius", Unit::Deci),
    ("temp_ambient_min", "temp_ambient_min_celsius", Unit::Deci),
    ("temp_max", "temp_max_celsius", Unit::Deci),
    ("temp_min", "temp_min_celsius", Unit::Deci),
];

/// Files that are labels of `node_power_supply_info`, by their own names.
const LABELS: [&str; 11] = [
    "capacity_level",
    "charge_type",
    "health",
    "manufacturer",
    "model_name",
    "scope",
    "serial_number",
    "status",
    "technology",
    "type",
    "usb_type",
];

static ABOUT: About = About {
    name: "powersupplyclass",
    every: Duration::from_secs(30),
    reads: "/sys/class/power_supply",
    needs: "",
    what: "charge, power and health of batteries, whether mains are there",
};

/// See the module.
#[derive(Debug, Default)]
pub struct PowerSupplyClass {
    names: Names,
    files: Files,
    families: Vec<Option<FamilyId>>,
}

impl Collector for PowerSupplyClass {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        if !self.names.list(host, CLASS)? {
            return Ok(Outcome::NoData);
        }
        for name in self.names.iter() {
            if !out.admits_object(FILES.len() + 1) {
                continue;
            }
            let label = text::lossy(name);
            if self.families.is_empty() {
                self.families = FILES
                    .iter()
                    .map(|(_, name, unit)| family(name, *unit, out))
                    .collect();
            }
            for ((file, _, unit), family) in FILES.iter().zip(&self.families) {
                let Some(family) = family else { continue };
                let path: [&[u8]; 4] = [CLASS, name, b"/", file.as_bytes()];
                let Some(value) = self.files.signed(host, &path) else {
                    continue;
                };
                let value = match unit {
                    Unit::Deci => value.saturating_mul(100),
                    _ => value,
                };
                out.int(*family, &[&label], value);
            }
            put_info(&mut self.files, host, name, out);
        }
        Ok(Outcome::Read)
    }
}

fn family(name: &str, unit: Unit, out: &mut Readings) -> Option<FamilyId> {
    let scale = match unit {
        Unit::Plain => Scale::One,
        Unit::Micro => Scale::Micro,
        Unit::Deci => Scale::Milli,
    };
    let name = format!("node_power_supply_{name}");
    out.dynamic_family(&name, Kind::Gauge, scale, &["power_supply"])
}

fn put_info(files: &mut Files, host: &HostRoot, name: &[u8], out: &mut Readings) {
    let mut names = vec!["power_supply"];
    names.extend(LABELS);
    let info = "node_power_supply_info";
    let Some(family) = out.dynamic_family(info, Kind::Gauge, Scale::One, &names) else {
        return;
    };
    let mut values = vec![text::lossy(name).into_owned()];
    for file in LABELS {
        let word = files.word(host, &[CLASS, name, b"/", file.as_bytes()]);
        values.push(text::lossy(word.unwrap_or_default()).into_owned());
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    out.int(family, &values, 1);
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn units_are_base_units() {
        let mut host = testing::Host::new();
        let mut collector = PowerSupplyClass::default();
        assert_eq!(host.run(&mut collector).ok(), Some(Outcome::NoData));
        let base = "sys/class/power_supply/BAT0";
        for (file, content) in [
            ("capacity", "81"),
            ("energy_now", "36580000"),
            ("current_now", "-1500000"),
            ("temp", "305"),
            ("status", "Discharging"),
            ("manufacturer", "LGC"),
        ] {
            host.write(&format!("{base}/{file}"), format!("{content}\n"));
        }
        let values = host.collect(&mut collector);
        let of = |name: &str| values[&format!("node_power_supply_{name}{{power_supply=\"BAT0\"}}")];
        assert_eq!((of("capacity"), of("energy_watthour")), (81.0, 36.58));
        assert_eq!((of("current_ampere"), of("temp_celsius")), (-1.5, 30.5));
        let info = values
            .keys()
            .find(|key| key.starts_with("node_power_supply_info"));
        assert!(
            info.is_some_and(|info| info.contains(r#"status="Discharging""#)),
            "{info:?}"
        );
        assert_eq!(values.len(), 5);
    }

    testing::garbage!(
        PowerSupplyClass::default(),
        "sys/class/power_supply/BAT0/capacity",
        "-?[0-9x]{0,22}\n"
    );
}
