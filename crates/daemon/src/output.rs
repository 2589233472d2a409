//! What processes write, as frames: one handler a request, and the streams that they share.

use std::future::ready;
use std::time::SystemTime;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::NoContent;
use bytes::{Buf, BytesMut};
use futures::stream::once;
use futures::{Stream, StreamExt};
use holdfast_supervisor::{
    Container, Error, ExecProcess, ExitStatus, Incarnation, LogChunk, LogOptions, LogPosition,
    LogReader, Mark, OutputStream, ProcessId, Status, Supervisor,
};
use serde::{Deserialize, Serialize};
use tokio_util::codec::Encoder;

use crate::answer::Frames;
use crate::api::{AttachQuery, ErrorKind, LogQuery, Message, Of, Started};
use crate::body::Input;
use crate::error::Failure;
use crate::frame::{Codec, Frame};
use crate::routes::{Answer, Asked, Path, find, find_incarnation, find_process, past_exit};

pub(crate) async fn logs(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Asked(query): Asked<LogQuery>,
) -> Answer<Frames> {
    let mut options = LogOptions::new();
    if let Some(since) = &query.since {
        options = options.since(time("since", since)?);
    }
    let before = query.until.as_deref().map(|until| time("until", until)).transpose()?;
    if let Some(lines) = query.tail {
        options = options.tail(lines);
    }
    let after = query.after.as_deref().map(Place::parse).transpose()?;
    let incarnation = after.as_ref().and_then(|after| after.incarnation);
    let whose = Whose::find(&supervisor, &id, incarnation, query.process)?;
    let log = whose.logs(after.as_ref(), options)?;
    let times = if query.timestamps { Times::Shown } else { Times::Hidden };
    if (times == Times::Shown || before.is_some()) && !log.has_times() {
        return Err(Error::NoTimes { id: id.parse().map_err(Error::from)? }.into());
    }
    let lines = after.map(|it| it.lines).unwrap_or_default();
    let places = whose.places(query.positions, lines);
    let follow = if query.follow { Until::Ended } else { Until::Now };
    let skip = Skip { stdout: query.stdout, stderr: query.stderr, notices: query.notices };
    Ok(frames(skip.of(output(log, follow, before, times, places))))
}

fn time(name: &str, text: &str) -> Answer<SystemTime> {
    humantime::parse_rfc3339(text)
        .map_err(|error| Failure::new(ErrorKind::Invalid, format!("{name} {text:?}: {error}")))
}

pub(crate) async fn attach(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Asked(query): Asked<AttachQuery>,
) -> Answer<Frames> {
    match attach_to(&supervisor, &id, &query).await {
        // It may also be removed at this very moment.
        Err(unknown) if query.resume && unknown.body.kind == ErrorKind::NotFound => {
            removed(&supervisor, &id, query).await
        }
        attached => attached,
    }
}

async fn attach_to(supervisor: &Supervisor, id: &str, query: &AttachQuery) -> Answer<Frames> {
    let whose = Whose::find(supervisor, id, query.incarnation, query.process.clone())?;
    let after = query.after.as_deref().map(Place::parse).transpose()?;
    let info = whose.container.info();
    let past = query.run.filter(|run| whose.exec.is_none() && info.run > *run);
    if query.resume {
        whose.begun().await?;
    } else if info.status == Status::Stopped {
        let message =
            format!("container {id} has ended; see `holdfast logs {id}` for what it wrote");
        return Err(Failure::new(ErrorKind::WrongState, message));
    }
    let options = if query.resume { LogOptions::new() } else { LogOptions::new().tail(0) };
    let log = match whose.logs(after.as_ref(), options) {
        // There may be an input to attach to all the same.
        Err(error @ Error::NoLog { .. }) => Err(error.to_string()),
        log => Ok(log?),
    };
    let places = whose.places(query.positions, Lines::default());
    let mut started = whose.started();
    let until = match past {
        None => Until::Ended,
        Some(run) => {
            started.run = run;
            Until::Time(whose.container.exit_of_run(run).await?.time.as_str().to_owned())
        }
    };
    let ended = whose.clone().ended(query.run);
    let guard = Leaving(Some(whose));
    let skip = Skip { stdout: query.stdout, stderr: query.stderr, notices: query.notices };
    Ok(match log {
        Ok(log) => {
            whole(started, skip.of(output(log, until, None, Times::Hidden, places)), ended, guard)
        }
        Err(_) if query.resume => whole(started, futures::stream::empty(), ended, guard),
        Err(reason) => {
            let notice = Frame::Notice(format!("holdfast: {reason}\n").into());
            whole(started, once(ready(notice)), ended, guard)
        }
    })
}

