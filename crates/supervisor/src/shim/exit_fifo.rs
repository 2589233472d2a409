//! The exit FIFO of a process, read as a stream of announcements.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use holdfast_state::ExitRecord;
use holdfast_state::announce::{Announcement, MAX_LINE};
use tokio::net::unix::pipe::Receiver;

/// The reading end of an exit FIFO. A shim holds the other end.
#[derive(Debug)]
pub(crate) struct ExitFifo {
    fifo: Receiver,
    line: Vec<u8>,
    /// The announcements that were read but not returned yet.
    pending: VecDeque<Announcement>,
    /// Whether the end of file was read.
    ended: bool,
}

impl ExitFifo {
    /// Takes the reading end. There must be a writer, or must have been one since this end was
    /// opened: the kernel reports no hang-up to a reader that never had a writer.
    pub(crate) fn new(reader: File) -> io::Result<Self> {
        Ok(Self {
            // The descriptor was opened as a FIFO and with O_NONBLOCK, so no check is needed.
            fifo: Receiver::from_file_unchecked(reader)?,
            line: Vec::new(),
            pending: VecDeque::new(),
            ended: false,
        })
    }

    /// Takes the reading end of a FIFO that may have lost its writer long ago. It reads at once,
    /// because read(2) reports that, while waiting for readiness would not.
    pub(crate) fn restored(reader: File) -> io::Result<Self> {
        let mut fifo = Self::new(reader)?;
        let mut chunk = [0; 256];
        loop {
            match nix::unistd::read(&fifo.fifo, &mut chunk) {
                Err(nix::Error::EAGAIN) => return Ok(fifo),
                Err(error) => return Err(error.into()),
                Ok(0) => {
                    fifo.ended = true;
                    return Ok(fifo);
                }
                Ok(length) => fifo.take(&chunk[..length]),
            }
        }
    }

    /// Returns whether a shim held the other end at the last read.
    pub(crate) fn has_shim(&self) -> bool {
        !self.ended
    }

    /// Returns an exit that was announced and not returned yet.
    pub(crate) fn announced_exit(&self) -> Option<ExitRecord> {
        self.pending.iter().find_map(Announcement::exit)
    }

    /// Returns the next announcement, or `None` when the shim is gone. Cancel safe: no announcement
    /// is lost if the returned future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Announcement> {
        loop {
            if let Some(announcement) = self.pending.pop_front() {
                return Some(announcement);
            }
            if self.ended {
                return None;
            }
            let mut chunk = [0; 256];
            let read = match self.fifo.readable().await {
                Ok(()) => self.fifo.try_read(&mut chunk),
                Err(error) => Err(error),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Reading a FIFO fails only if something is wrong in the kernel. The shim can't be
                // heard any more then.
                Ok(0) | Err(_) => self.ended = true,
                Ok(length) => self.take(&chunk[..length]),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                // A line that reached the limit was cut off. It is ignored, because a part of a
                // line may be a valid announcement as well.
                let line = Some(&*self.line).filter(|line| line.len() < MAX_LINE);
                let text = line.and_then(|line| std::str::from_utf8(line).ok());
                match text.and_then(Announcement::parse) {
                    Some(announcement) => self.pending.push_back(announcement),
                    None => {
                        tracing::warn!(line = ?String::from_utf8_lossy(&self.line), "exit FIFO: a line is not an announcement")
                    }
                }
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
    }
}
