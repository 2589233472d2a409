//! The socket: how it appears, and who may connect.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// What a socket is called, with a pid behind it, before it has its name.
const STAGED: &str = "new-";

/// A socket that serves root and the user of this process.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    /// Removed with the daemon that made it.
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`. A socket that nobody answers is replaced; anything else there is refused.
    pub(crate) async fn bind(path: &Path) -> io::Result<Self> {
        match path.symlink_metadata() {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is something else than a socket",
                ));
            }
            Ok(_) if UnixStream::connect(path).await.is_ok() => {
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
        let published = std::fs::set_permissions(&staged, Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&staged, path));
        if let Err(error) = published {
            let _ = std::fs::remove_file(&staged);
            return Err(error);
        }
        Ok(Self { listener, path: path.to_owned() })
    }
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

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listener for Socket {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            // axum's own accept waits a second after EMFILE and the like instead of spinning.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => {
                    return (stream, address);
                }
                Ok(peer) => tracing::warn!(
                    uid = peer.uid(),
                    "connection refused: neither root nor this user"
                ),
                Err(error) => tracing::warn!(%error, "connection refused: its peer is not known"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
