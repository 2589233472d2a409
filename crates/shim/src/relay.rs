//! From a container's pipe or terminal to the places where its output goes. Nothing is allocated
//! after the start.
//!
//! What is in a pipe is copied out of it first, brought to its places, and only then taken out: who
//! kills us in between leaves it in the pipe for the next shim. That one may find in the log what is
//! in the pipe as well, and marks it: at most what was read at once.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use holdfast_state::cri::{Mark, Stream};
use nix::fcntl::{OFlag, SpliceFFlags, splice, tee};
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
                Ok(length) => {
                    places.read_exact(&self.reader, length)?;
                    return Ok(Some(length));
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes out what was looked at.
    fn remove(&self, pipe: &OwnedFd, mut length: usize) -> io::Result<()> {
        while length > 0 {
            match splice(pipe, None, &self.null, None, length, SpliceFFlags::SPLICE_F_MOVE) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(removed) => length -= removed,
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
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
                places.take(self.stream, mark, length)?;
                scratch.remove(&self.from, length)?;
                self.again = self.again.saturating_sub(length);
                Ok((Progress::Open, length))
            }
            Kind::Terminal => loop {
                return match nix::unistd::read(&self.from, places.room(limit)) {
                    // So reads a terminal whose other side nobody has open any more.
                    Ok(0) | Err(nix::Error::EIO) => Ok((Progress::Ended, 0)),
                    Ok(length) => {
                        places.take(self.stream, Mark::Plain, length)?;
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
