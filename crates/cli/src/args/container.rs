//! What can be typed to describe a new container or process: its stdio, its root, its configuration.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_daemon::api::{
    ContainerId, ContainerOptions, ExecOptions, GroupName, HealthCheck, LogSpec, Logging, Network,
    OrphanPolicy, RestartPolicy, Stdin, Stdio,
};

use super::KeyArgs;
use super::values::{
    Device, Mounted, Security, UserName, absolute, absolute_if_path, parse_bound, parse_cpus,
    parse_duration, parse_network, parse_orphan, parse_security, parse_tmpfs, parse_ulimit,
    parse_volume,
};
use crate::forward::Signals;
use crate::images;
use crate::init;
use crate::signals::parse_signal;

const IO: &str = "Input and output";
const PROCESS: &str = "Process";
const LIMITS: &str = "Limits";
const ISOLATION: &str = "Isolation and mounts";
const LIFE: &str = "Start, stop and runtime";
const HEALTH: &str = "Health";

// The stdio of a process.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = IO)]
pub(crate) struct StdioArgs {
    /// Forward standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Allocate a pseudo-terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Log the output there, as below [default: cri]
    #[arg(long, value_name = "DRIVER[:PATH][,...]")]
    log: Vec<LogSpec>,
    /// FIFO to read standard input from
    #[arg(long, value_name = "FIFO", conflicts_with = "interactive")]
    stdin: Option<PathBuf>,
    /// FIFO for standard output, instead of the log
    #[arg(long, value_name = "FIFO")]
    stdout: Option<PathBuf>,
    /// FIFO for standard error, instead of the log
    #[arg(long, value_name = "FIFO")]
    stderr: Option<PathBuf>,
    /// Forward signals [default: true]
    #[arg(long, value_name = "BOOL", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: Option<bool>,
}

impl StdioArgs {
    /// As the daemon understands it.
    fn request(&self) -> anyhow::Result<Stdio> {
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

    /// What becomes of our signals.
    pub(crate) fn signals(&self) -> Signals {
        if self.sig_proxy.unwrap_or(true) { Signals::Forwarded } else { Signals::Ours }
    }
}

// The environment, user and directory of a process.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = PROCESS)]
struct ProcessArgs {
    /// Set a variable, or take ours of that name
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables in a file, one per line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Set the working directory
    #[arg(short = 'w', long = "workdir", visible_alias = "cwd", value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<UserName>,
}

impl ProcessArgs {
    /// The variables: those of files first, so that the others replace them.
    fn variables(&self) -> anyhow::Result<Vec<String>> {
        let mut variables = Vec::new();
        for path in &self.env_file {
            let shown = path.display();
            let content =
                std::fs::read_to_string(path).with_context(|| format!("--env-file {shown}"))?;
            for (line, number) in content.lines().zip(1..) {
                let line = line.trim_start();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                if line.split('=').next().is_some_and(|name| name.contains(char::is_whitespace)) {
                    bail!("--env-file {shown}: line {number}: a name has no blanks");
                }
                variables.extend(variable(line));
            }
        }
        variables.extend(self.env.iter().filter_map(|typed| variable(typed)));
        Ok(variables)
    }
}

/// A variable as it is given, or ours of that name; `None` if we have none.
fn variable(typed: &str) -> Option<String> {
    if typed.contains('=') || typed.is_empty() {
        return Some(typed.to_owned());
    }
    let value = std::env::var(typed).ok()?;
    Some(format!("{typed}={value}"))
}

// The options of `exec`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// Print the id of the process and return
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Give up a start that takes longer [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Grant all capabilities
    #[arg(long)]
    privileged: bool,
    #[command(flatten)]
    pub(crate) keys: KeyArgs,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    pub(crate) stdio: StdioArgs,
    /// The container
    #[arg(help_heading = None::<&str>)]
    pub(crate) id: ContainerId,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "ARG", help_heading = None::<&str>)]
    args: Vec<String>,
}

impl ExecArgs {
    /// As the daemon understands it.
    pub(crate) fn options(&self) -> anyhow::Result<ExecOptions> {
        let mut options = ExecOptions::new(self.args.clone())
            .envs(self.process.variables()?)
            .stdio(self.stdio.request()?);
        if let Some(directory) = &self.process.workdir {
            options = options.cwd(directory);
        }
        match &self.process.user {
            Some(UserName::Ids(user)) => options = options.user(user.clone()),
            Some(UserName::Names(names)) => options = options.user_name(names),
            None => {}
        }
        if self.privileged {
            options = options.cap_add("ALL").no_new_privileges(false);
        }
        if let Some(timeout) = self.timeout {
            options = options.start_timeout(timeout);
        }
        Ok(options)
    }
}