/// What is known of a process that was removed: its status, from the journal.
async fn removed(supervisor: &Supervisor, id: &str, query: AttachQuery) -> Answer<Frames> {
    let id = id.parse().map_err(Error::from)?;
    let process = query.process.unwrap_or_else(ProcessId::init);
    let exit = past_exit(supervisor, &id, &process, query.incarnation, query.run).await?;
    let notice = format!(
        "holdfast: container {id} was removed before its output was read to the end; the rest of it is lost\n"
    );
    let last = Frame::Message(Message::Exited(exit.status));
    Ok(frames(futures::stream::iter([Frame::Notice(notice.into()), last])))
}

/// A process of which the output is read.
#[derive(Debug, Clone)]
pub(crate) struct Whose {
    pub(crate) container: Container,
    /// `None` for the container's first.
    pub(crate) exec: Option<ExecProcess>,
}

impl Whose {
    /// Finds a process, if the container is of this incarnation.
    pub(crate) fn find(
        supervisor: &Supervisor,
        id: &str,
        incarnation: Option<Incarnation>,
        process: Option<ProcessId>,
    ) -> Answer<Self> {
        let container = find_incarnation(supervisor, id, incarnation)?;
        let exec = find_process(&container, process)?;
        Ok(Self { container, exec })
    }

    fn places(&self, wanted: bool, lines: Lines) -> Places {
        match wanted {
            true => Places::Told { incarnation: self.container.info().incarnation, lines },
            false => Places::Kept,
        }
    }

    pub(crate) fn started(&self) -> Started {
        let info = self.container.info();
        let (process, stdin, terminal) = match &self.exec {
            None => {
                let container = &self.container;
                (ProcessId::init(), container.stdin_path(), container.has_terminal())
            }
            Some(exec) => (exec.id().clone(), exec.stdin_path(), exec.has_terminal()),
        };
        let (incarnation, run) = (info.incarnation, info.run);
        Started { container: info.id, process, stdin, terminal, incarnation, run }
    }

    fn logs(&self, after: Option<&Place>, options: LogOptions) -> Result<LogReader, Error> {
        match (&self.exec, after) {
            (None, None) => self.container.logs_with(options),
            (None, Some(after)) => self.container.logs_after(&after.log, options),
            (Some(exec), None) => exec.logs_with(options),
            (Some(exec), Some(after)) => exec.logs_after(&after.log, options),
        }
    }

    async fn begun(&self) -> Result<(), Error> {
        match &self.exec {
            None => self.container.begun().await,
            Some(exec) => exec.begun().await,
        }
    }

    async fn ended(self, run: Option<u32>) -> Result<ExitStatus, Error> {
        match (&self.exec, run) {
            (Some(exec), _) => exec.wait().await,
            (None, Some(run)) => self.container.exit_of_run(run).await.map(|exit| exit.status),
            (None, None) => self.container.wait().await,
        }
    }

    /// Ends the wait of an automatic deletion.
    pub(crate) fn release(&self) {
        match &self.exec {
            None => self.container.release(),
            Some(exec) => exec.release(),
        }
    }
}

