//! What Holdfast keeps on disk, and the few formats in which its parts talk.
//!
//! No Tokio, no process control, no I/O but files: the synchronous shim and the async supervisor
//! both stand on this crate, and so agree on every byte.
//!
//! ```text
//! <root>/.holdfast                  says that it is a root                 recognise
//! <root>/.lock                      one supervisor a root                  lock
//! <root>/.journal/                  what happened, in order                journal
//! <root>/.runtime/<name>/           the OCI runtime's own state
//! <root>/<container>/.bundle/       a bundle that Holdfast made
//! <root>/<container>/<process>/     process.json, pid, exit, control,  process_dir
//!                                   exitStatus, exit.json, output.log, shim-log.json, log.json
//! <root>/<container>/init/          runs.json, changing                  runs
//! <root>/.broken/<container>-<n>/  what could not be read, and why     broken
//! <root>/.groups/<name>@4           the socket of a shim that many processes share   handoff
//! <root>/.new-*, .gone-*            under construction, being removed: swept at restore
//! ```
//!
//! Names that start with a dot can never be ids, so they never collide with a container.

pub mod announce;
mod broken;
pub mod control;
pub mod cri;
pub mod directory;
pub mod event;
pub mod id;
pub mod journal;
pub mod json_file;

pub mod handoff;
mod lock;
pub mod log;
pub mod logging;
pub mod process_dir;
mod recognise;
pub mod record;
pub mod root;
pub mod runs;
pub mod seed;
pub mod shim_options;
pub mod status;
pub mod time;

pub use directory::Directory;
pub use event::{
    Cursor, Event, EventKind, Gap, GapReason, Incarnation, InvalidIdentity, JournalId,
};
pub use id::{ContainerId, GroupName, InvalidId, ProcessId};
pub use logging::{Backpressure, InvalidLog, LogDriver, LogSpec, Logging};
pub use process_dir::ProcessDir;
pub use record::{Launch, OrphanPolicy, Policies, ProcessRecord, RecordError, ShimRecord};
pub use root::{ContainerDir, LockError, Problem, StateRoot};
pub use runs::PastRun;
pub use status::{Evidence, ExitRecord, ExitStatus, UnknownReason};
pub use time::Timestamp;
