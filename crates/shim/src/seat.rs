//! What a shim does for one process: messages, output, and its end. A shim of its own has one seat, a
//! group many.
//!
//! ```text
//! Starting ── the runtime exits 0, its pid file names a child of ours ──▶ Running, Moved or Adopted
//!     │                                                                      │ the process exits:
//!     │ the runtime fails, the deadline passes, it is given up               │ drain, record, announce
//!     ▼                                                                      ▼
//! all descendants killed, exit code 1                        Exited ── output ended ──▶ exit code 0
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_state::announce::{Announcement, Announcer};
use holdfast_state::control::{self, Control};
use holdfast_state::{Evidence, ExitRecord, ExitStatus, ProcessDir, UnknownReason};
use holdfast_sys::ending::{Ending, ending};
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{PidFd, Termination};
use nix::libc::SIGKILL;
use nix::poll::{PollFlags, PollTimeout};

use crate::args::Args;
use crate::home::Home;
use crate::legacy::Legacy;
use crate::log::log;
use crate::relay::Scratch;
use crate::stdio::{SOURCES, Stdio};

/// When a start must be done, and how much time that was.
pub(crate) type Deadline = Option<(Instant, Duration)>;

#[derive(Debug)]
pub(crate) enum Phase {
    /// The runtime works.
    Starting { runtime: i32, deadline: Deadline },
    /// It has succeeded, and its process is not ours yet: crun works in a grandchild, which may
    /// outlive it by a moment and is the process's parent until then.
    TakingOver { deadline: Deadline },
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
pub(crate) const REST: Duration = Duration::from_secs(1);

/// Room for an announcement: a few words and five numbers.
const ANNOUNCEMENT: usize = 128;

pub(crate) struct Seat {
    pub(crate) home: Home,
    /// The exit FIFO. It closes when we are gone, however we went.
    pub(crate) exit: File,
    pub(crate) control: File,
    /// The beginning of a control message whose end has not come yet.
    control_line: Vec<u8>,
    pub(crate) stdio: Stdio,
    /// Someone wants the start given up, or the last output not waited for.
    pub(crate) cancelled: bool,
    /// When to give back the memory that a start or output took.
    rest: Option<Instant>,
    pub(crate) phase: Phase,
}

/// What there is to wait for: [`Stdio`]'s, the control FIFO, and an adopted process.
pub(crate) const WAITS: usize = SOURCES + 2;
const CONTROL: usize = SOURCES;
const ORPHAN: usize = SOURCES + 1;

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
            phase,
        }
    }

    /// Takes over a process whose shim has died, or has handed it over.
    pub(crate) fn adopt(
        args: &Args<'_>,
        exit: File,
        legacy: Legacy,
        scratch: Option<Rc<Scratch>>,
    ) -> io::Result<Self> {
        let dir = ProcessDir::open(args.dir)?;
        let control = legacy.control.map_or_else(|| dir.control_reader(), Ok)?;
        let home = Home::new(&dir, &exit, &control)?;
        let pid = dir.pid()?.ok_or_else(|| io::Error::other("there is no pid to adopt"))?;
        let process = legacy.process.ok_or_else(|| io::Error::other("no pidfd was sent"))?;
        let stdio = Stdio::adopt(args, &home, legacy.stdio, scratch)?;
        let phase = match wait::peek(Child::Held(&process)) {
            // Of a shim that died without us.
            Ok(_) => Phase::Running { pid },
            Err(_) if args.moved.is_some() => Phase::Arriving { pid },
            Err(_) => Phase::Adopted { pid, process, end: End::Ahead },
        };
        let mut seat = Self::new(home, exit, control, stdio, phase);
        seat.rest_later();
        let shim = seat.announcer();
        seat.announce(match args.moved {
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
            Phase::Exited { unrecorded } => {
                unrecorded.is_none() && (self.cancelled || self.stdio.is_over())
            }
            Phase::Moved => true,
            _ => false,
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

    pub(crate) fn waits_for(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; WAITS] {
        let [first, second, input, reader, other] = self.stdio.waits_for();
        let orphan = match &self.phase {
            Phase::Adopted { process, end: End::Ahead, .. } => for_input(process),
            // That it was reaped shows without being asked for.
            Phase::Adopted { process, .. } => Some((process.as_fd(), PollFlags::empty())),
            _ => None,
        };
        // The control FIFO behind the input, as the kernel looks in this order: input that is seen
        // has not overtaken what was said here before it.
        [first, second, input, reader, other, for_input(&self.control), orphan]
    }

    /// When it is to be looked after, whatever happens until then.
    pub(crate) fn due(&self) -> Option<Instant> {
        let due = match self.phase {
            Phase::Starting { deadline: Some((deadline, _)), .. }
            | Phase::TakingOver { deadline: Some((deadline, _)) }
            | Phase::Exited { unrecorded: Some(Unrecorded { next: deadline, .. }) } => {
                Some(deadline)
            }
            _ => None,
        };
        due.into_iter().chain(self.rest).min()
    }

    /// Does what there is to do, by the indices of [`waits_for`](Self::waits_for). `true` if there is
    /// memory to give back since.
    pub(crate) fn look_after(&mut self, ready: [bool; WAITS]) -> io::Result<bool> {
        // Before the input: who resizes the terminal and then types means it in this order.
        if ready[CONTROL] {
            self.obey()?;
        }
        let [first, second, input, reader, other, ..] = ready;
        let of_stdio = [first, second, input, reader, other];
        self.stdio.pass(of_stdio);
        let rested = self.rest(of_stdio.contains(&true));
        if ready[ORPHAN] {
            self.look_at_orphan();
        }
        self.record_again();
        Ok(rested)
    }

    /// Whose child the process was has ended, so it may be ours by now.
    pub(crate) fn look_whether_arrived(&mut self) {
        if let Phase::Arriving { pid } = self.phase
            && wait::peek(Child::Pid(pid)).is_ok()
        {
            self.phase = Phase::Running { pid };
        }
    }

    /// Gives up what is not needed once there is nothing to do.
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
                self.rest_later();
                if let Err(error) = self.stdio.reopen_logs() {
                    log("warning", &format!("control: reopen: {error}"));
                }
            }
            (Control::Signal(signal), Phase::Running { pid } | Phase::Arriving { pid }) => {
                let sent = PidFd::open(*pid).and_then(|process| process.send_signal(signal));
                log_failed_signal(signal, sent);
            }
            (Control::Signal(signal), Phase::Adopted { process, .. }) => {
                log_failed_signal(signal, process.send_signal(signal));
            }
            // Cancels the start, or the final drain.
            (
                Control::Signal(SIGKILL),
                Phase::Starting { .. } | Phase::TakingOver { .. } | Phase::Exited { .. },
            ) => self.cancel(),
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
        self.cancelled |= matches!(
            self.phase,
            Phase::Starting { .. } | Phase::TakingOver { .. } | Phase::Exited { .. }
        );
    }

    /// A child of ours is a zombie; it may be the process. `false` if it has to stay: as long as the
    /// status is not on disk it is the record.
    pub(crate) fn child_ended(&mut self, pid: i32, end: Termination) -> bool {
        if matches!(self.phase, Phase::Running { pid: own } if own == pid) {
            // On disk before it is reaped: should we die in between, the zombie still tells, and
            // as long as there is no status the pid can't be anyone else's.
            self.process_ended(end.into(), Evidence::Shim);
        }
        !matches!(self.phase, Phase::Exited { unrecorded: Some(_) })
    }

    /// An adopted process is not our child; its pidfd tells of its end, and others how it ended.
    pub(crate) fn look_at_orphan(&mut self) {
        let Phase::Adopted { pid, process, end } = &mut self.phase else { return };
        match ending(*pid, process) {
            Ending::Alive => {}
            Ending::Hidden => *end = End::Hidden,
            Ending::Exact(end, source) => self.process_ended(end.into(), source.into()),
            Ending::Lost => {
                let unknown = ExitStatus::Unknown(UnknownReason::ReapedByAnother);
                self.process_ended(unknown, Evidence::None)
            }
        }
    }

    /// Puts the rest of the output into the log, then the end on disk, then tells of it. One that
    /// the disk refuses is announced all the same: that is no reason to hide an exit. Nothing here fails: no
    /// error on the way may cost the status that we have in hand.
    fn process_ended(&mut self, status: ExitStatus, evidence: Evidence) {
        self.stdio.drain();
        let record = ExitRecord::now(status, evidence);
        // Of an orphan someone else may have known better and been faster.
        let standing = self.home.open().and_then(|dir| dir.record_exit(&record));
        self.tell_end(standing.as_ref().unwrap_or(&record));
        let unrecorded = standing.err().map(|error| {
            log("error", &format!("exit ({status}) not recorded: {error}"));
            Unrecorded { record, next: Instant::now() + RETRY }
        });
        self.phase = Phase::Exited { unrecorded };
    }

    /// Writes a status again that the disk has refused, and tells it to a supervisor that has come
    /// since.
    fn record_again(&mut self) {
        let Phase::Exited { unrecorded: Some(owed) } = &mut self.phase else { return };
        if Instant::now() < owed.next {
            return;
        }
        let standing = match self.home.open().and_then(|dir| dir.record_exit(&owed.record)) {
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

fn log_failed_signal(signal: i32, sent: io::Result<()>) {
    if let Err(error) = sent {
        log("warning", &format!("control: signal {signal}: {error}"));
    }
}

fn for_input(fd: &impl AsFd) -> Option<(BorrowedFd<'_>, PollFlags)> {
    Some((fd.as_fd(), PollFlags::POLLIN))
}

/// The time until `deadline` in whole milliseconds, rounded up so that a wait never ends before it.
pub(crate) fn round_up(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
}
