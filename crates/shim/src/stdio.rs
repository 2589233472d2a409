//! The stdio that the container gets, and our side of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use holdfast_state::announce::{ShimFd, StdioFds};
use holdfast_state::cri::Stream;
use holdfast_state::handoff::{FdName, Handoff};
use holdfast_state::{LogDriver, LogSpec};
use holdfast_sys::fd::Identity;
use holdfast_sys::terminal::open_peer;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, pipe2};

use crate::args::{self, Args};
use crate::home::Home;
use crate::interest::{Ready, Wait};
use crate::output::{self, Missing, Pipeline, Queue, Scratch, Sinks, Source, enlarge, warn};

/// What the runtime inherits; closed on our side once it runs.
pub(crate) struct ContainerEnds {
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
    /// Where those come from that are `/dev/null`.
    pub(crate) null: Null,
}

/// To whom files and pipes are given, as the host counts.
pub(crate) type Owner = Option<(u32, u32)>;

/// Our side.
#[derive(Default)]
pub(crate) struct Stdio {
    /// What the process writes, to where output goes.
    output: Pipeline,
    /// From the stdin FIFO into the terminal. Without a terminal the process reads the FIFO itself.
    input: Option<Box<Pipeline>>,
    /// The stdin FIFO, opened for writing: it does not end when a client goes, but when someone
    /// says that it is over.
    stdin_holder: Option<File>,
    /// The stdin FIFO until there is a terminal for it.
    waiting_stdin: Option<File>,
    terminal: Option<OwnedFd>,
    /// Its other side, as long as the process lives: without it the terminal reads as ended whenever
    /// nobody has it open, and a getty opens it again.
    other_side: Option<OwnedFd>,
}

