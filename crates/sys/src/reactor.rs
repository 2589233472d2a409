//! Descriptors in Tokio's reactor.
//!
//! Since 1.54 Tokio has no safe way to register a descriptor of just any type, because a type might
//! lie about which one it holds. The types here can't.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::PidFd;

/// Registers a descriptor for reading. Must be called within a Tokio runtime.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open descriptor for its whole life, and it is moved in.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Registers a pidfd, which is ready once its process is a zombie. Must be called within a Tokio
/// runtime.
pub fn pidfd(pidfd: Arc<PidFd>) -> io::Result<AsyncFd<Arc<PidFd>>> {
    // SAFETY: a PidFd holds one OwnedFd that nothing can replace, and the Arc that is moved in
    // keeps it open.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

/// Registers a pipe's writing end, or a socket, for news of its other side: that it is closed. Must be
/// called within a Tokio runtime.
pub fn hang_up(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let interest = Interest::READABLE | Interest::ERROR;
    // SAFETY: an OwnedFd is one open descriptor for its whole life, and it is moved in.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Registers a socket for the news that both its directions are closed. It is that alone for which
/// `ready(Interest::PRIORITY)` then waits: epoll(7) reports EPOLLHUP whatever is asked for, and a stream socket
/// of the Unix domain has nothing urgent. Must be called within a Tokio runtime.
pub fn both_closed(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open descriptor for its whole life, and it is moved in.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::PRIORITY) }?)
}
