//! What a supervisor consists of.

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
use crate::os::tasks::Tasks;
use crate::runtime::command::Runtimes;
use crate::shim::Shims;

/// All parts. Tasks hold them, and end when they are told to stop.
#[derive(Debug)]
pub(crate) struct Core {
    /// Given free by a shutdown, else with the last task and the last handle of a caller's.
    pub(crate) root: Arc<StateRoot>,
    pub(crate) boot_id: String,
    pub(crate) abilities: Abilities,
    pub(crate) limits: Vec<Limit>,
    pub(crate) moves: Arc<Moves>,
    pub(crate) runtimes: Runtimes,
    /// The default runtime's name or path.
    pub(crate) runtime: String,
    pub(crate) start_timeout: Duration,
    /// The soft limit of open files for what shims start.
    pub(crate) container_nofile: Option<u64>,
    /// Of containers that name none.
    pub(crate) shim_group: Option<GroupName>,
    /// Of logs that do not say so themselves.
    pub(crate) log_rotation: Rotation,
    pub(crate) events: Arc<Events>,
    pub(crate) files: Arc<FileWatch>,
    pub(crate) keeping: Keeping,
    pub(crate) spawned: Arc<Spawned>,
    pub(crate) shims: Arc<Shims>,
    /// Held for an adoption: when a group dies, all that it had ask at once.
    pub(crate) adoptions: tokio::sync::Semaphore,
    pub(crate) closer: Arc<Closer>,
    pub(crate) tasks: Tasks,
    pub(crate) containers: Mutex<BTreeMap<ContainerId, Arc<ContainerState>>>,
    /// How many containers have been forgotten since memory was given back.
    pub(crate) forgotten: AtomicUsize,
}

impl Core {
    pub(crate) fn containers(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Arc<ContainerState>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<Arc<ContainerState>> {
        self.containers().get(id).cloned()
    }

    /// The numbers of all processes that are watched, or are about to be: a runtime has written down what
    /// its shim has still to announce.
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

    /// Forgets a container that has gone. Called under the lock of the containers.
    pub(crate) fn forget(
        &self,
        containers: &mut BTreeMap<ContainerId, Arc<ContainerState>>,
        id: &ContainerId,
    ) {
        /// Once so many have gone, and more than are left: the allocator would keep what they took.
        const MANY: usize = 500;
        containers.remove(id);
        let gone = self.forgotten.fetch_add(1, Ordering::Relaxed) + 1;
        if gone >= MANY.max(containers.len()) {
            self.forgotten.store(0, Ordering::Relaxed);
            self.tasks.reactor.spawn_blocking(holdfast_sys::memory::trim);
        }
    }
}
