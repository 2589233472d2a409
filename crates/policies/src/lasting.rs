//! Containers that outlive a reboot: their creation and deletion, and what is done after a boot.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream;
use holdfast_state::Directory;
use holdfast_state::root::DEFINITIONS;
use holdfast_supervisor::{
    Container, ContainerId, ContainerOptions, Error, LogReader, Problem, Status, Supervisor,
};
use holdfast_sys::proc::boot_id;
use serde::{Deserialize, Serialize};

use crate::definitions::{Definition, Definitions};
use crate::policy::{Restart, RestartPolicy};
use crate::restarts::{Restarts, Shared, finish};

/// The largest [`DEFINITIONS`] file that is read, in bytes.
const LARGEST: u64 = 64 << 20;

/// What stands for all definitions among the names of those that failed.
const ALL: &str = "";

/// The content of the [`DEFINITIONS`] file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Boot {
    boot_id: String,
    /// The definitions from which no container could be made, and why.
    failed: BTreeMap<String, String>,
}

impl Restarts {
    /// Creates a container; see [`Supervisor::create`]. If its policy outlives a reboot, its definition is
    /// durable when this returns. If the caller drops the future, this continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`Supervisor::create`], and [`Error::Io`] if the definition cannot be written.
    pub async fn create(&self, options: ContainerOptions) -> Result<Container, Error> {
        self.define(options, |supervisor, options| async move { supervisor.create(options).await })
            .await
    }

    /// Creates a container and starts it; see [`Supervisor::run`] and [`create`](Self::create). If the
    /// caller drops the future, this continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`create`](Self::create).
    pub async fn run(&self, options: ContainerOptions) -> Result<Container, Error> {
        self.define(options, |supervisor, options| async move { supervisor.run(options).await })
            .await
    }

    /// Does what [`run`](Self::run) does, and returns a reader of the output too; see
    /// [`Supervisor::run_attached`]. If the caller drops the future, this continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`create`](Self::create).
    pub async fn run_attached(
        &self,
        options: ContainerOptions,
    ) -> Result<(Container, LogReader), Error> {
        self.define(
            options,
            |supervisor, options| async move { supervisor.run_attached(options).await },
        )
        .await
    }

    /// Deletes a container with its definition; see [`Container::delete`]. If the caller drops the
    /// future, this continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::delete`], and [`Error::Io`] if the definition cannot be removed.
    pub async fn delete(&self, container: &Container) -> Result<(), Error> {
        self.undefine(container, |container| async move { container.delete().await }).await
    }

    /// Deletes a container in any state, with its definition; see [`Container::delete_forced`]. If the
    /// caller drops the future, this continues in the background.
    ///
    /// # Errors
    ///
    /// The errors of [`Container::delete_forced`], and [`Error::Io`] if the definition cannot be removed.
    pub async fn delete_forced(&self, container: &Container) -> Result<(), Error> {
        self.undefine(container, |container| async move { container.delete_forced().await }).await
    }

    /// Removes the definition of a container that does not exist, as it could not be created after a
    /// reboot. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be removed.
    pub async fn forget(&self, id: &ContainerId) -> Result<bool, Error> {
        let Some(definitions) = self.shared.definitions.clone() else { return Ok(false) };
        let (shared, id) = (self.shared.clone(), id.clone());
        finish(async move {
            let lock = shared.lock(&id).await;
            let removed = match shared.supervisor.get(&id) {
                Ok(_) => Ok(false),
                Err(_) => definitions.remove(&id).await.map_err(failed("remove", &id)),
            };
            shared.failed().remove(id.as_str());
            shared.unlock(lock);
            removed
        })
        .await
    }

    /// Returns the directory of the definitions.
    #[must_use]
    pub fn definitions(&self) -> Option<&Path> {
        self.shared.definitions.as_ref().map(Definitions::path)
    }

