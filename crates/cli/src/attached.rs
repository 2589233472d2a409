//! A process in the foreground: its output goes to ours, our signals to it, and its status is ours.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::bail;
use futures::StreamExt;
use holdfast_daemon::api::{
    ContainerId, ContainerOptions, CreateRequest, ErrorKind, ExecOptions, ExecRequest, ExitStatus,
    KillRequest, Message, Of, ProcessId, ResizeRequest, Started,
};
use holdfast_daemon::frame::{Frame, OutputStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use crate::away::{Away, is_away};
use crate::client::Client;
use crate::detach::{Keys, Lookout};
use crate::follow::{self, Ask, Link};
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

/// Makes a container, starts it, and lives its life along.
pub(crate) async fn run(
    client: &Client,
    name: Option<ContainerId>,
    options: ContainerOptions,
    is_removed: bool,
    keys: Keys,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::begin()?;
    let (options, container, incarnation) = follow::named(name, options)?;
    let request = CreateRequest { options: options.hold(client.bound()), start: true };
    let ask = Ask::Start {
        path: "/run?positions=true".to_owned(),
        body: serde_json::to_vec(&request)?.into(),
        container,
        incarnation: Some(incarnation),
        process: ProcessId::init(),
        is_held: is_removed,
    };
    live(client, signals, ask, Manner { input: Input::Given, keys }).await
}

/// Runs a further process in a container, and lives its life along.
pub(crate) async fn exec(
    client: &Client,
    container: &ContainerId,
    options: ExecOptions,
    keys: Keys,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::begin()?;
    let (options, process) = follow::named_exec(options)?;
    let request = ExecRequest { options: options.hold(client.bound()), detach: false };
    let ask = Ask::Start {
        path: format!("/containers/{container}/exec?positions=true"),
        body: serde_json::to_vec(&request)?.into(),
        container: container.clone(),
        incarnation: None,
        process,
        is_held: true,
    };
    live(client, signals, ask, Manner { input: Input::Given, keys }).await
}

/// Lives the life of a container along from now on.
pub(crate) async fn attach(
    client: &Client,
    id: &ContainerId,
    no_stdin: bool,
    keys: Keys,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::begin()?;
    let input = if no_stdin { Input::Kept } else { Input::Shared };
    live(client, signals, Ask::Attach(id.clone()), Manner { input, keys }).await
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

/// Requests that no daemon has had yet, in this order. They are kept while there is no daemon.
#[derive(Debug, Default)]
struct Due {
    signals: VecDeque<i32>,
    close_stdin: bool,
}

impl Due {
    async fn deliver(&mut self, client: &Client, process: &Started) {
        while let Some(signal) = self.signals.front() {
            if forward(client, process, *signal).await == Delivered::NotYet {
                return;
            }
            self.signals.pop_front();
        }
        if self.close_stdin && close_stdin(client, process).await == Delivered::Yes {
            self.close_stdin = false;
        }
    }
}

/// Whether a daemon has had a message. One that has died since may have acted on it all the same: a
/// signal is rather sent twice than not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivered {
    Yes,
    NotYet,
}

impl Delivered {
    fn of(sent: &anyhow::Result<()>) -> Self {
        match sent {
            Err(error) if is_away(error) => Self::NotYet,
            _ => Self::Yes,
        }
    }
}

async fn live(
    client: &Client,
    mut signals: Signals,
    ask: Ask,
    manner: Manner,
) -> anyhow::Result<ExitCode> {
    let mut link = Link::new(client, ask);
    let mut process: Option<Started> = None;
    let mut input_end = None;
    let mut raw = None;
    let mut due = Due::default();
    // One that writes nothing any more would not show us that nobody reads it.
    let mut nobody_reads = pin!(streams::reader_gone());
    // Each time, one connection to one daemon.
    loop {
        let mut frames = {
            let mut opening = pin!(link.open());
            loop {
                tokio::select! {
                    biased;
                    Some(end) = ended(&mut input_end) => match end {
                        InputEnd::Detached => {
                            drop(raw);
                            return Ok(detached(process.as_ref()));
                        }
                        InputEnd::Over => due.close_stdin = manner.input == Input::Given,
                    },
                    () = &mut nobody_reads, if process.is_some() => {
                        return Err(left(OutputError::reader_gone(), process.as_ref()));
                    }
                    opened = &mut opening => {
                        drop(raw.take_if(|_| opened.is_err()));
                        break opened.map_err(|error| given_up(error, process.as_ref(), &due))?;
                    }
                }
            }
        };
        // Whether this daemon knows the process, so that it takes requests about it.
        let mut is_up = false;
        loop {
            let frame = tokio::select! {
                biased;
                // Held back until it is known to whom: a signal during the start is not lost.
                Some(signal) = signals.forwarded.recv(), if is_up => {
                    due.signals.push_back(signal);
                    if let Some(process) = &process {
                        due.deliver(client, process).await;
                    }
                    continue;
                }
                Some(()) = signals.resized.recv(), if is_up => {
                    if let Some(process) = process.as_ref().filter(|process| process.terminal) {
                        resize(client, process).await;
                    }
                    continue;
                }
                Some(end) = ended(&mut input_end) => {
                    match end {
                        InputEnd::Detached => {
                            drop(raw);
                            return Ok(detached(process.as_ref()));
                        }
                        InputEnd::Over => due.close_stdin = manner.input == Input::Given,
                    }
                    if let Some(process) = process.as_ref().filter(|_| is_up) {
                        due.deliver(client, process).await;
                    }
                    continue;
                }
                () = &mut nobody_reads, if process.is_some() => {
                    return Err(left(OutputError::reader_gone(), process.as_ref()));
                }
                frame = frames.next() => frame,
            };
            // It broke off: the next daemon knows more.
            let Some(Ok(frame)) = frame else { break };
            match &frame {
                Frame::Output(OutputStream::Stdout, bytes) => {
                    streams::write(bytes).map_err(|error| left(error, process.as_ref()))?;
                }
                Frame::Output(OutputStream::Stderr, bytes) | Frame::Notice(bytes) => {
                    streams::write_errors(bytes);
                }
                Frame::Message(Message::Started(started)) => {
                    let is_first = process.is_none();
                    if started.terminal && (!is_first || manner.input != Input::Given) {
                        resize(client, started).await;
                    }
                    // The input is open already, past the daemon, if this is not the first one.
                    if is_first
                        && let Some(fifo) = started.stdin.as_deref()
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
                    due.deliver(client, started).await;
                    process = Some(started.clone());
                    is_up = true;
                }
                Frame::Message(Message::Exited(status)) => {
                    drop(raw);
                    link.release().await;
                    return Ok(exit_code(*status));
                }
                Frame::Message(Message::Failed(error)) => {
                    if error.kind == ErrorKind::ShuttingDown {
                        break;
                    }
                    bail!("{}", error.message);
                }
                Frame::Position(_) => {}
            }
            link.note(&frame);
        }
        if client.bound().is_zero() {
            return Err(given_up(Away::went("the daemon went away"), process.as_ref(), &due));
        }
        link.lost();
    }
}

/// No daemon came back in time.
fn given_up(error: anyhow::Error, process: Option<&Started>, due: &Due) -> anyhow::Error {
    let Some(process) = process.filter(|_| is_away(&error)) else { return error };
    for signal in &due.signals {
        complain(format_args!("signal {signal} not forwarded: there is no daemon"));
    }
    let id = &process.container;
    error.context(format!(
        "the daemon went away; container {id} runs on: see `holdfast wait {id}` and `holdfast logs {id}`"
    ))
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

async fn forward(client: &Client, process: &Started, signal: i32) -> Delivered {
    let request = KillRequest { signal, process: Some(process.process.clone()) };
    let path = format!("/containers/{}/kill", process.container);
    let sent = client.post::<()>(&path, &request).await;
    let delivered = Delivered::of(&sent);
    if delivered == Delivered::Yes
        && let Err(error) = sent
    {
        // It may just have ended; then its status follows at once.
        complain(format_args!("signal {signal} not forwarded: {error:#}"));
    }
    delivered
}

async fn resize(client: &Client, process: &Started) {
    let size = crate::terminal::size();
    let request = ResizeRequest { size, process: Some(process.process.clone()) };
    // If the process has just ended, its size does not matter. The next daemon gets the size at once.
    let _ = client.post::<()>(&format!("/containers/{}/resize", process.container), &request).await;
}

async fn close_stdin(client: &Client, process: &Started) -> Delivered {
    let request = Of { process: Some(process.process.clone()) };
    let path = format!("/containers/{}/close-stdin", process.container);
    // Should it just have ended, it needs no input.
    Delivered::of(&client.post::<()>(&path, &request).await)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    if let ExitStatus::Unknown(reason) = status {
        complain(format_args!("the container's exit status is unknown: {reason}"));
    }
    ExitCode::from(status.as_number())
}
