//! One generation of the authority follows another: prepare, activate, retire.
//!
//! ```text
//! <state>/ca/rotation.toml    version of the trust bundle, which generation signs, which are trusted
//! <state>/ca/                 the first generation
//! <state>/ca/g2/ …            later ones, each with its root and three issuers
//! ```
//!
//! | step | who signs | whose certificates are taken | what holders are told to trust |
//! |---|---|---|---|
//! | before | old | old | old |
//! | prepared | old | old, new | old, new |
//! | activated | new | old, new | old, new |
//! | retired | new | new | new |
//!
//! Where the old root's key is at hand, or brought along for the preparing, the new issuer of the aggregator's certificate is signed by the old root too, and
//! the aggregator shows both: a host that was away from before the preparing until after the activating still
//! recognises it, and is told of the new root then. Each step is one file that is replaced whole; until the retiring
//! each can be taken back.

use std::path::Path;

use muster_proto::{spiffe::TrustDomain, time::Timestamp, tls::certificate_pin, token::pin_of};
use rcgen::{CertifiedIssuer, Issuer, KeyPair, PublicKeyData as _};
use ring::rand::SystemRandom;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{
    Authority, BACKDATED, FOLDER, ISSUER_LIFE, Life, PkiError, ROOT_LIFE, Role, Signer, ca_params,
    files, read_certificate, read_signer,
};

const FILE: &str = "rotation.toml";
const CROSS: &str = "server.cross.crt";

/// Which generation signs, and which are trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    /// Of the trust bundle; grows by one with each change of `trusted`.
    pub(super) version: u64,
    /// The one that signs.
    pub(super) active: u32,
    /// Oldest first.
    pub(super) trusted: Vec<u32>,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            version: 1,
            active: 1,
            trusted: vec![1],
        }
    }
}

/// One generation, opened.
pub(super) struct Generation {
    pub(super) number: u32,
    pub(super) root: CertificateDer<'static>,
    /// The issuer of the aggregator's certificate, signed by the root before.
    pub(super) cross: Option<CertificateDer<'static>>,
    pub(super) server: Signer,
    pub(super) agent: Signer,
    pub(super) operator: Signer,
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// One generation, and no rotation.
    Settled,
    /// The next one is there and trusted, and does not sign yet.
    Prepared,
    /// The new one signs, the old one is still trusted.
    Activated,
}

impl Phase {
    /// As people and programs read it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Prepared => "prepared",
            Self::Activated => "activated",
        }
    }
}

/// A step of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make the next generation, and tell everybody to trust it.
    Prepare,
    /// Sign with it.
    Activate,
    /// Trust the old one no more. Cannot be taken back.
    Retire,
    /// Take the last step back.
    Back,
    /// All three at once, without a word from the old root: its key was stolen.
    Now,
}

/// What is known of one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationView {
    /// From 1.
    pub number: u32,
    /// Fingerprint of its root.
    pub pin: [u8; 32],
    /// Whether it signs.
    pub active: bool,
    /// Whether the root before vouches for its aggregator.
    pub cross_signed: bool,
}

impl Rotation {
    pub(super) fn phase(&self) -> Phase {
        match (
            self.trusted.len(),
            self.trusted.last() == Some(&self.active),
        ) {
            (0 | 1, _) => Phase::Settled,
            (_, false) => Phase::Prepared,
            (_, true) => Phase::Activated,
        }
    }

    /// What it is after a step; `fresh` is the number of a generation that would be made.
    fn after(&self, step: Step, fresh: u32) -> Result<Self, PkiError> {
        let mut next = self.clone();
        let newest = self.trusted.last().copied().unwrap_or(self.active);
        match (step, self.phase()) {
            (Step::Prepare, Phase::Settled) => next.trusted.push(fresh),
            (Step::Activate, Phase::Prepared) => next.active = newest,
            (Step::Retire, Phase::Activated) => next.trusted = vec![newest],
            (Step::Back, Phase::Prepared) => next.trusted.retain(|number| *number != newest),
            (Step::Back, Phase::Activated) => {
                let older = self.trusted.iter().rev().nth(1);
                next.active = older.copied().unwrap_or(self.active);
            }
            (Step::Now, Phase::Settled) => {
                next.active = fresh;
                next.trusted = vec![fresh];
            }
            (Step::Now, Phase::Prepared | Phase::Activated) => {
                next.active = newest;
                next.trusted = vec![newest];
            }
            (step, phase) => return Err(PkiError::Step { step, phase }),
        }
        if next.trusted != self.trusted {
            next.version += 1;
        }
        Ok(next)
    }

