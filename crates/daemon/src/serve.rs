//! The daemon from start to end.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use holdfast_supervisor::{GroupName, Limit, Supervisor};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use thiserror::Error;

use crate::body::give_back_soon;
use crate::routes::router;
use crate::signals::Signals;
use crate::socket::Socket;
use crate::systemd::{self, Manager};

/// How long open requests may take to end when the daemon does. What they asked for is finished or
/// taken up by the next daemon in any case.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// How long a client may take to send the head of a request, also between two requests.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// After so many connections, their memory is given back.
const MANY: usize = 256;

/// What the daemon is started with.
#[derive(Debug, Clone)]
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
}

/// The daemon can't start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// It would start, and then fail at each container.
    #[error(
        "a daemon has to be run by root, and this is user {uid}: to run as a plain user is not \
         supported yet; try sudo"
    )]
    NotRoot {
        /// The effective user id.
        uid: u32,
    },
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
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Hosts containers until SIGTERM, SIGINT or SIGQUIT. They run on afterwards.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    // First of all: a signal during the start must not end it unseen either.
    let mut signals = Signals::begin()?;
    let user = nix::unistd::geteuid();
    if !user.is_root() {
        return Err(ServeError::NotRoot { uid: user.as_raw() });
    }

    let mut builder = Supervisor::builder(&config.root)
        .container_nofile(raise_nofile())
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
    if let Some(manager) = &manager {
        builder = builder.keeper(manager.clone(), systemd::kept());
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
    let socket = Socket::bind(&config.address)
        .await
        .map_err(|source| ServeError::Socket { path: config.address.clone(), source })?;
    tracing::info!(address = %config.address.display(), "listening");
    if let Some(manager) = manager {
        manager.ready()?;
    }

    let stopping = supervisor.clone();
    let stop = async move {
        let signal = signals.end().await;
        tracing::info!("{signal}: going down, containers run on");
        // Ends waits and streams, which would hold the server up for ever.
        stopping.stop();
    };
    serve_connections(socket, router(supervisor.clone()), stop).await;
    let _ = tokio::time::timeout(SHUTDOWN_LIMIT, supervisor.shutdown()).await;
    Ok(())
}

/// Serves connections until `stop` says so, and then what has been asked for, for a while.
async fn serve_connections(mut socket: Socket, router: Router, stop: impl Future<Output = ()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    let service = TowerToHyperService::new(router);
    let connections = GracefulShutdown::new();
    let ended = Arc::new(AtomicUsize::new(0));
    let mut stop = pin!(stop);
    loop {
        let peer = tokio::select! {
            () = &mut stop => break,
            accepted = socket.accept() => accepted,
        };
        let connection = http.serve_connection(TokioIo::new(peer), service.clone());
        let (connection, ended) = (connections.watch(connection), ended.clone());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            // Each has had buffers, and the allocator would keep them.
            if ended.fetch_add(1, Ordering::Relaxed) % MANY == MANY - 1 {
                give_back_soon(usize::MAX);
            }
        });
    }
    drop(socket);
    // A client that reads nothing must not keep the daemon.
    let _ = tokio::time::timeout(SHUTDOWN_LIMIT, connections.shutdown()).await;
}

/// Four or five descriptors a container are soon more than the usual soft limit of 1,024. Raises it
/// as far as allowed and returns what it was, which is what containers get.
fn raise_nofile() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!(soft, hard, %error, "limit of open files not raised");
    }
    Some(soft)
}
