//! A driver of conmon's protocol, as podman and CRI-O speak it: pipes, sockets, files, with a real runtime.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, recv, send,
    setsockopt, shutdown, socket,
};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Gate, Proc, binary, busybox_bundle, edit_json, runtime, unique_id};

/// Longer than anything takes here. It times nothing.
const LIMIT: Duration = Duration::from_secs(60);

/// A bundle of busybox, and the places of all that a monitor makes.
#[derive(Debug)]
pub struct Case {
    directory: TempDir,
    /// The container's id.
    pub id: String,
    gates: std::sync::atomic::AtomicU32,
}

impl Case {
    /// A bundle with a shell's script.
    ///
    /// # Panics
    ///
    /// If it can't be made.
    #[must_use]
    pub fn script(script: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("holdfast-test-conmon-").tempdir_in("/tmp");
        let directory = directory.expect("make a directory");
        let bundle = busybox_bundle(&directory.path().join("bundle"));
        for name in ["exits", "persist", "sockets", "bundle/rootfs/gates"] {
            fs::create_dir(directory.path().join(name)).expect("make a directory");
        }
        let id = unique_id("conmon-test").to_string();
        let case = Self { directory, id, gates: 0.into() };
        edit_json(&bundle.join("config.json"), |config| {
            config["process"]["terminal"] = json!(false);
            config["process"]["args"] = json!(["sh", "-c", script]);
            config["root"]["readonly"] = json!(false);
        });
        case
    }

    /// Changes the bundle's configuration.
    pub fn configure(&self, change: impl FnOnce(&mut Value)) {
        edit_json(&self.bundle().join("config.json"), change);
    }

    /// Gives the container a terminal.
    pub fn with_terminal(&self) {
        self.configure(|config| config["process"]["terminal"] = json!(true));
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.path().join("bundle")
    }

