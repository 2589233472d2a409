//! The tasks of one namespace of containerd: a supervisor of the library, with a state root of its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_supervisor::{
    Container, ContainerId, Error, EventKind, ProcessId, Status, Supervisor,
};
use holdfast_ttrpc::front::Cleanup;
use holdfast_ttrpc::types::Mount;
use holdfast_ttrpc::{Message, place};
use serde::{Deserialize, Serialize};

use crate::binary_log::BinaryLog;
use crate::events::Forwarder;
use crate::exec::{self, Exec, ExecFiles, Stage};
use crate::rootfs;

/// The label that says what the library does not know of a task.
const LABEL: &str = "io.containerd.holdfast.task";

/// How long a start may take where containerd sets no limit, as with slow hooks.
const START_LIMIT: Duration = Duration::from_secs(600);

/// How much of the journal is kept, for a containerd that is away: an event takes some 200 bytes.
const JOURNAL: (u64, Duration) = (64 * 1024 * 1024, Duration::from_secs(7 * 24 * 3600));

/// What the library does not know of a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Task {
    /// containerd's bundle.
    pub(crate) bundle: PathBuf,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    /// What is mounted as its root file system: type, source, target, options.
    pub(crate) rootfs: Vec<(String, String, String, Vec<String>)>,
    /// The checkpoint that it was restored from.
    pub(crate) checkpoint: String,
    /// Whether other processes survive its init process, unless they are killed.
    pub(crate) shares_pids: bool,
    /// The request that has created it.
    pub(crate) request: String,
}

impl Task {
    /// The task of a container.
    pub(crate) fn of(container: &Container) -> Self {
        let labels = container.labels();
        let text = labels.get(LABEL).map_or("{}", String::as_str);
        serde_json::from_str(text).unwrap_or_default()
    }

    /// As a label.
    pub(crate) fn label(&self) -> (&'static str, String) {
        (LABEL, serde_json::to_string(self).unwrap_or_default())
    }

    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let mount = |(kind, source, target, options): &(String, String, String, Vec<String>)| {
            let (kind, source, target) = (kind.clone(), source.clone(), target.clone());
            Mount { kind, source, target, options: options.clone() }
        };
        self.rootfs.iter().map(mount).collect()
    }
}

