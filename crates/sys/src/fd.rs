//! Descriptors of a process as a whole.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Our standard input and output, without the buffers of [`std::io`].
pub fn standard() -> [BorrowedFd<'static>; 2] {
    // SAFETY: as the standard library has it, these two are never closed.
    unsafe { [BorrowedFd::borrow_raw(0), BorrowedFd::borrow_raw(1)] }
}

/// Marks every descriptor from `first` upwards close-on-exec, so that none reaches a program that
/// this process executes later. Linux 5.11+ (`close_range(2)`, `CLOSE_RANGE_CLOEXEC`); below it the
/// entries of `/proc/self/fd` are marked one by one.
pub fn set_cloexec_from(first: RawFd) -> io::Result<()> {
    let from = libc::c_uint::try_from(first).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: close_range takes three integers and touches no memory of ours; with CLOEXEC it
    // closes nothing, so no owned descriptor is invalidated.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if done == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|s| s.parse::<RawFd>().ok()) else { continue };
        if number >= first {
            // SAFETY: F_SETFD on any number is memory-safe; a closed one merely yields EBADF.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
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
