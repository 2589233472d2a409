//! What makes a shim that of a group: it is asked for seats while it runs.
//!
//! It starts no process itself. For each start it has a shim of that process's own, its child,
//! which hands the process over and ends; so a start that fails takes nothing along but what it has
//! begun, and the process becomes ours, as we are the nearest subreaper above it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::rc::Rc;

use holdfast_state::handoff::{FdName, Handoff, MAX_LEN};
use holdfast_state::shim_options;
use holdfast_sys::fd_passing;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{Shutdown, shutdown};

use crate::args;
use crate::log::log;
use crate::output::Scratch;
use crate::seat::Seat;
use crate::seats::{Own, Seats};
use crate::setup;

/// How many descriptors a process may need that is yet to be seated.
const FILES_OF_A_SEAT: u64 = 16;
/// Descriptors of our own.
const OWN_FILES: u64 = 32;

pub(crate) struct Group {
    /// Where supervisors ask.
    inbox: OwnedFd,
    /// They are told to look for another group.
    closed: bool,
    /// Where those who have started a process hand it over, and the end that they get.
    arrivals: UnixDatagram,
    departures: UnixDatagram,
    scratch: Rc<Scratch>,
    /// The shims that are starting a process, and have not handed it over.
    starters: BTreeSet<i32>,
    /// How many descriptors there can be.
    most_files: u64,
}

impl Group {
    /// Takes the socket where supervisors ask, which is our standard input, as long as that is not replaced.
    pub(crate) fn new(seats: &Seats) -> io::Result<Self> {
        let inbox = holdfast_sys::fd::standard()[0].try_clone_to_owned()?;
        setup::set_nonblocking(&inbox)?;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let (arrivals, departures) = UnixDatagram::pair()?;
        arrivals.set_nonblocking(true)?;
        seats.watch(&inbox, Own::Messages)?;
        seats.watch(&arrivals, Own::Messages)?;
        Ok(Self {
            inbox,
            closed: false,
            arrivals,
            departures,
            scratch: Rc::new(Scratch::new()?),
            starters: BTreeSet::new(),
            most_files: hard,
        })
    }

    /// Whether it can end: nobody is looked after, and no more requests are taken. One that came before
    /// that is seen to, and the group goes on with it.
    pub(crate) fn is_over(&mut self, seats: &mut Seats) -> io::Result<bool> {
        if !seats.is_empty() || !self.starters.is_empty() {
            return Ok(false);
        }
        if !self.closed {
            self.closed = true;
            shutdown(self.inbox.as_raw_fd(), Shutdown::Read)?;
            // There is always something to be read from a socket that is shut.
            seats.unwatch(&self.inbox)?;
            self.take_messages(seats)?;
        }
        Ok(seats.is_empty() && self.starters.is_empty())
    }

    /// What supervisors ask, and what those hand over who have started a process.
    pub(crate) fn take_messages(&mut self, seats: &mut Seats) -> io::Result<()> {
        loop {
            let next = match next_of(self.inbox.as_fd())? {
                None => next_of(self.arrivals.as_fd())?,
                asked => asked,
            };
            let Some((socket, length)) = next else { return Ok(()) };
            let mut room = vec![0; length.min(MAX_LEN)];
            let taken = match Handoff::receive(socket, &mut room) {
                // Nothing, and nothing may ever come.
                Ok(None) => return Ok(()),
                Ok(Some(handoff)) => self.take(handoff, seats),
                Err(error) if is_of_one_message(&error) => Err(error),
                Err(error) => return Err(error),
            };
            // The refused message held the exit FIFO: the supervisor sees that close.
            if let Err(error) = taken {
                log("error", &error.to_string());
            }
        }
    }

    /// Starts a process, or takes one over.
    fn take(&mut self, mut handoff: Handoff<'_>, seats: &mut Seats) -> io::Result<()> {
        if !handoff.has(FdName::Process) {
            return self.start(handoff, seats);
        }
        let args = args::parse(handoff.words()).map_err(io::Error::other)?;
        match args.moved {
            // Room was made for it when its start was asked for.
            Some(starter) => _ = self.starters.remove(&starter),
            None => self.make_room(seats)?,
        }
        let exit = handoff.take(FdName::Exit);
        let exit = exit.ok_or_else(|| io::Error::other("no exit FIFO was sent"))?;
        seats.add(Seat::adopt(&args, exit.into(), &mut handoff, Some(self.scratch.clone()))?);
        Ok(())
    }

    /// Has a shim start a process.
    fn start(&mut self, mut handoff: Handoff<'_>, seats: &Seats) -> io::Result<()> {
        let (Some(exit), Some(log)) = (handoff.take(FdName::Exit), handoff.take(FdName::Log))
        else {
            return Err(io::Error::other("a start without exit FIFO or log"));
        };
        let mut log = File::from(log);
        match self.spawn(&handoff, &exit, &log, seats) {
            Ok(pid) => _ = self.starters.insert(pid),
            // It reads there why its start came to nothing, when the exit FIFO has closed.
            Err(error) => {
                log.write_all(holdfast_state::log::line("error", &error.to_string()).as_bytes())?;
            }
        }
        Ok(())
    }

    /// Refuses one more, if all that we have may need nearly all the files that there can be.
    fn make_room(&self, seats: &Seats) -> io::Result<()> {
        let coming = self.starters.len() as u64 + 1;
        if OWN_FILES + seats.files() + coming * FILES_OF_A_SEAT <= self.most_files {
            return Ok(());
        }
        let (count, most) = (seats.len(), self.most_files);
        Err(io::Error::other(format!(
            "the group is full: {count} processes may need nearly all of the {most} files \
             that it may have open; use another group, or raise LimitNOFILE= or ulimit -Hn"
        )))
    }

    fn spawn(
        &self,
        handoff: &Handoff<'_>,
        exit: &OwnedFd,
        log: &File,
        seats: &Seats,
    ) -> io::Result<i32> {
        self.make_room(seats)?;
        // The very program that we are, whatever has its name by now.
        let child = Command::new("/proc/self/exe")
            .arg0("holdfast-shim")
            .arg(shim_options::SEAT)
            .arg(shim_options::PROTOCOL_OPTION)
            .arg(args::protocol().to_string())
            .args(handoff.words())
            .stdin(OwnedFd::from(self.departures.try_clone()?))
            .stdout(exit.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()?;
        Ok(child.id().cast_signed())
    }

    pub(crate) fn starters(&self) -> impl Iterator<Item = i32> {
        self.starters.iter().copied()
    }

    /// A starter has ended. If it has not handed its process over, there is none.
    pub(crate) fn starter_ended(&mut self, pid: i32) {
        self.starters.remove(&pid);
    }
}

/// A socket and the length of its next message, if there is one.
fn next_of(socket: BorrowedFd<'_>) -> io::Result<Option<(BorrowedFd<'_>, usize)>> {
    match fd_passing::next_length(socket) {
        Ok(length) => Ok(Some((socket, length))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error costs the message that was received, and says nothing of the next one.
fn is_of_one_message(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData || error.raw_os_error() == Some(Errno::EMFILE as i32)
}
