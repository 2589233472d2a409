//! The standard input of a process, and its exit as a descriptor. Both are the same for the init
//! process of a container and for an exec process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use holdfast_state::process_dir::STDIN;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;

use crate::core::Core;
use crate::error::Error;
use crate::model::info::Status;
use crate::model::process::Process;
use crate::shim::control;

/// A writer to the standard input of a process. `shutdown` closes the input: the process reads end
/// of file once all writers have closed it. Dropping this only closes this writer, except with
/// [`Stdin::Once`](crate::Stdin::Once).
///
/// It writes into the FIFO that the process reads, so it works on if the shim or another client
/// dies. A hostile process can hold the lock of that FIFO (by splice(2) from a silent socket).
/// Opening, writing and closing then block until the process is gone. Use this type for processes
/// that you trust, or from a thread that may block.
#[derive(Debug)]
pub struct InputWriter {
    core: Arc<Core>,
    process: Arc<Process>,
    /// `None` after a shutdown of this writer.
    fifo: Option<pipe::Sender>,
}

impl InputWriter {
    /// Opens the FIFO that Holdfast created for the process.
    pub(crate) fn open(core: &Arc<Core>, process: &Arc<Process>) -> Result<Self, Error> {
        // The caller may be on any thread; the descriptor is registered with the supervisor's own
        // Tokio runtime.
        let _reactor = core.tasks.reactor.enter();
        let opened = process
            .dir(&core.root)
            .and_then(|dir| dir.directory().open_fifo(STDIN, OFlag::O_WRONLY))
            .and_then(pipe::Sender::from_file);
        let fifo = opened.map_err(|error| match error.kind() {
            _ if process.is_not_found() => Error::NotFound(process.container.clone()),
            io::ErrorKind::NotFound => Error::NoInput(process.container.clone()),
            // Nobody reads any more.
            _ if error.raw_os_error() == Some(nix::libc::ENXIO) => Error::WrongState {
                id: process.container.clone(),
                status: Status::Stopped.as_str(),
                operation: "its input",
                needed: "created or running",
            },
            _ => Error::io(format!("open the input of container {}", process.container))(error),
        })?;
        if process.stdin_once {
            // The shim closes its end, so this is the only writer, whose end the kernel closes.
            match control::close(&core.root, process) {
                Err(_) if process.is_stopped() => {}
                closed => closed?,
            }
        }
        Ok(Self { core: core.clone(), process: process.clone(), fifo: Some(fifo) })
    }

    fn fifo(&mut self) -> io::Result<Pin<&mut pipe::Sender>> {
        let shut_down = || io::Error::new(io::ErrorKind::BrokenPipe, "the input was shut down");
        self.fifo.as_mut().map(Pin::new).ok_or_else(shut_down)
    }
}

impl AsyncWrite for InputWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.fifo()?.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // There is no buffer in this process: written bytes are already in the FIFO.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fifo = None;
        let closed = control::close(&self.core.root, &self.process);
        // An exited process needs no input, so an error of its shim does not matter.
        Poll::Ready(match closed {
            Err(_) if self.process.is_stopped() => Ok(()),
            closed => closed.map_err(io::Error::other),
        })
    }
}

/// Returns the path of the FIFO of the standard input, if the process has one.
pub(crate) fn path(core: &Core, process: &Process) -> Option<PathBuf> {
    let dir = process.dir(&core.root).ok()?;
    dir.directory().contains(STDIN).ok()?.then(|| dir.path().join(STDIN))
}

/// Returns an eventfd that becomes readable when the exit of the process is known.
pub(crate) fn exit_fd(core: &Core, process: &Arc<Process>) -> Result<OwnedFd, Error> {
    let made = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|event| Ok((event.as_fd().try_clone_to_owned()?, event)));
    let (ours, event) = made.map_err(Error::io("create an eventfd for an exit"))?;
    let (process, stop) = (process.clone(), core.tasks.stop.clone());
    let tell = async move {
        if stop.run_until_cancelled(process.ended()).await.is_some()
            && let Err(error) = event.write(1)
        {
            tracing::error!(%error, "exit not reported to an eventfd");
        }
    };
    core.tasks.spawn(tell);
    Ok(ours)
}
