//! Spare shims, which are spawned before there is anything to do, because the start of a program
//! takes longer than a message to one that waits.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_state::handoff::{FdName, Message};
use holdfast_state::shim_options;
use holdfast_sys::fd_passing;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::os::children::Spawned;
use crate::os::tasks::blocking;
use crate::shim::{SHIM, Shims};

/// The delay from a start to the spawn of new spare shims. The process that was started comes
/// first.
const MOMENT: Duration = Duration::from_millis(2);

/// The spare shims of a supervisor.
#[derive(Debug)]
pub(crate) struct Spares {
    /// How many spare shims should wait.
    wanted: usize,
    waiting: Mutex<Vec<Spare>>,
    /// Whether spare shims are about to be spawned.
    refilling: AtomicBool,
}

/// A shim that waits for a start. It ends by itself when its socket closes, for example when we
/// die. When this value is dropped, the shim is killed.
#[derive(Debug)]
struct Spare {
    shim: Option<Child>,
    socket: OwnedFd,
    spawned: Arc<Spawned>,
}

impl Spares {
    pub(crate) fn new(wanted: usize) -> Self {
        Self { wanted, waiting: Mutex::default(), refilling: AtomicBool::new(false) }
    }

    /// Makes a spare shim start a process. Returns `None` if no spare shim can.
    pub(crate) fn employ<'a>(
        &self,
        words: impl Iterator<Item = &'a OsStr>,
        fds: [(FdName, BorrowedFd<'_>); 2],
    ) -> Option<Child> {
        let mut spare = {
            let mut waiting = self.waiting();
            // The byte is read and not only peeked at: if it were unread when we close the socket,
            // the connection would be reset.
            let ready = waiting.iter().position(|spare| matches!(spare.hear(true), Ok(1..)))?;
            waiting.swap_remove(ready)
        };
        let words = std::iter::once(OsStr::new(SHIM)).chain(words);
        match Message::new(fds, words).and_then(|message| message.send(&spare.socket)) {
            Ok(()) => spare.shim.take(),
            Err(error) => {
                tracing::debug!(%error, "a spare shim did not accept a start");
                None
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shims {
    /// Spawns the missing spare shims, after a moment.
    pub(crate) fn refill_later(self: &Arc<Self>) {
        if self.spares.refilling.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(MOMENT) => {}
                () = this.tasks.stop.cancelled() => return,
            }
            let begun = this.clone();
            if let Err(error) = blocking(move || begun.refill()).await {
                tracing::warn!(%error, "no spare shim could be spawned");
            }
            this.spares.refilling.store(false, Ordering::Relaxed);
        });
    }

    fn refill(&self) -> io::Result<()> {
        let alive = |spare: &Spare| matches!(spare.hear(false), Ok(1..) | Err(Errno::EAGAIN));
        let spares = &self.spares;
        spares.waiting().retain(alive);
        while spares.waiting().len() < spares.wanted && !self.tasks.stop.is_cancelled() {
            let spare = Spare::begin(self)?;
            spares.waiting().push(spare);
        }
        Ok(())
    }

    /// Ends the spare shims.
    pub(crate) fn dismiss_spares(&self) {
        self.spares.waiting().clear();
    }
}

impl Spare {
    fn begin(shims: &Shims) -> io::Result<Self> {
        let (socket, theirs) = fd_passing::pair()?;
        let mut command = shims.command();
        command.arg(shim_options::SPARE).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        let shim = shims.spawned.spawn(&mut command)?;
        Ok(Self { shim: Some(shim), socket, spawned: shims.spawned.clone() })
    }

    /// Reads the byte by which a shim reports that it waits; without `for_good` it only peeks at
    /// it. Returns 0 if the shim has died.
    fn hear(&self, for_good: bool) -> nix::Result<usize> {
        let peek = if for_good { MsgFlags::empty() } else { MsgFlags::MSG_PEEK };
        recv(self.socket.as_raw_fd(), &mut [0], peek | MsgFlags::MSG_DONTWAIT)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let Some(mut shim) = self.shim.take() else { return };
        // The shim has no process, so nothing is lost, and it ends quickly.
        let _ = shim.kill().and_then(|()| shim.wait());
        self.spawned.leave(shim.id());
    }
}
