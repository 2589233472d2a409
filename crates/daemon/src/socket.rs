//! The socket: how it appears, and who may connect.

use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use futures::future::BoxFuture;
use nix::unistd::Gid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::api::{ErrorBody, ErrorKind};

/// What a socket is called, with a pid behind it, before it has its name.
const STAGED: &str = "new-";

/// How long a daemon that is alive may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How many strangers are answered at the same time, and how long that may take.
const REFUSALS: usize = 16;
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);
/// No request of a stranger is read beyond this.
const REFUSED_LEN: u64 = 64 * 1024;

/// The users that may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Root and the user of this process, whatever the mode of the file becomes.
    Owner,
    /// Whoever may write to the file: its owner, and this group if there is one.
    Group(Option<Gid>),
}

impl Access {
    /// Sets the mode and the group of a socket that nobody knows yet.
    fn apply(self, path: &Path) -> io::Result<()> {
        let mode = match self {
            Self::Owner | Self::Group(None) => 0o600,
            Self::Group(gid @ Some(_)) => {
                nix::unistd::chown(path, None, gid)?;
                0o660
            }
        };
        std::fs::set_permissions(path, Permissions::from_mode(mode))
    }
}

/// Returns the number of a group, which is given by name or number. Reads `/etc/group` itself: a static
/// program cannot load the modules of nsswitch.conf(5).
pub(crate) fn group(name: &str) -> io::Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let groups = std::fs::read_to_string("/etc/group")?;
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    let missing =
        || io::Error::new(io::ErrorKind::NotFound, format!("/etc/group has no group {name:?}"));
    found.map(Gid::from_raw).ok_or_else(missing)
}

/// A socket of the API.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    access: Access,
    /// Removed with the daemon that made it; `None` if somebody else did.
    path: Option<PathBuf>,
    /// How many more strangers may be answered at the same time.
    refusals: Arc<Semaphore>,
}

impl Socket {
    /// Listens at `path`. A socket that nobody answers is replaced; anything else there is refused.
    pub(crate) async fn bind(path: &Path, access: Access) -> io::Result<Self> {
        match path.symlink_metadata() {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is something else than a socket",
                ));
            }
            Ok(_) if is_answered(path).await => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another daemon answers there",
                ));
            }
            _ => {}
        }
        sweep(path).await;
        // Bound under another name and given its mode there, so that it is never open to others
        // for a moment, and renamed, so that it is never missing.
        let staged = path.with_added_extension(format!("{STAGED}{}", std::process::id()));
        let _ = std::fs::remove_file(&staged);
        let listener = UnixListener::bind(&staged)?;
        let published = access.apply(&staged).and_then(|()| std::fs::rename(&staged, path));
        if let Err(error) = published {
            let _ = std::fs::remove_file(&staged);
            return Err(error);
        }
        Ok(Self::of(listener, access, Some(path.to_owned())))
    }

    /// Takes over a socket that a service manager listens at. It stays there when this daemon ends, so clients wait
    /// for the next one.
    pub(crate) fn inherit(
        listener: std::os::unix::net::UnixListener,
        access: Access,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::of(UnixListener::from_std(listener)?, access, None))
    }

    fn of(listener: UnixListener, access: Access, path: Option<PathBuf>) -> Self {
        Self { listener, access, path, refusals: Arc::new(Semaphore::new(REFUSALS)) }
    }
}

/// A connection. That its peer has closed its sending side, as `printf … | nc -U` does, is no end of it: it
/// is answered. It ends when the peer has closed both sides, so that nothing is waited for on its behalf.
pub(crate) struct Peer {
    stream: UnixStream,
    /// There once the peer has closed its sending side; completes when it has closed the other one.
    gone: Option<BoxFuture<'static, ()>>,
}

impl Peer {
    fn until_gone(&self) -> io::Result<BoxFuture<'static, ()>> {
        let copy = self.stream.as_fd().try_clone_to_owned()?;
        let hang_up = holdfast_sys::reactor::both_closed(copy)?;
        Ok(Box::pin(async move { _ = hang_up.ready(Interest::PRIORITY).await }))
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.gone.is_none() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
            if buffer.filled().len() > before || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            self.gone = Some(self.until_gone()?);
        }
        if let Some(gone) = &mut self.gone {
            ready!(gone.as_mut().poll(context));
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl AsyncWrite for Peer {
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

/// Whether a daemon answers at a socket. That it takes a connection says nothing: a process that was
/// killed and can't finish dying, as a container holds what it has yet to close, still listens.
pub(crate) async fn is_answered(path: &Path) -> bool {
    let answer = async {
        let mut stream = UnixStream::connect(path).await?;
        if stream.peer_cred()?.pid().is_some_and(holdfast_sys::proc::is_being_killed) {
            return Ok(0);
        }
        stream
            .write_all(b"GET /v1/info HTTP/1.1\r\nhost: holdfast\r\nconnection: close\r\n\r\n")
            .await?;
        stream.read(&mut [0]).await
    };
    matches!(tokio::time::timeout(ANSWER_LIMIT, answer).await, Ok(Ok(1..)))
}

/// Removes the sockets of daemons that died before theirs had its name. One that answers belongs to
/// a daemon that is just starting; what can't be removed is in nobody's way.
async fn sweep(path: &Path) {
    let beginning = path.with_added_extension(STAGED);
    let (Some(beginning), Some(parent)) = (beginning.file_name(), beginning.parent()) else {
        return;
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let beginning = beginning.as_encoded_bytes();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(beginning)
            && entry.file_type().is_ok_and(|kind| kind.is_socket())
            && UnixStream::connect(entry.path()).await.is_err()
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Answers a peer that may not ask for anything, whatever it asks for.
async fn refuse(mut stream: UnixStream, uid: u32) -> io::Result<()> {
    let message =
        format!("this daemon serves root and its own user only, not user {uid}; try sudo");
    let body = serde_json::to_vec(&ErrorBody { kind: ErrorKind::Forbidden, message })?;
    let head = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    // A client takes no answer before it has asked for something. Asked with a read: that a stream is
    // readable may be said too early.
    let mut beginning = [0; 4096];
    if stream.read(&mut beginning).await? == 0 {
        return Ok(());
    }
    stream.write_all(&[head.as_bytes(), &body].concat()).await?;
    stream.shutdown().await?;
    // What was sent and not read would turn our closing into an error, before the answer is read.
    tokio::io::copy(&mut stream.take(REFUSED_LEN), &mut tokio::io::sink()).await.map(drop)
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener for Socket {
    type Io = Peer;
    type Addr = ();

    /// Waits for a connection of somebody who may connect.
    async fn accept(&mut self) -> (Peer, ()) {
        loop {
            // axum's own accept waits a second after EMFILE and the like instead of spinning.
            let (stream, _) = Listener::accept(&mut self.listener).await;
            if matches!(self.access, Access::Group(_)) {
                return (Peer { stream, gone: None }, ());
            }
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => {
                    return (Peer { stream, gone: None }, ());
                }
                Ok(peer) => {
                    let uid = peer.uid();
                    tracing::warn!(uid, "connection refused: neither root nor this user");
                    // Beyond so many at once they are just closed: strangers take nothing from us.
                    if let Ok(permit) = self.refusals.clone().try_acquire_owned() {
                        tokio::spawn(async move {
                            let _ = tokio::time::timeout(REFUSAL_LIMIT, refuse(stream, uid)).await;
                            drop(permit);
                        });
                    }
                }
                Err(error) => tracing::warn!(%error, "connection refused: its peer is not known"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}
