//! From a container's pipe into its log. Nothing is allocated after the start.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use holdfast_state::cri::{self, Stream};
use holdfast_state::time;

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
        let gathered = cri::encode(stream, stamp, &input[..length], |part| {
            // A part is at most what was read at once, so after a flush it fits.
            if self.output.len() + part.len() > WRITE_SIZE {
                self.flush();
            }
            self.output.extend_from_slice(part);
            Ok::<(), std::convert::Infallible>(())
        });
        self.input = input;
        gathered.unwrap_or_else(|never| match never {});
        self.flush();
    }
}

/// Our end of one of the container's output pipes.
pub(crate) struct Relay {
    pipe: OwnedFd,
    stream: Stream,
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
    pub(crate) fn new(pipe: OwnedFd, stream: Stream) -> Self {
        Self { pipe, stream }
    }

    /// Moves one read's worth into the log, so that one stream can't starve the rest of the loop.
    pub(crate) fn pass(&self, log: &mut OutputLog) -> io::Result<Progress> {
        match nix::unistd::read(&self.pipe, &mut log.input) {
            Ok(0) => Ok(Progress::Ended),
            Ok(length) => {
                log.gather(self.stream, length);
                Ok(Progress::Open)
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(Progress::Open),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves all that was in the pipe when this was called: everything that a process wrote before
    /// it exited, and no more, so a background process that goes on writing can't hold this up.
    pub(crate) fn drain(&self, log: &mut OutputLog) -> io::Result<()> {
        let mut left = holdfast_sys::fd::readable_bytes(&self.pipe)?;
        while left > 0 {
            let wanted = left.min(READ_SIZE);
            match nix::unistd::read(&self.pipe, &mut log.input[..wanted]) {
                Ok(0) | Err(nix::Error::EAGAIN) => break,
                Ok(length) => {
                    log.gather(self.stream, length);
                    left -= length;
                }
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
