//! Why a start has failed. Several callers can wait for one start, and each gets the reason. So the reason can be
//! cloned; an [`Error`] can't.

use std::io;
use std::time::Duration;

use crate::error::Error;

#[derive(Debug, Clone)]
pub(crate) enum Failure {
    Timeout { timeout: Duration, detail: String },
    Runtime(String),
    Shim(String),
    NotStarted(String),
    NotBegun,
    Io { attempt: String, code: Option<i32>, kind: io::ErrorKind, text: String },
}

impl Failure {
    /// A step of ours that failed.
    pub(crate) fn io(attempt: String, cause: &io::Error) -> Self {
        let (code, kind) = (cause.raw_os_error(), cause.kind());
        Self::Io { attempt, code, kind, text: cause.to_string() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Timeout { timeout, detail } => Self::StartTimeout { timeout, detail },
            Failure::Runtime(text) => Self::Runtime(text),
            Failure::Shim(text) => Self::Shim(text),
            Failure::NotStarted(text) => Self::NotStarted(text),
            Failure::NotBegun => Self::NotBegun,
            Failure::Io { attempt, code, kind, text } => {
                let cause = code.map(io::Error::from_raw_os_error);
                Self::Io { attempt, cause: cause.unwrap_or_else(|| io::Error::new(kind, text)) }
            }
        }
    }
}
