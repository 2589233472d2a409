//! `waitid(2)`, with the choice to look at a status before the process is reaped.
//!
//! `nix` turns a termination by a real-time signal into `EINVAL`; containers die of those
//! (systemd's `SIGRTMIN+3`), so statuses stay as the kernel gave them here.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use crate::PidFd;

/// How a process ended, as `waitid(2)` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// It called `exit` with this status.
    Exited(u8),
    /// This signal ended it, real-time signals included.
    Signaled(i32),
}

impl Termination {
    /// Reads a status as `wait4(2)`, `/proc/PID/stat` and `PIDFD_GET_INFO` encode it.
    #[must_use]
    pub fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signaled(libc::WTERMSIG(status))
        } else {
            Self::Exited(low_byte(libc::WEXITSTATUS(status)))
        }
    }
}

impl fmt::Display for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Which child to ask about.
#[derive(Debug, Clone, Copy)]
pub enum Child<'a> {
    /// Whichever ended first.
    Any,
    /// This one.
    Pid(i32),
    /// The one that is held, which may be nobody's child of ours (Linux 5.4+).
    Held(&'a PidFd),
}

/// Returns the pid and end of a child that is a zombie, and leaves it one: its pid stays taken
/// until [`reap`]. `None` if no such child has ended; `ECHILD` if there is no such child at all.
pub fn peek(child: Child<'_>) -> io::Result<Option<(i32, Termination)>> {
    waitid(child, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

/// As [`peek`] of any child; `None` also if there is none at all.
pub fn peek_any() -> io::Result<Option<(i32, Termination)>> {
    match peek(Child::Any) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        other => other,
    }
}

/// Takes a zombie child out of the process table. `None` if it has not ended.
pub fn reap(child: Child<'_>) -> io::Result<Option<Termination>> {
    Ok(waitid(child, libc::WEXITED | libc::WNOHANG)?.map(|(_, end)| end))
}

fn waitid(child: Child<'_>, options: libc::c_int) -> io::Result<Option<(i32, Termination)>> {
    let (kind, id) = match child {
        Child::Any => (libc::P_ALL, 0),
        Child::Pid(pid) => {
            (libc::P_PID, libc::id_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?)
        }
        Child::Held(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: siginfo_t is plain data for which all zero bytes are a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live siginfo_t that the kernel fills in.
    let done = unsafe { libc::waitid(kind, id, &raw mut info, options) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid fills the SIGCHLD members of the union, or leaves the zeros set above.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let end = match info.si_code {
        libc::CLD_EXITED => Termination::Exited(low_byte(status)),
        _ => Termination::Signaled(status),
    };
    Ok(Some((pid, end)))
}

fn low_byte(status: i32) -> u8 {
    (status & 0xff).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_peeked_zombie_keeps_its_status_until_reaped() {
        let mut child = Command::new("sh").args(["-c", "exit 42"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let end = loop {
            if let Some((_, end)) = peek(Child::Pid(pid)).unwrap() {
                break end;
            }
            std::thread::yield_now();
        };
        assert_eq!(end, Termination::Exited(42));
        assert_eq!(reap(Child::Pid(pid)).unwrap(), Some(Termination::Exited(42)));
        assert_eq!(peek(Child::Pid(pid)).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        let _ = child.try_wait();
    }

    #[test]
    fn a_real_time_signal_is_a_termination_like_any_other() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        crate::PidFd::open(pid).unwrap().send_signal(37).unwrap();
        let end = loop {
            if let Some(end) = reap(Child::Pid(pid)).unwrap() {
                break end;
            }
            std::thread::yield_now();
        };
        assert_eq!(end, Termination::Signaled(37));
        let _ = child.try_wait();
    }

    #[test]
    fn wait_statuses_decode() {
        assert_eq!(Termination::from_wait_status(42 << 8), Termination::Exited(42));
        assert_eq!(Termination::from_wait_status(9), Termination::Signaled(9));
        assert_eq!(Termination::from_wait_status(11 | 0x80), Termination::Signaled(11));
    }
}
