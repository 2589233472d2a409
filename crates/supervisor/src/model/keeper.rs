//! Descriptors that outlive this process, in somebody else's keeping: systemd's store, say.
//!
//! With daemon and shim both dead nobody holds a process or its terminal, unless they are kept: then its
//! status is exact all the same (from Linux 6.15 on), and its terminal goes on.
//!
//! Its pipes are not kept: a container may hold the lock of one for ever, and who closes the last copy of
//! its other end waits for that, uninterruptibly. In systemd's store that would be pid 1.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_state::handoff::FdName;
use holdfast_state::{ContainerId, ProcessId};

use crate::model::copies::Copies;
use crate::model::identity::Handle;
use crate::model::process::Process;

/// Keeps descriptors beyond the life of this process.
pub trait Keeper: Send + Sync + fmt::Debug {
    /// Takes a copy of a descriptor, under this name: letters, digits and some signs, no colon.
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()>;

    /// Closes all that has this name.
    fn release(&self, name: &str) -> io::Result<()>;
}

/// What of a process is kept, or was by builds before.
const KEPT: [FdName; 4] = [FdName::Process, FdName::Stdout, FdName::Stderr, FdName::Terminal];

/// The name under which it is kept.
fn name_of(container: &ContainerId, process: &ProcessId, fd: FdName) -> String {
    format!("{container}/{process}/{}", fd.word())
}

/// Who keeps, and what was kept for us by name.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    keeper: Option<Arc<dyn Keeper>>,
    kept: Mutex<HashMap<String, OwnedFd>>,
}

/// What was kept of one process.
#[derive(Debug, Default)]
pub(crate) struct Kept(HashMap<FdName, OwnedFd>);

impl Kept {
    pub(crate) fn is_any(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn take(&mut self, name: FdName) -> Option<OwnedFd> {
        self.0.remove(&name)
    }
}

impl Keeping {
    pub(crate) fn new(keeper: Option<Arc<dyn Keeper>>, kept: Vec<(String, OwnedFd)>) -> Self {
        Self { keeper, kept: Mutex::new(kept.into_iter().collect()) }
    }

    /// Whether there is anybody who keeps.
    pub(crate) fn is_any(&self) -> bool {
        self.keeper.is_some()
    }

    /// What was kept of a process.
    pub(crate) fn of(&self, container: &ContainerId, process: &ProcessId) -> Kept {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |name| Some((name, kept.remove(&name_of(container, process, name))?));
        Kept(KEPT.into_iter().filter_map(of).collect())
    }

    /// Whatever is left is nobody's that is there.
    pub(crate) fn release_rest(&self) {
        let rest = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        for name in rest.into_keys() {
            self.tell(|keeper| keeper.release(&name));
        }
    }

    /// Has a process and its terminal kept.
    pub(crate) fn keep(&self, process: &Process, handle: &Handle, copies: Option<&Copies>) {
        let name = |fd| name_of(&process.container, &process.id, fd);
        self.tell(|keeper| keeper.keep(&name(FdName::Process), handle.pidfd.as_fd()));
        if let Some(terminal) = copies.and_then(Copies::terminal) {
            self.tell(|keeper| keeper.keep(&name(FdName::Terminal), terminal));
        }
    }

    /// A process has ended, and that is on disk.
    pub(crate) fn release(&self, process: &Process) {
        for fd in KEPT {
            let name = name_of(&process.container, &process.id, fd);
            self.tell(|keeper| keeper.release(&name));
        }
    }

    /// A keeper that fails costs what it is there for, and nothing else.
    fn tell(&self, what: impl FnOnce(&dyn Keeper) -> io::Result<()>) {
        if let Some(keeper) = &self.keeper
            && let Err(error) = what(keeper.as_ref())
        {
            tracing::warn!(%error, "descriptor not kept");
        }
    }
}
