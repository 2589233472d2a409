//! `exec`: a further process in a container.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

use crate::args::{Exec, Global};
use crate::confine::{self, Confinement};
use crate::create::kill_children;
use crate::log::Log;
use crate::program::{Kind, Program};
use crate::record::{Dir, Record, Status, write_atomic};
use crate::{check, rootless, spec, stdio};

/// Starts the process and writes its number.
pub(crate) fn exec(global: &Global, log: &Log, args: &Exec) -> anyhow::Result<()> {
    if !args.detach {
        bail!("exec: only --detach is supported");
    }
    let dir = Dir::of(&global.root, &args.id)?;
    let record = dir.record()?;
    match dir.status(&record) {
        Status::Running | Status::Created => {}
        Status::Paused => bail!("cannot exec in a paused container"),
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Creating => bail!("cannot exec in a container that is being created"),
    }
    if record.user_namespace && !global.is_inside {
        // libcontainer would leave the process in the host's user namespace: root is root there.
        bail!("exec in a container with a user namespace is not supported by the embedded runtime");
    }
    let lock = dir.lock_file("exec.lock")?;
    lock.lock_shared().context("lock the container for exec")?;
    let started = start(global, log, args, &dir, &record);
    if started.is_err() {
        kill_children();
    }
    // libcontainer leaves its sockets behind. Whoever is last, and only they, can tell that no
    // other exec is just about to use one.
    if lock.try_lock().is_ok() {
        sweep(&dir.libcontainer());
    }
    started.context("runtime exec failed: unable to start container process")
}

fn start(
    global: &Global,
    log: &Log,
    args: &Exec,
    dir: &Dir,
    record: &Record,
) -> anyhow::Result<()> {
    let mut process = spec::read_json(&args.process)?;
    check::process(&mut process).context("process")?;
    if global.is_inside {
        rootless::check_user(&process).context("process")?;
    }
    spec::normalise_process(&mut process);
    let mut capabilities = confine::take_capabilities(&mut process);
    let parsed: Process = serde_json::from_value(process.clone())
        .with_context(|| format!("parse {}", args.process.display()))?;
    let mut whole = Spec::load(dir.path.join("config.json"))?;
    if capabilities.is_null() {
        capabilities = record.capabilities.clone();
    }
    if let (Value::Null, Some(first)) = (&capabilities, whole.process()) {
        capabilities = json!(first.capabilities());
    }
    whole.set_process(Some(parsed));
    stdio::give_to_user(&whole);
    let confinement = Confinement::new(&capabilities, &whole)?;
    let own = dir.libcontainer().join(format!("tenant-process-{}.json", std::process::id()));
    fs::write(&own, process.to_string()).with_context(|| format!("write {}", own.display()))?;
    confine::enter_keyring(record)?;
    let mut builder = ContainerBuilder::new(args.id.clone(), SyscallType::Linux)
        .with_root_path(&dir.path)?
        .with_preserved_fds(args.common.preserve_fds)
        .with_executor(
            Program::new(Kind::Further, confinement, log.file(), global.log_format)?
                .in_cgroups(&record.cgroup.joined)?,
        );
    if let Some(socket) = &args.common.console_socket {
        builder = builder.with_console_socket(Some(rootless::console_socket(global, socket)?));
    }
    let pid = builder.as_tenant().with_detach(true).with_process(Some(own)).build()?;
    if let Some(file) = &args.common.pid_file {
        write_atomic(file, pid.to_string().as_bytes())
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Removes what belongs to processes that have been started.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tenant-") {
            _ = fs::remove_file(entry.path());
        }
    }
}
