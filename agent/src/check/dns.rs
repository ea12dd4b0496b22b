//! The check of a name in the DNS: one question to one server, over UDP and, where the answer was cut, TCP.
//!
//! The host's own resolver (/etc/hosts, caches, search lists) is not involved: what is checked is that this
//! server answers, and with what. Formats: RFC 1035 section 4.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, UdpSocket},
    time,
};

use super::{
    Cause, Finding, Run, Threads,
    config::{DnsCheck, RECORDS},
    file::{failed as unreadable, read_bounded},
    net,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const MAX_RESOLV_CONF_BYTES: u64 = 64 * 1024;

/// What a server may send over UDP: we announce no more (RFC 6891 is not used).
const UDP_BYTES: usize = 4096;

/// Longest name, and longest part of it (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// A question is asked so often in the time of the check: UDP loses packets.
const TRIES: u32 = 3;

const HEADER_BYTES: usize = 12;
const CLASS_INTERNET: u16 = 1;

/// Most answers that are read.
const MAX_ANSWERS: u16 = 256;

/// Whether it can be asked for: labels of 1 to 63 bytes. The dot at the end may be left out.
pub(super) fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let legal = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic())
    };
    name.len() <= MAX_NAME_BYTES && name.split('.').all(legal)
}

pub(super) async fn ask(run: &Run<'_>, check: &DnsCheck) -> Result<Finding, Finding> {
    let server = match check.server {
        Some((address, port)) => SocketAddr::new(address, port),
        None => SocketAddr::new(first_server(run).await?, 53),
    };
    let id = fastrand::u16(..);
    let question = question(id, &check.query, check.record);
    let mut answer = over_udp(run, server, id, &question).await?;
    if answer.truncated {
        answer = over_tcp(server, id, &question).await?;
    }
    Ok(judge(check, &answer, server))
}

/// The first server of the host's own resolver.
async fn first_server(run: &Run<'_>) -> Result<IpAddr, Finding> {
    let path = Path::new(RESOLV_CONF);
    let read = run.aside(Threads::Files, move || {
        read_bounded(path, MAX_RESOLV_CONF_BYTES)
    });
    let bytes = read.await?.map_err(|error| unreadable(path, &error))?;
    nameserver(&String::from_utf8_lossy(&bytes)).ok_or_else(|| {
        let message = format!("{RESOLV_CONF} names no server; set server in this check");
        Finding::unknown(Cause::Error, message)
    })
}

fn nameserver(text: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let server = (words.next()? == "nameserver").then(|| words.next())??;
        // The interface of a link-local address is not passed on.
        server.split('%').next()?.parse().ok()
    })
}

fn question(id: u16, name: &str, record: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + name.len() + 6);
    // Recursion desired; one question.
    for field in [id, 0x0100, 1, 0, 0, 0] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        // Checked when the configuration was read.
        let length = u8::try_from(label.len()).unwrap_or(u8::MAX);
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    for field in [record, CLASS_INTERNET] {
        bytes.extend_from_slice(&field.to_be_bytes());
    }
    bytes
}

async fn over_udp(
    run: &Run<'_>,
    server: SocketAddr,
    id: u16,
    question: &[u8],
) -> Result<Answer, Finding> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let failed = |error: &_| net::failed(&format!("{server}"), error);
    let socket = UdpSocket::bind((any, 0)).await.map_err(|e| failed(&e))?;
    // Connected: only this server is heard, and that it does not listen is told.
    socket.connect(server).await.map_err(|e| failed(&e))?;
    let mut buffer = vec![0; UDP_BYTES];
    for _ in 0..TRIES {
        socket.send(question).await.map_err(|e| failed(&e))?;
        let heard = async {
            loop {
                let count = socket.recv(&mut buffer).await.map_err(|e| failed(&e))?;
                // What answers another question is somebody's guess, or late.
                if let Some(answer) = parse(&buffer[..count], id, question) {
                    return Ok(answer);
                }
            }
        };
        if let Ok(answer) = time::timeout(run.check.timeout / (TRIES + 1), heard).await {
            return answer;
        }
    }
    Err(Finding::critical(
        Cause::Timeout,
        format!("{server} does not answer; it was asked {TRIES} times"),
    ))
}

