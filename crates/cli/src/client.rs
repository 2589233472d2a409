//! One request to the daemon, over its Unix socket.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use holdfast_daemon::api::{ErrorBody, ErrorKind};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

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
#[derive(Debug)]
pub(crate) struct Client {
    address: PathBuf,
}

impl Client {
    pub(crate) fn new(address: PathBuf) -> Self {
        Self { address }
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

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let connected = UnixStream::connect(&self.address).await;
        let stream = connected.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1{path}"))
            .header("host", "holdfast")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let response = sender
            .send_request(request)
            .await
            .context("the daemon went away before it answered")?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => RequestError(error).into(),
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
            io::ErrorKind::NotFound => anyhow!(
                "no daemon answers at {address}; start one with `holdfast daemon`, {elsewhere}: {error}"
            ),
            io::ErrorKind::ConnectionRefused if is_socket() => anyhow!(
                "no daemon answers at {address}: the one that made this socket has died; \
                 start one with `holdfast daemon`, {elsewhere}"
            ),
            io::ErrorKind::ConnectionRefused => {
                anyhow!(
                    "{address} is not the socket of a daemon; say where that is with --root or --address"
                )
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
        .context("the daemon went away before it had answered")?
        .to_bytes();
    let body = if empty { Bytes::from_static(b"null") } else { body };
    serde_json::from_slice(&body)
        .context("the daemon's answer makes no sense; is it of another version?")
}
