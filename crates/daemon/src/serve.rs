//! The daemon from start to end.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::middleware;
use futures::FutureExt;
use holdfast_policies::{Backoff, Definitions, HealthChecks, Restarts};
use holdfast_supervisor::{GroupName, Limit, Supervisor};
use holdfast_sys::resource;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::connections::{self, SHUTDOWN_LIMIT};
use crate::endpoint::{self, Endpoint};
use crate::metrics::Metrics;
use crate::reload::{self, Reload, SharedDefaults};
use crate::routes::only_reads;
use crate::routes::{Shared, router};
use crate::signals::Signals;
use crate::socket::{self, Access, Socket};
use crate::systemd::{self, Manager};
use crate::web::{self, Web};

/// What the daemon is started with.
#[derive(Debug)]
pub struct Config {
    /// The state root.
    pub root: PathBuf,
    /// The socket's path.
    pub address: PathBuf,
    /// The default runtime, by name or path.
    pub runtime: Option<String>,
    /// The shim's executable, if it is not where it is looked for.
    pub shim: Option<PathBuf>,
    /// The group of containers that name none.
    pub shim_group: Option<GroupName>,
    /// How many shims are kept ready for containers to come.
    pub spare_shims: usize,
    /// The size in bytes of the files of a log that does not say so itself; 0 for no bound.
    pub log_max_size: u64,
    /// How many files such a log has.
    pub log_max_files: u32,
    /// Where metrics are served on TCP; the socket serves them always.
    pub metrics: Option<Endpoint>,
    /// Where the web page is served.
    pub web: Option<Web>,
    /// A second socket, which answers only requests that change nothing.
    pub read_only: Option<ReadOnly>,
    /// Where the definitions of containers are kept that outlive a reboot; no other daemon may have the
    /// same directory. `None` if none does.
    pub definitions: Option<PathBuf>,
    /// What SIGHUP reads again; `None` if there is no configuration file.
    pub reload: Option<Reload>,
}

/// The read-only socket.
#[derive(Debug, Clone)]
pub struct ReadOnly {
    /// Its path.
    pub address: PathBuf,
    /// The group that may connect, by name or number; root alone if this is `None`.
    pub group: Option<String>,
}

impl ReadOnly {
    async fn bind(&self) -> io::Result<Socket> {
        let group = self.group.as_deref().map(socket::group).transpose()?;
        Socket::bind(&self.address, Access::Group(group)).await
    }
}

