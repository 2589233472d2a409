//! What a service manager and the daemon say to each other: sockets that the manager listens at, readiness, reloads,
//! the watchdog. The manager is this test; `cargo xtask vm-test --part systemd` has the real one.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::time::Duration;

use holdfast_tests::{Holdfast, binary, executable, soon};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;

struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(holdfast: &Holdfast) -> Self {
        let path = holdfast.scratch.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bind a socket");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set a limit");
        Self { socket, path }
    }

    /// The next message.
    fn heard(&self) -> String {
        let mut text = [0; 1024];
        let length = self.socket.recv(&mut text).expect("a message in time");
        String::from_utf8(text[..length].to_vec()).expect("UTF-8")
    }

    /// A program that starts the daemon as a service, with sockets by their names, and further variables.
    fn program(
        &self,
        holdfast: &Holdfast,
        sockets: &[(&str, &UnixListener)],
        variables: &str,
    ) -> PathBuf {
        let mut script = "#!/bin/bash\n".to_owned();
        for (number, (_, socket)) in sockets.iter().enumerate() {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).expect("let it be inherited");
            script += &format!("exec {}<&{}\n", number + 3, socket.as_raw_fd());
        }
        let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
        script += &format!(
            "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES='{}' NOTIFY_SOCKET='{}' {variables}\n\
             exec '{}' \"$@\"\n",
            names.len(),
            names.join(":"),
            self.path.display(),
            binary("holdfast").display()
        );
        let path = holdfast.scratch.path().join("service");
        executable::script(&path, &script);
        path
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_waits_at_the_managers_socket_while_there_is_no_daemon() {
    let mut holdfast = Holdfast::without_daemon();
    let manager = Manager::new(&holdfast);
    fs::create_dir(holdfast.root()).expect("make a directory");
    let path = holdfast.root().join("holdfast.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let program = manager.program(&holdfast, &[("holdfast.socket", &listener)], "");

    let mut early = holdfast.begin(&["info"]);
    holdfast.try_start_daemon(&program, &[]).await.expect("the daemon starts");
    assert!(early.line().await.starts_with("holdfast "));
    let id = holdfast.run_detached(&[], &["sleep", "1000"]).await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        holdfast.take_daemon().end(signal).await;
        assert!(path.exists(), "{signal}");
        let mut meanwhile = holdfast.begin(&["inspect", "--format", "{{.status}}", &id]);
        holdfast.try_start_daemon(&program, &[]).await.expect("the daemon starts");
        assert_eq!(meanwhile.line().await, "running", "{signal}");
    }
    holdfast.ok(&["rm", "-f", &id]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_reads_nothing_keeps_neither_the_daemon_nor_containers() {
    let mut holdfast = Holdfast::without_daemon();
    let manager = Manager::new(&holdfast);
    let sender = UnixDatagram::unbound().expect("a socket");
    sender.connect(&manager.path).expect("connect");
    sender.set_nonblocking(true).expect("set a flag");
    while sender.send(b"STATUS=full").is_ok() {}
    let program = manager.program(&holdfast, &[], "WATCHDOG_USEC=100000");
    holdfast.try_start_daemon(&program, &[]).await.expect("the daemon starts");
    let id = holdfast.run_detached(&[], &["sh", "-c", "exit 3"]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "3\n");
    holdfast.ok(&["rm", &id]).await;
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_managers_read_only_socket_is_read_only() {
    let mut holdfast = Holdfast::without_daemon();
    let manager = Manager::new(&holdfast);
    let path = holdfast.scratch.path().join("monitor.sock");
    let listener = UnixListener::bind(&path).expect("listen");
    let sockets = [("holdfast-read-only.socket", &listener)];
    let program = manager.program(&holdfast, &sockets, "");
    holdfast.try_start_daemon(&program, &[]).await.expect("the daemon starts");
    let id = holdfast.run_detached(&[], &["true"]).await;
    holdfast.ok(&["wait", &id]).await;
    let address = path.display().to_string();
    assert_eq!(holdfast.ok(&["--address", &address, "ps", "-aq"]).await.trim(), id);
    let refused = holdfast.fails(1, &["--address", &address, "rm", &id]).await;
    assert!(refused.contains("read-only"), "{refused}");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_reported_also_of_a_file_that_is_wrong() {
    let mut holdfast = Holdfast::without_daemon();
    let manager = Manager::new(&holdfast);
    let file = holdfast.scratch.path().join("config.toml");
    fs::write(&file, "log-level = \"info\"\n").expect("write a file");
    let program = manager.program(&holdfast, &[], "");
    let args = [OsStr::new("--config"), file.as_os_str()];
    holdfast.try_start_daemon(&program, &args).await.expect("the daemon starts");
    assert_eq!(manager.heard(), "READY=1");
    for content in ["log-level = \"debug\"\n", "no-such-key = 1\n"] {
        fs::write(&file, content).expect("write a file");
        holdfast.daemon().signal(Signal::SIGHUP);
        let reloading = manager.heard();
        let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("a reload");
        assert!(micros.parse::<u64>().is_ok_and(|micros| micros > 0), "{reloading}");
        assert_eq!(manager.heard(), "READY=1");
    }
    holdfast.take_daemon().end(Signal::SIGTERM).await;
    assert_eq!(manager.heard(), "STOPPING=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watchdog_hears_of_a_daemon_that_answers_and_of_no_other() {
    let mut holdfast = Holdfast::without_daemon();
    let manager = Manager::new(&holdfast);
    let variables = "WATCHDOG_USEC=100000 WATCHDOG_PID=$$";
    let program = manager.program(&holdfast, &[], variables);
    holdfast.try_start_daemon(&program, &[]).await.expect("the daemon starts");
    assert_eq!(manager.heard(), "READY=1");
    for _ in 0..3 {
        assert_eq!(manager.heard(), "WATCHDOG=1");
    }
    // It is alive, and nobody gets an answer: its socket is gone.
    fs::remove_file(holdfast.root().join("holdfast.sock")).expect("remove a file");
    let silence = async {
        loop {
            manager.socket.set_read_timeout(Some(Duration::from_millis(500))).expect("set a limit");
            if manager.socket.recv(&mut [0; 64]).is_err() {
                return;
            }
        }
    };
    soon("silence", silence).await;
    holdfast.take_daemon().end(Signal::SIGTERM).await;

    // Meant for another process.
    let program = manager.program(&holdfast, &[], "WATCHDOG_USEC=100000 WATCHDOG_PID=1");
    manager.socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set a limit");
    holdfast.try_start_daemon(&program, &[]).await.expect("the daemon starts");
    while manager.heard() != "READY=1" {}
    holdfast.take_daemon().end(Signal::SIGTERM).await;
    assert_eq!(manager.heard(), "STOPPING=1");
}
