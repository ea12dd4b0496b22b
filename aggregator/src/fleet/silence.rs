//! Why a host is silent. Pure: what was seen goes in, a cause and the words for it come out.
//!
//! Twice a cause is named. While a host is silent, from what was seen until then ([`presume`]); it may sharpen,
//! and where nothing tells it is [`Silence::Unknown`], never a guess. When the host is heard again, from what it
//! then shows of itself ([`conclude`]): the same life of its agent, another one, or another boot.
//!
//! | while silent | seen |
//! |---|---|
//! | stopped, reboot, shutdown | a goodbye that says so, and nobody who came back since and was refused |
//! | overdue | a reboot that was announced and takes three times as long as the last one |
//! | clone | two machines speak with its identity, or an older certificate came after a newer |
//! | certificate | its certificate, or one that claims to be its, was refused since it was last heard |
//! | clock | its frames were refused as of the future, or its clock was off by a minute and more |
//! | died | another boot knocks while the former is not heard |
//! | network | half and more of a rack, site or network fell silent with it, without closing their streams or with all of them reset; or all power there went |
//! | overloaded | its stream is open, and its last pressure readings are those of a host that cannot run an agent |
//! | crashed | its stream was closed from its side without a goodbye, those of its neighbours were not, and nobody came back |

use std::{fmt::Write as _, time::Duration};

use muster_proto::{
    id::Incarnation,
    time::Timestamp,
    v1::{FinReason, SilenceCause},
};
use serde::{Deserialize, Serialize};

use super::neighbours::{Left, Shared};

/// Shortest time that a planned reboot is given.
const REBOOT_AT_LEAST: Duration = Duration::from_secs(600);
/// Times the last reboot that the next one is given.
const REBOOT_TIMES: u32 = 3;
/// A clock that is off by this breaks certificates and orders of things: agents correct less by themselves.
const CLOCK_OFF_MS: u64 = 60_000;
/// Shares of time in which tasks waited, from which on an agent may not run: for memory, disks, CPUs.
const STRAIN_MEMORY: f32 = 0.3;
const STRAIN_IO: f32 = 0.9;
const STRAIN_CPU: f32 = 0.98;
/// Share of memory in use from which on the same holds.
const STRAIN_MEMORY_USED: f32 = 0.98;
/// How long two machines with one identity are remembered.
const CLONE_MEMORY: Duration = Duration::from_secs(3600);

/// Why a host is silent, as far as what was seen tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Silence {
    /// Nothing seen tells.
    Unknown,
    /// The agent said goodbye and the host goes on.
    Stopped,
    /// The host said that it goes down to come back.
    Reboot,
    /// The host said that it goes down.
    Shutdown,
    /// The host said that it goes down to come back, and has not for far longer than it takes.
    Overdue,
    /// The agent ended without a goodbye on a host that goes on.
    Crashed,
    /// The host went down without a goodbye.
    Died,
    /// The way to it is cut, or the power of all that is there.
    Network,
    /// Its certificate is refused.
    Certificate,
    /// Its clock is wrong.
    Clock,
    /// It has no time left to run its agent.
    Overloaded,
    /// The agent was stopped in mid-run and went on later: the process, or the whole machine.
    Paused,
    /// Two machines share its identity.
    Clone,
}

impl Silence {
    /// All of them, in the order of the page of metrics.
    pub const ALL: [Self; 13] = [
        Self::Unknown,
        Self::Stopped,
        Self::Reboot,
        Self::Shutdown,
        Self::Overdue,
        Self::Crashed,
        Self::Died,
        Self::Network,
        Self::Certificate,
        Self::Clock,
        Self::Overloaded,
        Self::Paused,
        Self::Clone,
    ];

    /// The cause as messages carry it.
    #[must_use]
    pub const fn to_wire(self) -> SilenceCause {
        match self {
            Self::Unknown => SilenceCause::Unknown,
            Self::Stopped => SilenceCause::Stopped,
            Self::Reboot => SilenceCause::Reboot,
            Self::Shutdown => SilenceCause::Shutdown,
            Self::Overdue => SilenceCause::Overdue,
            Self::Crashed => SilenceCause::Crashed,
            Self::Died => SilenceCause::Died,
            Self::Network => SilenceCause::Network,
            Self::Certificate => SilenceCause::Certificate,
            Self::Clock => SilenceCause::Clock,
            Self::Overloaded => SilenceCause::Overloaded,
            Self::Paused => SilenceCause::Paused,
            Self::Clone => SilenceCause::Clone,
        }
    }

