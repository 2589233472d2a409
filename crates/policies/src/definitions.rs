//! Definitions: what a container is made from, kept where it outlives a reboot.
//!
//! Containers with the policies `always` and `unless-stopped` have one. The state root may lie on a tmpfs,
//! and is then empty after a reboot; the definitions may not.
//!
//! | file | what |
//! |---|---|
//! | `ID.json` | the definition of a container |
//! | `.new-ID.json` | that of a container that is being created |
//! | `.gone-ID.json` | that of a container that is being deleted |
//!
//! The last two are settled by the next supervisor if this one dies: by whether the container exists.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_state::Directory;
use holdfast_supervisor::{ContainerId, ContainerOptions, Incarnation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::policy::{Marks, RestartPolicy};

/// The version of the files. A file of a later one is not read.
const VERSION: u32 = 1;
/// The largest file that is read, in bytes. The API takes bodies of 2 MiB.
const LARGEST: u64 = 8 << 20;

const SUFFIX: &str = ".json";
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// A directory of definitions. Each supervisor needs its own.
#[derive(Debug, Clone)]
pub struct Definitions(Arc<Store>);

#[derive(Debug)]
struct Store {
    path: PathBuf,
    /// Locked while a file is read and written again, so that no other change is lost.
    directory: Mutex<Directory>,
}

/// The content of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Definition {
    version: u32,
    /// Whether a user has stopped the container.
    #[serde(default)]
    pub(crate) stopped: bool,
    /// The JSON of [`ContainerOptions`].
    options: Value,
}

impl Definition {
    /// Returns the definition of a new container, and its options, which have an id and an incarnation then.
    pub(crate) fn new(
        options: &ContainerOptions,
    ) -> io::Result<(ContainerId, Self, ContainerOptions)> {
        let mut body = serde_json::to_value(options)?;
        if body["incarnation"].is_null() {
            body["incarnation"] = Incarnation::random()?.to_string().into();
        }
        if body["id"].is_null() {
            body["id"] = Incarnation::random()?.to_string()[..12].into();
        }
        let options = serde_json::from_value(body.clone())?;
        let id = serde_json::from_value(body["id"].clone())?;
        Ok((id, Self { version: VERSION, stopped: false, options: body }, options))
    }

    fn read(content: &[u8]) -> io::Result<Self> {
        let definition: Self = serde_json::from_slice(content)?;
        match definition.version {
            VERSION => Ok(definition),
            version => {
                Err(io::Error::other(format!("it has version {version}, of a later release")))
            }
        }
    }

    /// Returns whether the container was created as this incarnation.
    pub(crate) fn is_of(&self, incarnation: Incarnation) -> bool {
        self.options["incarnation"] == incarnation.to_string()
    }

    /// Returns the policy of the container.
    pub(crate) fn policy(&self) -> RestartPolicy {
        let labels: Option<BTreeMap<String, String>> =
            serde_json::from_value(self.options["labels"].clone()).ok();
        labels.and_then(|labels| Marks::of(&labels)).map_or(RestartPolicy::No, |it| it.policy)
    }

    /// Returns the options for the container after a reboot: it is another incarnation, and starts from
    /// the beginning.
    pub(crate) fn options(&self) -> io::Result<ContainerOptions> {
        let mut body = self.options.clone();
        if let Some(body) = body.as_object_mut() {
            body.remove("incarnation");
            body.remove("checkpoint");
        }
        Ok(serde_json::from_value(body)?)
    }
}

/// Finds a container, and says which incarnation it is: to settle what a supervisor has left.
pub(crate) type Find<T> = Box<dyn Fn(&ContainerId) -> Option<(T, Option<Incarnation>)> + Send>;

