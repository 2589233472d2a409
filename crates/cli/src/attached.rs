//! A process in the foreground: its output goes to ours, our signals to it, and its status is ours.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
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
use crate::streams::{self, OutputError, complain};
use crate::terminal::{Keyboard, RawMode};

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
    let mut process: Option<Started> = None;
    let mut input_end = None;
    let mut raw = None;
    // One that writes nothing any more would not show us that nobody reads it.
    let mut nobody_reads = pin!(streams::reader_gone());
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
            () = &mut nobody_reads, if process.is_some() => {
                return Err(left(OutputError::reader_gone(), process.as_ref()));
            }
            frame = frames.next() => frame,
        };
        match frame {
            Some(Ok(Frame::Output(OutputStream::Stdout, bytes))) => {
                streams::write(&bytes).map_err(|error| left(error, process.as_ref()))?;
            }
            Some(Ok(Frame::Output(OutputStream::Stderr, bytes) | Frame::Notice(bytes))) => {
                streams::write_errors(&bytes);
            }
            Some(Ok(Frame::Message(Message::Started(started)))) => {
                if started.terminal && manner.input != Input::Given {
                    resize(client, &started).await;
                }
                if let Some(fifo) = started.stdin.as_deref()
                    && manner.input != Input::Kept
                {
                    let fifo = open_input(fifo);
                    if started.terminal {
                        // Without an input of its own, keys would do nothing, not even interrupt it.
                        let keys = if fifo.is_some() { Keyboard::Its } else { Keyboard::Ours };
                        raw = RawMode::begin(keys).unwrap_or_else(|error| {
                            complain(format_args!("our own terminal: {error}"));
                            None
                        });
                    }
                    // Only a person types: what comes from a file or a pipe goes on as it is.
                    let lookout = raw.as_ref().map(|_| Lookout::new(&manner.keys));
                    input_end = fifo.map(|fifo| hand_on_input(fifo, lookout));
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
    if let Some(process) = process {
        complain(format_args!("detached; {} runs on", name(process)));
    }
    ExitCode::SUCCESS
}

/// We leave a process to itself for want of a standard output.
fn left(error: OutputError, process: Option<&Started>) -> anyhow::Error {
    match process {
        Some(process) => error.runs_on(name(process)).into(),
        None => error.into(),
    }
}

/// A process, as a person knows it.
fn name(Started { container, process, .. }: &Started) -> String {
    let what = if process.is_init() { String::new() } else { format!("process {process} of ") };
    format!("{what}container {container}")
}

/// Opens the FIFO from which a process reads. `None` if it reads nothing any more, as one that ended
/// at once: its output and its status come all the same, and so they do if this fails otherwise.
fn open_input(fifo: &Path) -> Option<File> {
    // A reader is there before the process is, so this does not wait: if it is gone, so is the process.
    let flags = nix::libc::O_NONBLOCK;
    let opened = File::options().write(true).custom_flags(flags).open(fifo).and_then(|file| {
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
        Ok(file)
    });
    match opened {
        Ok(file) => Some(file),
        // ENXIO: nobody has it open for reading. ENOENT: it was removed with its container or exec.
        Err(error)
            if matches!(error.raw_os_error(), Some(nix::libc::ENXIO | nix::libc::ENOENT)) =>
        {
            None
        }
        Err(error) => {
            let fifo = fifo.display();
            complain(format_args!("our input is not handed on: open {fifo}: {error}"));
            None
        }
    }
}

/// Copies our input into the FIFO of a process on a thread of its own, past the daemon. Tells why
/// that is over; a process that reads no more just ends the copying. Nobody waits for the thread, which
/// may be in the middle of a read that never returns.
fn hand_on_input(mut to: File, lookout: Option<Lookout>) -> oneshot::Receiver<InputEnd> {
    let (sender, receiver) = oneshot::channel();
    let copying = std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        let copied = copy(io::stdin().as_fd(), &mut to, lookout);
        drop(to);
        match copied {
            Ok(end) => _ = sender.send(end),
            // It reads nothing any more, and we have nothing more to do.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => complain(format_args!("write the input of the container: {error}")),
        }
    });
    if let Err(error) = copying {
        complain(format_args!("our input is not handed on: start a thread: {error}"));
    }
    receiver
}

/// Copies input to its end, or up to the keys by which one detaches. An input that can't be read on
/// ends there; the error is that of writing.
fn copy(
    from: BorrowedFd<'_>,
    to: &mut impl Write,
    mut lookout: Option<Lookout>,
) -> io::Result<InputEnd> {
    let mut chunk = vec![0; 65536];
    loop {
        let length = match streams::read(from, &mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(errno) => {
                complain(format_args!("standard input: {}", io::Error::from(errno)));
                break;
            }
        };
        let Some(lookout) = &mut lookout else {
            to.write_all(&chunk[..length])?;
            continue;
        };
        let (passed, detach) = lookout.pass(&chunk[..length]);
        // First of all: who detaches may do so because nothing is read.
        let written = to.write_all(&passed);
        if detach {
            return Ok(InputEnd::Detached);
        }
        written?;
    }
    if let Some(lookout) = lookout {
        to.write_all(lookout.rest())?;
    }
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
    let path = format!("/containers/{id}/logs?{}", serde_urlencoded::to_string(query)?);
    let mut frames = frames(client.stream(Method::GET, &path, Bytes::new()).await?);
    while let Some(frame) = frames.next().await {
        match frame.context("the daemon went away")? {
            Frame::Output(OutputStream::Stdout, bytes) => streams::write(&bytes)?,
            Frame::Output(OutputStream::Stderr, bytes) | Frame::Notice(bytes) => {
                streams::write_errors(&bytes);
            }
            Frame::Message(Message::Failed(error)) => bail!("{}", error.message),
            Frame::Message(_) => {}
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
        complain(format_args!("signal {signal} not forwarded: {error:#}"));
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
        complain(format_args!("the container's exit status is unknown: {reason}"));
    }
    ExitCode::from(status.as_number())
}
