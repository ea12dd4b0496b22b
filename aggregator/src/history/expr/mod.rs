//! The small language of `muster query`: what it can say, without how it is read ([`parse`]) or answered ([`eval`]).
//!
//! `docs/query.md` is its manual. An expression is evaluated at one moment or at many; at each it is a list of
//! series, told apart by labels, with one value each.

pub mod eval;
pub mod parse;

use super::{LabelMatch, fold::Fold};

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// A number.
    Number(f64),
    /// A metric.
    Select(Box<Select>),
    /// Series of the same values for these labels become one.
    Group {
        /// How.
        how: Group,
        /// Labels that stay.
        by: Vec<String>,
        /// Of what.
        of: Box<Expr>,
    },
    /// The largest or smallest few at each moment.
    Top {
        /// How many.
        count: usize,
        /// The largest.
        largest: bool,
        /// Of what.
        of: Box<Expr>,
    },
    /// Two sides with the same labels, or with a number at one side.
    Binary {
        /// What is done.
        op: Op,
        /// One side.
        left: Box<Expr>,
        /// The other.
        right: Box<Expr>,
    },
}

/// A metric, of some hosts, folded over a span before each moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Select {
    /// Its name.
    pub metric: String,
    /// What its labels must be.
    pub labels: Vec<LabelMatch>,
    /// Patterns of host names; empty: all that are asked about.
    pub hosts: Vec<String>,
    /// How long before each moment; `None`: the usual.
    pub span_ms: Option<i64>,
    /// What becomes of the values in it.
    pub over: Over,
}

/// What becomes of values over time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Over {
    /// As in `--agg`.
    Fold(Fold),
    /// The value below which this share of the samples lies.
    Quantile(f64),
}

/// How series become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Group {
    /// The sum.
    Sum,
    /// The mean.
    Avg,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// How many.
    Count,
    /// The value below which this share of them lies.
    Quantile(f64),
}

/// What two sides become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is its own sign")]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    Equal,
    NotEqual,
}

impl Op {
    /// The value, or nothing where a comparison does not hold: it keeps the left side.
    #[must_use]
    pub fn apply(self, left: f64, right: f64) -> Option<f64> {
        let kept = |holds: bool| holds.then_some(left);
        match self {
            Self::Add => Some(left + right),
            Self::Sub => Some(left - right),
            Self::Mul => Some(left * right),
            Self::Div => Some(left / right),
            Self::Greater => kept(left > right),
            Self::GreaterEqual => kept(left >= right),
            Self::Less => kept(left < right),
            Self::LessEqual => kept(left <= right),
            #[expect(clippy::float_cmp, reason = "that is what == asks")]
            Self::Equal => kept(left == right),
            #[expect(clippy::float_cmp, reason = "that is what != asks")]
            Self::NotEqual => kept(left != right),
        }
    }
}

/// Names that stand for expressions: what lists of hosts show, over time.
pub const DERIVED: &[(&str, &str)] = &[
    (
        "cpu",
        "1 - sum by (host) (rate(node_cpu_seconds_total{mode=idle|iowait})) / sum by (host) (rate(node_cpu_seconds_total))",
    ),
    (
        "mem",
        "1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes",
    ),
    ("load", "node_load1"),
    (
        "disk",
        "max by (host) (1 - node_filesystem_avail_bytes / node_filesystem_size_bytes)",
    ),
    (
        "io",
        "max by (host) (rate(node_disk_io_time_seconds_total))",
    ),
    (
        "net",
        "sum by (host) (rate(node_network_receive_bytes_total{device!=lo})) + sum by (host) (rate(node_network_transmit_bytes_total{device!=lo}))",
    ),
];
