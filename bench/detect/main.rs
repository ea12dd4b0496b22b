//! Scores the host score on labelled recordings, and writes the table of docs/detection.md.
//!
//! ```text
//! cargo run --example detect-score -- DATA                  the table
//! cargo run --example detect-score -- DATA --floors         and fails below the floors of its README
//! cargo run --example detect-score -- DATA --update DOC     and writes it between the marks in DOC
//! ```
//!
//! DATA holds `manifest.csv`, `labels.csv` and the gzipped tables that the manifest names; its `hosts` track is
//! scored. What runs is `muster_aggregator::detect::offline`, the fold of the server, with one configuration for
//! all. Beside the measures it shows what must not change them: files cut short, and rows that are lost.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unreachable_pub,
    reason = "a program of its own, for numbers known to be small"
)]

mod data;
mod measure;

use std::{env, fmt::Write as _, fs, path::Path, time::Instant};

use anyhow::{Context, bail, ensure};
use data::{Series, Table};
use measure::{Judged, mean, reach, tally};
use muster_aggregator::detect::{
    DetectConfig,
    offline::{self, Scored},
};

/// The table stands between these in the documentation.
const BEGIN: &str = "<!-- detect-score: begin -->\n";
const END: &str = "<!-- detect-score: end -->";

/// One recording as the detector saw it.
struct Run {
    series: Series,
    names: Vec<String>,
    scored: Vec<Scored>,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let (data, floors, update) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [data] => (data, false, None),
        [data, "--floors"] => (data, true, None),
        [data, "--update", doc] => (data, false, Some(doc)),
        _ => bail!("usage: detect-score DATA [--floors | --update DOC]"),
    };
    let data = Path::new(data);
    let config = DetectConfig::default();
    let mut series = data::load(data)?;
    series.retain(|one| one.track == "hosts");
    let tables: Vec<Table> = series
        .iter()
        .map(|one| data::table(&data.join(&one.file)))
        .collect::<Result<_, _>>()?;
    let began = Instant::now();
    let runs = run(&series, &tables, &config, |_| true)?;
    let took = began.elapsed();
    let updates: usize = tables.iter().map(|table| table.values.len()).sum();
    cut_short(&runs, &tables, &config)?;
    let lost = run(&series, &tables, &config, lost)?;
    let report = report(&runs, &lost)?;
    print!("{report}");
    println!(
        "\n{:.0} ns a metric update, {} updates",
        took.as_nanos() as f64 / updates.max(1) as f64,
        updates
    );
    if let Some(doc) = update {
        write_between(Path::new(doc), &report)?;
    }
    if floors {
        check_floors(&runs)?;
    }
    Ok(())
}

/// Runs the detector over every table, without the rows that are not kept.
fn run(
    series: &[Series],
    tables: &[Table],
    config: &DetectConfig,
    kept: impl Fn(usize) -> bool,
) -> anyhow::Result<Vec<Run>> {
    let mut runs = Vec::new();
    for (series, table) in series.iter().zip(tables) {
        let text = csv(table, table.times.len(), &kept);
        let some = offline::score_csv(text.as_bytes(), config)
            .with_context(|| format!("cannot score {}", series.name))?;
        // A row that was lost shows what the one before it showed.
        let mut some = some.into_iter();
        let mut scored: Vec<Scored> = Vec::with_capacity(table.times.len());
        for row in 0..table.times.len() {
            let now = if kept(row) {
                some.next().context("a row has no score")?
            } else {
                *scored.last().context("the first row is kept")?
            };
            scored.push(Scored { row, ..now });
        }
        runs.push(Run {
            series: series.clone(),
            names: table.names.clone(),
            scored,
        });
    }
    Ok(runs)
}

