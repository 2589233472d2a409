//! What goes over the wire. Every path begins with `/v1`.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /info` | | [`Info`] |
//! | `GET /containers?label=NAME=VALUE` | | array of [`ContainerInfo`]; all, without a label |
//! | `POST /containers` | [`CreateRequest`] | [`ContainerInfo`] |
//! | `POST /run?positions=true` | [`CreateRequest`] | [frames](crate::frame): `started`, output, `exited` |
//! | `GET /containers/{id}` | | [`ContainerInfo`] |
//! | `DELETE /containers/{id}?force=true` | | |
//! | `POST /containers/{id}/start` | | of a container that is created or stopped |
//! | `POST /containers/{id}/stop` | [`StopRequest`] | [`ExitRecord`] |
//! | `POST /containers/{id}/restart` | [`StopRequest`] | |
//! | `GET /containers/{id}/runs` | | array of [`PastRun`] |
//! | `GET /containers/{id}/wait` with [`WaitQuery`] | | [`ExitRecord`], once it has ended; also if it was removed |
//! | `DELETE /containers/{id}/processes/{process}` | | |
//! | `POST /containers/{id}/kill` | [`KillRequest`] | |
//! | `POST /containers/{id}/exec?positions=true` | [`ExecRequest`] | [`Started`], or frames unless detached |
//! | `POST /containers/{id}/close-stdin` | [`Of`] | |
//! | `POST /containers/{id}/resize` | [`ResizeRequest`] | |
//! | `POST /containers/{id}/pause`, `…/resume` | | |
//! | `POST /containers/{id}/update` | `linux.resources` of an OCI configuration | |
//! | `POST /containers/{id}/checkpoint` | [`CheckpointRequest`] | |
//! | `GET /containers/{id}/top` | | array of [`ProcessEntry`] |
//! | `GET /containers/{id}/stats` | | [`Stats`] |
//! | `GET /stats` | | array of [`StatsOf`]: of all that have a process |
//! | `GET /containers/{id}/logs` with [`LogQuery`] | | frames: output |
//! | `GET /containers/{id}/attach` with [`AttachQuery`] | | frames: `started`, output from now on, `exited` |
//! | `POST /containers/{id}/release` | [`Of`] | | ends the wait of an automatic deletion for the client that reads the output |
//! | `POST /containers/{id}/reopen-logs` | [`Of`] | |
//! | `GET /events?since=CURSOR`, `…?replay=true` for all that is kept | | JSON lines: [`EventLine`] |
//!
//! A failure has a status of 400 or more and an [`ErrorBody`].
//!
//! A client survives the end of a daemon so: it chooses the id and the incarnation of a container (or
//! the id of an exec), and asks the next daemon for `attach` with `resume`, with the last
//! [position](crate::frame) and how much came after that. If the process is not known, the start was
//! not begun, and can be asked for again. Of events it stores the cursor; the answer's header
//! `holdfast-cursor` has that of the beginning.

use std::path::PathBuf;

pub use holdfast_supervisor::{
    Abilities, ContainerId, ContainerInfo, ContainerOptions, Cursor, Event, EventKind, ExecOptions,
    ExitRecord, ExitStatus, Gap, GroupName, Incarnation, Limit, LogSpec, Logging, Network,
    OrphanPolicy, PastRun, ProcessEntry, ProcessId, RuntimeChoice, Stats, Status, Stdin, Stdio,
    TerminalSize, User,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// Which OCI runtime containers get that name none, and why.
    pub runtime: RuntimeChoice,
    /// What this kernel can do for it.
    pub abilities: Abilities,
    /// What bounds the number of containers, the tightest first.
    #[serde(default)]
    pub limits: Vec<Limit>,
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

/// What a container uses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatsOf {
    /// The container.
    pub id: ContainerId,
    /// What it uses.
    pub stats: Stats,
}

/// How to stop a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StopRequest {
    /// The signal that comes first, by number. The default is SIGTERM.
    pub signal: i32,
    /// After how much time SIGKILL follows, in milliseconds. The default is ten seconds.
    pub grace_ms: u64,
}

impl Default for StopRequest {
    fn default() -> Self {
        Self { signal: nix::libc::SIGTERM, grace_ms: 10_000 }
    }
}

/// A container to create: the JSON of [`ContainerOptions`], and `start`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct CreateRequest {
    /// The container.
    pub options: ContainerOptions,
    /// Whether it is started at once. Implied by `POST /run`.
    pub start: bool,
}

/// A further process to run in a container: the JSON of [`ExecOptions`], and `detach`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct ExecRequest {
    /// The process.
    pub options: ExecOptions,
    /// Whether the answer comes with the start, without the output. Such a process keeps its status and
    /// its output until it is deleted.
    pub detach: bool,
}

