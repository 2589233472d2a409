//! The health check of a container as a value, its status, and how a container stores both.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use holdfast_supervisor::{ContainerInfo, ContainerOptions, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};

/// The label that contains the health check, as JSON.
pub const HEALTH: &str = "holdfast.health";
/// The label that contains the status of a run, as JSON.
pub const HEALTH_STATE: &str = "holdfast.health.state";

/// The longest time of a health check: a year. A longer one means this.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

const fn non_zero(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).expect("not 0")
}

const FIVE_SECONDS: NonZeroU64 = non_zero(5_000);
const THIRTY_SECONDS: NonZeroU64 = non_zero(30_000);
const THREE: NonZeroU32 = NonZeroU32::new(3).expect("not 0");

/// How the health of a container is checked: by a program that runs in it at each interval, and exits
/// with 0 if the container is healthy. The defaults are those of docker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    #[serde(deserialize_with = "command")]
    command: Vec<String>,
    #[serde(default = "thirty_seconds")]
    interval_ms: NonZeroU64,
    #[serde(default = "thirty_seconds")]
    timeout_ms: NonZeroU64,
    #[serde(default = "three")]
    retries: NonZeroU32,
    #[serde(default)]
    start_period_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_interval_ms: Option<NonZeroU64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    restart: bool,
}

fn command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let command = Vec::<String>::deserialize(deserializer)?;
    match command.first() {
        Some(program) if !program.is_empty() => Ok(command),
        _ => Err(serde::de::Error::custom("a health check needs a program to run")),
    }
}

fn thirty_seconds() -> NonZeroU64 {
    THIRTY_SECONDS
}

fn three() -> NonZeroU32 {
    THREE
}

/// Returns a time in milliseconds, of at least one.
fn millis(time: Duration) -> NonZeroU64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    NonZeroU64::new(millis).unwrap_or(NonZeroU64::MIN)
}

impl HealthCheck {
    /// Checks the health by a program and its arguments.
    #[must_use]
    pub fn new(command: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            interval_ms: THIRTY_SECONDS,
            timeout_ms: THIRTY_SECONDS,
            retries: THREE,
            start_period_ms: 0,
            start_interval_ms: None,
            restart: false,
        }
    }

    /// Checks the health by a script for the shell of the container.
    #[must_use]
    pub fn shell(script: &str) -> Self {
        Self::new(["/bin/sh", "-c", script])
    }

    /// Sets the time between two checks, and before the first one. The default is 30 seconds.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval_ms = millis(interval);
        self
    }

    /// Sets after how much time a check is killed and has failed. The default is 30 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = millis(timeout);
        self
    }

    /// Sets how many failures in a row make a container unhealthy. The default is 3.
    #[must_use]
    pub fn retries(mut self, retries: NonZeroU32) -> Self {
        self.retries = retries;
        self
    }

    /// Sets for how long after the start failures do not count, unless a check has succeeded. The default
    /// is 0.
    #[must_use]
    pub fn start_period(mut self, period: Duration) -> Self {
        self.start_period_ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Sets the time between two checks in the start period, until one succeeds. The default is
    /// 5 seconds, or the usual interval if that is shorter.
    #[must_use]
    pub fn start_interval(mut self, interval: Duration) -> Self {
        self.start_interval_ms = Some(millis(interval));
        self
    }

    /// Restarts the container when it becomes unhealthy, whatever its restart policy is: this counts as
    /// a restart of the policy, and as a failure for `on-failure`.
    #[must_use]
    pub fn restart_on_unhealthy(mut self) -> Self {
        self.restart = true;
        self
    }

    /// Gives a new container this health check. A container that is deleted automatically after its
    /// exit cannot be restarted, so it must not [ask for that](Self::restart_on_unhealthy).
    #[must_use]
    pub fn apply(&self, options: ContainerOptions) -> ContainerOptions {
        // Numbers and texts can always be written as JSON.
        options.label(HEALTH, serde_json::to_string(self).unwrap_or_default())
    }

    /// Returns whether the container is restarted when it becomes unhealthy.
    #[must_use]
    pub fn restarts(&self) -> bool {
        self.restart
    }

    /// Returns the check of a container; `None` if it has none, or one that a later release wrote and
    /// this one cannot read.
    pub(crate) fn of(labels: &BTreeMap<String, String>) -> Option<Self> {
        serde_json::from_str(labels.get(HEALTH)?).ok()
    }

    pub(crate) fn command(&self) -> &[String] {
        &self.command
    }

    /// Returns how long after the start of its run a container is checked next: at a multiple of the
    /// interval that holds for it, so that the schedule needs no storage.
    pub(crate) fn next(&self, status: HealthStatus, age: Duration) -> Duration {
        let multiple_after = |interval: NonZeroU64| {
            let interval = Duration::from_millis(interval.get()).min(LONGEST);
            let into_interval = age.as_nanos() % interval.as_nanos();
            let into_interval = u64::try_from(into_interval).unwrap_or_default();
            age + (interval - Duration::from_nanos(into_interval))
        };
        let at_start = self.start_interval_ms.unwrap_or(self.interval_ms.min(FIVE_SECONDS));
        let in_period = multiple_after(at_start);
        match status == HealthStatus::Starting && in_period <= self.time_to_start() {
            true => in_period,
            false => multiple_after(self.interval_ms),
        }
    }

    fn time_to_start(&self) -> Duration {
        Duration::from_millis(self.start_period_ms)
    }

    pub(crate) fn time_limit(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.get()).min(LONGEST)
    }
}

