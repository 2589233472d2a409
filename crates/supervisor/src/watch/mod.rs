//! One task per process. It reports what happens at the exit FIFO and at the pidfd to the
//! lifecycle, and carries out the actions that the lifecycle decides. It causes no wake-up while
//! nothing happens.

use std::collections::VecDeque;
use std::io;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::announce::{Announcement, Announcer};
use holdfast_state::{ExitRecord, ShimRecord};
use holdfast_sys::proc::Stat;
use holdfast_sys::{PidFd, reactor, wait};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout};

use crate::core::Core;
use crate::model::container::ContainerState;
use crate::model::failure::Failure;
use crate::model::identity::Handle;
use crate::model::lifecycle::{Action, Input, State};
use crate::model::process::Process;
use crate::os::oom::OomWatch;
use crate::os::tasks::blocking;
use crate::shim::exit_fifo::ExitFifo;

pub(crate) mod adopt;
pub(crate) mod change;
mod clear_away;
mod evidence;
pub(crate) mod identify;
mod layers;
mod leftovers;
pub(crate) mod remove;

/// How long a shim may take from the end of its process until the exit is recorded. It drains the
/// output first, and the machine may be loaded. After that the shim counts as wedged, and the
/// status is taken from the kernel.
const RECORD_GRACE: Duration = Duration::from_secs(10);

/// By how much a shim may exceed the start timeout, which it enforces itself: it has to kill what
/// the runtime started, and to wait until that is gone.
const SHIM_SLACK: Duration = Duration::from_secs(8);

/// The watch of one process.
pub(crate) struct Watch {
    core: Arc<Core>,
    container: Arc<ContainerState>,
    process: Arc<Process>,
    /// The exit FIFO; `None` when the shim is known to be gone.
    exit: Option<ExitFifo>,
    /// The shim, if it is a child of ours and must be reaped.
    shim: Option<Child>,
    /// Set when the shim has given up the start: whether the start took too long.
    given_up: Option<bool>,
    /// The deadline of the start, if any.
    start_deadline: Option<Instant>,
    /// The watch for out-of-memory kills, as long as there is memory to watch.
    oom: Option<OomWatch>,
    /// Whether the removal of the process has begun.
    going: bool,
    /// Whether the shim was granted time beyond the start timeout.
    overtime: bool,
    adoptions: Adoptions,
    /// When the next adoption is due, if one is delayed.
    adopt_at: Option<Instant>,
}

/// The recent adoptions of the process. A process that makes its shims die, however it does that,
/// must not keep the supervisor and the disk busy.
#[derive(Debug, Default)]
struct Adoptions(VecDeque<Instant>);

impl Adoptions {
    /// How long an adoption counts as recent.
    const WINDOW: Duration = Duration::from_secs(600);
    /// How many adoptions follow each other without a pause.
    const AT_ONCE: usize = 5;
    /// How many of them are assigned to the group of the process. The group may have no room, so
    /// after that the process gets a shim of its own.
    const IN_A_GROUP: usize = 2;
    /// The longest pause.
    const LONGEST: Duration = Duration::from_secs(60);

    /// Counts one more adoption, and returns how long it has to wait: the pause doubles each time,
    /// from one second up to `LONGEST`.
    fn pause(&mut self, now: Instant) -> Duration {
        while self.0.front().is_some_and(|first| now.duration_since(*first) > Self::WINDOW) {
            self.0.pop_front();
        }
        // More entries would not make the pause longer.
        while self.0.len() > 4 * Self::AT_ONCE {
            self.0.pop_front();
        }
        self.0.push_back(now);
        let beyond = self.0.len().saturating_sub(Self::AT_ONCE);
        match u32::try_from(beyond) {
            Ok(0) => Duration::ZERO,
            Ok(doublings @ ..=6) => Duration::from_secs(1 << (doublings - 1)).min(Self::LONGEST),
            _ => Self::LONGEST,
        }
    }
}

