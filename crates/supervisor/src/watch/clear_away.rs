//! Failed starts: finds the reason, and removes what is left of them.

use std::io;
use std::sync::Arc;

use holdfast_state::process_dir::StartError;
use holdfast_state::{PastRun, ProcessDir};

use crate::core::Core;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::model::failure::Failure;
use crate::model::lifecycle::{Input, State};
use crate::model::process::{Origin, Process};
use crate::os::cgroup::Cgroups;
use crate::os::tasks::blocking;
use crate::watch::leftovers;
use crate::watch::remove::{self, Removal};

/// Finds out why a start failed, and removes everything that is left of it.
///
/// `given_up` is set if the shim has given up the start by itself. It says whether the start took
/// too long.
pub(crate) async fn clear_away(
    core: &Arc<Core>,
    container: &Arc<ContainerState>,
    process: &Arc<Process>,
    given_up: Option<bool>,
) {
    let dir = process.dir(&core.root);
    let found = match &dir {
        Ok(dir) => explain(dir, process, given_up == Some(true)),
        Err(_) => Failure::NotStarted(String::new()),
    };
    let begun = !matches!(found, Failure::NotBegun);
    let failure = process.fail(found);
    let reason = || Error::from(failure.clone()).to_string();
    if process.origin == Origin::Restored {
        tracing::warn!(container = %process.container, process = %process.id, failure = reason(), "unfinished start cleared away");
    }
    // Of what was never begun nobody is told: who has asked for it asks again.
    if begun && process.tell_failure() {
        // The failure is reported before anything is removed. If we die in between, the next
        // supervisor knows from the journal that it was reported.
        process.apply(&core.events, Input::Failed(reason())).await;
    }
    let ended = move |dir: &ProcessDir| {
        leftovers::end_runtime(dir)?;
        leftovers::end_process(dir)
    };
    // A shim that gave up the start has already ended all its processes.
    if given_up.is_none()
        && let Ok(dir) = dir
        && let Err(error) = blocking(move || ended(&dir)).await
    {
        tracing::warn!(container = %process.container, process = %process.id, %error, "failed start: its process was not ended");
    }
    if process.id.is_init()
        && let Err(error) = container.runtime.delete(&process.container, remove::DELETE_LIMIT).await
    {
        tracing::warn!(container = %process.container, %error, "failed start: the container was not deleted from the runtime");
    }
    // A runtime that was killed during the start may have created cgroups, and not know of them.
    if process.id.is_init()
        && let Ok(own) = Cgroups::own()
    {
        own.remove_empty_below(process.container.as_str());
    }
    let done = if process.id.is_init() && process.run > 1 {
        // A run that was never begun is none: its number is that of the next one.
        go_back(core, container, process, begun.then(reason)).await
    } else {
        remove::forget(core, container, process, Removal::OfItself).await
    };
    if let Err(error) = done {
        tracing::error!(container = %process.container, process = %process.id, %error, "failed start: its files are left");
    }
}

/// Makes a container whose next run has failed to start again what it was.
async fn go_back(
    core: &Core,
    container: &ContainerState,
    process: &Arc<Process>,
    failed: Option<String>,
) -> io::Result<()> {
    let (root, of) = (core.root.clone(), process.clone());
    let reverted = blocking(move || {
        let failed = failed.map(|reason| PastRun::failed(of.run, &reason));
        of.dir(&root)?.revert_run(failed)
    });
    let (record, exit, started) = reverted.await?;
    let state = State::Stopped(exit);
    let last = Process::new(&container.id, &process.id, &record, state, None, Origin::Made);
    last.note_start(started);
    last.unwatched.cancel();
    container.begin_run(Arc::new(last));
    Ok(())
}

fn explain(dir: &ProcessDir, process: &Process, timed_out: bool) -> Failure {
    let start_error = dir.start_error();
    let timeout = process.start_timeout;
    // What earlier runs have written is no reason.
    let stderr_tail = || match process.run {
        1 => dir.stderr_tail(""),
        _ => dir.stderr_tail(process.since.as_str()),
    };
    if timed_out {
        let detail = match start_error {
            Some(StartError::Runtime(text)) => format!("oci runtime error: {text}"),
            Some(StartError::Shim(_)) | None => stderr_tail(),
        };
        return Failure::Timeout { timeout, detail };
    }
    match start_error {
        Some(StartError::Shim(text)) => Failure::Shim(text),
        Some(StartError::Runtime(text)) => Failure::Runtime(text),
        None => match stderr_tail() {
            // A runtime that fails before it has read its log option writes the reason to standard
            // error.
            text if !text.is_empty() => Failure::Runtime(text),
            _ if process.origin == Origin::Restored && was_never_begun(dir) => Failure::NotBegun,
            _ => Failure::NotStarted(String::new()),
        },
    }
}

/// Whether it is certain that no shim has begun.
fn was_never_begun(dir: &ProcessDir) -> bool {
    let Ok(record) = dir.load() else { return false };
    record.holdfast.is_some_and(|own| own.marks_start) && dir.has_begun().is_ok_and(|it| !it)
}