/// Lets an automatic deletion go on if the client leaves before the end. One that stays to the end has
/// that done itself when it has read all: what we have sent may not have reached it yet.
struct Leaving(Option<Whose>);

impl Leaving {
    fn stays(mut self) {
        self.0 = None;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(whose) = &self.0 {
            whose.release();
        }
    }
}

/// A position, as the client hands it back.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    incarnation: Option<Incarnation>,
    log: LogPosition,
    #[serde(default)]
    lines: Lines,
}

impl Place {
    fn parse(text: &str) -> Answer<Self> {
        serde_json::from_str(text)
            .map_err(|error| Failure::new(ErrorKind::Invalid, format!("the position: {error}")))
    }
}

/// Whether the client gets positions.
enum Places {
    Kept,
    Told { incarnation: Option<Incarnation>, lines: Lines },
}

/// How many bytes the client has had already.
struct Skip {
    stdout: u64,
    stderr: u64,
    notices: u64,
}

impl Skip {
    fn of(mut self, frames: impl Stream<Item = Frame>) -> impl Stream<Item = Frame> {
        frames.filter_map(move |mut frame| {
            let had = match &mut frame {
                Frame::Output(OutputStream::Stdout, bytes) => Some((&mut self.stdout, bytes)),
                Frame::Output(OutputStream::Stderr, bytes) => Some((&mut self.stderr, bytes)),
                Frame::Notice(bytes) => Some((&mut self.notices, bytes)),
                Frame::Message(_) | Frame::Position(_) => None,
            };
            if let Some((left, bytes)) = had
                && *left > 0
            {
                let had = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= had as u64;
                bytes.advance(had);
                return ready((!bytes.is_empty()).then_some(frame));
            }
            // Not before all of it: it would stand for bytes that the client has had.
            let is_place = matches!(frame, Frame::Position(_));
            let all_had = self.stdout + self.stderr + self.notices == 0;
            ready((!is_place || all_had).then_some(frame))
        })
    }
}

pub(crate) async fn reopen_logs(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<Of>,
) -> Answer<NoContent> {
    let container = find(&supervisor, &id)?;
    match find_process(&container, request.process)? {
        None => container.reopen_logs()?,
        Some(exec) => exec.reopen_logs()?,
    }
    Ok(NoContent)
}

/// The whole life of a process as frames: its start, its output, its end.
pub(crate) async fn life(whose: Whose, log: LogReader, positions: bool) -> Frames {
    let started = whose.started();
    let places = whose.places(positions, Lines::default());
    let ended = whose.clone().ended(whose.exec.is_none().then_some(started.run));
    let output = output(log, Until::Ended, None, Times::Hidden, places);
    whole(started, output, ended, Leaving(Some(whose)))
}

fn whole(
    started: Started,
    output: impl Stream<Item = Frame> + Send + 'static,
    ended: impl Future<Output = Result<ExitStatus, Error>> + Send + 'static,
    leaving: Leaving,
) -> Frames {
    let last = async move {
        let ended = ended.await;
        leaving.stays();
        Frame::Message(match ended {
            Ok(status) => Message::Exited(status),
            Err(error) => Message::Failed(Failure::from(error).body),
        })
    };
    let first = once(ready(Frame::Message(Message::Started(started))));
    // Output that cannot be read costs nobody the status, which comes last.
    let output = output.filter_map(|frame| {
        ready(match frame {
            // The same is said of the status.
            Frame::Message(Message::Failed(failure)) if failure.kind == ErrorKind::ShuttingDown => {
                None
            }
            Frame::Message(Message::Failed(failure)) => {
                Some(Frame::Notice(format!("holdfast: {}\n", failure.message).into()))
            }
            frame => Some(frame),
        })
    });
    frames(first.chain(output).chain(once(last)))
}

/// Whether each line begins with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    Shown,
    Hidden,
}

