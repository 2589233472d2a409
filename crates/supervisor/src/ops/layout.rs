//! Creates a new process on disk: its record, its FIFOs and, for a container, its bundle. The
//! directory appears in one step.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::process_dir::STDIN;
use holdfast_state::record::SCHEMA;
use holdfast_state::root::BUNDLE_NAME;
use holdfast_state::{
    Directory, Incarnation, Launch, OrphanPolicy, PastRun, Policies, ProcessDir, ProcessId,
    ProcessRecord, Timestamp,
};
use serde_json::{Map, Value, json};

use crate::core::Core;
use crate::error::Error;
use crate::model::config::check_process;
use crate::model::container::ContainerState;
use crate::model::lifecycle::State;
use crate::model::options::{ContainerOptions, ExecOptions, Stdin, Stdio};
use crate::model::process::{Origin, Process};
use crate::ops::bundle::{self, Configure, Place};
use crate::ops::users;
use crate::os::limits;
use crate::runtime::checkpoint;

/// The option of runtimes that have systemd make the cgroup.
const SYSTEMD_CGROUP: &str = "--systemd-cgroup";

/// What is needed to start a process by a shim.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) process: Arc<Process>,
    pub(crate) dir: ProcessDir,
    pub(crate) record: ProcessRecord,
    /// The command line of the runtime.
    pub(crate) command: Vec<OsString>,
    /// The start timeout.
    pub(crate) timeout: Duration,
}

/// Creates the directory of a container.
pub(crate) fn container(
    core: &Core,
    options: &ContainerOptions,
    configure: Option<Configure>,
    launch: Launch,
) -> Result<(Arc<ContainerState>, Job), Error> {
    options.stdio.log.check()?;
    let timeout = options.start_timeout.unwrap_or(core.start_timeout);
    let runtime_args = runtime_args(core, options);
    let runtime = core
        .runtimes
        .find(options.runtime.as_ref().unwrap_or(&core.runtime))?
        .with_args(&runtime_args);
    let id = match &options.id {
        Some(id) => id.clone(),
        None => random_hex(12).parse()?,
    };
    let failed =
        |cause| Error::Io { attempt: format!("create the directory of container {id}"), cause };
    let home = core.root.path().join(id.as_str());
    let init = ProcessId::init();
    let checkpoint = options.checkpoint.as_deref().map(checkpoint::find).transpose()?;
    let launch = if checkpoint.is_some() { Launch::Restore } else { launch };

    if core.container(&id).is_some() {
        return Err(Error::Exists(id));
    }
    let staged = core.root.stage_container().map_err(failed)?;
    limits::check_files(staged.directory())?;
    let scratch = staged.directory().path().join(BUNDLE_NAME);
    let bundle = bundle::prepare(
        &id,
        options,
        configure,
        core.container_nofile,
        core.rootless.as_ref(),
        Place { scratch: &scratch, own: &home.join(BUNDLE_NAME) },
    )?;
    let runtime = runtime.in_bundle(&bundle.path);
    let mut record = ProcessRecord {
        root_uid: bundle.root_ids.0,
        root_gid: bundle.root_ids.1,
        checkpoint: checkpoint.map(text).unwrap_or_default(),
        no_pivot_root: options.no_pivot_root,
        runtime_args,
        root: text(home.join(init.as_str())),
        holdfast: Some(Policies {
            bundle: bundle.path.clone(),
            on_orphan: options.on_orphan,
            shim_group: options.shim_group.as_ref().or(core.shim_group.as_ref()).cloned(),
            auto_remove: options.auto_remove,
            hold_ms: millis(options.hold),
            no_new_keyring: options.no_new_keyring,
            labels: options.labels.clone(),
            stop_signal: options.stop_signal,
            stop_grace_ms: options.stop_grace.map(millis),
            incarnation: Some(match options.incarnation {
                Some(incarnation) => incarnation,
                None => Incarnation::random().map_err(failed)?,
            }),
            ..policies(core, launch, runtime.program(), &options.stdio, timeout)
        }),
        oci: bundle.process,
        ..ProcessRecord::default()
    };
    let dir = staged.directory().create_dir(init.as_str()).map_err(failed)?;
    fill(dir, &mut record, &options.stdio)?;
    // This comes before the container is published: a checkpoint that can't be read must not leave
    // a container.
    let command = runtime.launch(&id, &record, launch)?;
    let published = staged.publish(&id).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(id.clone()),
        _ => failed(error),
    })?;
    let dir = published.process(&init).map_err(|error| {
        // Nobody else knows of the container yet, so it must be removed here.
        let _ = core.root.remove_container(&id);
        failed(error)
    })?;

    let process = Process::new(&id, &init, &record, State::Creating, None, Origin::Made);
    let process = Arc::new(process);
    let container = Arc::new(ContainerState::new(id, runtime, process.clone()));
    Ok((container, Job { process, dir, record, command, timeout }))
}

