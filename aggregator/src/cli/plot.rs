//! `muster plot`: a metric over time as a line in the terminal.
//!
//! Each series gets a chart of its own, and at most as many as a screen takes; `--agg` across hosts is for queries.
//! Where there was no sample there is no line.

use clap::Args;
use muster_proto::{time::Timestamp, v1};

use super::{
    failure::{Code, Failure},
    history::{self, Agg, Range, UnitOf, labels, points},
    output::{Format, Rendered},
    session::Session,
    text::{Text, Tone},
    when,
};

/// Charts drawn unless `-n` says otherwise.
const CHARTS: usize = 6;

/// Columns of a chart on what is no terminal, and the most on one that is.
const WIDTH: usize = 80;
const MAX_WIDTH: usize = 160;

/// Columns for the numbers at the left.
const MARGIN: usize = 11;

/// `muster plot`
#[derive(Debug, Clone, Args)]
pub struct Plot {
    /// Metrics to draw, with labels if need be: 'node_load1' 'node_filesystem_avail_bytes{mountpoint=/}'
    #[arg(value_name = "METRIC", required = true)]
    pub metrics: Vec<String>,
    /// Of which hosts, and when.
    #[command(flatten)]
    pub range: Range,
    /// What becomes of the values that one column stands for
    #[arg(long, value_enum, default_value_t = Agg::Auto)]
    pub agg: Agg,
    /// Lines of a chart
    #[arg(long, value_name = "LINES", default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..=60))]
    pub height: u16,
    /// The same time so long ago beside it: 1d, 7d
    #[arg(long, value_name = "SPAN", value_parser = history::span)]
    pub compare: Option<std::time::Duration>,
    /// Only characters that every terminal has
    #[arg(long)]
    pub ascii: bool,
}

/// Runs `muster plot`.
///
/// # Errors
/// What stood in the way.
pub async fn run(session: &Session, args: &Plot) -> Result<Rendered, Failure> {
    if !matches!(
        session.options.format,
        Format::Table | Format::Wide | Format::Tsv
    ) {
        return Err(
            Failure::new(Code::Usage, "a picture has no such form").hint(
                format!(
                    "muster history '{}' --step 5m -o json",
                    args.metrics.join(" ")
                ),
                "the numbers behind it",
            ),
        );
    }
    let width = session.width().unwrap_or(WIDTH).min(MAX_WIDTH);
    let columns = width.saturating_sub(MARGIN + 2).max(20);
    let most = session.options.limit.unwrap_or(CHARTS);
    let (mut text, mut whole, mut left) = (String::new(), v1::HistoryEnd::default(), 0);
    for metric in &args.metrics {
        let mut request = args.range.request(session, metric)?;
        let range = request.to_ms - request.from_ms;
        let wide = i64::try_from(columns).unwrap_or(i64::MAX);
        request.step_ms = step(range / wide);
        request.fold = args.agg.fold().into();
        let frame = Frame {
            from: request.from_ms - request.from_ms.rem_euclid(request.step_ms),
            step_ms: request.step_ms,
            columns,
            height: usize::from(args.height),
            ascii: args.ascii,
        };
        let mut before = Vec::new();
        if let Some(compare) = args.compare {
            let shift = muster_proto::time::duration_millis(compare);
            let mut earlier = request.clone();
            earlier.from_ms -= shift;
            earlier.to_ms -= shift;
            history::read(session, earlier, |series| {
                before.push((name(&series), frame.moved(-shift).values(&series)));
                Ok(())
            })
            .await?;
        }
        let mut drawn = 0;
        let end = history::read(session, request, |series| {
            if drawn == most {
                left += 1;
                return Ok(());
            }
            drawn += 1;
            let title = name(&series);
            let earlier = before.iter().find(|(name, _)| *name == title);
            let earlier = earlier.map(|(_, values)| values.as_slice());
            frame.draw(&title, &series, earlier, session, &mut text);
            Ok(())
        })
        .await?;
        if drawn == 0 {
            Text::plain(format!("nothing of {metric} was recorded then")).line_to(&mut text);
        }
        whole.unknown_names = end.unknown_names;
        whole.meta = end.meta;
    }
    if left > 0 {
        Text::toned(
            Tone::Dim,
            format!("{left} more series: -n N draws more, labels choose fewer"),
        )
        .line_to(&mut text);
    }
    Ok(history::rendered(text, whole))
}

