//! From a process on disk to a shim at work, and back where that comes to nothing.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::handoff::{FdName, Message};
use holdfast_state::process_dir::{SHIM_LOG, StartError};
use holdfast_state::{GroupName, ProcessDir, ProcessRecord, ShimRecord, shim_options};
use holdfast_sys::fd_passing;
use nix::sys::resource::{Resource, getrlimit};
use tokio::time::Instant;

use crate::adoption::Copies;
use crate::cgroup::Cgroups;
use crate::exit_fifo::ExitFifo;
use crate::identity::Handle;
use crate::layout::{Job, millis};
use crate::lifecycle::{Input, State};
use crate::process::{Origin, Process};
use crate::supervisor::{ContainerState, Core, Removal, blocking};
use crate::watch::Watch;
use crate::{Error, bundle, groups, leftovers};

/// How long a runtime may take to delete what is left of a container.
pub(crate) const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// A start that is under way, if its shim could be begun.
pub(crate) struct Begun {
    container: Arc<ContainerState>,
    process: Arc<Process>,
    /// `None` for a limit that no clock reaches.
    deadline: Option<Instant>,
    shim: io::Result<(File, Option<Child>)>,
}

/// Begins the shim. Waits for the disk.
pub(crate) fn begin(core: &Arc<Core>, container: &Arc<ContainerState>, job: &Job) -> Begun {
    let deadline = Instant::now().checked_add(job.timeout);
    let (container, process) = (container.clone(), job.process.clone());
    Begun { container, process, deadline, shim: begin_shim(core, job) }
}

/// Has the shim watched, and waits until the process is there or the start has been cleared away again.
pub(crate) async fn launch(core: &Arc<Core>, begun: Begun) -> Result<(), Error> {
    let Begun { container, process, deadline, shim } = begun;
    let (exit, shim) = shim
        .and_then(|(reader, shim)| Ok((Some(ExitFifo::new(reader)?), shim)))
        .unwrap_or_else(|error| {
            // Nothing runs yet, so the watch finds nothing but the clearing away to do.
            process.fail(match error.kind() {
                io::ErrorKind::TimedOut => {
                    let timeout = process.start_timeout;
                    Error::StartTimeout { timeout, detail: error.to_string() }
                }
                _ => Error::io(format!("start {}", core.shim.display()))(error),
            });
            (None, None)
        });
    let has_own_shim = shim.is_some();
    core.spawn(Watch::new(core, &container, &process, exit, shim, deadline).run());
    let state = tokio::select! {
        state = process.reached(|state| *state != State::Creating) => state,
        () = core.stop.cancelled() => return Err(Error::Closed),
    };
    match state {
        State::Abandoned => {
            Err(process.take_failure().unwrap_or_else(|| Error::NotStarted(String::new())))
        }
        _ => {
            if has_own_shim {
                core.spares.refill_later(core);
            }
            Ok(())
        }
    }
}

fn begin_shim(core: &Arc<Core>, job: &Job) -> io::Result<(File, Option<Child>)> {
    let mut ends = ShimEnds::open(&job.dir, &job.record)?;
    ends.words.extend(["--timeout-ms".into(), millis(job.timeout).to_string().into()]);
    // The shim of a group raises its own limit.
    let own = || getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
    let in_a_group = ends.group.is_some();
    if let Some(soft) = core.container_nofile.or_else(|| own().filter(|_| in_a_group)) {
        ends.words.extend(["--nofile".into(), soft.to_string().into()]);
    }
    ends.words.push("--".into());
    ends.words.extend(job.command.iter().cloned());
    ends.begin(core, job.timeout, None)
}

/// What a shim is to be begun with, still to be completed, and the reader of what it will announce.
pub(crate) struct ShimEnds {
    /// Its command line.
    pub(crate) words: Vec<OsString>,
    group: Option<GroupName>,
    announcements: File,
    log: File,
    reader: File,
}

