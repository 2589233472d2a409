//! The real daemon over a state root of its own, and the real command line to it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use crate::{Proc, Scratch, binary, processes, runtime_name, soon};

/// A daemon of this test's. Dropped, it is killed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
}

/// How a command ended, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Daemon {
    /// Runs the command of a daemon and waits until it says that it listens, which it does once
    /// every container is restored.
    ///
    /// # Panics
    ///
    /// If it does not come so far. What it said is in the message.
    pub async fn start(command: Command) -> Self {
        Self::try_start(command)
            .await
            .unwrap_or_else(|said| panic!("the daemon did not come to listen:\n{said}"))
    }

    /// As [`start`](Self::start); what it said, if it ended before it listened.
    pub async fn try_start(command: Command) -> Result<Self, String> {
        Self::until(command, "listening").await
    }

    /// As [`try_start`](Self::try_start), for a daemon that says something else when it listens.
    pub(crate) async fn until(mut command: Command, listening: &str) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start the daemon");
        let mut lines =
            BufReader::new(child.stderr.take().expect("the daemon's standard error")).lines();
        let mut said = String::new();
        loop {
            let line = soon("the daemon to listen", lines.next_line()).await;
            let Some(line) = line.expect("read what the daemon says") else {
                soon("the end of the daemon", child.wait()).await.expect("wait for the daemon");
                return Err(said);
            };
            said += &format!("{line}\n");
            if line.contains(listening) {
                break;
            }
        }
        let log = Arc::new(Mutex::new(said));
        tokio::spawn(keep(lines, log.clone()));
        Ok(Self { child, log })
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its process.
    ///
    /// # Panics
    ///
    /// If it has ended.
    #[must_use]
    pub fn process(&self) -> Proc {
        let pid = self.child.id().expect("the daemon has not been waited for");
        Proc::of(pid.cast_signed()).expect("the daemon runs")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> ExitStatus {
        soon("the end of the daemon", self.child.wait()).await.expect("wait for the daemon")
    }

    /// Ends it by a signal and returns how it ended.
    pub async fn end(self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.ended().await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("the daemon said:\n{log}");
        }
        kill_and_wait(&self.child);
    }
}

/// Its end comes before the directory that it works in is looked through. It is left to be reaped by
/// whoever does that otherwise.
fn kill_and_wait(child: &Child) {
    if let Some(pid) = child.id().map(|pid| Pid::from_raw(pid.cast_signed())) {
        let _ = kill(pid, Signal::SIGKILL);
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    }
}

async fn keep(mut lines: Lines<BufReader<ChildStderr>>, log: Arc<Mutex<String>>) {
    while let Ok(Some(line)) = lines.next_line().await {
        log.lock().unwrap_or_else(PoisonError::into_inner).push_str(&(line + "\n"));
    }
}

/// A state root, its daemon, and the command line.
#[derive(Debug)]
pub struct Holdfast {
    // Dropped in this order: what is left over is looked for when the daemon is gone.
    daemon: Option<Daemon>,
    /// The directory: state root, bundle, gates.
    pub scratch: Scratch,
}

impl Holdfast {
    /// A daemon over an empty state root.
    pub async fn start() -> Self {
        let mut holdfast = Self::without_daemon();
        holdfast.start_daemon().await;
        holdfast
    }

    /// No daemon yet.
    #[must_use]
    pub fn without_daemon() -> Self {
        Self { daemon: None, scratch: Scratch::new() }
    }

    /// Starts the daemon, or the next one.
    pub async fn start_daemon(&mut self) {
        self.start_daemon_by(|_| {}).await;
    }

    /// As [`start_daemon`](Self::start_daemon), with changes to its command. One that is to have
    /// another runtime than the one under test, be it `auto`, says so by `--runtime`.
    pub async fn start_daemon_by(&mut self, change: impl FnOnce(&mut Command)) {
        let mut command = self.command(&["daemon"]);
        change(&mut command);
        let named = command.as_std().get_args().any(|arg| arg == "--runtime");
        if !named && crate::runtime::chosen().is_some() {
            command.args(["--runtime", runtime_name()]);
        }
        if let Some(group) = crate::shim_group() {
            command.args(["--shim-group", group.as_str()]);
        }
        self.daemon = Some(Daemon::start(command).await);
    }

