//! Snapshots of a container: plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use holdfast_state::{
    ContainerId, ExitRecord, GroupName, Incarnation, Logging, ProcessId, Timestamp,
};
use serde::{Deserialize, Serialize};

/// The status of a container, in the terms of the OCI runtime specification, and `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// The runtime is creating the container.
    Creating,
    /// The container is created; its program has not been started.
    Created,
    /// The program runs.
    Running,
    /// All processes are frozen.
    Paused,
    /// The init process has exited.
    Stopped,
}

impl Status {
    /// Returns the status as a lowercase word.
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

/// A snapshot of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ContainerInfo {
    /// The id of the container.
    pub id: ContainerId,
    /// The status.
    pub status: Status,
    /// The pid of the init process, in the host's pid namespace; `None` once it has exited.
    pub pid: Option<i32>,
    /// The exit status as a shell shows it: 0 to 255; 128 + n for signal n; 255 if it is unknown.
    pub exit_status: Option<u8>,
    /// The exact exit status, its time, and the evidence for it.
    pub exit: Option<ExitRecord>,
    /// The time of creation. `None` for a container of containerd's 2016 shim, which did not record
    /// it.
    pub created: Option<Timestamp>,
    /// When its program was started, in the current run. `None` if it was not started, or if the
    /// journal no longer knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// Whether the OOM killer killed a process of the container in the current run.
    #[serde(default)]
    pub oom_killed: bool,
    /// The number of the current run: how often the container was started, or created to be
    /// started. See [`Container::start`](crate::Container::start).
    #[serde(default)]
    pub run: u32,
    /// Identifies this life of the container's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// The arguments of its init process.
    #[serde(default)]
    pub args: Vec<String>,
    /// The data that the caller has stored with it; see [`ContainerOptions::label`](crate::ContainerOptions::label).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The signal that [`ContainerOptions::stop_signal`](crate::ContainerOptions::stop_signal) has set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// The time that [`ContainerOptions::stop_grace`](crate::ContainerOptions::stop_grace) has set, in
    /// milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_ms: Option<u64>,
    /// The OCI bundle that its runtime was given.
    #[serde(default)]
    pub bundle: PathBuf,
    /// The group whose one shim its processes share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim_group: Option<GroupName>,
    /// The pid of the shim of its init process; `None` if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim_pid: Option<i32>,
    /// Whether this supervisor restored the container from disk.
    pub restored: bool,
    /// The path of the OCI runtime.
    pub runtime: PathBuf,
    /// Where the output of the init process goes. The size limit of each log is filled in, whether
    /// it was set or is the default; a `max_size` of 0 means no limit.
    #[serde(default)]
    pub log: Logging,
    /// The files to which the output of the init process is written. When a file is rotated, `.1` is
    /// added to its name, and so on.
    #[serde(default)]
    pub log_paths: Vec<PathBuf>,
    /// The exec processes.
    pub execs: Vec<ExecInfo>,
}

impl ContainerInfo {
    /// Returns when the exit of the current run was recorded.
    #[must_use]
    pub fn finished(&self) -> Option<&Timestamp> {
        self.exit.as_ref().map(|exit| &exit.time)
    }

    /// Returns how long the program ran in the current run: from its start until its exit, or until now.
    /// `None` if one of the times is not known. The system's clock may have been set meanwhile.
    #[must_use]
    pub fn ran_for(&self) -> Option<Duration> {
        let begin = SystemTime::try_from(self.started.as_ref()?).ok()?;
        let end = match self.finished() {
            Some(time) => SystemTime::try_from(time).ok()?,
            None => SystemTime::now(),
        };
        Some(end.duration_since(begin).unwrap_or_default())
    }
}

/// A snapshot of an exec process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ExecInfo {
    /// The id of the process, which is unique within its container.
    pub id: ProcessId,
    /// The status.
    pub status: Status,
    /// The pid in the host's pid namespace; `None` once the process has exited.
    pub pid: Option<i32>,
    /// The exact exit status, its time, and the evidence for it.
    pub exit: Option<ExitRecord>,
    /// Where the output goes; see [`ContainerInfo::log`].
    #[serde(default)]
    pub log: Logging,
}
