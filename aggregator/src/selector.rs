//! Which hosts are meant: the selector language of the command line, the operator API and `/sd`.
//!
//! A selector is a list of conditions that must all hold: `env=prod,role!=db,site in (fra,ams),!canary,cpu>90`.
//! There is one parser and one evaluation; `docs/selectors.md` describes the language for people. Parsing
//! never panics, whatever the text, and an error names the column and what could have stood there. Name
//! patterns (`web-[01-40]`) are in [`pattern`]. What a host is stays with the caller, behind [`Subject`].

pub mod pattern;

use std::borrow::Cow;

use pattern::Pattern;

/// Longest selector that is looked at: a person writes under 200 bytes, a script a few KiB.
pub const MAX_SELECTOR_BYTES: usize = 8 * 1024;

/// What a selector asks of a host. A quantity that is not known is `None` and satisfies no comparison.
pub trait Subject {
    /// Name for people.
    fn name(&self) -> &str;
    /// Value of a label.
    fn label(&self, key: &str) -> Option<&str>;
    /// Value of a field that is text; never [`TextField::Name`].
    fn text(&self, field: TextField) -> Option<Cow<'_, str>>;
    /// Value of a field that is a number, ratios from 0 to 1.
    fn number(&self, field: NumberField) -> Option<f64>;
}

/// Fields that are text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextField {
    /// The host's name; compared as a name pattern.
    Name,
    /// `joined`, `live`, `late` or `silent`.
    State,
    /// Operating system as `id version`, e.g. `debian 12`.
    Os,
    /// Version of the agent.
    Agent,
    /// Kernel release.
    Kernel,
}

/// Fields that are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberField {
    /// Share of CPU time not idle; percent in a selector's text.
    Cpu,
    /// Share of memory in use; percent in text.
    Mem,
    /// Share in use of the fullest filesystem; percent in text.
    Disk,
    /// Load average over 1 minute.
    Load,
    /// Busiest disk's share of time busy; percent in text.
    Io,
    /// Worst pressure stall; percent in text.
    Psi,
    /// Bytes per second received and sent together.
    Net,
    /// Host score; from 1 on it is an anomaly.
    Anomaly,
    /// Open incidents.
    Incidents,
    /// Units in state failed.
    Failed,
}

/// Every field by the word that stands for it.
const FIELDS: &[(&str, Field)] = &[
    ("name", Field::Text(TextField::Name)),
    ("state", Field::Text(TextField::State)),
    ("os", Field::Text(TextField::Os)),
    ("agent", Field::Text(TextField::Agent)),
    ("kernel", Field::Text(TextField::Kernel)),
    ("cpu", Field::Number(NumberField::Cpu)),
    ("mem", Field::Number(NumberField::Mem)),
    ("disk", Field::Number(NumberField::Disk)),
    ("load", Field::Number(NumberField::Load)),
    ("io", Field::Number(NumberField::Io)),
    ("psi", Field::Number(NumberField::Psi)),
    ("net", Field::Number(NumberField::Net)),
    ("anomaly", Field::Number(NumberField::Anomaly)),
    ("incidents", Field::Number(NumberField::Incidents)),
    ("failed", Field::Number(NumberField::Failed)),
];

/// Words of the field `state`.
pub const STATES: &[&str] = &["joined", "live", "late", "silent"];

/// Before a label's key to mean the label where a field has the same name.
const LABEL_PREFIX: &str = "label.";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Text(TextField),
    Number(NumberField),
}

impl NumberField {
    fn is_ratio(self) -> bool {
        matches!(
            self,
            Self::Cpu | Self::Mem | Self::Disk | Self::Io | Self::Psi
        )
    }
}

