//! A process in the foreground: its output goes to ours, our signals to it, and its status is ours.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::bail;
use bytes::Bytes;
use futures::StreamExt;
use holdfast_daemon::api::{
    AttachQuery, ContainerId, ContainerInfo, CreateRequest, ErrorKind, ExecRequest, ExitStatus,
    Message, PastRun, ProcessId, ResizeRequest, Started, Status,
};
use holdfast_daemon::frame::{Frame, OutputStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::args::{ContainerArgs, ExecArgs};
use crate::away::{Away, is_away};
use crate::cidfile::CidFile;
use crate::client::Client;
use crate::detach::{Keys, Lookout};
use crate::find;
use crate::follow::{self, Ask, Link};
use crate::forward::{Forwarder, Signals};
use crate::streams::{self, OutputError, complain};
use crate::terminal::{Keyboard, RawMode};

/// How our terminal and input are a process's.
#[derive(Debug)]
struct Manner {
    input: Input,
    keys: Keys,
    /// The file for the id, until that is in it.
    cidfile: Option<CidFile>,
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
    args: ContainerArgs,
    keys: Keys,
) -> anyhow::Result<ExitCode> {
    let signals = args.stdio.signals();
    let cidfile = args.cidfile.clone().map(CidFile::create).transpose()?;
    let (name, is_removed) = (args.name.clone(), args.rm);
    let (options, container, incarnation) = follow::named(name, args.options()?)?;
    let forwarder = Forwarder::begin(client, signals, format!("container {container}"))?;
    let request = CreateRequest { options: options.hold(client.bound()), start: true };
    let ask = Ask::Start {
        path: "/run?positions=true".to_owned(),
        body: serde_json::to_vec(&request)?.into(),
        container,
        incarnation: Some(incarnation),
        process: ProcessId::init(),
        is_repeatable: false,
        is_held: is_removed,
    };
    let manner = Manner { input: Input::Given, keys, cidfile };
    live(client, forwarder, Link::new(client, ask), manner).await
}

/// Starts a container that is there, and lives this run of it along.
pub(crate) async fn start(
    client: &Client,
    id: &ContainerId,
    interactive: bool,
    keys: Keys,
) -> anyhow::Result<ExitCode> {
    let container = find::container(client, id).await?;
    let forwarder = Forwarder::begin(client, Signals::Forwarded, format!("container {container}"))?;
    // The number of the run that we begin, and where the output of the run before ends.
    let look = async || {
        let info: ContainerInfo = client.get(&format!("/containers/{container}")).await?;
        if info.status == Status::Created {
            return Ok((info.incarnation, info.run, None));
        }
        let earlier: Vec<PastRun> = client.get(&format!("/containers/{container}/runs")).await?;
        let last = earlier.iter().map(|past| past.run).fold(info.run, u32::max);
        let end = follow::log_end(client, &container).await?;
        Ok((info.incarnation, last.saturating_add(1), end))
    };
    let (incarnation, run, end) = client.again(look).await?;
    let query = AttachQuery {
        incarnation,
        run: Some(run),
        positions: true,
        after: end.clone(),
        ..AttachQuery::default()
    };
    let query = serde_urlencoded::to_string(query)?;
    let ask = Ask::Start {
        path: format!("/containers/{container}/start-attached?{query}"),
        body: Bytes::new(),
        container,
        incarnation,
        process: ProcessId::init(),
        is_repeatable: true,
        is_held: false,
    };
    let input = if interactive { Input::Given } else { Input::Kept };
    let manner = Manner { input, keys, cidfile: None };
    live(client, forwarder, Link::new(client, ask).after(end), manner).await
}

/// Runs a further process in a container, and lives its life along.
pub(crate) async fn exec(client: &Client, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let container = find::container(client, &args.id).await?;
    let (options, process) = follow::named_exec(args.options()?)?;
    let what = format!("the process in container {container}");
    let forwarder = Forwarder::begin(client, args.stdio.signals(), what)?;
    let request = ExecRequest { options: options.hold(client.bound()), detach: false };
    let ask = Ask::Start {
        path: format!("/containers/{container}/exec?positions=true"),
        body: serde_json::to_vec(&request)?.into(),
        container,
        incarnation: None,
        process,
        is_repeatable: false,
        is_held: true,
    };
    let manner = Manner { input: Input::Given, keys: args.keys.detach_keys, cidfile: None };
    live(client, forwarder, Link::new(client, ask), manner).await
}

/// Lives the life of a container along from now on.
pub(crate) async fn attach(
    client: &Client,
    id: &ContainerId,
    no_stdin: bool,
    keys: Keys,
) -> anyhow::Result<ExitCode> {
    let forwarder = Forwarder::begin(client, Signals::Forwarded, format!("container {id}"))?;
    let input = if no_stdin { Input::Kept } else { Input::Shared };
    let manner = Manner { input, keys, cidfile: None };
    live(client, forwarder, Link::new(client, Ask::Attach(id.clone())), manner).await
}

async fn live(
    client: &Client,
    forwarder: Forwarder,
    mut link: Link<'_>,
    mut manner: Manner,
) -> anyhow::Result<ExitCode> {
    let mut process: Option<Started> = None;
    let mut input_end = None;
    let mut raw = None;
    let mut resized = signal(SignalKind::window_change())?;
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
                        InputEnd::Over => {
                            if manner.input == Input::Given {
                                forwarder.input_over();
                            }
                        }
                    },
                    () = &mut nobody_reads, if process.is_some() => {
                        return Err(left(OutputError::reader_gone(), process.as_ref()));
                    }
                    opened = &mut opening => {
                        drop(raw.take_if(|_| opened.is_err()));
                        break opened.map_err(|error| given_up(error, process.as_ref(), &forwarder))?;
                    }
                }
            }
        };
        // Whether this daemon knows the process, so that it takes requests about it.
        let mut is_up = false;
        loop {
            let frame = tokio::select! {
                biased;
                Some(()) = resized.recv(), if is_up => {
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
                        InputEnd::Over => {
                            if manner.input == Input::Given {
                                forwarder.input_over();
                            }
                        }
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
                    if let Some(cidfile) = manner.cidfile.take() {
                        cidfile.fill(&started.container)?;
                    }
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
                    forwarder.up(started);
                    process = Some(started.clone());
                    is_up = true;
                }
                Frame::Message(Message::Exited(status)) => {
                    drop(raw);
                    link.release(frames).await;
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
            return Err(given_up(Away::went("the daemon went away"), process.as_ref(), &forwarder));
        }
        forwarder.down();
        link.lost();
    }
}

/// No daemon came back in time.
fn given_up(
    error: anyhow::Error,
    process: Option<&Started>,
    forwarder: &Forwarder,
) -> anyhow::Error {
    let Some(process) = process.filter(|_| is_away(&error)) else { return error };
    for signal in forwarder.unsent() {
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

async fn resize(client: &Client, process: &Started) {
    let size = crate::terminal::size();
    let request = ResizeRequest { size, process: Some(process.process.clone()) };
    // If the process has just ended, its size does not matter. The next daemon gets the size at once.
    let _ = client.post::<()>(&format!("/containers/{}/resize", process.container), &request).await;
}

fn exit_code(status: ExitStatus) -> ExitCode {
    if let ExitStatus::Unknown(reason) = status {
        complain(format_args!("the container's exit status is unknown: {reason}"));
    }
    ExitCode::from(status.as_number())
}