    /// The cause a goodbye names.
    #[must_use]
    pub const fn of_goodbye(reason: FinReason) -> Self {
        match reason {
            FinReason::Unspecified | FinReason::Stopped => Self::Stopped,
            FinReason::Reboot => Self::Reboot,
            FinReason::Shutdown => Self::Shutdown,
        }
    }

    /// Whether the host announced it, so that it is no incident.
    #[must_use]
    pub const fn is_announced(self) -> bool {
        matches!(self, Self::Stopped | Self::Reboot | Self::Shutdown)
    }

    /// A cause in a word, for pages and tables; empty where there is none.
    #[must_use]
    pub const fn word(cause: SilenceCause) -> &'static str {
        match cause {
            SilenceCause::Unspecified => "",
            SilenceCause::Unknown => "unknown",
            SilenceCause::Stopped => "stopped",
            SilenceCause::Reboot => "reboot",
            SilenceCause::Shutdown => "shutdown",
            SilenceCause::Overdue => "overdue",
            SilenceCause::Crashed => "crashed",
            SilenceCause::Died => "died",
            SilenceCause::Network => "network",
            SilenceCause::Certificate => "certificate",
            SilenceCause::Clock => "clock",
            SilenceCause::Overloaded => "overloaded",
            SilenceCause::Paused => "paused",
            SilenceCause::Clone => "clone",
        }
    }

    /// What people read in place of the cause's name.
    #[must_use]
    pub const fn words(cause: SilenceCause) -> &'static str {
        match cause {
            SilenceCause::Unspecified | SilenceCause::Unknown => "nothing tells why",
            SilenceCause::Stopped => "its agent was stopped",
            SilenceCause::Reboot => "it is rebooting",
            SilenceCause::Shutdown => "it was shut down",
            SilenceCause::Overdue => "its planned reboot is overdue",
            SilenceCause::Crashed => "its agent ended without a goodbye",
            SilenceCause::Died => "the host went down without a goodbye",
            SilenceCause::Network => "network or power, shared with its neighbours",
            SilenceCause::Certificate => "its certificate is refused",
            SilenceCause::Clock => "its clock is wrong",
            SilenceCause::Overloaded => "the host is overloaded",
            SilenceCause::Paused => "its agent or the machine stood still",
            SilenceCause::Clone => "another machine has its identity",
        }
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Ended {
    /// It is open, or ended from our side: nothing came any more, or it was told to leave.
    #[default]
    ByUs,
    /// The other side closed it in order.
    Closed,
    /// It was reset.
    Reset,
    /// The other side's kernel answers no more.
    TimedOut,
}

impl Ended {
    /// Whether the other side ended it: a kernel that works closed it for a process that ended, or something
    /// between reset it.
    #[must_use]
    pub const fn from_there(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }

    /// The same, for its neighbours.
    #[must_use]
    pub const fn left(self) -> Left {
        match self {
            Self::ByUs | Self::TimedOut => Left::Open,
            Self::Closed => Left::Closed,
            Self::Reset => Left::Reset,
        }
    }
}

/// Why someone with a host's identity was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refused {
    /// The certificate's life is over, or has not begun.
    Expired,
    /// It is not of our issuer, of another fleet, or malformed. Whom it names is its own claim.
    NotOurs,
    /// An older certificate than the one in use.
    Superseded,
    /// A newer or older agent than this aggregator speaks with.
    Protocol,
    /// Another boot of the host, while this one has a stream.
    OtherBoot,
}

impl Refused {
    const fn words(self) -> &'static str {
        match self {
            Self::Expired => "its certificate has expired or is not yet valid",
            Self::NotOurs => {
                "a certificate that claims to be this host's is not of this fleet's issuer"
            }
            Self::Superseded => "it presents an older certificate than the one in use",
            Self::Protocol => "its agent's protocol version is not spoken here",
            Self::OtherBoot => "another boot of it asks to be let in",
        }
    }
}

/// Last readings of a host that tell how hard it was pressed; NaN where not known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Strain {
    /// Share of time in which some task waited for a CPU.
    pub cpu: f32,
    /// For memory.
    pub memory: f32,
    /// For disks.
    pub io: f32,
    /// Share of memory in use.
    pub memory_used: f32,
}

