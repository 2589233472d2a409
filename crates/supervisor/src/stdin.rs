//! A process's input, its terminal's size, and its end as a descriptor: the same for a container's
//! first process and for an exec.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_state::control::Control;
use holdfast_state::process_dir::STDIN;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::net::unix::pipe;

use crate::Error;
use crate::options::TerminalSize;
use crate::process::Process;
use crate::supervisor::Core;

/// Sends a line to the shim of a process.
fn control(
    core: &Core,
    process: &Process,
    message: Control,
    operation: &'static str,
) -> Result<(), Error> {
    let sent = core
        .process_dir(&process.container, &process.id)
        .and_then(|dir| dir.control_writer())
        .and_then(|mut fifo| fifo.write_all(message.to_string().as_bytes()));
    sent.map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ENXIO) => {
            Error::NoShim { id: process.container.clone(), process: process.id.clone(), operation }
        }
        _ => Error::io(format!("send a message to the shim of {}", process.container))(error),
    })
}

/// Has a shim give up a start.
pub(crate) fn cancel(core: &Core, process: &Process) -> Result<(), Error> {
    control(core, process, Control::Signal(nix::libc::SIGKILL), "giving up its start")
}

pub(crate) fn close(core: &Core, process: &Process) -> Result<(), Error> {
    control(core, process, Control::CloseStdin, "closing its input")
}

pub(crate) fn resize(core: &Core, process: &Process, size: TerminalSize) -> Result<(), Error> {
    let message = Control::Resize { width: size.width, height: size.height };
    control(core, process, message, "resizing its terminal")
}

pub(crate) fn reopen_logs(core: &Core, process: &Process) -> Result<(), Error> {
    control(core, process, Control::ReopenLogs, "opening its logs anew")
}

/// Opens the FIFO that Holdfast made for the input of a process.
pub(crate) fn open(core: &Core, process: &Process) -> Result<pipe::Sender, Error> {
    let opened = core
        .process_dir(&process.container, &process.id)
        .and_then(|dir| dir.directory().open_fifo(STDIN, OFlag::O_WRONLY))
        .and_then(pipe::Sender::from_file);
    opened.map_err(Error::io(format!("open the input of container {}", process.container)))
}

/// Where that FIFO is, if the process has one.
pub(crate) fn path(core: &Core, process: &Process) -> Option<PathBuf> {
    let dir = core.process_dir(&process.container, &process.id).ok()?;
    dir.directory().contains(STDIN).ok()?.then(|| dir.path().join(STDIN))
}

/// A descriptor that is readable from the moment on that the end of the process is known.
pub(crate) fn exit_fd(core: &Core, process: &Arc<Process>) -> Result<OwnedFd, Error> {
    let made = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|event| Ok((event.as_fd().try_clone_to_owned()?, event)));
    let (ours, event) = made.map_err(Error::io("make a descriptor that tells of an exit"))?;
    let (process, stop) = (process.clone(), core.stop.clone());
    let tell = async move {
        if stop.run_until_cancelled(process.ended()).await.is_some()
            && let Err(error) = event.write(1)
        {
            tracing::error!(%error, "exit not told to a descriptor");
        }
    };
    core.tasks.spawn_on(tell, &core.reactor);
    Ok(ours)
}
