//! One container process, as everyone in the library shares it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_state::{
    ContainerId, ExitRecord, Incarnation, Launch, Logging, ProcessDir, ProcessId, ProcessRecord,
    StateRoot, Timestamp,
};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::model::copies::Copies;
use crate::model::events::Events;
use crate::model::identity::Handle;
use crate::model::info::Status;
use crate::model::keeper::Keeping;
use crate::model::lifecycle::{Action, Activity, Input, Nature, State, step};

/// Where a process comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This supervisor made it.
    Made,
    /// It was found on disk when this supervisor was opened.
    Restored,
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) container: ContainerId,
    /// Which life of that name.
    pub(crate) incarnation: Incarnation,
    /// Which start within that.
    pub(crate) run: u32,
    pub(crate) id: ProcessId,
    pub(crate) nature: Nature,
    /// Whether it is deleted once it has exited: the container for an init, the record for an exec.
    pub(crate) auto_remove: bool,
    /// How long its start may take.
    pub(crate) start_timeout: Duration,
    pub(crate) origin: Origin,
    /// Where its output goes.
    pub(crate) log: Logging,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
    /// When it was made; the seed did not write that down.
    pub(crate) created: Option<Timestamp>,
    /// Changed by [`Process::apply`] alone.
    state: watch::Sender<State>,
    /// Held for a change of the state, which is told before it is seen.
    changing: tokio::sync::Mutex<()>,
    /// There as long as the process may still be signalled.
    handle: Mutex<Option<Arc<Handle>>>,
    /// Copies of what the shim reads from, for the one that will adopt.
    copies: Mutex<Option<Copies>>,
    /// Why the start was abandoned; taken by whoever asked for it.
    failure: Mutex<Option<Error>>,
    /// Whether it has been told that the start came to nothing.
    failure_told: AtomicBool,
    /// Whether it could not be deleted after its exit.
    stays: AtomicBool,
    /// Whether its directory has been removed: its name may be another's.
    gone: AtomicBool,
    /// Held while the runtime writes its state out, which may end it: that is told before the end.
    pub(crate) checkpointing: tokio::sync::Mutex<()>,
    /// Cancelled when nothing is left to watch: the process has ended and its shim is gone.
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
        // The seed made containers with `create`, and had no notion of the rest.
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
            start_timeout: Duration::from_millis(
                policies.map_or(0, |policies| policies.start_timeout_ms),
            ),
            origin,
            log: policies.map(|policies| policies.log.clone()).unwrap_or_default(),
            terminal: record.oci.get("terminal").and_then(Value::as_bool).unwrap_or_default(),
            created: policies.map(|policies| policies.created.clone()),
            changing: tokio::sync::Mutex::default(),
            state: watch::Sender::new(state),
            handle: Mutex::new(handle),
            copies: Mutex::new(None),
            failure: Mutex::new(None),
            failure_told: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            stays: AtomicBool::new(false),
            checkpointing: tokio::sync::Mutex::default(),
            unwatched: CancellationToken::new(),
        }
    }

    /// Feeds the lifecycle. Events are published before anyone can see the new state, in the order
    /// of the transitions; what else is to be done is returned.
    pub(crate) async fn apply(&self, events: &Arc<Events>, input: Input) -> Vec<Action> {
        let _one_at_a_time = self.changing.lock().await;
        let (next, actions) = step(self.nature, &self.state(), input);
        let (mut told, mut rest) = (Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::Publish(kind) => told.push(kind),
                other => rest.push(other),
            }
        }
        events.publish(self, told).await;
        self.state.send_if_modified(|state| {
            let changed = *state != next;
            *state = next;
            changed
        });
        rest
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits for a state that `wanted` accepts. Cancel safe.
    pub(crate) async fn reached(&self, wanted: impl FnMut(&State) -> bool) -> State {
        let mut receiver = self.state.subscribe();
        // The sender lives as long as `self`, so this can't fail.
        match receiver.wait_for(wanted).await {
            Ok(state) => state.clone(),
            Err(_) => self.state(),
        }
    }

    /// Waits for the end. `None` if there never was a process.
    pub(crate) async fn ended(&self) -> Option<ExitRecord> {
        match self.reached(|state| matches!(state, State::Stopped(_) | State::Abandoned)).await {
            State::Stopped(record) => Some(record),
            _ => None,
        }
    }

    /// Whether there ever was a process, of which something was told.
    pub(crate) fn has_been(&self) -> bool {
        !matches!(*self.state.borrow(), State::Creating | State::Abandoned)
    }

    /// The directory of this very process, and not only one of its name.
    pub(crate) fn dir(&self, root: &StateRoot) -> io::Result<ProcessDir> {
        let dir = root.container(&self.container)?.process(&self.id)?;
        // Asked when it is open: another can only have taken the name after this process was marked.
        match self.is_gone() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "it has been deleted")),
            false => Ok(dir),
        }
    }

    /// Its directory has been removed.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(crate) fn is_creating(&self) -> bool {
        *self.state.borrow() == State::Creating
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(*self.state.borrow(), State::Stopped(_) | State::Abandoned)
    }

    /// Whether it has ended and is about to be deleted, or being deleted.
    pub(crate) fn is_to_go(&self) -> bool {
        self.auto_remove && matches!(*self.state.borrow(), State::Stopped(_))
    }

    /// Whether it is as good as deleted.
    pub(crate) fn is_going(&self) -> bool {
        self.is_to_go() && !self.stays.load(Ordering::Relaxed)
    }

    /// It could not be deleted.
    pub(crate) fn stays(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    pub(crate) fn handle(&self) -> Option<Arc<Handle>> {
        lock(&self.handle).clone()
    }

    /// Its number; `None` from the moment on that the exit is told. Its handle goes a little later.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.handle().filter(|_| !self.is_stopped()).map(|handle| handle.pid)
    }

    /// Sends a signal. `None` if there is no process that could take it.
    pub(crate) fn signal(&self, signal: i32) -> Option<Result<(), Error>> {
        // A zombie would take the signal and do nothing with it.
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

    pub(crate) fn keep_copies(&self, copies: Copies) {
        *lock(&self.copies) = Some(copies);
    }

    /// Has what we hold of it kept beyond our life.
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

    /// That its start came to nothing has been told before.
    pub(crate) fn failure_is_told(&self) {
        self.failure_told.store(true, Ordering::Relaxed);
    }

    /// Whether it has; and it is now.
    pub(crate) fn tell_failure(&self) -> bool {
        !self.failure_told.swap(true, Ordering::Relaxed)
    }

    /// Says why the start fails. The first reason stands: later ones are its consequences.
    pub(crate) fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
    }

    pub(crate) fn take_failure(&self) -> Option<Error> {
        lock(&self.failure).take()
    }

    /// The state in the field's words.
    pub(crate) fn status(&self) -> Status {
        status_of(&self.state.borrow())
    }
}

