//! `muster host NAME --books`: what became of the frames of each life of its agent.
//!
//! Produced = stored + rejected + lost + outstanding, for each life. Outstanding of an earlier life is what its agent
//! kept on disk and still delivers; when that is done it says so, and what never came counts as lost.

use muster_proto::v1;
use serde_json::{Value, json};

use super::{
    output::Detail,
    text::{Text, Tone},
};

/// Widths of the columns: the number of a life, and counts.
const LIFE: usize = 16;
const COUNT: usize = 12;

/// The books for people and programs.
#[must_use]
pub fn detail(host: v1::HostDetail) -> Detail {
    let row = host.row.unwrap_or_default();
    let books = host.books.unwrap_or_default();
    let sum = Counts {
        produced: books.produced,
        stored: books.stored,
        rejected: books.rejected,
        lost: books.lost,
    };
    let lives: Vec<(String, Counts, bool)> = host
        .lives
        .iter()
        .map(|life| {
            let name = format!("{:016x}", life.incarnation);
            (name, Counts::of(life), life.newest)
        })
        .collect();
    let apart = lives
        .iter()
        .fold(Counts::default(), |sum, (_, counts, _)| sum.plus(*counts));
    let before = sum.minus(apart);
    let mut lines = vec![Text::toned(Tone::Dim, heading())];
    if before != Counts::default() {
        lines.push(before.line("earlier lives", "").0);
    }
    for (name, counts, newest) in &lives {
        let (line, _) = counts.line(name, state(*counts, *newest));
        lines.push(line);
    }
    let (total, balanced) = sum.line("together", "");
    lines.push(total);
    if !balanced {
        lines.push(Text::toned(
            Tone::Bad,
            "more is accounted for than was produced: this is a fault of Muster, please report it",
        ));
    }
    lines.push(Text::toned(
        Tone::Dim,
        format!(
            "{} frames came more than once and count once",
            books.duplicate
        ),
    ));
    Detail {
        item: item(&row.name, &lives, sum, books.duplicate),
        name: row.name,
        lines,
        meta: host.meta.unwrap_or_default(),
    }
}

/// One line of the books.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    produced: u64,
    stored: u64,
    rejected: u64,
    lost: u64,
}

impl Counts {
    fn of(life: &v1::LifeBooks) -> Self {
        Self {
            produced: life.produced,
            stored: life.stored,
            rejected: life.rejected,
            lost: life.lost,
        }
    }

    fn each(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            produced: with(self.produced, other.produced),
            stored: with(self.stored, other.stored),
            rejected: with(self.rejected, other.rejected),
            lost: with(self.lost, other.lost),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    fn minus(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }

    fn settled(self) -> u64 {
        self.stored + self.rejected + self.lost
    }

    fn outstanding(self) -> u64 {
        self.produced.saturating_sub(self.settled())
    }

    /// The line, and whether it balances.
    fn line(self, name: &str, state: &str) -> (Text, bool) {
        let dropped = |count| if count > 0 { Tone::Warn } else { Tone::Plain };
        let cell = |count: u64| format!("{count:>COUNT$}");
        let mut line = Text::plain(format!("{name:<LIFE$}"));
        line.push(Tone::Plain, cell(self.produced));
        line.push(Tone::Plain, cell(self.stored));
        line.push(dropped(self.rejected), cell(self.rejected));
        line.push(dropped(self.lost), cell(self.lost));
        line.push(Tone::Plain, cell(self.outstanding()));
        if !state.is_empty() {
            line.push(Tone::Dim, format!("  {state}"));
        }
        (line, self.settled() <= self.produced)
    }

    fn json(self) -> Value {
        json!({
            "produced": self.produced,
            "stored": self.stored,
            "rejected": self.rejected,
            "lost": self.lost,
            "outstanding": self.outstanding(),
        })
    }
}

fn heading() -> String {
    let mut heading = format!("{:<LIFE$}", "LIFE OF AGENT");
    for title in ["PRODUCED", "STORED", "REJECTED", "LOST", "OUTSTANDING"] {
        heading.push_str(&format!("{title:>COUNT$}"));
    }
    heading
}

fn state(counts: Counts, newest: bool) -> &'static str {
    match (newest, counts.outstanding()) {
        (true, _) => "the newest",
        (false, 0) => "closed",
        (false, _) => "still delivered, or its agent was not heard since",
    }
}

fn item(name: &str, lives: &[(String, Counts, bool)], sum: Counts, duplicate: u64) -> Value {
    let lives: Vec<Value> = lives
        .iter()
        .map(|(life, counts, newest)| {
            json!({ "incarnation": life, "newest": newest, "frames": counts.json() })
        })
        .collect();
    json!({ "name": name, "frames": sum.json(), "duplicate": duplicate, "lives": lives })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(incarnation: u64, counts: [u64; 4], newest: bool) -> v1::LifeBooks {
        let [produced, stored, rejected, lost] = counts;
        v1::LifeBooks {
            incarnation,
            produced,
            stored,
            rejected,
            lost,
            newest,
        }
    }

    #[test]
    fn each_life_has_its_line_and_those_before_have_one_together() {
        let host = v1::HostDetail {
            books: Some(v1::Books {
                produced: 160,
                stored: 140,
                rejected: 2,
                lost: 8,
                duplicate: 3,
            }),
            lives: vec![
                life(0xabc, [50, 45, 0, 5], false),
                life(0xdef, [60, 55, 2, 0], false),
                life(0x123, [40, 33, 0, 0], true),
            ],
            ..v1::HostDetail::default()
        };
        let detail = detail(host);
        let plain = |line: &Text| {
            let mut out = String::new();
            line.write_to(&mut out);
            anstream::adapter::strip_str(&out).to_string()
        };
        let lines: Vec<String> = detail.lines.iter().map(plain).collect();
        let counts = |line: &str| -> Vec<String> {
            line.split_whitespace()
                .filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()))
                .map(ToOwned::to_owned)
                .collect()
        };
        assert_eq!(
            counts(&lines[1]),
            ["10", "7", "0", "3", "0"],
            "earlier lives"
        );
        assert_eq!(counts(&lines[2])[..], ["50", "45", "0", "5", "0"]);
        assert!(lines[2].ends_with("closed"), "{}", lines[2]);
        assert_eq!(counts(&lines[3])[..], ["60", "55", "2", "0", "3"]);
        assert!(lines[3].contains("still delivered"), "{}", lines[3]);
        assert!(lines[4].ends_with("the newest"), "{}", lines[4]);
        assert_eq!(counts(&lines[5]), ["160", "140", "2", "8", "10"]);
        assert_eq!(detail.item["lives"][1]["frames"]["outstanding"], 3);
    }
}
