//! The task that restarts containers, and the operations of users that it must know of.
//!
//! One task follows the events. Each container that waits for its restart has a task of its own, which is
//! woken by the next exit of the container: so no exit is missed, and no container delays another. A
//! restart and an operation of a user hold the lock of the container; after it is acquired, all is
//! decided again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use holdfast_supervisor::{
    Container, ContainerId, Error, ErrorKind, EventKind, ExitRecord, Incarnation, LogReader,
    Status, Supervisor,
};
use tokio::sync::{Notify, OwnedMutexGuard, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::decide::{Backoff, Decision, decide, last_run, left};
use crate::definitions::Definitions;
use crate::lasting;
use crate::policy::{Marks, SINCE, STOPPED};

/// How many restarts are in progress at the same time.
const AT_ONCE: usize = 16;

/// Restarts the containers of a supervisor by their policies. Starts, stops and restarts that a user asks
/// for must go through this handle; those through [`Container`] alone are not told apart from an exit
/// or a restart of the policy. With [`Definitions`], so must creations and deletions. Dropping the handle
/// ends the restarts; the containers keep running.
///
/// The labels of a container with a policy are changed by these operations. A caller that changes them
/// with [`Container::set_labels`] must keep the labels of this crate.
#[derive(Debug)]
pub struct Restarts {
    pub(crate) shared: Arc<Shared>,
    /// Ends all tasks when the handle is dropped.
    _stop: DropGuard,
}

/// One life of a container: a later container of the same id is another one.
pub(crate) type Life = (ContainerId, Option<Incarnation>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) supervisor: Supervisor,
    pub(crate) definitions: Option<Definitions>,
    /// The definitions from which no container could be made after the reboot, and why.
    pub(crate) failed: Mutex<BTreeMap<String, String>>,
    backoff: Backoff,
    /// The containers whose exit is being dealt with, and what wakes their tasks.
    waiting: Mutex<HashMap<Life, Arc<Notify>>>,
    /// The locks that somebody holds or waits for.
    locks: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    pub(crate) room: Semaphore,
    stop: CancellationToken,
    done: AtomicU64,
}

impl Restarts {
    /// Begins to restart containers: those that exit from now on, and those that exited while there was
    /// no supervisor. Must be called in a Tokio runtime.
    #[must_use]
    pub fn begin(supervisor: Supervisor, backoff: Backoff) -> Self {
        Self::of(Shared::new(supervisor, backoff, None))
    }

    /// Does what [`begin`](Self::begin) does, with definitions: containers with the policies
    /// [`Always`](crate::RestartPolicy::Always) and [`UnlessStopped`](crate::RestartPolicy::UnlessStopped)
    /// outlive a reboot. If this is the first supervisor of the state root since the boot, they are
    /// created again and started, in the background.
    pub async fn begin_with(
        supervisor: Supervisor,
        backoff: Backoff,
        definitions: Definitions,
    ) -> Self {
        let shared = Shared::new(supervisor, backoff, Some(definitions.clone()));
        let is_first = lasting::begin(&shared, &definitions).await;
        if is_first {
            let after_boot = lasting::after_boot(shared.clone(), definitions);
            tokio::spawn(shared.stop.clone().run_until_cancelled_owned(after_boot));
        }
        Self::of(shared)
    }

    fn of(shared: Arc<Shared>) -> Self {
        let stop = shared.stop.clone().drop_guard();
        tokio::spawn(shared.clone().follow());
        Self { shared, _stop: stop }
    }

    /// Returns how many restarts have succeeded since this handle was made.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Starts a container for a user, which resets the count of its restarts. If the caller drops the
    /// future, the start continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::start`], and of [`Container::set_labels`] if the container has a
    /// policy.
    pub async fn start(&self, container: &Container) -> Result<(), Error> {
        self.for_user(container, |container| async move { container.start().await }).await
    }

    /// Does what [`start`](Self::start) does, and also returns a reader of the output; see
    /// [`Container::start_attached`]. If the caller drops the future, the start continues in the
    /// background.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::start_attached`], and of [`Container::set_labels`] if the container has a
    /// policy.
    pub async fn start_attached(&self, container: &Container) -> Result<LogReader, Error> {
        self.for_user(container, |container| async move { container.start_attached().await }).await
    }

