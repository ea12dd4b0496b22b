//! Patterns over host names, and their inverse: folding many names into few patterns.
//!
//! `*` stands for any characters, `?` for one, `[01-40,45]` for numbers and words. A number written with
//! leading zeros stands for numbers of just that many digits, so `web-[01-40]` is `web-01` but not `web-1`.
//! Matching takes time proportional to pattern times text, whatever they are.

use std::{collections::BTreeMap, fmt::Write as _};

/// Longest pattern: a host name has at most 253 characters.
pub const MAX_PATTERN_BYTES: usize = 1024;

/// Longest run of digits that is taken for a number; longer ones are text.
const MAX_DIGITS: usize = 18;

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// `?`
    One,
    /// `*`
    Any,
    /// `[…]`
    Set(Vec<Item>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Word(String),
    /// Inclusive; `width` digits exactly, or as many as the number needs.
    Range {
        first: u64,
        last: u64,
        width: Option<usize>,
    },
}

/// Where and why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: expected {expected}, found {found}")]
pub struct PatternError {
    /// In characters, from 1.
    pub column: usize,
    /// What could have stood there.
    pub expected: String,
    /// What stood there.
    pub found: String,
}

impl Pattern {
    /// The pattern of just this text.
    #[must_use]
    pub fn literal(text: &str) -> Self {
        Self {
            parts: vec![Part::Literal(text.to_owned())],
        }
    }

    /// Reads a pattern.
    ///
    /// # Errors
    /// The first place at which the text is none.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() || text.len() > MAX_PATTERN_BYTES {
            return Err(error(
                text,
                0,
                format!("1 to {MAX_PATTERN_BYTES} characters"),
            ));
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            match c {
                '*' => parts.push(Part::Any),
                '?' => parts.push(Part::One),
                ']' => return Err(error(text, at, "an opening bracket before this one")),
                '[' => {
                    let Some(length) = text[at..].find(']') else {
                        return Err(error(text, text.len(), "a closing bracket"));
                    };
                    parts.push(Part::Set(parse_set(text, at + 1, at + length)?));
                    at += length;
                }
                _ => match parts.last_mut() {
                    Some(Part::Literal(literal)) => literal.push(c),
                    _ => parts.push(Part::Literal(c.to_string())),
                },
            }
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        Ok(Self { parts })
    }

    /// Reads patterns separated by commas outside brackets.
    ///
    /// # Errors
    /// The first place at which the text is no such list.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, PatternError> {
        let mut patterns = Vec::new();
        let (mut start, mut bracket) = (0, false);
        for (at, c) in text.char_indices().chain([(text.len(), ',')]) {
            match c {
                '[' => bracket = true,
                ']' => bracket = false,
                ',' if !bracket || at == text.len() => {
                    let before = text[..start].chars().count();
                    let pattern =
                        Self::parse(text[start..at].trim()).map_err(|error| PatternError {
                            column: before + error.column,
                            ..error
                        })?;
                    patterns.push(pattern);
                    start = at + 1;
                }
                _ => {}
            }
        }
        Ok(patterns)
    }

    /// Whether it stands for this text.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        // All places of the text that the parts so far can have reached.
        let mut reached = vec![false; text.len() + 1];
        reached[0] = true;
        for part in &self.parts {
            let mut next = vec![false; text.len() + 1];
            for at in (0..=text.len()).filter(|&at| reached[at]) {
                let rest = &text[at..];
                match part {
                    Part::Literal(literal) => {
                        if rest.starts_with(literal.as_str()) {
                            next[at + literal.len()] = true;
                        }
                    }
                    Part::One => {
                        if let Some(c) = rest.chars().next() {
                            next[at + c.len_utf8()] = true;
                        }
                    }
                    Part::Any => {
                        for (length, _) in rest.char_indices() {
                            next[at + length] = true;
                        }
                        next[text.len()] = true;
                        // Everything that a later start reaches is reached already.
                        break;
                    }
                    Part::Set(items) => {
                        for item in items {
                            item.lengths(rest, |length| next[at + length] = true);
                        }
                    }
                }
            }
            reached = next;
        }
        reached[text.len()]
    }

    /// The one text it stands for, if it is nothing but that.
    #[must_use]
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Literal(literal)] => Some(literal),
            _ => None,
        }
    }
}

