//! What a front knows of its containers, from the calls and answers that pass.
//!
//! The front answers containerd from it while no supervisor answers, and does not end while it has containers.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use holdfast_ttrpc::Message;
use holdfast_ttrpc::rpc::{Code, Failure, Request, Response};
use holdfast_ttrpc::task::{
    CreateTaskRequest, CreateTaskResponse, ExecProcessRequest, PidsResponse, StartResponse,
    StateResponse, WaitRequest, WaitResponse,
};
use holdfast_ttrpc::types::{Any, ProcessDetails, ProcessInfo, Status};
use nix::fcntl::OFlag;

/// A process: the container, and the exec, which is empty for the init process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) id: String,
    pub(crate) exec: String,
}

/// A call, as far as it matters to a front.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// `Create` or `Exec`: there will be a process.
    Make(Name),
    Start(Name),
    Delete(Name),
    State(Name),
    Wait(Name),
    Pids(String),
    Pause(String),
    Resume(String),
    Other,
}

impl Call {
    /// Whether a front can answer it, if it must.
    pub(crate) fn is_question(&self) -> bool {
        matches!(self, Self::State(_) | Self::Pids(_))
    }

    /// Whether the answer says whether there is a process, and must be heard also if containerd has gone.
    pub(crate) fn is_change(&self) -> bool {
        matches!(self, Self::Make(_) | Self::Start(_) | Self::Delete(_))
    }
}

/// A container.
#[derive(Debug)]
struct Task {
    id: String,
    bundle: String,
    /// The init process first.
    processes: Vec<Process>,
}

/// A process of a container.
#[derive(Debug)]
struct Process {
    /// Whether the supervisor has said that it is there.
    made: bool,
    /// The last of its states, as containerd would get it.
    state: StateResponse,
    /// Its output FIFOs, open for reading as long as containerd has not deleted it. What a process has written, and
    /// nobody has read, stays in a FIFO as long as somebody has it open, be it that containerd and the supervisor
    /// are both restarted. Nothing is ever read here.
    fifos: Vec<File>,
}

/// The containers of a front.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Vec<Task>);

impl Tasks {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many containers, processes and open FIFOs there are.
    pub(crate) fn count(&self) -> (usize, usize, usize) {
        let processes = || self.0.iter().flat_map(|task| &task.processes);
        (self.0.len(), processes().count(), processes().map(|one| one.fifos.len()).sum())
    }

    /// Learns from a call that is about to be passed on.
    pub(crate) fn asked(&mut self, request: &Request) -> Call {
        match request.method.as_str() {
            "Create" => self.create(request).map_or(Call::Other, Call::Make),
            "Exec" => self.exec(request).map_or(Call::Other, Call::Make),
            // All of these begin with the same two fields.
            method => {
                let Ok(WaitRequest { id, exec_id: exec }) =
                    WaitRequest::decode(request.payload.as_slice())
                else {
                    return Call::Other;
                };
                match method {
                    "Start" => Call::Start(Name { id, exec }),
                    "Delete" => Call::Delete(Name { id, exec }),
                    "State" => Call::State(Name { id, exec }),
                    "Wait" => Call::Wait(Name { id, exec }),
                    "Pids" => Call::Pids(id),
                    "Pause" => Call::Pause(id),
                    "Resume" => Call::Resume(id),
                    _ => Call::Other,
                }
            }
        }
    }

    fn create(&mut self, request: &Request) -> Option<Name> {
        let create = CreateTaskRequest::decode(request.payload.as_slice()).ok()?;
        // The supervisor refuses a second of the same id, and that must not remove the first.
        if self.0.iter().any(|task| task.id == create.id) {
            return None;
        }
        let name = Name { id: create.id.clone(), exec: String::new() };
        let state = StateResponse {
            id: create.id.clone(),
            bundle: create.bundle.clone(),
            terminal: create.terminal,
            stdin: create.stdin,
            stdout: create.stdout,
            stderr: create.stderr,
            ..StateResponse::default()
        };
        let processes = vec![Process::new(state)];
        self.0.push(Task { id: create.id, bundle: create.bundle, processes });
        Some(name)
    }

