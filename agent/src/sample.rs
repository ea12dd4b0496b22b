//! One round as text: what `muster-agent sample` prints.
//!
//! Three forms: Prometheus' text format 0.0.4, JSON whose shape is part of the command line's promise, and
//! columns for people. All show the same values, in the catalogue's order; names the kernel makes follow.

use std::borrow::Cow;

use muster_proto::{
    catalog,
    exposition::{write_help, write_label_value, write_value},
    series::{Family, Kind, Scale, Series, Table},
    time::Timestamp,
};
use serde::Serialize;

/// Has a series for each state a unit is not in.
const UNIT_STATE: &str = "node_systemd_unit_state";

/// A form in which a round is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Columns, for people.
    Text,
    /// One JSON object and a line end.
    Json,
    /// Prometheus' text format 0.0.4.
    Prometheus,
}

/// The values of `table`, which are those of `tick`, in this form.
#[must_use]
pub fn render(table: &Table, tick: Timestamp, format: Format) -> Vec<u8> {
    match format {
        Format::Text => text(table),
        Format::Json => json(table, tick),
        Format::Prometheus => prometheus(table),
    }
}

/// Each family with its series that have a value: families in their order, series sorted by labels.
fn grouped(table: &Table) -> Vec<(&Family, Vec<(&Series, f64)>)> {
    let mut groups: Vec<(&Family, Vec<(&Series, f64)>)> = table
        .families
        .iter()
        .map(|family| (family, Vec::new()))
        .collect();
    for (place, series) in table.series.iter().enumerate() {
        if table.present[place]
            && let Some((family, members)) = groups.get_mut(series.family as usize)
        {
            members.push((series, family.scale.value(table.raw[place])));
        }
    }
    groups.retain(|(_, members)| !members.is_empty());
    for (_, members) in &mut groups {
        members.sort_by(|(a, _), (b, _)| a.labels.cmp(&b.labels));
    }
    groups
}

fn prometheus(table: &Table) -> Vec<u8> {
    let mut out = Vec::new();
    for (family, members) in grouped(table) {
        let name = family.name.as_bytes();
        out.extend_from_slice(b"# HELP ");
        out.extend_from_slice(name);
        out.push(b' ');
        write_help(&mut out, catalog::help(&family.name));
        out.extend_from_slice(b"\n# TYPE ");
        out.extend_from_slice(name);
        out.push(b' ');
        out.extend_from_slice(kind_word(family.kind).as_bytes());
        out.push(b'\n');
        for (series, value) in members {
            out.extend_from_slice(name);
            write_labels(&mut out, family, series);
            out.push(b' ');
            write_value(&mut out, value);
            out.push(b'\n');
        }
    }
    out
}

/// The labels in braces; those with an empty value are as good as absent and left out.
fn write_labels(out: &mut Vec<u8>, family: &Family, series: &Series) {
    let mut before = b'{';
    for (name, value) in family.labels.iter().zip(&series.labels) {
        if value.is_empty() {
            continue;
        }
        out.push(before);
        before = b',';
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"=\"");
        write_label_value(out, value);
        out.push(b'"');
    }
    if before == b',' {
        out.push(b'}');
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Untyped => "untyped",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    api_version: &'static str,
    kind: &'static str,
    /// RFC 3339, UTC.
    tick: String,
    items: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    name: &'a str,
    labels: serde_json::Map<String, serde_json::Value>,
    /// JSON knows no infinities and no NaN: then null.
    value: serde_json::Value,
    r#type: &'static str,
}

fn json(table: &Table, tick: Timestamp) -> Vec<u8> {
    let mut items = Vec::new();
    for (family, members) in grouped(table) {
        for (series, value) in members {
            let labels = family.labels.iter().zip(&series.labels);
            items.push(Item {
                name: &family.name,
                labels: labels
                    .filter(|(_, value)| !value.is_empty())
                    .map(|(name, value)| (name.clone(), value.as_str().into()))
                    .collect(),
                value: json_number(value),
                r#type: kind_word(family.kind),
            });
        }
    }
    let document = Document {
        api_version: "muster/v1",
        kind: "Sample",
        tick: tick.to_string(),
        items,
    };
    let mut out = serde_json::to_vec_pretty(&document)
        .expect("maps with text keys, numbers and text always have a JSON form");
    out.push(b'\n');
    out
}

/// Whole numbers without a fraction, as the other forms print them.
fn json_number(value: f64) -> serde_json::Value {
    let mut printed = Vec::new();
    write_value(&mut printed, value);
    serde_json::from_slice(&printed).unwrap_or(serde_json::Value::Null)
}

/// One line for each series: value, unit, labels; a heading for each collector's families. Of a unit's
/// five states only the one it is in.
fn text(table: &Table) -> Vec<u8> {
    let mut out = String::new();
    let mut heading = "";
    for (family, members) in grouped(table) {
        let group = group_of(&family.name);
        if group != heading {
            if !heading.is_empty() {
                out.push('\n');
            }
            out.push_str(group);
            out.push('\n');
            heading = group;
        }
        for (series, value) in members {
            if family.name == UNIT_STATE && value == 0.0 {
                continue;
            }
            let values: Vec<&str> = series
                .labels
                .iter()
                .map(String::as_str)
                .filter(|value| !value.is_empty())
                .collect();
            let shown = readable(family, value);
            out.push_str(&format!("  {:<44} {shown:>14}", family.name));
            if !values.is_empty() {
                out.push_str("  ");
                out.push_str(&values.join("  "));
            }
            out.push('\n');
        }
    }
    out.into_bytes()
}

