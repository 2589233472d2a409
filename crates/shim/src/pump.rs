//! From one descriptor to another, neither of which is ever waited for.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;

use crate::relay::Progress;

/// How much is on its way at once.
const ROOM: usize = 16 * 1024;

/// Moves bytes from a FIFO into a terminal, or the other way round. What one side does not take
/// stays in the other, which is how the writer there learns to wait.
#[derive(Debug)]
pub(crate) struct Pump {
    from: OwnedFd,
    to: OwnedFd,
    buffer: Box<[u8]>,
    /// What of the buffer is still to be written.
    pending: Range<usize>,
    /// What is written once there is no more to read: a terminal has no other end of input.
    end_mark: Option<u8>,
    /// Whether the last byte was one that a terminal hands on with all before it.
    handed_on: bool,
    /// No more is to be read.
    ending: bool,
}

impl Pump {
    /// Both must have been opened with `O_NONBLOCK`.
    pub(crate) fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self {
            from,
            to,
            buffer: vec![0; ROOM].into_boxed_slice(),
            pending: 0..0,
            end_mark: None,
            handed_on: true,
            ending: false,
        }
    }

    /// Has the end of the input reach a terminal: by this control character (`VEOF`, termios(3)).
    pub(crate) fn ending_with(mut self, end_mark: u8) -> Self {
        self.end_mark = Some(end_mark);
        self
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        let in_a_line = self.end_mark.is_some() && !self.handed_on;
        self.pending.is_empty() && !self.ending && !in_a_line
    }

    /// What to wait for before it can go on.
    pub(crate) fn waits_for(&self) -> (BorrowedFd<'_>, PollFlags) {
        if self.pending.is_empty() {
            (self.from.as_fd(), PollFlags::POLLIN)
        } else {
            (self.to.as_fd(), PollFlags::POLLOUT)
        }
    }

    /// Moves one buffer's worth, or what of it can be moved now.
    pub(crate) fn pass(&mut self) -> io::Result<Progress> {
        if self.pending.is_empty() {
            match nix::unistd::read(&self.from, &mut self.buffer) {
                // A terminal whose other side nobody has open reads as EIO.
                Ok(0) | Err(nix::Error::EIO) => {
                    let Some(mark) = self.end_mark else { return Ok(Progress::Ended) };
                    // In the middle of a line the first one only hands that on.
                    let marks = if self.handed_on { 1 } else { 2 };
                    self.buffer[..marks].fill(mark);
                    (self.pending, self.ending) = (0..marks, true);
                }
                Ok(length) => {
                    let last = self.buffer[length - 1];
                    self.handed_on = matches!(last, b'\n' | b'\r') || Some(last) == self.end_mark;
                    self.pending = 0..length;
                }
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(Progress::Open),
                Err(error) => return Err(error.into()),
            }
        }
        match nix::unistd::write(&self.to, &self.buffer[self.pending.clone()]) {
            Ok(length) => self.pending.start += length,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            // Nobody will ever read it.
            Err(nix::Error::EIO | nix::Error::EPIPE) => self.pending = 0..0,
            Err(error) => return Err(error.into()),
        }
        Ok(if self.ending && self.pending.is_empty() { Progress::Ended } else { Progress::Open })
    }
}