/// Every row but one in ten, which ones by a hash of their number.
fn lost(row: usize) -> bool {
    let mixed = (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    row == 0 || !(mixed ^ (mixed >> 29)).is_multiple_of(10)
}

/// The first rows of a table as text.
fn csv(table: &Table, rows: usize, kept: impl Fn(usize) -> bool) -> String {
    let mut text = format!("t,{}\n", table.names.join(","));
    let width = table.names.len().max(1);
    let lines = table.times.iter().zip(table.values.chunks(width));
    for (row, (time, values)) in lines.enumerate().take(rows) {
        if !kept(row) {
            continue;
        }
        let _ = write!(text, "{time}");
        for value in values {
            let _ = write!(text, ",{value}");
        }
        text.push('\n');
    }
    text
}

/// A score may depend on nothing that comes later: files cut short give the same to the last digit.
fn cut_short(runs: &[Run], tables: &[Table], config: &DetectConfig) -> anyhow::Result<()> {
    for (place, (run, table)) in runs.iter().zip(tables).enumerate() {
        // A different place in each file, between the first judged row and the last.
        let judged = run.scored.len() - run.series.from;
        let rows = run.series.from + judged * (place % 5 + 1) / 6;
        let text = csv(table, rows, |_| true);
        let short = offline::score_csv(text.as_bytes(), config)?;
        ensure!(
            short[..] == run.scored[..rows],
            "{}: cut at row {rows} it scores otherwise",
            run.series.name
        );
    }
    Ok(())
}

fn judged(runs: &[Run]) -> Vec<Judged> {
    let judged = runs.iter().map(|run| {
        let rows = &run.scored[run.series.from..];
        Judged::new(
            &run.series,
            rows.iter().map(|row| row.score).collect(),
            rows.iter().map(|row| row.alert).collect(),
        )
    });
    judged.collect()
}

/// The groups that figures are given for: all, each source, and every other host for a check of the constants.
fn groups(judged: &[Judged]) -> Vec<(String, Vec<&Judged>)> {
    let mut groups = vec![("all".to_owned(), judged.iter().collect())];
    let mut sources: Vec<&str> = judged.iter().map(|one| one.source.as_str()).collect();
    sources.sort_unstable();
    sources.dedup();
    for source in sources {
        let of = judged.iter().filter(|one| one.source == source);
        groups.push((source.to_owned(), of.collect()));
    }
    for (name, from) in [("even hosts", 0), ("odd hosts", 1)] {
        groups.push((
            name.to_owned(),
            judged.iter().skip(from).step_by(2).collect(),
        ));
    }
    groups
}

fn report(runs: &[Run], lost: &[Run]) -> anyhow::Result<String> {
    let (whole, lost) = (judged(runs), judged(lost));
    let mut text = String::new();
    writeln!(
        text,
        "| | recall at 1 per host-week | at 1 per host-day | best F1 | AUC-PR / VUS-PR |\n|---|---|---|---|---|"
    )?;
    let mut line = |name: &str, group: &[&Judged]| {
        let reach = reach(group);
        writeln!(
            text,
            "| {name} | {:.3} | {:.3} | {:.3} | {:.3} / {:.3} |",
            reach.a_week.recall(),
            reach.a_day.recall(),
            reach.best.f1(),
            mean(group, Judged::auc_pr),
            mean(group, Judged::vus_pr)
        )
    };
    for (name, group) in groups(&whole) {
        line(&name, &group)?;
    }
    line("all, a row in ten lost", &lost.iter().collect::<Vec<_>>())?;
    writeln!(
        text,
        "\n| as listed | recall | precision | F1 | false a host-week | median delay |\n|---|---|---|---|---|---|"
    )?;
    for (name, group) in groups(&whole) {
        let listed = tally(&group, |one, row| one.alert[row]);
        writeln!(
            text,
            "| {name} | {:.3} | {:.3} | {:.3} | {:.2} | {:.0} min |",
            listed.recall(),
            listed.precision(),
            listed.f1(),
            listed.rate() * 7.0,
            listed.delay / 60.0
        )?;
    }
    let (right, named) = first_named(runs);
    writeln!(
        text,
        "\nThe metric named first was one that the labellers blamed in {right} of {named} events listed."
    )?;
    Ok(text)
}

/// In how many events the metric named first is one that was blamed, and in how many one was named.
fn first_named(runs: &[Run]) -> (usize, usize) {
    let (mut right, mut named) = (0, 0);
    for run in runs {
        for event in run
            .series
            .events
            .iter()
            .filter(|one| !one.metrics.is_empty())
        {
            let rows = &run.scored[event.start..=event.end];
            // Nothing is named before it has begun; what is named ten minutes later had time to show.
            let Some(begun) = rows.iter().position(|row| row.first.is_some()) else {
                continue;
            };
            let shown = (600 / run.series.step.max(1)) as usize;
            let settled = &rows[begun..(begun + shown + 1).min(rows.len())];
            let Some(first) = settled.iter().rev().find_map(|row| row.first) else {
                continue;
            };
            named += 1;
            let name = run.names.get(first as usize);
            right += usize::from(name.is_some_and(|name| event.metrics.contains(name)));
        }
    }
    (right, named)
}

/// The marked part of a document becomes this text.
fn write_between(doc: &Path, text: &str) -> anyhow::Result<()> {
    let before =
        fs::read_to_string(doc).with_context(|| format!("cannot read {}", doc.display()))?;
    let begin = before.find(BEGIN).context("the document has no marks")? + BEGIN.len();
    let length = before[begin..]
        .find(END)
        .context("the second mark is missing")?;
    let after = format!("{}{text}{}", &before[..begin], &before[begin + length..]);
    fs::write(doc, after).with_context(|| format!("cannot write {}", doc.display()))
}

/// The floors for the committed recordings: what they give now, less what a change for the better may cost on two
/// hosts.
fn check_floors(runs: &[Run]) -> anyhow::Result<()> {
    const DAY_RECALL: f64 = 0.85;
    const BEST_F1: f64 = 0.68;
    const AUC_PR: f64 = 0.37;
    const FALSE_A_WEEK: f64 = 3.0;
    let whole = judged(runs);
    let all: Vec<&Judged> = whole.iter().collect();
    let reach = reach(&all);
    let (recall, f1, auc) = (
        reach.a_day.recall(),
        reach.best.f1(),
        mean(&all, Judged::auc_pr),
    );
    let rate = tally(&all, |one, row| one.alert[row]).rate() * 7.0;
    ensure!(
        recall >= DAY_RECALL,
        "recall at 1 a host-day is {recall:.3}, below {DAY_RECALL}"
    );
    ensure!(f1 >= BEST_F1, "best F1 is {f1:.3}, below {BEST_F1}");
    ensure!(auc >= AUC_PR, "AUC-PR is {auc:.3}, below {AUC_PR}");
    ensure!(
        rate <= FALSE_A_WEEK,
        "{rate:.2} false alerts a host-week, above {FALSE_A_WEEK}"
    );
    Ok(())
}
