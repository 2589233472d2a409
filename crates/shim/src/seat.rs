//! What a shim does for one process: messages, output, and its end. A shim of its own has one seat, a
//! group many.
//!
//! ```text
//! Starting ── its start has succeeded ──▶ Running or Moved; or it begins Arriving, Running or Adopted
//!                                            │ the process exits: drain, record, reap, announce
//!                                            ▼
//!                                         Exited ── the output has ended ──▶ over
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_state::ProcessDir;
use holdfast_state::announce::{Announcement, Announcer, write_line};
use holdfast_state::control::{self, Control};
use holdfast_state::handoff::{FdName, Handoff};
use holdfast_state::id::INIT;
use holdfast_sys::ending::{Ending, ending};
use holdfast_sys::oom::OomCounter;
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{PidFd, Termination, kernel};
use nix::libc::SIGKILL;
use nix::poll::{PollFlags, PollTimeout};

use crate::args::Args;
use crate::exit::Exit;
use crate::home::Home;
use crate::interest::{Ready, Wait};
use crate::log::log;
use crate::output::Scratch;
use crate::stdio::Stdio;

#[derive(Debug)]
pub(crate) enum Phase {
    /// There is no process yet; a [`Start`](crate::start::Start) makes one.
    Starting,
    /// The container's process lives, or is a zombie that we have yet to look at. It is our child, so
    /// its number stays its own until we reap it.
    Running { pid: i32 },
    /// The same, but it will be our child only once the shim that has handed it over has ended.
    Arriving { pid: i32 },
    /// The process has been handed over to a group.
    Moved,
    /// As running, of a process whose first shim died. It is not our child.
    Adopted { pid: i32, process: PidFd, end: End },
    /// It has ended. Background processes may still write, and the disk may refuse the status.
    Exited { exit: Exit },
}

/// What is known of the end of an adopted process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It has not come.
    Ahead,
    /// It has come, and the kernel tells how once someone has reaped it.
    Hidden,
}

/// After how much time without output the memory that it took is given back.
pub const REST: Duration = Duration::from_secs(1);

pub(crate) struct Seat {
    pub(crate) home: Home,
    /// The exit FIFO. It closes when we are gone, however we went.
    exit: File,
    control: File,
    /// The beginning of a control message whose end has not come yet.
    control_line: Vec<u8>,
    pub(crate) stdio: Stdio,
    /// Someone wants the start given up, or the last output not waited for.
    pub(crate) cancelled: bool,
    /// When to give back what a start or output took.
    rest: Option<Instant>,
    /// How often the OOM killer has killed in the container, whose init process this is.
    oom: Option<OomCounter>,
    pub(crate) phase: Phase,
}

impl Seat {
    pub(crate) fn new(home: Home, exit: File, control: File, stdio: Stdio, phase: Phase) -> Self {
        Self {
            home,
            exit,
            control,
            control_line: Vec::new(),
            stdio,
            cancelled: false,
            rest: None,
            oom: None,
            phase,
        }
    }

    /// Takes over a process whose shim has died, or has handed it over.
    pub(crate) fn adopt(
        args: &Args<'_>,
        exit: File,
        handoff: &mut Handoff<'_>,
        scratch: Option<Rc<Scratch>>,
    ) -> io::Result<Self> {
        let dir = ProcessDir::open(args.dir)?;
        let control = handoff.take(FdName::Control).map(File::from);
        let control = control.map_or_else(|| dir.control_reader(), Ok)?;
        let home = Home::new(&dir, &exit, &control)?;
        let pid = dir.pid()?.ok_or_else(|| io::Error::other("there is no pid to adopt"))?;
        let process = handoff.take(FdName::Process).map(PidFd::from);
        let process = process.ok_or_else(|| io::Error::other("no pidfd was sent"))?;
        let stdio = Stdio::adopt(args, &home, handoff, scratch)?;
        let phase = match wait::peek(Child::Held(&process)) {
            // Of a shim that died without us.
            Ok(_) => Phase::Running { pid },
            Err(_) if args.moved.is_some() => Phase::Arriving { pid },
            Err(_) => Phase::Adopted { pid, process, end: End::Ahead },
        };
        let mut seat = Self::new(home, exit, control, stdio, phase);
        seat.count_oom_kills(pid);
        seat.rest_later();
        let shim = seat.announcer();
        // A full disk is no reason to leave the process to itself.
        let _ = dir.note_shim(&shim);
        seat.announce(&match args.moved {
            Some(_) => Announcement::Created { pid, shim },
            None => Announcement::Adopted { shim },
        });
        // It may have ended long ago.
        seat.look_at_orphan();
        Ok(seat)
    }

