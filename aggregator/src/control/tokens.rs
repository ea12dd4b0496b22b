//! Join tokens, and the one transaction in which a host joins.

use std::time::Duration;

use muster_proto::{
    id::HostId,
    time::Timestamp,
    token::{Token, secret_hash},
};
use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::time::Instant;

use super::{
    Control, ControlError, Facts, Labels,
    certificates::{self, note},
    db::audit,
    hosts::{free_name, json},
    network::Network,
    pending::{self, Parked},
    refusals::Refusals,
    revoke,
};
use crate::pki::{Issued, Member, PkiError};

/// Life of a token unless said otherwise: time to walk to the other terminal.
pub const DEFAULT_TOKEN_TTL: Duration = Duration::from_secs(15 * 60);
/// Longest life of a token.
pub const MAX_TOKEN_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// A token is locked after so many wrong secrets.
const MAX_FAILURES: i64 = 10;
/// Most hosts that one token can let in.
pub const MAX_USES: u32 = 100_000;

/// What a new token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOptions {
    /// How many hosts may join with it.
    pub uses: u32,
    /// For how long.
    pub ttl: Duration,
    /// Labels that these hosts get.
    pub labels: Labels,
    /// Networks from which they call; empty: from anywhere.
    pub networks: Vec<Network>,
    /// Whether a person must approve each of them.
    pub approve: bool,
    /// Name or id of the host whose place the one that joins takes: its history, name and labels stay, and its
    /// certificates are refused from then on.
    pub replaces: Option<String>,
}

impl Default for TokenOptions {
    fn default() -> Self {
        Self {
            uses: 1,
            ttl: DEFAULT_TOKEN_TTL,
            labels: Labels::new(),
            networks: Vec::new(),
            approve: false,
            replaces: None,
        }
    }
}

/// Whether a token still lets anybody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// It does.
    Live,
    /// All its uses are gone.
    Used,
    /// Its time is over.
    Expired,
    /// An operator withdrew it.
    Revoked,
    /// Too many wrong secrets were tried.
    Locked,
}

impl TokenState {
    /// As people and programs read it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Locked => "locked",
        }
    }
}

/// A token as the store knows it: without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Names it.
    pub id: String,
    /// How many hosts may join.
    pub uses: u32,
    /// How many did.
    pub used: u32,
    /// Labels for these hosts.
    pub labels: Labels,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// Whether it still lets anybody in.
    pub state: TokenState,
    /// Networks from which hosts may call; empty: from anywhere.
    pub networks: Vec<Network>,
    /// Whether a person must approve each host.
    pub approve: bool,
    /// Whose place the host takes that joins.
    pub replaces: Option<HostId>,
    secret_hash: Vec<u8>,
}

/// A host that wants to join.
#[derive(Clone)]
pub struct EnrolRequest {
    /// Names the token.
    pub token_id: String,
    /// Proves possession of it.
    pub secret: String,
    /// SHA-256 of the SubjectPublicKeyInfo of its key.
    pub fingerprint: [u8; 32],
    /// What it says about itself.
    pub facts: Facts,
    /// Its own labels.
    pub labels: Labels,
    /// Where it calls from, for the audit log.
    pub from: String,
}

/// A host that joined.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Its identity.
    pub host_id: HostId,
    /// What people call it.
    pub name: String,
    /// Its certificate.
    pub issued: Issued,
    /// It had joined with this token and key before, and asked again.
    pub again: bool,
}

