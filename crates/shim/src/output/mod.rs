//! How output and input move: from sources to sinks, and one way from the ones to the others.
//!
//! | word | what |
//! |---|---|
//! | source | where bytes come from: a pipe, a terminal, or the stdin FIFO |
//! | sink | where they go: a file with rotation, the journal, or a queue |
//! | queue | a sink that may be slow: a FIFO of the caller's, or a terminal's input |
//! | chunk | what was read at once, in one private copy, which all sinks get |
//! | pipeline | the sources that share sinks: both outputs, or the input |
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
pub(crate) use pipeline::{Pipeline, Slot};
pub(crate) use queue::Queue;
pub(crate) use sinks::{Missing, Sinks};
pub(crate) use source::{Scratch, Source, enlarge};

use holdfast_state::cri::{Mark, Stream};
use holdfast_state::time::TEXT_LEN;

/// The size of a chunk in bytes: what a pipe holds by default.
const READ_SIZE: usize = 64 * 1024;

/// How much a container can write ahead, in bytes: four reads' worth. As much of a pipe is looked at together:
/// each look takes the pipe's lock, for which the container may wait.
const PIPE_SIZE: usize = 4 * READ_SIZE;

/// A time as it stands in logs.
type Stamp = [u8; TEXT_LEN];

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
