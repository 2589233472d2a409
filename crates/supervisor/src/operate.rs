//! What can be done with a container beside starting and ending it: freezing, limits, checkpoints,
//! and a look inside.

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::error::Error;
use crate::model::lifecycle::{Activity, Change, Input, State};
use crate::os::cgroup::{Cgroups, Stats};
use crate::os::tasks::blocking;
use crate::runtime::checkpoint::CheckpointOptions;
use crate::watch::change::{self, OPERATION_LIMIT};

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
            change::make(&this.core, &this.state, change, verb, needed).await
        })
        .await
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
                change::thaw(&this.core, &this.state).await?;
            }
            written?;
            options.save()?;
            this.state.init.apply(&this.core.events, Input::Checkpointed).await;
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
