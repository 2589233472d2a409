//! The web page as HTTP clients see it; browser.rs has it in a browser.

use std::fs;
use std::net::SocketAddr;

use holdfast_tests::http::{Answer, ask};
use holdfast_tests::{Holdfast, eventually, soon};
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOKEN: &str = "0123456789abcdef";

/// Starts a daemon with the page, and returns its address.
async fn start(holdfast: &mut Holdfast, args: &[&str]) -> SocketAddr {
    let token = holdfast.scratch.path().join("web-token");
    fs::write(&token, TOKEN).expect("write the token");
    let token = format!("--web-token={}", token.display());
    let flags = ["--web=127.0.0.1:0", &token];
    holdfast.start_daemon_by(|daemon| _ = daemon.args(flags).args(args)).await;
    let address = || {
        let log = holdfast.daemon_log();
        let line = log.lines().find(|line| line.contains("web page address="))?;
        line.rsplit("address=").next()?.trim().parse().ok()
    };
    eventually("the address of the page", || address().is_some()).await;
    address().expect("an address")
}

async fn send(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let stream = TcpStream::connect(to).await.expect("connect");
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    ask(stream, request.body(Full::default()).expect("a request")).await
}

const HOST: (&str, &str) = ("host", "localhost");
const RIGHT: (&str, &str) = ("authorization", "Bearer 0123456789abcdef");

#[tokio::test]
async fn the_page_is_for_everybody_and_what_it_shows_for_who_has_the_token() {
    let mut holdfast = Holdfast::without_daemon();
    let refused = holdfast.fails(1, &["daemon", "--web", "127.0.0.1:0"]).await;
    assert!(refused.contains("--web-token"), "{refused}");
    let at = start(&mut holdfast, &[]).await;
    let id = holdfast.run_detached(&[], &["sh", "-c", "echo secret; sleep 100000"]).await;
    holdfast.said(&id, "secret").await;

    let page = send(at, "GET", "/", &[HOST]).await;
    assert!(page.status == 200 && page.text().contains("<title>Holdfast"), "{page:?}");
    let script = send(at, "GET", "/main.js", &[HOST]).await;
    assert!(script.header("content-type").starts_with("text/javascript"), "{script:?}");

    for path in [
        "/v1/info",
        "/v1/containers",
        "/v1/events",
        "/metrics",
        &format!("/v1/containers/{id}/logs"),
    ] {
        for wrong in ["", "Bearer 0123456789abcdeX", "Bearer", "Basic MDEyMzQ1Njc4OWFiY2RlZg=="] {
            let answer = send(at, "GET", path, &[HOST, ("authorization", wrong)]).await;
            assert_eq!(answer.status, 401, "{path}: {answer:?}");
            assert_eq!(answer.json()["kind"], "forbidden", "{path}");
            assert!(!answer.text().contains("secret"), "{answer:?}");
        }
    }
    // A token in the address would end in histories and logs.
    let answer = send(at, "GET", &format!("/v1/info?token={TOKEN}"), &[HOST]).await;
    assert_eq!(answer.status, 401, "{answer:?}");
    let all = send(at, "GET", "/v1/containers", &[HOST, RIGHT]).await;
    assert!(all.status == 200 && all.json()[0]["id"] == id, "{all:?}");
    let logs = send(at, "GET", &format!("/v1/containers/{id}/logs"), &[HOST, RIGHT]).await;
    assert!(logs.status == 200 && logs.text().contains("secret"), "{logs:?}");
    // A new token counts at once.
    fs::write(holdfast.scratch.path().join("web-token"), "fedcba9876543210").expect("write");
    assert_eq!(send(at, "GET", "/v1/info", &[HOST, RIGHT]).await.status, 401);
    holdfast.close().await;
}

