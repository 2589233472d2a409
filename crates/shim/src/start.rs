//! A start: the shim runs the runtime and takes the process over, or clears everything away again.
//!
//! ```text
//! the runtime works ── exits 0 ──▶ its pid file names a child of ours ──▶ the seat is Running, or Moved
//!     │ it fails, the deadline passes, the start is given up
//!     ▼
//! all descendants killed, exit code 1
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_state::announce::{Announcement, Announcer};
use holdfast_state::handoff::{FdName, Message};
use holdfast_state::{ProcessDir, shim_options};
use holdfast_sys::start::Arguments;
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{PidFd, Termination};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use crate::args::Args;
use crate::home::Home;
use crate::log::log;
use crate::runtime;
use crate::seat::{Phase, Seat, round_up};
use crate::setup;
use crate::stdio::Stdio;
use crate::terminal::ConsoleSocket;

/// How long killed descendants may take to vanish. Only one that hangs in the kernel takes long.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The name of the socket for a terminal in the process directory.
const SOCKET: &str = "console.sock";

/// When a start must be done, and how much time that was. A limit that no clock reaches is none.
type Deadline = Option<(Instant, Duration)>;

/// A command line without the program's name.
pub(crate) type Words = std::iter::Skip<Arguments>;

/// Why a start came to nothing. The supervisor reads it from `shim-log.json`.
pub(crate) enum Failure {
    /// Our own trouble: an error of the shim's.
    Shim(String),
    /// The runtime said no; its own log says why.
    Runtime(Termination),
    /// The runtime took too long.
    TimedOut(Duration),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Shim(error.to_string())
    }
}

/// A start that is under way.
pub(crate) struct Start {
    /// The runtime, as long as it works. crun works in a grandchild, which may outlive it by a moment and is
    /// the process's parent until then.
    runtime: Option<i32>,
    deadline: Deadline,
    /// There if the runtime owes us a terminal.
    console: Option<ConsoleSocket>,
    /// There if a group is to have the process once it is started.
    handover: Option<Handover>,
}

impl Start {
    /// Opens what the process directory holds, and sets the runtime to work.
    pub(crate) fn begin(
        args: &Args<'_>,
        exit: File,
        handover: Option<Handover>,
    ) -> io::Result<(Self, Seat)> {
        let deadline = args.timeout;
        let deadline = deadline.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        let begun = ProcessDir::open(args.dir).and_then(|dir| {
            let control = dir.control_reader()?;
            let home = Home::new(&dir, &exit, &control)?;
            let (container_ends, stdio) = Stdio::open(args, &home)?;
            let console = args
                .terminal
                .then(|| ConsoleSocket::bind(dir.into_directory(), SOCKET))
                .transpose()?;
            let path = console.as_ref().map(|(_, path)| &**path);
            let shim = Announcer { pid: std::process::id().cast_signed(), stdio: stdio.fds() };
            home.open()?.note_shim(&shim)?;
            let runtime = runtime::spawn(&args.runtime, args.cwd, path, container_ends)?;
            setup::renounce_new_privileges();
            Ok((home, control, stdio, console, runtime))
        });
        match begun {
            Ok((home, control, stdio, console, runtime)) => {
                let console = console.map(|(socket, _)| socket);
                let seat = Seat::new(home, exit, control, stdio, Phase::Starting);
                Ok((Self { runtime: Some(runtime), deadline, console, handover }, seat))
            }
            Err(error) => {
                // Its end is the sign to read why, so it is not to end before that is written.
                std::mem::forget(exit);
                Err(error)
            }
        }
    }

    /// When it is to be looked at, whatever happens until then.
    pub(crate) fn due(&self) -> Option<Instant> {
        Some(self.deadline?.0)
    }

    /// Asks what has become of it. `true` once the seat has its process, or a group has it.
    pub(crate) fn look(&mut self, seat: &mut Seat) -> Result<bool, Failure> {
        if let Some(runtime) = self.runtime {
            // Nothing but the runtime is reaped yet: a zombie may be the container's process,
            // which has ended before we know its pid.
            match wait::reap(Child::Pid(runtime))? {
                Some(Termination::Exited(0)) => self.runtime = None,
                Some(end) => return Err(Failure::Runtime(end)),
                None => return self.may_go_on(seat).map(|()| false),
            }
        }
        // Also if the runtime was faster: who gave it up waits for its end.
        not_given_up(seat)?;
        let taken = self.take_over(seat)?;
        if !taken {
            self.may_go_on(seat)?;
        }
        Ok(taken)
    }

    /// Whether a start that is not done may go on.
    fn may_go_on(&self, seat: &Seat) -> Result<(), Failure> {
        not_given_up(seat)?;
        match self.deadline {
            Some((deadline, timeout)) if Instant::now() >= deadline => {
                Err(Failure::TimedOut(timeout))
            }
            _ => Ok(()),
        }
    }

