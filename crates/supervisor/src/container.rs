//! A container, as the caller holds it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_state::cri::Stream;
use holdfast_state::{ContainerId, ExitRecord, ExitStatus};

use crate::core::Core;
use crate::error::Error;
use crate::input::{self, InputWriter};
use crate::log::output::{LogLines, OutputReader};
use crate::log::reader::{LogOptions, LogReader};
use crate::model::container::ContainerState;
use crate::model::info::{ContainerInfo, ExecInfo};
use crate::model::lifecycle::{Activity, Change, Input, State};
use crate::model::options::TerminalSize;
use crate::model::process::{Moment, Origin, Process};
use crate::shim::control;
use crate::watch::change;
use crate::watch::remove::{self, Force, Removal};

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
        self.core.tasks.finish(work).await
    }

    async fn start_now(&self) -> Result<(), Error> {
        let _operation = self.state.operation.lock().await;
        let init = &self.state.init;
        if !matches!(init.state(), State::Live { activity: Activity::Created, .. }) {
            return Err(self.wrong_state("start", "created"));
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
        self.state
            .init
            .signal(signal)
            .unwrap_or_else(|| Err(self.wrong_state("a signal", "created or running")))
    }

    /// Sends SIGKILL and, where the container is frozen, thaws it, since it could not die otherwise.
    pub async fn kill(&self) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move {
            this.signal(nix::libc::SIGKILL)?;
            let _operation = this.state.operation.lock().await;
            change::thaw(&this.core, &this.state).await
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
        input::path(&self.core, &self.state.init)
    }

    /// Ends its input once all who write to it have closed it.
    pub fn close_stdin(&self) -> Result<(), Error> {
        control::close(&self.core.root, &self.state.init)
    }

    /// Tells its terminal a new size.
    pub fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        control::resize(&self.core.root, &self.state.init, size)
    }

    /// A descriptor that becomes readable once [`wait`](Self::wait) would answer at once, for event
    /// loops that are not Tokio's. Reading it takes that back; a caller may just close it.
    pub fn exit_fd(&self) -> Result<OwnedFd, Error> {
        input::exit_fd(&self.core, &self.state.init)
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
        Ok(OutputReader::new(self.logs()?, Stream::Stdout))
    }

    /// Its error output; see [`stdout`](Self::stdout).
    pub fn stderr(&self) -> Result<OutputReader, Error> {
        Ok(OutputReader::new(self.logs()?, Stream::Stderr))
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
        control::reopen_logs(&self.core.root, &self.state.init)
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
        self.finish(
            async move { remove::delete(&this.core, &this.state, force, Removal::Asked).await },
        )
        .await
    }

    pub(crate) fn wrong_state(&self, operation: &'static str, needed: &'static str) -> Error {
        self.state.wrong_state(operation, needed)
    }
}

pub(crate) async fn ended(core: &Core, process: &Process) -> Result<ExitRecord, Error> {
    tokio::select! {
        biased;
        ended = process.ended() => ended.ok_or_else(|| Error::NotFound(process.container.clone())),
        () = core.tasks.stop.cancelled() => Err(Error::Closed),
    }
}