impl Stdio {
    /// Opens what there is to open before the runtime starts.
    pub(crate) fn open(args: &Args<'_>, home: &Home) -> io::Result<(ContainerEnds, Self)> {
        let (mut ours, mut null) = (Self::default(), Null::default());
        let stdin = match (&args.stdin, args.terminal) {
            (Some(path), false) => {
                let stdin = open_fifo(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
                ours.stdin_holder = Some(open_fifo(path, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?);
                // The container expects a descriptor that waits.
                fcntl(&stdin, FcntlArg::F_SETFL(OFlag::empty()))?;
                stdin
            }
            _ => null.get()?,
        };
        if let Some(spec) = direct(args) {
            let (stdout, stderr) = direct_outputs(spec, args, home)?;
            return Ok((ContainerEnds { stdin, stdout, stderr, null }, ours));
        }
        let is_fifo = !args.terminal && args.stdout.is_some() && args.stderr.is_some();
        let log = if is_fifo { &[] } else { args.log.as_slice() };
        ours.output = Pipeline::new(Sinks::open(log, home, args.owner, Missing::Fails)?);
        if args.terminal {
            ours.open_for_terminal(args)?;
        }
        let goes_nowhere = log.iter().all(|spec| spec.driver == LogDriver::None);
        let scratch = (!goes_nowhere).then(|| Scratch::new().map(Rc::new)).transpose()?;
        let mut end = |fifo: Option<&Path>, stream| match (fifo, &scratch) {
            // Opened for both, so a reader that goes away costs the container no SIGPIPE.
            (Some(path), _) => open_fifo(path, OFlag::O_RDWR),
            (None, None) => null.get(),
            (None, Some(scratch)) => {
                let (reader, theirs) = output_pipe(args.owner)?;
                ours.output.set(stream, Source::pipe(reader, scratch));
                Ok(theirs)
            }
        };
        let (stdout, stderr) = match args.terminal {
            // What the runtime itself has to say before there is a terminal.
            true => (stdin.try_clone()?, end(None, Stream::Stderr)?),
            false => (end(args.stdout, Stream::Stdout)?, end(args.stderr, Stream::Stderr)?),
        };
        Ok((ContainerEnds { stdin, stdout, stderr, null }, ours))
    }

    /// Opens the FIFOs that are to be joined to a terminal.
    fn open_for_terminal(&mut self, args: &Args<'_>) -> io::Result<()> {
        // One that was handed over without its holder has been closed.
        if let Some(path) = &args.stdin
            && (self.stdin_holder.is_some() || args.moved.is_none())
        {
            self.waiting_stdin = Some(open_fifo(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
            self.stdin_holder = Some(open_fifo(path, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?);
        }
        if let Some(path) = &args.stdout {
            self.output.sinks.divert(path)?;
        }
        Ok(())
    }

    /// The terminal has come.
    pub(crate) fn take_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        self.other_side = warn("the terminal ends when nobody has it open", open_peer(&master));
        if let Some(fifo) = self.waiting_stdin.take() {
            let mut input = Pipeline::new(Sinks::only(Queue::of_terminal(master.try_clone()?)));
            input.set(INPUT, Source::Fifo(fifo));
            self.input = Some(Box::new(input));
        }
        // Read in any case: one that nobody reads would fill up and stall the process.
        self.output.set(Stream::Stdout, Source::Terminal(master.try_clone()?));
        self.terminal = Some(master);
        Ok(())
    }

    /// Takes over what another shim read from. What is in the pipes is still there.
    ///
    /// Where a log is missing now, that is retried when there is output: a shim that failed for it would
    /// be followed by one that fails as well, and the process would wait for somebody to read.
    pub(crate) fn adopt(
        args: &Args<'_>,
        home: &Home,
        handoff: &mut Handoff<'_>,
        scratch: Option<Rc<Scratch>>,
    ) -> io::Result<Self> {
        let stdin_holder = handoff.take(FdName::Stdin).map(File::from);
        let mut ours = Self { stdin_holder, ..Self::default() };
        // One that was handed over left nothing half done.
        let died = args.moved.is_none();
        let pipes = [(FdName::Stdout, Stream::Stdout), (FdName::Stderr, Stream::Stderr)];
        let pipes = pipes.map(|(name, stream)| (handoff.take(name), stream));
        let has_pipes = pipes.iter().any(|(pipe, _)| pipe.is_some());
        if has_pipes || args.terminal {
            let sinks = Sinks::open(&args.log, home, args.owner, Missing::Waits)?;
            ours.output = Pipeline::new(sinks);
        }
        if died {
            warn("the end of a log is not mended", ours.output.sinks.mend());
        }
        if has_pipes {
            let scratch = scratch.map_or_else(|| Scratch::new().map(Rc::new), Ok)?;
            for (pipe, stream) in pipes {
                let Some(pipe) = pipe else { continue };
                ours.output.set(stream, Source::pipe(reading_end(pipe)?, &scratch));
                if died {
                    ours.output.compare(stream);
                }
            }
        }
        if let Some(master) = handoff.take(FdName::Terminal) {
            warn("a FIFO of the terminal's", ours.open_for_terminal(args));
            ours.take_terminal(master)?;
        }
        Ok(ours)
    }

    /// Whether another shim can take over without missing anything: what waits in our memory, or in
    /// a FIFO that nobody has open but us, would be lost.
    pub(crate) fn can_move(&self) -> bool {
        let input_can = |input: &Pipeline| {
            let ended = input.source(INPUT).is_none();
            input.sinks.can_move() && (ended || self.stdin_holder.is_some())
        };
        self.output.sinks.can_move() && self.input.as_deref().is_none_or(input_can)
    }

    /// How many descriptors it may come to need.
    pub(crate) fn most_files(&self) -> u64 {
        let pipelines = [Some(&self.output), self.input.as_deref()];
        let moved: u64 = pipelines.into_iter().flatten().map(Pipeline::most_files).sum();
        // A terminal has two sides.
        moved + u64::from(self.stdin_holder.is_some()) + 2 * u64::from(self.terminal.is_some())
    }

    /// What another shim needs, each with what it is.
    pub(crate) fn for_another(&self) -> impl Iterator<Item = (FdName, BorrowedFd<'_>)> {
        let all = [
            (FdName::Stdout, self.pipe(Stream::Stdout)),
            (FdName::Stderr, self.pipe(Stream::Stderr)),
            (FdName::Terminal, self.terminal.as_ref().map(AsFd::as_fd)),
            (FdName::Stdin, self.stdin_holder.as_ref().map(AsFd::as_fd)),
        ];
        all.into_iter().filter_map(|(name, fd)| Some((name, fd?)))
    }

    /// What we read from, for the supervisor to keep copies.
    pub(crate) fn fds(&self) -> StdioFds {
        let of = |fd: BorrowedFd<'_>| ShimFd {
            number: fd.as_raw_fd(),
            identity: (args::protocol() >= 1).then(|| Identity::of(fd).ok()).flatten(),
        };
        StdioFds {
            stdout: self.pipe(Stream::Stdout).map(of),
            stderr: self.pipe(Stream::Stderr).map(of),
            terminal: self.terminal.as_ref().map(|master| of(master.as_fd())),
        }
    }

    /// Our end of an output that comes through a pipe.
    fn pipe(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        let source = self.output.source(stream)?;
        matches!(source, Source::Pipe { .. }).then(|| source.as_fd())
    }

    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal.as_ref()
    }

    /// Whether all has been written that a process can have written, and readers have got it.
    pub(crate) fn is_over(&self) -> bool {
        self.output.is_over()
    }

    /// No more input comes once all who write to the FIFO have closed it.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_holder = None;
    }

    /// What is to be waited for, of that.
    pub(crate) fn interest(&self, wait: Wait) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match wait {
            Wait::Output(slot) => self.output.interest(slot),
            Wait::Input(slot) => self.input.as_ref()?.interest(slot),
            Wait::Control | Wait::Process => None,
        }
    }

