//! A host as the messages of the operator API: the one conversion.
//!
//! Measurements are those of now: a host that is silent, or was never heard, has none, so that nobody takes
//! old numbers for new ones. When it was last heard, what it is and what happened on it stay.

use std::{borrow::Cow, collections::BTreeMap};

use muster_proto::{time::Timestamp, v1};

use super::checks;
use crate::{
    detect::{AnomalyView, forecast::Forecast},
    fleet::{Derived, FilesystemPoint, HostState, Liveness, Unit, host::RECENT_FIELDS},
    selector::{NumberField, Subject, TextField},
};

/// A host as selectors ask it.
pub struct Asked<'a> {
    /// The host.
    pub host: &'a HostState,
    /// Its open incidents.
    pub open_incidents: u32,
}

impl Subject for Asked<'_> {
    fn name(&self) -> &str {
        self.host.name()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.host.labels().get(key).map(String::as_str)
    }

    fn text(&self, field: TextField) -> Option<Cow<'_, str>> {
        let facts = self.host.facts();
        let text: Cow<'_, str> = match field {
            TextField::Name => Cow::Borrowed(self.host.name()),
            TextField::State => Cow::Borrowed(state_word(self.host.liveness())),
            TextField::Os => Cow::Owned(os(facts)),
            TextField::Agent => Cow::Borrowed(&facts.agent_version),
            TextField::Kernel => Cow::Borrowed(&facts.kernel),
        };
        (!text.is_empty()).then_some(text)
    }

    fn number(&self, field: NumberField) -> Option<f64> {
        let derived = current(self.host);
        match field {
            NumberField::Cpu => derived?.cpu_ratio,
            NumberField::Mem => derived?.memory_ratio,
            NumberField::Disk => derived?.disk_ratio,
            NumberField::Load => derived?.load1,
            NumberField::Io => derived?.io_ratio,
            NumberField::Psi => derived?.pressure_ratio,
            NumberField::Net => {
                let derived = derived?;
                let received = derived.network_receive_bytes_per_second?;
                Some(received + derived.network_transmit_bytes_per_second?)
            }
            NumberField::Anomaly => score(self.host),
            NumberField::Incidents => Some(f64::from(self.open_incidents)),
            NumberField::Failed => units(self.host).map(|units| f64::from(failed(units))),
        }
    }
}

/// Whether what was measured last is how it is now.
#[must_use]
pub fn is_current(host: &HostState) -> bool {
    matches!(host.liveness(), Liveness::Live | Liveness::Late)
}

fn current(host: &HostState) -> Option<&Derived> {
    is_current(host).then(|| host.derived())
}

/// Units of a host that reports a service manager and is heard.
#[must_use]
pub fn units(host: &HostState) -> Option<&[Unit]> {
    (is_current(host) && host.has_units()).then(|| host.units())
}

/// The score of a host that is heard and has learnt enough.
#[must_use]
pub fn score(host: &HostState) -> Option<f64> {
    if !is_current(host) {
        return None;
    }
    host.detection().score().filter(|score| score.is_finite())
}

/// The anomaly that goes on, if the host is heard.
#[must_use]
pub fn anomaly(host: &HostState) -> Option<AnomalyView> {
    if !is_current(host) {
        return None;
    }
    host.detection().anomaly()
}

fn failed(units: &[Unit]) -> u32 {
    count(units.iter().filter(|unit| unit.is_failing()).count())
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `debian 12`.
#[must_use]
pub fn os(facts: &v1::HostFacts) -> String {
    format!("{} {}", facts.os_id, facts.os_version)
        .trim()
        .to_owned()
}

/// State as messages carry it.
#[must_use]
pub fn state(liveness: Liveness) -> (v1::HostState, v1::SilenceCause) {
    match liveness {
        Liveness::Joined => (v1::HostState::Joined, v1::SilenceCause::Unspecified),
        Liveness::Live => (v1::HostState::Live, v1::SilenceCause::Unspecified),
        Liveness::Late => (v1::HostState::Late, v1::SilenceCause::Unspecified),
        Liveness::Silent(silence) => (v1::HostState::Silent, silence.to_wire()),
    }
}

fn state_word(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Joined => "joined",
        Liveness::Live => "live",
        Liveness::Late => "late",
        Liveness::Silent(_) => "silent",
    }
}

