//! Shims that were begun before there is anything to do: until a program has begun takes longer than
//! to tell it what to do.

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

/// How long after a start others are begun: what was started comes first.
const MOMENT: Duration = Duration::from_millis(2);

/// Those that wait.
#[derive(Debug)]
pub(crate) struct Spares {
    /// How many are to wait.
    wanted: usize,
    waiting: Mutex<Vec<Spare>>,
    /// Some are about to be begun.
    refilling: AtomicBool,
}

/// One that waits. It ends by itself when its socket closes, as by our death; dropped, it is killed.
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

    /// Has one of them start a process. `None` if none can.
    pub(crate) fn employ<'a>(
        &self,
        words: impl Iterator<Item = &'a OsStr>,
        fds: [(FdName, BorrowedFd<'_>); 2],
    ) -> Option<Child> {
        let mut spare = {
            let mut waiting = self.waiting();
            // Read, as the connection would else be reset when we close it.
            let ready = waiting.iter().position(|spare| matches!(spare.hear(true), Ok(1..)))?;
            waiting.swap_remove(ready)
        };
        let words = std::iter::once(OsStr::new(SHIM)).chain(words);
        match Message::new(fds, words).and_then(|message| message.send(&spare.socket)) {
            Ok(()) => spare.shim.take(),
            Err(error) => {
                tracing::debug!(%error, "a spare shim is of no use");
                None
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shims {
    /// Begins as many spare ones as are missing, after a moment.
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
                tracing::warn!(%error, "no spare shim");
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

    /// Ends the spare ones.
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

    /// Something once it waits, and 0 when it has died.
    fn hear(&self, for_good: bool) -> nix::Result<usize> {
        let peek = if for_good { MsgFlags::empty() } else { MsgFlags::MSG_PEEK };
        recv(self.socket.as_raw_fd(), &mut [0], peek | MsgFlags::MSG_DONTWAIT)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let Some(mut shim) = self.shim.take() else { return };
        // It has nothing to lose, and this can't take long.
        let _ = shim.kill().and_then(|()| shim.wait());
        self.spawned.leave(shim.id());
    }
}