/// One event that the watch waits for.
enum News {
    Said(Announcement),
    ShimGone,
    ProcessGone,
    DeadlinePassed,
    OutOfMemory,
    AdoptionDue,
}

impl Watch {
    pub(crate) fn new(
        core: &Arc<Core>,
        container: &Arc<ContainerState>,
        process: &Arc<Process>,
        exit: Option<ExitFifo>,
        shim: Option<Child>,
        start_deadline: Option<Instant>,
    ) -> Self {
        Self {
            core: core.clone(),
            container: container.clone(),
            process: process.clone(),
            exit,
            shim,
            given_up: None,
            start_deadline,
            oom: None,
            going: false,
            overtime: false,
            adoptions: Adoptions::default(),
            adopt_at: None,
        }
    }

    /// Watches until the process has ended and its shim is gone, or the supervisor is shut down.
    pub(crate) async fn run(mut self) {
        let _unwatched = self.process.unwatched.clone().drop_guard();
        let mut deadline = self.start_deadline;
        // The pidfd is registered with the reactor only while it is needed.
        let mut pidfd = None;
        self.watch_memory();
        if self.exit.is_none() {
            self.feed(Input::ShimGone, &mut deadline).await;
        }
        loop {
            let state = self.process.state();
            if pidfd.is_none() && matches!(state, State::Live { .. }) {
                pidfd = self.process.handle().and_then(watched);
            }
            let final_state = matches!(state, State::Stopped(_) | State::Abandoned);
            if final_state {
                // Tasks that wait for the exit come first.
                tokio::task::yield_now().await;
                (pidfd, deadline) = (None, None);
                self.adopt_at = None;
                self.oom = None;
                if self.process.take_copies().is_some() || self.process.handle().is_some() {
                    self.release().await;
                }
                self.reap_orphan();
                self.process.set_handle(None);
                // The removal of a container does not wait until its shim is gone: without a pid
                // namespace, processes that the container has left running hold its pipes open, and
                // the deletion is what ends them. An exec is removed only when its shim is gone,
                // because its output continues as long as somebody writes it.
                if self.process.id.is_init() || self.exit.is_none() {
                    self.remove_if_asked();
                }
                if self.exit.is_none() {
                    break;
                }
            }
            let news = tokio::select! {
                biased;
                // The FIFO comes before the pidfd: what the shim has recorded is the better
                // evidence.
                said = next(&mut self.exit), if self.exit.is_some() => said.map_or(News::ShimGone, News::Said),
                () = gone(&pidfd), if pidfd.is_some() => News::ProcessGone,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => News::DeadlinePassed,
                () = out_of_memory(&self.oom), if self.oom.is_some() => News::OutOfMemory,
                () = sleep_until(self.adopt_at.unwrap_or_else(Instant::now)), if self.adopt_at.is_some() => News::AdoptionDue,
                () = self.core.tasks.stop.cancelled() => return,
            };
            match news {
                News::Said(Announcement::Created { pid, shim }) => {
                    deadline = None;
                    let shim = shim_record(shim);
                    identify::take_identity(&self.core, &self.process, pid, shim).await;
                    self.watch_memory();
                    self.feed(Input::Created { pid }, &mut deadline).await;
                }
                News::Said(Announcement::Adopted { shim }) => {
                    if let Some(shim) = shim_record(shim) {
                        identify::record_adopter(&self.core, &self.process, shim).await;
                    }
                    self.feed(Input::Adopted, &mut deadline).await;
                }
                News::Said(Announcement::GivenUp { timed_out }) => self.given_up = Some(timed_out),
                News::Said(said @ Announcement::Exited { .. }) => {
                    if let Some(record) = said.exit() {
                        self.feed(Input::Recorded(record), &mut deadline).await;
                    }
                }
                News::ShimGone => {
                    self.exit = None;
                    self.process.note_shim(None);
                    if let Some(shim) = &mut self.shim
                        && !self.core.spawned.ended(shim).await
                    {
                        self.core.spawned.expect_strangers();
                    }
                    self.feed(Input::ShimGone, &mut deadline).await;
                }
                News::ProcessGone => {
                    pidfd = None;
                    // A process that has ended makes no more shims die, and its last output is
                    // still to be read, so a delayed adoption is due now.
                    if let Some(due) = &mut self.adopt_at {
                        *due = Instant::now();
                    }
                    self.feed(Input::ProcessGone, &mut deadline).await;
                }
                News::OutOfMemory => self.tell_out_of_memory().await,
                News::AdoptionDue => {
                    self.adopt_at = None;
                    if let Some(input) = Box::pin(self.try_to_adopt()).await {
                        self.feed(input, &mut deadline).await;
                    }
                }
                News::DeadlinePassed => {
                    deadline = None;
                    if state != State::Creating {
                        self.feed(Input::GraceOver, &mut deadline).await;
                    } else if !self.overtime && self.shim_has_begun().await {
                        self.overtime = true;
                        deadline = Some(Instant::now() + SHIM_SLACK);
                    } else {
                        self.end_start(&mut deadline).await;
                    }
                }
            }
        }
    }

