//! Further processes of a running container.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_state::cri::Stream;
use holdfast_state::{ExitRecord, ExitStatus, ProcessId};

use crate::container::{Container, ended};
use crate::core::Core;
use crate::error::Error;
use crate::input::{self, InputWriter};
use crate::log::output::{LogLines, OutputReader};
use crate::log::reader::{LogOptions, LogReader};
use crate::model::container::ContainerState;
use crate::model::lifecycle::{Activity, State};
use crate::model::options::{ExecOptions, TerminalSize};
use crate::model::process::Process;
use crate::ops::{layout, start};
use crate::shim::control;
use crate::watch::remove::{self, Removal};

/// The number of execs per container that keep status and output after their end. Of more, those that
/// ended first are removed with the next exec.
const MOST_ENDED: usize = 100;

impl Container {
    /// Runs a further process in it.
    pub async fn exec(&self, options: ExecOptions) -> Result<ExecProcess, Error> {
        self.exec_attached(options).await.map(|(process, _)| process)
    }

    /// As [`exec`](Self::exec), with a reader of the output that misses nothing.
    pub async fn exec_attached(
        &self,
        options: ExecOptions,
    ) -> Result<(ExecProcess, LogReader), Error> {
        let this = self.clone();
        self.core
            .tasks
            .finish(async move {
                if !matches!(
                    this.state.init.state(),
                    State::Live { activity: Activity::Running, .. }
                ) {
                    return Err(this.wrong_state("exec", "running"));
                }
                this.core.moves.prepare();
                this.forget_the_oldest().await;
                let (process, begun, log) = {
                    let this = this.clone();
                    let begun = tokio::task::spawn_blocking(move || {
                        let job = layout::exec(&this.core, &this.state, &options)?;
                        this.state.execs().insert(job.process.id.clone(), job.process.clone());
                        match LogReader::attached(&this.core, &job.process) {
                            Ok(log) => {
                                let begun = start::begin(&this.core, &this.state, &job);
                                Ok((job.process, begun, log))
                            }
                            Err(error) => {
                                // Nothing has been started that would clear it away.
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
                Ok((
                    ExecProcess { core: this.core.clone(), container: this.state.clone(), process },
                    log,
                ))
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

    /// A further process by its id.
    #[must_use]
    pub fn process(&self, id: &ProcessId) -> Option<ExecProcess> {
        let process = self.state.execs().get(id).cloned()?;
        Some(ExecProcess { core: self.core.clone(), container: self.state.clone(), process })
    }
}

/// A further process of a container.
#[derive(Debug, Clone)]
pub struct ExecProcess {
    core: Arc<Core>,
    container: Arc<ContainerState>,
    process: Arc<Process>,
}

impl ExecProcess {
    /// Its id within the container.
    #[must_use]
    pub fn id(&self) -> &ProcessId {
        &self.process.id
    }

    /// As the host counts; `None` once it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.process.pid()
    }

    /// Waits for its end. Cancel safe.
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        self.exit().await.map(|record| record.status)
    }

    /// As [`wait`](Self::wait), with the evidence.
    pub async fn exit(&self) -> Result<ExitRecord, Error> {
        ended(&self.core, &self.process).await
    }

    /// Sends it a signal, by number.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.process.signal(signal).unwrap_or_else(|| {
            Err(Error::WrongState {
                id: self.container.id.clone(),
                status: "stopped",
                operation: "a signal to an exec",
                needed: "running",
            })
        })
    }

    /// Its input, if it was made with [`Stdin::Pipe`](crate::Stdin::Pipe); see [`Container::stdin`].
    pub fn stdin(&self) -> Result<InputWriter, Error> {
        InputWriter::open(&self.core, &self.process)
    }

    /// Where the FIFO of its input is, if it was made with [`Stdin::Pipe`](crate::Stdin::Pipe).
    #[must_use]
    pub fn stdin_path(&self) -> Option<PathBuf> {
        input::path(&self.core, &self.process)
    }

    /// Ends its input once all who write to it have closed it.
    pub fn close_stdin(&self) -> Result<(), Error> {
        control::close(&self.core.root, &self.process)
    }

    /// Tells its terminal a new size.
    pub fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        control::resize(&self.core.root, &self.process, size)
    }

    /// As [`Container::exit_fd`].
    pub fn exit_fd(&self) -> Result<OwnedFd, Error> {
        input::exit_fd(&self.core, &self.process)
    }

    /// Its output from the beginning.
    pub fn logs(&self) -> Result<LogReader, Error> {
        self.logs_with(LogOptions::new())
    }

    /// A part of its output.
    pub fn logs_with(&self, options: LogOptions) -> Result<LogReader, Error> {
        LogReader::open(&self.core, &self.process, &options)
    }

    /// Its standard output from the beginning; the end of file comes when it has ended and all is
    /// read.
    pub fn stdout(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, Stream::Stdout))
    }

    /// Its error output; see [`stdout`](Self::stdout).
    pub fn stderr(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, Stream::Stderr))
    }

    /// Its output from the beginning by the line, as it comes, with the streams and the times.
    pub fn lines(&self) -> Result<LogLines, Error> {
        Ok(LogLines::new(self.logs()?))
    }

    /// Has the shim open its log files anew, by their names.
    pub fn reopen_logs(&self) -> Result<(), Error> {
        if self.process.is_stopped() {
            return Err(Error::WrongState {
                id: self.container.id.clone(),
                status: "stopped",
                operation: "reopening the logs of an exec",
                needed: "running",
            });
        }
        control::reopen_logs(&self.core.root, &self.process)
    }

    /// Whether it has a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.process.terminal
    }

    /// Removes its record and its output, once it has ended.
    pub async fn delete(&self) -> Result<(), Error> {
        if !self.process.is_stopped() {
            return Err(Error::WrongState {
                id: self.container.id.clone(),
                status: "running",
                operation: "delete of an exec",
                needed: "stopped",
            });
        }
        let removed =
            remove::forget(&self.core, &self.container, &self.process, Removal::Asked).await;
        removed.map_err(Error::io(format!(
            "remove process {} of container {}",
            self.process.id, self.container.id
        )))
    }
}
