//! The loop: one `poll` over signals, control messages and output, in three phases.
//!
//! ```text
//! Starting ── the runtime exits 0, its pid file names a child of ours ──▶ Running
//!     │                                                                      │ the process exits:
//!     │ the runtime fails, the deadline passes, SIGTERM                      │ drain, record, announce, reap
//!     ▼                                                                      ▼
//! all descendants killed, exit code 1                        Exited ── output ended ──▶ exit code 0
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use holdfast_state::announce::Announcement;
use holdfast_state::control::{self, Control};
use holdfast_state::{Evidence, ExitRecord, ProcessDir};
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{PidFd, Termination};
use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use crate::args::Args;
use crate::log;
use crate::runtime;
use crate::setup;
use crate::stdio::Stdio;
use crate::terminal::ConsoleSocket;

/// How long killed descendants may take to vanish. Only one that hangs in the kernel takes long.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The exit code that says that the start took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

#[derive(Debug)]
enum Phase {
    /// The runtime works.
    Starting { runtime: i32, deadline: Option<(Instant, Duration)> },
    /// The container's process lives, or is a zombie that we have yet to look at.
    Running { pid: i32, process: PidFd },
    /// Its status is recorded. Background processes may still write.
    Exited,
}

/// Why a start came to nothing. The supervisor reads it from `shim-log.json`.
enum Failure {
    /// Our own trouble: an error of the shim's.
    Shim(String),
    /// The runtime said no; its own log says why.
    Runtime(Termination),
    /// The runtime took too long.
    TimedOut(Duration),
}

pub(crate) struct Shim {
    dir: ProcessDir,
    /// The exit FIFO. It closes when we are gone, however we went.
    exit: File,
    control: File,
    /// The beginning of a control message whose end has not come yet.
    control_line: Vec<u8>,
    signals: SignalFd,
    stdio: Stdio,
    /// There as long as the runtime owes us a terminal.
    console: Option<ConsoleSocket>,
    /// Someone wants the start given up.
    cancelled: bool,
    phase: Phase,
}

