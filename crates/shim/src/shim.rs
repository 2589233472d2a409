//! The one loop: it waits for all seats at once, and does what there is to do.
//!
//! The shim of one process has one seat and, at first, a start. That of a group has many seats, and
//! sockets where more are asked for.

use std::io;

use holdfast_state::handoff::{FdName, Handoff};
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{Termination, command_line};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{MsgFlags, send};
use std::os::fd::AsRawFd;

use crate::args::{self, Args};
use crate::exit::reap;
use crate::group::Group;
use crate::pages;
use crate::seat::Seat;
use crate::seats::{Own, Seats};
use crate::setup;
use crate::start::{self, Failure, Handover, Start};

/// Room for the message of an adoption, which has no words.
const ROOM: usize = 256;
/// The exit code of a shim whose start came to nothing.
const FAILED: u8 = 1;

pub(crate) struct Shim {
    seats: Seats,
    signals: SignalFd,
    /// There as long as the one seat has no process yet.
    start: Option<Start>,
    /// There if more seats can be asked for.
    group: Option<Box<Group>>,
}

impl Shim {
    /// Detaches, and sets the runtime to work.
    pub(crate) fn start(args: &Args<'_>, handover: Option<Handover>) -> io::Result<Self> {
        let seats = Seats::new(false)?;
        let (signals, exit) = setup::become_shim()?;
        if let Some(soft) = args.nofile {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
        }
        let (start, seat) = Start::begin(args, exit, handover)?;
        Self::of(seats, signals, seat, Some(start))
    }

    /// Takes over a process whose shim has died: its pidfd and what its shim read from come through
    /// our standard input.
    pub(crate) fn adopt(args: &Args<'_>) -> io::Result<Self> {
        let seats = Seats::new(false)?;
        let mut room = [0; ROOM];
        let handoff = Handoff::receive(holdfast_sys::fd::standard()[0], &mut room)?;
        let mut handoff = handoff.ok_or_else(|| io::Error::other("nothing was sent"))?;
        let (signals, exit) = setup::become_shim()?;
        setup::renounce_new_privileges();
        let seat = Seat::adopt(args, exit, &mut handoff, None)?;
        Self::of(seats, signals, seat, None)
    }

    /// Waits for a start and makes it, so that no start has to wait until a program has begun. `None` if none
    /// will come: the supervisor is gone.
    pub(crate) fn wait_for_start() -> io::Result<Option<Self>> {
        let socket = &holdfast_sys::fd::standard()[0];
        // Until then it is not known that we are a program that waits.
        send(socket.as_raw_fd(), b"ready", MsgFlags::MSG_NOSIGNAL)?;
        let mut room = pages::room();
        let Some(mut handoff) = Handoff::receive(socket, &mut room)? else { return Ok(None) };
        if let Some(log) = handoff.take(FdName::Log) {
            nix::unistd::dup2_stderr(log)?;
        }
        let exit = handoff.take(FdName::Exit);
        nix::unistd::dup2_stdout(exit.ok_or_else(|| io::Error::other("no exit FIFO was sent"))?)?;
        // For those who look for the shim of a container. Nothing else depends on it.
        let _ = command_line::show(Box::leak(options(handoff.bytes()).into()));
        let args = args::parse(handoff.words().skip(1)).map_err(io::Error::other)?;
        Self::start(&args, None).map(Some)
    }

    /// Detaches. The socket where supervisors ask is our standard input, and has the first request
    /// in it already: without any process a group ends.
    pub(crate) fn group() -> io::Result<Self> {
        let mut seats = Seats::new(true)?;
        let mut group = Group::new(&seats)?;
        let signals = setup::detach()?;
        setup::without_standard_io()?;
        seats.watch(&signals, Own::Signals)?;
        group.take_messages(&mut seats)?;
        Ok(Self { seats, signals, start: None, group: Some(Box::new(group)) })
    }

    fn of(
        mut seats: Seats,
        signals: SignalFd,
        seat: Seat,
        start: Option<Start>,
    ) -> io::Result<Self> {
        seats.watch(&signals, Own::Signals)?;
        seats.add(seat);
        Ok(Self { seats, signals, start, group: None })
    }

    /// Looks after all until nothing is left to do.
    pub(crate) fn run(&mut self) -> io::Result<u8> {
        while !self.is_over()? {
            let ready = self.seats.wait(self.start.as_ref().and_then(Start::due))?;
            self.seats.rest();
            if ready.signals && setup::was_asked_to_end(&self.signals)? {
                self.seats.cancel();
            }
            if ready.messages
                && let Some(group) = &mut self.group
            {
                group.take_messages(&mut self.seats)?;
            }
            if let Err(failure) = pages::apart(|| self.look_at_start()) {
                return pages::apart(|| self.give_up(&failure));
            }
            // Without a signal nobody has ended. A process that was handed over is its group's to reap.
            if ready.signals && self.start.is_none() && !self.is_over()? {
                pages::apart(|| self.look_at_children())?;
            }
        }
        Ok(0)
    }

    fn is_over(&mut self) -> io::Result<bool> {
        match &mut self.group {
            Some(group) => group.is_over(&mut self.seats),
            None => Ok(self.seats.is_empty()),
        }
    }

    fn look_at_start(&mut self) -> Result<(), Failure> {
        if let (Some(start), Some(seat)) = (&mut self.start, self.seats.first())
            && start.look(seat)?
        {
            self.start = None;
            self.seats.settle_first();
        }
        Ok(())
    }

    fn give_up(&mut self, failure: &Failure) -> io::Result<u8> {
        if let Some(seat) = self.seats.first() {
            start::give_up(failure, seat, &self.signals)?;
        }
        Ok(FAILED)
    }

    /// Asks what has become of our children.
    fn look_at_children(&mut self) -> io::Result<()> {
        self.seats.look_who_arrived();
        while let Some((pid, end)) = wait::peek_any()? {
            if !self.child_ended(pid, end)? {
                // The status of that one is not on disk, and others may stand behind it.
                return self.look_at_each_child();
            }
        }
        Ok(())
    }

    fn look_at_each_child(&mut self) -> io::Result<()> {
        let starters = self.group.iter().flat_map(|group| group.starters());
        for pid in self.seats.children().chain(starters).collect::<Vec<_>>() {
            if let Ok(Some((pid, end))) = wait::peek(Child::Pid(pid)) {
                self.child_ended(pid, end)?;
            }
        }
        Ok(())
    }

    /// `false` if the zombie has to stay: as long as its status is not on disk it is the record.
    fn child_ended(&mut self, pid: i32, end: Termination) -> io::Result<bool> {
        if let Some(group) = &mut self.group
            && !self.seats.has_child(pid)
        {
            // Its starter sent the message before it ended, and so before the process became our child.
            group.take_messages(&mut self.seats)?;
            self.seats.look_who_arrived();
        }
        if let Some(is_gone) = self.seats.child_ended(pid, end) {
            return Ok(is_gone);
        }
        if let Some(group) = &mut self.group {
            group.starter_ended(pid);
        }
        reap(pid);
        Ok(true)
    }
}

/// What is before the runtime's command.
fn options(words: &[u8]) -> &[u8] {
    let end = words.windows(4).position(|part| part == b"\0--\0");
    &words[..end.map_or(words.len(), |end| end + 1)]
}
