//! Errors, as containerd knows them.

use holdfast_supervisor::{Error, ErrorKind};
use holdfast_ttrpc::rpc::{Code, Failure};

/// What a call returns.
pub(crate) type Answer<T> = Result<T, Failure>;

pub(crate) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidArgument, message)
}

pub(crate) fn not_found(message: impl Into<String>) -> Failure {
    Failure::new(Code::NotFound, message)
}

pub(crate) fn precondition(message: impl Into<String>) -> Failure {
    Failure::new(Code::FailedPrecondition, message)
}

pub(crate) fn internal(message: impl Into<String>) -> Failure {
    Failure::new(Code::Internal, message)
}

/// An error of the library.
pub(crate) fn of(error: &Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Exists => Code::AlreadyExists,
        ErrorKind::WrongState => Code::FailedPrecondition,
        ErrorKind::Limit => Code::ResourceExhausted,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Closed => Code::Unavailable,
        // As runc.v2, whatever the runtime says.
        _ => Code::Unknown,
    };
    Failure::new(code, error.to_string())
}

/// An error of the runtime, in the words that containerd's users search for.
pub(crate) fn of_runtime(error: &Error, what: &str) -> Failure {
    match error {
        Error::Runtime(text) => {
            Failure::new(Code::Unknown, format!("OCI runtime {what} failed: {text}"))
        }
        error => of(error),
    }
}
