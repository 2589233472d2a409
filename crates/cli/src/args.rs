//! What can be typed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser, Subcommand};
use holdfast_daemon::api::{
    CheckpointRequest, ContainerId, ContainerOptions, Cursor, GroupName, LogQuery, LogSpec,
    Logging, Network, OrphanPolicy, Stdin, Stdio, StopRequest, User,
};

use crate::away::Patience;
use crate::current_dir;
use crate::detach::Keys;
use crate::signals::parse_signal;

/// Hosts many containers from one daemon that may die at any moment.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, max_term_width = 100)]
pub(crate) struct Args {
    /// Where the daemon keeps its containers [default: /run/holdfast]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The daemon's socket [default: ROOT/holdfast.sock]
    #[arg(long, global = true, value_name = "SOCKET")]
    address: Option<PathBuf>,
    /// How long a command waits for the next daemon when its own goes away, 0 for not at all
    /// [default: 30s]
    ///
    /// `run`, `exec`, `attach`, `wait`, `logs`, `events`, `stats` and `top` then go on where they were.
    /// If this is given, they also wait for a daemon that is not there at the beginning.
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_bound)]
    reconnect: Option<Duration>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
// The arguments of a command are set up when it is the one that was typed: that takes a third of the time.
#[command(defer = true)]
pub(crate) enum Command {
    /// Host containers, in the foreground, until SIGTERM; they run on afterwards
    Daemon {
        /// The OCI runtime of containers that name none
        #[arg(long, value_name = "NAME|PATH")]
        runtime: Option<String>,
        /// The holdfast-shim executable [default: beside this one, in libexec, in PATH]
        #[arg(long, value_name = "PATH")]
        shim: Option<PathBuf>,
        /// Have containers that name no group share one shim, this one [default: a shim each]
        #[arg(long, value_name = "NAME")]
        shim_group: Option<GroupName>,
        /// How many shims are kept ready for containers to come
        #[arg(long, value_name = "N", default_value_t = holdfast_daemon::SPARE_SHIMS)]
        spare_shims: usize,
        /// The size of the files of a log that does not say so itself; 0 for no bound
        #[arg(long, value_name = "SIZE", default_value = "10m", value_parser = LogSpec::parse_size)]
        log_max_size: u64,
        /// How many files such a log has
        #[arg(long, value_name = "N", default_value_t = LogSpec::MAX_FILES, value_parser = clap::value_parser!(u32).range(1..))]
        log_max_files: u32,
    },
    /// Show the daemon, what it restored and how fast
    Info {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a container and start it
    ///
    /// In the foreground it prints the container's output, forwards signals and exits with its
    /// status: 128+n for signal n, 125 when Holdfast itself failed, 126 when the program cannot be
    /// executed, 127 when it is not there, 141 when nobody reads our standard output any more (then the
    /// container runs on). Options come before the program; all that follows it belongs to it.
    Run {
        /// Print the id and return
        #[arg(short, long)]
        detach: bool,
        #[command(flatten)]
        keys: KeyArgs,
        #[command(flatten)]
        container: ContainerArgs,
    },
    /// Make a container whose program waits for `start`; print its id
    Create {
        #[command(flatten)]
        container: ContainerArgs,
    },
    /// Start containers that are created or have ended
    Start {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Stop containers: a signal first, and SIGKILL if that is not enough
    Stop {
        #[command(flatten)]
        stop: StopArgs,
    },
    /// Stop containers, and start them again
    Restart {
        #[command(flatten)]
        stop: StopArgs,
    },
    /// Run a further process in a container
    Exec {
        /// Print the process's id and return
        #[arg(short, long)]
        detach: bool,
        /// How long its start may take, as in 2s or 500ms
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
        /// Add to its environment
        #[arg(short, long, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// Set the working directory [default: that of the container's first process]
        #[arg(short = 'w', long = "workdir", visible_alias = "cwd", value_name = "DIR")]
        workdir: Option<String>,
        /// Run as this user and group, by number [default: those of the container's first process]
        #[arg(short, long, value_name = "UID[:GID]", value_parser = parse_user)]
        user: Option<User>,
        #[command(flatten)]
        keys: KeyArgs,
        #[command(flatten)]
        stdio: StdioArgs,
        /// The container
        id: ContainerId,
        /// What to run
        #[arg(required = true, trailing_var_arg = true, value_name = "ARG")]
        args: Vec<String>,
    },
    /// List containers that have not ended
    #[command(visible_alias = "ls")]
    Ps {
        /// List those that have ended, too
        #[arg(short, long)]
        all: bool,
        /// List only those with this label
        #[arg(short, long, value_name = "NAME[=VALUE]")]
        label: Option<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show all about containers, as JSON
    Inspect {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
        /// Print one line a container
        #[arg(long)]
        json: bool,
    },
    /// Wait until containers end; print one status per line. Knows those that were removed, too
    Wait {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
        /// Print JSON, with how the status is known
        #[arg(long)]
        json: bool,
    },
    /// Send a signal to containers
    Kill {
        /// The signal, by name or number
        #[arg(short, long, default_value = "KILL", value_parser = parse_signal)]
        signal: i32,
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Freeze all processes of containers
    Pause {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Let the processes of containers run on
    #[command(visible_alias = "unpause")]
    Resume {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Change the limits of a container
    Update {
        /// A file of JSON, the linux.resources of an OCI configuration; - for standard input
        #[arg(long, value_name = "FILE|-")]
        resources: PathBuf,
        /// The container
        id: ContainerId,
    },
    /// List the processes in a container
    Top {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        /// The container
        id: ContainerId,
    },
    /// Show what containers use now
    Stats {
        /// Print JSON, one line a container
        #[arg(long)]
        json: bool,
        /// The containers [default: all that run]
        #[arg(value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Write the state of a container out, for `run --checkpoint`
    Checkpoint(CheckpointArgs),
    /// Print what a container writes from now on, and hand our input on to it if it has one
    ///
    /// Several may do so at once. The end of our input is not that of the container's. Signals are
    /// forwarded, and the exit status is the container's, as with `run`.
    Attach {
        /// Keep our input
        #[arg(long)]
        no_stdin: bool,
        #[command(flatten)]
        keys: KeyArgs,
        /// The container
        id: ContainerId,
    },
    /// Print what a container wrote, each stream to its own
    Logs(LogArgs),
    /// Have the log files of containers opened anew, after they were renamed to rotate them
    ReopenLogs {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Print what happens, as it happens
    Events {
        /// Begin with all that is kept of what has happened
        #[arg(long, conflicts_with = "since")]
        replay: bool,
        /// Begin after this place, which --json shows with each event
        #[arg(long, value_name = "CURSOR")]
        since: Option<Cursor>,
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Delete containers that have ended or were never started, and all that is left of them
    #[command(visible_alias = "rm")]
    Delete {
        /// Kill them first if they run
        #[arg(short, long)]
        force: bool,
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
}

/// How containers are stopped, and which.
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// The signal, by name or number
    #[arg(short, long, default_value = "TERM", value_parser = parse_signal)]
    signal: i32,
    /// After how many seconds SIGKILL follows
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u32,
    /// The containers
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<ContainerId>,
}

impl StopArgs {
    /// As the daemon understands it.
    pub(crate) fn request(&self) -> StopRequest {
        StopRequest { signal: self.signal, grace_ms: u64::from(self.time) * 1000 }
    }
}

/// How one detaches from a container.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyArgs {
    /// What is typed in a terminal to leave the container to itself
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: Keys,
}

/// The options of `logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,
    /// Only what was written then or later: a time as in 2026-01-31T12:00:00Z, or 10m for ten
    /// minutes ago
    #[arg(long, value_name = "TIME|DURATION", value_parser = parse_since)]
    since: Option<SystemTime>,
    /// Only so many lines at the end of what is there
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// The container
    pub(crate) id: ContainerId,
}

impl LogArgs {
    /// As the daemon understands it.
    pub(crate) fn query(&self) -> LogQuery {
        LogQuery {
            follow: self.follow,
            since: self.since.map(|since| humantime::format_rfc3339_nanos(since).to_string()),
            tail: self.tail,
            timestamps: self.timestamps,
            ..LogQuery::default()
        }
    }
}

/// The options of `checkpoint`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckpointArgs {
    /// Where to; made if need be
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// Where CRIU works and writes its logs [default: criu.work in DIR]
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,
    /// Let the container run on
    #[arg(long)]
    leave_running: bool,
    /// Include established TCP connections
    #[arg(long)]
    tcp: bool,
    /// Allow Unix sockets whose other end is outside
    #[arg(long)]
    unix_sockets: bool,
    /// Allow a session or terminal that was inherited from outside
    #[arg(long)]
    shell_job: bool,
    /// Leave out the content of a kind of namespace, as in network
    #[arg(long, value_name = "KIND")]
    empty_ns: Vec<String>,
    /// The container
    pub(crate) id: ContainerId,
}

impl CheckpointArgs {
    /// As the daemon understands it.
    pub(crate) fn request(self) -> anyhow::Result<CheckpointRequest> {
        Ok(CheckpointRequest {
            path: absolute(self.path)?,
            work_path: self.work_path.map(absolute).transpose()?,
            leave_running: self.leave_running,
            tcp: self.tcp,
            unix_sockets: self.unix_sockets,
            shell_job: self.shell_job,
            empty_ns: self.empty_ns,
        })
    }
}

/// The stdio of a process.
#[derive(Debug, clap::Args)]
pub(crate) struct StdioArgs {
    /// Hand our input on to it
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Where its output goes [default: cri]
    ///
    /// `DRIVER[:PATH][,option=value…]`, several times for several places. Drivers: cri, json-file,
    /// file, fifo, journald, none. Options: max-size=SIZE and max-files=N (rotation; by default 10m and
    /// 5, or what the daemon says; max-size=0 for none), rate=LINES (a second), stderr=PATH,
    /// backpressure=block|drop-oldest|spill and buffer=SIZE (fifo), direct=yes (file: the container gets
    /// the file itself). A comma in a PATH is written `\,`,
    /// a backslash `\\`.
    #[arg(long, value_name = "DRIVER[:PATH][,…]")]
    log: Vec<LogSpec>,
    /// A FIFO from which it reads
    #[arg(long, value_name = "FIFO", conflicts_with = "interactive")]
    stdin: Option<PathBuf>,
    /// A FIFO to which it writes, instead of the log
    #[arg(long, value_name = "FIFO")]
    stdout: Option<PathBuf>,
    /// A FIFO to which it writes errors, instead of the log
    #[arg(long, value_name = "FIFO")]
    stderr: Option<PathBuf>,
}

impl StdioArgs {
    /// As the daemon understands it.
    pub(crate) fn request(&self) -> anyhow::Result<Stdio> {
        let mut stdio = Stdio::new().log(Logging::new(self.log.clone())?);
        if self.interactive {
            stdio = stdio.stdin(Stdin::Pipe);
        }
        if let Some(path) = &self.stdin {
            stdio = stdio.stdin(Stdin::Fifo(absolute(path.clone())?));
        }
        if let Some(path) = &self.stdout {
            stdio = stdio.stdout_fifo(absolute(path.clone())?);
        }
        if let Some(path) = &self.stderr {
            stdio = stdio.stderr_fifo(absolute(path.clone())?);
        }
        if self.tty {
            stdio = stdio.terminal(crate::terminal::size());
        }
        Ok(stdio)
    }
}

/// What `run` and `create` share.
#[derive(Debug, clap::Args)]
pub(crate) struct ContainerArgs {
    /// Delete the container once it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Its id [default: random]
    #[arg(long, value_name = "ID")]
    pub(crate) name: Option<ContainerId>,
    /// The OCI runtime [default: the daemon's]
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) runtime: Option<String>,
    /// A further global argument of the runtime, as in --runtime-arg=--debug
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) runtime_arg: Vec<String>,
    /// Have the runtime not use pivot_root, for root file systems on a ramdisk
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Have the runtime make no session keyring for the container
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// What happens to it when its shim dies: it runs on (adopt), or is killed (kill)
    #[arg(long, value_name = "adopt|kill", default_value = "adopt", value_parser = parse_orphan)]
    pub(crate) on_orphan: OrphanPolicy,
    /// Share one shim with all containers of this group [default: the daemon's group, or none]
    #[arg(long, value_name = "NAME")]
    pub(crate) shim_group: Option<GroupName>,
    /// Restore it from what `checkpoint` wrote there, with the same bundle
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    pub(crate) stdio: StdioArgs,
    /// How long its start may take, as in 2s or 500ms [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// An OCI bundle: a directory with config.json
    #[arg(long, value_name = "DIR", required_unless_present = "rootfs", conflicts_with = "rootfs")]
    bundle: Option<PathBuf>,
    /// A root file system, or `host` for the host's own programs, read-only
    #[arg(long, value_name = "DIR|host")]
    rootfs: Option<PathBuf>,
    /// What to run, instead of what the bundle says
    #[arg(trailing_var_arg = true, value_name = "ARG")]
    pub(crate) args: Vec<String>,
}

impl ContainerArgs {
    /// As the daemon understands it.
    pub(crate) fn options(self) -> anyhow::Result<ContainerOptions> {
        let mut options = match (self.bundle, self.rootfs) {
            (Some(bundle), _) => ContainerOptions::bundle(absolute(bundle)?),
            (None, Some(path)) if path == Path::new("host") => ContainerOptions::host_rootfs(),
            (None, Some(path)) => ContainerOptions::rootfs(absolute(path)?),
            (None, None) => bail!("say what to run with --bundle or --rootfs"),
        };
        options = options
            .args(self.args)
            .runtime_args(self.runtime_arg)
            .stdio(self.stdio.request()?)
            .on_orphan(self.on_orphan);
        options = self.config.apply(options)?;
        if let Some(id) = self.name {
            options = options.id(id);
        }
        if let Some(runtime) = self.runtime {
            options = options.runtime(absolute_if_path(runtime)?);
        }
        if let Some(group) = self.shim_group {
            options = options.shim_group(group);
        }
        if let Some(timeout) = self.timeout {
            options = options.start_timeout(timeout);
        }
        if let Some(checkpoint) = self.checkpoint {
            options = options.checkpoint(absolute(checkpoint)?);
        }
        if self.no_pivot {
            options = options.no_pivot_root();
        }
        if self.no_new_keyring {
            options = options.no_new_keyring();
        }
        if self.rm {
            options = options.auto_remove();
        }
        Ok(options)
    }
}

/// What is changed in the OCI configuration of a container.
#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Set the working directory in the container
    #[arg(short = 'w', long = "workdir", visible_alias = "cwd", value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user and group, by number
    #[arg(short, long, value_name = "UID[:GID]", value_parser = parse_user)]
    user: Option<User>,
    /// Set the host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Mount a file or directory of the host
    #[arg(short, long, value_name = "SRC:DEST[:ro|rw]", value_parser = parse_volume)]
    volume: Vec<Volume>,
    /// Mount an empty tmpfs of at most 64 MiB, or of SIZE
    #[arg(long, value_name = "DEST[:SIZE]", value_parser = parse_tmpfs)]
    tmpfs: Vec<(PathBuf, u64)>,
    /// The network: `none` is the loopback interface alone, `host` that of the host [default without a
    /// bundle: none]
    #[arg(long, value_name = "none|host", value_parser = parse_network)]
    network: Option<Network>,
    /// Make the root file system read-only, or with `=false` writable
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    read_only: Option<bool>,
    /// Limit the memory, as in 512m
    #[arg(short, long, value_name = "SIZE", value_parser = LogSpec::parse_size)]
    memory: Option<u64>,
    /// Limit the processor time, as in 1.5
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus)]
    cpus: Option<u64>,
    /// Limit the number of processes
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<u64>,
    /// Set a resource limit, as in nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse_ulimit)]
    ulimit: Vec<(String, u64, u64)>,
    /// Add a capability
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Set a security option: seccomp=FILE (a profile in the OCI form), seccomp=unconfined,
    /// no-new-privileges[=BOOL] [default without a bundle: a profile of Holdfast's, true]
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_security)]
    security_opt: Vec<Security>,
    /// Add a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
}

