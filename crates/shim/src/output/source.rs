//! Where bytes come from. Nothing is allocated here after the start.
//!
//! What is in a pipe is copied out of it first, brought to the sinks, and only then taken out: who kills
//! us in between leaves it in the pipe for the next shim. That one may find in the log what is in the
//! pipe as well, and marks it: at most what was read at once.
//!
//! The container holds the other end open for reading too, and may take anything out of the pipe at any
//! moment between two of these steps. What it takes it has taken from itself: its output lacks it,
//! and nothing else comes of that.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use holdfast_state::cri::{Mark, Stream};
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice, tee};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::{READ_SIZE, Sinks};

/// How much of a terminal's output is taken at its process's end before others that still write to
/// it have to wait their turn.
const TERMINAL_DRAIN: usize = 1024 * 1024;

pub(crate) enum Source {
    /// Our end of one of the container's output pipes.
    Pipe {
        fd: OwnedFd,
        scratch: Rc<Scratch>,
        /// How many bytes of the next may stand in the log already.
        again: usize,
    },
    /// The master of the container's terminal.
    Terminal(OwnedFd),
    /// The stdin FIFO.
    Fifo(File),
}

/// What a source had to give.
pub(super) enum Found<'a> {
    /// These. In a pipe they still are, until they are [removed](Source::remove).
    Bytes(&'a [u8], Mark),
    /// Nothing now.
    Nothing,
    /// Nothing ever again: the last writer has closed it.
    End,
}

/// Room for a chunk, which is there as long as there is output.
#[derive(Default)]
pub(super) struct Room(Box<[u8]>);

impl Room {
    fn of(&mut self, length: usize) -> &mut [u8] {
        if self.0.is_empty() {
            self.0 = vec![0; READ_SIZE].into_boxed_slice();
        }
        &mut self.0[..length.min(READ_SIZE)]
    }

    pub(super) fn is_held(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Source {
    pub(crate) fn pipe(fd: OwnedFd, scratch: &Rc<Scratch>) -> Self {
        Self::Pipe { fd, scratch: scratch.clone(), again: 0 }
    }

    /// Reads what is there, up to so much.
    pub(super) fn read<'a>(&self, room: &'a mut Room, limit: usize) -> io::Result<Found<'a>> {
        let length = match self {
            Self::Pipe { fd, scratch, again } => {
                let (limit, mark) = match *again {
                    0 => (limit, Mark::Plain),
                    again => (limit.min(again), Mark::Again),
                };
                return Ok(match scratch.look(fd, room, limit)? {
                    Some(0) => Found::End,
                    Some(length) => Found::Bytes(&room.0[..length], mark),
                    None => Found::Nothing,
                });
            }
            Self::Terminal(master) => nix::unistd::read(master, room.of(limit)),
            Self::Fifo(fifo) => nix::unistd::read(fifo, room.of(limit)),
        };
        match length {
            // So reads a terminal whose other side nobody has open any more, us included.
            Ok(0) | Err(Errno::EIO) => Ok(Found::End),
            Ok(length) => Ok(Found::Bytes(&room.0[..length], Mark::Plain)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Found::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes out of a pipe what was read; elsewhere that has been done by reading.
    pub(super) fn remove(&mut self, length: usize) -> io::Result<()> {
        match self {
            Self::Pipe { fd, scratch, again } => {
                *again = again.saturating_sub(length);
                scratch.remove(fd, length)
            }
            Self::Terminal(_) | Self::Fifo(_) => Ok(()),
        }
    }

    /// How much there can be that was written before now.
    pub(super) fn length(&self) -> io::Result<usize> {
        match self {
            Self::Pipe { fd, .. } => holdfast_sys::fd::readable_bytes(fd),
            // A terminal does not count what is on its way to the master, but reading gets that too.
            Self::Terminal(_) | Self::Fifo(_) => Ok(TERMINAL_DRAIN),
        }
    }

    /// Finds out whether what is in the pipe of a dead shim stands in its log already. Bytes that
    /// are the same may be the same once more, so they are marked and not left out.
    pub(super) fn compare(
        &mut self,
        room: &mut Room,
        sinks: &Sinks,
        stream: Stream,
    ) -> io::Result<()> {
        let Self::Pipe { fd, scratch, again } = self else { return Ok(()) };
        if let Some(last) = sinks.last_read(stream)?
            && let Some(length) = scratch.look(fd, room, READ_SIZE)?
        {
            *again = last.end_in(&room.0[..length]);
        }
        Ok(())
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pipe { fd, .. } | Self::Terminal(fd) => fd.as_fd(),
            Self::Fifo(fifo) => fifo.as_fd(),
        }
    }
}

/// A pipe for looking into pipes.
pub(crate) struct Scratch {
    reader: File,
    writer: OwnedFd,
    null: File,
}

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        let null = File::options().write(true).open("/dev/null")?;
        Ok(Self { reader: reader.into(), writer, null })
    }

    /// Copies into the room what is in a pipe, and leaves it there. `None` if nothing is; 0 if
    /// nothing will ever be.
    fn look(&self, pipe: &OwnedFd, room: &mut Room, limit: usize) -> io::Result<Option<usize>> {
        loop {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            match tee(pipe, &self.writer, limit.min(READ_SIZE), flags) {
                // Nothing was there; which is the end only if there never will be anything.
                Ok(0) => return Ok(has_ended(pipe)?.then_some(0)),
                Ok(length) => match (&self.reader).read_exact(room.of(length)) {
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
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes out what was looked at, or what of it the container has left there.
    fn remove(&self, pipe: impl AsFd, mut length: usize) -> io::Result<()> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        while length > 0 {
            match splice(pipe.as_fd(), None, &self.null, None, length, flags) {
                Ok(0) | Err(Errno::EAGAIN) => break,
                Ok(removed) => length -= removed,
                Err(Errno::EINTR) => {}
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
