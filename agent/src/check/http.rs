//! The check of an HTTP server: one request over HTTP/1.1, status and body judged. Redirects are not followed:
//! where they lead is another check.
//!
//! The reader takes what servers really send: interim answers, chunked bodies, bodies that end with the
//! connection. It reads no more than it needs, and never more than [`net::MAX_ANSWER_BYTES`] of a body.

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    time::Instant,
};

use super::{
    Cause, Finding, Run,
    config::HttpCheck,
    net,
    tls::{self, judge_expiry},
};

/// Most bytes of status line and headers: what servers themselves take, twice over.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Most interim answers (1xx) before the real one.
const MAX_INTERIM: usize = 8;

const USER_AGENT: &str = concat!("muster-agent/", env!("CARGO_PKG_VERSION"));

pub(super) async fn ask(run: &Run<'_>, check: &HttpCheck) -> Result<Finding, Finding> {
    let began = Instant::now();
    let url = &check.url;
    let mut stream = net::connect(run, &url.host, url.port).await?;
    if !url.tls {
        let answer = exchange(&mut stream, check).await?;
        return Ok(judge(check, &answer, began));
    }
    let mut peer = tls::handshake(run, stream, &url.host, &check.trust).await?;
    if let Some(fault) = peer.fault {
        // Nothing is sent to whom we do not trust: headers may hold a secret.
        return Err(fault);
    }
    let answer = exchange(&mut peer.stream, check).await;
    let mut finding = match answer {
        Ok(answer) => judge(check, &answer, began),
        Err(finding) => finding,
    };
    finding.expires = peer.expires;
    if let Some(expires) = peer.expires {
        let expiry = judge_expiry(expires, &check.expiry, tls::now());
        if expiry.status > finding.status {
            return Err(expiry);
        }
    }
    Ok(finding)
}

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// Its beginning, if it is of interest.
    body: Vec<u8>,
    /// The body goes on beyond that.
    more: bool,
}

fn judge(check: &HttpCheck, answer: &Answer, began: Instant) -> Finding {
    let status = answer.status;
    let right = |(first, last): &(u16, u16)| (*first..=*last).contains(&status);
    if !check.status.iter().any(right) {
        return Finding::critical(Cause::HttpStatus, format!("status {status}"));
    }
    if !net::contains(&answer.body, check.contains.as_bytes()) {
        let within = if answer.more { " the beginning of" } else { "" };
        let message = format!(
            "status {status}, but {:?} is not in{within} the body",
            check.contains
        );
        return Finding::critical(Cause::Content, message);
    }
    let what = format!("status {status} in {:.3} s", began.elapsed().as_secs_f64());
    net::slow(check.slow, began, &format!("status {status}")).unwrap_or_else(|| Finding::ok(what))
}

fn request(check: &HttpCheck) -> String {
    let url = &check.url;
    let method = if check.head { "HEAD" } else { "GET" };
    let mut text = format!("{method} {} HTTP/1.1\r\n", url.path);
    let own = [
        ("Host", url.authority.as_str()),
        ("User-Agent", USER_AGENT),
        ("Accept", "*/*"),
    ];
    let given = |name: &str| {
        check
            .headers
            .keys()
            .any(|key| key.eq_ignore_ascii_case(name))
    };
    let own = own.into_iter().filter(|(name, _)| !given(name));
    let all = own.chain(
        check
            .headers
            .iter()
            .map(|(name, value)| (&**name, &**value)),
    );
    for (name, value) in all {
        text.push_str(name);
        text.push_str(": ");
        text.push_str(value);
        text.push_str("\r\n");
    }
    text.push_str("Connection: close\r\n\r\n");
    text
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    check: &HttpCheck,
) -> Result<Answer, Finding> {
    net::send(stream, request(check).as_bytes()).await?;
    let mut reader = Reader {
        stream,
        buffer: Vec::new(),
    };
    for _ in 0..MAX_INTERIM {
        let head = reader.head().await?;
        if (100..200).contains(&head.status) && head.status != 101 {
            continue;
        }
        let status = head.status;
        let wanted = !check.head && !check.contains.is_empty();
        let (body, more) = match wanted && status != 204 && status != 304 {
            true => reader.body(&head, check.contains.as_bytes()).await?,
            false => (Vec::new(), false),
        };
        return Ok(Answer { status, body, more });
    }
    Err(malformed("only interim answers came"))
}

fn malformed(why: &str) -> Finding {
    Finding::critical(Cause::Protocol, format!("the answer is no HTTP: {why}"))
}

/// What the head of an answer says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    status: u16,
    length: Option<u64>,
    chunked: bool,
}

