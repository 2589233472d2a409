//! A process's input, its terminal's size, and its end as a descriptor: the same for a container's
//! first process and for an exec.

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
use crate::model::process::Process;
use crate::shim::control;

/// The input of a process. `shutdown` ends it, for the process once all who write to it have closed
/// it; dropping this just closes it here.
///
/// This writes into the FIFO that the process reads, so it goes on whoever dies between. A hostile process may hold
/// the lock of that (splice(2) from a silent socket): opening, writing and closing then wait until it is gone.
/// Use this for processes that you trust, or from a thread that may wait.
#[derive(Debug)]
pub struct InputWriter {
    core: Arc<Core>,
    process: Arc<Process>,
    /// `None` once it was shut down.
    fifo: Option<pipe::Sender>,
}

impl InputWriter {
    /// Opens the FIFO that Holdfast made for it.
    pub(crate) fn open(core: &Arc<Core>, process: &Arc<Process>) -> Result<Self, Error> {
        // From whatever thread this is called, it is this one's reactor that serves it.
        let _reactor = core.tasks.reactor.enter();
        let opened = process
            .dir(&core.root)
            .and_then(|dir| dir.directory().open_fifo(STDIN, OFlag::O_WRONLY))
            .and_then(pipe::Sender::from_file);
        let fifo = opened.map_err(|error| match error.kind() {
            _ if process.is_gone() => Error::NotFound(process.container.clone()),
            io::ErrorKind::NotFound => Error::NoInput(process.container.clone()),
            _ => Error::io(format!("open the input of container {}", process.container))(error),
        })?;
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
        // What is written is in the FIFO.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fifo = None;
        let closed = control::close(&self.core.root, &self.process);
        // A process that has ended needs no input.
        Poll::Ready(match closed {
            Err(_) if self.process.is_stopped() => Ok(()),
            closed => closed.map_err(io::Error::other),
        })
    }
}

/// Where that FIFO is, if the process has one.
pub(crate) fn path(core: &Core, process: &Process) -> Option<PathBuf> {
    let dir = process.dir(&core.root).ok()?;
    dir.directory().contains(STDIN).ok()?.then(|| dir.path().join(STDIN))
}

/// A descriptor that is readable from the moment on that the end of the process is known.
pub(crate) fn exit_fd(core: &Core, process: &Arc<Process>) -> Result<OwnedFd, Error> {
    let made = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|event| Ok((event.as_fd().try_clone_to_owned()?, event)));
    let (ours, event) = made.map_err(Error::io("make a descriptor that tells of an exit"))?;
    let (process, stop) = (process.clone(), core.tasks.stop.clone());
    let tell = async move {
        if stop.run_until_cancelled(process.ended()).await.is_some()
            && let Err(error) = event.write(1)
        {
            tracing::error!(%error, "exit not told to a descriptor");
        }
    };
    core.tasks.spawn(tell);
    Ok(ours)
}
