//! A container, as the caller holds it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::{ContainerId, ExitRecord, ExitStatus};
use tokio::time::timeout;

use crate::Status;
use crate::identity::Handle;
use crate::info::{ContainerInfo, ExecInfo};
use crate::launch::DELETE_LIMIT;
use crate::lifecycle::{Activity, Change, Input, State};
use crate::options::TerminalSize;
use crate::process::{Origin, Process, status_of};
use crate::stdin::{self, InputWriter};
use crate::supervisor::{ContainerState, Core, Removal};
use crate::{Error, LogLines, LogOptions, LogReader, OutputReader, OutputStream};

/// How long a killed process may take to vanish before it counts as hanging in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long output of a container that removes itself may wait for its reader.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Whether a container that runs is killed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    Yes,
    No,
}

/// A container. Clones are the same container; dropping one does nothing to it.
#[derive(Debug, Clone)]
pub struct Container {
    pub(crate) core: Arc<Core>,
    pub(crate) state: Arc<ContainerState>,
}

impl Container {
    pub(crate) fn new(core: Arc<Core>, state: Arc<ContainerState>) -> Self {
        Self { core, state }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.state.id
    }

    /// As it is now.
    #[must_use]
    pub fn info(&self) -> ContainerInfo {
        let init = &self.state.init;
        let Moment { status, pid, exit } = Moment::of(init);
        ContainerInfo {
            id: self.state.id.clone(),
            status,
            pid,
            exit_status: exit.as_ref().map(|record| record.status.as_number()),
            exit,
            created: init.created.clone(),
            restored: init.origin == Origin::Restored,
            runtime: self.state.runtime.program().to_owned(),
            log: init.log.spelled_out(),
            execs: self
                .state
                .execs()
                .values()
                .map(|exec| {
                    let Moment { status, pid, exit } = Moment::of(exec);
                    let log = exec.log.spelled_out();
                    ExecInfo { id: exec.id.clone(), status, pid, exit, log }
                })
                .collect(),
        }
    }

