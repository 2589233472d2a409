//! All the sinks of a pipeline, as one.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;

use holdfast_state::cri::{Mark, Stream};
use holdfast_state::{LogDriver, LogSpec};

use super::file::LogFile;
use super::journald::Journald;
use super::tail::Last;
use super::{Chunk, Clock, Queue};
use crate::home::Home;
use crate::stdio::Owner;

/// What is to be done about a sink that can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The start fails, and says why.
    Fails,
    /// It is tried again when there is output.
    Waits,
}

/// Receives the same bytes as the sinks.
pub trait Listener {
    /// Takes what was read. What it does not take at once it has to keep.
    fn take(&mut self, stream: Stream, bytes: &[u8]);

    /// Whether it is to be given no more at the moment, so that the process waits.
    fn is_full(&self) -> bool;
}

/// The sinks that share what is read.
#[derive(Default)]
pub struct Sinks {
    files: Vec<LogFile>,
    journals: Vec<Journald>,
    /// The readers of the two streams. One that takes both has the place of the first.
    queues: [Option<Box<Queue>>; 2],
    /// Standard output goes to its reader alone.
    is_diverted: bool,
    clock: Clock,
    listener: Option<Rc<RefCell<dyn Listener>>>,
}

impl Sinks {
    /// Those of conmon's place: times are local.
    #[must_use]
    pub fn of_monitor(
        files: Vec<LogFile>,
        journals: Vec<Journald>,
        listener: Rc<RefCell<dyn Listener>>,
    ) -> Self {
        let (clock, listener) = (Clock::Local, Some(listener));
        Self { files, journals, clock, listener, ..Self::default() }
    }

    /// Opens what there is to open.
    pub(crate) fn open(
        specs: &[LogSpec],
        home: &Home,
        owner: Owner,
        missing: Missing,
    ) -> io::Result<Self> {
        let mut sinks = Self::default();
        for spec in specs {
            match sinks.add(spec, home, owner, missing) {
                Ok(()) => {}
                Err(error) if missing == Missing::Fails => return Err(error),
                // Read all the same, or the process would wait.
                Err(error) => crate::log::log("error", &format!("output is lost: {error}")),
            }
        }
        Ok(sinks)
    }

    fn add(
        &mut self,
        spec: &LogSpec,
        home: &Home,
        owner: Owner,
        missing: Missing,
    ) -> io::Result<()> {
        match spec.driver {
            LogDriver::Cri | LogDriver::JsonFile | LogDriver::File => {
                let files = LogFile::open(spec, home, owner, missing)?;
                // As they are, mostly: room for more than there are, or for a copy, would be kept.
                match self.files.is_empty() {
                    true => self.files = files,
                    false => self.files.extend(files),
                }
            }
            LogDriver::Journald => {
                self.journals.push(Journald::open(spec.path.as_deref(), spec.rate, home));
            }
            LogDriver::Fifo => {
                let path = spec.path.as_deref().ok_or(io::ErrorKind::InvalidInput)?;
                let open = |path: &Path, spill| {
                    Ok::<_, io::Error>(Some(Box::new(Queue::open(path, spec, home, spill)?)))
                };
                self.queues[0] = open(path, "stdout.spill")?;
                if let Some(path) = &spec.stderr {
                    self.queues[1] = open(path, "stderr.spill")?;
                }
            }
            LogDriver::None => {}
            other => {
                let text = format!("this shim has no log driver {}", other.name());
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        }
        Ok(())
    }

    /// Has standard output go to a FIFO of the caller's and nowhere else.
    pub(crate) fn divert(&mut self, path: &Path) -> io::Result<()> {
        let queue = Queue::of_fifo(path)?;
        let [first, second] = &mut self.queues;
        // What took both takes standard error from now on.
        if let Some(other) = first.replace(Box::new(queue)) {
            second.get_or_insert(other);
        }
        self.is_diverted = true;
        Ok(())
    }

    /// The one sink that there is.
    pub(crate) fn only(queue: Queue) -> Self {
        Self { queues: [Some(Box::new(queue)), None], ..Self::default() }
    }

    /// How many descriptors they may come to need.
    pub(crate) fn most_files(&self) -> u64 {
        let queues: u64 = self.queues.iter().flatten().map(|queue| queue.most_files()).sum();
        (self.files.len() + self.journals.len()) as u64 + queues
    }

    /// Whether another shim can take over without missing anything: a FIFO keeps nothing once we close
    /// it, and of what is missing only we know.
    pub(crate) fn can_move(&self) -> bool {
        self.files.iter().all(LogFile::is_clean)
            && self.journals.iter().all(Journald::is_clean)
            && self.queues.iter().flatten().all(|queue| queue.can_move())
    }

    /// Makes good what a dead shim left half done.
    pub fn mend(&mut self) -> io::Result<()> {
        self.files.iter_mut().try_for_each(LogFile::mend)
    }

    /// What was logged of a stream last, where that can be read back.
    pub(super) fn last_read(&self, stream: Stream) -> io::Result<Vec<Last>> {
        self.files.iter().find_map(|file| file.last_read(stream)).unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Opens the logs anew by their names.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.files.iter_mut().try_for_each(LogFile::reopen)
    }

    /// Has the disk take what was logged.
    pub fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(LogFile::sync)
    }