async fn over_tcp(server: SocketAddr, id: u16, question: &[u8]) -> Result<Answer, Finding> {
    let failed = |error: &_| net::failed(&format!("{server} over TCP"), error);
    let mut stream = TcpStream::connect(server).await.map_err(|e| failed(&e))?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(question);
    net::send(&mut stream, &bytes).await?;
    let length = stream.read_u16().await.map_err(|e| failed(&e))?;
    let mut answer = vec![0; usize::from(length)];
    stream
        .read_exact(&mut answer)
        .await
        .map_err(|e| failed(&e))?;
    parse(&answer, id, question).ok_or_else(|| {
        Finding::critical(
            Cause::Protocol,
            format!("the answer of {server} is not understood"),
        )
    })
}

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    truncated: bool,
    /// RFC 1035, 4.1.1.
    code: u8,
    /// Type and value of each record, as people write them.
    records: Vec<(u16, String)>,
}

fn judge(check: &DnsCheck, answer: &Answer, server: SocketAddr) -> Finding {
    let name = &check.query;
    let record = RECORDS.iter().find(|(_, number)| *number == check.record);
    let record = record.map_or("", |(word, _)| word);
    if answer.code != 0 {
        let why = match answer.code {
            1 => "it does not understand the question",
            2 => "it failed (SERVFAIL)",
            3 => "there is no such name (NXDOMAIN)",
            5 => "it refuses to answer",
            _ => "an error",
        };
        return Finding::critical(Cause::Name, format!("{server} about {name}: {why}"));
    }
    let right = answer
        .records
        .iter()
        .filter(|(kind, _)| *kind == check.record);
    let values: Vec<&str> = right.map(|(_, value)| value.as_str()).collect();
    if values.is_empty() {
        return Finding::critical(
            Cause::Name,
            format!("{server}: {name} has no record {record}"),
        );
    }
    let shown = values.join(", ");
    let same = |value: &str, expected: &str| {
        let address = |text: &str| text.parse::<IpAddr>().ok();
        let plain = |text: &str| text.trim_end_matches('.').to_ascii_lowercase();
        match (address(value), address(expected)) {
            (Some(value), Some(expected)) => value == expected,
            _ => plain(value) == plain(expected),
        }
    };
    let missing = check
        .expect
        .iter()
        .find(|expected| !values.iter().any(|value| same(value, expected)));
    match missing {
        Some(missing) => Finding::critical(
            Cause::Content,
            format!("{missing} is not among the answers: {shown}"),
        ),
        None => Finding::ok(format!("{name} {record} {shown}")),
    }
}

/// Reads an answer to this question; `None` if it is not one.
fn parse(bytes: &[u8], id: u16, question: &[u8]) -> Option<Answer> {
    let mut at = Cursor { bytes, at: 0 };
    let (answered, flags) = (at.u16()?, at.u16()?);
    let (questions, count) = (at.u16()?, at.u16()?);
    at.skip(4)?;
    // An answer, to a standard question.
    if answered != id || flags & 0xf800 != 0x8000 || questions != 1 {
        return None;
    }
    let asked = question.get(HEADER_BYTES..)?;
    let repeated = bytes.get(HEADER_BYTES..HEADER_BYTES + asked.len())?;
    if !repeated.eq_ignore_ascii_case(asked) {
        return None;
    }
    at.skip(asked.len())?;
    let mut answer = Answer {
        truncated: flags & 0x0200 != 0,
        code: u8::try_from(flags & 0x000f).unwrap_or(u8::MAX),
        records: Vec::new(),
    };
    for _ in 0..count.min(MAX_ANSWERS) {
        match record(&mut at) {
            Some(record) => answer.records.push(record),
            None if answer.truncated => break,
            None => return None,
        }
    }
    Some(answer)
}

