//! A process that only closes what it is sent, so that nobody else has to wait for that.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use holdfast_sys::fd_passing;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, send};

use crate::setup;

/// After how many milliseconds without anything to close it ends. Another one is begun when there is.
const IDLE: u16 = 1000;

/// Closes descriptors until nothing comes any more.
pub(crate) fn run() -> io::Result<()> {
    let socket = &holdfast_sys::fd::standard()[0];
    let _signals = setup::detach()?;
    while poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], IDLE)? > 0 {
        let (length, fds) = fd_passing::receive(socket, &mut [0])?;
        if length == 0 {
            break;
        }
        // This may take for ever.
        drop(fds);
        send(socket.as_raw_fd(), b"x", MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)?;
    }
    // What comes from now on is closed with the socket.
    Ok(())
}