/// Why a host may not join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolRefusal {
    /// No such token, or another secret; which of the two is not told.
    #[error("this token is not known here: was it made by this aggregator, and copied whole?")]
    Unknown,
    /// Its time is over.
    #[error("this token has expired: make a new one with `muster-aggregator token create`")]
    Expired,
    /// All uses are gone, and not to this key.
    #[error(
        "this token has been used by another host: make a new one, and look at the audit log if you did not expect this"
    )]
    Used,
    /// An operator withdrew it.
    #[error("this token was revoked")]
    Revoked,
    /// Too many wrong secrets were tried.
    #[error("this token is locked after too many wrong attempts: make a new one")]
    Locked,
    /// An operator banned the machine.
    #[error("an operator banned this machine: tokens are refused to it")]
    Banned,
    /// The address is in none of the token's networks.
    #[error("this token is not good from your address: see the networks it was made for (--cidr)")]
    Elsewhere,
    /// A person must approve it first. Not a failure: the host asks again.
    #[error("waiting for a person to approve this host as number {0}")]
    Waiting(u32),
    /// A person denied it.
    #[error("an operator denied this host")]
    Denied,
    /// Too many hosts wait for a person.
    #[error("too many hosts wait to be approved: an operator must look at them first")]
    Crowded,
    /// The host whose place it was to take is not there any more.
    #[error("the host that this one was to replace is banned or not known: make a new token")]
    NothingToReplace,
    /// It joined with this token, and an operator removed it since.
    #[error(
        "an operator removed this host: join again with a new token, after removing its state folder"
    )]
    Removed,
    /// It joined with this token and key, and another key speaks for that host since.
    #[error(
        "this key joined with this token before, and another key speaks for the host since: make a new token, and remove the state folder"
    )]
    Superseded,
}

/// Hosts that wait take a use each.
const SELECT: &str = "SELECT id, secret_hash, uses, labels, created_ms, expires_ms, revoked_ms, \
    failures, networks, approve, replaces, (SELECT count(*) FROM token_uses WHERE token_id = id) \
    + (SELECT count(*) FROM pending WHERE token_id = id AND \
    (decision IS NULL OR decision = 'approved')) AS used FROM tokens";