/// The tasks of a namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) supervisor: Supervisor,
    execs: Mutex<HashMap<(ContainerId, ProcessId), Arc<Exec>>>,
    pub(crate) files: ExecFiles,
    pub(crate) forwarder: Forwarder,
    directory: PathBuf,
    /// One creation or removal of an id at a time.
    locks: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Namespace {
    /// Opens a namespace, and finishes what an earlier supervisor or a `delete` could not finish.
    pub(crate) async fn open(
        directory: &Path,
        name: &str,
        containerd: Arc<Mutex<String>>,
        nofile: Option<u64>,
    ) -> Result<Arc<Self>, Error> {
        let supervisor = Supervisor::builder(place::root(directory, name))
            .start_timeout(START_LIMIT)
            .journal(JOURNAL.0, JOURNAL.1)
            .subreaper()
            .container_nofile(nofile)
            .open()
            .await?;
        let files = ExecFiles::at(directory.join("execs").join(name));
        let cursor = directory.join("cursors").join(name);
        let forwarder = Forwarder::begin(name, &supervisor, cursor, containerd);
        let this = Arc::new(Self {
            name: name.to_owned(),
            supervisor,
            execs: Mutex::default(),
            files,
            forwarder,
            directory: directory.to_owned(),
            locks: Mutex::default(),
        });
        this.load_execs();
        tokio::spawn(this.clone().end_leftovers());
        let cleanups = this.cleanups();
        tokio::spawn({
            let this = this.clone();
            async move {
                for cleanup in cleanups {
                    this.cleanup(&cleanup.id, &cleanup.bundle).await;
                }
            }
        });
        Ok(this)
    }

    fn load_execs(&self) {
        // A supervisor may have died between a container's deletion and that of its execs.
        for name in self.files.containers() {
            let is_there =
                name.parse().is_ok_and(|id: ContainerId| self.supervisor.get(&id).is_ok());
            if !is_there {
                self.files.remove_all(&name);
            }
        }
        for (identity, request) in self.files.load() {
            let (Ok(id), Ok(process)) = (request.id.parse(), exec::process_id(&request.exec_id))
            else {
                continue;
            };
            let Ok(container) = self.supervisor.get(&id) else { continue };
            let known = container.process(&process);
            let is_begun = known.as_ref().map(|known| known.info().status != Status::Creating);
            let stage = if is_begun == Some(true) { Stage::Started } else { Stage::Added };
            let exec = Arc::new(Exec::new(process.clone(), request, identity, stage));
            if let Some(begins) = known.filter(|_| stage == Stage::Added) {
                // If no shim had begun it, it is still to be started.
                let exec = exec.clone();
                tokio::spawn(async move {
                    if begins.begun().await.is_ok() {
                        exec.stage.send_if_modified(|stage| {
                            let waits = *stage == Stage::Added;
                            if waits {
                                *stage = Stage::Started;
                            }
                            waits
                        });
                    }
                });
            }
            self.execs().insert((id, process), exec);
        }
    }

    pub(crate) fn execs(&self) -> MutexGuard<'_, HashMap<(ContainerId, ProcessId), Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an exec of a container is being started.
    pub(crate) fn starts_exec(&self, id: &ContainerId) -> bool {
        let execs = self.execs();
        let mut own = execs.iter().filter(|((container, _), _)| container == id);
        own.any(|(_, exec)| exec.start.try_lock().is_err())
    }

    /// What `delete` could not ask a supervisor for.
    fn cleanups(&self) -> Vec<Cleanup> {
        let directory = place::cleanups(&self.directory);
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let whole = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
        let notes = whole.filter_map(|entry| fs::read(entry.path()).ok());
        let notes = notes.filter_map(|note| Cleanup::decode(note.as_slice()).ok());
        notes.filter(|note| note.namespace == self.name).collect()
    }

    /// The lock of an id.
    pub(crate) fn lock_of(&self, id: &ContainerId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds are not needed.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(id.clone()).or_default().clone()
    }

    /// The log program of a process.
    pub(crate) fn binary_log(&self, id: &str, exec: &str) -> BinaryLog {
        let name = if exec.is_empty() { id.to_owned() } else { format!("{id}.exec.{exec}") };
        BinaryLog::at(self.directory.join("logs").join(&self.name).join(name))
    }

    /// The pid that a process has, or had.
    pub(crate) fn pid(&self, id: &ContainerId, process: &ProcessId, now: Option<i32>) -> u32 {
        let file = self.supervisor.root().join(id.as_str()).join(process.as_str()).join("pid");
        let stored = || fs::read_to_string(file).ok()?.trim().parse().ok();
        now.or_else(stored).and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
    }

    /// The pid that the init process of a container has, or had.
    pub(crate) fn pid_of_init(&self, container: &Container) -> u32 {
        self.pid(container.id(), &ProcessId::init(), container.info().pid)
    }

    /// Kills what outlives the init process of a container that shares its pid namespace with others.
    async fn end_leftovers(self: Arc<Self>) {
        let mut events = self.supervisor.events();
        for container in self.supervisor.list() {
            if container.info().status == Status::Stopped {
                end_leftovers_of(&container).await;
            }
        }
        while let Some(event) = events.next().await {
            let Ok(event) = event else { continue };
            let is_end = matches!(event.kind, EventKind::Exited { .. }) && event.process.is_init();
            let Some(container) = Some(&event.container)
                .filter(|_| is_end)
                .and_then(|id| self.supervisor.get(id).ok())
            else {
                continue;
            };
            tokio::spawn(async move { end_leftovers_of(&container).await });
        }
    }

    /// Removes all that is left of a container.
    pub(crate) async fn cleanup(&self, id: &str, bundle: &str) {
        let Ok(container_id) = id.parse::<ContainerId>() else { return };
        // A creation that has begun is cut short rather than waited for.
        if let Ok(container) = self.supervisor.get(&container_id) {
            self.remove(&container).await;
        }
        let lock = self.lock_of(&container_id);
        let _alone = lock.lock().await;
        if let Ok(container) = self.supervisor.get(&container_id) {
            self.remove(&container).await;
        }
        if !bundle.is_empty() {
            clear_rootfs(bundle.into()).await;
        }
        let _ = fs::remove_file(place::cleanup(&self.directory, &self.name, id));
    }

    /// Removes a container by force.
    async fn remove(&self, container: &Container) {
        let task = Task::of(container);
        if let Err(error) = container.delete_forced().await {
            tracing::warn!(container = %container.id(), %error, "a container is not removed");
        }
        self.forget(container.id(), &task).await;
    }

    /// Removes what we have beside a container that is deleted.
    pub(crate) async fn forget(&self, id: &ContainerId, task: &Task) {
        let execs: Vec<_> = self.execs().extract_if(|(container, _), _| container == id).collect();
        for (_, exec) in execs {
            exec.stage.send_replace(Stage::Deleted);
            self.end_log(id.as_str(), &exec.request.exec_id);
        }
        self.files.remove_all(id.as_str());
        self.end_log(id.as_str(), "");
        clear_rootfs(task.bundle.clone()).await;
    }

    /// Has a log program end, if there is one.
    pub(crate) fn end_log(&self, id: &str, exec: &str) {
        let log = self.binary_log(id, exec);
        tokio::task::spawn_blocking(move || log.end_in_time());
    }
}

async fn end_leftovers_of(container: &Container) {
    if Task::of(container).shares_pids
        && let Err(error) = container.signal_all(nix::libc::SIGKILL).await
    {
        tracing::warn!(container = %container.id(), %error, "processes may be left");
    }
}

async fn clear_rootfs(bundle: PathBuf) {
    if bundle.as_os_str().is_empty() {
        return;
    }
    let cleared = tokio::task::spawn_blocking(move || rootfs::clear(&bundle)).await;
    if let Ok(Err(error)) = cleared {
        tracing::warn!(%error, "a root file system stays mounted");
    }
}
