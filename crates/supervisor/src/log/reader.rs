//! Reads the output of a process from its log.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use futures::Stream;
use futures::future::{Either, pending, select_all};
use holdfast_state::cri::{self};
use holdfast_state::{Directory, LogDriver, LogSpec};
use nix::fcntl::OFlag;
use tokio::task::JoinHandle;

use crate::core::Core;
use crate::error::Error;
use crate::log::entries::{Format, LogChunk};
use crate::log::files::{LogFiles, LogPosition, Progress};
use crate::log::place::{Identity, Place};
use crate::model::process::Process;
use crate::os::file_watch::{OF_DIRECTORY, OF_FILE, Watched};

/// The part of a log to read. The default is all of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogOptions {
    pub(crate) since: Option<SystemTime>,
    pub(crate) tail: Option<u64>,
}

impl LogOptions {
    /// Returns the default options: all of the log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Selects only the output that was read from the container at this moment or later, by the
    /// system's clock. A log of the driver `file` has no times; it can't be opened with this option
    /// ([`Error::NoTimes`]).
    #[must_use]
    pub fn since(mut self, since: SystemTime) -> Self {
        self.since = Some(since);
        self
    }

    /// Selects only the last `lines` lines of what the log contains when it is opened; 0 selects
    /// none of them. If standard error has a file of its own, the number applies to each of the two
    /// files. Output that is written later is not affected.
    #[must_use]
    pub fn tail(mut self, lines: u64) -> Self {
        self.tail = Some(lines);
        self
    }
}

/// Reads the output of a process from its log: from the beginning, unless [`LogOptions`] select
/// less.
///
/// The reader holds up to 64 files of a log open. These stay readable after the container was
/// deleted.
#[derive(Debug)]
pub struct LogReader {
    core: Arc<Core>,
    process: Arc<Process>,
    state: State,
    ready: VecDeque<LogChunk>,
    /// Whether the process had ended before the files were last read to their end, so that no more
    /// output can come.
    complete: bool,
    /// The watches of the last wait. They are kept, so that they stay registered until the next
    /// wait.
    watched: Vec<Arc<Watched>>,
}

/// The files of a log: a single file with its predecessors, or one such sequence per stream, each with
/// its number.
type Files = Vec<(usize, LogFiles)>;

#[derive(Debug)]
enum State {
    Idle(Files),
    /// A blocking thread has the files. Its handle is kept here, so that a caller that stops
    /// waiting for it loses nothing.
    Reading(JoinHandle<(Files, io::Result<Progress>)>),
}

impl LogReader {
    pub(crate) fn open(
        core: &Arc<Core>,
        process: &Arc<Process>,
        options: &LogOptions,
    ) -> Result<Self, Error> {
        Self::open_at(core, process, options, None)
    }

    pub(crate) fn open_after(
        core: &Arc<Core>,
        process: &Arc<Process>,
        options: &LogOptions,
        position: &LogPosition,
    ) -> Result<Self, Error> {
        Self::open_at(core, process, options, Some(position))
    }

    fn open_at(
        core: &Arc<Core>,
        process: &Arc<Process>,
        options: &LogOptions,
        position: Option<&LogPosition>,
    ) -> Result<Self, Error> {
        let spec = process.log.readable().ok_or_else(|| not_readable(process))?;
        if spec.driver == LogDriver::File && options.since.is_some() {
            return Err(Error::NoTimes { id: process.container.clone() });
        }
        let files = open_files(core, process, spec, options, position).map_err(failed(process))?;
        Ok(Self::of(core, process, files))
    }

    /// Opens the log of a process that is about to be started. A log that can't be read back reads
    /// as empty.
    pub(crate) fn attached(
        core: &Arc<Core>,
        process: &Arc<Process>,
        options: &LogOptions,
    ) -> Result<Self, Error> {
        let Some(spec) = process.log.readable() else {
            return Ok(Self::of(core, process, Vec::new()));
        };
        if let Some(own) = own_name(spec) {
            // The file is created now, so that this reader holds it even if the process soon ends
            // and is deleted.
            let dir = process.dir(&core.root).map_err(failed(process))?;
            let flags = OFlag::O_RDONLY | OFlag::O_CREAT;
            dir.directory().open_file(own, flags).map_err(failed(process))?;
        }
        match open_files(core, process, spec, options, None) {
            Ok(files) => Ok(Self::of(core, process, files)),
            Err(error) if own_name(spec).is_none() => {
                // The path may be a device. If it can't be used at all, the shim will report that.
                tracing::debug!(container = %process.container, log = %spec, %error, "the log can't be read back");
                Ok(Self::of(core, process, Vec::new()))
            }
            Err(error) => Err(failed(process)(error)),
        }
    }

