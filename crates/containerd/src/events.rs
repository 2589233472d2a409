//! Tells containerd what happens: the library's events, in containerd's words and in the order that it
//! expects, until containerd has taken them.
//!
//! For a container: create, start, exit, delete, the exit of its init process after those of its execs. For
//! an exec: added, started, exit.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use holdfast_supervisor::{
    ContainerId, Cursor, Event, EventKind, EventStream, ExitStatus, Gap, GapReason, Incarnation,
    ProcessId, Supervisor, Timestamp,
};
use holdfast_ttrpc::events::{
    Envelope, Event as Message, FORWARD, ForwardRequest, SERVICE, TaskCheckpointed, TaskCreate,
    TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use holdfast_ttrpc::rpc::{Code, Request, Response};
use holdfast_ttrpc::types::{Any, Timestamp as Time};
use holdfast_ttrpc::{Frame, Frames, Item, Kind, Message as _};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::exec::exec_id;
use crate::namespace::Task;

/// How long containerd may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The pauses between attempts to reach it.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(2)];

/// How long the exit of an init process waits for those of its execs, which the kernel has killed.
const EXECS: Duration = Duration::from_secs(10);

/// How many added execs the queue takes. For a further one, `exec-added` is sent when it starts.
const ADDED: usize = 1024;

/// The way to containerd.
#[derive(Debug)]
pub(crate) struct Forwarder {
    added: mpsc::Sender<(ContainerId, ProcessId)>,
    /// Whether something is being told.
    is_busy: Arc<AtomicBool>,
}

/// What has been told, on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    cursor: Cursor,
    /// The processes that were created and have not ended, with their pids.
    live: BTreeMap<Incarnation, BTreeMap<ProcessId, i32>>,
    /// The containers that were started and are not deleted.
    #[serde(default)]
    started: BTreeSet<ContainerId>,
    /// How the init processes of containers ended that are not deleted.
    ended: BTreeMap<Incarnation, End>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    pid: i32,
    status: u8,
    time: SystemTime,
}

impl Forwarder {
    /// Begins where an earlier supervisor has got to. `containerd` is the address of its ttrpc socket.
    pub(crate) fn begin(
        namespace: &str,
        supervisor: &Supervisor,
        path: PathBuf,
        containerd: Arc<Mutex<String>>,
    ) -> Self {
        let (added, receiver) = mpsc::channel(ADDED);
        let is_busy = Arc::new(AtomicBool::new(false));
        if let Some(parent) = path.parent() {
            // Without it, each attempt to store the cursor says so.
            let _ = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        }
        let read = fs::read(&path).ok();
        let told: Told =
            read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let teller = Teller {
            namespace: namespace.to_owned(),
            supervisor: supervisor.clone(),
            events: supervisor.events_since(told.cursor),
            told,
            path,
            containerd: Containerd { address: containerd, connection: None },
            added: HashSet::new(),
            held: HashMap::new(),
            is_busy: is_busy.clone(),
        };
        tokio::spawn(teller.run(receiver));
        Self { added, is_busy }
    }

    /// Whether an event is being sent that containerd has not taken yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    /// An exec was added.
    pub(crate) fn exec_added(&self, container: &ContainerId, exec: &ProcessId) {
        let _ = self.added.try_send((container.clone(), exec.clone()));
    }
}

struct Teller {
    namespace: String,
    supervisor: Supervisor,
    events: EventStream,
    told: Told,
    path: PathBuf,
    containerd: Containerd,
    /// Execs whose `exec-added` was sent, and that have not started.
    added: HashSet<(ContainerId, ProcessId)>,
    /// Exits of init processes that wait for those of their execs, and until when.
    held: HashMap<Incarnation, (Event, Instant)>,
    is_busy: Arc<AtomicBool>,
}

