//! "Did you mean": the known name that is fewest keystrokes away.

/// Longer names are not compared: the time grows with the square of the length.
const MAX_CHARS: usize = 128;

/// The nearest of `known`, if it is at most `most` changes away; of several the first in the alphabet.
///
/// A change is a letter added, removed or replaced, or two neighbours swapped.
#[must_use]
pub fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
    most: usize,
) -> Option<&'a str> {
    let wrong: Vec<char> = wrong.chars().take(MAX_CHARS + 1).collect();
    if wrong.len() > MAX_CHARS {
        return None;
    }
    known
        .into_iter()
        .filter_map(|name| Some((distance(&wrong, name, most)?, name)))
        .min()
        .map(|(_, name)| name)
}

/// Changes between two texts (optimal string alignment); none beyond `most`.
fn distance(a: &[char], b: &str, most: usize) -> Option<usize> {
    let b: Vec<char> = b.chars().take(MAX_CHARS + 1).collect();
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, to) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(from != to);
            row[j + 1] = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            let swapped = i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to;
            if swapped {
                row[j + 1] = row[j + 1].min(before_last[j - 1] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last.last().copied().filter(|&changes| changes <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_names_are_not() {
        let known = ["web-01", "web-02", "db-01", "mail"];
        for (wrong, most, expected) in [
            ("wbe-01", 2, Some("web-01")),
            ("web-2", 2, Some("web-02")),
            ("db01", 2, Some("db-01")),
            ("db01", 0, None),
            ("cache-07", 2, None),
            ("", 2, None),
        ] {
            assert_eq!(nearest(wrong, known, most), expected, "{wrong}");
        }
        let long = "x".repeat(MAX_CHARS + 1);
        assert_eq!(nearest(&long, [long.as_str()], 2), None);
    }
}
