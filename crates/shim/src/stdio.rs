//! The stdio that the container gets, and our side of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

use holdfast_state::announce::StdioFds;
use holdfast_state::cri::Stream;
use holdfast_state::{LogDriver, LogSpec, legacy};
use holdfast_sys::terminal::open_peer;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown, pipe2};

use crate::args::Args;
use crate::home::Home;
use crate::legacy::LegacyStdio;
use crate::log_file;
use crate::places::Places;
use crate::pump::Pump;
use crate::relay::{Kind, Progress, Relay, Scratch};
use crate::terminal::END_OF_INPUT;

/// What the runtime inherits; closed on our side once it runs.
pub(crate) struct ContainerEnds {
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
}

/// To whom files and pipes are given, as the host counts.
pub(crate) type Owner = Option<(u32, u32)>;

/// One of the streams that a process writes.
enum Output {
    /// To the places where output goes.
    Logged(Relay),
    /// From the terminal into a FIFO of the caller's.
    Pumped(Pump),
}

/// Our side.
#[derive(Default)]
pub(crate) struct Stdio {
    outputs: [Option<Output>; 2],
    /// Those that have ended, until nobody waits for them any more.
    ended: Vec<Output>,
    places: Option<Places>,
    scratch: Option<Rc<Scratch>>,
    /// From the stdin FIFO into the terminal. Without a terminal the process reads the FIFO itself.
    input: Option<Pump>,
    /// The stdin FIFO, opened for writing: it does not end when a client goes, but when someone
    /// says that it is over.
    stdin_holder: Option<File>,
    /// A terminal's output goes into a FIFO of the caller's.
    feeds_a_fifo: bool,
    /// The stdin FIFO until there is a terminal for it.
    waiting_stdin: Option<File>,
    /// A FIFO of the caller's until there is a terminal for it.
    waiting_stdout: Option<File>,
    terminal: Option<OwnedFd>,
    /// Its other side, as long as the process lives: without it the terminal reads as ended whenever
    /// nobody has it open, and a getty opens it again.
    other_side: Option<OwnedFd>,
}

