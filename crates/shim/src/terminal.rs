//! A container's terminal: how its master comes from the runtime.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_state::Directory;
use holdfast_sys::fd_passing;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Room for the name that the runtime sends along with the master.
const NAME_ROOM: usize = 256;
/// What ends the input of a terminal in its usual mode: control-D (`VEOF`, termios(3)).
pub(crate) const END_OF_INPUT: u8 = 4;

/// The socket to which the runtime sends the master (its `--console-socket`).
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    /// The directory through which the runtime comes, and the socket's name there.
    dir: Directory,
    name: String,
}

impl AsFd for ConsoleSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl ConsoleSocket {
    /// Makes the socket and returns the path by which the runtime finds it. It leads through our
    /// descriptor of its directory: the directory's own path may be longer than the 107 bytes that the
    /// address of a socket can have.
    pub fn bind(dir: Directory, name: &str) -> io::Result<(Self, PathBuf)> {
        dir.unlink(name)?;
        let own = format!("/proc/{}/fd/{}", std::process::id(), dir.as_fd().as_raw_fd());
        let path = PathBuf::from(own).join(name);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok((Self { listener, dir, name: name.to_owned() }, path))
    }

    /// The master, if the runtime has connected. It sends it at once, or else within this time if there is one;
    /// one that has ended has sent it before. One that has failed hangs up, or sends none.
    pub fn receive(&self, within: Option<Duration>) -> io::Result<Option<OwnedFd>> {
        loop {
            let connection = match self.listener.accept() {
                Ok((connection, _)) => connection,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            match within {
                Some(_) => connection.set_read_timeout(within)?,
                None => connection.set_nonblocking(true)?,
            }
            let received = fd_passing::receive(&connection, &mut [0; NAME_ROOM]);
            let Some(master) = received.ok().and_then(|(_, fds)| fds.into_iter().next()) else {
                continue;
            };
            fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            self.dir.unlink(&self.name)?;
            return Ok(Some(master));
        }
    }
}
