//! Commands on the state folder that need no running aggregator: `init`, `token …` and `audit …`.
//!
//! A running aggregator sees what they did within a second: they share its database.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown},
    path::Path,
};

use anyhow::Context as _;
use muster_proto::{
    time::{Clock as _, SystemClock, Timestamp},
    token::Token,
};

use crate::{
    control::{AuditLine, AuditVerdict, Control, TokenOptions, TokenRow},
    pki::Authority,
};

/// Who did it, in the audit log.
const ACTOR: &str = "local";

/// Makes the state folder, the authority and the database. `names` are the DNS names and addresses under which
/// browsers and scrapers reach the aggregator.
///
/// # Errors
/// When there is an authority already, or something cannot be written.
pub fn init(state: &Path, names: &[String]) -> anyhow::Result<Authority> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("cannot make the state folder {}", state.display()))?;
    let mode = fs::metadata(state)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        tracing::warn!(path = %state.display(), mode = format!("{mode:04o}"), "others can look into the state folder: chmod 700 it");
    }
    let authority = Authority::init(state, names, SystemClock.now())?;
    Control::open(state)?;
    hand_over(state)?;
    Ok(authority)
}

/// Gives everything below the state folder to the folder's owner: a package makes the folder for the
/// service's user, and root, who runs the commands, must leave nothing there that the service cannot read.
///
/// # Errors
/// When an owner cannot be changed.
pub fn hand_over(state: &Path) -> anyhow::Result<()> {
    let owner = fs::symlink_metadata(state)?;
    let mut folders = vec![state.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let found = match entry.metadata() {
                Ok(found) => found,
                // The database removes its own helpers when it is closed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            if (found.uid(), found.gid()) != (owner.uid(), owner.gid()) {
                let path = entry.path();
                lchown(&path, Some(owner.uid()), Some(owner.gid())).with_context(|| {
                    format!("cannot give {} to the state folder's owner", path.display())
                })?;
            }
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Makes a join token.
///
/// # Errors
/// When there is no authority, an option is out of range, or it cannot be written.
pub async fn token_create(state: &Path, options: TokenOptions) -> anyhow::Result<Token> {
    let authority = Authority::open(state)?;
    let control = Control::open(state)?;
    let token = control
        .create_token(authority.pin(), options, ACTOR, SystemClock.now())
        .await?;
    hand_over(state)?;
    Ok(token)
}

/// All tokens, newest first.
///
/// # Errors
/// When they cannot be read.
pub async fn token_list(state: &Path) -> anyhow::Result<Vec<TokenRow>> {
    Ok(Control::open(state)?.list_tokens(SystemClock.now()).await?)
}

/// Withdraws a token; false when none with this id could still be used.
///
/// # Errors
/// When it cannot be written.
pub async fn token_revoke(state: &Path, id: &str) -> anyhow::Result<bool> {
    let control = Control::open(state)?;
    Ok(control.revoke_token(id, ACTOR, SystemClock.now()).await?)
}

/// Says that this machine's clock is right; what it shows.
///
/// # Errors
/// When it cannot be written.
pub async fn clock_confirm(state: &Path) -> anyhow::Result<Timestamp> {
    let now = SystemClock.now();
    Control::open(state)?.confirm_clock(ACTOR, now).await?;
    Ok(now)
}

/// Lines read at a time while exporting.
const EXPORT_STEP: u32 = 1000;

/// Walks the audit log's chain. `known` is a line and its hash that were noted down elsewhere.
///
/// # Errors
/// When it cannot be read.
pub async fn audit_verify(
    state: &Path,
    known: Option<(u64, Vec<u8>)>,
) -> anyhow::Result<AuditVerdict> {
    let known = known
        .map(|(seq, hash)| i64::try_from(seq).map(|seq| (seq, hash)))
        .transpose()
        .context("there is no such line")?;
    Ok(Control::open(state)?.verify_audit(known).await?)
}

/// Gives the audit log's lines after this one, oldest first.
///
/// # Errors
/// When they cannot be read.
pub async fn audit_export(
    state: &Path,
    after: u32,
    mut give: impl FnMut(&AuditLine),
) -> anyhow::Result<()> {
    let control = Control::open(state)?;
    let mut last = i64::from(after);
    loop {
        let lines = control.audit_after(last, EXPORT_STEP).await?;
        let Some(newest) = lines.last() else {
            return Ok(());
        };
        last = newest.seq;
        lines.iter().for_each(&mut give);
    }
}
