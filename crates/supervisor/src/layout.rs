//! A new process on disk: its record, its FIFOs and, for a container, its bundle, in a directory
//! that appears in one step.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::record::SCHEMA;
use holdfast_state::root::BUNDLE_NAME;
use holdfast_state::{
    Directory, Launch, Policies, ProcessDir, ProcessId, ProcessRecord, Timestamp,
};
use serde_json::{Map, Value, json};

use crate::Error;
use crate::bundle;
use crate::events::EventLog;
use crate::lifecycle::State;
use crate::options::{ContainerOptions, ExecOptions};
use crate::process::{Origin, Process};
use crate::runtime::Runtime;
use crate::supervisor::{ContainerState, Core};

/// What a shim is to be started with.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) process: Arc<Process>,
    pub(crate) dir: ProcessDir,
    pub(crate) record: ProcessRecord,
    /// The runtime's command.
    pub(crate) command: Vec<OsString>,
    /// How long that may take.
    pub(crate) timeout: Duration,
}

/// Lays out a container.
pub(crate) fn container(
    core: &Core,
    options: &ContainerOptions,
    launch: Launch,
) -> Result<(Arc<ContainerState>, Job), Error> {
    let timeout = options.start_timeout.unwrap_or(core.start_timeout);
    let runtime = Runtime::find(options.runtime.as_ref().unwrap_or(&core.runtime), &core.root)?;
    let id = match &options.id {
        Some(id) => id.clone(),
        None => random_hex(12).parse()?,
    };
    let failed =
        |source| Error::Io { attempt: format!("make the directory of container {id}"), source };
    let home = core.root.path().join(id.as_str());
    let init = ProcessId::init();

    let staged = core.root.stage_container().map_err(failed)?;
    let scratch = staged.directory().path().join(BUNDLE_NAME);
    let bundle = bundle::prepare(&id, options, &scratch, &home.join(BUNDLE_NAME))?;
    let record = ProcessRecord {
        exec: false,
        root_uid: bundle.root_ids.0,
        root_gid: bundle.root_ids.1,
        no_pivot_root: options.no_pivot_root,
        runtime_args: options.runtime_args.clone(),
        root: text(home.join(init.as_str())),
        holdfast: Some(Policies {
            schema: SCHEMA,
            boot_id: core.boot_id.clone(),
            created: Timestamp::now(),
            launch,
            runtime: runtime.program().to_owned(),
            bundle: bundle.path.clone(),
            log: options.log,
            on_orphan: options.on_orphan,
            auto_remove: options.auto_remove,
            start_timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            unknown: Map::new(),
        }),
        oci: bundle.process,
        ..ProcessRecord::default()
    };
    fill(staged.directory().create_dir(init.as_str()).map_err(failed)?, &record).map_err(failed)?;
    let published = staged.publish(&id).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(id.clone()),
        _ => failed(error),
    })?;
    let dir = published.process(&init).map_err(failed)?;

    let stream = Arc::new(EventLog::new(id.clone(), &[]));
    let process =
        Arc::new(Process::new(&id, &init, &record, &stream, State::Creating, None, Origin::Made));
    let command = runtime.launch(&id, &record, launch, &bundle.path);
    let container = Arc::new(ContainerState::new(id, runtime, stream, process.clone()));
    Ok((container, Job { process, dir, record, command, timeout }))
}

/// Lays out a further process of a running container.
pub(crate) fn exec(
    core: &Core,
    container: &ContainerState,
    options: &ExecOptions,
) -> Result<Job, Error> {
    let id = match &options.id {
        Some(id) => id.clone(),
        None => random_hex(12).parse()?,
    };
    let failed = |source| Error::Io {
        attempt: format!("make the directory of process {id} of container {}", container.id),
        source,
    };
    let timeout = options.start_timeout.unwrap_or(core.start_timeout);
    let parent = core.root.container(&container.id).map_err(failed)?;
    let of_init = parent.process(&ProcessId::init()).map_err(failed)?;
    let init = of_init.load().map_err(|error| failed(io::Error::other(error)))?;

    let record = ProcessRecord {
        exec: true,
        root_uid: init.root_uid,
        root_gid: init.root_gid,
        runtime_args: init.runtime_args,
        root: text(parent.directory().path().join(id.as_str())),
        holdfast: Some(Policies {
            schema: SCHEMA,
            boot_id: core.boot_id.clone(),
            created: Timestamp::now(),
            launch: Launch::Exec,
            runtime: container.runtime.program().to_owned(),
            bundle: PathBuf::new(),
            log: options.log,
            on_orphan: init
                .holdfast
                .as_ref()
                .map(|holdfast| holdfast.on_orphan)
                .unwrap_or_default(),
            auto_remove: options.auto_remove,
            start_timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            unknown: Map::new(),
        }),
        oci: exec_process(init.oci, options),
        ..ProcessRecord::default()
    };
    let staged = core.root.stage_process(&parent).map_err(failed)?;
    let inner = staged.directory().open_dir(".").map_err(failed)?;
    fill(inner, &record).map_err(failed)?;
    let dir = staged.publish_process(&id).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::ProcessExists(container.id.clone(), id.clone()),
        _ => failed(error),
    })?;

    let process = Arc::new(Process::new(
        &container.id,
        &id,
        &record,
        &container.stream,
        State::Creating,
        None,
        Origin::Made,
    ));
    let command = container.runtime.launch(&container.id, &record, Launch::Exec, Path::new(""));
    Ok(Job { process, dir, record, command, timeout })
}

/// The OCI process of an exec: the container's first one with other arguments.
fn exec_process(mut process: Map<String, Value>, options: &ExecOptions) -> Map<String, Value> {
    process.insert("args".to_owned(), json!(options.args));
    process.insert("terminal".to_owned(), json!(false));
    if let Some(cwd) = &options.cwd {
        process.insert("cwd".to_owned(), json!(cwd));
    }
    if let Some(env) = process.entry("env").or_insert_with(|| json!([])).as_array_mut() {
        env.extend(options.env.iter().map(|variable| json!(variable)));
    }
    // A list of capabilities is the seed's form, of 2016, which no runtime of today reads.
    if process.get("capabilities").is_some_and(Value::is_array) {
        process.remove("capabilities");
    }
    process
}

fn fill(directory: Directory, record: &ProcessRecord) -> io::Result<()> {
    let dir = ProcessDir::new(directory);
    dir.save(record)?;
    dir.make_fifos()
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// `length` random hexadecimal digits, for names that must not repeat.
pub(crate) fn random_hex(length: usize) -> String {
    let mut bytes = vec![0; length.div_ceil(2)];
    if let Err(error) = getrandom::fill(&mut bytes) {
        // The kernel always has some; if not, names repeat and the second is refused as taken.
        tracing::error!(%error, "no random numbers");
    }
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(length);
    text
}
