//! The tasks that check the health of containers.
//!
//! Each running container with a health check has a task, which ends with the run. Checks come at
//! multiples of an interval after the start of the run. So the schedule needs no storage, it goes on when
//! another supervisor is opened, and the checks of many containers are then as far apart as their starts
//! were. What a supervisor has left of a check when it died is killed by the next one, and does not count.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_supervisor::{
    Container, ContainerInfo, Error, EventKind, ExecOptions, ExecProcess, LogReader, LogSpec,
    Logging, Status, Stdio, Timestamp,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::decide::{has_restarts, last_run};
use crate::health::{CheckResult, HEALTH_STATE, Health, HealthCheck, HealthState, HealthStatus};
use crate::policy::{Marks, how_to_stop};
use crate::restarts::{self, Life, Restarts, finish, follow, set_label};

/// How many checks are being started at the same time: a start takes processor time.
const STARTS: usize = 16;
/// How many checks run at the same time: they may only wait for something.
const RUNNING: usize = 512;
/// How many results of a container are kept.
const RESULTS: usize = 5;
/// How many bytes of the output of a check are kept.
const OUTPUT: usize = 4096;
/// How many characters of the output are in the log of the daemon when the health changes.
const LOGGED: usize = 200;
/// How the ids of the exec processes begin that check the health.
const PREFIX: &str = "healthcheck-";
/// A check may be killed because its container ends. The exit of that is known within this time.
const ENDING: Duration = Duration::from_secs(1);

/// Checks the health of the containers of a supervisor. Dropping the handle ends the checks; the
/// containers keep running.
#[derive(Debug)]
pub struct HealthChecks {
    shared: Arc<Shared>,
    /// Ends all tasks when the handle is dropped.
    _stop: DropGuard,
}

/// How many checks there were since a [`HealthChecks`] was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckCounts {
    /// Those that succeeded.
    pub succeeded: u64,
    /// Those that failed in time.
    pub failed: u64,
    /// Those that failed because they took too long.
    pub timed_out: u64,
}

#[derive(Debug)]
struct Shared {
    restarts: Arc<restarts::Shared>,
    watched: Mutex<HashMap<Life, Watched>>,
    starts: Semaphore,
    running: Arc<Semaphore>,
    stop: CancellationToken,
    succeeded: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
}

/// The run of a container that has a task, or had it last, and the results of its checks.
#[derive(Debug)]
struct Watched {
    run: u32,
    results: VecDeque<CheckResult>,
}

/// What a check has come to.
struct Checked {
    result: CheckResult,
    is_late: bool,
    /// The process, if it was killed and has not ended yet.
    killed: Option<ExecProcess>,
}

impl HealthChecks {
    /// Begins to check the health of the containers that have a [`HealthCheck`]. Must be called in a
    /// Tokio runtime. The handle of the restarts can be dropped, but then unhealthy containers are
    /// stopped and not started again.
    #[must_use]
    pub fn begin(restarts: &Restarts) -> Self {
        let shared = Arc::new(Shared {
            restarts: restarts.shared.clone(),
            watched: Mutex::default(),
            starts: Semaphore::new(STARTS),
            running: Arc::new(Semaphore::new(RUNNING)),
            stop: CancellationToken::new(),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
        });
        let stop = shared.stop.clone().drop_guard();
        tokio::spawn(shared.clone().follow());
        Self { shared, _stop: stop }
    }

    /// Returns the health of a container with the results of its last checks; `None` if it has no
    /// health check.
    #[must_use]
    pub fn of(&self, info: &ContainerInfo) -> Option<Health> {
        let mut health = Health::of(info)?;
        let life = (info.id.clone(), info.incarnation);
        if let Some(watched) = self.shared.watched().get(&life).filter(|it| it.run == info.run) {
            health.log = watched.results.iter().cloned().collect();
        }
        Some(health)
    }

