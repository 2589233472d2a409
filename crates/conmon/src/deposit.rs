//! Descriptors that outlive the monitor: they wait in a message that nobody has received, in the queue of a socket
//! of which the keeper has a copy.
//!
//! A process that looks at the message gets copies of the descriptors, and the message stays (`MSG_PEEK`, recv(2)). A
//! process that receives the message removes it for all that have the socket, and so closes the descriptors. So the
//! monitor can let the input of its container end, and say that its work is done, without waiting for a keeper that
//! does not answer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use holdfast_shim::engine::set_nonblocking;
use holdfast_state::handoff::{FdName, Handoff, Message};
use holdfast_sys::fd_passing;
use nix::sys::socket::{MsgFlags, recv};

/// The room for a message, which has no words.
pub(crate) const ROOM: usize = 256;

pub(crate) struct Deposit(OwnedFd);

impl Deposit {
    /// Deposits copies of descriptors.
    pub(crate) fn new<'a>(
        fds: impl IntoIterator<Item = (FdName, BorrowedFd<'a>)>,
    ) -> io::Result<Self> {
        let (writer, reader) = fd_passing::pair()?;
        Message::new(fds, [])?.send(writer)?;
        Self::of(reader)
    }

    /// Takes a copy of the socket of a deposit.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&socket)?;
        Ok(Self(socket))
    }

    /// Returns copies of the descriptors, until somebody has cleared it.
    pub(crate) fn look<'a>(&self, room: &'a mut [u8]) -> io::Result<Option<Handoff<'a>>> {
        Handoff::peek(&self.0, room)
    }

    /// Closes the deposited descriptors.
    pub(crate) fn clear(&self) {
        let _ = recv(self.0.as_raw_fd(), &mut [], MsgFlags::empty());
    }

    /// Returns whether it was cleared. What is no deposit is empty.
    pub(crate) fn is_empty(&self) -> bool {
        fd_passing::next_length(&self.0).unwrap_or(0) == 0
    }
}

impl AsFd for Deposit {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a monitor leaves with the keeper.
pub(crate) struct Deposits {
    /// The container: its process, output and record.
    pub(crate) container: Rc<Deposit>,
    /// The writing end of its input, if that is a pipe.
    pub(crate) input: Option<Rc<Deposit>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn what_is_deposited_is_there_until_it_is_cleared_by_anyone_and_closed_then() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let deposit = Deposit::new([(FdName::Stdin, writer.as_fd())]).unwrap();
        drop(writer);
        let copy = Deposit::of(deposit.as_fd().try_clone_to_owned().unwrap()).unwrap();
        for _ in 0..2 {
            let mut room = [0; ROOM];
            let mut handoff = copy.look(&mut room).unwrap().unwrap();
            File::from(handoff.take(FdName::Stdin).unwrap()).write_all(b"x").unwrap();
        }
        assert!(!copy.is_empty());
        deposit.clear();
        assert!(copy.is_empty() && copy.look(&mut [0; ROOM]).unwrap().is_none());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "xx");
        copy.clear();
    }

    #[test]
    fn what_is_no_deposit_is_empty() {
        let (socket, _other) = fd_passing::pair().unwrap();
        assert!(Deposit::of(socket).unwrap().is_empty());
        assert!(Deposit::of(File::open("/dev/null").unwrap().into()).unwrap().is_empty());
    }
}
