//! Failures as HTTP answers: whatever goes wrong with a request, the body is an [`ErrorBody`].

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use holdfast_supervisor::Error;

use crate::api::{ErrorBody, ErrorKind};

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Usually what follows from the kind.
    status: StatusCode,
    pub(crate) body: ErrorBody,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let status = match kind {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Exists | ErrorKind::WrongState => StatusCode::CONFLICT,
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::Invalid | ErrorKind::CommandNotFound | ErrorKind::NotExecutable => {
                StatusCode::BAD_REQUEST
            }
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Runtime => StatusCode::BAD_GATEWAY,
            ErrorKind::Limit | ErrorKind::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, body: ErrorBody { kind, message: message.into() } }
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// With another HTTP status than the kind's.
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        use holdfast_supervisor::ErrorKind as Library;
        let kind = match error.kind() {
            Library::NotFound => ErrorKind::NotFound,
            Library::Exists => ErrorKind::Exists,
            Library::Invalid => ErrorKind::Invalid,
            Library::WrongState => ErrorKind::WrongState,
            Library::Timeout => ErrorKind::Timeout,
            Library::CommandNotFound => ErrorKind::CommandNotFound,
            Library::NotExecutable => ErrorKind::NotExecutable,
            Library::Runtime => ErrorKind::Runtime,
            Library::Limit => ErrorKind::Limit,
            Library::Closed => ErrorKind::ShuttingDown,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(ErrorKind::Invalid, rejection.body_text())
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::new(ErrorKind::Invalid, rejection.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
