//! The async library of Holdfast: create, start, watch and restore containers.
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
//! Containers do not depend on the process that called this: it may end at any instant, and
//! [`Builder::open`] on the same root takes up every container again, with the statuses of those
//! that exited meanwhile.
//!
//! Every method may be dropped half-way: work that was begun is finished in the background.
//!
//! | folder | what | may use |
//! |---|---|---|
//! | (here) | what a caller has: supervisor, container, exec, input | all |
//! | `ops` | from options to a container at work, and from what is on disk back to that | `watch` and below |
//! | `watch` | a task a process: it carries the news of its descriptors to the lifecycle, and does what that says; adoption, removal | `log` and below |
//! | `log` | output, read back across its files as it grows | `core` and below |
//! | `core` | the parts of a supervisor, together | `shim` and below |
//! | `shim` | shims: how they are begun, asked and heard | `model` and below |
//! | `model` | what containers and processes are: lifecycle, identity, events, options | `runtime` and below |
//! | `runtime` | the OCI runtime: where it is found, and its command line | `os` and below |
//! | `os` | what the kernel gives: tasks, children, cgroups, files that change | `error` |
//!
//! A test holds that order.

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
pub use log::output::{LogLine, LogLines, OutputReader};
pub use log::reader::{LogOptions, LogReader};
pub use model::events::EventStream;
pub use model::info::{ContainerInfo, ExecInfo, Status};
pub use model::keeper::Keeper;
pub use model::options::{ContainerOptions, ExecOptions, Stdin, Stdio, TerminalSize};
pub use operate::ProcessEntry;
pub use os::cgroup::Stats;
pub use os::limits::{Abilities, Limit};
pub use runtime::checkpoint::CheckpointOptions;
pub use runtime::programs::RuntimeChoice;
pub use supervisor::{RestoreReport, Supervisor};

pub use holdfast_state::cri::{Mark, Stream as OutputStream};
pub use holdfast_state::{
    ContainerId, Cursor, Event, EventKind, Evidence, ExitRecord, ExitStatus, Gap, GapReason,
    GroupName, Incarnation, InvalidId, InvalidIdentity, InvalidLog, JournalId, LogDriver, LogSpec,
    Logging, OrphanPolicy, Problem, ProcessId, Timestamp, UnknownReason,
};
