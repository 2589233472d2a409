//! A container, as the caller holds it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::{ContainerId, ExitRecord, ExitStatus, ProcessId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::identity::Handle;
use crate::launch::{self, DELETE_LIMIT};
use crate::lifecycle::{Activity, Input, State};
use crate::options::ExecOptions;
use crate::process::{Origin, Process};
use crate::supervisor::{ContainerState, Core, publish_deleted};
use crate::{Error, LogReader, layout};

/// How long a killed process may take to vanish before it counts as hanging in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The state of a container, in the words of the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The runtime is at work.
    Creating,
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Status {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerInfo {
    /// Its id.
    pub id: ContainerId,
    /// Its state.
    pub status: Status,
    /// Its first process, as the host counts; `None` once that has ended.
    pub pid: Option<i32>,
    /// How it ended, as a shell shows it: 0 to 255, 128 + n for a signal, 255 where it is unknown.
    pub exit_status: Option<u8>,
    /// How it ended, exactly, and how that is known.
    pub exit: Option<ExitRecord>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Whether this supervisor found it on disk.
    pub restored: bool,
    /// Its runtime.
    pub runtime: PathBuf,
    /// Its further processes.
    pub execs: Vec<ExecInfo>,
}

/// A further process of a container as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecInfo {
    /// Its id within the container.
    pub id: ProcessId,
    /// Its state.
    pub status: Status,
    /// As the host counts; `None` once it has ended.
    pub pid: Option<i32>,
    /// How it ended, exactly, and how that is known.
    pub exit: Option<ExitRecord>,
}

/// Whether a container that runs is killed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    Yes,
    No,
}

