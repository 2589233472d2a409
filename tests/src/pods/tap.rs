//! The socket between the supervisor and containerd. It passes everything on, and notes each event that
//! containerd has acknowledged. `ctr events` would miss those that come while it is not connected, after
//! a restart of containerd.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use holdfast_ttrpc::events::{
    Envelope, ForwardRequest, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit,
    TaskStart,
};
use holdfast_ttrpc::rpc::{Request, Response};
use holdfast_ttrpc::{Frame, Frames, Item, Kind, Message};

use super::life::{Event, History, What};

/// What containerd has acknowledged.
#[derive(Debug, Default)]
struct Heard {
    histories: Mutex<HashMap<String, History>>,
    more: Condvar,
}

/// The socket.
pub(crate) struct Tap(Arc<Heard>);

impl Tap {
    /// Listens at a path, for what is to go to another.
    pub(crate) fn begin(path: &Path, containerd: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let heard = Arc::new(Heard::default());
        let (containerd, tap) = (containerd.to_owned(), Self(heard.clone()));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &containerd, &heard);
            }
        });
        Ok(tap)
    }

    fn histories(&self) -> MutexGuard<'_, HashMap<String, History>> {
        self.0.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something holds of a container's events; whether it does in time.
    pub(crate) fn wait(&self, id: &str, limit: Duration, holds: impl Fn(&History) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut histories = self.histories();
        loop {
            if histories.get(id).is_some_and(&holds) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.more.wait_timeout(histories, left);
            histories = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The events of a container.
    pub(crate) fn history(&self, id: &str) -> History {
        self.histories().get(id).cloned().unwrap_or_default()
    }

    /// Forgets the events of a container, and returns them.
    pub(crate) fn take(&self, id: &str) -> History {
        self.histories().remove(id).unwrap_or_default()
    }
}

type Asked = Arc<Mutex<HashMap<u32, Envelope>>>;

fn serve(supervisor: UnixStream, containerd: &PathBuf, heard: &Arc<Heard>) {
    // If it does not listen, the supervisor finds its connection closed, and tries again.
    let Ok(containerd) = UnixStream::connect(containerd) else { return };
    let asked = Asked::default();
    let ends = (supervisor.try_clone(), containerd.try_clone());
    let (Ok(supervisor_too), Ok(containerd_too)) = ends else { return };
    let (asking, heard) = (asked.clone(), heard.clone());
    thread::spawn(move || pass(supervisor, containerd, |frame| request(frame, &asking)));
    thread::spawn(move || {
        pass(containerd_too, supervisor_too, |frame| answer(frame, &asked, &heard));
    });
}

/// Passes bytes on to their end, and shows each frame before that.
fn pass(mut from: UnixStream, mut to: UnixStream, see: impl Fn(Frame)) {
    let (mut frames, mut read) = (Frames::default(), BytesMut::new());
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        read.extend_from_slice(&buffer[..count]);
        while let Some(item) = frames.next(&mut read) {
            if let Item::Frame(frame) = item {
                see(frame);
            }
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn request(frame: Frame, asked: &Asked) {
    let forward = Request::decode(frame.message)
        .and_then(|request| ForwardRequest::decode(request.payload.as_slice()));
    if let Ok(ForwardRequest { envelope: Some(envelope) }) = forward {
        asked.lock().unwrap_or_else(PoisonError::into_inner).insert(frame.stream, envelope);
    }
}

fn answer(frame: Frame, asked: &Asked, heard: &Heard) {
    let envelope = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&frame.stream);
    let is_taken = frame.kind == Kind::Response
        && Response::decode(frame.message).is_ok_and(|response| response.is_ok());
    if let Some(event) = envelope.filter(|_| is_taken).as_ref().and_then(event) {
        let mut histories = heard.histories.lock().unwrap_or_else(PoisonError::into_inner);
        histories.entry(event.container.clone()).or_default().push(event);
        heard.more.notify_all();
    }
}

/// Reads an event that is about the life of a process.
fn event(envelope: &Envelope) -> Option<Event> {
    let any = envelope.event.as_ref()?;
    let bytes = any.value.as_slice();
    let (container, exec, what) = match envelope.topic.as_str() {
        "/tasks/create" => (TaskCreate::decode(bytes).ok()?.container_id, None, What::Create),
        "/tasks/start" => (TaskStart::decode(bytes).ok()?.container_id, None, What::Start),
        "/tasks/exit" => {
            let exit = TaskExit::decode(bytes).ok()?;
            let exec = (exit.id != exit.container_id).then_some(exit.id);
            (exit.container_id, exec, What::Exit(exit.exit_status))
        }
        "/tasks/delete" => {
            let delete = TaskDelete::decode(bytes).ok()?;
            (delete.container_id, None, What::Delete(delete.exit_status))
        }
        "/tasks/exec-added" => {
            let added = TaskExecAdded::decode(bytes).ok()?;
            (added.container_id, Some(added.exec_id), What::Added)
        }
        "/tasks/exec-started" => {
            let started = TaskExecStarted::decode(bytes).ok()?;
            (started.container_id, Some(started.exec_id), What::Start)
        }
        _ => return None,
    };
    Some(Event { container, exec, what, content: any.value.clone() })
}
