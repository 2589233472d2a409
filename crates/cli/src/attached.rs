//! A process in the foreground: its output goes to ours, our signals to it, and its status is ours.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_daemon::api::{ContainerId, ExitStatus, KillRequest, Message, Started};
use holdfast_daemon::frame::{Codec, Frame};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde::Serialize;
use tokio_util::codec::FramedRead;
use tokio_util::io::StreamReader;

use crate::client::Client;
use crate::signals::forwarded;

/// Starts a process by a request that answers with its life, and lives that along.
pub(crate) async fn run(
    client: &Client,
    path: &str,
    request: &impl Serialize,
) -> anyhow::Result<ExitCode> {
    let mut signals = forwarded()?;
    let body = client.stream(Method::POST, path, serde_json::to_vec(request)?.into()).await?;
    let mut frames = frames(body);
    let mut output = Output::default();
    let mut process: Option<Started> = None;
    loop {
        let frame = tokio::select! {
            biased;
            // Held back until it is known to whom: a signal during the start is not lost.
            Some(signal) = signals.recv(), if process.is_some() => {
                if let Some(process) = &process {
                    forward(client, process, signal).await;
                }
                continue;
            }
            frame = frames.next() => frame,
        };
        match frame {
            Some(Ok(Frame::Output(stream, bytes))) => output.write(stream, &bytes),
            Some(Ok(Frame::Message(Message::Started(started)))) => process = Some(started),
            Some(Ok(Frame::Message(Message::Exited(status)))) => return Ok(exit_code(status)),
            Some(Ok(Frame::Message(Message::Failed(error)))) => bail!("{}", error.message),
            Some(Err(_)) | None => match process {
                Some(process) => bail!(
                    "the daemon went away; container {} runs on: see `holdfast wait {0}` and `holdfast logs {0}`",
                    process.container
                ),
                None => bail!("the daemon went away during the start"),
            },
        }
    }
}

/// Prints the output of a container.
pub(crate) async fn logs(client: &Client, id: &ContainerId, follow: bool) -> anyhow::Result<()> {
    let path = format!("/containers/{id}/logs?follow={follow}");
    let mut frames = frames(client.stream(Method::GET, &path, Bytes::new()).await?);
    let mut output = Output::default();
    while let Some(frame) = frames.next().await {
        match frame.context("the daemon went away")? {
            Frame::Output(stream, bytes) => output.write(stream, &bytes),
            Frame::Message(Message::Failed(error)) => bail!("{}", error.message),
            Frame::Message(_) => {}
        }
        if output.nobody_reads() {
            break;
        }
    }
    Ok(())
}

fn frames(body: Incoming) -> impl futures::Stream<Item = std::io::Result<Frame>> + Unpin {
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    FramedRead::new(StreamReader::new(bytes), Codec)
}

async fn forward(client: &Client, process: &Started, signal: i32) {
    let request = KillRequest { signal, process: Some(process.process.clone()) };
    let path = format!("/containers/{}/kill", process.container);
    if let Err(error) = client.post::<()>(&path, &request).await {
        // It may just have ended; then its status follows at once.
        eprintln!("holdfast: signal {signal} not forwarded: {error:#}");
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    if let ExitStatus::Unknown(reason) = status {
        eprintln!("holdfast: the container's exit status is unknown: {reason}");
    }
    ExitCode::from(status.as_number())
}

/// Our standard output and error. A stream that nobody reads any more is given up, and the
/// container is not bothered with it.
#[derive(Debug, Default)]
struct Output {
    stdout_closed: bool,
    stderr_closed: bool,
}

impl Output {
    fn write(&mut self, stream: holdfast_daemon::frame::OutputStream, bytes: &[u8]) {
        use holdfast_daemon::frame::OutputStream;
        let (written, closed) = match stream {
            OutputStream::Stdout => {
                (write_all(&mut std::io::stdout().lock(), bytes), &mut self.stdout_closed)
            }
            OutputStream::Stderr => {
                (write_all(&mut std::io::stderr().lock(), bytes), &mut self.stderr_closed)
            }
        };
        *closed |= written.is_err();
    }

    fn nobody_reads(&self) -> bool {
        self.stdout_closed
    }
}

fn write_all(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
