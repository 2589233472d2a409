//! Where bytes come from.
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
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use holdfast_state::cri::{Mark, Stream};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice, tee};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::{PIPE_SIZE, READ_SIZE, Sinks, warn};

/// How much of a terminal's output is taken at its process's end before others that still write to
/// it have to wait their turn.
const TERMINAL_DRAIN: usize = 1024 * 1024;

/// Where the bytes of a stream come from.
pub enum Source {
    /// Our end of one of the container's output pipes.
    Pipe {
        /// Opened for reading without waiting.
        fd: OwnedFd,
        /// By which it is looked into.
        scratch: Rc<Scratch>,
        /// How many bytes of the next may stand in the log already.
        again: usize,
    },
    /// The master of the container's terminal.
    Terminal(OwnedFd),
    /// The stdin FIFO.
    Fifo(File),
}

/// What came of reading a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// So many bytes were handed on.
    Moved(usize),
    /// Nothing was there.
    Nothing,
    /// Nothing will ever be: the last writer has closed it.
    Ended,
}

/// Room for what is read, which is there as long as there is output. Of that, what was not read into yet takes
/// no memory.
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
    /// Our end of an output pipe.
    pub fn pipe(fd: OwnedFd, scratch: &Rc<Scratch>) -> Self {
        Self::Pipe { fd, scratch: scratch.clone(), again: 0 }
    }

    /// Hands on what is there, up to so much, a chunk at a time, until one is said to be the last. A pipe
    /// is looked into once, and each chunk is removed from it when it has been handed on.
    pub(super) fn read(
        &mut self,
        room: &mut Room,
        limit: usize,
        mut hand_on: impl FnMut(Mark, &[u8]) -> ControlFlow<()>,
    ) -> io::Result<Progress> {
        let read = match self {
            Self::Pipe { fd, scratch, again } => {
                let Some(mut seen) = scratch.look(fd, limit)? else { return Ok(Progress::Nothing) };
                if seen.left == 0 {
                    return Ok(Progress::Ended);
                }
                let mut moved = 0;
                // What of a packet (`O_DIRECT`, pipe2(2)) a chunk has no room for is lost of what was seen, and is
                // left in the pipe.
                while seen.left > 0 && seen.is_whole()? {
                    let length = READ_SIZE.min(seen.left);
                    let (length, mark) = match *again {
                        0 => (length, Mark::Plain),
                        again => (length.min(again), Mark::Again),
                    };
                    let bytes = room.of(length);
                    let flow = match seen.read(bytes) {
                        Ok(()) => hand_on(mark, bytes),
                        // What it has spliced from a failing disk, say.
                        Err(error) => {
                            let text = format!("{length} bytes of output can't be read: {error}");
                            crate::log::log("warning", &text);
                            ControlFlow::Break(())
                        }
                    };
                    remove(&*fd, &scratch.null, length)?;
                    *again = again.saturating_sub(length);
                    moved += length;
                    if flow.is_break() {
                        break;
                    }
                }
                return Ok(Progress::Moved(moved));
            }
            Self::Terminal(master) => nix::unistd::read(master, room.of(limit.min(READ_SIZE))),
            Self::Fifo(fifo) => nix::unistd::read(fifo, room.of(limit.min(READ_SIZE))),
        };
        match read {
            // So reads a terminal whose other side nobody has open any more, us included.
            Ok(0) | Err(Errno::EIO) => Ok(Progress::Ended),
            Ok(length) => {
                let _ = hand_on(Mark::Plain, &room.0[..length]);
                Ok(Progress::Moved(length))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Progress::Nothing),
            Err(error) => Err(error.into()),
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
        // Mostly the pipe is empty, and the log need not be read.
        if let Some(mut seen) = scratch.look(fd, READ_SIZE)?
            && seen.left > 0
        {
            let bytes = room.of(seen.left);
            seen.read(bytes)?;
            let ends = sinks.last_read(stream)?.into_iter().map(|last| last.end_in(bytes));
            *again = ends.max().unwrap_or(0);
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
pub struct Scratch {
    reader: File,
    writer: OwnedFd,
    null: File,
}

impl Scratch {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // As much as is looked at, in however small parts that was written.
        enlarge(&writer);
        let null = File::options().write(true).open("/dev/null")?;
        Ok(Self { reader: reader.into(), writer, null })
    }

    /// Copies into here what is in a pipe, and leaves it there. `None` if nothing is; 0 bytes if nothing will
    /// ever be.
    fn look(&self, pipe: &OwnedFd, limit: usize) -> io::Result<Option<Seen<'_>>> {
        let seen = |left| Seen { scratch: self, left };
        loop {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            return match tee(pipe, &self.writer, limit.min(PIPE_SIZE), flags) {
                // Nothing was there; which is the end only if there never will be anything.
                Ok(0) => Ok(has_ended(pipe)?.then(|| seen(0))),
                Ok(length) => Ok(Some(seen(length))),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
    }
}

/// What was seen in a pipe. Whatever is not read is forgotten: the next one to look may be another container's.
struct Seen<'a> {
    scratch: &'a Scratch,
    /// How many bytes are yet to be read.
    left: usize,
}

impl Seen<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        (&self.scratch.reader).read_exact(bytes)?;
        self.left -= bytes.len();
        Ok(())
    }

    /// Whether all that is yet to be read is there.
    fn is_whole(&self) -> io::Result<bool> {
        Ok(holdfast_sys::fd::readable_bytes(&self.scratch.reader)? == self.left)
    }
}

