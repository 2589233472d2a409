//! The output of a process, over the ends of daemons: each goes on where the one before has ended.

use anyhow::bail;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use holdfast_daemon::api::{
    AttachQuery, ContainerId, ContainerOptions, ErrorKind, ExecOptions, Incarnation, LogQuery,
    Message, ProcessId, Started,
};
use holdfast_daemon::frame::{Codec, Frame, OutputStream};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use tokio_util::codec::FramedRead;
use tokio_util::io::StreamReader;

use crate::away::{Absence, Away, is_away};
use crate::client::{Client, Connection, RequestError};
use crate::streams;

/// How much we have had of the output.
#[derive(Debug, Default)]
struct Had {
    /// The last position,
    after: Option<String>,
    /// and how many bytes of each stream came after that.
    stdout: u64,
    stderr: u64,
    notices: u64,
}

impl Had {
    fn note(&mut self, frame: &Frame) {
        match frame {
            Frame::Output(OutputStream::Stdout, bytes) => self.stdout += bytes.len() as u64,
            Frame::Output(OutputStream::Stderr, bytes) => self.stderr += bytes.len() as u64,
            Frame::Notice(bytes) => self.notices += bytes.len() as u64,
            Frame::Position(position) => {
                let after = Some(String::from_utf8_lossy(position).into_owned());
                *self = Self { after, ..Self::default() };
            }
            Frame::Message(_) => {}
        }
    }
}

/// Frames as they come. They end when the daemon does.
pub(crate) type Frames = std::pin::Pin<Box<dyn Stream<Item = std::io::Result<Frame>>>>;

fn frames(body: Incoming) -> Frames {
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    Box::pin(FramedRead::new(StreamReader::new(bytes), Codec))
}

/// What is asked for first.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A process, by a request that has its id, chosen by us: so we can find out later whether it was
    /// started.
    Start {
        path: String,
        body: Bytes,
        container: ContainerId,
        /// That of a container that we make.
        incarnation: Option<Incarnation>,
        process: ProcessId,
        /// Whether the request may be made again, as it says which run it is about.
        is_repeatable: bool,
        /// Whether its deletion waits until we have read all.
        is_held: bool,
    },
    /// A container that is there.
    Attach(ContainerId),
}

/// A process that we live along with, and how far we have come.
#[derive(Debug)]
pub(crate) struct Link<'a> {
    client: &'a Client,
    ask: Ask,
    /// Whether a daemon may have had our request.
    was_asked: bool,
    started: Option<Started>,
    had: Had,
    absence: Option<Absence>,
    /// The one by which the frames come.
    connection: Option<Connection>,
}

impl<'a> Link<'a> {
    pub(crate) fn new(client: &'a Client, ask: Ask) -> Self {
        Self {
            client,
            ask,
            was_asked: false,
            started: None,
            had: Had::default(),
            absence: None,
            connection: None,
        }
    }

    /// With all that is in the log up to this position.
    pub(crate) fn after(mut self, position: Option<String>) -> Self {
        self.had.after = position;
        self
    }

    /// Notes a frame that was dealt with.
    pub(crate) fn note(&mut self, frame: &Frame) {
        if let Frame::Message(Message::Started(started)) = frame {
            self.started = Some(started.clone());
        }
        self.had.note(frame);
    }

    /// Notes that the stream broke off. The bound counts from now.
    pub(crate) fn lost(&mut self) {
        self.absence = Some(Absence::begin());
    }

    /// Asks for the process, or for the rest of its life, until a daemon answers.
    ///
    /// # Errors
    ///
    /// What a daemon has answered, or that there is none and we may wait no longer.
    pub(crate) async fn open(&mut self) -> anyhow::Result<Frames> {
        let mut taken = None;
        loop {
            let resumes = match self.ask {
                Ask::Start { is_repeatable: true, .. } => self.started.is_some(),
                Ask::Start { .. } => self.was_asked,
                // Before the first position, what comes from now on is what was asked for.
                Ask::Attach(_) => self.had.after.is_some(),
            };
            let (method, path, body) =
                if resumes { self.next_request()? } else { self.first_request() };
            let error = match self.stream(method, &path, body).await {
                Ok(body) => {
                    (self.was_asked, self.absence) = (true, None);
                    return Ok(frames(body));
                }
                Err(error) => error,
            };
            if let Some(away) = error.downcast_ref::<Away>() {
                self.was_asked |= away.was_there;
                let meanwhile = self.started.as_ref().map(|_| "the container runs on");
                self.client.come_back(&mut self.absence, error, meanwhile).await?;
            } else if self.started.is_some() || self.absence.is_none() {
                return Err(error);
            } else if resumes && RequestError::is_not_found(&error) {
                // It was not begun.
                if let Some(taken) = taken {
                    return Err(taken);
                }
                self.was_asked = false;
            } else if !resumes && taken.is_none() && RequestError::is_taken(&error) {
                // By ourselves, if the same daemon had it after all, or by another.
                (self.was_asked, taken) = (true, Some(error));
            } else {
                return Err(error);
            }
        }
    }

