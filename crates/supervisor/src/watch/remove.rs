//! The only way to remove a container, or the record of an exec. It acts on the object itself and
//! never on its id, which may belong to another one by now.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::{ContainerId, EventKind, ExitRecord, Timestamp};
use tokio::time::timeout;

use crate::core::Core;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::model::lifecycle::{Activity, State};
use crate::model::process::Process;
use crate::os::tasks::blocking;
use crate::shim::control;
use crate::watch::{change, layers};

/// How long a runtime may take to delete what is left of a container.
pub(crate) const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// How long a killed process may take to vanish before it counts as hanging in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long the output of a container that removes itself may wait for its reader.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Whether a running container is killed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    Yes,
    No,
}

/// Why something is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// A caller has asked for it now.
    Asked,
    /// It has ended, and was to be removed then. Possibly nobody knows of its end yet.
    OfItself,
}

/// Deletes a container and everything that is left of it.
pub(crate) async fn delete(
    core: &Arc<Core>,
    container: &Arc<ContainerState>,
    force: Force,
    removal: Removal,
) -> Result<(), Error> {
    let _operation = container.operation.lock().await;
    if !core.knows(container) {
        return Err(Error::NotFound(container.id.clone()));
    }
    if force == Force::Yes && container.init().state() == State::Creating {
        cut_start_short(core, container).await?;
        // A start that was cancelled is cleared away by now. If it succeeded just before, its
        // process has ended; if it was not the first start, the container is stopped again. In both
        // cases the deletion goes on.
        if !core.knows(container) {
            return Ok(());
        }
    }
    let init = container.init();
    match init.state() {
        State::Stopped(_) | State::Live { activity: Activity::Created, .. } => {}
        // The disk refused to make the container again what it was.
        State::Abandoned if init.run > 1 => {}
        State::Creating | State::Abandoned => {
            return Err(container.wrong_state("deletion without force", "created or stopped"));
        }
        _ if force == Force::Yes => {}
        _ => return Err(container.wrong_state("deletion without force", "stopped")),
    }
    // Every process gets the signal before we wait for any of them, and a frozen container is
    // thawed after that.
    for process in container.processes() {
        if let Some(Err(error)) = process.signal(nix::libc::SIGKILL) {
            return Err(error);
        }
    }
    change::thaw(core, container).await?;
    for process in container.processes() {
        vanished(&process).await?;
    }
    container.runtime.delete(&container.id, DELETE_LIMIT).await?;
    let drain = match removal {
        Removal::Asked => Duration::from_secs(1),
        Removal::OfItself => DRAIN_LIMIT,
    };
    for process in container.processes() {
        shim_ended(core, &process, drain).await;
    }
    forget(core, container, &init, removal)
        .await
        .map_err(Error::io(format!("remove the directory of container {}", container.id)))
}

/// Stops a container: with a signal first, and with SIGKILL after the grace period.
pub(crate) async fn stop(
    core: &Core,
    container: &ContainerState,
    signal: i32,
    grace: Duration,
) -> Result<ExitRecord, Error> {
    if container.init().state() == State::Creating {
        if container.init().run == 1 {
            return Err(container.wrong_state("stop", "created, running or paused"));
        }
        cut_start_short(core, container).await?;
    }
    let init = container.init();
    for (signal, limit) in [(signal, grace), (nix::libc::SIGKILL, KILL_LIMIT)] {
        // `None` if it has ended, which is what is wanted.
        init.signal(signal).unwrap_or(Ok(()))?;
        {
            let _operation = container.operation.lock().await;
            change::thaw(core, container).await?;
        }
        if let Ok(ended) = timeout(limit, init.ended()).await {
            return ended.ok_or_else(|| Error::NotFound(container.id.clone()));
        }
    }
    vanished(&init).await?;
    init.ended().await.ok_or_else(|| Error::NotFound(container.id.clone()))
}

/// Cancels a start, and waits until it has failed or the process that it started has ended.
async fn cut_start_short(core: &Core, container: &ContainerState) -> Result<(), Error> {
    // The shim may not have begun yet. It reads this message when it does.
    let _told = match control::cancel_start(&core.root, &container.init()) {
        Ok(told) => Some(told),
        // The directory is gone, so the start is being cleared away already.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(Error::io(format!("cancel the start of container {}", container.id))(
                error,
            ));
        }
    };
    vanished(&container.init()).await
}

/// Ends what is left of a run that is over, so that another can begin: processes that the init
/// process has left running, the runtime's state, and the shims.
pub(crate) async fn clear_run(core: &Core, container: &ContainerState) -> Result<(), Error> {
    container.runtime.delete(&container.id, DELETE_LIMIT).await?;
    for process in container.processes() {
        vanished(&process).await?;
        shim_ended(core, &process, Duration::from_secs(1)).await;
    }
    match container.init().unwatched.is_cancelled() {
        true => Ok(()),
        false => Err(Error::Shim("the shim of the last run does not end".to_owned())),
    }
}

/// Waits until the shim of an ended process is gone. A shim that still waits for a slow reader of a
/// FIFO is made to stop. The output that it holds for that reader is lost.
async fn shim_ended(core: &Core, process: &Process, drain: Duration) {
    if timeout(drain, process.unwatched.cancelled()).await.is_ok() {
        return;
    }
    tracing::warn!(container = %process.container, process = %process.id, "output that waits for a reader is dropped: the container is deleted");
    if let Err(error) = control::cancel(&core.root, process) {
        tracing::debug!(container = %process.container, process = %process.id, %error, "no message could be sent to its shim");
    }
    if timeout(KILL_LIMIT, process.unwatched.cancelled()).await.is_err() {
        tracing::warn!(container = %process.container, process = %process.id, "its shim does not end");
    }
}

