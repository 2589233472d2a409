//! A process in the foreground: its output goes to ours, our signals to it, and its status is ours.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_daemon::api::{
    ContainerId, ExitStatus, KillRequest, LogQuery, Message, Of, ResizeRequest, Started,
};
use holdfast_daemon::frame::{Codec, Frame, OutputStream};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio_util::codec::FramedRead;
use tokio_util::io::StreamReader;

use crate::client::Client;
use crate::detach::{Keys, Lookout};
use crate::signals::forwarded;
use crate::terminal::RawMode;

/// How our terminal and input are a process's.
#[derive(Debug)]
struct Manner {
    input: Input,
    keys: Keys,
}

/// What becomes of our input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// It is the process's, and so is its end.
    Given,
    /// It is handed on. Others may do the same, so its end is ours alone.
    Shared,
    /// Nothing.
    Kept,
}

/// Why our input is handed on no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputEnd {
    /// It has ended.
    Over,
    /// The keys were typed by which one detaches.
    Detached,
}

/// Starts a process by a request that answers with its life, and lives that along.
pub(crate) async fn run(
    client: &Client,
    path: &str,
    request: &impl Serialize,
    keys: Keys,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::begin()?;
    let body = client.stream(Method::POST, path, serde_json::to_vec(request)?.into()).await?;
    live(client, signals, body, Manner { input: Input::Given, keys }).await
}

/// Lives the life of a container along from now on.
pub(crate) async fn attach(
    client: &Client,
    id: &ContainerId,
    no_stdin: bool,
    keys: Keys,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::begin()?;
    let path = format!("/containers/{id}/attach");
    let body = client.stream(Method::GET, &path, Bytes::new()).await?;
    let input = if no_stdin { Input::Kept } else { Input::Shared };
    live(client, signals, body, Manner { input, keys }).await
}

/// What is sent to us, from before the request on: a signal during a start is not lost.
#[derive(Debug)]
struct Signals {
    forwarded: UnboundedReceiver<i32>,
    resized: Signal,
}

impl Signals {
    fn begin() -> std::io::Result<Self> {
        Ok(Self { forwarded: forwarded()?, resized: signal(SignalKind::window_change())? })
    }
}

async fn live(
    client: &Client,
    mut signals: Signals,
    body: Incoming,
    manner: Manner,
) -> anyhow::Result<ExitCode> {
    let mut frames = frames(body);
    let mut output = Output::default();
    let mut process: Option<Started> = None;
    let mut input_end = None;
    let mut raw = None;
    loop {
        let frame = tokio::select! {
            biased;
            // Held back until it is known to whom: a signal during the start is not lost.
            Some(signal) = signals.forwarded.recv(), if process.is_some() => {
                if let Some(process) = &process {
                    forward(client, process, signal).await;
                }
                continue;
            }
            Some(()) = signals.resized.recv(), if process.is_some() => {
                if let Some(process) = process.as_ref().filter(|process| process.terminal) {
                    resize(client, process).await;
                }
                continue;
            }
            Some(end) = ended(&mut input_end) => {
                match (end, &process) {
                    (InputEnd::Detached, process) => {
                        drop(raw);
                        return Ok(detached(process.as_ref()));
                    }
                    (InputEnd::Over, Some(process)) if manner.input == Input::Given => {
                        close_stdin(client, process).await;
                    }
                    (InputEnd::Over, _) => {}
                }
                continue;
            }
            frame = frames.next() => frame,
        };
        match frame {
            Some(Ok(Frame::Output(stream, bytes))) => output.write(stream, &bytes),
            Some(Ok(Frame::Notice(bytes))) => output.write(OutputStream::Stderr, &bytes),
            Some(Ok(Frame::Message(Message::Started(started)))) => {
                if started.terminal && manner.input != Input::Given {
                    resize(client, &started).await;
                }
                if let Some(fifo) = started.stdin.as_deref()
                    && manner.input != Input::Kept
                {
                    // Without an input of its own, keys would do nothing, not even interrupt it.
                    if started.terminal {
                        raw = RawMode::begin().context("our own terminal")?;
                    }
                    // Only a person types: what comes from a file or a pipe goes on as it is.
                    let lookout = raw.as_ref().map(|_| Lookout::new(&manner.keys));
                    input_end = Some(hand_on_input(fifo, lookout)?);
                }
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

fn detached(process: Option<&Started>) -> ExitCode {
    if let Some(Started { container, process, .. }) = process {
        let what = if process.is_init() { String::new() } else { format!("process {process} of ") };
        eprintln!("holdfast: detached; {what}container {container} runs on");
    }
    ExitCode::SUCCESS
}

/// Copies our input into the FIFO of a process on a thread of its own, past the daemon. Tells why
/// that is over; a process that reads no more just ends the copying.
fn hand_on_input(
    fifo: &Path,
    lookout: Option<Lookout>,
) -> anyhow::Result<oneshot::Receiver<InputEnd>> {
    let failed = || format!("open the input of the container, {}", fifo.display());
    // The shim reads it, so this does not wait; should the shim be gone, it fails at once.
    let flags = nix::libc::O_NONBLOCK;
    let mut to = File::options().write(true).custom_flags(flags).open(fifo).with_context(failed)?;
    nix::fcntl::fcntl(&to, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))
        .with_context(failed)?;
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut from = std::io::stdin().lock();
        let copied = match lookout {
            Some(lookout) => copy_typed(&mut from, &mut to, lookout),
            None => std::io::copy(&mut from, &mut to).map(|_| InputEnd::Over),
        };
        if let Ok(end) = copied {
            drop(to);
            let _ = sender.send(end);
        }
    });
    Ok(receiver)
}

/// Copies what a person types, up to the keys by which one detaches.
fn copy_typed(
    from: &mut impl Read,
    to: &mut impl Write,
    mut lookout: Lookout,
) -> std::io::Result<InputEnd> {
    let mut typed = vec![0; 4096];
    loop {
        let length = match from.read(&mut typed) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let (passed, detach) = lookout.pass(&typed[..length]);
        to.write_all(&passed)?;
        if detach {
            return Ok(InputEnd::Detached);
        }
    }
    to.write_all(lookout.rest())?;
    Ok(InputEnd::Over)
}

/// Why our input is handed on no more; never, if it is not or broke off otherwise.
async fn ended(input: &mut Option<oneshot::Receiver<InputEnd>>) -> Option<InputEnd> {
    match input {
        Some(receiver) => {
            let ended = receiver.await.ok();
            *input = None;
            ended
        }
        None => std::future::pending().await,
    }
}

/// Prints the output of a container.
pub(crate) async fn logs(
    client: &Client,
    id: &ContainerId,
    query: &LogQuery,
) -> anyhow::Result<()> {
    let LogQuery { follow, since, tail, timestamps } = query;
    let mut path = format!("/containers/{id}/logs?follow={follow}&timestamps={timestamps}");
    if let Some(since) = since {
        path += &format!("&since={since}");
    }
    if let Some(tail) = tail {
        path += &format!("&tail={tail}");
    }
    let mut frames = frames(client.stream(Method::GET, &path, Bytes::new()).await?);
    let mut output = Output::default();
    while let Some(frame) = frames.next().await {
        match frame.context("the daemon went away")? {
            Frame::Output(stream, bytes) => output.write(stream, &bytes),
            Frame::Notice(bytes) => output.write(OutputStream::Stderr, &bytes),
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
    fn write(&mut self, stream: OutputStream, bytes: &[u8]) {
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
