//! Orphans that come to this process when a shim dies, if it is a subreaper (prctl(2)).
//!
//! They are containers' processes, which their watches reap, and strangers that nobody waits for:
//! what a container without a pid namespace left behind. A process that is no subreaper gets none,
//! and then nothing here ever has anything to do.

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

/// The children that this library started, and that others wait for.
#[derive(Debug, Default)]
pub(crate) struct Spawned {
    pids: Mutex<HashSet<i32>>,
    /// Held for reading while a child is between its birth and its entry above.
    spawning: RwLock<()>,
    /// A shim has died, so strangers may come.
    expecting: AtomicBool,
    expected: Notify,
}

impl Spawned {
    /// Starts a command as one of our own.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.enter(|| command.spawn(), |child| child.id())
    }

    /// Enters what `start` starts.
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

    /// One of our own was reaped.
    pub(crate) fn leave(&self, pid: u32) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid.cast_signed());
    }

    /// Waits for the end of a shim of ours and reaps it. Whether it ended well.
    pub(crate) async fn ended(&self, shim: &mut Child) -> bool {
        // Our child keeps its pid until it is reaped, so this is no other process.
        if let Ok(pidfd) = PidFd::open(shim.id().cast_signed())
            && let Ok(pidfd) = reactor::pidfd(Arc::new(pidfd))
        {
            let _ = pidfd.readable().await;
        }
        let ended_well = shim.try_wait().is_ok_and(|end| end.is_some_and(|end| end.success()));
        self.leave(shim.id());
        ended_well
    }

    /// From now on strangers may come; some may have come already.
    pub(crate) fn expect_strangers(&self) {
        self.expecting.store(true, Ordering::Relaxed);
        self.expected.notify_one();
    }

    /// Reaps zombies that are neither ours nor the process of a container.
    fn reap_strangers(&self, containers: impl Fn() -> HashSet<i32>) -> io::Result<()> {
        let _nobody_is_born = self.spawning.write().unwrap_or_else(PoisonError::into_inner);
        let mut strangers = own_children()?;
        strangers
            .retain(|pid| !self.pids.lock().unwrap_or_else(PoisonError::into_inner).contains(pid));
        // After the children: who is taken hold of meanwhile is one of these by now.
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

/// Begins to adopt and reap. `containers` tells the numbers of all processes that are no strangers.
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
                    tracing::warn!(%error, "orphans not reaped");
                }
            }
        }
    });
    Ok(())
}

/// What our manager says to the service that we are, and to nobody below it: runc would take it for the
/// container's.
const OF_OUR_OWN_MANAGER: [&str; 4] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Keeps that from what a command starts.
pub(crate) fn hide_our_own_manager(command: &mut Command) {
    for name in OF_OUR_OWN_MANAGER {
        command.env_remove(name);
    }
}