#[tokio::test]
async fn nothing_can_be_changed_through_the_page() {
    let mut holdfast = Holdfast::without_daemon();
    let at = start(&mut holdfast, &[]).await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    for (method, path) in [
        ("POST", format!("/v1/containers/{id}/kill")),
        ("POST", format!("/v1/containers/{id}/stop")),
        ("POST", "/v1/containers".to_owned()),
        ("POST", "/v1/run".to_owned()),
        ("DELETE", format!("/v1/containers/{id}?force=true")),
        ("OPTIONS", format!("/v1/containers/{id}")),
        ("PUT", format!("/v1/containers/{id}")),
        // It ends the wait of an automatic deletion.
        ("GET", format!("/v1/containers/{id}/attach")),
    ] {
        let answer = send(at, method, &path, &[HOST, RIGHT]).await;
        assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
        assert!(answer.text().contains("read-only"), "{answer:?}");
    }
    let answer = send(at, "POST", "/", &[HOST, RIGHT]).await;
    assert!(answer.status == 405 && answer.json()["kind"] == "invalid", "{answer:?}");
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_refused() {
    let mut holdfast = Holdfast::without_daemon();
    let at = start(&mut holdfast, &["--web-host=box.example", "--web-host", "other.example"]).await;
    for host in ["127.0.0.1", "[::1]:80", "localhost:1", "box.example", "OTHER.example:8080"] {
        let answer = send(at, "GET", "/v1/info", &[("host", host), RIGHT]).await;
        assert_eq!(answer.status, 200, "{host}: {answer:?}");
    }
    for host in ["evil.example", "box.example.evil.example", "x.localhost", ""] {
        for path in ["/", "/main.js", "/v1/info"] {
            let answer = send(at, "GET", path, &[("host", host), RIGHT]).await;
            assert_eq!(answer.status, 421, "{host}: {answer:?}");
            assert_eq!(answer.json()["kind"], "forbidden");
        }
    }
    let whole = send(at, "GET", "http://evil.example/v1/info", &[HOST, RIGHT]).await;
    assert_eq!(whole.status, 421, "{whole:?}");
    let answer = send(at, "GET", "/v1/info", &[RIGHT]).await;
    assert_eq!(answer.status, 421, "without a host: {answer:?}");
    holdfast.close().await;
}

#[tokio::test]
async fn every_answer_has_the_headers_that_keep_a_page_to_itself() {
    let mut holdfast = Holdfast::without_daemon();
    let at = start(&mut holdfast, &[]).await;
    let evil = ("host", "evil.example");
    for (path, headers, status) in [
        ("/", &[HOST][..], 200),
        ("/api.js", &[HOST], 200),
        ("/v1/info", &[HOST, RIGHT], 200),
        ("/v1/info", &[HOST], 401),
        ("/v1/containers/none", &[HOST, RIGHT], 404),
        ("/", &[evil], 421),
    ] {
        let answer = send(at, "GET", path, headers).await;
        assert_eq!(answer.status, status, "{path}");
        let policy = answer.header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.split("; ").any(|found| found == part), "{path}: {part}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert_eq!(answer.header("cache-control"), "no-store");
        let headers = [headers, &[("origin", "http://evil.example")]].concat();
        let answer = send(at, "GET", path, &headers).await;
        let allowed = answer.headers.keys().any(|name| name.as_str().contains("allow-origin"));
        assert!(!allowed, "{path}");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn no_path_leads_to_other_files() {
    let mut holdfast = Holdfast::without_daemon();
    let at = start(&mut holdfast, &[]).await;
    for path in [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/main.js/../../etc/passwd",
        "/index.html%00",
        "/v1/containers/..%2f..%2fetc/details",
        "/v1/containers/%2e%2e/logs",
        "/v1/../../etc/passwd",
    ] {
        // Byte for byte: a library may tidy the path.
        let mut stream = TcpStream::connect(at).await.expect("connect");
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("receive");
        let status = answer.split(' ').nth(1).expect("a status");
        assert!(["400", "404"].contains(&status), "{path}: {answer}");
        assert!(!answer.contains("root:"), "{path}: {answer}");
    }
    holdfast.close().await;
}

/// Strangers can hold each place for ten seconds only, so the page comes back by itself.
#[tokio::test]
async fn strangers_that_say_nothing_or_have_no_token_do_not_keep_their_places() {
    let mut holdfast = Holdfast::without_daemon();
    let at = start(&mut holdfast, &[]).await;
    let mut silent = Vec::new();
    for number in 0..80 {
        let mut stream = TcpStream::connect(at).await.expect("connect");
        if number % 2 == 0 {
            stream.write_all(b"GET /v1/info HTTP/1.1\r\nhost: localhost\r\n").await.expect("send");
        }
        silent.push(stream);
    }
    // Behind all of them, in the backlog.
    let answer = send(at, "GET", "/v1/info", &[HOST, RIGHT]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    drop(silent);
    // None of these asks for its connection to be closed.
    for (request, status) in [
        ("GET / HTTP/1.1\r\nhost: localhost", "200"),
        ("POST / HTTP/1.1\r\nhost: localhost", "405"),
        ("GET /v1/info HTTP/1.1\r\nhost: localhost", "401"),
        ("GET / HTTP/1.1\r\nhost: evil.example", "421"),
    ] {
        let mut stream = TcpStream::connect(at).await.expect("connect");
        stream.write_all(format!("{request}\r\n\r\n").as_bytes()).await.expect("send");
        let mut answer = String::new();
        soon("the end", stream.read_to_string(&mut answer)).await.expect("receive");
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request}: {answer}");
        // And not after the ten seconds.
        assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    }
    holdfast.close().await;
}
