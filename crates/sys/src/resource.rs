//! Limits of resources: those of this process, and of another one.

use std::io;

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;

/// Raises the soft limit of open files of this process to the hard one, and returns what it was. A supervisor
/// has four or five descriptors for each container: the usual soft limit, 1,024, is soon reached.
///
/// # Errors
///
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(soft)
}

/// Makes room in the kernel's table of this process for so many open files, or as many as the limit allows.
///
/// The table doubles when it is full. In a process with threads the kernel waits for a grace period each time, 10 to
/// 30 ms, and no thread that needs more room gets a descriptor meanwhile. Before there are threads it waits for nothing.
///
/// # Errors
///
/// Those of open(2) and fcntl(2).
pub fn make_room_for_files(count: usize) -> io::Result<()> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let count = i32::try_from(soft.min(count as u64)).unwrap_or(i32::MAX);
    let any = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let last = fcntl(&any, FcntlArg::F_DUPFD_CLOEXEC((count - 1).max(0)))?;
    Ok(nix::unistd::close(last)?)
}

/// How many open files a daemon has room for from the beginning, in 8 KiB of the kernel's memory: those of the first
/// 200 containers.
pub const FILES_OF_A_DAEMON: usize = 1024;

/// Sets the soft and the hard limit of a process for a resource, `RLIMIT_*` (`prlimit(2)`).
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure outlives the call, which only reads it; the old limit is not asked for.
    let result = unsafe { libc::prlimit64(pid, resource, &raw const limit, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_files_is_made_at_once() {
        make_room_for_files(700).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(size.trim().parse::<usize>().unwrap() >= 700, "{size}");
    }
}