    /// Returns how many checks there were.
    #[must_use]
    pub fn counts(&self) -> CheckCounts {
        let Shared { succeeded, failed, timed_out, .. } = &*self.shared;
        CheckCounts {
            succeeded: succeeded.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
            timed_out: timed_out.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, HashMap<Life, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn follow(self: Arc<Self>) {
        let starts = |kind: &EventKind| *kind == EventKind::Started;
        let consider = |container: &Container| self.consider(container);
        let forget = |life: &Life| drop(self.watched().remove(life));
        follow(&self.restarts.supervisor, &self.stop, starts, consider, forget).await;
    }

    /// Begins to check a container that runs, unless that is done already.
    fn consider(self: &Arc<Self>, container: &Container) {
        let Some(check) = HealthCheck::of(&container.labels()) else { return };
        let info = container.info();
        if !matches!(info.status, Status::Running | Status::Paused) {
            return;
        }
        let life = (info.id.clone(), info.incarnation);
        let mut watched = self.watched();
        if watched.get(&life).is_none_or(|watched| watched.run != info.run) {
            watched.insert(life, Watched { run: info.run, results: VecDeque::new() });
            tokio::spawn(self.clone().watch(container.clone(), info, check));
        }
    }

    /// Checks a container until its run ends. What is going on then is dropped: the process of a check
    /// ends with its container, and is deleted automatically.
    async fn watch(self: Arc<Self>, container: Container, info: ContainerInfo, check: HealthCheck) {
        tokio::select! {
            _ = container.exit_of_run(info.run) => {}
            () = self.check_on(&container, &info, &check) => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn check_on(
        self: &Arc<Self>,
        container: &Container,
        info: &ContainerInfo,
        check: &HealthCheck,
    ) {
        let mut state = HealthState::of(&info.labels, info.run);
        clear_away(container, info).await;
        if state.status == HealthStatus::Unhealthy && check.restarts() {
            // The supervisor before has died over it.
            self.stop_unhealthy(container, info.run).await;
        }
        let (seen, age) = (Instant::now(), info.ran_for().unwrap_or_default());
        loop {
            let age = age + seen.elapsed();
            sleep(check.next(state.status, age) - age).await;
            // A paused container cannot answer.
            if container.info().status != Status::Running {
                continue;
            }
            // Never closed, so a permit is always there in the end.
            let room = self.running.clone().acquire_owned().await.ok();
            let Some(checked) = self.check(container, check, room).await else { return };
            let info = container.info();
            if info.status == Status::Running {
                state = self.note(container, check, state, &info, &checked).await;
            }
            if let Some(killed) = checked.killed {
                // There is no second one beside it. A process that does not end holds up this
                // container alone.
                let _ = killed.exit().await;
            }
        }
    }

    /// Checks a container once. Returns `None` if the supervisor stops.
    async fn check(
        &self,
        container: &Container,
        check: &HealthCheck,
        room: Option<OwnedSemaphorePermit>,
    ) -> Option<Checked> {
        let limit = check.time_limit();
        let turn = self.starts.acquire().await;
        let (start, began) = (Timestamp::now(), Instant::now());
        let started = container.exec_attached(options(check)).await;
        drop(turn);
        let of = |code, output| Checked {
            result: CheckResult::now(start, code, output),
            is_late: false,
            killed: None,
        };
        let late = format!("the check took longer than {limit:?}");
        let (process, log) = match started {
            Ok(started) => started,
            Err(Error::Closed) => return None,
            Err(error @ Error::StartTimeout { .. }) => {
                return Some(Checked {
                    is_late: true,
                    ..of(None, joined(&late, &error.to_string()))
                });
            }
            Err(error) => {
                sleep(ENDING).await;
                return Some(of(None, error.to_string()));
            }
        };
        match timeout(limit.saturating_sub(began.elapsed()), process.exit()).await {
            Ok(Ok(exit)) => match exit.status.code() {
                Some(code) => Some(of(Some(code), output(log).await)),
                None => {
                    sleep(ENDING).await;
                    Some(of(None, joined(&exit.status.to_string(), &output(log).await)))
                }
            },
            Ok(Err(_)) => None,
            Err(_) => {
                if let Err(error) = process.kill().await {
                    tracing::debug!(container = %container.id(), %error, "a late check is not killed");
                }
                drop(room);
                let text = joined(&late, &output(log).await);
                Some(Checked { is_late: true, killed: Some(process), ..of(None, text) })
            }
        }
    }

    /// Notes the result of a check, and acts on it. Returns the state of the container after it.
    async fn note(
        self: &Arc<Self>,
        container: &Container,
        check: &HealthCheck,
        state: HealthState,
        info: &ContainerInfo,
        Checked { result, is_late, .. }: &Checked,
    ) -> HealthState {
        let succeeded = result.exit_code == Some(0);
        let count = match (succeeded, is_late) {
            (true, _) => &self.succeeded,
            (false, true) => &self.timed_out,
            (false, false) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let life = (info.id.clone(), info.incarnation);
        if let Some(watched) = self.watched().get_mut(&life) {
            watched.results.push_back(result.clone());
            if watched.results.len() > RESULTS {
                watched.results.pop_front();
            }
        }
        let new = state.after(check, succeeded, info.ran_for().unwrap_or_default());
        if new == state {
            return new;
        }
        if new.status != state.status {
            let (id, status) = (container.id(), new.status.as_str());
            // What a container says does not become lines of the log.
            let output: String = result.output.chars().take(LOGGED).collect();
            tracing::info!(container = %id, run = new.run, status, ?output, "health");
        }
        if let Err(error) = self.store(container, new).await {
            tracing::warn!(container = %container.id(), %error, "the health is not stored");
        } else if new.status == HealthStatus::Unhealthy && check.restarts() {
            self.stop_unhealthy(container, new.run).await;
        }
        new
    }

    /// Writes the state into the labels, if the container still runs in that run: what has ended is not
    /// restarted for a check that came too late.
    async fn store(
        self: &Arc<Self>,
        container: &Container,
        state: HealthState,
    ) -> Result<(), Error> {
        let (restarts, container) = (self.restarts.clone(), container.clone());
        finish(async move {
            let lock = restarts.lock(container.id()).await;
            let info = container.info();
            let stored = match info.run == state.run && info.status == Status::Running {
                true => {
                    let text = serde_json::to_string(&state).unwrap_or_default();
                    set_label(&container, HEALTH_STATE, text).await
                }
                false => Ok(()),
            };
            restarts.unlock(lock);
            stored
        })
        .await
    }

    /// Stops a container that is unhealthy in this run, so that its policy restarts it. Where the policy
    /// allows no further restart, the container runs on.
    async fn stop_unhealthy(self: &Arc<Self>, container: &Container, run: u32) {
        let (restarts, of) = (self.restarts.clone(), container.clone());
        let stopped = finish(async move {
            // A user's operation comes before this one or after it.
            let lock = restarts.lock(of.id()).await;
            let (info, marks) = (of.info(), Marks::of(&of.labels()));
            let past = of.runs().await.unwrap_or_default();
            let stopped = match marks {
                Some(marks)
                    if info.run == run
                        && info.status == Status::Running
                        && has_restarts(&marks, last_run(&info, &past)) =>
                {
                    let (signal, grace) = how_to_stop(&info);
                    of.stop(signal, grace).await.map(drop)
                }
                _ => Ok(()),
            };
            restarts.unlock(lock);
            stopped
        });
        if let Err(error) = stopped.await {
            tracing::warn!(container = %container.id(), %error, "an unhealthy container is not stopped");
        }
    }
}

/// Kills the process of a check that an earlier supervisor has begun.
async fn clear_away(container: &Container, info: &ContainerInfo) {
    for exec in info.execs.iter().filter(|exec| exec.id.as_str().starts_with(PREFIX)) {
        if let Some(process) = container.process(&exec.id)
            // Only a process that has begun can be killed.
            && process.begun().await.is_ok()
            && process.kill().await.is_ok()
        {
            let _ = process.exit().await;
        }
    }
}

fn options(check: &HealthCheck) -> ExecOptions {
    // The checks of a run follow one another, and what an earlier supervisor began is older.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    // A check may write without an end. What it wrote first stays readable, as the reader has it open.
    let log = LogSpec { max_size: Some(64 << 10), max_files: Some(2), ..LogSpec::default() };
    let mut options = ExecOptions::new(check.command().iter().cloned())
        .start_timeout(check.time_limit())
        .auto_remove();
    if let Ok(log) = Logging::new(vec![log]) {
        options = options.stdio(Stdio::new().log(log));
    }
    if let Ok(id) = format!("{PREFIX}{now:x}").parse() {
        options = options.id(id);
    }
    options
}

fn joined(reason: &str, output: &str) -> String {
    if output.is_empty() { reason.to_owned() } else { format!("{reason}: {output}") }
}

/// Returns the beginning of what a process has written so far.
async fn output(mut log: LogReader) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < OUTPUT {
        match log.next().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => break,
            Err(error) => return format!("the output cannot be read: {error}"),
        }
    }
    bytes.truncate(OUTPUT);
    String::from_utf8_lossy(&bytes).into_owned()
}
