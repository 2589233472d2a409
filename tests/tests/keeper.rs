//! A service manager that keeps descriptors, as systemd does: with daemon and shim both dead the
//! status of a container is exact, and its terminal goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_sys::fd_passing;
use holdfast_tests::processes::shim_of;
use holdfast_tests::{Holdfast, Proc, binary, executable, skip, soon};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::O_NONBLOCK;
use nix::sys::signal::Signal;

/// The manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    store: BTreeMap<String, OwnedFd>,
    ready: bool,
}

impl Manager {
    fn new(holdfast: &Holdfast) -> Self {
        let path = holdfast.scratch.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bind a socket");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set a limit");
        Self { socket, path, store: BTreeMap::new(), ready: false }
    }

    /// Takes messages until something holds.
    fn hear(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let mut text = [0; 1024];
            let (length, fds) = fd_passing::receive(&self.socket, &mut text)
                .unwrap_or_else(|error| panic!("waited for {what}: {error}; {:?}", self.store));
            let text = String::from_utf8(text[..length].to_vec()).expect("UTF-8");
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            match (text.lines().next(), name) {
                (Some("READY=1"), _) => self.ready = true,
                (Some("FDSTORE=1"), Some(name)) => {
                    self.store.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
                }
                (Some("FDSTOREREMOVE=1"), Some(name)) => _ = self.store.remove(name),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A program that starts the daemon as a service, with what is in the store.
    fn program(&self, holdfast: &Holdfast) -> PathBuf {
        let mut script = "#!/bin/bash\n".to_owned();
        for (number, fd) in self.store.values().enumerate() {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("let it be inherited");
            script += &format!("exec {}<&{1} {1}<&-\n", number + 3, fd.as_raw_fd());
        }
        let names: Vec<&str> = self.store.keys().map(String::as_str).collect();
        script += &format!(
            "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES='{}' NOTIFY_SOCKET='{}'\n",
            names.len(),
            names.join(":"),
            self.path.display()
        );
        script += &format!("exec '{}' \"$@\"\n", binary("holdfast").display());
        let path = holdfast.scratch.path().join("service");
        executable::script(&path, &script);
        path
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_is_exact_though_daemon_and_shim_are_dead_when_descriptors_are_kept() {
    if !holdfast_sys::kernel::tells_endings() {
        return skip("a status outlives its process since Linux 6.15");
    }
    let mut holdfast = Holdfast::without_daemon();
    let mut manager = Manager::new(&holdfast);
    holdfast.try_start_daemon(&manager.program(&holdfast), &[]).await.expect("the daemon starts");
    manager.hear("readiness", |manager| manager.ready);
    let gate = holdfast.scratch.gate();
    let runtime = binary("fake-runtime").display().to_string();
    let bundle = holdfast.scratch.bundle().display().to_string();
    let script = gate.script_on_host("echo before");
    let args = ["run", "-d", "--name", "k", "--runtime", &runtime, "--bundle", &bundle, "--"];
    holdfast.ok(&[&args[..], &["sh", "-c", &script]].concat()).await;
    holdfast.said("k", "before").await;
    manager.hear("a process", |manager| manager.store.len() == 1);
    // No pipe: its container could stop whoever closes that last, which would be the manager.
    assert!(manager.store.keys().all(|name| name.ends_with("/process")), "{:?}", manager.store);
    let pid = holdfast.inspect("k").await["pid"].as_i64().expect("a pid");
    let process = Proc::of(i32::try_from(pid).expect("a pid")).expect("its process");
    let shim = shim_of(&holdfast.root(), "k", "init");
    holdfast.kill_daemon().await;
    shim.signal(Signal::SIGKILL);
    shim.gone().await;
    gate.open(42);
    process.gone().await;

    let program = manager.program(&holdfast);
    holdfast.try_start_daemon(&program, &[]).await.expect("the daemon starts");
    assert_eq!(holdfast.ok(&["wait", "k"]).await, "42\n");
    let exit = &holdfast.inspect("k").await["exit"];
    assert_eq!(exit["evidence"], "pidfd", "{exit}");
    assert_eq!(holdfast.ok(&["logs", "k"]).await, "before\n");
    manager.hear("the release of all", |manager| manager.store.is_empty());
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_goes_on_though_daemon_and_shim_are_dead_when_descriptors_are_kept() {
    let mut holdfast = Holdfast::without_daemon();
    let mut manager = Manager::new(&holdfast);
    holdfast.try_start_daemon(&manager.program(&holdfast), &[]).await.expect("the daemon starts");
    let id = holdfast.run_detached(&["-it"], &["sh"]).await;
    manager.hear("a process and its terminal", |manager| manager.store.len() == 2);
    let shim = shim_of(&holdfast.root(), &id, "init");
    holdfast.kill_daemon().await;
    shim.signal(Signal::SIGKILL);
    shim.gone().await;
    let program = manager.program(&holdfast);
    holdfast.try_start_daemon(&program, &[]).await.expect("the daemon starts");
    let path = holdfast.root().join(&id).join("init/stdin");
    let open = || File::options().write(true).custom_flags(O_NONBLOCK).open(&path);
    let mut input = soon("a shim that reads", async {
        loop {
            match open() {
                Ok(file) => break file,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    input.write_all(b"echo still $((40 + 2)); exit 3\n").expect("type");
    assert_eq!(holdfast.ok(&["wait", &id]).await, "3\n");
    assert!(holdfast.ok(&["logs", &id]).await.contains("still 42"));
    holdfast.close().await;
}
