//! The `Replay` service at the operators' door: what people would have been told by other rules.
//!
//! What is told again comes from the control store; what of it other rules change is judged by
//! [`crate::incident::replay`], apart from the runtime, one question at a time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use muster_proto::{
    id::HostId,
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::{Clock, Timestamp},
    v1::{
        self,
        replay_server::{Replay, ReplayServer},
    },
};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::{access::Access, service::store_failed};
use crate::{
    control::Control,
    detect::rules::{Override, Overrides},
    fleet::{Enrolled, Fleet},
    incident::{
        pages::Event,
        replay::{self, Script, Told},
        roster::Roster,
    },
};

/// Longest configuration of rules that is looked at.
const MAX_RULES_BYTES: usize = 64 * 1024;
/// Most messages that are named one by one.
const MAX_NAMED: usize = 1_000;

/// Answers what would have been told.
#[derive(Clone)]
pub struct ReplayService {
    fleet: Fleet,
    control: Control,
    rules: Arc<[Override]>,
    access: Access,
    clock: Arc<dyn Clock>,
    /// One at a time: each goes through the whole record.
    turn: Arc<Mutex<()>>,
}

impl ReplayService {
    /// Reads this store; `rules` are those that hold now.
    #[must_use]
    pub fn new(
        fleet: Fleet,
        control: Control,
        rules: Vec<Override>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            access: Access::new(control.clone(), Arc::clone(&clock)),
            fleet,
            control,
            rules: rules.into(),
            clock,
            turn: Arc::default(),
        }
    }

    /// As a tonic service with its limits. The transport must give each request its [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> ReplayServer<Self> {
        ReplayServer::new(self)
            .max_decoding_message_size(MAX_RULES_BYTES + 1024)
            .max_encoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
    }

    async fn replay(
        &self,
        request: v1::ReplayPagesRequest,
    ) -> Result<v1::ReplayPagesResponse, Status> {
        let broken = |error: crate::detect::rules::OverrideError| {
            Status::invalid_argument(format!("these rules would not be taken: {error}"))
        };
        let old = Overrides::new(&self.rules).map_err(broken)?;
        let new = if request.with_rules {
            Overrides::parse(&request.rules)
        } else {
            Overrides::new(&self.rules)
        }
        .map_err(broken)?;
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let record = self
            .control
            .turn_record()
            .await
            .map_err(|error| store_failed(&error))?;
        let quiets = self.control.quiets(true, self.clock.now()).await;
        let (roster, missing) = Roster::read(&self.fleet).await;
        let hosts = self.hosts().await;
        let script = Script {
            turns: record.turns,
            subjects: record.subjects,
            quiets: quiets.map_err(|error| store_failed(&error))?,
            roster,
        };
        let since = Timestamp::from_millis(request.since_ms);
        let begun = script.turns.first().map(|turned| turned.at);
        let worked = tokio::task::spawn_blocking(move || {
            // Also when whoever asked is gone: the next one waits until this is done.
            let _turn = turn;
            let again = replay::as_recorded(&script);
            let other = replay::with_rules(&script, &hosts, &old, &new);
            (again, other)
        });
        let (again, other) = worked
            .await
            .map_err(|_| Status::internal("the replay was ended"))?;
        let lately = |told: Vec<Told>| -> Vec<Told> {
            let mut told = told;
            told.retain(|one| one.said.at >= since);
            told
        };
        let (again, then) = (lately(again), lately(other.told));
        let mut told = record.told;
        told.retain(|one| one.at >= since);
        let mut same: Vec<_> = again.iter().map(|one| one.said.clone()).collect();
        let meta = v1::AnswerMeta {
            complete: missing.is_empty(),
            missing,
            as_of_ms: self.clock.now().as_millis(),
        };
        same.sort();
        told.sort();
        let found = same.iter().filter(|one| told.binary_search(one).is_ok());
        let otherwise = told.len().max(same.len()) - found.count();
        Ok(v1::ReplayPagesResponse {
            meta: Some(meta),
            recorded_since_ms: begun.map(Timestamp::as_millis),
            told: told.len() as u64,
            told_again: same.len() as u64,
            told_otherwise: otherwise as u64,
            rules: by_rule(&again, &then),
            left_out: only_in(&again, &then),
            added: only_in(&then, &again),
            not_judged: other.not_judged.into_iter().collect(),
        })
    }

    /// The hosts as selectors of rules see them.
    async fn hosts(&self) -> HashMap<HostId, Enrolled> {
        let answer = self
            .fleet
            .each(|host, _| {
                Some(Enrolled {
                    id: host.id(),
                    name: host.name().to_owned(),
                    labels: host.labels().clone(),
                    facts: host.facts().clone(),
                    certificate_not_after: None,
                })
            })
            .await;
        answer
            .items
            .into_iter()
            .map(|host| (host.id, host))
            .collect()
    }
}

/// Pages and messages of each rule, before and then; those that change most first.
fn by_rule(before: &[Told], then: &[Told]) -> Vec<v1::ReplayRule> {
    let mut rules: BTreeMap<&str, v1::ReplayRule> = BTreeMap::new();
    for (told, is_then) in [(before, false), (then, true)] {
        for one in told {
            let row = rules.entry(&one.lead.rule).or_default();
            let page = u64::from(one.said.event == Event::Firing.as_str());
            let (pages, messages) = if is_then {
                (&mut row.pages_then, &mut row.messages_then)
            } else {
                (&mut row.pages, &mut row.messages)
            };
            *pages += page;
            *messages += 1;
        }
    }
    let rows = rules.into_iter().map(|(rule, row)| v1::ReplayRule {
        rule: rule.to_owned(),
        ..row
    });
    let mut rows: Vec<v1::ReplayRule> = rows.collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.messages.abs_diff(row.messages_then)));
    rows
}

/// What is told here and not there: the same page for the same reason is the same.
fn only_in(here: &[Told], there: &[Told]) -> Vec<v1::ReplayTold> {
    let mut others: HashMap<(u64, &str), usize> = HashMap::new();
    for one in there {
        *others
            .entry((one.said.page, one.said.event.as_str()))
            .or_default() += 1;
    }
    let only =
        here.iter().filter(
            |one| match others.get_mut(&(one.said.page, one.said.event.as_str())) {
                Some(count) if *count > 0 => {
                    *count -= 1;
                    false
                }
                _ => true,
            },
        );
    let named = only.take(MAX_NAMED).map(|one| v1::ReplayTold {
        at_ms: one.said.at.as_millis(),
        incident: one.said.page,
        event: one.said.event.clone(),
        rule: one.lead.rule.clone(),
        host: one.lead.host.clone(),
        severity: one.severity.to_wire().into(),
    });
    named.collect()
}

#[tonic::async_trait]
impl Replay for ReplayService {
    async fn replay_pages(
        &self,
        request: Request<v1::ReplayPagesRequest>,
    ) -> Result<Response<v1::ReplayPagesResponse>, Status> {
        self.access.admit(&request, "ReplayPages").await?;
        self.replay(request.into_inner()).await.map(Response::new)
    }
}
