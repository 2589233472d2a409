//! Changes of a container that its runtime makes: start, pause, resume. Also finds out the outcome
//! of a change whose end nobody saw.

use std::time::Duration;

use crate::core::Core;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::model::info::Status;
use crate::model::lifecycle::{Change, Input, State};
use crate::os::cgroup::Cgroups;
use crate::os::tasks::blocking;

/// How long a runtime may take to freeze, thaw or limit a container.
pub(crate) const OPERATION_LIMIT: Duration = Duration::from_secs(30);
/// How long a runtime may take to report the state of a container.
const STATUS_LIMIT: Duration = Duration::from_secs(30);

/// Makes a change. The caller holds the operation lock of the container.
pub(crate) async fn make(
    core: &Core,
    container: &ContainerState,
    change: Change,
    verb: &'static str,
    needed: &'static str,
) -> Result<(), Error> {
    let init = container.init();
    if !matches!(init.state(), State::Live { activity, .. } if activity == change.path()[0]) {
        return Err(container.wrong_state(verb, needed));
    }
    init.apply(&core.events, Input::Begin(change)).await;
    let done = container.runtime.command(verb, vec![], &container.id, OPERATION_LIMIT).await;
    settle(core, container, change, &done).await;
    done
}

/// Records the outcome of a change. A command that failed or was killed may have done its work all
/// the same, so the outcome is then looked up.
pub(crate) async fn settle(
    core: &Core,
    container: &ContainerState,
    change: Change,
    done: &Result<(), Error>,
) {
    let outcome = match done {
        Ok(()) => Input::Done,
        Err(error) => {
            let outcome = outcome(container, change).await;
            tracing::warn!(container = %container.id, ?change, ?outcome, %error, "the runtime failed; the outcome was looked up");
            outcome
        }
    };
    container.init().apply(&core.events, outcome).await;
}

/// Thaws a container for a signal that would otherwise wait for ever: on cgroup v1, a frozen
/// process does not even die of SIGKILL. It does not matter who froze the container, or whether the
/// supervisor knows of it.
pub(crate) async fn thaw(core: &Core, container: &ContainerState) -> Result<(), Error> {
    if container.init().status() == Status::Paused {
        return make(core, container, Change::Resume, "resume", "paused").await;
    }
    let Some(pid) = container.init().pid() else { return Ok(()) };
    let frozen = blocking(move || Ok(Cgroups::of(pid)?.is_frozen())).await;
    if frozen.unwrap_or(false) {
        container.runtime.command("resume", vec![], &container.id, OPERATION_LIMIT).await?;
    }
    Ok(())
}

/// Returns the outcome of a change that was begun, when its command failed or the process that gave
/// the command died.
///
/// The kernel knows whether a container with a freezer is frozen. Only the runtime knows everything
/// else. If the runtime gives no answer, a container counts as started, because nobody may start it
/// twice, and as not paused.
pub(crate) async fn outcome(container: &ContainerState, change: Change) -> Input {
    let frozen = match container.init().pid() {
        Some(pid) if change != Change::Start => {
            blocking(move || Ok(Cgroups::of(pid)?.is_frozen())).await.unwrap_or_default()
        }
        _ => false,
    };
    let status = if frozen {
        "paused".to_owned()
    } else {
        container.runtime.status(&container.id, STATUS_LIMIT).await.unwrap_or_else(|error| {
            tracing::warn!(container = %container.id, ?change, %error, "the runtime does not report the state of the container");
            String::new()
        })
    };
    let done = match change {
        Change::Start => status != "created",
        Change::Pause => status == "paused",
        Change::Resume => status != "paused",
    };
    if done { Input::Done } else { Input::NotDone }
}