/// A security option, as docker has them.
#[derive(Debug, Clone)]
enum Security {
    NoNewPrivileges(bool),
    Unconfined,
    Seccomp(PathBuf),
}

/// What of the host a container sees, where.
#[derive(Debug, Clone)]
struct Volume {
    source: PathBuf,
    destination: PathBuf,
    read_only: bool,
}

impl ConfigArgs {
    fn apply(self, mut options: ContainerOptions) -> anyhow::Result<ContainerOptions> {
        options = options.envs(self.env);
        if let Some(directory) = self.workdir {
            options = options.cwd(directory);
        }
        if let Some(user) = self.user {
            options = options.user(user);
        }
        if let Some(name) = self.hostname {
            options = options.hostname(name);
        }
        for Volume { source, destination, read_only } in self.volume {
            let source = absolute(source)?;
            options = match read_only {
                true => options.bind_read_only(source, destination),
                false => options.bind(source, destination),
            };
        }
        for (destination, bytes) in self.tmpfs {
            options = options.tmpfs(destination, bytes);
        }
        if let Some(network) = self.network {
            options = options.network(network);
        }
        if let Some(read_only) = self.read_only {
            options = options.read_only(read_only);
        }
        if let Some(bytes) = self.memory {
            options = options.memory_limit(bytes);
        }
        if let Some(millicpus) = self.cpus {
            options = options.cpu_limit(millicpus);
        }
        if let Some(most) = self.pids_limit {
            options = options.pids_limit(most);
        }
        for (name, soft, hard) in self.ulimit {
            options = options.ulimit(name, soft, hard);
        }
        for name in self.cap_add {
            options = options.cap_add(name);
        }
        for name in self.cap_drop {
            options = options.cap_drop(name);
        }
        for option in self.security_opt {
            options = match option {
                Security::NoNewPrivileges(none) => options.no_new_privileges(none),
                Security::Unconfined => options.seccomp_unconfined(),
                Security::Seccomp(path) => {
                    let about = || format!("the seccomp profile {}", path.display());
                    let content = std::fs::read(&path).with_context(about)?;
                    options.seccomp(serde_json::from_slice(&content).with_context(about)?)
                }
            };
        }
        for label in self.label {
            let (name, value) = label.split_once('=').unwrap_or((&label, ""));
            options = options.label(name, value);
        }
        Ok(options)
    }
}

