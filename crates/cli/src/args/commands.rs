//! The options of single commands.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use holdfast_daemon::api::{CheckpointRequest, ContainerId, LogQuery, ProcessId, StopRequest};

use super::values::{absolute, parse_duration, parse_time};
use crate::copy::Location;
use crate::detach::Keys;
use crate::events;
use crate::list::{self, Order};
use crate::signals::parse_signal;
use crate::template::Format;

// How containers are stopped, and which.
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// Signal to send first, by name or number
    #[arg(short, long, value_parser = parse_signal)]
    signal: Option<i32>,
    /// Seconds until SIGKILL
    #[arg(short, long, value_name = "SECONDS", visible_alias = "timeout")]
    time: Option<u32>,
    /// The containers
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<ContainerId>,
}

impl StopArgs {
    /// As the daemon understands it.
    pub(crate) fn request(&self) -> StopRequest {
        let grace_ms = self.time.map(|seconds| u64::from(seconds) * 1000);
        StopRequest { signal: self.signal, grace_ms }
    }
}

// How one detaches from a container.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyArgs {
    /// Keys to detach
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: Keys,
}

// The options of `ps`.
#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    /// List containers that have stopped, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print the ids only
    #[arg(short, long, conflicts_with_all = ["json", "format"])]
    pub(crate) quiet: bool,
    /// List the N newest, whatever their state
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// List the newest, whatever its state
    #[arg(short, long, conflicts_with = "last")]
    pub(crate) latest: bool,
    /// List those that pass, as in status=exited
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<list::Filter>,
    /// List those with this label
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) label: Option<String>,
    /// By created, id, status, command
    #[arg(long, value_name = "KEY", default_value = "created")]
    pub(crate) sort: Order,
    /// Print json, or fields by a template
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "json")]
    pub(crate) format: Option<Format>,
    /// Do not shorten commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

// The options of `stats`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// Show them once
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// Print json, or fields by a template
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "json")]
    pub(crate) format: Option<Format>,
    /// Print all counters once, JSON, one per line
    #[arg(long)]
    pub(crate) json: bool,
    /// The containers [default: all that run]
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<ContainerId>,
}

// The options of `cp`.
#[derive(Debug, clap::Args)]
pub(crate) struct CopyArgs {
    /// Keep the user and group ids
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Copy what SRC points to, if it is a link
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// ID:PATH in a container, or a path here
    #[arg(value_name = "SRC")]
    pub(crate) from: Location,
    /// The same; one of the two is in a container
    #[arg(value_name = "DEST")]
    pub(crate) to: Location,
}

// The options of `prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Delete those that pass, as in until=24h
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<list::Filter>,
}

// The options of `wait`.
#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// Give up after this time, with status 124
    #[arg(short, long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// State to wait for, as below
    #[arg(long, value_name = "STATE", default_value = "stopped")]
    pub(crate) condition: Condition,
    /// Print JSON, with how the status is known
    #[arg(long)]
    pub(crate) json: bool,
    /// The containers or exec processes
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<ContainerId>,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// That it has ended, also if it has already.
    Stopped,
    /// That it ends from now on.
    NextExit,
    /// That it is deleted.
    Removed,
    /// That it runs.
    Running,
}

impl FromStr for Condition {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stopped" | "not-running" | "exited" => Ok(Self::Stopped),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            "running" => Ok(Self::Running),
            _ => Err("it is stopped, next-exit, removed or running"),
        }
    }
}

/// A container or process, or a signal as kill(1) takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KillWord {
    Id(ContainerId),
    Signal(i32),
}

impl FromStr for KillWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('-') {
            Some(option) if option.starts_with('-') => Err(format!("unexpected option {text}")),
            Some(signal) => parse_signal(signal).map(Self::Signal),
            None => text.parse().map(Self::Id).map_err(|error| format!("{error}")),
        }
    }
}

// The options of `logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// Go on until the container stops
    #[arg(short, long)]
    follow: bool,
    /// Print what was written then or later
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<SystemTime>,
    /// Print what was written before then
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "follow")]
    until: Option<SystemTime>,
    /// Print the last N lines, or all
    #[arg(short = 'n', long, value_name = "N|all")]
    tail: Option<Tail>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// The container or exec process
    pub(crate) id: ContainerId,
}

/// How much of the end of a log.
#[derive(Debug, Clone, Copy)]
struct Tail(Option<u64>);

impl FromStr for Tail {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => Ok(Self(None)),
            text => text.parse().map(|n| Self(Some(n))).map_err(|_| "it is a number or all"),
        }
    }
}

impl LogArgs {
    /// As the daemon understands it.
    pub(crate) fn query(&self, process: Option<ProcessId>) -> LogQuery {
        let text = |time| humantime::format_rfc3339_nanos(time).to_string();
        LogQuery {
            follow: self.follow,
            since: self.since.map(text),
            until: self.until.map(text),
            tail: self.tail.and_then(|tail| tail.0),
            timestamps: self.timestamps,
            process,
            ..LogQuery::default()
        }
    }
}

// The options of `events`.
#[derive(Debug, clap::Args)]
pub(crate) struct EventArgs {
    /// Begin with all events that are kept
    #[arg(long, conflicts_with = "since")]
    pub(crate) replay: bool,
    /// Begin at this time, or after this cursor
    #[arg(long, value_name = "TIME|CURSOR")]
    pub(crate) since: Option<events::Begin>,
    /// End with the events before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) until: Option<SystemTime>,
    /// Print those that pass, as in event=exited
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<events::Filter>,
    /// Print json, or fields by a template
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "json")]
    pub(crate) format: Option<Format>,
    /// Print JSON lines, with the cursor of each
    #[arg(long)]
    pub(crate) json: bool,
}

// The options of `checkpoint`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckpointArgs {
    /// Directory to write to; created if missing
    #[arg(long, value_name = "DIR")]
    path: PathBuf,
    /// Directory for CRIU's logs [default: criu.work]
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
    /// Allow a session or terminal from outside
    #[arg(long)]
    shell_job: bool,
    /// Leave out a kind of namespace, as in network
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