    /// Starts a created container.
    pub async fn start(&self) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move { this.start_now().await }).await
    }

    /// Runs work to its end even if the caller stops waiting for it.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.core.finish(work).await
    }

    async fn start_now(&self) -> Result<(), Error> {
        let _operation = self.state.operation.lock().await;
        let init = &self.state.init;
        if !matches!(init.state(), State::Live { activity: Activity::Created, .. }) {
            return Err(self.wrong_state("start", "created"));
        }
        let record =
            self.core.process_dir(init).and_then(|dir| dir.load().map_err(std::io::Error::other));
        let record =
            record.map_err(Error::io(format!("read the record of container {}", self.id())))?;
        init.apply(&self.core, Input::Begin(Change::Start)).await;
        let limit =
            if init.start_timeout.is_zero() { self.core.start_timeout } else { init.start_timeout };
        let started = self.state.runtime.start(self.id(), &record, limit).await;
        self.settle(Change::Start, &started).await;
        started
    }

    /// Waits for its first process to end. Cancel safe; also answers after it was deleted.
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        self.exit().await.map(|record| record.status)
    }

    /// As [`wait`](Self::wait), with the evidence.
    pub async fn exit(&self) -> Result<ExitRecord, Error> {
        ended(&self.core, &self.state.init).await
    }

    /// Sends a signal, by number, to its first process.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        signal_process(&self.state.init, signal)
            .unwrap_or_else(|| Err(self.wrong_state("a signal", "created or running")))
    }

    /// Sends SIGKILL and, where the container is frozen, thaws it, since it could not die otherwise.
    pub async fn kill(&self) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move {
            this.signal(nix::libc::SIGKILL)?;
            let _operation = this.state.operation.lock().await;
            this.thaw().await
        })
        .await
    }

    /// Its input, if it was made with [`Stdin::Pipe`](crate::Stdin::Pipe). Several may write; each
    /// write of up to 4096 bytes arrives in one piece (`PIPE_BUF`, pipe(7)).
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
    pub fn stdin(&self) -> Result<InputWriter, Error> {
        InputWriter::open(&self.core, &self.state.init)
    }

    /// Where the FIFO of its input is, if it was made with [`Stdin::Pipe`](crate::Stdin::Pipe).
    #[must_use]
    pub fn stdin_path(&self) -> Option<PathBuf> {
        stdin::path(&self.core, &self.state.init)
    }

    /// Ends its input once all who write to it have closed it.
    pub fn close_stdin(&self) -> Result<(), Error> {
        stdin::close(&self.core, &self.state.init)
    }

    /// Tells its terminal a new size.
    pub fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        stdin::resize(&self.core, &self.state.init, size)
    }

    /// A descriptor that becomes readable once [`wait`](Self::wait) would answer at once, for event
    /// loops that are not Tokio's. Reading it takes that back; a caller may just close it.
    pub fn exit_fd(&self) -> Result<OwnedFd, Error> {
        stdin::exit_fd(&self.core, &self.state.init)
    }

    /// Its output from the beginning.
    pub fn logs(&self) -> Result<LogReader, Error> {
        self.logs_with(LogOptions::new())
    }

    /// A part of its output.
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
    pub fn logs_with(&self, options: LogOptions) -> Result<LogReader, Error> {
        LogReader::open(&self.core, &self.state.init, &options)
    }

    /// Its standard output from the beginning; the end of file comes when it has ended and all is
    /// read.
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
    pub fn stdout(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, OutputStream::Stdout))
    }

    /// Its error output; see [`stdout`](Self::stdout).
    pub fn stderr(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, OutputStream::Stderr))
    }

    /// Its output from the beginning by the line, as it comes, with the streams and the times.
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
    pub fn lines(&self) -> Result<LogLines, Error> {
        Ok(LogLines::new(self.logs()?))
    }

    /// Has its shim open the log files anew, by their names: for who has renamed them to rotate
    /// them. What was written before this stands in the renamed ones.
    pub fn reopen_logs(&self) -> Result<(), Error> {
        if self.state.init.is_stopped() {
            return Err(self.wrong_state("reopening its logs", "running"));
        }
        stdin::reopen_logs(&self.core, &self.state.init)
    }

    /// Whether it has a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.state.init.terminal
    }

    /// Deletes a container that has ended or was never started, and all that is left of it.
    pub async fn delete(&self) -> Result<(), Error> {
        self.delete_finishing(Force::No).await
    }

    /// Deletes it whatever it does: what lives is killed first.
    pub async fn delete_forced(&self) -> Result<(), Error> {
        self.delete_finishing(Force::Yes).await
    }

    async fn delete_finishing(&self, force: Force) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move { this.delete_now(force, Removal::Asked).await }).await
    }

    pub(crate) async fn delete_now(&self, force: Force, removal: Removal) -> Result<(), Error> {
        let _operation = self.state.operation.lock().await;
        let known = self.core.container(self.id());
        if !known.is_some_and(|known| Arc::ptr_eq(&known, &self.state)) {
            return Err(Error::NotFound(self.id().clone()));
        }
        if force == Force::Yes && self.state.init.state() == State::Creating {
            self.cut_start_short().await?;
            // It has cleared away what there was of it; unless it came to its end just before that.
            if self.state.init.state() == State::Abandoned {
                return Ok(());
            }
        }
        match self.state.init.state() {
            State::Stopped(_) | State::Live { activity: Activity::Created, .. } => {}
            State::Creating | State::Abandoned => {
                return Err(self.wrong_state("delete without force", "created or stopped"));
            }
            _ if force == Force::Yes => {}
            _ => return Err(self.wrong_state("delete without force", "stopped")),
        }
        // All are sent the signal before any is waited for, and a frozen one is thawed after it.
        for process in self.state.processes() {
            if let Some(Err(error)) = signal_process(&process, nix::libc::SIGKILL) {
                return Err(error);
            }
        }
        self.thaw().await?;
        for process in self.state.processes() {
            self.vanished(&process).await?;
        }
        self.state.runtime.delete(self.id(), DELETE_LIMIT).await?;
        let drain = match removal {
            Removal::Asked => Duration::from_secs(1),
            Removal::OfItself => DRAIN_LIMIT,
        };
        for process in self.state.processes() {
            self.shim_ended(&process, drain).await;
        }
        self.core
            .forget(&self.state, &self.state.init, removal)
            .await
            .map_err(Error::io(format!("remove the directory of container {}", self.id())))
    }

    /// Waits until a start has come to nothing, or what it started has ended.
    async fn cut_start_short(&self) -> Result<(), Error> {
        // Its shim may have still to begin, and reads this then.
        let _told = match stdin::cancel_start(&self.core, &self.state.init) {
            Ok(told) => Some(told),
            // Its directory is gone by now: it is being cleared away already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(Error::io(format!("end the start of container {}", self.id()))(error));
            }
        };
        self.vanished(&self.state.init).await
    }

    /// Waits until the shim of an ended process is gone. A shim that still waits for a slow reader of a
    /// FIFO is made to stop; the output that it holds for that reader is lost.
    async fn shim_ended(&self, process: &Process, drain: Duration) {
        if timeout(drain, process.unwatched.cancelled()).await.is_ok() {
            return;
        }
        tracing::warn!(container = %self.id(), process = %process.id, "output that waits for a reader is dropped: the container is deleted");
        if let Err(error) = stdin::cancel(&self.core, process) {
            tracing::debug!(container = %self.id(), process = %process.id, %error, "its shim is not told");
        }
        if timeout(KILL_LIMIT, process.unwatched.cancelled()).await.is_err() {
            tracing::warn!(container = %self.id(), process = %process.id, "its shim does not end");
        }
    }

    /// Waits until a process that was killed has ended.
    async fn vanished(&self, process: &Process) -> Result<(), Error> {
        let pid = pid_of(process);
        let (id, after) = (self.id().clone(), KILL_LIMIT);
        match (timeout(KILL_LIMIT, process.ended()).await, pid) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some(pid)) => Err(Error::SurvivesKill { id, pid, after }),
            (Err(_), None) => Err(Error::StartDoesNotEnd { id, after }),
        }
    }

    pub(crate) fn wrong_state(&self, operation: &'static str, needed: &'static str) -> Error {
        if self.state.init.is_gone() {
            return Error::NotFound(self.id().clone());
        }
        let status = self.state.init.status().as_str();
        Error::WrongState { id: self.id().clone(), status, operation, needed }
    }
}

