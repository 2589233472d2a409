//! What a call asks for, by the library.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use holdfast_supervisor::{
    CheckpointOptions, Container, ContainerId, ContainerOptions, Error, ErrorKind, ExecInfo,
    ExecOptions, ExecProcess, ExitRecord, GroupName, ProcessId, Status, TerminalSize,
};
use holdfast_ttrpc::rpc::{Code, Failure};
use holdfast_ttrpc::task::{
    CheckpointTaskRequest, CloseIORequest, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, ExecProcessRequest, KillRequest, PidsResponse, ResizePtyRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use holdfast_ttrpc::types::{self, Any, ProcessDetails, ProcessInfo, RuncOptions, Timestamp};
use serde_json::{Map, Value};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::call::Caller;
use crate::exec::{self, Exec, Stage};
use crate::failure::{Answer, internal, invalid, not_found, of, of_runtime, precondition};
use crate::namespace::{Namespace, Task};
use crate::options;
use crate::rootfs;
use crate::stdio::{self, Place, Wanted, Way};

pub(crate) fn container(namespace: &Namespace, id: &str) -> Answer<Container> {
    let id: ContainerId =
        id.parse().map_err(|_| not_found(format!("container {id:?} not created")))?;
    let found = namespace.supervisor.get(&id);
    found.map_err(|_| not_found(format!("container {id} not created: not found")))
}

/// How long a signal waits for a container that is being created: a containerd that was killed in its `Create` and
/// starts anew finds it so.
const CREATION: Duration = Duration::from_secs(5);

/// A process that a call names: the init process, or an exec.
enum Named {
    Init(Container),
    Exec(Container, Arc<Exec>, Option<ExecProcess>),
}

fn named(namespace: &Namespace, id: &str, exec: &str) -> Answer<Named> {
    let container = container(namespace, id)?;
    if exec.is_empty() {
        return Ok(Named::Init(container));
    }
    let missing = || not_found(format!("process does not exist {exec}: not found"));
    let process = exec::process_id(exec).map_err(|_| missing())?;
    let key = (container.id().clone(), process);
    let added = namespace.execs().get(&key).cloned().ok_or_else(missing)?;
    let started = container.process(&key.1);
    Ok(Named::Exec(container, added, started))
}

fn time_of(exit: &ExitRecord) -> Option<Timestamp> {
    SystemTime::try_from(&exit.time).ok().map(Timestamp::from)
}

/// The file in the bundle where runc.v2 has the pid of a container, and where other programs look for it.
const INIT_PID: &str = "init.pid";

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Answer<T> {
    let done = spawn_blocking(work).await.map_err(|error| internal(error.to_string()))?;
    done.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => invalid(error.to_string()),
        _ => Failure::new(Code::Unknown, error.to_string()),
    })
}

/// `Create`: a container whose program waits for its start.
pub(crate) async fn create(
    namespace: &Arc<Namespace>,
    caller: &Caller,
    wanted: CreateTaskRequest,
) -> Answer<CreateTaskResponse> {
    let id: ContainerId = wanted.id.parse().map_err(|error| invalid(format!("{error}")))?;
    let lock = namespace.lock_of(&id);
    let _alone = lock.lock().await;
    if let Ok(made) = namespace.supervisor.get(&id) {
        if !caller.again || Task::of(&made).request != caller.identity {
            let text = format!("container {id}: already exists");
            return Err(Failure::new(Code::AlreadyExists, text));
        }
        match made.begun().await {
            Ok(()) => return Ok(created(namespace, &made)),
            // What it left is cleared away, and a program is not run by this: it is made anew.
            Err(Error::NotBegun | Error::NotStarted(_)) => {}
            Err(error) => return Err(of_runtime(&error, "create")),
        }
    }
    let options = options::of(wanted.options.as_ref())?;
    let bundle = PathBuf::from(&wanted.bundle);
    let config = stdio::configuration(&bundle);
    let task = Task {
        bundle: bundle.clone(),
        stdin: wanted.stdin.clone(),
        stdout: wanted.stdout.clone(),
        stderr: wanted.stderr.clone(),
        terminal: wanted.terminal,
        rootfs: wanted
            .rootfs
            .iter()
            .map(|m| (m.kind.clone(), m.source.clone(), m.target.clone(), m.options.clone()))
            .collect(),
        checkpoint: wanted.checkpoint.clone(),
        shares_pids: !has_own_pids(&config),
        request: caller.identity.clone(),
    };
    // Without mounts the bundle has its root file system already.
    if !wanted.rootfs.is_empty() {
        let (mounts, bundle) = (wanted.rootfs.clone(), bundle.clone());
        blocking(move || rootfs::make(&mounts, &bundle)).await?;
    }
    // For users who look for the file. If the bundle does not exist, `make` reports that.
    let pid = namespace.supervisor.root().join(id.as_str()).join("init/pid");
    let _ = tokio::fs::symlink(pid, bundle.join(INIT_PID)).await;
    let made = make(namespace, caller, &wanted, &options, &config, &task, id.clone()).await;
    if made.is_err() {
        namespace.forget(&id, &task).await;
    }
    made
}