impl Stdio {
    /// Opens what there is to open before the runtime starts.
    pub(crate) fn open(args: &Args<'_>, home: &Home) -> io::Result<(ContainerEnds, Self)> {
        let mut ours = Self::default();
        let direct = direct(args);
        if direct.is_none() && (args.terminal || args.stdout.is_none() || args.stderr.is_none()) {
            ours.open_places(args, home, None, Missing::Fails)?;
        }
        let mut stdin = null()?;
        if let (Some(path), false) = (&args.stdin, args.terminal) {
            stdin = open_fifo(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
            ours.stdin_holder = Some(open_fifo(path, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?);
            // The container expects a descriptor that waits.
            fcntl(&stdin, FcntlArg::F_SETFL(OFlag::empty()))?;
        }
        let (stdout, stderr) = if args.terminal {
            ours.open_for_terminal(args)?;
            // What the runtime itself has to say before there is a terminal.
            (null()?, ours.output(args, None, Stream::Stderr)?)
        } else if let Some(spec) = direct {
            direct_outputs(spec, args, home)?
        } else {
            (
                ours.output(args, args.stdout, Stream::Stdout)?,
                ours.output(args, args.stderr, Stream::Stderr)?,
            )
        };
        Ok((ContainerEnds { stdin, stdout, stderr }, ours))
    }

    /// The container's end of one output.
    fn output(&mut self, args: &Args<'_>, fifo: Option<&Path>, stream: Stream) -> io::Result<File> {
        match fifo {
            // Opened for both, so a reader that goes away costs the container no SIGPIPE.
            Some(path) => open_fifo(path, OFlag::O_RDWR),
            None if self.places.is_none() => null(),
            None => {
                let (ours, theirs) = output_pipe(args.owner)?;
                let relay = Relay::new(ours, stream, Kind::Pipe);
                self.outputs[stream as usize] = Some(Output::Logged(relay));
                Ok(theirs)
            }
        }
    }

    /// The terminal has come.
    pub(crate) fn take_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        self.other_side = warn("the terminal ends when nobody has it open", open_peer(&master));
        if let Some(fifo) = self.waiting_stdin.take() {
            let pump = Pump::new(fifo.into(), master.try_clone()?);
            self.input = Some(pump.ending_with(END_OF_INPUT));
        }
        self.outputs[Stream::Stdout as usize] = match self.waiting_stdout.take() {
            Some(fifo) => Some(Output::Pumped(Pump::new(master.try_clone()?, fifo.into()))),
            None if self.places.is_some() => Some(Output::Logged(Relay::new(
                master.try_clone()?,
                Stream::Stdout,
                Kind::Terminal,
            ))),
            // Read by nobody, the terminal would fill up and stall the process.
            None => Some(Output::Pumped(Pump::new(master.try_clone()?, null()?.into()))),
        };
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
        legacy: LegacyStdio,
        scratch: Option<Rc<Scratch>>,
    ) -> io::Result<Self> {
        let mut ours = Self { stdin_holder: legacy.stdin.map(File::from), ..Self::default() };
        // One that was handed over left nothing half done.
        let died = args.moved.is_none();
        if legacy.stdout.is_some() || legacy.stderr.is_some() || args.terminal {
            ours.open_places(args, home, scratch, Missing::Waits)?;
        }
        if died && let Some(places) = &mut ours.places {
            warn("the end of a log is not mended", places.mend());
        }
        let pipes = [(legacy.stdout, Stream::Stdout), (legacy.stderr, Stream::Stderr)];
        for (pipe, stream) in pipes.into_iter().filter_map(|(pipe, stream)| Some((pipe?, stream))) {
            let pipe = reading_end(pipe)?;
            let mut relay = Relay::new(pipe, stream, Kind::Pipe);
            if died && let (Some(places), Some(scratch)) = (&mut ours.places, &ours.scratch) {
                warn("what was logged last is not known", relay.compare(places, scratch));
            }
            ours.outputs[stream as usize] = Some(Output::Logged(relay));
        }
        if let Some(master) = legacy.terminal {
            warn("a FIFO of the terminal's", ours.open_for_terminal(args));
            ours.take_terminal(master)?;
        }
        Ok(ours)
    }

    /// With a scratch of its own, if there is none to share.
    fn open_places(
        &mut self,
        args: &Args<'_>,
        home: &Home,
        scratch: Option<Rc<Scratch>>,
        missing: Missing,
    ) -> io::Result<()> {
        self.places = Places::open(&args.log, home, args.owner, missing)?;
        if self.places.is_some() {
            let own = || Scratch::new().map(Rc::new);
            self.scratch = Some(scratch.map_or_else(own, Ok)?);
        }
        Ok(())
    }

    /// Whether another shim can take over without missing anything: what waits in our memory, or in
    /// a FIFO that nobody has open but us, would be lost.
    pub(crate) fn can_move(&self) -> bool {
        let pumps = self.outputs.iter().flatten().filter_map(|output| match output {
            Output::Pumped(pump) => Some(pump),
            Output::Logged(_) => None,
        });
        self.places.as_ref().is_none_or(Places::can_move)
            && pumps.chain(&self.input).all(Pump::is_idle)
            && !self.feeds_a_fifo
            && (self.input.is_none() || self.stdin_holder.is_some())
    }

    /// How many descriptors it may come to need.
    pub(crate) fn most_files(&self) -> u64 {
        let each = |output: &Output| match output {
            Output::Logged(_) => 1,
            Output::Pumped(_) => 2,
        };
        let outputs: u64 = self.outputs.iter().flatten().map(each).sum();
        let input = if self.input.is_some() { 2 } else { 0 };
        // A terminal has two sides.
        let others =
            u64::from(self.stdin_holder.is_some()) + 2 * u64::from(self.terminal.is_some());
        outputs + input + others + self.places.as_ref().map_or(0, Places::most_files)
    }

    /// What another shim needs, each with what it is.
    pub(crate) fn for_another(&self) -> impl Iterator<Item = (u8, BorrowedFd<'_>)> {
        let all = [
            (legacy::STDOUT, self.pipe(Stream::Stdout)),
            (legacy::STDERR, self.pipe(Stream::Stderr)),
            (legacy::TERMINAL, self.terminal.as_ref().map(AsFd::as_fd)),
            (legacy::STDIN, self.stdin_holder.as_ref().map(AsFd::as_fd)),
        ];
        all.into_iter().filter_map(|(kind, fd)| Some((kind, fd?)))
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
            self.feeds_a_fifo = true;
            self.waiting_stdout = Some(open_fifo(path, OFlag::O_RDWR | OFlag::O_NONBLOCK)?);
        }
        Ok(())
    }

    /// What we read from, for the supervisor to keep copies.
    pub(crate) fn fds(&self) -> StdioFds {
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd();
        StdioFds {
            stdout: self.pipe(Stream::Stdout).map(number),
            stderr: self.pipe(Stream::Stderr).map(number),
            terminal: self.terminal.as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    /// Our end of an output that comes through a pipe.
    fn pipe(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match &self.outputs[stream as usize] {
            Some(Output::Logged(relay)) if relay.kind() == Kind::Pipe => Some(relay.as_fd()),
            _ => None,
        }
    }

    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal.as_ref()
    }

    /// Whether all has been written that a process can have written, and readers have got it.
    pub(crate) fn is_over(&self) -> bool {
        self.outputs.iter().all(Option::is_none)
            && self.places.as_ref().is_none_or(Places::are_empty)
    }

    /// No more input comes once all who write to the FIFO have closed it.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_holder = None;
    }