impl ShimEnds {
    /// What the command lines of all shims have in common.
    pub(crate) fn open(dir: &ProcessDir, record: &ProcessRecord) -> io::Result<Self> {
        // The reader first, or the writer could not be opened; and the writer before there is a
        // shim, so that from the first moment its death reads as the end of the FIFO.
        let reader = dir.exit_reader()?;
        let announcements = dir.exit_writer()?;
        let log = dir.directory().append(SHIM_LOG)?;
        let mut words: Vec<OsString> = vec!["--dir".into(), dir.path().into()];
        let policies = record.holdfast.as_ref();
        for spec in policies.map(|policies| policies.log.clone()).unwrap_or_default().specs() {
            words.extend(["--log".into(), spec.to_string().into()]);
        }
        let owner = bundle::stdio_owner(record);
        words.extend(["--owner".into(), format!("{}:{}", owner.0, owner.1).into()]);
        if record.oci.get("terminal").is_some_and(|terminal| *terminal == true) {
            words.push("--terminal".into());
        }
        let paths = [&record.stdin, &record.stdout, &record.stderr];
        for (option, path) in ["--stdin", "--stdout", "--stderr"].into_iter().zip(paths) {
            if !path.is_empty() {
                words.extend([option.into(), path.into()]);
            }
        }
        let group = policies.and_then(|policies| policies.shim_group.clone());
        Ok(Self { words, group, announcements, log, reader })
    }

    /// It is to be a shim of the process's own.
    pub(crate) fn leave_group(&mut self) {
        self.group = None;
    }