    /// The path of the log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.path().join("log")
    }

    /// The log, as it is now.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.log_path()).expect("read the log");
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The status in the exit directory, if there is one.
    #[must_use]
    pub fn exit_file(&self) -> Option<String> {
        fs::read_to_string(self.path().join("exits").join(&self.id)).ok()
    }

    /// A gate in the container's root file system.
    #[must_use]
    pub fn gate(&self) -> Gate {
        let number = self.gates.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.bundle().join("rootfs/gates").join(number.to_string());
        Gate::at(path, format!("/gates/{number}"))
    }

    /// A gate for a program on the host. It stands beside the bundle, which may be removed.
    #[must_use]
    pub fn host_gate(&self) -> Gate {
        let path = self.path().join(unique_id("gate").to_string());
        let inside = path.display().to_string();
        Gate::at(path, inside)
    }

    /// Writes the process of an exec, and returns the path.
    ///
    /// # Panics
    ///
    /// If it can't be written.
    #[must_use]
    pub fn process(&self, args: &[&str], terminal: bool) -> PathBuf {
        let config = fs::read(self.bundle().join("config.json")).expect("read the configuration");
        let config: Value = serde_json::from_slice(&config).expect("parse the configuration");
        let mut process = config["process"].clone();
        process["args"] = json!(args);
        process["terminal"] = json!(terminal);
        let path = self.path().join(format!("process-{}.json", unique_id("p")));
        fs::write(&path, process.to_string()).expect("write a process");
        path
    }

    /// Calls the runtime.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    pub fn runtime(&self, args: &[&str]) -> Output {
        let mut command = Command::new(runtime());
        command.arg("--root").arg(self.path().join("state")).args(args).stdin(Stdio::null());
        command.output().expect("call runc")
    }

    /// Starts the container that was created.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn start(&self) {
        let output = self.runtime(&["start", &self.id]);
        assert!(output.status.success(), "start: {output:?}");
    }

    /// A call of the monitor with no argument.
    #[must_use]
    pub fn bare(&self) -> Call<'_> {
        let program = binary("holdfast-conmon");
        Call { case: self, program, args: Vec::new(), env: Vec::new(), fifos: Vec::new() }
    }

    /// A call of the monitor with what a container needs, but for where its log is.
    #[must_use]
    pub fn without_log(&self) -> Call<'_> {
        let dir = |name: &str| self.path().join(name);
        let mut call = self.bare().id(&self.id).runtime(runtime());
        call.args.extend(["--bundle".into(), self.bundle().into()]);
        call.args.extend(["--exit-dir".into(), dir("exits").into()]);
        call.args.extend(["--persist-dir".into(), dir("persist").into()]);
        call.args.extend(["--socket-dir-path".into(), dir("sockets").into()]);
        call
    }

    /// The same with a k8s-file.
    #[must_use]
    pub fn monitor(&self) -> Call<'_> {
        let log = format!("k8s-file:{}", self.log_path().display());
        self.without_log().args(["--log-path", &log])
    }

    /// A call for an exec of such a process, as podman makes it.
    #[must_use]
    pub fn exec(&self, process: &Path) -> Call<'_> {
        let dir = self.path().join(format!("exec-{}", unique_id("e")));
        fs::create_dir(&dir).expect("make a directory");
        let session = dir.file_name().expect("a name").to_owned();
        let mut call = self.bare().runtime(runtime()).args(["--api-version", "1"]);
        call.args.extend(["-c".into(), self.id.as_str().into(), "-u".into(), session]);
        call.args.extend(["-b".into(), dir.clone().into(), "--exit-dir".into(), dir.into()]);
        call.args.extend(["--exec-process-spec".into(), process.into()]);
        call.args(["--full-attach", "-e", "-l", "none"])
    }

    /// A call for an exec of such a process, as CRI-O makes it.
    #[must_use]
    pub fn legacy_exec(&self, process: &Path) -> Call<'_> {
        let mut call = self.bare().runtime(runtime()).args(["-c", &self.id, "-n", "name", "-e"]);
        call.args.extend(["--exec-process-spec".into(), process.into()]);
        call.args.extend(["-l".into(), self.log_path().with_extension("exec").into()]);
        call
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        // What a test that failed has left, too.
        let _ = self.runtime(&["delete", "--force", &self.id]);
        for process in crate::processes::mentioning(self.path()) {
            process.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// A command line of the monitor.
#[derive(Debug)]
pub struct Call<'a> {
    case: &'a Case,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    /// Variable, redirection, FIFO.
    fifos: Vec<(&'static str, String, PathBuf)>,
}

impl<'a> Call<'a> {
    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Has another program be started in the place of the monitor.
    #[must_use]
    pub fn program(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Adds the id of a container.
    #[must_use]
    pub fn id(self, id: &str) -> Self {
        self.args(["--cid", id, "--cuuid", id])
    }

    /// Adds a runtime.
    #[must_use]
    pub fn runtime(self, runtime: &Path) -> Self {
        let root = format!("--root={}", self.case.path().join("state").display());
        self.args([OsStr::new("--runtime"), runtime.as_os_str()])
            .args(["--runtime-arg", root.as_str()])
    }

    /// Passes a pipe whose number a variable tells, and returns its path.
    fn fifo(&mut self, variable: &'static str, number: u32, direction: char) -> PathBuf {
        let path = self.case.path().join(format!("pipe-{}", unique_id("p")));
        mkfifo(&path, Mode::S_IRWXU).expect("make a FIFO");
        self.fifos.push((variable, format!("{number}{direction}"), path.clone()));
        path
    }

    /// Passes a sync pipe, whose messages are returned.
    #[must_use]
    pub fn sync_pipe(mut self) -> (Self, Records) {
        let path = self.fifo("_OCI_SYNCPIPE", 6, '>');
        (self, Records::of(path))
    }

    /// Passes an attach pipe, whose messages are returned.
    #[must_use]
    pub fn attach_pipe(mut self) -> (Self, Records) {
        let path = self.fifo("_OCI_ATTACHPIPE", 4, '>');
        (self.args(["--exec-attach"]), Records::of(path))
    }

    /// Passes a start pipe, whose writing end is returned.
    #[must_use]
    pub fn start_pipe(mut self) -> (Self, File) {
        let path = self.fifo("_OCI_STARTPIPE", 5, '<');
        // Opened for both, so that nobody is waited for.
        let file = File::options().read(true).write(true).open(path).expect("open a FIFO");
        (self, file)
    }

    /// Passes a descriptor that says nothing, whose reading end is returned: it ends when nobody has the other.
    #[must_use]
    pub fn leaked(mut self, number: u32) -> (Self, Records) {
        let path = self.fifo("LEAKED", number, '>');
        (self, Records::of(path))
    }

    fn command(&self) -> Command {
        let mut script = String::new();
        for (_, redirection, path) in &self.fifos {
            script += &format!("exec {redirection}{}; ", path.display());
        }
        let mut command = Command::new("sh");
        command.arg("-c").arg(script + "exec \"$@\"").arg("sh").arg(&self.program);
        command.args(&self.args).current_dir(self.case.path());
        for (variable, redirection, _) in &self.fifos {
            command.env(variable, &redirection[..1]);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Calls it to its end, or until it has detached.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    #[must_use]
    pub fn ends(&self) -> Output {
        self.command().output().expect("call the monitor")
    }

    /// Starts it without waiting.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    #[must_use]
    pub fn spawn(&self) -> Child {
        self.command().spawn().expect("call the monitor")
    }

    /// Calls it until it has detached, and returns the monitor.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[must_use]
    pub fn detaches(mut self) -> Proc {
        let file = self.case.path().join(format!("monitor-{}", unique_id("m")));
        self.args.extend(["--conmon-pidfile".into(), file.clone().into()]);
        let output = self.ends();
        assert!(output.status.success(), "{output:?}");
        let pid = fs::read_to_string(file).expect("read the pid of the monitor");
        let pid = pid.parse().expect("a pid");
        // One that ends quickly may be reaped by now.
        Proc::of(pid).unwrap_or_else(|| past(pid))
    }

    /// Creates the container, and returns the monitor and the container's pid.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[must_use]
    pub fn creates(self) -> (Proc, i32) {
        let (call, records) = self.sync_pipe();
        let monitor = call.detaches();
        let record = records.next();
        let pid = record["pid"].as_i64().or(record["data"].as_i64());
        let pid = pid.filter(|pid| *pid > 0).unwrap_or_else(|| panic!("{record}"));
        (monitor, i32::try_from(pid).expect("a pid"))
    }

    /// Creates the container, starts it, and returns the monitor.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[must_use]
    pub fn starts(self) -> Proc {
        let case = self.case;
        let (monitor, _) = self.creates();
        case.start();
        monitor
    }

    /// Does that, and waits for the monitor's end.
    pub async fn runs(self) {
        self.starts().ended().await;
    }
}

/// A process that has ended and was reaped: no later one with its number has the start time of the
/// first of all.
fn past(pid: i32) -> Proc {
    let mut past = Proc::of(1).expect("the first process");
    past.pid = pid;
    past
}

/// The messages of a pipe.
#[derive(Debug)]
pub struct Records(Receiver<String>);

impl Records {
    fn of(path: PathBuf) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            // This waits for who writes.
            let file = File::open(path)?;
            for line in BufReader::new(file).split(b'\n') {
                let _ = sender.send(String::from_utf8_lossy(&line?).into_owned());
            }
            io::Result::Ok(())
        });
        Self(receiver)
    }

    /// The next one, as it was written.
    ///
    /// # Panics
    ///
    /// If none comes.
    #[must_use]
    pub fn line(&self) -> String {
        self.0.recv_timeout(LIMIT).expect("a message comes")
    }

    /// The next one.
    ///
    /// # Panics
    ///
    /// If none comes, or if it is no JSON.
    #[must_use]
    pub fn next(&self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Waits until no more come.
    ///
    /// # Panics
    ///
    /// If one comes, or if the pipe stays open.
    pub fn end(&self) {
        match self.0.recv_timeout(LIMIT) {
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {}
            other => panic!("not the end: {other:?}"),
        }
    }

    /// Whether no more come.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.0.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected))
    }
}

/// A client of a container's attach socket.
#[derive(Debug)]
pub struct Client(OwnedFd);

impl Client {
    /// Attaches.
    ///
    /// # Panics
    ///
    /// If it can't.
    #[must_use]
    pub fn attach(path: &Path) -> Self {
        Self::try_attach(path).expect("attach")
    }

    /// Attaches, if somebody accepts connections there.
    ///
    /// # Panics
    ///
    /// If no socket can be made.
    pub fn try_attach(path: &Path) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("socket");
        let address = UnixAddr::new(path).expect("an address");
        connect(socket.as_raw_fd(), &address)?;
        let limit = TimeVal::seconds(60);
        setsockopt(&socket, ReceiveTimeout, &limit).expect("set a limit");
        Ok(Self(socket))
    }

    /// Attaches as soon as somebody accepts connections there.
    ///
    /// # Panics
    ///
    /// If nobody comes to do so.
    pub async fn attach_again(path: &Path) -> Self {
        // The connection itself, and no other before it: with a client its input ends.
        let client = std::cell::RefCell::new(None);
        crate::eventually("the attach socket", || {
            *client.borrow_mut() = Self::try_attach(path).ok();
            client.borrow().is_some()
        })
        .await;
        client.into_inner().expect("it has attached")
    }

    /// The next packet: its first byte, and the rest. `None` at the end.
    ///
    /// # Panics
    ///
    /// If none comes.
    #[must_use]
    pub fn packet(&self) -> Option<(u8, Vec<u8>)> {
        let mut room = vec![0; 65536];
        loop {
            match recv(self.0.as_raw_fd(), &mut room, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Ok(0) => return None,
                Ok(length) => return Some((room[0], room[1..length].to_vec())),
                Err(error) => panic!("receive: {error}"),
            }
        }
    }

    /// All output to the end, each stream by itself, and the longest packet.
    #[must_use]
    pub fn all(&self) -> (Vec<u8>, Vec<u8>, usize) {
        let (mut stdout, mut stderr, mut longest) = (Vec::new(), Vec::new(), 0);
        while let Some((stream, bytes)) = self.packet() {
            longest = longest.max(1 + bytes.len());
            match stream {
                2 => stdout.extend(bytes),
                3 => stderr.extend(bytes),
                other => panic!("a packet of stream {other}"),
            }
        }
        (stdout, stderr, longest)
    }

    /// Reads until this was written.
    ///
    /// # Panics
    ///
    /// If the output ends before.
    pub fn until(&self, text: &str) {
        let mut said = String::new();
        while !said.contains(text) {
            let packet = self.packet().unwrap_or_else(|| panic!("{said:?} has no {text:?}"));
            said += &String::from_utf8_lossy(&packet.1);
        }
    }

    /// Sends input.
    ///
    /// # Panics
    ///
    /// If it can't.
    pub fn send(&self, bytes: &[u8]) {
        let flags = MsgFlags::MSG_NOSIGNAL;
        assert_eq!(send(self.0.as_raw_fd(), bytes, flags).expect("send"), bytes.len());
    }

    /// Ends its input.
    ///
    /// # Panics
    ///
    /// If it can't.
    pub fn end_input(&self) {
        shutdown(self.0.as_raw_fd(), Shutdown::Write).expect("shut down");
    }
}

