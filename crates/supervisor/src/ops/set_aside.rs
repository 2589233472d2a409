//! Handles a container or an exec that can't be restored.
//!
//! A damaged one is moved aside, so that its id becomes free. It stays if something of it may still
//! run: it is not killed because of a bad file, and its runtime, its cgroups and its shim continue
//! under the id. So the id is not free, whatever the directory is called. It is then moved at a
//! later restart. What a newer build wrote, or what can't be read at the moment, is not damaged,
//! and stays untouched.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_state::directory::is_damage;
use holdfast_state::journal::{KnownContainer, KnownProcess};
use holdfast_state::process_dir::LoadError;
use holdfast_state::{ContainerDir, ContainerId, EventKind, Problem, ProcessDir, ProcessId};

use crate::core::Core;
use crate::error::Error;
use crate::model::identity::Handle;

/// Why something on disk was not restored.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Its content is not valid.
    Damaged(String),
    /// It may be valid, but this build can't use it, or it can't be read now.
    Refused(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        if is_damage(&error) {
            Self::Damaged(error.to_string())
        } else {
            Self::Refused(error.to_string())
        }
    }
}

impl From<LoadError> for Trouble {
    fn from(error: LoadError) -> Self {
        if error.is_damage() {
            Self::Damaged(error.to_string())
        } else {
            Self::Refused(error.to_string())
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match &error {
            Error::Io { cause, .. } if is_damage(cause) => Self::Damaged(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// Sets a container aside if it is damaged and nothing of it may still run. Returns the problem to
/// report.
pub(crate) fn container(core: &Arc<Core>, id: &ContainerId, trouble: Trouble) -> Problem {
    let path = core.root.path().join(id.as_str());
    let damage = match trouble {
        Trouble::Refused(reason) => return told(Problem::new(path, reason)),
        Trouble::Damaged(reason) => reason,
    };
    let looked = core.root.container(id).and_then(|dir| {
        let (known, _) = core.events.known(&dir, id, None);
        let names = dir.directory().names()?;
        // The init is checked even if its directory is missing.
        let init = std::iter::once(ProcessId::init());
        let mut processes = init.chain(names.iter().filter_map(|name| name.parse().ok()));
        let living =
            processes.find_map(|process| living(&dir, &process, known.processes.get(&process)));
        Ok((living, known))
    });
    let moved = match looked {
        Ok((None, known)) => core.root.set_container_aside(id, &damage).inspect(|_| {
            core.events.append(vec![known.event(id, EventKind::SetAside)]);
        }),
        Ok((Some(living), _)) => return told(Problem::new(path, left(&damage, &living))),
        Err(error) => Err(error),
    };
    told(outcome(damage, path, moved))
}

/// Does the same as [`container`], for an exec of a container that was restored.
pub(crate) fn process(
    core: &Arc<Core>,
    container: &ContainerId,
    known: &KnownContainer,
    id: &ProcessId,
    trouble: Trouble,
) -> Problem {
    let path = core.root.path().join(container.as_str()).join(id.as_str());
    let damage = match trouble {
        Trouble::Refused(reason) => return told(Problem::new(path, reason)),
        Trouble::Damaged(reason) => reason,
    };
    let moved = match core.root.container(container) {
        Ok(dir) => {
            if let Some(living) = living(&dir, id, known.processes.get(id)) {
                return told(Problem::new(path, left(&damage, &living)));
            }
            let reason = format!("process {id} of container {container}: {damage}");
            core.root.set_process_aside(&dir, container, id, &reason).inspect(|_| {
                let mut event = known.event(container, EventKind::SetAside);
                event.process = id.clone();
                core.events.append(vec![event]);
            })
        }
        Err(error) => Err(error),
    };
    told(outcome(damage, path, moved))
}

/// Returns a problem for each exec whose directory is missing, although the journal contains its
/// creation and not its end.
pub(crate) fn lost(
    directory: &Path,
    execs: &[(ProcessId, ProcessDir)],
    known: &KnownContainer,
) -> Vec<Problem> {
    let is_there = |id: &ProcessId| execs.iter().any(|(there, _)| there == id);
    let gone = known.processes.iter().filter(|(id, _)| !id.is_init() && !is_there(id));
    let open = gone.filter(|(_, known)| known.exited.is_none() && !known.failed);
    let lost = |(id, known): (ProcessId, &KnownProcess)| {
        let pid = known.pid?;
        let reason = format!(
            "its directory is gone, and its exit was never reported: it was process {pid}, which is not signalled"
        );
        Some(told(Problem::new(directory.join(id.as_str()), reason)))
    };
    open.filter_map(lost).collect()
}

fn left(damage: &str, living: &str) -> String {
    format!(
        "{damage}; {living}, so it stays where it is and its id remains in use; it is set aside when the supervisor is opened again after its end"
    )
}

fn outcome(damage: String, path: PathBuf, moved: io::Result<PathBuf>) -> Problem {
    match moved {
        Ok(path) => Problem::new(path, format!("set aside: {damage}")),
        Err(error) => Problem::new(path, format!("{damage}; it can't be set aside: {error}")),
    }
}

fn told(problem: Problem) -> Problem {
    tracing::error!(path = %problem.path.display(), reason = problem.reason, "not restored");
    problem
}

/// Returns what may still run of a process, as far as its damaged directory and the journal of the
/// container show. In doubt, the process counts as running.
fn living(
    container: &ContainerDir,
    id: &ProcessId,
    known: Option<&KnownProcess>,
) -> Option<String> {
    let dir = container.process(id).ok();
    if let Some(pid) = living_process(dir.as_ref(), known) {
        return Some(format!("process {pid}, which may be its {id}, runs and is not signalled"));
    }
    // A shim holds the reading end of the control FIFO for as long as it lives.
    let has_shim = dir.is_some_and(|dir| dir.control_writer().is_ok());
    has_shim.then(|| format!("the shim of its {id} runs"))
}

fn living_process(dir: Option<&ProcessDir>, known: Option<&KnownProcess>) -> Option<i32> {
    if dir.is_some_and(|dir| dir.exit().is_ok_and(|exit| exit.is_some())) {
        return None;
    }
    if known.is_some_and(|known| known.exited.is_some()) {
        return None;
    }
    let told = known.and_then(|known| known.pid);
    let record = dir.and_then(|dir| dir.load().ok());
    let may_be_it = |pid: &i32| {
        let handle = Handle::open(*pid).ok().flatten().filter(|handle| handle.pidfd.is_alive());
        handle
            .is_some_and(|handle| record.as_ref().is_none_or(|record| handle.is_process_of(record)))
    };
    let named = dir.and_then(|dir| dir.pid().ok().flatten());
    named.into_iter().chain(told).find(may_be_it)
}
