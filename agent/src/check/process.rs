//! The check of processes: how many of a name run, or whether the one of a pidfile does.

use std::{fs, io, path::Path};

use super::{
    Cause, Finding, Run, Threads,
    config::ProcessCheck,
    file::{failed, read_bounded},
};

/// Where the kernel shows processes.
const PROC: &str = "/proc";

/// The kernel cuts a process's name after 15 bytes (TASK_COMM_LEN in linux/sched.h).
const COMM_BYTES: usize = 15;

/// Largest pidfile that is read.
const MAX_PIDFILE_BYTES: u64 = 64;

/// More of a command line is not looked at: its first argument is what counts.
const MAX_ARGUMENT_BYTES: u64 = 64 * 1024;

pub(super) async fn ask(run: &Run<'_>, check: &ProcessCheck) -> Result<Finding, Finding> {
    let asked = check.clone();
    run.aside(Threads::Files, move || match &asked.pidfile {
        Some(pidfile) => in_pidfile(Path::new(PROC), pidfile, &asked),
        None => match count(Path::new(PROC), &asked.process) {
            Ok(count) => Ok(judge(&asked, &asked.process, count)),
            Err(error) => Err(failed(Path::new(PROC), &error)),
        },
    })
    .await?
}

fn judge(check: &ProcessCheck, what: &str, count: usize) -> Finding {
    let noun = if count == 1 { "process" } else { "processes" };
    let found = format!("{count} {noun} {what}");
    if count < check.min {
        let cause = if count == 0 {
            Cause::Missing
        } else {
            Cause::Count
        };
        return Finding::critical(cause, format!("{found}, at least {} expected", check.min));
    }
    match check.max.filter(|max| count > *max) {
        Some(max) => Finding::critical(Cause::Count, format!("{found}, at most {max} expected")),
        None => Finding::ok(found),
    }
}

/// How many processes have this name. Kernel threads count as what they are called; zombies do not run.
fn count(proc: &Path, name: &str) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let number = entry.file_name();
        let is_process = number.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if is_process && is_called(&entry.path(), name) && runs(&entry.path()) {
            count += 1;
        }
    }
    Ok(count)
}

/// Whether the process has this name. One that ends meanwhile has none.
fn is_called(process: &Path, name: &str) -> bool {
    let comm = fs::read(process.join("comm")).unwrap_or_default();
    let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
    if comm == name.as_bytes() {
        return true;
    }
    // A name that was cut, or a script whose interpreter the kernel names: the first argument has it whole.
    let cut = name.len() > COMM_BYTES && name.as_bytes().starts_with(comm);
    let own = cut || !comm.is_empty() && comm.len() < COMM_BYTES;
    own && first_argument(process).is_some_and(|argument| {
        let file = argument.rsplit(|byte| *byte == b'/').next();
        file == Some(name.as_bytes())
    })
}

fn first_argument(process: &Path) -> Option<Vec<u8>> {
    let all = read_bounded(&process.join("cmdline"), MAX_ARGUMENT_BYTES).ok()?;
    let first = all.split(|byte| *byte == 0).next()?;
    (!first.is_empty()).then(|| first.to_vec())
}

/// Whether the process is there and no zombie.
fn runs(process: &Path) -> bool {
    let stat = fs::read(process.join("stat")).unwrap_or_default();
    // The name before the state is in brackets and may contain any of them.
    let state = stat.iter().rposition(|byte| *byte == b')');
    let state = state.and_then(|at| stat.get(at + 2));
    state.is_some_and(|state| !matches!(state, b'Z' | b'X'))
}

fn in_pidfile(proc: &Path, pidfile: &Path, check: &ProcessCheck) -> Result<Finding, Finding> {
    let shown = pidfile.display();
    let bytes =
        read_bounded(pidfile, MAX_PIDFILE_BYTES).map_err(|error| failed(pidfile, &error))?;
    let text = String::from_utf8_lossy(&bytes);
    let number: Option<u32> = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    let number = number.filter(|number| *number > 0).ok_or_else(|| {
        Finding::critical(
            Cause::Content,
            format!("{shown}: no process number is in it"),
        )
    })?;
    let running = usize::from(runs(&proc.join(number.to_string())));
    Ok(judge(check, &format!("{number} of {shown}"), running))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::check::Status;

    /// A folder like /proc: number, name, arguments, state.
    fn proc(processes: &[(u32, &str, &str, char)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (number, comm, arguments, state) in processes {
            let path = folder.path().join(number.to_string());
            fs::create_dir(&path).expect("made");
            fs::write(path.join("comm"), format!("{comm}\n")).expect("written");
            fs::write(path.join("cmdline"), arguments.replace(' ', "\0")).expect("written");
            fs::write(path.join("stat"), format!("{number} ({comm}) {state} 1 1"))
                .expect("written");
        }
        fs::create_dir(folder.path().join("sys")).expect("made");
        folder
    }

    #[test]
    fn processes_are_found_by_their_names() {
        let folder = proc(&[
            (1, "systemd", "/sbin/init", 'S'),
            (2, "nginx", "nginx: master", 'S'),
            (3, "nginx", "nginx: worker", 'R'),
            (4, "nginx", "", 'Z'),
            (
                5,
                "a-very-long-nam",
                "/usr/bin/a-very-long-name-indeed -x",
                'S',
            ),
            (6, "odd) Z (x", "", 'S'),
            (7, "python3", "/usr/bin/salt-minion -d", 'S'),
        ]);
        for (name, expected) in [
            ("nginx", 2),
            ("init", 1),
            ("a-very-long-name-indeed", 1),
            ("a-very-long-name", 0),
            ("odd) Z (x", 1),
            ("salt-minion", 1),
            ("apache2", 0),
        ] {
            assert_eq!(
                count(folder.path(), name).expect("counted"),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn counts_are_judged() {
        let check = ProcessCheck {
            min: 2,
            max: Some(3),
            ..ProcessCheck::default()
        };
        for (count, cause) in [
            (0, Cause::Missing),
            (1, Cause::Count),
            (2, Cause::Ok),
            (3, Cause::Ok),
            (4, Cause::Count),
        ] {
            assert_eq!(judge(&check, "x", count).cause, cause, "{count}");
        }
        let none = ProcessCheck {
            max: Some(0),
            ..ProcessCheck::default()
        };
        assert_eq!(judge(&none, "x", 0).status, Status::Ok);
    }

    #[test]
    fn the_process_of_a_pidfile_runs_or_not() {
        let folder = proc(&[(7, "a", "", 'S'), (8, "b", "", 'Z')]);
        let check = ProcessCheck {
            min: 1,
            ..ProcessCheck::default()
        };
        let pidfile: PathBuf = folder.path().join("x.pid");
        for (text, cause) in [
            ("7\n", Cause::Ok),
            (" 7 more", Cause::Ok),
            ("8", Cause::Missing),
            ("9", Cause::Missing),
            ("0", Cause::Content),
            ("seven", Cause::Content),
            ("", Cause::Content),
        ] {
            fs::write(&pidfile, text).expect("written");
            let found = in_pidfile(folder.path(), &pidfile, &check).unwrap_or_else(|bad| bad);
            assert_eq!(found.cause, cause, "{text:?}");
        }
        fs::remove_file(&pidfile).expect("removed");
        let found = in_pidfile(folder.path(), &pidfile, &check).expect_err("nothing there");
        assert_eq!(found.cause, Cause::Missing);
    }
}
