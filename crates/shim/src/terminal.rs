//! A container's terminal: how its master comes from the runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
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
        Ok((Self { listener, dir }, path))
    }

    /// The master, which the runtime has sent before it ended. One that has failed hangs up, or sends none.
    pub(crate) fn receive(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            let connection = match self.listener.accept() {
                Ok((connection, _)) => connection,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            connection.set_nonblocking(true)?;
            let received = fd_passing::receive(&connection, &mut [0; NAME_ROOM]);
            let Some(master) = received.ok().and_then(|(_, fds)| fds.into_iter().next()) else {
                continue;
            };
            fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            self.dir.directory().unlink(SOCKET)?;
            return Ok(Some(master));
        }
    }
}