    /// Returns the definitions from which no container could be made after the reboot, with the reasons.
    /// They stay, and the next boot tries them again.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let Some(definitions) = &self.shared.definitions else { return Vec::new() };
        let failed = self.shared.failed();
        let problem = |(name, reason): (&String, &String)| {
            let all = name == ALL;
            let path = if all { definitions.path().to_owned() } else { definitions.path_of(name) };
            Problem::new(path, reason.clone())
        };
        failed.iter().map(problem).collect()
    }

    /// Creates a container. Its definition is complete before, and in its place after that, so that there
    /// is one exactly if the container was created.
    async fn define<T, Made>(
        &self,
        options: ContainerOptions,
        make: impl FnOnce(Supervisor, ContainerOptions) -> Made + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        Made: Future<Output = Result<T, Error>> + Send,
    {
        let shared = self.shared.clone();
        let Some(definitions) = shared.definitions.clone() else {
            return make(shared.supervisor.clone(), options).await;
        };
        let (id, definition, options) = Definition::new(&options).map_err(|cause| Error::Io {
            attempt: "make the definition of a container".to_owned(),
            cause,
        })?;
        let supervisor = shared.supervisor.clone();
        if !definition.policy().outlives_reboot() {
            let made = make(supervisor, options).await;
            if made.is_ok() {
                shared.replaced(&definitions, &id).await;
            }
            return made;
        }
        finish(async move {
            let lock = shared.lock(&id).await;
            let staged = definitions.stage(&id, &definition).await.map_err(failed("write", &id));
            let made = match staged {
                Ok(()) => make(supervisor, options).await,
                Err(error) => Err(error),
            };
            let settled = match &made {
                Ok(_) => definitions.commit(&id).await,
                Err(_) => definitions.unstage(&id).await,
            };
            if let Err(error) = settled {
                tracing::warn!(container = %id, %error, "its definition is settled by the next daemon");
            }
            if made.is_ok() {
                shared.failed().remove(id.as_str());
            }
            shared.unlock(lock);
            made
        })
        .await
    }

    async fn undefine<Deleted>(
        &self,
        container: &Container,
        delete: impl FnOnce(Container) -> Deleted + Send + 'static,
    ) -> Result<(), Error>
    where
        Deleted: Future<Output = Result<(), Error>> + Send,
    {
        let (shared, container) = (self.shared.clone(), container.clone());
        let Some(definitions) = shared.definitions_of(&container).cloned() else {
            return delete(container).await;
        };
        // Without the lock of the container, since a start that holds it may have to be cancelled.
        finish(async move {
            let id = container.id().clone();
            let is_taken = definitions.take_away(&id).await.map_err(failed("remove", &id))?;
            let deleted = delete(container).await;
            if is_taken {
                let is_deleted = matches!(deleted, Ok(()) | Err(Error::NotFound(_)));
                let settled = definitions.settle(&id, is_deleted).await;
                settled.map_err(failed("remove", &id))?;
            }
            deleted
        })
        .await
    }
}

fn failed(attempt: &'static str, id: &ContainerId) -> impl FnOnce(io::Error) -> Error + use<> {
    let attempt = format!("{attempt} the definition of container {id}");
    move |cause| Error::Io { attempt, cause }
}

