//! Addresses on TCP, for clients on other machines or in a browser. Whoever has the token is served.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpListener;

use crate::api::{ErrorBody, ErrorKind};
use crate::error::Failure;
use crate::metrics;
use crate::routes::{Answer, Shared};

/// A shorter token, in bytes, is refused: it could be guessed.
const SHORTEST: usize = 16;
/// After so many seconds without a sign of life, a peer is gone.
const SILENT: u32 = 60;

/// An address on TCP, and who is served there.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The address to listen on.
    pub address: SocketAddr,
    /// The token that clients have to send.
    pub token: Token,
}

impl Endpoint {
    /// Listens, if there is a token.
    pub(crate) async fn bind(&self) -> io::Result<TcpListener> {
        self.token.read().await?;
        let listener = TcpListener::bind(self.address).await?;
        // Connections inherit these. A stream that has nothing to send would never find out that its peer is
        // gone, and keep its place for ever.
        let socket = listener.as_fd();
        setsockopt(&socket, sockopt::KeepAlive, &true)?;
        setsockopt(&socket, sockopt::TcpKeepIdle, &SILENT)?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &(SILENT * 1000))?;
        // A stream sends small pieces, each at once.
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
        Ok(listener)
    }
}

/// A file that contains a bearer token. It is read for each request, so it may be replaced.
#[derive(Debug, Clone)]
pub struct Token(PathBuf);

impl Token {
    /// The token in this file.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    async fn read(&self) -> io::Result<String> {
        let token = tokio::fs::read_to_string(&self.0).await?;
        let token = token.trim().to_owned();
        if token.len() < SHORTEST {
            let text = format!("a token needs {SHORTEST} characters at least");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(token)
    }

    /// Whether a request with these headers has the token.
    async fn is_in(&self, headers: &HeaderMap) -> Answer<bool> {
        let token = self.read().await.map_err(|error| {
            let text = format!("the token {}: {error}", self.0.display());
            Failure::new(ErrorKind::Internal, text)
        })?;
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        Ok(same(given.as_bytes(), token.as_bytes()))
    }
}

/// Refuses a request without the token, and closes its connection: strangers have few places.
pub(crate) async fn only_with_token(
    State(token): State<Token>,
    request: Request,
    next: Next,
) -> Response {
    match token.is_in(request.headers()).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let message = "a bearer token is needed, and this is none".to_owned();
            let body = ErrorBody { kind: ErrorKind::Forbidden, message };
            let headers = [(header::WWW_AUTHENTICATE, "Bearer"), (header::CONNECTION, "close")];
            (StatusCode::UNAUTHORIZED, headers, Json(body)).into_response()
        }
        Err(failure) => failure.into_response(),
    }
}

/// The metrics, and nothing else.
pub(crate) fn metrics_router(endpoint: Endpoint, shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics::show))
        .layer(middleware::from_fn_with_state(endpoint.token, only_with_token))
        .fallback(async || Failure::new(ErrorKind::NotFound, "only /metrics is here"))
        .with_state(shared)
}

/// Compares in a time that does not depend on how much is equal.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_equal_token_is_the_same() {
        assert!(same(b"abc", b"abc") && same(b"", b""));
        assert!(!same(b"abc", b"abd") && !same(b"ab", b"abc") && !same(b"", b"a"));
    }
}
