//! The check of a file: whether it is there, how old and how large it is, how fast it grows. Its content is
//! never read.

use std::{
    fs, io,
    io::Read as _,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{Cause, Finding, Run, Status, Threads, config::FileCheck};
use crate::settings::{show_bytes, show_duration};

/// What is looked at.
#[derive(Debug, Clone, Copy)]
struct Seen {
    size: u64,
    /// Since its last change; nothing for a change in the future.
    age: Duration,
}

pub(super) async fn ask(
    run: &Run<'_>,
    check: &FileCheck,
    before: &mut Option<u64>,
) -> Result<Finding, Finding> {
    let path = check.path.clone();
    let seen = run.aside(Threads::Files, move || look(&path)).await?;
    let finding = match seen {
        Ok(_) if check.absent => {
            let message = format!("{} is there, and should not be", check.path.display());
            Finding::critical(Cause::Present, message)
        }
        Ok(seen) => {
            let finding = judge(check, seen, *before);
            *before = Some(seen.size);
            finding
        }
        Err(error) if check.absent && error.kind() == io::ErrorKind::NotFound => {
            Finding::ok(format!("{} is not there", check.path.display()))
        }
        Err(error) => failed(&check.path, &error),
    };
    Ok(finding)
}

fn look(path: &Path) -> io::Result<Seen> {
    let about = fs::metadata(path)?;
    let changed = about.modified()?;
    Ok(Seen {
        size: about.len(),
        age: SystemTime::now()
            .duration_since(changed)
            .unwrap_or_default(),
    })
}

fn judge(check: &FileCheck, seen: Seen, before: Option<u64>) -> Finding {
    let path = check.path.display();
    let size = shown(seen.size);
    // Whole seconds read better, and nobody sets less.
    let age = show_duration(Duration::from_secs(seen.age.as_secs()));
    if let Some(most) = check.max_age.filter(|most| seen.age > *most) {
        let most = show_duration(most);
        let message = format!("{path} was last changed {age} ago, more than {most}");
        return Finding::critical(Cause::Age, message);
    }
    if let Some(least) = check.min_size.filter(|least| seen.size < *least) {
        let message = format!("{path} has {size}, less than {}", shown(least));
        return Finding::critical(Cause::Size, message);
    }
    if let Some(most) = check.max_size.filter(|most| seen.size > *most) {
        let message = format!("{path} has {size}, more than {}", shown(most));
        return Finding::critical(Cause::Size, message);
    }
    let grown = seen.size.saturating_sub(before.unwrap_or(seen.size));
    if let Some(most) = check.max_growth.filter(|most| grown > *most) {
        let (grown, most) = (shown(grown), shown(most));
        let message = format!("{path} has grown by {grown} since the last run, more than {most}");
        return Finding::critical(Cause::Growth, message);
    }
    Finding::ok(format!("{path} has {size} and was changed {age} ago"))
}

/// A size with its unit.
fn shown(bytes: u64) -> String {
    let text = show_bytes(bytes);
    match text.ends_with('B') {
        true => text,
        false => format!("{text} B"),
    }
}

/// What it means that a file could not be looked at.
pub(super) fn failed(path: &Path, error: &io::Error) -> Finding {
    let (status, cause) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            (Status::Critical, Cause::Missing)
        }
        io::ErrorKind::PermissionDenied => (Status::Unknown, Cause::Denied),
        _ => (Status::Unknown, Cause::Error),
    };
    Finding::new(status, cause, format!("{}: {error}", path.display()))
}

/// A file's content, if it has no more than `most` bytes.
pub(super) fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(most + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("has more than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{ChecksConfig, Kind, Memory, Tools, testing};

    fn seen(size: u64, age: u64) -> Seen {
        Seen {
            size,
            age: Duration::from_secs(age),
        }
    }

    #[test]
    fn age_size_and_growth_are_judged() {
        let check = FileCheck {
            max_age: Some(Duration::from_secs(100)),
            min_size: Some(10),
            max_size: Some(1000),
            max_growth: Some(100),
            ..FileCheck::at("/x")
        };
        for (now, before, cause) in [
            (seen(500, 5), None, Cause::Ok),
            (seen(500, 101), None, Cause::Age),
            (seen(9, 5), None, Cause::Size),
            (seen(1001, 5), None, Cause::Size),
            (seen(500, 5), Some(400), Cause::Ok),
            (seen(500, 5), Some(399), Cause::Growth),
            // Rotated.
            (seen(10, 5), Some(900), Cause::Ok),
        ] {
            let finding = judge(&check, now, before);
            assert_eq!(finding.cause, cause, "{now:?} {before:?}");
            assert_eq!(finding.status == Status::Ok, cause == Cause::Ok);
        }
    }

    #[tokio::test]
    async fn existence_is_judged() {
        let folder = tempfile::tempdir().expect("a folder");
        let there = folder.path().join("there");
        fs::write(&there, "12345").expect("written");
        let missing = folder.path().join("missing");
        let absent = |path: &Path| FileCheck {
            absent: true,
            ..FileCheck::at(path)
        };
        for (check, cause) in [
            (FileCheck::at(&there), Cause::Ok),
            (FileCheck::at(&missing), Cause::Missing),
            (FileCheck::at(there.join("below")), Cause::Missing),
            (absent(&there), Cause::Present),
            (absent(&missing), Cause::Ok),
        ] {
            let finding = testing::run(Kind::File(check.clone())).await;
            assert_eq!(finding.cause, cause, "{check:?}: {}", finding.message);
        }
    }

    #[tokio::test]
    async fn growth_is_from_run_to_run() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let check = testing::check(Kind::File(FileCheck {
            max_growth: Some(3),
            ..FileCheck::at(file.path())
        }));
        let tools = Tools::new(&ChecksConfig::default());
        let mut memory = Memory::default();
        let mut causes = Vec::new();
        for size in [10, 13, 17, 17] {
            fs::write(file.path(), vec![b'x'; size]).expect("written");
            causes.push(tools.run(&check, &mut memory).await.finding.cause);
        }
        assert_eq!(causes, [Cause::Ok, Cause::Ok, Cause::Growth, Cause::Ok]);
    }
}