    /// Begins a run for a user, in the background if there is a policy to note it for.
    async fn for_user<T: Send + 'static, F>(
        &self,
        container: &Container,
        begin: impl FnOnce(Container) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (shared, container) = (self.shared.clone(), container.clone());
        let begun = begin(container.clone());
        if Marks::of(&container.labels()).is_none() {
            return begun.await;
        }
        finish(async move {
            let lock = shared.lock(container.id()).await;
            let begun = shared.by_user(&container, begun).await;
            shared.unlock(lock);
            begun
        })
        .await
    }

    /// Stops and starts a container for a user, which resets the count of its restarts. If the caller
    /// drops the future, this continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::restart`], and of [`Container::set_labels`] if the container has a
    /// policy.
    pub async fn restart(
        &self,
        container: &Container,
        signal: i32,
        grace: Duration,
    ) -> Result<(), Error> {
        let restart = |container: Container| async move { container.restart(signal, grace).await };
        self.for_user(container, restart).await
    }

    /// Stops a container for a user: its policy does not apply until a user starts it. This is on
    /// disk before the signal is sent. If the caller drops the future, the stop continues in the
    /// background.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::stop`], and of [`Container::set_labels`] if the container has a
    /// policy.
    pub async fn stop(
        &self,
        container: &Container,
        signal: i32,
        grace: Duration,
    ) -> Result<ExitRecord, Error> {
        if Marks::of(&container.labels()).is_none() {
            return container.stop(signal, grace).await;
        }
        let (shared, container) = (self.shared.clone(), container.clone());
        finish(async move {
            let lock = match shared.try_lock(container.id()) {
                Some(lock) => lock,
                None => {
                    // Cancels the start that holds the lock, if it has begun. What matters is the
                    // stop below.
                    let _ = container.stop(signal, grace).await;
                    shared.lock(container.id()).await
                }
            };
            let run = container.info().run;
            let stopped = match mark(&container, STOPPED, run).await {
                Ok(()) => {
                    shared.note_stopped(&container, true).await;
                    container.stop(signal, grace).await
                }
                Err(error) => Err(error),
            };
            shared.unlock(lock);
            stopped
        })
        .await
    }
}

/// Runs `work` to completion even if the caller drops the future.
pub(crate) async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    // It ends early only if it panics or the runtime is being shut down.
    tokio::spawn(work).await.unwrap_or(Err(Error::Closed))
}

async fn mark(container: &Container, label: &str, run: u32) -> Result<(), Error> {
    set_label(container, label, run.to_string()).await
}

/// Changes one label. The caller holds the lock of the container, so that no other change is lost.
pub(crate) async fn set_label(
    container: &Container,
    label: &str,
    value: String,
) -> Result<(), Error> {
    let mut labels = container.labels();
    labels.insert(label.to_owned(), value);
    container.set_labels(labels).await
}

/// The lock of a container, while it is held.
pub(crate) struct Lock {
    id: ContainerId,
    guard: OwnedMutexGuard<()>,
}

