//! Descriptors that outlive this process, because someone else keeps them: for example systemd, in
//! its file descriptor store.
//!
//! If the supervisor and a shim are both dead, nobody holds the process or its terminal, unless a
//! keeper does. Then the exit status is exact all the same (Linux 6.15 or later), and the terminal
//! survives.
//!
//! Pipes are not given to the keeper. A container may hold the lock of a pipe for ever, and closing
//! the last copy of the other end waits for that lock, uninterruptibly. In systemd's store, the
//! process that would hang is pid 1.

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
    /// Stores a copy of a descriptor under a name, which has letters, digits and some punctuation,
    /// but no colon.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be stored. The supervisor logs this and continues without the copy.
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()>;

    /// Closes all descriptors that are stored under this name.
    ///
    /// # Errors
    ///
    /// If they cannot be closed. The supervisor logs this.
    fn release(&self, name: &str) -> io::Result<()>;
}

/// The kinds of descriptors that are stored for a process, or were by earlier builds.
const KEPT: [FdName; 4] = [FdName::Process, FdName::Stdout, FdName::Stderr, FdName::Terminal];

/// Returns the name under which a descriptor is stored.
fn name_of(container: &ContainerId, process: &ProcessId, fd: FdName) -> String {
    format!("{container}/{process}/{}", fd.word())
}

/// The keeper, and the descriptors that it kept for this supervisor, by name.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    keeper: Option<Arc<dyn Keeper>>,
    kept: Mutex<HashMap<String, OwnedFd>>,
}

/// The descriptors that were kept for one process.
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

    /// Returns whether there is a keeper.
    pub(crate) fn is_any(&self) -> bool {
        self.keeper.is_some()
    }

    /// Takes the descriptors that were kept for a process.
    pub(crate) fn of(&self, container: &ContainerId, process: &ProcessId) -> Kept {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |name| Some((name, kept.remove(&name_of(container, process, name))?));
        Kept(KEPT.into_iter().filter_map(of).collect())
    }

    /// Releases all descriptors that were not taken: their processes do not exist any more.
    pub(crate) fn release_rest(&self) {
        let rest = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        for name in rest.into_keys() {
            self.tell(|keeper| keeper.release(&name));
        }
    }

    /// Stores the pidfd and the terminal of a process.
    pub(crate) fn keep(&self, process: &Process, handle: &Handle, copies: Option<&Copies>) {
        let name = |fd| name_of(&process.container, &process.id, fd);
        self.tell(|keeper| keeper.keep(&name(FdName::Process), handle.pidfd.as_fd()));
        if let Some(terminal) = copies.and_then(Copies::terminal) {
            self.tell(|keeper| keeper.keep(&name(FdName::Terminal), terminal));
        }
    }

    /// Releases the descriptors of a process that has exited, once its exit is on disk.
    pub(crate) fn release(&self, process: &Process) {
        for fd in KEPT {
            let name = name_of(&process.container, &process.id, fd);
            self.tell(|keeper| keeper.release(&name));
        }
    }

    /// Calls the keeper. If it fails, only the protection that it gives is lost.
    fn tell(&self, what: impl FnOnce(&dyn Keeper) -> io::Result<()>) {
        if let Some(keeper) = &self.keeper
            && let Err(error) = what(keeper.as_ref())
        {
            tracing::warn!(%error, "the keeper failed");
        }
    }
}