/// Where the output ends.
#[derive(Debug)]
enum Until {
    /// With what is there.
    Now,
    /// With the process.
    Ended,
    /// With what was written at this time: that of a later run follows in the same log.
    Time(String),
}

/// The state of a stream of output.
struct Reading {
    log: LogReader,
    lines: Lines,
    until: Until,
    /// What was written at this time or later is passed over.
    before: Option<SystemTime>,
    times: Times,
    places: Places,
    begun: bool,
}

fn output(
    log: LogReader,
    until: Until,
    before: Option<SystemTime>,
    times: Times,
    places: Places,
) -> impl Stream<Item = Frame> {
    let lines = match &places {
        Places::Told { lines, .. } => lines.clone(),
        Places::Kept => Lines::default(),
    };
    let begin = Reading { log, lines, until, before, times, places, begun: false };
    futures::stream::unfold(Some(begin), move |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(frames) if frames.is_empty() => None,
            Ok(frames) => Some((frames, Some(reading))),
            Err(error) => {
                let closed = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
                let kind = match closed {
                    Some(Error::Closed) => ErrorKind::ShuttingDown,
                    _ => ErrorKind::Internal,
                };
                let failure = Failure::new(kind, format!("read the output: {error}"));
                Some((vec![Frame::Message(Message::Failed(failure.body))], None))
            }
        }
    })
    .flat_map(futures::stream::iter)
}

impl Reading {
    /// The next frames; none at the end.
    async fn next(&mut self) -> std::io::Result<Vec<Frame>> {
        if !std::mem::replace(&mut self.begun, true) && matches!(self.places, Places::Told { .. }) {
            // Without this one, a client that has had nothing yet would not know what is new.
            self.log.locate().await?;
            if let Some(place) = self.place() {
                return Ok(vec![place]);
            }
        }
        let chunk = loop {
            let chunk = self.chunk().await?;
            // All of it is looked at: the times of two streams are not in one order.
            if chunk.as_ref().is_none_or(|chunk| self.is_before(chunk)) {
                break chunk;
            }
        };
        let Some(chunk) = chunk else { return Ok(Vec::new()) };
        let bytes = match self.times {
            Times::Shown => self.lines.with_time(&chunk),
            Times::Hidden => chunk.bytes,
        };
        let frame = match chunk.mark {
            Mark::Notice => Frame::Notice(bytes),
            Mark::Plain | Mark::Again => Frame::Output(chunk.stream, bytes),
        };
        Ok(std::iter::once(frame).chain(self.place()).collect())
    }

    async fn chunk(&mut self) -> std::io::Result<Option<LogChunk>> {
        Ok(match &self.until {
            Until::Ended => self.log.follow().await?,
            Until::Now => self.log.next().await?,
            Until::Time(last) => {
                let chunk = self.log.next().await?;
                chunk.filter(|chunk| chunk.time.as_ref().is_none_or(|time| time <= last))
            }
        })
    }

    fn is_before(&self, chunk: &LogChunk) -> bool {
        let Some(before) = self.before else { return true };
        let time = chunk.time.as_ref().and_then(|time| humantime::parse_rfc3339(time).ok());
        time.is_none_or(|time| time < before)
    }

    /// The position as a frame, if the client wants it and there is one just here.
    fn place(&self) -> Option<Frame> {
        let Places::Told { incarnation, .. } = self.places else { return None };
        let log = self.log.position()?;
        let place = Place { incarnation, log, lines: self.lines.clone() };
        Some(Frame::Position(serde_json::to_vec(&place).ok()?.into()))
    }
}

/// Which streams are in the middle of a line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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

fn frames(frames: impl Stream<Item = Frame> + Send + 'static) -> Frames {
    let encoded = frames.map(|frame| {
        let mut bytes = BytesMut::new();
        Codec.encode(frame, &mut bytes)?;
        Ok::<_, std::io::Error>(bytes.freeze())
    });
    Frames(Body::from_stream(encoded))
}
