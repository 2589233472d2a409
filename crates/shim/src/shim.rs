//! The loop: one `poll` over signals, control messages and output, in three phases.
//!
//! ```text
//! Starting ── the runtime exits 0, its pid file names a child of ours ──▶ Running, or Adopted
//!     │                                                                      │ the process exits:
//!     │ the runtime fails, the deadline passes, it is given up               │ drain, record, announce
//!     ▼                                                                      ▼
//! all descendants killed, exit code 1                        Exited ── output ended ──▶ exit code 0
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use holdfast_state::announce::{Announcement, Announcer};
use holdfast_state::control::{self, Control};
use holdfast_state::{Evidence, ExitRecord, ExitStatus, ProcessDir, UnknownReason};
use holdfast_sys::ending::{Ending, ending};
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{PidFd, Termination};
use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use crate::args::Args;
use crate::legacy::Legacy;
use crate::log;
use crate::runtime;
use crate::setup;
use crate::stdio::{SOURCES, Stdio};
use crate::terminal::ConsoleSocket;

/// When a start must be done, and how much time that was.
pub(crate) type Deadline = Option<(Instant, Duration)>;

#[derive(Debug)]
pub(crate) enum Phase {
    /// The runtime works.
    Starting { runtime: i32, deadline: Deadline },
    /// It has succeeded, and its process is not ours yet: crun works in a grandchild, which may
    /// outlive it by a moment and is the process's parent until then.
    TakingOver { deadline: Deadline },
    /// The container's process lives, or is a zombie that we have yet to look at.
    Running { pid: i32, process: PidFd },
    /// The same of a process whose first shim died. It is not our child.
    Adopted { pid: i32, process: PidFd, end: End },
    /// It has ended. Background processes may still write, and the disk may refuse the status.
    Exited { unrecorded: Option<Unrecorded> },
}

/// What is known of the end of an adopted process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It has not come.
    Ahead,
    /// It has come, and the kernel tells how once someone has reaped it.
    Hidden,
}

/// A status that the disk has refused.
#[derive(Debug)]
pub(crate) struct Unrecorded {
    record: ExitRecord,
    /// When to try again.
    next: Instant,
}

/// After how much time a status that the disk refused is written again.
const RETRY: Duration = Duration::from_secs(1);

/// After how much time without output the memory that it took is given back.
const REST: Duration = Duration::from_secs(1);

/// Room for an announcement: a few words and five numbers.
const ANNOUNCEMENT: usize = 128;

/// Why a start came to nothing. The supervisor reads it from `shim-log.json`.
pub(crate) enum Failure {
    /// Our own trouble: an error of the shim's.
    Shim(String),
    /// The runtime said no; its own log says why.
    Runtime(Termination),
    /// The runtime took too long.
    TimedOut(Duration),
}

pub(crate) struct Shim {
    pub(crate) dir: ProcessDir,
    /// The exit FIFO. It closes when we are gone, however we went.
    exit: File,
    control: File,
    /// The beginning of a control message whose end has not come yet.
    control_line: Vec<u8>,
    pub(crate) signals: SignalFd,
    pub(crate) stdio: Stdio,
    /// There as long as the runtime owes us a terminal.
    pub(crate) console: Option<ConsoleSocket>,
    /// Someone wants the start given up, or the last output not waited for.
    pub(crate) cancelled: bool,
    /// When to give back the memory that a start or output took.
    rest: Option<Instant>,
    pub(crate) phase: Phase,
}

