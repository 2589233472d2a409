//! Failed starts: finds the reason, and removes what is left of them.

use std::sync::Arc;
use std::time::Duration;

use holdfast_state::ProcessDir;
use holdfast_state::process_dir::StartError;

use crate::core::Core;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::model::lifecycle::Input;
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
    let failure = match &dir {
        Ok(dir) => explain(dir, given_up == Some(true), process.start_timeout),
        Err(_) => Error::NotStarted(String::new()),
    };
    if process.origin == Origin::Restored {
        tracing::warn!(container = %process.container, process = %process.id, %failure, "unfinished start cleared away");
    }
    if process.tell_failure() {
        // The failure is reported before anything is removed. If we die in between, the next
        // supervisor knows from the journal that it was reported.
        process.apply(&core.events, Input::Failed(failure.to_string())).await;
    }
    process.fail(failure);
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
    if let Err(error) = remove::forget(core, container, process, Removal::OfItself).await {
        tracing::error!(container = %process.container, process = %process.id, %error, "failed start: its directory was not removed");
    }
}

fn explain(dir: &ProcessDir, timed_out: bool, timeout: Duration) -> Error {
    let start_error = dir.start_error();
    if timed_out {
        let detail = match start_error {
            Some(StartError::Runtime(text)) => format!("oci runtime error: {text}"),
            Some(StartError::Shim(_)) | None => dir.stderr_tail(),
        };
        return Error::StartTimeout { timeout, detail };
    }
    match start_error {
        Some(StartError::Shim(text)) => Error::Shim(text),
        Some(StartError::Runtime(text)) => Error::Runtime(text),
        None => match dir.stderr_tail() {
            // A runtime that fails before it has read its log option writes the reason to standard
            // error.
            text if !text.is_empty() => Error::Runtime(text),
            _ => Error::NotStarted(String::new()),
        },
    }
}