fn parse_user(text: &str) -> Result<User, String> {
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is not a number"));
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (number(uid)?, number(gid)?),
        None => (number(text)?, 0),
    };
    Ok(User { uid, gid, ..User::default() })
}

fn parse_security(text: &str) -> Result<Security, String> {
    // docker takes a colon too.
    match text.split_once(['=', ':']).unwrap_or((text, "")) {
        ("no-new-privileges", "" | "true") => Ok(Security::NoNewPrivileges(true)),
        ("no-new-privileges", "false") => Ok(Security::NoNewPrivileges(false)),
        ("seccomp", "unconfined") => Ok(Security::Unconfined),
        ("seccomp", path) if !path.is_empty() => Ok(Security::Seccomp(path.into())),
        _ => {
            Err("it is seccomp=FILE, seccomp=unconfined or no-new-privileges[=true|false]"
                .to_owned())
        }
    }
}

fn parse_network(text: &str) -> Result<Network, String> {
    match text {
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err("it is none or host".to_owned()),
    }
}

fn parse_volume(text: &str) -> Result<Volume, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, read_only) = match parts[..] {
        [source, destination] | [source, destination, "rw"] => (source, destination, false),
        [source, destination, "ro"] => (source, destination, true),
        _ => return Err("it is SRC:DEST, SRC:DEST:ro or SRC:DEST:rw".to_owned()),
    };
    Ok(Volume { source: source.into(), destination: destination.into(), read_only })
}