fn has_own_pids(config: &Value) -> bool {
    let namespaces = config.pointer("/linux/namespaces").and_then(Value::as_array);
    let mut all = namespaces.into_iter().flatten();
    all.any(|namespace| {
        namespace["type"] == "pid" && namespace.get("path").is_none_or(|path| path == "")
    })
}

async fn make(
    namespace: &Arc<Namespace>,
    caller: &Caller,
    wanted: &CreateTaskRequest,
    runc: &RuncOptions,
    config: &Value,
    task: &Task,
    id: ContainerId,
) -> Answer<CreateTaskResponse> {
    let streams = Wanted {
        stdin: &wanted.stdin,
        stdout: &wanted.stdout,
        stderr: &wanted.stderr,
        terminal: wanted.terminal,
    };
    let log = log_program(namespace, &wanted.id, "", &wanted.stdout).await?;
    let size = stdio::terminal_size(config.pointer("/process/consoleSize"));
    let fifos = log.as_ref().map(|(fifos, _)| fifos);
    let stdio = stdio::options(streams, size, Way::Direct, fifos)?;
    let (label, value) = task.label();
    let mut options =
        ContainerOptions::bundle(&task.bundle).id(id).label(label, value).stdio(stdio);
    options = match runc.binary_name.as_str() {
        "" => options,
        name => options.runtime(name),
    };
    let mut arguments = Vec::new();
    if runc.systemd_cgroup || options::is_of_systemd(config) {
        arguments.push("--systemd-cgroup".to_owned());
    }
    if !runc.root.is_empty() {
        let root = PathBuf::from(&runc.root).join(&namespace.name);
        arguments.extend(["--root".to_owned(), root.to_string_lossy().into_owned()]);
    }
    options = options.runtime_args(arguments);
    if runc.no_pivot_root {
        options = options.no_pivot_root();
    }
    if runc.no_new_keyring {
        options = options.no_new_keyring();
    }
    // All containers of a pod have one shim.
    if let Some(group) = group_name(&caller.group) {
        options = options.shim_group(group);
    }
    if !wanted.checkpoint.is_empty() {
        options = options.checkpoint(&wanted.checkpoint);
    }
    give(wanted, runc)?;
    let made = namespace.supervisor.create(options).await;
    let made = made.map_err(|error| of_runtime(&error, "create"))?;
    // By now the container has its ends of the pipes.
    drop(log);
    Ok(created(namespace, &made))
}

/// Gives the FIFOs to the root of a container with a user namespace: it may open `/dev/stdout` anew.
fn give(wanted: &CreateTaskRequest, runc: &RuncOptions) -> Answer<()> {
    if (runc.io_uid, runc.io_gid) == (0, 0) {
        return Ok(());
    }
    for text in [&wanted.stdin, &wanted.stdout, &wanted.stderr] {
        if let Place::Fifo(path) = Place::parse(text)? {
            std::os::unix::fs::lchown(&path, Some(runc.io_uid), Some(runc.io_gid))
                .map_err(|error| invalid(format!("give {} away: {error}", path.display())))?;
        }
    }
    Ok(())
}

