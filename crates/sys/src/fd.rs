//! Descriptors: what one is open for, and those of a process as a whole.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::proc;

/// What a descriptor of a pipe or a terminal is open for. As long as that exists, nothing else has the same:
/// a pipe goes by its inode, a terminal by its number in its own file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    number: u64,
}

impl Identity {
    /// Asks the kernel. Neither a pipe's lock nor a terminal's is waited for.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let stat = fstat(fd.as_fd())?;
        Ok(Self::of_stat(fd, &stat))
    }

    /// As [`of`](Self::of), for who has the answer of fstat(2) already.
    pub fn of_stat(fd: impl AsFd, stat: &FileStat) -> Self {
        let device = stat.st_dev;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let mut terminal: libc::c_uint = 0;
        // SAFETY: the borrowed descriptor is open, and TIOCGPTN writes one unsigned int, to `terminal`.
        let is_terminal = kind == SFlag::S_IFCHR
            && unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGPTN, &raw mut terminal) }
                == 0;
        Self { device, number: if is_terminal { u64::from(terminal) } else { stat.st_ino } }
    }

    /// How many bytes it takes in a message.
    pub const LEN: usize = 16;

    /// As it goes in a message.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        (u128::from(self.device) | u128::from(self.number) << 64).to_le_bytes()
    }

    /// What [`to_bytes`](Self::to_bytes) made.
    #[must_use]
    pub fn of_bytes(bytes: [u8; Self::LEN]) -> Self {
        let both = u128::from_le_bytes(bytes);
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(u64::MAX);
        Self { device: half(both), number: half(both >> 64) }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.device, self.number)
    }
}

/// A text that is no [`Identity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidIdentity;

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let (device, number) = text.split_once('.').ok_or(InvalidIdentity)?;
        let parse = |text: &str| text.parse().map_err(|_| InvalidIdentity);
        Ok(Self { device: parse(device)?, number: parse(number)? })
    }
}

/// Our standard input and output, without the buffers of [`std::io`].
pub fn standard() -> [BorrowedFd<'static>; 2] {
    // SAFETY: as the standard library has it, these two are never closed.
    unsafe { [BorrowedFd::borrow_raw(0), BorrowedFd::borrow_raw(1)] }
}

/// Closes every descriptor but the standard ones. Linux 5.9+ (`close_range(2)`); below it those in
/// `/proc/self/fd`, one by one.
///
/// # Safety
/// Nothing in this program owns one of them: it has only just begun.
pub unsafe fn close_inherited() -> io::Result<()> {
    // SAFETY: close_range takes three integers; that no owned descriptor is closed is the caller's.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if done == 0 {
        return Ok(());
    }
    let entries: Vec<_> = std::fs::read_dir("/proc/self/fd")?.flatten().collect();
    for entry in entries {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|s| s.parse::<RawFd>().ok()) else { continue };
        if number >= 3 {
            // SAFETY: as above. That which the directory was read by is closed already.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

/// How many bytes can be read from a pipe without waiting (`FIONREAD`, pipe(7)).
pub fn readable_bytes(pipe: impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the borrowed descriptor is open, and FIONREAD writes one int, to `count`.
    let done = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(count).unwrap_or(0)) }
}
/// Takes over descriptors that this process was started with, close-on-exec from now on.
///
/// `None` after the first call, and for numbers that are not open: each descriptor has one owner.
pub fn inherited(first: RawFd, count: RawFd) -> Option<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    let take = |number: RawFd| {
        // SAFETY: fcntl takes any number, and fails for one that is not open.
        let done = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        // SAFETY: it is open, whoever started us said that it is for us, and nobody else here has
        // taken it: this is the first call.
        (done == 0).then(|| unsafe { OwnedFd::from_raw_fd(number) })
    };
    (first..first.checked_add(count)?).map(take).collect()
}

/// Takes over all descriptors but the standard ones, as they are: children inherit those that are not
/// close-on-exec.
///
/// # Safety
/// Nothing in this program owns one of them: it has only just begun.
///
/// # Errors
/// If `/proc` cannot be read.
pub unsafe fn all_inherited() -> io::Result<Vec<OwnedFd>> {
    let numbers = proc::numbers("/proc/self/fd")?.into_iter();
    // The one by which the directory was read is closed by now.
    // SAFETY: F_GETFD changes nothing, and fails for a number that is not open.
    let open = numbers.filter(|fd| *fd > 2 && unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0);
    // SAFETY: it is open, and that nothing owns it is the caller's.
    Ok(open.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

/// Puts a descriptor into an epoll set (epoll(7)), by its number.
///
/// # Errors
/// Those of epoll_ctl(2).
pub fn register(epoll: BorrowedFd<'_>, number: RawFd, events: u32, data: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    let (add, event) = (libc::EPOLL_CTL_ADD, &raw mut event);
    // SAFETY: epoll_ctl takes any number, and reads one epoll_event, from `event`.
    let done = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), add, number, event) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a descriptor out of an epoll set (epoll(7)), by its number: its owner may be on the point of
/// closing it, and that alone would leave it there as long as somebody else has a copy.
pub fn unregister(epoll: BorrowedFd<'_>, number: RawFd) {
    // SAFETY: epoll_ctl takes any number. For one that is not in the set it fails, and there is
    // nothing to be done then.
    unsafe {
        libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, number, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_the_same_and_nothing_else_is() {
        let pipes = [std::io::pipe().unwrap(), std::io::pipe().unwrap()];
        let of = |fd: &dyn AsFd| Identity::of(fd.as_fd()).unwrap();
        let identity = of(&pipes[0].0);
        assert_eq!(of(&pipes[0].0.try_clone().unwrap()), identity);
        assert_eq!(of(&pipes[0].1), identity, "it is one pipe");
        assert_ne!(of(&pipes[1].0), identity);
        let terminals = [0, 1].map(|_| nix::pty::openpty(None, None).unwrap());
        let [first, second] = terminals.each_ref().map(|pty| of(&pty.master));
        assert_ne!(first, second);
        assert_ne!(first, identity);
        for identity in [identity, first] {
            assert_eq!(identity.to_string().parse(), Ok(identity));
        }
        for text in ["", "1", "1.", ".1", "1.x", "-1.2", "1.2.3"] {
            assert_eq!(text.parse::<Identity>(), Err(InvalidIdentity), "{text:?}");
        }
    }
}
