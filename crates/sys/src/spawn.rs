//! What a child begins with that the standard library does not say.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has a child begin with no signal blocked and none ignored, whatever this process does or has
/// inherited (from nohup(1), say, or a shell's background).
pub fn like_a_runtime(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe calls are made, and they touch nothing
    // but `none`. Resetting a signal that can't be changed merely fails.
    unsafe {
        command.pre_exec(|| {
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        })
    }
}

/// Gives SIGPIPE, which Rust's start of a program ignores, its default action again, before another
/// program is executed.
pub fn end_by_sigpipe() {
    // SAFETY: no handler is installed. It can't fail for this signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