// A frame of [`start`](Shim::start) or [`adopt`](Shim::adopt) within that of `run` would keep its pages
// of the stack for life, so neither is inlined.
impl Shim {
    /// Detaches, opens what the process directory holds, and sets the runtime to work.
    #[inline(never)]
    pub(crate) fn start(args: &Args) -> io::Result<Self> {
        let deadline = args.timeout.map(|timeout| (Instant::now() + timeout, timeout));
        let (signals, exit) = setup::become_shim()?;
        if let Some(soft) = args.nofile {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
        }
        let dir = ProcessDir::open(args.dir)?;
        let control = dir.control_reader()?;
        let (container_ends, stdio) = Stdio::open(args, &dir)?;
        let console = args.terminal.then(|| ConsoleSocket::bind(&dir)).transpose()?;
        let path = console.as_ref().map(|(_, path)| &**path);
        let runtime = runtime::spawn(&args.runtime, path, container_ends)?;
        Ok(Self {
            dir,
            exit,
            control,
            control_line: Vec::new(),
            signals,
            stdio,
            console: console.map(|(socket, _)| socket),
            cancelled: false,
            rest: None,
            phase: Phase::Starting { runtime, deadline },
        })
    }

    /// Takes over a process whose shim has died: its pidfd and what its shim read from come through
    /// our standard input.
    #[inline(never)]
    pub(crate) fn adopt(args: &Args) -> io::Result<Self> {
        let legacy = Legacy::receive(&holdfast_sys::fd::standard()[0])?;
        let (signals, exit) = setup::become_shim()?;
        let dir = ProcessDir::open(args.dir)?;
        let control = dir.control_reader()?;
        let pid = dir.pid()?.ok_or_else(|| io::Error::other("there is no pid to adopt"))?;
        let process = legacy.process.ok_or_else(|| io::Error::other("no pidfd was sent"))?;
        let stdio = Stdio::adopt(args, &dir, legacy.stdio)?;
        let mut shim = Self {
            dir,
            exit,
            control,
            control_line: Vec::new(),
            signals,
            stdio,
            console: None,
            cancelled: false,
            rest: Some(Instant::now() + REST),
            phase: Phase::Adopted { pid, process, end: End::Ahead },
        };
        shim.announce(Announcement::Adopted { shim: shim.announcer() });
        // It may have ended long ago.
        shim.look_at_orphan()?;
        Ok(shim)
    }

    pub(crate) fn run(mut self) -> io::Result<u8> {
        loop {
            if let Phase::Exited { unrecorded } = &self.phase
                && (self.cancelled || (self.stdio.is_over() && unrecorded.is_none()))
            {
                return Ok(0);
            }
            let ready = self.wait()?;
            // Before the input: who resizes the terminal and then types means it in this order.
            if ready.control {
                self.obey()?;
            }
            self.stdio.pass(ready.stdio)?;
            self.rest(ready.stdio.contains(&true));
            if ready.console {
                self.receive_terminal()?;
            }
            if ready.orphan {
                self.look_at_orphan()?;
            }
            self.record_again();
            while let Some(signal) = self.signals.read_signal()? {
                self.cancelled |= signal.ssi_signo == Signal::SIGTERM as u32;
            }
            if let Err(failure) = self.look_at_children()? {
                return self.give_up(failure);
            }
        }
    }

    /// Gives back what memory is not needed once there is nothing to do.
    fn rest(&mut self, worked: bool) {
        if worked && self.stdio.holds_memory() {
            self.rest_later();
        } else if self.rest.is_some_and(|rest| Instant::now() >= rest) {
            self.rest = None;
            self.stdio.rest();
            holdfast_sys::memory::trim();
        }
    }

    pub(crate) fn rest_later(&mut self) {
        self.rest = Some(Instant::now() + REST);
    }