    /// What to wait for: two outputs, the input, and two readers of the output.
    pub(crate) fn waits_for(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; SOURCES] {
        let full = self.places.as_ref().is_some_and(Places::are_full);
        let output = |index: usize| match &self.outputs[index] {
            Some(Output::Logged(_)) if full => None,
            Some(Output::Logged(relay)) => Some((relay.as_fd(), PollFlags::POLLIN)),
            Some(Output::Pumped(pump)) => Some(pump.waits_for()),
            None => None,
        };
        let [first, second] = self.places.as_ref().map_or([None, None], Places::waits_for);
        let reader = |fd: Option<_>| fd.map(|fd| (fd, PollFlags::POLLOUT));
        let input = self.input.as_ref().map(Pump::waits_for);
        [output(0), output(1), input, reader(first), reader(second)]
    }

    /// Moves what can be moved, by the indices of [`waits_for`](Self::waits_for). An output that can't be
    /// read ends, and nothing else does.
    pub(crate) fn pass(&mut self, ready: [bool; SOURCES]) {
        if let Some(places) = &mut self.places
            && (ready[3] || ready[4])
        {
            places.pass();
        }
        for (index, output) in self.outputs.iter_mut().enumerate() {
            if !ready[index] {
                continue;
            }
            let progress = match (&mut *output, &mut self.places, &self.scratch) {
                (Some(Output::Logged(_)), Some(places), _) if places.are_full() => {
                    Ok(Progress::Open)
                }
                (Some(Output::Logged(relay)), Some(places), Some(scratch)) => {
                    relay.pass(places, scratch)
                }
                (Some(Output::Pumped(pump)), ..) => pump.pass(),
                _ => Ok(Progress::Open),
            };
            if warn("an output ends", progress) != Some(Progress::Open) {
                self.ended.extend(output.take());
            }
        }
        if ready[2]
            && let Some(input) = &mut self.input
            && warn("the input ends", input.pass()) != Some(Progress::Open)
        {
            self.ended.extend(self.input.take().map(Output::Pumped));
        }
    }

    /// Closes what has ended, once nobody waits for it.
    pub(crate) fn close_ended(&mut self) {
        self.ended.clear();
    }

    /// Brings to its places what was written before the process ended, and has them say what is
    /// missing. What is written from now on is somebody else's, who may also let the terminal go.
    pub(crate) fn drain(&mut self) {
        if let (Some(places), Some(scratch)) = (&mut self.places, &self.scratch) {
            for output in self.outputs.iter_mut().flatten() {
                if let Output::Logged(relay) = output {
                    warn("the last of an output is lost", relay.drain(places, scratch));
                }
            }
            places.finish();
        }
        self.other_side = None;
    }

    /// Whether there is memory to give back.
    pub(crate) fn holds_memory(&self) -> bool {
        self.places.as_ref().is_some_and(Places::hold_memory)
    }

    /// Gives back the memory that only output needs.
    pub(crate) fn rest(&mut self) {
        if let Some(places) = &mut self.places {
            places.rest();
        }
    }

    /// Opens the logs anew by their names.
    pub(crate) fn reopen_logs(&mut self) -> io::Result<()> {
        self.places.as_mut().map_or(Ok(()), Places::reopen)
    }
}

/// What is to be done about a place that can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The start fails, and says why.
    Fails,
    /// It is tried again when there is output.
    Waits,
}

/// An error of an output or input is reported, and ends no shim.
pub(crate) fn warn<T>(what: &str, done: io::Result<T>) -> Option<T> {
    done.inspect_err(|error| crate::log::log("warning", &format!("{what}: {error}"))).ok()
}

/// How much a container can write ahead, in bytes: four reads' worth.
const PIPE_SIZE: i32 = 256 * 1024;

/// How many descriptors of ours there are to wait for.
pub(crate) const SOURCES: usize = 5;

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
        _ => log_file::open_direct(spec, home, args.owner),
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

fn null() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/null")
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
fn output_pipe(owner: Owner) -> io::Result<(OwnedFd, File)> {
    let (ours, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // Room for the container to go on while one read's worth is on its way to the log. An
    // unprivileged user may have used up what pipes may hold; then it is what a pipe is by default.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
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

/// The container's user owns its stdio, so that it may reopen `/dev/stdout`.
pub(crate) fn give(file: &impl AsFd, owner: Owner) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => Ok(fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?),
        None => Ok(()),
    }
}
