//! From a container's pipe into its log. Nothing is allocated after the start.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use holdfast_state::cri::{self, Stream};
use holdfast_state::process_dir::OUTPUT_LOG;
use holdfast_state::{ProcessDir, time};
use nix::fcntl::OFlag;

/// How much is read at once: what a pipe holds by default.
const READ_SIZE: usize = 64 * 1024;
/// How much is written at once, at the most.
const WRITE_SIZE: usize = 128 * 1024;

/// The log of a process, written in whole lines.
pub(crate) struct OutputLog {
    file: File,
    input: Box<[u8]>,
    output: Vec<u8>,
    /// Bytes that could not be written since the last time that something could.
    dropped: u64,
}

impl OutputLog {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            input: vec![0; READ_SIZE].into_boxed_slice(),
            output: Vec::with_capacity(WRITE_SIZE),
            dropped: 0,
        }
    }

    /// Ends a line that a shim had begun when it died, so that ours begins a new one.
    pub(crate) fn mend(&mut self, dir: &ProcessDir) -> io::Result<()> {
        let file = File::from(dir.directory().open_at(OUTPUT_LOG, OFlag::O_RDONLY)?);
        let length = file.metadata()?.len();
        let mut last = [b'\n'];
        if length > 0 {
            file.read_exact_at(&mut last, length - 1)?;
        }
        if last != *b"\n" {
            self.file.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Writes out what has been gathered. A full disk must not stop the container, so what can't
    /// be written is dropped, counted, and told once it goes on.
    fn flush(&mut self) {
        let mut rest = self.output.as_slice();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if self.dropped == 0 {
                        crate::log(
                            "warning",
                            &format!(
                                "output.log: {error}; output is dropped until it can be written"
                            ),
                        );
                    }
                    self.dropped += rest.len() as u64;
                    break;
                }
            }
        }
        if rest.is_empty() && self.dropped > 0 {
            crate::log(
                "warning",
                &format!("output.log: goes on, {} bytes of it were dropped", self.dropped),
            );
            self.dropped = 0;
        }
        self.output.clear();
    }

    fn gather(&mut self, stream: Stream, length: usize) {
        let stamp = time::format(SystemTime::now());
        let input = std::mem::take(&mut self.input);
        for piece in cri::pieces(&input[..length]) {
            if self.output.len() + piece.len() > WRITE_SIZE / 2 {
                self.flush();
            }
            cri::encode(stream, &stamp, cri::Mark::Plain, piece, &mut self.output);
        }
        self.input = input;
        self.flush();
    }
}

/// How much of a terminal's output is taken at its process's end before others that still write to
/// it have to wait their turn.
const TERMINAL_DRAIN: usize = 1024 * 1024;

/// Our end of one of the container's output pipes, or of its terminal.
pub(crate) struct Relay {
    from: OwnedFd,
    stream: Stream,
    kind: Kind,
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

impl Relay {
    pub(crate) fn new(from: OwnedFd, stream: Stream, kind: Kind) -> Self {
        Self { from, stream, kind }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Moves one read's worth into the log, so that one stream can't starve the rest of the loop.
    pub(crate) fn pass(&self, log: &mut OutputLog) -> io::Result<Progress> {
        Ok(self.move_some(log, READ_SIZE)?.0)
    }

    /// Moves all that was there when this was called: everything that a process wrote before it
    /// exited, and no more, so a background process that goes on writing can't hold this up.
    pub(crate) fn drain(&self, log: &mut OutputLog) -> io::Result<()> {
        // A terminal does not count what is on its way to the master, but reading it gets that too.
        let mut left = match self.kind {
            Kind::Pipe => holdfast_sys::fd::readable_bytes(&self.from)?,
            Kind::Terminal => TERMINAL_DRAIN,
        };
        while left > 0 {
            match self.move_some(log, left.min(READ_SIZE))? {
                (Progress::Ended, _) | (_, 0) => break,
                (Progress::Open, length) => left -= length,
            }
        }
        Ok(())
    }

    fn move_some(&self, log: &mut OutputLog, limit: usize) -> io::Result<(Progress, usize)> {
        loop {
            return match nix::unistd::read(&self.from, &mut log.input[..limit]) {
                Ok(0) => Ok((Progress::Ended, 0)),
                Ok(length) => {
                    log.gather(self.stream, length);
                    Ok((Progress::Open, length))
                }
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EAGAIN) => Ok((Progress::Open, 0)),
                // So reads a terminal whose other side nobody has open any more.
                Err(nix::Error::EIO) if self.kind == Kind::Terminal => Ok((Progress::Ended, 0)),
                Err(error) => Err(error.into()),
            };
        }
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }
}