    /// Moves what can be moved of what is ready.
    pub(crate) fn pass(&mut self, ready: Ready) {
        self.output.pass(|slot| ready.has(Wait::Output(slot)));
        if let Some(input) = &mut self.input {
            input.pass(|slot| ready.has(Wait::Input(slot)));
        }
    }

    /// When it is to be looked after, whatever happens until then.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.output.due()
    }

    /// Closes what has ended, once nobody waits for it.
    pub(crate) fn close_ended(&mut self) {
        self.output.close_ended();
        if let Some(input) = &mut self.input {
            input.close_ended();
        }
    }

    /// Brings to its places what was written before the process ended, and has them say what is
    /// missing. What is written from now on is somebody else's, who may also let the terminal go.
    pub(crate) fn drain(&mut self) {
        self.output.drain();
        self.other_side = None;
    }

    /// What a background process writes from now on is not wanted.
    pub(crate) fn end_output(&mut self) {
        self.output.let_go();
    }

    /// Whether there is memory to give back.
    pub(crate) fn holds_memory(&self) -> bool {
        self.output.holds_memory() || self.input.as_deref().is_some_and(Pipeline::holds_memory)
    }

    /// Gives back the memory that only output needs.
    pub(crate) fn rest(&mut self) {
        self.output.rest();
        if let Some(input) = &mut self.input {
            input.rest();
        }
    }

    /// Opens the logs anew by their names.
    pub(crate) fn reopen_logs(&mut self) -> io::Result<()> {
        self.output.sinks.reopen()
    }
}

/// The input is one stream, with the first one's place.
const INPUT: Stream = Stream::Stdout;

/// The one place where the process itself can write, without us.
fn direct<'a>(args: &'a Args<'_>) -> Option<&'a LogSpec> {
    let [spec] = args.log.as_slice() else { return None };
    let alone = spec.driver != LogDriver::None && spec.is_direct();
    (alone && !args.terminal).then_some(spec)
}

