//! Text to expression, with the place of what is wrong.
//!
//! ```text
//! compare  = sum [("=="|"!="|">="|"<="|">"|"<") sum]
//! sum      = product (("+"|"-") product)*
//! product  = atom (("*"|"/") atom)*
//! atom     = number | "(" compare ")" | "topk" "(" number "," compare ")" | over | group | select
//! over     = rate|increase|last|avg_over|min_over|max_over|sum_over|count_over "(" select ")"
//!          | "quantile_over" "(" number "," select ")"
//! group    = sum|avg|min|max|count ["by" "(" labels ")"] "(" compare ")" | "quantile" […] "(" number "," compare ")"
//! select   = name ["{" label ("="|"!=") pattern ("|" pattern)* ("," …)* "}"] ["@" hosts] ["[" span "]"]
//! ```

use muster_agent::settings;
use muster_proto::{series, time::duration_millis};

use super::{DERIVED, Expr, Group, Op, Over, Select};
use crate::history::{LabelMatch, fold::Fold};

/// Deepest nesting: far more than anybody writes.
const MAX_DEPTH: usize = 32;

/// Most operators in one expression. A chain of them is a tree as deep as it is long, and whoever walks it needs
/// stack for each level.
const MAX_OPERATORS: usize = 64;

/// Longest text.
pub const MAX_BYTES: usize = 4096;

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {what}")]
pub struct ParseError {
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong, and what may stand there.
    pub what: String,
}

/// Reads an expression.
///
/// # Errors
/// Where it is none.
pub fn parse(text: &str) -> Result<Expr, ParseError> {
    let mut parser = Parser {
        text,
        at: 0,
        depth: 0,
        operators: 0,
    };
    if text.len() > MAX_BYTES {
        return Err(parser.error(format!("longer than {MAX_BYTES} bytes")));
    }
    let expr = parser.compare()?;
    parser.blank();
    if parser.at < text.len() {
        return Err(parser.error("nothing more may stand here".into()));
    }
    Ok(expr)
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    operators: usize,
}

/// Functions over time.
const OVERS: [(&str, Fold); 8] = [
    ("rate", Fold::Rate),
    ("increase", Fold::Increase),
    ("last", Fold::Last),
    ("avg_over", Fold::Avg),
    ("min_over", Fold::Min),
    ("max_over", Fold::Max),
    ("sum_over", Fold::Sum),
    ("count_over", Fold::Count),
];

/// What makes one of many.
const GROUPS: [(&str, Group); 5] = [
    ("sum", Group::Sum),
    ("avg", Group::Avg),
    ("min", Group::Min),
    ("max", Group::Max),
    ("count", Group::Count),
];