fn created(namespace: &Namespace, made: &Container) -> CreateTaskResponse {
    let pid = namespace.pid_of_init(made);
    CreateTaskResponse { pid }
}

/// The name of a pod's group: its id, or the beginning of one that is too long.
fn group_name(group: &str) -> Option<GroupName> {
    let end = group.floor_char_boundary(64);
    group[..end].parse().ok()
}

type Held = ([PathBuf; 2], [std::fs::File; 2]);

/// Starts the program that takes the output, if there is to be one.
async fn log_program(
    namespace: &Arc<Namespace>,
    id: &str,
    exec: &str,
    stdout: &str,
) -> Answer<Option<Held>> {
    let Some((program, arguments)) = stdio::program(stdout)? else { return Ok(None) };
    let log = namespace.binary_log(id, exec);
    let name = if exec.is_empty() { id } else { exec }.to_owned();
    let namespace = namespace.name.clone();
    let held = blocking(move || {
        let held = log.start(&program, &arguments, (&namespace, &name))?;
        Ok((log.fifos(), held))
    });
    held.await.map(Some)
}

/// `Start`: of a created container, or of an exec that was added.
pub(crate) async fn start(
    namespace: &Arc<Namespace>,
    caller: &Caller,
    wanted: &StartRequest,
) -> Answer<StartResponse> {
    match named(namespace, &wanted.id, &wanted.exec_id)? {
        Named::Init(container) => {
            let status = container.info().status;
            let restored = !Task::of(&container).checkpoint.is_empty();
            // One that is restored runs at once.
            let is_done = status == Status::Running && restored
                || caller.again
                    && matches!(status, Status::Running | Status::Paused | Status::Stopped);
            if !is_done {
                if status != Status::Created {
                    let text = format!("cannot start a {} container", status.as_str());
                    return Err(precondition(text));
                }
                match container.start().await {
                    // A supervisor that has died has begun it.
                    Err(Error::WrongState { .. }) if caller.again => {}
                    started => started.map_err(|error| of_runtime(&error, "start"))?,
                }
            }
            let pid = namespace.pid_of_init(&container);
            Ok(StartResponse { pid })
        }
        Named::Exec(container, exec, _) => start_exec(namespace, caller, &container, &exec).await,
    }
}

async fn start_exec(
    namespace: &Arc<Namespace>,
    caller: &Caller,
    container: &Container,
    exec: &Arc<Exec>,
) -> Answer<StartResponse> {
    let _alone = exec.start.lock().await;
    let stage = *exec.stage.borrow();
    let known = container.process(&exec.process);
    let joined = match &known {
        Some(started) if caller.again => Some(started.begun().await),
        _ => None,
    };
    let started = match (joined, known, stage) {
        (Some(Ok(())), Some(started), _) => Ok(started),
        (Some(Err(Error::NotBegun)), ..) | (None, None, Stage::Added) => {
            begin_exec(namespace, container, exec).await
        }
        (Some(Err(error)), ..) => Err(of_runtime(&error, "exec")),
        _ => {
            let text = format!("exec {} was started before", exec.request.exec_id);
            return Err(precondition(text));
        }
    };
    exec.stage.send_replace(if started.is_ok() { Stage::Started } else { Stage::Failed });
    Ok(StartResponse { pid: namespace.pid(container.id(), &exec.process, started?.pid()) })
}

