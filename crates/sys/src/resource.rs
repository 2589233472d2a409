//! Limits of resources: those of this process, and of another one.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

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

/// Sets the soft and the hard limit of a process for a resource, `RLIMIT_*` (`prlimit(2)`).
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure outlives the call, which only reads it; the old limit is not asked for.
    let result = unsafe { libc::prlimit64(pid, resource, &raw const limit, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