impl Definitions {
    /// Opens a directory, and makes it if need be. It is readable for its owner alone: definitions
    /// contain the environment of containers.
    ///
    /// # Errors
    ///
    /// If it cannot be made or opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            // What is written there is durable only if the directories are.
            for parent in path.ancestors().skip(1).filter(|parent| parent.is_dir()) {
                Directory::open(parent)?.sync()?;
            }
        }
        let directory = Mutex::new(Directory::open(path)?);
        Ok(Self(Arc::new(Store { path: path.to_owned(), directory })))
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the path of the definition of a container.
    #[must_use]
    pub fn path_of(&self, id: &str) -> PathBuf {
        self.0.path.join(format!("{id}{SUFFIX}"))
    }

    /// Works with the directory on a thread that may block.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let store = self.0.clone();
        let work = move || work(&store.directory.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }

    /// Writes the definition of a container that is about to be created.
    pub(crate) async fn stage(&self, id: &ContainerId, definition: &Definition) -> io::Result<()> {
        let (name, content) = (named(NEW, id), serde_json::to_vec(definition)?);
        self.with(move |directory| directory.write_atomic(&name, &content)).await
    }

    /// Puts the definition of a container in its place, as it was created. It is durable then. A deletion
    /// may have taken it away.
    pub(crate) async fn commit(&self, id: &ContainerId) -> io::Result<()> {
        let (new, name) = (named(NEW, id), named("", id));
        let committed = self.with(move |directory| {
            rename_if_there(directory, &new, &name)?;
            directory.sync()
        });
        committed.await
    }

    /// Removes the definition of a container that was not created.
    pub(crate) async fn unstage(&self, id: &ContainerId) -> io::Result<()> {
        let new = named(NEW, id);
        self.with(move |directory| directory.unlink(&new)).await
    }

    /// Removes a definition. Returns whether there was one.
    pub(crate) async fn remove(&self, id: &ContainerId) -> io::Result<bool> {
        let name = named("", id);
        let removed = self.with(move |directory| {
            let is_there = directory.contains(&name)?;
            if is_there {
                directory.unlink(&name)?;
                directory.sync()?;
            }
            Ok(is_there)
        });
        removed.await
    }

    /// Takes the definition of a container away that is about to be deleted, also if its creation is not
    /// settled yet. Returns whether there was one.
    pub(crate) async fn take_away(&self, id: &ContainerId) -> io::Result<bool> {
        let (name, new, gone) = (named("", id), named(NEW, id), named(GONE, id));
        let taken = self.with(move |directory| {
            Ok(rename_if_there(directory, &name, &gone)?
                || rename_if_there(directory, &new, &gone)?)
        });
        taken.await
    }

    /// Ends what [`take_away`](Self::take_away) has begun: the container was deleted, durably, or was not.
    pub(crate) async fn settle(&self, id: &ContainerId, is_deleted: bool) -> io::Result<()> {
        let (name, gone) = (named("", id), named(GONE, id));
        let settled = self.with(move |directory| {
            match is_deleted {
                true => directory.unlink(&gone)?,
                false => directory.rename_new(&gone, &name)?,
            }
            directory.sync()
        });
        settled.await
    }

    /// Returns a definition; `None` if there is none.
    pub(crate) async fn load(&self, id: &ContainerId) -> io::Result<Option<Definition>> {
        let name = named("", id);
        self.with(move |directory| load(directory, &name)).await
    }

    /// Notes whether a user has stopped a container. Returns whether that was noted before.
    pub(crate) async fn set_stopped(&self, id: &ContainerId, stopped: bool) -> io::Result<bool> {
        let name = named("", id);
        let set = self.with(move |directory| {
            let Some(mut definition) = load(directory, &name)? else { return Ok(stopped) };
            let before = definition.stopped;
            if before != stopped {
                definition.stopped = stopped;
                directory.write_atomic(&name, &serde_json::to_vec(&definition)?)?;
            }
            Ok(before)
        });
        set.await
    }

    /// Settles what an earlier supervisor has left of creations and deletions. Returns the containers whose
    /// creation was begun: their definitions stay staged. A start may end meanwhile, and the container with it: so
    /// they are not looked up a second time.
    pub(crate) async fn sweep<T: Send + 'static>(&self, find: Find<T>) -> io::Result<Vec<T>> {
        let swept = self.with(move |directory| {
            let mut staged = Vec::new();
            for name in directory.names()?.iter().filter(|name| name.starts_with('.')) {
                // It may be an earlier container that has the id.
                let begun = |id: &ContainerId| {
                    let (container, incarnation) = find(id)?;
                    let definition = load(directory, name).ok()??;
                    definition.is_of(incarnation?).then_some(container)
                };
                if let Some(container) = id_in(name, NEW).and_then(|id| begun(&id)) {
                    staged.push(container);
                } else if let Some(id) = id_in(name, GONE).filter(|id| find(id).is_some()) {
                    directory.rename(name, &named("", &id))?;
                } else {
                    // The temporary file of a write, too.
                    directory.unlink(name)?;
                }
            }
            directory.sync()?;
            Ok(staged)
        });
        swept.await
    }

    /// Returns the names of all definitions, without their suffix: ids, unless somebody else has put a
    /// file there.
    pub(crate) async fn names(&self) -> io::Result<Vec<String>> {
        let names = self.with(|directory| directory.names()).await?;
        let plain = names.iter().filter(|name| !name.starts_with('.'));
        Ok(plain.filter_map(|name| name.strip_suffix(SUFFIX)).map(ToOwned::to_owned).collect())
    }
}

fn named(prefix: &str, id: &ContainerId) -> String {
    format!("{prefix}{id}{SUFFIX}")
}

fn id_in(name: &str, prefix: &str) -> Option<ContainerId> {
    name.strip_prefix(prefix)?.strip_suffix(SUFFIX)?.parse().ok()
}

