//! What processes write, as frames: one handler a request, and the streams that they share.

use std::future::ready;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::BytesMut;
use futures::stream::once;
use futures::{Stream, StreamExt};
use holdfast_supervisor::{
    Error, ExitStatus, LogChunk, LogOptions, LogReader, Mark, OutputStream, ProcessId, Status,
    Supervisor,
};
use tokio_util::codec::Encoder;

use crate::api::{ErrorKind, LogQuery, Message, Of, Started};
use crate::body::Input;
use crate::error::Failure;
use crate::frame::{self, Codec, Frame};
use crate::routes::{Answer, Asked, Path, find, find_process};

pub(crate) fn routes() -> Router<Supervisor> {
    Router::new()
        .route("/containers/{id}/logs", get(logs))
        .route("/containers/{id}/attach", get(attach))
        .route("/containers/{id}/reopen-logs", post(reopen_logs))
}

async fn logs(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Asked(query): Asked<LogQuery>,
) -> Answer<Response> {
    let mut options = LogOptions::new();
    if let Some(since) = &query.since {
        let wrong = |error| Failure::new(ErrorKind::Invalid, format!("since {since:?}: {error}"));
        options = options.since(humantime::parse_rfc3339(since).map_err(wrong)?);
    }
    if let Some(lines) = query.tail {
        options = options.tail(lines);
    }
    let container = find(&supervisor, &id)?;
    let log = match find_process(&container, query.process)? {
        None => container.logs_with(options)?,
        Some(exec) => exec.logs_with(options)?,
    };
    let times = if query.timestamps { Times::Shown } else { Times::Hidden };
    if times == Times::Shown && !log.has_times() {
        return Err(Error::NoTimes { id: id.parse().map_err(Error::from)? }.into());
    }
    Ok(frames(output(log, query.follow, times)))
}

async fn attach(State(supervisor): State<Supervisor>, Path(id): Path<String>) -> Answer<Response> {
    let container = find(&supervisor, &id)?;
    if container.info().status == Status::Stopped {
        let message =
            format!("container {id} has ended; see `holdfast logs {id}` for what it wrote");
        return Err(Failure::new(ErrorKind::WrongState, message));
    }
    let log = match container.logs_with(LogOptions::new().tail(0)) {
        // There may be an input to attach to all the same.
        Err(error @ Error::NoLog { .. }) => Err(error.to_string()),
        log => Ok(log?),
    };
    let started = Started {
        container: container.id().clone(),
        process: ProcessId::init(),
        stdin: container.stdin_path(),
        terminal: container.has_terminal(),
    };
    let ended = async move { container.wait().await };
    Ok(match log {
        Ok(log) => life(started, log, ended),
        Err(reason) => {
            let notice = Frame::Notice(format!("holdfast: {reason}\n").into());
            whole(started, once(ready(notice)), ended)
        }
    })
}

async fn reopen_logs(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<Of>,
) -> Answer<StatusCode> {
    let container = find(&supervisor, &id)?;
    match find_process(&container, request.process)? {
        None => container.reopen_logs()?,
        Some(exec) => exec.reopen_logs()?,
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The whole life of a process as frames: its start, its output, its end.
pub(crate) fn life(
    started: Started,
    log: LogReader,
    ended: impl Future<Output = Result<ExitStatus, Error>> + Send + 'static,
) -> Response {
    whole(started, output(log, true, Times::Hidden), ended)
}

fn whole(
    started: Started,
    output: impl Stream<Item = Frame> + Send + 'static,
    ended: impl Future<Output = Result<ExitStatus, Error>> + Send + 'static,
) -> Response {
    let last = async move {
        Frame::Message(match ended.await {
            Ok(status) => Message::Exited(status),
            Err(error) => Message::Failed(Failure::from(error).body),
        })
    };
    let first = once(ready(Frame::Message(Message::Started(started))));
    // Output that cannot be read costs nobody the status, which comes last.
    let output = output.map(|frame| match frame {
        Frame::Message(Message::Failed(failure)) => {
            Frame::Notice(format!("holdfast: {}\n", failure.message).into())
        }
        frame => frame,
    });
    frames(first.chain(output).chain(once(last)))
}

/// Whether each line begins with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    Shown,
    Hidden,
}

fn output(log: LogReader, follow: bool, times: Times) -> impl Stream<Item = Frame> {
    let begin = (log, Lines::default());
    futures::stream::unfold(Some(begin), move |state| async move {
        let (mut log, mut lines) = state?;
        match if follow { log.follow().await } else { log.next().await } {
            Ok(Some(chunk)) => {
                let bytes = match times {
                    Times::Shown => lines.with_time(&chunk),
                    Times::Hidden => chunk.bytes,
                };
                let frame = match chunk.mark {
                    Mark::Notice => Frame::Notice(bytes),
                    Mark::Plain | Mark::Again => Frame::Output(chunk.stream, bytes),
                };
                Some((frame, Some((log, lines))))
            }
            Ok(None) => None,
            Err(error) => {
                let failure =
                    Failure::new(ErrorKind::Internal, format!("read the output: {error}"));
                Some((Frame::Message(Message::Failed(failure.body)), None))
            }
        }
    })
}

/// Which streams are in the middle of a line.
#[derive(Debug, Default)]
struct Lines {
    stdout: bool,
    stderr: bool,
}

impl Lines {
    /// A piece, with its time where it begins a line.
    fn with_time(&mut self, chunk: &LogChunk) -> Bytes {
        let mut notice = false;
        let within = match (chunk.mark, chunk.stream) {
            (Mark::Notice, _) => &mut notice,
            (_, OutputStream::Stdout) => &mut self.stdout,
            (_, OutputStream::Stderr) => &mut self.stderr,
        };
        let begins = !std::mem::replace(within, !chunk.ends_line());
        match &chunk.time {
            Some(time) if begins => [time.as_bytes(), b" ", &chunk.bytes].concat().into(),
            _ => chunk.bytes.clone(),
        }
    }
}

fn frames(frames: impl Stream<Item = Frame> + Send + 'static) -> Response {
    let encoded = frames.map(|frame| {
        let mut bytes = BytesMut::new();
        Codec.encode(frame, &mut bytes)?;
        Ok::<_, std::io::Error>(bytes.freeze())
    });
    ([(header::CONTENT_TYPE, frame::CONTENT_TYPE)], Body::from_stream(encoded)).into_response()
}