    fn exec(&mut self, request: &Request) -> Option<Name> {
        let exec = ExecProcessRequest::decode(request.payload.as_slice()).ok()?;
        let name = Name { id: exec.id, exec: exec.exec_id };
        if name.exec.is_empty() || self.process(&name).is_some() {
            return None;
        }
        let task = self.0.iter_mut().find(|task| task.id == name.id)?;
        task.processes.push(Process::new(StateResponse {
            id: task.id.clone(),
            bundle: task.bundle.clone(),
            exec_id: name.exec.clone(),
            terminal: exec.terminal,
            stdin: exec.stdin,
            stdout: exec.stdout,
            stderr: exec.stderr,
            ..StateResponse::default()
        }));
        Some(name)
    }

    /// Learns from the supervisor's answer.
    pub(crate) fn answered(&mut self, call: &Call, response: &Response) {
        let failed = response.status.as_ref().filter(|_| !response.is_ok());
        let missing = failed.is_some_and(|failure| failure.code == Code::NotFound as i32);
        match call {
            Call::Make(name) if failed.is_some() => self.remove(name),
            Call::Delete(name) if failed.is_none() => self.remove(name),
            Call::Delete(name) | Call::State(name) if missing => self.remove_missing(name),
            Call::Pids(id) if missing => {
                self.remove_missing(&Name { id: id.clone(), exec: String::new() });
            }
            _ if failed.is_some() => {}
            Call::Make(name) | Call::Start(name) | Call::State(name) | Call::Wait(name) => {
                if let Some(process) = self.process(name) {
                    process.learn(call, &response.payload);
                }
            }
            Call::Pause(id) => self.set_status(id, Status::Paused),
            Call::Resume(id) => self.set_status(id, Status::Running),
            Call::Delete(_) | Call::Pids(_) | Call::Other => {}
        }
    }

    /// Answers a question without the supervisor.
    pub(crate) fn answer(&self, call: &Call) -> Response {
        let (Call::State(Name { id, .. }) | Call::Pids(id)) = call else {
            return Failure::new(Code::Unavailable, "the supervisor does not answer").into();
        };
        let missing = |what: &str| Failure::new(Code::NotFound, format!("{what}: not found"));
        let task = self.0.iter().find(|task| task.id == *id && task.processes[0].made);
        let Some(task) = task else { return missing(&format!("container {id}")).into() };
        match call {
            Call::State(name) => {
                let mut processes = task.processes.iter().filter(|process| process.made);
                match processes.find(|process| process.state.exec_id == name.exec) {
                    Some(process) => Response::of(&process.state),
                    None => missing(&format!("process {} of container {id}", name.exec)).into(),
                }
            }
            _ => Response::of(&PidsResponse {
                processes: task.processes.iter().filter_map(Process::info).collect(),
            }),
        }
    }

    /// The pid of a container's init process; 0 as long as the container is being made, `None` if there is none.
    pub(crate) fn pid(&self, id: &str) -> Option<u32> {
        self.0.iter().find(|task| task.id == id).map(|task| task.processes[0].state.pid)
    }

    /// A container is gone.
    pub(crate) fn forget(&mut self, id: &str) {
        self.0.retain(|task| task.id != id);
    }

    fn remove(&mut self, name: &Name) {
        if name.exec.is_empty() {
            return self.forget(&name.id);
        }
        if let Some(task) = self.0.iter_mut().find(|task| task.id == name.id) {
            task.processes.retain(|process| process.state.exec_id != name.exec);
        }
    }

    /// The supervisor does not know a process. One that is being made it does not know yet: a containerd that was
    /// started anew asks for it meanwhile.
    fn remove_missing(&mut self, name: &Name) {
        if self.process(name).is_some_and(|process| process.made) {
            self.remove(name);
        }
    }

