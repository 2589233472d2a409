//! runc's command line, as far as Holdfast, conmon and containerd's shim use it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// What `--version` prints after the name: parsers of runc's output look for the second line.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.0.2");

/// An OCI runtime that needs nothing but the kernel.
#[derive(Debug, Parser)]
#[command(name = "holdfast-oci", version = VERSION, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What stands before the command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where the state of containers is kept; it must not survive a reboot.
    #[arg(long, default_value = "/run/holdfast-oci")]
    pub(crate) root: PathBuf,
    /// Append errors to this file too.
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// How the log's lines look.
    #[arg(long, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Log what libcontainer does.
    #[arg(long)]
    pub(crate) debug: bool,
    /// Have systemd make the cgroup; `cgroupsPath` then is `slice:prefix:name`.
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Accepted for compatibility: whether it is rootless is found out.
    #[arg(long, value_name = "BOOL")]
    pub(crate) rootless: Option<String>,
    /// This process is root of the container's user namespace; see `rootless`.
    #[arg(long, hide = true)]
    pub(crate) is_inside: bool,
    /// A descriptor of the directory with the console socket; see `rootless`.
    #[arg(long, hide = true)]
    pub(crate) console_dir: Option<i32>,
    /// This process is in a scope, and this is a descriptor of this program; see `scope`.
    #[arg(long, hide = true)]
    pub(crate) in_scope: Option<i32>,
    /// The container's cgroup; see `scope`.
    #[arg(long, hide = true)]
    pub(crate) cgroup: Option<PathBuf>,
    /// A descriptor of its limit of processes; see `scope`.
    #[arg(long, hide = true)]
    pub(crate) pids_max: Option<i32>,
}

impl Global {
    /// Whether libcontainer has systemd make the cgroup. Inside a user namespace it is there already; see `scope`.
    pub(crate) fn makes_by_systemd(&self) -> bool {
        self.systemd_cgroup && !self.is_inside
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Json,
    Text,
}

impl LogFormat {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a container whose program waits for `start`.
    Create(Create),
    /// Make a container and start it.
    Run(Run),
    /// Start the program of a created container.
    Start(Id),
    /// Run a further program in a container.
    Exec(Exec),
    /// Print what is known of a container.
    State(Id),
    /// Send a signal to a container's first process.
    Kill(Kill),
    /// Remove what is kept of a container.
    Delete(Delete),
    /// Suspend all processes of a container.
    Pause(Id),
    /// Let them go on.
    Resume(Id),
    /// Change the limits of a container.
    Update(Update),
    /// List the processes of a container.
    Ps(Ps),
    /// Print what a container uses.
    Events(Events),
    /// Print what this runtime can do.
    Features,
    /// Become a hook's program; see `Config::wrap_hooks`.
    #[command(hide = true)]
    Hook(Hook),
    /// Finish a container's mounts; see `mounts`.
    #[command(hide = true)]
    Mounts(Mounts),
    /// Wait in a new user namespace; see `mounts`.
    #[command(hide = true)]
    UserNamespace,
    /// Map the ids of a process in a new user namespace; see `rootless`.
    #[command(hide = true)]
    MapIds(MapIds),
    /// Remove a directory as root of a user namespace; see `rootless`.
    #[command(hide = true)]
    Remove(Remove),
    /// Not supported.
    Checkpoint(Ignored),
    /// Not supported.
    Restore(Ignored),
}

#[derive(Debug, Args)]
pub(crate) struct Id {
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The directory with config.json.
    #[arg(long, short, default_value = ".")]
    pub(crate) bundle: PathBuf,
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    /// Move the root by chroot: for root file systems in a ramdisk.
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Leave the container's processes the session keyring of the caller.
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[arg(long, short)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) create: Create,
}

/// What a container's first process and a further one have in common.
#[derive(Debug, Args)]
pub(crate) struct ProcessArgs {
    /// Where the process's number is written.
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// The socket that gets the terminal's master.
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// How many descriptors from 3 on the process keeps.
    #[arg(long, default_value_t = 0)]
    pub(crate) preserve_fds: i32,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// A file with the OCI process.
    #[arg(long, short)]
    pub(crate) process: PathBuf,
    #[command(flatten)]
    pub(crate) common: ProcessArgs,
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Signal every process of the container.
    #[arg(long, short)]
    pub(crate) all: bool,
    pub(crate) id: String,
    /// A number or a name, with or without SIG.
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Kill it if it runs; that there is no such container is fine.
    #[arg(long, short)]
    pub(crate) force: bool,
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// A file with OCI Linux resources, or - for the standard input.
    #[arg(long, short)]
    pub(crate) resources: PathBuf,
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[arg(long, short, default_value = "table")]
    pub(crate) format: PsFormat,
    pub(crate) id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PsFormat {
    Json,
    Table,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Once, instead of for ever.
    #[arg(long, action = ArgAction::SetTrue, required = true)]
    pub(crate) stats: bool,
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Hook {
    /// The directory of a cgroup to go to.
    #[arg(long)]
    pub(crate) cgroup: Vec<PathBuf>,
    /// What of the container's state is otherwise than libcontainer says, in JSON.
    #[arg(long)]
    pub(crate) state: String,
    pub(crate) path: PathBuf,
    /// The hook's arguments, its own name first; by default its path.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Mounts {
    /// The process whose root is to be changed, rather than what lies below it.
    #[arg(long)]
    pub(crate) root_of: Option<i32>,
    /// What to do.
    pub(crate) plan: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct MapIds {
    /// The process.
    #[arg(long)]
    pub(crate) pid: u32,
    /// Mappings, as newuidmap(1) takes them.
    #[arg(long)]
    pub(crate) uids: String,
    /// The same of groups.
    #[arg(long)]
    pub(crate) gids: String,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Mappings, as newuidmap(1) takes them.
    #[arg(long)]
    pub(crate) uids: String,
    /// The same of groups.
    #[arg(long)]
    pub(crate) gids: String,
    /// The directory.
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Ignored {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub(crate) rest: Vec<String>,
}
