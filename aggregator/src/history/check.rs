//! Reads everything there is of a store and says what is damaged. Changes nothing, also beside a running
//! aggregator.

use muster_proto::log::Storage;

use super::{HistoryError, block::Block, manifest, rebuild, store::name_order};

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Files of samples that were read.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Points in them.
    pub points: u64,
    /// What is wrong, in words for people.
    pub problems: Vec<String>,
}

/// Reads every file that the manifest names, to the last page.
///
/// A manifest that is damaged or gone is a problem, and the files are read all the same: the next start makes it anew.
///
/// # Errors
/// When the folder does not read, or a newer program wrote here.
pub fn check<S: Storage>(storage: &S) -> Result<Report, HistoryError> {
    let mut report = Report::default();
    let known = match manifest::read(storage) {
        Ok(Some(known)) => known,
        Ok(None) => unnamed(storage, "the manifest is gone", &mut report)?,
        Err(error @ HistoryError::Damaged { .. }) => {
            unnamed(storage, &crate::chain(&error), &mut report)?
        }
        Err(error) => return Err(error),
    };
    if let Err(error) = manifest::read_forgotten(storage) {
        report.problems.push(crate::chain(&error));
    }
    for group in known.groups.iter().flatten() {
        if let Err(error) = manifest::read_group(storage, &group.file) {
            problem(storage, &group.file, &error, &mut report);
        }
    }
    for file in &known.files {
        match points(storage, &file.name) {
            Ok(points) => {
                report.files += 1;
                report.bytes += file.bytes;
                report.points += points;
                if points != file.points {
                    let (name, said) = (&file.name, file.points);
                    let text = format!("{name} has {points} points, the manifest says {said}");
                    report.problems.push(text);
                }
            }
            Err(error) => problem(storage, &file.name, &error, &mut report),
        }
    }
    Ok(report)
}

/// What the files say themselves.
fn unnamed<S: Storage>(
    storage: &S,
    why: &str,
    report: &mut Report,
) -> Result<manifest::Manifest, HistoryError> {
    let mut survey = rebuild::survey(storage, None)?;
    if !survey.manifest.files.is_empty() {
        report.problems.push(format!(
            "{why}: the next start of the aggregator makes it anew from the files that are whole"
        ));
        report.problems.append(&mut survey.problems);
    }
    Ok(survey.manifest)
}

/// Notes what is wrong, unless the file has been replaced meanwhile by a running aggregator.
fn problem<S: Storage>(storage: &S, name: &str, error: &HistoryError, report: &mut Report) {
    let still = manifest::read(storage);
    if matches!(still, Ok(Some(now)) if !now.names(name)) {
        return;
    }
    report.problems.push(crate::chain(error));
}

fn points<S: Storage>(storage: &S, name: &str) -> Result<u64, HistoryError> {
    let block = Block::open(storage, name)?;
    if !block.series().is_sorted_by(name_order) {
        return Err(HistoryError::Damaged {
            name: name.to_owned(),
            what: "its series are not in order",
        });
    }
    let mut points = 0;
    for index in 0..block.series().len() {
        block.chunks(
            index,
            |_| true,
            |_, chunk| points += chunk.cells.len() as u64,
        )?;
    }
    Ok(points)
}