    /// Watches the memory of a container, through its init process.
    fn watch_memory(&mut self) {
        if !self.process.id.is_init() {
            return;
        }
        let Some(handle) = self.process.handle() else { return };
        match OomWatch::begin(&self.core.files, &self.core.tasks, handle.pid) {
            Ok(oom) => self.oom = Some(oom),
            Err(error) => {
                tracing::debug!(container = %self.process.container, %error, "the memory of the container is not watched");
            }
        }
    }

    async fn tell_out_of_memory(&mut self) {
        if self.oom.as_mut().is_some_and(OomWatch::take_new) {
            self.process.apply(&self.core.events, Input::OutOfMemory).await;
        }
    }

    /// Tells of a kill that caused an exit, or was before it. The shim may know of one that was before
    /// this watch began.
    async fn tell_out_of_memory_before(&mut self, record: &mut ExitRecord) {
        self.tell_out_of_memory().await;
        if record.oom_killed && !self.process.is_oom_killed() {
            self.process.apply(&self.core.events, Input::OutOfMemory).await;
        }
        record.oom_killed |= self.process.is_oom_killed();
    }

    /// Passes an input to the lifecycle and carries out the actions that follow. These may lead to
    /// further inputs.
    async fn feed(&mut self, input: Input, deadline: &mut Option<Instant>) {
        let mut inputs = vec![input];
        while let Some(mut input) = inputs.pop() {
            if let Input::Recorded(record) | Input::Found(record) = &mut input {
                self.tell_out_of_memory_before(record).await;
            }
            if matches!(input, Input::Recorded(_)) {
                // The exit may be caused by a checkpoint, which is reported before the exit. A
                // runtime that hangs during the checkpoint delays the exit only by this limit.
                let _ = timeout(RECORD_GRACE, self.process.checkpointing.lock()).await;
            }
            // What is boxed here is seldom, and would otherwise be room in each task.
            for action in self.process.apply(&self.core.events, input).await {
                match action {
                    Action::Publish(_) => {}
                    Action::AwaitRecord => *deadline = Some(Instant::now() + RECORD_GRACE),
                    Action::FindEnding => {
                        inputs.push(Input::Found(Box::pin(self.find_ending()).await))
                    }
                    Action::RecordExit(record) => {
                        inputs.push(Input::Recorded(self.record_exit(record).await));
                    }
                    Action::KillOrphan => {
                        inputs.extend(self.hold().await);
                        self.kill_orphan();
                    }
                    Action::Adopt => {
                        let now = Instant::now();
                        let pause = self.adoptions.pause(now);
                        let ended = matches!(self.process.state(), State::Exiting { .. });
                        if pause.is_zero() || ended {
                            inputs.extend(Box::pin(self.try_to_adopt()).await);
                        } else {
                            tracing::warn!(container = %self.process.container, process = %self.process.id, ?pause, "its shims die repeatedly; the next adoption is delayed");
                            self.adopt_at = Some(now + pause);
                        }
                    }
                    Action::ClearAway => {
                        let (core, container) = (&self.core, &self.container);
                        let cleared =
                            clear_away::clear_away(core, container, &self.process, self.given_up);
                        Box::pin(cleared).await;
                        inputs.push(Input::Cleared);
                    }
                }
            }
        }
    }

