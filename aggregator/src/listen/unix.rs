//! The admin socket: a unix socket that only its owner and root can use.
//!
//! It has mode 0600 before it can be found under its name, and each caller's uid is asked from the kernel.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Who called, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub struct LocalPeer {
    /// User id of the caller.
    pub uid: u32,
}

/// A connection of the admin socket.
pub struct LocalConn {
    stream: UnixStream,
    peer: LocalPeer,
}

/// Binds the socket and accepts until `stop`; then its file is removed.
///
/// # Errors
/// When another aggregator answers there, or the socket cannot be made.
pub fn listen(
    path: &Path,
    stop: CancellationToken,
) -> io::Result<ReceiverStream<io::Result<LocalConn>>> {
    let listener = bind(path)?;
    let (ready, incoming) = mpsc::channel(8);
    let path = path.to_owned();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(listener, ready) => {}
        }
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(%error, path = %path.display(), "the admin socket is gone already");
        }
    });
    Ok(ReceiverStream::new(incoming))
}

/// Bound inside a private folder and moved to its name when its mode is right: at no moment can another user
/// connect, and no umask of the process is touched.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let said = format!("another aggregator answers at {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, said));
    }
    let mut folder = path.as_os_str().to_owned();
    folder.push(".new");
    let folder = PathBuf::from(folder);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    DirBuilder::new().mode(0o700).create(&folder)?;
    let inside = folder.join("s");
    let listener = UnixListener::bind(&inside)?;
    fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
    fs::rename(&inside, path)?;
    fs::remove_dir(&folder)?;
    Ok(listener)
}

async fn accept(listener: UnixListener, ready: mpsc::Sender<io::Result<LocalConn>>) {
    let own = rustix::process::geteuid().as_raw();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin socket cannot accept");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                continue;
            }
        };
        let uid = match stream.peer_cred() {
            Ok(cred) => cred.uid(),
            Err(error) => {
                tracing::warn!(%error, "the kernel does not say who called the admin socket");
                continue;
            }
        };
        if uid != 0 && uid != own {
            tracing::warn!(uid, "a stranger called the admin socket");
            continue;
        }
        let peer = LocalPeer { uid };
        if ready.send(Ok(LocalConn { stream, peer })).await.is_err() {
            return;
        }
    }
}

impl Connected for LocalConn {
    type ConnectInfo = LocalPeer;

    fn connect_info(&self) -> LocalPeer {
        self.peer
    }
}

impl AsyncRead for LocalConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for LocalConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_not_taken_from_a_running_aggregator() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("admin.sock");
        let first = bind(&path).expect("bound");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let taken = bind(&path).expect_err("in use");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(bind(&path).is_ok(), "a stale socket is replaced");
    }
}
