//! The shim of one process: it starts or adopts that, looks after it, and ends with it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use holdfast_state::ProcessDir;
use holdfast_sys::Termination;
use holdfast_sys::wait;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signalfd::SignalFd;

use crate::args::Args;
use crate::handover::Handover;
use crate::home::Home;
use crate::interest::{Ready, Wait};
use crate::legacy::Legacy;
use crate::runtime;
use crate::seat::{Deadline, Phase, Seat, round_up};
use crate::setup;
use crate::stdio::Stdio;
use crate::terminal::ConsoleSocket;

/// Why a start came to nothing. The supervisor reads it from `shim-log.json`.
pub(crate) enum Failure {
    /// Our own trouble: an error of the shim's.
    Shim(String),
    /// The runtime said no; its own log says why.
    Runtime(Termination),
    /// The runtime took too long.
    TimedOut(Duration),
}

/// The places in what is polled of what is not the seat's.
const SIGNALS: usize = Wait::ALL.len();
const CONSOLE: usize = SIGNALS + 1;

/// What there is to do.
#[derive(Default)]
struct News {
    ready: Ready,
    /// The terminal is coming.
    console: bool,
    /// There is output or input, and no signal has come: nobody has ended.
    only_output: bool,
}

pub(crate) struct Shim {
    pub(crate) seat: Seat,
    pub(crate) signals: SignalFd,
    /// There as long as the runtime owes us a terminal.
    pub(crate) console: Option<ConsoleSocket>,
    /// There if a group is to have the process once it is started.
    pub(crate) handover: Option<Handover>,
}

// A frame of [`start`](Shim::start) or [`adopt`](Shim::adopt) within that of `run` would keep its pages
// of the stack for life, so neither is inlined.
impl Shim {
    /// Detaches, opens what the process directory holds, and sets the runtime to work.
    #[inline(never)]
    pub(crate) fn start(args: &Args<'_>, handover: Option<Handover>) -> io::Result<Self> {
        // A limit that no clock reaches is none.
        let deadline =
            args.timeout.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
        let (signals, exit) = setup::become_shim()?;
        if let Some(soft) = args.nofile {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
        }
        match Self::begin(args, &exit, deadline) {
            Ok((home, control, stdio, console, phase)) => {
                let seat = Seat::new(home, exit, control, stdio, phase);
                Ok(Self { seat, signals, console, handover })
            }
            Err(error) => {
                // Its end is the sign to read why, so it is not to end before that is written.
                std::mem::forget(exit);
                Err(error)
            }
        }
    }

    fn begin(
        args: &Args<'_>,
        exit: &File,
        deadline: Deadline,
    ) -> io::Result<(Home, File, Stdio, Option<ConsoleSocket>, Phase)> {
        let dir = ProcessDir::open(args.dir)?;
        let control = dir.control_reader()?;
        let home = Home::new(&dir, exit, &control)?;
        let (container_ends, stdio) = Stdio::open(args, &home)?;
        let console = args.terminal.then(|| ConsoleSocket::bind(dir)).transpose()?;
        let path = console.as_ref().map(|(_, path)| &**path);
        let runtime = runtime::spawn(&args.runtime, path, container_ends)?;
        let console = console.map(|(socket, _)| socket);
        Ok((home, control, stdio, console, Phase::Starting { runtime, deadline }))
    }

    /// Takes over a process whose shim has died: its pidfd and what its shim read from come through
    /// our standard input.
    #[inline(never)]
    pub(crate) fn adopt(args: &Args<'_>) -> io::Result<Self> {
        let legacy = Legacy::receive(&holdfast_sys::fd::standard()[0])?;
        let (signals, exit) = setup::become_shim()?;
        let seat = Seat::adopt(args, exit, legacy, None)?;
        Ok(Self { seat, signals, console: None, handover: None })
    }

    pub(crate) fn run(&mut self) -> io::Result<u8> {
        while !self.seat.is_over() {
            let news = self.wait()?;
            if self.seat.look_after(news.ready) {
                holdfast_sys::memory::trim();
            }
            self.seat.stdio.close_ended();
            if news.console {
                self.receive_terminal()?;
            }
            // Nobody can have ended, nor a start have taken too long.
            if news.only_output && !self.seat.is_starting() {
                continue;
            }
            if setup::was_asked_to_end(&self.signals)? {
                self.seat.cancel();
            }
            if let Err(failure) = self.look_at_children()? {
                return self.give_up(failure);
            }
        }
        Ok(0)
    }

    fn wait(&self) -> io::Result<News> {
        let timeout = self.seat.due().map_or(PollTimeout::NONE, round_up);
        let seats = Wait::ALL.into_iter().map(|wait| self.seat.interest(wait));
        let console = self.console.as_ref().map(|console| (console.as_fd(), PollFlags::POLLIN));
        let signals = Some((self.signals.as_fd(), PollFlags::POLLIN));
        let mut places = [0; CONSOLE + 1];
        let mut set = [const { None }; CONSOLE + 1];
        let mut count = 0;
        for (place, interest) in seats.chain([signals, console]).enumerate() {
            if let Some((fd, events)) = interest {
                set[count] = Some(PollFd::new(fd, events));
                places[count] = place;
                count += 1;
            }
        }
        let mut set =
            set.map(|wait| wait.unwrap_or(PollFd::new(self.signals.as_fd(), PollFlags::empty())));
        match poll(&mut set[..count], timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut news = News::default();
        let mut signals = false;
        for (wait, place) in set[..count].iter().zip(places) {
            if wait.revents().is_none_or(|events| events.is_empty()) {
                continue;
            }
            match place {
                SIGNALS => signals = true,
                CONSOLE => news.console = true,
                place => news.ready.set(place),
            }
        }
        news.only_output = news.ready.has_output_or_input() && !signals;
        Ok(news)
    }

    pub(crate) fn receive_terminal(&mut self) -> io::Result<()> {
        if let Some(console) = &mut self.console
            && let Some(master) = console.receive()?
        {
            self.seat.stdio.take_terminal(master)?;
            self.console = None;
        }
        Ok(())
    }

    /// Asks what has become of our children and of the deadline, and moves on to the next phase.
    fn look_at_children(&mut self) -> io::Result<Result<(), Failure>> {
        if let Err(failure) = self.look_at_start()? {
            return Ok(Err(failure));
        }
        while let Phase::Running { .. } | Phase::Exited { .. } = self.seat.phase {
            let Some((pid, end)) = wait::peek_any()? else { break };
            if !self.seat.child_ended(pid, end) {
                break;
            }
        }
        Ok(Ok(()))
    }
}
