//! The options of a container or an exec process.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_state::{
    ContainerId, GroupName, Incarnation, LogSpec, Logging, OrphanPolicy, ProcessId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::model::config::{Config, Device, Mount, Network, Ulimit, User};
use crate::model::definition::{ContainerDefinition, ExecDefinition, StdioDefinition};

/// The rotation of logs that do not set their own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation {
    pub(crate) max_size: Option<u64>,
    pub(crate) max_files: u32,
}

impl Rotation {
    /// Refuses values that would be invalid for a log.
    pub(crate) fn check(self) -> Result<(), Error> {
        let Self { max_size: Some(max_size), max_files } = self else { return Ok(()) };
        let (max_size, max_files) = (Some(max_size), Some(max_files));
        let spec = LogSpec { max_size, max_files, ..LogSpec::default() };
        Logging::new(vec![spec])?;
        Ok(())
    }
}

/// The layer to which a container of [`Source::Overlay`] writes, in its bundle.
pub(crate) const UPPER: &str = "upper";

/// Where the root file system and the configuration of a container come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The caller's bundle: a directory with `config.json`.
    Bundle(PathBuf),
    /// A root file system, with a configuration that Holdfast generates.
    Rootfs(PathBuf),
    /// The same, and what is written goes to a directory of the container's own.
    Overlay(PathBuf),
    /// The host's own programs, read-only.
    Host,
}

/// Where the standard input of a process comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stdin {
    /// No input: the process reads end of file at once.
    #[default]
    Null,
    /// A FIFO that Holdfast creates, for [`Container::stdin`](crate::Container::stdin). The process
    /// reads end of file once [`close_stdin`](crate::Container::close_stdin) was called and all
    /// writers are gone.
    Pipe,
    /// As [`Pipe`](Self::Pipe), for one writer: when that [`InputWriter`](crate::InputWriter) is
    /// dropped, or its process dies, the process reads end of file.
    Once,
    /// A FIFO that the caller has created.
    Fifo(PathBuf),
}

impl Stdin {
    /// Returns whether Holdfast creates a FIFO for it.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Self::Pipe | Self::Once)
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct TerminalSize {
    /// The number of columns.
    pub width: u16,
    /// The number of rows.
    pub height: u16,
}

/// The standard streams of a process. By default there is no input, and all output goes to the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(try_from = "StdioDefinition", into = "StdioDefinition")]
pub struct Stdio {
    pub(crate) stdin: Stdin,
    pub(crate) stdout: Option<PathBuf>,
    pub(crate) stderr: Option<PathBuf>,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) log: Logging,
}

impl TerminalSize {
    /// Returns the size of a terminal of this process.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if the descriptor is not that of a terminal.
    pub fn of(terminal: impl AsFd) -> io::Result<Self> {
        let (width, height) = holdfast_sys::terminal::size(terminal)?;
        Ok(Self { width, height })
    }
}

impl Stdio {
    /// Returns the default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets where the standard input comes from.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Sends the standard output to a FIFO of the caller instead of the log. The shim opens the
    /// FIFO for reading too, so the process neither waits for a reader nor gets a SIGPIPE if there
    /// is none.
    #[must_use]
    pub fn stdout_fifo(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdout = Some(path.into());
        self
    }

    /// Does the same as [`stdout_fifo`](Self::stdout_fifo) for the standard error. A process with a
    /// terminal has no separate standard error.
    #[must_use]
    pub fn stderr_fifo(mut self, path: impl Into<PathBuf>) -> Self {
        self.stderr = Some(path.into());
        self
    }

    /// Gives the process a terminal of this size.
    #[must_use]
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.terminal = Some(size);
        self
    }

    /// Sets where the output is logged. The default is a log in the CRI format, in the state root,
    /// with a limited size; see [`Builder::log_rotation`](crate::Builder::log_rotation).
    #[must_use]
    pub fn log(mut self, log: Logging) -> Self {
        self.log = log;
        self
    }
}