impl Shared {
    fn new(
        supervisor: Supervisor,
        backoff: Backoff,
        definitions: Option<Definitions>,
    ) -> Arc<Self> {
        Arc::new(Self {
            supervisor,
            definitions,
            failed: Mutex::default(),
            backoff,
            waiting: Mutex::default(),
            locks: Mutex::default(),
            room: Semaphore::new(AT_ONCE),
            stop: CancellationToken::new(),
            done: AtomicU64::new(0),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Life, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_of(&self, id: &ContainerId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(id.clone()).or_default().clone()
    }

    pub(crate) async fn lock(&self, id: &ContainerId) -> Lock {
        Lock { id: id.clone(), guard: self.lock_of(id).lock_owned().await }
    }

    fn try_lock(&self, id: &ContainerId) -> Option<Lock> {
        let guard = self.lock_of(id).try_lock_owned().ok()?;
        Some(Lock { id: id.clone(), guard })
    }

    /// Releases a lock, and forgets it if nobody else wants it.
    pub(crate) fn unlock(&self, lock: Lock) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        drop(lock.guard);
        if let Entry::Occupied(entry) = locks.entry(lock.id)
            && Arc::strong_count(entry.get()) == 1
        {
            entry.remove();
        }
    }

    /// Begins a run for a user. The labels are written first: a run that they name and that then does
    /// not begin is one that the policy may begin in place of the user.
    pub(crate) async fn by_user<T>(
        &self,
        container: &Container,
        begin: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (info, labels) = (container.info(), container.labels());
        // A container that was never started begins the run that it has.
        if !matches!(info.status, Status::Created | Status::Creating) {
            let next = last_run(&info, &container.runs().await?).saturating_add(1);
            mark(container, SINCE, next).await?;
        }
        let was_stopped = self.note_stopped(container, false).await;
        let begun = begin.await;
        if begun.is_err() {
            if container.set_labels(labels).await.is_err() {
                tracing::debug!(container = %container.id(), "the labels of a start that failed stay");
            }
            self.note_stopped(container, was_stopped).await;
        }
        begun
    }

    /// Notes in the definition of a container whether a user has stopped it. Returns whether that was
    /// noted before. A disk that refuses this does not keep anyone from stopping a container.
    async fn note_stopped(&self, container: &Container, stopped: bool) -> bool {
        let Some(definitions) = self.definitions_of(container) else { return stopped };
        definitions.set_stopped(container.id(), stopped).await.unwrap_or_else(|error| {
            tracing::warn!(container = %container.id(), stopped, %error, "not noted for after a reboot");
            stopped
        })
    }

    /// Returns where the definition of a container is, if its policy wants that it has one.
    pub(crate) fn definitions_of(&self, container: &Container) -> Option<&Definitions> {
        let marks = Marks::of(&container.labels())?;
        self.definitions.as_ref().filter(|_| marks.policy.outlives_reboot())
    }

    async fn follow(self: Arc<Self>) {
        let exits = |kind: &EventKind| matches!(kind, EventKind::Exited { .. });
        let consider = |container: &Container| self.consider(container);
        follow(&self.supervisor, &self.stop, exits, consider, |life| self.forget(life)).await;
    }

    /// Deals with a container that may have exited: wakes its task, or begins one.
    fn consider(self: &Arc<Self>, container: &Container) {
        if Marks::of(&container.labels()).is_none() {
            return;
        }
        let life = (container.id().clone(), container.info().incarnation);
        match self.waiting().entry(life.clone()) {
            Entry::Occupied(task) => task.get().notify_one(),
            Entry::Vacant(task) => {
                let woken = task.insert(Arc::default()).clone();
                tokio::spawn(self.clone().restart(container.clone(), life, woken));
            }
        }
    }

    /// Wakes the task of a container that was deleted, which then ends.
    fn forget(&self, life: &Life) {
        if let Some(task) = self.waiting().get(life) {
            task.notify_one();
        }
    }

    /// Restarts a container as often as its policy wants it by now.
    async fn restart(self: Arc<Self>, container: Container, life: Life, woken: Arc<Notify>) {
        let mut failed = false;
        loop {
            let Some((delay, ended)) = self.wanted(&container).await else {
                let mut waiting = self.waiting();
                // It may have been started, and have exited again, since that was decided.
                if woken.notified().now_or_never().is_none() {
                    waiting.remove(&life);
                    return;
                }
                continue;
            };
            // A start that failed has no time on disk.
            let wait = if failed { delay } else { left(&ended.time, delay, SystemTime::now()) };
            failed = false;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = woken.notified() => continue,
                () = self.stop.cancelled() => return,
            }
            match self.start(&container).await {
                Ok(true) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    let run = container.info().run;
                    tracing::info!(container = %container.id(), run, last = %ended.status, "restarted by its policy");
                }
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) => {
                    tracing::warn!(container = %container.id(), %error, "a restart by the policy failed");
                    failed = true;
                }
            }
        }
    }

    /// Returns how long after which exit the policy wants the container to be started.
    async fn wanted(&self, container: &Container) -> Option<(Duration, ExitRecord)> {
        let marks = Marks::of(&container.labels())?;
        let info = container.info();
        if info.status != Status::Stopped {
            return None;
        }
        let past = match container.runs().await {
            Ok(past) => past,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(container = %container.id(), %error, "its restarts so far are not known");
                Vec::new()
            }
        };
        match decide(&marks, &info, &past, self.backoff) {
            Decision::Stays => None,
            Decision::Starts(delay) => Some((delay, info.exit?)),
        }
    }

    /// Starts the container if its policy still wants that. Returns whether it did.
    async fn start(&self, container: &Container) -> Result<bool, Error> {
        // Never closed, so this is no error.
        let _room = self.room.acquire().await;
        let lock = self.lock(container.id()).await;
        let started = match self.wanted(container).await {
            None => Ok(false),
            Some(_) => container.start().await.map(|()| true),
        };
        self.unlock(lock);
        started
    }
}

/// Considers all containers, and then each one whose init process has such an event, until the supervisor
/// stops. Forgets those that are deleted.
pub(crate) async fn follow(
    supervisor: &Supervisor,
    stop: &CancellationToken,
    matters: impl Fn(&EventKind) -> bool,
    consider: impl Fn(&Container),
    forget: impl Fn(&Life),
) {
    // From before the list is read: no event is in neither.
    let mut events = supervisor.events();
    let all = || supervisor.list().iter().for_each(&consider);
    all();
    loop {
        let item = tokio::select! {
            item = events.next() => item,
            () = stop.cancelled() => return,
        };
        let Some(item) = item else { return };
        match item {
            Ok(event) if event.process.is_init() && matters(&event.kind) => {
                if let Ok(container) = supervisor.get(&event.container) {
                    consider(&container);
                }
            }
            Ok(event) if event.kind == EventKind::Deleted => {
                forget(&(event.container, Some(event.incarnation)));
            }
            Ok(_) => {}
            // This was too slow, and there may have been such events.
            Err(_) => all(),
        }
    }
}