impl Shared {
    fn failed(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the definition of a container that could not be created after the reboot: another one has
    /// its id now.
    async fn replaced(&self, definitions: &Definitions, id: &ContainerId) {
        if self.failed().remove(id.as_str()).is_some()
            && let Err(error) = definitions.remove(id).await
        {
            tracing::warn!(container = %id, %error, "the definition of an earlier container stays");
        }
    }

    /// Settles the creation of a container over which a supervisor has died: its start may still be in
    /// progress. A creation of the same id waits for that.
    async fn settle_start(&self, definitions: &Definitions, container: Container) {
        let id = container.id();
        let settled = match container.begun().await {
            Ok(()) => definitions.commit(id).await,
            // The next supervisor goes on.
            Err(Error::Closed) => Ok(()),
            Err(_) => definitions.unstage(id).await,
        };
        if let Err(error) = settled {
            tracing::warn!(container = %id, %error, "its definition is settled by the next daemon");
        }
    }

    /// Makes a container again from its definition, and starts it unless a user had stopped it and its
    /// policy respects that.
    async fn bring_back(&self, definitions: &Definitions, name: &str) -> Result<(), Error> {
        // Never closed, so this is no error.
        let _room = self.room.acquire().await;
        let id: ContainerId = name.parse()?;
        let lock = self.lock(&id).await;
        let brought = self.bring_back_locked(definitions, &id).await;
        self.unlock(lock);
        brought
    }

    async fn bring_back_locked(
        &self,
        definitions: &Definitions,
        id: &ContainerId,
    ) -> Result<(), Error> {
        // It may have been deleted meanwhile.
        let Some(definition) = definitions.load(id).await.map_err(failed("read", id))? else {
            return Ok(());
        };
        let (stopped, policy) = (definition.stopped, definition.policy());
        if let Ok(container) = self.supervisor.get(id) {
            match container.begun().await {
                // One whose record is still there is restarted by its policy, unless a user had stopped
                // it.
                Ok(()) => {
                    let info = container.info();
                    let by_user = Restart::of(&info).is_some_and(|it| it.stopped);
                    let starts = by_user && info.status == Status::Stopped;
                    return match starts && policy == RestartPolicy::Always {
                        true => self.by_user(&container, container.start()).await,
                        false => Ok(()),
                    };
                }
                Err(Error::Closed) => return Err(Error::Closed),
                // A supervisor has died over its start, and nothing is left of it.
                Err(_) => {}
            }
        }
        let options = definition.options().map_err(failed("read", id))?;
        if stopped && policy == RestartPolicy::UnlessStopped {
            return self.supervisor.create(options).await.map(drop);
        }
        if stopped {
            definitions.set_stopped(id, false).await.map_err(failed("write", id))?;
        }
        self.supervisor.run(options).await.map(drop)
    }
}

/// Settles what an earlier supervisor has left of creations and deletions, before there can be others.
/// Returns whether this is the first supervisor since the boot.
pub(crate) async fn begin(shared: &Arc<Shared>, definitions: &Definitions) -> bool {
    let supervisor = shared.supervisor.clone();
    let find = move |id: &ContainerId| {
        let container = supervisor.get(id).ok()?;
        let incarnation = container.info().incarnation;
        Some((container, incarnation))
    };
    let staged = definitions.sweep(Box::new(find)).await.unwrap_or_else(|error| {
        tracing::warn!(path = %definitions.path().display(), %error, "what an earlier daemon has left stays");
        Vec::new()
    });
    for container in staged {
        let lock = shared.lock(container.id()).await;
        let (shared, definitions) = (shared.clone(), definitions.clone());
        tokio::spawn(async move {
            shared.settle_start(&definitions, container).await;
            shared.unlock(lock);
        });
    }
    let last =
        Directory::open(shared.supervisor.root()).and_then(|it| it.read(DEFINITIONS, LARGEST));
    let last: Option<Boot> = last.ok().and_then(|content| serde_json::from_slice(&content).ok());
    let Some(last) = last.filter(|last| boot_id().is_ok_and(|boot_id| last.boot_id == boot_id))
    else {
        return true;
    };
    for (name, reason) in last.failed {
        let id: Option<ContainerId> = name.parse().ok();
        let is_settled = match &id {
            Some(id) => {
                shared.supervisor.get(id).is_ok() || matches!(definitions.load(id).await, Ok(None))
            }
            None => false,
        };
        if !is_settled {
            shared.failed().insert(name, reason);
        }
    }
    false
}

/// Makes the containers again that outlive a reboot.
pub(crate) async fn after_boot(shared: Arc<Shared>, definitions: Definitions) {
    if let Err(error) = try_after_boot(&shared, &definitions).await {
        let path = definitions.path().display();
        tracing::error!(%path, %error, "not all containers are made again after the reboot");
        shared.failed().insert(ALL.to_owned(), error.to_string());
    }
}

async fn try_after_boot(shared: &Shared, definitions: &Definitions) -> io::Result<()> {
    let boot_id = boot_id()?;
    let names = definitions.names().await?;
    let all = names.len();
    let results = stream::iter(names).map(async |name| {
        let brought = shared.bring_back(definitions, &name).await;
        if let Err(error) = &brought {
            tracing::error!(container = name, %error, "not made again after the reboot");
        }
        (name, brought)
    });
    // Each waits for its turn.
    let results: Vec<_> = results.buffer_unordered(usize::MAX).collect().await;
    if results.iter().any(|(_, brought)| matches!(brought, Err(Error::Closed))) {
        // The next supervisor goes on.
        return Ok(());
    }
    let failed = results.into_iter().filter_map(|(name, brought)| Some((name, brought.err()?)));
    let failed: BTreeMap<_, _> = failed.map(|(name, error)| (name, error.to_string())).collect();
    let count = failed.len();
    shared.failed().extend(failed.clone());
    // Written last: a supervisor that dies before leaves the rest to the next one.
    let root = Directory::open(shared.supervisor.root())?;
    root.write_atomic(DEFINITIONS, &serde_json::to_vec(&Boot { boot_id, failed })?)?;
    tracing::info!(containers = all, failed = count, "made again after the reboot");
    Ok(())
}