/// A parsed selector. The default selects every host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selector {
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    /// Negated conditions also hold for hosts that lack the label or field.
    negated: bool,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    LabelSet(String),
    LabelIn(String, Vec<Pattern>),
    TextSet(TextField),
    TextIn(TextField, Vec<Pattern>),
    NumberSet(NumberField),
    Number(NumberField, Comparison, f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Where and why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: expected {expected}, found {found}")]
pub struct SelectorError {
    /// In characters, from 1.
    pub column: usize,
    /// What could have stood there.
    pub expected: String,
    /// What stood there.
    pub found: String,
}

impl Selector {
    /// Reads a selector; nothing but spaces selects every host.
    ///
    /// # Errors
    /// The first place at which the text is no selector.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, at: 0 };
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(SelectorError {
                column: 1,
                expected: format!("at most {MAX_SELECTOR_BYTES} bytes"),
                found: format!("{} bytes", text.len()),
            });
        }
        let mut conditions = Vec::new();
        if parser.at_end() {
            return Ok(Self { conditions });
        }
        loop {
            conditions.push(parser.condition()?);
            if parser.at_end() {
                return Ok(Self { conditions });
            }
            if !parser.take(",") {
                return Err(parser.unexpected("a comma or the end"));
            }
        }
    }

    /// Whether every condition holds for this host.
    pub fn matches(&self, host: &(impl Subject + ?Sized)) -> bool {
        self.conditions
            .iter()
            .all(|condition| condition.test.holds(host) != condition.negated)
    }

    /// The first field it asks for that changes from minute to minute, if any: a state or a measurement. What holds
    /// for longer than one look (a silence, a route) cannot rest on such.
    #[must_use]
    pub fn fleeting(&self) -> Option<&'static str> {
        let word = |field| FIELDS.iter().find(|(_, one)| *one == field);
        self.conditions
            .iter()
            .filter_map(|condition| match &condition.test {
                Test::TextSet(TextField::State) | Test::TextIn(TextField::State, _) => {
                    word(Field::Text(TextField::State))
                }
                Test::NumberSet(field) | Test::Number(field, ..) => word(Field::Number(*field)),
                _ => None,
            })
            .map(|(word, _)| *word)
            .next()
    }

    /// The conditions on names and labels alone: whoever does not satisfy these is not selected, whatever else it is.
    #[must_use]
    pub fn of_labels(&self) -> Self {
        let lasting = |test: &Test| {
            matches!(
                test,
                Test::LabelSet(_)
                    | Test::LabelIn(..)
                    | Test::TextSet(TextField::Name)
                    | Test::TextIn(TextField::Name, _)
            )
        };
        let conditions = self.conditions.iter();
        Self {
            conditions: conditions
                .filter(|condition| lasting(&condition.test))
                .cloned()
                .collect(),
        }
    }

    /// Whether it selects every host.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.conditions.is_empty()
    }
}

impl Test {
    fn holds(&self, host: &(impl Subject + ?Sized)) -> bool {
        match self {
            Self::LabelSet(key) => host.label(key).is_some(),
            Self::LabelIn(key, values) => host.label(key).is_some_and(|value| any(values, value)),
            Self::TextSet(TextField::Name) => true,
            Self::TextIn(TextField::Name, values) => any(values, host.name()),
            Self::TextSet(field) => host.text(*field).is_some(),
            Self::TextIn(field, values) => {
                host.text(*field).is_some_and(|value| any(values, &value))
            }
            Self::NumberSet(field) => host.number(*field).is_some(),
            Self::Number(field, comparison, bound) => host
                .number(*field)
                .is_some_and(|value| comparison.holds(value, *bound)),
        }
    }
}

fn any(patterns: &[Pattern], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(text))
}

impl Comparison {
    /// NaN satisfies none.
    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::LessOrEqual => value <= bound,
            Self::Greater => value > bound,
            Self::GreaterOrEqual => value >= bound,
        }
    }
}

