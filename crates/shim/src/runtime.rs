//! How the OCI runtime is started: with the container's stdio, and with nothing else of ours.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};

use crate::stdio::ContainerEnds;

/// Starts a command and returns its pid.
///
/// Not through `std::process::Command`, which hands the blocked signals of this process on: they
/// would stay blocked in the container, which then could not even be told to end.
pub(crate) fn spawn(command: &[OsString], stdio: &ContainerEnds) -> io::Result<i32> {
    let failed = |errno: Errno| {
        let program = command[0].display();
        io::Error::other(match errno {
            Errno::ENOENT => format!("{program}: not installed on system"),
            errno => format!("{program}: {}", errno.desc()),
        })
    };
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Rust's start-up ignores SIGPIPE, and an ignored signal stays ignored over exec.
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    let mut descriptors = PosixSpawnFileActions::init()?;
    for (end, number) in [(&stdio.stdin, 0), (&stdio.stdout, 1), (&stdio.stderr, 2)] {
        descriptors.add_dup2(end.as_raw_fd(), number)?;
    }
    let program = c_string(&command[0])?;
    let args = command.iter().map(|arg| c_string(arg)).collect::<io::Result<Vec<_>>>()?;
    let environment = std::env::vars_os()
        .map(|(name, value)| {
            let mut variable = name;
            variable.push("=");
            variable.push(value);
            c_string(&variable)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let child = posix_spawn(program.as_c_str(), &descriptors, &attributes, &args, &environment);
    Ok(child.map_err(failed)?.as_raw())
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}