fn parse_tmpfs(text: &str) -> Result<(PathBuf, u64), String> {
    const DEFAULT: u64 = 64 * 1024 * 1024;
    match text.split_once(':') {
        Some((path, size)) => Ok((path.into(), LogSpec::parse_size(size)?)),
        None => Ok((text.into(), DEFAULT)),
    }
}

fn parse_cpus(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of processors: 1.5, say");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && text.len() <= 9;
    if whole.is_empty() && part.is_empty() || !is_number(whole) || !is_number(part) {
        return Err(wrong());
    }
    let thousandths: String = part.chars().chain("000".chars()).take(3).collect();
    format!("0{whole}{thousandths}").parse().map_err(|_| wrong())
}

fn parse_ulimit(text: &str) -> Result<(String, u64, u64), String> {
    let wrong = || format!("{text:?} is no limit: nofile=1024:2048, say");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let number = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        text => text.parse().map_err(|_| wrong()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let upper = name.to_ascii_uppercase();
    let name = if upper.starts_with("RLIMIT_") { upper } else { format!("RLIMIT_{upper}") };
    Ok((name, number(soft)?, number(hard)?))
}

impl Args {
    /// Whether what was typed, sensible or not, is a command whose exit status is a container's.
    ///
    /// Looks for the command itself: what clap could make of a line that it refuses may end before it.
    pub(crate) fn is_for_a_container(typed: impl IntoIterator<Item = OsString>) -> bool {
        let known = Self::command();
        let mut typed = typed.into_iter().skip(1);
        let mut may_be_a_value = false;
        while let Some(word) = typed.next() {
            let Some(word) = word.to_str() else { continue };
            if matches!(word, "--root" | "--address" | "--reconnect") {
                typed.next();
            } else if word.starts_with('-') {
                may_be_a_value = !word.contains('=');
            } else if known.find_subcommand(word).is_some() {
                return matches!(word, "run" | "exec" | "attach");
            } else if !std::mem::take(&mut may_be_a_value) {
                return false;
            }
        }
        false
    }

    pub(crate) fn root(&self) -> anyhow::Result<PathBuf> {
        if let Some(root) = &self.root {
            return absolute(root.clone());
        }
        // For everyone: only root runs a daemon.
        Ok("/run/holdfast".into())
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience::of(self.reconnect)
    }

    pub(crate) fn address(&self, root: &Path) -> PathBuf {
        self.address.clone().unwrap_or_else(|| root.join("holdfast.sock"))
    }
}

/// A path that the daemon, which stands elsewhere, understands.
fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    Ok(current_dir()?.join(path))
}

