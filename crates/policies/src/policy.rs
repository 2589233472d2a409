//! The policy as a value, and how a container stores it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use holdfast_supervisor::{ContainerInfo, ContainerOptions};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::health::{HealthCheck, unhealthy_run};

/// The label that contains the policy.
pub const POLICY: &str = "holdfast.restart";
/// The label that contains the number of the run that a user began last.
pub const SINCE: &str = "holdfast.restart.since";
/// The label that contains the number of the run that a user stopped.
pub const STOPPED: &str = "holdfast.restart.stopped";

/// Whether a container is started again after its exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schemars",
    derive(schemars::JsonSchema),
    schemars(extend("pattern" = "^(no|on-failure(:[1-9][0-9]*)?|always|unless-stopped)$"))
)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// If the exit status is not 0 or is not known, and at most so many times since a user started the
    /// container; without a limit if this is `None`.
    OnFailure(Option<NonZeroU32>),
    /// After each exit, until a user stops the container; and after a reboot.
    Always,
    /// After each exit, until a user stops the container; and after a reboot, unless a user had stopped
    /// it.
    UnlessStopped,
}

/// A text that is not a restart policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "not a restart policy: {0:?}; there are no, on-failure, on-failure:N with N from 1, always and unless-stopped"
)]
pub struct InvalidPolicy(String);

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure(None) => f.write_str("on-failure"),
            Self::OnFailure(Some(most)) => write!(f, "on-failure:{most}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let invalid = || InvalidPolicy(text.chars().take(64).collect());
        Ok(match text {
            "no" => Self::No,
            "on-failure" => Self::OnFailure(None),
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            _ => {
                let most = text.strip_prefix("on-failure:").ok_or_else(invalid)?;
                Self::OnFailure(Some(most.parse().map_err(|_| invalid())?))
            }
        })
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = InvalidPolicy;

    fn try_from(text: String) -> Result<Self, InvalidPolicy> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl RestartPolicy {
    /// Gives a new container this policy. A container that is deleted automatically after its exit
    /// cannot be started again, so it must have none.
    #[must_use]
    pub fn apply(self, options: ContainerOptions) -> ContainerOptions {
        options.label(POLICY, self.to_string())
    }

    /// Returns whether the container is created again after a reboot, if there are
    /// [`Definitions`](crate::Definitions).
    pub(crate) fn outlives_reboot(self) -> bool {
        matches!(self, Self::Always | Self::UnlessStopped)
    }
}

/// Returns the signal that stops a container, and the time until SIGKILL. For a container that sets neither:
/// SIGTERM and ten seconds.
#[must_use]
pub fn how_to_stop(info: &ContainerInfo) -> (i32, Duration) {
    const SIGTERM: i32 = 15;
    (
        info.stop_signal.unwrap_or(SIGTERM),
        Duration::from_millis(info.stop_grace_ms.unwrap_or(10_000)),
    )
}

/// The restart policy of a container, and what has come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Restart {
    /// The policy.
    pub policy: RestartPolicy,
    /// How often the container was restarted by the policy since a user started it. A start that
    /// failed is counted once a later one has succeeded.
    pub count: u32,
    /// Whether a user has stopped the current run, so that the policy does not apply.
    pub stopped: bool,
}

impl Restart {
    /// Returns the restart policy of a container; `None` if it has none, or one that a later release
    /// wrote and this one cannot read. A container that is restarted when it becomes unhealthy and has
    /// no policy counts as one with [`RestartPolicy::No`].
    #[must_use]
    pub fn of(info: &ContainerInfo) -> Option<Self> {
        let Marks { policy, since, stopped, .. } = Marks::of(&info.labels)?;
        let count = info.run.saturating_sub(since);
        Some(Self { policy, count, stopped: stopped == Some(info.run) })
    }
}

/// The labels of a container that has a policy, or is restarted when it becomes unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) policy: RestartPolicy,
    pub(crate) since: u32,
    pub(crate) stopped: Option<u32>,
    /// The run that has become unhealthy, after which the container is to be restarted.
    pub(crate) unhealthy: Option<u32>,
}

impl Marks {
    pub(crate) fn of(labels: &BTreeMap<String, String>) -> Option<Self> {
        let policy = labels.get(POLICY).map_or(Ok(RestartPolicy::No), |text| text.parse()).ok()?;
        if policy == RestartPolicy::No && !HealthCheck::of(labels).is_some_and(|it| it.restarts()) {
            return None;
        }
        let number = |name| labels.get(name).and_then(|text| text.parse().ok());
        Some(Self {
            policy,
            since: number(SINCE).unwrap_or(1),
            stopped: number(STOPPED),
            unhealthy: unhealthy_run(labels),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        for text in
            ["no", "on-failure", "on-failure:1", "on-failure:17", "always", "unless-stopped"]
        {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for text in
            ["", "yes", "Always", "on-failure:", "on-failure:0", "on-failure:-1", "always:2"]
        {
            let error = text.parse::<RestartPolicy>().unwrap_err();
            assert!(error.to_string().contains("on-failure:N"), "{error}");
        }
    }

    #[test]
    fn labels_without_a_policy_or_with_an_unknown_one_mean_none() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        assert_eq!(Marks::of(&labels(&[(SINCE, "3")])), None);
        assert_eq!(Marks::of(&labels(&[(POLICY, "sometimes")])), None);
        assert_eq!(Marks::of(&labels(&[(POLICY, "no")])), None);
        let marks = Marks::of(&labels(&[(POLICY, "always"), (STOPPED, "2"), (SINCE, "x")]));
        let policy = RestartPolicy::Always;
        let expected = Marks { policy, since: 1, stopped: Some(2), unhealthy: None };
        assert_eq!(marks, Some(expected));
        let restarts = HealthCheck::shell("x").restart_on_unhealthy();
        let check = serde_json::to_string(&restarts).unwrap();
        let marks = Marks::of(&labels(&[(crate::HEALTH, &check)])).unwrap();
        assert_eq!((marks.policy, marks.unhealthy), (RestartPolicy::No, None));
    }
}
