//! Exec processes: further processes of a running container.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::cri::Stream;
use holdfast_state::{ExitRecord, ExitStatus, ProcessId};
use tokio::time::timeout;

use crate::container::{Container, begun, ended, info_of};
use crate::error::Error;
use crate::input::{self, InputWriter};
use crate::log::files::LogPosition;
use crate::log::output::{LogLines, Output, OutputReader};
use crate::log::reader::{LogOptions, LogReader};
use crate::model::info::ExecInfo;
use crate::model::lifecycle::{Activity, State};
use crate::model::options::{ExecOptions, TerminalSize};
use crate::model::process::Process;
use crate::operate::ProcessEntry;
use crate::ops::{layout, start};
use crate::os::descendants;
use crate::os::tasks::blocking;
use crate::shim::control;
use crate::watch::remove::{self, Removal};

/// The number of execs per container that keep status and output after their end. Of more, those that
/// ended first are removed with the next exec.
const MOST_ENDED: usize = 100;

impl Container {
    /// Runs a further process in the container. If the caller drops the future, the start continues
    /// in the background.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the container does not run, [`Error::ProcessExists`] if the id is
    /// in use, [`Error::NotFifo`] if a path of the stdio is not a FIFO, [`Error::Limit`] if this
    /// process has too few descriptors left, [`Error::StartTimeout`], [`Error::NotStarted`],
    /// [`Error::Runtime`] or [`Error::Shim`] if the start fails, [`Error::Io`] if a file cannot be
    /// written, and [`Error::Closed`] after a shutdown.
    pub async fn exec(&self, options: ExecOptions) -> Result<ExecProcess, Error> {
        self.exec_attached(options).await.map(|(process, _)| process)
    }

    /// Does what [`exec`](Self::exec) does, and also returns a reader of the output that misses
    /// nothing, however soon the process exits. If the caller drops the future, the start continues
    /// in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`exec`](Self::exec).
    pub async fn exec_attached(
        &self,
        options: ExecOptions,
    ) -> Result<(ExecProcess, LogReader), Error> {
        let this = self.clone();
        self.finish(async move {
            if !matches!(this.state.init().state(), State::Live { activity: Activity::Running, .. })
            {
                return Err(this.wrong_state("exec", "running"));
            }
            this.core.moves.prepare();
            this.forget_the_oldest().await;
            let (process, begun, log) = {
                let this = this.clone();
                let begun = tokio::task::spawn_blocking(move || {
                    let job = layout::exec(&this.core, &this.state, &options)?;
                    this.state.execs().insert(job.process.id.clone(), job.process.clone());
                    match LogReader::attached(&this.core, &job.process, &LogOptions::new()) {
                        Ok(log) => {
                            let begun = start::begin(&this.core, &this.state, &job);
                            Ok((job.process, begun, log))
                        }
                        Err(error) => {
                            // No task has been started that would clean this up.
                            let root = &this.core.root;
                            let _ = root
                                .container(this.id())
                                .and_then(|dir| root.remove_process(&dir, &job.process.id));
                            this.state.execs().remove(&job.process.id);
                            Err(error)
                        }
                    }
                })
                .await;
                Error::joined(begun)?
            };
            start::launch(&this.core, begun).await?;
            Ok((ExecProcess { container: this, process }, log))
        })
        .await
    }

    /// Removes the execs that ended first, if there are too many: nobody has asked for their deletion.
    async fn forget_the_oldest(&self) {
        let mut ended: Vec<_> = self.state.execs().values().cloned().collect();
        ended.retain(|exec| exec.is_stopped() && !exec.auto_remove);
        ended.sort_by_cached_key(|exec| match exec.state() {
            State::Stopped(record) => Some(record.time),
            _ => None,
        });
        let too_many = ended.len().saturating_sub(MOST_ENDED);
        for exec in &ended[..too_many] {
            if let Err(error) =
                remove::forget(&self.core, &self.state, exec, Removal::OfItself).await
            {
                tracing::warn!(container = %self.id(), process = %exec.id, %error, "an old exec is not removed");
            }
        }
    }

    /// Returns an exec process by its id.
    #[must_use]
    pub fn process(&self, id: &ProcessId) -> Option<ExecProcess> {
        let process = self.state.execs().get(id).cloned()?;
        Some(ExecProcess { container: self.clone(), process })
    }
}

/// A handle of an exec process. Dropping it does not affect the process.
#[derive(Debug, Clone)]
pub struct ExecProcess {
    container: Container,
    process: Arc<Process>,
}