    /// Follows this process, which continues the log.
    pub(crate) fn of_process(self, process: &Arc<Process>) -> Self {
        Self { process: process.clone(), ..self }
    }

    fn of(core: &Arc<Core>, process: &Arc<Process>, files: Files) -> Self {
        Self {
            core: core.clone(),
            process: process.clone(),
            state: State::Idle(files),
            ready: VecDeque::new(),
            complete: false,
            watched: Vec::new(),
        }
    }

    /// Returns the next chunk, or `None` at the end of what has been written so far.
    ///
    /// Cancel safe: no output is lost if the returned future is dropped.
    ///
    /// # Errors
    ///
    /// Fails if the log can't be read.
    pub async fn next(&mut self) -> io::Result<Option<LogChunk>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            match self.read().await? {
                Progress::Read(chunks) => self.ready.extend(chunks),
                Progress::End => return Ok(None),
            }
        }
    }

    /// Returns the next chunk, and waits for it if necessary. Returns `None` when the process has
    /// ended and all its output has been read.
    ///
    /// Cancel safe: no output is lost if the returned future is dropped.
    ///
    /// # Errors
    ///
    /// Fails if the log can't be read or watched, or if the supervisor is shut down before the end
    /// of the output.
    pub async fn follow(&mut self) -> io::Result<Option<LogChunk>> {
        loop {
            if let Some(chunk) = self.next().await? {
                return Ok(Some(chunk));
            }
            if self.complete {
                return Ok(None);
            }
            let (names, watched) = self.watch()?;
            self.watched.clone_from(&watched);
            let changed = match watched.iter().map(|watched| watched.changed()).collect::<Vec<_>>()
            {
                none if none.is_empty() => Either::Left(pending()),
                some => Either::Right(select_all(some)),
            };
            // More output, or other files, may have come between the last read and this line.
            if let Some(chunk) = self.next().await? {
                return Ok(Some(chunk));
            }
            if self.awaited() != names {
                continue;
            }
            tokio::select! {
                _ = changed => {}
                // The output is in the log before the exit is reported, so one more read returns
                // all of it.
                _ = self.process.ended() => self.complete = true,
                () = self.core.tasks.stop.cancelled() => {
                    return Err(io::Error::other(Error::Closed));
                }
            }
        }
    }

    /// Searches for the place where this reader begins, if its options say so by a number of lines.
    /// [`next`](Self::next) does it otherwise. Cancel safe.
    ///
    /// # Errors
    ///
    /// Fails if the log can't be read.
    pub async fn locate(&mut self) -> io::Result<()> {
        if let State::Idle(files) = &mut self.state {
            let mut files = std::mem::take(files);
            self.state = State::Reading(self.core.tasks.reactor.spawn_blocking(move || {
                let located = files.iter_mut().try_for_each(|(_, files)| files.locate());
                (files, located.map(|()| Progress::Read(Vec::new())))
            }));
        }
        if let Progress::Read(chunks) = self.read().await? {
            self.ready.extend(chunks);
        }
        Ok(())
    }

    /// Returns the position after the last chunk that was returned, for
    /// [`Container::logs_after`](crate::Container::logs_after). `None` while more chunks of the same
    /// block are to be returned.
    #[must_use]
    pub fn position(&self) -> Option<LogPosition> {
        let State::Idle(files) = &self.state else { return None };
        if !self.ready.is_empty() {
            return None;
        }
        let positions = files.iter().map(|(log, files)| files.position(*log));
        positions.collect::<io::Result<_>>().ok().map(LogPosition)
    }

    /// Returns whether the chunks have times. Those of every driver do, except `file`, which stores
    /// the bytes alone.
    #[must_use]
    pub fn has_times(&self) -> bool {
        self.process.log.readable().is_none_or(|spec| spec.driver != LogDriver::File)
    }

    /// Returns a stream of the chunks that [`follow`](Self::follow) returns. It ends after an
    /// error.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<LogChunk>> + Send {
        futures::stream::unfold(Some(self), async |reader| {
            let mut reader = reader?;
            match reader.follow().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Returns the identities of the files and directories whose change means that there may be
    /// more to read.
    fn awaited(&self) -> Vec<Identity> {
        let State::Idle(files) = &self.state else { return Vec::new() };
        files.iter().flat_map(|(_, files)| files.awaited()).map(|(id, _)| id).collect()
    }

    /// Watches all files that are held, and for a log whose next file does not exist yet, its
    /// directory.
    fn watch(&self) -> io::Result<(Vec<Identity>, Vec<Arc<Watched>>)> {
        let State::Idle(files) = &self.state else { return Ok(Default::default()) };
        let mut all = (Vec::new(), Vec::new());
        for (id, open) in files.iter().flat_map(|(_, files)| files.awaited()) {
            let flags = if id == LogFiles::DIRECTORY { OF_DIRECTORY } else { OF_FILE };
            all.0.push(id);
            // The watch uses the descriptor, because the name may be gone or belong to another file
            // by now.
            let path = format!("/proc/self/fd/{}", open.as_raw_fd());
            all.1.push(self.core.files.watch(path.as_ref(), flags, &self.core.tasks)?);
        }
        Ok(all)
    }

    /// Performs one reading step on a blocking thread.
    async fn read(&mut self) -> io::Result<Progress> {
        if let State::Idle(files) = &mut self.state {
            let files = std::mem::take(files);
            self.state =
                State::Reading(self.core.tasks.reactor.spawn_blocking(move || read(files)));
        }
        let State::Reading(thread) = &mut self.state else { return Ok(Progress::End) };
        let (files, progress) =
            thread.await.unwrap_or_else(|error| (Files::new(), Err(io::Error::other(error))));
        self.state = State::Idle(files);
        progress
    }
}

/// Performs one reading step in the first log that has something to read. That log is then the last
/// in turn, so that none has to wait for the other.
fn read(mut files: Files) -> (Files, io::Result<Progress>) {
    for index in 0..files.len() {
        match files[index].1.read() {
            Ok(Progress::End) => {}
            progress => {
                files.rotate_left(index + 1);
                return (files, progress);
            }
        }
    }
    (files, Ok(Progress::End))
}

fn failed(process: &Process) -> impl FnOnce(io::Error) -> Error + use<'_> {
    move |error| match process.is_not_found() {
        true => Error::NotFound(process.container.clone()),
        false => Error::io(format!("open the output of container {}", process.container))(error),
    }
}

