//! Restart policies and health checks for containers, on top of the public API of `holdfast-supervisor`.
//!
//! This is a crate of its own, so that the compiler holds that it uses nothing but the public API (and,
//! for its files, `holdfast-state` and the boot id of `holdfast-sys`), and so that an embedder without policies does not
//! build it.
//!
//! ```no_run
//! # async fn example() -> Result<(), holdfast_supervisor::Error> {
//! use holdfast_policies::{Backoff, HealthCheck, HealthChecks, RestartPolicy, Restarts};
//! use holdfast_supervisor::{ContainerOptions, Supervisor};
//!
//! let supervisor = Supervisor::builder("/run/my-service").open().await?;
//! let restarts = Restarts::begin(supervisor.clone(), Backoff::default());
//! let checks = HealthChecks::begin(&restarts);
//! let options = ContainerOptions::host_rootfs().args(["my-server"]);
//! let options = HealthCheck::new(["my-server", "--ping"]).apply(options);
//! supervisor.run(RestartPolicy::Always.apply(options)).await?;
//! # drop((restarts, checks));
//! # Ok(())
//! # }
//! ```
//!
//! # What is stored
//!
//! The policy is a label of the container, so it is written in one step with the record. The other facts
//! follow from what the library records anyway: each restart is a run, and a run has a number, a start
//! and an exit. No counter is stored that a crash could leave behind its run.
//!
//! | label | content |
//! |---|---|
//! | [`POLICY`] | the policy, as in `on-failure:3` |
//! | [`SINCE`] | the run that a user began last; 1 if missing. The restarts since then are the later runs |
//! | [`STOPPED`] | the run that a user stopped. The policy does not apply to the exit of that run |
//! | [`HEALTH`] | the health check, as JSON |
//! | [`HEALTH_STATE`] | a run, its health and how many checks have failed in a row; written when that changes |
//!
//! # Modules
//!
//! | module | what it contains |
//! |---|---|
//! | `policy` | the policy as a value, and the labels of a container |
//! | `decide` | the decision after an exit: a pure function |
//! | `restarts` | the task that carries the decisions out |
//! | `health` | the health check as a value, the status, and the labels: pure |
//! | `checks` | the tasks that check the health |
//! | `definitions` | what containers are made from, kept over a reboot: files |
//! | `lasting` | creations and deletions with definitions, and what is done after a reboot |

#![warn(clippy::missing_errors_doc)]

mod checks;
mod decide;
mod definitions;
mod health;
mod lasting;
mod policy;
mod restarts;

pub use checks::{CheckCounts, HealthChecks};
pub use decide::Backoff;
pub use definitions::Definitions;
pub use health::{CheckResult, HEALTH, HEALTH_STATE, Health, HealthCheck, HealthStatus};
pub use policy::{InvalidPolicy, POLICY, Restart, RestartPolicy, SINCE, STOPPED, how_to_stop};
pub use restarts::Restarts;
