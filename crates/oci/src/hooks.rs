//! Hooks that run after libcontainer is through with a container, and the way of earlier ones out of the
//! container's cgroups.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use libcontainer::config::YoukiConfig;
use libcontainer::container::{ContainerStatus, State};
use oci_spec::runtime::Hooks;

use crate::args;
use crate::hierarchy::go_back;
use crate::record::Record;

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

/// How long a poststop hook may take that does not say so itself, in seconds.
const POSTSTOP_LIMIT: i64 = 10;

/// Runs the poststart hooks.
pub(crate) fn poststart(dir: &Path, record: &Record) -> anyhow::Result<()> {
    let hooks = hooks_of(dir)?.and_then(|hooks| hooks.poststart().clone()).unwrap_or_default();
    if hooks.is_empty() {
        return Ok(());
    }
    let state = state(dir, record, ContainerStatus::Running)?;
    Ok(libcontainer::hooks::run_hooks(Some(&hooks), Some(&state), None, None, None)?)
}

/// Runs the poststop hooks. As the specification says, one that fails is logged, and the next one
/// runs. One that does not end is killed.
pub(crate) fn poststop(dir: &Path, record: &Record) {
    let failed = |error: anyhow::Error| tracing::warn!("run a poststop hook: {error:#}");
    let hooks = match hooks_of(dir) {
        Ok(hooks) => hooks.and_then(|hooks| hooks.poststop().clone()).unwrap_or_default(),
        Err(error) => return failed(error),
    };
    for mut hook in hooks {
        if hook.timeout().is_none() {
            hook.set_timeout(Some(POSTSTOP_LIMIT));
        }
        let done = state(dir, record, ContainerStatus::Stopped).and_then(|state| {
            let hooks = vec![hook];
            Ok(libcontainer::hooks::run_hooks(Some(&hooks), Some(&state), None, None, None)?)
        });
        if let Err(error) = done {
            failed(error);
        }
    }
}

fn hooks_of(dir: &Path) -> anyhow::Result<Option<Hooks>> {
    Ok(YoukiConfig::load(dir)?.hooks)
}

/// Returns the state that the runtime specification has hooks read. The process is not looked at: it
/// may have ended, and been reaped, at any moment.
fn state(dir: &Path, record: &Record, status: ContainerStatus) -> anyhow::Result<State> {
    let mut state = State::load(dir)?;
    state.bundle.clone_from(&record.bundle);
    state.annotations = Some(
        record
            .annotations
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<HashMap<_, _>>(),
    );
    state.status = status;
    Ok(state)
}
