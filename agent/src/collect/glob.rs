//! Patterns on names: `*` is any number of any bytes (`/` too), `?` one byte, `[a-z0]` one byte of a set,
//! everything else itself. Matching takes time in proportion to pattern times name, whatever they are.

/// Patterns, and what they said about the names on each line of a file: a file usually has the same names
/// on the same lines as the time before, and then nothing is matched again.
#[derive(Debug)]
pub struct Filter {
    patterns: Vec<String>,
    decided: Vec<Option<(Vec<u8>, bool)>>,
}

impl Filter {
    /// These patterns.
    #[must_use]
    pub fn new(patterns: &[String]) -> Self {
        Self {
            patterns: patterns.to_vec(),
            decided: Vec::new(),
        }
    }

    /// Whether any of the patterns matches the whole name, which stands on this line.
    pub fn matches(&mut self, line: usize, name: &[u8]) -> bool {
        if let Some(Some((known, decision))) = self.decided.get(line)
            && known == name
        {
            return *decision;
        }
        let decision = any(&self.patterns, name);
        if self.decided.len() <= line {
            self.decided.resize(line + 1, None);
        }
        self.decided[line] = Some((name.to_owned(), decision));
        decision
    }
}

/// Whether any of the patterns matches the whole name.
#[must_use]
pub fn any(patterns: &[String], name: &[u8]) -> bool {
    patterns
        .iter()
        .any(|pattern| matches(pattern.as_bytes(), name))
}

/// Whether the pattern matches the whole name.
#[must_use]
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern_at, mut name_at) = (0, 0);
    // Where to go on if what follows the last star does not fit: one byte more belongs to the star.
    let mut star: Option<(usize, usize)> = None;
    while name_at < name.len() {
        let rest = &pattern[pattern_at..];
        if rest.first() == Some(&b'*') {
            star = Some((pattern_at + 1, name_at));
            pattern_at += 1;
        } else if let Some(length) = one(rest, name[name_at]) {
            pattern_at += length;
            name_at += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            pattern_at = after;
            name_at = from + 1;
        } else {
            return false;
        }
    }
    pattern[pattern_at..].iter().all(|&byte| byte == b'*')
}

/// Length of the pattern's first element if it matches the byte.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => match rest.iter().position(|&byte| byte == b']') {
            Some(end) => in_set(&rest[..end], byte).then_some(end + 2),
            // A bracket that is not closed is a bracket.
            None => (byte == b'[').then_some(1),
        },
        [first, ..] => (*first == byte).then_some(1),
    }
}

fn in_set(mut set: &[u8], byte: u8) -> bool {
    loop {
        match set {
            [] => return false,
            [low, b'-', high, rest @ ..] => {
                if (*low..=*high).contains(&byte) {
                    return true;
                }
                set = rest;
            }
            [only, rest @ ..] => {
                if *only == byte {
                    return true;
                }
                set = rest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let table: &[(&str, &str, bool)] = &[
            ("*", "", true),
            ("*", "anything/at all", true),
            ("ssh*.service", "ssh.service", true),
            ("ssh*.service", "sshd@1.service", true),
            ("ssh*.service", "ssh.socket", false),
            ("[hsv]d[a-z]*[0-9]", "sda1", true),
            ("[hsv]d[a-z]*[0-9]", "sdaa12", true),
            ("[hsv]d[a-z]*[0-9]", "sda", false),
            ("nvme[0-9]*n[0-9]*p[0-9]*", "nvme0n1p2", true),
            ("nvme[0-9]*n[0-9]*p[0-9]*", "nvme0n1", false),
            ("/dev", "/development", false),
            ("/dev/*", "/dev/shm", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[", "[", true),
            ("a[b", "a[b", true),
            ("[]", "x", false),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxcxxb", false),
        ];
        for (pattern, name, expected) in table {
            let found = matches(pattern.as_bytes(), name.as_bytes());
            assert_eq!(found, *expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn a_filter_decides_by_name_and_not_by_line() {
        let mut filter = Filter::new(&["loop*".to_owned(), "".to_owned()]);
        for _ in 0..2 {
            assert!(!filter.matches(3, b"sda"));
            assert!(filter.matches(3, b"loop0"));
            assert!(filter.matches(0, b""));
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "*a".repeat(200);
        let name = "a".repeat(10_000) + "b";
        assert!(!matches(pattern.as_bytes(), name.as_bytes()));
    }

    proptest! {
        #[test]
        fn any_pattern_on_any_name_ends(pattern: Vec<u8>, name: Vec<u8>) {
            let _ = matches(&pattern, &name);
        }

        #[test]
        fn a_plain_name_matches_itself(name in "[a-z0-9.@_-]{0,20}") {
            prop_assert!(matches(name.as_bytes(), name.as_bytes()));
        }
    }
}
