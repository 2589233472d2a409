//! A shim that was begun before there is anything to do, so that no start has to wait for that.

use std::io;
use std::os::fd::AsRawFd;

use holdfast_state::legacy::{MESSAGE_LIMIT, words};
use holdfast_sys::{command_line, fd_passing};
use nix::sys::socket::{MsgFlags, send};

use crate::args;
use crate::legacy::Legacy;
use crate::shim::Shim;

/// Waits for a start and makes it. `None` if none will come: the supervisor is gone.
pub(crate) fn start() -> io::Result<Option<Shim>> {
    let socket = &holdfast_sys::fd::standard()[0];
    // Until then it is not known that we are a program that waits.
    send(socket.as_raw_fd(), b"ready", MsgFlags::MSG_NOSIGNAL)?;
    // So large that it is mapped by itself, and is no hole among smaller things afterwards.
    let mut message = vec![0; 2 * MESSAGE_LIMIT];
    let (length, fds) = fd_passing::receive(socket, &mut message)?;
    if length == 0 {
        return Ok(None);
    }
    let (legacy, text) = Legacy::of_message(&message[..length], fds)?;
    if let Some(log) = &legacy.log {
        nix::unistd::dup2_stderr(log)?;
    }
    let exit = legacy.exit.as_ref().ok_or_else(|| io::Error::other("no exit FIFO was sent"))?;
    nix::unistd::dup2_stdout(exit)?;
    // For those who look for the shim of a container. Nothing else depends on it.
    let _ = command_line::show(Box::leak(options(text).into()));
    let args = args::parse(words(text).skip(1)).map_err(io::Error::other)?;
    drop(legacy);
    Shim::start(&args, None).map(Some)
}

/// What is before the runtime's command.
fn options(text: &[u8]) -> &[u8] {
    let end = text.windows(4).position(|part| part == b"\0--\0");
    &text[..end.map_or(text.len(), |end| end + 1)]
}
