//! Messages to the shim of a process, which go through its control FIFO.

use std::fs::File;
use std::io::{self, Write};

use holdfast_state::StateRoot;
use holdfast_state::control::Control;

use crate::error::Error;
use crate::model::options::TerminalSize;
use crate::model::process::Process;

/// Sends one message to the shim of a process.
fn control(
    root: &StateRoot,
    process: &Process,
    message: Control,
    operation: &'static str,
) -> Result<(), Error> {
    let sent = process
        .dir(root)
        .and_then(|dir| dir.control_writer())
        .and_then(|mut fifo| fifo.write_all(message.to_string().as_bytes()));
    sent.map_err(|error| match error.raw_os_error() {
        _ if process.is_gone() => Error::NotFound(process.container.clone()),
        // The second: it went when the FIFO was open already.
        Some(nix::libc::ENXIO | nix::libc::EPIPE) if process.is_stopped() => Error::WrongState {
            id: process.container.clone(),
            status: process.status().as_str(),
            operation,
            needed: "running",
        },
        Some(nix::libc::ENXIO | nix::libc::EPIPE) => {
            Error::NoShim { id: process.container.clone(), process: process.id.clone(), operation }
        }
        _ => Error::io(format!("send a message to the shim of {}", process.container))(error),
    })
}

/// Makes a shim cancel a start, also a shim that has not begun yet: the returned descriptor keeps
/// the message in the FIFO until the shim reads it.
pub(crate) fn cancel_start(root: &StateRoot, process: &Process) -> io::Result<File> {
    let mut fifo = process.dir(root)?.control_reader()?;
    fifo.write_all(Control::Signal(nix::libc::SIGKILL).to_string().as_bytes())?;
    Ok(fifo)
}

/// Makes a shim drop the output that waits for a reader.
pub(crate) fn cancel(root: &StateRoot, process: &Process) -> Result<(), Error> {
    control(root, process, Control::Signal(nix::libc::SIGKILL), "dropping its output")
}

pub(crate) fn close(root: &StateRoot, process: &Process) -> Result<(), Error> {
    control(root, process, Control::CloseStdin, "closing its input")
}

pub(crate) fn resize(root: &StateRoot, process: &Process, size: TerminalSize) -> Result<(), Error> {
    if !process.terminal && !process.is_gone() {
        return Err(Error::NoTerminal(process.container.clone()));
    }
    let message = Control::Resize { width: size.width, height: size.height };
    control(root, process, message, "resizing its terminal")
}

pub(crate) fn reopen_logs(root: &StateRoot, process: &Process) -> Result<(), Error> {
    control(root, process, Control::ReopenLogs, "reopening its logs")
}

/// Makes a shim close the output of a process that has ended, although others may have it open.
pub(crate) fn end_output(root: &StateRoot, process: &Process) -> Result<(), Error> {
    control(root, process, Control::EndOutput, "ending its output")
}
