//! The start: the monitor reads the command line, detaches, runs the runtime, and takes over the process that the
//! runtime leaves behind.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_shim::engine::{
    ConsoleSocket, Null, Pipeline, Scratch, Sinks, Source, kill_descendants, output_pipe, round_up,
    set_nonblocking, take_signals,
};
use holdfast_state::Directory;
use holdfast_state::cri::Stream;
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{Termination, spawn};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::{Mode, fchmod, umask};
use nix::unistd::pipe2;

use crate::adopt;
use crate::args::{self, Args};
use crate::bundle::{Bundle, named};
use crate::clients::Clients;
use crate::command::{self, OomScore};
use crate::drivers::{self, Logs};
use crate::exit::{ExitCommand, READABLE};
use crate::input::Input;
use crate::keeper;
use crate::monitor::{Monitor, forwarded, obey, reap_children};
use crate::notify::Notify;
use crate::oom::Oom;
use crate::pipes::{self, Pipes};
use crate::process::{Process, signal_child};
use crate::record::Phase;
use crate::terminal::Terminal;
use crate::watch::Watch;
use crate::{FAILED, report};

/// The release of conmon that this program behaves like. CRI-O parses it as a version.
const CONMON: &str = "2.2.1";
/// The variable with options that are read before those of the command line.
const OPTIONS: &str = "HOLDFAST_CONMON_OPTIONS";
/// The most that is read of a runtime's error output, in bytes.
const WORDS: usize = 8191;

/// How long a runtime may take to send its terminal, once it has connected.
const TERMINAL_PATIENCE: Duration = Duration::from_secs(10);

/// The result of a start.
pub(crate) enum Begun {
    /// The program is done, with this exit code.
    Over(u8),
    /// There is a container.
    Monitor(Box<Monitor>),
}

/// Starts what the command line says.
///
/// # Errors
/// A message to report.
pub(crate) fn begin(
    words: impl Iterator<Item = &'static OsStr>,
    mut inherited: Vec<OwnedFd>,
) -> Result<Begun, String> {
    let text = |error: io::Error| error.to_string();
    // podman cannot pass Holdfast's own options, but it can set the environment of conmon (`conmon_env`).
    let more: &'static OsStr = std::env::var_os(OPTIONS).map_or(OsStr::new(""), |it| it.leak());
    let more = more.as_bytes().split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut args = match args::parse(more.map(OsStr::from_bytes).chain(words)) {
        Ok(args) => args,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return Ok(Begun::Over(FAILED));
        }
    };
    if args.version || args.help {
        let own = env!("CARGO_PKG_VERSION");
        let version = format!("conmon version {CONMON}\ncommit: holdfast-conmon {own}\n");
        let said = if args.help { args::help() } else { version };
        return Ok(Begun::Over(io::stdout().write_all(said.as_bytes()).map_or(FAILED, |()| 0)));
    }
    report::set_up(args.level()?, args.id(), args.syslog);
    if let Some(socket) = args.keep {
        return keeper::run(Path::new(socket), inherited).map(|()| Begun::Over(0)).map_err(text);
    }
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    if !args.adopt {
        args.check()?;
    }
    if args.bundle.is_none() && !args.exec {
        args.bundle =
            Some(Box::leak(std::env::current_dir().map_err(text)?.into_boxed_path()).as_os_str());
    }
    if args.adopt {
        return adopt::adopt(args).map(Begun::Monitor).map_err(text);
    }
    let logs = drivers::open(&args)?;
    let mut pipes = Pipes::take(&args, &mut inherited)?;
    if let Some(start) = &pipes.start {
        pipes::wait_for_byte(start).map_err(|error| format!("start-pipe read failed: {error}"))?;
    }
    if !args.exec_attach {
        pipes.start = None;
    }
    if !args.sync
        && let Some(child) = spawn::fork().map_err(text)?
    {
        if let Some(path) = args.conmon_pidfile {
            write_pid(Path::new(path), child)
                .map_err(|error| format!("Failed to write conmon pidfile: {error}"))?;
        }
        return Ok(Begun::Over(0));
    }
    Ok(start(args, logs, pipes, inherited))
}

pub(crate) fn write_pid(path: &Path, pid: i32) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let name = path.file_name().and_then(OsStr::to_str).zip(path.parent());
    let (name, parent) = name.ok_or(io::ErrorKind::InvalidFilename)?;
    let dir = named(parent, Directory::open(parent))?;
    named(&path, dir.write_atomic_with(name, pid.to_string().as_bytes(), READABLE))
}

/// Why a start failed.
struct Failure {
    text: String,
    /// The message for the caller; if it is empty, the text.
    message: Vec<u8>,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { text: error.to_string(), message: Vec::new() }
    }
}

/// A start that is under way, with what must be undone if it fails.
struct Draft {
    args: Args<'static>,
    pipes: Pipes,
    inherited: Vec<OwnedFd>,
    signals: Option<SignalFd>,
    bundle: Option<Bundle>,
    /// Set once the runtime was started. From then on the exit command is run, also after a failure.
    score: Option<OomScore>,
}

