//! Hosts against their group, minute by minute.

use fastrand::Rng;

use super::*;

const HOSTS: u8 = 9;

/// A group that is shown minute by minute.
struct Group {
    peers: Peers,
    random: Rng,
    minute: i64,
    told: Vec<(HostId, Transition)>,
}

fn id(host: u8) -> HostId {
    HostId::from_bytes([host; 16])
}

impl Group {
    /// One that has learnt for two days.
    fn new(seed: u64) -> Self {
        let mut group = Self {
            peers: Peers::default(),
            random: Rng::with_seed(seed),
            minute: 0,
            told: Vec::new(),
        };
        group.go(2 * 1440, |_, _| 0.0);
        group
    }

    /// So many minutes, with what is added to each host's load; NaN: not heard.
    fn go(&mut self, minutes: i64, added: impl Fn(u8, i64) -> f32) {
        for minute in 0..minutes {
            let rows: Vec<Row> = (0..HOSTS)
                .filter_map(|host| {
                    let added = added(host, minute);
                    added.is_finite().then(|| self.row(host, added))
                })
                .collect();
            let at = Timestamp::from_millis(self.minute * 60_000);
            self.peers.step(at, &rows, &mut self.told);
            self.minute += 1;
        }
    }

    /// Busy by day; each host by its own factor, host 0 always much more.
    fn row(&mut self, host: u8, added: f32) -> Row {
        #[expect(clippy::cast_precision_loss, reason = "a few days of minutes")]
        let day = self.minute as f32 / 1440.0;
        let load = 0.3 - 0.15 * (std::f32::consts::TAU * day).cos();
        let own = if host == 0 {
            1.8
        } else {
            0.9 + 0.02 * f32::from(host)
        };
        let noise = 0.02 * (self.random.f32() - 0.5);
        let figure = (load * own + noise + added).clamp(0.0, 1.0);
        Row {
            host: id(host),
            group: "role=web".to_owned(),
            figures: [figure, f32::NAN, f32::NAN, f32::NAN],
        }
    }

    /// Host, what, and in which minute since `from`.
    fn told(&mut self, from: i64) -> Vec<String> {
        let told = self.told.drain(..).map(|(host, one)| {
            let sign = match one.change {
                Change::Opened { .. } => '+',
                Change::Cleared { .. } => '-',
            };
            let minute = one.at.as_millis() / 60_000 - from;
            format!(
                "{sign}{} {} host {} at {minute}",
                one.severity.as_str(),
                one.subject,
                host.as_bytes()[0]
            )
        });
        told.collect()
    }

    fn shifts(&self) -> Vec<(&str, bool)> {
        let shifts = self.peers.shifts();
        shifts
            .map(|shift| (&*shift.group, shift.until.is_none()))
            .collect()
    }
}

#[test]
fn one_that_is_always_busier_is_as_it_always_is() {
    let mut group = Group::new(1);
    group.go(1440, |_, _| 0.0);
    assert_eq!(group.told(0), Vec::<String>::new());
    assert_eq!(group.shifts(), []);
}

#[test]
fn a_host_that_leaves_its_peers_is_named_and_cleared() {
    for host in [0, 4] {
        let mut group = Group::new(2);
        let from = group.minute;
        group.go(90, |one, _| if one == host { 0.15 } else { 0.0 });
        let opened = group.told(from);
        assert_eq!(opened.len(), 1, "{opened:?}");
        let start = format!("+info cpu host {host} at ");
        let minute = opened[0].strip_prefix(&start).expect("of that host");
        let minute: i64 = minute.parse().expect("a number");
        assert!((5..30).contains(&minute), "{minute}");
        group.go(60, |_, _| 0.0);
        let cleared = group.told(from);
        assert_eq!(cleared.len(), 1, "{cleared:?}");
        assert!(cleared[0].starts_with(&format!("-info cpu host {host}")));
        assert_eq!(group.shifts(), []);
    }
}

#[test]
fn what_stays_is_how_it_is_now() {
    let mut group = Group::new(3);
    group.go(10 * 60, |one, _| if one == 4 { 0.2 } else { 0.0 });
    let told = group.told(0);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[1].starts_with("-info cpu host 4"));
}

#[test]
fn a_surge_of_all_names_no_host_and_is_one_entry() {
    let mut group = Group::new(4);
    group.go(60, |_, _| 0.25);
    assert_eq!(group.told(0), Vec::<String>::new());
    assert_eq!(group.shifts(), [("role=web", true)]);
    group.go(120, |_, _| 0.0);
    assert_eq!(group.told(0), Vec::<String>::new());
    assert_eq!(group.shifts(), [("role=web", false)]);
}

#[test]
fn few_hosts_and_pauses_say_nothing() {
    let mut group = Group::new(5);
    // Four are heard: there is no median, however far one of them is off.
    group.go(120, |one, _| match one {
        0..=2 => 0.0,
        3 => 0.5,
        _ => f32::NAN,
    });
    assert_eq!(group.told(0), Vec::<String>::new());
    // Heard one minute in ten: what must hold without a break never does.
    group.go(200, |one, minute| match one {
        4 if minute % 10 == 0 => 0.3,
        4 => f32::NAN,
        _ => 0.0,
    });
    assert_eq!(group.told(0), Vec::<String>::new());
}

#[test]
fn what_is_open_goes_on_over_a_start_and_ends_when_it_cannot_be_seen() {
    let mut group = Group::new(6);
    group.go(30, |one, _| if one == 4 { 0.2 } else { 0.0 });
    assert_eq!(group.told(0).len(), 1);
    // The store has another one, and not that one: it is told again, as it still holds.
    let open = Opening {
        rule: RULE.to_owned(),
        subject: "cpu".to_owned(),
        severity: Severity::Info,
        since: Timestamp::from_millis(5),
    };
    let at = Timestamp::from_millis(group.minute * 60_000);
    group.peers.adopt(id(4), &[], at);
    group.peers.adopt(id(5), std::slice::from_ref(&open), at);
    group.go(40, |one, _| if one == 4 { 0.2 } else { 0.0 });
    let told = group.told(0);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("+info cpu host 4"), "{told:?}");
    assert!(told[1].starts_with("-info cpu host 5"), "{told:?}");
    // Not heard for more than a day.
    let from = group.minute;
    let at = Timestamp::from_millis(from * 60_000);
    group.peers.adopt(id(6), std::slice::from_ref(&open), at);
    group.go(1500, |one, _| if one == 6 { f32::NAN } else { 0.0 });
    let told = group.told(from);
    let last = told.last().map(String::as_str);
    assert_eq!(last, Some("-info cpu host 6 at 1439"), "{told:?}");
}

#[test]
fn a_clock_that_goes_back_says_nothing() {
    let mut group = Group::new(7);
    group.go(4, |one, _| if one == 4 { 0.5 } else { 0.0 });
    group.minute -= 30;
    group.go(1, |one, _| if one == 4 { 0.5 } else { 0.0 });
    assert_eq!(group.told(0), Vec::<String>::new());
}

#[test]
fn the_same_minutes_give_the_same_bits() {
    let (one, other) = (Group::new(8), Group::new(8));
    assert_eq!(
        postcard::to_stdvec(&one.peers),
        postcard::to_stdvec(&other.peers)
    );
}
