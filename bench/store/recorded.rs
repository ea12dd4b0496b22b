//! A recording of an exporter's pages as a source of samples, and how one is made.
//!
//! The file is gzip of, for each scrape, a line `#@ <unix ms> <bytes>` and the page as it was served. A family's
//! unit is the coarsest decimal one in which every value of the recording is a whole number, as the kernel printed it
//! and an agent sends it; where there is none, it is of floats. So nothing is rounded.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use muster_proto::{
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::{Clock as _, SystemClock},
};

use crate::http::request;

/// Units in the order in which they are tried, with what a value is multiplied by.
const UNITS: [(Scale, f64); 5] = [
    (Scale::One, 1.0),
    (Scale::Centi, 1e2),
    (Scale::Milli, 1e3),
    (Scale::Micro, 1e6),
    (Scale::Nano, 1e9),
];

/// Whole numbers up to here are exact in an `f64`.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// What was recorded.
pub(crate) struct Recording {
    /// All series; without values.
    pub(crate) table: Table,
    /// Time of each scrape, and its values by the place of their series.
    pub(crate) scrapes: Vec<(i64, Vec<(usize, Raw)>)>,
}

impl Recording {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut input = BufReader::new(GzDecoder::new(file));
        let mut parser = Parser::default();
        // A recording that was broken off ends at its last whole scrape.
        while let Ok(Some((at, page))) = next_scrape(&mut input) {
            parser.scrape(at, &page)?;
        }
        ensure!(
            parser.scrapes.len() > 1,
            "{} holds no recording",
            path.display()
        );
        Ok(parser.finish())
    }
}

fn next_scrape(input: &mut impl std::io::BufRead) -> anyhow::Result<Option<(i64, String)>> {
    let mut head = String::new();
    if input.read_line(&mut head)? == 0 {
        return Ok(None);
    }
    let mut words = head.split_whitespace();
    ensure!(words.next() == Some("#@"), "no recording");
    let at = words.next().context("no time")?.parse()?;
    let length: usize = words.next().context("no length")?.parse()?;
    let mut page = vec![0; length];
    input.read_exact(&mut page)?;
    Ok(Some((at, String::from_utf8(page)?)))
}

#[derive(Default)]
struct Parser {
    kinds: HashMap<String, Kind>,
    families: HashMap<(String, Vec<String>), u32>,
    places: HashMap<String, usize>,
    table: Table,
    scrapes: Vec<(i64, Vec<(usize, f64)>)>,
}

impl Parser {
    fn scrape(&mut self, at: i64, page: &str) -> anyhow::Result<()> {
        let mut values = Vec::new();
        for line in page.lines() {
            if let Some(told) = line.strip_prefix("# TYPE ") {
                let (name, kind) = told.split_once(' ').unwrap_or((told, ""));
                let kind = match kind {
                    "counter" | "histogram" | "summary" => Kind::Counter,
                    "gauge" => Kind::Gauge,
                    _ => Kind::Untyped,
                };
                self.kinds.entry(name.to_owned()).or_insert(kind);
            } else if !line.starts_with('#')
                && let Some((series, value)) = line.rsplit_once(' ')
            {
                let value = value.parse().with_context(|| format!("value of {line}"))?;
                values.push((self.place(series)?, value));
            }
        }
        self.scrapes.push((at, values));
        Ok(())
    }

    fn place(&mut self, series: &str) -> anyhow::Result<usize> {
        if let Some(place) = self.places.get(series) {
            return Ok(*place);
        }
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels_of(labels).with_context(|| format!("labels of {series}"))?;
        let (names, values): (Vec<String>, Vec<String>) = labels.into_iter().unzip();
        let next = u32::try_from(self.table.families.len())?;
        let family = *self
            .families
            .entry((name.to_owned(), names.clone()))
            .or_insert(next);
        if family == next {
            let of = |name: &str| self.kinds.get(name).copied();
            let base = ["_bucket", "_sum", "_count"].iter();
            let base = base.filter_map(|end| name.strip_suffix(end)).find_map(of);
            self.table.families.push(Family {
                name: name.to_owned(),
                kind: of(name).or(base).unwrap_or(Kind::Untyped),
                scale: Scale::Float,
                labels: names,
            });
        }
        let place = self.table.series.len();
        self.table.series.push(Series {
            family,
            labels: values,
        });
        self.table.raw.push(Raw(0));
        self.table.present.push(false);
        self.places.insert(series.to_owned(), place);
        Ok(place)
    }

    fn finish(mut self) -> Recording {
        let mut fits = vec![[true; UNITS.len()]; self.table.families.len()];
        for (place, value) in self.scrapes.iter().flat_map(|(_, values)| values) {
            let family = self.table.series[*place].family as usize;
            for (fits, (scale, factor)) in fits[family].iter_mut().zip(UNITS) {
                *fits &= whole(*value, scale, factor).is_some();
            }
        }
        let mut factors = Vec::new();
        for (family, fits) in self.table.families.iter_mut().zip(fits) {
            let unit = UNITS.iter().zip(fits).find(|(_, fits)| *fits);
            family.scale = unit.map_or(Scale::Float, |((scale, _), _)| *scale);
            factors.push(unit.map_or(1.0, |((_, factor), _)| *factor));
        }
        let raw = |(place, value): (usize, f64)| {
            let family = self.table.series[place].family as usize;
            let scale = self.table.families[family].scale;
            let raw = whole(value, scale, factors[family]).unwrap_or_else(|| Raw::float(value));
            (place, raw)
        };
        let scrapes = self.scrapes.into_iter();
        Recording {
            scrapes: scrapes
                .map(|(at, values)| (at, values.into_iter().map(raw).collect()))
                .collect(),
            table: self.table,
        }
    }
}

/// The value as a whole number of a unit, if it is one exactly.
fn whole(value: f64, scale: Scale, factor: f64) -> Option<Raw> {
    let scaled = (value * factor).round();
    if scale == Scale::Float || scaled.is_nan() || scaled.abs() >= EXACT {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 2^53")]
    let raw = Raw::int(scaled as i64);
    (scale.value(raw).to_bits() == value.to_bits()).then_some(raw)
}

/// `a="b",c="d"}` taken apart.
fn labels_of(text: &str) -> Option<Vec<(String, String)>> {
    let mut labels = Vec::new();
    let mut rest = text.trim_end_matches('}');
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next()? {
                (at, '"') => break at,
                (_, '\\') => match letters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        rest = after[end + 1..].trim_start_matches(',');
    }
    Some(labels)
}

struct Exporter(Child);

impl Drop for Exporter {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Records the distribution's node_exporter on this machine, with its default collectors, once a second.
pub(crate) fn record(path: &Path, seconds: u64) -> anyhow::Result<()> {
    let address = free()?;
    let exporter = Command::new("prometheus-node-exporter")
        .arg(format!("--web.listen-address={address}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start prometheus-node-exporter: install the package of that name")?;
    let _exporter = Exporter(exporter);
    thread::sleep(Duration::from_secs(2));
    let mut out = GzEncoder::new(File::create(path)?, Compression::fast());
    let began = Instant::now();
    for second in 0..seconds {
        thread::sleep(Duration::from_secs(second).saturating_sub(began.elapsed()));
        let at = SystemClock.now().as_millis();
        let (status, page) = request(address, "GET", "/metrics", &[], &[])?;
        ensure!(status == 200, "node_exporter answers {status}");
        writeln!(out, "#@ {at} {}", page.len())?;
        out.write_all(&page)?;
    }
    out.finish()?;
    Ok(())
}

/// An address nobody listens on.
pub(crate) fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