/// Whether a container is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has succeeded yet, and not enough have failed.
    Starting,
    /// The last check succeeded, or not enough have failed since.
    Healthy,
    /// As many checks in a row have failed as the container has retries.
    Unhealthy,
}

impl HealthStatus {
    /// Returns the status as a lowercase word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The health of a container in its current run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Health {
    /// The status.
    pub status: HealthStatus,
    /// How many checks have failed since the last one that succeeded.
    pub failing_streak: u32,
    /// The last checks by this supervisor, the oldest first. Only
    /// [`HealthChecks::of`](crate::HealthChecks::of) fills this in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<CheckResult>,
}

impl Health {
    /// Returns the health of a container; `None` if it has no health check.
    #[must_use]
    pub fn of(info: &ContainerInfo) -> Option<Self> {
        info.labels.get(HEALTH)?;
        let HealthState { status, failing_streak, .. } = HealthState::of(&info.labels, info.run);
        Some(Self { status, failing_streak, log: Vec::new() })
    }
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct CheckResult {
    /// When it began.
    pub start: Timestamp,
    /// When it had ended, or was killed.
    pub end: Timestamp,
    /// The exit code; `None` if the program could not be started, or did not end by itself.
    pub exit_code: Option<u8>,
    /// The first 4096 bytes of its output, after the reason if there is no exit code.
    pub output: String,
}

impl CheckResult {
    pub(crate) fn now(start: Timestamp, exit_code: Option<u8>, output: String) -> Self {
        Self { start, end: Timestamp::now(), exit_code, output }
    }
}

/// The status of one run, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HealthState {
    pub(crate) run: u32,
    pub(crate) status: HealthStatus,
    pub(crate) failing_streak: u32,
}

impl HealthState {
    /// Returns the stored state if it is that of this run, and the state of a new run otherwise.
    pub(crate) fn of(labels: &BTreeMap<String, String>, run: u32) -> Self {
        let stored = labels.get(HEALTH_STATE).and_then(|text| serde_json::from_str(text).ok());
        stored.filter(|state: &Self| state.run == run).unwrap_or(Self {
            run,
            status: HealthStatus::Starting,
            failing_streak: 0,
        })
    }

    /// Returns the state after a check that has succeeded, or has failed when the container was `age`
    /// old.
    pub(crate) fn after(self, check: &HealthCheck, succeeded: bool, age: Duration) -> Self {
        if succeeded {
            return Self { status: HealthStatus::Healthy, failing_streak: 0, ..self };
        }
        let counts = self.status != HealthStatus::Starting || age >= check.time_to_start();
        if !counts {
            return self;
        }
        let failing_streak = self.failing_streak.saturating_add(1);
        let status = match failing_streak >= check.retries.get() {
            true => HealthStatus::Unhealthy,
            false => self.status,
        };
        Self { status, failing_streak, ..self }
    }
}

