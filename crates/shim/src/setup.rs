//! What makes this process a shim, before anything is started.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_sys::stray;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::log::log;

/// Detaches from whoever started us and returns the signals as a descriptor and the exit FIFO.
pub(crate) fn become_shim() -> io::Result<(SignalFd, File)> {
    let signals = detach()?;
    // Our standard output is the exit FIFO. No child may get it: readers would never see it close.
    let exit = File::from(dup_above_stdio(&holdfast_sys::fd::standard()[1])?);
    without_standard_io()?;
    Ok((signals, exit))
}

/// Detaches from whoever started us and returns the signals as a descriptor.
pub(crate) fn detach() -> io::Result<SignalFd> {
    // A group leader can't begin a session; then it has been given one already.
    match nix::unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    // What the runtime leaves behind becomes our child, the container's process first of all.
    nix::sys::prctl::set_child_subreaper(true)?;
    nix::unistd::chdir("/")?;
    take_signals()
}

/// What was our standard input and output is for us alone, not for who is started by us.
pub(crate) fn without_standard_io() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// Sets `no_new_privs` for this process: no program that it executes from now on gains privileges by
/// set-user-ID bits or file capabilities.
///
/// Called only after the runtime was started. Children inherit the attribute, execve(2) preserves it
/// and nothing can unset it (prctl(2)): a runtime that has it passes it on to its container, also to
/// one whose configuration has `noNewPrivileges: false`. So the shim of a group never sets it: the
/// shims that start the group's processes are its children.
///
/// The ambient capabilities are left as they are. Before the start they may be the only
/// capabilities of a runtime that does not run as root, and after it they change nothing for a
/// process that executes no program.
pub(crate) fn renounce_new_privileges() {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        // No reason to give up a container.
        log("warning", &format!("no_new_privs is not set: {error}"));
    }
}

/// Signals arrive through a descriptor and in the loop only. Those that end a process by default
/// are taken as well: a stray SIGHUP, a service manager's SIGTERM or a limit that this process reaches (a
/// write beyond RLIMIT_FSIZE then just fails) must not orphan a container.
pub fn take_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    let own = [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        // Without the standard library's start it is not ignored.
        Signal::SIGPIPE,
    ];
    for signal in own.into_iter().chain(stray::SIGNALS) {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Whether SIGTERM has come. All others that have are done with.
pub(crate) fn was_asked_to_end(signals: &SignalFd) -> io::Result<bool> {
    let mut asked = false;
    while let Some(signal) = signals.read_signal()? {
        asked |= signal.ssi_signo == Signal::SIGTERM as u32;
    }
    Ok(asked)
}

fn dup_above_stdio(fd: &impl AsFd) -> io::Result<OwnedFd> {
    set_nonblocking(fd)?;
    fd.as_fd().try_clone_to_owned()
}

/// Has reading and writing not wait.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