async fn begin_exec(
    namespace: &Arc<Namespace>,
    container: &Container,
    exec: &Exec,
) -> Answer<ExecProcess> {
    let request = &exec.request;
    let spec = request.spec.as_ref().map_or(&[][..], |any| any.value.as_slice());
    let spec: Map<String, Value> = serde_json::from_slice(spec)
        .map_err(|error| invalid(format!("the process of the exec: {error}")))?;
    let size = stdio::terminal_size(spec.get("consoleSize"));
    let streams = Wanted {
        stdin: &request.stdin,
        stdout: &request.stdout,
        stderr: &request.stderr,
        terminal: request.terminal,
    };
    let log = log_program(namespace, &request.id, &request.exec_id, &request.stdout).await?;
    let fifos = log.as_ref().map(|(fifos, _)| fifos);
    let stdio = stdio::options(streams, size, Way::Relayed, fifos)?;
    let options = ExecOptions::new(Vec::<String>::new()).process(spec);
    let begun = container.exec(options.id(exec.process.clone()).stdio(stdio)).await;
    begun.map_err(|error| match error {
        Error::WrongState { .. } => {
            precondition(format!("container {} init process is not running", container.id()))
        }
        error => of_runtime(&error, "exec"),
    })
}

/// `Exec`: to be started later.
pub(crate) async fn exec(
    namespace: &Arc<Namespace>,
    caller: &Caller,
    wanted: ExecProcessRequest,
) -> Answer<()> {
    let container = container(namespace, &wanted.id)?;
    let process = exec::process_id(&wanted.exec_id).map_err(|error| invalid(error.to_string()))?;
    match container.info().status {
        // As with runc.v2, where a container is not seen as stopped before its execs have come to something.
        Status::Stopped if !namespace.starts_exec(container.id()) => {
            return Err(precondition("cannot exec in a stopped container"));
        }
        Status::Paused => return Err(precondition("cannot exec in a paused container")),
        _ => {}
    }
    let key = (container.id().clone(), process);
    let exec = Exec::new(key.1.clone(), wanted, caller.identity.clone(), Stage::Added);
    let exec = Arc::new(exec);
    {
        let mut execs = namespace.execs();
        if let Some(known) = execs.get(&key) {
            if caller.again && known.identity == caller.identity {
                return Ok(());
            }
            let text = format!("id {}: already exists", exec.request.exec_id);
            return Err(Failure::new(Code::AlreadyExists, text));
        }
        execs.insert(key.clone(), exec.clone());
    }
    let saved = {
        let (namespace, exec) = (namespace.clone(), exec.clone());
        blocking(move || namespace.files.save(&exec.identity, &exec.request)).await
    };
    if saved.is_err() {
        namespace.execs().remove(&key);
    }
    saved?;
    namespace.forwarder.exec_added(&key.0, &key.1);
    Ok(())
}

/// `Delete`: of a container that has ended or was never started, or of such an exec.
pub(crate) async fn delete(
    namespace: &Arc<Namespace>,
    caller: &Caller,
    wanted: &DeleteRequest,
) -> Answer<DeleteResponse> {
    let id: ContainerId = wanted.id.parse().map_err(|error| invalid(format!("{error}")))?;
    let lock = namespace.lock_of(&id);
    // A creation of it may be under way. An exec is deleted beside others.
    let _alone = if wanted.exec_id.is_empty() { Some(lock.lock().await) } else { None };
    let found = match named(namespace, &wanted.id, &wanted.exec_id) {
        // The supervisor that has deleted it has died before it could say so.
        Err(missing) if caller.again => {
            let exit = past(namespace, &wanted.id, &wanted.exec_id).await.ok_or(missing)?;
            return Ok(deleted(0, Some(&exit)));
        }
        found => found?,
    };
    match found {
        Named::Init(container) => {
            let info = container.info();
            if matches!(info.status, Status::Running | Status::Paused) {
                return Err(precondition(format!(
                    "cannot delete a {} container",
                    info.status.as_str()
                )));
            }
            let task = Task::of(&container);
            let pid = namespace.pid_of_init(&container);
            container.delete().await.map_err(|error| of(&error))?;
            let exit = match info.exit {
                Some(exit) => Some(exit),
                // It was killed by its deletion.
                None => namespace.supervisor.past_exit(container.id()).await.ok(),
            };
            namespace.forget(container.id(), &task).await;
            Ok(deleted(pid, exit.as_ref()))
        }
        Named::Exec(container, exec, started) => {
            let (mut pid, mut exit) = (0, None);
            if let Some(started) = started {
                let Some(record) = started.try_wait() else {
                    return Err(precondition("cannot delete a running process"));
                };
                pid = namespace.pid(container.id(), &exec.process, started.pid());
                started.delete().await.map_err(|error| of(&error))?;
                exit = Some(record);
            }
            exec.stage.send_replace(Stage::Deleted);
            namespace.files.remove(&wanted.id, &wanted.exec_id);
            namespace.execs().remove(&(container.id().clone(), exec.process.clone()));
            namespace.end_log(&wanted.id, &wanted.exec_id);
            Ok(deleted(pid, exit.as_ref()))
        }
    }
}