/// Returns the run that has become unhealthy, if the container is to be restarted then.
pub(crate) fn unhealthy_run(labels: &BTreeMap<String, String>) -> Option<u32> {
    let state: HealthState = serde_json::from_str(labels.get(HEALTH_STATE)?).ok()?;
    let restarts = HealthCheck::of(labels).is_some_and(|check| check.restarts());
    (state.status == HealthStatus::Unhealthy && restarts).then_some(state.run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthStatus::{Healthy, Starting, Unhealthy};

    fn read(text: &str) -> Result<HealthCheck, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_docker_and_a_check_is_read_as_it_is_written() {
        let check = HealthCheck::shell("true");
        assert_eq!(read(r#"{"command":["/bin/sh","-c","true"]}"#), Ok(check.clone()));
        let thirty = Duration::from_secs(30);
        assert_eq!((check.next(Starting, Duration::ZERO), check.time_limit()), (thirty, thirty));
        assert_eq!((check.retries.get(), check.start_period_ms), (3, 0));
        let all = check
            .interval(Duration::from_millis(5))
            .timeout(Duration::MAX)
            .retries(NonZeroU32::MIN)
            .start_period(Duration::MAX)
            .start_interval(Duration::from_millis(6))
            .restart_on_unhealthy();
        assert_eq!(read(&serde_json::to_string(&all).unwrap()), Ok(all.clone()));
        assert_eq!(all.time_limit(), LONGEST);
    }

    #[test]
    fn a_check_that_makes_no_sense_is_refused() {
        for (text, reason) in [
            (r#"{"command":[]}"#, "needs a program"),
            (r#"{"command":[""]}"#, "needs a program"),
            (r#"{"command":["x"],"intervalMs":0}"#, "nonzero"),
            (r#"{"command":["x"],"timeoutMs":-1}"#, "nonzero"),
            (r#"{"command":["x"],"retries":0}"#, "nonzero"),
            (r#"{"command":["x"],"startIntervalMs":0}"#, "nonzero"),
            (r#"{"command":["x"],"intervall":1}"#, "intervall"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn in_the_start_period_checks_come_at_its_interval_until_one_succeeds() {
        let seconds = Duration::from_secs;
        let nexts = |check: &HealthCheck, status, ages: &[u64]| -> Vec<u64> {
            let next = |&age: &u64| check.next(status, seconds(age)).as_secs();
            ages.iter().map(next).collect()
        };
        let check = HealthCheck::shell("x").start_period(seconds(12));
        assert_eq!(nexts(&check, Starting, &[0, 4, 5, 9, 10, 12, 30]), [5, 5, 10, 10, 30, 30, 60]);
        assert_eq!(nexts(&check, Healthy, &[0, 5, 12, 31]), [30, 30, 30, 60]);
        let check = check.start_interval(seconds(4));
        assert_eq!(nexts(&check, Starting, &[0, 4, 8, 11, 12]), [4, 8, 12, 12, 30]);
        let check = check.interval(seconds(3));
        assert_eq!(nexts(&check, Starting, &[0, 4, 12]), [4, 8, 15], "also a longer one");
        let check = HealthCheck::shell("x").start_period(seconds(12)).interval(seconds(2));
        assert_eq!(nexts(&check, Starting, &[0, 2]), [2, 4], "the default is not longer");
        let half = Duration::from_millis(500);
        assert_eq!(check.next(Healthy, seconds(6) + half), seconds(8));
    }

    fn states(check: &HealthCheck, results: &[(bool, u64)]) -> Vec<(HealthStatus, u32)> {
        let mut state = HealthState::of(&BTreeMap::new(), 1);
        let mut after = |&(succeeded, age): &(bool, u64)| {
            state = state.after(check, succeeded, Duration::from_secs(age));
            (state.status, state.failing_streak)
        };
        results.iter().map(&mut after).collect()
    }

    #[test]
    fn as_many_failures_in_a_row_as_there_are_retries_make_a_container_unhealthy() {
        let results = [(false, 1), (false, 2), (true, 3), (false, 4), (false, 5), (false, 6)];
        let expected = [
            (Starting, 1),
            (Starting, 2),
            (Healthy, 0),
            (Healthy, 1),
            (Healthy, 2),
            (Unhealthy, 3),
        ];
        assert_eq!(states(&HealthCheck::shell("x"), &results), expected);
        assert_eq!(
            states(&HealthCheck::shell("x"), &[(false, 1); 4])[2..],
            [(Unhealthy, 3), (Unhealthy, 4)]
        );
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_until_a_check_has_succeeded() {
        let check = HealthCheck::shell("x").start_period(Duration::from_secs(10));
        let check = check.retries(NonZeroU32::MIN);
        let expected = [(Starting, 0), (Starting, 0), (Unhealthy, 1)];
        assert_eq!(states(&check, &[(false, 1), (false, 9), (false, 10)]), expected);
        assert_eq!(states(&check, &[(true, 1), (false, 2)]), [(Healthy, 0), (Unhealthy, 1)]);
    }

    #[test]
    fn a_state_counts_for_its_own_run_only() {
        let labels = |state: &str, check: &str| {
            BTreeMap::from([(HEALTH_STATE.into(), state.into()), (HEALTH.into(), check.into())])
        };
        let state = r#"{"run":2,"status":"unhealthy","failingStreak":3}"#;
        let all = labels(state, r#"{"command":["x"],"restart":true}"#);
        assert_eq!(HealthState::of(&all, 2).status, Unhealthy);
        assert_eq!(HealthState::of(&all, 3).status, Starting);
        assert_eq!(unhealthy_run(&all), Some(2));
        assert_eq!(unhealthy_run(&labels(state, r#"{"command":["x"]}"#)), None);
        assert_eq!(unhealthy_run(&labels("?", r#"{"command":["x"],"restart":true}"#)), None);
        assert_eq!(HealthState::of(&labels("?", "?"), 1).status, Starting);
    }
}
