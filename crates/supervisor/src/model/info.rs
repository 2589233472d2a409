//! A container as it is at one moment: plain data.

use std::path::PathBuf;

use holdfast_state::{ContainerId, ExitRecord, Logging, ProcessId, Timestamp};
use serde::{Deserialize, Serialize};

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
    /// Where the output of its first process goes, with the bound of each log, default or not; a
    /// `max_size` of 0 is none.
    #[serde(default)]
    pub log: Logging,
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
    /// Where its output goes, as for a container.
    #[serde(default)]
    pub log: Logging,
}