/// One host in numbers.
#[must_use]
pub fn host_row(host: &HostState, open_incidents: u32) -> v1::HostRow {
    let none = Derived::default();
    let derived = current(host).unwrap_or(&none);
    let units = units(host);
    let facts = host.facts();
    let (state, silence_cause) = state(host.liveness());
    v1::HostRow {
        name: host.name().to_owned(),
        host_id: host.id().as_bytes().to_vec(),
        state: state.into(),
        silence_cause: silence_cause.into(),
        state_since_ms: host.state_since().as_millis(),
        labels: host.labels().clone(),
        cpu_ratio: derived.cpu_ratio,
        memory_ratio: derived.memory_ratio,
        disk_ratio: derived.disk_ratio,
        disk_mountpoint: derived.disk_mountpoint.clone(),
        load1: derived.load1,
        io_ratio: derived.io_ratio,
        network_receive_bytes_per_second: derived.network_receive_bytes_per_second,
        network_transmit_bytes_per_second: derived.network_transmit_bytes_per_second,
        pressure_ratio: derived.pressure_ratio,
        services: units.map(|units| count(units.len())),
        services_failed: units.map(failed),
        anomaly_score: score(host),
        last_seen_ms: host.last_seen().map(Timestamp::as_millis),
        agent_version: facts.agent_version.clone(),
        os: os(facts),
        kernel: facts.kernel.clone(),
        interval_ms: u32::try_from(host.interval().as_millis()).unwrap_or(u32::MAX),
        open_incidents,
        series: count(host.series_count()),
    }
}

/// Everything about one host but its incidents and how far the answer can be relied on.
#[must_use]
pub fn host_detail(host: &HostState) -> v1::HostDetail {
    let mut detail = v1::HostDetail {
        facts: Some(host.facts().clone()),
        boot_time_ms: host.boot_time().map(Timestamp::as_millis),
        clock_offset_ms: host.clock_offset_ms(),
        certificate_expires_ms: host.certificate_not_after().map_or(0, Timestamp::as_millis),
        events: host.events().cloned().collect(),
        recent: RECENT_FIELDS
            .iter()
            .map(|field| v1::RecentSeries {
                field: (*field).to_owned(),
                values: host.recent(field),
            })
            .collect(),
        books: Some(host.books()),
        lives: host.lives(),
        silence_account: host.trace().account.clone(),
        past_silence: host.trace().past.map(|past| v1::PastSilence {
            since_ms: past.since.as_millis(),
            until_ms: past.until.as_millis(),
            cause: past.cause.to_wire().into(),
        }),
        ..v1::HostDetail::default()
    };
    let Some(derived) = current(host) else {
        return detail;
    };
    detail.filesystems = derived
        .filesystems
        .iter()
        .map(|point| {
            let full_in = host.detection().full_in(&point.mountpoint);
            let [full_in, inodes_full_in] = full_in.map(|of| of.map(forecast));
            v1::Filesystem {
                full_in,
                inodes_full_in,
                ..filesystem(point)
            }
        })
        .collect();
    detail.cpu_modes = cpu_modes(derived);
    detail.failing_collectors = host.failing_collectors();
    detail.failing_services = units(host)
        .unwrap_or_default()
        .iter()
        .filter(|unit| unit.is_failing())
        .map(service)
        .collect();
    detail.anomaly_causes = anomaly(host).map_or_else(Vec::new, |anomaly| {
        let signals = anomaly.causes.iter();
        signals.map(|cause| cause.signal.to_owned()).collect()
    });
    let rated = host.series().filter_map(|series| {
        let device = series.labels.first().map_or("", String::as_str);
        Some((series.family.name.as_str(), device, series.rate?))
    });
    devices(rated, &mut detail);
    let checks = checks::of_host(host);
    detail.checks = count(checks.len());
    let failing = |check: &v1::CheckRow| check.status() != v1::CheckStatus::Ok;
    detail.failing_checks = checks.into_iter().filter(failing).collect();
    detail
}