fn direct_outputs(spec: &LogSpec, args: &Args<'_>, home: &Home) -> io::Result<(File, File)> {
    let open = |spec: &LogSpec| match spec.driver {
        // Opened for both, so a reader that goes away costs the container no SIGPIPE.
        LogDriver::Fifo => open_fifo(spec.path.as_deref().unwrap_or(Path::new("")), OFlag::O_RDWR),
        _ => output::open_direct(spec, home, args.owner),
    };
    let fifo = |path: Option<&Path>| path.map(|path| open_fifo(path, OFlag::O_RDWR)).transpose();
    let stdout = match fifo(args.stdout)? {
        Some(fifo) => fifo,
        None => open(spec)?,
    };
    let stderr = match (fifo(args.stderr)?, &spec.stderr) {
        (Some(fifo), _) => fifo,
        (None, Some(path)) => open(&LogSpec { path: Some(path.clone()), ..spec.clone() })?,
        // One open file, so that neither writes over the other.
        (None, None) if args.stdout.is_none() => stdout.try_clone()?,
        (None, None) => open(spec)?,
    };
    Ok((stdout, stderr))
}

/// `/dev/null` for the container, opened when it is first asked for.
///
/// It is the host's: an OCI runtime replaces it by the container's own for the first process, and not for an
/// exec, which then could change its mode and owner by fchmod(2). So it is opened through a mount that is
/// read-only and nowhere attached.
#[derive(Default)]
pub struct Null {
    file: Option<File>,
    /// The kernel waits for a grace period when this is closed.
    mount: Option<OwnedFd>,
}

impl Null {
    /// Another descriptor of it.
    pub fn get(&mut self) -> io::Result<File> {
        if let Some(file) = &self.file {
            return file.try_clone();
        }
        let open = |path: &str| File::options().read(true).write(true).open(path);
        let null = open("/dev/null")?;
        // Without the right to mount there is none to change the host's file either. Before Linux 5.12 there
        // is no such mount.
        let file = match holdfast_sys::mount::read_only_clone(&null) {
            Err(_) => null,
            Ok(mount) => {
                let file = open(&format!("/proc/self/fd/{}", mount.as_raw_fd()))?;
                self.mount = Some(mount);
                file
            }
        };
        self.file.insert(file).try_clone()
    }
}

pub(crate) fn open_fifo(path: &Path, flags: OFlag) -> io::Result<File> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let access = flags & OFlag::O_ACCMODE;
    let file = File::options()
        .read(access != OFlag::O_WRONLY)
        .write(access != OFlag::O_RDONLY)
        .custom_flags((flags & !OFlag::O_ACCMODE).bits())
        .open(path)
        .map_err(named)?;
    if file.metadata()?.file_type().is_fifo() {
        Ok(file)
    } else {
        Err(named(io::Error::other("not a FIFO")))
    }
}

/// A pipe: our end for reading without waiting, the container's end opened for both. So the
/// container holds a reader itself: it meets no SIGPIPE if we die, and what it wrote stays in the
/// pipe for whoever adopts it. The end of file still comes when the container's last process has
/// closed it.
pub fn output_pipe(owner: Owner) -> io::Result<(OwnedFd, File)> {
    let (ours, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // Room for the container to go on while one read's worth is on its way to the log.
    enlarge(&writer);
    give(&writer, owner)?;
    let itself = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let theirs =
        nix::fcntl::open(itself.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    fcntl(ours.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs.into()))
}

/// Our own end of a pipe that a shim before us read from. Where nobody kept that, what was sent is the
/// container's: its flags are not ours to set, and as long as we have it the pipe does not end.
fn reading_end(pipe: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(&pipe, FcntlArg::F_GETFL)?);
    if flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        return Ok(pipe);
    }
    // This waits for the pipe's lock, which the container may hold: as its shim we may.
    let itself = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(itself.as_str(), how, Mode::empty())?)
}

/// The container's user owns its stdio, so that it may reopen `/dev/stdout`. Only root can give a file away.
/// Another user lets everyone open it instead: it has no name, or one in the state root that nobody else may
/// search, so that is whoever has a descriptor of it.
pub(crate) fn give(file: &impl AsFd, owner: Owner) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => {
            match fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
                Err(Errno::EPERM) => Ok(fchmod(file, Mode::from_bits_truncate(0o666))?),
                given => Ok(given?),
            }
        }
        None => Ok(()),
    }
}
