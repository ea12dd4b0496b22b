//! The `Replay` service at the operators' door: what people would have been told by other rules.
//!
//! What is told again comes from the control store; what of it other rules change is judged by
//! [`crate::incident::replay`], apart from the runtime, one question at a time. What only samples can judge is read from
//! history and judged by [`crate::rejudge`] on a thread of its own, which rests as long as it works and ends as soon as
//! nobody listens any more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Display,
    sync::Arc,
    thread,
    time::{Duration, Instant},
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
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{access::Access, ask::store_failed};
use crate::{
    config,
    control::Control,
    detect::{
        DetectConfig, Engine, SAMPLED, Transition, peers,
        rules::{Overrides, pack},
    },
    fleet::{Enrolled, Fleet, start},
    history::GiveUp,
    incident::{
        pages::{Event, Turn},
        replay::{self, Other, Rejudged, Said, Scope, Script, Told},
        roster::Roster,
    },
    rejudge::{self, Question, RejudgeError, Report},
};

/// Longest configuration of rules that is looked at.
const MAX_RULES_BYTES: usize = 64 * 1024;
/// Most messages that are named one by one.
const MAX_NAMED: usize = 1_000;
/// Samples are judged from so long before what is compared, at least: what was going on then is in its place.
const BEFORE: Duration = Duration::from_secs(6 * 3600);
/// Messages that wait for a reader; beyond, how far it is is not told.
const AHEAD: usize = 4;

/// Answers what would have been told.
#[derive(Clone)]
pub struct ReplayService {
    fleet: Fleet,
    control: Control,
    history: Result<start::History, String>,
    detect: Arc<DetectConfig>,
    access: Access,
    clock: Arc<dyn Clock>,
    /// One at a time: each goes through the whole record.
    turn: Arc<Mutex<()>>,
}

impl ReplayService {
    /// Reads this store and these samples, or says why there are none; `detect` has the rules and bounds that hold now.
    #[must_use]
    pub fn new(
        fleet: Fleet,
        control: Control,
        history: Result<start::History, String>,
        detect: DetectConfig,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            access: Access::new(control.clone(), Arc::clone(&clock)),
            fleet,
            control,
            history,
            detect: Arc::new(detect),
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
        let given = request.with_rules.then_some(&*request.rules);
        let (old, new) = self.both(given)?;
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let since = Timestamp::from_millis(request.since_ms);
        let asked = self.asked(since).await?;
        let beside = old.in_program_other(&new);
        let worked = tokio::task::spawn_blocking(move || {
            // Also when whoever asked is gone: the next one waits until this is done.
            let _turn = turn;
            let again = replay::as_recorded(&asked.script);
            let (old, new) = (&old.overrides, &new.overrides);
            let mut other = replay::with_rules(&asked.script, &asked.names(), old, new);
            other.not_judged.extend(beside);
            asked.answer(&again, &other)
        });
        worked
            .await
            .map_err(|_| Status::internal("the replay was ended"))
    }

    /// The rules as they are and as they would be.
    fn both(&self, given: Option<&str>) -> Result<(Rules, Rules), Status> {
        let overrides = Overrides::new(&self.detect.rules).map_err(|error| not_taken(&error))?;
        let old = Rules {
            overrides: Arc::new(overrides),
            detect: (*self.detect).clone(),
        };
        let Some(text) = given else {
            return Ok((old.clone(), old));
        };
        let overrides = Overrides::parse(text).map_err(|error| not_taken(&error))?;
        let detect = config::detect_of(text).map_err(|faults| not_taken(&faults))?;
        let new = Rules {
            overrides: Arc::new(overrides),
            detect: detect.unwrap_or_else(|| old.detect.clone()),
        };
        Ok((old, new))
    }

    /// All that is on record, and the hosts.
    async fn asked(&self, since: Timestamp) -> Result<Asked, Status> {
        let record = self
            .control
            .turn_record()
            .await
            .map_err(|error| store_failed(&error))?;
        let now = self.clock.now();
        let quiets = self.control.quiets(true, now).await;
        let (roster, missing) = Roster::read(&self.fleet).await;
        Ok(Asked {
            script: Script {
                turns: record.turns,
                subjects: record.subjects,
                quiets: quiets.map_err(|error| store_failed(&error))?,
                roster,
            },
            told: record.told,
            hosts: self.hosts().await,
            missing,
            since,
            now,
        })
    }

