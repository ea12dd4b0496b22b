//! Checks by monitoring plugins: programs of the host that say how it is.
//!
//! The only place where the agent runs a program, and only if the host's configuration says both that programs
//! may be run and which. A plugin gets an empty environment, no standard input, a process group of its own and
//! the check's timeout; then all of its group is killed, and what cannot be killed keeps its place until the
//! kernel lets it go. Its output is bounded. No shell is involved.

use std::{
    fs, io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getuid, kill_process_group, waitid};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    time::{self, Instant},
};

use super::{Cause, Finding, Run, config::ExecCheck, plugin};

/// Most output; the monitors this protocol comes from take 8 KiB.
const MAX_OUTPUT_BYTES: usize = 64 * 1024;

/// Where programs are looked for by scripts that plugins are.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const USERS: &str = "/etc/passwd";

/// How long until it is looked at again whether a plugin has ended: at first, and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// The same for one that was killed.
const REAP_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run(run: &Run<'_>, check: &ExecCheck) -> Finding {
    // A plugin that waits for others has not begun. What the kernel does not let go keeps its place, so the wait
    // has an end: who looks must see that this is not asked any more.
    let places = Arc::clone(&run.tools.plugins);
    let Ok(Ok(turn)) = time::timeout(run.check.interval, places.acquire_owned()).await else {
        let waited = crate::settings::show_duration(run.check.interval);
        return Finding::unknown(
            Cause::Error,
            format!("not asked: waited {waited} for other plugins that hang"),
        );
    };
    let deadline = Instant::now() + run.check.timeout;
    let places = Places {
        _turn: turn,
        _check: Arc::clone(&run.place),
    };
    let command = check.clone();
    // To start a program may wait for a disk. If that takes too long, the thread kills what it started.
    let starting = super::spawn(move || start(&command, places));
    let (mut plugin, output) = match time::timeout_at(deadline, starting).await {
        Ok(Ok(Ok(started))) => started,
        Ok(Ok(Err(finding)) | Err(finding)) => return finding,
        Err(_) => return run.timed_out(),
    };
    let Ok(ended) = time::timeout_at(deadline, plugin.listen(output)).await else {
        let timeout = run.timed_out();
        let message = format!(
            "{}; the plugin and what it started were killed",
            timeout.message
        );
        return Finding { message, ..timeout };
    };
    match ended {
        Ok(Ended::Exited(status, output)) => plugin::judge(status.code(), status.signal(), &output),
        Ok(Ended::Flooded) => Finding::unknown(
            Cause::Content,
            format!("the plugin printed more than {MAX_OUTPUT_BYTES} bytes and was killed"),
        ),
        Err(error) => Finding::unknown(Cause::Error, format!("the plugin: {error}")),
    }
}

/// What a plugin holds while anything of it is left.
#[derive(Debug)]
struct Places {
    _turn: OwnedSemaphorePermit,
    _check: Arc<OwnedSemaphorePermit>,
}