/// The word of a family's name that tells what it is about: "cpu" of `node_cpu_seconds_total`.
fn group_of(name: &str) -> &str {
    let own = name
        .strip_prefix("node_")
        .or_else(|| name.strip_prefix("muster_host_"))
        .or_else(|| name.strip_prefix("muster_"));
    let word = own.unwrap_or(name).split('_').next().unwrap_or(name);
    match word {
        "load1" | "load5" | "load15" => "load",
        "context" | "forks" | "intr" | "procs" | "boot" => "kernel",
        "exporter" | "scrape" => "agent",
        word => word,
    }
}

/// The value with a unit that suits its size, where the name ends in bytes; else as it is.
fn readable(family: &Family, value: f64) -> Cow<'static, str> {
    let bytes = family.name.ends_with("_bytes") || family.name.ends_with("_bytes_total");
    if bytes && value >= 1024.0 {
        let mut scaled = value;
        let mut unit = "B";
        for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            if scaled < 1024.0 {
                break;
            }
            scaled /= 1024.0;
            unit = larger;
        }
        return format!("{scaled:.1} {unit}").into();
    }
    if family.scale == Scale::Nano {
        return format!("{value:.6}").into();
    }
    let mut printed = Vec::new();
    write_value(&mut printed, value);
    String::from_utf8_lossy(&printed).into_owned().into()
}

#[cfg(test)]
mod tests {
    use muster_proto::catalog::{DISK_IO_NOW, LOAD1, SYSTEMD_UNIT_STATE};

    use super::*;
    use crate::collect::Readings;

    fn table(readings: &mut Readings) -> &Table {
        readings.begin(0);
        let memory = readings
            .dynamic_family("node_memory_MemTotal_bytes", Kind::Gauge, Scale::Kibi, &[])
            .expect("a good name");
        readings.int(memory, &[], 2_097_152);
        readings.int(DISK_IO_NOW, &["sdb"], 2);
        readings.int(DISK_IO_NOW, &["s\"d\\a"], 1);
        readings.int(LOAD1, &[], 52);
        readings.int(SYSTEMD_UNIT_STATE, &["a.socket", "active", ""], 1);
        readings.int(SYSTEMD_UNIT_STATE, &["a.socket", "failed", ""], 0);
        readings.end(true);
        readings.table()
    }

    #[test]
    fn prometheus_has_each_family_once_with_sorted_series() {
        let mut readings = Readings::default();
        let page = prometheus(table(&mut readings));
        let page = String::from_utf8(page).expect("UTF-8");
        let expected = "# HELP node_load1 Load average over 1 minute.\n\
            # TYPE node_load1 gauge\n\
            node_load1 0.52\n\
            # HELP node_disk_io_now Requests in flight.\n\
            # TYPE node_disk_io_now gauge\n\
            node_disk_io_now{device=\"s\\\"d\\\\a\"} 1\n\
            node_disk_io_now{device=\"sdb\"} 2\n\
            # HELP node_systemd_unit_state 1 for the state the unit is in, 0 for the other states; type is the service's Type.\n\
            # TYPE node_systemd_unit_state gauge\n\
            node_systemd_unit_state{name=\"a.socket\",state=\"active\"} 1\n\
            node_systemd_unit_state{name=\"a.socket\",state=\"failed\"} 0\n\
            # HELP node_memory_MemTotal_bytes Usable RAM.\n\
            # TYPE node_memory_MemTotal_bytes gauge\n\
            node_memory_MemTotal_bytes 2147483648\n";
        assert_eq!(page, expected);
    }

    #[test]
    fn json_keeps_its_shape() {
        let mut readings = Readings::default();
        let page = json(table(&mut readings), Timestamp::from_millis(1500));
        let page: serde_json::Value = serde_json::from_slice(&page).expect("JSON");
        assert_eq!(page["apiVersion"], "muster/v1");
        assert_eq!(page["tick"], "1970-01-01T00:00:01.500Z");
        assert_eq!(
            page["items"][1],
            serde_json::json!({
                "name": "node_disk_io_now",
                "labels": {"device": "s\"d\\a"},
                "value": 1,
                "type": "gauge",
            })
        );
        assert_eq!(json_number(f64::NAN), serde_json::Value::Null);
    }

    #[test]
    fn text_has_headings_and_readable_bytes() {
        let mut readings = Readings::default();
        let page = text(table(&mut readings));
        let page = String::from_utf8(page).expect("UTF-8");
        let headings: Vec<&str> = page
            .lines()
            .filter(|l| !l.starts_with(' ') && !l.is_empty())
            .collect();
        assert_eq!(headings, ["load", "disk", "systemd", "memory"]);
        assert!(page.contains("2.0 GiB\n"), "{page}");
        assert!(
            page.contains("a.socket  active\n") && !page.contains("failed"),
            "{page}"
        );
    }
}