/// A runtime given by path, as the daemon understands it.
pub(crate) fn absolute_if_path(runtime: String) -> anyhow::Result<String> {
    if !runtime.contains('/') {
        return Ok(runtime);
    }
    Ok(absolute(runtime.into())?.to_string_lossy().into_owned())
}

fn parse_orphan(text: &str) -> Result<OrphanPolicy, String> {
    match text {
        "adopt" => Ok(OrphanPolicy::Adopt),
        "kill" => Ok(OrphanPolicy::Kill),
        _ => Err("there are adopt and kill".to_owned()),
    }
}

/// A time in RFC 3339, or how long ago.
fn parse_since(text: &str) -> Result<SystemTime, String> {
    let wrong = || "give a time as in 2026-01-31T12:00:00Z, or how long ago as in 10m".to_owned();
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(wrong);
    }
    let place = text.get(19..).and_then(|rest| rest.find(['+', '-'])).map(|place| 19 + place);
    let (time, offset) = match place {
        Some(place) => (format!("{}Z", &text[..place]), offset(&text[place + 1..])),
        None => (text.to_owned(), Some(Duration::ZERO)),
    };
    let (Ok(time), Some(offset)) = (humantime::parse_rfc3339(&time), offset) else {
        return Err(wrong());
    };
    let is_west = place.is_some_and(|place| text[place..].starts_with('-'));
    let utc = if is_west { time.checked_add(offset) } else { time.checked_sub(offset) };
    utc.filter(|utc| *utc >= SystemTime::UNIX_EPOCH).ok_or_else(wrong)
}

