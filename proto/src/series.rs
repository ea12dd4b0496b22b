//! The shape of what a host tells: families, series and their raw values.
//!
//! A family is one metric with its type and label names; a series is one family with one value for each
//! label. Values travel as the kernel printed them, as whole numbers, with the [`Scale`] that turns them
//! into base units beside the family: a tick count of 1/100 s stays a small integer on the way, and both
//! ends compute the same seconds from it.

use serde::{Deserialize, Serialize};

/// What kind of number a family holds, in Prometheus' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Only grows, or restarts at 0.
    Counter,
    /// Goes up and down.
    Gauge,
    /// node_exporter declares it untyped (`/proc/vmstat`, `/proc/net/netstat`): kept as it is.
    Untyped,
}

/// How a raw value becomes base units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scale {
    /// The raw integer is the value.
    One,
    /// Raw KiB, as `/proc/meminfo` prints them, to bytes.
    Kibi,
    /// Raw sectors of 512 bytes, whatever the disk says (kernel Documentation/block/stat.rst), to bytes.
    Sector,
    /// Raw 1/100: clock ticks of `/proc/stat` (USER_HZ is 100 on every Linux architecture Muster builds
    /// for), load averages.
    Centi,
    /// Raw 1/1000.
    Milli,
    /// Raw 1/1,000,000.
    Micro,
    /// Raw 1/1,000,000,000.
    Nano,
    /// The raw bits are those of an `f64`.
    Float,
}

/// A value as it travels: the bits of an `i64`, or of an `f64` where the family's scale is
/// [`Scale::Float`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raw(pub u64);

impl Raw {
    /// A whole number. Kernel counters above `i64::MAX` do not occur in a machine's life.
    #[must_use]
    pub const fn int(value: i64) -> Self {
        Self(value.cast_unsigned())
    }

    /// A whole number that cannot be negative; the largest value stands for anything above it.
    #[must_use]
    pub fn unsigned(value: u64) -> Self {
        Self::int(i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// A floating-point number.
    #[must_use]
    pub fn float(value: f64) -> Self {
        Self(value.to_bits())
    }

    /// The whole number.
    #[must_use]
    pub const fn as_int(self) -> i64 {
        self.0.cast_signed()
    }
}

impl Scale {
    /// The value in base units.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "Prometheus values are f64; node_exporter loses the same bits above 2^53"
    )]
    pub fn value(self, raw: Raw) -> f64 {
        let int = raw.as_int();
        match self {
            Self::One => int as f64,
            Self::Kibi => int as f64 * 1024.0,
            Self::Sector => int as f64 * 512.0,
            Self::Centi => int as f64 / 100.0,
            Self::Milli => int as f64 / 1_000.0,
            Self::Micro => int as f64 / 1_000_000.0,
            Self::Nano => int as f64 / 1_000_000_000.0,
            Self::Float => f64::from_bits(raw.0),
        }
    }
}

/// One metric: name, type, unit, label names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Family {
    /// Prometheus name.
    pub name: String,
    /// Type.
    pub kind: Kind,
    /// Unit of the raw values.
    pub scale: Scale,
    /// Label names in the order in which series give their values.
    pub labels: Vec<String>,
}

/// One series of a [`Table`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// Index into [`Table::families`].
    pub family: u32,
    /// One value for each label name of the family.
    pub labels: Vec<String>,
}

/// Families, series and the latest raw value of each: what the encoder reads after a round.
///
/// `series`, `raw` and `present` run side by side. A series that is not `present` has no value now; its
/// place may be given to another series later (`generation` tells the encoder).
#[derive(Debug, Default)]
pub struct Table {
    /// All families ever seen; grows only.
    pub families: Vec<Family>,
    /// All places.
    pub series: Vec<Series>,
    /// Latest value of each place.
    pub raw: Vec<Raw>,
    /// Whether the place has a value now.
    pub present: Vec<bool>,
    /// Grows when a place is given to another series; the encoder then begins with a key frame.
    pub generation: u64,
}

impl Table {
    /// Number of series with a value now.
    #[must_use]
    pub fn present_count(&self) -> usize {
        self.present.iter().filter(|&&present| present).count()
    }
}

/// Whether `name` is a legal Prometheus metric name: `[a-zA-Z_:][a-zA-Z0-9_:]*`, and within limits.
#[must_use]
pub fn is_metric_name(name: &str) -> bool {
    name.len() <= crate::limits::MAX_NAME_BYTES && is_word(name, b":_")
}

/// Whether `name` is a legal label name that Prometheus does not reserve: `[a-zA-Z_][a-zA-Z0-9_]*`
/// without two leading underscores.
#[must_use]
pub fn is_label_name(name: &str) -> bool {
    name.len() <= crate::limits::MAX_NAME_BYTES && is_word(name, b"_") && !name.starts_with("__")
}

fn is_word(name: &str, also: &[u8]) -> bool {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || also.contains(byte);
    name.bytes()
        .next()
        .is_some_and(|first| !first.is_ascii_digit())
        && name.as_bytes().iter().all(legal)
}