    /// As [`start_daemon`](Self::start_daemon), by another program in its place, and with further
    /// arguments; what it said, if it ended before it listened.
    pub async fn try_start_daemon(
        &mut self,
        program: &Path,
        args: &[&OsStr],
    ) -> Result<(), String> {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.root()).arg("daemon").args(args).env_remove("HOLDFAST_LOG");
        self.daemon = Some(Daemon::try_start(command).await?);
        Ok(())
    }

    /// The daemon.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a daemon was started")
    }

    /// What the daemon has said, if there is one.
    #[must_use]
    pub fn daemon_log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// The daemon's number, if there is one that has not been waited for.
    #[must_use]
    pub fn running_daemon(&self) -> Option<i32> {
        self.daemon.as_ref()?.child.id().map(u32::cast_signed)
    }

    /// The daemon, to do with as one likes. It is no longer known here.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn take_daemon(&mut self) -> Daemon {
        self.daemon.take().expect("a daemon was started")
    }

    /// Kills the daemon and waits for its end.
    pub async fn kill_daemon(&mut self) {
        let status = self.take_daemon().end(Signal::SIGKILL).await;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    /// The state root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.scratch.root()
    }

    /// A command to this daemon, still to be run. Dropped, it is killed.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("holdfast"));
        command.arg("--root").arg(self.root()).args(args).kill_on_drop(true).stdin(Stdio::null());
        // What a person at this machine wants to see of a daemon is not for a test's.
        command.env_remove("HOLDFAST_LOG");
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args)).await
    }

    /// Runs a command that must succeed and have nothing to complain of, and returns its output.
    pub async fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args).await;
        assert!(ran.code == Some(0) && ran.stderr.is_empty(), "holdfast {args:?}: {ran:?}");
        ran.stdout
    }

    /// As [`ok`](Self::ok), the output being one JSON document.
    pub async fn json(&self, args: &[&str]) -> Value {
        let output = self.ok(args).await;
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Runs a command that must fail by this exit code without any output, and returns what it
    /// complains of.
    pub async fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args).await;
        assert!(ran.code == Some(code) && ran.stdout.is_empty(), "holdfast {args:?}: {ran:?}");
        ran.stderr
    }

    /// A new container, running the bundle's busybox; returns its id.
    pub async fn run_detached(&self, options: &[&str], args: &[&str]) -> String {
        let bundle = self.scratch.bundle();
        let bundle = bundle.to_str().expect("a path in UTF-8");
        let all = [&["run", "--detach", "--bundle", bundle], options, &["--"], args].concat();
        self.ok(&all).await.trim().to_owned()
    }

    /// Starts a command and gives its output by the line as it comes.
    #[must_use]
    pub fn begin(&self, args: &[&str]) -> Running {
        Running::of(self.command(args))
    }

    /// Waits until a container has written this line to its standard output.
    pub async fn said(&self, id: &str, line: &str) {
        let mut logs = self.begin(&["logs", "--follow", id]);
        while logs.line().await != line {}
    }

    /// What the daemon tells of a container.
    pub async fn inspect(&self, id: &str) -> Value {
        self.json(&["inspect", "--json", id]).await
    }

    /// Waits until what the daemon tells of a container is as it should be, and returns that.
    pub async fn until(&self, id: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let reached = async {
            loop {
                let info = self.inspect(id).await;
                if is_it(&info) {
                    return info;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("a container to be as expected", reached).await
    }

    /// The end of a container's shim, to be taken hold of before its process is made to end: then
    /// the status is on disk once [`ShimEnd::come`] returns.
    ///
    /// # Panics
    ///
    /// If there is no such container.
    #[must_use]
    pub fn end_of_shim(&self, id: &str) -> ShimEnd {
        let path = self.root().join(id).join("init/exit");
        let open = pipe::OpenOptions::new().open_receiver(&path);
        ShimEnd(open.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// Sends one request to the API, as in `GET /v1/info`, and returns the status and the body.
    ///
    /// # Panics
    ///
    /// If there is no answer.
    pub async fn ask(&self, line: &str, body: &str) -> (u16, String) {
        let socket = self.root().join("holdfast.sock");
        let mut stream = UnixStream::connect(socket).await.expect("connect");
        let head = format!(
            "{line} HTTP/1.1\r\nhost: holdfast\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("send");
        let mut answer = Vec::new();
        soon("an answer", stream.read_to_end(&mut answer)).await.expect("receive");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        (status.expect("a status"), body.to_owned())
    }

    /// What is left over beside the daemon, its socket and its spare shims.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        // On both sides of the look: they begin, become their programs, and end.
        let before = self.own_processes();
        let mut left = self.scratch.leftovers();
        for pid in before.into_iter().chain(self.own_processes()) {
            left.retain(|name| !name.starts_with(&format!("process {pid} (")));
        }
        left.retain(|name| name != "holdfast.sock");
        left
    }

    /// The numbers of the daemon, of its spare shims, and of what closes descriptors for it.
    fn own_processes(&self) -> Vec<i32> {
        let Some(daemon) = self.daemon.as_ref().map(Daemon::process) else { return Vec::new() };
        // Before a child has become its program it is a copy of its parent, and for a moment
        // it has no arguments.
        let copies = processes::children(daemon.pid).into_iter().filter_map(Proc::of);
        let copies = copies.filter(|child| {
            child.command() == daemon.command() || child.command().is_empty() && child.lives()
        });
        let spares = copies.chain(processes::companions(daemon.pid)).map(|process| process.pid);
        spares.chain([daemon.pid]).collect()
    }

    /// Waits until nothing is left over of what is being deleted.
    pub async fn nothing_left(&self) {
        crate::eventually("nothing to be left over", || self.leftovers().is_empty()).await;
    }

    /// Waits until all containers but these are removed.
    pub async fn nothing_but(&self, ids: &[&str]) {
        let is_other = |name: &str| !name.starts_with('.') && name != "holdfast.sock";
        crate::eventually("containers to be removed", || {
            let entries = fs::read_dir(self.root()).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.filter(|name| is_other(name)).all(|name| ids.contains(&name.as_str()))
        })
        .await;
    }

    /// Everything in the state root, and of what kind, size and age it is. Only what is added to or
    /// taken from a directory counts there, not that something was for a moment.
    #[must_use]
    pub fn listing(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        list(&self.root(), &mut all);
        all
    }

    /// Ends a test: deletes all containers, ends the daemon in order, and finds nothing left.
    pub async fn close(mut self) {
        let all = self.json(&["ps", "--all", "--json"]).await;
        for container in all.as_array().expect("an array") {
            self.ok(&["delete", "--force", container["id"].as_str().expect("an id")]).await;
        }
        self.scratch.group_ended().await;
        assert_eq!(self.leftovers(), [""; 0], "left over after all containers were deleted");
        let status = self.take_daemon().end(Signal::SIGTERM).await;
        assert_eq!(status.code(), Some(0), "the daemon after SIGTERM: {status}");
        // Its helpers end when their sockets do, which is a moment later. They name the directory of the test where
        // that is in the environment of the daemon.
        let is_helper = |left: &String| left.contains("--closer") || left.contains("--spare");
        let have_ended = || !self.scratch.leftovers().iter().any(is_helper);
        crate::eventually("the daemon's helpers to end", have_ended).await;
        assert_eq!(self.scratch.leftovers(), [""; 0], "left over by the daemon");
    }
}

/// See [`Holdfast::end_of_shim`].
#[derive(Debug)]
pub struct ShimEnd(pipe::Receiver);

impl ShimEnd {
    /// Waits until the shim has gone, and so has written down all it had to.
    pub async fn come(mut self) {
        let mut announcements = Vec::new();
        soon("the end of a shim", self.0.read_to_end(&mut announcements))
            .await
            .expect("read the exit FIFO");
    }
}

/// A command at work. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts it.
    #[must_use]
    pub fn of(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = BufReader::new(child.stdout.take().expect("its standard output")).lines();
        Self { child, stdout }
    }

    /// The next line that it writes.
    ///
    /// # Panics
    ///
    /// If it ends instead.
    pub async fn line(&mut self) -> String {
        match self.next_line().await {
            Some(line) => line,
            None => panic!("the output ended: {}", self.complaints().await),
        }
    }

    /// The next line that it writes, or `None` at the end.
    pub async fn next_line(&mut self) -> Option<String> {
        soon("a line of output", self.stdout.next_line()).await.expect("read the output")
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("the command runs");
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("send a signal");
    }

    /// Its process.
    ///
    /// # Panics
    ///
    /// If it has ended.
    #[must_use]
    pub fn process(&self) -> Proc {
        let pid = self.child.id().expect("the command was not waited for");
        Proc::of(pid.cast_signed()).expect("the command runs")
    }

    /// Waits for its end; `stdout` is what was not read by the line.
    pub async fn end(mut self) -> Ran {
        let mut stdout = String::new();
        while let Some(line) = self.next_line().await {
            stdout += &(line + "\n");
        }
        let stderr = self.complaints().await;
        let status = soon("the end of a command", self.child.wait()).await;
        Ran { code: status.expect("wait for a command").code(), stdout, stderr }
    }

    async fn complaints(&mut self) -> String {
        let mut stderr = String::new();
        let errors = self.child.stderr.as_mut().expect("its standard error");
        let read = soon("the end of its complaints", errors.read_to_string(&mut stderr)).await;
        read.expect("read its standard error");
        stderr
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_and_wait(&self.child);
    }
}

/// Runs a command to its end.
pub async fn ran(mut command: Command) -> Ran {
    let output = soon(&format!("{command:?}"), command.output()).await;
    text(output.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

fn text(output: std::process::Output) -> Ran {
    let text = |bytes| String::from_utf8(bytes).expect("output in UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn list(path: &Path, all: &mut BTreeMap<PathBuf, String>) {
    let Ok(metadata) = path.symlink_metadata() else { return };
    let mut what = format!("{:o} {}", metadata.mode(), metadata.ino());
    if metadata.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            list(&entry.path(), all);
        }
    } else {
        what += &format!(" {} {}.{}", metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    }
    all.insert(path.to_owned(), what);
}
