//! What those use who operate a daemon: metrics, the configuration file, its log.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use holdfast_tests::{Holdfast, eventually, skip, soon};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Sends a request and returns the status and the rest of the answer.
async fn ask(stream: impl AsyncReadExt + AsyncWriteExt, path: &str, header: &str) -> (u16, String) {
    let mut stream = Box::pin(stream);
    let head =
        format!("GET {path} HTTP/1.1\r\nhost: holdfast\r\nconnection: close\r\n{header}\r\n");
    stream.write_all(head.as_bytes()).await.expect("send");
    let mut answer = Vec::new();
    soon("an answer", stream.read_to_end(&mut answer)).await.expect("receive");
    let answer = String::from_utf8(answer).expect("text");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, answer)
}

async fn metrics(holdfast: &Holdfast) -> String {
    let stream = UnixStream::connect(holdfast.root().join("holdfast.sock")).await.expect("connect");
    let (status, answer) = ask(stream, "/metrics", "").await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn has(metrics: &str, line: &str) -> bool {
    metrics.lines().any(|found| found == line)
}

/// Writes a configuration file, and returns its path.
fn config(holdfast: &Holdfast, text: &str) -> PathBuf {
    let path = holdfast.scratch.path().join("config.toml");
    fs::write(&path, text).expect("write the configuration");
    path
}

/// Returns the address on which the daemon serves metrics.
async fn metrics_address(holdfast: &Holdfast) -> String {
    let address = || {
        let log = holdfast.daemon_log();
        let line = log.lines().find(|line| line.contains("metrics address="))?;
        line.split("address=").nth(1).map(|rest| rest.trim().to_owned())
    };
    eventually("the address of the metrics", || address().is_some()).await;
    address().expect("an address")
}

#[tokio::test]
async fn the_metrics_count_what_happens_to_containers_and_requests() {
    let holdfast = Holdfast::start().await;
    let before = metrics(&holdfast).await;
    assert!(has(&before, "holdfast_containers{state=\"running\"} 0"), "{before}");
    assert!(has(&before, "# EOF"), "{before}");
    let running = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let failed =
        holdfast.run_detached(&["--restart", "on-failure:1"], &["sh", "-c", "exit 3"]).await;
    eventually("both runs", || {
        let events = holdfast_tests::journal::events_of(&holdfast.root(), &failed);
        events.iter().filter(|event| event["event"] == "exited").count() == 2
    })
    .await;
    holdfast.fails(1, &["inspect", "never-there"]).await;
    holdfast.ok(&["kill", "--signal", "KILL", &running]).await;
    holdfast.ok(&["wait", &running]).await;
    let killed = "holdfast_exits_total{process=\"init\",kind=\"signal\"} 1";
    // What counts hears of an exit as all do who follow the events: perhaps after who waits for it.
    let counted = async {
        loop {
            let metrics = metrics(&holdfast).await;
            if has(&metrics, killed) {
                return metrics;
            }
        }
    };
    let after = soon("the exit to be counted", counted).await;
    for line in [
        "holdfast_containers{state=\"running\"} 0",
        "holdfast_containers{state=\"stopped\"} 2",
        "holdfast_starts_total{process=\"init\"} 3",
        "holdfast_exits_total{process=\"init\",kind=\"failure\"} 2",
        "holdfast_restarts_total 1",
        "holdfast_start_duration_seconds_count 2",
        "holdfast_api_requests_total{method=\"GET\",route=\"/v1/containers/{id}\",code=\"404\"} 1",
        &format!("holdfast_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(has(&after, line), "{line} is not in\n{after}");
    }
    let size = after.lines().find_map(|line| line.strip_prefix("holdfast_journal_size_bytes "));
    assert!(size.and_then(|size| size.parse::<u64>().ok()).is_some_and(|size| size > 0), "{after}");
    holdfast.close().await;
}

#[tokio::test]
async fn metrics_on_tcp_need_the_token_and_nothing_else_is_served_there() {
    let mut holdfast = Holdfast::without_daemon();
    let token = holdfast.scratch.path().join("token");
    let with = |token: &PathBuf| {
        ["--metrics=127.0.0.1:0".into(), format!("--metrics-token={}", token.display())]
    };
    let args = with(&token);
    fs::write(&token, "short\n").expect("write the token");
    let refused = holdfast.fails(1, &["daemon", &args[0], &args[1]]).await;
    assert!(refused.contains("16 characters"), "{refused}");
    let refused = holdfast.fails(1, &["daemon", &args[0]]).await;
    assert!(refused.contains("--metrics-token"), "{refused}");

    fs::write(&token, "0123456789abcdef\n").expect("write the token");
    holdfast.start_daemon_by(|daemon| _ = daemon.args(&args)).await;
    let address = metrics_address(&holdfast).await;
    let get = async |path: &str, header: &str| {
        let stream = TcpStream::connect(&address).await.expect("connect");
        ask(stream, path, header).await
    };
    let right = "authorization: Bearer 0123456789abcdef\r\n";
    let (status, text) = get("/metrics", right).await;
    assert!(status == 200 && text.contains("# EOF"), "{text}");
    for header in ["", "authorization: Bearer 0123456789abcdeX\r\n", "authorization: Basic x\r\n"] {
        let (status, text) = get("/metrics", header).await;
        assert!(status == 401 && text.contains("\"kind\":\"forbidden\""), "{text}");
        assert!(!text.contains("holdfast_"), "{text}");
    }
    assert_eq!(get("/v1/info", right).await.0, 404);
    // A new token is used at once.
    fs::write(&token, "fedcba9876543210").expect("write the token");
    assert_eq!(get("/metrics", right).await.0, 401);
    assert_eq!(get("/metrics", "authorization: Bearer fedcba9876543210\r\n").await.0, 200);
    holdfast.close().await;
}

#[tokio::test]
async fn a_configuration_sets_what_no_flag_sets_and_a_mistake_in_it_is_named_with_its_line() {
    let mut holdfast = Holdfast::without_daemon();
    let path = config(&holdfast, "log-level = 'info'\nspare-shim = 1\n");
    let flag = format!("--config={}", path.display());
    let error = holdfast.fails(1, &["daemon", &flag]).await;
    assert!(error.contains("config.toml:2") && error.contains("spare-shim"), "{error}");

    // The root of the flag wins.
    let text =
        "root = '/nowhere'\n[containers]\nmemory = '64m'\nlog = 'none'\nrestart = 'on-failure:2'\n";
    config(&holdfast, text);
    holdfast.start_daemon_by(|daemon| _ = daemon.arg(&flag)).await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let info = holdfast.inspect(&id).await;
    assert_eq!(info["restart"]["policy"], "on-failure:2");
    assert_eq!(info["log"], "none");
    let bundle = info["bundle"].as_str().expect("a bundle");
    let spec = fs::read(PathBuf::from(bundle).join("config.json")).expect("config.json");
    let spec: Value = serde_json::from_slice(&spec).expect("JSON");
    assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 64 << 20, "{spec}");
    let own = ["--restart", "no", "--log", "json-file"];
    let own = holdfast.inspect(&holdfast.run_detached(&own, &["sleep", "100000"]).await).await;
    assert_eq!(own.get("restart"), None, "{own}");
    assert!(own["log"].to_string().contains("json-file"), "{own}");
    holdfast.close().await;
}

#[tokio::test]
async fn sighup_reads_the_configuration_again_and_says_what_changed_and_what_needs_a_restart() {
    let mut holdfast = Holdfast::without_daemon();
    let path = config(&holdfast, "log-level = 'info'\n");
    let flag = format!("--config={}", path.display());
    holdfast.start_daemon_by(|daemon| _ = daemon.arg(&flag).env_remove("HOLDFAST_LOG")).await;
    let said = async |text: &str| {
        eventually(text, || holdfast.daemon_log().contains(text)).await;
    };
    config(&holdfast, "log-level = 'debug'\nspare-shims = 3\n[containers]\nrestart = 'always'\n");
    holdfast.daemon().signal(Signal::SIGHUP);
    said("needs_restart=[\"spare-shims\"]").await;
    said("changed=[\"containers\", \"log-level\"]").await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    assert_eq!(holdfast.inspect(&id).await["restart"]["policy"], "always");
    config(&holdfast, "log-level = [\n");
    holdfast.daemon().signal(Signal::SIGHUP);
    said("running on with the last one").await;
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn the_log_is_json_if_asked_for_and_addresses_come_as_urls_or_from_the_environment() {
    let mut holdfast = Holdfast::without_daemon();
    holdfast.start_daemon_by(|daemon| _ = daemon.args(["--log-format", "json"])).await;
    let log = holdfast.daemon_log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    assert!(lines.iter().any(|line| line["message"] == "listening"), "{log}");
    let socket = holdfast.root().join("holdfast.sock");
    let url = format!("unix://{}", socket.display());
    let by_url = holdfast.ok(&["--address", &url, "info", "--json"]).await;
    assert!(by_url.contains("\"pid\""), "{by_url}");
    let mut command = tokio::process::Command::new(holdfast_tests::binary("holdfast"));
    command.args(["info", "--json"]).env_remove("HOLDFAST_ROOT").env("HOLDFAST_ADDRESS", &url);
    let ran = command.output().await.expect("run holdfast");
    let by_variable: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    assert_eq!(by_variable["root"], holdfast.root().to_str().expect("a path"));
    holdfast.close().await;
}

#[tokio::test]
async fn the_read_only_socket_answers_its_group_and_refuses_what_changes_something() {
    let mut holdfast = Holdfast::without_daemon();
    let socket = holdfast.scratch.path().join("monitor.sock");
    let flags = [
        format!("--read-only-address=unix://{}", socket.display()),
        "--read-only-group=no-such-group".to_owned(),
    ];
    let error = holdfast.fails(1, &["daemon", &flags[0], &flags[1]]).await;
    assert!(error.contains("no-such-group"), "{error}");
    let flags = [flags[0].clone(), "--read-only-group=nogroup".to_owned()];
    holdfast.start_daemon_by(|daemon| _ = daemon.args(&flags)).await;
    let metadata = fs::metadata(&socket).expect("the socket");
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, 65534));
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;

    let get = async |path: &str| {
        ask(UnixStream::connect(&socket).await.expect("connect"), path, "").await
    };
    for path in ["/v1/info", "/v1/containers", "/metrics"] {
        assert_eq!(get(path).await.0, 200, "{path}");
    }
    let (status, answer) = get(&format!("/v1/containers/{id}/attach")).await;
    assert!(status == 403 && answer.contains("read-only"), "{answer}");
    let address = format!("--address={}", socket.display());
    for command in ["kill", "delete", "stop", "pause"] {
        let error = holdfast.fails(1, &[&address, command, &id]).await;
        assert!(error.contains("read-only"), "{command}: {error}");
    }
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn a_python_client_needs_only_the_standard_library() {
    let holdfast = Holdfast::start().await;
    let Some(python) = holdfast_tests::in_path("python3") else {
        return skip("python3 is not installed");
    };
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/client.py");
    let mut command = tokio::process::Command::new(python);
    command.arg(client).arg(holdfast.root().join("holdfast.sock")).arg(holdfast.scratch.bundle());
    let ran = soon("the client", command.output()).await.expect("run python3");
    let output = String::from_utf8_lossy(&ran.stdout);
    let lines: Vec<_> = output.lines().collect();
    assert!(ran.status.success(), "{output}{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(lines[0], "{'code': 7}");
    assert!(lines[1].starts_with("not-found: ") && lines.len() == 2, "{output}");
    holdfast.close().await;
}