impl Control {
    /// Makes a token for the root with this fingerprint.
    ///
    /// # Errors
    /// When an option is out of range, or it cannot be written.
    pub async fn create_token(
        &self,
        pin: [u8; 32],
        options: TokenOptions,
        actor: &str,
        now: Timestamp,
    ) -> Result<Token, ControlError> {
        if !(1..=MAX_USES).contains(&options.uses) {
            return Err(ControlError::TokenOption("a token has 1 to 100,000 uses"));
        }
        if options.ttl.is_zero() || options.ttl > MAX_TOKEN_TTL {
            return Err(ControlError::TokenOption("a token lives at most 7 days"));
        }
        if options.replaces.is_some() && options.uses != 1 {
            return Err(ControlError::TokenOption(
                "a token that replaces a host has one use",
            ));
        }
        let token = Token::generate(pin, &SystemRandom::new()).map_err(|_| ControlError::Random)?;
        let (id, hash) = (token.id().to_owned(), secret_hash(token.secret()));
        let expires = now.plus(options.ttl);
        let (epoch, actor) = (self.epoch, actor.to_owned());
        self.write(move |connection| {
            let replaces = match &options.replaces {
                None => None,
                Some(name) => Some(pending::named_host(connection, name)?.ok_or(
                    ControlError::TokenOption("there is no host of that name or id to replace"),
                )?),
            };
            connection.execute(
                "INSERT INTO tokens (id, secret_hash, uses, labels, created_ms, expires_ms, epoch,
                                     networks, approve, replaces)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    id,
                    hash,
                    options.uses,
                    json(&options.labels),
                    now.as_millis(),
                    expires.as_millis(),
                    epoch,
                    shown_networks(&options.networks),
                    options.approve,
                    replaces.map(|host| host.to_string()),
                ],
            )?;
            let mut outcome = format!("{} uses until {expires}", options.uses);
            if !options.networks.is_empty() {
                outcome.push_str(&format!(", from {}", shown_networks(&options.networks)));
            }
            if options.approve {
                outcome.push_str(", each to be approved");
            }
            if let Some(host) = replaces {
                outcome.push_str(&format!(", replaces {host}"));
            }
            audit(
                connection,
                epoch,
                now,
                [&actor, "create token", &id, &outcome],
            )
        })
        .await?;
        Ok(token)
    }

    /// All tokens, newest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn list_tokens(&self, now: Timestamp) -> Result<Vec<TokenRow>, ControlError> {
        self.read(move |connection| {
            let mut query =
                connection.prepare(&format!("{SELECT} ORDER BY created_ms DESC, id"))?;
            let mut rows = query.query([])?;
            let mut tokens = Vec::new();
            while let Some(row) = rows.next()? {
                tokens.push(token_row(row, now)?);
            }
            Ok(tokens)
        })
        .await
    }

    /// Withdraws a token. False when there is none with this id that could still be used.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn revoke_token(
        &self,
        id: &str,
        actor: &str,
        now: Timestamp,
    ) -> Result<bool, ControlError> {
        let (id, actor, epoch) = (id.to_owned(), actor.to_owned(), self.epoch);
        self.write(move |connection| {
            let changed = connection.execute(
                "UPDATE tokens SET revoked_ms = ?2
                 WHERE id = ?1 AND revoked_ms IS NULL AND expires_ms > ?2 AND epoch = ?3",
                params![id, now.as_millis(), epoch],
            )?;
            let outcome = if changed > 0 { "done" } else { "no such token" };
            audit(
                connection,
                epoch,
                now,
                [&actor, "revoke token", &id, outcome],
            )?;
            Ok(changed > 0)
        })
        .await
    }

    /// Whether the enrolment door must be open: a token is live; or one is used up, and a host that joined with it
    /// has not connected yet, so it may have missed its answer; or somebody waits to be approved.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn live_token_exists(&self, now: Timestamp) -> Result<bool, ControlError> {
        self.read(move |connection| {
            let live = connection
                .prepare_cached(
                    "SELECT 1 FROM tokens
                     WHERE expires_ms > ?1 AND revoked_ms IS NULL AND failures < ?2
                       AND (uses > (SELECT count(*) FROM token_uses WHERE token_id = id)
                            OR EXISTS (SELECT 1 FROM token_uses JOIN hosts USING (host_id)
                                       WHERE token_id = id AND removed_ms IS NULL
                                         AND ratchet IS NULL))
                     LIMIT 1",
                )?
                .exists(params![now.as_millis(), MAX_FAILURES])?;
            Ok(live || pending::door_needed(connection, now)?)
        })
        .await
    }

    /// Whether this is the secret of a token, whatever else may be said of it. Writes nothing.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn is_secret_of(&self, token_id: &str, secret: &str) -> Result<bool, ControlError> {
        let (token_id, presented) = (token_id.to_owned(), secret_hash(secret));
        self.read(move |connection| {
            let kept: Option<Vec<u8>> = connection
                .prepare_cached("SELECT secret_hash FROM tokens WHERE id = ?1")?
                .query_row([token_id], |row| row.get(0))
                .optional()?;
            Ok(kept.is_some_and(|kept| same(&presented, &kept)))
        })
        .await
    }

    /// Lets a host in, or says why not, in one transaction with its audit line. `issue` makes the certificate for
    /// the id it is given.
    ///
    /// # Errors
    /// When it cannot be decided or written; the host may ask again.
    pub async fn enrol<F>(
        &self,
        request: EnrolRequest,
        issue: F,
        now: Timestamp,
    ) -> Result<Result<Enrolled, EnrolRefusal>, ControlError>
    where
        F: FnOnce(Member) -> Result<Issued, PkiError> + Send + 'static,
    {
        let (epoch, refusals) = (self.epoch, self.refusals.clone());
        self.write(move |connection| {
            let outcome = join(connection, epoch, &request, issue, now)?;
            // It asks again every few seconds; what it waits for was written down when it began to.
            if matches!(&outcome, Err(EnrolRefusal::Waiting(_)))
                && !outcome_is_new(connection, &request, now)?
            {
                return Ok(outcome);
            }
            let (subject, said) = match &outcome {
                Ok(Enrolled {
                    host_id,
                    name,
                    issued,
                    again,
                }) => {
                    let how = if *again { "again" } else { "joined" };
                    (
                        host_id.to_string(),
                        format!("{how} as {name}, serial {}", issued.serial),
                    )
                }
                Err(EnrolRefusal::Used) => (
                    shown(&request.token_id),
                    "refused: token used by two keys".to_owned(),
                ),
                Err(EnrolRefusal::Waiting(number)) => (
                    shown(&request.token_id),
                    format!("waits to be approved as number {number}"),
                ),
                // Whoever reaches the door can do this without end: the addresses are counted together.
                Err(EnrolRefusal::Unknown) => {
                    let Some(left_out) = refusals.note("enrolment", Instant::now()) else {
                        return Ok(outcome);
                    };
                    (
                        shown(&request.token_id),
                        Refusals::told("refused: Unknown", left_out),
                    )
                }
                Err(refusal) => (shown(&request.token_id), format!("refused: {refusal:?}")),
            };
            audit(
                connection,
                epoch,
                now,
                [&request.from, "enrol", &subject, &said],
            )?;
            Ok(outcome)
        })
        .await
    }
}

