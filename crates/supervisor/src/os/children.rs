//! Child processes: those that this library starts, and the orphans that become children of this
//! process when a shim dies, if it is a subreaper (prctl(2)).
//!
//! An orphan is either the process of a container, which its watch task reaps, or a stranger for
//! which nobody waits: a process that a container without a pid namespace left behind. A process
//! that is not a subreaper gets no orphans, and then nothing is done here for strangers.

use std::collections::HashSet;
use std::io;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use holdfast_sys::proc::{Stat, own_children};
use holdfast_sys::{PidFd, reactor, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::os::tasks::{Tasks, blocking};

/// The child processes that this library started and waits for elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Spawned {
    pids: Mutex<HashSet<i32>>,
    /// Locked for reading between the start of a child process and its entry in `pids`.
    spawning: RwLock<()>,
    /// Whether strangers may arrive, because a shim has died or a runtime command was killed.
    expecting: AtomicBool,
    expected: Notify,
}

impl Spawned {
    /// Starts a command and registers it as a child of this library.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.enter(|| command.spawn(), |child| child.id())
    }

    /// Registers the child process that `start` starts.
    pub(crate) fn enter<T>(
        &self,
        start: impl FnOnce() -> io::Result<T>,
        pid: impl FnOnce(&T) -> u32,
    ) -> io::Result<T> {
        let _spawning = self.spawning.read().unwrap_or_else(PoisonError::into_inner);
        let child = start()?;
        let pid = pid(&child).cast_signed();
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Ok(child)
    }

    /// Removes a child process that has been reaped.
    pub(crate) fn leave(&self, pid: u32) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid.cast_signed());
    }

    /// Waits until a shim of this supervisor exits, and reaps it. Returns whether its exit status
    /// is 0. Cancel safe.
    pub(crate) async fn ended(&self, shim: &mut Child) -> bool {
        // A child keeps its pid until it is reaped, so this pidfd is that of the shim.
        if let Ok(pidfd) = PidFd::open(shim.id().cast_signed())
            && let Ok(pidfd) = reactor::pidfd(Arc::new(pidfd))
        {
            let _ = pidfd.readable().await;
        }
        let ended_well = shim.try_wait().is_ok_and(|end| end.is_some_and(|end| end.success()));
        self.leave(shim.id());
        ended_well
    }

    /// Notes that strangers may arrive from now on, or have arrived already.
    pub(crate) fn expect_strangers(&self) {
        self.expecting.store(true, Ordering::Relaxed);
        self.expected.notify_one();
    }

    /// Reaps zombies that are neither children of this library nor processes of a container.
    fn reap_strangers(&self, containers: impl Fn() -> HashSet<i32>) -> io::Result<()> {
        let _nobody_is_born = self.spawning.write().unwrap_or_else(PoisonError::into_inner);
        let mut strangers = own_children()?;
        strangers
            .retain(|pid| !self.pids.lock().unwrap_or_else(PoisonError::into_inner).contains(pid));
        // Read after the list of children: a container process of which the supervisor has taken
        // hold in between is in this set by now.
        let containers = containers();
        for pid in &strangers {
            let is_zombie = || Stat::read(*pid).is_ok_and(|stat| stat.state == b'Z');
            if !containers.contains(pid) && is_zombie() {
                wait::reap(wait::Child::Pid(*pid))?;
            }
        }
        self.expecting.store(!strangers.is_empty(), Ordering::Relaxed);
        Ok(())
    }
}

/// Makes this process a subreaper, and begins to reap strangers. `containers` returns the pids of
/// all container processes.
pub(crate) fn become_subreaper(
    spawned: &Arc<Spawned>,
    tasks: &Tasks,
    containers: impl Fn() -> HashSet<i32> + Send + Sync + 'static,
) -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut children = signal(SignalKind::child())?;
    let (spawned, stop, containers) = (spawned.clone(), tasks.stop.clone(), Arc::new(containers));
    tasks.spawn(async move {
        loop {
            tokio::select! {
                _ = children.recv() => {}
                () = spawned.expected.notified() => {}
                () = stop.cancelled() => return,
            }
            if spawned.expecting.load(Ordering::Relaxed) {
                let (spawned, containers) = (spawned.clone(), containers.clone());
                let reaped = blocking(move || spawned.reap_strangers(&*containers)).await;
                if let Err(error) = reaped {
                    tracing::warn!(%error, "orphans were not reaped");
                }
            }
        }
    });
    Ok(())
}

/// Environment variables by which our service manager addresses this service. Processes that we
/// start must not inherit them: runc would apply them to the container.
const OF_OUR_OWN_MANAGER: [&str; 4] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Removes these variables from the environment of a command.
pub(crate) fn hide_our_own_manager(command: &mut Command) {
    for name in OF_OUR_OWN_MANAGER {
        command.env_remove(name);
    }
}
