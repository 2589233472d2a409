//! One container process, as all parts of the library share it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_state::{
    ContainerId, EventKind, ExitRecord, GroupName, Incarnation, Launch, Logging, ProcessDir,
    ProcessId, ProcessRecord, StateRoot, Timestamp,
};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::model::copies::Copies;
use crate::model::events::Events;
use crate::model::failure::Failure;
use crate::model::identity::Handle;
use crate::model::info::Status;
use crate::model::keeper::Keeping;
use crate::model::lifecycle::{Action, Activity, Input, Nature, State, step};

/// Where a process comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This supervisor created it.
    Made,
    /// This supervisor restored it from disk.
    Restored,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) container: ContainerId,
    /// Identifies one life of the container's name.
    pub(crate) incarnation: Incarnation,
    /// Counts the starts within the incarnation.
    pub(crate) run: u32,
    pub(crate) id: ProcessId,
    pub(crate) nature: Nature,
    /// Whether it is removed after its exit: the container for an init process, the record for an
    /// exec.
    pub(crate) auto_remove: bool,
    /// How long its removal waits for `released`.
    pub(crate) hold: Duration,
    /// Cancelled when the client that reads its output needs it no more.
    pub(crate) released: CancellationToken,
    /// How long its start may take.
    pub(crate) start_timeout: Duration,
    /// The signal by which it is stopped, and the time after which SIGKILL follows.
    pub(crate) stop_signal: Option<i32>,
    pub(crate) stop_grace: Option<Duration>,
    pub(crate) origin: Origin,
    /// Where its output goes.
    pub(crate) log: Logging,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
    /// Whether its input ends with the first writer.
    pub(crate) stdin_once: bool,
    /// The time of creation; containerd's 2016 shim did not record it.
    pub(crate) created: Option<Timestamp>,
    pub(crate) args: Vec<String>,
    /// Empty for an exec.
    pub(crate) bundle: PathBuf,
    pub(crate) shim_group: Option<GroupName>,
    /// The labels of the container, for an init process.
    labels: Mutex<BTreeMap<String, String>>,
    /// Held to change the record on disk.
    record: Mutex<()>,
    /// Changed only by [`Process::apply`].
    state: watch::Sender<State>,
    /// Held during a change of the state: the events are published before the new state is visible.
    changing: tokio::sync::Mutex<()>,
    /// Present while the process may still be signalled.
    handle: Mutex<Option<Arc<Handle>>>,
    /// Copies of the descriptors from which the shim reads, for the shim that adopts the process.
    copies: Mutex<Option<Copies>>,
    /// Why the start was abandoned; taken by the caller of the start.
    failure: Mutex<Option<Failure>>,
    /// Whether the failure of the start was published.
    failure_told: AtomicBool,
    /// Whether the OOM killer killed a process of the container.
    oom_killed: AtomicBool,
    /// The pid of its shim; 0 if there is none.
    shim: AtomicI32,
    /// When its program was started.
    started: Mutex<Option<Timestamp>>,
    /// When this value was created.
    pub(crate) since: Timestamp,
    /// Whether the automatic removal after the exit has failed.
    stays: AtomicBool,
    /// Whether its directory has been removed, so that another process may have its name.
    gone: AtomicBool,
    /// Held while the runtime writes a checkpoint. That may end the process; the checkpoint is
    /// published before the exit.
    pub(crate) checkpointing: tokio::sync::Mutex<()>,
    /// Cancelled when there is nothing left to watch: the process has exited and its shim is gone.
    pub(crate) unwatched: CancellationToken,
}

