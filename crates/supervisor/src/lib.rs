//! The async library of Holdfast: creates, starts, watches and restores OCI containers.
//!
//! ```no_run
//! # async fn example() -> Result<(), holdfast_supervisor::Error> {
//! use holdfast_supervisor::{ContainerOptions, Supervisor};
//!
//! let supervisor = Supervisor::builder("/run/my-service").open().await?;
//! let options = ContainerOptions::host_rootfs().args(["sleep", "60"]);
//! let container = supervisor.run(options).await?;
//! println!("{} ended with {}", container.id(), container.wait().await?);
//! # Ok(())
//! # }
//! ```
//!
//! Containers do not depend on the calling process. It may be killed at any moment;
//! [`Builder::open`] on the same root then restores every container, with the exit statuses of
//! those that exited in the meantime. A status that cannot be determined is
//! [`ExitStatus::Unknown`], with the reason.
//!
//! # Runs
//!
//! A stopped container can be [started](Container::start) again. Each start is a *run* of the same
//! container: id, incarnation, configuration, labels and log stay, and [`Container::runs`] returns
//! the exits of the earlier runs. A handle acts on the current run.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `oci-spec` | yes | `Supervisor::create_with` and `run_with`: a last change to the OCI configuration as a typed value |
//! | `schemars` | no | JSON schemas (`schemars::JsonSchema`) of the types that are written as JSON |
//!
//! # What it needs
//!
//! Linux 5.10 or later, an OCI runtime, the executable `holdfast-shim`, and a process that a service
//! manager ends alone (systemd: `KillMode=process`). The guide `docs/embedding.md` in the repository
//! has the details, and the folder `examples` complete services.
//!
//! # Cancel safety
//!
//! The future of any method may be dropped. An operation that changes a container continues in the
//! background until it is finished. A method whose documentation says "cancel safe" also loses
//! nothing if it is called again.
//!
//! # After a shutdown
//!
//! Creating, starting, changing and deleting a container fails with [`Error::Closed`], and so does
//! a wait that has no result yet.
//!
//! # Folders
//!
//! | folder | what it contains | what it may use |
//! |---|---|---|
//! | (here) | the public API: supervisor, container, exec process, input | all |
//! | `ops` | creating containers from options; restoring them from disk | `watch` and below |
//! | `watch` | one task per process, which drives its lifecycle; adoption; removal | `log` and below |
//! | `log` | reading the output from the log files while they grow and rotate | `core` and below |
//! | `core` | the struct that joins the parts of a supervisor | `shim` and below |
//! | `shim` | starting shims, sending them requests, reading their announcements | `model` and below |
//! | `model` | containers and processes: lifecycle, identity, events, options | `runtime` and below |
//! | `runtime` | finding the OCI runtime, and its command line | `os` and below |
//! | `os` | wrappers of kernel interfaces: tasks, child processes, cgroups, file watches | `error` |
//!
//! The test `layers` checks this order.

#![warn(clippy::missing_errors_doc)]

mod builder;
mod container;
mod core;
mod error;
mod exec;
mod input;
mod log;
mod model;
mod operate;
mod ops;
mod os;
mod runtime;
mod shim;
mod supervisor;
mod watch;

pub use builder::{Builder, SPARE_SHIMS};
pub use container::Container;
pub use error::{Error, ErrorKind};
pub use exec::ExecProcess;
pub use input::InputWriter;
pub use log::entries::LogChunk;
pub use log::files::LogPosition;
pub use log::output::{LogLine, LogLines, Output, OutputReader};
pub use log::reader::{LogOptions, LogReader};
pub use model::config::{Network, User};
pub use model::events::EventStream;
pub use model::info::{ContainerInfo, ExecInfo, Status};
pub use model::keeper::Keeper;
pub use model::options::{ContainerOptions, ExecOptions, Stdin, Stdio, TerminalSize};
pub use operate::ProcessEntry;
pub use os::cgroup::Stats;
pub use os::limits::{Abilities, Limit};
pub use os::rootless::{IdMapping, Rootless};
pub use runtime::checkpoint::CheckpointOptions;
pub use runtime::programs::RuntimeChoice;
pub use supervisor::{RestoreReport, Supervisor};

pub use holdfast_state::cri::{Mark, Stream as OutputStream};
pub use holdfast_state::time::InvalidTimestamp;
pub use holdfast_state::{
    Backpressure, ContainerId, Cursor, Event, EventKind, Evidence, ExitRecord, ExitStatus, Gap,
    GapReason, GroupName, Incarnation, InvalidId, InvalidIdentity, InvalidLog, JournalId,
    LockError, LogDriver, LogSpec, Logging, OrphanPolicy, PastRun, Problem, ProcessId, Timestamp,
    UnknownReason,
};