/// Reads a head: what stands before the empty line, without it.
fn parse_head(head: &[u8]) -> Result<Head, Finding> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split('\n').map(|line| line.trim_end_matches('\r'));
    let first = lines.next().unwrap_or("");
    let mut words = first.splitn(3, ' ');
    let version = words.next().unwrap_or("");
    let status = words.next().unwrap_or("").parse().ok();
    let status =
        status.filter(|status| (100..=999).contains(status) && version.starts_with("HTTP/1."));
    let Some(status) = status else {
        let shown: String = first.chars().take(80).collect();
        return Err(malformed(&format!("it begins with {shown:?}")));
    };
    let mut head = Head {
        status,
        ..Head::default()
    };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.length = Some(
                value
                    .parse()
                    .map_err(|_| malformed("its length is no number"))?,
            );
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = value.to_ascii_lowercase().ends_with("chunked");
        }
    }
    Ok(head)
}

/// Reads from a connection what was not asked for yet.
struct Reader<'a, S> {
    stream: &'a mut S,
    /// Read, and not yet used.
    buffer: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<'_, S> {
    /// Reads more; false at the end.
    async fn fill(&mut self) -> Result<bool, Finding> {
        let mut chunk = [0; 8192];
        match self.stream.read(&mut chunk).await {
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(count > 0)
            }
            // Many servers end TLS without saying so; what they sent before counts.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(net::failed("reading the answer", &error)),
        }
    }

    /// Everything up to `end`, which is taken away too.
    async fn until(&mut self, end: &[&[u8]], most: usize) -> Result<Vec<u8>, Finding> {
        let mut from = 0;
        loop {
            let found = end.iter().filter_map(|end| {
                let rest = self.buffer.get(from..)?;
                let at = rest.windows(end.len()).position(|window| window == *end)?;
                Some((from + at, end.len()))
            });
            if let Some((at, length)) = found.min() {
                let rest = self.buffer.split_off(at + length);
                let mut taken = std::mem::replace(&mut self.buffer, rest);
                taken.truncate(at);
                return Ok(taken);
            }
            if self.buffer.len() > most {
                return Err(malformed(&format!(
                    "a line or its head has more than {most} bytes"
                )));
            }
            from = self.buffer.len().saturating_sub(4);
            if !self.fill().await? {
                return match self.buffer.is_empty() {
                    true => Err(Finding::critical(
                        Cause::Protocol,
                        "the server ended the connection without an answer",
                    )),
                    false => Err(malformed("it ends too early")),
                };
            }
        }
    }

    async fn head(&mut self) -> Result<Head, Finding> {
        let head = self.until(&[b"\r\n\r\n", b"\n\n"], MAX_HEAD_BYTES).await?;
        parse_head(&head)
    }

    /// The body up to and with `wanted`, or all of it; whether there is more than was read.
    async fn body(&mut self, head: &Head, wanted: &[u8]) -> Result<(Vec<u8>, bool), Finding> {
        let mut body = Vec::new();
        let mut left = match (head.chunked, head.length) {
            (true, _) => 0,
            (false, Some(length)) => length,
            (false, None) => u64::MAX,
        };
        loop {
            if left == 0 {
                if !head.chunked {
                    return Ok((body, false));
                }
                left = self.chunk_length().await?;
                if left == 0 {
                    return Ok((body, false));
                }
            }
            if self.buffer.is_empty() && !self.fill().await? {
                return Ok((body, false));
            }
            let take = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            let from = body.len().saturating_sub(wanted.len());
            body.extend(self.buffer.drain(..take));
            left -= take as u64;
            if net::contains(&body[from..], wanted) || body.len() > net::MAX_ANSWER_BYTES {
                return Ok((body, true));
            }
            if left == 0 && head.chunked {
                self.until(&[b"\n"], 2).await?;
            }
        }
    }

    /// The length in front of a chunk, without extensions.
    async fn chunk_length(&mut self) -> Result<u64, Finding> {
        let line = self.until(&[b"\n"], 1024).await?;
        let text = String::from_utf8_lossy(&line);
        let digits = text.split(';').next().unwrap_or("").trim();
        u64::from_str_radix(digits, 16).map_err(|_| malformed("the length of a chunk is no number"))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;
    use crate::check::{
        Kind, Status,
        config::{Expiry, Trust, Url},
        testing,
    };

    fn check(port: u16, contains: &str) -> HttpCheck {
        HttpCheck {
            url: Url {
                tls: false,
                host: "127.0.0.1".into(),
                port,
                authority: format!("127.0.0.1:{port}"),
                path: "/health?x=1".into(),
            },
            head: false,
            status: vec![(200, 399)],
            contains: contains.to_owned(),
            headers: BTreeMap::new(),
            slow: None,
            trust: Trust::default(),
            expiry: Expiry::default(),
        }
    }

    /// A server that answers everyone with these bytes, once a whole request has come.
    async fn server(answer: Vec<u8>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let mut chunk = [0; 1024];
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut chunk).await {
                        Ok(count) if count > 0 => request.extend_from_slice(&chunk[..count]),
                        _ => break,
                    }
                }
                let _ = stream.write_all(&answer).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn answers_are_judged() {
        let ok = "HTTP/1.1 200 OK\r\n";
        for (answer, contains, cause) in [
            (
                format!("{ok}Content-Length: 4\r\n\r\nfine"),
                "fine",
                Cause::Ok,
            ),
            (
                format!("{ok}Content-Length: 4\r\n\r\nfinest"),
                "finest",
                Cause::Content,
            ),
            (format!("{ok}\r\nfine, until the end"), "end", Cause::Ok),
            (format!("{ok}\nfine"), "", Cause::Ok),
            (
                format!(
                    "{ok}Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nfin\r\n1\r\ne\r\n0\r\n\r\n"
                ),
                "fine",
                Cause::Ok,
            ),
            (
                format!("{ok}Transfer-Encoding: chunked\r\n\r\n3\r\nfin\r\n0\r\n\r\n"),
                "fine",
                Cause::Content,
            ),
            (
                format!("{ok}Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
                "fine",
                Cause::Protocol,
            ),
            (
                format!("HTTP/1.1 100 Continue\r\n\r\n{ok}\r\nfine"),
                "fine",
                Cause::Ok,
            ),
            (
                "HTTP/1.1 503 Busy\r\n\r\n".to_owned(),
                "",
                Cause::HttpStatus,
            ),
            ("HTTP/1.0 404\r\n\r\n".to_owned(), "", Cause::HttpStatus),
            ("SSH-2.0-OpenSSH\r\n\r\n".to_owned(), "", Cause::Protocol),
            ("HTTP/1.1 2000 x\r\n\r\n".to_owned(), "", Cause::Protocol),
            ("HTTP/1.1 100 x\r\n\r\n".repeat(20), "", Cause::Protocol),
            (String::new(), "", Cause::Protocol),
            (
                format!("{ok}X: {}", "y".repeat(2 * MAX_HEAD_BYTES)),
                "",
                Cause::Protocol,
            ),
            (
                format!("{ok}\r\n{}", "y".repeat(2 * net::MAX_ANSWER_BYTES)),
                "fine",
                Cause::Content,
            ),
        ] {
            let port = server(answer.clone().into_bytes()).await;
            let finding = testing::run(Kind::Http(check(port, contains))).await;
            let shown: String = answer.chars().take(80).collect();
            assert_eq!(finding.cause, cause, "{shown:?}: {}", finding.message);
        }
    }

    #[tokio::test]
    async fn a_slow_answer_is_a_warning() {
        let port = server(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()).await;
        let check = HttpCheck {
            slow: Some(Duration::from_nanos(1)),
            ..check(port, "")
        };
        let finding = testing::run(Kind::Http(check)).await;
        assert_eq!(
            (finding.status, finding.cause),
            (Status::Warning, Cause::Slow)
        );
    }

    #[test]
    fn own_headers_win() {
        let mut check = check(80, "");
        check.headers.insert("host".into(), "www.example".into());
        check
            .headers
            .insert("Authorization".into(), "Bearer x".into());
        let request = request(&check);
        assert!(request.starts_with("GET /health?x=1 HTTP/1.1\r\nUser-Agent: muster-agent/"));
        assert!(request.contains("\r\nhost: www.example\r\n"));
        assert!(!request.contains("127.0.0.1"));
        assert!(request.ends_with("\r\nConnection: close\r\n\r\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_answer_is_survived(
            bytes: Vec<u8>,
            lines in proptest::collection::vec("(HTTP/1.1 200 OK|Content-Length: [0-9]{0,30}|Transfer-Encoding: chunked|[0-9a-f]{0,20})?\r\n", 0..12),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            for answer in [bytes, lines.concat().into_bytes()] {
                let mut rest = answer.as_slice();
                runtime.block_on(async {
                    let mut reader = Reader { stream: &mut rest, buffer: Vec::new() };
                    while let Ok(head) = reader.head().await {
                        let _ = reader.body(&head, b"fine").await;
                    }
                });
            }
        }
    }
}
