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
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    /// The process directory, through which the runtime comes.
    dir: ProcessDir,
    /// The runtime is there, and the master is still to come.
    connection: Option<UnixStream>,
}

impl ConsoleSocket {
    /// Makes the socket and returns the path by which the runtime finds it. It leads through our
    /// descriptor of the process directory: the directory's own path may be longer than the 107
    /// bytes that the address of a socket can have.
    pub(crate) fn bind(dir: ProcessDir) -> io::Result<(Self, PathBuf)> {
        dir.directory().unlink(SOCKET)?;
        let own = format!("/proc/{}/fd/{}", std::process::id(), dir.as_fd().as_raw_fd());
        let path = PathBuf::from(own).join(SOCKET);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok((Self { listener, dir, connection: None }, path))
    }

    /// Goes on as far as it can without waiting. The master, once it has come.
    pub(crate) fn receive(&mut self) -> io::Result<Option<OwnedFd>> {
        let mut name = [0; NAME_ROOM];
        let received = match &self.connection {
            Some(connection) => fd_passing::receive(connection, &mut name),
            None => match self.listener.accept() {
                Ok((connection, _)) => {
                    connection.set_nonblocking(true)?;
                    fd_passing::receive(self.connection.insert(connection), &mut name)
                }
                Err(error) => Err(error),
            },
        };
        let fds = match received {
            Ok((_, fds)) => fds,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => vec![],
            Err(error) => return Err(error),
        };
        let Some(master) = fds.into_iter().next() else {
            // A runtime that has failed hangs up. What is wrong is for its own log to say.
            self.connection = None;
            return Ok(None);
        };
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.dir.directory().unlink(SOCKET)?;
        Ok(Some(master))
    }
}

impl AsFd for ConsoleSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_ref().map_or(self.listener.as_fd(), UnixStream::as_fd)
    }
}
