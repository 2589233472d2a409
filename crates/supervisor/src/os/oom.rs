//! Learning that the kernel killed a process of a container for want of memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_sys::reactor;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::unix::AsyncFd;

use crate::os::cgroup::Cgroups;
use crate::os::file_watch::{FileWatch, OF_FILE, Watched};
use crate::os::tasks::Tasks;

/// A container's count of such kills, and how its growth is noticed.
#[derive(Debug)]
pub(crate) struct OomWatch {
    cgroups: Cgroups,
    told: u64,
    /// The count when the watch began.
    before: u64,
    notice: Notice,
    /// How often the kernel has given notice. It may not have counted the kill yet.
    noticed: AtomicU64,
    /// How many of those are no reason to look any more.
    looked: AtomicU64,
}

/// After how much time each the count is looked at, once there was notice. What is counted later shows
/// with the next notice, or at the end of the process.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(20), Duration::from_millis(200), Duration::from_secs(2)];

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
    pub(crate) fn begin(files: &FileWatch, tasks: &Tasks, pid: i32) -> io::Result<Self> {
        let cgroups = Cgroups::of(pid)?.of_memory();
        let notice = match (cgroups.memory_events(), cgroups.oom_control()) {
            (Some(file), _) => Notice::File(files.watch(&file, OF_FILE, tasks)?),
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
        Ok(Self {
            cgroups,
            told,
            before: told,
            notice,
            noticed: AtomicU64::new(0),
            looked: AtomicU64::new(0),
        })
    }

    /// Completes when there are kills that [`take_new`](Self::take_new) has not seen.
    pub(crate) async fn happened(&self) {
        loop {
            match &self.notice {
                Notice::File(watched) => {
                    let changed = watched.changed();
                    // Between the last look and this line it may have changed.
                    if self.is_new() {
                        return;
                    }
                    changed.await;
                    if self.is_new() {
                        return;
                    }
                }
                Notice::Event(event) => {
                    let noticed = self.noticed.load(Ordering::Relaxed);
                    if noticed > self.looked.load(Ordering::Relaxed) {
                        for pause in LOOKS {
                            tokio::time::sleep(pause).await;
                            if self.is_new() {
                                return;
                            }
                        }
                        self.looked.store(noticed, Ordering::Relaxed);
                    }
                    let Ok(mut ready) = event.readable().await else {
                        return std::future::pending().await;
                    };
                    let mut count = [0; 8];
                    let read =
                        ready.try_io(|event| Ok(nix::unistd::read(event.get_ref(), &mut count)?));
                    if let Ok(Ok(_)) = read {
                        self.noticed.fetch_add(u64::from_ne_bytes(count), Ordering::Relaxed);
                    }
                }
                Notice::None => return std::future::pending().await,
            }
        }
    }

    fn is_new(&self) -> bool {
        self.kills() > self.told
    }

    /// v1 gives notice when memory is wanting and the kernel begins to look for whom to kill, perhaps
    /// twice before it kills one; of the kill itself nothing tells, so what counts is the count.
    /// Kernels before 4.13 have none, and there each notice is taken for a kill.
    fn kills(&self) -> u64 {
        let noticed = || self.before + self.noticed.load(Ordering::Relaxed);
        self.cgroups.oom_kills().unwrap_or_else(noticed)
    }

    /// Whether there are kills that were not told yet, which then count as told.
    pub(crate) fn take_new(&mut self) -> bool {
        let kills = self.kills();
        let new = kills.saturating_sub(self.told);
        self.told += new;
        // Each kill answers one notice.
        let noticed = self.noticed.load(Ordering::Relaxed);
        let looked = self.looked.load(Ordering::Relaxed);
        self.looked.store(noticed.min(looked + new), Ordering::Relaxed);
        new > 0
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
