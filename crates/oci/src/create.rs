//! `create`, `run` and `start`.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, bail};
use holdfast_state::Timestamp;
use holdfast_sys::{PidFd, network};
use libcontainer::container::ContainerStatus;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::args::{Create, Global};
use crate::cgroup::{is_unified, wait_for};
use crate::explain::Reason;
use crate::hierarchy::{self, Hierarchy, Visit};
use crate::log::Log;
use crate::program::{Kind, Program};
use crate::record::{Dir, Record, Status, write_atomic};
use crate::spec::Config;
use crate::{confine, delete, devices, hooks, mounts, rootless, stdio};

/// Makes a container whose program waits for [`start`]. This process may still be in cgroups of the
/// container's afterwards.
pub(crate) fn create(global: &Global, log: &Log, args: &Create) -> anyhow::Result<Visit> {
    let dir = Dir::of(&global.root, &args.id)?;
    if dir.exists() {
        bail!("container with id {} exists already", args.id);
    }
    let mut config = Config::load(global, &args.bundle, &args.id)?;
    // The root of a user namespace has no cgroups to put it into.
    let hierarchies = if global.is_inside { Vec::new() } else { hierarchy::all()? };
    let cgroup = config.cgroups(global.makes_by_systemd(), None, &hierarchies)?;
    let members = cgroup.pids().unwrap_or_default();
    if !members.is_empty() {
        // They would be killed with the container.
        bail!(
            "cgroup {} holds {} processes already; choose another cgroupsPath",
            config.cgroup.display(),
            members.len()
        );
    }
    let mut record = Record {
        bundle: config.bundle.clone(),
        rootfs: config.rootfs.clone(),
        created: Timestamp::now(),
        pid: 0,
        start_time: String::new(),
        boot_id: String::new(),
        user_namespace: config.has_user_namespace(),
        no_new_keyring: args.no_new_keyring,
        capabilities: config.capabilities.clone(),
        annotations: config
            .spec
            .annotations()
            .iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<BTreeMap<_, _>>(),
        cgroup,
    };
    dir.create()?;
    // From here on there is something to undo.
    let created = build(global, log, args, &dir, &mut config, &hierarchies, &mut record);
    if created.is_err() {
        kill_children();
        if let Err(error) = record.cgroup.destroy() {
            tracing::error!("undo: {error:#}");
        }
        // As the specification has it, whatever moment failed.
        let hooks = config.spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_deref());
        hooks::poststop(hooks.unwrap_or_default(), &args.id, &record, log);
        _ = std::fs::remove_dir_all(&dir.path);
    }
    created.context("runtime create failed: unable to start container process")
}

