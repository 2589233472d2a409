//! A containerd and a supervisor for tests. Each call, frame and answer is a step of the test.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use holdfast_ttrpc::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use holdfast_ttrpc::rpc::{Code, Request, Response};
use holdfast_ttrpc::task::{
    ConnectResponse, CreateTaskRequest, CreateTaskResponse, SERVICES, WaitRequest,
};
use holdfast_ttrpc::types::{Any, RuncOptions};
use holdfast_ttrpc::{Frame, Frames, Item, Kind, Message, place};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::Pid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_containerd-shim-holdfast-v2");
/// No step takes so long.
const LIMIT: Duration = Duration::from_secs(20);

/// A directory for all, and the fronts that were started in it.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        for front in self.fronts() {
            let _ = kill(pid(front), Signal::SIGKILL);
        }
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.try_into().unwrap())
}

/// The beginning of most messages.
pub(crate) fn id(id: &str, exec: &str) -> WaitRequest {
    WaitRequest { id: id.to_owned(), exec_id: exec.to_owned() }
}

pub(crate) fn request(method: &str, message: &impl Message) -> Vec<u8> {
    let service = SERVICES[0].to_owned();
    let (method, payload) = (method.to_owned(), message.encode_to_vec());
    Request { service, method, payload, ..Request::default() }.encode_to_vec()
}

pub(crate) fn method(frame: &Frame) -> String {
    Request::decode(frame.message.as_ref()).unwrap().method
}