    fn process(&mut self, name: &Name) -> Option<&mut Process> {
        let task = self.0.iter_mut().find(|task| task.id == name.id)?;
        task.processes.iter_mut().find(|process| process.state.exec_id == name.exec)
    }

    fn set_status(&mut self, id: &str, status: Status) {
        let init = Name { id: id.to_owned(), exec: String::new() };
        if let Some(process) = self.process(&init) {
            process.state.status = status.into();
        }
    }
}

impl Process {
    fn new(state: StateResponse) -> Self {
        let fifos = [&state.stdout, &state.stderr].into_iter().filter_map(|uri| open_fifo(uri));
        Self { made: false, fifos: fifos.collect(), state }
    }

    fn learn(&mut self, call: &Call, payload: &[u8]) {
        match call {
            Call::Make(_) => {
                self.made = true;
                self.state.status = Status::Created.into();
                // The answer to `Exec` is empty.
                if let Ok(CreateTaskResponse { pid }) = Message::decode(payload) {
                    self.state.pid = pid;
                }
            }
            Call::Start(_) => {
                if let Ok(StartResponse { pid }) = Message::decode(payload) {
                    self.state.pid = pid;
                }
                // It may have been waited for already.
                if self.state.status() != Status::Stopped {
                    self.state.status = Status::Running.into();
                }
            }
            Call::State(_) => {
                if let Ok(state) = StateResponse::decode(payload) {
                    self.made = true;
                    self.state = state;
                    if self.state.status() == Status::Stopped {
                        self.let_readers_in();
                    }
                }
            }
            Call::Wait(_) => {
                if let Ok(WaitResponse { exit_status, exited_at }) = Message::decode(payload) {
                    self.state.status = Status::Stopped.into();
                    self.state.exit_status = exit_status;
                    self.state.exited_at = exited_at;
                    self.let_readers_in();
                }
            }
            _ => {}
        }
    }

    /// Lets in who waits in open(2) until somebody writes, which a process that has ended will not: they read what it
    /// has left, and the end of the file.
    fn let_readers_in(&self) {
        for fifo in &self.fifos {
            let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
            let flags = OFlag::O_NONBLOCK.bits();
            let _ = File::options().write(true).custom_flags(flags).open(path);
        }
    }

    /// As `Pids` has it. An init process is there also when it has ended: containerd takes a shim without
    /// processes for one that was left behind.
    fn info(&self) -> Option<ProcessInfo> {
        let exec = &self.state.exec_id;
        if self.state.pid == 0 || (!exec.is_empty() && self.state.status() == Status::Stopped) {
            return None;
        }
        let details = || Any::of(ProcessDetails::TYPE, &ProcessDetails { exec_id: exec.clone() });
        Some(ProcessInfo { pid: self.state.pid, info: (!exec.is_empty()).then(details) })
    }
}