/// A stranger's text for the audit log.
fn shown(token_id: &str) -> String {
    token_id
        .chars()
        .take(8)
        .filter(char::is_ascii_alphanumeric)
        .collect()
}

fn join(
    connection: &Connection,
    epoch: i64,
    request: &EnrolRequest,
    issue: impl FnOnce(Member) -> Result<Issued, PkiError>,
    now: Timestamp,
) -> Result<Result<Enrolled, EnrolRefusal>, ControlError> {
    let Some(token) = find(connection, &request.token_id, now)? else {
        return Ok(Err(EnrolRefusal::Unknown));
    };
    if token.state == TokenState::Locked {
        return Ok(Err(EnrolRefusal::Locked));
    }
    let presented = secret_hash(&request.secret);
    if !same(&presented, &token.secret_hash) {
        connection.execute(
            "UPDATE tokens SET failures = failures + 1 WHERE id = ?1 AND epoch = ?2",
            params![token.id, epoch],
        )?;
        return Ok(Err(EnrolRefusal::Unknown));
    }
    if revoke::machine_denied(connection, &request.facts.machine_id_hash)? {
        return Ok(Err(EnrolRefusal::Banned));
    }
    let before: Option<String> = connection
        .query_row(
            "SELECT host_id FROM token_uses WHERE token_id = ?1 AND spki_hash = ?2",
            params![token.id, request.fingerprint],
            |row| row.get(0),
        )
        .optional()?;
    let from_inside = token.networks.is_empty()
        || request
            .from
            .parse()
            .is_ok_and(|address| token.networks.iter().any(|net| net.contains(address)));
    if !from_inside {
        return Ok(Err(EnrolRefusal::Elsewhere));
    }
    let parked = pending::standing(connection, request, now)?;
    match (token.state, parked) {
        (TokenState::Revoked, _) => return Ok(Err(EnrolRefusal::Revoked)),
        (_, Parked::Denied) => return Ok(Err(EnrolRefusal::Denied)),
        (_, Parked::Waits(number)) => return Ok(Err(EnrolRefusal::Waiting(number))),
        _ => {}
    }
    let host_id = match (token.state, before) {
        (TokenState::Expired, _) if parked != Parked::Approved => {
            return Ok(Err(EnrolRefusal::Expired));
        }
        (_, Some(id)) => {
            let host_id = id.parse().map_err(|_| ControlError::Row("token_uses"))?;
            let known = super::hosts::find(connection, host_id)?;
            if known.is_none_or(|host| host.removed.is_some()) {
                return Ok(Err(EnrolRefusal::Removed));
            }
            // Only the key that speaks for the host now: another took its place, or it renewed since.
            if !certificates::is_key_of(connection, host_id, request.fingerprint)? {
                return Ok(Err(EnrolRefusal::Superseded));
            }
            return again(connection, epoch, request, host_id, issue, now).map(Ok);
        }
        (TokenState::Used, None) if parked != Parked::Approved => {
            return Ok(Err(EnrolRefusal::Used));
        }
        (_, None) if token.approve && parked != Parked::Approved => {
            let number = pending::park(connection, epoch, request, now)?;
            return Ok(Err(
                number.map_or(EnrolRefusal::Crowded, EnrolRefusal::Waiting)
            ));
        }
        (_, None) => match token.replaces {
            Some(host_id) => {
                return replace(connection, epoch, request, &token, host_id, issue, now);
            }
            None => new_host_id()?,
        },
    };
    pending::joined(connection, epoch, request)?;
    let member = Member {
        host: host_id,
        joined: now,
    };
    let issued = issue(member).map_err(|error| ControlError::Issue(crate::chain(&error)))?;
    let name = free_name(connection, epoch, &request.facts.hostname, host_id, now)?;
    connection.execute(
        "INSERT INTO hosts (host_id, name, facts, labels, token_labels, created_ms, cert_serial,
                            cert_not_after_ms, epoch, joined_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?6)",
        params![
            host_id.to_string(),
            name,
            json(&request.facts),
            json(&request.labels),
            json(&token.labels),
            now.as_millis(),
            issued.serial,
            issued.not_after.as_millis(),
            epoch
        ],
    )?;
    use_up(connection, epoch, request, host_id, now)?;
    note(
        connection,
        epoch,
        &format!("agent/{host_id}"),
        request.fingerprint,
        &issued,
        now,
    )?;
    Ok(Ok(Enrolled {
        host_id,
        name,
        issued,
        again: false,
    }))
}

