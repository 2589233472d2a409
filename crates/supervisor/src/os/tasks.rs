//! Where a supervisor's tasks live, and when they end.

use std::io;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::Error;

/// The runtime on which a supervisor was opened, whoever calls; all of its tasks; and the sign to end.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    /// What waits for descriptors is registered there.
    pub(crate) reactor: Handle,
    tracker: TaskTracker,
    /// Cancelled by a shutdown, when the last handle is dropped, and with the runtime.
    pub(crate) stop: CancellationToken,
}

impl Tasks {
    /// On the runtime of the caller.
    pub(crate) fn new() -> Self {
        let stop = CancellationToken::new();
        let reactor = Handle::current();
        // Dropped with the runtime, whatever it has come to by then.
        let (gone, stopped) = (stop.clone().drop_guard(), stop.clone());
        reactor.spawn(async move {
            stopped.cancelled().await;
            drop(gone);
        });
        Self { reactor, tracker: TaskTracker::new(), stop }
    }

    /// Begins a task.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tracker.spawn_on(task, &self.reactor)
    }

    /// Runs work to its end even if the caller stops waiting for it.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let stop = self.stop.clone();
        let work = async move {
            // Asked within the task: a shutdown waits for every task, and one that it did not wait
            // for begins after it, when the root may be another's.
            if stop.is_cancelled() { Err(Error::Closed) } else { work.await }
        };
        Error::joined(self.spawn(work).await)
    }

    /// Waits until all have ended. They do once `stop` is cancelled.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs file work that may wait for a disk on a thread made for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = match Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await.map_err(io::Error::other),
        // The caller has an executor of another kind.
        Err(_) => {
            let (done, result) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || done.send(work()));
            result.await.map_err(io::Error::other)
        }
    };
    done.flatten()
}
