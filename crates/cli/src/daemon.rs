//! The daemon itself: its flags, its configuration file, its own log.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};

use anyhow::{anyhow, bail};
use holdfast_daemon::api::{GroupName, LogSpec};
use holdfast_daemon::{Endpoint, File, Loaded, LogFormat, ReadOnly, Reload, SetLevel, Token, Web};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

use crate::args::{Args, Command, absolute, absolute_if_path, socket_path};
use crate::{places, streams};

/// The level of the log if nobody sets one.
const LEVEL: &str = "info";
/// The variable that sets the level.
const LEVEL_VARIABLE: &str = "HOLDFAST_LOG";
/// The size of the files of a log that does not say so itself, in bytes.
const LOG_MAX_SIZE: u64 = 10 << 20;

// The flags of the daemon. Each wins over the key of the same name in the configuration file.
#[derive(Debug, clap::Args)]
pub(crate) struct DaemonArgs {
    /// Configuration file, in TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// OCI runtime of containers that name none
    #[arg(long, value_name = "NAME|PATH")]
    runtime: Option<String>,
    /// The holdfast-shim program
    #[arg(long, value_name = "PATH")]
    shim: Option<PathBuf>,
    /// Shim group of containers that name none
    #[arg(long, value_name = "NAME")]
    shim_group: Option<GroupName>,
    /// Shims to start ahead of time [default: 1]
    #[arg(long, value_name = "N")]
    spare_shims: Option<usize>,
    /// Size of log files, or 0 [default: 10m]
    #[arg(long, value_name = "SIZE", value_parser = LogSpec::parse_size)]
    log_max_size: Option<u64>,
    /// Number of files per log [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    log_max_files: Option<u32>,
    /// Level of its own log [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Form of its own log, text or json
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    log_format: Option<LogFormat>,
    /// Serve metrics on this TCP address, too
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// File with the bearer token for that
    #[arg(long, value_name = "FILE")]
    metrics_token: Option<PathBuf>,
    /// Serve a web page on this TCP address
    #[arg(long, value_name = "ADDRESS")]
    web: Option<SocketAddr>,
    /// File with the bearer token for that
    #[arg(long, value_name = "FILE")]
    web_token: Option<PathBuf>,
    /// Name by which browsers may reach that
    #[arg(long, value_name = "NAME")]
    web_host: Vec<String>,
    /// Second socket, for reading only
    #[arg(long, value_name = "SOCKET")]
    read_only_address: Option<String>,
    /// Group that may connect to that
    #[arg(long, value_name = "GROUP")]
    read_only_group: Option<String>,
    /// Keep containers there over a reboot
    #[arg(long, value_name = "DIR")]
    definitions: Option<PathBuf>,
}

fn parse_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("there are text and json".to_owned()),
    }
}