/// The options of a new container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(try_from = "ContainerDefinition", into = "ContainerDefinition")]
pub struct ContainerOptions {
    pub(crate) source: Source,
    pub(crate) id: Option<ContainerId>,
    pub(crate) args: Vec<String>,
    pub(crate) config: Config,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) runtime: Option<String>,
    pub(crate) runtime_args: Vec<String>,
    pub(crate) no_pivot_root: bool,
    pub(crate) no_new_keyring: bool,
    pub(crate) start_timeout: Option<Duration>,
    pub(crate) stop_signal: Option<i32>,
    pub(crate) stop_grace: Option<Duration>,
    pub(crate) stdio: Stdio,
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) on_orphan: OrphanPolicy,
    pub(crate) shim_group: Option<GroupName>,
    pub(crate) auto_remove: bool,
    pub(crate) hold: Duration,
    pub(crate) incarnation: Option<Incarnation>,
}

impl ContainerOptions {
    fn new(source: Source) -> Self {
        Self {
            source,
            id: None,
            args: Vec::new(),
            config: Config::default(),
            labels: BTreeMap::new(),
            runtime: None,
            runtime_args: Vec::new(),
            no_pivot_root: false,
            no_new_keyring: false,
            start_timeout: None,
            stop_signal: None,
            stop_grace: None,
            stdio: Stdio::new(),
            checkpoint: None,
            on_orphan: OrphanPolicy::default(),
            shim_group: None,
            auto_remove: false,
            hold: Duration::ZERO,
            incarnation: None,
        }
    }

    /// Uses an OCI bundle: a directory with `config.json` and the files that it refers to.
    #[must_use]
    pub fn bundle(directory: impl Into<PathBuf>) -> Self {
        Self::new(Source::Bundle(directory.into()))
    }

    /// Uses a root file system, and generates a configuration for it: the root is read-only; the
    /// mount, pid, ipc, uts, cgroup and network namespaces are private. There is no network but the
    /// loopback interface; see [`network`](Self::network).
    #[must_use]
    pub fn rootfs(directory: impl Into<PathBuf>) -> Self {
        Self::new(Source::Rootfs(directory.into()))
    }

    /// Does what [`rootfs`](Self::rootfs) does, but the container can write everywhere, and the directory
    /// stays as it is: what is written goes to a directory in the state root, which is removed with the
    /// container (overlayfs). The directory may be shared by many containers, and must not change while
    /// one runs. The file system of the state root must be able to hold an upper layer.
    #[must_use]
    pub fn overlay(directory: impl Into<PathBuf>) -> Self {
        Self::new(Source::Overlay(directory.into())).read_only(false)
    }

    /// Uses no image: the host's `/usr`, `/bin`, `/lib*` and `/etc`, read-only, and an empty
    /// `/tmp`. The rest is as for [`rootfs`](Self::rootfs).
    #[must_use]
    pub fn host_rootfs() -> Self {
        Self::new(Source::Host)
    }

    /// Sets the container's id. The default is twelve random hexadecimal digits.
    #[must_use]
    pub fn id(mut self, id: ContainerId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the command to run, in place of the bundle's. Without a bundle, the default is `sh`.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a variable, `NAME=VALUE`, to the environment. It replaces one of the same name.
    #[must_use]
    pub fn env(mut self, variable: impl Into<String>) -> Self {
        self.config.env.push(variable.into());
        self
    }

    /// Adds variables, each `NAME=VALUE`, to the environment.
    #[must_use]
    pub fn envs(mut self, variables: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.config.env.extend(variables.into_iter().map(Into::into));
        self
    }

    /// Sets the working directory, an absolute path in the container.
    #[must_use]
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.config.cwd = Some(directory.into());
        self
    }