/// A container. Clones are the same container; dropping one does nothing to it.
#[derive(Debug, Clone)]
pub struct Container {
    core: Arc<Core>,
    state: Arc<ContainerState>,
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
        let exit = exit_of(init);
        ContainerInfo {
            id: self.state.id.clone(),
            status: init.status(),
            pid: pid_of(init),
            exit_status: exit.as_ref().map(|record| record.status.as_number()),
            exit,
            created: init.created.clone(),
            restored: init.origin == Origin::Restored,
            runtime: self.state.runtime.program().to_owned(),
            execs: self
                .state
                .execs()
                .values()
                .map(|exec| ExecInfo {
                    id: exec.id.clone(),
                    status: exec.status(),
                    pid: pid_of(exec),
                    exit: exit_of(exec),
                })
                .collect(),
        }
    }

    /// Starts a created container.
    pub async fn start(&self) -> Result<(), Error> {
        let this = self.clone();
        self.core.finish(async move { this.start_now().await }).await
    }

    async fn start_now(&self) -> Result<(), Error> {
        let _operation = self.state.operation.lock().await;
        let init = &self.state.init;
        if !matches!(init.state(), State::Live { activity: Activity::Created, .. }) {
            return Err(self.wrong_state("start", "created"));
        }
        let record = self
            .core
            .process_dir(self.id(), &init.id)
            .and_then(|dir| dir.load().map_err(std::io::Error::other));
        let record =
            record.map_err(Error::io(format!("read the record of container {}", self.id())))?;
        init.apply(&self.core, Input::StartRequested);
        let limit =
            if init.start_timeout.is_zero() { self.core.start_timeout } else { init.start_timeout };
        let started = self.state.runtime.start(self.id(), &record, limit).await;
        let outcome = if started.is_ok() { Input::StartSucceeded } else { Input::StartFailed };
        init.apply(&self.core, outcome);
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
            .finish(async move {
                if !matches!(
                    this.state.init.state(),
                    State::Live { activity: Activity::Running, .. }
                ) {
                    return Err(this.wrong_state("exec", "running"));
                }
                let (process, job, log) = {
                    let this = this.clone();
                    tokio::task::spawn_blocking(move || {
                        let job = layout::exec(&this.core, &this.state, &options)?;
                        this.state.execs().insert(job.process.id.clone(), job.process.clone());
                        let log = LogReader::open(&this.core, &job.process)?;
                        Ok::<_, Error>((job.process.clone(), job, log))
                    })
                    .await
                    .unwrap_or(Err(Error::ShuttingDown))?
                };
                launch::launch(&this.core, job).await?;
                Ok((
                    ExecProcess { core: this.core.clone(), container: this.state.clone(), process },
                    log,
                ))
            })
            .await
    }

    /// A further process by its id.
    #[must_use]
    pub fn process(&self, id: &ProcessId) -> Option<ExecProcess> {
        let process = self.state.execs().get(id).cloned()?;
        Some(ExecProcess { core: self.core.clone(), container: self.state.clone(), process })
    }

    /// Its output from the beginning.
    pub fn logs(&self) -> Result<LogReader, Error> {
        LogReader::open(&self.core, &self.state.init)
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
        self.core.finish(async move { this.delete_now(force).await }).await
    }

    pub(crate) async fn delete_now(&self, force: Force) -> Result<(), Error> {
        let _operation = self.state.operation.lock().await;
        let known = self.core.container(self.id());
        if !known.is_some_and(|known| Arc::ptr_eq(&known, &self.state)) {
            return Err(Error::NotFound(self.id().clone()));
        }
        match self.state.init.state() {
            State::Stopped(_) | State::Live { activity: Activity::Created, .. } => {}
            State::Creating | State::Abandoned => {
                return Err(self.wrong_state("delete", "created, running or stopped"));
            }
            _ if force == Force::Yes => {}
            _ => return Err(self.wrong_state("delete without force", "stopped")),
        }
        // Its init first: with a pid namespace all others go with it.
        for process in self.state.processes() {
            self.kill(&process).await?;
        }
        self.state.runtime.delete(self.id(), DELETE_LIMIT).await?;
        for process in self.state.processes() {
            if timeout(KILL_LIMIT, process.unwatched.cancelled()).await.is_err() {
                tracing::warn!(container = %self.id(), process = %process.id, "its shim does not end");
            }
        }
        publish_deleted(&self.core, &self.state);
        self.core
            .forget(&self.state, &self.state.init)
            .await
            .map_err(Error::io(format!("remove the directory of container {}", self.id())))
    }

    /// Kills a process and waits until it has ended.
    async fn kill(&self, process: &Process) -> Result<(), Error> {
        if process.is_stopped() {
            return Ok(());
        }
        let pid = pid_of(process).unwrap_or_default();
        if let Some(Err(error)) = signal_process(process, nix::libc::SIGKILL) {
            return Err(error);
        }
        match timeout(KILL_LIMIT, process.ended()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::SurvivesKill { id: self.id().clone(), pid, after: KILL_LIMIT }),
        }
    }

    fn wrong_state(&self, operation: &'static str, needed: &'static str) -> Error {
        let status = self.state.init.status().as_str();
        Error::WrongState { id: self.id().clone(), status, operation, needed }
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
        pid_of(&self.process)
    }

    /// Waits for its end. Cancel safe.
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        ended(&self.core, &self.process).await.map(|record| record.status)
    }

    /// Sends it a signal, by number.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        signal_process(&self.process, signal).unwrap_or_else(|| {
            Err(Error::WrongState {
                id: self.container.id.clone(),
                status: "stopped",
                operation: "a signal to an exec",
                needed: "running",
            })
        })
    }

    /// Its output from the beginning.
    pub fn logs(&self) -> Result<LogReader, Error> {
        LogReader::open(&self.core, &self.process)
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
        let removed = self.core.forget(&self.container, &self.process).await;
        removed.map_err(Error::io(format!(
            "remove process {} of container {}",
            self.process.id, self.container.id
        )))
    }
}

async fn ended(core: &Core, process: &Process) -> Result<ExitRecord, Error> {
    tokio::select! {
        biased;
        ended = process.ended() => ended.ok_or_else(|| Error::NotFound(process.container.clone())),
        () = core.stop.cancelled() => Err(Error::ShuttingDown),
    }
}

/// `None` if there is no process that could take it.
fn signal_process(process: &Process, signal: i32) -> Option<Result<(), Error>> {
    let handle: Arc<Handle> = process.handle()?;
    match handle.pidfd.send_signal(signal) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => None,
        sent => {
            Some(sent.map_err(Error::io(format!("send signal {signal} to process {}", handle.pid))))
        }
    }
}

/// `None` from the moment on that the exit is told; its handle goes a little later.
fn pid_of(process: &Process) -> Option<i32> {
    process.handle().filter(|_| !process.is_stopped()).map(|handle| handle.pid)
}

fn exit_of(process: &Process) -> Option<ExitRecord> {
    match process.state() {
        State::Stopped(record) => Some(record),
        _ => None,
    }
}
