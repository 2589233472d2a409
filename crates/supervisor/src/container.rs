//! The public handle of a container.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::cri::Stream;
use holdfast_state::{ContainerId, ExitRecord, ExitStatus, PastRun};

use crate::core::Core;
use crate::error::Error;
use crate::input::{self, InputWriter};
use crate::log::files::LogPosition;
use crate::log::output::{LogLines, Output, OutputReader};
use crate::log::reader::{LogOptions, LogReader};
use crate::model::container::ContainerState;
use crate::model::info::{ContainerInfo, ExecInfo};
use crate::model::lifecycle::{Activity, Change, Input, State};
use crate::model::options::TerminalSize;
use crate::model::process::{Moment, Process};
use crate::ops::again;
use crate::os::tasks::blocking;
use crate::shim::control;
use crate::watch::change;
use crate::watch::remove::{self, Force, Removal};

/// A handle of a container. Its clones refer to the same container. Dropping a handle does not
/// affect the container.
#[derive(Debug, Clone)]
pub struct Container {
    pub(crate) core: Arc<Core>,
    pub(crate) state: Arc<ContainerState>,
}

impl Container {
    pub(crate) fn new(core: Arc<Core>, state: Arc<ContainerState>) -> Self {
        Self { core, state }
    }

    /// Returns the id of the container.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.state.id
    }

    /// Returns the current state of the container.
    #[must_use]
    pub fn info(&self) -> ContainerInfo {
        let init = self.state.init();
        let Moment { status, pid, exit } = Moment::of(&init);
        ContainerInfo {
            id: self.state.id.clone(),
            status,
            pid,
            exit_status: exit.as_ref().map(|record| record.status.as_number()),
            exit,
            created: init.created.clone(),
            started: init.started(),
            oom_killed: init.is_oom_killed(),
            run: init.run,
            incarnation: Some(init.incarnation),
            args: init.args.clone(),
            labels: init.labels(),
            stop_signal: init.stop_signal,
            stop_grace_ms: init
                .stop_grace
                .map(|grace| grace.as_millis().try_into().unwrap_or(u64::MAX)),
            bundle: init.bundle.clone(),
            shim_group: init.shim_group.clone(),
            restored: self.state.restored,
            runtime: self.state.runtime.program().to_owned(),
            shim_pid: init.shim_pid(),
            log_paths: log_paths(&self.core, &init),
            log: init.log.spelled_out(),
            execs: self.state.execs().values().map(|exec| info_of(exec)).collect(),
        }
    }

    /// Starts a container that is created or stopped. If the caller drops the future, the start
    /// continues in the background.
    ///
    /// A stopped container begins its next run, with the same configuration, labels and log. This
    /// handle and its clones then act on that run. Processes that the last run has left behind are
    /// killed first. If the start fails, the container is stopped again, with the exit of its last
    /// run. [`runs`](Self::runs) returns the earlier runs.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the container is neither created nor stopped, or is about to be
    /// deleted automatically; [`Error::NotFound`] if it was deleted; [`Error::Runtime`] or
    /// [`Error::RuntimeTimeout`] if the runtime fails or exceeds the time limit; [`Error::Io`] if
    /// the record cannot be read or written; and [`Error::Closed`] after a shutdown. For a stopped
    /// container also [`Error::StartTimeout`], [`Error::NotStarted`], [`Error::Shim`],
    /// [`Error::NotFifo`], [`Error::Limit`], and [`Error::InvalidOption`] if it was made by
    /// containerd's 2016 shim.
    pub async fn start(&self) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move { this.start_run().await }).await
    }

    /// Does what [`start`](Self::start) does, and also returns a reader of the output of this run that
    /// misses nothing, however soon the container exits and is removed. If the caller drops the future,
    /// the start continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`start`](Self::start), and [`Error::Io`] if the log of the earlier runs cannot be
    /// read.
    pub async fn start_attached(&self) -> Result<LogReader, Error> {
        let this = self.clone();
        self.finish(async move {
            let (core, state) = (this.core.clone(), this.state.clone());
            let opened = tokio::task::spawn_blocking(move || {
                state.with_run(|init| LogReader::attached(&core, init, &LogOptions::new().tail(0)))
            });
            let mut log = Error::joined(opened.await)?;
            // Now, as what is behind this place is of this run.
            let located = log.locate().await;
            located.map_err(Error::io(format!("read the log of container {}", this.id())))?;
            this.start_run().await?;
            Ok(log.of_process(&this.state.init()))
        })
        .await
    }

    async fn start_run(&self) -> Result<(), Error> {
        match self.state.init().state() {
            State::Stopped(_) => again::start_again(&self.core, &self.state).await,
            _ => self.start_now().await,
        }
    }

    /// Stops the container as [`stop`](Self::stop) does, if it has not stopped yet, and starts it
    /// again. If the caller drops the future, this continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`stop`](Self::stop) and [`start`](Self::start), and [`Error::WrongState`] if the
    /// container is deleted automatically after its exit; it is then left as it is.
    pub async fn restart(&self, signal: i32, grace: Duration) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move {
            if this.state.init().auto_remove {
                return Err(this.wrong_state("restart", "kept after its exit"));
            }
            remove::stop(&this.core, &this.state, signal, grace).await?;
            again::start_again(&this.core, &this.state).await
        })
        .await
    }

    /// Returns the earlier runs of the container, the oldest first, with those whose start failed.
    /// At most the last 100 are kept. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the container was deleted, [`Error::Io`] if the list cannot be read.
    pub async fn runs(&self) -> Result<Vec<PastRun>, Error> {
        let (root, state) = (self.core.root.clone(), self.state.clone());
        let read = move || state.with_run(|init| init.dir(&root)?.past_runs());
        let read = blocking(read).await;
        read.map_err(|error| self.not_done("read the runs", error))
    }

    /// Returns the error of a failed operation on the files of the container.
    fn not_done(&self, attempt: &str, error: std::io::Error) -> Error {
        match self.state.init().is_gone() {
            true => Error::NotFound(self.id().clone()),
            false => Error::io(format!("{attempt} of container {}", self.id()))(error),
        }
    }

    /// Runs `work` to completion even if the caller drops the future.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.core.tasks.finish(work).await
    }

    async fn start_now(&self) -> Result<(), Error> {
        let _operation = self.state.operation.lock().await;
        let init = self.state.init();
        if !matches!(init.state(), State::Live { activity: Activity::Created, .. }) {
            return Err(self.wrong_state("start", "created or stopped"));
        }
        let record =
            init.dir(&self.core.root).and_then(|dir| dir.load().map_err(std::io::Error::other));
        let record =
            record.map_err(Error::io(format!("read the record of container {}", self.id())))?;
        init.apply(&self.core.events, Input::Begin(Change::Start)).await;
        let limit =
            if init.start_timeout.is_zero() { self.core.start_timeout } else { init.start_timeout };
        let started = self.state.runtime.start(self.id(), &record, limit).await;
        change::settle(&self.core, &self.state, Change::Start, &started).await;
        started
    }

    /// Waits until the init process exits, and returns its exit status. Returns the status also
    /// after the container was deleted. If a run fails to start meanwhile, this returns the exit
    /// status of the last run. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the start failed, so that there never was a process;
    /// [`Error::Closed`] if the supervisor is shut down first.
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        self.exit().await.map(|record| record.status)
    }

    /// Does what [`wait`](Self::wait) does, and also returns the time and the evidence. Cancel
    /// safe.
    ///
    /// # Errors
    ///
    /// The errors of [`wait`](Self::wait).
    pub async fn exit(&self) -> Result<ExitRecord, Error> {
        loop {
            let init = self.state.init();
            match ended(&self.core, &init).await {
                // This run was not begun, so the container is again what it was.
                Err(Error::NotFound(_)) if !Arc::ptr_eq(&init, &self.state.init()) => {}
                ended => return ended,
            }
        }
    }

    /// Does what [`exit`](Self::exit) does, for this run of the container, although a later one may
    /// have begun. Cancel safe.
    ///
    /// # Errors
    ///
    /// The errors of [`wait`](Self::wait), and [`Error::NotFound`] if the run failed to start or is
    /// not known any more; [`Error::Io`] if the list of runs cannot be read.
    pub async fn exit_of_run(&self, run: u32) -> Result<ExitRecord, Error> {
        loop {
            let init = self.state.init();
            if init.run > run {
                break;
            }
            match ended(&self.core, &init).await {
                Err(Error::NotFound(_)) if !Arc::ptr_eq(&init, &self.state.init()) => {}
                ended => return ended,
            }
        }
        let found = self.runs().await?.into_iter().find(|past| past.run == run);
        found.and_then(|past| past.exit).ok_or_else(|| Error::NotFound(self.id().clone()))
    }

    /// Waits until the start of the container, which another supervisor may have begun, has
    /// succeeded or failed. Cancel safe.
    ///
    /// # Errors
    ///
    /// The errors of [`Supervisor::run`](crate::Supervisor::run).
    pub async fn begun(&self) -> Result<(), Error> {
        begun(&self.core, &self.state.init()).await
    }

    /// Ends the wait of the automatic deletion; see
    /// [`ContainerOptions::hold`](crate::ContainerOptions::hold).
    pub fn release(&self) {
        self.state.init().released.cancel();
    }

    /// Sends a signal, given by its number, to the init process.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if there is no process that could receive it, [`Error::NotFound`] if
    /// the container was deleted, and [`Error::Io`] if the kernel refuses the signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.state
            .init()
            .signal(signal)
            .unwrap_or_else(|| Err(self.wrong_state("a signal", "created or running")))
    }

    /// Sends SIGKILL to the init process. If the container is frozen, it is also thawed: on cgroup
    /// v1 a frozen process does not die, not even of SIGKILL. If the caller drops the future, this
    /// continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`signal`](Self::signal), and [`Error::Runtime`] or [`Error::RuntimeTimeout`]
    /// if the runtime cannot thaw the container.
    pub async fn kill(&self) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move {
            this.signal(nix::libc::SIGKILL)?;
            let _operation = this.state.operation.lock().await;
            change::thaw(&this.core, &this.state).await
        })
        .await
    }

    /// Opens the standard input of the init process, if the container was created with
    /// [`Stdin::Pipe`](crate::Stdin::Pipe). Several writers may be open at the same time; each
    /// write of up to 4096 bytes (`PIPE_BUF`, pipe(7)) arrives in one piece.
    ///
    /// ```no_run
    /// # async fn example(container: holdfast_supervisor::Container) -> std::io::Result<()> {
    /// use tokio::io::AsyncWriteExt;
    ///
    /// let mut input = container.stdin().map_err(std::io::Error::other)?;
    /// input.write_all(b"all of it").await?;
    /// input.shutdown().await?; // the container reads the end of file
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoInput`] if the container was created without standard input, [`Error::WrongState`]
    /// if its process has exited, [`Error::NotFound`] if it was deleted, [`Error::Io`] if the FIFO
    /// cannot be opened, and with [`Stdin::Once`](crate::Stdin::Once) the errors of
    /// [`close_stdin`](Self::close_stdin).
    pub fn stdin(&self) -> Result<InputWriter, Error> {
        self.state.with_run(|init| InputWriter::open(&self.core, init))
    }

    /// Returns the path of the FIFO of the standard input, if the container was created with
    /// [`Stdin::Pipe`](crate::Stdin::Pipe).
    #[must_use]
    pub fn stdin_path(&self) -> Option<PathBuf> {
        input::path(&self.core, &self.state.init())
    }

    /// Closes the standard input: the process reads end of file once all writers have closed it
    /// too.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the process has exited, [`Error::NoShim`] if it has lost its shim,
    /// [`Error::NotFound`] if the container was deleted, and [`Error::Io`] if the shim's control
    /// FIFO cannot be written.
    pub fn close_stdin(&self) -> Result<(), Error> {
        control::close(&self.core.root, &self.state.init())
    }

    /// Changes the size of the terminal.
    ///
    /// # Errors
    ///
    /// [`Error::NoTerminal`] if the container has no terminal, and the errors of
    /// [`close_stdin`](Self::close_stdin).
    pub fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        self.state.with_run(|init| control::resize(&self.core.root, init, size))
    }

    /// Returns an eventfd that becomes readable once [`wait`](Self::wait) would return at
    /// once. It is meant for event loops other than Tokio's. Reading it makes it unreadable again;
    /// a caller may simply close it. It never becomes readable if the supervisor is shut down
    /// first.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the descriptor cannot be created.
    pub fn exit_fd(&self) -> Result<OwnedFd, Error> {
        input::exit_fd(&self.core, &self.state.init())
    }

    /// Returns a reader of the output, from its beginning.
    ///
    /// # Errors
    ///
    /// [`Error::NoLog`] if the log driver keeps nothing that could be read, [`Error::NotFound`] if
    /// the container was deleted, and [`Error::Io`] if the log cannot be opened.
    pub fn logs(&self) -> Result<LogReader, Error> {
        self.logs_with(LogOptions::new())
    }

    /// Returns a reader of a part of the output.
    ///
    /// ```no_run
    /// # async fn example(container: holdfast_supervisor::Container) -> std::io::Result<()> {
    /// use std::time::{Duration, SystemTime};
    ///
    /// use holdfast_supervisor::LogOptions;
    ///
    /// let recent = SystemTime::now() - Duration::from_secs(600);
    /// let options = LogOptions::new().since(recent).tail(20);
    /// let mut log = container.logs_with(options).map_err(std::io::Error::other)?;
    /// while let Some(chunk) = log.next().await? {
    ///     print!("{}", String::from_utf8_lossy(&chunk.bytes));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`logs`](Self::logs), and [`Error::NoTimes`] if a time is given and the log
    /// has no timestamps.
    pub fn logs_with(&self, options: LogOptions) -> Result<LogReader, Error> {
        self.state.with_run(|init| LogReader::open(&self.core, init, &options))
    }

    /// Returns a reader of the output after a [position](LogReader::position) that an earlier reader
    /// had, maybe that of another supervisor. A notice stands in place of output that was rotated away
    /// since. Of the options, `since` applies.
    ///
    /// # Errors
    ///
    /// The errors of [`logs`](Self::logs).
    pub fn logs_after(
        &self,
        position: &LogPosition,
        options: LogOptions,
    ) -> Result<LogReader, Error> {
        self.state.with_run(|init| LogReader::open_after(&self.core, init, &options, position))
    }

    /// Returns a reader of the standard output, from its beginning. It reports end of file when the
    /// process has exited and all its output was read.
    ///
    /// ```no_run
    /// # async fn example(container: holdfast_supervisor::Container) -> std::io::Result<()> {
    /// use tokio::io::AsyncReadExt;
    ///
    /// let mut output = Vec::new();
    /// container.stdout().map_err(std::io::Error::other)?.read_to_end(&mut output).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`logs`](Self::logs).
    pub fn stdout(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, Stream::Stdout))
    }

    /// Returns a reader of the standard error; see [`stdout`](Self::stdout).
    ///
    /// # Errors
    ///
    /// The errors of [`logs`](Self::logs).
    pub fn stderr(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, Stream::Stderr))
    }

    /// Returns a stream of the output, from its beginning, line by line and as it is written. Each
    /// line has its stream and, where the log has it, its time.
    ///
    /// ```no_run
    /// # async fn example(container: holdfast_supervisor::Container) -> std::io::Result<()> {
    /// use futures::StreamExt;
    ///
    /// let mut lines = container.lines().map_err(std::io::Error::other)?;
    /// while let Some(line) = lines.next().await {
    ///     let line = line?;
    ///     println!("{:?} {}", line.stream, String::from_utf8_lossy(&line.bytes));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`logs`](Self::logs).
    pub fn lines(&self) -> Result<LogLines, Error> {
        Ok(LogLines::new(self.logs()?))
    }

    /// Makes the shim close the log files and open them again by name. Call this after you have
    /// renamed the files to rotate them. Output that was written before this call is in the renamed
    /// files.
    ///
    /// # Errors
    ///
    /// The errors of [`close_stdin`](Self::close_stdin).
    pub fn reopen_logs(&self) -> Result<(), Error> {
        if self.state.init().is_stopped() {
            return Err(self.wrong_state("reopening its logs", "running"));
        }
        self.state.with_run(|init| control::reopen_logs(&self.core.root, init))
    }

    /// Returns whether the init process has a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.state.init().terminal
    }

    /// Deletes a container that has exited or was never started, with all its resources. If the
    /// caller drops the future, the deletion continues in the background.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the container runs, [`Error::NotFound`] if it was deleted before,
    /// [`Error::Runtime`] or [`Error::RuntimeTimeout`] if the runtime cannot delete it,
    /// [`Error::SurvivesKill`] if a process does not die of SIGKILL, and [`Error::Io`] if its
    /// directory cannot be removed.
    pub async fn delete(&self) -> Result<(), Error> {
        self.delete_finishing(Force::No).await
    }

    /// Deletes the container in any state. Its processes are killed first, and a start in progress
    /// is cancelled. If the caller drops the future, the deletion continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`delete`](Self::delete) except [`Error::WrongState`], and
    /// [`Error::StartDoesNotEnd`] if a start in progress does not end.
    pub async fn delete_forced(&self) -> Result<(), Error> {
        self.delete_finishing(Force::Yes).await
    }

    async fn delete_finishing(&self, force: Force) -> Result<(), Error> {
        let this = self.clone();
        self.finish(
            async move { remove::delete(&this.core, &this.state, force, Removal::Asked).await },
        )
        .await
    }

    /// Returns how it ended, or `None` while it has not.
    #[must_use]
    pub fn try_wait(&self) -> Option<ExitRecord> {
        Moment::of(&self.state.init()).exit
    }

    /// Stops the container: sends a signal, by number, to its init process, and SIGKILL if that has not
    /// ended after the grace period. A paused container is resumed first, since it could not act on the
    /// signal. The start of a further run is cancelled. Returns how the container ended, also if it had
    /// ended before. If the caller drops the future, the stop continues in the background.
    ///
    /// The init process of a pid namespace gets only signals for which it has a handler
    /// (pid_namespaces(7)). One that has none for this signal ends after the grace period.
    ///
    /// # Errors
    ///
    /// [`Error::SurvivesKill`] if a process does not end after SIGKILL, [`Error::WrongState`] while the
    /// container is being created, [`Error::StartDoesNotEnd`] if the start of a further run cannot be
    /// cancelled, the errors of the runtime if it cannot be resumed, and [`Error::Closed`] after a
    /// shutdown.
    pub async fn stop(&self, signal: i32, grace: Duration) -> Result<ExitRecord, Error> {
        let this = self.clone();
        self.finish(async move { remove::stop(&this.core, &this.state, signal, grace).await }).await
    }

    /// Waits for its end, and returns all that it has written and how it ended. It holds the output in
    /// memory, as much as the log keeps. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::NoLog`] if the output cannot be read back, [`Error::Io`] if reading fails, and
    /// [`Error::Closed`] after a shutdown.
    pub async fn output(&self) -> Result<Output, Error> {
        Output::of(self.logs()?, self.exit()).await
    }

    /// Returns its labels.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.state.init().labels()
    }

    /// Replaces its labels. They are on disk when this returns. If the caller drops the future, this
    /// continues in the background.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it was deleted, [`Error::Io`] if its record cannot be written.
    pub async fn set_labels(&self, labels: BTreeMap<String, String>) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move {
            // A run that begins meanwhile would take over the old labels.
            let _operation = this.state.operation.lock().await;
            let (root, init) = (this.core.root.clone(), this.state.init());
            let set = blocking(move || init.set_labels(&root, labels)).await;
            set.map_err(|error| this.not_done("write the labels", error))
        })
        .await
    }

    pub(crate) fn wrong_state(&self, operation: &'static str, needed: &'static str) -> Error {
        self.state.wrong_state(operation, needed)
    }
}