fn record(at: &mut Cursor<'_>) -> Option<(u16, String)> {
    at.name()?;
    let kind = at.u16()?;
    at.skip(6)?;
    let length = usize::from(at.u16()?);
    let data = at.bytes.get(at.at..at.at + length)?;
    // Names inside may point to any earlier place of the message.
    let mut inside = Cursor {
        bytes: &at.bytes[..at.at + length],
        at: at.at,
    };
    at.at += length;
    let value = match kind {
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).to_string(),
        28 => Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).to_string(),
        2 | 5 | 12 => inside.name()?,
        15 => {
            let preference = inside.u16()?;
            format!("{preference} {}", inside.name()?)
        }
        6 => {
            let (server, person) = (inside.name()?, inside.name()?);
            let serial = u32::from(inside.u16()?) << 16 | u32::from(inside.u16()?);
            format!("{server} {person} {serial}")
        }
        16 => inside.texts()?,
        _ => String::new(),
    };
    Some((kind, value))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn u8(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count)?;
        (self.at <= self.bytes.len()).then_some(())
    }

    /// A name, written out. Pointers lead backwards only, so that they end.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let mut at = self.at;
        let mut end = None;
        let mut before = at;
        loop {
            let length = *self.bytes.get(at)?;
            match length {
                0 => break,
                1..=63 => {
                    let label = self.bytes.get(at + 1..at + 1 + usize::from(length))?;
                    if name.len() + label.len() > MAX_NAME_BYTES {
                        return None;
                    }
                    name.push_str(&String::from_utf8_lossy(label));
                    name.push('.');
                    at += 1 + usize::from(length);
                }
                0xc0.. => {
                    let low = *self.bytes.get(at + 1)?;
                    end.get_or_insert(at + 2);
                    at = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                    if at >= before {
                        return None;
                    }
                    before = at;
                }
                _ => return None,
            }
        }
        self.at = end.unwrap_or(at + 1);
        Some(if name.is_empty() {
            ".".to_owned()
        } else {
            name
        })
    }

    /// The texts of a TXT record, one behind the other.
    fn texts(&mut self) -> Option<String> {
        let mut all = Vec::new();
        while self.at < self.bytes.len() {
            let length = usize::from(self.u8()?);
            all.extend_from_slice(self.bytes.get(self.at..self.at + length)?);
            self.at += length;
        }
        Some(String::from_utf8_lossy(&all).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;
    use crate::check::{Check, Kind, testing};

    /// An answer to `question` with these flags and records; their names point to the question's.
    fn answer(question: &[u8], flags: u16, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        let count = u16::try_from(records.len()).expect("few");
        bytes[6..8].copy_from_slice(&count.to_be_bytes());
        for (kind, data) in records {
            bytes.extend_from_slice(&[0xc0, 12]);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
            let length = u16::try_from(data.len()).expect("short");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(data);
        }
        bytes
    }

    const FINE: u16 = 0x8180;

    #[test]
    fn answers_are_read() {
        let question = question(7, "www.example.org", 1);
        let bytes = answer(
            &question,
            FINE,
            &[
                (5, b"\x03web\xc0\x10".to_vec()),
                (1, vec![192, 0, 2, 1]),
                (15, b"\x00\x0a\x04mail\xc0\x10".to_vec()),
                (16, b"\x03v=1\x02 x".to_vec()),
            ],
        );
        let parsed = parse(&bytes, 7, &question).expect("an answer");
        let records = [
            (5, "web.example.org.".to_owned()),
            (1, "192.0.2.1".to_owned()),
            (15, "10 mail.example.org.".to_owned()),
            (16, "v=1 x".to_owned()),
        ];
        assert_eq!(parsed.records, records);
        assert_eq!(parse(&bytes, 8, &question), None, "of another question");
        assert_eq!(parse(&question, 7, &question), None, "is no answer");
        let loops = answer(&question, FINE, &[(5, b"\xc0\x2d".to_vec())]);
        assert_eq!(parse(&loops, 7, &question), None, "points to itself");
    }

    #[test]
    fn names_and_servers() {
        for (name, right) in [
            ("a", true),
            ("a.b.", true),
            ("_x._tcp.example", true),
            ("", false),
            (".", false),
            ("a..b", false),
            ("a b", false),
        ] {
            assert_eq!(is_name(name), right, "{name:?}");
        }
        assert!(!is_name(&"a".repeat(64)) && !is_name(&"a.".repeat(200)));
        let text =
            "# nameserver 1.1.1.1\nsearch x\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\n";
        assert_eq!(nameserver(text), "fe80::1".parse().ok());
        assert_eq!(nameserver("nameserver\nnameserver x"), None);
    }

    /// A server that answers over UDP with these flags and addresses, and over TCP with one more.
    async fn server(flags: u16, addresses: Vec<[u8; 4]>) -> u16 {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let port = udp.local_addr().expect("an address").port();
        let tcp = TcpListener::bind(("127.0.0.1", port)).await.expect("bound");
        let records: Vec<(u16, Vec<u8>)> = addresses.iter().map(|a| (1, a.to_vec())).collect();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                tokio::select! {
                    Ok((count, from)) = udp.recv_from(&mut buffer) => {
                        let told = answer(&buffer[..count], flags, &records);
                        // Somebody's guess comes first.
                        let _ = udp.send_to(&[0; 40], from).await;
                        let _ = udp.send_to(&told, from).await;
                    }
                    Ok((mut stream, _)) = tcp.accept() => {
                        let length = stream.read_u16().await.unwrap_or(0);
                        let mut asked = vec![0; usize::from(length)];
                        let _ = stream.read_exact(&mut asked).await;
                        let told = answer(&asked, FINE, &[(1, vec![192, 0, 2, 99])]);
                        let length = u16::try_from(told.len()).expect("short");
                        let _ = net::send(&mut stream, &length.to_be_bytes()).await;
                        let _ = net::send(&mut stream, &told).await;
                    }
                }
            }
        });
        port
    }

    fn check(port: u16, expect: &[&str]) -> Kind {
        Kind::Dns(DnsCheck {
            query: "WWW.example".to_owned(),
            record: 1,
            server: Some((Ipv4Addr::LOCALHOST.into(), port)),
            expect: expect.iter().map(|&text| text.to_owned()).collect(),
        })
    }

    #[tokio::test]
    async fn answers_are_judged() {
        let address = vec![[192, 0, 2, 1]];
        for (flags, addresses, expect, cause) in [
            (FINE, address.clone(), &["192.0.2.1"][..], Cause::Ok),
            (FINE, address.clone(), &["192.0.2.2"], Cause::Content),
            (FINE, vec![], &[], Cause::Name),
            (FINE | 3, vec![], &[], Cause::Name),
            // Cut: the rest comes over TCP.
            (FINE | 0x0200, address, &["192.0.2.99"], Cause::Ok),
        ] {
            let port = server(flags, addresses).await;
            let finding = testing::run(check(port, expect)).await;
            assert_eq!(finding.cause, cause, "{}", finding.message);
        }
    }

    #[tokio::test]
    async fn silence_is_a_timeout() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let port = silent.local_addr().expect("an address").port();
        let check = Check {
            timeout: time::Duration::from_millis(80),
            ..testing::check(check(port, &[]))
        };
        assert_eq!(testing::run_check(&check).await.cause, Cause::Timeout);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_answer_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), count: u16) {
            let question = question(7, "a.b", 1);
            let mut told = answer(&question, FINE, &[]);
            told[6..8].copy_from_slice(&count.to_be_bytes());
            told.extend_from_slice(&bytes);
            let _ = parse(&told, 7, &question);
            let _ = parse(&bytes, 7, &question);
        }
    }
}