impl Drop for Seen<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            warn(
                "looking into a pipe",
                remove(&self.scratch.reader, &self.scratch.null, PIPE_SIZE),
            );
        }
    }
}

/// Takes so much out of a pipe, or what of it the container has left there.
fn remove(pipe: impl AsFd, null: &File, mut length: usize) -> io::Result<()> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    while length > 0 {
        match splice(pipe.as_fd(), None, null, None, length, flags) {
            Ok(0) | Err(Errno::EAGAIN) => break,
            Ok(removed) => length -= removed,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives a pipe room for what a container may write ahead. An unprivileged user may have used up what pipes
/// may hold; then it is what a pipe is by default.
pub(crate) fn enlarge(pipe: &OwnedFd) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(i32::try_from(PIPE_SIZE).unwrap_or(i32::MAX)));
}

/// Whether a pipe is empty and nobody has it open for writing.
fn has_ended(pipe: &OwnedFd) -> io::Result<bool> {
    let mut set = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut set, PollTimeout::ZERO)?;
    let found = set[0].revents().unwrap_or(PollFlags::empty());
    Ok(found.contains(PollFlags::POLLHUP) && !found.contains(PollFlags::POLLIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn source(ours: OwnedFd) -> Source {
        Source::pipe(ours, &Rc::new(Scratch::new().unwrap()))
    }

    /// Reads all there is.
    fn read(source: &mut Source, room: &mut Room) -> (Vec<u8>, Progress) {
        let mut all = Vec::new();
        loop {
            let progress = source.read(room, PIPE_SIZE, |_, bytes| {
                all.extend_from_slice(bytes);
                ControlFlow::Continue(())
            });
            match progress.unwrap() {
                Progress::Moved(_) => {}
                end => return (all, end),
            }
        }
    }

    /// A read of ours that ends within a packet would throw the rest of it away.
    #[test]
    fn packets_come_whole_wherever_they_begin() {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_DIRECT).unwrap();
        enlarge(&theirs);
        let (mut source, mut room) = (source(ours), Room::default());
        let mut theirs = File::from(theirs);
        let mut sent = Vec::new();
        for length in [1, 4000, 4096, 3000, 10_000].iter().cycle().take(60) {
            let packet: Vec<u8> = (0..*length).map(|i| u8::try_from(i % 251).unwrap()).collect();
            if theirs.write_all(&packet).is_ok() {
                sent.extend(packet);
            }
        }
        assert!(sent.len() > 2 * READ_SIZE, "{} bytes", sent.len());
        let (got, end) = read(&mut source, &mut room);
        assert!(got == sent && end == Progress::Nothing, "{} of {} bytes", got.len(), sent.len());
        drop(theirs);
        assert_eq!(read(&mut source, &mut room), (Vec::new(), Progress::Ended));
    }

    #[test]
    fn what_is_not_taken_stays_in_the_pipe() {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        enlarge(&theirs);
        let (mut source, mut room) = (source(ours), Room::default());
        let mut theirs = File::from(theirs);
        theirs.write_all(&[b'x'; 3 * READ_SIZE]).unwrap();
        let progress = source.read(&mut room, PIPE_SIZE, |_, _| ControlFlow::Break(())).unwrap();
        assert_eq!(progress, Progress::Moved(READ_SIZE), "one chunk");
        theirs.write_all(b"end").unwrap();
        let (got, _) = read(&mut source, &mut room);
        assert!(got.len() == 2 * READ_SIZE + 3 && got.ends_with(b"xend"), "{} bytes", got.len());
    }
}
