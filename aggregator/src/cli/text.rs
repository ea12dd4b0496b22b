//! Text for a person's terminal, and the one sink through which every remote string passes.
//!
//! A [`Text`] is pieces with a tone each. Whatever is put into it is made visible first: control characters,
//! escape sequences and characters that reorder a line arrive as `\u{…}`, so that a host's name can neither
//! move the cursor nor forge a line. Colour is always written; the stream it goes to takes it out where
//! nobody could see it (NO_COLOR, a pipe).

use std::{borrow::Cow, fmt::Write as _};

use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What a piece of text is to its reader; colour never carries meaning alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// Less important than the rest.
    Dim,
    /// A name or a heading.
    Strong,
    /// As it should be.
    Good,
    /// Soon to be bad.
    Warn,
    /// Bad.
    Bad,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Dim => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
        }
    }
}

/// One line, or one cell of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    pieces: Vec<(Tone, String)>,
}

impl Text {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A piece of plain text.
    #[must_use]
    pub fn plain(text: impl AsRef<str>) -> Self {
        Self::toned(Tone::Plain, text)
    }

    /// A piece of text.
    #[must_use]
    pub fn toned(tone: Tone, text: impl AsRef<str>) -> Self {
        Self::new().with(tone, text)
    }

    /// What is not known: an en dash, never a zero.
    #[must_use]
    pub fn unknown() -> Self {
        Self::toned(Tone::Dim, "–")
    }

    /// The same with plain text after it.
    #[must_use]
    pub fn and(self, text: impl AsRef<str>) -> Self {
        self.with(Tone::Plain, text)
    }

    /// The same with a piece after it.
    #[must_use]
    pub fn with(mut self, tone: Tone, text: impl AsRef<str>) -> Self {
        self.push(tone, text);
        self
    }

    /// Puts a piece at the end.
    pub fn push(&mut self, tone: Tone, text: impl AsRef<str>) {
        let text = visible(text.as_ref());
        if !text.is_empty() {
            self.pieces.push((tone, text.into_owned()));
        }
    }

    /// Puts all pieces of another at the end.
    pub fn append(&mut self, mut other: Self) {
        self.pieces.append(&mut other.pieces);
    }

    /// This text, then the other.
    #[must_use]
    pub fn joined(mut self, other: Self) -> Self {
        self.append(other);
        self
    }

    /// Columns it takes.
    #[must_use]
    pub fn width(&self) -> usize {
        self.pieces.iter().map(|(_, text)| text.width()).sum()
    }

    /// The same in at most `width` columns, with an ellipsis where something was cut.
    #[must_use]
    pub fn cut_to(self, width: usize) -> Self {
        if self.width() <= width {
            return self;
        }
        let mut room = width.saturating_sub(1);
        let mut cut = Self::new();
        for (tone, text) in self.pieces {
            let mut kept = String::new();
            let mut full = false;
            for c in text.chars() {
                let wide = c.width().unwrap_or(0);
                full = wide > room;
                if full {
                    break;
                }
                room -= wide;
                kept.push(c);
            }
            cut.pieces.push((tone, kept));
            if full {
                break;
            }
        }
        cut.pieces.push((Tone::Dim, "…".to_owned()));
        cut
    }

    /// Writes it with colours.
    pub fn write_to(&self, out: &mut String) {
        for (tone, text) in &self.pieces {
            if *tone == Tone::Plain {
                out.push_str(text);
            } else {
                let style = tone.style();
                let _ = write!(out, "{style}{text}{style:#}");
            }
        }
    }

    /// Writes it as a line with colours.
    pub fn line_to(&self, out: &mut String) {
        self.write_to(out);
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
}

/// The text with everything that could act on a terminal made visible.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts_on_terminal) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts_on_terminal(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and the characters that reorder or hide
/// text (Unicode UAX #9 and default-ignorables).
#[must_use]
pub fn acts_on_terminal(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_act_on_a_terminal_is_made_visible() {
        let cases = [
            ("web-01", "web-01"),
            ("grüße 東京", "grüße 東京"),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb\tc\x7f\u{9b}", "a\\u{a}b\\u{9}c\\u{7f}\\u{9b}"),
            ("safe\u{202e}gpj.exe", "safe\\u{202e}gpj.exe"),
            ("zero\u{200b}width\u{feff}", "zero\\u{200b}width\\u{feff}"),
        ];
        for (text, expected) in cases {
            assert_eq!(visible(text), expected);
        }
    }

    #[test]
    fn cutting_counts_columns() {
        let text = Text::plain("東京").with(Tone::Bad, "tower");
        assert_eq!(text.width(), 9);
        let mut out = String::new();
        text.clone().cut_to(6).write_to(&mut out);
        assert_eq!(anstream::adapter::strip_str(&out).to_string(), "東京t…");
        assert_eq!(text.clone().cut_to(9), text);
    }
}
