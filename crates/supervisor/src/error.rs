//! The errors of this library, worded for the person who must act on them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_state::{ContainerId, InvalidId, InvalidLog, LockError, ProcessId};
use thiserror::Error;
use tokio::task::JoinError;

/// An error of this library. The corresponding names of containerd's 2016 shim are given in
/// brackets.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a valid id.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// The log destination or its options are invalid.
    #[error(transparent)]
    InvalidLog(#[from] InvalidLog),
    /// The state root cannot be used.
    #[error(transparent)]
    Root(#[from] LockError),
    /// No container has this id.
    #[error("no such container: {0}")]
    NotFound(ContainerId),
    /// Another container has this id.
    #[error("container {0} exists already; delete it first, or choose another id")]
    Exists(ContainerId),
    /// Another process of the container has this id.
    #[error("container {0} has a process {1} already")]
    ProcessExists(ContainerId, ProcessId),
    /// The bundle cannot be used.
    #[error("bundle {path}: {reason}")]
    Bundle {
        /// The directory of the bundle.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The root file system cannot be used.
    #[error("root file system {path}: {reason}")]
    Rootfs {
        /// The directory of the root file system.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An executable that Holdfast needs is missing.
    #[error("{name}: not installed on system (looked in {looked})")]
    NotInstalled {
        /// The name of the executable.
        name: String,
        /// Where it was searched for.
        looked: String,
    },
    /// A path that was given as a FIFO is not one \[`ErrNotFifo`\].
    #[error("{0}: not a FIFO; create one with mkfifo(1)")]
    NotFifo(PathBuf),
    /// A limit of this machine leaves no room for another container.
    #[error("no more containers: nearly all {of} are in use, of {most}; raise {raise}")]
    Limit {
        /// The resource that is limited.
        of: &'static str,
        /// The limit, in units of that resource.
        most: u64,
        /// The setting that raises the limit.
        raise: &'static str,
    },
    /// The checkpoint cannot be used.
    #[error("checkpoint {path}: {reason}")]
    Checkpoint {
        /// The directory of the checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operation needs the shim of the process, and the process has lost its shim.
    #[error("process {process} of container {id} has lost its shim, which {operation} needs")]
    NoShim {
        /// The container.
        id: ContainerId,
        /// The process.
        process: ProcessId,
        /// The requested operation.
        operation: &'static str,
    },
    /// The container did not start within the time limit. Everything that was started has been
    /// removed; where that failed, the log of the supervisor says so
    /// \[`ErrContainerStartTimeout`\].
    #[error("container did not start before the specified timeout of {}{}", humantime(.timeout), appended(.detail))]
    StartTimeout {
        /// The time limit.
        timeout: Duration,
        /// The errors in the logs of the shim and the runtime; may be empty.
        detail: String,
    },
    /// The runtime failed. The text is the runtime's own message.
    #[error("oci runtime error: {0}")]
    Runtime(String),
    /// The shim failed. The text is the shim's own message.
    #[error("shim error: {0}")]
    Shim(String),
    /// The shim exited before the container's process was created, and left no message
    /// \[`ErrContainerNotStarted`, `ErrShimExited`\].
    #[error("container not started: the shim exited before the process was there{}", appended(.0))]
    NotStarted(String),
    /// The operation needs the container in another state.
    #[error("container {id} is {status}, and {operation} needs it {needed}")]
    WrongState {
        /// The container.
        id: ContainerId,
        /// Its current state.
        status: &'static str,
        /// The requested operation.
        operation: &'static str,
        /// The state that the operation needs.
        needed: &'static str,
    },
    /// A process did not exit in time after SIGKILL: it hangs in the kernel.
    #[error("process {pid} of container {id} is still alive {} after SIGKILL; it hangs in the kernel", humantime(.after))]
    SurvivesKill {
        /// The container.
        id: ContainerId,
        /// The pid of the process, in the host's pid namespace.
        pid: i32,
        /// How long the supervisor waited.
        after: Duration,
    },
    /// A runtime command did not finish within the time limit, and was killed.
    #[error("{command} did not finish within {} and was killed", humantime(.after))]
    RuntimeTimeout {
        /// The command, for example `runc start`.
        command: String,
        /// The time limit.
        after: Duration,
    },
    /// The output of the process is not stored where it could be read.
    #[error("the output of container {id} can't be read back: {reason}")]
    NoLog {
        /// The container.
        id: ContainerId,
        /// Where the output goes, and where to look for it.
        reason: String,
    },
    /// The log has no timestamps.
    #[error("the log of container {id} has no times: the driver file writes raw output")]
    NoTimes {
        /// The container.
        id: ContainerId,
    },
    /// A system call failed.
    #[error("{attempt}: {cause}")]
    Io {
        /// What was attempted, and on what.
        attempt: String,
        /// The error of the system. It is part of the message, so it is not also a
        /// [`source`](std::error::Error::source), which would be printed a second time.
        cause: io::Error,
    },
    /// The process was created without standard input.
    #[error("container {0} was made without an input")]
    NoInput(ContainerId),
    /// The process was created without a terminal.
    #[error("container {0} has no terminal")]
    NoTerminal(ContainerId),
    /// A start did not end in time after it was cancelled.
    #[error("the start of container {id} does not end: {} after it was cancelled its runtime is still running", humantime(.after))]
    StartDoesNotEnd {
        /// The container.
        id: ContainerId,
        /// How long the supervisor waited.
        after: Duration,
    },
    /// The supervisor was shut down, or the Tokio runtime on which it was opened is gone. The
    /// containers keep running.
    #[error("the supervisor is shut down, or its Tokio runtime is gone; its containers run on")]
    Closed,
    /// A bug in this library: one of its tasks panicked.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// Converts the result of a task, which may have panicked or ended together with the Tokio
    /// runtime.
    pub(crate) fn joined<T>(joined: Result<Result<T, Self>, JoinError>) -> Result<T, Self> {
        match joined.map_err(JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Err(Self::Internal(text.unwrap_or_else(|| "a panic without a message".to_owned())))
            }
            Err(Err(_)) => Err(Self::Closed),
        }
    }

    /// Adds what was attempted to an I/O error; for `map_err`.
    pub(crate) fn io(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |cause| Self::Io { attempt, cause }
    }
}

fn appended(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

fn humantime(duration: &Duration) -> String {
    format!("{duration:?}")
}