/// Returns the name of a log in the directory of the process, or `None` if the log is a file of the
/// caller.
fn own_name(spec: &LogSpec) -> Option<&str> {
    spec.file().filter(|file| file.is_relative()).and_then(Path::to_str)
}

fn open_files(
    core: &Core,
    process: &Process,
    spec: &LogSpec,
    options: &LogOptions,
    position: Option<&LogPosition>,
) -> io::Result<Files> {
    let format = Format::of(spec.driver);
    let stdout = spec.file().map(|path| (path, format));
    let stderr = spec.stderr.as_deref().map(|path| (path, Format::Raw(cri::Stream::Stderr)));
    let opened = stdout.into_iter().chain(stderr).enumerate().map(|(log, (path, format))| {
        let (directory, name) = locate(core, process, path)?;
        let rotates = spec.bound().is_some();
        let set_aside = match format {
            // Nobody rotates this log. Files with similar names are not part of it.
            Format::Raw(_) if !rotates => 0,
            _ => spec.files().saturating_sub(1),
        };
        let place = Place { directory, name, format, set_aside, rotates };
        let position = position.and_then(|it| it.0.iter().find(|position| position.log == log));
        let opened = match position {
            Some(position) => LogFiles::open_after(place, options, position),
            None => LogFiles::open(place, options),
        };
        opened
            .map(|files| (log, files))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    });
    opened.collect()
}

/// Returns the directory of a log, and the name of the log in it.
fn locate(core: &Core, process: &Process, path: &Path) -> io::Result<(Directory, String)> {
    let no_file = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(no_file)?;
    let directory = match path.parent() {
        Some(parent) if path.is_absolute() => Directory::open(parent)?,
        _ => process.dir(&core.root)?.directory().open_dir(".")?,
    };
    Ok((directory, name.to_owned()))
}

/// Returns the error for a log that can't be read, which says where the output goes instead.
fn not_readable(process: &Process) -> Error {
    let id = &process.container;
    let place = |spec: &LogSpec| {
        let name = spec.driver.name();
        match spec.driver {
            LogDriver::Journald => {
                format!("its log driver is {name}; see `journalctl CONTAINER_ID={id}`")
            }
            LogDriver::Fifo => {
                let path = spec.path.as_deref().unwrap_or(Path::new("its FIFO"));
                format!(
                    "its log driver is {name}; its output goes to the reader of {}",
                    path.display()
                )
            }
            _ => format!("its log driver is {name}, which keeps nothing"),
        }
    };
    let places: Vec<String> = process.log.specs().iter().map(place).collect();
    Error::NoLog { id: id.clone(), reason: places.join(", and ") }
}
