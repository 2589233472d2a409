//! How output and input move: from sources to sinks, and one way from the ones to the others.
//!
//! | word | what |
//! |---|---|
//! | source | where bytes come from: a pipe, a terminal, or the stdin FIFO |
//! | sink | where they go: a file with rotation, the journal, or a queue |
//! | queue | a sink that may be slow: a FIFO of the caller's, or a terminal's input |
//! | chunk | what was read at once, in one private copy, which all sinks get |
//! | pipeline | the sources that share sinks: both outputs, or the input |
//! | listener | receives the same bytes as the sinks: the clients of `holdfast-conmon` |
//!
//! An error of a sink is a value: what it could not take is counted, and the log says so. An error of a
//! source ends that source. Neither ends a shim, nor costs the status of the process.

mod file;
mod journald;
mod pipeline;
mod queue;
mod rate;
mod sinks;
mod source;
mod tail;

pub(crate) use file::open_direct;
pub use file::{K8sFile, LogFile};
pub use journald::Journald;
pub use pipeline::{Pipeline, Slot};
pub(crate) use queue::Queue;
pub(crate) use sinks::Missing;
pub use sinks::{Listener, Sinks};
pub(crate) use source::enlarge;
pub use source::{Scratch, Source};

use std::ops::Deref;
use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_state::cri::{Mark, Stream};
use holdfast_state::time::{self, LOCAL_LEN, TEXT_LEN};
use holdfast_sys::zone;

/// The size of a chunk in bytes: what a pipe holds by default.
const READ_SIZE: usize = 64 * 1024;

/// How much a container can write ahead, in bytes: four reads' worth. As much of a pipe is looked at together:
/// each look takes the pipe's lock, for which the container may wait.
const PIPE_SIZE: usize = 4 * READ_SIZE;

/// A time as it stands in logs.
#[derive(Debug, Clone, Copy)]
enum Stamp {
    Utc([u8; TEXT_LEN]),
    Local([u8; LOCAL_LEN]),
}

impl Deref for Stamp {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Utc(text) => text,
            Self::Local(text) => text,
        }
    }
}

/// In which form times stand in logs.
#[derive(Debug, Clone, Copy, Default)]
enum Clock {
    #[default]
    Utc,
    Local,
}

impl Clock {
    fn now(self) -> Stamp {
        let now = SystemTime::now();
        match self {
            Self::Utc => Stamp::Utc(time::format(now)),
            Self::Local => {
                let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let offset = zone::offset(seconds.try_into().unwrap_or(0));
                Stamp::Local(time::format_local(now, offset))
            }
        }
    }
}

/// What was read of a stream at once, or a part of it.
#[derive(Debug, Clone, Copy)]
struct Chunk<'a> {
    stream: Stream,
    mark: Mark,
    stamp: &'a Stamp,
    bytes: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// What Holdfast itself has to say in a log.
    fn notice(stamp: &'a Stamp, text: &'a str) -> Self {
        Self { stream: Stream::Stderr, mark: Mark::Notice, stamp, bytes: text.as_bytes() }
    }
}

/// An error of an output or input is reported, and ends no shim.
pub(crate) fn warn<T>(what: &str, done: std::io::Result<T>) -> Option<T> {
    done.inspect_err(|error| crate::log::log("warning", &format!("{what}: {error}"))).ok()
}