impl Default for Strain {
    fn default() -> Self {
        Self {
            cpu: f32::NAN,
            memory: f32::NAN,
            io: f32::NAN,
            memory_used: f32::NAN,
        }
    }
}

impl Strain {
    /// Whether a host in this state may be unable to run its agent.
    #[must_use]
    pub fn is_heavy(&self) -> bool {
        self.memory >= STRAIN_MEMORY
            || self.io >= STRAIN_IO
            || self.cpu >= STRAIN_CPU
            || self.memory_used >= STRAIN_MEMORY_USED
    }

    fn words(&self) -> String {
        let parts = [
            ("waiting for memory", self.memory),
            ("for disks", self.io),
            ("for CPU", self.cpu),
            ("memory used", self.memory_used),
        ];
        let known = parts.iter().filter(|(_, value)| value.is_finite());
        let known: Vec<String> = known
            .map(|(what, value)| format!("{what} {:.0} %", value * 100.0))
            .collect();
        known.join(", ")
    }
}

/// What is remembered of a host beside its voice, over restarts too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// How its last stream ended, and when; `None` while one is open.
    pub ended: Option<(Ended, Timestamp)>,
    /// Who was last refused under its identity, and when.
    pub refused: Option<(Refused, Timestamp)>,
    /// When two machines last spoke with its identity.
    pub clone_seen: Option<Timestamp>,
    /// When one of its frames was last refused as of the future.
    pub future_seen: Option<Timestamp>,
    /// When the goodbye came that holds.
    pub goodbye_at: Option<Timestamp>,
    /// How long its last announced reboot took, from goodbye to Hello.
    pub last_reboot: Option<Duration>,
    /// Last pressure readings.
    pub strain: Strain,
    /// Where it stood when it fell silent.
    pub mark: Option<Mark>,
    /// Its last silence that is over.
    pub past: Option<Past>,
    /// What was seen behind the cause, for people.
    pub account: String,
}

/// Where a host stood when it fell silent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When it was last heard.
    pub heard: Timestamp,
    /// Boot and life of the agent then.
    pub boot_id: Vec<u8>,
    /// Life of the agent.
    pub incarnation: Incarnation,
    /// Highest number that its frames had.
    pub produced: u64,
    /// What is presumed.
    pub cause: Silence,
    /// Its last readings: those after its return say nothing of before.
    pub strain: Strain,
}

/// A silence that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// When it was last heard before.
    pub since: Timestamp,
    /// When it was heard again.
    pub until: Timestamp,
    /// Why, as far as its return told.
    pub cause: Silence,
}

/// What is asked when a host is silent.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The goodbye after which nothing came.
    pub goodbye: Option<Silence>,
    /// What is remembered of it.
    pub trace: &'a Trace,
    /// When it was last heard.
    pub heard: Timestamp,
    /// Interval between its ticks.
    pub interval: Duration,
    /// Its clock minus ours.
    pub clock_offset_ms: Option<i64>,
    /// Who fell silent with it.
    pub shared: Option<Shared>,
    /// Now, by our clock.
    pub now: Timestamp,
}

