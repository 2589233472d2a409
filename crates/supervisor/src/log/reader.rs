//! The output of a process, read from its log.

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
use crate::log::files::{LogFiles, Progress};
use crate::log::place::{Identity, Place};
use crate::model::process::Process;
use crate::os::file_watch::{OF_DIRECTORY, OF_FILE, Watched};

/// Which part of a log is read. The default: all of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogOptions {
    pub(crate) since: Option<SystemTime>,
    pub(crate) tail: Option<u64>,
}

impl LogOptions {
    /// The default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only what was written at that moment or later, by the system's clock.
    #[must_use]
    pub fn since(mut self, since: SystemTime) -> Self {
        self.since = Some(since);
        self
    }

    /// Of what is there when it is opened, only so many lines at the end; 0 for none of it. Where
    /// standard error has a file of its own, that has as many.
    #[must_use]
    pub fn tail(mut self, lines: u64) -> Self {
        self.tail = Some(lines);
        self
    }
}

/// Reads the output of a process, from its beginning unless something else was asked for. It stays
/// readable after the container was deleted.
#[derive(Debug)]
pub struct LogReader {
    core: Arc<Core>,
    process: Arc<Process>,
    state: State,
    ready: VecDeque<LogChunk>,
    /// The process had ended before the files were last read to their end: there is no more to come.
    complete: bool,
    /// What is watched, so that it stays so from one wait to the next.
    watched: Vec<Arc<Watched>>,
}

/// The files of a log: one with its predecessors, or one for each stream.
type Files = Vec<LogFiles>;

#[derive(Debug)]
enum State {
    Idle(Files),
    /// A thread has them. Kept here, so that who stops waiting for it loses nothing.
    Reading(JoinHandle<(Files, io::Result<Progress>)>),
}

impl LogReader {
    pub(crate) fn open(
        core: &Arc<Core>,
        process: &Arc<Process>,
        options: &LogOptions,
    ) -> Result<Self, Error> {
        let spec = process.log.readable().ok_or_else(|| not_readable(process))?;
        if spec.driver == LogDriver::File && options.since.is_some() {
            return Err(Error::NoTimes { id: process.container.clone() });
        }
        let files = open_files(core, process, spec, options).map_err(failed(process))?;
        Ok(Self::of(core, process, files))
    }