/// Returns the runtime's arguments before its command. Where the user's systemd makes the cgroups,
/// `--systemd-cgroup` is one of them.
fn runtime_args(core: &Core, options: &ContainerOptions) -> Vec<String> {
    let mut args = options.runtime_args.clone();
    let by_systemd = core.rootless.as_ref().is_some_and(|it| it.no_cgroups.is_none());
    if by_systemd && !args.iter().any(|it| it == SYSTEMD_CGROUP) {
        args.push(SYSTEMD_CGROUP.to_owned());
    }
    args
}

/// Makes the directory of a stopped container that of its next run.
pub(crate) fn next_run(core: &Core, container: &ContainerState) -> Result<Job, Error> {
    let (id, last) = (&container.id, container.init());
    let State::Stopped(exit) = last.state() else {
        return Err(container.wrong_state("start", "created or stopped"));
    };
    let failed = |cause| Error::Io { attempt: format!("begin a run of container {id}"), cause };
    let dir = last.dir(&core.root).map_err(failed)?;
    let record = dir.load().map_err(|error| failed(io::Error::other(error)))?;
    let Some(policies) = record.holdfast.clone() else {
        let text = "a container of containerd's 2016 shim can't be started again";
        return Err(Error::InvalidOption(text.to_owned()));
    };
    let own_stdin = text(dir.path().join(STDIN));
    for path in [&record.stdin, &record.stdout, &record.stderr] {
        if !path.is_empty() && *path != own_stdin {
            given_fifo(Path::new(path))?;
        }
    }
    limits::check_files(dir.directory())?;
    bundle::check_again(&policies.bundle)?;
    // The runs whose start failed have numbers too.
    let runs = dir.past_runs().unwrap_or_default();
    let run = runs.last().map_or(0, |run| run.run).max(policies.run).saturating_add(1);
    let next = ProcessRecord {
        checkpoint: String::new(),
        start_time: String::new(),
        holdfast: Some(Policies {
            boot_id: core.boot_id.clone(),
            incarnation: Some(last.incarnation),
            run,
            launch: Launch::Run,
            pidfs: None,
            shim: None,
            ..policies.clone()
        }),
        ..record
    };
    let command = container.runtime.launch(id, &next, Launch::Run)?;
    let past = PastRun::exited(last.run, last.started(), exit);
    let stdin = (next.stdin == own_stdin).then(|| next.stdio_owner());
    if let Err(error) = dir.begin_run(past, &next, stdin) {
        if let Err(error) = dir.revert_run(None) {
            // The next restore does it.
            tracing::warn!(container = %id, %error, "a run that could not begin was not taken back");
        }
        return Err(failed(error));
    }
    let process = Arc::new(Process::new(id, &last.id, &next, State::Creating, None, Origin::Made));
    let timeout = Some(last.start_timeout).filter(|limit| !limit.is_zero());
    let timeout = timeout.unwrap_or(core.start_timeout);
    Ok(Job { process, dir, record: next, command, timeout })
}

/// Creates the directory of an exec in a running container.
pub(crate) fn exec(
    core: &Core,
    container: &ContainerState,
    options: &ExecOptions,
) -> Result<Job, Error> {
    options.stdio.log.check()?;
    if options.args.is_empty() && options.process.is_none() {
        return Err(Error::InvalidOption("an exec needs a program to run".to_owned()));
    }
    let id = match &options.id {
        Some(id) => id.clone(),
        None => random_hex(12).parse()?,
    };
    let failed = |cause| Error::Io {
        attempt: format!("create the directory of process {id} of container {}", container.id),
        cause,
    };
    let timeout = options.start_timeout.unwrap_or(core.start_timeout);
    let parent = core.root.container(&container.id).map_err(failed)?;
    let of_init = parent.process(&ProcessId::init()).map_err(failed)?;
    let init = of_init.load().map_err(|error| failed(io::Error::other(error)))?;
    let of_init = init.holdfast.as_ref();
    let on_orphan = of_init.map(|policies| policies.on_orphan).unwrap_or_default();
    let shim_group = of_init.and_then(|policies| policies.shim_group.clone());

    let mut record = ProcessRecord {
        exec: true,
        root_uid: init.root_uid,
        root_gid: init.root_gid,
        runtime_args: init.runtime_args,
        root: text(parent.directory().path().join(id.as_str())),
        holdfast: Some(Policies {
            on_orphan,
            shim_group,
            auto_remove: options.auto_remove,
            hold_ms: millis(options.hold),
            incarnation: Some(container.init().incarnation),
            run: container.init().run,
            ..policies(core, Launch::Exec, container.runtime.program(), &options.stdio, timeout)
        }),
        oci: exec_process(init.oci, options, container)?,
        ..ProcessRecord::default()
    };
    let staged = core.root.stage_process(&parent).map_err(failed)?;
    limits::check_files(staged.directory())?;
    let inner = staged.directory().open_dir(".").map_err(failed)?;
    fill(inner, &mut record, &options.stdio)?;
    let command = container.runtime.launch(&container.id, &record, Launch::Exec)?;
    let dir = staged.publish_process(&id).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::ProcessExists(container.id.clone(), id.clone()),
        _ => failed(error),
    })?;

    let process =
        Arc::new(Process::new(&container.id, &id, &record, State::Creating, None, Origin::Made));
    Ok(Job { process, dir, record, command, timeout })
}

