//! The output of a process, read from its log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use holdfast_state::cri::{self, Stream};
use holdfast_state::process_dir::OUTPUT_LOG;
use nix::fcntl::OFlag;

use crate::Error;
use crate::file_watch::Watched;
use crate::process::Process;
use crate::supervisor::{Core, blocking};

/// How much of a log is read at once.
const READ_SIZE: usize = 64 * 1024;
/// Longer than any entry that a shim writes. What is longer is none, and is not kept in memory.
const MAX_ENTRY: usize = 1024 * 1024;

/// A piece of output: what a container wrote, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// Where it was written.
    pub stream: Stream,
    /// When the shim read it (RFC 3339).
    pub time: String,
    /// The bytes; with the line feed, if one ended them.
    pub bytes: Bytes,
}

/// Reads the output of a process from its beginning. It stays readable after the container was
/// deleted.
#[derive(Debug)]
pub struct LogReader {
    core: Arc<Core>,
    process: Arc<Process>,
    file: File,
    /// What was read of a line whose end is still to come.
    partial: Vec<u8>,
    /// Whether that line is too long to be an entry.
    too_long: bool,
    ready: VecDeque<LogChunk>,
    follow: Option<Follow>,
}

#[derive(Debug)]
struct Follow {
    watched: Arc<Watched>,
    /// The process had ended before the file was last read to its end: there is no more to come.
    complete: bool,
}

impl LogReader {
    pub(crate) fn open(core: &Arc<Core>, process: &Arc<Process>) -> Result<Self, Error> {
        let open = || {
            let dir = core.process_dir(&process.container, &process.id)?;
            // Created if the shim has not done so yet, so that a reader may come first.
            dir.directory().open_file(OUTPUT_LOG, OFlag::O_RDONLY | OFlag::O_CREAT)
        };
        let file = open()
            .map_err(Error::io(format!("open the output of container {}", process.container)))?;
        Ok(Self {
            core: core.clone(),
            process: process.clone(),
            file,
            partial: Vec::new(),
            too_long: false,
            ready: VecDeque::new(),
            follow: None,
        })
    }

    /// The next piece that is there, or `None` at the end of what has been written so far.
    pub async fn next(&mut self) -> io::Result<Option<LogChunk>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next piece, waiting for it if need be; `None` when the process has ended and all that
    /// it wrote was read. An error if the supervisor is shut down before that.
    pub async fn follow(&mut self) -> io::Result<Option<LogChunk>> {
        loop {
            if let Some(chunk) = self.next().await? {
                return Ok(Some(chunk));
            }
            let follow = match &mut self.follow {
                Some(follow) => follow,
                None => {
                    // Through the descriptor: the name may be gone by now.
                    let path =
                        format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
                    let watched = self.core.files.watch(path.as_ref(), &self.core.stop)?;
                    // What was written before the watch began is read first.
                    self.follow = Some(Follow { watched, complete: false });
                    continue;
                }
            };
            if follow.complete {
                return Ok(None);
            }
            let watched = follow.watched.clone();
            let grown = watched.grown();
            // Between the last read and this line the file may have grown.
            if let Some(chunk) = self.next().await? {
                return Ok(Some(chunk));
            }
            tokio::select! {
                () = grown => {}
                // The output is in the log before the exit is told: one more reading gets it all.
                _ = self.process.ended() => self.complete(),
                () = self.core.stop.cancelled() => {
                    return Err(io::Error::other(Error::ShuttingDown));
                }
            }
        }
    }

    fn complete(&mut self) {
        if let Some(follow) = &mut self.follow {
            follow.complete = true;
        }
    }

    /// Reads on and takes complete entries apart.
    async fn fill(&mut self) -> io::Result<usize> {
        let file = self.file.try_clone()?;
        let read = blocking(move || {
            let mut chunk = vec![0; READ_SIZE];
            let length = (&file).read(&mut chunk)?;
            chunk.truncate(length);
            Ok(chunk)
        })
        .await?;
        let length = read.len();
        self.partial.extend_from_slice(&read);
        // What was there before has been looked through: a long line costs no more than its length.
        if read.contains(&b'\n') {
            self.take_entries();
        }
        if self.partial.len() > MAX_ENTRY {
            self.too_long = true;
            self.partial.clear();
        }
        Ok(length)
    }

    fn take_entries(&mut self) {
        let mut rest = self.partial.as_slice();
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            if !std::mem::take(&mut self.too_long)
                && let Some(chunk) = chunk_of(&rest[..end])
            {
                self.ready.push_back(chunk);
            }
            rest = &rest[end + 1..];
        }
        let used = self.partial.len() - rest.len();
        self.partial.drain(..used);
    }
}

fn chunk_of(line: &[u8]) -> Option<LogChunk> {
    let entry = cri::decode(line)?;
    let mut bytes = Vec::with_capacity(entry.content.len() + 1);
    bytes.extend_from_slice(entry.content);
    if entry.full {
        bytes.push(b'\n');
    }
    Some(LogChunk { stream: entry.stream, time: entry.time.to_owned(), bytes: bytes.into() })
}
