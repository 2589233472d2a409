//! A process held by a descriptor, which no reuse of its pid can confuse.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Termination, proc};

/// A pidfd (`pidfd_open(2)`, Linux 5.3+). It polls readable once the process is a zombie.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens whatever process has the number `pid` now. `ESRCH` if none has. The number proves no
    /// identity: the caller compares start times while the descriptor still [`is_alive`](Self::is_alive).
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned `fd`, so it is open and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal by number, real-time signals included. `ESRCH` once the process was reaped;
    /// a zombie takes the signal and ignores it.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: a null siginfo is documented to mean "as kill(2) would"; nothing is written.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether the process is neither a zombie nor reaped.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut set = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        !matches!(poll(&mut set, PollTimeout::ZERO), Ok(n) if n > 0)
    }

    /// Waits until the process is a zombie or reaped, and returns whether it is by then.
    pub fn ends_by(&self, by: Instant) -> io::Result<bool> {
        loop {
            let left = by.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How the process ended, if it was reaped (by anyone) and the kernel tells: Linux 6.15+
    /// (`PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`). `None` while it lives or is a zombie, and on
    /// kernels that do not know the question.
    pub fn termination(&self) -> io::Result<Option<Termination>> {
        match self.info() {
            Ok(info) if info.mask & PIDFD_INFO_EXIT != 0 => {
                Ok(Some(Termination::from_wait_status(info.exit_code)))
            }
            // ESRCH: reaped, and the kernel has no exit information; ENOTTY and EINVAL: too old.
            Ok(_) | Err(nix::Error::ESRCH | nix::Error::ENOTTY | nix::Error::EINVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn info(&self) -> nix::Result<PidfdInfo> {
        let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
        // SAFETY: `info` is a live struct of the size that the request number encodes.
        unsafe { pidfd_get_info(self.0.as_raw_fd(), &raw mut info) }.map(|_| info)
    }

    /// The number of the process, as this process counts: for showing. `ESRCH` once it was reaped.
    pub fn pid(&self) -> io::Result<i32> {
        // Linux 6.13+, and as long as there is a process.
        if let Ok(info) = self.info()
            && info.mask & PIDFD_INFO_PID != 0
        {
            return i32::try_from(info.tgid).map_err(io::Error::other);
        }
        let info = proc::read(&format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        let info = String::from_utf8_lossy(&info);
        let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
        match number {
            Some(pid) if pid > 0 => Ok(pid),
            Some(_) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Takes a copy of a descriptor of the process (`pidfd_getfd(2)`, Linux 5.6+): both then share
    /// one open file. Needs ptrace access to it.
    pub fn copy_fd(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned `fd`, so it is open and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl From<OwnedFd> for PidFd {
    /// For one that came from elsewhere. Something else than a pidfd fails at its first use.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

const PIDFD_INFO_PID: u64 = 1 << 0;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `struct pidfd_info` of linux/pidfd.h in its first published size, 64 bytes.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    /// Real, effective, saved and file-system uid and gid.
    ids: [u32; 8],
    exit_code: i32,
}

mod request {
    #![allow(missing_docs)] // the macro's function has none
    nix::ioctl_readwrite!(pidfd_get_info, 0xFF, 11, super::PidfdInfo);
}
use request::pidfd_get_info;

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn it_notices_the_end_and_keeps_the_status_after_the_reaping() {
        let mut child = Command::new("sh")
            .args(["-c", "read x; exit 42"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = PidFd::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(pidfd.is_alive());
        assert_eq!(pidfd.pid().unwrap(), i32::try_from(child.id()).unwrap());
        assert_eq!(pidfd.termination().unwrap(), None);
        child.wait().unwrap();
        assert!(!pidfd.is_alive());
        assert_eq!(pidfd.send_signal(0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        // Below Linux 6.15 there is no answer, and no wrong one either.
        let status = pidfd.termination().unwrap();
        assert!(matches!(status, None | Some(Termination::Exited(42))), "{status:?}");
    }
}