/// The cause as far as it can be told while the host is silent, and what was seen of it.
#[must_use]
pub fn presume(question: &Question<'_>) -> (Silence, String) {
    let &Question { trace, heard, .. } = question;
    if let Some(goodbye) = question.goodbye {
        let (cause, account) = announced(goodbye, trace, question.now);
        // A reboot has its time: a clock that is not set yet lets a certificate expire for a moment.
        if cause == Silence::Reboot || !is_back_in_vain(trace) {
            return (cause, account);
        }
    }
    // Signs of life after it tell that what was refused was someone else.
    let since_heard = |at: Timestamp| at > heard;
    let refused = trace.refused.filter(|(_, at)| since_heard(*at));
    let recent = |at: Timestamp| question.now.since(at) <= CLONE_MEMORY;
    if let Some((why @ Refused::Superseded, _)) = refused {
        return (Silence::Clone, format!("refused: {}", why.words()));
    }
    if trace.clone_seen.is_some_and(recent) {
        let account = "two machines spoke with its identity within the last hour";
        return (Silence::Clone, account.to_owned());
    }
    let off = question.clock_offset_ms.unwrap_or(0);
    let clock = off.unsigned_abs() >= CLOCK_OFF_MS || trace.future_seen.is_some_and(recent);
    match refused {
        Some((why @ (Refused::Expired | Refused::NotOurs | Refused::Protocol), _)) => {
            // A certificate is expired by a clock; which of the two is wrong is known where it was off before.
            if why == Refused::Expired && clock {
                return (Silence::Clock, clock_words(off, trace));
            }
            return (Silence::Certificate, format!("refused: {}", why.words()));
        }
        Some((why @ Refused::OtherBoot, _)) => return (Silence::Died, why.words().to_owned()),
        Some((Refused::Superseded, _)) | None => {}
    }
    if clock {
        return (Silence::Clock, clock_words(off, trace));
    }
    let ended = trace.ended.map_or(Ended::ByUs, |(ended, _)| ended);
    if let Some(shared) = &question.shared {
        let (others, of) = (shared.others, shared.of);
        let with = format!(
            "{others} of the {of} other hosts of {}",
            shared.scope.as_str()
        );
        return match ended {
            Ended::ByUs | Ended::TimedOut => {
                (Silence::Network, format!("{with} fell silent with it"))
            }
            // A kernel closes the streams of processes that end in order, and agents are started again. Something
            // between all of them and us is left.
            Ended::Reset if shared.reset == others => {
                let account = format!("its stream was reset, and those of {with} with it");
                (Silence::Network, account)
            }
            // Something between them and us, or all of their agents.
            Ended::Closed | Ended::Reset => {
                let account = format!("its stream was closed, and those of {with} with it");
                (Silence::Unknown, account)
            }
        };
    }
    match trace.ended {
        Some((ended, _)) if ended.from_there() => {
            let how = if ended == Ended::Reset {
                "reset"
            } else {
                "closed"
            };
            let mut account = format!("its stream was {how} from its side without a goodbye");
            if trace.strain.is_heavy() {
                let _ = write!(account, "; before that: {}", trace.strain.words());
            }
            (Silence::Crashed, account)
        }
        _ if trace.strain.is_heavy() => {
            let account = format!(
                "its stream was not closed; last readings: {}",
                trace.strain.words()
            );
            (Silence::Overloaded, account)
        }
        _ => {
            let account = "its stream was not closed, and no neighbour fell silent with it";
            (Silence::Unknown, account.to_owned())
        }
    }
}

/// Whether what was known of a silence stays, when what is seen now would be this.
///
/// What told may be forgotten by a restart, so *unknown* takes nothing back; but for a closed stream of a host's own, which
/// may turn out to be shared. And one that was shared stays so when the others are heard again first.
#[must_use]
pub fn stays(known: Silence, now: Silence) -> bool {
    match now {
        Silence::Unknown => known != Silence::Crashed,
        Silence::Crashed => known == Silence::Network,
        _ => false,
    }
}

/// Whether a host that had said goodbye came back and was not let in. A certificate of another issuer may be anybody's.
fn is_back_in_vain(trace: &Trace) -> bool {
    trace.refused.is_some_and(|(why, at)| {
        let own = matches!(
            why,
            Refused::Expired | Refused::Superseded | Refused::Protocol
        );
        own && trace.goodbye_at.is_none_or(|said| at > said)
    })
}

fn clock_words(off: i64, trace: &Trace) -> String {
    if trace.future_seen.is_some() {
        return "its samples were refused: their time is in the future".to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "shown in whole seconds")]
    let seconds = off as f64 / 1000.0;
    format!("its clock was off by {seconds:.0} s when it was last heard")
}

/// A goodbye, and whether the time that it is good for is over.
fn announced(goodbye: Silence, trace: &Trace, now: Timestamp) -> (Silence, String) {
    let said = trace.goodbye_at;
    if goodbye != Silence::Reboot {
        return (goodbye, "it said goodbye".to_owned());
    }
    let window = reboot_window(trace.last_reboot);
    let last = match trace.last_reboot {
        Some(took) => format!("the last one took {}", short(took)),
        None => "none was seen before".to_owned(),
    };
    let away = said.map_or(Duration::ZERO, |said| now.since(said));
    if away <= window {
        let left = short(window - away);
        return (
            goodbye,
            format!("planned reboot, given {left} more; {last}"),
        );
    }
    (
        Silence::Overdue,
        format!("planned reboot, {} overdue; {last}", short(away - window)),
    )
}