impl Teller {
    async fn run(mut self, mut added: mpsc::Receiver<(ContainerId, ProcessId)>) {
        loop {
            let until = self.held.values().map(|(_, until)| *until).min();
            tokio::select! {
                // An exec is added before it starts.
                biased;
                Some((container, exec)) = added.recv() => {
                    // Otherwise `exec-added` is sent when the exec starts: after its container's start.
                    if self.told.started.contains(&container) {
                        self.tell_added(&container, &exec).await;
                        self.added.insert((container, exec));
                    }
                    // That is not stored.
                    continue;
                }
                event = self.events.next() => match event {
                    None => return,
                    Some(Ok(event)) => self.tell(event).await,
                    // Numbers that an earlier supervisor had reserved; nothing happened under them.
                    Some(Err(Gap { reason: GapReason::Unclean, .. })) => {}
                    Some(Err(gap)) => {
                        tracing::warn!(namespace = self.namespace, %gap, "events are missing");
                    }
                },
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    self.tell_held(|_, until| until <= Instant::now()).await;
                }
            }
            // While an exit is held the cursor stays: after a crash it is sent again, and so are later events.
            if self.held.is_empty() {
                self.told.cursor = self.events.cursor();
                if let Err(error) = self.save() {
                    tracing::warn!(namespace = self.namespace, %error, "events may be told again");
                }
            }
        }
    }

    fn save(&self) -> io::Result<()> {
        let staged = self.path.with_extension("new");
        fs::write(&staged, serde_json::to_vec(&self.told)?)?;
        fs::rename(&staged, &self.path)
    }

    async fn tell(&mut self, event: Event) {
        let container_id = event.container.to_string();
        let time = event.time.clone();
        let is_init = event.process.is_init();
        let live = self.told.live.entry(event.incarnation).or_default();
        let pid = live.get(&event.process).copied().unwrap_or(0);
        let number = u32::try_from(pid).unwrap_or(0);
        match event.kind {
            EventKind::Created { pid } => {
                live.insert(event.process.clone(), pid);
                if is_init {
                    let created = self.created(&event.container, pid);
                    self.send(created, &time).await;
                }
            }
            EventKind::Started if is_init => {
                self.told.started.insert(event.container.clone());
                self.send(TaskStart { container_id, pid: number }, &time).await;
            }
            EventKind::Started => {
                let key = (event.container.clone(), event.process.clone());
                if !self.added.remove(&key) {
                    self.tell_added(&event.container, &event.process).await;
                }
                let exec_id = exec_id(&event.process).to_owned();
                self.send(TaskExecStarted { container_id, exec_id, pid: number }, &time).await;
            }
            EventKind::Exited { .. }
                if is_init && live.keys().any(|process| !process.is_init()) =>
            {
                let until = Instant::now() + EXECS;
                self.held.insert(event.incarnation, (event, until));
            }
            EventKind::Exited { status, .. } => {
                let incarnation = event.incarnation;
                self.tell_exit(event, status, pid).await;
                self.tell_held(|held, _| held.incarnation == incarnation).await;
            }
            EventKind::StartFailed { .. } => {
                live.remove(&event.process);
                let incarnation = event.incarnation;
                self.added.remove(&(event.container, event.process));
                self.tell_held(|held, _| held.incarnation == incarnation).await;
            }
            EventKind::Deleted => {
                // Nothing more is to be heard of its execs.
                live.retain(|process, _| process.is_init());
                self.tell_held(|held, _| held.incarnation == event.incarnation).await;
                let end = self.told.ended.remove(&event.incarnation);
                let exited_at = end.map(|end| Time::from(end.time));
                let exit_status = end.map_or(0, |end| u32::from(end.status));
                let pid = end.and_then(|end| u32::try_from(end.pid).ok()).unwrap_or(0);
                let id = String::new();
                self.send(TaskDelete { container_id, pid, exit_status, exited_at, id }, &time)
                    .await;
                self.told.live.remove(&event.incarnation);
                self.told.started.remove(&event.container);
                self.added.retain(|(container, _)| *container != event.container);
            }
            EventKind::OutOfMemory => self.send(TaskOOM { container_id }, &time).await,
            EventKind::Paused => self.send(TaskPaused { container_id }, &time).await,
            EventKind::Resumed => self.send(TaskResumed { container_id }, &time).await,
            EventKind::Checkpointed => {
                let checkpoint = String::new();
                self.send(TaskCheckpointed { container_id, checkpoint }, &time).await;
            }
            _ => {}
        }
        self.told.live.retain(|_, processes| !processes.is_empty());
    }

    fn created(&self, id: &ContainerId, pid: i32) -> TaskCreate {
        let container = self.supervisor.get(id);
        let task = container.map(|container| Task::of(&container)).unwrap_or_default();
        TaskCreate {
            container_id: id.to_string(),
            bundle: task.bundle.to_string_lossy().into_owned(),
            rootfs: task.mounts(),
            io: Some(TaskIO {
                stdin: task.stdin,
                stdout: task.stdout,
                stderr: task.stderr,
                terminal: task.terminal,
            }),
            checkpoint: task.checkpoint,
            pid: u32::try_from(pid).unwrap_or(0),
        }
    }

    /// Tells those of the held exits that need not wait any more.
    async fn tell_held(&mut self, which: impl Fn(&Event, Instant) -> bool) {
        let chosen = self.held.iter().filter(|(_, (event, until))| which(event, *until));
        for incarnation in chosen.map(|(incarnation, _)| *incarnation).collect::<Vec<_>>() {
            let Some((event, until)) = self.held.remove(&incarnation) else { continue };
            let EventKind::Exited { status, .. } = event.kind else { continue };
            let live = self.told.live.get(&incarnation);
            let waits = live.is_some_and(|live| live.keys().any(|process| !process.is_init()));
            if waits && until > Instant::now() {
                // Another of its execs has still to end.
                self.held.insert(incarnation, (event, until));
                continue;
            }
            if waits {
                tracing::warn!(container = %event.container, "execs have not ended with their container");
            }
            let pid = live.and_then(|live| live.get(&ProcessId::init())).copied().unwrap_or(0);
            self.tell_exit(event, status, pid).await;
        }
    }

    async fn tell_exit(&mut self, event: Event, status: ExitStatus, pid: i32) {
        let time = SystemTime::try_from(&event.time).unwrap_or_else(|_| SystemTime::now());
        let is_init = event.process.is_init();
        let exit = TaskExit {
            container_id: event.container.to_string(),
            id: if is_init { event.container.as_str() } else { exec_id(&event.process) }.to_owned(),
            pid: u32::try_from(pid).unwrap_or(0),
            exit_status: u32::from(status.as_number()),
            exited_at: Some(time.into()),
        };
        self.send(exit, &event.time).await;
        if let Some(live) = self.told.live.get_mut(&event.incarnation) {
            live.remove(&event.process);
        }
        if is_init {
            self.told
                .ended
                .insert(event.incarnation, End { pid, status: status.as_number(), time });
        }
    }

    async fn tell_added(&mut self, container: &ContainerId, exec: &ProcessId) {
        let (container_id, exec_id) = (container.to_string(), exec_id(exec).to_owned());
        self.send(TaskExecAdded { container_id, exec_id }, &Timestamp::now()).await;
    }

    async fn send<M: Message>(&mut self, message: M, time: &Timestamp) {
        let time = SystemTime::try_from(time).unwrap_or_else(|_| SystemTime::now());
        let envelope = Envelope {
            timestamp: Some(time.into()),
            namespace: self.namespace.clone(),
            topic: M::TOPIC.to_owned(),
            event: Some(Any::of(M::TYPE, &message)),
        };
        self.is_busy.store(true, Ordering::Relaxed);
        self.containerd.forward(envelope).await;
        self.is_busy.store(false, Ordering::Relaxed);
    }
}