    fn wait(&self) -> io::Result<Ready> {
        let due = match self.phase {
            Phase::Starting { deadline: Some((deadline, _)), .. }
            | Phase::TakingOver { deadline: Some((deadline, _)) }
            | Phase::Exited { unrecorded: Some(Unrecorded { next: deadline, .. }) } => {
                Some(deadline)
            }
            _ => None,
        };
        let timeout = due.into_iter().chain(self.rest).min().map_or(PollTimeout::NONE, round_up);
        let [first, second, input, reader, other] = self.stdio.waits_for();
        let waits = [
            for_input(&self.signals),
            self.console.as_ref().and_then(for_input),
            first,
            second,
            input,
            reader,
            other,
            // Behind the input, as the kernel looks in this order: input that is seen has not
            // overtaken what was said here before it.
            for_input(&self.control),
            match &self.phase {
                Phase::Adopted { process, end: End::Ahead, .. } => for_input(process),
                // That it was reaped shows without being asked for.
                Phase::Adopted { process, .. } => Some((process.as_fd(), PollFlags::empty())),
                _ => None,
            },
        ];
        // What is not waited for keeps its place in the set and asks for nothing.
        let nothing = (self.signals.as_fd(), PollFlags::empty());
        let mut set = waits.map(|wait| {
            let (fd, events) = wait.unwrap_or(nothing);
            PollFd::new(fd, events)
        });
        match poll(&mut set, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| {
            waits[index].is_some() && set[index].revents().is_some_and(|events| !events.is_empty())
        };
        Ok(Ready {
            console: ready(1),
            stdio: [ready(2), ready(3), ready(4), ready(5), ready(6)],
            control: ready(7),
            orphan: ready(8),
        })
    }

    pub(crate) fn receive_terminal(&mut self) -> io::Result<()> {
        if let Some(console) = &mut self.console
            && let Some(master) = console.receive(&self.dir)?
        {
            self.stdio.take_terminal(master)?;
            self.console = None;
        }
        Ok(())
    }

    /// Reads control messages, however they are cut. A line that makes no sense is logged and skipped.
    fn obey(&mut self) -> io::Result<()> {
        let mut chunk = [0; 512];
        let length = match self.control.read(&mut chunk) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        for &byte in &chunk[..length] {
            if byte != b'\n' {
                // One byte more than a message may have marks the line as too long to be one.
                if self.control_line.len() <= control::MAX_LINE {
                    self.control_line.push(byte);
                }
                continue;
            }
            match Control::parse(&self.control_line) {
                Some(message) if self.control_line.len() <= control::MAX_LINE => self.act(message),
                _ => log(
                    "warning",
                    &format!(
                        "control: no message: {:?}",
                        String::from_utf8_lossy(&self.control_line)
                    ),
                ),
            }
            self.control_line.clear();
        }
        Ok(())
    }

    fn act(&mut self, message: Control) {
        match (message, &self.phase) {
            (Control::CloseStdin, _) => self.stdio.close_stdin(),
            (Control::ReopenLogs, _) => {
                if let Err(error) = self.stdio.reopen_logs() {
                    log("warning", &format!("control: reopen: {error}"));
                }
            }
            (
                Control::Signal(signal),
                Phase::Running { process, .. } | Phase::Adopted { process, .. },
            ) => {
                if let Err(error) = process.send_signal(signal) {
                    log("warning", &format!("control: signal {signal}: {error}"));
                }
            }
            // Of a start, or of waiting for the last output, enough.
            (
                Control::Signal(SIGKILL),
                Phase::Starting { .. } | Phase::TakingOver { .. } | Phase::Exited { .. },
            ) => self.cancelled = true,
            (Control::Signal(_), _) => log("warning", "control: signal: there is no process"),
            (Control::Resize { width, height }, _) => match self.stdio.terminal() {
                Some(master) => {
                    if let Err(error) = holdfast_sys::terminal::resize(master, width, height) {
                        log("warning", &format!("control: resize: {error}"));
                    }
                }
                None => log("warning", "control: resize: there is no terminal"),
            },
        }
    }

    /// Asks what has become of our children and of the deadline, and moves on to the next phase.
    fn look_at_children(&mut self) -> io::Result<Result<(), Failure>> {
        if let Err(failure) = self.look_at_start()? {
            return Ok(Err(failure));
        }
        // As long as its status is not on disk the zombie stays: it is the record then.
        while let Phase::Running { .. } | Phase::Exited { unrecorded: None } = self.phase {
            match wait::peek(Child::Any) {
                Ok(Some((pid, end))) => self.child_ended(pid, end)?,
                Ok(None) => break,
                Err(error) if error.raw_os_error() == Some(Errno::ECHILD as i32) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Ok(()))
    }

    fn child_ended(&mut self, pid: i32, end: Termination) -> io::Result<()> {
        if matches!(self.phase, Phase::Running { pid: own, .. } if own == pid) {
            // On disk before it is reaped: should we die in between, the zombie still tells, and
            // as long as there is no status the pid can't be anyone else's.
            self.process_ended(end.into(), Evidence::Shim)?;
        }
        if !matches!(self.phase, Phase::Exited { unrecorded: Some(_) }) {
            wait::reap(Child::Pid(pid))?;
        }
        Ok(())
    }

    /// An adopted process is not our child; its pidfd tells of its end, and others how it ended.
    fn look_at_orphan(&mut self) -> io::Result<()> {
        let Phase::Adopted { pid, process, end } = &mut self.phase else { return Ok(()) };
        match ending(*pid, process) {
            Ending::Alive => Ok(()),
            Ending::Hidden => {
                *end = End::Hidden;
                Ok(())
            }
            Ending::Exact(end, source) => self.process_ended(end.into(), source.into()),
            Ending::Lost => {
                let unknown = ExitStatus::Unknown(UnknownReason::ReapedByAnother);
                self.process_ended(unknown, Evidence::None)
            }
        }
    }

    /// Puts the rest of the output into the log, then the end on disk, then tells of it. One that
    /// the disk refuses is told all the same: that is no reason to hide an exit.
    fn process_ended(&mut self, status: ExitStatus, evidence: Evidence) -> io::Result<()> {
        self.stdio.drain()?;
        let record = ExitRecord::now(status, evidence);
        // Of an orphan someone else may have known better and been faster.
        let standing = self.dir.record_exit(&record);
        self.tell_end(standing.as_ref().unwrap_or(&record));
        let unrecorded = standing.err().map(|error| {
            log("error", &format!("exit ({status}) not recorded: {error}"));
            Unrecorded { record, next: Instant::now() + RETRY }
        });
        self.phase = Phase::Exited { unrecorded };
        Ok(())
    }

    /// Writes a status again that the disk has refused, and tells it to a supervisor that has come
    /// since.
    fn record_again(&mut self) {
        let Phase::Exited { unrecorded: Some(owed) } = &mut self.phase else { return };
        if Instant::now() < owed.next {
            return;
        }
        let standing = match self.dir.record_exit(&owed.record) {
            Ok(standing) => standing,
            // Deleted, and nobody will ask for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => owed.record.clone(),
            Err(_) => {
                owed.next = Instant::now() + RETRY;
                return;
            }
        };
        self.phase = Phase::Exited { unrecorded: None };
        self.tell_end(&standing);
    }

    fn tell_end(&mut self, record: &ExitRecord) {
        let end = match record.status {
            ExitStatus::Code(code) => Termination::Exited(code),
            ExitStatus::Signal(signal) => Termination::Signaled(signal),
            // The file says why; its reader finds it when we are gone.
            ExitStatus::Unknown(_) => return,
        };
        self.announce(Announcement::Exited { end, evidence: record.evidence });
    }

    /// Who we are, for the supervisor to keep copies of what we read from.
    pub(crate) fn announcer(&self) -> Announcer {
        Announcer { pid: std::process::id().cast_signed(), stdio: self.stdio.fds() }
    }

    /// Tells the supervisor, if there is one: the files have said it already.
    pub(crate) fn announce(&mut self, announcement: Announcement) {
        // On the stack: the smallest allocation can be the one that keeps a page.
        let mut line = [0; ANNOUNCEMENT];
        let mut rest = line.as_mut_slice();
        let _ = write!(rest, "{announcement}");
        let length = ANNOUNCEMENT - rest.len();
        let _ = self.exit.write_all(&line[..length]);
    }
}

/// What [`Shim::wait`] found. Signals are not in it: they are read in any case.
struct Ready {
    control: bool,
    console: bool,
    stdio: [bool; SOURCES],
    orphan: bool,
}

fn for_input(fd: &impl AsFd) -> Option<(BorrowedFd<'_>, PollFlags)> {
    Some((fd.as_fd(), PollFlags::POLLIN))
}

/// The time until `deadline` in whole milliseconds, rounded up so that a wait never ends before it.
pub(crate) fn round_up(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
}