fn name(series: &v1::HistorySeries) -> String {
    let fold = match series.fold() {
        v1::HistoryFold::Rate => " per second",
        v1::HistoryFold::Increase => " increase",
        v1::HistoryFold::Max => " largest",
        v1::HistoryFold::Min => " smallest",
        _ => "",
    };
    let labels = match labels(series) {
        labels if labels.is_empty() => labels,
        labels => format!("{{{labels}}}"),
    };
    format!("{} {}{labels}{fold}", series.host, series.metric)
}

/// The next longer span that people and roll-ups know.
fn step(least_ms: i64) -> i64 {
    const STEPS: [i64; 14] = [
        1, 2, 5, 10, 15, 30, 60, 120, 300, 900, 1_800, 3_600, 21_600, 86_400,
    ];
    let found = STEPS.iter().find(|step| *step * 1000 >= least_ms);
    found.map_or(least_ms, |step| step * 1000)
}

/// Where charts are drawn in.
#[derive(Debug, Clone, Copy)]
struct Frame {
    from: i64,
    step_ms: i64,
    columns: usize,
    height: usize,
    ascii: bool,
}

impl Frame {
    fn moved(self, by: i64) -> Self {
        let from = self.from + by;
        Self {
            from: from - from.rem_euclid(self.step_ms),
            ..self
        }
    }

    /// One value for each column.
    fn values(&self, series: &v1::HistorySeries) -> Vec<Option<f64>> {
        let mut values = vec![None; self.columns];
        for (at, value) in points(series) {
            let column = (at.as_millis() - self.from).div_euclid(self.step_ms);
            if let Some(slot) = usize::try_from(column)
                .ok()
                .and_then(|at| values.get_mut(at))
                && value.is_finite()
            {
                *slot = Some(value);
            }
        }
        values
    }

    fn draw(
        &self,
        title: &str,
        series: &v1::HistorySeries,
        earlier: Option<&[Option<f64>]>,
        session: &Session,
        out: &mut String,
    ) {
        let values = self.values(series);
        let unit = UnitOf::of(series);
        let known = || {
            values
                .iter()
                .chain(earlier.unwrap_or_default())
                .flatten()
                .copied()
        };
        let (mut low, mut high) = (
            known().fold(f64::INFINITY, f64::min),
            known().fold(f64::NEG_INFINITY, f64::max),
        );
        if low > high {
            return;
        }
        let (least, most) = (low, high);
        // A line near the ground of a high mountain range says more than a magnified one; but what hardly moves
        // is looked at from near.
        if low > 0.0 && low < high * 0.9 {
            low = 0.0;
        }
        if high <= low {
            high = low + low.abs().max(1.0) * 0.1;
        }
        Text::toned(Tone::Strong, title).line_to(out);
        let rows = |values: &[Option<f64>]| -> Vec<Option<usize>> {
            let row = |value: &f64| row_of(*value, low, high, self.height);
            values.iter().map(|value| value.as_ref().map(row)).collect()
        };
        let earlier = earlier.map(rows);
        let lines = lines(&rows(&values), earlier.as_deref(), self.height, self.ascii);
        for (row, line) in lines.iter().enumerate().rev() {
            let label = match row {
                row if row + 1 == self.height => unit.show(high),
                0 => unit.show(low),
                row if self.height > 5 && row == self.height / 2 => {
                    unit.show(value_of(row, low, high, self.height))
                }
                _ => String::new(),
            };
            let edge = if self.ascii { '|' } else { '┤' };
            Text::toned(Tone::Dim, format!("{label:>MARGIN$} {edge}"))
                .and(line)
                .line_to(out);
        }
        let last = values.iter().flatten().next_back();
        let range = self
            .step_ms
            .saturating_mul(i64::try_from(self.columns).unwrap_or(0));
        let at = |at: i64| when::axis(Timestamp::from_millis(at), range, session.zone());
        let (start, end) = (at(self.from), at(self.from + range));
        let gap = self
            .columns
            .saturating_sub(start.chars().count() + end.chars().count());
        Text::toned(
            Tone::Dim,
            format!("{:MARGIN$}  {start}{}{end}", "", " ".repeat(gap)),
        )
        .line_to(out);
        let mut facts = format!("min {}  max {}", unit.show(least), unit.show(most));
        if let Some(last) = last {
            facts.push_str(&format!("  last {}", unit.show(*last)));
        }
        if earlier.is_some() {
            facts.push_str("  dots: earlier");
        }
        Text::toned(Tone::Dim, format!("{:MARGIN$}  {facts}", "")).line_to(out);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a row of at most 60, clamped"
)]
fn row_of(value: f64, low: f64, high: f64, height: usize) -> usize {
    let share = ((value - low) / (high - low)).clamp(0.0, 1.0);
    ((share * (height - 1) as f64).round() as usize).min(height - 1)
}