/// Hours and minutes as they stand behind a time, `02:30`.
fn offset(text: &str) -> Option<Duration> {
    let (hours, minutes) = text.split_once(':').filter(|(h, m)| h.len() == 2 && m.len() == 2)?;
    let (hours, minutes) = (hours.parse::<u64>().ok()?, minutes.parse::<u64>().ok()?);
    Some(Duration::from_secs((hours * 60 + minutes) * 60))
}

fn parse_bound(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give 0, or a number with a unit, as in 30s"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.as_millis() > 0 => Ok(duration),
        Ok(_) => Err("must be at least 1ms".to_owned()),
        Err(error) => Err(format!("{error}; give a number with a unit, as in 2s or 500ms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_are_told_in_several_ways() {
        let at = |text| {
            parse_since(text).map(|time| humantime::format_rfc3339_seconds(time).to_string())
        };
        for text in ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5Z", "2026-01-31T14:30:00+02:30"]
        {
            assert_eq!(at(text).as_deref(), Ok("2026-01-31T12:00:00Z"), "{text}");
        }
        assert_eq!(at("2026-01-31T07:00:00.1-05:00").as_deref(), Ok("2026-01-31T12:00:00Z"));
        let ago = parse_since("10m").unwrap().elapsed().unwrap().as_secs();
        assert!((600..660).contains(&ago), "{ago}");
        for text in
            ["", "yesterday", "10", "2026-01-31", "2026-01-31T12:00:00+2", "é".repeat(20).as_str()]
        {
            assert!(parse_since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_follows_the_options_of_run_is_the_containers() {
        for line in
            ["holdfast run --rootfs host -- sh -c x -d", "holdfast run --rootfs host sh -c x -d"]
        {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            let Command::Run { detach: false, container, .. } = args.command else {
                panic!("{args:?}")
            };
            assert_eq!(container.args, ["sh", "-c", "x", "-d"]);
        }
        assert!(Args::try_parse_from(["holdfast", "run", "--", "sh"]).is_err());
        assert!(
            Args::try_parse_from(["holdfast", "run", "--rootfs", "host", "--bundle", "x"]).is_err()
        );
        assert!(
            Args::try_parse_from(["holdfast", "run", "--rootfs", "host", "--name", "../x"])
                .is_err()
        );
        assert!(
            Args::try_parse_from(["holdfast", "run", "--rootfs", "host", "--timeout", "0s"])
                .is_err()
        );
    }
}
