//! What can be typed.

mod commands;
mod container;
mod examples;
mod hints;
pub(crate) mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use holdfast_daemon::api::ContainerId;

use self::commands::{CheckpointArgs, LogArgs, StopArgs};
pub(crate) use self::commands::{
    Condition, CopyArgs, EventArgs, KeyArgs, KillWord, PruneArgs, PsArgs, StatsArgs, WaitArgs,
};
pub(crate) use self::container::{ContainerArgs, ExecArgs};
use self::values::parse_bound;
pub(crate) use self::values::{absolute, absolute_if_path, socket_path};
use crate::away::Patience;
use crate::daemon::DaemonArgs;
use crate::places;
use crate::signals::parse_signal;
use crate::template::Format;

/// Container daemon that can be killed, restarted or upgraded under its containers
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = examples::MAIN)]
pub(crate) struct Args {
    /// State directory [default: /run/holdfast for root]
    #[arg(long, global = true, value_name = "DIR", env = "HOLDFAST_ROOT", hide_env = true, help_heading = GLOBAL)]
    root: Option<PathBuf>,
    /// Socket of the daemon [default: ROOT/holdfast.sock]
    #[arg(long, global = true, value_name = "SOCKET", env = "HOLDFAST_ADDRESS", hide_env = true, help_heading = GLOBAL)]
    address: Option<String>,
    /// Bound of waiting for a daemon [default: 30s]
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_bound, help_heading = GLOBAL)]
    reconnect: Option<Duration>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const GLOBAL: &str = "Global options";