pub(crate) fn deleted(pid: u32, exit: Option<&ExitRecord>) -> DeleteResponse {
    let exit_status = exit.map_or(0, |exit| u32::from(exit.status.as_number()));
    DeleteResponse { pid, exit_status, exited_at: exit.and_then(time_of) }
}

/// How a process ended that is deleted.
pub(crate) async fn past(namespace: &Namespace, id: &str, exec: &str) -> Option<ExitRecord> {
    let process = if exec.is_empty() { Ok(ProcessId::init()) } else { exec::process_id(exec) };
    let (id, process) = (id.parse().ok()?, process.ok()?);
    namespace.supervisor.past_end(&id, &process, None, None).await.ok()?.exit
}

/// `State`
pub(crate) fn state(namespace: &Namespace, wanted: &StateRequest) -> Answer<StateResponse> {
    let status_of = |status| match status {
        Status::Creating | Status::Created => types::Status::Created,
        Status::Running => types::Status::Running,
        Status::Paused => types::Status::Paused,
        Status::Stopped => types::Status::Stopped,
        _ => types::Status::Unknown,
    };
    match named(namespace, &wanted.id, &wanted.exec_id)? {
        Named::Init(container) => {
            let (info, task) = (container.info(), Task::of(&container));
            let exit = info.exit.as_ref();
            Ok(StateResponse {
                id: wanted.id.clone(),
                bundle: task.bundle.to_string_lossy().into_owned(),
                pid: namespace.pid_of_init(&container),
                status: status_of(info.status) as i32,
                stdin: task.stdin,
                stdout: task.stdout,
                stderr: task.stderr,
                terminal: task.terminal,
                exit_status: exit.map_or(0, |exit| u32::from(exit.status.as_number())),
                exited_at: exit.and_then(time_of),
                exec_id: String::new(),
            })
        }
        Named::Exec(container, exec, started) => {
            let request = &exec.request;
            let info = started.as_ref().map(ExecProcess::info);
            let exit = info.as_ref().and_then(|info| info.exit.as_ref());
            // Also if its start has failed, as with runc.v2.
            let created = types::Status::Created;
            let status = info.as_ref().map_or(created, |info| status_of(info.status));
            let pid_of = |info: &ExecInfo| namespace.pid(container.id(), &exec.process, info.pid);
            let pid = info.as_ref().map_or(0, pid_of);
            Ok(StateResponse {
                id: request.exec_id.clone(),
                bundle: Task::of(&container).bundle.to_string_lossy().into_owned(),
                pid,
                status: status as i32,
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                exit_status: exit.map_or(0, |exit| u32::from(exit.status.as_number())),
                exited_at: exit.and_then(time_of),
                exec_id: request.exec_id.clone(),
            })
        }
    }
}

/// `Wait`: also for an exec that has not started yet.
pub(crate) async fn wait(namespace: &Arc<Namespace>, wanted: &WaitRequest) -> Answer<WaitResponse> {
    let exit = match named(namespace, &wanted.id, &wanted.exec_id)? {
        Named::Init(container) => container.exit().await,
        Named::Exec(container, exec, _) => {
            let mut stage = exec.stage.subscribe();
            let stage = stage.wait_for(|stage| *stage != Stage::Added).await;
            let stage = stage.map_or(Stage::Deleted, |stage| *stage);
            match container.process(&exec.process) {
                Some(started) => started.exit().await,
                None if stage == Stage::Failed => {
                    let exited_at = Some(SystemTime::now().into());
                    return Ok(WaitResponse { exit_status: 255, exited_at });
                }
                None => Err(Error::NotFound(container.id().clone())),
            }
        }
    };
    let exit = match exit {
        // The container was deleted before this call learned of its exit.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let past = past(namespace, &wanted.id, &wanted.exec_id).await;
            past.ok_or_else(|| of(&error))?
        }
        exit => exit.map_err(|error| of(&error))?,
    };
    let exit_status = u32::from(exit.status.as_number());
    Ok(WaitResponse { exit_status, exited_at: time_of(&exit) })
}

