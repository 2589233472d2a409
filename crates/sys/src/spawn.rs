//! What a child begins with that the standard library does not say.

use std::ffi::CStr;
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

/// Has a child be killed when the calling thread ends (`PR_SET_PDEATHSIG`, prctl(2)).
pub fn die_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only prctl is called, which takes integers here.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    }
}

/// Sets a variable of a child's environment to the child's own pid. The command must change no other
/// variable: one that does gets its environment from this process, as that was before.
pub fn name_own_pid<'a>(command: &'a mut Command, variable: &'static CStr) -> &'a mut Command {
    let set = move || {
        // On the stack, with a zero byte at the end: nothing is formatted on the heap of a forked child.
        let (mut text, mut pid) = ([0_u8; 16], std::process::id());
        let mut start = text.len() - 1;
        while start > 0 {
            start -= 1;
            text[start] = b'0' + u8::try_from(pid % 10).unwrap_or(0);
            pid /= 10;
            if pid == 0 {
                break;
            }
        }
        // SAFETY: both are strings that end with a zero byte. setenv allocates, which the C library allows in the
        // forked child of a process with one thread, which is why this is for such programs only.
        match unsafe { libc::setenv(variable.as_ptr(), text[start..].as_ptr().cast(), 1) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(set) }
}

/// Goes on in a new process, the child of this one. Both return from here: the child `None`, this process the
/// child's pid.
///
/// # Errors
/// Those of fork(2), or if this process has more than one thread: the child would have only the one, and
/// whatever the others have locked would stay so.
pub fn fork() -> io::Result<Option<i32>> {
    check_alone()?;
    // SAFETY: there is no other thread, so no lock of the allocator's or of anyone's is held in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => Ok(Some(child)),
    }
}

/// The same, and the child has this pid. It is to execute another program: the C library keeps thinking that it has
/// the pid of this process.
///
/// # Errors
/// Those of [`fork`] and of `clone3(2)` with `set_tid` (Linux 5.5+): `EEXIST` if there is a process with this pid, be
/// it a zombie, and `EPERM` without the capability to choose one.
pub fn fork_as(pid: i32) -> io::Result<Option<i32>> {
    /// `struct clone_args` of linux/sched.h in the size that has `set_tid`.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
    }
    check_alone()?;
    let args = CloneArgs {
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        set_tid: (&raw const pid) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: the kernel reads both structures, which outlive the call. Without a stack and flags it is a fork: the
    // child goes on here with a copy of all memory, and there is no other thread whose locks it could inherit.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some(pid)),
    }
}

fn check_alone() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads can't be forked"));
    }
    Ok(())
}

/// Gives SIGPIPE, which Rust's start of a program ignores, its default action again, before another
/// program is executed.
pub fn end_by_sigpipe() {
    // SAFETY: no handler is installed. It can't fail for this signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