/// How long a planned reboot may take.
#[must_use]
pub fn reboot_window(last: Option<Duration>) -> Duration {
    let times = last.map_or(Duration::ZERO, |last| last * REBOOT_TIMES);
    times.max(REBOOT_AT_LEAST)
}

/// `45 s`, `9 min`, `3 h`.
fn short(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// What a host shows of itself when it is heard again.
#[derive(Debug, Clone, Copy)]
pub struct Return<'a> {
    /// Boot now.
    pub boot_id: &'a [u8],
    /// Life of its agent now.
    pub incarnation: Incarnation,
    /// Highest number of that life's frames that is known.
    pub produced: u64,
    /// Interval between its ticks.
    pub interval: Duration,
    /// Tick of the sample by which it is heard again.
    pub tick: Option<Timestamp>,
    /// When it is heard again.
    pub now: Timestamp,
}

/// The cause, now that the host is back, and what was seen of it.
#[must_use]
pub fn conclude(mark: &Mark, back: &Return<'_>) -> (Silence, String) {
    let strain = &mark.strain;
    let same_boot = back.boot_id == mark.boot_id;
    let same_agent = back.incarnation == mark.incarnation;
    match mark.cause {
        Silence::Stopped
        | Silence::Reboot
        | Silence::Shutdown
        | Silence::Overdue
        | Silence::Clone => {
            return (
                mark.cause,
                "as announced or seen while it was silent".to_owned(),
            );
        }
        // Refused first and rebooted after, or the other way round: what was refused is what kept it away.
        Silence::Certificate | Silence::Clock if same_boot => {
            return (
                mark.cause,
                "as seen while it was silent, on the same boot".to_owned(),
            );
        }
        _ => {}
    }
    if !same_boot {
        return (
            Silence::Died,
            "it is back with another boot, and had said no goodbye".to_owned(),
        );
    }
    if !same_agent {
        let account =
            "it is back on the same boot with another life of its agent, and had said no goodbye";
        return (Silence::Crashed, account.to_owned());
    }
    let away = back.now.since(mark.heard);
    let ticks = away.as_millis() / back.interval.as_millis().max(1);
    let taken = u128::from(back.produced.saturating_sub(mark.produced));
    // What was held back comes in its order: the first of it was taken long ago.
    let held_back = back
        .tick
        .is_some_and(|tick| tick > mark.heard && back.now.since(tick) * 2 >= away);
    if taken * 2 >= ticks || held_back {
        let account = "its agent went on sampling all the while: the way to it was cut";
        return (Silence::Network, account.to_owned());
    }
    if strain.is_heavy() {
        let account = format!(
            "its agent could not sample; before that: {}",
            strain.words()
        );
        return (Silence::Overloaded, account);
    }
    let account = "its agent took no samples meanwhile: the process or the machine stood still";
    (Silence::Paused, account.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::neighbours::Scope;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + second * 1000)
    }

    /// A host on interval 10 s, last heard at 100, asked at 200.
    fn ask(trace: &Trace, change: impl FnOnce(&mut Question<'_>)) -> (Silence, String) {
        let mut question = Question {
            goodbye: None,
            trace,
            heard: at(100),
            interval: Duration::from_secs(10),
            clock_offset_ms: Some(300),
            shared: None,
            now: at(200),
        };
        change(&mut question);
        presume(&question)
    }

    fn heavy() -> Strain {
        Strain {
            memory: 0.6,
            memory_used: 0.97,
            ..Strain::default()
        }
    }

    #[test]
    fn what_was_seen_names_the_cause() {
        let none = Trace::default;
        let ended = |how| Some((how, at(101)));
        let refused = |why, second| Some((why, at(second)));
        for (trace, cause) in [
            (none(), Silence::Unknown),
            (
                Trace {
                    ended: ended(Ended::Closed),
                    ..none()
                },
                Silence::Crashed,
            ),
            (
                Trace {
                    ended: ended(Ended::Reset),
                    ..none()
                },
                Silence::Crashed,
            ),
            (
                Trace {
                    ended: ended(Ended::TimedOut),
                    ..none()
                },
                Silence::Unknown,
            ),
            (
                Trace {
                    ended: ended(Ended::ByUs),
                    ..none()
                },
                Silence::Unknown,
            ),
            (
                Trace {
                    strain: heavy(),
                    ..none()
                },
                Silence::Overloaded,
            ),
            // Killed for want of memory: its process ended.
            (
                Trace {
                    strain: heavy(),
                    ended: ended(Ended::Closed),
                    ..none()
                },
                Silence::Crashed,
            ),
            (
                Trace {
                    refused: refused(Refused::Expired, 150),
                    ..none()
                },
                Silence::Certificate,
            ),
            (
                Trace {
                    refused: refused(Refused::NotOurs, 150),
                    ..none()
                },
                Silence::Certificate,
            ),
            (
                Trace {
                    refused: refused(Refused::Superseded, 150),
                    ..none()
                },
                Silence::Clone,
            ),
            (
                Trace {
                    refused: refused(Refused::OtherBoot, 150),
                    ..none()
                },
                Silence::Died,
            ),
            // Heard since: that was someone else, or is mended.
            (
                Trace {
                    refused: refused(Refused::Expired, 50),
                    ..none()
                },
                Silence::Unknown,
            ),
            (
                Trace {
                    clone_seen: Some(at(-3000)),
                    ..none()
                },
                Silence::Clone,
            ),
            (
                Trace {
                    clone_seen: Some(at(-9000)),
                    ..none()
                },
                Silence::Unknown,
            ),
            (
                Trace {
                    future_seen: Some(at(99)),
                    ..none()
                },
                Silence::Clock,
            ),
            (
                Trace {
                    future_seen: Some(at(99)),
                    refused: refused(Refused::Expired, 150),
                    ..none()
                },
                Silence::Clock,
            ),
        ] {
            assert_eq!(ask(&trace, |_| {}).0, cause, "{trace:?}");
        }
        assert_eq!(
            ask(&none(), |q| q.clock_offset_ms = Some(-3_600_000)).0,
            Silence::Clock
        );
        let labels = [("rack".to_owned(), "r3".to_owned())].into();
        let shared = Shared {
            scope: Scope::all_of(&labels, None).remove(0),
            others: 11,
            of: 12,
            reset: 11,
        };
        let cut = ask(&none(), |q| q.shared = Some(shared.clone()));
        let words = "11 of the 12 other hosts of rack=r3 fell silent with it".to_owned();
        assert_eq!(cut, (Silence::Network, words));
        // Streams that were all reset were reset by something between; a process that ends closes its own in order.
        for (how, reset, cause) in [
            (Ended::Reset, 11, Silence::Network),
            (Ended::Reset, 10, Silence::Unknown),
            (Ended::Closed, 11, Silence::Unknown),
            (Ended::Closed, 0, Silence::Unknown),
            (Ended::TimedOut, 0, Silence::Network),
        ] {
            let trace = Trace {
                ended: ended(how),
                ..none()
            };
            let shared = Shared {
                reset,
                ..shared.clone()
            };
            let asked = ask(&trace, |q| q.shared = Some(shared));
            assert_eq!(asked.0, cause, "{how:?}, {reset} of 11 reset");
        }
    }

    #[test]
    fn what_is_known_stays_known_until_more_is() {
        use Silence::{Crashed, Died, Network, Unknown};
        for (known, now, stays_so) in [
            (Network, Unknown, true),
            (Network, Crashed, true),
            (Network, Died, false),
            (Crashed, Unknown, false),
            (Crashed, Network, false),
            (Unknown, Crashed, false),
            (Died, Unknown, true),
        ] {
            assert_eq!(stays(known, now), stays_so, "{known:?}, then {now:?}");
        }
    }

    #[test]
    fn a_planned_reboot_has_its_window() {
        let trace = |last_reboot| Trace {
            goodbye_at: Some(at(0)),
            last_reboot,
            ended: Some((Ended::Closed, at(1))),
            ..Trace::default()
        };
        let minutes = |minutes: u64| Some(Duration::from_secs(minutes * 60));
        for (last, second, cause, words) in [
            (
                None,
                600,
                Silence::Reboot,
                "planned reboot, given 0 s more; none was seen before",
            ),
            (
                None,
                601,
                Silence::Overdue,
                "planned reboot, 1 s overdue; none was seen before",
            ),
            (
                minutes(2),
                1140,
                Silence::Overdue,
                "planned reboot, 9 min overdue; the last one took 2 min",
            ),
            (
                minutes(8),
                1140,
                Silence::Reboot,
                "planned reboot, given 5 min more; the last one took 8 min",
            ),
            (
                minutes(8),
                1441,
                Silence::Overdue,
                "planned reboot, 1 s overdue; the last one took 8 min",
            ),
        ] {
            let answer = ask(&trace(last), |q| {
                q.goodbye = Some(Silence::Reboot);
                q.now = at(second);
            });
            assert_eq!(answer, (cause, words.to_owned()));
        }
        // A shutdown and a stop have no end.
        for goodbye in [Silence::Shutdown, Silence::Stopped] {
            let answer = ask(&trace(None), |q| {
                q.goodbye = Some(goodbye);
                q.now = at(999_999);
            });
            assert_eq!(answer.0, goodbye);
        }
    }

    #[test]
    fn who_comes_back_and_is_not_let_in_is_announced_no_more() {
        let (stopped, reboot) = (Silence::Stopped, Silence::Reboot);
        for (goodbye, why, refused, now, cause) in [
            (stopped, Refused::Expired, 150, 160, Silence::Certificate),
            (stopped, Refused::Protocol, 150, 160, Silence::Certificate),
            (stopped, Refused::Superseded, 150, 160, Silence::Clone),
            (
                Silence::Shutdown,
                Refused::Expired,
                150,
                160,
                Silence::Certificate,
            ),
            // Of before it went, and what anybody can claim.
            (stopped, Refused::Expired, 90, 160, stopped),
            (stopped, Refused::NotOurs, 150, 160, stopped),
            (stopped, Refused::OtherBoot, 150, 160, stopped),
            // A reboot has its time.
            (reboot, Refused::Expired, 150, 160, reboot),
            (reboot, Refused::Expired, 150, 702, Silence::Certificate),
            (reboot, Refused::NotOurs, 150, 702, Silence::Overdue),
        ] {
            let trace = Trace {
                goodbye_at: Some(at(101)),
                refused: Some((why, at(refused))),
                ..Trace::default()
            };
            let answer = ask(&trace, |question| {
                question.goodbye = Some(goodbye);
                question.now = at(now);
            });
            assert_eq!(answer.0, cause, "{goodbye:?} {why:?} {refused} {now}");
        }
    }

    #[test]
    fn what_comes_back_tells_what_it_was() {
        let mark = |cause, strain| Mark {
            strain,
            heard: at(100),
            boot_id: vec![1; 16],
            incarnation: Incarnation(5),
            produced: 50,
            cause,
        };
        let same = Return {
            boot_id: &[1; 16],
            incarnation: Incarnation(5),
            produced: 50 + 60,
            interval: Duration::from_secs(10),
            tick: Some(at(700)),
            now: at(700),
        };
        let paused = Return {
            produced: 51,
            ..same
        };
        let in_order = Return {
            tick: Some(at(110)),
            ..paused
        };
        let restarted = Return {
            incarnation: Incarnation(6),
            produced: 3,
            ..same
        };
        let rebooted = Return {
            boot_id: &[2; 16],
            ..restarted
        };
        let unknown = Silence::Unknown;
        for (cause, strain, back, expected) in [
            (unknown, Strain::default(), same, Silence::Network),
            (unknown, heavy(), same, Silence::Network),
            (unknown, Strain::default(), paused, Silence::Paused),
            (unknown, heavy(), paused, Silence::Overloaded),
            (unknown, Strain::default(), in_order, Silence::Network),
            (unknown, Strain::default(), restarted, Silence::Crashed),
            (unknown, Strain::default(), rebooted, Silence::Died),
            (Silence::Crashed, Strain::default(), rebooted, Silence::Died),
            // A dark rack looks like a cut network until it is back.
            (Silence::Network, Strain::default(), rebooted, Silence::Died),
            (
                Silence::Certificate,
                Strain::default(),
                restarted,
                Silence::Certificate,
            ),
            (
                Silence::Certificate,
                Strain::default(),
                rebooted,
                Silence::Died,
            ),
            (
                Silence::Reboot,
                Strain::default(),
                rebooted,
                Silence::Reboot,
            ),
            (
                Silence::Overdue,
                Strain::default(),
                rebooted,
                Silence::Overdue,
            ),
            (
                Silence::Stopped,
                Strain::default(),
                restarted,
                Silence::Stopped,
            ),
            (Silence::Clone, Strain::default(), restarted, Silence::Clone),
        ] {
            assert_eq!(
                conclude(&mark(cause, strain), &back).0,
                expected,
                "{cause:?} {back:?}"
            );
        }
    }
}