    /// Whether all is done and told.
    pub(crate) fn is_over(&self) -> bool {
        match &self.phase {
            Phase::Exited { exit } => exit.is_settled() && (self.cancelled || self.stdio.is_over()),
            Phase::Moved => true,
            _ => false,
        }
    }

    /// The process, as long as it is our child or about to be: once it is reaped, its number may be another's.
    pub(crate) fn child(&self) -> Option<i32> {
        match &self.phase {
            Phase::Running { pid } | Phase::Arriving { pid } => Some(*pid),
            Phase::Exited { exit } => exit.zombie(),
            _ => None,
        }
    }

    /// How many descriptors it may come to need: its FIFOs, its stdio, and one of an adopted process.
    pub(crate) fn most_files(&self) -> u64 {
        2 + self.stdio.most_files() + u64::from(matches!(self.phase, Phase::Adopted { .. }))
    }

    /// Whether another shim can take over without missing anything.
    pub(crate) fn can_move(&self) -> bool {
        self.control_line.is_empty() && self.stdio.can_move()
    }

    /// What that one needs.
    pub(crate) fn for_another(&self) -> impl Iterator<Item = (FdName, BorrowedFd<'_>)> {
        let own = [(FdName::Exit, self.exit.as_fd()), (FdName::Control, self.control.as_fd())];
        own.into_iter().chain(self.stdio.for_another())
    }