/// Opens a FIFO for reading, and waits for no writer. `None` for an output that is something else.
fn open_fifo(uri: &str) -> Option<File> {
    let path = match uri.strip_prefix("fifo://") {
        Some(rest) => rest.split('?').next().unwrap_or(rest),
        None => uri,
    };
    // Nothing else is opened: that could wait, or do something.
    let fifo = path.starts_with('/') && fs::metadata(path).ok()?.file_type().is_fifo();
    let flags = OFlag::O_NONBLOCK.bits();
    fifo.then(|| File::options().read(true).custom_flags(flags).open(path).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_ttrpc::types::Empty;

    fn ask(tasks: &mut Tasks, method: &str, message: &impl Message) -> Call {
        tasks.asked(&Request {
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            ..Request::default()
        })
    }

    fn name(id: &str, exec: &str) -> WaitRequest {
        WaitRequest { id: id.to_owned(), exec_id: exec.to_owned() }
    }

    fn create(tasks: &mut Tasks, id: &str, stdout: &str) -> Call {
        let create = CreateTaskRequest {
            id: id.to_owned(),
            bundle: "/b".to_owned(),
            stdout: stdout.to_owned(),
            ..CreateTaskRequest::default()
        };
        ask(tasks, "Create", &create)
    }

    fn created(tasks: &mut Tasks, id: &str) {
        let call = create(tasks, id, "");
        tasks.answered(&call, &Response::of(&CreateTaskResponse { pid: 7 }));
    }

    fn state(tasks: &Tasks, id: &str, exec: &str) -> Result<StateResponse, Failure> {
        let response =
            tasks.answer(&Call::State(Name { id: id.to_owned(), exec: exec.to_owned() }));
        match response.status {
            Some(failure) => Err(failure),
            None => Ok(StateResponse::decode(response.payload.as_slice()).unwrap()),
        }
    }

    #[test]
    fn a_container_is_known_from_its_creation_until_its_deletion() {
        let mut tasks = Tasks::default();
        let call = create(&mut tasks, "a", "");
        assert!(!tasks.is_empty(), "a container that is being created counts");
        assert_eq!(state(&tasks, "a", "").unwrap_err().code, Code::NotFound as i32);
        tasks.answered(&call, &Response::of(&CreateTaskResponse { pid: 7 }));
        let known = state(&tasks, "a", "").unwrap();
        assert_eq!((known.pid, known.status(), &*known.bundle), (7, Status::Created, "/b"));

        let call = ask(&mut tasks, "Start", &name("a", ""));
        tasks.answered(&call, &Response::of(&StartResponse { pid: 7 }));
        assert_eq!(state(&tasks, "a", "").unwrap().status(), Status::Running);
        let call = ask(&mut tasks, "Pause", &name("a", ""));
        tasks.answered(&call, &Response::of(&Empty {}));
        assert_eq!(state(&tasks, "a", "").unwrap().status(), Status::Paused);

        let call = ask(&mut tasks, "Wait", &name("a", ""));
        tasks.answered(&call, &Response::of(&WaitResponse { exit_status: 3, exited_at: None }));
        let known = state(&tasks, "a", "").unwrap();
        assert_eq!((known.status(), known.exit_status), (Status::Stopped, 3));

        let call = ask(&mut tasks, "Delete", &name("a", ""));
        tasks.answered(&call, &Failure::new(Code::FailedPrecondition, "").into());
        assert!(!tasks.is_empty());
        tasks.answered(&call, &Response::of(&Empty {}));
        assert!(tasks.is_empty());
    }

    #[test]
    fn a_container_that_was_not_created_or_is_not_found_is_gone() {
        let mut tasks = Tasks::default();
        let call = create(&mut tasks, "a", "");
        tasks.answered(&call, &Failure::new(Code::Internal, "no").into());
        assert!(tasks.is_empty());
        for method in ["Delete", "Pids", "State"] {
            created(&mut tasks, "a");
            let call = ask(&mut tasks, method, &name("a", ""));
            tasks.answered(&call, &Failure::new(Code::NotFound, "gone").into());
            assert!(tasks.is_empty(), "{method}");
        }
    }

    #[test]
    fn what_is_being_made_is_not_forgotten_because_the_supervisor_does_not_know_it_yet() {
        for method in ["Delete", "Pids", "State"] {
            let mut tasks = Tasks::default();
            let made = create(&mut tasks, "a", "");
            let call = ask(&mut tasks, method, &name("a", ""));
            tasks.answered(&call, &Failure::new(Code::NotFound, "not yet").into());
            tasks.answered(&made, &Response::of(&CreateTaskResponse { pid: 7 }));
            assert_eq!(tasks.pid("a"), Some(7), "{method}");
        }
    }

    #[test]
    fn a_second_creation_of_the_same_id_does_not_remove_the_first() {
        let mut tasks = Tasks::default();
        created(&mut tasks, "a");
        let second = create(&mut tasks, "a", "");
        tasks.answered(&second, &Failure::new(Code::AlreadyExists, "").into());
        assert_eq!(tasks.pid("a"), Some(7));
    }

    #[test]
    fn execs_are_listed_with_their_details_while_they_run() {
        let mut tasks = Tasks::default();
        created(&mut tasks, "a");
        let exec = ExecProcessRequest {
            id: "a".to_owned(),
            exec_id: "e".to_owned(),
            ..ExecProcessRequest::default()
        };
        let call = ask(&mut tasks, "Exec", &exec);
        tasks.answered(&call, &Response::of(&Empty {}));
        let pids = |tasks: &Tasks| {
            let response = tasks.answer(&Call::Pids("a".to_owned()));
            PidsResponse::decode(response.payload.as_slice()).unwrap().processes
        };
        assert_eq!(pids(&tasks).len(), 1, "it has no pid yet");
        let call = ask(&mut tasks, "Start", &name("a", "e"));
        tasks.answered(&call, &Response::of(&StartResponse { pid: 8 }));
        let details = Any::of(ProcessDetails::TYPE, &ProcessDetails { exec_id: "e".to_owned() });
        assert_eq!(
            pids(&tasks),
            [ProcessInfo { pid: 7, info: None }, ProcessInfo { pid: 8, info: Some(details) },]
        );
        let call = ask(&mut tasks, "Delete", &name("a", "e"));
        tasks.answered(&call, &Response::of(&Empty {}));
        assert_eq!(pids(&tasks).len(), 1);
        assert!(state(&tasks, "a", "e").is_err());
    }

    #[test]
    fn what_was_written_to_a_fifo_stays_until_the_process_is_deleted() {
        use std::io::{Read, Write};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let open = || {
            let flags = OFlag::O_NONBLOCK.bits();
            File::options().read(true).custom_flags(flags).open(&path).unwrap()
        };
        for uri in [path.display().to_string(), format!("fifo://{}?a=b", path.display())] {
            let mut tasks = Tasks::default();
            let call = create(&mut tasks, "a", &uri);
            tasks.answered(&call, &Response::of(&CreateTaskResponse { pid: 7 }));
            File::options().write(true).open(&path).unwrap().write_all(b"out").unwrap();
            let mut text = [0; 8];
            assert_eq!(open().read(&mut text).unwrap(), 3, "{uri}");

            File::options().write(true).open(&path).unwrap().write_all(b"out").unwrap();
            tasks.forget("a");
            assert_eq!(open().read(&mut text).unwrap(), 0, "{uri}");
        }
    }

    #[test]
    fn who_opens_a_fifo_after_the_end_reads_what_is_left() {
        use std::io::{Read, Write};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for method in ["Wait", "State"] {
            let mut tasks = Tasks::default();
            let call = create(&mut tasks, "a", path.to_str().unwrap());
            tasks.answered(&call, &Response::of(&CreateTaskResponse { pid: 7 }));
            File::options().write(true).open(&path).unwrap().write_all(b"out").unwrap();
            let late = std::thread::spawn({
                let path = path.clone();
                move || {
                    let mut text = String::new();
                    File::open(path).unwrap().read_to_string(&mut text).unwrap();
                    text
                }
            });
            let call = ask(&mut tasks, method, &name("a", ""));
            let answer = match method {
                "Wait" => Response::of(&WaitResponse { exit_status: 3, exited_at: None }),
                _ => {
                    let status = Status::Stopped.into();
                    Response::of(&StateResponse { status, ..StateResponse::default() })
                }
            };
            // Until it has come to open it, nobody is let in.
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while !late.is_finished() {
                assert!(std::time::Instant::now() < deadline, "{method}");
                tasks.answered(&call, &answer);
                std::thread::yield_now();
            }
            assert_eq!(late.join().unwrap(), "out", "{method}");
        }
    }

    #[test]
    fn outputs_that_are_no_fifos_are_not_opened() {
        for uri in ["", "/dev/null", "file:///etc/hosts", "binary:///bin/true", "relative"] {
            assert!(open_fifo(uri).is_none(), "{uri}");
        }
    }
}