    /// Has the process adopted. Returns the input that follows at once, if any.
    async fn try_to_adopt(&mut self) -> Option<Input> {
        if let Some(record) = self.recorded().await {
            // The shim recorded the exit before it went. containerd's 2016 shim does not announce
            // an exit.
            return Some(Input::Recorded(record));
        }
        if let Some(gone) = self.hold().await {
            return Some(gone);
        }
        let error = self.adopt().await.err()?;
        tracing::warn!(container = %self.process.container, process = %self.process.id, %error, "process not adopted");
        Some(Input::ShimGone)
    }

    /// Makes sure that we hold a handle of the process, now that its shim no longer does. Returns
    /// the input that follows if the process has ended.
    async fn hold(&self) -> Option<Input> {
        if self.process.handle().is_some() || !matches!(self.process.state(), State::Live { .. }) {
            return None;
        }
        match identify::take_again(&self.core, &self.process).await {
            Ok(true) => None,
            Ok(false) => Some(Input::ProcessGone),
            Err(error) => {
                tracing::error!(container = %self.process.container, process = %self.process.id, %error, "no handle of the process could be opened");
                None
            }
        }
    }

    async fn adopt(&mut self) -> io::Result<()> {
        let alone = self.adoptions.0.len() > Adoptions::IN_A_GROUP;
        // The semaphore is never closed, so this does not fail.
        let _turn = self.core.adoptions.acquire().await.map_err(io::Error::other)?;
        let (exit, shim) = adopt::adopt(&self.core, &self.process, alone).await?;
        (self.exit, self.shim) = (Some(exit), shim);
        Ok(())
    }

    async fn find_ending(&self) -> ExitRecord {
        match self.recorded().await {
            Some(record) => record,
            None => evidence::from_kernel(self.process.handle().as_deref()).await,
        }
    }

    /// Returns the exit record that is on disk, if any.
    async fn recorded(&self) -> Option<ExitRecord> {
        let (core, process) = (self.core.clone(), self.process.clone());
        let found = self.core.tasks.in_root(move || {
            let dir = process.dir(&core.root)?;
            Ok(evidence::on_disk(&dir))
        });
        found.await.unwrap_or_else(|error| {
            tracing::warn!(container = %self.process.container, %error, "the exit record could not be looked up");
            None
        })
    }

    /// Writes the exit record, and returns the one that is on disk: a shim may have been faster.
    async fn record_exit(&self, record: ExitRecord) -> ExitRecord {
        let (core, process) = (self.core.clone(), self.process.clone());
        let ours = record.clone();
        let recorded = self.core.tasks.in_root(move || process.dir(&core.root)?.record_exit(&ours));
        recorded.await.unwrap_or_else(|error| {
            // The exit is reported all the same: a full disk is no reason to hide it.
            tracing::error!(container = %self.process.container, process = %self.process.id, %error, "exit not recorded");
            record
        })
    }

    /// Releases what the keeper holds of the process, which is not needed beyond our life any more.
    async fn release(&self) {
        if self.core.keeping.is_any() {
            let (core, process) = (self.core.clone(), self.process.clone());
            let released = blocking(move || {
                core.keeping.release(&process);
                Ok(())
            });
            let _ = released.await;
        }
    }

