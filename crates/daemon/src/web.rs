//! The web page: a view of all containers in a browser, which changes nothing.
//!
//! The page itself is a few files without any secret. What it shows, it asks the API for with GET requests, as the
//! read-only socket answers them, and with the token in a header.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::api::ErrorKind;
use crate::endpoint::{Endpoint, only_with_token};
use crate::error::Failure;
use crate::routes::only_reads;

/// Where the web page is served, and to whom.
#[derive(Debug, Clone)]
pub struct Web {
    /// The address and the token.
    pub endpoint: Endpoint,
    /// The names by which browsers may reach it, beside `localhost` and numeric addresses.
    pub hosts: Vec<String>,
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files of the page: path, media type, content.
const FILES: [(&str, &str, &str); 9] = [
    ("/", HTML, include_str!("web/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("web/style.css")),
    ("/main.js", SCRIPT, include_str!("web/main.js")),
    ("/api.js", SCRIPT, include_str!("web/api.js")),
    ("/details.js", SCRIPT, include_str!("web/details.js")),
    ("/output.js", SCRIPT, include_str!("web/output.js")),
    ("/table.js", SCRIPT, include_str!("web/table.js")),
    ("/text.js", SCRIPT, include_str!("web/text.js")),
    ("/timeline.js", SCRIPT, include_str!("web/timeline.js")),
];

/// Only the page's own files run, and only as files: no markup that gets into it by mistake can run anything,
/// load anything or send anything elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// What each answer has.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Serves the page, and to who has the token what `api` reads.
pub(crate) fn router(web: Web, api: Router) -> Router {
    let api = api
        .layer(middleware::from_fn(only_reads))
        .layer(middleware::from_fn_with_state(web.endpoint.token, only_with_token));
    let mut router = Router::new();
    for (path, kind, content) in FILES {
        router = router.route(path, get(async move || ([(header::CONTENT_TYPE, kind)], content)));
    }
    router
        .method_not_allowed_fallback(async || {
            Failure::new(ErrorKind::Invalid, "the page takes GET only")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(middleware::map_response(closing))
        .fallback_service(api)
        .layer(middleware::from_fn_with_state(Arc::new(web.hosts), only_known_hosts))
        .layer(middleware::map_response(with_headers))
}

/// Strangers have few places: who has asked for something without a token makes room for others.
async fn closing(mut answer: Response) -> Response {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

async fn with_headers(mut answer: Response) -> Response {
    for (name, value) in HEADERS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Refuses a request by a name that is not ours. A page of somebody else's may have its own name point to this
/// address (DNS rebinding); the browser then takes both for the same site.
async fn only_known_hosts(
    State(names): State<Arc<Vec<String>>>,
    request: Request,
    next: Next,
) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    // A name in the request line counts more than the header.
    let host = request.uri().authority().map(|authority| authority.as_str()).or(host);
    if host.is_some_and(|host| is_known(host, &names)) {
        return next.run(request).await;
    }
    let message = "this address is not served by this name; --web-host NAME allows one";
    let failure =
        Failure::new(ErrorKind::Forbidden, message).with_status(StatusCode::MISDIRECTED_REQUEST);
    closing(failure.into_response()).await
}

/// Whether a host, with or without a port, is a numeric address, `localhost` or one of these names.
fn is_known(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _port)) => return address.parse::<IpAddr>().is_ok(),
        None => host.split_once(':').map_or(host, |(name, _port)| name),
    };
    let known = |known: &str| name.eq_ignore_ascii_case(known);
    name.parse::<IpAddr>().is_ok() || known("localhost") || names.iter().any(|name| known(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_by_number_or_by_their_whole_name() {
        let names = ["box.example".to_owned()];
        for host in ["127.0.0.1", "10.0.0.1:80", "[::1]:8080", "localhost:1", "BOX.example:8080"] {
            assert!(is_known(host, &names), "{host}");
        }
        for host in [
            "",
            ":80",
            "evil.example",
            "evil.box.example",
            "127.0.0.1.example",
            "[evil]",
            "x@127.0.0.1",
        ] {
            assert!(!is_known(host, &names), "{host}");
        }
    }
}