    /// Sets user and groups, as the container counts.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.config.user = Some(user);
        self
    }

    /// Sets user and groups by name, as in `nobody` or `www-data:adm`: they are looked up in `/etc/passwd`
    /// and `/etc/group` of the root file system when the container is created. Without a group, those of
    /// the user apply. This overrides [`user`](Self::user).
    #[must_use]
    pub fn user_name(mut self, names: impl Into<String>) -> Self {
        self.config.user_name = Some(names.into());
        self
    }

    /// Sets the host name, of 1 to 64 bytes. The container needs a uts namespace of its own.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.config.hostname = Some(name.into());
        self
    }

    /// Shows a file or directory of the host in the container, with what is mounted below it. Neither
    /// devices nor set-user-ID programs are usable there.
    #[must_use]
    pub fn bind(self, source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Self {
        self.mount("none", source, destination, ["rbind", "rw", "nosuid", "nodev"])
    }

    /// As [`bind`](Self::bind), and the container cannot write there.
    #[must_use]
    pub fn bind_read_only(
        self,
        source: impl Into<PathBuf>,
        destination: impl Into<PathBuf>,
    ) -> Self {
        self.mount("none", source, destination, ["rbind", "ro", "nosuid", "nodev"])
    }

    /// Mounts an empty tmpfs of at most so many bytes, and as many files as that has pages of 4 KiB (1024 at
    /// least). All users may write to it, as to `/tmp`; but runc gives it the mode of the directory that
    /// it covers, if there is one.
    #[must_use]
    pub fn tmpfs(self, destination: impl Into<PathBuf>, bytes: u64) -> Self {
        let size = format!("size={bytes}");
        // Empty files take none of its size, but memory of the host.
        let files = format!("nr_inodes={}", (bytes / 4096).max(1024));
        let options = ["nosuid", "nodev", "mode=1777", &size, &files];
        self.mount("tmpfs", "tmpfs", destination, options)
    }

    /// Adds a mount as an OCI configuration has it: type, source, destination and options. It replaces
    /// one with the same destination.
    #[must_use]
    pub fn mount(
        mut self,
        kind: impl Into<String>,
        source: impl Into<PathBuf>,
        destination: impl Into<PathBuf>,
        options: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.config.mounts.push(Mount {
            destination: destination.into(),
            kind: kind.into(),
            source: source.into(),
            options: options.into_iter().map(Into::into).collect(),
        });
        self
    }

    /// Gives access to a device of the host, as `destination` in the container. `access` has the letters
    /// `r` (read), `w` (write) and `m` (mknod).
    #[must_use]
    pub fn device(
        mut self,
        source: impl Into<PathBuf>,
        destination: impl Into<PathBuf>,
        access: impl Into<String>,
    ) -> Self {
        self.config.devices.push(Device {
            source: source.into(),
            destination: destination.into(),
            access: access.into(),
        });
        self
    }

    /// Sets the network. The default without a bundle is [`Network::None`].
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.config.network = Some(network);
        self
    }

    /// Sets whether the root file system is read-only. The default without a bundle: it is.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.config.read_only = Some(read_only);
        self
    }

    /// Limits the memory, in bytes.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.config.memory_limit = Some(bytes);
        self
    }

    /// Limits the number of processes and threads.
    #[must_use]
    pub fn pids_limit(mut self, most: u64) -> Self {
        self.config.pids_limit = Some(most);
        self
    }

    /// Limits the processor time, in thousandths of a processor: 1500 is one and a half.
    #[must_use]
    pub fn cpu_limit(mut self, millicpus: u64) -> Self {
        self.config.cpu_limit = Some(millicpus);
        self
    }

    /// Sets the weight of the container when processors are scarce, from 2 to 262144; 1024 is usual.
    #[must_use]
    pub fn cpu_shares(mut self, shares: u64) -> Self {
        self.config.cpu_shares = Some(shares);
        self
    }

    /// Sets a resource limit (setrlimit(2)), as in `RLIMIT_NOFILE`.
    #[must_use]
    pub fn ulimit(mut self, name: impl Into<String>, soft: u64, hard: u64) -> Self {
        self.config.ulimits.push(Ulimit { kind: name.into(), soft, hard });
        self
    }

    /// Grants a further capability: `NET_ADMIN`, or `CAP_NET_ADMIN`. `ALL` stands for all that this
    /// process may grant.
    #[must_use]
    pub fn cap_add(mut self, name: impl Into<String>) -> Self {
        self.config.cap_add.push(name.into());
        self
    }

    /// Takes a capability away; `ALL` stands for all.
    #[must_use]
    pub fn cap_drop(mut self, name: impl Into<String>) -> Self {
        self.config.cap_drop.push(name.into());
        self
    }

    /// Sets whether its programs can gain no privileges by execve(2): `no_new_privs` of prctl(2).
    #[must_use]
    pub fn no_new_privileges(mut self, none: bool) -> Self {
        self.config.no_new_privileges = Some(none);
        self
    }

    /// Sets the seccomp profile: the `seccomp` object of the OCI configuration. The default without a
    /// bundle is a profile that refuses what changes the host; with one, what the bundle says.
    #[must_use]
    pub fn seccomp(mut self, profile: Value) -> Self {
        self.config.seccomp = Some(Some(profile));
        self
    }

    /// Allows its programs all system calls: no seccomp profile.
    #[must_use]
    pub fn seccomp_unconfined(mut self) -> Self {
        self.config.seccomp = Some(None);
        self
    }

    /// Adds an annotation to the OCI configuration, for runtime and hooks.
    #[must_use]
    pub fn annotation(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.annotations.insert(name.into(), value.into());
        self
    }

    /// Adds a label: data of the caller, which Holdfast stores with the container and returns in
    /// [`ContainerInfo::labels`](crate::ContainerInfo::labels).
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Sets the OCI runtime, by name or path.
    #[must_use]
    pub fn runtime(mut self, runtime: impl Into<String>) -> Self {
        self.runtime = Some(runtime.into());
        self
    }

    /// Sets additional global arguments of the runtime.
    #[must_use]
    pub fn runtime_args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.runtime_args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Makes the runtime not use `pivot_root(2)`, for root file systems on a ramdisk.
    #[must_use]
    pub fn no_pivot_root(mut self) -> Self {
        self.no_pivot_root = true;
        self
    }

    /// Makes the runtime not give the container a session keyring of its own: its programs then have
    /// the supervisor's. For users who have as many keys as they may (`keyrings(7)`), and for kernels
    /// whose keyrings a runtime can't use.
    #[must_use]
    pub fn no_new_keyring(mut self) -> Self {
        self.no_new_keyring = true;
        self
    }

    /// Sets how long the start may take, in place of the supervisor's setting.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// Sets the signal, by number, by which the container is to be stopped. Holdfast stores it for those
    /// who call [`Container::stop`](crate::Container::stop); see
    /// [`ContainerInfo::stop_signal`](crate::ContainerInfo::stop_signal).
    #[must_use]
    pub fn stop_signal(mut self, signal: i32) -> Self {
        self.stop_signal = Some(signal);
        self
    }

    /// Sets after how much time SIGKILL is to follow then. It is stored as
    /// [`stop_signal`](Self::stop_signal) is.
    #[must_use]
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.stop_grace = Some(grace);
        self
    }

    /// Sets the standard streams. By default there is no input, and all output goes to the log.
    #[must_use]
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.stdio = stdio;
        self
    }

    /// Restores the container from the directory that
    /// [`Container::checkpoint`](crate::Container::checkpoint) wrote. The bundle must be the same.
    /// The program runs at once, without a call of [`Container::start`](crate::Container::start).
    #[must_use]
    pub fn checkpoint(mut self, directory: impl Into<PathBuf>) -> Self {
        self.checkpoint = Some(directory.into());
        self
    }

    /// Sets what happens to the container when its shim dies. The default is
    /// [`OrphanPolicy::Adopt`].
    #[must_use]
    pub fn on_orphan(mut self, policy: OrphanPolicy) -> Self {
        self.on_orphan = policy;
        self
    }

    /// Sets the shim group of the container's processes. One shim serves all processes of a group,
    /// which costs a few KiB of memory per process; a separate shim costs tens of KiB. If the shim
    /// dies, another one takes over all processes of the group. The default is the supervisor's
    /// setting.
    ///
    /// A process whose output a shim forwards to a FIFO still gets a separate shim.
    #[must_use]
    pub fn shim_group(mut self, group: GroupName) -> Self {
        self.shim_group = Some(group);
        self
    }

    /// Deletes the container automatically after its exit. The exit is published first. A later
    /// creation of a container with the same id waits for the deletion. A container that is never
    /// started does not exit, and stays.
    #[must_use]
    pub fn auto_remove(mut self) -> Self {
        self.auto_remove = true;
        self
    }

    /// Lets the automatic deletion after the exit wait until
    /// [`Container::release`](crate::Container::release), but at most this long after the exit, or
    /// after the supervisor that finds it was opened. A client that reads the output can then read
    /// the rest of it if the supervisor is killed and another one is opened.
    #[must_use]
    pub fn hold(mut self, limit: Duration) -> Self {
        self.hold = limit;
        self
    }

    /// Sets the incarnation, which must be [random](Incarnation::random). The default is a random
    /// one. A caller that sets it can find out whether a container is the one that it has asked for,
    /// although it never got an answer.
    #[must_use]
    pub fn incarnation(mut self, incarnation: Incarnation) -> Self {
        self.incarnation = Some(incarnation);
        self
    }
}

