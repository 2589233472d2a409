//! What handlers return, as types that say so: the OpenAPI document is made from them.

use std::fmt;
use std::marker::PhantomData;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api::Started;
use crate::frame;

/// The header with the cursor of the beginning of a stream of events.
pub(crate) const CURSOR: &str = "holdfast-cursor";
/// The media type of JSON lines.
pub(crate) const LINES: &str = "application/x-ndjson";

/// Something new, as JSON.
#[derive(Debug)]
pub(crate) struct Created<T>(pub(crate) T);

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        (StatusCode::CREATED, Json(self.0)).into_response()
    }
}

/// A `T` that is JSON already.
pub(crate) struct Text<T> {
    body: Body,
    of: PhantomData<fn() -> T>,
}

impl<T> Text<T> {
    pub(crate) fn new(text: impl Into<Body>) -> Self {
        Self { body: text.into(), of: PhantomData }
    }
}

impl<T> IntoResponse for Text<T> {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], self.body).into_response()
    }
}

/// A stream of [frames](crate::frame).
#[derive(Debug)]
pub(crate) struct Frames(pub(crate) Body);

impl IntoResponse for Frames {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, frame::CONTENT_TYPE)], self.0).into_response()
    }
}

/// A process that was started in a container.
#[derive(Debug)]
pub(crate) enum Executed {
    Detached(Started),
    Attached(Frames),
}

impl IntoResponse for Executed {
    fn into_response(self) -> Response {
        match self {
            Self::Detached(started) => Json(started).into_response(),
            Self::Attached(frames) => frames.into_response(),
        }
    }
}

/// A stream of JSON, one `T` per line.
pub(crate) struct Lines<T> {
    cursor: String,
    body: Body,
    of: PhantomData<fn() -> T>,
}

impl<T> Lines<T> {
    /// Returns a stream that begins after this cursor.
    pub(crate) fn new(cursor: String, body: Body) -> Self {
        Self { cursor, body, of: PhantomData }
    }
}

impl<T> IntoResponse for Lines<T> {
    fn into_response(self) -> Response {
        let cursor = (HeaderName::from_static(CURSOR), self.cursor);
        ([(header::CONTENT_TYPE, LINES.to_owned()), cursor], self.body).into_response()
    }
}

impl<T> fmt::Debug for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Text").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}
