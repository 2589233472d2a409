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
//! | module | what |
//! |---|---|
//! | `lifecycle` | what follows from what: one pure function |
//! | `watch` | a task a process: carries its descriptors' news to the lifecycle and does what that says |
//! | `layout`, `launch` | from options to a directory, and from that to a shim at work |
//! | `spares` | shims that wait for a start |
//! | `events` | what happened: written to the journal, then told |
//! | `restore` | from what is on disk back to tasks |
//! | `adoption`, `reaper` | what happens to a process whose shim died, and to others that come to us then |
//! | `set_aside` | what becomes of a record that can't be read |
//! | `evidence` | how a process ended when its shim can't say |
//! | `identity` | whether a pid is still the process that we mean |
//! | `runtime`, `checkpoint` | the OCI runtime's command line |
//! | `container`, `exec`, `operate`, `stdin`, `info` | what a caller can do with a container, and see of it |
//! | `logs`, `log_files`, `log_place`, `log_entries`, `file_watch` | its output, from the log: across its files, and as it grows |
//! | `output` | the same as a stream of bytes or lines |
//! | `cgroup`, `oom` | what a container uses, and when it used too much memory |
//! | `programs` | where runtimes and our own programs are found |
//! | `bundle`, `default_config` | the bundle that the runtime is given |

mod adoption;
mod bundle;
mod cgroup;
mod checkpoint;
mod closer;
mod container;
mod default_config;
mod error;
mod events;
mod evidence;
mod exec;
mod exit_fifo;
mod file_watch;
mod groups;
mod holes;
mod identity;
mod info;
mod keeper;
mod launch;
mod layout;
mod leftovers;
mod lifecycle;
mod limits;
mod log_entries;
mod log_files;
mod log_place;
mod logs;
mod oom;
mod operate;
mod options;
mod output;
mod process;
mod programs;
mod reaper;
mod restore;
mod runtime;
mod set_aside;
mod spares;
mod stdin;
mod supervisor;
mod watch;

pub use cgroup::Stats;
pub use checkpoint::CheckpointOptions;
pub use container::Container;
pub use error::Error;
pub use events::EventStream;
pub use exec::ExecProcess;
pub use info::{Abilities, ContainerInfo, ExecInfo, Status};
pub use keeper::Keeper;
pub use limits::Limit;
pub use logs::{LogChunk, LogOptions, LogReader};
pub use operate::ProcessEntry;
pub use options::{
    Builder, ContainerOptions, ExecOptions, SPARE_SHIMS, Stdin, Stdio, TerminalSize,
};
pub use output::{LogLine, LogLines, OutputReader};
pub use programs::RuntimeChoice;
pub use stdin::InputWriter;
pub use supervisor::{RestoreReport, Supervisor};

pub use holdfast_state::cri::{Mark, Stream as OutputStream};
pub use holdfast_state::{
    ContainerId, Cursor, Event, EventKind, Evidence, ExitRecord, ExitStatus, Gap, GapReason,
    GroupName, Incarnation, InvalidId, InvalidIdentity, InvalidLog, JournalId, LogDriver, LogSpec,
    Logging, OrphanPolicy, Problem, ProcessId, Timestamp, UnknownReason,
};