/// Returns the policies that every record has. All other fields have default values.
fn policies(
    core: &Core,
    launch: Launch,
    runtime: &Path,
    stdio: &Stdio,
    timeout: Duration,
) -> Policies {
    Policies {
        schema: SCHEMA,
        boot_id: core.boot_id.clone(),
        created: Timestamp::now(),
        incarnation: None,
        run: 1,
        labels: BTreeMap::new(),
        launch,
        runtime: runtime.to_owned(),
        bundle: PathBuf::new(),
        no_new_keyring: false,
        marks_start: true,
        stdin_once: stdio.stdin == Stdin::Once,
        log: stdio.log.resolved(core.log_rotation.max_size, core.log_rotation.max_files),
        on_orphan: OrphanPolicy::default(),
        auto_remove: false,
        hold_ms: 0,
        start_timeout_ms: millis(timeout),
        stop_signal: None,
        stop_grace_ms: None,
        pidfs: None,
        shim: None,
        shim_group: None,
        unknown: Map::new(),
    }
}

/// Returns the OCI process of an exec: the caller's, or that of the container's init with other arguments.
fn exec_process(
    of_init: Map<String, Value>,
    options: &ExecOptions,
    container: &ContainerState,
) -> Result<Map<String, Value>, Error> {
    let mut process = options.process.clone().unwrap_or(of_init);
    if !options.args.is_empty() {
        process.insert("args".to_owned(), json!(options.args));
    }
    // containerd's 2016 shim stored the capabilities as a list, which no current runtime reads.
    if process.get("capabilities").is_some_and(Value::is_array) {
        process.remove("capabilities");
    }
    let mut process = Value::Object(process);
    options.config.apply_to_process(&mut process).map_err(Error::InvalidOption)?;
    if let Some(names) = &options.config.user_name {
        let user = users::look_up_in_container(&container.init(), names);
        process["user"] = json!(user.map_err(Error::InvalidOption)?);
    }
    check_process(&process).map_err(Error::InvalidOption)?;
    bundle::set_terminal(&mut process, options.stdio.terminal);
    Ok(process.as_object().cloned().unwrap_or_default())
}

/// Creates what must be in the directory of a process before its shim begins.
fn fill(directory: Directory, record: &mut ProcessRecord, stdio: &Stdio) -> Result<(), Error> {
    let own_stdin = Path::new(&record.root).join(STDIN);
    let failed = |cause| Error::Io { attempt: format!("create {}", record.root), cause };
    let dir = ProcessDir::new(directory);
    dir.make_fifos().map_err(failed)?;
    if stdio.stdin.is_own() {
        let (uid, gid) = record.stdio_owner();
        dir.make_stdin(uid, gid).map_err(failed)?;
    }
    let given = |path: &Option<PathBuf>| path.as_deref().map(given_fifo).transpose();
    let stdin = match &stdio.stdin {
        Stdin::Null => None,
        Stdin::Pipe | Stdin::Once => Some(text(own_stdin)),
        Stdin::Fifo(path) => Some(given_fifo(path)?),
    };
    let (stdout, stderr) = (given(&stdio.stdout)?, given(&stdio.stderr)?);
    record.stdin = stdin.unwrap_or_default();
    record.stdout = stdout.unwrap_or_default();
    record.stderr = stderr.unwrap_or_default();
    dir.save(record)
        .map_err(|cause| Error::Io { attempt: format!("create {}", record.root), cause })
}

/// Returns the absolute path of a FIFO of the caller. Anything else is refused, as by containerd's
/// 2016 shim.
fn given_fifo(path: &Path) -> Result<String, Error> {
    let is_fifo = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    match std::path::absolute(path).ok().and_then(|path| path.to_str().map(str::to_owned)) {
        Some(path) if is_fifo => Ok(path),
        _ => Err(Error::NotFifo(path.to_owned())),
    }
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// Returns a limit in whole milliseconds, the unit of records and of a shim's command line.
pub(crate) fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

/// Returns `length` random hexadecimal digits, for names that must not repeat.
pub(crate) fn random_hex(length: usize) -> String {
    let mut bytes = vec![0; length.div_ceil(2)];
    if let Err(error) = holdfast_sys::random::fill(&mut bytes) {
        // The kernel always has random numbers. Without them names would repeat, and the second use
        // of a name would be refused.
        tracing::error!(%error, "no random numbers");
    }
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(length);
    text
}
