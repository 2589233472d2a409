//! The session keyring (`keyctl(2)`, `session-keyring(7)`).

use std::io;

/// Gives the calling process a new, empty session keyring, which what it starts inherits. It counts for
/// the quota of the process's user.
///
/// # Errors
/// `EDQUOT` if the user has as many keys as it may (`/proc/sys/kernel/keys/maxkeys`, for root
/// `root_maxkeys`), `ENOSYS` for a kernel without keys, and others of keyctl(2).
pub fn new_session() -> io::Result<()> {
    let anonymous: *const libc::c_char = std::ptr::null();
    // SAFETY: the operation takes one argument, a name, which may be null.
    let id =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    if id < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