    async fn stream(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Incoming> {
        let connection = self.connection.insert(self.client.connect().await?);
        Ok(connection.send(method, path, body).await?.into_body())
    }

    fn first_request(&self) -> (Method, String, Bytes) {
        match &self.ask {
            Ask::Start { path, body, .. } => (Method::POST, path.clone(), body.clone()),
            Ask::Attach(id) => {
                let path = format!("/containers/{id}/attach?positions=true");
                (Method::GET, path, Bytes::new())
            }
        }
    }

    /// Asks for what comes after all that we have had.
    fn next_request(&self) -> anyhow::Result<(Method, String, Bytes)> {
        let (container, process, incarnation) = match (&self.ask, &self.started) {
            (_, Some(started)) => {
                (&started.container, Some(started.process.clone()), started.incarnation)
            }
            (Ask::Start { container, process, incarnation, .. }, None) => {
                (container, Some(process.clone()), *incarnation)
            }
            (Ask::Attach(container), None) => (container, None, None),
        };
        let Had { after, stdout, stderr, notices } = &self.had;
        let query = AttachQuery {
            resume: true,
            positions: true,
            process: process.filter(|process| !process.is_init()),
            incarnation,
            run: self.started.as_ref().map(|started| started.run),
            after: after.clone(),
            stdout: *stdout,
            stderr: *stderr,
            notices: *notices,
        };
        let query = serde_urlencoded::to_string(query)?;
        let path = format!("/containers/{container}/attach?{query}");
        Ok((Method::GET, path, Bytes::new()))
    }

    /// Says that we have read all. Should there be no daemon, the next one deletes it after its time.
    pub(crate) async fn release(&mut self, mut frames: Frames) {
        if let Ask::Start { is_held: true, container, process, .. } = &self.ask
            && let Some(connection) = &mut self.connection
        {
            // Their end frees the connection, which is quicker than to make another.
            while frames.next().await.is_some() {}
            let of = holdfast_daemon::api::Of { process: Some(process.clone()) };
            let path = format!("/containers/{container}/release");
            let body = Bytes::from(serde_json::to_vec(&of).unwrap_or_default());
            let answer = connection.send(Method::POST, &path, body.clone()).await;
            // Another daemon may have followed the one that has answered.
            if answer.is_err_and(|error| is_away(&error)) {
                let _ = self.client.stream(Method::POST, &path, body).await;
            }
        }
    }
}

/// An id for a container or an exec that was given none, and a random incarnation.
pub(crate) fn random_id() -> anyhow::Result<String> {
    Ok(Incarnation::random()?.to_string())
}

/// Gives a container the id by which we find it again, and the incarnation that says that it is ours.
pub(crate) fn named(
    name: Option<ContainerId>,
    options: ContainerOptions,
) -> anyhow::Result<(ContainerOptions, ContainerId, Incarnation)> {
    let id = match name {
        Some(name) => name,
        None => random_id()?[..12].parse()?,
    };
    let incarnation = Incarnation::random()?;
    Ok((options.id(id.clone()).incarnation(incarnation), id, incarnation))
}

/// Gives an exec the id by which we find it again.
pub(crate) fn named_exec(options: ExecOptions) -> anyhow::Result<(ExecOptions, ProcessId)> {
    let id: ProcessId = random_id()?.parse()?;
    Ok((options.id(id.clone()), id))
}

/// Finds out where the log of a container ends; `None` if that cannot be read.
pub(crate) async fn log_end(client: &Client, id: &ContainerId) -> anyhow::Result<Option<String>> {
    let query = LogQuery { tail: Some(0), positions: true, ..LogQuery::default() };
    let path = format!("/containers/{id}/logs?{}", serde_urlencoded::to_string(query)?);
    let body = match client.stream(Method::GET, &path, Bytes::new()).await {
        Err(error) if is_away(&error) => return Err(error),
        Err(_) => return Ok(None),
        Ok(body) => body,
    };
    let mut had = Had::default();
    let mut frames = frames(body);
    while let Some(frame) = frames.next().await {
        had.note(&frame.map_err(|_| Away::went("the daemon went away"))?);
    }
    Ok(had.after)
}

/// Prints the output of a container.
pub(crate) async fn logs(
    client: &Client,
    id: &ContainerId,
    query: &LogQuery,
) -> anyhow::Result<()> {
    let (mut had, mut absence) = (Had::default(), None);
    loop {
        let query = LogQuery {
            positions: true,
            after: had.after.clone(),
            stdout: had.stdout,
            stderr: had.stderr,
            notices: had.notices,
            ..query.clone()
        };
        let path = format!("/containers/{id}/logs?{}", serde_urlencoded::to_string(query)?);
        let gone = match client.stream(Method::GET, &path, Bytes::new()).await {
            Ok(body) => {
                absence = None;
                match print(frames(body), &mut had).await {
                    Err(error) if is_away(&error) => error,
                    ended => return ended,
                }
            }
            Err(error) if had.after.is_some() && RequestError::is_not_found(&error) => bail!(
                "container {id} was removed before its output was read to the end; the rest of it is lost"
            ),
            Err(error) => error,
        };
        client.come_back(&mut absence, gone, None).await?;
    }
}

async fn print(mut frames: Frames, had: &mut Had) -> anyhow::Result<()> {
    while let Some(frame) = frames.next().await {
        // A stream that ends in order has an end of its own; one that breaks off has an error.
        let frame = frame.map_err(|_| Away::went("the daemon went away"))?;
        match &frame {
            Frame::Output(OutputStream::Stdout, bytes) => streams::write(bytes)?,
            Frame::Output(OutputStream::Stderr, bytes) | Frame::Notice(bytes) => {
                streams::write_errors(bytes);
            }
            Frame::Message(Message::Failed(error)) if error.kind == ErrorKind::ShuttingDown => {
                return Err(Away::went("the daemon went away"));
            }
            Frame::Message(Message::Failed(error)) => bail!("{}", error.message),
            Frame::Message(_) | Frame::Position(_) => {}
        }
        had.note(&frame);
    }
    Ok(())
}
