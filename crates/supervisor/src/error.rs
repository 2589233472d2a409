//! What can go wrong, said for the person who must act on it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_state::{ContainerId, InvalidId, InvalidLog, LockError, ProcessId};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::task::JoinError;

/// What can go wrong. The seed's names stand in brackets.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is no id.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// Output can't go there, or not in that way.
    #[error(transparent)]
    InvalidLog(#[from] InvalidLog),
    /// The state root can't be taken.
    #[error(transparent)]
    Root(#[from] LockError),
    /// No container has this id.
    #[error("no such container: {0}")]
    NotFound(ContainerId),
    /// The id belongs to another container.
    #[error("container {0} exists already; delete it first, or choose another id")]
    Exists(ContainerId),
    /// A process of the container has this id already.
    #[error("container {0} has a process {1} already")]
    ProcessExists(ContainerId, ProcessId),
    /// The bundle can't be used.
    #[error("bundle {path}: {reason}")]
    Bundle {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A root file system can't be used.
    #[error("root file system {path}: {reason}")]
    Rootfs {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An executable that Holdfast needs is missing.
    #[error("{name}: not installed on system (looked in {looked})")]
    NotInstalled {
        /// What is missing.
        name: String,
        /// Where it was looked for.
        looked: String,
    },
    /// What was given as a FIFO is none \[`ErrNotFifo`\].
    #[error("{0}: not a FIFO; make one with mkfifo(1)")]
    NotFifo(PathBuf),
    /// There is no room for another container.
    #[error("no more containers: nearly all {of} are in use, of {most}; raise {raise}")]
    Limit {
        /// Of what.
        of: &'static str,
        /// How much there may be.
        most: u64,
        /// What raises it.
        raise: &'static str,
    },
    /// A checkpoint can't be used.
    #[error("checkpoint {path}: {reason}")]
    Checkpoint {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The process has no shim that could do it.
    #[error("process {process} of container {id} has lost its shim, which {operation} needs")]
    NoShim {
        /// The container.
        id: ContainerId,
        /// The process.
        process: ProcessId,
        /// What was asked.
        operation: &'static str,
    },
    /// The container did not start in time; all that was started is gone again
    /// \[`ErrContainerStartTimeout`\].
    #[error("container did not start before the specified timeout of {}{}", humantime(.timeout), appended(.detail))]
    StartTimeout {
        /// The time it was given.
        timeout: Duration,
        /// What the logs of the shim and the runtime say, or nothing.
        detail: String,
    },
    /// The runtime failed. The text is its own.
    #[error("oci runtime error: {0}")]
    Runtime(String),
    /// The shim failed. The text is its own.
    #[error("shim error: {0}")]
    Shim(String),
    /// The shim ended before the container's process was there, and left no word
    /// \[`ErrContainerNotStarted`, `ErrShimExited`\].
    #[error("container not started: the shim exited before the process was there{}", appended(.0))]
    NotStarted(String),
    /// The operation needs the container in another state.
    #[error("container {id} is {status}, and {operation} needs it {needed}")]
    WrongState {
        /// The container.
        id: ContainerId,
        /// Its state now.
        status: &'static str,
        /// What was asked.
        operation: &'static str,
        /// What that takes.
        needed: &'static str,
    },
    /// A process did not end within the time after it was killed: it hangs in the kernel.
    #[error("process {pid} of container {id} still lives {} after SIGKILL; it hangs in the kernel", humantime(.after))]
    SurvivesKill {
        /// The container.
        id: ContainerId,
        /// The process.
        pid: i32,
        /// How long it was waited for.
        after: Duration,
    },
    /// A runtime command did not end in time and was killed.
    #[error("{command} did not end within {} and was killed", humantime(.after))]
    RuntimeTimeout {
        /// The command, as in `runc start`.
        command: String,
        /// The time it was given.
        after: Duration,
    },
    /// The output of the process is not kept where it could be read.
    #[error("the output of container {id} can't be read back: {reason}")]
    NoLog {
        /// The container.
        id: ContainerId,
        /// Where it goes, and where to look.
        reason: String,
    },
    /// Its log has no times.
    #[error("the log of container {id} has no times: it is a file of the very bytes (driver file)")]
    NoTimes {
        /// The container.
        id: ContainerId,
    },
    /// A system call failed.
    #[error("{attempt}: {cause}")]
    Io {
        /// What was attempted, on what.
        attempt: String,
        /// What the system said. It is in the text, so it is no [`source`](std::error::Error::source) to be
        /// printed once more.
        cause: io::Error,
    },
    /// The process was made without an input.
    #[error("container {0} was made without an input")]
    NoInput(ContainerId),
    /// The process was made without a terminal.
    #[error("container {0} has no terminal")]
    NoTerminal(ContainerId),
    /// A start did not end within the time after it was cut short.
    #[error("the start of container {id} does not end: {} after it was cut short its runtime is still at work", humantime(.after))]
    StartDoesNotEnd {
        /// The container.
        id: ContainerId,
        /// How long it was waited for.
        after: Duration,
    },
    /// The supervisor was shut down, or the Tokio runtime where it was opened is gone. The containers run on.
    #[error("the supervisor is shut down, or its runtime is gone; its containers run on")]
    Closed,
    /// A fault of this library: a part of it has panicked.
    #[error("internal error: {0}")]
    Internal(String),
}

/// The kind of an [`Error`], for programs that act on it.
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
            | Self::Checkpoint { .. }
            | Self::NotInstalled { .. }
            | Self::NoLog { .. }
            | Self::NoTimes { .. } => ErrorKind::Invalid,
            Self::WrongState { .. }
            | Self::NoShim { .. }
            | Self::NoInput(_)
            | Self::NoTerminal(_) => ErrorKind::WrongState,
            Self::StartTimeout { .. }
            | Self::RuntimeTimeout { .. }
            | Self::SurvivesKill { .. }
            | Self::StartDoesNotEnd { .. } => ErrorKind::Timeout,
            Self::Runtime(text) => program_fault(text).unwrap_or(ErrorKind::Runtime),
            Self::Shim(_) | Self::NotStarted(_) => ErrorKind::Runtime,
            Self::Limit { .. } => ErrorKind::Limit,
            Self::Closed => ErrorKind::Closed,
            Self::Root(_) | Self::Io { .. } | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// What came of a task: it may have panicked, or have gone with the runtime.
    pub(crate) fn joined<T>(joined: Result<Result<T, Self>, JoinError>) -> Result<T, Self> {
        match joined.map_err(JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Err(Self::Internal(text.unwrap_or_else(|| "a panic without a text".to_owned())))
            }
            Err(Err(_)) => Err(Self::Closed),
        }
    }

    /// For `map_err`: says what was attempted.
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
        assert_eq!(kind("cgroups: no such device"), ErrorKind::Runtime);
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
