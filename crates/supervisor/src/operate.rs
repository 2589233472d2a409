//! Operations on a container other than starting and stopping it: pause and resume, resource
//! limits, checkpoints, process list and statistics.

use std::time::Duration;

use holdfast_sys::proc::Stat;
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;

use crate::container::Container;
use crate::error::Error;
use crate::model::lifecycle::{Activity, Change, Input, State};
use crate::ops::rootless;
use crate::os::cgroup::{Cgroups, Stats};
use crate::os::pid_namespace;
use crate::os::tasks::blocking;
use crate::runtime::checkpoint::CheckpointOptions;
use crate::supervisor::Supervisor;
use crate::watch::change::{self, OPERATION_LIMIT};

/// The time limit for writing the state of a container to disk.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);

/// A process in a container, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ProcessEntry {
    /// Its pid in the host's pid namespace.
    pub pid: i32,
    /// The pid of its parent, in the host's pid namespace.
    #[serde(default)]
    pub ppid: i32,
    /// The effective user id, on the host.
    #[serde(default)]
    pub uid: u32,
    /// The processor time that it has used, in milliseconds.
    #[serde(default)]
    pub cpu_millis: u64,
    /// The memory that it uses (resident set), in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Its command line; if that is empty, its name in square brackets.
    pub command: String,
}

impl Container {
    /// Freezes all processes of the container. If the caller drops the future, this continues in
    /// the background.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the container does not run, [`Error::NotFound`] if it was deleted,
    /// [`Error::NoCgroup`] if it has no cgroup of its own, and [`Error::Runtime`] or
    /// [`Error::RuntimeTimeout`] (after 30 s) if the runtime fails.
    pub async fn pause(&self) -> Result<(), Error> {
        self.change(Change::Pause, "pause", "running").await
    }

    /// Thaws the processes of a paused container. If the caller drops the future, this continues in
    /// the background.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the container is not paused, and otherwise as
    /// [`pause`](Self::pause).
    pub async fn resume(&self) -> Result<(), Error> {
        self.change(Change::Resume, "resume", "paused").await
    }

