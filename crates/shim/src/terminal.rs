//! A container's terminal: how its master comes from the runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use holdfast_state::ProcessDir;
use holdfast_sys::fd_passing;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// The socket's name in the process directory.
const SOCKET: &str = "console.sock";
/// Room for the name that the runtime sends along with the master.
const NAME_ROOM: usize = 256;
/// What ends the input of a terminal in its usual mode: control-D (`VEOF`, termios(3)).
pub(crate) const END_OF_INPUT: u8 = 4;

/// The socket to which the runtime sends the master (its `--console-socket`).
#[derive(Debug)]
pub(crate) enum ConsoleSocket {
    /// Nobody has come yet.
    Listening(UnixListener),
    /// The runtime is there, and the master is still to come.
    Connected(UnixStream),
}

impl ConsoleSocket {
    /// Makes the socket and returns the path by which the runtime finds it. It leads through our
    /// descriptor of the process directory: the directory's own path may be longer than the 107
    /// bytes that the address of a socket can have.
    pub(crate) fn bind(dir: &ProcessDir) -> io::Result<(Self, PathBuf)> {
        dir.directory().unlink(SOCKET)?;
        let own = format!("/proc/{}/fd/{}", std::process::id(), dir.as_fd().as_raw_fd());
        let path = PathBuf::from(own).join(SOCKET);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok((Self::Listening(listener), path))
    }

    /// Goes on as far as it can without waiting. The master, once it has come.
    pub(crate) fn receive(&mut self, dir: &ProcessDir) -> io::Result<Option<OwnedFd>> {
        if let Self::Listening(listener) = self {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            stream.set_nonblocking(true)?;
            *self = Self::Connected(stream);
        }
        let Self::Connected(stream) = self else { return Ok(None) };
        let mut name = [0; NAME_ROOM];
        let master = match fd_passing::receive(&*stream, &mut name) {
            Ok((_, fds)) => fds.into_iter().next(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let master = master.ok_or_else(|| io::Error::other("the runtime sent no terminal"))?;
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        dir.directory().unlink(SOCKET)?;
        Ok(Some(master))
    }
}

impl AsFd for ConsoleSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listening(listener) => listener.as_fd(),
            Self::Connected(stream) => stream.as_fd(),
        }
    }
}