// What `run` and `create` share.
#[derive(Debug, clap::Args)]
pub(crate) struct ContainerArgs {
    /// Delete the container when it has stopped
    #[arg(long)]
    pub(crate) rm: bool,
    /// Restart policy, as on-failure:3 or always
    #[arg(long, value_name = "POLICY", conflicts_with = "rm")]
    pub(crate) restart: Option<RestartPolicy>,
    /// Set its id [default: random]
    #[arg(long, value_name = "ID")]
    pub(crate) name: Option<ContainerId>,
    /// Write its id to a new file
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
    /// OCI bundle: a directory with config.json
    #[arg(long, value_name = "DIR", required_unless_present = "rootfs", conflicts_with = "rootfs")]
    bundle: Option<PathBuf>,
    /// Root file system; `host` for the host's, read-only
    #[arg(long, value_name = "DIR|host")]
    rootfs: Option<PathBuf>,
    /// Keep what is written apart from --rootfs DIR
    #[arg(long, requires = "rootfs")]
    overlay: bool,
    /// Replace the program; ARGs become its arguments
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Run a small init as the first process, to reap
    #[arg(long)]
    init: bool,
    /// Add a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    pub(crate) stdio: StdioArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    isolation: IsolationArgs,
    #[command(flatten)]
    life: LifeArgs,
    #[command(flatten)]
    health: HealthArgs,
    /// Program and arguments [default: the bundle's]
    #[arg(trailing_var_arg = true, value_name = "ARG", help_heading = None::<&str>)]
    pub(crate) args: Vec<String>,
}

// How a container starts and stops, and by whom.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = LIFE)]
struct LifeArgs {
    /// Signal by which `stop` stops it [default: TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    stop_signal: Option<i32>,
    /// SIGKILL follows after that time [default: 10]
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u32>,
    /// Give up a start that takes longer [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Restore what `checkpoint` wrote, same bundle
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// If its shim dies: adopt, kill
    #[arg(long, value_name = "POLICY", default_value = "adopt", value_parser = parse_orphan)]
    on_orphan: OrphanPolicy,
    /// Share one shim with this group of containers
    #[arg(long, value_name = "NAME")]
    shim_group: Option<GroupName>,
    /// OCI runtime [default: the daemon's]
    #[arg(long, value_name = "NAME|PATH")]
    runtime: Option<String>,
    /// Further global argument for the runtime
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    runtime_arg: Vec<String>,
    /// Do not use pivot_root, for a root on a ramdisk
    #[arg(long)]
    no_pivot: bool,
    /// Do not create a session keyring
    #[arg(long)]
    no_new_keyring: bool,
}

// How the health of a container is checked.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = HEALTH)]
struct HealthArgs {
    /// Shell script; exits with 0 if healthy
    #[arg(long, value_name = "SCRIPT")]
    health_cmd: Option<String>,
    /// Time between two checks [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "health_cmd")]
    health_interval: Option<Duration>,
    /// Time limit of a check [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "health_cmd")]
    health_timeout: Option<Duration>,
    /// Failures until unhealthy [default: 3]
    #[arg(long, value_name = "N", requires = "health_cmd")]
    health_retries: Option<NonZeroU32>,
    /// Ignore failures so long [default: 0]
    #[arg(long, value_name = "DURATION", value_parser = parse_bound, requires = "health_cmd")]
    health_start_period: Option<Duration>,
    /// Time between checks meanwhile (5s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "health_cmd")]
    health_start_interval: Option<Duration>,
    /// No health check, which is the default
    #[arg(long, conflicts_with = "health_cmd")]
    no_healthcheck: bool,
    /// Restart it when it becomes unhealthy
    #[arg(long, requires = "health_cmd", conflicts_with = "rm")]
    restart_on_unhealthy: bool,
}

impl HealthArgs {
    fn apply(self, options: ContainerOptions) -> ContainerOptions {
        let Some(script) = self.health_cmd else { return options };
        let mut check = HealthCheck::shell(&script);
        if let Some(interval) = self.health_interval {
            check = check.interval(interval);
        }
        if let Some(timeout) = self.health_timeout {
            check = check.timeout(timeout);
        }
        if let Some(retries) = self.health_retries {
            check = check.retries(retries);
        }
        if let Some(period) = self.health_start_period {
            check = check.start_period(period);
        }
        if let Some(interval) = self.health_start_interval {
            check = check.start_interval(interval);
        }
        if self.restart_on_unhealthy {
            check = check.restart_on_unhealthy();
        }
        check.apply(options)
    }
}

// What a container may use.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = LIMITS)]
struct LimitArgs {
    /// Memory, as in 512m
    #[arg(short, long, value_name = "SIZE", value_parser = LogSpec::parse_size)]
    memory: Option<u64>,
    /// Processors, as in 1.5
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus)]
    cpus: Option<u64>,
    /// Weight if processors are scarce (1024)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    cpu_shares: Option<u64>,
    /// Processes and threads
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<u64>,
    /// Resource limit, as in nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse_ulimit)]
    ulimit: Vec<(String, u64, u64)>,
}