/// The options of a new exec process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(from = "ExecDefinition", into = "ExecDefinition")]
pub struct ExecOptions {
    pub(crate) id: Option<ProcessId>,
    pub(crate) args: Vec<String>,
    pub(crate) process: Option<Map<String, Value>>,
    pub(crate) config: Config,
    pub(crate) start_timeout: Option<Duration>,
    pub(crate) stdio: Stdio,
    pub(crate) auto_remove: bool,
    pub(crate) hold: Duration,
}

impl ExecOptions {
    /// Runs a process with these arguments. Its environment, user, working directory and
    /// capabilities are those of the container's init process.
    #[must_use]
    pub fn new(args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            id: None,
            args: args.into_iter().map(Into::into).collect(),
            process: None,
            config: Config::default(),
            start_timeout: None,
            stdio: Stdio::new(),
            auto_remove: false,
            hold: Duration::ZERO,
        }
    }

    /// Sets the whole process, as the `process` object of an OCI configuration, in place of the init
    /// process's. The other options change it; arguments that are not empty replace its own. Whether it
    /// has a terminal is said by [`stdio`](Self::stdio) alone.
    #[must_use]
    pub fn process(mut self, process: Map<String, Value>) -> Self {
        self.process = Some(process);
        self
    }

    /// Sets the id of the process, which is unique within its container. The default is twelve
    /// random hexadecimal digits.
    #[must_use]
    pub fn id(mut self, id: ProcessId) -> Self {
        self.id = Some(id);
        self
    }

    /// Adds a variable, `NAME=VALUE`, to the environment.
    #[must_use]
    pub fn env(mut self, variable: impl Into<String>) -> Self {
        self.config.env.push(variable.into());
        self
    }

    /// Adds variables, each `NAME=VALUE`, to the environment.
    #[must_use]
    pub fn envs(mut self, variables: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.config.env.extend(variables.into_iter().map(Into::into));
        self
    }

    /// Sets user and groups, as the container counts.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.config.user = Some(user);
        self
    }

    /// Sets user and groups by name; see [`ContainerOptions::user_name`]. They are looked up in the
    /// container.
    #[must_use]
    pub fn user_name(mut self, names: impl Into<String>) -> Self {
        self.config.user_name = Some(names.into());
        self
    }

    /// Sets whether its programs can gain no privileges by execve(2).
    #[must_use]
    pub fn no_new_privileges(mut self, none: bool) -> Self {
        self.config.no_new_privileges = Some(none);
        self
    }

    /// Grants a further capability: `NET_ADMIN`, or `CAP_NET_ADMIN`. `ALL` stands for all that this
    /// process may grant.
    #[must_use]
    pub fn cap_add(mut self, name: impl Into<String>) -> Self {
        self.config.cap_add.push(name.into());
        self
    }

    /// Takes a capability away; `ALL` stands for all.
    #[must_use]
    pub fn cap_drop(mut self, name: impl Into<String>) -> Self {
        self.config.cap_drop.push(name.into());
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.config.cwd = Some(directory.into());
        self
    }

    /// Sets how long the start may take, in place of the supervisor's setting.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = Some(timeout);
        self
    }

    /// Sets the standard streams. By default there is no input, and all output goes to the log.
    #[must_use]
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.stdio = stdio;
        self
    }

    /// Deletes the record and the output of the process automatically after its exit.
    #[must_use]
    pub fn auto_remove(mut self) -> Self {
        self.auto_remove = true;
        self
    }

    /// Lets the automatic deletion wait; see [`ContainerOptions::hold`].
    #[must_use]
    pub fn hold(mut self, limit: Duration) -> Self {
        self.hold = limit;
        self
    }
}
