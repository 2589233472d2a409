//! Detects that the OOM killer killed a process of a container.

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

/// The OOM kill count of a container, and how its changes are noticed.
#[derive(Debug)]
pub(crate) struct OomWatch {
    cgroups: Cgroups,
    told: u64,
    /// The count when the watch began.
    before: u64,
    notice: Notice,
    /// How many notifications the kernel has sent. It may not have counted the kill yet.
    noticed: AtomicU64,
    /// How many of these notifications are done with: they are no reason to read the count again.
    looked: AtomicU64,
}

/// The pauses before each reading of the count after a notification. A kill that is counted later
/// is found at the next notification, or at the exit of the process.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(20), Duration::from_millis(200), Duration::from_secs(2)];

#[derive(Debug)]
enum Notice {
    /// cgroup v2: a file that is modified.
    File(Arc<Watched>),
    /// cgroup v1: an eventfd that the kernel writes to.
    Event(AsyncFd<OwnedFd>),
    /// Neither; the count is read when the process has exited.
    None,
}

impl OomWatch {
    /// Begins with the current count: earlier kills were published before, or do not belong to this
    /// container.
    pub(crate) fn begin(files: &FileWatch, tasks: &Tasks, pid: i32) -> io::Result<Self> {
        let cgroups = Cgroups::of(pid)?.of_memory();
        let notice = match (cgroups.memory_events(), cgroups.oom_control()) {
            (Some(file), _) => Notice::File(files.watch(&file, OF_FILE, tasks)?),
            (None, Some((control, register))) => match register_event(&control, &register) {
                Ok(event) => Notice::Event(event),
                // A kernel that has the files, but not this old interface.
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

    /// Completes when there are kills that [`take_new`](Self::take_new) has not reported.
    pub(crate) async fn happened(&self) {
        loop {
            match &self.notice {
                Notice::File(watched) => {
                    let changed = watched.changed();
                    // The file may have changed between the last reading and the call of `changed`.
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

    /// Returns the number of kills. cgroup v1 sends a notification when memory runs out and the
    /// kernel begins to choose a process to kill, perhaps twice before it kills one. It sends none
    /// for the kill itself, so the count decides. Kernels before 4.13 have no count; there each
    /// notification is taken for a kill.
    fn kills(&self) -> u64 {
        let noticed = || self.before + self.noticed.load(Ordering::Relaxed);
        self.cgroups.oom_kills().unwrap_or_else(noticed)
    }

    /// Returns whether there are kills that were not reported yet, and marks them as reported.
    pub(crate) fn take_new(&mut self) -> bool {
        let kills = self.kills();
        let new = kills.saturating_sub(self.told);
        self.told += new;
        // Each kill accounts for one notification.
        let noticed = self.noticed.load(Ordering::Relaxed);
        let looked = self.looked.load(Ordering::Relaxed);
        self.looked.store(noticed.min(looked + new), Ordering::Relaxed);
        new > 0
    }
}

/// Writes `EVENTFD CONTROL` to `cgroup.event_control` (section 10 of the kernel's
/// cgroup-v1/memory.rst).
fn register_event(
    control: &std::path::Path,
    register: &std::path::Path,
) -> io::Result<AsyncFd<OwnedFd>> {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let control = File::open(control)?;
    let mut register = File::options().write(true).open(register)?;
    // In one write(2), because the kernel takes each write for a whole line.
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    register.write_all(line.as_bytes())?;
    reactor::readable(event.as_fd().try_clone_to_owned()?)
}
