//! Draws tables: columns as wide as their widest cell, two spaces between them, cut to the terminal.

use super::text::{Text, Tone};

const GAP: usize = 2;
/// The last column is never cut below this.
const MIN_LAST: usize = 12;

/// One column's heading and side.
#[derive(Debug, Clone, Copy)]
pub struct Heading {
    /// In capitals.
    pub title: &'static str,
    /// Numbers stand at the right.
    pub right: bool,
}

/// Draws a heading line and a line for each row; every row has a cell for each heading.
pub fn draw(headings: &[Heading], rows: Vec<Vec<Text>>, width: Option<usize>, out: &mut String) {
    let mut widths: Vec<usize> = headings
        .iter()
        .map(|heading| Text::plain(heading.title).width())
        .collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    if let (Some(terminal), Some((last, before))) = (width, widths.split_last_mut()) {
        let used = before.iter().sum::<usize>() + GAP * before.len();
        *last = (*last).min(terminal.saturating_sub(used).max(MIN_LAST));
    }
    let titles = headings
        .iter()
        .map(|heading| Text::toned(Tone::Dim, heading.title))
        .collect();
    for row in std::iter::once(titles).chain(rows) {
        draw_row(headings, &widths, row, out);
    }
}

fn draw_row(headings: &[Heading], widths: &[usize], row: Vec<Text>, out: &mut String) {
    let count = row.len();
    for (at, ((heading, width), cell)) in headings.iter().zip(widths).zip(row).enumerate() {
        let cell = cell.cut_to(*width);
        let padding = " ".repeat(width.saturating_sub(cell.width()));
        if at > 0 {
            out.push_str(&" ".repeat(GAP));
        }
        if heading.right {
            out.push_str(&padding);
        }
        cell.write_to(out);
        if !heading.right && at + 1 < count {
            out.push_str(&padding);
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        let headings = [("NAME", false), ("CPU", true), ("WHERE", false)]
            .map(|(title, right)| Heading { title, right });
        let rows = vec![
            vec![
                Text::plain("東京-1"),
                Text::toned(Tone::Bad, "97%"),
                Text::plain("a long list of hosts"),
            ],
            vec![Text::plain("web"), Text::unknown(), Text::plain("x\ny")],
        ];
        let mut out = String::new();
        draw(&headings, rows, Some(28), &mut out);
        let expected = "NAME    CPU  WHERE\n東京-1  97%  a long list of…\nweb       –  x\\u{a}y\n";
        assert_eq!(anstream::adapter::strip_str(&out).to_string(), expected);
    }
}
