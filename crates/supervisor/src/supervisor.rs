//! The supervisor itself: what all parts share, and the list of containers.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_state::{
    ContainerId, Cursor, EventKind, ExitRecord, GroupName, Launch, Problem, ProcessDir, ProcessId,
    StateRoot,
};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::adoption;
use crate::cgroup::Moves;
use crate::closer::Closer;
use crate::container::{Container, Force};
use crate::events::{EventStream, Events};
use crate::file_watch::FileWatch;
use crate::groups::Groups;
use crate::keeper::{Keeping, hide_our_own_manager};
use crate::options::{Builder, ContainerOptions, Rotation};
use crate::process::Process;
use crate::reaper::{self, Spawned};
use crate::runtime::Runtime;
use crate::spares::Spares;
use crate::{
    Abilities, ContainerInfo, Error, Limit, LogReader, RuntimeChoice, launch, layout, limits,
    programs, restore,
};

/// The shim's executable.
pub(crate) const SHIM: &str = "holdfast-shim";

/// Hosts containers. Clones share one; when the last is dropped the watching ends, and the
/// containers run on.
#[derive(Debug, Clone)]
pub struct Supervisor {
    core: Arc<Core>,
    report: Arc<RestoreReport>,
    /// Stops all tasks when the last clone goes: they hold the core, so its own drop would not come.
    _stop: Arc<DropGuard>,
}

/// What [`Builder::open`] found on disk.
#[derive(Debug, Clone, Default)]
pub struct RestoreReport {
    /// How many containers were taken up again.
    pub containers: usize,
    /// How long that took.
    pub elapsed: Duration,
    /// What could not be loaded. It was set aside if it was damaged and nothing of it may still run,
    /// and else left where it is. What was set aside at an earlier time is told again.
    pub problems: Vec<Problem>,
}

/// What all parts share. Tasks hold it, and end when `stop` is cancelled.
#[derive(Debug)]
pub(crate) struct Core {
    /// Given free by a shutdown, else with the last task and the last handle of a caller's.
    pub(crate) root: StateRoot,
    pub(crate) boot_id: String,
    pub(crate) abilities: Abilities,
    limits: Vec<Limit>,
    pub(crate) moves: Arc<Moves>,
    pub(crate) shim: PathBuf,
    /// The default runtime's name or path.
    pub(crate) runtime: String,
    pub(crate) start_timeout: Duration,
    /// The soft limit of open files for what shims start.
    pub(crate) container_nofile: Option<u64>,
    /// Of containers that name none.
    pub(crate) shim_group: Option<GroupName>,
    /// Of logs that do not say so themselves.
    pub(crate) log_rotation: Rotation,
    pub(crate) groups: Groups,
    pub(crate) events: Arc<Events>,
    pub(crate) files: FileWatch,
    pub(crate) keeping: Keeping,
    pub(crate) spawned: Arc<Spawned>,
    pub(crate) spares: Spares,
    /// Held for an adoption: when a group dies, all that it had ask at once.
    pub(crate) adoptions: tokio::sync::Semaphore,
    pub(crate) closer: Arc<Closer>,
    /// How many containers have been forgotten since memory was given back.
    forgotten: AtomicUsize,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Where all tasks live, and what waits for descriptors.
    pub(crate) reactor: Handle,
    containers: Mutex<BTreeMap<ContainerId, Arc<ContainerState>>>,
}

/// A container, as the parts share it.
#[derive(Debug)]
pub(crate) struct ContainerState {
    pub(crate) id: ContainerId,
    pub(crate) runtime: Runtime,
    pub(crate) init: Arc<Process>,
    execs: Mutex<BTreeMap<ProcessId, Arc<Process>>>,
    /// Held by whoever changes the container through the runtime: one at a time.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// Held by whoever removes a directory of it.
    removal: tokio::sync::Mutex<()>,
}

/// Why something is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Somebody has asked for it now.
    Asked,
    /// It has ended, and was to go then. Nobody need have heard of its end.
    OfItself,
}

impl ContainerState {
    pub(crate) fn new(id: ContainerId, runtime: Runtime, init: Arc<Process>) -> Self {
        let (execs, operation, removal) = Default::default();
        Self { id, runtime, init, execs, operation, removal }
    }

    pub(crate) fn execs(&self) -> MutexGuard<'_, BTreeMap<ProcessId, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The init and all execs.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        std::iter::once(self.init.clone()).chain(self.execs().values().cloned()).collect()
    }
}

impl Core {
    /// The command of a shim, still without arguments.
    pub(crate) fn shim_command(&self) -> Command {
        let mut command = Command::new(&self.shim);
        hide_our_own_manager(&mut command);
        command
    }