    pub(super) fn open(folder: &Path) -> Result<Self, PkiError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let wrong = || PkiError::Content {
            path: path.clone(),
            wanted: "how far the rotation of the authority is",
        };
        let read: Self = toml::from_str(&files::read(&path)?).map_err(|_| wrong())?;
        if !read.trusted.contains(&read.active) {
            return Err(wrong());
        }
        Ok(read)
    }

    fn save(&self, folder: &Path) -> Result<(), PkiError> {
        let text = toml::to_string(self).expect("numbers can be written as TOML");
        files::replace(&folder.join(FILE), text.as_bytes(), 0o644)
    }
}

impl Generation {
    /// Opens one; the first stands in the authority's own folder.
    pub(super) fn open(folder: &Path, number: u32) -> Result<Self, PkiError> {
        let place = place(folder, number);
        let root_key = place.join("root.key");
        if root_key.exists() {
            files::check_private(&root_key)?;
        }
        let cross = place.join(CROSS);
        Ok(Self {
            number,
            root: read_certificate(&place.join("root.crt"))?,
            cross: cross
                .exists()
                .then(|| read_certificate(&cross))
                .transpose()?,
            server: read_signer(&place, Role::Server)?,
            agent: read_signer(&place, Role::Agent)?,
            operator: read_signer(&place, Role::Operator)?,
        })
    }

    pub(super) fn signer(&self, role: Role) -> &Signer {
        match role {
            Role::Server => &self.server,
            Role::Agent => &self.agent,
            Role::Operator => &self.operator,
        }
    }
}

fn place(folder: &Path, number: u32) -> std::path::PathBuf {
    if number == 1 {
        return folder.to_owned();
    }
    folder.join(format!("g{number}"))
}

/// Writes a root and three issuers into a folder that is being made. `before` vouches for the issuer of the aggregator's
/// certificate.
pub(super) fn write_generation(
    made: &files::Fresh,
    domain: &TrustDomain,
    number: u32,
    before: Option<&Issuer<'_, KeyPair>>,
    now: Timestamp,
) -> Result<(), PkiError> {
    let random = SystemRandom::new();
    // Names of their own, so that errors and tools tell generations apart.
    let named = |name: &str| match number {
        1 => name.to_owned(),
        _ => format!("{name} {number}"),
    };
    let life = Life::at(now, BACKDATED, ROOT_LIFE);
    let params = ca_params(domain, &named("root"), 1, life, &random)?;
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    made.write("root.crt", root.pem().as_bytes(), 0o644)?;
    made.write("root.key", root.key().serialize_pem().as_bytes(), 0o600)?;
    for role in Role::ALL {
        let life = Life::at(now, BACKDATED, ISSUER_LIFE);
        let mut params = ca_params(domain, &named(role.name()), 0, life, &random)?;
        params.extended_key_usages = vec![role.usage()];
        let key = KeyPair::generate()?;
        if let (Role::Server, Some(before)) = (role, before) {
            let mut params = params.clone();
            params.serial_number = Some(rcgen::SerialNumber::from_slice(&super::serial(&random)?));
            let cross = params.signed_by(&key, before)?;
            made.write(CROSS, cross.pem().as_bytes(), 0o644)?;
        }
        let issuer = CertifiedIssuer::signed_by(params, key, &root)?;
        let key = issuer.key().serialize_pem();
        made.write(
            &format!("{}.crt", role.name()),
            issuer.pem().as_bytes(),
            0o644,
        )?;
        made.write(&format!("{}.key", role.name()), key.as_bytes(), 0o600)?;
    }
    Ok(())
}

