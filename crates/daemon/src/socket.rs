//! The socket: how it appears, and who may connect.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

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
        // Bound under another name and given its mode there, so that it is never open to others
        // for a moment, and renamed, so that it is never missing.
        let staged = path.with_added_extension(format!("new-{}", std::process::id()));
        let _ = std::fs::remove_file(&staged);
        sweep(path);
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

/// Removes what daemons left that were killed between the two names of their sockets.
fn sweep(path: &Path) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
    let prefix = format!("{}.new-", name.to_string_lossy());
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_a_killed_daemon_had_not_published_is_swept() {
        let temp = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let path = temp.path().join("s");
        for name in [format!("s.new-{}", dead.id()), "s.new-1".into(), "s.new-x".into()] {
            drop(std::os::unix::net::UnixListener::bind(temp.path().join(name)).unwrap());
        }
        let _socket = Socket::bind(&path).await.unwrap();
        let mut left: Vec<_> = std::fs::read_dir(temp.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["s", "s.new-1", "s.new-x"], "those of the living stay");
    }
}
