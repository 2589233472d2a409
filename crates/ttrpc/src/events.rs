//! What a shim tells containerd without being asked.

use prost::Message;

use crate::types::{Any, Mount, Timestamp};

/// The service of containerd that takes events.
pub const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// Its method.
pub const FORWARD: &str = "Forward";

/// `containerd.services.events.ttrpc.v1.ForwardRequest`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ForwardRequest {
    /// The event.
    #[prost(message, optional, tag = "1")]
    pub envelope: Option<Envelope>,
}

/// `containerd.types.Envelope`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Envelope {
    /// When it happened.
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    /// The namespace of the container.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// As in `/tasks/exit`.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// What happened.
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}

/// What happens to a task.
pub trait Event: Message {
    /// The topic.
    const TOPIC: &'static str;
    /// The name of the type.
    const TYPE: &'static str;
}

macro_rules! events {
    ($($name:ident, $topic:literal;)*) => {
        $(impl Event for $name {
            const TOPIC: &'static str = concat!("/tasks/", $topic);
            const TYPE: &'static str = concat!("containerd.events.", stringify!($name));
        })*
    };
}

events! {
    TaskCreate, "create";
    TaskStart, "start";
    TaskDelete, "delete";
    TaskExit, "exit";
    TaskOOM, "oom";
    TaskExecAdded, "exec-added";
    TaskExecStarted, "exec-started";
    TaskPaused, "paused";
    TaskResumed, "resumed";
    TaskCheckpointed, "checkpointed";
}

/// `containerd.events.TaskIO`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskIO {
    /// The FIFO or URI of the standard input.
    #[prost(string, tag = "1")]
    pub stdin: String,
    /// That of the standard output.
    #[prost(string, tag = "2")]
    pub stdout: String,
    /// That of the standard error.
    #[prost(string, tag = "3")]
    pub stderr: String,
    /// Whether there is a terminal.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
}

/// A task was created.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskCreate {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Its bundle.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// What its root file system is made of.
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    /// Its stdio.
    #[prost(message, optional, tag = "4")]
    pub io: Option<TaskIO>,
    /// The checkpoint that it was restored from.
    #[prost(string, tag = "5")]
    pub checkpoint: String,
    /// The init process.
    #[prost(uint32, tag = "6")]
    pub pid: u32,
}

/// A task was started.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskStart {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The init process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// A task was deleted.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskDelete {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// How it ended.
    #[prost(uint32, tag = "3")]
    pub exit_status: u32,
    /// When.
    #[prost(message, optional, tag = "4")]
    pub exited_at: Option<Timestamp>,
    /// The exec; empty for the task itself.
    #[prost(string, tag = "5")]
    pub id: String,
}

/// A process of a task ended.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskExit {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec, or the container again.
    #[prost(string, tag = "2")]
    pub id: String,
    /// The process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// How it ended.
    #[prost(uint32, tag = "4")]
    pub exit_status: u32,
    /// When.
    #[prost(message, optional, tag = "5")]
    pub exited_at: Option<Timestamp>,
}

/// The kernel killed a process of the task for want of memory.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskOOM {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// An exec was added.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskExecAdded {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// An exec was started.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskExecStarted {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
}

/// A task was paused.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskPaused {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// A task goes on.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskResumed {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// A checkpoint was written.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskCheckpointed {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Its directory.
    #[prost(string, tag = "2")]
    pub checkpoint: String,
}