    /// What is to be waited for, of that.
    pub(crate) fn interest(&self, wait: Wait) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match (wait, &self.phase) {
            (Wait::Control, _) => Some((self.control.as_fd(), PollFlags::POLLIN)),
            (Wait::Process, Phase::Adopted { process, end: End::Ahead, .. }) => {
                Some((process.as_fd(), PollFlags::POLLIN))
            }
            // That it was reaped shows without being asked for.
            (Wait::Process, Phase::Adopted { process, .. }) => {
                Some((process.as_fd(), PollFlags::empty()))
            }
            _ => self.stdio.interest(wait),
        }
    }

    /// When it is to be looked after, whatever happens until then.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = match &self.phase {
            Phase::Exited { exit } => exit.due(),
            _ => None,
        };
        [due, self.rest, self.stdio.due()].into_iter().flatten().min()
    }

    /// Does what there is to do. `true` if it has let go of memory.
    pub(crate) fn look_after(&mut self, ready: Ready) -> bool {
        // Before the input: who resizes the terminal and then types means it in this order.
        if ready.has(Wait::Control) {
            self.obey();
        }
        self.stdio.pass(ready);
        let rested = self.rest(ready.has_output_or_input());
        if ready.has(Wait::Process) {
            self.look_at_orphan();
        }
        self.settle_exit();
        rested
    }

    /// Finds the counter of OOM kills, if this is the init process of a container: an exec says nothing
    /// of the others.
    pub(crate) fn count_oom_kills(&mut self, pid: i32) {
        if self.home.path().file_name() == Some(OsStr::new(INIT)) {
            self.oom = OomCounter::of(pid).unwrap_or_else(|error| {
                log("warning", &format!("OOM kills are not counted: {error}"));
                None
            });
        }
    }

    /// Whose child the process was has ended, so it may be ours by now.
    pub(crate) fn look_whether_arrived(&mut self) {
        if let Phase::Arriving { pid } = self.phase
            && wait::peek(Child::Pid(pid)).is_ok()
        {
            self.phase = Phase::Running { pid };
        }
    }

    /// Gives up what is not needed once there has been no output for a while.
    fn rest(&mut self, worked: bool) -> bool {
        if worked && self.stdio.holds_memory() {
            self.rest_later();
            return false;
        }
        let rests = self.rest.is_some_and(|rest| Instant::now() >= rest);
        if rests {
            self.rest = None;
            self.stdio.rest();
        }
        rests
    }

    pub(crate) fn rest_later(&mut self) {
        self.rest = Some(Instant::now() + REST);
    }

    /// Reads control messages, however they are cut. A line that makes no sense is logged and skipped.
    fn obey(&mut self) {
        let mut chunk = [0; 512];
        // It is open for both, so it has no end; and is looked at again when there is something.
        let length = self.control.read(&mut chunk).unwrap_or(0);
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
    }

    fn act(&mut self, message: Control) {
        match (message, &self.phase) {
            (Control::CloseStdin, _) => self.stdio.close_stdin(),
            (Control::ReopenLogs, _) => {
                self.rest_later();
                if let Err(error) = self.stdio.reopen_logs() {
                    log("warning", &format!("control: reopen: {error}"));
                }
            }
            (Control::EndOutput, Phase::Exited { .. }) => self.stdio.end_output(),
            (Control::EndOutput, _) => log("warning", "control: the process has not ended"),
            (Control::Signal(signal), Phase::Running { pid } | Phase::Arriving { pid }) => {
                let sent = PidFd::open(*pid).and_then(|process| process.send_signal(signal));
                log_failed_signal(signal, sent);
            }
            (Control::Signal(signal), Phase::Adopted { process, .. }) => {
                log_failed_signal(signal, process.send_signal(signal));
            }
            // Cancels the start, or the final drain.
            (Control::Signal(SIGKILL), Phase::Starting | Phase::Exited { .. }) => self.cancel(),
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

    /// Gives up the start, or the output that is still on its way to a reader. To a process that runs it
    /// means nothing, and is not remembered for its end.
    pub(crate) fn cancel(&mut self) {
        self.cancelled |= matches!(self.phase, Phase::Starting | Phase::Exited { .. });
    }

    /// The process, our child, is a zombie. `false` if it has to stay: as long as the
    /// status is not on disk it is the record.
    pub(crate) fn child_ended(&mut self, pid: i32, end: Termination) -> bool {
        self.look_whether_arrived();
        if let Phase::Running { .. } = self.phase {
            self.end(|| Exit::of_child(pid, end, kernel::tells_before_reap()));
        }
        self.child().is_none()
    }

    /// An adopted process is not our child; its pidfd tells of its end, and others how it ended.
    pub(crate) fn look_at_orphan(&mut self) {
        let Phase::Adopted { pid, process, end } = &mut self.phase else { return };
        let ending = ending(*pid, process);
        if ending == Ending::Hidden {
            *end = End::Hidden;
        }
        if let Some(exit) = Exit::of_orphan(ending) {
            self.end(|| exit);
        }
    }

    /// Puts the rest of the output where it goes, and then the end on disk.
    fn end(&mut self, exit: impl FnOnce() -> Exit) {
        self.stdio.drain();
        let mut exit = exit();
        exit.note_oom(self.oom.take().is_some_and(|counter| counter.kills() > 0));
        self.phase = Phase::Exited { exit };
        self.settle_exit();
    }

    /// Records and tells the end, if that is to be done now.
    fn settle_exit(&mut self) {
        if let Phase::Exited { exit } = &mut self.phase {
            exit.settle(&self.home, |announcement| announce(&self.exit, &announcement));
        }
    }

    /// Who we are, for the supervisor to keep copies of what we read from.
    pub(crate) fn announcer(&self) -> Announcer {
        Announcer { pid: std::process::id().cast_signed(), stdio: self.stdio.fds() }
    }

    /// Tells the supervisor, if there is one: the files have said it already.
    pub(crate) fn announce(&self, announcement: &Announcement) {
        announce(&self.exit, announcement);
    }
}

fn announce(exit: &File, announcement: &Announcement) {
    let _ = write_line(exit, announcement);
}

fn log_failed_signal(signal: i32, sent: io::Result<()>) {
    if let Err(error) = sent {
        log("warning", &format!("control: signal {signal}: {error}"));
    }
}

/// The time until `deadline` in whole milliseconds, rounded up so that a wait never ends before it.
pub fn round_up(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
}
