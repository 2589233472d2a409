//! How the OCI runtime is started: with the container's stdio, and with nothing else of ours.

use std::ffi::OsString;
use std::io;
use std::process::Command;

use holdfast_sys::spawn;

use crate::stdio::ContainerEnds;

/// Starts a command and returns its pid.
pub(crate) fn spawn(command: &[OsString], stdio: ContainerEnds) -> io::Result<i32> {
    let child = spawn::like_a_runtime(Command::new(&command[0]).args(&command[1..]))
        .stdin(stdio.stdin)
        .stdout(stdio.stdout)
        .stderr(stdio.stderr)
        .spawn();
    let child = child.map_err(|error| {
        let program = command[0].display();
        io::Error::other(match error.kind() {
            io::ErrorKind::NotFound => format!("{program}: not installed on system"),
            _ => format!("{program}: {error}"),
        })
    })?;
    Ok(child.id().cast_signed())
}
