//! A process in the foreground: its output goes to ours, our signals to it, and its status is ours.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_daemon::api::{
    ContainerId, ExitStatus, KillRequest, Message, Of, ResizeRequest, Started, StdioRequest,
};
use holdfast_daemon::frame::{Codec, Frame};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::codec::FramedRead;
use tokio_util::io::StreamReader;

use crate::client::Client;
use crate::signals::forwarded;
use crate::terminal::RawMode;

/// Starts a process by a request that answers with its life, and lives that along.
pub(crate) async fn run(
    client: &Client,
    path: &str,
    request: &impl Serialize,
    stdio: &StdioRequest,
) -> anyhow::Result<ExitCode> {
    let mut signals = forwarded()?;
    let mut resized = signal(SignalKind::window_change())?;
    let body = client.stream(Method::POST, path, serde_json::to_vec(request)?.into()).await?;
    let mut frames = frames(body);
    let mut output = Output::default();
    let mut process: Option<Started> = None;
    let mut input_over = None;
    let mut raw = None;
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
            Some(()) = resized.recv(), if stdio.terminal.is_some() && process.is_some() => {
                if let Some(process) = &process {
                    resize(client, process).await;
                }
                continue;
            }
            true = over(&mut input_over) => {
                if let Some(process) = &process {
                    close_stdin(client, process).await;
                }
                continue;
            }
            frame = frames.next() => frame,
        };
        match frame {
            Some(Ok(Frame::Output(stream, bytes))) => output.write(stream, &bytes),
            Some(Ok(Frame::Message(Message::Started(started)))) => {
                if stdio.terminal.is_some() {
                    raw = RawMode::begin().context("our own terminal")?;
                }
                input_over = started.stdin.as_deref().map(hand_on_input).transpose()?;
                process = Some(started);
            }
            Some(Ok(Frame::Message(Message::Exited(status)))) => {
                drop(raw);
                return Ok(exit_code(status));
            }
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

/// Copies our input into the FIFO of a process on a thread of its own, past the daemon. Tells when
/// our input has ended; a process that reads no more just ends the copying.
fn hand_on_input(fifo: &Path) -> anyhow::Result<oneshot::Receiver<()>> {
    let failed = || format!("open the input of the container, {}", fifo.display());
    // The shim reads it, so this does not wait; should the shim be gone, it fails at once.
    let flags = nix::libc::O_NONBLOCK;
    let mut to = File::options().write(true).custom_flags(flags).open(fifo).with_context(failed)?;
    nix::fcntl::fcntl(&to, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))
        .with_context(failed)?;
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        if std::io::copy(&mut std::io::stdin().lock(), &mut to).is_ok() {
            drop(to);
            let _ = sender.send(());
        }
    });
    Ok(receiver)
}

/// `true` once our input has ended; never, if there is none or it broke off otherwise.
async fn over(input: &mut Option<oneshot::Receiver<()>>) -> bool {
    match input {
        Some(receiver) => {
            let ended = receiver.await.is_ok();
            *input = None;
            ended
        }
        None => std::future::pending().await,
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

async fn resize(client: &Client, process: &Started) {
    let size = crate::terminal::size();
    let request = ResizeRequest { size, process: Some(process.process.clone()) };
    // Should it just have ended, no size matters any more.
    let _ = client.post::<()>(&format!("/containers/{}/resize", process.container), &request).await;
}

async fn close_stdin(client: &Client, process: &Started) {
    let request = Of { process: Some(process.process.clone()) };
    let path = format!("/containers/{}/close-stdin", process.container);
    // Should it just have ended, it needs no input.
    let _ = client.post::<()>(&path, &request).await;
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
