//! The Task service, `containerd.task.v2.Task` and `containerd.task.v3.Task`: their messages are the
//! same.

use std::collections::BTreeMap;

use prost::Message;

use crate::types::{Any, Mount, ProcessInfo, Status, Timestamp};

/// The services, by name.
pub const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// `CreateTaskRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CreateTaskRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The bundle.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// What the root file system is made of; if empty, the bundle has it.
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    /// Whether there is a terminal.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// The FIFO or URI of the standard input.
    #[prost(string, tag = "5")]
    pub stdin: String,
    /// That of the standard output.
    #[prost(string, tag = "6")]
    pub stdout: String,
    /// That of the standard error.
    #[prost(string, tag = "7")]
    pub stderr: String,
    /// The directory of the checkpoint to restore from.
    #[prost(string, tag = "8")]
    pub checkpoint: String,
    /// That of its parent.
    #[prost(string, tag = "9")]
    pub parent_checkpoint: String,
    /// Options of the runtime.
    #[prost(message, optional, tag = "10")]
    pub options: Option<Any>,
}

/// `CreateTaskResponse`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CreateTaskResponse {
    /// The process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// `DeleteRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeleteRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec; empty for the init process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `DeleteResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeleteResponse {
    /// The process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// How it ended: its code, or 128 and the signal.
    #[prost(uint32, tag = "2")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "3")]
    pub exited_at: Option<Timestamp>,
}

/// `ExecProcessRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ExecProcessRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec; empty for the init process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Whether there is a terminal.
    #[prost(bool, tag = "3")]
    pub terminal: bool,
    /// The FIFO or URI of the standard input.
    #[prost(string, tag = "4")]
    pub stdin: String,
    /// That of the standard output.
    #[prost(string, tag = "5")]
    pub stdout: String,
    /// That of the standard error.
    #[prost(string, tag = "6")]
    pub stderr: String,
    /// The `process` of the OCI runtime specification, as JSON.
    #[prost(message, optional, tag = "7")]
    pub spec: Option<Any>,
}

/// `ResizePtyRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResizePtyRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec; empty for the init process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Columns.
    #[prost(uint32, tag = "3")]
    pub width: u32,
    /// Rows.
    #[prost(uint32, tag = "4")]
    pub height: u32,
}

/// `StateRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StateRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec; empty for the init process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `StateResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StateResponse {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The bundle.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// The process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// What it does.
    #[prost(enumeration = "Status", tag = "4")]
    pub status: i32,
    /// The FIFO or URI of the standard input.
    #[prost(string, tag = "5")]
    pub stdin: String,
    /// That of the standard output.
    #[prost(string, tag = "6")]
    pub stdout: String,
    /// That of the standard error.
    #[prost(string, tag = "7")]
    pub stderr: String,
    /// Whether there is a terminal.
    #[prost(bool, tag = "8")]
    pub terminal: bool,
    /// How it ended: its code, or 128 and the signal.
    #[prost(uint32, tag = "9")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "10")]
    pub exited_at: Option<Timestamp>,
    /// The exec; empty for the init process.
    #[prost(string, tag = "11")]
    pub exec_id: String,
}

/// `KillRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KillRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec; empty for the init process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The number of the signal.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    /// Whether all processes get it.
    #[prost(bool, tag = "4")]
    pub all: bool,
}

/// `CloseIORequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CloseIORequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec; empty for the init process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Whether it is the standard input.
    #[prost(bool, tag = "3")]
    pub stdin: bool,
}

/// `PidsRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PidsRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `PidsResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PidsResponse {
    /// The processes.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<ProcessInfo>,
}

/// `CheckpointTaskRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CheckpointTaskRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Where the checkpoint is to be written.
    #[prost(string, tag = "2")]
    pub path: String,
    /// Options of the runtime.
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
}

/// `UpdateTaskRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UpdateTaskRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The `resources` of the OCI runtime specification, as JSON.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<Any>,
    /// Anything else.
    #[prost(btree_map = "string, string", tag = "3")]
    pub annotations: BTreeMap<String, String>,
}

/// `StartRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StartRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec; empty for the init process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `StartResponse`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StartResponse {
    /// The process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// `WaitRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WaitRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The exec; empty for the init process.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// `WaitResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WaitResponse {
    /// How it ended: its code, or 128 and the signal.
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<Timestamp>,
}

/// `StatsRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatsRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `StatsResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatsResponse {
    /// The metrics of its cgroups.
    #[prost(message, optional, tag = "1")]
    pub stats: Option<Any>,
}

/// `ConnectRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConnectRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `ConnectResponse`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConnectResponse {
    /// The shim.
    #[prost(uint32, tag = "1")]
    pub shim_pid: u32,
    /// The init process.
    #[prost(uint32, tag = "2")]
    pub task_pid: u32,
    /// The release of the shim.
    #[prost(string, tag = "3")]
    pub version: String,
}

/// `ShutdownRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ShutdownRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Whether tasks matter.
    #[prost(bool, tag = "2")]
    pub now: bool,
}

/// `PauseRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PauseRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// `ResumeRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResumeRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}
