//! The supervisor itself, as the caller holds it.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_state::{ContainerId, Cursor, ExitRecord, Launch, Problem, StateRoot};
use tokio_util::sync::DropGuard;

use crate::builder::Builder;
use crate::container::Container;
use crate::core::Core;
use crate::error::Error;
use crate::log::reader::LogReader;
use crate::model::events::{EventStream, Events};
use crate::model::info::ContainerInfo;
use crate::model::keeper::Keeping;
use crate::model::options::ContainerOptions;
use crate::ops::{layout, restore, start};
use crate::os::cgroup::Moves;
use crate::os::children::{self, Spawned};
use crate::os::closer::Closer;
use crate::os::file_watch::FileWatch;
use crate::os::limits::{self, Abilities, Limit};
use crate::os::tasks::{Tasks, blocking};
use crate::runtime::command::Runtimes;
use crate::runtime::programs::{self, RuntimeChoice};
use crate::shim::{SHIM, Shims};
use crate::watch::{adopt, remove};

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
        let (root, tasks) = (Arc::new(root), Tasks::new());
        // Whatever comes of the rest, what has begun by then ends.
        let stop = tasks.stop.clone().drop_guard();
        let (events, problem) = {
            let (root, tasks, bounds) = (root.clone(), tasks.clone(), builder.journal);
            let opened = blocking(move || Events::open(&root, bounds, tasks)).await;
            opened.map_err(Error::io("open the journal"))?
        };
        let spawned = Arc::<Spawned>::default();
        let abilities = Abilities::probe();
        let core = Arc::new(Core {
            boot_id: holdfast_sys::proc::boot_id().map_err(Error::io("read the boot id"))?,
            limits: limits::read(&abilities),
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
            .tasks
            .finish(async move {
                core.moves.prepare();
                if let Some(id) = &options.id {
                    remove::make_way(&core, id).await;
                }
                let (container, begun, log) = {
                    let core = core.clone();
                    let begun = tokio::task::spawn_blocking(move || {
                        let (container, job) = layout::container(&core, &options, launch)?;
                        // Nothing can be known by this id: its directory was not there before.
                        core.containers().insert(container.id.clone(), container.clone());
                        match LogReader::attached(&core, &container.init) {
                            Ok(log) => {
                                let begun = start::begin(&core, &container, &job);
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
                start::launch(&core, begun).await?;
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
        EventStream::new(&self.core.events, cursor)
    }

    /// Ends the watching, and with it every wait and every stream. The containers run on.
    pub fn stop(&self) {
        self.core.tasks.stop.cancel();
    }

    /// Ends the watching and waits until all that had been begun is finished. The containers run on;
    /// the state root is free afterwards, whoever still holds a [`Container`].
    pub async fn shutdown(self) {
        self.stop();
        self.core.tasks.ended().await;
        self.core.shims.dismiss_spares();
        self.core.events.close().await;
        self.core.root.release();
    }
}