#[expect(clippy::cast_precision_loss, reason = "at most 60")]
fn value_of(row: usize, low: f64, high: f64, height: usize) -> f64 {
    low + (high - low) * row as f64 / (height - 1) as f64
}

/// The lines of a chart from the lowest up.
fn lines(
    rows: &[Option<usize>],
    earlier: Option<&[Option<usize>]>,
    height: usize,
    ascii: bool,
) -> Vec<String> {
    let mut grid = vec![vec![' '; rows.len()]; height];
    if let Some(earlier) = earlier {
        for (column, row) in earlier.iter().enumerate().take(rows.len()) {
            if let Some(row) = row {
                grid[*row][column] = if ascii { '.' } else { '·' };
            }
        }
    }
    for (column, row) in rows.iter().enumerate() {
        let Some(row) = *row else { continue };
        let before = column.checked_sub(1).and_then(|at| rows[at]);
        if ascii {
            grid[row][column] = '*';
            continue;
        }
        match before {
            None => grid[row][column] = '─',
            Some(before) if before == row => grid[row][column] = '─',
            Some(before) => {
                let up = row > before;
                grid[before][column] = if up { '╯' } else { '╮' };
                grid[row][column] = if up { '╭' } else { '╰' };
                for line in &mut grid[before.min(row) + 1..before.max(row)] {
                    line[column] = '│';
                }
            }
        }
    }
    grid.into_iter()
        .map(|line| line.into_iter().collect::<String>().trim_end().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_up_and_down_and_has_gaps() {
        let rows = [Some(0), Some(0), Some(2), Some(2), None, Some(1), Some(0)];
        let drawn = lines(&rows, None, 3, false);
        assert_eq!(drawn, ["──╯   ╰", "  │  ─╮", "  ╭─"]);
        let earlier = [Some(2), None, None, None, Some(1), None, None];
        let drawn = lines(&rows, Some(&earlier), 3, true);
        assert_eq!(drawn, ["**    *", "    .*", ". **"]);
    }

    #[test]
    fn steps_are_those_that_people_know() {
        assert_eq!(step(1), 1_000);
        assert_eq!(step(51_000), 60_000);
        assert_eq!(step(60_001), 120_000);
        assert_eq!(step(100_000_000), 100_000_000);
    }

    #[test]
    fn rows_keep_within_the_chart() {
        for (value, row) in [(0.0, 0), (5.0, 4), (10.0, 7), (99.0, 7), (-1.0, 0)] {
            assert_eq!(row_of(value, 0.0, 10.0, 8), row, "{value}");
        }
    }
}
