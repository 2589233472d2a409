//! How a supervisor is to be opened.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::journal::Bounds;
use holdfast_state::{Cursor, GroupName, LogSpec};

use crate::error::Error;
use crate::model::events::EventStream;
use crate::model::keeper::Keeper;
use crate::model::options::Rotation;
use crate::runtime::programs;
use crate::supervisor::Supervisor;

/// How long a start may take unless something else is said.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How many shims are kept ready unless something else is said.
pub const SPARE_SHIMS: usize = 1;

/// How a [`Supervisor`] is to be opened.
#[derive(Debug)]
pub struct Builder {
    pub(crate) root: PathBuf,
    pub(crate) shim: Option<PathBuf>,
    pub(crate) runtime: String,
    pub(crate) start_timeout: Duration,
    pub(crate) container_nofile: Option<u64>,
    pub(crate) shim_group: Option<GroupName>,
    pub(crate) spare_shims: usize,
    pub(crate) log_rotation: Rotation,
    pub(crate) journal: Bounds,
    pub(crate) subreaper: bool,
    pub(crate) keeper: Option<Arc<dyn Keeper>>,
    pub(crate) kept: Vec<(String, OwnedFd)>,
}

impl Builder {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            shim: None,
            runtime: programs::AUTO.to_owned(),
            start_timeout: START_TIMEOUT,
            container_nofile: None,
            shim_group: None,
            spare_shims: SPARE_SHIMS,
            log_rotation: Rotation {
                max_size: Some(LogSpec::MAX_SIZE),
                max_files: LogSpec::MAX_FILES,
            },
            journal: Bounds::default(),
            subreaper: false,
            keeper: None,
            kept: Vec::new(),
        }
    }

    /// The shim's executable. Otherwise `holdfast-shim` is looked for beside the running
    /// executable, in `../libexec` and `../libexec/holdfast` from there, and in `PATH`.
    #[must_use]
    pub fn shim(mut self, path: impl Into<PathBuf>) -> Self {
        self.shim = Some(path.into());
        self
    }

    /// The OCI runtime of containers that name none: a name to be found in `PATH`, or a path.
    /// Default: `auto`, which is runc if there is one, else crun, else `holdfast-oci`, looked for
    /// where the shim is.
    #[must_use]
    pub fn runtime(mut self, runtime: impl Into<String>) -> Self {
        self.runtime = runtime.into();
        self
    }

    /// How long a start may take. Default: 30 s.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// How much of what has happened is kept, in bytes, and how long. What is beyond either is dropped, by
    /// segments of a megabyte or more. Default: 32 MiB, which is some 100,000 events, and 30 days.
    #[must_use]
    pub fn journal(mut self, size: u64, age: Duration) -> Self {
        self.journal = Bounds { size, age };
        self
    }

    /// Takes up everything in the root, and begins a stream of events after this place: with what the
    /// restore finds out too.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub async fn open_with_events(
        self,
        cursor: Cursor,
    ) -> Result<(Supervisor, EventStream), Error> {
        let supervisor = self.open().await?;
        // The journal has it all, so none is missed between the two.
        let events = supervisor.events_since(cursor);
        Ok((supervisor, events))
    }

    /// The soft limit of open files that runtimes and containers get, for a program that has raised
    /// its own. Default: that of this process.
    #[must_use]
    pub fn container_nofile(mut self, soft: Option<u64>) -> Self {
        self.container_nofile = soft;
        self
    }

    /// The group of containers that name none; see [`ContainerOptions::shim_group`]. Default: none,
    /// so each of their processes has a shim of its own.
    #[must_use]
    pub fn shim_group(mut self, group: Option<GroupName>) -> Self {
        self.shim_group = group;
        self
    }

    /// How many shims are kept ready for containers to come, once there has been a first one: a start
    /// is faster by the time in which a program begins, and a burst of starts by as many. Each takes
    /// the memory of a shim, and ends with this process. Default: 1.
    #[must_use]
    pub fn spare_shims(mut self, count: usize) -> Self {
        self.spare_shims = count;
        self
    }

    /// How large the logs of processes to come may be that do not say so themselves: a file that
    /// would become larger than `max_size` bytes is set aside, and of more than `max_files` files
    /// the oldest is removed, so a log takes at the most their product. At least 4096 bytes and one
    /// file. With `None` such a log has no bound. Default: 10 MiB and 5 files.
    ///
    /// It concerns the drivers `cri`, `json-file` and `file`, but not `file,direct=yes`. A log can choose for itself, with
    /// [`LogSpec::max_size`](crate::LogSpec::max_size).
    #[must_use]
    pub fn log_rotation(mut self, max_size: Option<u64>, max_files: u32) -> Self {
        self.log_rotation = Rotation { max_size, max_files };
        self
    }

    /// Makes this process a subreaper (prctl(2)), so that a container whose shim died becomes its
    /// child, and its status is known exactly on every kernel. For a process that has no children
    /// but those of this library: orphans that nobody waits for are reaped.
    #[must_use]
    pub fn subreaper(mut self) -> Self {
        self.subreaper = true;
        self
    }

    /// Who keeps descriptors while this process is dead, and what it has kept under their names.
    /// Then the status of a container whose shim dies meanwhile is exact too (Linux 6.15+).
    #[must_use]
    pub fn keeper(mut self, keeper: Arc<dyn Keeper>, kept: Vec<(String, OwnedFd)>) -> Self {
        (self.keeper, self.kept) = (Some(keeper), kept);
        self
    }

    /// Takes the state root, restores what is there, and returns once every container that was
    /// found is watched.
    pub async fn open(self) -> Result<Supervisor, Error> {
        Supervisor::open(self).await
    }
}
