//! Learning that the kernel killed a process of a container for want of memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use holdfast_sys::reactor;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::unix::AsyncFd;

use crate::cgroup::Cgroups;
use crate::file_watch::Watched;
use crate::supervisor::Core;

/// How often, at the most, and how soon the count is looked at after a notice, each time after twice
/// the time: for two seconds in all.
const LOOKS: u32 = 11;
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// A container's count of such kills, and how its growth is noticed.
#[derive(Debug)]
pub(crate) struct OomWatch {
    cgroups: Cgroups,
    told: u64,
    notice: Notice,
    /// How often the count is still to be looked at for the kill that a notice announced.
    looks: AtomicU32,
}

#[derive(Debug)]
enum Notice {
    /// cgroup v2: a file that is modified.
    File(Arc<Watched>),
    /// cgroup v1: an eventfd that the kernel writes to.
    Event(AsyncFd<OwnedFd>),
    /// Neither; the count is looked at when the process has ended.
    None,
}

impl OomWatch {
    /// Begins with the count as it is: what was before has been told, or is not ours.
    pub(crate) fn begin(core: &Core, pid: i32) -> io::Result<Self> {
        let cgroups = Cgroups::of(pid)?;
        let notice = match (cgroups.memory_events(), cgroups.oom_control()) {
            (Some(file), _) => Notice::File(core.files.watch(&file, &core.stop)?),
            (None, Some((control, register))) => match register_event(&control, &register) {
                Ok(event) => Notice::Event(event),
                // A kernel that has the files and not this old interface.
                Err(error) => {
                    tracing::debug!(%error, "no notification of OOM kills");
                    Notice::None
                }
            },
            (None, None) => Notice::None,
        };
        let told = cgroups.oom_kills().unwrap_or(0);
        Ok(Self { cgroups, told, notice, looks: AtomicU32::new(0) })
    }

    /// Completes when there are kills that [`take_new`](Self::take_new) has not seen.
    pub(crate) async fn happened(&self) {
        loop {
            match &self.notice {
                Notice::File(watched) => {
                    let grown = watched.grown();
                    // Between the last look and this line it may have grown.
                    if self.is_new() {
                        return;
                    }
                    grown.await;
                }
                Notice::Event(event) => {
                    if self.is_new() || self.follows().await {
                        return;
                    }
                    let Ok(mut ready) = event.readable().await else {
                        return std::future::pending().await;
                    };
                    let mut count = [0; 8];
                    let read =
                        ready.try_io(|event| Ok(nix::unistd::read(event.get_ref(), &mut count)?));
                    if let Ok(Ok(_)) = read {
                        self.looks.store(LOOKS, Ordering::Relaxed);
                    }
                }
                Notice::None => return std::future::pending().await,
            }
            if self.is_new() {
                return;
            }
        }
    }

    /// Whether a kill follows a notice. v1 gives notice when memory is wanting, just before the
    /// kernel looks for whom to kill; of the kill itself nothing tells. Cancel safe: what is left to
    /// be looked at is looked at by the next call.
    async fn follows(&self) -> bool {
        loop {
            let left = self.looks.load(Ordering::Relaxed);
            if left == 0 {
                return false;
            }
            tokio::time::sleep(FIRST_LOOK * (1 << (LOOKS - left))).await;
            self.looks.store(left - 1, Ordering::Relaxed);
            if self.is_new() {
                return true;
            }
        }
    }

    fn is_new(&self) -> bool {
        self.cgroups.oom_kills().is_some_and(|kills| kills > self.told)
    }

    /// Whether there are kills that were not told yet, which then count as told.
    pub(crate) fn take_new(&mut self) -> bool {
        let new = self.is_new();
        self.told = self.cgroups.oom_kills().unwrap_or(self.told);
        new
    }
}

/// `EVENTFD CONTROL` into `cgroup.event_control` (the kernel's cgroup-v1/memory.rst, section 10).
fn register_event(
    control: &std::path::Path,
    register: &std::path::Path,
) -> io::Result<AsyncFd<OwnedFd>> {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let control = File::open(control)?;
    let mut register = File::options().write(true).open(register)?;
    // In one write: the kernel takes each for a whole line.
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    register.write_all(line.as_bytes())?;
    reactor::readable(event.as_fd().try_clone_to_owned()?)
}