/// Which life of its container's name a process belongs to.
pub(crate) fn incarnation_of(record: &ProcessRecord) -> Incarnation {
    let policies = record.holdfast.as_ref();
    policies.and_then(|policies| policies.incarnation).unwrap_or_else(|| {
        Incarnation::of_earlier_build(policies.map(|policies| &policies.created))
    })
}

/// A state as it is shown.
pub(crate) fn status_of(state: &State) -> Status {
    match state {
        State::Creating => Status::Creating,
        State::Live { activity: Activity::Created | Activity::Starting, .. } => Status::Created,
        State::Live { activity: Activity::Paused | Activity::Resuming, .. } => Status::Paused,
        // Until the status is known it is not over for anyone.
        State::Live { activity: Activity::Running | Activity::Pausing, .. }
        | State::Exiting { .. } => Status::Running,
        State::Stopped(_) | State::Abandoned => Status::Stopped,
    }
}

/// What a process is at one moment.
pub(crate) struct Moment {
    pub(crate) status: Status,
    pub(crate) pid: Option<i32>,
    pub(crate) exit: Option<ExitRecord>,
}

impl Moment {
    pub(crate) fn of(process: &Process) -> Self {
        // Before the state: by then the process may have ended, and have no handle any more.
        let pid = process.handle().map(|handle| handle.pid);
        let state = process.state();
        let status = status_of(&state);
        let pid = pid.filter(|_| status != Status::Stopped);
        let exit = if let State::Stopped(record) = state { Some(record) } else { None };
        Self { status, pid, exit }
    }
}

/// No code panics while it holds one of these locks half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
