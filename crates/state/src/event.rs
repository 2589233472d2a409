//! What happened to a container: one ordered stream a container, numbered from 1.

use serde::{Deserialize, Serialize};

use crate::{Evidence, ExitStatus, ProcessId, Timestamp};

/// One event. Within a container the numbers rise by one, across restarts of the daemon too; a
/// process's start always comes before its exit, and its exit comes exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the container's stream, from 1.
    pub seq: u64,
    /// When it was noticed.
    pub time: Timestamp,
    /// The process it is about.
    pub process: ProcessId,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The runtime made the container; its process waits for the start.
    Created {
        /// The process, as the host counts.
        pid: i32,
    },
    /// The runtime is about to be told to start it. Written first, so that a crash in between is seen.
    Starting,
    /// The program runs.
    Started,
    /// The runtime is about to be told to freeze it.
    Pausing,
    /// Its processes are frozen.
    Paused,
    /// The runtime is about to be told to thaw it.
    Resuming,
    /// Its processes run again.
    Resumed,
    /// The kernel killed a process of it for want of memory.
    OutOfMemory,
    /// Its state was written to a directory, from which it can be restored.
    Checkpointed,
    /// The process ended.
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// How that is known.
        evidence: Evidence,
    },
    /// Its shim died; the process runs on.
    ShimLost,
    /// A new shim has taken it over.
    Adopted,
    /// The container and all that was kept of it is gone. The last event of its stream.
    Deleted,
}
