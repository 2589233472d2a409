//! The errors of this library, worded for the person who must act on them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_state::{ContainerId, InvalidId, InvalidLog, LockError, ProcessId};
use serde::{Deserialize, Serialize};
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
    /// The shim does not understand this library, because it is of an older release.
    #[error(
        "{path} is {found}, and this library needs protocol {needed}; install the holdfast-shim of the same release as the library"
    )]
    ShimVersion {
        /// The path of the shim.
        path: PathBuf,
        /// What it reports of itself; at most some 100 characters.
        found: String,
        /// The protocol that the library speaks.
        needed: u32,
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
    /// An option of a process makes no sense.
    #[error("{0}")]
    InvalidOption(String),
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
    /// The supervisor that was to start the process died before any shim had begun to. Nothing was run, and
    /// nothing of it is left: the start can be asked for again.
    #[error("container not started: the supervisor died before a shim had begun")]
    NotBegun,
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
    /// The operation needs a cgroup of the container's own.
    #[error("{operation} needs a cgroup of the container's own, and it has none: {reason}")]
    NoCgroup {
        /// The requested operation.
        operation: &'static str,
        /// Why containers have none.
        reason: String,
    },
    /// The operation needs the exec process in another state.
    #[error("process {process} of container {id} is {status}, and {operation} needs it {needed}")]
    WrongExecState {
        /// The container.
        id: ContainerId,
        /// The process.
        process: ProcessId,
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

/// The kind of an [`enum@Error`], for programs that act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// No container or process has this id.
    NotFound,
    /// The id is in use.
    Exists,
    /// The request makes no sense as it is.
    Invalid,
    /// The container is in another state.
    WrongState,
    /// Something did not end in time.
    Timeout,
    /// The program is not in the container: what a shell answers with 127.
    CommandNotFound,
    /// The program is there and cannot be executed: what a shell answers with 126.
    NotExecutable,
    /// The OCI runtime or the shim failed.
    Runtime,
    /// The machine has no room for another container.
    Limit,
    /// The supervisor is shut down.
    Closed,
    /// A system call failed, or Holdfast itself did.
    Internal,
}

impl Error {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Exists(_) | Self::ProcessExists(..) => ErrorKind::Exists,
            Self::InvalidId(_)
            | Self::InvalidLog(_)
            | Self::Bundle { .. }
            | Self::Rootfs { .. }
            | Self::NotFifo(_)
            | Self::InvalidOption(_)
            | Self::NoCgroup { .. }
            | Self::Checkpoint { .. }
            | Self::NotInstalled { .. }
            | Self::ShimVersion { .. }
            | Self::NoLog { .. }
            | Self::NoTimes { .. } => ErrorKind::Invalid,
            Self::WrongState { .. }
            | Self::WrongExecState { .. }
            | Self::NoShim { .. }
            | Self::NoInput(_)
            | Self::NoTerminal(_) => ErrorKind::WrongState,
            Self::StartTimeout { .. }
            | Self::RuntimeTimeout { .. }
            | Self::SurvivesKill { .. }
            | Self::StartDoesNotEnd { .. } => ErrorKind::Timeout,
            Self::Runtime(text) => program_fault(text).unwrap_or(ErrorKind::Runtime),
            Self::Shim(_) | Self::NotStarted(_) => ErrorKind::Runtime,
            // There is no such process, and never was.
            Self::NotBegun => ErrorKind::NotFound,
            Self::Limit { .. } => ErrorKind::Limit,
            Self::Closed => ErrorKind::Closed,
            Self::Root(_) | Self::Io { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

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

/// Why a runtime could not run the program of a container. It says so by its text alone, and each runtime has
/// words of its own, capital letters too.
fn program_fault(text: &str) -> Option<ErrorKind> {
    let text = text.to_lowercase();
    let has = |part: &str| text.contains(part);
    // What is missing or refused is then something else than the program.
    let others = [
        "hook #",
        "hooks:",
        "execute hook",
        "chdir to",
        "set working dir",
        "oom_score_adj",
        "mount ",
    ];
    if others.into_iter().any(has) {
        return None;
    }
    if has("executable") && has("not found") || has("no such file or directory") && has("exec") {
        return Some(ErrorKind::CommandNotFound);
    }
    let refused = ["permission denied", "is a directory", "exec format error"];
    (has("exec") && refused.iter().any(|reason| has(reason))).then_some(ErrorKind::NotExecutable)
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound | ErrorKind::CommandNotFound => io::ErrorKind::NotFound,
            ErrorKind::Exists => io::ErrorKind::AlreadyExists,
            ErrorKind::Invalid => io::ErrorKind::InvalidInput,
            ErrorKind::NotExecutable => io::ErrorKind::PermissionDenied,
            ErrorKind::Timeout => io::ErrorKind::TimedOut,
            ErrorKind::Closed => io::ErrorKind::NotConnected,
            ErrorKind::Limit => io::ErrorKind::QuotaExceeded,
            ErrorKind::WrongState | ErrorKind::Runtime | ErrorKind::Internal => match &error {
                Error::Io { cause, .. } => cause.kind(),
                _ => io::ErrorKind::Other,
            },
        };
        Self::new(kind, error)
    }
}

fn appended(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

fn humantime(duration: &Duration) -> String {
    format!("{duration:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_cannot_run_the_program_says_which_kind_of_fault_that_is() {
        let kind = |text: &str| Error::Runtime(text.to_owned()).kind();
        for text in [
            "exec: \"nosuch\": executable file not found in $PATH",
            "exec /nosuch: no such file or directory",
            "Executable not found",
            "exec: \"webhook\": executable file not found in $PATH",
        ] {
            assert_eq!(kind(text), ErrorKind::CommandNotFound, "{text}");
        }
        for text in [
            "exec: \"/etc/passwd\": permission denied",
            "exec /bin: is a directory",
            "Exec format error while executing /x",
        ] {
            assert_eq!(kind(text), ErrorKind::NotExecutable, "{text}");
        }
        for text in [
            "cgroups: no such device",
            "error running prestart hook #0: fork/exec /nohook: no such file or directory",
            "run poststart hooks: execute hook /nohook: permission denied",
            "exec failed: chdir to cwd (\"/no/such\") set in config.json failed: no such file or directory",
            "exec failed: write /proc/self/oom_score_adj: permission denied",
        ] {
            assert_eq!(kind(text), ErrorKind::Runtime, "{text}");
        }
    }

    #[test]
    fn as_an_io_error_it_keeps_its_kind_and_its_text() {
        let cause = io::Error::from(io::ErrorKind::StorageFull);
        let error = io::Error::from(Error::io("write the record")(cause));
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("write the record: "), "{error}");
        let missing = Error::NotFound("web".parse().unwrap());
        assert_eq!(io::Error::from(missing).kind(), io::ErrorKind::NotFound);
    }
}