/// Share of CPU time by mode.
pub(super) fn cpu_modes(derived: &Derived) -> BTreeMap<String, f64> {
    let modes = derived.cpu_modes.iter();
    modes
        .map(|(mode, share)| (mode.clone().into_owned(), *share))
        .collect()
}

pub(super) fn filesystem(point: &FilesystemPoint) -> v1::Filesystem {
    v1::Filesystem {
        mountpoint: point.mountpoint.clone(),
        device: point.device.clone(),
        fstype: point.fstype.clone(),
        size_bytes: point.size,
        available_bytes: point.available,
        used_ratio: point.used_ratio,
        inodes_used_ratio: point.inodes_used_ratio,
        readonly: point.readonly,
        hung: point.hung,
        full_in: None,
        inodes_full_in: None,
    }
}

fn forecast(forecast: Forecast) -> v1::FullIn {
    v1::FullIn {
        hours: forecast.hours,
        low: forecast.low,
        high: forecast.high,
    }
}

pub(super) fn service(unit: &Unit) -> v1::ServiceRow {
    v1::ServiceRow {
        name: unit.name.clone(),
        state: unit.word().to_owned(),
        since_ms: unit.since.map(Timestamp::as_millis),
        restarts: unit.restarts,
    }
}

/// Disks, interfaces and pressure from the rates of series: (metric, device, rate).
pub(super) fn devices<'a>(
    rates: impl Iterator<Item = (&'a str, &'a str, f64)>,
    detail: &mut v1::HostDetail,
) {
    let mut disks: BTreeMap<&str, v1::Disk> = BTreeMap::new();
    let mut interfaces: BTreeMap<&str, v1::Interface> = BTreeMap::new();
    for (name, device, rate) in rates {
        if let Some(what) = pressure(name) {
            detail.pressure.insert(what.to_owned(), rate);
        } else if name.starts_with("node_disk_") {
            let disk = disks.entry(device).or_default();
            match name {
                "node_disk_io_time_seconds_total" => disk.busy_ratio = Some(rate.min(1.0)),
                "node_disk_read_bytes_total" => disk.read_bytes_per_second = Some(rate),
                "node_disk_written_bytes_total" => disk.written_bytes_per_second = Some(rate),
                _ => {}
            }
        } else if name.starts_with("node_network_") && device != "lo" {
            let interface = interfaces.entry(device).or_default();
            match name {
                "node_network_receive_bytes_total" => {
                    interface.receive_bytes_per_second = Some(rate);
                }
                "node_network_transmit_bytes_total" => {
                    interface.transmit_bytes_per_second = Some(rate);
                }
                "node_network_receive_errs_total" | "node_network_transmit_errs_total" => {
                    *interface.errors_per_second.get_or_insert(0.0) += rate;
                }
                _ => {}
            }
        }
    }
    detail.disks = disks
        .into_iter()
        .map(|(device, disk)| v1::Disk {
            device: device.to_owned(),
            ..disk
        })
        .collect();
    detail.interfaces = interfaces
        .into_iter()
        .map(|(device, interface)| v1::Interface {
            device: device.to_owned(),
            ..interface
        })
        .collect();
}

/// What a family of pressure stall information tells, in the words of the contract.
fn pressure(family: &str) -> Option<&'static str> {
    match family {
        "node_pressure_cpu_waiting_seconds_total" => Some("cpu some"),
        "node_pressure_memory_waiting_seconds_total" => Some("memory some"),
        "node_pressure_memory_stalled_seconds_total" => Some("memory full"),
        "node_pressure_io_waiting_seconds_total" => Some("io some"),
        "node_pressure_io_stalled_seconds_total" => Some("io full"),
        _ => None,
    }
}
