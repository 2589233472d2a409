//! The decision after an exit: whether the container is started again, and after which delay.

use std::time::{Duration, SystemTime};

use holdfast_supervisor::{ContainerInfo, ExitStatus, PastRun, Status, Timestamp};

use crate::policy::{Marks, RestartPolicy};

/// The delays before restarts. The delay doubles with each restart, up to a cap. A run that lasted for a
/// while resets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The delay before the first restart. The default is 100 ms.
    pub initial: Duration,
    /// The longest delay. The default is one minute.
    pub cap: Duration,
    /// A run that lasted as long as this resets the delay. The default is ten seconds.
    pub reset: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(100),
            cap: Duration::from_secs(60),
            reset: Duration::from_secs(10),
        }
    }
}

impl Backoff {
    fn delay(self, quick_restarts: u32) -> Duration {
        let factor = 2_u32.saturating_pow(quick_restarts);
        self.initial.saturating_mul(factor).min(self.cap)
    }
}

/// What is to be done with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It stays as it is.
    Stays,
    /// It is started this long after its exit.
    Starts(Duration),
}

/// Decides what the policy of a container wants now.
pub(crate) fn decide(
    marks: &Marks,
    info: &ContainerInfo,
    past: &[PastRun],
    backoff: Backoff,
) -> Decision {
    let (Status::Stopped, Some(exit)) = (info.status, &info.exit) else { return Decision::Stays };
    if marks.stopped == Some(info.run) {
        return Decision::Stays;
    }
    let last = last_run(info, past);
    let is_unhealthy = marks.unhealthy == Some(info.run);
    let wanted = match marks.policy {
        RestartPolicy::No => is_unhealthy,
        RestartPolicy::OnFailure(_) => is_unhealthy || exit.status != ExitStatus::Code(0),
        RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
    };
    if !wanted || !has_restarts(marks, last) {
        return Decision::Stays;
    }
    let is_long = |started: Option<&Timestamp>, ended: &Timestamp| {
        let lasted = started.and_then(|started| between(started, ended));
        lasted.is_some_and(|lasted| lasted >= backoff.reset)
    };
    let steady = if is_long(info.started.as_ref(), &exit.time) {
        info.run
    } else {
        let long = past.iter().rev().find(|run| {
            run.exit.as_ref().is_some_and(|exit| is_long(run.started.as_ref(), &exit.time))
        });
        long.map_or(0, |run| run.run)
    };
    Decision::Starts(backoff.delay(last.saturating_sub(steady.max(marks.since))))
}

/// Returns whether the policy allows one more restart after so many runs.
pub(crate) fn has_restarts(marks: &Marks, last: u32) -> bool {
    match marks.policy {
        RestartPolicy::OnFailure(Some(most)) => last.saturating_sub(marks.since) < most.get(),
        _ => true,
    }
}

/// Returns the number of the last run. One whose start failed has a number too.
pub(crate) fn last_run(info: &ContainerInfo, past: &[PastRun]) -> u32 {
    past.last().map_or(0, |past| past.run).max(info.run)
}

/// Returns how much of a delay after `ended` is left: never more than all of it, although the clock may
/// have been set back.
pub(crate) fn left(ended: &Timestamp, delay: Duration, now: SystemTime) -> Duration {
    let since = SystemTime::try_from(ended).ok().and_then(|ended| now.duration_since(ended).ok());
    delay.saturating_sub(since.unwrap_or_default())
}