fn use_up(
    connection: &Connection,
    epoch: i64,
    request: &EnrolRequest,
    host_id: HostId,
    now: Timestamp,
) -> Result<(), ControlError> {
    connection.execute(
        "INSERT INTO token_uses (token_id, spki_hash, host_id, at_ms, epoch)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            request.token_id,
            request.fingerprint,
            host_id.to_string(),
            now.as_millis(),
            epoch
        ],
    )?;
    Ok(())
}

/// A host takes another's place: the same identity with a new certificate, so that what was recorded goes on, and
/// every certificate of before is refused. One that was evicted comes back by it.
fn replace(
    connection: &Connection,
    epoch: i64,
    request: &EnrolRequest,
    token: &TokenRow,
    host_id: HostId,
    issue: impl FnOnce(Member) -> Result<Issued, PkiError>,
    now: Timestamp,
) -> Result<Result<Enrolled, EnrolRefusal>, ControlError> {
    let Some(before) = super::hosts::find(connection, host_id)? else {
        return Ok(Err(EnrolRefusal::NothingToReplace));
    };
    if revoke::machine_denied(connection, &before.facts.machine_id_hash)? {
        return Ok(Err(EnrolRefusal::NothingToReplace));
    }
    let name = match before.removed {
        Some(_) => free_name(connection, epoch, &request.facts.hostname, host_id, now)?,
        None => before.name,
    };
    // The host name of before, so that the name stays until the host is called something else again.
    let facts = Facts {
        hostname: before.facts.hostname,
        ..request.facts.clone()
    };
    let member = Member {
        host: host_id,
        joined: now,
    };
    let issued = issue(member).map_err(|error| ControlError::Issue(crate::chain(&error)))?;
    connection.execute(
        "UPDATE hosts SET name = ?2, facts = ?3, labels = ?4, cert_serial = ?5, cert_not_after_ms = ?6,
                          next_serial = NULL, next_not_after_ms = NULL, removed_ms = NULL,
                          token_labels = CASE WHEN ?7 = '{}' THEN token_labels ELSE ?7 END,
                          ratchet = NULL, ratchet_before = NULL, last_session = NULL, boots = '',
                          copy_signs = '', quarantined_ms = NULL, joined_ms = ?9
         WHERE host_id = ?1 AND epoch = ?8",
        params![
            host_id.to_string(),
            name,
            json(&facts),
            json(&request.labels),
            issued.serial,
            issued.not_after.as_millis(),
            json(&token.labels),
            epoch,
            now.as_millis()
        ],
    )?;
    pending::joined(connection, epoch, request)?;
    use_up(connection, epoch, request, host_id, now)?;
    let holder = format!("agent/{host_id}");
    note(
        connection,
        epoch,
        &holder,
        request.fingerprint,
        &issued,
        now,
    )?;
    let said = format!(
        "its certificates of before are refused, serial {} among them",
        before.cert_serial
    );
    audit(
        connection,
        epoch,
        now,
        [&request.from, "replace host", &host_id.to_string(), &said],
    )?;
    Ok(Ok(Enrolled {
        host_id,
        name,
        issued,
        again: false,
    }))
}