impl Process {
    pub(crate) fn new(
        container: &ContainerId,
        id: &ProcessId,
        record: &ProcessRecord,
        state: State,
        handle: Option<Arc<Handle>>,
        origin: Origin,
    ) -> Self {
        let policies = record.holdfast.as_ref();
        // containerd's 2016 shim used `create` for containers, and recorded no other policy.
        let of_seed = if record.exec { Launch::Exec } else { Launch::Create };
        Self {
            container: container.clone(),
            incarnation: incarnation_of(record),
            run: policies.map_or(1, |policies| policies.run),
            id: id.clone(),
            nature: Nature {
                launch: policies.map_or(of_seed, |policies| policies.launch),
                on_orphan: policies.map(|policies| policies.on_orphan).unwrap_or_default(),
            },
            auto_remove: policies.is_some_and(|policies| policies.auto_remove),
            hold: Duration::from_millis(policies.map_or(0, |policies| policies.hold_ms)),
            released: CancellationToken::new(),
            start_timeout: Duration::from_millis(
                policies.map_or(0, |policies| policies.start_timeout_ms),
            ),
            stop_signal: policies.and_then(|policies| policies.stop_signal),
            stop_grace: policies
                .and_then(|policies| policies.stop_grace_ms)
                .map(Duration::from_millis),
            origin,
            log: policies.map(|policies| policies.log.clone()).unwrap_or_default(),
            terminal: record.oci.get("terminal").and_then(Value::as_bool).unwrap_or_default(),
            stdin_once: policies.is_some_and(|policies| policies.stdin_once),
            created: policies.map(|policies| policies.created.clone()),
            args: args_of(record),
            bundle: policies.map(|policies| policies.bundle.clone()).unwrap_or_default(),
            shim_group: policies.and_then(|policies| policies.shim_group.clone()),
            labels: Mutex::new(policies.map(|it| it.labels.clone()).unwrap_or_default()),
            record: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            state: watch::Sender::new(state),
            handle: Mutex::new(handle),
            copies: Mutex::new(None),
            failure: Mutex::new(None),
            failure_told: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            oom_killed: AtomicBool::new(false),
            shim: AtomicI32::new(0),
            started: Mutex::default(),
            since: Timestamp::now(),
            stays: AtomicBool::new(false),
            checkpointing: tokio::sync::Mutex::default(),
            unwatched: CancellationToken::new(),
        }
    }

