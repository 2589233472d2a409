//! The tasks of a supervisor: where they run, and when they end.

use std::io;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::Error;

/// The Tokio runtime on which the supervisor was opened, whichever thread calls it; all of its
/// tasks; and the token that ends them.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    /// The Tokio runtime with which all descriptors are registered.
    pub(crate) reactor: Handle,
    tracker: TaskTracker,
    /// Cancelled by a shutdown, when the last handle is dropped, and when the Tokio runtime ends.
    pub(crate) stop: CancellationToken,
    /// The state root is in memory: an operation on a small file in it waits for no disk, and takes less time than
    /// to wake a thread.
    pub(crate) root_in_memory: bool,
}

impl Tasks {
    /// Uses the Tokio runtime of the caller.
    pub(crate) fn new(root_in_memory: bool) -> Self {
        let stop = CancellationToken::new();
        let reactor = Handle::current();
        // This task is dropped with the Tokio runtime, in whatever state it is, and so cancels
        // `stop`.
        let (gone, stopped) = (stop.clone().drop_guard(), stop.clone());
        reactor.spawn(async move {
            stopped.cancelled().await;
            drop(gone);
        });
        Self { reactor, tracker: TaskTracker::new(), stop, root_in_memory }
    }

    /// Spawns a task.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tracker.spawn_on(task, &self.reactor)
    }

    /// Runs `work` to completion even if the caller drops the future.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let stop = self.stop.clone();
        let work = async move {
            // Checked within the task: a shutdown waits for every registered task. A task that was
            // registered too late runs after the shutdown, when the state root may belong to
            // another supervisor.
            if stop.is_cancelled() { Err(Error::Closed) } else { work.await }
        };
        Error::joined(self.spawn(work).await)
    }

    /// Runs operations on small files in the state root: on a thread for blocking work, unless none of them can
    /// block.
    pub(crate) async fn in_root<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.root_in_memory { work() } else { blocking(work).await }
    }

    /// Waits until all tasks have ended, which they do once `stop` is cancelled.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs file operations that may block on the disk on a thread for blocking work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = match Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await.map_err(io::Error::other),
        // The caller uses an executor other than Tokio.
        Err(_) => {
            let (done, result) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || done.send(work()));
            result.await.map_err(io::Error::other)
        }
    };
    done.flatten()
}