/// Reads from left to right; `at` is always on a character boundary.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn at_end(&mut self) -> bool {
        self.skip_spaces();
        self.rest().is_empty()
    }

    fn take(&mut self, word: &str) -> bool {
        self.skip_spaces();
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    /// A word that is not the beginning of a longer one.
    fn take_keyword(&mut self, word: &str) -> bool {
        self.skip_spaces();
        let rest = self.rest();
        let found = rest.starts_with(word)
            && rest[word.len()..]
                .chars()
                .next()
                .is_none_or(|next| next == '(' || next.is_whitespace());
        if found {
            self.at += word.len();
        }
        found
    }

    fn unexpected(&self, expected: impl Into<String>) -> SelectorError {
        self.error_at(self.at, expected)
    }

    fn error_at(&self, at: usize, expected: impl Into<String>) -> SelectorError {
        let found = match self.text[at..].chars().next() {
            None => "the end".to_owned(),
            Some(found) => format!("{found:?}"),
        };
        SelectorError {
            column: self.text[..at].chars().count() + 1,
            expected: expected.into(),
            found,
        }
    }

    fn condition(&mut self) -> Result<Condition, SelectorError> {
        if self.take("!") {
            let (key, _) = self.key()?;
            let test = match field(&key) {
                Some(Field::Text(field)) => Test::TextSet(field),
                Some(Field::Number(field)) => Test::NumberSet(field),
                None => Test::LabelSet(label(key)),
            };
            return Ok(Condition {
                negated: true,
                test,
            });
        }
        let (key, start) = self.key()?;
        match field(&key) {
            Some(Field::Number(field)) => self.number_condition(&key, field),
            Some(Field::Text(field)) => self.text_condition(
                start,
                &format!("the field {key}"),
                Test::TextSet(field),
                |values| Test::TextIn(field, values),
                (field == TextField::State).then_some(STATES),
            ),
            None => {
                let key = label(key);
                self.text_condition(
                    start,
                    &format!("the label {key}"),
                    Test::LabelSet(key.clone()),
                    |values| Test::LabelIn(key, values),
                    None,
                )
            }
        }
    }

    fn key(&mut self) -> Result<(String, usize), SelectorError> {
        self.skip_spaces();
        let rest = self.rest();
        let length = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "_.-/".contains(c)))
            .unwrap_or(rest.len());
        if length == 0 {
            return Err(self.unexpected("a label or a field"));
        }
        let (key, start) = (rest[..length].to_owned(), self.at);
        self.at += length;
        Ok((key, start))
    }

    fn number_condition(
        &mut self,
        key: &str,
        field: NumberField,
    ) -> Result<Condition, SelectorError> {
        // Longest first, so that ">=" is not read as ">".
        let comparisons = [
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        for (word, comparison) in comparisons {
            if self.take(word) {
                let bound = self.number(field)?;
                let test = Test::Number(field, comparison, bound);
                return Ok(Condition {
                    negated: false,
                    test,
                });
            }
        }
        if self.at_end() || self.rest().starts_with(',') {
            let test = Test::NumberSet(field);
            return Ok(Condition {
                negated: false,
                test,
            });
        }
        Err(self.unexpected(format!("one of < <= > >= after {key}, which is a number")))
    }

    fn number(&mut self, field: NumberField) -> Result<f64, SelectorError> {
        self.skip_spaces();
        let start = self.at;
        let expected = if field.is_ratio() {
            "a number of percent, such as 90"
        } else {
            "a number, such as 1.5"
        };
        let rest = self.rest();
        let length = rest
            .find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c)))
            .unwrap_or(rest.len());
        let number: f64 = rest[..length]
            .parse()
            .map_err(|_| self.error_at(start, expected))?;
        self.at += length;
        if field.is_ratio() {
            self.take("%");
            return Ok(number / 100.0);
        }
        Ok(number)
    }

    fn text_condition(
        &mut self,
        start: usize,
        what: &str,
        set: Test,
        is_in: impl FnOnce(Vec<Pattern>) -> Test,
        words: Option<&[&str]>,
    ) -> Result<Condition, SelectorError> {
        let (negated, listed) = if self.take("!=") {
            (true, false)
        } else if self.take("==") || self.take("=") {
            (false, false)
        } else if self.take_keyword("in") {
            (false, true)
        } else if self.take_keyword("notin") {
            (true, true)
        } else if self.at_end() || self.rest().starts_with(',') {
            return Ok(Condition {
                negated: false,
                test: set,
            });
        } else if self.rest().starts_with(['<', '>']) {
            return Err(self.error_at(
                start,
                format!("a number before {:?}, {what} is text", self.rest_char()),
            ));
        } else {
            return Err(self.unexpected("one of = != in notin, a comma or the end"));
        };
        let mut values = Vec::new();
        if !listed {
            values.push(self.value(words)?);
        } else if !self.take("(") {
            return Err(self.unexpected("an opening parenthesis"));
        } else {
            loop {
                values.push(self.value(words)?);
                if self.take(")") {
                    break;
                }
                if !self.take(",") {
                    return Err(self.unexpected("a comma or a closing parenthesis"));
                }
            }
        }
        Ok(Condition {
            negated,
            test: is_in(values),
        })
    }

    fn rest_char(&self) -> char {
        self.rest().chars().next().unwrap_or(' ')
    }

    /// `"as it stands"`, or a pattern up to a space, comma or parenthesis outside brackets.
    fn value(&mut self, words: Option<&[&str]>) -> Result<Pattern, SelectorError> {
        self.skip_spaces();
        let start = self.at;
        if self.take("\"") {
            let Some(length) = self.rest().find('"') else {
                return Err(self.error_at(self.text.len(), "a closing quotation mark"));
            };
            let literal = Pattern::literal(&self.rest()[..length]);
            self.at += length + 1;
            return Ok(literal);
        }
        let mut bracket = false;
        let rest = self.rest();
        let length = rest
            .find(|c: char| {
                match c {
                    '[' => bracket = true,
                    ']' => bracket = false,
                    _ => {}
                }
                !bracket && (c == ',' || c == '(' || c == ')' || c == '"' || c.is_whitespace())
            })
            .unwrap_or(rest.len());
        if length == 0 {
            return Err(self.unexpected("a value"));
        }
        let word = &rest[..length];
        if let Some(words) = words
            && !words.contains(&word)
        {
            return Err(SelectorError {
                found: format!("{word:?}"),
                ..self.error_at(start, format!("one of {}", words.join(", ")))
            });
        }
        let pattern = Pattern::parse(word).map_err(|error| SelectorError {
            column: self.text[..start].chars().count() + error.column,
            expected: error.expected,
            found: error.found,
        })?;
        self.at += length;
        Ok(pattern)
    }
}