    /// The hosts as selectors of rules see them.
    async fn hosts(&self) -> BTreeMap<HostId, (Enrolled, Duration)> {
        let answer = self
            .fleet
            .each(|host, _| {
                let who = Enrolled {
                    id: host.id(),
                    name: host.name().to_owned(),
                    labels: host.labels().clone(),
                    facts: host.facts().clone(),
                    certificate_not_after: None,
                };
                Some((who, host.interval()))
            })
            .await;
        let by_id = answer.items.into_iter().map(|host| (host.0.id, host));
        by_id.collect()
    }
}

/// Rules that cannot be used.
fn not_taken(error: &dyn Display) -> Status {
    Status::invalid_argument(format!("these rules would not be taken: {error}"))
}

/// Rules and bounds, as they are or as they would be.
#[derive(Clone)]
struct Rules {
    overrides: Arc<Overrides>,
    detect: DetectConfig,
}

impl Rules {
    fn engine(&self) -> Engine {
        Engine::of_rules(&self.detect, Arc::clone(&self.overrides))
    }

    /// Whether a rule in the program has other bounds than by these.
    fn differ(&self, other: &Self, rule: &str) -> bool {
        let bounds = |of: &DetectConfig| {
            [
                of.filesystem_warning_ratio,
                of.filesystem_critical_ratio,
                of.filesystem_available_bytes,
            ]
        };
        rule == "filesystem_full" && bounds(&self.detect) != bounds(&other.detect)
    }

    /// Rules in the program with other bounds, which only samples can judge.
    fn in_program_other(&self, other: &Self) -> Vec<String> {
        let rules = SAMPLED.iter().map(|known| known.rule);
        let differ = rules.filter(|rule| self.differ(other, rule));
        differ.map(str::to_owned).collect()
    }
}

/// Why samples do not say what a rule would.
fn why_by_record(rule: &str) -> &'static str {
    match rule {
        "host_silent" => "when a host was heard is not in its samples",
        peers::RULE => "what was learnt of the hosts then is not kept",
        _ => "its host is not there any more",
    }
}

/// What is on record, and what is asked of it.
struct Asked {
    script: Script,
    told: Vec<Said>,
    hosts: BTreeMap<HostId, (Enrolled, Duration)>,
    missing: Vec<String>,
    since: Timestamp,
    now: Timestamp,
}

impl Asked {
    fn names(&self) -> HashMap<HostId, Enrolled> {
        let hosts = self.hosts.iter();
        hosts.map(|(id, (who, _))| (*id, who.clone())).collect()
    }

    /// Which rules only samples can judge, of which hosts.
    fn scope(&self, old: &Rules, new: &Rules, all: bool) -> Scope {
        let mut rules: BTreeMap<HostId, BTreeSet<&'static str>> = BTreeMap::new();
        let mut before = BEFORE;
        let in_program = SAMPLED
            .iter()
            .filter(|known| all || old.differ(new, known.rule));
        let in_program: Vec<_> = in_program.collect();
        for (id, (who, _)) in &self.hosts {
            for known in &in_program {
                rules.entry(*id).or_default().insert(known.rule);
                before = before.max(known.looks_back + BEFORE);
            }
            let (old, new) = (&old.overrides, &new.overrides);
            for rule in pack() {
                let change = old.change_to(new, &rule.name, Some(who));
                if all || change.needs_samples {
                    rules.entry(*id).or_default().insert(&*rule.name);
                    let held = [old, new].map(|rules| rules.held(&rule.name, Some(who)));
                    before = held
                        .into_iter()
                        .map(|held| held * 2)
                        .fold(before, Duration::max);
                }
            }
        }
        Scope {
            rules,
            from: self.since.minus(before),
        }
    }

    /// What was on record of rules and hosts that are not judged again, by rule.
    fn by_record(&self, scope: &Scope) -> Vec<v1::ReplayRecorded> {
        let mut counts: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        let turns = self.script.turns.iter().filter(|one| one.at >= self.since);
        for (number, turn) in turns.filter_map(|one| one.turn) {
            let subject = self.script.subjects.get(&number);
            if let Some(subject) = subject.filter(|one| turn == Turn::Opened && !scope.has(one)) {
                counts.entry(&subject.rule).or_default().insert(number);
            }
        }
        let rows = counts
            .into_iter()
            .map(|(rule, numbers)| v1::ReplayRecorded {
                rule: rule.to_owned(),
                recorded: numbers.len() as u64,
                why: why_by_record(rule).to_owned(),
            });
        rows.collect()
    }

