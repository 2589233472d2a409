//! How the OCI runtime is started: with the container's stdio, and with nothing else of ours.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Command;

use holdfast_sys::spawn;

use crate::stdio::ContainerEnds;

/// Starts a command, which is to send a terminal to `console` if there is one, and returns its pid. Its working
/// directory is `cwd`, if that is there.
pub(crate) fn spawn(
    words: &[&OsStr],
    cwd: Option<&Path>,
    console: Option<&Path>,
    stdio: ContainerEnds,
) -> io::Result<i32> {
    let [program, options @ .., id] = words else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut command = Command::new(program);
    command.args(options);
    if let Some(cwd) = cwd.filter(|cwd| cwd.is_dir()) {
        command.current_dir(cwd);
    }
    if let Some(console) = console {
        command.arg("--console-socket").arg(console);
    }
    let child = spawn::like_a_runtime(command.arg(id))
        .stdin(stdio.stdin)
        .stdout(stdio.stdout)
        .stderr(stdio.stderr)
        .spawn();
    // Its mount takes the kernel a while, in which the runtime runs already.
    drop(stdio.null);
    let child = child.map_err(|error| {
        let program = program.display();
        io::Error::other(match error.kind() {
            io::ErrorKind::NotFound => format!("{program}: not installed on system"),
            _ => format!("{program}: {error}"),
        })
    })?;
    Ok(child.id().cast_signed())
}