    /// The runtime is done: its pid file names the process that we are the parent of now, or will
    /// be once what the runtime left at work is done as well.
    fn take_over(&mut self, seat: &mut Seat) -> Result<bool, Failure> {
        let failed = |text: &str| Err(Failure::Shim(text.to_owned()));
        let Some(pid) = seat.home.open()?.pid()? else {
            return failed("the runtime succeeded and wrote no pid");
        };
        // Our child, dead or alive, keeps its pid until we reap it: this can open no other process.
        while let Err(error) = wait::peek(Child::Pid(pid)) {
            // Each helper of the runtime's that ends may have been the one; SIGCHLD tells of more.
            match wait::peek(Child::Any) {
                // It came to us between the two questions.
                Ok(Some((helper, _))) if helper == pid => {}
                Ok(Some((helper, _))) => _ = wait::reap(Child::Pid(helper))?,
                Ok(None) => return Ok(false),
                Err(_) => {
                    let text =
                        format!("the runtime's process {pid} did not become our child: {error}");
                    return failed(&text);
                }
            }
        }
        let process = PidFd::open(pid)?;
        if let Some(console) = &self.console {
            match console.receive(None)? {
                Some(master) => seat.stdio.take_terminal(master)?,
                None => return failed("the runtime succeeded and sent no terminal"),
            }
        }
        if let Some(handover) = &self.handover
            && seat.can_move()
            && handover.send(seat, &process).is_ok()
        {
            seat.phase = Phase::Moved;
            return Ok(true);
        }
        // Ours to keep; also if the group has died meanwhile.
        seat.phase = Phase::Running { pid };
        seat.rest_later();
        let shim = seat.announcer();
        if self.console.is_some() {
            // It had no terminal when that was written down.
            let _ = seat.home.open()?.note_shim(&shim);
        }
        seat.announce(&Announcement::Created { pid, shim });
        // Afterwards: nobody waits for it.
        seat.count_oom_kills(pid);
        Ok(true)
    }
}

fn not_given_up(seat: &Seat) -> Result<(), Failure> {
    match seat.cancelled {
        true => Err(Failure::Shim("the start was given up".to_owned())),
        false => Ok(()),
    }
}

/// Ends a start that came to nothing: no descendant of ours survives it.
pub(crate) fn give_up(failure: &Failure, seat: &mut Seat, signals: &SignalFd) -> io::Result<()> {
    // The runtime may have written a pid down, and nobody be there who hears that we give up.
    let abandoned = seat.home.open().and_then(|dir| dir.abandon());
    let killed = kill_descendants(signals);
    seat.stdio.drain();
    // The supervisor takes the first error that it finds, so what is the runtime's to explain
    // is no error of ours.
    match failure {
        Failure::Shim(text) => log("error", text),
        Failure::Runtime(end) => log("warning", &format!("the runtime failed: {end}")),
        Failure::TimedOut(timeout) => {
            log("warning", &format!("the container did not start within {timeout:?}"));
        }
    }
    if let Err(error) = abandoned {
        log("warning", &format!("not marked as abandoned: {error}"));
    }
    killed?;
    seat.announce(&Announcement::GivenUp { timed_out: matches!(failure, Failure::TimedOut(_)) });
    Ok(())
}

/// Kills our children until none is left. Orphans of the killed come to us, the subreaper, and
/// are killed in turn; those in a pid namespace die with its init.
pub fn kill_descendants(signals: &SignalFd) -> io::Result<()> {
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
                Ok(Some((pid, _))) => _ = wait::reap(Child::Pid(pid))?,
                Ok(None) => break,
                Err(_) => return Ok(()),
            }
        }
        if Instant::now() >= give_up_at {
            return Err(io::Error::other(
                "processes of the failed start survive SIGKILL: they hang in the kernel",
            ));
        }
        let mut set = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut set, round_up(give_up_at)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while signals.read_signal()?.is_some() {}
    }
}

/// The way to the group for which this shim starts a process.
pub(crate) struct Handover {
    socket: OwnedFd,
    /// Our own command line.
    words: Words,
}

impl Handover {
    /// The way is our standard input, as long as that is not replaced.
    pub(crate) fn new(words: Words) -> io::Result<Self> {
        Ok(Self { socket: holdfast_sys::fd::standard()[0].try_clone_to_owned()?, words })
    }

    /// Sends a process and all that we hold of it. If this succeeds, the group has it.
    fn send(&self, seat: &Seat, process: &PidFd) -> io::Result<()> {
        let fds = [(FdName::Process, process.as_fd())].into_iter().chain(seat.for_another());
        let own_pid = std::process::id().to_string();
        let options = self.words.clone().take_while(|word| *word != "--");
        let words = options.flat_map(|word| match word == shim_options::SEAT {
            true => [Some(OsStr::new(shim_options::MOVED)), Some(OsStr::new(&own_pid))],
            false => [Some(word), None],
        });
        Message::new(fds, words.flatten())?.send(&self.socket)
    }
}
