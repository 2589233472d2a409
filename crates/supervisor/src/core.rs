//! The struct that joins the parts of a supervisor.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_state::{ContainerId, GroupName, StateRoot};

use crate::model::container::ContainerState;
use crate::model::events::Events;
use crate::model::keeper::Keeping;
use crate::model::options::Rotation;
use crate::model::process::Process;
use crate::os::cgroup::Moves;
use crate::os::children::Spawned;
use crate::os::closer::Closer;
use crate::os::file_watch::FileWatch;
use crate::os::limits::{Abilities, Limit};
use crate::os::rootless::Rootless;
use crate::os::tasks::Tasks;
use crate::runtime::command::Runtimes;
use crate::shim::Shims;

/// All parts of a supervisor. Its tasks hold it; they end when `tasks.stop` is cancelled.
#[derive(Debug)]
pub(crate) struct Core {
    /// Released by `Supervisor::shutdown`, or when the last task and the last caller's handle are
    /// gone.
    pub(crate) root: Arc<StateRoot>,
    pub(crate) boot_id: String,
    pub(crate) abilities: Abilities,
    pub(crate) limits: Vec<Limit>,
    /// What containers have if this process is not run by root.
    pub(crate) rootless: Option<Rootless>,
    pub(crate) moves: Arc<Moves>,
    pub(crate) runtimes: Runtimes,
    /// The name or path of the default runtime.
    pub(crate) runtime: String,
    pub(crate) start_timeout: Duration,
    /// The soft limit of open files for the processes that shims start.
    pub(crate) container_nofile: Option<u64>,
    /// The shim group of containers that do not name one.
    pub(crate) shim_group: Option<GroupName>,
    /// The size limit of logs that do not set their own.
    pub(crate) log_rotation: Rotation,
    pub(crate) events: Arc<Events>,
    pub(crate) files: Arc<FileWatch>,
    pub(crate) keeping: Keeping,
    pub(crate) spawned: Arc<Spawned>,
    pub(crate) shims: Arc<Shims>,
    /// A permit is held during each adoption. When the shim of a group dies, all its processes
    /// request an adoption at the same time; this limits how many run at once.
    pub(crate) adoptions: tokio::sync::Semaphore,
    pub(crate) closer: Arc<Closer>,
    pub(crate) tasks: Tasks,
    pub(crate) containers: Mutex<BTreeMap<ContainerId, Arc<ContainerState>>>,
    /// How many containers were forgotten since memory was last returned to the kernel.
    pub(crate) forgotten: AtomicUsize,
}

impl Core {
    pub(crate) fn containers(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Arc<ContainerState>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<Arc<ContainerState>> {
        self.containers().get(id).cloned()
    }

    /// Returns whether this very container is known, and not only one with its id.
    pub(crate) fn knows(&self, container: &Arc<ContainerState>) -> bool {
        self.container(&container.id).is_some_and(|known| Arc::ptr_eq(&known, container))
    }

    /// The pids of all processes that are watched or are about to be. For a process in creation,
    /// the pid is read from the runtime's pid file, because the shim has not announced it yet.
    pub(crate) fn processes(&self) -> HashSet<i32> {
        let containers: Vec<_> = self.containers().values().cloned().collect();
        let processes = containers.iter().flat_map(|container| container.processes());
        let number = |process: Arc<Process>| match process.handle() {
            Some(handle) => Some(handle.pid),
            None if process.is_creating() => process.dir(&self.root).ok()?.pid().ok()?,
            None => None,
        };
        processes.filter_map(number).collect()
    }

    /// Removes a deleted container from the map. The caller holds the lock of `self.containers`.
    pub(crate) fn forget(
        &self,
        containers: &mut BTreeMap<ContainerId, Arc<ContainerState>>,
        id: &ContainerId,
    ) {
        /// Memory is returned to the kernel once this many containers were forgotten, and more than
        /// are left. The allocator would otherwise keep that memory.
        const MANY: usize = 500;
        containers.remove(id);
        let gone = self.forgotten.fetch_add(1, Ordering::Relaxed) + 1;
        if gone >= MANY.max(containers.len()) {
            self.forgotten.store(0, Ordering::Relaxed);
            self.tasks.reactor.spawn_blocking(holdfast_sys::memory::trim);
        }
    }
}