/// Takes a flag out of an object, and reads the rest as the options. By hand, since a flattened field would
/// accept unknown names.
fn split<T: DeserializeOwned>(mut body: Value, flag: &str) -> serde_json::Result<(T, bool)> {
    let taken = body.as_object_mut().and_then(|body| body.remove(flag));
    let flag = taken.map_or(Ok(false), serde_json::from_value)?;
    Ok((serde_json::from_value(body)?, flag))
}

fn join(options: &impl Serialize, flag: &str, value: bool) -> Value {
    // Options hold only what can be written as JSON.
    let mut body = serde_json::to_value(options).unwrap_or_default();
    body[flag] = value.into();
    body
}

impl TryFrom<Value> for CreateRequest {
    type Error = serde_json::Error;

    fn try_from(body: Value) -> serde_json::Result<Self> {
        let (options, start) = split(body, "start")?;
        Ok(Self { options, start })
    }
}

impl From<CreateRequest> for Value {
    fn from(request: CreateRequest) -> Self {
        join(&request.options, "start", request.start)
    }
}

impl TryFrom<Value> for ExecRequest {
    type Error = serde_json::Error;

    fn try_from(body: Value) -> serde_json::Result<Self> {
        let (options, detach) = split(body, "detach")?;
        Ok(Self { options, detach })
    }
}

impl From<ExecRequest> for Value {
    fn from(request: ExecRequest) -> Self {
        join(&request.options, "detach", request.detach)
    }
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

/// Which process is meant.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Of {
    /// The process; the container's first if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
}

/// Whose end is waited for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WaitQuery {
    /// The process; the container's first if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// The incarnation of the container; that which has the name now, or had it last, if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// The run of the container; the current one if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
}

/// What is attached to, and from where on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttachQuery {
    /// Whether the client was attached before, or cannot know: it gets the output from `after` on, or
    /// all of it, and the status also if the process has ended or was removed.
    pub resume: bool,
    /// The process; the container's first if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// The incarnation of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// The run of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    /// Whether positions are wanted.
    pub positions: bool,
    /// The position after which output is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// How many bytes of standard output came after that position,
    pub stdout: u64,
    /// of standard error,
    pub stderr: u64,
    /// and of notices.
    pub notices: u64,
}

/// Which part of the output is wanted, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogQuery {
    /// Whether it goes on until the container ends.
    pub follow: bool,
    /// Only what was written then (RFC 3339) or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only so many lines at the end of what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// Whether each line begins with its time and a blank.
    pub timestamps: bool,
    /// The process whose output is wanted; the init process if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// Whether positions are wanted.
    pub positions: bool,
    /// As in [`AttachQuery`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// As in [`AttachQuery`].
    pub stdout: u64,
    /// As in [`AttachQuery`].
    pub stderr: u64,
    /// As in [`AttachQuery`].
    pub notices: u64,
}

/// A terminal's new size.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// The size, in characters.
    pub size: TerminalSize,
    /// The process; the container's first if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
}

/// How a container's state is to be written out.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckpointRequest {
    /// Into this directory.
    pub path: PathBuf,
    /// Where CRIU works and writes its logs.
    pub work_path: Option<PathBuf>,
    /// Whether the container runs on.
    pub leave_running: bool,
    /// Whether established TCP connections are included.
    pub tcp: bool,
    /// Whether Unix sockets may lead outside.
    pub unix_sockets: bool,
    /// Whether a session or terminal may be inherited from outside.
    pub shell_job: bool,
    /// Kinds of namespaces whose content is left out.
    pub empty_ns: Vec<String>,
}

/// A process that runs now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its container.
    pub container: ContainerId,
    /// Its id within that.
    pub process: ProcessId,
    /// The FIFO of its input, if it was asked for.
    pub stdin: Option<PathBuf>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// The incarnation of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// The run of the container.
    #[serde(default)]
    pub run: u32,
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

/// A line of the stream of events. `cursor` is the place after it: where to begin once it is dealt with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventLine {
    /// Numbers of which there is no event.
    Gap {
        /// The place after them.
        cursor: Cursor,
        /// Which, and why.
        gap: Gap,
    },
    /// Something happened.
    Event {
        /// The place after it.
        cursor: Cursor,
        /// What.
        #[serde(flatten)]
        event: Event,
    },
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
    /// The program is not in the container.
    CommandNotFound,
    /// The program cannot be executed.
    NotExecutable,
    /// The OCI runtime or the shim failed.
    Runtime,
    /// The machine has no room for another container.
    Limit,
    /// The daemon does not serve this user.
    Forbidden,
    /// The daemon is going down.
    ShuttingDown,
    /// Something failed in the daemon or the system.
    Internal,
}