#[derive(Debug, Subcommand)]
// The arguments of a command are set up when it is the one that was typed: that takes a third of the time.
#[command(defer = true)]
pub(crate) enum Command {
    /// Host containers until SIGTERM; the containers run on afterwards
    Daemon(Box<DaemonArgs>),
    /// Show the daemon: version, runtime, kernel, limits
    Info {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Create a container and start it
    #[command(after_help = examples::RUN)]
    Run {
        /// Print the id and return
        #[arg(short, long)]
        detach: bool,
        #[command(flatten)]
        keys: KeyArgs,
        #[command(flatten)]
        container: Box<ContainerArgs>,
    },
    /// Create a container for `start`, and print its id
    #[command(after_help = examples::CREATE)]
    Create {
        #[command(flatten)]
        container: Box<ContainerArgs>,
    },
    /// Start containers that were created or have stopped
    #[command(after_help = examples::START)]
    Start {
        /// Attach to its output, and exit with its status
        #[arg(short, long)]
        attach: bool,
        /// Attach to its input too
        #[arg(short, long)]
        interactive: bool,
        #[command(flatten)]
        keys: KeyArgs,
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Stop containers: a signal first, SIGKILL later
    #[command(after_help = examples::STOP)]
    Stop {
        #[command(flatten)]
        stop: StopArgs,
    },
    /// Stop containers and start them again
    Restart {
        #[command(flatten)]
        stop: StopArgs,
    },
    /// Run a further process in a container
    #[command(after_help = examples::EXEC)]
    Exec {
        #[command(flatten)]
        exec: Box<ExecArgs>,
    },
    /// List containers
    #[command(visible_alias = "ls", after_help = examples::PS)]
    Ps(PsArgs),
    /// Show all about containers or exec processes, as JSON
    #[command(after_help = examples::INSPECT)]
    Inspect {
        /// Print one line for each
        #[arg(long, conflicts_with = "format")]
        json: bool,
        /// Print fields by a template
        #[arg(short, long, value_name = "TEMPLATE")]
        format: Option<Format>,
        /// The containers or exec processes
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Wait until containers stop, and print their status
    #[command(after_help = examples::WAIT)]
    Wait(WaitArgs),
    /// Send a signal to containers
    #[command(after_help = examples::KILL)]
    Kill {
        /// Signal, by name or number [default: KILL]
        #[arg(short, long, value_parser = parse_signal)]
        signal: Option<i32>,
        /// The containers or exec processes; -9 and -HUP are signals
        #[arg(required = true, value_name = "ID", allow_hyphen_values = true)]
        words: Vec<KillWord>,
    },
    /// Freeze all processes of containers
    Pause {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Let the processes of frozen containers run on
    #[command(visible_alias = "unpause")]
    Resume {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Change the limits of a container
    Update {
        /// JSON file, linux.resources as in OCI; - for stdin
        #[arg(long, value_name = "FILE|-")]
        resources: PathBuf,
        /// The container
        id: ContainerId,
    },
    /// List the processes in a container
    #[command(after_help = examples::TOP)]
    Top {
        /// Print a JSON array
        #[arg(long, conflicts_with = "options")]
        json: bool,
        /// The container
        id: ContainerId,
        /// Options of ps(1), which then makes the list
        #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Show what containers use, again and again on a terminal
    #[command(after_help = examples::STATS)]
    Stats(StatsArgs),
    /// Copy files into a container, or out of it
    #[command(after_help = examples::CP)]
    Cp(CopyArgs),
    /// Write the state of a container to disk, for `run --checkpoint`
    Checkpoint(CheckpointArgs),
    /// Attach to a container: its output, input and signals
    Attach {
        /// Do not attach standard input
        #[arg(long)]
        no_stdin: bool,
        #[command(flatten)]
        keys: KeyArgs,
        /// The container
        id: ContainerId,
    },
    /// Print the output of a container or exec process
    #[command(after_help = examples::LOGS)]
    Logs(LogArgs),
    /// Reopen the log files of containers, after a rotation by name
    ReopenLogs {
        /// The containers
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Print events as they happen
    #[command(after_help = examples::EVENTS)]
    Events(EventArgs),
    /// Delete containers that do not run
    #[command(name = "rm", visible_alias = "delete", after_help = examples::RM)]
    Delete {
        /// Kill them first if they run
        #[arg(short, long)]
        force: bool,
        /// The containers, or exec processes that have ended
        #[arg(required = true, value_name = "ID")]
        ids: Vec<ContainerId>,
    },
    /// Delete all containers that have stopped
    #[command(after_help = examples::PRUNE)]
    Prune(PruneArgs),
    /// Show the versions of this command and of the daemon
    Version {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell
    #[command(after_help = examples::COMPLETION)]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Write a manual page for each command
    #[command(hide = true)]
    Man {
        /// Into this directory
        dir: PathBuf,
    },
}

impl Args {
    /// Reads the command line of this process.
    pub(crate) fn typed() -> Result<Self, clap::Error> {
        Self::try_parse().map_err(hints::helpful)
    }

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

    /// Returns the state root; `configured` is that of a configuration file.
    pub(crate) fn root(&self, configured: Option<PathBuf>) -> anyhow::Result<PathBuf> {
        // An empty variable of the environment is none.
        let given = self.root.clone().filter(|root| !root.as_os_str().is_empty());
        given.or(configured).map_or_else(places::root, absolute)
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience::of(self.reconnect)
    }

    /// Returns the path of the daemon's socket; `configured` is that of a configuration file. Only without
    /// both does it depend on the state root.
    pub(crate) fn address(
        &self,
        configured: Option<&str>,
        root: impl FnOnce() -> anyhow::Result<PathBuf>,
    ) -> anyhow::Result<PathBuf> {
        let given = self.address.as_deref().filter(|address| !address.is_empty());
        match given.or(configured) {
            Some(address) => Ok(socket_path(address)),
            None => Ok(root()?.join("holdfast.sock")),
        }
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
    fn every_help_fits_80_columns_and_has_one_line_for_each_flag() {
        let names = Args::command().get_subcommands().map(|it| it.get_name().to_owned()).collect();
        for name in [vec![String::new()], names].concat() {
            let words = ["holdfast", &name, "--help"].into_iter().filter(|word| !word.is_empty());
            let help = Args::try_parse_from(words).unwrap_err().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{name}: {line}");
                let is_flag = line.starts_with("  -") || line.starts_with("      --");
                assert!(!is_flag || line.trim_start().contains("  "), "{name}: {line}");
            }
            assert!(help.contains("Global options:"), "{name}: {help}");
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
        for line in [
            "holdfast run -- sh",
            "holdfast run --rootfs host --bundle x",
            "holdfast run --rootfs host --name ../x",
            "holdfast run --rootfs host --timeout 0s",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_signal_is_written_as_for_kill() {
        for (line, signal) in [
            ("holdfast kill -9 web", 9),
            ("holdfast kill -KILL web", 9),
            ("holdfast kill web -HUP", 1),
            ("holdfast kill -SIGTERM web", 15),
        ] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            let Command::Kill { signal: None, words } = args.command else { panic!("{args:?}") };
            assert!(words.contains(&KillWord::Signal(signal)), "{words:?}");
            assert!(words.contains(&KillWord::Id("web".parse().unwrap())), "{words:?}");
        }
        for line in
            ["holdfast kill -NOPE web", "holdfast kill --force web", "holdfast kill -65 web"]
        {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