/// The service of containerd that takes events.
struct Containerd {
    address: Arc<Mutex<String>>,
    connection: Option<Connection>,
}

struct Connection {
    stream: UnixStream,
    frames: Frames,
    read: BytesMut,
    /// The number of the next call: odd, as those of all clients.
    next: u32,
}

impl Containerd {
    /// Tells one event, as often as it takes.
    async fn forward(&mut self, envelope: Envelope) {
        let payload = ForwardRequest { envelope: Some(envelope) }.encode_to_vec();
        let request = Request {
            service: SERVICE.to_owned(),
            method: FORWARD.to_owned(),
            payload,
            timeout_nano: 0,
            metadata: Vec::new(),
        };
        let message = request.encode_to_vec();
        let mut pause = PAUSES[0];
        loop {
            match self.call(&message).await {
                Ok(Response { status: Some(failure), .. })
                    if failure.code == Code::Unavailable as i32 => {}
                Ok(response) => {
                    // containerd has it, and does not want it: again it would not either.
                    if let Some(failure) = response.status.filter(|failure| failure.code != 0) {
                        tracing::warn!(reason = failure.message, "containerd refuses an event");
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "containerd takes no events now");
                    self.connection = None;
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    async fn call(&mut self, message: &[u8]) -> io::Result<Response> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let address = self.address.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let path = address.strip_prefix("unix://").unwrap_or(&address);
                let stream = UnixStream::connect(path).await?;
                let (frames, read) = (Frames::default(), BytesMut::new());
                self.connection.insert(Connection { stream, frames, read, next: 1 })
            }
        };
        timeout(ANSWER, connection.call(message)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

impl Connection {
    async fn call(&mut self, message: &[u8]) -> io::Result<Response> {
        let stream = self.next;
        self.next = self.next.wrapping_add(2);
        let mut bytes = BytesMut::new();
        let message = message.to_vec().into();
        Frame { stream, kind: Kind::Request, flags: 0, message }.encode(&mut bytes);
        self.stream.write_all(&bytes).await?;
        loop {
            while let Some(item) = self.frames.next(&mut self.read) {
                match item {
                    Item::Frame(frame)
                        if frame.stream == stream && frame.kind == Kind::Response =>
                    {
                        return Response::decode(frame.message).map_err(io::Error::other);
                    }
                    // Nothing else was asked for.
                    _ => {}
                }
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