/// Runs the daemon until a signal ends it.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Command::Daemon(flags) = &args.command else { bail!("not the daemon's command") };
    leave_session();
    let loaded = load(flags.config.as_deref())?;
    let file = loaded.as_ref().map_or_else(File::default, |loaded| loaded.file.clone());
    let variable = std::env::var(LEVEL_VARIABLE).ok().filter(|level| !level.is_empty());
    let fixed = flags.log_level.clone().or(variable);
    let level = fixed.as_deref().or(file.log_level.as_deref());
    let set_level = init_log(level, flags.log_format.or(file.log_format).unwrap_or_default())?;

    let root = args.root(file.root)?;
    let runtime = flags.runtime.clone().map(absolute_if_path).transpose()?;
    let token = flags.metrics_token.clone().map(absolute).transpose()?.or(file.metrics_token);
    let metrics = endpoint("--metrics", flags.metrics.or(file.metrics), token)?;
    let token = flags.web_token.clone().map(absolute).transpose()?.or(file.web_token);
    let web = endpoint("--web", flags.web.or(file.web), token)?;
    let hosts = if flags.web_host.is_empty() { file.web_host } else { flags.web_host.clone() };
    let definitions = flags.definitions.clone().map(absolute).transpose()?.or(file.definitions);
    let definitions = definitions.or_else(|| places::definitions(&root));
    let group = flags.read_only_group.clone().or(file.read_only_group);
    let read_only = flags.read_only_address.as_deref().or(file.read_only_address.as_deref());
    let config = holdfast_daemon::Config {
        read_only: read_only.map(|address| ReadOnly { address: socket_path(address), group }),
        address: args.address(file.address.as_deref(), || Ok(root.clone()))?,
        root,
        runtime: runtime.or(file.runtime),
        shim: flags.shim.clone().or(file.shim),
        shim_group: flags.shim_group.clone().or(file.shim_group),
        spare_shims: flags.spare_shims.or(file.spare_shims).unwrap_or(holdfast_daemon::SPARE_SHIMS),
        log_max_size: flags.log_max_size.or(file.log_max_size).unwrap_or(LOG_MAX_SIZE),
        log_max_files: flags
            .log_max_files
            .or(file.log_max_files.map(u32::from))
            .unwrap_or(LogSpec::MAX_FILES),
        metrics,
        web: web.map(|endpoint| Web { endpoint, hosts }),
        definitions,
        reload: loaded
            .map(|loaded| Reload { loaded, set_level: fixed.is_none().then_some(set_level) }),
    };
    // As a text: it says its causes itself, and `fail` would say them again.
    holdfast_daemon::serve(config).await.map_err(|error| anyhow!("{error}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Starts this program over among those of the user's systemd, if a user has started it after a login: only there
/// containers can have cgroups. That systemd has to outlast the session, as the containers do. Where this fails, the
/// daemon goes on in the session.
fn leave_session() {
    let uid = nix::unistd::geteuid();
    // On a machine with cgroups of version 1, this is not the first line.
    let session = format!("0::/user.slice/user-{uid}.slice/session-");
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if uid.is_root() || !cgroup.starts_with(&session) {
        return;
    }
    let quiet = |command: &mut process::Command| {
        command.stdin(process::Stdio::null()).stderr(process::Stdio::null()).output()
    };
    let mut lingers = process::Command::new("loginctl");
    lingers.args(["show-user", &uid.to_string(), "--property=Linger", "--value"]);
    if !quiet(&mut lingers).is_ok_and(|output| output.stdout == b"yes\n") {
        return;
    }
    let in_scope = |program: &OsStr| {
        let mut command = process::Command::new("systemd-run");
        command.args(["--user", "--scope", "--quiet", "--collect", "--no-ask-password", "--"]);
        command.arg(program);
        command
    };
    if quiet(&mut in_scope("true".as_ref())).is_ok_and(|output| output.status.success())
        && let Ok(program) = std::env::current_exe()
    {
        // It returns only if it fails.
        let _ = in_scope(program.as_os_str()).args(std::env::args_os().skip(1)).exec();
    }
}

/// Returns an address on TCP, if there is one. It needs a token.
fn endpoint(
    flag: &str,
    address: Option<SocketAddr>,
    token: Option<PathBuf>,
) -> anyhow::Result<Option<Endpoint>> {
    match (address, token) {
        (None, _) => Ok(None),
        (Some(address), Some(token)) => Ok(Some(Endpoint { address, token: Token::new(token) })),
        (Some(_), None) => bail!(
            "{flag} needs {flag}-token FILE: other users and containers with the host's network \
             reach a TCP port, loopback too"
        ),
    }
}

/// Reads the configuration file that was named, or the usual one if it is there.
fn load(named: Option<&Path>) -> anyhow::Result<Option<Loaded>> {
    let path = match named {
        Some(path) => absolute(path.to_owned())?,
        None => match places::config().filter(|path| path.exists()) {
            Some(path) => path,
            None => return Ok(None),
        },
    };
    Loaded::read(&path).map(Some).map_err(anyhow::Error::msg)
}

/// Begins to log, and returns what changes the level.
fn init_log(level: Option<&str>, format: LogFormat) -> anyhow::Result<SetLevel> {
    let parse = |level: Option<&str>| {
        let level = level.unwrap_or(LEVEL);
        EnvFilter::try_new(level).map_err(|error| format!("log level {level:?}: {error}"))
    };
    let (filter, handle) = reload::Layer::new(parse(level).map_err(anyhow::Error::msg)?);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(|| streams::Log).with_target(false);
    match format {
        LogFormat::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
    Ok(Box::new(move |level| {
        let filter = parse(level)?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}
