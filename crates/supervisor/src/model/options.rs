//! What a caller can ask for.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_state::{ContainerId, GroupName, LogSpec, Logging, OrphanPolicy, ProcessId};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// When a log is set aside that does not say so itself, and how many of its files are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation {
    pub(crate) max_size: Option<u64>,
    pub(crate) max_files: u32,
}

impl Rotation {
    /// Refuses what no log could ask for.
    pub(crate) fn check(self) -> Result<(), Error> {
        let Self { max_size: Some(max_size), max_files } = self else { return Ok(()) };
        let (max_size, max_files) = (Some(max_size), Some(max_files));
        let spec = LogSpec { max_size, max_files, ..LogSpec::default() };
        Logging::new(vec![spec])?;
        Ok(())
    }
}

/// Where a container comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A bundle of the caller's: a directory with `config.json`.
    Bundle(PathBuf),
    /// A root file system, with a configuration that Holdfast makes.
    Rootfs(PathBuf),
    /// The host's own programs, read-only.
    Host,
}

/// Where the standard input of a process comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stdin {
    /// Nowhere: it reads as ended.
    #[default]
    Null,
    /// A FIFO that Holdfast makes, for [`Container::stdin`](crate::Container::stdin). It ends when
    /// [`close_stdin`](crate::Container::close_stdin) is called and all writers are gone.
    Pipe,
    /// A FIFO of the caller's.
    Fifo(PathBuf),
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The stdio of a process. The default: no input, and all output into the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    pub(crate) stdin: Stdin,
    pub(crate) stdout: Option<PathBuf>,
    pub(crate) stderr: Option<PathBuf>,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) log: Logging,
}

impl Stdio {
    /// The default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the input comes from.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Has the output go to a FIFO of the caller's instead of the log. It is opened for reading
    /// too, so that the process neither waits for a reader nor is killed by the lack of one.
    #[must_use]
    pub fn stdout_fifo(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdout = Some(path.into());
        self
    }

    /// As [`stdout_fifo`](Self::stdout_fifo), for the error output. With a terminal there is none.
    #[must_use]
    pub fn stderr_fifo(mut self, path: impl Into<PathBuf>) -> Self {
        self.stderr = Some(path.into());
        self
    }

    /// Gives the process a terminal.
    #[must_use]
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.terminal = Some(size);
        self
    }

    /// Where the output goes. Default: a log of ours in the CRI's format, of a bounded size: see
    /// [`Builder::log_rotation`].
    #[must_use]
    pub fn log(mut self, log: Logging) -> Self {
        self.log = log;
        self
    }
}

/// What container is wanted.
#[derive(Debug, Clone)]
pub struct ContainerOptions {
    pub(crate) source: Source,
    pub(crate) id: Option<ContainerId>,
    pub(crate) args: Vec<String>,
    pub(crate) runtime: Option<String>,
    pub(crate) runtime_args: Vec<String>,
    pub(crate) no_pivot_root: bool,
    pub(crate) start_timeout: Option<Duration>,
    pub(crate) stdio: Stdio,
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) on_orphan: OrphanPolicy,
    pub(crate) shim_group: Option<GroupName>,
    pub(crate) auto_remove: bool,
}

impl ContainerOptions {
    fn new(source: Source) -> Self {
        Self {
            source,
            id: None,
            args: Vec::new(),
            runtime: None,
            runtime_args: Vec::new(),
            no_pivot_root: false,
            start_timeout: None,
            stdio: Stdio::new(),
            checkpoint: None,
            on_orphan: OrphanPolicy::default(),
            shim_group: None,
            auto_remove: false,
        }
    }

    /// An OCI bundle: a directory with `config.json` and what that names.
    #[must_use]
    pub fn bundle(directory: impl Into<PathBuf>) -> Self {
        Self::new(Source::Bundle(directory.into()))
    }