fn field(key: &str) -> Option<Field> {
    FIELDS
        .iter()
        .find(|(name, _)| *name == key)
        .map(|&(_, field)| field)
}

fn label(key: String) -> String {
    match key.strip_prefix(LABEL_PREFIX) {
        Some(bare) if !bare.is_empty() => bare.to_owned(),
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    struct Host {
        name: &'static str,
        labels: BTreeMap<&'static str, &'static str>,
        state: &'static str,
        cpu: Option<f64>,
        anomaly: Option<f64>,
    }

    impl Subject for Host {
        fn name(&self) -> &str {
            self.name
        }

        fn label(&self, key: &str) -> Option<&str> {
            self.labels.get(key).copied()
        }

        fn text(&self, field: TextField) -> Option<Cow<'_, str>> {
            match field {
                TextField::State => Some(self.state.into()),
                TextField::Os => Some("debian 12".into()),
                _ => None,
            }
        }

        fn number(&self, field: NumberField) -> Option<f64> {
            match field {
                NumberField::Cpu => self.cpu,
                NumberField::Anomaly => self.anomaly,
                _ => None,
            }
        }
    }

    fn web() -> Host {
        Host {
            name: "web-07",
            labels: BTreeMap::from([("env", "prod"), ("role", "web"), ("os", "label")]),
            state: "live",
            cpu: Some(0.95),
            anomaly: None,
        }
    }

    #[test]
    fn conditions_hold_or_not() {
        let cases = [
            ("", true),
            ("  ", true),
            ("env=prod", true),
            ("env==prod", true),
            ("env = prod , role!=db", true),
            ("env=test", false),
            ("env=p*", true),
            ("env=\"p*\"", false),
            ("env", true),
            ("canary", false),
            ("!canary", true),
            ("!env", false),
            ("site!=fra", true),
            ("env in (prod,test)", true),
            ("env in(test)", false),
            ("env notin (test, dev)", true),
            ("site notin (fra)", true),
            ("site in (fra)", false),
            ("name=web-[01-40]", true),
            ("name=web-[1-40]", false),
            ("name in (db-1,web-0?)", true),
            ("state=live", true),
            ("state!=live", false),
            ("state in (late,silent)", false),
            ("cpu>90", true),
            ("cpu>90%", true),
            ("cpu > 95", false),
            ("cpu>=95", true),
            ("cpu<=95,cpu<95.1", true),
            ("cpu", true),
            ("mem>0", false),
            ("mem<100", false),
            ("!mem", true),
            ("!anomaly", true),
            ("anomaly>=0", false),
            ("os=\"debian 12\"", true),
            ("os=debian*", true),
            ("label.os=label", true),
            ("label.os=debian*", false),
            ("intern", false),
        ];
        for (text, expected) in cases {
            let selector = Selector::parse(text).expect(text);
            assert_eq!(selector.matches(&web()), expected, "{text}");
        }
    }

    #[test]
    fn errors_point_at_the_place() {
        let cases = [
            (
                "env=prod,",
                "column 10: expected a label or a field, found the end",
            ),
            ("env=", "column 5: expected a value, found the end"),
            (
                "env prod",
                "column 5: expected one of = != in notin, a comma or the end, found 'p'",
            ),
            (
                "cpu=90",
                "column 4: expected one of < <= > >= after cpu, which is a number, found '='",
            ),
            (
                "cpu>viel",
                "column 5: expected a number of percent, such as 90, found 'v'",
            ),
            (
                "env>3",
                "column 1: expected a number before '>', the label env is text, found 'e'",
            ),
            (
                "state=down",
                "column 7: expected one of joined, live, late, silent, found \"down\"",
            ),
            ("ünv=1", "column 1: expected a label or a field, found 'ü'"),
            (
                "env=ü,site in (a b)",
                "column 18: expected a comma or a closing parenthesis, found 'b'",
            ),
            (
                "env=\"prod",
                "column 10: expected a closing quotation mark, found the end",
            ),
            (
                "name=web-[07",
                "column 13: expected a closing bracket, found the end",
            ),
            (
                "env in prod",
                "column 8: expected an opening parenthesis, found 'p'",
            ),
            (
                "env=prod role=db",
                "column 10: expected a comma or the end, found 'r'",
            ),
        ];
        for (text, expected) in cases {
            let error = Selector::parse(text).expect_err(text);
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_selector_or_an_error(text in ".{0,60}") {
            if let Ok(selector) = Selector::parse(&text) {
                selector.matches(&web());
            }
        }

        #[test]
        fn almost_selectors_are_selectors_or_errors(text in "[a-c!=<>,()\\[\\]\" in0-9%*?-]{0,40}") {
            if let Ok(selector) = Selector::parse(&text) {
                selector.matches(&web());
            }
        }
    }
}