pub(crate) async fn ended(core: &Core, process: &Process) -> Result<ExitRecord, Error> {
    tokio::select! {
        biased;
        ended = process.ended() => ended.ok_or_else(|| Error::NotFound(process.container.clone())),
        () = core.stop.cancelled() => Err(Error::Closed),
    }
}

/// `None` if there is no process that could take it.
pub(crate) fn signal_process(process: &Process, signal: i32) -> Option<Result<(), Error>> {
    // A zombie would take the signal and do nothing with it.
    let handle: Arc<Handle> = process.handle().filter(|_| !process.is_stopped())?;
    match handle.pidfd.send_signal(signal) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => None,
        sent => {
            Some(sent.map_err(Error::io(format!("send signal {signal} to process {}", handle.pid))))
        }
    }
}

/// `None` from the moment on that the exit is told; its handle goes a little later.
pub(crate) fn pid_of(process: &Process) -> Option<i32> {
    process.handle().filter(|_| !process.is_stopped()).map(|handle| handle.pid)
}

/// What a process is at one moment.
struct Moment {
    status: Status,
    pid: Option<i32>,
    exit: Option<ExitRecord>,
}

impl Moment {
    fn of(process: &Process) -> Self {
        // Before the state: by then the process may have ended, and have no handle any more.
        let pid = process.handle().map(|handle| handle.pid);
        let state = process.state();
        let status = status_of(&state);
        let pid = pid.filter(|_| status != Status::Stopped);
        let exit = if let State::Stopped(record) = state { Some(record) } else { None };
        Self { status, pid, exit }
    }
}