/// Starts the container, or reports why that failed.
fn start(args: Args<'static>, logs: Logs, pipes: Pipes, inherited: Vec<OwnedFd>) -> Begun {
    let mut draft = Draft { args, pipes, inherited, signals: None, bundle: None, score: None };
    match draft.finish(logs) {
        Ok(monitor) => Begun::Monitor(monitor),
        Err(failure) => {
            report::error(&failure.text);
            Begun::Over(draft.give_up(&failure))
        }
    }
}

impl Draft {
    fn finish(&mut self, logs: Logs) -> Result<Box<Monitor>, Failure> {
        let signals = self.signals.insert(take_signals()?);
        // A group leader can't begin a session; then it has been given one already.
        match nix::unistd::setsid() {
            Ok(_) | Err(Errno::EPERM) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        // What the runtime leaves behind becomes our child, the container's process first of all.
        nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)?;
        let args = &self.args;
        if !logs.is_passthrough {
            disconnect()?;
        }
        let clients = Rc::new(RefCell::new(Clients::new(args.attach_patience())));
        let sinks = Sinks::of_monitor(logs.files, logs.journals, clients.clone());
        let (mut output, mut input) = (Pipeline::new(sinks), Input::default());
        let mut null = Null::default();
        let ends = match logs.is_passthrough {
            true => [Stdio::inherit(), Stdio::inherit(), Stdio::inherit()],
            false => open_stdio(args, &mut output, &mut input, &mut null)?,
        };
        let notify = match (args.sdnotify_socket, args.bundle()) {
            (Some(host), Some(path)) => Some(Notify::open(path, host)?),
            _ => None,
        };
        if let Some(path) = args.bundle().filter(|_| !logs.is_passthrough) {
            self.bundle = Some(Bundle::open(args, path)?);
        }
        let console = args.terminal.then(bind_console).transpose()?;
        self.pipes.attach.send(0, b"");
        self.pipes.attach.close();
        if let Some(start) = self.pipes.start.take() {
            wait_for_client(&start, signals)?;
        }

        let pid_file = pid_file(args)?;
        let path = console.as_ref().map(|(_, path)| path.as_path());
        let runtime = command::start(args, &pid_file, path, ends)?;
        let score = self.score.insert(OomScore::never());
        // Its mount takes the kernel a while, in which the runtime works already.
        drop(null);
        if logs.is_passthrough {
            disconnect()?;
        }
        let mut terminal = None;
        let bundle = &mut self.bundle;
        let socket = console.as_ref().map(|(socket, _)| socket);
        let runtime_end = wait_for_runtime(runtime, signals, socket, |master| {
            let new = Terminal::new(master, &mut output, &mut input)?;
            // It may have been given a size before it was there.
            obey(bundle.as_mut(), Some(terminal.insert(new)), &mut output);
            Ok(())
        })?;
        let process = match (runtime_end, args.exec) {
            (Termination::Exited(0), _) => Process::of(&pid_file, signals),
            // That its command fails may be all that a runtime says by its own failure.
            (end, true) => {
                Process::of_failed(&pid_file).ok_or_else(|| io::Error::other(end.to_string()))
            }
            (end, false) => Err(io::Error::other(end.to_string())),
        };
        let process = process.map_err(|error| {
            let message = words_of_runtime(&output);
            report::warn(&format!("runtime stderr: {}", String::from_utf8_lossy(&message)));
            let what = if args.exec { "run the exec" } else { "create container" };
            Failure { text: format!("Failed to {what}: {error}"), message }
        })?;
        if console.is_some() && terminal.is_none() {
            let text = "Runtime did not set up terminal".to_owned();
            return Err(Failure { text, message: Vec::new() });
        }
        let timeout = args.timeout().and_then(|limit| Instant::now().checked_add(limit));
        let watch_oom = || {
            let dirs = [args.persist_dir, args.bundle].into_iter().flatten().map(PathBuf::from);
            let oom = Oom::watch(process.pid, args.exec, dirs.collect());
            report::warn_of("OOM kills are not noted", oom).flatten()
        };
        // A monitor with a keeper registers the container there before it sends podman the pid. A monitor without
        // one sends the pid first.
        let mut oom = args.keeper.and_then(|_| watch_oom());
        let link = args.keeper.and_then(|_| {
            let facts = adopt::facts(process.pid, timeout, oom.as_ref(), score);
            let link = facts.and_then(|facts| {
                adopt::leave(args, &facts, &process, &output, &mut input, &self.pipes.sync)
            });
            report::warn_of("the container is not kept", link)
        });
        if args.api_version || !args.exec {
            self.pipes.sync.send(process.pid, b"");
        }
        if !args.exec {
            self.pipes.sync.close();
        }
        if args.keeper.is_none() {
            oom = watch_oom();
        }
        let (Some(signals), Some(score)) = (self.signals.take(), self.score.take()) else {
            return Err(io::Error::other("the start is incomplete").into());
        };
        Ok(Box::new(Monitor {
            args: self.args.clone(),
            sync: std::mem::take(&mut self.pipes.sync),
            inherited: std::mem::take(&mut self.inherited),
            signals,
            watch: Watch::new()?,
            bundle: self.bundle.take(),
            clients,
            input,
            output,
            terminal,
            notify,
            oom,
            process,
            score,
            rest: Some(Instant::now()),
            timeout,
            phase: Phase::Running,
            link,
        }))
    }

