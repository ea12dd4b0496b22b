//! `muster ca`: which authority the fleet trusts, and how one follows another.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use muster_proto::{spiffe::hex, v1};

use super::{
    failure::{Code, Failure},
    output::Rendered,
    session::Session,
    text::{Text, Tone},
};

/// `muster ca …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Ca {
    /// Show the authority, and who does not know the newest one yet
    Status,
    /// Let a new authority follow the present one: prepare, then activate, then retire
    Rotate {
        /// The next step
        #[arg(value_enum, required_unless_present = "now")]
        step: Option<StepName>,
        /// All three at once, because a key was stolen: hosts that do not know the new authority must enrol again
        #[arg(long, conflicts_with = "step")]
        now: bool,
        /// When preparing: the present root's key, kept away from the aggregator, which vouches for its successor once; it
        /// is sent to the aggregator and not kept there
        #[arg(long, value_name = "FILE", conflicts_with = "now")]
        root_key: Option<PathBuf>,
        /// Do it although hosts are left behind
        #[arg(long)]
        force: bool,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// Steps of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StepName {
    /// Make the next authority, and tell every host to trust it
    Prepare,
    /// Sign with it
    Activate,
    /// Trust the old one no more; this cannot be taken back
    Retire,
    /// Take the last step back
    Back,
}

/// Longest file of a key.
const MAX_KEY: u64 = 16 * 1024;
/// Names of hosts that are shown.
const SHOWN: usize = 20;

/// Does it and says how things are then.
///
/// # Errors
/// Without `--yes`, and whatever stood in the way.
pub async fn answer(session: &Session, act: &Ca) -> Result<Rendered, Failure> {
    let status = match act {
        Ca::Status => {
            let request = v1::GetAuthorityRequest {};
            session
                .ask_identity(async move |mut client| client.get_authority(request).await)
                .await?
        }
        Ca::Rotate {
            step,
            root_key,
            force,
            yes,
            ..
        } => {
            let (step, word, what) = match step {
                Some(StepName::Prepare) => (
                    v1::AuthorityStep::Prepare,
                    "prepare",
                    "a new authority would be made and every host told to trust it; nothing signs with it yet",
                ),
                Some(StepName::Activate) => (
                    v1::AuthorityStep::Activate,
                    "activate",
                    "the new authority would sign from now on; the old one stays trusted",
                ),
                Some(StepName::Retire) => (
                    v1::AuthorityStep::Retire,
                    "retire",
                    "the old authority would not be trusted any more, for good",
                ),
                Some(StepName::Back) => (
                    v1::AuthorityStep::Back,
                    "back",
                    "the last step would be taken back",
                ),
                None => (
                    v1::AuthorityStep::Now,
                    "--now",
                    "every certificate there is would be refused at once, yours too; hosts that do not know the new authority must enrol again",
                ),
            };
            if !yes {
                return Err(Failure::new(Code::Usage, "nothing was done without --yes")
                    .because(what)
                    .hint(format!("muster ca rotate {word} --yes"), "if you mean it"));
            }
            if root_key.is_some() && step != v1::AuthorityStep::Prepare {
                return Err(Failure::new(
                    Code::Usage,
                    format!("{word} needs no root key; nothing was read or sent"),
                )
                .hint(format!("muster ca rotate {word} --yes"), "without the key"));
            }
            let root_key = root_key.as_deref().map(read_key).transpose()?;
            let request = v1::RotateAuthorityRequest {
                step: step.into(),
                force: *force,
                root_key: root_key.unwrap_or_default(),
            };
            session
                .ask_identity(async move |mut client| client.rotate_authority(request).await)
                .await
                .map_err(|failure| {
                    failure.hint(
                        "muster ca status",
                        "how far the rotation is, and who is behind",
                    )
                })?
        }
    };
    Ok(Rendered::text(lines(&status)))
}

/// Reads a key, and no more than a key has.
fn read_key(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut key = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_KEY).read_to_end(&mut key));
    match read {
        Ok(_) if !key.is_empty() => Ok(key),
        Ok(_) => Err(Failure::new(
            Code::Usage,
            format!("{} is empty", path.display()),
        )),
        Err(error) => Err(Failure::new(
            Code::Usage,
            format!("cannot read the root's key {}", path.display()),
        )
        .because(error.to_string())),
    }
}

fn lines(status: &v1::AuthorityStatus) -> String {
    let mut out = String::new();
    let mut line = |text: Text| text.line_to(&mut out);
    line(Text::plain(format!(
        "{}, trust bundle version {}",
        status.phase, status.bundle_version
    )));
    for one in &status.generations {
        let mut what = vec![if one.active { "signs" } else { "trusted" }];
        if one.cross_signed {
            what.push("known to hosts that know the one before");
        }
        line(Text::plain(format!(
            "  generation {}  root {}  {}",
            one.number,
            hex(&one.pin).chars().take(16).collect::<String>(),
            what.join(", ")
        )));
    }
    line(Text::plain(format!(
        "{} of {} hosts hold this bundle",
        status.hosts_informed, status.hosts
    )));
    names(
        &mut line,
        "without it:",
        &status.uninformed,
        status.hosts - status.hosts_informed.min(status.hosts),
    );
    if status.generations.len() > 1 {
        names(
            &mut line,
            "with a certificate of an older generation:",
            &status.on_old_certificates,
            status.hosts_on_old_certificates,
        );
    }
    if !status.next.is_empty() {
        line(Text::plain(format!("next: {}", status.next)));
    }
    out
}

fn names(line: &mut impl FnMut(Text), what: &str, names: &[String], all: u32) {
    if all == 0 {
        return;
    }
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    let rest = usize::try_from(all)
        .unwrap_or(usize::MAX)
        .saturating_sub(shown.len());
    let more = if rest > 0 {
        format!(" and {rest} more")
    } else {
        String::new()
    };
    line(Text::toned(Tone::Warn, "  ").and(format!("{what} {}{more}", shown.join(", "))));
}
