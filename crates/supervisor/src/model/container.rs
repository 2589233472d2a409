//! A container, as the parts of the library share it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_state::{ContainerId, ProcessId};

use crate::error::Error;
use crate::model::process::Process;
use crate::runtime::command::Runtime;

/// The shared state of a container.
#[derive(Debug)]
pub(crate) struct ContainerState {
    pub(crate) id: ContainerId,
    pub(crate) runtime: Runtime,
    pub(crate) init: Arc<Process>,
    execs: Mutex<BTreeMap<ProcessId, Arc<Process>>>,
    /// Held while the runtime changes the container, so that only one change happens at a time.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// Held while a directory of the container is removed.
    pub(crate) removal: tokio::sync::Mutex<()>,
}

impl ContainerState {
    pub(crate) fn new(id: ContainerId, runtime: Runtime, init: Arc<Process>) -> Self {
        let (execs, operation, removal) = Default::default();
        Self { id, runtime, init, execs, operation, removal }
    }

    pub(crate) fn execs(&self) -> MutexGuard<'_, BTreeMap<ProcessId, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the init process and all exec processes.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        std::iter::once(self.init.clone()).chain(self.execs().values().cloned()).collect()
    }

    /// Returns the error for an operation that needs the container in another state.
    pub(crate) fn wrong_state(&self, operation: &'static str, needed: &'static str) -> Error {
        if self.init.is_gone() {
            return Error::NotFound(self.id.clone());
        }
        let status = self.init.status().as_str();
        Error::WrongState { id: self.id.clone(), status, operation, needed }
    }
}