/// `Kill`
pub(crate) async fn kill(
    namespace: &Arc<Namespace>,
    caller: &Caller,
    wanted: &KillRequest,
) -> Answer<()> {
    let signal = i32::try_from(wanted.signal).ok().filter(|signal| (1..=64).contains(signal));
    let signal = signal.ok_or_else(|| invalid(format!("there is no signal {}", wanted.signal)))?;
    let named = named(namespace, &wanted.id, &wanted.exec_id)?;
    if let Named::Init(container) = &named {
        match timeout(CREATION, container.begun()).await {
            Ok(Ok(())) => {}
            Ok(Err(Error::Closed)) => return Err(of(&Error::Closed)),
            Ok(Err(_)) => return Err(not_found("process already finished: not found")),
            Err(_) => return Err(precondition("process not created")),
        }
    }
    let sent = match named {
        Named::Init(container) if wanted.all => container.signal_all(signal).await,
        Named::Init(container) if signal == nix::libc::SIGKILL => container.kill().await,
        Named::Init(container) => container.signal(signal),
        Named::Exec(_, _, Some(started)) => started.signal(signal),
        Named::Exec(_, exec, None) => {
            return Err(match *exec.stage.borrow() {
                Stage::Added => precondition("process not created"),
                _ => not_found("process already finished: not found"),
            });
        }
    };
    match sent {
        // It has got the signal, or has ended without.
        Err(Error::WrongState { .. } | Error::WrongExecState { .. }) if caller.again => Ok(()),
        Err(Error::WrongState { .. } | Error::WrongExecState { .. }) => {
            Err(not_found("process already finished: not found"))
        }
        sent => sent.map_err(|error| of(&error)),
    }
}

/// `Pids`: all processes of the container.
pub(crate) async fn pids(namespace: &Namespace, id: &str) -> Answer<PidsResponse> {
    let container = container(namespace, id)?;
    let processes = match container.processes().await {
        Ok(processes) => processes,
        // It has ended, and its pid is named all the same: a containerd that is started anew takes a task
        // without any for one that was never created, and removes it with its exit status.
        Err(Error::WrongState { .. }) => {
            let pid = namespace.pid_of_init(&container);
            return Ok(PidsResponse { processes: vec![ProcessInfo { pid, info: None }] });
        }
        Err(error) => return Err(of(&error)),
    };
    let execs = container.info().execs;
    let process = |pid: i32| {
        let exec = execs.iter().find(|exec| exec.pid == Some(pid));
        let details =
            exec.map(|exec| ProcessDetails { exec_id: exec::exec_id(&exec.id).to_owned() });
        let info = details.map(|details| Any::of(ProcessDetails::TYPE, &details));
        ProcessInfo { pid: u32::try_from(pid).unwrap_or(0), info }
    };
    Ok(PidsResponse { processes: processes.iter().map(|entry| process(entry.pid)).collect() })
}

/// `Pause`
pub(crate) async fn pause(namespace: &Namespace, caller: &Caller, id: &str) -> Answer<()> {
    let container = container(namespace, id)?;
    let paused = container.pause().await;
    changed(paused, caller, &container, Status::Paused, "pause")
}

/// `Resume`
pub(crate) async fn resume(namespace: &Namespace, caller: &Caller, id: &str) -> Answer<()> {
    let container = container(namespace, id)?;
    let resumed = container.resume().await;
    changed(resumed, caller, &container, Status::Running, "resume")
}