    /// A root file system with a sensible configuration: read-only, private mount, pid, ipc, uts
    /// and cgroup namespaces, the host's network.
    #[must_use]
    pub fn rootfs(directory: impl Into<PathBuf>) -> Self {
        Self::new(Source::Rootfs(directory.into()))
    }

    /// The same without any image: the host's `/usr`, `/bin`, `/lib*` and `/etc`, read-only, and
    /// an empty `/tmp`.
    #[must_use]
    pub fn host_rootfs() -> Self {
        Self::new(Source::Host)
    }

    /// The container's id. Default: twelve random hexadecimal digits.
    #[must_use]
    pub fn id(mut self, id: ContainerId) -> Self {
        self.id = Some(id);
        self
    }

    /// What to run, instead of what a bundle says. Default without a bundle: `sh`.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// The OCI runtime, by name or path.
    #[must_use]
    pub fn runtime(mut self, runtime: impl Into<String>) -> Self {
        self.runtime = Some(runtime.into());
        self
    }

    /// Further global arguments of the runtime.
    #[must_use]
    pub fn runtime_args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.runtime_args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Has the runtime not use `pivot_root(2)`, for root file systems on a ramdisk.
    #[must_use]
    pub fn no_pivot_root(mut self) -> Self {
        self.no_pivot_root = true;
        self
    }

    /// How long its start may take, instead of the supervisor's setting.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// Its stdio. Default: no input, and all output into the log.
    #[must_use]
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.stdio = stdio;
        self
    }

    /// Has it restored from what [`Container::checkpoint`](crate::Container::checkpoint) wrote
    /// there, with the same bundle. It runs at once.
    #[must_use]
    pub fn checkpoint(mut self, directory: impl Into<PathBuf>) -> Self {
        self.checkpoint = Some(directory.into());
        self
    }

    /// What happens to it when its shim dies. Default: [`OrphanPolicy::Adopt`].
    #[must_use]
    pub fn on_orphan(mut self, policy: OrphanPolicy) -> Self {
        self.on_orphan = policy;
        self
    }

    /// Which group its processes belong to: one shim looks after all of a group, which costs a
    /// process a few KiB where a shim of its own costs tens. Should that shim die, another takes
    /// over all of them. Default: the supervisor's.
    ///
    /// A process whose output a shim hands on to a FIFO keeps a shim of its own all the same.
    #[must_use]
    pub fn shim_group(mut self, group: GroupName) -> Self {
        self.shim_group = Some(group);
        self
    }

    /// Has it deleted once it has exited. The exit is told first; who makes a container by the same
    /// id waits for the deletion.
    #[must_use]
    pub fn auto_remove(mut self) -> Self {
        self.auto_remove = true;
        self
    }
}

/// What further process of a container is wanted.
#[derive(Debug, Clone)]
pub struct ExecOptions {
    pub(crate) id: Option<ProcessId>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) start_timeout: Option<Duration>,
    pub(crate) stdio: Stdio,
    pub(crate) auto_remove: bool,
}

impl ExecOptions {
    /// A process with these arguments; environment, user, directory and capabilities are those of
    /// the container's first one.
    #[must_use]
    pub fn new(args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            id: None,
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            start_timeout: None,
            stdio: Stdio::new(),
            auto_remove: false,
        }
    }

    /// Its id within the container. Default: twelve random hexadecimal digits.
    #[must_use]
    pub fn id(mut self, id: ProcessId) -> Self {
        self.id = Some(id);
        self
    }

    /// Adds `NAME=VALUE` to its environment.
    #[must_use]
    pub fn env(mut self, variable: impl Into<String>) -> Self {
        self.env.push(variable.into());
        self
    }

    /// Its working directory.
    #[must_use]
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.cwd = Some(directory.into());
        self
    }

    /// How long its start may take, instead of the supervisor's setting.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// Its stdio. Default: no input, and all output into the log.
    #[must_use]
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.stdio = stdio;
        self
    }

    /// Has its record and its output deleted once it has exited.
    #[must_use]
    pub fn auto_remove(mut self) -> Self {
        self.auto_remove = true;
        self
    }
}
