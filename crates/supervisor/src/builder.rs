//! The builder of a supervisor: how to open a state root.

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

/// The default time limit for a start.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The default number of spare shims; see [`Builder::spare_shims`].
pub const SPARE_SHIMS: usize = 1;

/// Configures and opens a [`Supervisor`].
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

    /// Sets the path of the shim executable. By default, `holdfast-shim` is searched for in the
    /// directory of the running executable, in `../libexec` and `../libexec/holdfast` relative to
    /// that directory, and then in `PATH`.
    #[must_use]
    pub fn shim(mut self, path: impl Into<PathBuf>) -> Self {
        self.shim = Some(path.into());
        self
    }

    /// Sets the OCI runtime of containers that do not name one: a name to search for in `PATH`, or
    /// a path. The default is `auto`: runc if it is installed, else crun, else `holdfast-oci`,
    /// which is searched for in the same places as the shim.
    #[must_use]
    pub fn runtime(mut self, runtime: impl Into<String>) -> Self {
        self.runtime = runtime.into();
        self
    }

    /// Sets how long a start may take. The default is 30 s.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Sets how many bytes of events the journal keeps, and for how long. Older events are dropped
    /// in whole segments when a new segment begins; a segment has about one megabyte, or the events
    /// of an eighth of `age`. The default is 32 MiB (about 100,000 events) and 30 days.
    #[must_use]
    pub fn journal(mut self, size: u64, age: Duration) -> Self {
        self.journal = Bounds { size, age };
        self
    }

    /// Opens the supervisor, and returns a stream of the events after `cursor`, which include the
    /// events that the restore publishes.
    ///
    /// # Errors
    ///
    /// The errors of [`open`](Self::open).
    ///
    /// # Cancel safety
    ///
    /// As [`open`](Self::open).
    pub async fn open_with_events(
        self,
        cursor: Cursor,
    ) -> Result<(Supervisor, EventStream), Error> {
        let supervisor = self.open().await?;
        // The journal contains the events that were published between these two calls, so none is
        // missed.
        let events = supervisor.events_since(cursor);
        Ok((supervisor, events))
    }

    /// Sets the soft limit of open files (`RLIMIT_NOFILE`) for runtimes and containers. It is meant
    /// for a program that has raised its own limit. The default is the soft limit of this process.
    #[must_use]
    pub fn container_nofile(mut self, soft: Option<u64>) -> Self {
        self.container_nofile = soft;
        self
    }

    /// Sets the shim group of containers that do not name one; see
    /// [`ContainerOptions::shim_group`](crate::ContainerOptions::shim_group). By default there is
    /// no group, so each process has its own shim.
    #[must_use]
    pub fn shim_group(mut self, group: Option<GroupName>) -> Self {
        self.shim_group = group;
        self
    }

    /// Sets how many spare shims are kept ready for the next containers, once a first container has
    /// been started. A spare shim saves a start the time in which the shim program begins; a burst
    /// of starts saves it as many times as there are spare shims. Each one uses the memory of a
    /// shim, and ends when this process ends. The default is 1.
    #[must_use]
    pub fn spare_shims(mut self, count: usize) -> Self {
        self.spare_shims = count;
        self
    }

    /// Sets the size limit of logs that do not set their own. It applies to processes that are
    /// created later. A file that would become larger than `max_size` bytes is rotated, and if
    /// there are more than `max_files` files, the oldest is removed; so a log uses at most the
    /// product of both. The minimum is 4096 bytes and one file; [`open`](Self::open) refuses less.
    /// With `None`, the size is not limited. The default is 10 MiB and 5 files.
    ///
    /// The limit applies to the drivers `cri`, `json-file` and `file`, but not to
    /// `file,direct=yes`. A log can set its own limit with
    /// [`LogSpec::max_size`](crate::LogSpec::max_size).
    #[must_use]
    pub fn log_rotation(mut self, max_size: Option<u64>, max_files: u32) -> Self {
        self.log_rotation = Rotation { max_size, max_files };
        self
    }

    /// Makes this process a child subreaper (prctl(2)). A container whose shim has died then
    /// becomes a child of this process, and its exit status is known exactly on every kernel, as
    /// long as this process lives. Use it only in a process whose children all come from this
    /// library: orphans for which nobody waits are reaped.
    #[must_use]
    pub fn subreaper(mut self) -> Self {
        self.subreaper = true;
        self
    }

    /// Sets the keeper, which holds descriptors while no supervisor runs, and passes the
    /// descriptors that it has held, with their names. With a keeper, the exit status of a
    /// container whose shim dies while no supervisor runs is exact too (Linux 6.15 or later).
    #[must_use]
    pub fn keeper(mut self, keeper: Arc<dyn Keeper>, kept: Vec<(String, OwnedFd)>) -> Self {
        (self.keeper, self.kept) = (Some(keeper), kept);
        self
    }

    /// Locks the state root, restores its containers, and returns when every restored container is
    /// watched.
    ///
    /// # Errors
    ///
    /// [`Error::Root`] if the state root cannot be locked or used; [`Error::NotInstalled`] if the
    /// shim is not found; [`Error::ShimVersion`] if the shim is of an older release;
    /// [`Error::InvalidLog`] if the log rotation is out of range; [`Error::Io`]
    /// if the journal or the state root cannot be read, or this process cannot become a subreaper.
    /// A damaged container is not an error; see [`Supervisor::restore_report`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the tasks that it has started end. The containers keep running.
    pub async fn open(self) -> Result<Supervisor, Error> {
        Supervisor::open(self).await
    }
}
