//! The container's process: identity, signals, exit status.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use holdfast_sys::ending::{Ending, ending};
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{PidFd, Termination, kernel};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Pid, getpgid};

use crate::report;

/// The parent of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// The monitor. The pid stays valid until the monitor reaps it.
    Us,
    /// Another process. `is_hidden` says that it has ended, and that its status is known only once it was reaped.
    Another { is_hidden: bool },
    /// None: the process has ended and was dealt with.
    Nobody,
}

/// A process, held by a pidfd.
pub(crate) struct Process {
    pub(crate) pid: i32,
    pidfd: PidFd,
    parent: Parent,
}

impl Process {
    /// Returns the process in the pid file of a runtime that has succeeded. Waits until it is a child of this
    /// process, as long as a helper of the runtime may still be its parent.
    ///
    /// No child but the runtime may be reaped before: a zombie may be this process.
    pub(crate) fn of(pid_file: &Path, signals: &SignalFd) -> io::Result<Self> {
        let pid = read_pid(pid_file)?;
        let parent = loop {
            if wait::peek(Child::Pid(pid)).is_ok() {
                break Parent::Us;
            }
            // Each helper of the runtime's that ends may have been its parent; SIGCHLD tells of more.
            match wait::peek(Child::Any) {
                // It came to us between the two questions.
                Ok(Some((helper, _))) if helper == pid => {}
                Ok(Some((helper, _))) => _ = wait::reap(Child::Pid(helper))?,
                Ok(None) => {
                    let mut set = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                    poll(&mut set, PollTimeout::NONE)?;
                    while signals.read_signal()?.is_some() {}
                }
                Err(_) => break Parent::Another { is_hidden: false },
            }
        };
        Ok(Self { pid, pidfd: PidFd::open(pid)?, parent })
    }

    /// Returns the process of an exec whose runtime has failed, if it was started nevertheless: then it is a child
    /// of this process.
    pub(crate) fn of_failed(pid_file: &Path) -> Option<Self> {
        let pid = read_pid(pid_file).ok()?;
        wait::peek(Child::Pid(pid)).ok()?;
        Some(Self { pid, pidfd: PidFd::open(pid).ok()?, parent: Parent::Us })
    }

    /// Returns the process of a monitor that has died, given the pidfd that it had.
    pub(crate) fn adopted(pid: i32, pidfd: PidFd) -> Self {
        let parent = match wait::peek(Child::Held(&pidfd)) {
            Ok(_) => Parent::Us,
            Err(_) => Parent::Another { is_hidden: false },
        };
        Self { pid, pidfd, parent }
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns what to wait for, if SIGCHLD does not report its end.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match self.parent {
            Parent::Us | Parent::Nobody => None,
            Parent::Another { is_hidden: false } => Some((self.pidfd.as_fd(), PollFlags::POLLIN)),
            // That it was reaped shows without being asked for.
            Parent::Another { is_hidden: true } => Some((self.pidfd.as_fd(), PollFlags::empty())),
        }
    }

    /// Returns how it ended, if it has. A child stays a zombie, which keeps the status until it is written; on
    /// kernels that show the status only to who reaps it, it is reaped.
    pub(crate) fn end(&mut self) -> Option<End> {
        let known = match self.parent {
            Parent::Us if !kernel::tells_before_reap() => {
                wait::reap(Child::Pid(self.pid)).transpose()?
            }
            Parent::Us => wait::peek(Child::Pid(self.pid)).map(|end| Some(end?.1)).transpose()?,
            Parent::Nobody => return None,
            Parent::Another { .. } => match ending(self.pid, &self.pidfd) {
                Ending::Alive => return None,
                Ending::Hidden => {
                    self.parent = Parent::Another { is_hidden: true };
                    return None;
                }
                Ending::Exact(end, _) => Ok(end),
                Ending::Doubtful | Ending::Lost => Err(io::ErrorKind::NotFound.into()),
            },
        };
        Some(match known {
            Ok(end) => End::Known(end),
            Err(error) => {
                report::error(&format!("how process {} ended is not known: {error}", self.pid));
                End::Unknown
            }
        })
    }

    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        self.pidfd.send_signal(signal)
    }

    /// Kills its process group.
    pub(crate) fn kill_group(&self) {
        let group = getpgid(Some(Pid::from_raw(self.pid))).ok().filter(|it| it.as_raw() > 1);
        // If it lives, the number was its own up to now.
        let group = group.filter(|_| self.parent == Parent::Us || self.pidfd.is_alive());
        let killed = match group {
            Some(group) => killpg(group, Signal::SIGKILL).map_err(Into::into),
            None => self.signal(Signal::SIGKILL as i32),
        };
        report::warn_of("the container is not killed", killed);
    }

    /// Reaps it, after its status was reported.
    pub(crate) fn reap(&mut self) {
        if self.parent == Parent::Us {
            let _ = wait::reap(Child::Pid(self.pid));
        }
        self.parent = Parent::Nobody;
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Known(Termination),
    Unknown,
    /// It was killed by `--timeout`.
    TimedOut,
}

impl End {
    /// Returns the end that has this number in exit files.
    pub(crate) fn of_status(status: i32) -> Self {
        u8::try_from(status).map_or(Self::TimedOut, |code| Self::Known(Termination::Exited(code)))
    }

    /// Returns the number for exit files. An unknown status is 255, never 0.
    pub(crate) fn status(self) -> i32 {
        match self {
            Self::Known(Termination::Exited(code)) => i32::from(code),
            Self::Known(Termination::Signaled(signal)) => 128 + signal,
            Self::Unknown => 255,
            Self::TimedOut => -1,
        }
    }

    pub(crate) fn is_kill(self) -> bool {
        self == Self::Known(Termination::Signaled(Signal::SIGKILL as i32))
    }

    /// Returns the number as an exit code.
    pub(crate) fn code(self) -> u8 {
        u8::try_from(self.status()).unwrap_or(u8::MAX)
    }
}

/// Reads a pid file.
fn read_pid(path: &Path) -> io::Result<i32> {
    let named = |error: String| {
        io::Error::other(format!("Failed to open file {}: {error}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| named(format!("no pid: {text:?}")))
}

/// Sends a signal to a child that was not reaped.
pub(crate) fn signal_child(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_is_not_known_is_255_and_never_0() {
        for (end, status, code) in [
            (End::Known(Termination::Exited(0)), 0, 0),
            (End::Known(Termination::Exited(255)), 255, 255),
            (End::Known(Termination::Signaled(9)), 137, 137),
            (End::Known(Termination::Signaled(64)), 192, 192),
            (End::Unknown, 255, 255),
            (End::TimedOut, -1, 255),
        ] {
            assert_eq!((end.status(), end.code()), (status, code), "{end:?}");
            let same = End::of_status(status);
            assert_eq!((same.status(), same.code()), (status, code), "{end:?}");
        }
    }
}
