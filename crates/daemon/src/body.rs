//! The body of a request: bounded in size, in time and, over all requests, in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::ErrorKind;
use crate::error::Failure;

/// The largest body, in bytes.
const LARGEST: usize = 2 * 1024 * 1024;
/// How many bytes all large bodies together may hold. One that finds no room waits, within its time. Small
/// ones do not wait: a client that sends a large body slowly holds up no other but large ones.
const TOGETHER: usize = 16 * 1024 * 1024;
/// How long a client may take to send a body.
const LIMIT: Duration = Duration::from_secs(30);
/// A body of this size, in bytes, is large: it needs room, and its memory is worth giving back.
const LARGE: usize = 64 * 1024;

static ROOM: Semaphore = Semaphore::const_new(TOGETHER);

/// Whether memory is about to be given back.
static GIVING_BACK: AtomicBool = AtomicBool::new(false);

/// A JSON body. Its content type is not looked at: there is no other.
pub(crate) struct Input<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let late = |_| {
            let text = format!("the body did not arrive within {LIMIT:?}");
            Failure::new(ErrorKind::Timeout, text).with_status(StatusCode::REQUEST_TIMEOUT)
        };
        let read = tokio::time::timeout(LIMIT, read(request.into_body()));
        let (bytes, _room) = read.await.map_err(late)??;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let status = match error.classify() {
                Category::Data => StatusCode::UNPROCESSABLE_ENTITY,
                _ => StatusCode::BAD_REQUEST,
            };
            Failure::new(ErrorKind::Invalid, format!("the body: {error}")).with_status(status)
        })
    }
}

async fn read(body: Body) -> Result<(Vec<u8>, Option<SemaphorePermit<'static>>), Failure> {
    // What its head says, or the most that it may have.
    let length = body.size_hint().upper().and_then(|length| usize::try_from(length).ok());
    let length = length.unwrap_or(LARGEST).min(LARGEST);
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut room) = (Vec::new(), None);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Failure::new(ErrorKind::Invalid, format!("the body cannot be read: {error}"))
        })?;
        if bytes.len() + chunk.len() > LARGEST {
            let text = format!("a body has at most {LARGEST} bytes");
            return Err(
                Failure::new(ErrorKind::Invalid, text).with_status(StatusCode::PAYLOAD_TOO_LARGE)
            );
        }
        if room.is_none() && bytes.len() + chunk.len() > LARGE {
            // All that it needs, at once: many bodies that each had a part of their room would wait for
            // each other. Never closed, so this is no error.
            let wanted = u32::try_from(length).unwrap_or(u32::MAX);
            room = ROOM.acquire_many(wanted).await.ok();
        }
        bytes.extend_from_slice(&chunk);
    }
    give_back_soon(bytes.len());
    Ok((bytes, room))
}

/// Has the allocator give back what a body of this size took, if it is large: once for all that come
/// within a second.
pub(crate) fn give_back_soon(size: usize) {
    if size < LARGE || GIVING_BACK.swap(true, Ordering::Relaxed) {
        return;
    }
    tokio::spawn(async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        GIVING_BACK.store(false, Ordering::Relaxed);
        tokio::task::spawn_blocking(holdfast_sys::memory::trim);
    });
}