    /// Passes an input to the lifecycle. The new state is visible once the events are in the journal,
    /// and before anybody hears of them. Returns the other actions.
    pub(crate) async fn apply(self: &Arc<Self>, events: &Arc<Events>, input: Input) -> Vec<Action> {
        let _one_at_a_time = self.changing.lock().await;
        let (next, actions) = step(self.nature, &self.state(), input);
        let (mut told, mut rest) = (Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::Publish(kind) => told.push(kind),
                other => rest.push(other),
            }
        }
        let time = Timestamp::now();
        for kind in &told {
            match kind {
                EventKind::Started => self.note_start(Some(time.clone())),
                EventKind::OutOfMemory => self.note_oom(),
                _ => {}
            }
        }
        let (this, state) = (self.clone(), next.clone());
        events.publish(self, time, told, Box::new(move || this.set_state(state))).await;
        // Without events, or if the Tokio runtime is gone, nobody has done it.
        self.set_state(next);
        rest
    }

    fn set_state(&self, next: State) {
        self.state.send_if_modified(|state| {
            let changed = *state != next;
            *state = next;
            changed
        });
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits for a state that `wanted` accepts. Cancel safe.
    pub(crate) async fn reached(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let mut receiver = self.state.subscribe();
        // Cannot fail: the sender lives as long as `self`.
        match receiver.wait_for(wanted).await {
            Ok(state) => state.clone(),
            Err(_) => self.state(),
        }
    }

    /// Waits until the process has exited. Returns `None` if the start failed. Cancel safe.
    pub(crate) async fn ended(&self) -> Option<ExitRecord> {
        match self.reached(|state| matches!(state, State::Stopped(_) | State::Abandoned)).await {
            State::Stopped(record) => Some(record),
            _ => None,
        }
    }

    /// Returns whether there ever was a process, so that events of it were published.
    pub(crate) fn has_been(&self) -> bool {
        !matches!(*self.state.borrow(), State::Creating | State::Abandoned)
    }

    /// Opens the directory of this process. Fails if the directory belongs to a later process of
    /// the same name.
    pub(crate) fn dir(&self, root: &StateRoot) -> io::Result<ProcessDir> {
        let dir = root.container(&self.container)?.process(&self.id)?;
        // Checked after the directory was opened: another process can only have taken the name
        // after this one was marked as gone.
        match self.is_gone() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "the process has been deleted")),
            false => Ok(dir),
        }
    }

    /// Marks the directory as removed.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Changes the record on disk, and returns it. Whoever else changes it waits, so that no change is lost.
    pub(crate) fn change_record(
        &self,
        dir: &ProcessDir,
        change: impl FnOnce(&mut ProcessRecord),
    ) -> io::Result<ProcessRecord> {
        let _one_at_a_time = lock(&self.record);
        let mut record = dir.load().map_err(io::Error::other)?;
        change(&mut record);
        dir.save(&record)?;
        Ok(record)
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        lock(&self.labels).clone()
    }

    /// Replaces the labels, also on disk. Waits for the disk.
    ///
    /// # Errors
    ///
    /// If the record cannot be written, or was written by containerd's 2016 shim, which had no labels.
    pub(crate) fn set_labels(
        &self,
        root: &StateRoot,
        labels: BTreeMap<String, String>,
    ) -> io::Result<()> {
        let record = self.change_record(&self.dir(root)?, |record| {
            if let Some(policies) = &mut record.holdfast {
                policies.labels.clone_from(&labels);
            }
        })?;
        if record.holdfast.is_none() {
            let text = "a container of containerd's 2016 shim has no labels";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        *lock(&self.labels) = labels;
        Ok(())
    }

    /// Notes when its program was started.
    pub(crate) fn note_start(&self, time: Option<Timestamp>) {
        *lock(&self.started) = time;
    }

    /// Returns when its program was started. A process may exit before the supervisor knows that it
    /// was started; the time of the exit then counts.
    pub(crate) fn started(&self) -> Option<Timestamp> {
        let started = lock(&self.started).clone()?;
        match &*self.state.borrow() {
            State::Stopped(exit) => Some(started.min(exit.time.clone())),
            _ => Some(started),
        }
    }

    /// Notes which shim it has.
    pub(crate) fn note_shim(&self, pid: Option<i32>) {
        self.shim.store(pid.unwrap_or_default(), Ordering::Relaxed);
    }

    pub(crate) fn shim_pid(&self) -> Option<i32> {
        Some(self.shim.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    /// Notes that the OOM killer killed a process of the container.
    pub(crate) fn note_oom(&self) {
        self.oom_killed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_oom_killed(&self) -> bool {
        self.oom_killed.load(Ordering::Relaxed)
            || matches!(&*self.state.borrow(), State::Stopped(exit) if exit.oom_killed)
    }

    pub(crate) fn is_creating(&self) -> bool {
        *self.state.borrow() == State::Creating
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(*self.state.borrow(), State::Stopped(_) | State::Abandoned)
    }

    /// Returns whether it has exited and is to be removed automatically.
    pub(crate) fn is_to_go(&self) -> bool {
        self.auto_remove && matches!(*self.state.borrow(), State::Stopped(_))
    }

    /// Returns whether it counts as deleted: its automatic removal is due and has not failed.
    pub(crate) fn is_going(&self) -> bool {
        self.is_to_go() && !self.stays.load(Ordering::Relaxed)
    }

    /// Returns whether a caller is to find no such process: it was deleted, or counts as deleted.
    pub(crate) fn is_not_found(&self) -> bool {
        self.is_gone() || self.is_going()
    }

    /// Notes that the automatic removal has failed.
    pub(crate) fn stays(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    pub(crate) fn handle(&self) -> Option<Arc<Handle>> {
        lock(&self.handle).clone()
    }

    /// Returns the pid; `None` as soon as the exit is published. The handle is dropped a little
    /// later.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.handle().filter(|_| !self.is_stopped()).map(|handle| handle.pid)
    }

    /// Sends a signal. Returns `None` if there is no process that could receive it.
    pub(crate) fn signal(&self, signal: i32) -> Option<Result<(), Error>> {
        // A zombie would accept the signal and ignore it.
        let handle = self.handle().filter(|_| !self.is_stopped())?;
        match handle.pidfd.send_signal(signal) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => None,
            sent => {
                let to = handle.pid;
                Some(sent.map_err(Error::io(format!("send signal {signal} to process {to}"))))
            }
        }
    }

    pub(crate) fn set_handle(&self, handle: Option<Arc<Handle>>) {
        *lock(&self.handle) = handle;
    }

    /// Keeps copies of what it has none of yet: all refer to the same pipes.
    pub(crate) fn keep_copies(&self, copies: Copies) {
        let mut kept = lock(&self.copies);
        *kept = Some(match kept.take() {
            Some(before) => before.or(copies),
            None => copies,
        });
    }

    /// Gives the descriptors of the process to the keeper, which holds them beyond the life of this
    /// process.
    pub(crate) fn have_kept(&self, keeping: &Keeping) {
        if let Some(handle) = self.handle() {
            keeping.keep(self, &handle, lock(&self.copies).as_ref());
        }
    }

    pub(crate) fn has_copies(&self) -> bool {
        lock(&self.copies).is_some()
    }

    pub(crate) fn take_copies(&self) -> Option<Copies> {
        lock(&self.copies).take()
    }

    /// Notes that the failure of the start was published before.
    pub(crate) fn failure_is_told(&self) {
        self.failure_told.store(true, Ordering::Relaxed);
    }

    /// Returns whether the failure of the start is still to be published, and notes that it now is.
    pub(crate) fn tell_failure(&self) -> bool {
        !self.failure_told.swap(true, Ordering::Relaxed)
    }

    /// Stores why the start fails, and returns that. Only the first reason is kept: later ones are its
    /// consequences.
    pub(crate) fn fail(&self, failure: Failure) -> Failure {
        lock(&self.failure).get_or_insert(failure).clone()
    }

    /// Returns why the start has failed.
    pub(crate) fn failure(&self) -> Error {
        let failure = lock(&self.failure).clone();
        failure.unwrap_or_else(|| Failure::NotStarted(String::new())).into()
    }

    /// Returns the state in the terms of the OCI runtime specification.
    pub(crate) fn status(&self) -> Status {
        status_of(&self.state.borrow())
    }
}

/// The arguments of an OCI process.
fn args_of(record: &ProcessRecord) -> Vec<String> {
    let args = record.oci.get("args").and_then(Value::as_array);
    let args = args.map(|args| args.iter().filter_map(Value::as_str).map(str::to_owned).collect());
    args.unwrap_or_default()
}

/// Returns the incarnation of the container to which a process belongs.
pub(crate) fn incarnation_of(record: &ProcessRecord) -> Incarnation {
    let policies = record.holdfast.as_ref();
    policies.and_then(|policies| policies.incarnation).unwrap_or_else(|| {
        Incarnation::of_earlier_build(policies.map(|policies| &policies.created))
    })
}

/// Converts a state to the status that is shown.
pub(crate) fn status_of(state: &State) -> Status {
    match state {
        State::Creating => Status::Creating,
        State::Live { activity: Activity::Created | Activity::Starting, .. } => Status::Created,
        State::Live { activity: Activity::Paused | Activity::Resuming, .. } => Status::Paused,
        // Until the exit status is known, the process counts as running.
        State::Live { activity: Activity::Running | Activity::Pausing, .. }
        | State::Exiting { .. } => Status::Running,
        State::Stopped(_) | State::Abandoned => Status::Stopped,
    }
}

/// A consistent view of a process at one moment.
pub(crate) struct Moment {
    pub(crate) status: Status,
    pub(crate) pid: Option<i32>,
    pub(crate) exit: Option<ExitRecord>,
}

impl Moment {
    pub(crate) fn of(process: &Process) -> Self {
        // Read before the state: afterwards the process may have exited and have no handle any
        // more.
        let pid = process.handle().map(|handle| handle.pid);
        let state = process.state();
        let status = status_of(&state);
        let pid = pid.filter(|_| status != Status::Stopped);
        let exit = if let State::Stopped(record) = state { Some(record) } else { None };
        Self { status, pid, exit }
    }
}

/// Ignores poisoning: no code panics in the middle of a change while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
