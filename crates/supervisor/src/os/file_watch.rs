//! One inotify instance for all watched files. The kernel allows 128 instances per user by default.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use holdfast_sys::reactor;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::os::tasks::Tasks;

/// The events to report for a file: it grew, it was renamed, or one of its names was removed.
pub(crate) const OF_FILE: AddWatchFlags =
    AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_MOVE_SELF).union(AddWatchFlags::IN_ATTRIB);
/// The events to report for a directory: it has a new name.
pub(crate) const OF_DIRECTORY: AddWatchFlags =
    AddWatchFlags::IN_CREATE.union(AddWatchFlags::IN_MOVED_TO);

/// Reports when files change. The inotify instance is created on first use.
#[derive(Debug, Default)]
pub(crate) struct FileWatch(Mutex<Option<Arc<Shared>>>);

#[derive(Debug)]
struct Shared {
    inotify: Inotify,
    /// A duplicate of the inotify descriptor, registered with the Tokio runtime.
    ready: AsyncFd<OwnedFd>,
    /// The watched files. Several readers may follow one file, for which the kernel has only one
    /// watch descriptor.
    files: Mutex<HashMap<WatchDescriptor, Weak<Watched>>>,
}

/// A watched file. The watch ends when its last follower drops this.
#[derive(Debug)]
pub(crate) struct Watched {
    changed: Notify,
    descriptor: WatchDescriptor,
    shared: Weak<Shared>,
}

impl FileWatch {
    /// Watches the file or directory at this path.
    pub(crate) fn watch(
        &self,
        path: &Path,
        flags: AddWatchFlags,
        tasks: &Tasks,
    ) -> io::Result<Arc<Watched>> {
        let shared = {
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &*slot {
                Some(shared) => shared.clone(),
                None => slot.insert(Shared::open(tasks)?).clone(),
            }
        };
        let mut files = shared.files.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = shared.inotify.add_watch(path, flags).map_err(|error| match error {
            // Without this, the message would say that the disk is full.
            Errno::ENOSPC => io::Error::other(
                "no more files can be watched for this user; raise fs.inotify.max_user_watches",
            ),
            other => other.into(),
        })?;
        if let Some(watched) = files.get(&descriptor).and_then(Weak::upgrade) {
            return Ok(watched);
        }
        let watched = Arc::new(Watched {
            changed: Notify::new(),
            descriptor,
            shared: Arc::downgrade(&shared),
        });
        files.insert(descriptor, Arc::downgrade(&watched));
        Ok(watched)
    }
}

impl Shared {
    fn open(tasks: &Tasks) -> io::Result<Arc<Self>> {
        let _reactor = tasks.reactor.enter();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let ready = reactor::readable(inotify.as_fd().try_clone_to_owned()?)?;
        let shared = Arc::new(Self { inotify, ready, files: Mutex::default() });
        let (events, stop) = (shared.clone(), tasks.stop.clone());
        tasks.reactor.spawn(async move { stop.run_until_cancelled(events.run()).await });
        Ok(shared)
    }

    async fn run(&self) {
        while let Ok(mut ready) = self.ready.readable().await {
            let Ok(events) = ready.try_io(|_| Ok(self.inotify.read_events()?)) else { continue };
            let events = events.unwrap_or_default();
            // Dropped only after the lock is released: dropping the last reference to a file takes
            // the same lock.
            let concerned: Vec<Arc<Watched>> = {
                let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
                // After an overflow it is unknown which files changed, so all followers are
                // notified.
                if events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)) {
                    files.values().filter_map(Weak::upgrade).collect()
                } else {
                    events.iter().filter_map(|event| files.get(&event.wd)?.upgrade()).collect()
                }
            };
            concerned.iter().for_each(|watched| watched.changed.notify_waiters());
        }
    }
}

impl Watched {
    /// Returns a future that completes when the file changes after this call (not only after the
    /// first poll).
    pub(crate) fn changed(&self) -> Pin<Box<Notified<'_>>> {
        let mut notified = Box::pin(self.changed.notified());
        notified.as_mut().enable();
        notified
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut files = shared.files.lock().unwrap_or_else(PoisonError::into_inner);
        // Another follower may have begun to watch the file since its last reference was dropped.
        if files.get(&self.descriptor).is_some_and(|watched| watched.strong_count() == 0) {
            files.remove(&self.descriptor);
            // Fails if the file was removed, because then the kernel has removed the watch.
            let _ = shared.inotify.rm_watch(self.descriptor);
        }
    }
}
