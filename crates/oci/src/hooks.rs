//! Hooks that run after libcontainer is through with a container, and the way of earlier ones out of the
//! container's cgroups.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use libcontainer::container::{ContainerStatus, State};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{Hook, Hooks, Spec};
use serde_json::{Value, json};

use crate::args;
use crate::hierarchy::go_back;
use crate::log::Log;
use crate::record::{Dir, Record};

/// Becomes a hook's program, with the state that the specification has it read.
///
/// libcontainer starts hooks while this runtime visits the container's cgroups; what a hook leaves
/// running would die with the container, and the container could kill it. So it goes to other ones first.
pub(crate) fn execute(hook: &args::Hook) -> anyhow::Result<()> {
    let state = corrected(&hook.state).context("correct the container's state")?;
    hook.cgroup.iter().try_for_each(|dir| go_back(dir))?;
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    let error = command.stdin(state).exec();
    Err(error).with_context(|| format!("execute hook {}", hook.path.display()))
}

/// Reads the state that libcontainer gives a hook, and returns a file of it with the bundle and the
/// annotations of the configuration. Inside the container it has no pid: there it is of the parent.
fn corrected(known: &str) -> anyhow::Result<File> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let mut state: Value = serde_json::from_str(&text)?;
    let known: Value = serde_json::from_str(known)?;
    state["bundle"] = known["bundle"].clone();
    if known["annotations"].is_object() {
        state["annotations"] = known["annotations"].clone();
    }
    if state["pid"].as_i64().is_none_or(|pid| pid == 0) {
        // As /proc has it, which is the host's here, whatever pid namespace this is in.
        let status = fs::read_to_string("/proc/self/status")?;
        let parent =
            status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        state["pid"] = json!(parent.unwrap_or(0_i32));
    }
    let mut file = File::from(memfd_create("state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(state.to_string().as_bytes())?;
    file.rewind()?;
    Ok(file)
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
    let alive = status != ContainerStatus::Stopped && record.pid != 0;
    let pid = alive.then_some(record.pid);
    let mut state = State::new(id, status, pid, record.bundle.clone());
    let annotations = record.annotations.iter();
    let annotations = annotations.map(|(name, value)| (name.clone(), value.clone()));
    state.annotations = Some(annotations.collect::<HashMap<_, _>>());
    state
}