impl Item {
    /// Calls `found` with each length of a beginning of `text` that this item stands for.
    fn lengths(&self, text: &str, mut found: impl FnMut(usize)) {
        match self {
            Self::Word(word) => {
                if text.starts_with(word.as_str()) {
                    found(word.len());
                }
            }
            Self::Range { first, last, width } => {
                let digits = text.bytes().take_while(u8::is_ascii_digit).count();
                for length in 1..=digits.min(MAX_DIGITS) {
                    let number = &text[..length];
                    let width_fits = match width {
                        Some(width) => length == *width,
                        None => length == 1 || !number.starts_with('0'),
                    };
                    if width_fits
                        && number
                            .parse()
                            .is_ok_and(|number: u64| (*first..=*last).contains(&number))
                    {
                        found(length);
                    }
                }
            }
        }
    }
}

/// The items between two brackets.
fn parse_set(text: &str, from: usize, to: usize) -> Result<Vec<Item>, PatternError> {
    let mut items = Vec::new();
    let mut start = from;
    for word in text[from..to].split(',') {
        let place = start;
        start += word.len() + 1;
        if word.is_empty() {
            return Err(error(text, place, "a number, a range or a word"));
        }
        if word.contains(['[', '*', '?']) {
            return Err(error(
                text,
                place,
                "no brackets and no wildcards within brackets",
            ));
        }
        let Some((first, last)) = word.split_once('-') else {
            items.push(Item::Word(word.to_owned()));
            continue;
        };
        let number = |digits: &str| {
            (digits.len() <= MAX_DIGITS && digits.bytes().all(|b| b.is_ascii_digit()))
                .then(|| digits.parse::<u64>().ok())
                .flatten()
        };
        let (Some(low), Some(high)) = (number(first), number(last)) else {
            return Err(error(text, place, "a range of numbers such as 01-40"));
        };
        let padded = |digits: &str| digits.len() > 1 && digits.starts_with('0');
        if (padded(first) || padded(last)) && first.len() != last.len() {
            return Err(error(text, place, "as many digits at both ends of a range"));
        }
        if low > high {
            return Err(error(text, place, "the smaller number of a range first"));
        }
        items.push(Item::Range {
            first: low,
            last: high,
            width: padded(first).then_some(first.len()),
        });
    }
    Ok(items)
}

fn error(text: &str, at: usize, expected: impl Into<String>) -> PatternError {
    PatternError {
        column: text[..at].chars().count() + 1,
        expected: expected.into(),
        found: match text[at..].chars().next() {
            None => "the end".to_owned(),
            Some(found) => format!("{found:?}"),
        },
    }
}

/// Few patterns that stand for just these names: `db-3, web-[01-12,14]`. Names in which a pattern's own
/// characters occur stand as they are.
#[must_use]
pub fn fold<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    // Text before and after the number → digits, ordered by length, then value.
    let mut groups: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for name in names {
        let (before, digits, after) = split_number(name);
        groups.entry((before, after)).or_default().push(digits);
    }
    let mut out = String::new();
    for ((before, after), mut numbers) in groups {
        numbers.sort_unstable_by_key(|digits| (digits.len(), *digits));
        numbers.dedup();
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(before);
        if let [digits] = numbers.as_slice() {
            out.push_str(digits);
        } else {
            let _ = write!(out, "[{}]", fold_numbers(&numbers));
        }
        out.push_str(after);
    }
    out
}

/// Name as text, number, text: the last number before the first dot. Without one the number is empty.
fn split_number(name: &str) -> (&str, &str, &str) {
    let end = name.find('.').unwrap_or(name.len());
    let Some(last) = name[..end].rfind(|c: char| c.is_ascii_digit()) else {
        return (name, "", "");
    };
    let first = name[..last]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |at| {
            at + name[at..].chars().next().map_or(1, char::len_utf8)
        });
    if last + 1 - first > MAX_DIGITS || name.contains(['[', ']', '*', '?', ',', ' ']) {
        return (name, "", "");
    }
    (&name[..first], &name[first..=last], &name[last + 1..])
}

