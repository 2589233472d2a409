//! What goes over the wire. Every path begins with `/v1`.
//!
//! `docs/openapi.json` in the repository lists all requests, with their bodies, answers and errors;
//! `GET /v1/openapi.json` answers with it. The types of the bodies are here, and [`frame`](crate::frame) has
//! the format of streamed output.
//!
//! A failure has a status of 400 or more and an [`ErrorBody`].
//!
//! A client survives the end of a daemon so: it chooses the id and the incarnation of a container (or
//! the id of an exec), and asks the next daemon for `attach` with `resume`, with the last
//! [position](crate::frame) and how much came after that. If the process is not known, the start was
//! not begun, and can be asked for again. Of events it stores the cursor; the answer's header
//! `holdfast-cursor` has that of the beginning.

use std::path::PathBuf;

pub use holdfast_policies::{
    CheckResult, HEALTH, Health, HealthCheck, HealthStatus, POLICY, Restart, RestartPolicy,
};
pub use holdfast_supervisor::{
    Abilities, ContainerId, ContainerInfo, ContainerOptions, Cursor, Event, EventKind, ExecOptions,
    ExitRecord, ExitStatus, Gap, GroupName, Incarnation, Limit, LogSpec, Logging, Network,
    OrphanPolicy, PastRun, ProcessEntry, ProcessId, Rootless, RuntimeChoice, Stats, Status, Stdin,
    Stdio, TerminalSize, User,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The daemon itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// What containers have in place of root's rights, if the daemon is run by another user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootless: Option<Rootless>,
    /// Where the definitions of the containers are kept that outlive a reboot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definitions: Option<PathBuf>,
    /// What it could not load, and which containers it could not make again after a reboot.
    pub problems: Vec<Problem>,
}

/// Something in the state root that could not be loaded; all else was.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Problem {
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// All that the record and the bundle of a container say, beyond [`ContainerInfo`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Details {
    /// The OCI configuration that its runtime was given; null if its file is gone.
    pub config: Value,
    /// Its record, `process.json`.
    pub record: Value,
    /// Its earlier runs, the oldest first.
    pub runs: Vec<PastRun>,
}

/// What a container uses.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StatsOf {
    /// The container.
    pub id: ContainerId,
    /// What it uses.
    pub stats: Stats,
}

/// A container: the JSON of [`ContainerInfo`], `restart` and `health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ContainerView {
    /// The container.
    #[serde(flatten)]
    pub info: ContainerInfo,
    /// Its restart policy, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Its health, if it has a health check. `GET /containers/{id}` alone has the last results, `log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

impl From<ContainerInfo> for ContainerView {
    fn from(info: ContainerInfo) -> Self {
        let (restart, health) = (Restart::of(&info), Health::of(&info));
        Self { info, restart, health }
    }
}

/// How to stop a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StopRequest {
    /// The signal that comes first, by number. The default is the container's own, or SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// After how much time SIGKILL follows, in milliseconds. The default is the container's own, or ten
    /// seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// A container to create: the JSON of [`ContainerOptions`], and `start`. The JSON may also have `restart`, a
/// [`RestartPolicy`], which is stored as the label [`POLICY`], and `health`, a [`HealthCheck`], which is
/// stored as the label [`HEALTH`].
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

    fn try_from(mut body: Value) -> serde_json::Result<Self> {
        let mut take = |name| body.as_object_mut().and_then(|body| body.remove(name));
        let (restart, health) = (take("restart"), take("health"));
        let policy = restart.or_else(|| body["labels"].get(POLICY).cloned());
        let policy: Option<RestartPolicy> = policy.map(serde_json::from_value).transpose()?;
        let health: Option<HealthCheck> = match (health, body["labels"][HEALTH].as_str()) {
            (Some(health), _) => Some(serde_json::from_value(health)?),
            (None, Some(label)) => Some(serde_json::from_str(label)?),
            (None, None) => None,
        };
        let restarts = policy.is_some_and(|policy| policy != RestartPolicy::No)
            || health.as_ref().is_some_and(HealthCheck::restarts);
        if restarts && body["remove"] == true {
            let message = "a container that is removed after its exit cannot be restarted";
            return Err(serde::de::Error::custom(message));
        }
        let (mut options, start) = split(body, "start")?;
        if let Some(policy) = policy {
            options = policy.apply(options);
        }
        if let Some(health) = health {
            options = health.apply(options);
        }
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Of {
    /// The process; the container's first if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
}

/// Which state of a container is returned.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InspectQuery {
    /// Once its start has succeeded. The answer is its failure if it has failed.
    #[serde(default)]
    pub begun: bool,
}

/// Whose end is waited for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// How many bytes of standard output came after that position.
    pub stdout: u64,
    /// How many bytes of standard error came after that position.
    pub stderr: u64,
    /// How many bytes of notices came after that position.
    pub notices: u64,
}

/// Which part of the output is wanted, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LogQuery {
    /// Whether it goes on until the container ends.
    pub follow: bool,
    /// Only what was written then (RFC 3339) or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only what was written before that time (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
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
    /// The position after which output is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// How many bytes of standard output came after that position.
    pub stdout: u64,
    /// How many bytes of standard error came after that position.
    pub stderr: u64,
    /// How many bytes of notices came after that position.
    pub notices: u64,
}

/// A terminal's new size.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// For programs.
    pub kind: ErrorKind,
    /// For people: what failed, on what, and what can be done.
    pub message: String,
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
