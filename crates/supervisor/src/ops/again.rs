//! Starts a stopped container again: the next run of the same container.

use std::sync::Arc;

use crate::core::Core;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::model::lifecycle::State;
use crate::ops::{layout, start};
use crate::watch::remove;

/// Begins the next run, and waits until it has its process. If that fails, the container is again
/// what it was: stopped, with the exit of its last run.
pub(crate) async fn start_again(
    core: &Arc<Core>,
    container: &Arc<ContainerState>,
) -> Result<(), Error> {
    let begun = {
        let _operation = container.operation.lock().await;
        let last = container.init();
        let can_start = matches!(last.state(), State::Stopped(_)) && !last.auto_remove;
        if !can_start || last.is_gone() {
            return Err(container.wrong_state("start", "created or stopped"));
        }
        core.moves.prepare();
        remove::clear_run(core, container).await?;
        // From here on, only the journal and the list of runs know how the last run ended.
        let failed = Error::io(format!("sync the journal for container {}", container.id));
        core.events.sync().await.map_err(failed)?;
        let (core, container) = (core.clone(), container.clone());
        let begun = tokio::task::spawn_blocking(move || {
            let job = layout::next_run(&core, &container)?;
            container.begin_run(job.process.clone());
            Ok(start::begin(&core, &container, &job))
        });
        Error::joined(begun.await)?
    };
    // Without the lock, so that the start can be cancelled.
    start::launch(core, begun).await
}
