//! The HTTP API, as a program of another language sees it: each failure has a body that says its kind.

use holdfast_tests::{Holdfast, soon, unique_id};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

async fn json_of(holdfast: &Holdfast, line: &str, body: &str) -> (u16, Value) {
    let (status, body) = holdfast.ask(line, body).await;
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{line}: {error}: {body}")))
}

/// At 91d2b83 these answered with plain text, or did what was not asked.
#[tokio::test]
async fn whatever_is_wrong_with_a_request_the_answer_says_so_in_one_form() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let path = |rest: &str| format!("/v1/containers/{id}{rest}");
    let cases = [
        ("GET", path("/logs?tail=abc"), "", 400, "invalid"),
        ("GET", path("/logs?tial=1"), "", 400, "invalid"),
        ("GET", "/v1/containers/%ff%fe".to_owned(), "", 400, "invalid"),
        ("GET", "/v1/containers/a%20b".to_owned(), "", 400, "invalid"),
        ("PUT", path(""), "", 405, "invalid"),
        ("DELETE", path("?Force=yes"), "", 400, "invalid"),
        ("DELETE", path("?force=yes"), "", 400, "invalid"),
        ("GET", "/v1/events?since=7".to_owned(), "", 400, "invalid"),
        ("GET", "/v1/events?replay=true&since=0123456789abcdef:1".to_owned(), "", 400, "invalid"),
        ("GET", "/v1/nothing".to_owned(), "", 404, "not-found"),
        ("GET", "/v1/containers/never-there".to_owned(), "", 404, "not-found"),
        ("GET", path("/wait?process=never-there"), "", 404, "not-found"),
        ("DELETE", path("/processes/never-there"), "", 404, "not-found"),
        ("POST", path("/kill"), "{", 400, "invalid"),
        ("POST", path("/kill"), "{\"signal\":\"HUP\"}", 422, "invalid"),
        ("DELETE", path(""), "", 409, "wrong-state"),
    ];
    for (method, path, body, status, kind) in cases {
        let line = format!("{method} {path}");
        let (got, answer) = json_of(&holdfast, &line, body).await;
        assert_eq!((got, &answer["kind"]), (status, &json!(kind)), "{line}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|text| text.len() > 10), "{line}: {answer}");
    }
    // What the mistakes did not do.
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn a_program_that_is_missing_or_cannot_be_executed_is_the_callers_mistake() {
    let holdfast = Holdfast::start().await;
    for (program, kind) in [("/no/such/program", "command-not-found"), ("/bin", "not-executable")] {
        let request = json!({
            "id": unique_id("missing").to_string(),
            "bundle": holdfast.scratch.bundle(),
            "args": [program],
        });
        let (status, answer) =
            json_of(&holdfast, "POST /v1/containers", &request.to_string()).await;
        // `create` finds out with some runtimes, `start` with others.
        if status == 201 {
            let id = answer["id"].as_str().expect("an id");
            let (status, answer) =
                json_of(&holdfast, &format!("POST /v1/containers/{id}/start"), "null").await;
            assert_eq!((status, &answer["kind"]), (400, &json!(kind)), "{answer}");
        } else {
            assert_eq!((status, &answer["kind"]), (400, &json!(kind)), "{answer}");
        }
    }
    holdfast.close().await;
}

/// At 91d2b83 a client that had closed its sending side, as `printf … | nc -U` does, lost its stream; and one
/// that sent nothing kept its connection for ever.
#[tokio::test]
async fn who_has_sent_its_request_and_closed_that_side_is_answered() {
    let holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let id = holdfast.run_detached(&[], &["sh", "-c", &gate.script("true")]).await;
    let mut stream =
        UnixStream::connect(holdfast.root().join("holdfast.sock")).await.expect("connect");
    let head = format!("GET /v1/containers/{id}/wait HTTP/1.1\r\nhost: holdfast\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("send");
    stream.shutdown().await.expect("close one side");
    gate.open(3);
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.expect("receive");
    assert!(answer.contains("{\"code\":3}"), "{answer}");
    holdfast.close().await;
}

/// Seen while this was built: a daemon that takes the end of the input for a closed sending side never finds out
/// that its client has died.
#[tokio::test]
async fn a_client_that_dies_in_the_middle_of_a_stream_leaves_nothing_in_the_daemon() {
    let mut holdfast = Holdfast::without_daemon();
    // A spare shim has a socket, whenever it comes.
    holdfast.start_daemon_by(|daemon| _ = daemon.arg("--spare-shims=0")).await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let pid = holdfast.daemon().process().pid;
    let sockets = || {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    let before = sockets();
    let mut clients = Vec::new();
    for half_closed in [false, true] {
        for path in ["events?replay=true".to_owned(), format!("containers/{id}/wait")] {
            let socket = holdfast.root().join("holdfast.sock");
            let mut stream = UnixStream::connect(socket).await.expect("connect");
            let head = format!("GET /v1/{path} HTTP/1.1\r\nhost: holdfast\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("send");
            if half_closed {
                stream.shutdown().await.expect("close one side");
            }
            clients.push(stream);
        }
    }
    holdfast_tests::eventually("all to be served", || sockets() >= before + clients.len()).await;
    drop(clients);
    holdfast_tests::eventually("all to be forgotten", || sockets() <= before).await;
    holdfast.close().await;
}

#[tokio::test]
async fn large_and_slow_bodies_are_bounded_and_harm_nobody() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let path = format!("POST /v1/containers/{id}/update");
    let (status, answer) = json_of(&holdfast, &path, &" ".repeat(2 * 1024 * 1024 + 1)).await;
    assert_eq!((status, &answer["kind"]), (413, &json!("invalid")), "{answer}");
    // They have begun a body each, and go on with it never.
    let mut slow = Vec::new();
    for _ in 0..200 {
        let socket = holdfast.root().join("holdfast.sock");
        let mut stream = UnixStream::connect(socket).await.expect("connect");
        let head =
            format!("{path} HTTP/1.1\r\nhost: holdfast\r\ncontent-length: 1000000\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.expect("send");
        slow.push(stream);
    }
    for _ in 0..20 {
        let body = format!("{{\"x\":\"{}\"}}", "y".repeat(1024 * 1024));
        let (status, _) = holdfast.ask(&path, &body).await;
        assert!(status < 600, "{status}");
    }
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    drop(slow);
    holdfast.close().await;
}

/// Regression: each of many large bodies held a part of the room for bodies, and waited for the rest until
/// its time was over.
#[tokio::test]
async fn many_large_bodies_at_once_do_not_wait_for_each_other_for_ever() {
    let holdfast = Holdfast::start().await;
    let body = format!("{{\"nosuch\":\"{}\"}}", "y".repeat(2 * 1024 * 1024 - 100));
    let requests = (0..24).map(|_| holdfast.ask("POST /v1/run", &body));
    for (status, answer) in futures::future::join_all(requests).await {
        assert_eq!(status, 422, "{answer}");
    }
    holdfast.close().await;
}

/// At 91d2b83 neither could be had at all.
#[tokio::test]
async fn a_detached_exec_keeps_its_status_and_its_output_until_it_is_deleted() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let path = format!("/v1/containers/{id}");
    let request = json!({ "args": ["sh", "-c", "echo out; exit 5"], "detach": true });
    let (status, started) =
        json_of(&holdfast, &format!("POST {path}/exec"), &request.to_string()).await;
    assert_eq!(status, 200, "{started}");
    let exec = started["process"].as_str().expect("an id");
    let (_, exit) = json_of(&holdfast, &format!("GET {path}/wait?process={exec}"), "").await;
    assert_eq!(exit["status"], json!({ "code": 5 }), "{exit}");
    let (status, output) = holdfast.ask(&format!("GET {path}/logs?process={exec}"), "").await;
    assert!(status == 200 && output.contains("out\n"), "{output:?}");
    let (status, _) = holdfast.ask(&format!("DELETE {path}/processes/{exec}"), "").await;
    assert_eq!(status, 204);
    let (status, _) = holdfast.ask(&format!("GET {path}/wait?process={exec}"), "").await;
    assert_eq!(status, 404);
    // Who never deletes them does not fill the disk.
    let mut last = String::new();
    for _ in 0..103 {
        let request = json!({ "args": ["true"], "detach": true });
        let (_, started) =
            json_of(&holdfast, &format!("POST {path}/exec"), &request.to_string()).await;
        last = started["process"].as_str().expect("an id").to_owned();
        json_of(&holdfast, &format!("GET {path}/wait?process={last}"), "").await;
    }
    let execs = holdfast.inspect(&id).await["execs"].as_array().map(Vec::len);
    assert!(execs.is_some_and(|count| count <= 101), "{execs:?}");
    let (status, _) = holdfast.ask(&format!("GET {path}/wait?process={last}"), "").await;
    assert_eq!(status, 200);
    holdfast.close().await;
}
