//! Connections of checks: names to addresses, addresses to a connection, failures to words; and the check of a
//! TCP port.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{self, Instant},
};

use super::{Cause, Finding, Run, Status, Threads, config::TcpCheck};
use crate::settings::show_duration;

/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;

/// Most bytes of an answer in which a text is looked for.
pub(super) const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// Connects to the first address that lets us.
pub(super) async fn connect(run: &Run<'_>, host: &str, port: u16) -> Result<TcpStream, Finding> {
    let addresses = addresses(run, host, port).await?;
    // One address that swallows packets must not take the time of the others.
    let share = run.check.timeout / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    let mut last = None;
    for address in addresses {
        match time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(failed(&format!("{address}"), &error)),
            Err(_) => {
                last = Some(Finding::critical(
                    Cause::Timeout,
                    format!("{address}: no connection in {}", show_duration(share)),
                ));
            }
        }
    }
    Err(last.unwrap_or_else(|| Finding::critical(Cause::Name, format!("{host}: no address"))))
}

/// The addresses of a host: itself if it is one, else what the host's resolver says.
async fn addresses(run: &Run<'_>, host: &str, port: u16) -> Result<Vec<SocketAddr>, Finding> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = host.to_owned();
    let resolved = run
        .aside(Threads::Names, move || {
            let all = (name.as_str(), port).to_socket_addrs()?;
            Ok::<_, io::Error>(all.take(MAX_ADDRESSES).collect::<Vec<_>>())
        })
        .await?;
    resolved.map_err(|error| Finding::critical(Cause::Name, format!("{host}: {error}")))
}

/// What a failure of a connection means.
pub(super) fn failed(what: &str, error: &io::Error) -> Finding {
    use io::ErrorKind as Kind;
    let cause = match error.kind() {
        Kind::ConnectionRefused => Cause::Refused,
        Kind::TimedOut => Cause::Timeout,
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => Cause::Unreachable,
        Kind::AddrNotAvailable => Cause::Unreachable,
        Kind::PermissionDenied => Cause::Denied,
        Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::BrokenPipe
        | Kind::UnexpectedEof => Cause::Protocol,
        _ => Cause::Error,
    };
    let status = match cause {
        // A firewall of this host, or no descriptors left: says nothing about the peer.
        Cause::Denied | Cause::Error => Status::Unknown,
        _ => Status::Critical,
    };
    Finding::new(status, cause, format!("{what}: {error}"))
}

/// Whether `slow` is exceeded by what has passed since `began`: then a warning that says so.
pub(super) fn slow(slow: Option<time::Duration>, began: Instant, what: &str) -> Option<Finding> {
    let took = began.elapsed();
    let limit = slow.filter(|limit| took > *limit)?;
    Some(Finding::new(
        Status::Warning,
        Cause::Slow,
        format!(
            "{what}, but it took {:.3} s, more than {}",
            took.as_secs_f64(),
            show_duration(limit)
        ),
    ))
}

/// Writes all of it.
pub(super) async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Result<(), Finding> {
    let sent = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| failed("sending", &error))
}

/// The check of a TCP port.
pub(super) async fn ask(run: &Run<'_>, check: &TcpCheck) -> Result<Finding, Finding> {
    let began = Instant::now();
    let mut stream = connect(run, &check.host, check.port).await?;
    let mut what = format!("connected to {} port {}", check.host, check.port);
    if !check.send.is_empty() {
        send(&mut stream, check.send.as_bytes()).await?;
    }
    if !check.expect.is_empty() {
        expect(&mut stream, &check.expect).await?;
        what.push_str(", and it answered as expected");
    }
    Ok(slow(check.slow, began, &what).unwrap_or_else(|| Finding::ok(what)))
}

/// Reads until the text was there.
async fn expect(stream: &mut (impl AsyncRead + Unpin), expected: &str) -> Result<(), Finding> {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = match stream.read(&mut chunk).await {
            Ok(count) => count,
            Err(error) => return Err(failed("reading", &error)),
        };
        // What was searched before need not be searched again, but for the last bytes.
        let from = answer.len().saturating_sub(expected.len());
        answer.extend_from_slice(&chunk[..count]);
        if contains(&answer[from..], expected.as_bytes()) {
            return Ok(());
        }
        if count == 0 || answer.len() > MAX_ANSWER_BYTES {
            let told = String::from_utf8_lossy(&answer);
            let told = told.lines().next().unwrap_or("");
            return Err(Finding::critical(
                Cause::Content,
                format!("{expected:?} is not in the answer, which begins with {told:?}"),
            ));
        }
    }
}

/// Whether one text is in the other.
pub(super) fn contains(text: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::check::{Check, Kind, testing};

    fn tcp(port: u16) -> TcpCheck {
        TcpCheck {
            host: "127.0.0.1".to_owned(),
            port,
            ..TcpCheck::default()
        }
    }

    /// A peer that says this to everyone and hears nothing; its port.
    async fn says(text: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn a_port_that_listens_is_ok_and_one_that_does_not_is_refused() {
        let port = says("").await;
        let finding = testing::run(Kind::Tcp(tcp(port))).await;
        assert_eq!((finding.status, finding.cause), (Status::Ok, Cause::Ok));
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = gone.local_addr().expect("an address").port();
        drop(gone);
        let finding = testing::run(Kind::Tcp(tcp(port))).await;
        assert_eq!(
            (finding.status, finding.cause),
            (Status::Critical, Cause::Refused),
            "{finding:?}"
        );
    }

    #[tokio::test]
    async fn what_is_expected_must_come() {
        let port = says("220 mail.example ESMTP\r\n").await;
        for (expect, cause) in [("ESMTP", Cause::Ok), ("IMAP", Cause::Content)] {
            let check = TcpCheck {
                expect: expect.to_owned(),
                ..tcp(port)
            };
            assert_eq!(testing::run(Kind::Tcp(check)).await.cause, cause);
        }
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_a_timeout_and_not_a_refusal() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let check = Check {
            timeout: Duration::from_millis(50),
            ..testing::check(Kind::Tcp(TcpCheck {
                expect: "x".to_owned(),
                ..tcp(port)
            }))
        };
        let finding = testing::run_check(&check).await;
        assert_eq!(finding.cause, Cause::Timeout);
        assert_eq!(finding.message, "no answer in 50ms");
    }

    #[tokio::test]
    async fn severity_bounds_the_status() {
        let check = Check {
            severity: Status::Warning,
            ..testing::check(Kind::Tcp(TcpCheck {
                expect: "x".to_owned(),
                ..tcp(says("y").await)
            }))
        };
        assert_eq!(testing::run_check(&check).await.status, Status::Warning);
    }

    #[test]
    fn texts_are_found() {
        assert!(contains(b"abc", b"bc") && contains(b"", b""));
        assert!(!contains(b"ab", b"abc"));
    }
}