fn load(directory: &Directory, name: &str) -> io::Result<Option<Definition>> {
    match directory.read(name, LARGEST) {
        Ok(content) => Definition::read(&content).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn rename_if_there(directory: &Directory, from: &str, to: &str) -> io::Result<bool> {
    match directory.rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ContainerId {
        name.parse().unwrap()
    }

    fn options(name: &str) -> ContainerOptions {
        RestartPolicy::Always.apply(ContainerOptions::host_rootfs().id(id(name)))
    }

    fn scratch() -> (tempfile::TempDir, Definitions) {
        let temp = tempfile::tempdir().unwrap();
        let definitions = Definitions::open(&temp.path().join("a/b")).unwrap();
        (temp, definitions)
    }

    fn files(definitions: &Definitions) -> Vec<String> {
        Directory::open(definitions.path()).unwrap().names().unwrap()
    }

    #[test]
    fn a_definition_names_its_container_and_loses_incarnation_and_checkpoint_by_a_reboot() {
        let plain = ContainerOptions::host_rootfs().checkpoint("/c").label("a", "b");
        let (id, definition, options) = Definition::new(&plain).unwrap();
        assert_eq!((id.as_str().len(), definition.policy()), (12, RestartPolicy::No));
        let made = serde_json::to_value(&options).unwrap();
        assert_eq!((made["id"].as_str(), &made["checkpoint"]), (Some(id.as_str()), &"/c".into()));
        assert!(definition.is_of(made["incarnation"].as_str().unwrap().parse().unwrap()));
        let again = ContainerOptions::host_rootfs().label("a", "b").id(id);
        assert_eq!(definition.options().unwrap(), again);
    }

    #[tokio::test]
    async fn what_is_staged_counts_once_it_is_committed() {
        let (_temp, definitions) = scratch();
        let (web, definition, _) = Definition::new(&options("web")).unwrap();
        definitions.stage(&web, &definition).await.unwrap();
        assert!(definitions.names().await.unwrap().is_empty());
        assert!(definitions.load(&web).await.unwrap().is_none());
        definitions.commit(&web).await.unwrap();
        assert_eq!(definitions.names().await.unwrap(), ["web"]);
        definitions.stage(&web, &definition).await.unwrap();
        definitions.unstage(&web).await.unwrap();
        assert_eq!(files(&definitions), ["web.json"]);
        assert!(!definitions.set_stopped(&web, true).await.unwrap());
        assert!(definitions.set_stopped(&web, true).await.unwrap());
        assert!(definitions.load(&web).await.unwrap().unwrap().stopped);
        assert!(definitions.take_away(&web).await.unwrap());
        assert!(!definitions.set_stopped(&web, false).await.unwrap());
        definitions.settle(&web, false).await.unwrap();
        assert!(definitions.load(&web).await.unwrap().unwrap().stopped);
        definitions.take_away(&web).await.unwrap();
        definitions.settle(&web, true).await.unwrap();
        assert!(files(&definitions).is_empty() && !definitions.take_away(&web).await.unwrap());
        assert!(!definitions.remove(&web).await.unwrap());
    }

    /// Whether the container exists, which incarnation, and what is then left of the files.
    #[tokio::test]
    async fn what_a_crash_has_left_is_settled_by_the_container() {
        let (own, other) = (Incarnation::random().unwrap(), Incarnation::random().unwrap());
        for (name, container, left) in [
            (".new-web.json", Some(own), Some(".new-web.json")),
            (".new-web.json", Some(other), None),
            (".new-web.json", None, None),
            (".gone-web.json", Some(own), Some("web.json")),
            (".gone-web.json", None, None),
            ("..new-web.json.4711", Some(own), None),
            (".new-we b.json", Some(own), None),
        ] {
            let (_temp, definitions) = scratch();
            let (_, definition, _) = Definition::new(&options("web").incarnation(own)).unwrap();
            let content = serde_json::to_vec(&definition).unwrap();
            std::fs::write(definitions.path().join(name), content).unwrap();
            let find = move |id: &ContainerId| container.map(|it| (id.clone(), Some(it)));
            let staged = definitions.sweep(Box::new(find)).await.unwrap();
            assert_eq!(files(&definitions), Vec::from_iter(left), "{name} {container:?}");
            let is_staged = left.is_some_and(|left| left.starts_with('.'));
            assert_eq!(staged, Vec::from_iter(is_staged.then(|| id("web"))));
        }
    }

    #[tokio::test]
    async fn a_definition_that_cannot_be_read_is_an_error_with_the_reason() {
        let (_temp, definitions) = scratch();
        for (content, reason) in [("{", "EOF"), (r#"{"version":2,"options":{}}"#, "later release")]
        {
            std::fs::write(definitions.path_of("web"), content).unwrap();
            let error = definitions.load(&id("web")).await.unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