/// Whether a host that waits asked for the first time now.
fn outcome_is_new(
    connection: &Connection,
    request: &EnrolRequest,
    now: Timestamp,
) -> Result<bool, ControlError> {
    Ok(connection
        .prepare_cached(
            "SELECT 1 FROM pending WHERE token_id = ?1 AND spki_hash = ?2 AND asked_ms = ?3",
        )?
        .exists(params![
            request.token_id,
            request.fingerprint,
            now.as_millis()
        ])?)
}

fn shown_networks(networks: &[Network]) -> String {
    let shown: Vec<String> = networks.iter().map(Network::to_string).collect();
    shown.join(",")
}

/// The answer to a host that missed it the first time: the same identity, a new certificate.
fn again(
    connection: &Connection,
    epoch: i64,
    request: &EnrolRequest,
    host_id: HostId,
    issue: impl FnOnce(Member) -> Result<Issued, PkiError>,
    now: Timestamp,
) -> Result<Enrolled, ControlError> {
    let member = certificates::member(connection, host_id)?;
    let issued = issue(member).map_err(|error| ControlError::Issue(crate::chain(&error)))?;
    connection.execute(
        "UPDATE hosts SET cert_serial = ?2, cert_not_after_ms = ?3,
                          next_serial = NULL, next_not_after_ms = NULL
         WHERE host_id = ?1 AND epoch = ?4",
        params![
            host_id.to_string(),
            issued.serial,
            issued.not_after.as_millis(),
            epoch
        ],
    )?;
    note(
        connection,
        epoch,
        &format!("agent/{host_id}"),
        request.fingerprint,
        &issued,
        now,
    )?;
    let known = super::hosts::find(connection, host_id)?;
    Ok(Enrolled {
        host_id,
        name: known.ok_or(ControlError::UnknownHost(host_id))?.name,
        issued,
        again: true,
    })
}

fn find(
    connection: &Connection,
    id: &str,
    now: Timestamp,
) -> Result<Option<TokenRow>, ControlError> {
    let mut query = connection.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
    let mut rows = query.query([id])?;
    rows.next()?.map(|row| token_row(row, now)).transpose()
}

fn token_row(row: &rusqlite::Row<'_>, now: Timestamp) -> Result<TokenRow, ControlError> {
    let labels: String = row.get("labels")?;
    let networks: String = row.get("networks")?;
    let replaces: Option<String> = row.get("replaces")?;
    let expires = Timestamp::from_millis(row.get("expires_ms")?);
    let (uses, used): (u32, u32) = (row.get("uses")?, row.get("used")?);
    let state = if row.get::<_, Option<i64>>("revoked_ms")?.is_some() {
        TokenState::Revoked
    } else if row.get::<_, i64>("failures")? >= MAX_FAILURES {
        TokenState::Locked
    } else if expires <= now {
        TokenState::Expired
    } else if used >= uses {
        TokenState::Used
    } else {
        TokenState::Live
    };
    Ok(TokenRow {
        id: row.get("id")?,
        uses,
        used,
        labels: serde_json::from_str(&labels).map_err(|_| ControlError::Row("tokens"))?,
        created: Timestamp::from_millis(row.get("created_ms")?),
        expires,
        state,
        networks: networks
            .split(',')
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().map_err(|_| ControlError::Row("tokens")))
            .collect::<Result<_, _>>()?,
        approve: row.get("approve")?,
        replaces: replaces
            .map(|id| id.parse().map_err(|_| ControlError::Row("tokens")))
            .transpose()?,
        secret_hash: row.get("secret_hash")?,
    })
}

/// Compares in a time that does not depend on where the difference is. Both are hashes, so their length is no
/// secret.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

fn new_host_id() -> Result<HostId, ControlError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ControlError::Random)?;
    Ok(HostId::from_bytes(bytes))
}