impl Authority {
    /// How far a rotation is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.held().rotation.phase()
    }

    /// The generations that are trusted, oldest first.
    #[must_use]
    pub fn generations(&self) -> Vec<GenerationView> {
        let held = self.held();
        let views = held.generations.iter().map(|one| GenerationView {
            number: one.number,
            pin: certificate_pin(&one.root).expect("the root was parsed when it was opened"),
            active: one.number == held.rotation.active,
            cross_signed: one.cross.is_some(),
        });
        views.collect()
    }

    /// Does one step of a rotation. Whoever presents or trusts certificates must be told then ([`super::Doors::reload`]).
    ///
    /// # Errors
    /// When the step cannot follow the last one, or it cannot be written: then nothing has changed.
    pub fn rotate(&self, step: Step, now: Timestamp) -> Result<Phase, PkiError> {
        self.rotate_with(step, None, now)
    }

    /// As [`Authority::rotate`]. A root whose key is kept offline vouches for its successor with `root_key` (PEM), which
    /// is wanted for preparing only and is not kept.
    ///
    /// # Errors
    /// As [`Authority::rotate`], and when the key is not that of the present root: then nothing has changed.
    pub fn rotate_with(
        &self,
        step: Step,
        root_key: Option<&str>,
        now: Timestamp,
    ) -> Result<Phase, PkiError> {
        if root_key.is_some() && step != Step::Prepare {
            return Err(PkiError::RootKey);
        }
        let _one_at_a_time = self.lock();
        let folder = self.state.join(FOLDER);
        let held = self.held();
        let fresh = (2..)
            .find(|number| !place(&folder, *number).exists())
            .unwrap_or(u32::MAX);
        let next = held.rotation.after(step, fresh)?;
        if next.trusted.contains(&fresh) {
            let before = match step {
                Step::Prepare => self.root_issuer(&folder, held.rotation.active, root_key)?,
                // Whose key was stolen vouches for nobody.
                _ => None,
            };
            let made = files::Fresh::begin(&place(&folder, fresh))?;
            write_generation(&made, self.trust_domain(), fresh, before.as_ref(), now)?;
            made.finish(&place(&folder, fresh))?;
        }
        next.save(&folder)?;
        self.reopen()?;
        Ok(self.phase())
    }

    /// The root of a generation, if its key is at hand or was brought along.
    fn root_issuer(
        &self,
        folder: &Path,
        number: u32,
        brought: Option<&str>,
    ) -> Result<Option<Issuer<'static, KeyPair>>, PkiError> {
        if let Some(pem) = brought {
            let key = KeyPair::from_pem(pem).map_err(|_| PkiError::RootKey)?;
            let root = read_certificate(&place(folder, number).join("root.crt"))?;
            if certificate_pin(&root).ok() != Some(pin_of(&key.subject_public_key_info())) {
                return Err(PkiError::RootKey);
            }
            return Ok(Some(Issuer::from_ca_cert_der(&root, key)?));
        }
        let path = place(folder, number).join("root.key");
        if !path.exists() {
            return Ok(None);
        }
        files::check_private(&path)?;
        let key = KeyPair::from_pem(&files::read(&path)?).map_err(|_| PkiError::Content {
            path,
            wanted: "a PEM private key",
        })?;
        let root = read_certificate(&place(folder, number).join("root.crt"))?;
        Ok(Some(Issuer::from_ca_cert_der(&root, key)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_is_kept_offline_vouches_for_its_successor() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = Timestamp::from_millis(1_795_000_000_000);
        let authority =
            Authority::init(folder.path(), &["127.0.0.1".to_owned()], now).expect("an authority");
        let place = folder.path().join(FOLDER).join("root.key");
        let key = std::fs::read_to_string(&place).expect("the root's key");
        std::fs::remove_file(&place).expect("taken offline");
        let cross_signed = |authority: &Authority| {
            let generations = authority.generations();
            generations.last().is_some_and(|newest| newest.cross_signed)
        };
        let other = KeyPair::generate().expect("a key").serialize_pem();
        for (step, brought) in [
            (Step::Prepare, other.as_str()),
            (Step::Prepare, "no key"),
            (Step::Now, key.as_str()),
        ] {
            let refused = authority.rotate_with(step, Some(brought), now);
            assert!(matches!(refused, Err(PkiError::RootKey)), "{step:?}");
            assert_eq!(authority.phase(), Phase::Settled);
        }
        authority.rotate(Step::Prepare, now).expect("without it");
        assert!(!cross_signed(&authority), "nobody vouches for it");
        authority.rotate(Step::Back, now).expect("taken back");
        authority
            .rotate_with(Step::Prepare, Some(&key), now)
            .expect("with it");
        assert!(cross_signed(&authority));
        assert!(!place.exists(), "it is not kept");
    }

    #[test]
    fn steps_follow_one_another_and_can_be_taken_back_until_the_last() {
        let walk = |steps: &[Step]| {
            let mut rotation = Rotation::default();
            for step in steps {
                rotation = rotation.after(*step, 2)?;
            }
            Ok::<_, PkiError>((rotation.version, rotation.active, rotation.trusted))
        };
        use Step::{Activate, Back, Now, Prepare, Retire};
        for (steps, expected) in [
            (&[][..], (1, 1, vec![1])),
            (&[Prepare], (2, 1, vec![1, 2])),
            (&[Prepare, Back], (3, 1, vec![1])),
            (&[Prepare, Activate], (2, 2, vec![1, 2])),
            (&[Prepare, Activate, Back], (2, 1, vec![1, 2])),
            (
                &[Prepare, Activate, Back, Activate, Retire],
                (3, 2, vec![2]),
            ),
            (&[Now], (2, 2, vec![2])),
            (&[Prepare, Now], (3, 2, vec![2])),
            (&[Prepare, Activate, Now], (3, 2, vec![2])),
        ] {
            assert_eq!(walk(steps).expect("possible"), expected, "{steps:?}");
        }
        for steps in [
            &[Activate][..],
            &[Retire],
            &[Back],
            &[Prepare, Prepare],
            &[Prepare, Retire],
            &[Prepare, Activate, Retire, Back],
            &[Prepare, Activate, Activate],
        ] {
            assert!(
                matches!(walk(steps), Err(PkiError::Step { .. })),
                "{steps:?}"
            );
        }
    }
}