impl Shim {
    /// Detaches, opens what the process directory holds, and sets the runtime to work.
    pub(crate) fn start(args: &Args) -> io::Result<Self> {
        let deadline = args.timeout.map(|timeout| (Instant::now() + timeout, timeout));
        let (signals, exit) = setup::become_shim()?;
        if let Some(soft) = args.nofile {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        let dir = ProcessDir::open(&args.dir)?;
        let control = dir.control_reader()?;
        let (container_ends, stdio) = Stdio::open(args, &dir)?;
        let mut command = args.runtime.clone();
        let mut console = None;
        if args.terminal {
            let (socket, path) = ConsoleSocket::bind(&dir)?;
            console = Some(socket);
            let id = command.len() - 1;
            command.splice(id..id, ["--console-socket".into(), path.into()]);
        }
        let runtime = runtime::spawn(&command, &container_ends)?;
        Ok(Self {
            dir,
            exit,
            control,
            control_line: Vec::with_capacity(control::MAX_LINE),
            signals,
            stdio,
            console,
            cancelled: false,
            phase: Phase::Starting { runtime, deadline },
        })
    }

    pub(crate) fn run(mut self) -> io::Result<ExitCode> {
        loop {
            if matches!(self.phase, Phase::Exited) && self.stdio.is_over() {
                return Ok(ExitCode::SUCCESS);
            }
            let ready = self.wait()?;
            self.stdio.pass(ready.stdio)?;
            if ready.control {
                self.obey()?;
            }
            if ready.console {
                self.receive_terminal()?;
            }
            while let Some(signal) = self.signals.read_signal()? {
                self.cancelled |= signal.ssi_signo == Signal::SIGTERM as u32;
            }
            if let Err(failure) = self.look_at_children()? {
                return self.give_up(failure);
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let timeout = match self.phase {
            Phase::Starting { deadline: Some((deadline, _)), .. } => round_up(deadline),
            _ => PollTimeout::NONE,
        };
        let [first, second, input] = self.stdio.waits_for();
        let waits = [
            for_input(&self.signals),
            for_input(&self.control),
            self.console.as_ref().and_then(for_input),
            first,
            second,
            input,
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
        Ok(Ready { control: ready(1), console: ready(2), stdio: [ready(3), ready(4), ready(5)] })
    }

    fn receive_terminal(&mut self) -> io::Result<()> {
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
            (Control::Signal(signal), Phase::Running { process, .. }) => {
                if let Err(error) = process.send_signal(signal) {
                    log("warning", &format!("control: signal {signal}: {error}"));
                }
            }
            (Control::Signal(SIGKILL), Phase::Starting { .. }) => self.cancelled = true,
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
        if let Phase::Starting { runtime, deadline } = self.phase {
            // Nothing but the runtime is reaped yet: a zombie may be the container's process,
            // which has ended before we know its pid.
            match wait::reap(runtime)? {
                Some(Termination::Exited(0)) => match self.take_over()? {
                    Ok(()) => {}
                    failure => return Ok(failure),
                },
                Some(end) => return Ok(Err(Failure::Runtime(end))),
                None if self.cancelled => {
                    return Ok(Err(Failure::Shim("the start was cancelled".to_owned())));
                }
                None => {
                    if let Some((deadline, timeout)) = deadline
                        && Instant::now() >= deadline
                    {
                        return Ok(Err(Failure::TimedOut(timeout)));
                    }
                }
            }
        }
        while let Phase::Running { .. } | Phase::Exited = self.phase {
            match wait::peek(Child::Any) {
                Ok(Some((pid, end))) => self.child_ended(pid, end)?,
                Ok(None) => break,
                Err(error) if error.raw_os_error() == Some(Errno::ECHILD as i32) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Ok(()))
    }

    /// The runtime is done: its pid file names the process that we are the parent of now.
    fn take_over(&mut self) -> io::Result<Result<(), Failure>> {
        let failed = |text: String| Ok(Err(Failure::Shim(text)));
        let pid = match self.dir.pid() {
            Ok(Some(pid)) => pid,
            Ok(None) => return failed("the runtime succeeded and wrote no pid".to_owned()),
            Err(error) => return failed(error.to_string()),
        };
        // Our child, dead or alive, keeps its pid until we reap it: this can open no other process.
        if let Err(error) = wait::peek(Child::Pid(pid)) {
            return failed(format!(
                "the runtime's process {pid} did not become our child: {error}"
            ));
        }
        let process = PidFd::open(pid)?;
        // Sent before the runtime ended, so it is there by now.
        self.receive_terminal()?;
        if self.console.is_some() {
            return failed("the runtime succeeded and sent no terminal".to_owned());
        }
        self.phase = Phase::Running { pid, process };
        self.announce(Announcement::Created { pid });
        Ok(Ok(()))
    }

    fn child_ended(&mut self, pid: i32, end: Termination) -> io::Result<()> {
        if matches!(self.phase, Phase::Running { pid: own, .. } if own == pid) {
            self.stdio.drain()?;
            // On disk before it is reaped: should we die in between, the zombie still tells, and
            // as long as there is no status the pid can't be anyone else's.
            if let Err(error) = self.dir.record_exit(&ExitRecord::now(end.into(), Evidence::Shim)) {
                log("error", &format!("exit of process {pid} ({end}) not recorded: {error}"));
            }
            self.announce(Announcement::Exited(end));
            self.phase = Phase::Exited;
        }
        wait::reap(pid)?;
        Ok(())
    }

    /// Tells the supervisor, if there is one: the files have said it already.
    fn announce(&mut self, announcement: Announcement) {
        let _ = self.exit.write_all(announcement.to_string().as_bytes());
    }

    /// Ends a start that came to nothing: no descendant of ours survives it.
    fn give_up(&mut self, failure: Failure) -> io::Result<ExitCode> {
        let killed = self.kill_descendants();
        self.stdio.drain()?;
        // The supervisor takes the first error that it finds, so what is the runtime's to explain
        // is no error of ours.
        let code = match failure {
            Failure::Shim(text) => {
                log("error", &text);
                ExitCode::FAILURE
            }
            Failure::Runtime(end) => {
                log("warning", &format!("the runtime failed: {end}"));
                ExitCode::FAILURE
            }
            Failure::TimedOut(timeout) => {
                log("warning", &format!("the container did not start within {timeout:?}"));
                ExitCode::from(TIMED_OUT)
            }
        };
        killed.map(|()| code)
    }

    /// Kills our children until none is left. Orphans of the killed come to us, the subreaper, and
    /// are killed in turn; those in a pid namespace die with its init.
    fn kill_descendants(&self) -> io::Result<()> {
        let give_up_at = Instant::now() + KILL_GRACE;
        loop {
            for pid in holdfast_sys::proc::own_children()? {
                // A child of ours keeps its pid until it is reaped below.
                if let Ok(child) = PidFd::open(pid) {
                    let _ = child.send_signal(Signal::SIGKILL as i32);
                }
            }
            loop {
                match wait::peek(Child::Any) {
                    Ok(Some((pid, _))) => _ = wait::reap(pid)?,
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
            if Instant::now() >= give_up_at {
                return Err(io::Error::other(
                    "processes of the failed start survive SIGKILL: they hang in the kernel",
                ));
            }
            let mut set = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut set, round_up(give_up_at)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            while self.signals.read_signal()?.is_some() {}
        }
    }
}

/// What [`Shim::wait`] found. Signals are not in it: they are read in any case.
struct Ready {
    control: bool,
    console: bool,
    stdio: [bool; 3],
}

fn for_input(fd: &impl AsFd) -> Option<(BorrowedFd<'_>, PollFlags)> {
    Some((fd.as_fd(), PollFlags::POLLIN))
}

/// The time until `deadline` in whole milliseconds, rounded up so that a wait never ends before it.
fn round_up(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
}