fn between(from: &Timestamp, to: &Timestamp) -> Option<Duration> {
    let (from, to) = (SystemTime::try_from(from).ok()?, SystemTime::try_from(to).ok()?);
    to.duration_since(from).ok()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use holdfast_supervisor::UnknownReason;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_795_000_000;

    fn time(seconds: u64) -> Timestamp {
        let text = format!(
            "2026-11-{:02}T{:02}:{:02}:{:02}.000000000Z",
            20 + seconds / 86400,
            seconds / 3600 % 24,
            seconds / 60 % 60,
            seconds % 60
        );
        serde_json::from_value(json!(text)).unwrap()
    }

    fn exit(status: &serde_json::Value, seconds: u64) -> serde_json::Value {
        json!({ "status": status, "evidence": "shim", "time": time(seconds) })
    }

    /// A container whose run `run` has lasted for so many seconds.
    fn stopped(run: u32, status: serde_json::Value, lasted: u64) -> ContainerInfo {
        let info = json!({
            "id": "web", "status": "stopped", "run": run, "started": time(1000),
            "exit": exit(&status, 1000 + lasted), "restored": false, "runtime": "/runc", "execs": [],
        });
        serde_json::from_value(info).unwrap()
    }

    fn past(run: u32, lasted: u64) -> PastRun {
        let exit = serde_json::from_value(exit(&json!({ "code": 1 }), 500 + lasted)).unwrap();
        PastRun::exited(run, Some(time(500)), exit)
    }

    fn marks(policy: RestartPolicy) -> Marks {
        Marks { policy, since: 1, stopped: None, unhealthy: None }
    }

    fn decided(marks: &Marks, info: &ContainerInfo, past: &[PastRun]) -> Decision {
        decide(marks, info, past, Backoff::default())
    }

    const FIRST: Decision = Decision::Starts(Duration::from_millis(100));

    #[test]
    fn each_policy_restarts_after_the_exits_that_it_names() {
        let (code, signal) = (|code: u8| json!({ "code": code }), json!({ "signal": 9 }));
        let unknown = ExitStatus::Unknown(UnknownReason::UnreadableRecord);
        let unknown = serde_json::to_value(unknown).unwrap();
        for (policy, on_success, on_failure) in [
            (RestartPolicy::OnFailure(None), Decision::Stays, FIRST),
            (RestartPolicy::Always, FIRST, FIRST),
            (RestartPolicy::UnlessStopped, FIRST, FIRST),
        ] {
            let marks = marks(policy);
            assert_eq!(decided(&marks, &stopped(1, code(0), 1), &[]), on_success, "{policy}");
            for failure in [code(1), signal.clone(), unknown.clone()] {
                let info = stopped(1, failure, 1);
                assert_eq!(decided(&marks, &info, &[]), on_failure, "{policy}");
                let by_user = Marks { stopped: Some(1), ..marks };
                assert_eq!(decided(&by_user, &info, &[]), Decision::Stays, "{policy}");
            }
        }
    }

    #[test]
    fn an_unhealthy_run_is_a_failure_and_is_restarted_without_a_policy_too() {
        for policy in [RestartPolicy::No, RestartPolicy::OnFailure(None)] {
            let info = stopped(1, json!({ "code": 0 }), 1);
            let unhealthy = Marks { unhealthy: Some(1), ..marks(policy) };
            assert_eq!(decided(&unhealthy, &info, &[]), FIRST, "{policy}");
            let by_user = Marks { stopped: Some(1), ..unhealthy };
            assert_eq!(decided(&by_user, &info, &[]), Decision::Stays, "{policy}");
            let earlier = Marks { unhealthy: Some(0), ..unhealthy };
            assert_eq!(decided(&earlier, &info, &[]), Decision::Stays, "{policy}");
        }
        let one =
            Marks { unhealthy: Some(2), ..marks(RestartPolicy::OnFailure(NonZeroU32::new(1))) };
        let info = stopped(2, json!({ "code": 0 }), 1);
        assert_eq!(decided(&one, &info, &[past(1, 1)]), Decision::Stays);
    }

    #[test]
    fn the_stop_of_an_earlier_run_does_not_matter() {
        let marks = Marks { since: 2, stopped: Some(1), ..marks(RestartPolicy::Always) };
        assert_eq!(decided(&marks, &stopped(2, json!({ "code": 0 }), 1), &[past(1, 1)]), FIRST);
    }

    #[test]
    fn the_limit_counts_restarts_and_failed_starts_since_the_start_by_a_user() {
        let policy = RestartPolicy::OnFailure(NonZeroU32::new(2));
        let info = |run| stopped(run, json!({ "code": 1 }), 1);
        let starts = |marks: &Marks, run, past: &[PastRun]| {
            matches!(decided(marks, &info(run), past), Decision::Starts(_))
        };
        assert!(starts(&marks(policy), 1, &[]) && starts(&marks(policy), 2, &[past(1, 1)]));
        assert!(!starts(&marks(policy), 3, &[past(1, 1), past(2, 1)]));
        let failed = [PastRun::failed(2, "no"), PastRun::failed(3, "no")];
        assert!(starts(&marks(policy), 1, &failed[..1]) && !starts(&marks(policy), 1, &failed));
        assert!(starts(&Marks { since: 3, ..marks(policy) }, 3, &[past(1, 1), past(2, 1)]));
    }

    #[test]
    fn the_delay_doubles_up_to_the_cap_and_is_reset_by_a_long_run() {
        let delay = |run, lasted, past: &[PastRun]| {
            let info = stopped(run, json!({ "code": 1 }), lasted);
            match decided(&marks(RestartPolicy::Always), &info, past) {
                Decision::Starts(delay) => delay.as_millis(),
                Decision::Stays => panic!("run {run} stays"),
            }
        };
        let quick: Vec<_> = (1..200).map(|run| past(run, 1)).collect();
        let delays: Vec<_> =
            (1..=12_u32).map(|run| delay(run, 1, &quick[..run as usize - 1])).collect();
        let expected = [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000];
        assert_eq!(delays, expected);
        assert_eq!(delay(199, 1, &quick[..198]), 60_000);
        assert_eq!(delay(12, 10, &quick[..11]), 100);
        let mut mixed = quick[..11].to_vec();
        mixed[9] = past(10, 10);
        assert_eq!(delay(12, 1, &mixed), 400);
    }

    #[test]
    fn what_is_left_of_a_delay_does_not_grow_when_the_clock_is_set_back() {
        let (delay, ended) = (Duration::from_secs(8), time(1000));
        let at = SystemTime::try_from(&ended).unwrap();
        assert_eq!(left(&ended, delay, at + Duration::from_secs(3)), Duration::from_secs(5));
        assert_eq!(left(&ended, delay, at + Duration::from_secs(NOW)), Duration::ZERO);
        assert_eq!(left(&ended, delay, at - Duration::from_secs(86_400)), delay);
    }

    proptest! {
        #[test]
        fn no_more_restarts_than_the_limit_and_none_beyond_the_cap(
            since in 0_u32..50, run in 1_u32..300, most in 1_u32..5, code in any::<u8>(),
            failed in 0_u32..5, lasted in 0_u64..30)
        {
            let policy = RestartPolicy::OnFailure(NonZeroU32::new(most));
            let marks = Marks { policy, since, stopped: None, unhealthy: None };
            let mut runs: Vec<_> = (1..run).map(|run| past(run, 1)).collect();
            runs.extend((1..=failed).map(|more| PastRun::failed(run + more, "no")));
            match decided(&marks, &stopped(run, json!({ "code": code }), lasted), &runs) {
                Decision::Stays => {
                    prop_assert!(code == 0 || (run + failed).saturating_sub(since) >= most);
                }
                Decision::Starts(delay) => {
                    prop_assert!(code != 0 && (run + failed).saturating_sub(since) < most);
                    prop_assert!(delay >= Backoff::default().initial);
                    prop_assert!(delay <= Backoff::default().cap);
                }
            }
        }
    }
}
