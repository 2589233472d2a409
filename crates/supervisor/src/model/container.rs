//! A container, as the parts of the library share it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_state::{ContainerId, ProcessId};

use crate::error::Error;
use crate::model::process::{Origin, Process};
use crate::runtime::command::Runtime;

/// The shared state of a container.
#[derive(Debug)]
pub(crate) struct ContainerState {
    pub(crate) id: ContainerId,
    pub(crate) runtime: Runtime,
    /// Whether the supervisor restored it from disk.
    pub(crate) restored: bool,
    /// The init process of the current run. Replaced only while `operation` is held, or by the watch
    /// of a run that was not begun.
    init: Mutex<Arc<Process>>,
    execs: Mutex<BTreeMap<ProcessId, Arc<Process>>>,
    /// Held while the runtime changes the container, so that only one change happens at a time.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// Held while a directory of the container is removed.
    pub(crate) removal: tokio::sync::Mutex<()>,
}

impl ContainerState {
    pub(crate) fn new(id: ContainerId, runtime: Runtime, init: Arc<Process>) -> Self {
        let (execs, operation, removal) = Default::default();
        let (restored, init) = (init.origin == Origin::Restored, Mutex::new(init));
        Self { id, runtime, restored, init, execs, operation, removal }
    }

    /// Returns the init process of the current run.
    pub(crate) fn init(&self) -> Arc<Process> {
        self.init.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does something with the files of the current run. They have the place of those of the run before: if
    /// another run has begun meanwhile, it is done again with that one.
    pub(crate) fn with_run<T, E>(
        &self,
        act: impl Fn(&Arc<Process>) -> Result<T, E>,
    ) -> Result<T, E> {
        loop {
            let init = self.init();
            match act(&init) {
                Err(_) if init.is_gone() && !Arc::ptr_eq(&init, &self.init()) => {}
                done => return done,
            }
        }
    }

    /// Begins another run. The process of the last one has no directory any more.
    pub(crate) fn begin_run(&self, process: Arc<Process>) {
        let mut init = self.init.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *init, process).set_gone();
    }

    pub(crate) fn execs(&self) -> MutexGuard<'_, BTreeMap<ProcessId, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the init process and all exec processes.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        std::iter::once(self.init()).chain(self.execs().values().cloned()).collect()
    }

    /// Returns the error for an operation that needs the container in another state.
    pub(crate) fn wrong_state(&self, operation: &'static str, needed: &'static str) -> Error {
        let init = self.init();
        if init.is_gone() {
            return Error::NotFound(self.id.clone());
        }
        let status = init.status().as_str();
        Error::WrongState { id: self.id.clone(), status, operation, needed }
    }
}
