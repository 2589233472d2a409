//! The library's errors as HTTP answers.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use holdfast_supervisor::Error;

use crate::api::{ErrorBody, ErrorKind};

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) ErrorBody);

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(ErrorBody { kind, message: message.into() })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NotFound(_) => ErrorKind::NotFound,
            Error::Exists(_) | Error::ProcessExists(..) => ErrorKind::Exists,
            Error::InvalidId(_)
            | Error::InvalidLog(_)
            | Error::Bundle { .. }
            | Error::Rootfs { .. }
            | Error::NotFifo(_)
            | Error::Checkpoint { .. }
            | Error::NotInstalled { .. }
            | Error::NoLog { .. }
            | Error::NoTimes { .. } => ErrorKind::Invalid,
            Error::WrongState { .. }
            | Error::NoShim { .. }
            | Error::NoInput(_)
            | Error::NoTerminal(_) => ErrorKind::WrongState,
            Error::StartTimeout { .. }
            | Error::RuntimeTimeout { .. }
            | Error::SurvivesKill { .. }
            | Error::StartDoesNotEnd { .. } => ErrorKind::Timeout,
            Error::Runtime(_) | Error::Shim(_) | Error::NotStarted(_) => ErrorKind::Runtime,
            Error::Closed => ErrorKind::ShuttingDown,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.kind {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Exists | ErrorKind::WrongState => StatusCode::CONFLICT,
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Runtime => StatusCode::BAD_GATEWAY,
            ErrorKind::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self.0)).into_response()
    }
}