impl ExecProcess {
    /// Returns the id of the process, which is unique within its container.
    #[must_use]
    pub fn id(&self) -> &ProcessId {
        &self.process.id
    }

    /// Returns the pid in the host's pid namespace; `None` once the process has exited.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.process.pid()
    }

    /// Waits until the process exits, and returns its exit status. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the start failed; [`Error::Closed`] if the supervisor is shut down
    /// first.
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        self.exit().await.map(|record| record.status)
    }

    /// Returns how it ended, or `None` while it has not.
    #[must_use]
    pub fn try_wait(&self) -> Option<ExitRecord> {
        self.info().exit
    }

    /// Returns a snapshot of its state.
    #[must_use]
    pub fn info(&self) -> ExecInfo {
        info_of(&self.process)
    }

    /// Waits for its end, and returns all that it has written and how it ended. It holds the output in
    /// memory, as much as the log keeps. Cancel safe.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::output`].
    pub async fn output(&self) -> Result<Output, Error> {
        Output::of(self.logs()?, self.exit()).await
    }

    /// Waits for its end, and returns the exit status with the evidence for it. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] after a shutdown of the supervisor.
    pub async fn exit(&self) -> Result<ExitRecord, Error> {
        ended(&self.container.core, &self.process).await
    }

    /// Waits until its start has succeeded or failed; see [`Container::begun`]. Cancel safe.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::exec`].
    pub async fn begun(&self) -> Result<(), Error> {
        begun(&self.container.core, &self.process).await
    }

    /// Ends the wait of the automatic deletion; see [`ExecOptions::hold`](crate::ExecOptions::hold).
    pub fn release(&self) {
        self.process.released.cancel();
    }

    /// Sends a signal, given by its number, to the process.
    ///
    /// # Errors
    ///
    /// [`Error::WrongExecState`] if the process has exited, and [`Error::Io`] if the kernel refuses the
    /// signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let sent = self.process.signal(signal);
        sent.unwrap_or_else(|| Err(self.wrong_state("a signal", "running")))
    }

    fn wrong_state(&self, operation: &'static str, needed: &'static str) -> Error {
        if self.process.is_gone() {
            return Error::NotFound(self.container.id().clone());
        }
        Error::WrongExecState {
            id: self.container.id().clone(),
            process: self.process.id.clone(),
            status: self.process.status().as_str(),
            operation,
            needed,
        }
    }

    /// Sends SIGKILL to the process and to its descendants: its children, their children, and so on.
    /// A process whose parent has ended is no descendant; it ends with the container. If the container
    /// is paused, they end when it is resumed. If the caller drops the future, this continues in the
    /// background.
    ///
    /// # Errors
    ///
    /// The errors of [`signal`](Self::signal).
    pub async fn kill(&self) -> Result<(), Error> {
        let Some(handle) = self.process.handle().filter(|_| !self.process.is_stopped()) else {
            return self.signal(nix::libc::SIGKILL);
        };
        let attempt = format!("kill process {} and its descendants", handle.pid);
        match blocking(move || descendants::kill(handle.pid, &handle.pidfd)).await {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
            killed => killed.map_err(Error::io(attempt)),
        }
    }

    /// Stops the process: sends a signal, by number, and [kills](Self::kill) it with its descendants
    /// if it has not ended after the grace period. Returns how it ended, also if it had ended before.
    /// If the caller drops the future, the stop continues in the background.
    ///
    /// # Errors
    ///
    /// [`Error::SurvivesKill`] if the process does not end after SIGKILL, [`Error::Io`] if the kernel
    /// refuses the signal, and [`Error::Closed`] after a shutdown.
    pub async fn stop(&self, signal: i32, grace: Duration) -> Result<ExitRecord, Error> {
        let this = self.clone();
        self.container
            .finish(async move {
                // `None` if it has ended, which is what is wanted.
                this.process.signal(signal).unwrap_or(Ok(()))?;
                if timeout(grace, this.process.ended()).await.is_err() {
                    match this.kill().await {
                        Ok(()) | Err(Error::WrongExecState { .. }) => {}
                        Err(error) => return Err(error),
                    }
                    remove::vanished(&this.process).await?;
                }
                this.exit().await
            })
            .await
    }

    /// Returns the process and its descendants; see [`kill`](Self::kill). Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::WrongExecState`] if the process has exited.
    pub async fn processes(&self) -> Result<Vec<ProcessEntry>, Error> {
        let pid = self.pid().ok_or_else(|| self.wrong_state("top", "running"))?;
        let found = blocking(move || {
            Ok(descendants::of(pid).into_iter().filter_map(ProcessEntry::of).collect())
        });
        found.await.map_err(Error::io(format!("list the descendants of process {pid}")))
    }

    /// Opens the standard input, if the process was created with
    /// [`Stdin::Pipe`](crate::Stdin::Pipe); see [`Container::stdin`].
    ///
    /// # Errors
    ///
    /// The errors of [`Container::stdin`].
    pub fn stdin(&self) -> Result<InputWriter, Error> {
        InputWriter::open(&self.container.core, &self.process)
    }

    /// Returns the path of the FIFO of the standard input, if the process was created with
    /// [`Stdin::Pipe`](crate::Stdin::Pipe).
    #[must_use]
    pub fn stdin_path(&self) -> Option<PathBuf> {
        input::path(&self.container.core, &self.process)
    }

    /// Closes the standard input: the process reads end of file once all writers have closed it
    /// too.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::close_stdin`].
    pub fn close_stdin(&self) -> Result<(), Error> {
        control::close(&self.container.core.root, &self.process)
    }

    /// Changes the size of the terminal.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::resize`].
    pub fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        control::resize(&self.container.core.root, &self.process, size)
    }

    /// Returns an eventfd that becomes readable once the process has exited; see
    /// [`Container::exit_fd`].
    ///
    /// # Errors
    ///
    /// The errors of [`Container::exit_fd`].
    pub fn exit_fd(&self) -> Result<OwnedFd, Error> {
        input::exit_fd(&self.container.core, &self.process)
    }

    /// Returns a reader of the output, from its beginning.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::logs`].
    pub fn logs(&self) -> Result<LogReader, Error> {
        self.logs_with(LogOptions::new())
    }

    /// Returns a reader of a part of the output.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::logs_with`].
    pub fn logs_with(&self, options: LogOptions) -> Result<LogReader, Error> {
        LogReader::open(&self.container.core, &self.process, &options)
    }

    /// Returns a reader of the output after a position; see [`Container::logs_after`].
    ///
    /// # Errors
    ///
    /// The errors of [`Container::logs_after`].
    pub fn logs_after(
        &self,
        position: &LogPosition,
        options: LogOptions,
    ) -> Result<LogReader, Error> {
        LogReader::open_after(&self.container.core, &self.process, &options, position)
    }

    /// Returns a reader of the standard output, from its beginning. It reports end of file when the
    /// process has exited and all its output was read.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::logs`].
    pub fn stdout(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, Stream::Stdout))
    }

    /// Returns a reader of the standard error; see [`stdout`](Self::stdout).
    ///
    /// # Errors
    ///
    /// The errors of [`Container::logs`].
    pub fn stderr(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, Stream::Stderr))
    }

    /// Returns a stream of the output, from its beginning, line by line and as it is written. Each
    /// line has its stream and, where the log has it, its time.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::logs`].
    pub fn lines(&self) -> Result<LogLines, Error> {
        Ok(LogLines::new(self.logs()?))
    }

    /// Makes the shim close the log files and open them again by name; see
    /// [`Container::reopen_logs`].
    ///
    /// # Errors
    ///
    /// The errors of [`Container::reopen_logs`].
    pub fn reopen_logs(&self) -> Result<(), Error> {
        if self.process.is_stopped() {
            return Err(self.wrong_state("reopening its logs", "running"));
        }
        control::reopen_logs(&self.container.core.root, &self.process)
    }

    /// Returns whether the process has a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.process.terminal
    }

    /// Removes the record and the output of a process that has exited. If the caller drops the future,
    /// the removal continues in the background.
    ///
    /// # Errors
    ///
    /// [`Error::WrongExecState`] if the process has not exited, and [`Error::Io`] if its directory
    /// cannot be removed.
    pub async fn delete(&self) -> Result<(), Error> {
        if !self.process.is_stopped() {
            return Err(self.wrong_state("delete", "stopped"));
        }
        let this = self.clone();
        self.container
            .finish(async move {
                let Self { container: Container { core, state }, process } = &this;
                // A process that the exec has left behind may have its output open for ever.
                if let Err(error) = control::end_output(&core.root, process) {
                    tracing::debug!(container = %state.id, process = %process.id, %error, "its shim has ended");
                }
                let failed = format!("remove process {} of container {}", process.id, state.id);
                let removed = remove::forget(core, state, process, Removal::Asked).await;
                removed.map_err(Error::io(failed))
            })
            .await
    }
}
