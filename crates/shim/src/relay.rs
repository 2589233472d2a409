//! From a container's pipe or terminal to the places where its output goes. Nothing is allocated
//! after the start.
//!
//! What is in a pipe is copied out of it first, brought to its places, and only then taken out: who
//! kills us in between leaves it in the pipe for the next shim. That one may find in the log what is
//! in the pipe as well, and marks it: at most what was read at once.
//!
//! The container holds the other end open for reading too, and may take anything out of the pipe at any
//! moment between two of these steps. What it takes it has taken from itself: its output lacks it,
//! and nothing else comes of that.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_state::cri::{Mark, Stream};
use nix::fcntl::{OFlag, SpliceFFlags, splice, tee};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::places::{Places, READ_SIZE};

/// How much of a terminal's output is taken at its process's end before others that still write to
/// it have to wait their turn.
const TERMINAL_DRAIN: usize = 1024 * 1024;

/// Our end of one of the container's output pipes, or of its terminal.
pub(crate) struct Relay {
    from: OwnedFd,
    stream: Stream,
    kind: Kind,
    /// How many bytes of the next may stand in the log already.
    again: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pipe,
    Terminal,
}

/// What a relay has to expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More may come.
    Open,
    /// The last writer has closed it.
    Ended,
}

/// A pipe for looking into pipes, and a place for what has been seen.
pub(crate) struct Scratch {
    reader: File,
    writer: OwnedFd,
    null: File,
}

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self {
            reader: reader.into(),
            writer,
            null: File::options().write(true).open("/dev/null")?,
        })
    }

    /// Copies into the places' room what is in a pipe, and leaves it there. `None` if nothing is;
    /// 0 if nothing will ever be.
    fn look(&self, pipe: &OwnedFd, places: &mut Places, limit: usize) -> io::Result<Option<usize>> {
        loop {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            match tee(pipe, &self.writer, limit.min(READ_SIZE), flags) {
                // Nothing was there; which is the end only if there never will be anything.
                Ok(0) => return Ok(has_ended(pipe)?.then_some(0)),
                Ok(length) => match places.read_exact(&self.reader, length) {
                    Ok(()) => return Ok(Some(length)),
                    // What it has spliced from a failing disk, say.
                    Err(error) => {
                        let text = format!("{length} bytes of output can't be read: {error}");
                        crate::log::log("warning", &text);
                        self.remove(pipe, length)?;
                        // Or the next one would find them, who may be another container's.
                        self.remove(&self.reader, READ_SIZE)?;
                    }
                },
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes out what was looked at, or what of it the container has left there.
    fn remove(&self, pipe: impl AsFd, mut length: usize) -> io::Result<()> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        while length > 0 {
            match splice(pipe.as_fd(), None, &self.null, None, length, flags) {
                Ok(0) | Err(nix::Error::EAGAIN) => break,
                Ok(removed) => length -= removed,
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether a pipe is empty and nobody has it open for writing.
fn has_ended(pipe: &OwnedFd) -> io::Result<bool> {
    let mut set = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut set, PollTimeout::ZERO)?;
    let found = set[0].revents().unwrap_or(PollFlags::empty());
    Ok(found.contains(PollFlags::POLLHUP) && !found.contains(PollFlags::POLLIN))
}

impl Relay {
    pub(crate) fn new(from: OwnedFd, stream: Stream, kind: Kind) -> Self {
        Self { from, stream, kind, again: 0 }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Finds out whether what is in the pipe of a dead shim stands in its log already. Bytes that
    /// are the same may be the same once more, so they are marked and not left out.
    pub(crate) fn compare(&mut self, places: &mut Places, scratch: &Scratch) -> io::Result<()> {
        let logged = places.last_read(self.stream)?;
        if let Some(length) = scratch.look(&self.from, places, READ_SIZE)?
            && places.room(length).starts_with(&logged)
        {
            self.again = logged.len();
        }
        Ok(())
    }

    /// Moves one read's worth, so that one stream can't starve the rest of the loop.
    pub(crate) fn pass(&mut self, places: &mut Places, scratch: &Scratch) -> io::Result<Progress> {
        Ok(self.move_some(places, scratch, READ_SIZE)?.0)
    }

    /// Moves all that was there when this was called: everything that a process wrote before it
    /// exited, and no more, so a background process that goes on writing can't hold this up.
    pub(crate) fn drain(&mut self, places: &mut Places, scratch: &Scratch) -> io::Result<()> {
        // A terminal does not count what is on its way to the master, but reading it gets that too.
        let mut left = match self.kind {
            Kind::Pipe => holdfast_sys::fd::readable_bytes(&self.from)?,
            Kind::Terminal => TERMINAL_DRAIN,
        };
        while left > 0 && !places.are_full() {
            match self.move_some(places, scratch, left)? {
                (Progress::Ended, _) | (_, 0) => break,
                (Progress::Open, length) => left = left.saturating_sub(length),
            }
        }
        Ok(())
    }

    fn move_some(
        &mut self,
        places: &mut Places,
        scratch: &Scratch,
        limit: usize,
    ) -> io::Result<(Progress, usize)> {
        match self.kind {
            Kind::Pipe => {
                let again = self.again > 0;
                let limit = if again { limit.min(self.again) } else { limit };
                let length = match scratch.look(&self.from, places, limit)? {
                    None => return Ok((Progress::Open, 0)),
                    Some(0) => return Ok((Progress::Ended, 0)),
                    Some(length) => length,
                };
                let mark = if again { Mark::Again } else { Mark::Plain };
                places.take(self.stream, mark, length);
                scratch.remove(&self.from, length)?;
                self.again = self.again.saturating_sub(length);
                Ok((Progress::Open, length))
            }
            Kind::Terminal => loop {
                return match nix::unistd::read(&self.from, places.room(limit)) {
                    // So reads a terminal whose other side nobody has open any more, us included.
                    Ok(0) | Err(nix::Error::EIO) => Ok((Progress::Ended, 0)),
                    Ok(length) => {
                        places.take(self.stream, Mark::Plain, length);
                        Ok((Progress::Open, length))
                    }
                    Err(nix::Error::EINTR) => continue,
                    Err(nix::Error::EAGAIN) => Ok((Progress::Open, 0)),
                    Err(error) => Err(error.into()),
                };
            },
        }
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }
}