    pub(crate) fn containers(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Arc<ContainerState>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<Arc<ContainerState>> {
        self.containers().get(id).cloned()
    }

    /// The numbers of all processes that are watched.
    pub(crate) fn watched_pids(&self) -> HashSet<i32> {
        let containers = self.containers();
        let processes = containers.values().flat_map(|container| container.processes());
        processes.filter_map(|process| process.handle()).map(|handle| handle.pid).collect()
    }

    /// The directory of this very process, and not only one of its name.
    pub(crate) fn process_dir(&self, process: &Process) -> io::Result<ProcessDir> {
        let dir = self.root.container(&process.container)?.process(&process.id)?;
        // Asked when it is open: another can only have taken the name after this process was marked.
        match process.is_gone() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "it has been deleted")),
            false => Ok(dir),
        }
    }

    /// Whether this very process is known, and not only one of its name.
    fn knows(&self, container: &Arc<ContainerState>, process: &Arc<Process>) -> bool {
        let known = self.container(&container.id);
        known.is_some_and(|known| Arc::ptr_eq(&known, container))
            && (Arc::ptr_eq(&container.init, process)
                || container.execs().get(&process.id).is_some_and(|it| Arc::ptr_eq(it, process)))
    }

    /// Removes the directory of a process, of the whole container for an init, and forgets it. Does
    /// nothing if that has been done: the name may be another's by now.
    pub(crate) async fn forget(
        self: &Arc<Self>,
        container: &Arc<ContainerState>,
        process: &Arc<Process>,
        removal: Removal,
    ) -> io::Result<()> {
        // Until this is done the name is taken, so whoever comes second finds it unknown.
        let _alone = container.removal.lock().await;
        if !self.knows(container, process) {
            return Ok(());
        }
        let core = self.clone();
        let (of, id, has_been) = (container.clone(), process.id.clone(), process.has_been());
        if has_been {
            // From here on the journal alone says how it ended.
            match self.events.sync().await {
                // On a full disk a deletion may be what helps.
                Err(error) if removal == Removal::Asked => {
                    tracing::warn!(container = %container.id, %error, "deleted before its exit is on disk");
                }
                synced => synced?,
            }
        }
        let removed = blocking(move || match id.is_init() {
            true => core.root.remove_container(&of.id),
            false => core.root.remove_process(&core.root.container(&of.id)?, &id),
        })
        .await;
        // What stays on disk stays known, so that it can be deleted again; of a start that came to
        // nothing there is nothing to know.
        if removed.is_err() && has_been {
            return removed;
        }
        if !has_been || !process.id.is_init() {
            // While its id is taken: the next one of this id must not be forgotten.
            self.events.forget(process).await;
        }
        if process.id.is_init() {
            container.processes().iter().for_each(|process| process.set_gone());
            let told = {
                // Told before the id can be another's, and once nothing is left.
                let mut containers = self.containers();
                let last = if has_been { vec![EventKind::Deleted] } else { vec![] };
                let told = self.events.publish(process, last);
                containers.remove(&container.id);
                self.give_back_memory(containers.len());
                told
            };
            told.await;
        } else {
            process.set_gone();
            container.execs().remove(&process.id);
        }
        removed
    }

    /// Once many have gone, and more than are left: the allocator would keep what they took.
    /// Called for each, under the lock of the containers.
    fn give_back_memory(&self, left: usize) {
        const MANY: usize = 500;
        let gone = self.forgotten.fetch_add(1, Ordering::Relaxed) + 1;
        if gone >= MANY.max(left) {
            self.forgotten.store(0, Ordering::Relaxed);
            self.reactor.spawn_blocking(holdfast_sys::memory::trim);
        }
    }

    /// Waits for the deletion of a container that is to be deleted after its exit and has ended: who
    /// has been told of that end may use its id again.
    async fn make_way(self: &Arc<Self>, id: &ContainerId) {
        if let Some(old) = self.container(id).filter(|old| old.init.is_to_go()) {
            // Whether this deletes it or comes second; and if neither can, its id is in use.
            let old = Container::new(self.clone(), old);
            let _ = old.delete_now(Force::No, Removal::OfItself).await;
        }
    }

    /// Deletes what was to be deleted after its exit; again, more and more seldom, where a disk or a
    /// runtime refuses it.
    pub(crate) async fn remove_exited(
        self: &Arc<Self>,
        container: &Arc<ContainerState>,
        process: &Arc<Process>,
    ) {
        let mut pause = Duration::from_secs(1);
        loop {
            let removed = if process.id.is_init() {
                Container::new(self.clone(), container.clone())
                    .delete_now(Force::No, Removal::OfItself)
                    .await
            } else {
                let removed = self.forget(container, process, Removal::OfItself).await;
                removed.map_err(Error::io(format!("remove process {}", process.id)))
            };
            match removed {
                Ok(()) | Err(Error::NotFound(_) | Error::Closed) => return,
                // The whole container was deleted meanwhile.
                Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => return,
                Err(error) => {
                    process.stays();
                    tracing::warn!(container = %process.container, process = %process.id, %error, "not removed after its exit; tried again in {pause:?}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
            pause = (pause * 2).min(Duration::from_secs(300));
        }
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

    /// Begins a task of the supervisor's: on the runtime where it was opened, whoever calls.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn_on(task, &self.reactor)
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

impl Supervisor {
    /// Begins with a state root; see [`Builder`]. That is a directory for Holdfast alone: a new one, an
    /// empty one, or one that has been a state root before. Any other is refused and not touched.
    pub fn builder(root: impl AsRef<Path>) -> Builder {
        Builder::new(root.as_ref())
    }

    pub(crate) async fn open(builder: Builder) -> Result<Self, Error> {
        let began = std::time::Instant::now();
        builder.log_rotation.check()?;
        let shim = programs::find_own(SHIM, builder.shim.as_deref())?;
        let root = tokio::task::spawn_blocking(move || StateRoot::open(&builder.root)).await;
        let root =
            root.map_err(|error| Error::io("open the state root")(io::Error::other(error)))??;
        let (root, events, problem) = {
            let (bounds, reactor) = (builder.journal, Handle::current());
            let opened = blocking(move || {
                let (events, problem) = Events::open(&root, bounds, reactor)?;
                Ok((root, events, problem))
            });
            opened.await.map_err(Error::io("open the journal"))?
        };
        let stop = CancellationToken::new();
        let spawned = Arc::<Spawned>::default();
        let closer = Arc::new(Closer::new(shim.clone(), spawned.clone()));
        let abilities = Abilities::probe();
        let core = Arc::new(Core {
            root,
            boot_id: holdfast_sys::proc::boot_id().map_err(Error::io("read the boot id"))?,
            limits: limits::read(&abilities),
            abilities,
            moves: Arc::<Moves>::default(),
            shim,
            runtime: builder.runtime,
            start_timeout: builder.start_timeout,
            container_nofile: builder.container_nofile,
            shim_group: builder.shim_group,
            log_rotation: builder.log_rotation,
            groups: Groups::default(),
            events: Arc::new(events),
            files: FileWatch::default(),
            keeping: Keeping::new(builder.keeper, builder.kept),
            spawned,
            spares: Spares::new(builder.spare_shims),
            adoptions: tokio::sync::Semaphore::new(adoption::AT_ONCE),
            closer,
            forgotten: AtomicUsize::new(0),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
            reactor: Handle::current(),
            containers: Mutex::default(),
        });
        // Dropped with the runtime, whatever it has come to by then.
        let gone = stop.clone().drop_guard();
        let stopped = stop.clone();
        core.reactor.spawn(async move {
            stopped.cancelled().await;
            drop(gone);
        });
        if builder.subreaper {
            reaper::become_subreaper(&core).map_err(Error::io("become a subreaper"))?;
        }
        let mut problems = restore::restore(&core).await?;
        problems.extend(problem);
        let containers = core.containers().len();
        let report = Arc::new(RestoreReport { containers, elapsed: began.elapsed(), problems });
        Ok(Self { core, report, _stop: Arc::new(stop.drop_guard()) })
    }

    /// The state root.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.core.root.path()
    }

    /// What was found on disk when this was opened.
    #[must_use]
    pub fn restore_report(&self) -> &RestoreReport {
        &self.report
    }

    /// What this kernel can do for it, as it was when it was opened.
    #[must_use]
    pub fn abilities(&self) -> &Abilities {
        &self.core.abilities
    }

    /// What bounds the number of containers, the tightest first, as it was when it was opened.
    #[must_use]
    pub fn limits(&self) -> &[Limit] {
        &self.core.limits
    }

    /// Which OCI runtime containers get that name none, and why.
    #[must_use]
    pub fn default_runtime(&self) -> RuntimeChoice {
        if self.core.runtime == programs::AUTO {
            return programs::choose_runtime();
        }
        let (program, reason) = match programs::find_runtime(&self.core.runtime) {
            Ok(program) => (Some(program), "asked for when the supervisor was opened".to_owned()),
            Err(error) => (None, error.to_string()),
        };
        RuntimeChoice { program, reason }
    }

    /// Makes a container, whose program then waits for [`Container::start`].
    pub async fn create(&self, options: ContainerOptions) -> Result<Container, Error> {
        self.launch(options, Launch::Create).await.map(|(container, _)| container)
    }

    /// Makes a container and starts it, in one go.
    pub async fn run(&self, options: ContainerOptions) -> Result<Container, Error> {
        self.launch(options, Launch::Run).await.map(|(container, _)| container)
    }

    /// As [`run`](Self::run), with a reader of the output that misses nothing, however soon the
    /// container exits and is removed.
    pub async fn run_attached(
        &self,
        options: ContainerOptions,
    ) -> Result<(Container, LogReader), Error> {
        self.launch(options, Launch::Run).await
    }

    async fn launch(
        &self,
        options: ContainerOptions,
        launch: Launch,
    ) -> Result<(Container, LogReader), Error> {
        let core = self.core.clone();
        self.core
            .finish(async move {
                core.moves.prepare();
                if let Some(id) = &options.id {
                    core.make_way(id).await;
                }
                let (container, begun, log) = {
                    let core = core.clone();
                    let begun = tokio::task::spawn_blocking(move || {
                        let (container, job) = layout::container(&core, &options, launch)?;
                        // Nothing can be known by this id: its directory was not there before.
                        core.containers().insert(container.id.clone(), container.clone());
                        match LogReader::attached(&core, &container.init) {
                            Ok(log) => {
                                let begun = launch::begin(&core, &container, &job);
                                Ok((container, begun, log))
                            }
                            Err(error) => {
                                // Nothing has been started that would clear it away.
                                let _ = core.root.remove_container(&container.id);
                                core.containers().remove(&container.id);
                                Err(error)
                            }
                        }
                    })
                    .await;
                    Error::joined(begun)?
                };
                launch::launch(&core, begun).await?;
                Ok((Container::new(core, container), log))
            })
            .await
    }

    /// A container by its id.
    pub fn get(&self, id: &ContainerId) -> Result<Container, Error> {
        let found = self.core.container(id).ok_or_else(|| Error::NotFound(id.clone()))?;
        Ok(Container::new(self.core.clone(), found))
    }

    /// How the last container of this id that is known of ended, as far back as events are kept: also
    /// one that has been removed, under an earlier supervisor of this root perhaps.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if no end of such a container is known, [`Error::Io`] if the journal can't be
    /// read.
    pub async fn past_exit(&self, id: &ContainerId) -> Result<ExitRecord, Error> {
        let found = self.core.events.last_exit(id).await.map_err(Error::io("read the journal"))?;
        found.ok_or_else(|| Error::NotFound(id.clone()))
    }

    /// All containers, ordered by id; but for those that are being deleted by themselves, as long as
    /// that meets no obstacle.
    #[must_use]
    pub fn list(&self) -> Vec<Container> {
        self.core
            .containers()
            .values()
            .filter(|container| !container.init.is_going())
            .map(|c| Container::new(self.core.clone(), c.clone()))
            .collect()
    }

    /// All containers as they are now.
    #[must_use]
    pub fn infos(&self) -> Vec<ContainerInfo> {
        self.list().iter().map(Container::info).collect()
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> EventStream {
        self.events_since(self.core.events.cursor())
    }

    /// What has happened after this place, as far back as that is kept, and what happens from now on.
    /// [`Cursor::BEGINNING`] stands before all that is kept.
    ///
    /// ```no_run
    /// # async fn example(supervisor: holdfast_supervisor::Supervisor) -> std::io::Result<()> {
    /// use holdfast_supervisor::Cursor;
    ///
    /// let stored = std::fs::read_to_string("cursor").ok();
    /// let cursor = stored.and_then(|text| text.parse().ok()).unwrap_or(Cursor::BEGINNING);
    /// let mut events = supervisor.events_since(cursor);
    /// while let Some(item) = events.next().await {
    ///     match item {
    ///         Ok(event) => println!("{} {:?}", event.container, event.kind),
    ///         Err(gap) => eprintln!("{gap}"),
    ///     }
    ///     // Stored after the work: what came last may come again after a crash.
    ///     std::fs::write("cursor", events.cursor().to_string())?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn events_since(&self, cursor: Cursor) -> EventStream {
        EventStream::new(&self.core.events, &self.core.stop, cursor)
    }

    /// Ends the watching, and with it every wait and every stream. The containers run on.
    pub fn stop(&self) {
        self.core.stop.cancel();
    }

    /// Ends the watching and waits until all that had been begun is finished. The containers run on;
    /// the state root is free afterwards, whoever still holds a [`Container`].
    pub async fn shutdown(self) {
        self.stop();
        self.core.tasks.close();
        self.core.tasks.wait().await;
        self.core.spares.dismiss();
        self.core.events.close().await;
        self.core.root.release();
    }
}
