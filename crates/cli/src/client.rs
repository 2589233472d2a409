//! One request to the daemon, over its Unix socket.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use holdfast_daemon::api::{ErrorBody, ErrorKind};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::away::{Absence, Away, Patience, is_away};

/// What the daemon answered instead of doing what was asked.
#[derive(Debug)]
pub(crate) struct RequestError(ErrorBody);

impl std::fmt::Display for RequestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for RequestError {}

impl RequestError {
    /// Whether there is no such thing.
    pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
        error.downcast_ref::<Self>().is_some_and(|error| error.0.kind == ErrorKind::NotFound)
    }

    /// Whether the container is in a state in which this can't be done.
    pub(crate) fn is_wrong_state(error: &anyhow::Error) -> bool {
        error.downcast_ref::<Self>().is_some_and(|error| error.0.kind == ErrorKind::WrongState)
    }

    /// Whether the id is taken.
    pub(crate) fn is_taken(error: &anyhow::Error) -> bool {
        error.downcast_ref::<Self>().is_some_and(|error| error.0.kind == ErrorKind::Exists)
    }

    /// Adds what the user can do, if the container is in a state in which this can't be done.
    pub(crate) fn advise(mut error: anyhow::Error, advice: &str) -> anyhow::Error {
        if let Some(Self(body)) = error.downcast_mut()
            && body.kind == ErrorKind::WrongState
        {
            body.message = format!("{}: {advice}", body.message);
        }
        error
    }

    /// Makes an error of an answer. A daemon that shuts down counts as away.
    pub(crate) fn of(body: ErrorBody) -> anyhow::Error {
        match body.kind {
            ErrorKind::ShuttingDown => Away::went(body.message),
            _ => Self(body).into(),
        }
    }

    /// The code by which container tools tell why a program did not run.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self.0.kind {
            ErrorKind::CommandNotFound => Some(127),
            ErrorKind::NotExecutable => Some(126),
            _ => None,
        }
    }
}

/// The daemon at a socket.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: PathBuf,
    patience: Patience,
}

impl Client {
    pub(crate) fn new(address: PathBuf, patience: Patience) -> Self {
        Self { address, patience }
    }

    /// How long we wait for the next daemon.
    pub(crate) fn bound(&self) -> Duration {
        self.patience.bound
    }

    /// Waits for the next daemon, if `error` is that there is none and we may wait.
    ///
    /// # Errors
    ///
    /// `error` itself if not, or if the bound has passed.
    pub(crate) async fn come_back(
        &self,
        absence: &mut Option<Absence>,
        error: anyhow::Error,
        meanwhile: Option<&str>,
    ) -> anyhow::Result<()> {
        let Some(away) = error.downcast_ref::<Away>() else { return Err(error) };
        let Patience { bound, from_the_beginning } = self.patience;
        let may_wait = absence.is_some() || away.was_there || from_the_beginning;
        if bound.is_zero() || !may_wait {
            return Err(error);
        }
        if away.was_there {
            // Until now, however long it let us wait for its answer.
            *absence = Some(Absence::begin());
        }
        let absence = absence.get_or_insert_with(Absence::begin);
        if absence.over(&self.address, bound, meanwhile).await? {
            return Ok(());
        }
        Err(error.context(format!("no daemon came back within {bound:?}")))
    }

    /// Asks again and again until a daemon has answered. Only for what may be asked twice.
    pub(crate) async fn again<T>(
        &self,
        ask: impl AsyncFn() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut absence = None;
        loop {
            match ask().await {
                Err(error) if is_away(&error) => {
                    self.come_back(&mut absence, error, None).await?;
                }
                answer => return answer,
            }
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        parse(response).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let response = self.send(Method::POST, path, serde_json::to_vec(body)?.into()).await?;
        parse(response).await
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(Method::DELETE, path, Bytes::new()).await.map(drop)
    }

    /// A request whose answer is a stream.
    pub(crate) async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Incoming> {
        Ok(self.send(method, path, body).await?.into_body())
    }

    /// A request whose answer is a stream, and a header of the answer.
    pub(crate) async fn stream_with(
        &self,
        path: &str,
        header: &str,
    ) -> anyhow::Result<(Incoming, Option<String>)> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        let value = response.headers().get(header).and_then(|value| value.to_str().ok());
        let value = value.map(str::to_owned);
        Ok((response.into_body(), value))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        self.connect().await?.send(method, path, body).await
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let connected = UnixStream::connect(&self.address).await;
        let stream = connected.map_err(|error| self.unreachable(error))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(Away::went)?;
        tokio::spawn(connection);
        Ok(Connection(sender))
    }
}

/// A connection to the daemon. It takes the next request when the answer to the last one has been read to its end.
#[derive(Debug)]
pub(crate) struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1{path}"))
            .header("host", "holdfast")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        self.0.ready().await.map_err(Away::went)?;
        let response = self.0.send_request(request).await.map_err(|error| {
            Away::went(anyhow!(error).context("the daemon went away before it answered"))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.map_err(Away::went)?.to_bytes();
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => RequestError::of(error),
            Err(_) => {
                anyhow!("the daemon answered {status}: {}", String::from_utf8_lossy(&body).trim())
            }
        })
    }
}

impl Client {
    /// Why there is no connection, and what can be done.
    fn unreachable(&self, error: io::Error) -> anyhow::Error {
        let address = self.address.display();
        let elsewhere = "or say where it is with --root or --address";
        let is_socket =
            || self.address.metadata().is_ok_and(|metadata| metadata.file_type().is_socket());
        match error.kind() {
            io::ErrorKind::PermissionDenied => anyhow!(
                "the daemon at {address} serves root and its own user only (permission denied); \
                 try sudo, or choose another with --root or --address"
            ),
            io::ErrorKind::NotFound => Away::never_there(anyhow!(
                "no daemon answers at {address}; start one with `holdfast daemon`, {elsewhere}: {error}"
            )),
            io::ErrorKind::ConnectionRefused if is_socket() => Away::never_there(anyhow!(
                "no daemon answers at {address}: the one that made this socket has died; \
                 start one with `holdfast daemon`, {elsewhere}"
            )),
            io::ErrorKind::ConnectionRefused => {
                anyhow!(
                    "{address} is not the socket of a daemon; say where that is with --root or --address"
                )
            }
            // It died while we connected.
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
            | io::ErrorKind::BrokenPipe => {
                Away::went(format!("the daemon at {address} went away: {error}"))
            }
            _ => anyhow!(error).context(format!("no connection to the daemon at {address}")),
        }
    }
}

async fn parse<T: DeserializeOwned>(response: Response<Incoming>) -> anyhow::Result<T> {
    let empty = response.status() == StatusCode::NO_CONTENT;
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| {
            Away::went(anyhow!(error).context("the daemon went away before it had answered"))
        })?
        .to_bytes();
    let body = if empty { Bytes::from_static(b"null") } else { body };
    serde_json::from_slice(&body)
        .context("the daemon's answer makes no sense; is it of another version?")
}
