//! Connections of clients: how many, and for how long.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;

use crate::body::give_back_soon;

/// How long open requests may take to end when the daemon does. What they asked for is finished or
/// taken up by the next daemon in any case.
pub(crate) const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// After so many connections, their memory is given back.
const MANY: usize = 256;

/// What the connections of a listener are allowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How many there may be at the same time. Beyond, clients wait in the backlog of the kernel.
    most: usize,
    /// How long a client may take to send the head of a request, also between two requests.
    head: Duration,
    /// The most bytes that are read ahead, so the longest head too.
    buffer: usize,
    /// How long a connection may last.
    whole: Option<Duration>,
}

/// On the daemon's own socket.
pub(crate) const OWNERS: Limits = Limits {
    most: Semaphore::MAX_PERMITS,
    head: Duration::from_secs(30),
    buffer: 400 * 1024,
    whole: None,
};

/// On the read-only socket: who may connect there is trusted less.
pub(crate) const READERS: Limits = Limits { most: 64, ..OWNERS };

/// On TCP anybody may connect, and has shown no token yet.
pub(crate) const WEB: Limits =
    Limits { most: 64, head: Duration::from_secs(10), buffer: 32 * 1024, whole: None };

/// As [`WEB`]; there are no streams.
pub(crate) const METRICS: Limits = Limits { most: 32, whole: Some(Duration::from_secs(60)), ..WEB };

/// Serves connections until `stop` says so, and then what has been asked for, for a while.
pub(crate) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    stop: impl Future<Output = ()>,
    limits: Limits,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(limits.buffer);
    let service = TowerToHyperService::new(router);
    let connections = GracefulShutdown::new();
    let ended = Arc::new(AtomicUsize::new(0));
    // Never closed, so a permit is always there in the end.
    let room = Arc::new(Semaphore::new(limits.most));
    let mut stop = pin!(stop);
    loop {
        let accept = async { (room.clone().acquire_owned().await, listener.accept().await) };
        let (permit, (stream, _)) = tokio::select! {
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        let (connection, ended) = (connections.watch(connection), ended.clone());
        tokio::spawn(async move {
            let whole = limits.whole.unwrap_or(Duration::MAX);
            if let Ok(Err(error)) = tokio::time::timeout(whole, connection).await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
            // Each has had buffers, and the allocator would keep them.
            if ended.fetch_add(1, Ordering::Relaxed) % MANY == MANY - 1 {
                give_back_soon(usize::MAX);
            }
        });
    }
    drop(listener);
    // A client that reads nothing must not keep the daemon.
    let _ = tokio::time::timeout(SHUTDOWN_LIMIT, connections.shutdown()).await;
}