pub(crate) fn payload(frame: &Frame) -> Vec<u8> {
    Request::decode(frame.message.as_ref()).unwrap().payload
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Where containerd's API would be.
    pub(crate) fn address(&self) -> String {
        self.dir.path().join("containerd.sock").display().to_string()
    }

    pub(crate) fn sockets(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.dir.path().join("bundles").join(id)
    }

    /// The supervisor's directory.
    pub(crate) fn directory(&self) -> PathBuf {
        place::directory_in(&self.dir.path().join("root"), &self.address())
    }

    fn command(&self, bundle: &Path, supervisor: &Path) -> Command {
        fs::create_dir_all(bundle).unwrap();
        let mut command = Command::new(PROGRAM);
        command.current_dir(bundle).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env(place::BASE_VARIABLE, self.dir.path().join("root"));
        command.env(place::SUPERVISOR_VARIABLE, supervisor).env("UNRELATED", "yes");
        command.env("TTRPC_ADDRESS", "/events.sock");
        command
    }

    fn flags(&self, command: &mut Command, id: &str, action: &[&str]) {
        command.args(["-namespace", "ns", "-address", &self.address()]);
        command.args(["-publish-binary", "/usr/bin/containerd", "-id", id]).args(action);
    }

    fn begin_start(&self, id: &str, input: &[u8]) -> Child {
        // Nothing starts a supervisor: the tests do.
        let mut command = self.command(&self.bundle(id), Path::new("/bin/false"));
        self.flags(&mut command, id, &["start"]);
        feed(&mut command, input)
    }

    fn params(&self, id: &str, options: Option<Any>) -> Vec<u8> {
        let extensions = options.map(|any| Extension { value: Some(any) }).into_iter().collect();
        BootstrapParams {
            instance_id: id.to_owned(),
            namespace: "ns".to_owned(),
            containerd_ttrpc_address: "/events.sock".to_owned(),
            containerd_grpc_address: self.address(),
            socket_dir: Some(self.sockets().display().to_string()),
            extensions,
            ..BootstrapParams::default()
        }
        .encode_to_vec()
    }

    fn write_config(&self, id: &str, group: Option<&str>) {
        let annotations = group.map_or_else(String::new, |group| {
            format!(r#","annotations":{{"io.kubernetes.cri.sandbox-id":"{group}"}}"#)
        });
        fs::create_dir_all(self.bundle(id)).unwrap();
        let config = format!(r#"{{"ociVersion":"1.1.0"{annotations}}}"#);
        fs::write(self.bundle(id).join("config.json"), config).unwrap();
    }

    /// Begins `start` as containerd 2.3 does.
    pub(crate) fn spawn_start(&self, id: &str, group: Option<&str>) -> Child {
        self.write_config(id, group);
        self.begin_start(id, &self.params(id, None))
    }

    pub(crate) fn start(&self, id: &str, group: Option<&str>) -> Output {
        let output = self.spawn_start(id, group).wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output
    }

    /// As containerd 1.6 does.
    pub(crate) fn start_plain(&self, id: &str) -> Output {
        self.write_config(id, None);
        let options = Self::options(|options| options.systemd_cgroup = true);
        self.begin_start(id, &options.encode_to_vec()).wait_with_output().unwrap()
    }

    pub(crate) fn start_in_empty_bundle(&self, id: &str) -> Output {
        self.begin_start(id, &self.params(id, None)).wait_with_output().unwrap()
    }

    pub(crate) fn start_in_cgroup(&self, id: &str, cgroup: &str) -> Output {
        self.write_config(id, None);
        let options = Self::options(|options| options.shim_cgroup = cgroup.to_owned());
        self.begin_start(id, &self.params(id, Some(options))).wait_with_output().unwrap()
    }

    pub(crate) fn options(set: impl FnOnce(&mut RuncOptions)) -> Any {
        let mut options = RuncOptions::default();
        set(&mut options);
        Any::of(RuncOptions::TYPE, &options)
    }

    pub(crate) fn result(output: &Output) -> BootstrapResult {
        BootstrapResult::decode(output.stdout.as_slice()).unwrap()
    }

    fn begin_delete(&self, supervisor: &Path, id: &str) -> Child {
        let bundle = self.bundle(id);
        let mut command = self.command(&bundle, supervisor);
        self.flags(&mut command, id, &["-bundle", bundle.to_str().unwrap(), "delete"]);
        feed(&mut command, b"")
    }

    pub(crate) fn spawn_delete(&self, id: &str) -> Child {
        self.begin_delete(Path::new("/bin/false"), id)
    }

    pub(crate) fn delete(&self, id: &str) -> Output {
        self.spawn_delete(id).wait_with_output().unwrap()
    }

    pub(crate) fn delete_with(&self, supervisor: &Path, id: &str) -> Output {
        self.begin_delete(supervisor, id).wait_with_output().unwrap()
    }

    pub(crate) fn run(&self, flags: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(self.dir.path(), Path::new("/bin/false"));
        feed(command.args(flags), input).wait_with_output().unwrap()
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        // By a child: what this process has open for writing, a child that another test forks has
        // as well until its exec, and nothing can be executed as long ("Text file busy").
        let mut install = Command::new("install");
        install.args(["--mode=700", "/dev/stdin"]).arg(&path).stdin(Stdio::piped());
        let text = format!("#!/bin/sh\n{text}\n");
        assert!(feed(&mut install, text.as_bytes()).wait().unwrap().success());
        path
    }

    pub(crate) fn supervisor_that_only_says_how_it_is_started(&self) -> PathBuf {
        self.script("supervisor", "echo ARGS $* CWD $(pwd) >&2; env >&2; exit 3")
    }

    pub(crate) fn runtime_with_features(&self, features: &str) -> String {
        self.script("runtime", &format!("echo '{features}'")).display().to_string()
    }

    /// The fronts that run, by their command lines.
    pub(crate) fn fronts(&self) -> Vec<u32> {
        let address = self.address();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let numbers = processes.filter_map(|one| one.file_name().to_str()?.parse::<u32>().ok());
        let is_front = |number: &u32| {
            let words = fs::read_to_string(format!("/proc/{number}/cmdline")).unwrap_or_default();
            let words: Vec<_> = words.split_terminator('\0').collect();
            words.ends_with(&["-address", &address])
        };
        numbers.filter(is_front).collect()
    }

    pub(crate) fn wait_until_gone(&self, front: u32) {
        until("the front ends", || !self.fronts().contains(&front));
    }

    /// How much memory a front has, in KiB, once that has not grown for a while.
    pub(crate) fn most_memory_while_growing(&self, front: u32) -> u64 {
        let (mut most, mut since) = (0, Instant::now());
        while since.elapsed() < Duration::from_millis(300) {
            let status = fs::read_to_string(format!("/proc/{front}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            let now = line.trim().trim_end_matches(" kB").parse().unwrap();
            if now > most {
                (most, since) = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        most
    }

    /// Connects as containerd does.
    pub(crate) fn client(&self, group: &str) -> Peer {
        let socket = place::front_socket(&self.sockets(), &self.address(), "ns", group);
        Peer::connect_to(&socket)
    }

    /// Listens as the supervisor does.
    pub(crate) fn supervisor(&self) -> Supervisor {
        fs::create_dir_all(self.directory()).unwrap();
        let socket = place::supervisor_socket(&self.directory());
        let _ = fs::remove_file(&socket);
        Supervisor(UnixListener::bind(socket).unwrap())
    }

    pub(crate) fn create(&self, id: &str) -> CreateTaskRequest {
        CreateTaskRequest {
            id: id.to_owned(),
            bundle: "/b".to_owned(),
            ..CreateTaskRequest::default()
        }
    }

    /// Has the client create a container, and returns the connection to the supervisor.
    pub(crate) fn create_container(
        &self,
        client: &mut Peer,
        supervisor: &mut Supervisor,
        id: &str,
        pid: u32,
    ) -> Peer {
        client.ask(1, "Create", &self.create(id));
        let mut peer = supervisor.accept();
        assert_eq!([method(&peer.next()), method(&peer.next())], ["Hello", "Create"]);
        peer.reply(1, &Response::of(&CreateTaskResponse { pid }));
        client.response(1);
        peer
    }
}

fn feed(command: &mut Command, input: &[u8]) -> Child {
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The listener of a supervisor.
pub(crate) struct Supervisor(UnixListener);

impl Supervisor {
    pub(crate) fn accept(&mut self) -> Peer {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(LIMIT).unwrap()).unwrap();
        assert_eq!(ready, 1, "nobody connects to the supervisor");
        Peer::new(self.0.accept().unwrap().0)
    }

    /// Ends, and with it its connection. If they were only closed, both could last a little: a
    /// child that another test forks has copies of them until its exec.
    pub(crate) fn dies(self, peer: Peer) {
        for socket in [OwnedFd::from(self.0), OwnedFd::from(peer.stream)] {
            shutdown(socket.as_raw_fd(), Shutdown::Both).unwrap();
        }
    }
}

/// One side of a connection.
pub(crate) struct Peer {
    stream: UnixStream,
    frames: Frames,
    read: bytes::BytesMut,
}

impl Peer {
    pub(crate) fn connect_to(socket: &Path) -> Self {
        Self::new(UnixStream::connect(socket).unwrap())
    }

    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self { stream, frames: Frames::default(), read: bytes::BytesMut::new() }
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        let mut bytes = bytes::BytesMut::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    pub(crate) fn ask(&mut self, stream: u32, method: &str, message: &impl Message) {
        let message = request(method, message).into();
        self.send(&Frame { stream, kind: Kind::Request, flags: 0, message });
    }

    pub(crate) fn reply(&mut self, stream: u32, response: &Response) {
        let message = response.encode_to_vec().into();
        self.send(&Frame { stream, kind: Kind::Response, flags: 0, message });
    }

    fn fill(&mut self) -> usize {
        let mut piece = [0; 4096];
        let length = loop {
            // A socket with a timeout is interrupted also when the process is stopped and goes on.
            match self.stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.unwrap(),
            }
        };
        self.read.extend_from_slice(&piece[..length]);
        length
    }

    pub(crate) fn next(&mut self) -> Frame {
        loop {
            match self.frames.next(&mut self.read) {
                Some(Item::Frame(frame)) => return frame,
                Some(other) => panic!("{other:?}"),
                None => assert_ne!(self.fill(), 0, "the other side has closed the connection"),
            }
        }
    }

    /// The next frame, which answers this call.
    pub(crate) fn response(&mut self, stream: u32) -> Response {
        let frame = self.next();
        assert_eq!((frame.stream, frame.kind), (stream, Kind::Response));
        Response::decode(frame.message.as_ref()).unwrap()
    }

    pub(crate) fn expect_end(&mut self) {
        assert_eq!(self.fill(), 0, "it says more");
    }

    /// The pids of the front and of the container; `None` if the container is unknown.
    pub(crate) fn connect(&mut self, id: &str) -> Option<(u32, u32)> {
        self.ask(1001, "Connect", &self::id(id, ""));
        let response = self.response(1001);
        let code = response.status.as_ref().map_or(0, |status| status.code);
        if code == Code::NotFound as i32 {
            return None;
        }
        assert_eq!(code, 0, "{response:?}");
        let response = ConnectResponse::decode(response.payload.as_slice()).unwrap();
        assert_ne!(response.shim_pid, 0);
        Some((response.shim_pid, response.task_pid))
    }

    /// The pid of the front.
    pub(crate) fn pid(&mut self) -> u32 {
        self.connect("").unwrap().0
    }

    pub(crate) fn wait_until_unknown(&mut self, id: &str) {
        until("the front forgets the container", || self.connect(id).is_none());
    }
}