/// Digits ordered by length and value, as items of a set.
fn fold_numbers(numbers: &[&str]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < numbers.len() {
        let first = numbers[at];
        let mut last = at;
        while last + 1 < numbers.len() && follows(first, numbers[last], numbers[last + 1]) {
            last += 1;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(first);
        if last > at {
            let _ = write!(out, "-{}", numbers[last]);
        }
        at = last + 1;
    }
    out
}

/// Whether `next` continues a range that began with `first` and is at `now`.
fn follows(first: &str, now: &str, next: &str) -> bool {
    let padded = first.len() > 1 && first.starts_with('0');
    let (Ok(now_number), Ok(next_number)) = (now.parse::<u64>(), next.parse::<u64>()) else {
        return false;
    };
    let same_spelling = now.len() == next.len() || (!padded && !next.starts_with('0'));
    same_spelling && now_number + 1 == next_number
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    #[test]
    fn patterns_stand_for_names() {
        let cases = [
            ("web-01", "web-01", true),
            ("web-01", "web-011", false),
            ("web-*", "web-", true),
            ("*", "", true),
            ("*-db-*", "a-db-b", true),
            ("*-db-*", "a-d-b", false),
            ("web-?1", "web-01", true),
            ("web-?", "web-ü", true),
            ("web-[01-40]", "web-07", true),
            ("web-[01-40]", "web-7", false),
            ("web-[01-40]", "web-41", false),
            ("web-[1-40]", "web-7", true),
            ("web-[1-40]", "web-07", false),
            ("web-[1-40]x", "web-12x", true),
            ("web-[0-3]", "web-0", true),
            ("web-[0-3]", "web-00", false),
            ("web-[01-12,14]", "web-14", true),
            ("web-[01-12,14]", "web-13", false),
            ("[db,web]-1", "web-1", true),
            ("r[1-2]n[1-30]", "r2n17", true),
        ];
        for (pattern, text, expected) in cases {
            let parsed = Pattern::parse(pattern).expect(pattern);
            assert_eq!(parsed.matches(text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for (pattern, column) in [
            ("", 1),
            ("web-[1", 7),
            ("web-]", 5),
            ("web-[]", 6),
            ("web-[1,]", 8),
            ("web-[9-1]", 6),
            ("web-[01-100]", 6),
            ("web-[a-c]", 6),
            ("ü[1,x*]", 5),
        ] {
            let error = Pattern::parse(pattern).expect_err(pattern);
            assert_eq!(error.column, column, "{pattern}: {error}");
        }
    }

    #[test]
    fn names_fold() {
        let cases: [(&[&str], &str); 6] = [
            (&[], ""),
            (&["web-01"], "web-01"),
            (&["web-02", "web-01", "web-04"], "web-[01-02,04]"),
            (&["web-9", "web-10", "web-11", "db"], "db, web-[9-11]"),
            (&["web-099", "web-100", "web-09"], "web-[09,099-100]"),
            (
                &["n1.fra2.example", "n2.fra2.example"],
                "n[1-2].fra2.example",
            ),
        ];
        for (names, expected) in cases {
            assert_eq!(fold(names.iter().copied()), expected);
        }
    }

    proptest! {
        #[test]
        fn parsing_and_matching_never_panic(pattern in ".{0,30}", text in ".{0,30}") {
            if let Ok(patterns) = Pattern::parse_list(&pattern) {
                for pattern in patterns {
                    let _ = pattern.matches(&text);
                }
            }
            let _ = fold([pattern.as_str(), text.as_str()]);
        }

        #[test]
        fn folded_names_are_just_those_names(
            names in btree_set("(web|db)-?[0-9]{1,3}(\\.fra1)?", 1..30),
            others in btree_set("(web|db)-?[0-9]{1,3}(\\.fra1)?", 1..30),
        ) {
            let folded = fold(names.iter().map(String::as_str));
            let patterns = Pattern::parse_list(&folded).expect("folded names are patterns");
            for name in names.union(&others) {
                let matched = patterns.iter().any(|pattern| pattern.matches(name));
                prop_assert_eq!(matched, names.contains(name), "{} in {}", name, folded);
            }
        }
    }
}