// What a container sees and may do.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = ISOLATION)]
struct IsolationArgs {
    /// Set the host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Mount a file or directory of the host
    #[arg(short, long, value_name = "SRC:DEST[:OPTS]", value_parser = parse_volume)]
    volume: Vec<Mounted>,
    /// Mount, as in type=bind,src=/a,dst=/b,readonly
    #[arg(long, value_name = "KEY=VALUE,...")]
    mount: Vec<Mounted>,
    /// Mount a tmpfs, as in /run:size=1m,noexec
    #[arg(long, value_name = "DEST[:OPTS]", value_parser = parse_tmpfs)]
    tmpfs: Vec<Mounted>,
    /// Give access to a device of the host
    #[arg(long, value_name = "SRC[:DEST][:rwm]")]
    device: Vec<Device>,
    /// Read-only root; =false for writable
    #[arg(long, value_name = "BOOL", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    read_only: Option<bool>,
    /// Network: none (loopback only), host, ns:PATH
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    network: Option<Network>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// seccomp=FILE|unconfined, no-new-privileges
    #[arg(long, value_name = "OPTION", value_parser = parse_security)]
    security_opt: Vec<Security>,
}

impl ContainerArgs {
    /// As the daemon understands it.
    pub(crate) fn options(self) -> anyhow::Result<ContainerOptions> {
        let mut args: Vec<_> = self.entrypoint.into_iter().chain(self.args).collect();
        if self.init && args.is_empty() {
            args = match &self.bundle {
                Some(bundle) => init::args_of(bundle)?,
                None => vec!["sh".to_owned()],
            };
        }
        let mut options = match (self.bundle, self.rootfs) {
            (Some(bundle), _) => ContainerOptions::bundle(absolute(bundle)?),
            (None, Some(path)) if path == Path::new("host") && self.overlay => {
                bail!("--overlay needs a directory as --rootfs");
            }
            (None, Some(path)) if path == Path::new("host") => ContainerOptions::host_rootfs(),
            (None, Some(path)) => {
                let path = absolute(path)?;
                images::refuse(&path)?;
                match self.overlay {
                    true => ContainerOptions::overlay(path),
                    false => ContainerOptions::rootfs(path),
                }
            }
            (None, None) => bail!("a container needs either --bundle or --rootfs"),
        };
        if self.init {
            args.insert(0, init::PLACE.to_owned());
            options = options.bind_read_only(init::program()?, init::PLACE);
        }
        options = options.args(args).envs(self.process.variables()?).stdio(self.stdio.request()?);
        if let Some(directory) = self.process.workdir {
            options = options.cwd(directory);
        }
        match self.process.user {
            Some(UserName::Ids(user)) => options = options.user(user),
            Some(UserName::Names(names)) => options = options.user_name(names),
            None => {}
        }
        for label in self.label {
            let (name, value) = label.split_once('=').unwrap_or((&label, ""));
            options = options.label(name, value);
        }
        if self.rm {
            options = options.auto_remove();
        }
        if let Some(policy) = self.restart {
            options = policy.apply(options);
        }
        options = self.health.apply(options);
        self.life.apply(self.isolation.apply(self.limits.apply(options))?)
    }
}

impl LifeArgs {
    fn apply(self, mut options: ContainerOptions) -> anyhow::Result<ContainerOptions> {
        options = options.on_orphan(self.on_orphan).runtime_args(self.runtime_arg);
        if let Some(signal) = self.stop_signal {
            options = options.stop_signal(signal);
        }
        if let Some(seconds) = self.stop_timeout {
            options = options.stop_grace(Duration::from_secs(seconds.into()));
        }
        if let Some(group) = self.shim_group {
            options = options.shim_group(group);
        }
        if let Some(runtime) = self.runtime {
            options = options.runtime(absolute_if_path(runtime)?);
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
        Ok(options)
    }
}

impl LimitArgs {
    fn apply(self, mut options: ContainerOptions) -> ContainerOptions {
        if let Some(bytes) = self.memory {
            options = options.memory_limit(bytes);
        }
        if let Some(millicpus) = self.cpus {
            options = options.cpu_limit(millicpus);
        }
        if let Some(shares) = self.cpu_shares {
            options = options.cpu_shares(shares);
        }
        if let Some(most) = self.pids_limit {
            options = options.pids_limit(most);
        }
        for (name, soft, hard) in self.ulimit {
            options = options.ulimit(name, soft, hard);
        }
        options
    }
}

impl IsolationArgs {
    fn apply(self, mut options: ContainerOptions) -> anyhow::Result<ContainerOptions> {
        if let Some(name) = self.hostname {
            options = options.hostname(name);
        }
        for mounted in self.volume.into_iter().chain(self.mount).chain(self.tmpfs) {
            let Mounted { kind, source, destination, options: how } = mounted;
            let source = if kind == "tmpfs" { source } else { absolute(source)? };
            options = options.mount(kind, source, destination, how);
        }
        for Device { source, destination, access } in self.device {
            options = options.device(source, destination, access);
        }
        if let Some(network) = self.network {
            options = options.network(network);
        }
        if let Some(read_only) = self.read_only {
            options = options.read_only(read_only);
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
        Ok(options)
    }
}
