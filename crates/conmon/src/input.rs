//! The standard input of the container: a pipe or a terminal, into which the input of clients goes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;

use crate::deposit::Deposit;

/// How much is read from a client at once, in bytes. podman and CRI-O send smaller packets.
const ROOM: usize = 64 * 1024;

#[derive(Default)]
pub(crate) struct Input {
    to: Option<OwnedFd>,
    /// Where another copy of it is, for who takes over.
    deposit: Option<Rc<Deposit>>,
    /// Whether the input of the container ends when that of a client does.
    ends: bool,
    /// What was read from a client, and how much of it the container has taken. Until it has taken all, no
    /// client's input is read.
    waiting: Vec<u8>,
    taken: usize,
    /// Whether the input ends behind what is waiting.
    is_ending: bool,
}

impl Input {
    /// Takes a descriptor with `O_NONBLOCK`.
    pub(crate) fn new(to: OwnedFd, ends: bool) -> Self {
        Self { to: Some(to), ends, ..Self::default() }
    }

    /// Has a copy be deposited for who takes over.
    pub(crate) fn deposit(&mut self, deposit: Rc<Deposit>) {
        self.deposit = Some(deposit);
    }

    /// Returns the descriptor, until it is closed.
    pub(crate) fn writer(&self) -> Option<BorrowedFd<'_>> {
        self.to.as_ref().map(AsFd::as_fd)
    }

    /// Closes the input.
    pub(crate) fn close(&mut self) {
        // First: who kills us in between closes the other.
        if let Some(deposit) = self.deposit.take() {
            deposit.clear();
        }
        self.to = None;
    }

    /// Returns whether the container has yet to take something.
    pub(crate) fn is_busy(&self) -> bool {
        self.taken < self.waiting.len()
    }

    /// Returns the descriptor that must become writable, if something is waiting.
    pub(crate) fn interest(&self) -> Option<BorrowedFd<'_>> {
        self.to.as_ref().filter(|_| self.is_busy()).map(AsFd::as_fd)
    }

    /// Takes the bytes that `read` puts into its buffer. If the container has no input, they are dropped.
    pub(crate) fn fill(&mut self, read: impl FnOnce(&mut [u8]) -> usize) {
        self.waiting.resize(ROOM, 0);
        let length = read(&mut self.waiting);
        self.waiting.truncate(length);
        self.taken = 0;
        self.pass();
    }

    /// Writes as much as the container takes now.
    pub(crate) fn pass(&mut self) {
        while let Some(to) = &self.to
            && self.is_busy()
        {
            match nix::unistd::write(to, &self.waiting[self.taken..]) {
                Ok(length) => self.taken += length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // It has closed its input.
                Err(_) => self.close(),
            }
        }
        self.waiting.clear();
        self.taken = 0;
        if self.is_ending {
            self.close();
        }
    }

    /// Notes that a client's input has ended.
    pub(crate) fn end(&mut self) {
        self.is_ending |= self.ends;
        if !self.is_busy() {
            self.pass();
        }
    }

    /// Frees the buffer, if it is empty.
    pub(crate) fn rest(&mut self) {
        if !self.is_busy() {
            self.waiting = Vec::new();
        }
    }

    pub(crate) fn holds_memory(&self) -> bool {
        self.waiting.capacity() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn fill(input: &mut Input, bytes: &[u8]) {
        input.fill(|room| {
            room[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        });
    }

    #[test]
    fn the_input_ends_behind_what_waits() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        holdfast_shim::engine::set_nonblocking(&writer).unwrap();
        let mut input = Input::new(writer.into(), true);
        fill(&mut input, &[b'x'; ROOM]);
        assert!(!input.is_busy(), "a pipe holds so much");
        fill(&mut input, b"end");
        input.end();
        assert!(input.is_busy() && input.interest().is_some());
        let mut room = vec![0; ROOM];
        reader.read_exact(&mut room).unwrap();
        input.pass();
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "end");
        assert!(!input.is_busy() && input.interest().is_none());
    }

    #[test]
    fn what_nobody_reads_is_dropped() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut input = Input::new(writer.into(), false);
        input.end();
        drop(reader);
        let mut set = nix::sys::signal::SigSet::empty();
        set.add(nix::sys::signal::Signal::SIGPIPE);
        set.thread_block().unwrap();
        fill(&mut input, b"x");
        assert!(!input.is_busy() && input.to.is_none());
        fill(&mut input, b"y");
        assert!(!input.is_busy());
    }
}
