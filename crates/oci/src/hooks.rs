//! Hooks that run after libcontainer is through with a container.

use std::collections::HashMap;

use libcontainer::container::{Container, ContainerStatus};
use oci_spec::runtime::Hook;

use crate::record::{Record, Status};

/// Runs hooks with the state that the runtime specification has them read.
pub(crate) fn run(
    hooks: Option<&Vec<Hook>>,
    container: Container,
    record: &Record,
    status: Status,
) -> anyhow::Result<()> {
    if hooks.is_none_or(Vec::is_empty) {
        return Ok(());
    }
    let mut state = container.state;
    state.bundle.clone_from(&record.bundle);
    state.annotations = Some(
        record
            .annotations
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<HashMap<_, _>>(),
    );
    state.status = match status {
        Status::Stopped => ContainerStatus::Stopped,
        _ => ContainerStatus::Running,
    };
    Ok(libcontainer::hooks::run_hooks(hooks, Some(&state), None, None, None)?)
}
