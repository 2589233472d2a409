//! A helper process that closes descriptors for this one.
//!
//! Closing the last descriptor of a pipe or a terminal waits for its lock, uninterruptibly, and a
//! container can hold that lock as long as it likes: splice(2) from a silent socket into its
//! standard output is enough. A thread that waits like this cannot be killed, and a process with
//! such a thread never exits. So descriptors that a container can write to are sent to a helper
//! process for which nobody waits. If the helper hangs, it is replaced; it exits when the container
//! releases the lock or is gone. A helper that has had nothing to do for a second exits too.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_state::shim_options;
use holdfast_sys::fd_passing;

use crate::os::children::{Spawned, hide_our_own_manager};

/// How long a closer may take before another one is started for the descriptors that follow.
const PATIENCE: Duration = Duration::from_secs(1);

/// Closes descriptors without blocking this process.
#[derive(Debug)]
pub(crate) struct Closer {
    shim: PathBuf,
    spawned: Arc<Spawned>,
    /// The helper process to use, as far as is known; started when there is something to close.
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    /// The helper exits when this socket is closed, unless it hangs.
    socket: UnixStream,
    /// How many messages it has not confirmed as closed yet, and since when that number has not
    /// decreased.
    pending: usize,
    since: Instant,
}

impl Closer {
    pub(crate) fn new(shim: PathBuf, spawned: Arc<Spawned>) -> Self {
        Self { shim, spawned, current: Mutex::default() }
    }

    /// Has the descriptors closed. Does not wait for that; starts a process if necessary.
    pub(crate) fn close(&self, fds: Vec<OwnedFd>) {
        if fds.is_empty() {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // The second attempt is made with a new helper.
        for _ in 0..2 {
            match self.send(&mut current, &fds) {
                // The copies in the helper are the last ones now, or will be when `fds` is dropped.
                Ok(()) => return,
                // The helper hangs, or has exited because it had nothing to do.
                Err(error) => tracing::debug!(%error, "another closer is started"),
            }
            *current = None;
        }
        tracing::warn!("no helper process to close a container's pipes; they are closed here");
    }

    fn send(&self, current: &mut Option<Current>, fds: &[OwnedFd]) -> io::Result<()> {
        let current = match current {
            Some(current) => current,
            none => none.insert(self.begin()?),
        };
        current.hear();
        if current.pending > 0 && current.since.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the closer hangs"));
        }
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        fd_passing::send(&current.socket, b"x", &borrowed)?;
        current.pending += 1;
        if current.pending == 1 {
            current.since = Instant::now();
        }
        Ok(())
    }

    fn begin(&self) -> io::Result<Current> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let mut command = Command::new(&self.shim);
        hide_our_own_manager(&mut command);
        command.arg(shim_options::CLOSER).stdin(OwnedFd::from(theirs));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = self.spawned.spawn(&mut command)?;
        let spawned = self.spawned.clone();
        // A thread waits for the helper, which may exit at any time, also long after this `Closer`
        // is dropped.
        std::thread::Builder::new().name("closer".to_owned()).spawn(move || {
            let _ = child.wait();
            spawned.leave(child.id());
        })?;
        Ok(Current { socket, pending: 0, since: Instant::now() })
    }
}

impl Current {
    /// Reads how many messages the helper has closed since the last call.
    fn hear(&mut self) {
        let mut done = [0; 256];
        while let Ok(count @ 1..) = self.socket.read(&mut done) {
            self.pending = self.pending.saturating_sub(count);
            self.since = Instant::now();
        }
    }
}