    /// Undoes a start that failed: kills all descendants, tells the caller, and runs the exit command.
    fn give_up(&mut self, failure: &Failure) -> u8 {
        if let (Some(_), Some(signals)) = (&self.score, &self.signals) {
            report::warn_of("left over of the start", kill_descendants(signals));
        }
        if let Some(bundle) = &mut self.bundle {
            bundle.close();
        }
        self.inherited.clear();
        let message =
            if failure.message.is_empty() { failure.text.as_bytes() } else { &failure.message };
        self.pipes.sync.send(-1, message);
        self.pipes.sync.close();
        if let (Some(score), Some(signals)) = (&self.score, &self.signals) {
            let mut command = ExitCommand::new(&self.args);
            while command.code().is_none() {
                command.run(&self.args, score);
                let until = command.due().map_or(PollTimeout::NONE, round_up);
                let mut set = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut set, until);
                reap_children(signals, &mut command);
            }
        }
        FAILED
    }
}

/// Replaces the standard descriptors by `/dev/null`.
pub(crate) fn disconnect() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Waits for the end of the runtime. Meanwhile it receives the terminal, and forwards signals to the runtime.
fn wait_for_runtime(
    runtime: i32,
    signals: &SignalFd,
    console: Option<&ConsoleSocket>,
    mut on_terminal: impl FnMut(OwnedFd) -> io::Result<()>,
) -> io::Result<Termination> {
    let mut receive = || {
        let received =
            console.map(|console| console.receive(Some(TERMINAL_PATIENCE))).transpose()?;
        received.flatten().map_or(Ok(()), &mut on_terminal)
    };
    loop {
        if let Some(end) = wait::reap(Child::Pid(runtime))? {
            receive()?;
            return Ok(end);
        }
        let wait = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let fds = [Some(signals.as_fd()), console.map(AsFd::as_fd)];
        let mut set: Vec<_> = fds.into_iter().flatten().map(wait).collect();
        match poll(&mut set, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(signal) = signals.read_signal()? {
            if let Some(signal) = forwarded(signal.ssi_signo) {
                signal_child(runtime, signal);
            }
        }
        receive()?;
    }
}

/// Returns what the runtime wrote to its standard error.
fn words_of_runtime(output: &Pipeline) -> Vec<u8> {
    let mut room = vec![0; WORDS];
    let length = match output.source(Stream::Stderr) {
        Some(Source::Pipe { fd, .. }) => nix::unistd::read(fd, &mut room).unwrap_or(0),
        _ => 0,
    };
    room.truncate(length);
    room
}

/// Opens the standard descriptors of the runtime, and the monitor's side of them.
fn open_stdio(
    args: &Args<'_>,
    output: &mut Pipeline,
    input: &mut Input,
    null: &mut Null,
) -> io::Result<[Stdio; 3]> {
    // Whoever the container's user is, it may open /dev/stdout and so on.
    let all = Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO;
    let stdin = match args.stdin && !args.terminal {
        true => {
            let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
            set_nonblocking(&ours)?;
            fchmod(&theirs, all)?;
            *input = Input::new(ours, !args.leave_stdin_open);
            theirs.into()
        }
        false => null.get()?,
    };
    let scratch = Rc::new(Scratch::new()?);
    let mut pipe = |stream| {
        let (ours, theirs) = output_pipe(None)?;
        fchmod(&theirs, all)?;
        output.set(stream, Source::pipe(ours, &scratch));
        io::Result::Ok(theirs)
    };
    let stdout = if args.terminal { null.get()? } else { pipe(Stream::Stdout)? };
    Ok([stdin.into(), stdout.into(), pipe(Stream::Stderr)?.into()])
}

/// Creates the socket to which the runtime sends a terminal, and returns it with its path.
fn bind_console() -> io::Result<(ConsoleSocket, PathBuf)> {
    let mut random = [0; 6];
    holdfast_sys::random::fill(&mut random)?;
    let random: String = random.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let dir = std::env::temp_dir();
    ConsoleSocket::bind(named(&dir, Directory::open(&dir))?, &format!("conmon-term.{random}"))
}

fn pid_file(args: &Args<'_>) -> io::Result<PathBuf> {
    match args.container_pidfile {
        Some(path) => Ok(PathBuf::from(path)),
        None => Ok(std::env::current_dir()?.join(format!("pidfile-{}", args.id()))),
    }
}

/// Waits until the caller says that its client is attached.
fn wait_for_client(start: &OwnedFd, signals: &SignalFd) -> io::Result<()> {
    loop {
        let wait = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut set = [wait(start.as_fd()), wait(signals.as_fd())];
        match poll(&mut set, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if set[0].any() == Some(true) {
            return pipes::wait_for_byte(start);
        }
        while let Some(signal) = signals.read_signal()? {
            if let Some(signal) = forwarded(signal.ssi_signo) {
                return Err(io::Error::other(format!("{signal} before the start")));
            }
        }
    }
}
