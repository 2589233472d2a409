//! The public handle of a supervisor.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_state::{
    ContainerId, Cursor, Event, EventKind, ExitRecord, Incarnation, Launch, PastRun, Problem,
    ProcessId, StateRoot,
};
use tokio_util::sync::DropGuard;

use crate::builder::Builder;
use crate::container::Container;
use crate::core::Core;
use crate::error::Error;
use crate::log::reader::{LogOptions, LogReader};
use crate::model::events::{EventStream, Events};
use crate::model::info::ContainerInfo;
use crate::model::keeper::Keeping;
use crate::model::options::ContainerOptions;
use crate::ops::bundle::Configure;
use crate::ops::{layout, restore, start};
use crate::os::cgroup::Moves;
use crate::os::children::{self, Spawned};
use crate::os::closer::Closer;
use crate::os::file_watch::FileWatch;
use crate::os::limits::{self, Abilities, Limit};
use crate::os::rootless::Rootless;
use crate::os::tasks::{Tasks, blocking};
use crate::runtime::command::Runtimes;
use crate::runtime::programs::{self, RuntimeChoice};
use crate::shim::{SHIM, Shims};
use crate::watch::{adopt, remove};

/// A handle of a supervisor, which manages the containers of one state root. Its clones refer to
/// the same supervisor. When the last one is dropped, the supervisor stops watching; the containers
/// keep running.
#[derive(Debug, Clone)]
pub struct Supervisor {
    pub(crate) core: Arc<Core>,
    report: Arc<RestoreReport>,
    /// Stops all tasks when the last clone is dropped. The tasks themselves hold the core, so the
    /// core would never be dropped.
    _stop: Arc<DropGuard>,
}

/// What [`Builder::open`] found on disk.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The number of restored containers.
    pub containers: usize,
    /// How long the restore took.
    pub elapsed: Duration,
    /// What could not be loaded. A damaged item is moved aside if none of its processes can still
    /// run; otherwise it stays where it is. Items that earlier restores moved aside are listed
    /// again.
    pub problems: Vec<Problem>,
}

impl Supervisor {
    /// Returns a [`Builder`] for a state root: a directory that only Holdfast uses. It must be new,
    /// empty, or an earlier state root; opening any other directory fails and leaves it unchanged.
    pub fn builder(root: impl AsRef<Path>) -> Builder {
        Builder::new(root.as_ref())
    }

    pub(crate) async fn open(builder: Builder) -> Result<Self, Error> {
        let began = std::time::Instant::now();
        builder.log_rotation.check()?;
        let shim = programs::find_own(SHIM, builder.shim.as_deref())?;
        let spawned = Arc::<Spawned>::default();
        programs::check_shim(&spawned, &shim).await?;
        let root = tokio::task::spawn_blocking(move || StateRoot::open(&builder.root)).await;
        let root =
            root.map_err(|error| Error::io("open the state root")(io::Error::other(error)))??;
        let tasks = Tasks::new(root.is_in_memory());
        let root = Arc::new(root);
        // If a later step fails, this stops the tasks that were started before it.
        let stop = tasks.stop.clone().drop_guard();
        let (events, problem) = {
            let (root, tasks, bounds) = (root.clone(), tasks.clone(), builder.journal);
            let opened = blocking(move || Events::open(&root, bounds, tasks)).await;
            opened.map_err(Error::io("open the journal"))?
        };
        let abilities = Abilities::probe();
        let core = Arc::new(Core {
            boot_id: holdfast_sys::proc::boot_id().map_err(Error::io("read the boot id"))?,
            limits: limits::read(&abilities),
            rootless: Rootless::find().inspect(Rootless::report),
            abilities,
            moves: Arc::<Moves>::default(),
            runtimes: Runtimes { root: root.clone(), spawned: spawned.clone() },
            runtime: builder.runtime,
            start_timeout: builder.start_timeout,
            container_nofile: builder.container_nofile,
            shim_group: builder.shim_group,
            log_rotation: builder.log_rotation,
            events: Arc::new(events),
            files: Arc::<FileWatch>::default(),
            keeping: Keeping::new(builder.keeper, builder.kept),
            closer: Arc::new(Closer::new(shim.clone(), spawned.clone())),
            shims: Arc::new(Shims::new(
                shim,
                builder.spare_shims,
                root.clone(),
                spawned.clone(),
                tasks.clone(),
            )),
            spawned,
            root,
            adoptions: tokio::sync::Semaphore::new(adopt::AT_ONCE),
            tasks,
            containers: Mutex::default(),
            forgotten: AtomicUsize::new(0),
        });
        if builder.subreaper {
            let of = core.clone();
            children::become_subreaper(&core.spawned, &core.tasks, move || of.processes())
                .map_err(Error::io("become a subreaper"))?;
        }
        let mut problems = restore::restore(&core).await?;
        problems.extend(problem);
        let containers = core.containers().len();
        let report = Arc::new(RestoreReport { containers, elapsed: began.elapsed(), problems });
        Ok(Self { core, report, _stop: Arc::new(stop) })
    }

