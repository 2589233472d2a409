//! What goes over the wire. Every path begins with `/v1`.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /info` | | [`Info`] |
//! | `GET /containers` | | array of [`ContainerInfo`] |
//! | `POST /containers` | [`CreateRequest`] | [`ContainerInfo`] |
//! | `POST /run` | [`CreateRequest`] | [frames](crate::frame): `started`, output, `exited` |
//! | `GET /containers/{id}` | | [`ContainerInfo`] |
//! | `DELETE /containers/{id}?force=true` | | |
//! | `POST /containers/{id}/start` | | |
//! | `GET /containers/{id}/wait` | | [`ExitRecord`], once it has ended |
//! | `POST /containers/{id}/kill` | [`KillRequest`] | |
//! | `POST /containers/{id}/exec` | [`ExecRequest`] | [`Started`], or frames unless detached |
//! | `GET /containers/{id}/logs?follow=true` | | frames: output |
//! | `GET /events?replay=true` | | JSON lines: [`ContainerEvent`] |
//!
//! A failure has a status of 400 or more and an [`ErrorBody`].

use std::path::PathBuf;
use std::time::Duration;

pub use holdfast_supervisor::{
    ContainerEvent, ContainerId, ContainerInfo, EventKind, ExitRecord, ExitStatus, ProcessId,
    Status,
};
use serde::{Deserialize, Serialize};

/// The daemon itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// The daemon's version.
    pub version: String,
    /// Its pid.
    pub pid: u32,
    /// Its state root.
    pub root: PathBuf,
    /// How many containers it found on disk when it started.
    pub restored: usize,
    /// How long taking them up again took, in microseconds.
    pub restore_micros: u64,
    /// What it could not load.
    pub problems: Vec<Problem>,
}

/// Something in the state root that could not be loaded; all else was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// A container to make.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CreateRequest {
    /// Its id; random if missing.
    pub id: Option<ContainerId>,
    /// A directory with `config.json`. This or `rootfs`.
    pub bundle: Option<PathBuf>,
    /// A root file system. This or `bundle`.
    pub rootfs: Option<Rootfs>,
    /// What to run, instead of what the bundle says.
    pub args: Vec<String>,
    /// The runtime, by name or path.
    pub runtime: Option<String>,
    /// How long the start may take, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Whether it is deleted once it has exited.
    pub remove: bool,
    /// Whether it is started at once. Implied by `POST /run`.
    pub start: bool,
}

/// Where a container without a bundle finds its programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rootfs {
    /// The host's own, read-only.
    Host,
    /// A directory.
    Dir(PathBuf),
}

/// A further process to run in a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExecRequest {
    /// What to run.
    pub args: Vec<String>,
    /// How long the start may take, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Whether the answer comes with the start, without the output.
    pub detach: bool,
}

/// A signal to send.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// Its number, 1 to 64.
    pub signal: i32,
    /// The process; the container's first if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
}

/// A process that runs now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its container.
    pub container: ContainerId,
    /// Its id within that.
    pub process: ProcessId,
}

/// A message between the pieces of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// The process runs.
    Started(Started),
    /// The process has ended; nothing follows.
    Exited(ExitStatus),
    /// The stream can't go on.
    Failed(ErrorBody),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub kind: ErrorKind,
    /// For people: what failed, on what, and what can be done.
    pub message: String,
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// No such container or process.
    NotFound,
    /// The id is taken.
    Exists,
    /// The request makes no sense.
    Invalid,
    /// The container is in another state.
    WrongState,
    /// Something did not end in time.
    Timeout,
    /// The OCI runtime or the shim failed.
    Runtime,
    /// The daemon is going down.
    ShuttingDown,
    /// Something failed in the daemon or the system.
    Internal,
}

/// Milliseconds of the wire as a duration.
#[must_use]
pub fn millis(value: Option<u64>) -> Option<Duration> {
    value.map(Duration::from_millis)
}
