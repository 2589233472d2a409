//! Hooks that run after libcontainer is through with a container, and the way of earlier ones out of the
//! container's cgroups.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use libcontainer::container::{ContainerStatus, State};
use oci_spec::runtime::{Hook, Hooks, Spec};

use crate::args;
use crate::hierarchy::go_back;
use crate::log::Log;
use crate::record::{Dir, Record};

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

/// How long a poststop hook may take that does not say so itself.
const POSTSTOP_LIMIT: Duration = Duration::from_secs(10);
/// How long all of those may take: whoever deletes a container waits for them.
const POSTSTOP_LIMIT_OF_ALL: Duration = Duration::from_secs(20);

/// Runs the poststart hooks.
pub(crate) fn poststart(dir: &Dir, record: &Record) -> anyhow::Result<()> {
    let hooks = of(dir)?.and_then(|hooks| hooks.poststart().clone()).unwrap_or_default();
    if hooks.is_empty() {
        return Ok(());
    }
    let state = state(&dir.id, record, ContainerStatus::Running);
    Ok(libcontainer::hooks::run_hooks(Some(&hooks), Some(&state), None, None, None)?)
}

/// Runs the poststop hooks. As the specification says, one that fails is logged, and the next one
/// runs. One that does not end is killed.
pub(crate) fn poststop(hooks: &[Hook], id: &str, record: &Record, log: &Log) {
    let state = state(id, record, ContainerStatus::Stopped);
    let deadline = Instant::now() + POSTSTOP_LIMIT_OF_ALL;
    for hook in hooks {
        let mut bounded = hook.clone();
        if hook.timeout().is_none() {
            let left = deadline.saturating_duration_since(Instant::now()).min(POSTSTOP_LIMIT);
            bounded.set_timeout(i64::try_from(left.as_secs().max(1)).ok());
        }
        let hooks = vec![bounded];
        let done = libcontainer::hooks::run_hooks(Some(&hooks), Some(&state), None, None, None);
        if let Err(error) = done {
            let context = format!("poststop hook {}", hook.path().display());
            log.warn(&anyhow::Error::from(error).context(context));
        }
    }
}

/// Returns the hooks of a container.
pub(crate) fn of(dir: &Dir) -> anyhow::Result<Option<Hooks>> {
    Ok(Spec::load(dir.path.join("config.json"))?.hooks().clone())
}

/// Returns the state that the runtime specification has hooks read. The process is not looked at: it
/// may have ended, and been reaped, at any moment.
fn state(id: &str, record: &Record, status: ContainerStatus) -> State {
    let pid = (record.pid != 0).then_some(record.pid);
    let mut state = State::new(id, status, pid, record.bundle.clone());
    let annotations = record.annotations.iter();
    let annotations = annotations.map(|(name, value)| (name.clone(), value.clone()));
    state.annotations = Some(annotations.collect::<HashMap<_, _>>());
    state
}