/// The text of a k8s-file, without what is marked as perhaps there twice. The pieces of a line are
/// joined: how many there are is a matter of the moment.
///
/// # Panics
///
/// If a line is no entry.
#[must_use]
pub fn text_of(log: &str) -> String {
    let mut text = String::new();
    // A terminal's carriage returns belong to the text.
    for line in log.split_terminator('\n') {
        let mut fields = line.splitn(4, ' ').skip(2);
        let (tag, content) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        match tag {
            "F" => text += &format!("{content}\n"),
            "P" => text += content,
            _ => assert!(tag.ends_with(":again"), "{line}"),
        }
    }
    text
}

/// How often a process has given up its processor.
fn switches(process: &Proc) -> String {
    let path = format!("/proc/{}/status", process.pid);
    let status = fs::read_to_string(path).expect("read a status");
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
    line.expect("a count").to_owned()
}

/// Waits until none of these processes has woken up for so long. One that is late with its last
/// work comes to that, and one that wakes up again and again does not.
pub async fn sleep_through(processes: &[&Proc], time: Duration) {
    let counts = || processes.iter().map(|process| switches(process)).collect::<Vec<_>>();
    crate::soon("a time without any work", async {
        loop {
            let before = counts();
            tokio::time::sleep(time).await;
            if counts() == before {
                return;
            }
        }
    })
    .await;
}

/// Writes a line into a FIFO of the bundle.
///
/// # Panics
///
/// If that fails.
pub fn write_line(fifo: &Path, line: &str) {
    let mut file = File::options().write(true).open(fifo).expect("open a FIFO");
    file.write_all(format!("{line}\n").as_bytes()).expect("write to a FIFO");
}