    /// What is answered when `again` was told by the rules as they are and `other` by the others.
    fn answer(&self, again: &[Told], other: &Other) -> v1::ReplayPagesResponse {
        let lately = |told: &[Told]| -> Vec<Told> {
            let lately = told.iter().filter(|one| one.said.at >= self.since);
            lately.cloned().collect()
        };
        let (again, then) = (lately(again), lately(&other.told));
        let mut told = self.told.clone();
        told.retain(|one| one.at >= self.since);
        let mut same: Vec<_> = again.iter().map(|one| one.said.clone()).collect();
        same.sort();
        told.sort();
        let found = same.iter().filter(|one| told.binary_search(one).is_ok());
        let otherwise = told.len().max(same.len()) - found.count();
        let begun = self.script.turns.first().map(|turned| turned.at);
        v1::ReplayPagesResponse {
            meta: Some(v1::AnswerMeta {
                complete: self.missing.is_empty(),
                missing: self.missing.clone(),
                as_of_ms: self.now.as_millis(),
            }),
            recorded_since_ms: begun.map(Timestamp::as_millis),
            told: told.len() as u64,
            told_again: same.len() as u64,
            told_otherwise: otherwise as u64,
            rules: by_rule(&again, &then),
            left_out: only_in(&again, &then),
            added: only_in(&then, &again),
            moved: moved(&again, &then),
            not_judged: other.not_judged.iter().cloned().collect(),
            ..v1::ReplayPagesResponse::default()
        }
    }

    /// The same, where there are no samples.
    fn answer_of_record(
        &self,
        old: &Rules,
        new: &Rules,
        scope: &Scope,
        why: &str,
    ) -> v1::ReplayPagesResponse {
        let again = replay::as_recorded(&self.script);
        let beside = old.in_program_other(new);
        let (old, new) = (&old.overrides, &new.overrides);
        let mut other = replay::with_rules(&self.script, &self.names(), old, new);
        other.not_judged.extend(beside);
        let mut answer = self.answer(&again, &other);
        if let Some(meta) = answer.meta.as_mut().filter(|_| !scope.rules.is_empty()) {
            meta.missing.push(format!("samples: {why}"));
            meta.complete = false;
        }
        answer
    }

    /// The same, of what samples said.
    fn answer_of_samples(&self, judged: &Rejudged, report: &Report) -> v1::ReplayPagesResponse {
        let mut answer = self.answer(&judged.again, &judged.other);
        answer.ticks = report.ticks + report.coarse;
        answer.coarse_ticks = report.coarse;
        answer.every_sample_since_ms = report.every_since.map(Timestamp::as_millis);
        let rows = judged.rules.iter().map(|(rule, counts)| v1::ReplayJudged {
            rule: rule.clone(),
            recorded: counts.recorded,
            found: counts.found,
            beside: counts.beside,
            then: counts.then,
        });
        answer.judged = rows.collect();
        if let Some(meta) = &mut answer.meta {
            let missing = report.missing.iter().take(MAX_NAMED).cloned();
            meta.missing.extend(missing);
            if let Some(since) = report.every_since {
                meta.missing.push(format!(
                    "every sample before {since}: judged by one a minute or a quarter of an hour"
                ));
            }
            meta.complete = meta.missing.is_empty();
        }
        answer
    }
}

/// Says how far it is, and the answer.
struct Outlet {
    to: mpsc::Sender<Result<v1::ReplaySamplesResponse, Status>>,
    give_up: GiveUp,
}

impl Outlet {
    /// Tells how far it is, unless the reader is behind; gives up when there is none.
    fn progress(&self, done: u64, of: u64) {
        let part = v1::replay_samples_response::Part::Progress(v1::ReplayProgress { done, of });
        let message = v1::ReplaySamplesResponse { part: Some(part) };
        if let Err(mpsc::error::TrySendError::Closed(_)) = self.to.try_send(Ok(message)) {
            self.give_up.now();
        }
    }

    fn end(&self, outcome: Result<v1::ReplayPagesResponse, Status>) {
        let message = outcome.map(|answer| v1::ReplaySamplesResponse {
            part: Some(v1::replay_samples_response::Part::Answer(answer)),
        });
        // Nobody listens: nobody is told.
        let _ = self.to.blocking_send(message);
    }
}

/// One replay over samples, with its place in the queue.
struct Work {
    asked: Asked,
    old: Rules,
    new: Rules,
    all: bool,
    history: Result<start::History, String>,
    _turn: OwnedMutexGuard<()>,
}

