//! Hooks that run after libcontainer is through with a container, and the way of earlier ones out of the
//! container's cgroups.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use libcontainer::container::{Container, ContainerStatus};
use oci_spec::runtime::Hook;

use crate::args;
use crate::hierarchy::go_back;
use crate::record::{Record, Status};

/// Goes to other cgroups and becomes a hook's program. libcontainer starts hooks while this runtime
/// visits the container's cgroups; what a hook leaves running would die with the container, and the
/// container could kill it.
pub(crate) fn execute(hook: &args::Hook) -> anyhow::Result<()> {
    hook.cgroup.iter().try_for_each(|dir| go_back(dir))?;
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    Err(command.exec()).with_context(|| format!("execute hook {}", hook.path.display()))
}

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