/// Returns the files to which the output of a process is written.
fn log_paths(core: &Core, process: &Process) -> Vec<PathBuf> {
    let dir = core.root.path().join(process.container.as_str()).join(process.id.as_str());
    let files = process.log.specs().iter().flat_map(|spec| [spec.file(), spec.stderr.as_deref()]);
    // An absolute path stays as it is.
    files.flatten().map(|file| dir.join(file)).collect()
}

pub(crate) fn info_of(exec: &Process) -> ExecInfo {
    let Moment { status, pid, exit } = Moment::of(exec);
    ExecInfo { id: exec.id.clone(), status, pid, exit, log: exec.log.spelled_out() }
}

pub(crate) async fn begun(core: &Core, process: &Process) -> Result<(), Error> {
    let state = tokio::select! {
        biased;
        state = process.reached(|state| *state != State::Creating) => state,
        () = core.tasks.stop.cancelled() => return Err(Error::Closed),
    };
    match state {
        State::Abandoned => Err(process.failure()),
        _ => Ok(()),
    }
}

pub(crate) async fn ended(core: &Core, process: &Process) -> Result<ExitRecord, Error> {
    tokio::select! {
        biased;
        ended = process.ended() => ended.ok_or_else(|| Error::NotFound(process.container.clone())),
        () = core.tasks.stop.cancelled() => Err(Error::Closed),
    }
}