fn start(check: &ExecCheck, places: Places) -> Result<(Plugin, ChildStdout), Finding> {
    let Some((program, arguments)) = check.command.split_first() else {
        return Err(Finding::unknown(Cause::Error, "no program is named"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    if let Some((user, group)) = account(check.user.as_deref())? {
        // std lets go of all further groups when it changes the user.
        command.uid(user).gid(group);
    }
    let failed = |error: &io::Error| {
        let cause = match error.kind() {
            io::ErrorKind::NotFound => Cause::Missing,
            io::ErrorKind::PermissionDenied => Cause::Denied,
            _ => Cause::Error,
        };
        Finding::unknown(cause, format!("{program} cannot be run: {error}"))
    };
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let output = child.stdout.take();
    let plugin = Plugin {
        child: Some(child),
        places: Some(places),
    };
    let output =
        output.ok_or_else(|| Finding::unknown(Cause::Error, "the plugin has no output"))?;
    Ok((plugin, output))
}

/// User and group that a plugin is to run as; `None` for those that the agent has.
fn account(user: Option<&str>) -> Result<Option<(u32, u32)>, Finding> {
    let own = getuid();
    let Some(name) = user else {
        return match own.is_root() {
            true => Err(Finding::unknown(
                Cause::Denied,
                "the agent runs as root: name the user of this check; user = \"root\" if it must be",
            )),
            false => Ok(None),
        };
    };
    let users = fs::read_to_string(USERS)
        .map_err(|error| Finding::unknown(Cause::Error, format!("{USERS}: {error}")))?;
    let Some((id, group)) = find_user(&users, name) else {
        let message = format!("there is no user {name:?} in {USERS}");
        return Err(Finding::unknown(Cause::Missing, message));
    };
    if id == own.as_raw() {
        return Ok(None);
    }
    if !own.is_root() {
        let message = format!(
            "the agent runs as user {} without privileges and cannot become {name:?}",
            own.as_raw()
        );
        return Err(Finding::unknown(Cause::Denied, message));
    }
    Ok(Some((id, group)))
}

/// Number and group of a user, from lines as in passwd(5).
fn find_user(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (_password, id, group) = (fields.next()?, fields.next()?, fields.next()?);
        found.then(|| Some((id.parse().ok()?, group.parse().ok()?)))?
    })
}

/// A plugin that runs. When this is dropped, all of its process group is killed.
struct Plugin {
    child: Option<Child>,
    places: Option<Places>,
}

enum Ended {
    Exited(ExitStatus, Vec<u8>),
    /// It printed more than anybody reads.
    Flooded,
}

impl Plugin {
    /// Reads what it prints until its first process ends; what others of its group would still say is not
    /// waited for.
    async fn listen(&mut self, output: ChildStdout) -> io::Result<Ended> {
        let mut pipe = pipe::Receiver::from_owned_fd(output.into())?;
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        let mut open = true;
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                read = pipe.read(&mut chunk), if open => {
                    let count = read?;
                    open = count > 0;
                    text.extend_from_slice(&chunk[..count]);
                }
                () = time::sleep(pause) => {
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
            if text.len() > MAX_OUTPUT_BYTES {
                return Ok(Ended::Flooded);
            }
            if self.has_ended()? {
                break;
            }
        }
        while let Ok(count @ 1..) = pipe.try_read(&mut chunk) {
            text.extend_from_slice(&chunk[..count]);
            if text.len() > MAX_OUTPUT_BYTES {
                return Ok(Ended::Flooded);
            }
        }
        self.kill();
        let status = match &mut self.child {
            Some(child) => child.wait()?,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        self.child = None;
        Ok(Ended::Exited(status, text))
    }

    fn group(&self) -> Option<Pid> {
        Some(Pid::from_child(self.child.as_ref()?))
    }

    /// Whether the first process has ended. It stays a zombie, so that its number, which is that of its group,
    /// is nobody else's yet.
    fn has_ended(&self) -> io::Result<bool> {
        let Some(pid) = self.group() else {
            return Ok(true);
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(pid), options)?.is_some())
    }

    /// Kills all of the group that are left.
    fn kill(&self) {
        if let Some(group) = self.group()
            && let Err(error) = kill_process_group(group, Signal::KILL)
            // Nobody is left.
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(%error, "a plugin's processes cannot be killed");
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.kill();
        let places = self.places.take();
        // Without a runtime the process ends, and init reaps.
        if let (Some(child), Ok(runtime)) = (self.child.take(), Handle::try_current()) {
            runtime.spawn(reap(child, places));
        }
    }
}

/// Waits for a plugin that was killed, which takes as long as the kernel is busy for it.
async fn reap(mut child: Child, places: Option<Places>) {
    let mut pause = FIRST_PAUSE;
    while let Ok(None) = child.try_wait() {
        time::sleep(pause).await;
        pause = (pause * 2).min(REAP_PAUSE);
    }
    drop(places);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::{Check, ChecksConfig, Kind, Memory, Status, Tools, testing};

    /// A user that this test can run a plugin as.
    fn me() -> Option<String> {
        let users = fs::read_to_string(USERS).expect("there are users");
        let own = getuid().as_raw();
        let line = users
            .lines()
            .find(|line| line.split(':').nth(2).and_then(|id| id.parse().ok()) == Some(own));
        line.and_then(|line| line.split(':').next())
            .map(str::to_owned)
    }

    fn shell(script: &str, timeout: Duration) -> Check {
        Check {
            timeout,
            ..testing::check(Kind::Exec(ExecCheck {
                command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
                user: me(),
            }))
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);
    /// Long enough for a shell to start on a busy machine.
    const SHORT: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn plugins_are_believed() {
        for (script, status, cause, said) in [
            ("echo 'fine | a=1s'; exit 0", Status::Ok, Cause::Ok, "fine"),
            (
                "echo 'so so'; exit 1",
                Status::Warning,
                Cause::Plugin,
                "so so",
            ),
            ("echo bad; exit 2", Status::Critical, Cause::Plugin, "bad"),
            (
                "exit 3",
                Status::Unknown,
                Cause::Plugin,
                "the plugin said nothing",
            ),
            ("kill -9 $$", Status::Unknown, Cause::Signal, "signal 9"),
            (
                "printf 'a\\033[2J\\0b'",
                Status::Ok,
                Cause::Ok,
                "a\u{fffd}[2J\u{fffd}b",
            ),
            (
                "echo $HOME$USER$SHELL; pwd >&2; cat",
                Status::Ok,
                Cause::Ok,
                "the plugin said nothing",
            ),
        ] {
            let finding = testing::run_check(&shell(script, PATIENCE)).await;
            assert_eq!((finding.status, finding.cause), (status, cause), "{script}");
            assert!(
                finding.message.contains(said),
                "{script}: {}",
                finding.message
            );
        }
    }

    #[tokio::test]
    async fn what_cannot_be_run_is_unknown() {
        let exec = |command: &str, user: Option<&str>| {
            Kind::Exec(ExecCheck {
                command: vec![command.to_owned()],
                user: user.map(str::to_owned).or_else(me),
            })
        };
        for (kind, cause) in [
            (exec("/does/not/exist", None), Cause::Missing),
            (exec("/etc/passwd", None), Cause::Denied),
            (exec("/bin/true", Some("no such user")), Cause::Missing),
        ] {
            let finding = testing::run(kind).await;
            assert_eq!((finding.status, finding.cause), (Status::Unknown, cause));
        }
    }

    /// Numbers of the processes that a plugin wrote into a file.
    fn written(path: &Path) -> Vec<u32> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    }

    fn is_alive(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| state != 'Z')
    }

    /// The kernel kills at once, but not in the same instant.
    async fn all_end(pids: &[u32]) -> bool {
        let gone = async {
            while pids.iter().any(|&pid| is_alive(pid)) {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        time::timeout(PATIENCE, gone).await.is_ok()
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_killed_with_all_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let pids = folder.path().join("pids");
        let shown = pids.display();
        let script = format!(
            "(trap '' TERM HUP; echo $$ >>{shown}; sleep 300) & sleep 300 & echo $! $$ >>{shown}; trap '' TERM; wait"
        );
        let finding = testing::run_check(&shell(&script, SHORT)).await;
        assert_eq!(
            (finding.status, finding.cause),
            (Status::Critical, Cause::Timeout)
        );
        let pids = written(&pids);
        assert!(pids.len() >= 2, "the plugin ran: {pids:?}");
        assert!(all_end(&pids).await);
    }

    #[tokio::test]
    async fn children_that_keep_the_pipe_do_not_delay_the_result_and_are_killed() {
        let folder = tempfile::tempdir().expect("a folder");
        let pids = folder.path().join("pids");
        let script = format!("sleep 300 & echo $! >{}; echo done", pids.display());
        let finding = testing::run_check(&shell(&script, PATIENCE)).await;
        assert_eq!(
            (finding.status, finding.message.as_str()),
            (Status::Ok, "done")
        );
        assert!(all_end(&written(&pids)).await);
    }

    #[tokio::test]
    async fn a_flood_is_cut() {
        let finding = testing::run_check(&shell("exec cat /dev/zero", PATIENCE)).await;
        assert_eq!(
            (finding.status, finding.cause),
            (Status::Unknown, Cause::Content)
        );
    }

    #[tokio::test]
    async fn no_more_than_allowed_run_at_once() {
        let config = ChecksConfig {
            max_exec: 1,
            ..ChecksConfig::default()
        };
        let tools = Tools::new(&config);
        let folder = tempfile::tempdir().expect("a folder");
        let lock = folder.path().join("lock");
        // The second would find the first one's folder.
        let script = format!("mkdir {0} && sleep 0.1 && rmdir {0}", lock.display());
        let check = shell(&script, PATIENCE);
        let (mut one, mut two) = (Memory::default(), Memory::default());
        let (one, two) = tokio::join!(tools.run(&check, &mut one), tools.run(&check, &mut two));
        assert_eq!(
            (one.finding.status, two.finding.status),
            (Status::Ok, Status::Ok)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn plugins_that_hang_in_the_kernel_leave_the_others_unknown() {
        let tools = Tools::new(&ChecksConfig::default());
        let check = shell("exit 0", PATIENCE);
        let all = u32::try_from(tools.plugins.available_permits()).expect("few");
        let hang = tools.plugins.acquire_many(all).await.expect("never closed");
        let mut memory = Memory::default();
        let report = tools.run(&check, &mut memory).await;
        assert_eq!(
            (report.finding.status, report.finding.cause),
            (Status::Unknown, Cause::Error)
        );
        assert!(
            report.finding.message.contains("other plugins that hang"),
            "{}",
            report.finding.message
        );
        assert_eq!(report.took, check.interval);
        drop(hang);
        time::resume();
        let report = tools.run(&check, &mut memory).await;
        assert_eq!(report.finding.status, Status::Ok);
    }

    #[test]
    fn users_are_found_in_passwd() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nnagios:x:112:118::/var:/bin/false\n";
        assert_eq!(find_user(users, "nagios"), Some((112, 118)));
        assert_eq!(find_user(users, "nobody"), None);
        assert_eq!(find_user("x:y:z", "x"), None);
    }
}
