//! The one way from sources to the sinks that they share.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use holdfast_state::cri::Stream;
use nix::poll::PollFlags;

use super::source::{Progress, Room};
use super::{PIPE_SIZE, Sinks, Source, warn};

/// How long what waits for a reader may wait after the end of the process, from when that has last taken
/// something on.
const PATIENCE: Duration = Duration::from_secs(10);

/// The sources that share sinks.
#[derive(Default)]
pub struct Pipeline {
    sources: [Option<Source>; 2],
    /// The sinks.
    pub sinks: Sinks,
    room: Room,
    /// Sources that have ended, until nobody waits for them any more.
    ended: Vec<Source>,
    /// The process has ended: what waits for a reader is bounded from now on.
    is_bounded: bool,
    /// What comes is not wanted any more, once readers have got what waits for them.
    lets_go: bool,
    /// When to give up the readers.
    give_up: Option<Instant>,
}

/// What a pipeline waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// More of a stream.
    Source(Stream),
    /// The reader of a stream, or of both.
    Reader(Stream),
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Pipeline {
    /// With these sinks, and no source.
    pub fn new(sinks: Sinks) -> Self {
        Self { sinks, ..Self::default() }
    }

    /// Gives a stream its source.
    pub fn set(&mut self, stream: Stream, source: Source) {
        self.sources[stream as usize] = Some(source);
    }

    /// The source of a stream, until that has ended.
    pub fn source(&self, stream: Stream) -> Option<&Source> {
        self.sources[stream as usize].as_ref()
    }

    /// Marks what of a dead shim's pipe may stand in its log already.
    pub fn compare(&mut self, stream: Stream) {
        if let Some(source) = &mut self.sources[stream as usize] {
            let compared = source.compare(&mut self.room, &self.sinks, stream);
            warn("what was logged last is not known", compared);
        }
    }

    /// What is to be waited for there.
    pub fn interest(&self, slot: Slot) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match slot {
            Slot::Source(_) if self.sinks.are_full() => None,
            Slot::Source(stream) => Some((self.source(stream)?.as_fd(), PollFlags::POLLIN)),
            Slot::Reader(stream) => {
                Some((self.sinks.queue(stream)?.waits_for()?, PollFlags::POLLOUT))
            }
        }
    }

    /// Moves what can be moved of what is ready. A source that can't be read ends, and nothing else does.
    pub fn pass(&mut self, is_ready: impl Fn(Slot) -> bool) {
        for stream in STREAMS {
            if is_ready(Slot::Reader(stream)) {
                self.sinks.pass(stream);
            }
        }
        for stream in STREAMS {
            if is_ready(Slot::Source(stream)) && !self.sinks.are_full() {
                // One look's worth, so that one stream can't starve the rest of the loop.
                self.carry(stream, PIPE_SIZE);
            }
        }
        self.keep_patience();
    }

    /// Moves up to so much of a stream to the sinks, or as much as they take now.
    fn carry(&mut self, stream: Stream, limit: usize) -> Progress {
        let Some(source) = &mut self.sources[stream as usize] else { return Progress::Nothing };
        let sinks = &mut self.sinks;
        let carried = source.read(&mut self.room, limit, |mark, bytes| {
            sinks.take(stream, mark, bytes);
            if sinks.are_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let progress = warn("a stream ends", carried).unwrap_or(Progress::Ended);
        if progress == Progress::Ended {
            self.ended.extend(self.sources[stream as usize].take());
            self.sinks.end(stream);
        }
        progress
    }

    /// Moves all that was there when this was called: everything that a process wrote before it
    /// exited, and no more, so a background process that goes on writing can't hold this up. Nor can a
    /// reader: what it does not take waits for it, within bounds.
    pub fn drain(&mut self) {
        self.is_bounded = true;
        self.sinks.bound();
        for stream in STREAMS {
            let Some(source) = self.source(stream) else { continue };
            let mut left = warn("the last of a stream is lost", source.length()).unwrap_or(0);
            while left > 0 {
                let Progress::Moved(length) = self.carry(stream, left) else { break };
                left = left.saturating_sub(length);
            }
        }
        self.sinks.finish();
        self.keep_patience();
    }

    /// Closes the sinks once readers have got what waits for them. Sources are read on: nobody who writes to
    /// them waits for a reader that is not there.
    pub(crate) fn let_go(&mut self) {
        self.lets_go = true;
        self.keep_patience();
    }

    /// Gives up readers that have taken nothing for too long since the process ended.
    fn keep_patience(&mut self) {
        if self.lets_go && self.sinks.are_empty() {
            // Nobody waits for a queue that is empty.
            self.sinks = Sinks::default();
        }
        let progressed = self.sinks.progressed();
        self.give_up = match self.give_up {
            _ if !self.is_bounded || self.sinks.are_empty() => None,
            Some(when) if !progressed && when <= Instant::now() => {
                self.sinks.give_up();
                None
            }
            Some(when) if !progressed => Some(when),
            _ => Some(Instant::now() + PATIENCE),
        };
    }

    /// When it is to be looked after, whatever happens until then.
    pub fn due(&self) -> Option<Instant> {
        self.give_up
    }

    /// Whether all has come, and readers have got it.
    pub fn is_over(&self) -> bool {
        self.sources.iter().all(Option::is_none) && self.sinks.are_empty()
    }

    /// Closes what has ended, once nobody waits for it.
    pub fn close_ended(&mut self) {
        self.ended.clear();
    }

    /// How many descriptors it may come to need.
    pub(crate) fn most_files(&self) -> u64 {
        self.sources.iter().flatten().count() as u64 + self.sinks.most_files()
    }

    /// Whether there is memory to give back.
    pub fn holds_memory(&self) -> bool {
        self.room.is_held()
    }

    /// Gives back the memory that only output needs.
    pub fn rest(&mut self) {
        self.room = Room::default();
        self.sinks.rest();
    }
}