/// The daemon can't start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The supervisor said no.
    #[error(transparent)]
    Supervisor(#[from] holdfast_supervisor::Error),
    /// The socket can't be had.
    #[error("socket {path}: {source}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Metrics or the web page can't be served on TCP.
    #[error("{what} on {address} with the token in {token}: {source}")]
    Tcp {
        /// Which of them.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The file of the token.
        token: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The definitions can't be kept.
    #[error("definitions in {path}: {source}")]
    Definitions {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Hosts containers until SIGTERM, SIGINT or SIGQUIT. They run on afterwards.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    // First of all: a signal during the start must not end it unseen either.
    let mut signals = Signals::begin()?;
    let definitions = config.definitions.as_deref().map(|path| {
        let failed = |source| ServeError::Definitions { path: path.to_owned(), source };
        Definitions::open(path).map_err(failed)
    });
    let definitions = definitions.transpose()?;

    let nofile = resource::raise_open_files().inspect_err(|error| {
        tracing::warn!(%error, "limit of open files not raised");
    });
    let mut builder = Supervisor::builder(&config.root)
        .container_nofile(nofile.ok())
        .shim_group(config.shim_group)
        .spare_shims(config.spare_shims)
        .log_rotation(Some(config.log_max_size).filter(|size| *size > 0), config.log_max_files)
        .subreaper();
    if let Some(runtime) = &config.runtime {
        builder = builder.runtime(runtime);
    }
    if let Some(shim) = &config.shim {
        builder = builder.shim(shim);
    }
    let manager = Manager::find().unwrap_or_else(|error| {
        // The variable may be left from another service, and nothing else depends on it.
        tracing::warn!(%error, "NOTIFY_SOCKET is of no use: no service manager is told, nor keeps descriptors");
        None
    });
    let manager = manager.map(Arc::new);
    let inherited = systemd::inherited();
    if let Some(manager) = &manager {
        builder = builder.keeper(manager.clone(), inherited.kept);
    }
    // A task of its own, because its first steps don't yield.
    let supervisor = tokio::select! {
        opened = tokio::spawn(builder.open()) => opened.map_err(io::Error::other)??,
        signal = signals.end() => {
            // Whoever opens the state root next goes on with what this leaves half done.
            tracing::info!("{signal} during the restore: going down, containers run on");
            return Ok(());
        }
    };
    let report = supervisor.restore_report();
    tracing::info!(
        root = %supervisor.root().display(),
        containers = report.containers,
        problems = report.problems.len(),
        elapsed = ?report.elapsed,
        "restored"
    );
    if let Some(limit) = supervisor.limits().first() {
        let Limit { of, most, containers, raise, .. } = limit;
        tracing::info!(containers, limit = %of, most, raise, "room");
    }
    let read_only = match (inherited.read_only, &config.read_only) {
        (Some(listener), _) => Some(Socket::inherit(listener, Access::Group(None))?),
        (None, None) => None,
        (None, Some(read_only)) => {
            let failed = |source| ServeError::Socket { path: read_only.address.clone(), source };
            Some(read_only.bind().await.map_err(failed)?)
        }
    };
    let (socket, address) = match inherited.socket {
        Some(listener) => {
            let address = listener.local_addr()?.as_pathname().map(Path::to_owned);
            let address = address.unwrap_or_else(|| config.address.clone());
            (Socket::inherit(listener, Access::Owner)?, address)
        }
        None => {
            let failed = |source| ServeError::Socket { path: config.address.clone(), source };
            let socket = Socket::bind(&config.address, Access::Owner).await.map_err(failed)?;
            (socket, config.address)
        }
    };
    tracing::info!(address = %address.display(), "listening");
    let metrics_listener = match &config.metrics {
        None => None,
        Some(endpoint) => Some(listen("metrics", endpoint).await?),
    };
    let web_listener = match &config.web {
        None => None,
        Some(web) => Some(listen("web page", &web.endpoint).await?),
    };
    if let Some(manager) = &manager
        && let Err(error) = manager.ready()
    {
        tracing::warn!(%error, "the service manager is not told that the daemon is ready");
    }

    let metrics = Arc::new(Metrics::begin(&supervisor));
    let (of, backoff) = (supervisor.clone(), Backoff::default());
    let restarts = Arc::new(match definitions {
        Some(definitions) => Restarts::begin_with(of, backoff, definitions).await,
        None => Restarts::begin(of, backoff),
    });
    let checks = Arc::new(HealthChecks::begin(&restarts));
    let defaults = SharedDefaults::of(config.reload.as_ref());
    let mut chores = JoinSet::new();
    chores.spawn(reload::follow(
        config.reload,
        signals.hangups.clone(),
        defaults.clone(),
        manager.clone(),
    ));
    chores.spawn(systemd::check_kill_mode());
    if let (Some(manager), Some(pause)) = (manager.clone(), systemd::watchdog()) {
        chores.spawn(report_health(manager, pause, address));
    }
    let shared = Shared { supervisor: supervisor.clone(), restarts, checks, metrics, defaults };

    let stopping = supervisor.clone();
    let stop = async move {
        let signal = signals.end().await;
        tracing::info!("{signal}: going down, containers run on");
        if let Some(manager) = manager {
            // It is of no use to us.
            let _ = manager.stopping();
        }
        // Ends waits and streams, which would hold the server up for ever.
        stopping.stop();
    };
    let stop = stop.boxed().shared();
    let router = router(shared.clone());
    let monitored = async {
        if let Some(socket) = read_only {
            let router = router.clone().layer(middleware::from_fn(only_reads));
            connections::serve(socket, router, stop.clone(), connections::READERS).await;
        }
    };
    let measured = async {
        if let (Some(listener), Some(endpoint)) = (metrics_listener, config.metrics) {
            let router = endpoint::metrics_router(endpoint, shared);
            connections::serve(listener, router, stop.clone(), connections::METRICS).await;
        }
    };
    let watched = async {
        if let (Some(listener), Some(web)) = (web_listener, config.web) {
            let router = web::router(web, router.clone());
            connections::serve(listener, router, stop.clone(), connections::WEB).await;
        }
    };
    let all = connections::serve(socket, router.clone(), stop.clone(), connections::OWNERS);
    tokio::join!(all, monitored, measured, watched);
    drop(chores);
    let _ = tokio::time::timeout(SHUTDOWN_LIMIT, supervisor.shutdown()).await;
    Ok(())
}

/// Tells the service manager that a client would be answered, for as long as that is so.
async fn report_health(manager: Arc<Manager>, pause: Duration, address: PathBuf) {
    loop {
        if socket::is_answered(&address).await
            && let Err(error) = manager.alive()
        {
            tracing::warn!(%error, "the service manager is not told that we are well");
        }
        tokio::time::sleep(pause).await;
    }
}

async fn listen(what: &'static str, endpoint: &Endpoint) -> Result<TcpListener, ServeError> {
    let Endpoint { address, token } = endpoint.clone();
    let failed = |source| ServeError::Tcp { what, address, token: token.path().to_owned(), source };
    let listener = endpoint.bind().await.map_err(failed)?;
    // The port is known only now if the one asked for was 0.
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "{what}");
    }
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "the {what} and its token are not encrypted on the network");
    }
    Ok(listener)
}