    /// For a process that is about to be started. What can't be read back reads as empty.
    pub(crate) fn attached(core: &Arc<Core>, process: &Arc<Process>) -> Result<Self, Error> {
        let Some(spec) = process.log.readable() else {
            return Ok(Self::of(core, process, Vec::new()));
        };
        if let Some(own) = own_name(spec) {
            // So that this holds the file, should the process soon end and be deleted.
            let dir = process.dir(&core.root).map_err(failed(process))?;
            let flags = OFlag::O_RDONLY | OFlag::O_CREAT;
            dir.directory().open_file(own, flags).map_err(failed(process))?;
        }
        match open_files(core, process, spec, &LogOptions::new()) {
            Ok(files) => Ok(Self::of(core, process, files)),
            Err(error) if own_name(spec).is_none() => {
                // It may be a device. Should it be nothing at all, the shim will say so.
                tracing::debug!(container = %process.container, log = %spec, %error, "not read back");
                Ok(Self::of(core, process, Vec::new()))
            }
            Err(error) => Err(failed(process)(error)),
        }
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

    /// The next piece that is there, or `None` at the end of what has been written so far. Cancel
    /// safe.
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

    /// The next piece, waiting for it if need be; `None` when the process has ended and all that
    /// it wrote was read. An error if the supervisor is shut down before that. Cancel safe.
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
            // Between the last read and this line there may have come more, or other files.
            if let Some(chunk) = self.next().await? {
                return Ok(Some(chunk));
            }
            if self.awaited() != names {
                continue;
            }
            tokio::select! {
                _ = changed => {}
                // The output is in the log before the exit is told: one more reading gets it all.
                _ = self.process.ended() => self.complete = true,
                () = self.core.tasks.stop.cancelled() => {
                    return Err(io::Error::other(Error::Closed));
                }
            }
        }
    }

    /// Whether what it gives has times: all logs have them but those of the very bytes.
    #[must_use]
    pub fn has_times(&self) -> bool {
        self.process.log.readable().is_none_or(|spec| spec.driver != LogDriver::File)
    }

    /// What [`follow`](Self::follow) gives, as a stream.
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

    /// The names of what would tell that there may be more.
    fn awaited(&self) -> Vec<Identity> {
        let State::Idle(files) = &self.state else { return Vec::new() };
        files.iter().flat_map(LogFiles::awaited).map(|(id, _)| id).collect()
    }

    /// Watches all that is held, and where it is missing the directory in which it is to appear.
    fn watch(&self) -> io::Result<(Vec<Identity>, Vec<Arc<Watched>>)> {
        let State::Idle(files) = &self.state else { return Ok(Default::default()) };
        let mut all = (Vec::new(), Vec::new());
        for (id, open) in files.iter().flat_map(LogFiles::awaited) {
            let flags = if id == LogFiles::DIRECTORY { OF_DIRECTORY } else { OF_FILE };
            all.0.push(id);
            // Through the descriptor: the name may be another's by now, or gone.
            let path = format!("/proc/self/fd/{}", open.as_raw_fd());
            all.1.push(self.core.files.watch(path.as_ref(), flags, &self.core.tasks)?);
        }
        Ok(all)
    }

    /// Reads on by one step.
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

/// Reads on by one step in the first log that has something, which then is the last in turn.
fn read(mut files: Files) -> (Files, io::Result<Progress>) {
    for index in 0..files.len() {
        match files[index].read() {
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
    move |error| match process.is_gone() {
        true => Error::NotFound(process.container.clone()),
        false => Error::io(format!("open the output of container {}", process.container))(error),
    }
}

/// The name of a log of ours; `None` if it is the caller's.
fn own_name(spec: &LogSpec) -> Option<&str> {
    spec.file().filter(|file| file.is_relative()).and_then(Path::to_str)
}

fn open_files(
    core: &Core,
    process: &Process,
    spec: &LogSpec,
    options: &LogOptions,
) -> io::Result<Files> {
    let format = Format::of(spec.driver);
    let stdout = spec.file().map(|path| (path, format));
    let stderr = spec.stderr.as_deref().map(|path| (path, Format::Raw(cri::Stream::Stderr)));
    let opened = stdout.into_iter().chain(stderr).map(|(path, format)| {
        let (directory, name) = locate(core, process, path)?;
        let rotates = spec.bound().is_some();
        let set_aside = match format {
            // Nobody rotates it; what has a similar name is another's.
            Format::Raw(_) if !rotates => 0,
            _ => spec.files().saturating_sub(1),
        };
        LogFiles::open(Place { directory, name, format, set_aside, rotates }, options)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    });
    opened.collect()
}

/// The directory of a log, and its name there.
fn locate(core: &Core, process: &Process, path: &Path) -> io::Result<(Directory, String)> {
    let no_file = || io::Error::new(io::ErrorKind::InvalidInput, "names no file");
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(no_file)?;
    let directory = match path.parent() {
        Some(parent) if path.is_absolute() => Directory::open(parent)?,
        _ => process.dir(&core.root)?.directory().open_dir(".")?,
    };
    Ok((directory, name.to_owned()))
}

/// Says where the output goes instead.
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
                format!("its log driver is {name}; whoever reads {} has it", path.display())
            }
            _ => format!("its log driver is {name}, which keeps nothing"),
        }
    };
    let places: Vec<String> = process.log.specs().iter().map(place).collect();
    Error::NoLog { id: id.clone(), reason: places.join(", and ") }
}
