//! The exit FIFO as a stream of announcements.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use holdfast_state::ExitRecord;
use holdfast_state::announce::{Announcement, MAX_LINE};
use tokio::net::unix::pipe::Receiver;

/// The reading end of an exit FIFO, whose other end a shim holds.
#[derive(Debug)]
pub(crate) struct ExitFifo {
    fifo: Receiver,
    line: Vec<u8>,
    /// Announcements that were read and not asked for yet.
    pending: VecDeque<Announcement>,
    /// The end of file was read.
    ended: bool,
}

impl ExitFifo {
    /// Takes the reader. There must be a writer, or have been one since it was opened: to a reader
    /// that never had one the kernel reports no hang-up.
    pub(crate) fn new(reader: File) -> io::Result<Self> {
        Ok(Self {
            // It was opened as a FIFO, without waiting.
            fifo: Receiver::from_file_unchecked(reader)?,
            line: Vec::new(),
            pending: VecDeque::new(),
            ended: false,
        })
    }

    /// Takes the reader of a FIFO that may have lost its writer long ago: reading tells, where
    /// waiting would not.
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

    /// Whether a shim held the other end when this was last read.
    pub(crate) fn has_shim(&self) -> bool {
        !self.ended
    }

    /// An exit that was announced and not asked for yet.
    pub(crate) fn announced_exit(&self) -> Option<ExitRecord> {
        self.pending.iter().find_map(|announcement| match announcement {
            Announcement::Exited { end, evidence } => {
                Some(ExitRecord::now((*end).into(), *evidence))
            }
            Announcement::Created { .. }
            | Announcement::Adopted { .. }
            | Announcement::GivenUp { .. } => None,
        })
    }

    /// The next announcement, or `None` when the shim is gone. Cancel safe.
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
                // An error of a FIFO's reading end would be the kernel's; the shim can't be heard any more.
                Ok(0) | Err(_) => self.ended = true,
                Ok(length) => self.take(&chunk[..length]),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                // A part of a line could be one as well.
                let line = Some(&*self.line).filter(|line| line.len() < MAX_LINE);
                let text = line.and_then(|line| std::str::from_utf8(line).ok());
                match text.and_then(Announcement::parse) {
                    Some(announcement) => self.pending.push_back(announcement),
                    None => {
                        tracing::warn!(line = ?String::from_utf8_lossy(&self.line), "exit FIFO: no announcement")
                    }
                }
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
    }
}