    /// Reaps the process if it became our child because we are a subreaper. Its exit is on disk by
    /// now.
    fn reap_orphan(&self) {
        if let Some(handle) = self.process.handle() {
            // This fails for a process that is not our child, which is no problem.
            let _ = wait::reap(wait::Child::Held(&handle.pidfd));
        }
    }

    fn kill_orphan(&self) {
        let Some(handle) = self.process.handle() else { return };
        tracing::info!(container = %self.process.container, pid = handle.pid, "orphan killed: its shim is gone");
        if let Err(error) = handle.pidfd.send_signal(nix::libc::SIGKILL) {
            tracing::warn!(container = %self.process.container, pid = handle.pid, %error, "orphan not killed");
        }
    }

    /// Returns whether there is a shim that enforces the start timeout: a shim opens its control
    /// FIFO before anything else. The shim of a group may not have begun this start yet.
    async fn shim_has_begun(&self) -> bool {
        let (core, process) = (self.core.clone(), self.process.clone());
        let begun = blocking(move || process.dir(&core.root)?.control_writer().map(drop));
        begun.await.is_ok()
    }

    /// Gives up a start that no shim has ended in time. A shim ends a start by itself at the
    /// timeout. One that does not is wedged, or never began the start.
    async fn end_start(&mut self, deadline: &mut Option<Instant>) {
        tracing::warn!(container = %self.process.container, "no shim has ended the start in time; the start is given up");
        let timeout = self.process.start_timeout;
        self.process.fail(Failure::Timeout { timeout, detail: String::new() });
        match &mut self.shim {
            Some(shim) => _ = shim.kill(),
            // The shim is not our child. What it has begun is found and ended all the same.
            None => {
                self.exit = None;
                self.feed(Input::ShimGone, deadline).await;
            }
        }
    }

    fn remove_if_asked(&mut self) {
        if self.process.is_to_go() && !self.going {
            self.going = true;
            let (core, container, process) =
                (self.core.clone(), self.container.clone(), self.process.clone());
            core.clone().tasks.spawn(async move {
                remove::remove_exited(&core, &container, &process).await;
            });
        }
    }
}

/// Returns the record of a shim for the disk, or `None` if the shim is gone already.
pub(crate) fn shim_record(shim: Announcer) -> Option<ShimRecord> {
    // If the shim has died and its pid was reused, the start time of the other process is recorded.
    // Nothing is then found at the announced descriptors.
    let start_time = Stat::read(shim.pid).ok()?.start_time;
    Some(ShimRecord { pid: shim.pid, start_time, stdio: shim.stdio })
}

async fn next(exit: &mut Option<ExitFifo>) -> Option<Announcement> {
    match exit {
        Some(exit) => exit.next().await,
        None => std::future::pending().await,
    }
}

fn watched(handle: Arc<Handle>) -> Option<AsyncFd<Arc<PidFd>>> {
    reactor::pidfd(handle.pidfd.clone())
        .inspect_err(|error| tracing::error!(%error, "pidfd not watched"))
        .ok()
}

async fn out_of_memory(oom: &Option<OomWatch>) {
    match oom {
        Some(oom) => oom.happened().await,
        None => std::future::pending().await,
    }
}

async fn gone(pidfd: &Option<AsyncFd<Arc<PidFd>>>) {
    match pidfd {
        // This fails only when the Tokio runtime ends, and this task ends with it.
        Some(pidfd) => _ = pidfd.readable().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_makes_shims_die_waits_longer_and_longer_for_the_next() {
        let mut adoptions = Adoptions::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..14 {
            pauses.push(adoptions.pause(now).as_secs());
            now += Duration::from_millis(10);
        }
        assert_eq!(pauses, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += Adoptions::WINDOW + Duration::from_secs(1);
        assert_eq!(adoptions.pause(now), Duration::ZERO);
    }
}
