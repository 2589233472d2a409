//! A start, from the runtime at work to a process of ours, or back to nothing.

use std::io;
use std::time::{Duration, Instant};

use holdfast_state::announce::Announcement;
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{PidFd, Termination};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use std::os::fd::AsFd;

use crate::log::log;
use crate::seat::{Deadline, Phase, round_up};
use crate::shim::{Failure, Shim};

/// How long killed descendants may take to vanish. Only one that hangs in the kernel takes long.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// The exit code of a start that came to nothing.
const FAILED: u8 = 1;

impl Shim {
    /// Asks what has become of the start, if there still is one.
    pub(crate) fn look_at_start(&mut self) -> io::Result<Result<(), Failure>> {
        if let Phase::Starting { runtime, deadline } = self.seat.phase {
            // Nothing but the runtime is reaped yet: a zombie may be the container's process,
            // which has ended before we know its pid.
            match wait::reap(Child::Pid(runtime))? {
                Some(Termination::Exited(0)) => self.seat.phase = Phase::TakingOver { deadline },
                Some(end) => return Ok(Err(Failure::Runtime(end))),
                None => return Ok(self.goes_on(deadline)),
            }
        }
        if let Phase::TakingOver { deadline } = self.seat.phase {
            match self.take_over()? {
                Ok(Taken::Over) => {}
                Ok(Taken::NotYet) => return Ok(self.goes_on(deadline)),
                Err(failure) => return Ok(Err(failure)),
            }
        }
        Ok(Ok(()))
    }

    /// Whether a start that is not done may go on.
    fn goes_on(&self, deadline: Deadline) -> Result<(), Failure> {
        if self.seat.cancelled {
            return Err(Failure::Shim("the start was given up".to_owned()));
        }
        match deadline {
            Some((deadline, timeout)) if Instant::now() >= deadline => {
                Err(Failure::TimedOut(timeout))
            }
            _ => Ok(()),
        }
    }

    /// The runtime is done: its pid file names the process that we are the parent of now, or will
    /// be once what the runtime left at work is done as well.
    fn take_over(&mut self) -> io::Result<Result<Taken, Failure>> {
        let failed = |text: String| Ok(Err(Failure::Shim(text)));
        let pid = match self.seat.home.open().and_then(|dir| dir.pid()) {
            Ok(Some(pid)) => pid,
            Ok(None) => return failed("the runtime succeeded and wrote no pid".to_owned()),
            Err(error) => return failed(error.to_string()),
        };
        // Our child, dead or alive, keeps its pid until we reap it: this can open no other process.
        while let Err(error) = wait::peek(Child::Pid(pid)) {
            // Each helper of the runtime's that ends may have been the one; SIGCHLD tells of more.
            match wait::peek(Child::Any) {
                // It came to us between the two questions.
                Ok(Some((helper, _))) if helper == pid => {}
                Ok(Some((helper, _))) => _ = wait::reap(Child::Pid(helper))?,
                Ok(None) => return Ok(Ok(Taken::NotYet)),
                Err(_) => {
                    return failed(format!(
                        "the runtime's process {pid} did not become our child: {error}"
                    ));
                }
            }
        }
        let process = PidFd::open(pid)?;
        // Sent before the runtime ended, so it is there by now.
        self.receive_terminal()?;
        if self.console.is_some() {
            return failed("the runtime succeeded and sent no terminal".to_owned());
        }
        if let Some(handover) = self.handover.take()
            && self.seat.can_move()
            && let Ok(()) = handover.send(&self.seat, &process)
        {
            self.seat.phase = Phase::Moved;
            return Ok(Ok(Taken::Over));
        }
        // Ours to keep; also if the group has died meanwhile.
        self.seat.phase = Phase::Running { pid };
        self.seat.rest_later();
        let shim = self.seat.announcer();
        self.seat.announce(&Announcement::Created { pid, shim });
        Ok(Ok(Taken::Over))
    }

    /// Ends a start that came to nothing: no descendant of ours survives it.
    pub(crate) fn give_up(&mut self, failure: Failure) -> io::Result<u8> {
        // The runtime may have written a pid down, and nobody be there who hears that we give up.
        let abandoned = self.seat.home.open().and_then(|dir| dir.abandon());
        let killed = self.kill_descendants();
        self.seat.stdio.drain();
        // The supervisor takes the first error that it finds, so what is the runtime's to explain
        // is no error of ours.
        match &failure {
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
        let timed_out = matches!(failure, Failure::TimedOut(_));
        self.seat.announce(&Announcement::GivenUp { timed_out });
        Ok(FAILED)
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
            let mut set = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut set, round_up(give_up_at)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            while self.signals.read_signal()?.is_some() {}
        }
    }
}

/// What came of [`Shim::take_over`].
enum Taken {
    Over,
    NotYet,
}