    /// Begins the shim, or asks that of the group: to start a process, or to adopt the one that left
    /// these descriptors. `patience` is how long the group may take to make room for the request.
    pub(crate) fn begin(
        mut self,
        core: &Arc<Core>,
        patience: Duration,
        adoptee: Option<Vec<(FdName, BorrowedFd<'_>)>>,
    ) -> io::Result<(File, Option<Child>)> {
        // A group was asked for that when it began. It stands behind the directory.
        if self.group.is_none() {
            self.words.insert(2, shim_options::IDENTIFY.into());
        }
        let adopt = adoptee.as_ref().map(|_| OsStr::new(shim_options::ADOPT));
        let words = adopt.into_iter().chain(self.words.iter().map(|word| &**word));
        let own = [(FdName::Exit, self.announcements.as_fd()), (FdName::Log, self.log.as_fd())];
        if let Some(group) = &self.group {
            let fds = adoptee.into_iter().flatten().chain(own);
            groups::ask(core, group, &Message::new(fds, words)?, patience)?;
            return Ok((self.reader, None));
        }
        if adoptee.is_none()
            && let Some(shim) = core.spares.employ(words.clone(), own)
        {
            return Ok((self.reader, Some(shim)));
        }
        let mut command = core.shim_command();
        command.args(words).stdin(Stdio::null());
        if let Some(fds) = adoptee {
            let (ours, theirs) = fd_passing::pair()?;
            Message::new(fds, [])?.send(&ours)?;
            command.stdin(theirs);
        }
        command.stdout(self.announcements).stderr(self.log);
        Ok((self.reader, Some(core.spawned.spawn(&mut command)?)))
    }
}

/// Takes hold of a process that its shim has just announced, and writes down its start time.
///
/// The shim reaps a process only after the status is on disk. So if there is no status after the
/// pid was opened, the pid was still that of the process.
pub(crate) async fn take_identity(
    core: &Arc<Core>,
    process: &Arc<Process>,
    pid: i32,
    shim: Option<ShimRecord>,
) {
    let (core, process) = (core.clone(), process.clone());
    let (container, id) = (process.container.clone(), process.id.clone());
    let taken = blocking(move || {
        let dir = core.process_dir(&process)?;
        let Some(handle) = Handle::open(pid)? else { return Ok(()) };
        if dir.exit()?.is_some() {
            return Ok(());
        }
        let mut record = dir.load().map_err(io::Error::other)?;
        handle.write_identity(&mut record);
        process.set_handle(Some(Arc::new(handle)));
        let written = write_shim(&core, &process, &dir, record, shim);
        process.have_kept(&core.keeping);
        written
    });
    if let Err(error) = taken.await {
        // It runs, and its shim will tell of its exit; what is missing is the proof of identity
        // after a restart.
        tracing::error!(%container, process = %id, pid, %error, "identity not recorded");
    }
}

/// Writes down which shim has taken a process over.
pub(crate) async fn record_adopter(core: &Arc<Core>, process: &Arc<Process>, shim: ShimRecord) {
    let (core, process) = (core.clone(), process.clone());
    let (container, id) = (process.container.clone(), process.id.clone());
    let recorded = blocking(move || {
        let dir = core.process_dir(&process)?;
        let record = dir.load().map_err(io::Error::other)?;
        write_shim(&core, &process, &dir, record, Some(shim))
    });
    if let Err(error) = recorded.await {
        tracing::error!(%container, process = %id, %error, "adopter not recorded");
    }
}

/// Saves a record with its shim, and keeps copies of what that reads from.
fn write_shim(
    core: &Core,
    process: &Process,
    dir: &ProcessDir,
    mut record: ProcessRecord,
    shim: Option<ShimRecord>,
) -> io::Result<()> {
    if let Some(policies) = &mut record.holdfast {
        policies.shim.clone_from(&shim);
    }
    dir.save(&record)?;
    if let Some(shim) = shim {
        match Copies::of_shim(&shim, &core.closer) {
            Ok(copies) => process.keep_copies(copies),
            // Its process has ended already, or it was killed: the record stands all the same.
            Err(error) => {
                tracing::debug!(container = %process.container, process = %process.id, %error, "no copies of the shim's pipes");
            }
        }
    }
    Ok(())
}

/// Explains a start that came to nothing and removes all that is left of it.
///
/// `given_up` is there if its shim has given it up by itself, and says whether it took too long.
pub(crate) async fn clear_away(
    core: &Arc<Core>,
    container: &Arc<ContainerState>,
    process: &Arc<Process>,
    given_up: Option<bool>,
) {
    let dir = core.process_dir(process);
    let failure = match &dir {
        Ok(dir) => explain(dir, given_up == Some(true), process.start_timeout),
        Err(_) => Error::NotStarted(String::new()),
    };
    if process.origin == Origin::Restored {
        tracing::warn!(container = %process.container, process = %process.id, %failure, "unfinished start cleared away");
    }
    if process.tell_failure() {
        // Before anything goes: who dies over that finds it told.
        process.apply(core, Input::Failed(failure.to_string())).await;
    }
    process.fail(failure);
    let ended = move |dir: &ProcessDir| {
        leftovers::end_runtime(dir)?;
        leftovers::end_process(dir)
    };
    // A shim that has given it up has seen to that.
    if given_up.is_none()
        && let Ok(dir) = dir
        && let Err(error) = blocking(move || ended(&dir)).await
    {
        tracing::warn!(container = %process.container, process = %process.id, %error, "failed start: its process was not ended");
    }
    if process.id.is_init()
        && let Err(error) = container.runtime.delete(&process.container, DELETE_LIMIT).await
    {
        tracing::warn!(container = %process.container, %error, "failed start: not deleted from the runtime");
    }
    // A runtime that was killed over it may have made these, and know nothing of them.
    if process.id.is_init()
        && let Ok(own) = Cgroups::own()
    {
        own.remove_empty_below(process.container.as_str());
    }
    if let Err(error) = core.forget(container, process, Removal::OfItself).await {
        tracing::error!(container = %process.container, process = %process.id, %error, "failed start: directory left");
    }
}

fn explain(dir: &ProcessDir, timed_out: bool, timeout: Duration) -> Error {
    let start_error = dir.start_error();
    if timed_out {
        let detail = match start_error {
            Some(StartError::Runtime(text)) => format!("oci runtime error: {text}"),
            Some(StartError::Shim(_)) | None => dir.stderr_tail(),
        };
        return Error::StartTimeout { timeout, detail };
    }
    match start_error {
        Some(StartError::Shim(text)) => Error::Shim(text),
        Some(StartError::Runtime(text)) => Error::Runtime(text),
        None => match dir.stderr_tail() {
            // A runtime that fails before it has read its log option says so on its standard error.
            text if !text.is_empty() => Error::Runtime(text),
            _ => Error::NotStarted(String::new()),
        },
    }
}