fn build(
    global: &Global,
    log: &Log,
    args: &Create,
    dir: &Dir,
    config: &mut Config,
    hierarchies: &[Hierarchy],
    record: &mut Record,
) -> anyhow::Result<Visit> {
    // Held by every process that comes of this, until it becomes the container's program: see
    // `delete`. Ours ends with this function, long before there is something to delete in order.
    let lock = dir.lock_file("create.lock")?;
    lock.lock().context("lock the container")?;
    // With the cgroup in it, a `delete` after a crash of ours finds what there is to kill.
    dir.save(record)?;
    let mut visit = record.cgroup.visit(hierarchies)?;
    config.wrap_hooks(global, visit.homes());
    config.show_own_cgroups(hierarchies);
    config.plan.cgroups.clone_from(&record.cgroup.dirs);
    config.save(&dir.path)?;
    stdio::give_to_user(&config.spec);
    confine::enter_keyring(record)?;
    let mut builder = ContainerBuilder::new(args.id.clone(), SyscallType::Linux)
        .with_root_path(&dir.path)?
        .with_preserved_fds(args.process.preserve_fds)
        .with_executor(Program::new(
            Kind::First,
            config.confinement.clone(),
            log.file(),
            global.log_format,
        )?);
    if let Some(socket) = &args.process.console_socket {
        builder = builder.with_console_socket(Some(rootless::console_socket(global, socket)?));
    }
    let built = builder
        .as_init(&dir.path)
        .with_systemd(global.makes_by_systemd())
        .with_detach(true)
        .with_no_pivot(args.no_pivot)
        .build();
    let mut container = built.map_err(|error| match mounts::failure(&dir.path) {
        Some(text) => Reason(text).into(),
        None => config.explain(error.into()),
    })?;
    if config.has_poststart_hooks() {
        // What they leave running would die with the container.
        visit.end()?;
    }
    let pid = container.pid().context("libcontainer made a container without a process")?;
    record.set_process(pid.as_raw())?;
    config.plan.finish_root(pid.as_raw(), &dir.path)?;
    hierarchy::check_apart(pid.as_raw(), hierarchies)?;
    if config.has_new_network() {
        // As runc does. The program waits for `start`, so it finds it up.
        network::bring_loopback_up(pid.as_raw()).context("bring the loopback interface up")?;
    }
    record.cgroup = config.cgroups(global.makes_by_systemd(), Some(pid.as_raw()), hierarchies)?;
    if !global.is_inside && is_unified()? {
        // Its program waits for `start`, so that it has opened nothing yet.
        let dir = record.cgroup.dirs.first().context("the container has no cgroup")?;
        devices::enforce(config.device_rules(), dir)?;
    }
    config.late.apply(pid.as_raw(), &record.cgroup, config.scope.as_ref(), &args.id)?;
    // The word by which libcontainer allows `exec`; what really is the case, we find out.
    container.set_status(ContainerStatus::Running).save()?;
    dir.save(record)?;
    if let Some(file) = &args.process.pid_file {
        write_atomic(file, pid.to_string().as_bytes())
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(visit)
}

/// Makes a container and starts it; one that does not start is not left behind.
pub(crate) fn run(global: &Global, log: &Log, args: &Create) -> anyhow::Result<()> {
    let visit = create(global, log, args)?;
    let started = start(global, &args.id);
    if started.is_ok() {
        visit.stay();
        return Ok(());
    }
    // The deletion kills whatever is in the container's cgroups.
    drop(visit);
    if let Err(error) = delete::delete(global, log, &args.id, delete::Force::Yes) {
        tracing::error!("undo: {error:#}");
    }
    started
}

/// Lets the program of a created container begin.
pub(crate) fn start(global: &Global, id: &str) -> anyhow::Result<()> {
    let dir = Dir::of(&global.root, id)?;
    let record = dir.record()?;
    let lock = dir.lock_file("lock")?;
    lock.lock().context("lock the container")?;
    match dir.status(&record) {
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running | Status::Paused => bail!("cannot start an already running container"),
        Status::Creating => bail!("cannot start a container that is being created"),
    }
    NotifySocket::new(dir.libcontainer().join(NOTIFY_FILE)).notify_container_start()?;
    dir.mark_started().context("mark the container as started")?;
    drop(lock);
    let done = hooks::poststart(&dir, &record).context("run poststart hooks");
    if done.is_err() {
        // As the specification has it; what it ended with is there to be asked for until `delete`.
        delete::stop(&record)?;
    }
    done
}

/// Ends what a command that failed has begun: its children, none of which a caller knows of.
pub(crate) fn kill_children() {
    let deadline = Instant::now() + std::time::Duration::from_secs(5);
    for pid in holdfast_sys::proc::own_children().unwrap_or_default() {
        // A child keeps its number until it is reaped, here.
        if let Ok(child) = PidFd::open(pid) {
            _ = child.send_signal(nix::sys::signal::Signal::SIGKILL as i32);
            if wait_for(&child, deadline).is_ok() && !child.is_alive() {
                _ = waitpid(Pid::from_raw(pid), None);
            }
        }
    }
}