    async fn change(
        &self,
        change: Change,
        verb: &'static str,
        needed: &'static str,
    ) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move {
            let _operation = this.state.operation.lock().await;
            this.needs_cgroup(verb).await?;
            change::make(&this.core, &this.state, change, verb, needed).await
        })
        .await
    }

    /// Changes the resource limits of the container. `resources` is the `linux.resources` object of
    /// an OCI configuration. If the caller drops the future, this continues in the background.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the container has no process, [`Error::NotFound`] if it was
    /// deleted, [`Error::NoCgroup`] if it has no cgroup of its own, [`Error::InvalidOption`] if its cgroup has no
    /// controller for a limit, [`Error::Runtime`] or [`Error::RuntimeTimeout`] (after 30 s) if the runtime fails,
    /// and [`Error::Io`] if the limits cannot be written to a file for it.
    pub async fn update(&self, resources: &serde_json::Value) -> Result<(), Error> {
        let content = resources.to_string();
        let rootless = self.core.rootless.as_ref();
        let checked = rootless.map_or(Ok(()), |it| rootless::check_resources(resources, it));
        let this = self.clone();
        self.finish(async move {
            let _operation = this.state.operation.lock().await;
            this.needs_process("update")?;
            this.needs_cgroup("update").await?;
            checked.map_err(Error::InvalidOption)?;
            // The limits are passed in a file, because not every runtime reads its standard input.
            let dir = this.core.root.container(this.id());
            let written = {
                let content = content.clone();
                blocking(move || {
                    let dir = dir?;
                    dir.directory().write_atomic(RESOURCES, content.as_bytes())?;
                    Ok(dir.directory().path().join(RESOURCES))
                })
                .await
            };
            let path = written.map_err(Error::io(format!("write the limits of {}", this.id())))?;
            let options = vec!["--resources".into(), path.into()];
            this.state.runtime.command("update", options, this.id(), OPERATION_LIMIT).await
        })
        .await
    }

    /// Writes the state of a container that runs or is paused to disk, so that
    /// [`ContainerOptions::checkpoint`](crate::ContainerOptions::checkpoint) can restore it. This
    /// needs CRIU, a runtime and a kernel that support it, and stdio that CRIU can restore, which a
    /// FIFO is not. If the caller drops the future, this continues in the background.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the container is neither running nor paused, [`Error::NotFound`] if it was deleted,
    /// [`Error::Runtime`] or [`Error::RuntimeTimeout`] (after 600 s) if the runtime fails, and
    /// [`Error::Io`] if the directory cannot be written.
    pub async fn checkpoint(&self, options: CheckpointOptions) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move {
            let _operation = this.state.operation.lock().await;
            let init = this.state.init();
            let State::Live { activity: activity @ (Activity::Running | Activity::Paused), .. } =
                init.state()
            else {
                return Err(this.wrong_state("checkpoint", "running or paused"));
            };
            options.prepare()?;
            let _checkpointing = init.checkpointing.lock().await;
            let written = this
                .state
                .runtime
                .command("checkpoint", options.args(), this.id(), CHECKPOINT_LIMIT)
                .await;
            if written.is_err() && activity == Activity::Running {
                // The runtime may have frozen the container before it failed.
                change::thaw(&this.core, &this.state).await?;
            }
            written?;
            options.save()?;
            init.apply(&this.core.events, Input::Checkpointed).await;
            Ok(())
        })
        .await
    }

    /// Returns the processes in the cgroup of the container. If it has no cgroup of its own, those in its
    /// pid namespace; without one, the init process only. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if the container has no process, [`Error::NotFound`] if it was
    /// deleted, and [`Error::Io`] if its cgroups cannot be read.
    pub async fn processes(&self) -> Result<Vec<ProcessEntry>, Error> {
        let pid = self.needs_process("top")?;
        let found = blocking(move || {
            let cgroups = Cgroups::of(pid)?;
            let pids = match cgroups.is_empty() {
                true => pid_namespace::processes(pid)?,
                false => cgroups.processes()?,
            };
            Ok(pids.into_iter().filter_map(ProcessEntry::of).collect())
        });
        found.await.map_err(Error::io(format!("list the processes of container {}", self.id())))
    }

    /// Sends a signal to all processes of the container, those in its cgroup (without one of its own, in its pid
    /// namespace), also to those that its init process has left behind. A process that begins meanwhile may be missed.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] while the container is being created, [`Error::NotFound`] if it was deleted,
    /// [`Error::Io`] if its cgroups cannot be read, and [`Error::Runtime`] if the init process has ended and the runtime fails.
    pub async fn signal_all(&self, signal: i32) -> Result<(), Error> {
        let Some(pid) = self.info().pid else {
            if self.state.init().is_creating() {
                return Err(self.wrong_state("a signal", "created or running"));
            }
            // Nobody but the runtime knows the cgroup of a process that is gone.
            return self.state.runtime.signal_all(self.id(), signal, OPERATION_LIMIT).await;
        };
        let sent = blocking(move || {
            let cgroups = Cgroups::of(pid)?;
            match cgroups.is_empty() {
                true => pid_namespace::signal(pid, signal),
                false => cgroups.signal(signal),
            }
        });
        let sent = sent.await;
        sent.map_err(Error::io(format!("signal all processes of container {}", self.id())))
    }

    /// Returns the current resource usage of the container. Cancel safe.
    ///
    /// # Errors
    ///
    /// The errors of [`processes`](Self::processes).
    pub async fn stats(&self) -> Result<Stats, Error> {
        let pid = self.needs_process("stats")?;
        let stats = blocking(move || Stats::of(pid)).await;
        stats.map_err(Error::io(format!("read the cgroups of container {}", self.id())))
    }

    /// Refuses what cannot be done without a cgroup. A container keeps the one that it was started with, or none.
    async fn needs_cgroup(&self, operation: &'static str) -> Result<(), Error> {
        let (Some(rootless), Some(pid)) = (&self.core.rootless, self.info().pid) else {
            return Ok(());
        };
        if blocking(move || Ok(!Cgroups::of(pid)?.is_empty())).await.unwrap_or(true) {
            return Ok(());
        }
        let reason = match &rootless.no_cgroups {
            Some(reason) => reason.clone(),
            None => "it was started when there was none".to_owned(),
        };
        Err(Error::NoCgroup { operation, reason })
    }

    /// Returns the pid of the init process.
    fn needs_process(&self, operation: &'static str) -> Result<i32, Error> {
        self.info().pid.ok_or_else(|| self.wrong_state(operation, "created, running or paused"))
    }
}

impl Supervisor {
    /// Returns the current resource usage of all containers that have a process, ordered by id.
    /// Containers whose cgroups cannot be read, because they have just exited for example, are left
    /// out. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the Tokio runtime of the supervisor is gone.
    pub async fn stats_all(&self) -> Result<Vec<(Container, Stats)>, Error> {
        let all = self.list();
        let read = self.core.tasks.reactor.spawn_blocking(move || {
            let stats = |container: Container| {
                let pid = container.state.init().pid()?;
                Some((container, Stats::of(pid).ok()?))
            };
            all.into_iter().filter_map(stats).collect()
        });
        Error::joined(read.await.map(Ok))
    }
}

/// The file with the limits of the last `update`, in the directory of the container.
const RESOURCES: &str = ".resources.json";

impl ProcessEntry {
    /// Describes a process; `None` if it has exited in the meantime.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
        let line = read("cmdline")?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
        let command = if line.is_empty() {
            format!("[{}]", String::from_utf8_lossy(&read("comm")?).trim())
        } else {
            line
        };
        let stat = Stat::read(pid).ok()?;
        let page =
            sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|it| u64::try_from(it).ok());
        Some(Self {
            pid,
            ppid: stat.ppid,
            uid: std::fs::metadata(format!("/proc/{pid}")).ok()?.uid(),
            cpu_millis: stat.cpu_time().ok()?.as_millis().try_into().unwrap_or(u64::MAX),
            memory_bytes: stat.resident_pages.saturating_mul(page.unwrap_or(4096)),
            command,
        })
    }
}