    /// Returns the path of the state root.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.core.root.path()
    }

    /// Returns what was found on disk when this supervisor was opened.
    #[must_use]
    pub fn restore_report(&self) -> &RestoreReport {
        &self.report
    }

    /// Returns what the kernel supported when this supervisor was opened.
    #[must_use]
    pub fn abilities(&self) -> &Abilities {
        &self.core.abilities
    }

    /// Returns the limits on the number of containers, the lowest first, as they were when this
    /// supervisor was opened.
    #[must_use]
    pub fn limits(&self) -> &[Limit] {
        &self.core.limits
    }

    /// Returns what containers have in place of root's rights, as it was when this supervisor was
    /// opened; `None` if this process is run by root.
    #[must_use]
    pub fn rootless(&self) -> Option<&Rootless> {
        self.core.rootless.as_ref()
    }

    /// Returns the OCI runtime of containers that do not name one, and why it was chosen.
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

    /// Creates a container. Its program does not run before [`Container::start`]. If the caller
    /// drops the future, the creation continues in the background.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] if the id is in use; [`Error::Bundle`], [`Error::Rootfs`],
    /// [`Error::Checkpoint`], [`Error::NotFifo`] or [`Error::NotInstalled`] if an option cannot be
    /// used; [`Error::Limit`] if this process has too few descriptors left;
    /// [`Error::StartTimeout`], [`Error::NotStarted`], [`Error::Runtime`] or [`Error::Shim`] if the
    /// start of the shim or the runtime fails; [`Error::Io`] if a file cannot be written; and
    /// [`Error::Closed`] after a shutdown.
    pub async fn create(&self, options: ContainerOptions) -> Result<Container, Error> {
        self.launch(options, None, Launch::Create).await.map(|(container, _)| container)
    }

    /// Does what [`create`](Self::create) does, with a last change to the OCI configuration, after all
    /// options were applied. The result is written to the container's `config.json`; what
    /// [`Spec`](oci_spec::runtime::Spec) does not know of a bundle's configuration is dropped. If the
    /// caller drops the future, the creation continues in the background.
    ///
    /// This needs the feature `oci-spec`, which is on by default.
    ///
    /// # Errors
    ///
    /// The errors of [`create`](Self::create).
    #[cfg(feature = "oci-spec")]
    pub async fn create_with(
        &self,
        options: ContainerOptions,
        configure: impl FnOnce(&mut oci_spec::runtime::Spec) + Send + 'static,
    ) -> Result<Container, Error> {
        let configure = Some(by_spec(configure));
        self.launch(options, configure, Launch::Create).await.map(|(container, _)| container)
    }

    /// Does what [`run`](Self::run) does, with a last change as [`create_with`](Self::create_with) makes it.
    /// If the caller drops the future, this continues in the background.
    ///
    /// This needs the feature `oci-spec`, which is on by default.
    ///
    /// # Errors
    ///
    /// The errors of [`create`](Self::create).
    #[cfg(feature = "oci-spec")]
    pub async fn run_with(
        &self,
        options: ContainerOptions,
        configure: impl FnOnce(&mut oci_spec::runtime::Spec) + Send + 'static,
    ) -> Result<Container, Error> {
        let configure = Some(by_spec(configure));
        self.launch(options, configure, Launch::Run).await.map(|(container, _)| container)
    }

    /// Creates a container and starts it in one step. If the caller drops the future, this
    /// continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`create`](Self::create).
    pub async fn run(&self, options: ContainerOptions) -> Result<Container, Error> {
        self.launch(options, None, Launch::Run).await.map(|(container, _)| container)
    }

    /// Does what [`run`](Self::run) does, and also returns a reader of the output that misses
    /// nothing, however soon the container exits and is removed. If the caller drops the future, this
    /// continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`create`](Self::create).
    pub async fn run_attached(
        &self,
        options: ContainerOptions,
    ) -> Result<(Container, LogReader), Error> {
        self.launch(options, None, Launch::Run).await
    }

    async fn launch(
        &self,
        options: ContainerOptions,
        configure: Option<Configure>,
        launch: Launch,
    ) -> Result<(Container, LogReader), Error> {
        let core = self.core.clone();
        self.core
            .tasks
            .finish(async move {
                core.moves.prepare();
                if let Some(id) = &options.id {
                    remove::make_way(&core, id).await;
                }
                let (container, begun, log) = {
                    let core = core.clone();
                    let begun = tokio::task::spawn_blocking(move || {
                        let (container, job) =
                            layout::container(&core, &options, configure, launch)?;
                        // No other container has this id here: the directory of the container did
                        // not exist before.
                        core.containers().insert(container.id.clone(), container.clone());
                        match LogReader::attached(&core, &container.init(), &LogOptions::new()) {
                            Ok(log) => {
                                let begun = start::begin(&core, &container, &job);
                                Ok((container, begun, log))
                            }
                            Err(error) => {
                                // No task has been started that would clean this up.
                                let _ = core.root.remove_container(&container.id);
                                core.containers().remove(&container.id);
                                Err(error)
                            }
                        }
                    })
                    .await;
                    Error::joined(begun)?
                };
                start::launch(&core, begun).await?;
                Ok((Container::new(core, container), log))
            })
            .await
    }

    /// Returns the container with this id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is none.
    pub fn get(&self, id: &ContainerId) -> Result<Container, Error> {
        let found = self.core.container(id).ok_or_else(|| Error::NotFound(id.clone()))?;
        Ok(Container::new(self.core.clone(), found))
    }

    /// Returns the exit of the last known container that had this id, as far back as the journal
    /// keeps events. The container may have been removed, and its exit may have been recorded by an
    /// earlier supervisor of this root. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if no exit of such a container is known, [`Error::Io`] if the journal
    /// cannot be read.
    pub async fn past_exit(&self, id: &ContainerId) -> Result<ExitRecord, Error> {
        let found = self.core.events.last_exit(id).await.map_err(Error::io("read the journal"))?;
        found.ok_or_else(|| Error::NotFound(id.clone()))
    }

    /// Returns how the last known process with this id ended, or why its start failed, as far back as
    /// the journal keeps events: of this incarnation of the container and of this run, where they are
    /// given. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if no end of such a process is known, [`Error::Io`] if the journal cannot be
    /// read.
    pub async fn past_end(
        &self,
        id: &ContainerId,
        process: &ProcessId,
        incarnation: Option<Incarnation>,
        run: Option<u32>,
    ) -> Result<PastRun, Error> {
        let process = process.clone();
        let found = self.core.events.last(id, move |event| {
            event.process == process
                && incarnation.is_none_or(|incarnation| event.incarnation == incarnation)
                && run.is_none_or(|run| event.run == run)
                && matches!(event.kind, EventKind::Exited { .. } | EventKind::StartFailed { .. })
        });
        let found = found.await.map_err(Error::io("read the journal"))?;
        let Event { run, time, kind, .. } = found.ok_or_else(|| Error::NotFound(id.clone()))?;
        match kind {
            EventKind::Exited { status, evidence, oom_killed } => {
                let mut exit = ExitRecord::now(status, evidence);
                (exit.time, exit.oom_killed) = (time, oom_killed);
                Ok(PastRun::exited(run, None, exit))
            }
            EventKind::StartFailed { reason } => Ok(PastRun::failed(run, &reason)),
            _ => Err(Error::NotFound(id.clone())),
        }
    }

    /// Returns all containers, ordered by id. A container that is being removed automatically after
    /// its exit is not included, unless its removal has failed.
    #[must_use]
    pub fn list(&self) -> Vec<Container> {
        self.core
            .containers()
            .values()
            .filter(|container| !container.init().is_going())
            .map(|c| Container::new(self.core.clone(), c.clone()))
            .collect()
    }

    /// Returns the containers of [`list`](Self::list) that have this label, with this value if one is given.
    #[must_use]
    pub fn list_with_label(&self, name: &str, value: Option<&str>) -> Vec<Container> {
        let mut all = self.list();
        all.retain(|container| {
            let labels = container.labels();
            labels.get(name).is_some_and(|found| value.is_none_or(|value| value == found))
        });
        all
    }

    /// Returns the current state of all containers; see [`list`](Self::list).
    #[must_use]
    pub fn infos(&self) -> Vec<ContainerInfo> {
        self.list().iter().map(Container::info).collect()
    }

    /// Returns a stream of the events from now on.
    #[must_use]
    pub fn events(&self) -> EventStream {
        self.events_since(self.core.events.cursor())
    }

    /// Returns a stream of the events after `cursor`: the past events, as far back as the journal
    /// keeps them, and then new ones. [`Cursor::BEGINNING`] is before the oldest event that is
    /// kept.
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
        EventStream::new(&self.core.events, cursor)
    }

    /// Stops watching, and ends all waits and streams. The containers keep running.
    pub fn stop(&self) {
        self.core.tasks.stop.cancel();
    }

    /// Stops watching, and waits until all operations in progress are finished. The containers keep
    /// running. Afterwards another supervisor can open the state root, even if a [`Container`]
    /// handle still exists.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: if the future is dropped, the journal is not closed, which leaves a gap in
    /// the event numbers, and the state root stays locked until the last task and the last handle
    /// are gone.
    pub async fn shutdown(self) {
        self.stop();
        self.core.tasks.ended().await;
        self.core.shims.dismiss_spares();
        self.core.events.close().await;
        self.core.root.release();
    }
}

/// Makes a change of a configuration out of a change of its typed form.
#[cfg(feature = "oci-spec")]
fn by_spec(configure: impl FnOnce(&mut oci_spec::runtime::Spec) + Send + 'static) -> Configure {
    Box::new(move |config| {
        let mut spec = serde_json::from_value(config.take())
            .map_err(|error| format!("config.json: not an OCI configuration: {error}"))?;
        configure(&mut spec);
        *config = serde_json::to_value(spec).map_err(|error| error.to_string())?;
        Ok(())
    })
}
