//! "Did you mean": the known name that is fewest keystrokes away.

/// More changes than this are another name, not a slip.
const MAX_DISTANCE: usize = 2;
/// Longer names are not compared: the time grows with the square of the length.
const MAX_CHARS: usize = 128;

/// The nearest of `known`, if one is near.
pub(super) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wrong: Vec<char> = wrong.chars().take(MAX_CHARS + 1).collect();
    if wrong.len() > MAX_CHARS {
        return None;
    }
    known
        .into_iter()
        .filter_map(|name| Some((distance(&wrong, name)?, name)))
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours between two texts; none beyond the maximum.
fn distance(a: &[char], b: &str) -> Option<usize> {
    let b: Vec<char> = b.chars().take(MAX_CHARS + 1).collect();
    if a.len().abs_diff(b.len()) > MAX_DISTANCE {
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
    last.last()
        .copied()
        .filter(|&changes| changes <= MAX_DISTANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_names_are_not() {
        let known = ["web-01", "web-02", "db-01", "mail"];
        for (wrong, expected) in [
            ("wbe-01", Some("web-01")),
            ("web-2", Some("web-02")),
            ("db01", Some("db-01")),
            ("cache-07", None),
            ("", None),
        ] {
            assert_eq!(nearest(wrong, known), expected, "{wrong}");
        }
    }
}