/// What to answer: what an earlier supervisor has done already is a success.
fn changed(
    result: Result<(), Error>,
    caller: &Caller,
    container: &Container,
    wanted: Status,
    what: &str,
) -> Answer<()> {
    match result {
        Err(Error::WrongState { .. }) if caller.again && container.info().status == wanted => {
            Ok(())
        }
        result => result.map_err(|error| of_runtime(&error, what)),
    }
}

/// `Checkpoint`
pub(crate) async fn checkpoint(
    namespace: &Namespace,
    caller: &Caller,
    wanted: &CheckpointTaskRequest,
) -> Answer<()> {
    let container = container(namespace, &wanted.id)?;
    let runc = options::of_checkpoint(wanted.options.as_ref())?;
    let path =
        PathBuf::from(if runc.image_path.is_empty() { &wanted.path } else { &runc.image_path });
    // That is written last, so the checkpoint is complete.
    if caller.again && path.join("config.json").exists() {
        return Ok(());
    }
    let mut options = CheckpointOptions::new(path);
    if !runc.exit {
        options = options.leave_running();
    }
    if runc.open_tcp {
        options = options.tcp_established();
    }
    if runc.external_unix_sockets {
        options = options.unix_sockets();
    }
    if runc.terminal {
        options = options.shell_job();
    }
    if !runc.work_path.is_empty() {
        options = options.work_path(runc.work_path);
    }
    container.checkpoint(options).await.map_err(|error| of_runtime(&error, "checkpoint"))
}

/// `ResizePty`
pub(crate) fn resize(namespace: &Namespace, wanted: &ResizePtyRequest) -> Answer<()> {
    let side = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let size = TerminalSize { width: side(wanted.width), height: side(wanted.height) };
    let resized = match named(namespace, &wanted.id, &wanted.exec_id)? {
        Named::Init(container) => container.resize(size),
        Named::Exec(_, _, Some(started)) => started.resize(size),
        // It gets its size when it is started.
        Named::Exec(..) => Ok(()),
    };
    match resized {
        // As runc.v2: what has no terminal has none to resize, and what has ended needs none.
        Err(Error::NoTerminal(_) | Error::WrongState { .. } | Error::WrongExecState { .. }) => {
            Ok(())
        }
        resized => resized.map_err(|error| of(&error)),
    }
}

/// `CloseIO`
pub(crate) fn close_io(namespace: &Namespace, wanted: &CloseIORequest) -> Answer<()> {
    if !wanted.stdin {
        return Ok(());
    }
    let closed = match named(namespace, &wanted.id, &wanted.exec_id)? {
        Named::Init(container) => container.close_stdin(),
        Named::Exec(_, _, Some(started)) => started.close_stdin(),
        Named::Exec(..) => Ok(()),
    };
    match closed {
        // What has ended reads nothing more.
        Err(Error::WrongState { .. } | Error::WrongExecState { .. } | Error::NoInput(_)) => Ok(()),
        closed => closed.map_err(|error| of(&error)),
    }
}

/// `Update`
pub(crate) async fn update(namespace: &Namespace, wanted: &UpdateTaskRequest) -> Answer<()> {
    let container = container(namespace, &wanted.id)?;
    let resources = wanted.resources.as_ref().map_or(&[][..], |any| any.value.as_slice());
    let resources: Value = serde_json::from_slice(resources)
        .map_err(|error| invalid(format!("resources: {error}")))?;
    container.update(&resources).await.map_err(|error| of_runtime(&error, "update"))
}

/// `Stats`
pub(crate) async fn stats(namespace: &Namespace, id: &str) -> Answer<StatsResponse> {
    let container = container(namespace, id)?;
    let pid = container.info().pid.ok_or_else(|| not_found("cgroup does not exist: not found"))?;
    let stats = blocking(move || holdfast_cgroup_metrics::of(pid)).await;
    // The process may have ended meanwhile, and its number may be another's.
    if container.info().pid != Some(pid) {
        return Err(not_found("cgroup does not exist: not found"));
    }
    Ok(StatsResponse { stats: Some(stats?) })
}
