//! What can be done with a container beside starting and ending it: freezing, limits, checkpoints,
//! and a look inside.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroups, Stats};
use crate::checkpoint::CheckpointOptions;
use crate::container::{Container, pid_of};
use crate::lifecycle::{Activity, Change, Input, State};
use crate::supervisor::{ContainerState, blocking};
use crate::{Error, Status};

/// How long a runtime may take to freeze, thaw or limit a container.
const OPERATION_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to say what it knows of one.
const STATUS_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to write a container's memory out.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);

/// A process in a container, seen from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Its number, as the host counts.
    pub pid: i32,
    /// Its command line; its name in square brackets if that is empty.
    pub command: String,
}

impl Container {
    /// Freezes all its processes.
    pub async fn pause(&self) -> Result<(), Error> {
        self.change(Change::Pause, "pause", "running").await
    }

    /// Lets its processes run on.
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
            this.change_now(change, verb, needed).await
        })
        .await
    }

    async fn change_now(
        &self,
        change: Change,
        verb: &'static str,
        needed: &'static str,
    ) -> Result<(), Error> {
        let init = &self.state.init;
        if !matches!(init.state(), State::Live { activity, .. } if activity == change.path()[0]) {
            return Err(self.wrong_state(verb, needed));
        }
        init.apply(&self.core, Input::Begin(change)).await;
        let done = self.state.runtime.command(verb, vec![], self.id(), OPERATION_LIMIT).await;
        self.settle(change, &done).await;
        done
    }

    /// Takes note of what came of a change. A command that failed or was killed may have done its work
    /// all the same, so then that is asked.
    pub(crate) async fn settle(&self, change: Change, done: &Result<(), Error>) {
        let outcome = match done {
            Ok(()) => Input::Done,
            Err(error) => {
                let outcome = outcome(&self.state, change).await;
                tracing::warn!(container = %self.id(), ?change, ?outcome, %error, "the runtime failed, and was asked what it has done");
                outcome
            }
        };
        self.state.init.apply(&self.core, outcome).await;
    }

    /// Thaws it for a signal that would otherwise wait for ever: on cgroup v1 a frozen process does
    /// not even die of SIGKILL. Whoever froze it, and whether or not that is known here.
    pub(crate) async fn thaw(&self) -> Result<(), Error> {
        if self.info().status == Status::Paused {
            return self.change_now(Change::Resume, "resume", "paused").await;
        }
        let Some(pid) = self.info().pid else { return Ok(()) };
        let frozen = blocking(move || Ok(Cgroups::of(pid)?.is_frozen())).await;
        if frozen.unwrap_or(false) {
            self.state.runtime.command("resume", vec![], self.id(), OPERATION_LIMIT).await?;
        }
        Ok(())
    }

    /// Changes its limits. `resources` is the `linux.resources` of an OCI configuration.
    pub async fn update(&self, resources: &serde_json::Value) -> Result<(), Error> {
        let content = resources.to_string();
        let this = self.clone();
        self.finish(async move {
            let _operation = this.state.operation.lock().await;
            this.needs_process("update")?;
            // A file, since not every runtime reads its standard input.
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

    /// Writes its state out, so that [`ContainerOptions::checkpoint`](crate::ContainerOptions::checkpoint)
    /// can restore it. Takes a runtime and a kernel with CRIU, and stdio that CRIU can restore: not
    /// a FIFO.
    pub async fn checkpoint(&self, options: CheckpointOptions) -> Result<(), Error> {
        let this = self.clone();
        self.finish(async move {
            let _operation = this.state.operation.lock().await;
            if !matches!(this.state.init.state(), State::Live { activity: Activity::Running, .. }) {
                return Err(this.wrong_state("checkpoint", "running"));
            }
            options.prepare()?;
            let _checkpointing = this.state.init.checkpointing.lock().await;
            let written = this
                .state
                .runtime
                .command("checkpoint", options.args(), this.id(), CHECKPOINT_LIMIT)
                .await;
            if written.is_err() {
                // It may have frozen the container before it failed.
                this.thaw().await?;
            }
            written?;
            options.save()?;
            this.state.init.apply(&this.core, Input::Checkpointed).await;
            Ok(())
        })
        .await
    }

    /// The processes in it, as its cgroup lists them; only the first if it has no cgroup of its own.
    pub async fn processes(&self) -> Result<Vec<ProcessEntry>, Error> {
        let pid = self.needs_process("top")?;
        let found = blocking(move || {
            let mut pids = Cgroups::of(pid)?.processes()?;
            if pids.is_empty() {
                pids.push(pid);
            }
            Ok(pids.into_iter().filter_map(entry).collect())
        });
        found.await.map_err(Error::io(format!("list the processes of container {}", self.id())))
    }

    /// What it uses now.
    pub async fn stats(&self) -> Result<Stats, Error> {
        let pid = self.needs_process("stats")?;
        let stats = blocking(move || Ok(Cgroups::of(pid)?.stats()));
        stats.await.map_err(Error::io(format!("read the cgroups of container {}", self.id())))
    }

    fn needs_process(&self, operation: &'static str) -> Result<i32, Error> {
        self.info().pid.ok_or_else(|| self.wrong_state(operation, "created, running or paused"))
    }
}

/// What came of a change that was begun: its command failed, or whoever gave it died.
///
/// The kernel says whether a container is frozen that has a freezer; all else only its runtime knows.
/// If that does not say, the container counts as started: nobody may start it twice.
pub(crate) async fn outcome(container: &ContainerState, change: Change) -> Input {
    let frozen = match pid_of(&container.init) {
        Some(pid) if change != Change::Start => {
            blocking(move || Ok(Cgroups::of(pid)?.is_frozen())).await.unwrap_or_default()
        }
        _ => false,
    };
    let status = if frozen {
        "paused".to_owned()
    } else {
        container.runtime.status(&container.id, STATUS_LIMIT).await.unwrap_or_else(|error| {
            tracing::warn!(container = %container.id, ?change, %error, "the runtime does not say what it has done");
            String::new()
        })
    };
    let done = match change {
        Change::Start => status != "created",
        Change::Pause => status == "paused",
        Change::Resume => status != "paused",
    };
    if done { Input::Done } else { Input::NotDone }
}

/// The limits that were last asked for, beside the container's processes.
const RESOURCES: &str = ".resources.json";

/// `None` if it has ended meanwhile.
fn entry(pid: i32) -> Option<ProcessEntry> {
    let read = |file: &str| -> io::Result<Vec<u8>> { std::fs::read(format!("/proc/{pid}/{file}")) };
    let line = read("cmdline").ok()?;
    let line = String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned();
    let command = if line.is_empty() {
        format!("[{}]", String::from_utf8_lossy(&read("comm").ok()?).trim())
    } else {
        line
    };
    Some(ProcessEntry { pid, command })
}