impl Parser<'_> {
    fn error(&self, what: String) -> ParseError {
        ParseError {
            column: self.text[..self.at.min(self.text.len())].chars().count() + 1,
            what,
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn blank(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn take(&mut self, sign: &str) -> bool {
        self.blank();
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), ParseError> {
        if self.take(sign) {
            return Ok(());
        }
        Err(self.error(format!("expected {sign:?}")))
    }

    /// The longest run of such characters.
    fn run(&mut self, legal: impl Fn(char) -> bool) -> &str {
        let start = self.at;
        let length = self.rest().find(|c| !legal(c)).unwrap_or(self.rest().len());
        self.at += length;
        &self.text[start..start + length]
    }

    fn deeper<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, ParseError>,
    ) -> Result<T, ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("nested more than {MAX_DEPTH} deep")));
        }
        let read = read(self);
        self.depth -= 1;
        read
    }

    /// Both sides with what stands between them.
    fn both(&mut self, op: Op, left: Expr, right: Expr) -> Result<Expr, ParseError> {
        self.operators += 1;
        if self.operators > MAX_OPERATORS {
            return Err(self.error(format!("more than {MAX_OPERATORS} operators")));
        }
        Ok(Expr::Binary {
            op,
            left: Box::new(left),
            right: Box::new(right),
        })
    }

    fn compare(&mut self) -> Result<Expr, ParseError> {
        let left = self.sum()?;
        for (sign, op) in [
            ("==", Op::Equal),
            ("!=", Op::NotEqual),
            (">=", Op::GreaterEqual),
            ("<=", Op::LessEqual),
            (">", Op::Greater),
            ("<", Op::Less),
        ] {
            if self.take(sign) {
                let right = self.sum()?;
                return self.both(op, left, right);
            }
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr, ParseError> {
        let mut left = self.product()?;
        loop {
            let op = if self.take("+") {
                Op::Add
            } else if self.take("-") {
                Op::Sub
            } else {
                return Ok(left);
            };
            let right = self.product()?;
            left = self.both(op, left, right)?;
        }
    }

    fn product(&mut self) -> Result<Expr, ParseError> {
        let mut left = self.atom()?;
        loop {
            let op = if self.take("*") {
                Op::Mul
            } else if self.take("/") {
                Op::Div
            } else {
                return Ok(left);
            };
            let right = self.atom()?;
            left = self.both(op, left, right)?;
        }
    }

    fn atom(&mut self) -> Result<Expr, ParseError> {
        self.blank();
        if self
            .rest()
            .starts_with(|c: char| c.is_ascii_digit() || c == '.')
        {
            return self.number().map(Expr::Number);
        }
        if self.take("(") {
            let inside = self.deeper(Self::compare)?;
            self.expect(")")?;
            return Ok(inside);
        }
        let start = self.at;
        let name = self
            .run(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
            .to_owned();
        if name.is_empty() {
            return Err(self.error("expected a metric, a function, a number or (".into()));
        }
        self.blank();
        let calls = self.rest().starts_with('(');
        let grouped = calls || self.rest().starts_with("by");
        if let Some((_, how)) = GROUPS.iter().find(|(known, _)| grouped && *known == name) {
            return self.deeper(|parser| parser.group(*how));
        }
        if calls {
            return self.deeper(|parser| parser.call(&name, start));
        }
        if name == "quantile" && grouped {
            return self.deeper(|parser| parser.group(Group::Quantile(0.0)));
        }
        self.at = start;
        self.select_or_derived()
    }

    fn call(&mut self, name: &str, start: usize) -> Result<Expr, ParseError> {
        if name == "quantile" {
            return self.group(Group::Quantile(0.0));
        }
        if let Some((_, fold)) = OVERS.iter().find(|(known, _)| *known == name) {
            self.expect("(")?;
            let mut select = self.select()?;
            select.over = Over::Fold(*fold);
            self.expect(")")?;
            return Ok(Expr::Select(Box::new(select)));
        }
        match name {
            "quantile_over" => {
                self.expect("(")?;
                let share = self.share()?;
                self.expect(",")?;
                let mut select = self.select()?;
                select.over = Over::Quantile(share);
                self.expect(")")?;
                Ok(Expr::Select(Box::new(select)))
            }
            "topk" | "bottomk" => {
                self.expect("(")?;
                self.blank();
                let digits = self.run(|c| c.is_ascii_digit()).to_owned();
                let count = digits
                    .parse()
                    .ok()
                    .filter(|count| *count > 0)
                    .ok_or_else(|| self.error("expected how many".into()))?;
                self.expect(",")?;
                let of = Box::new(self.compare()?);
                self.expect(")")?;
                let largest = name == "topk";
                Ok(Expr::Top { count, largest, of })
            }
            _ => {
                self.at = start;
                Err(self.error(format!(
                    "there is no function {name:?}; there are {}, quantile_over, sum, avg, min, max, count, quantile, topk, bottomk",
                    OVERS.map(|(known, _)| known).join(", ")
                )))
            }
        }
    }

    fn group(&mut self, how: Group) -> Result<Expr, ParseError> {
        let mut by = Vec::new();
        if self.take("by") {
            self.expect("(")?;
            while !self.take(")") {
                self.blank();
                let label = self
                    .run(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
                    .to_owned();
                if label.is_empty() {
                    return Err(self.error("expected a label or )".into()));
                }
                by.push(label);
                self.take(",");
            }
        }
        self.expect("(")?;
        let how = match how {
            Group::Quantile(_) => {
                let share = self.share()?;
                self.expect(",")?;
                Group::Quantile(share)
            }
            how => how,
        };
        let of = Box::new(self.compare()?);
        self.expect(")")?;
        Ok(Expr::Group { how, by, of })
    }

    fn number(&mut self) -> Result<f64, ParseError> {
        self.blank();
        let start = self.at;
        let digits = self
            .run(|c| c.is_ascii_digit() || c == '.' || c == 'e' || c == 'E')
            .to_owned();
        digits.parse().map_err(|_| {
            self.at = start;
            self.error("expected a number".into())
        })
    }

    fn share(&mut self) -> Result<f64, ParseError> {
        let at = self.at;
        let share = self.number()?;
        if (0.0..=1.0).contains(&share) {
            return Ok(share);
        }
        self.at = at;
        Err(self.error("a share is a number from 0 to 1".into()))
    }

    fn select_or_derived(&mut self) -> Result<Expr, ParseError> {
        let start = self.at;
        let select = self.select()?;
        let Some((_, text)) = DERIVED.iter().find(|(name, _)| *name == select.metric) else {
            return Ok(Expr::Select(Box::new(select)));
        };
        if !select.labels.is_empty() {
            self.at = start;
            return Err(self.error(format!(
                "{} is made of several metrics and has no labels but the host's",
                select.metric
            )));
        }
        // What it stands for, of the hosts and over the span that were asked for.
        let mut expr = parse(text)?;
        narrow(&mut expr, &select);
        Ok(expr)
    }

    fn select(&mut self) -> Result<Select, ParseError> {
        self.blank();
        let start = self.at;
        let metric = self
            .run(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
            .to_owned();
        if !series::is_metric_name(&metric) {
            self.at = start;
            return Err(self.error("expected the name of a metric".into()));
        }
        let mut select = Select {
            metric,
            labels: Vec::new(),
            hosts: Vec::new(),
            span_ms: None,
            over: Over::Fold(Fold::Last),
        };
        if self.rest().starts_with('{') {
            self.at += 1;
            while !self.take("}") {
                let label = self.label()?;
                select.labels.push(label);
                if !self.take(",") {
                    self.expect("}")?;
                    break;
                }
            }
        }
        if self.rest().starts_with('@') {
            self.at += 1;
            let start = self.at;
            let hosts = self
                .run(|c| c.is_ascii_alphanumeric() || "-_.*?".contains(c))
                .to_owned();
            if hosts.is_empty() {
                self.at = start;
                return Err(self.error("expected the name of a host, * for anything".into()));
            }
            select.hosts.push(hosts);
        }
        if self.rest().starts_with('[') {
            self.at += 1;
            let start = self.at;
            let text = self.run(|c| c.is_ascii_alphanumeric()).to_owned();
            let span = settings::parse_duration(&text).filter(|span| !span.is_zero());
            let Some(span) = span else {
                self.at = start;
                return Err(self.error("expected a span: 5m, 1h".into()));
            };
            select.span_ms = Some(duration_millis(span));
            self.expect("]")?;
        }
        Ok(select)
    }

    fn label(&mut self) -> Result<LabelMatch, ParseError> {
        self.blank();
        let start = self.at;
        let label = self
            .run(|c| c.is_ascii_alphanumeric() || c == '_')
            .to_owned();
        if !series::is_label_name(&label) {
            self.at = start;
            return Err(self.error("expected the name of a label".into()));
        }
        let negated = self.take("!=");
        if !negated {
            self.expect("=")?;
        }
        self.blank();
        let value = if self.take("\"") {
            let value = self.run(|c| c != '"').to_owned();
            self.expect("\"")?;
            value
        } else {
            self.run(|c| c != ',' && c != '}').trim().to_owned()
        };
        Ok(LabelMatch {
            label,
            patterns: value.split('|').map(ToOwned::to_owned).collect(),
            negated,
        })
    }
}

fn narrow(expr: &mut Expr, like: &Select) {
    match expr {
        Expr::Number(_) => {}
        Expr::Select(select) => {
            select.hosts.clone_from(&like.hosts);
            select.span_ms = like.span_ms;
        }
        Expr::Group { of, .. } | Expr::Top { of, .. } => narrow(of, like),
        Expr::Binary { left, right, .. } => {
            narrow(left, like);
            narrow(right, like);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_said() {
        for text in [
            "node_load1",
            "node_load1@web-* > 4",
            "rate(node_network_receive_bytes_total{device!=lo|veth*}[5m]) * 8",
            "sum by (host, role) (rate(node_cpu_seconds_total{mode=\"idle\"}))",
            "sum(up) / count(up)",
            "topk(5, max_over(node_load1[1h]))",
            "quantile by (role) (0.9, node_load1)",
            "quantile(0.5, quantile_over(0.99, node_load1[1d]))",
            "1 - (node_a_bytes + 1.5e3) / node_b_bytes <= 0.5",
        ] {
            assert!(parse(text).is_ok(), "{text}: {:?}", parse(text));
        }
        for (name, text) in DERIVED {
            assert!(parse(text).is_ok(), "{name}");
            assert_eq!(parse(name), parse(text), "{name}");
        }
        let Ok(Expr::Binary { left, .. }) = parse("mem@db-1[1h] > 0.5") else {
            unreachable!("it is a comparison");
        };
        let Expr::Binary { right, .. } = *left else {
            unreachable!("1 - share");
        };
        let Expr::Binary { left, .. } = *right else {
            unreachable!("a / b");
        };
        let Expr::Select(select) = *left else {
            unreachable!("a metric");
        };
        assert_eq!(select.hosts, ["db-1"]);
        assert_eq!(select.span_ms, Some(3_600_000));
    }

    #[test]
    fn products_bind_closer_than_sums() {
        let one = parse("1 + 2 * 3 - 4");
        let other = parse("(1 + (2 * 3)) - 4");
        assert_eq!(one, other);
    }

    #[test]
    fn mistakes_have_a_place() {
        for (text, column, what) in [
            ("", 1, "expected a metric"),
            ("node_load1 node_load5", 12, "nothing more"),
            ("rat(node_load1)", 1, "there is no function \"rat\""),
            ("rate(node_load1", 16, "expected \")\""),
            ("node_x{a=b", 11, "expected \"}\""),
            ("node_x{9=b}", 8, "expected the name of a label"),
            ("node_x[soon]", 8, "expected a span"),
            ("node_x@ > 1", 8, "expected the name of a host"),
            ("topk(0, x)", 7, "expected how many"),
            ("quantile(2, x)", 10, "a share is"),
            ("cpu{mode=idle}", 1, "cpu is made of several"),
            ("x > ", 5, "expected a metric"),
            ("sum by (host (x)", 14, "expected a label"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!((error.column, text), (column, text), "{error}");
            assert!(error.what.starts_with(what), "{text}: {error}");
        }
        let deep = format!("{}1{}", "(".repeat(100), ")".repeat(100));
        assert!(parse(&deep).is_err_and(|error| error.what.starts_with("nested")));
    }

    #[test]
    fn a_long_chain_is_refused_before_it_overflows_the_stack() {
        for sign in ["+", "-", "*", "/"] {
            let chain = |operators: usize| format!("1{}", format!("{sign}1").repeat(operators));
            assert!(parse(&chain(MAX_OPERATORS)).is_ok(), "{sign}");
            for operators in [MAX_OPERATORS + 1, MAX_BYTES / 2 - 1] {
                let error = parse(&chain(operators)).expect_err("too long");
                assert!(error.what.starts_with("more than 64 operators"), "{error}");
            }
        }
        // Parentheses do not begin the count anew.
        let nested = format!("{}1{}", "(".repeat(30), "+1)".repeat(30));
        assert!(parse(&format!("{nested} + {nested}")).is_ok());
        assert!(parse(&format!("{nested} + {nested} + {nested}")).is_err());
    }
}