    /// Hands what was read to every sink.
    pub(super) fn take(&mut self, stream: Stream, mark: Mark, bytes: &[u8]) {
        let is_diverted = self.is_diverted && stream == Stream::Stdout;
        if !is_diverted {
            let stamp = &self.clock.now();
            let chunk = Chunk { stream, mark, stamp, bytes };
            self.files.iter_mut().for_each(|file| file.take(chunk));
            self.journals.iter_mut().for_each(|journal| journal.take(chunk));
        }
        if let Some(queue) = self.queue_of(stream) {
            queue.take(bytes);
        }
        if let Some(listener) = &self.listener {
            listener.borrow_mut().take(stream, bytes);
        }
    }

    /// The queue that takes a stream.
    fn queue_of(&mut self, stream: Stream) -> Option<&mut Queue> {
        match &mut self.queues {
            [_, Some(second)] if stream == Stream::Stderr => Some(second),
            [_, None] if stream == Stream::Stderr && self.is_diverted => None,
            [first, _] => first.as_deref_mut(),
        }
    }

    /// No more of a stream will come.
    pub(super) fn end(&mut self, stream: Stream) {
        if let Some(queue) = self.queue_of(stream) {
            queue.end();
        }
    }

    /// The process has ended: what is to be said of what is missing is said.
    pub(super) fn finish(&mut self) {
        let stamp = &self.clock.now();
        self.files.iter_mut().for_each(|file| file.finish(stamp));
        self.journals.iter_mut().for_each(|journal| journal.finish(stamp));
    }

    /// Gives back the memory that only output needs.
    pub(super) fn rest(&mut self) {
        self.files.iter_mut().for_each(LogFile::rest);
        self.journals.iter_mut().for_each(Journald::rest);
        self.queues.iter_mut().flatten().for_each(|queue| queue.rest());
    }

    /// The queue of its own that a stream has.
    pub(super) fn queue(&self, stream: Stream) -> Option<&Queue> {
        self.queues[stream as usize].as_deref()
    }

    /// Hands on what a reader takes.
    pub(super) fn pass(&mut self, stream: Stream) {
        if let Some(queue) = &mut self.queues[stream as usize] {
            queue.pass();
        }
    }

    /// Whether nothing more is to be read at the moment.
    pub(super) fn are_full(&self) -> bool {
        self.queues.iter().flatten().any(|queue| queue.is_full())
            || self.listener.as_ref().is_some_and(|listener| listener.borrow().is_full())
    }

    /// Whether readers have got everything.
    pub(crate) fn are_empty(&self) -> bool {
        self.queues.iter().flatten().all(|queue| queue.is_empty())
    }

    /// From now on there is a limit to what waits for a reader.
    pub(super) fn bound(&mut self) {
        self.queues.iter_mut().flatten().for_each(|queue| queue.bound());
    }

    /// Whether a reader has taken something on since this was asked last.
    pub(super) fn progressed(&mut self) -> bool {
        let taken = self.queues.iter_mut().flatten().map(|queue| queue.progressed());
        // Each is asked.
        taken.fold(false, |any, taken| any | taken)
    }

    /// Drops what waits for readers that take nothing.
    pub(super) fn give_up(&mut self) {
        self.queues.iter_mut().flatten().for_each(|queue| queue.give_up());
    }
}