/// Waits until a killed process has ended.
pub(crate) async fn vanished(process: &Process) -> Result<(), Error> {
    let pid = process.pid();
    let (id, after) = (process.container.clone(), KILL_LIMIT);
    match (timeout(KILL_LIMIT, process.ended()).await, pid) {
        (Ok(_), _) => Ok(()),
        (Err(_), Some(pid)) => Err(Error::SurvivesKill { id, pid, after }),
        (Err(_), None) => Err(Error::StartDoesNotEnd { id, after }),
    }
}

/// Returns whether this very process is known, and not only one with its name.
fn knows(core: &Core, container: &Arc<ContainerState>, process: &Arc<Process>) -> bool {
    core.knows(container)
        && (Arc::ptr_eq(&container.init(), process)
            || container.execs().get(&process.id).is_some_and(|it| Arc::ptr_eq(it, process)))
}

/// Removes the directory of a process (for an init, that of the whole container), and forgets the
/// process. Does nothing if that has been done before, because the name may belong to another one
/// by now.
pub(crate) async fn forget(
    core: &Arc<Core>,
    container: &Arc<ContainerState>,
    process: &Arc<Process>,
    removal: Removal,
) -> io::Result<()> {
    // The name is taken until this is done. So a second caller finds the process unknown.
    let _alone = container.removal.lock().await;
    if !knows(core, container, process) {
        return Ok(());
    }
    let of_core = core.clone();
    let (of, id, has_been) = (container.clone(), process.id.clone(), process.has_been());
    if has_been {
        // From here on, only the journal knows how the process ended.
        match core.events.sync().await {
            // On a full disk, a deletion may be what helps.
            Err(error) if removal == Removal::Asked => {
                tracing::warn!(container = %container.id, %error, "deleted before its exit is on disk");
            }
            synced => synced?,
        }
    }
    if id.is_init() {
        layers::remove(core, &container.id).await?;
    }
    let removed = blocking(move || match id.is_init() {
        true => of_core.root.remove_container(&of.id),
        false => of_core.root.remove_process(&of_core.root.container(&of.id)?, &id),
    })
    .await;
    // What stays on disk stays known, so that it can be deleted again. A failed start is forgotten
    // in any case.
    if removed.is_err() && has_been {
        return removed;
    }
    if !has_been || !process.id.is_init() {
        // This happens while the id is still taken, because the next process with this id must not
        // be forgotten.
        core.events.forget(process).await;
    }
    if process.id.is_init() {
        container.processes().iter().for_each(|process| process.set_gone());
        let told = {
            // The deletion is published when nothing is left on disk, and before another container
            // can have the id.
            let mut containers = core.containers();
            let last = if has_been { vec![EventKind::Deleted] } else { vec![] };
            let told = core.events.publish(process, Timestamp::now(), last, Box::new(|| {}));
            core.forget(&mut containers, &container.id);
            told
        };
        told.await;
    } else {
        process.set_gone();
        container.execs().remove(&process.id);
    }
    removed
}

/// Waits for the deletion of a container that has ended and is to be deleted after its exit: a
/// caller that knows of the exit may use the id again.
pub(crate) async fn make_way(core: &Arc<Core>, id: &ContainerId) {
    if let Some(old) = core.container(id).filter(|old| old.init().is_to_go()) {
        // It does not matter whether this call deletes the container or another one does. If
        // neither can, the id stays in use.
        let _ = delete(core, &old, Force::No, Removal::OfItself).await;
    }
}

/// Waits until the clients that read the output of a process need it no more, but no longer than its
/// hold lasts. With a container go its execs. Returns false if the supervisor is shut down first.
async fn released(core: &Core, container: &ContainerState, process: &Arc<Process>) -> bool {
    let held = match process.id.is_init() {
        true => container.processes(),
        false => vec![process.clone()],
    };
    let held = held.iter().filter(|process| process.auto_remove && !process.hold.is_zero());
    let waits: Vec<_> =
        held.map(|process| timeout(process.hold, process.released.cancelled())).collect();
    if waits.is_empty() {
        // Then a shutdown waits for the removal, and does not prevent it.
        return true;
    }
    let all = futures::future::join_all(waits);
    tokio::select! {
        biased;
        () = core.tasks.stop.cancelled() => false,
        _ = all => true,
    }
}

/// Deletes a process that is to be deleted after its exit. If the disk or the runtime refuses that,
/// it tries again, with a pause that doubles from 1 s up to 300 s.
pub(crate) async fn remove_exited(
    core: &Arc<Core>,
    container: &Arc<ContainerState>,
    process: &Arc<Process>,
) {
    if !released(core, container, process).await {
        return;
    }
    let mut pause = Duration::from_secs(1);
    loop {
        let removed = if process.id.is_init() {
            delete(core, container, Force::No, Removal::OfItself).await
        } else {
            let removed = forget(core, container, process, Removal::OfItself).await;
            removed.map_err(Error::io(format!("remove process {}", process.id)))
        };
        match removed {
            Ok(()) | Err(Error::NotFound(_) | Error::Closed) => return,
            // The whole container was deleted meanwhile.
            Err(Error::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                process.stays();
                tracing::warn!(container = %process.container, process = %process.id, %error, "not removed after its exit; next attempt in {pause:?}");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.tasks.stop.cancelled() => return,
        }
        pause = (pause * 2).min(Duration::from_secs(300));
    }
}