impl Work {
    fn run(self, outlet: &Outlet) -> Result<v1::ReplayPagesResponse, Status> {
        let Self {
            asked, old, new, ..
        } = self;
        let scope = asked.scope(&old, &new, self.all);
        let history = match self.history {
            Ok(history) => history,
            Err(why) => return Ok(asked.answer_of_record(&old, &new, &scope, &why)),
        };
        let mut open = replay::open_at(&asked.script, &scope);
        let hosts = scope.rules.iter().filter_map(|(id, rules)| {
            let (who, interval) = asked.hosts.get(id)?.clone();
            Some(rejudge::Subject {
                who,
                interval,
                open: open.remove(id).unwrap_or_default(),
                rules: rules.clone(),
            })
        });
        let question = Question {
            store: &*history.store,
            hosts: hosts.collect(),
            old: old.engine(),
            new: new.engine(),
            from: scope.from,
            to: asked.now,
            give_up: outlet.give_up.clone(),
        };
        let mut said: [Vec<(HostId, Transition)>; 2] = [Vec::new(), Vec::new()];
        let mut each = |judged: rejudge::Judged| {
            for (said, host) in said.iter_mut().zip([judged.old, judged.new]) {
                said.extend(host.into_iter().map(|one| (judged.host, one)));
            }
        };
        let mut began = Instant::now();
        let report = rejudge::judge(question, &mut each, &mut |done, of| {
            outlet.progress(done, of);
            // Half of a processor at most: the fleet's samples come first.
            thread::sleep(began.elapsed());
            began = Instant::now();
        })
        .map_err(|error| match error {
            RejudgeError::GivenUp => Status::cancelled(error.to_string()),
            RejudgeError::TooMany => Status::out_of_range(error.to_string()),
        })?;
        let [by_old, by_new] = &said;
        let judged = replay::with_samples(
            &asked.script,
            &asked.names(),
            (&old.overrides, &new.overrides),
            &scope,
            [by_old, by_new],
            asked.since,
        );
        let mut answer = asked.answer_of_samples(&judged, &report);
        if self.all {
            answer.by_record = asked.by_record(&scope);
        }
        Ok(answer)
    }
}

/// Told in both, and at another time.
fn moved(before: &[Told], then: &[Told]) -> Vec<v1::ReplayMoved> {
    let mut times: HashMap<(u64, &str), Vec<Timestamp>> = HashMap::new();
    for one in then.iter().rev() {
        let key = (one.said.page, one.said.event.as_str());
        times.entry(key).or_default().push(one.said.at);
    }
    let moved = before.iter().filter_map(|one| {
        let key = (one.said.page, one.said.event.as_str());
        let at = times.get_mut(&key)?.pop()?;
        (at != one.said.at).then(|| v1::ReplayMoved {
            told: Some(named(one)),
            at_then_ms: at.as_millis(),
        })
    });
    moved.take(MAX_NAMED).collect()
}

fn named(one: &Told) -> v1::ReplayTold {
    v1::ReplayTold {
        at_ms: one.said.at.as_millis(),
        incident: one.said.page,
        event: one.said.event.clone(),
        rule: one.lead.rule.clone(),
        host: one.lead.host.clone(),
        severity: one.severity.to_wire().into(),
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
    only.take(MAX_NAMED).map(named).collect()
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

    type ReplaySamplesStream = ReceiverStream<Result<v1::ReplaySamplesResponse, Status>>;

    async fn replay_samples(
        &self,
        request: Request<v1::ReplaySamplesRequest>,
    ) -> Result<Response<Self::ReplaySamplesStream>, Status> {
        self.access.admit(&request, "ReplaySamples").await?;
        let request = request.into_inner();
        let given = request.with_rules.then_some(&*request.rules);
        let (old, new) = self.both(given)?;
        let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() else {
            return Err(Status::resource_exhausted(
                "another replay is being worked on; ask again when it is done",
            ));
        };
        let work = Work {
            asked: self.asked(Timestamp::from_millis(request.since_ms)).await?,
            old,
            new,
            all: request.all,
            history: self.history.clone(),
            _turn: turn,
        };
        let (to, answers) = mpsc::channel(AHEAD);
        let outlet = Outlet {
            to,
            give_up: GiveUp::default(),
        };
        let begun = thread::Builder::new()
            .name("muster-replay".to_owned())
            .spawn(move || {
                outlet.end(work.run(&outlet));
            });
        begun.map_err(|error| Status::internal(format!("cannot begin a thread: {error}")))?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}
