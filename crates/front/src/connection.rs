//! One connection of containerd, and the connection to the supervisor that belongs to it.
//!
//! Whole frames go through unchanged. Calls that are not answered are kept: if the supervisor dies, they are sent to
//! the next one again, with [`AGAIN`].

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_ttrpc::frame::{AGAIN, MOST};
use holdfast_ttrpc::rpc::{Code, Failure, Request, Response};
use holdfast_ttrpc::{Frame, Item, Kind, Message};

use crate::log::log;
use crate::pod::Pod;
use crate::tasks::Call;
use crate::wire::{self, Wire};

/// How long the supervisor has for a question that the front can answer.
const QUESTION_LIMIT: Duration = Duration::from_secs(1);
/// No further calls are read while so many bytes of calls wait for their answer.
const MOST_PENDING: usize = 4 * MOST;

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Its number in this front.
    number: u64,
    /// Where containerd is. Without it, only the answers to calls that change something are waited for.
    pub(crate) client: Option<Wire>,
    /// Where the supervisor is.
    pub(crate) supervisor: Option<Wire>,
    /// Whether there was a call for the supervisor. From then on there is to be a connection: the supervisor has
    /// events to send also if nobody calls.
    wanted: bool,
    /// The calls that are not answered, oldest first.
    pending: VecDeque<Pending>,
}

/// A call that is not answered.
#[derive(Debug)]
struct Pending {
    frame: Frame,
    call: Call,
    /// Whether this supervisor has got it.
    sent: bool,
    /// When the front answers it.
    deadline: Option<Instant>,
}

impl Connection {
    /// Begins with a connection of containerd, or of `start`.
    pub(crate) fn new(number: u64, client: UnixStream) -> Self {
        Self {
            number,
            client: Some(Wire::new(client)),
            supervisor: None,
            wanted: false,
            pending: VecDeque::new(),
        }
    }

    /// Whether nothing is left to do.
    pub(crate) fn is_done(&self) -> bool {
        self.client.is_none() && self.pending.is_empty()
    }

    /// How many calls are not answered.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether further calls may be read.
    pub(crate) fn has_room_for_calls(&self) -> bool {
        let bytes: usize = self.pending.iter().map(|one| one.frame.message.len()).sum();
        bytes < MOST_PENDING && self.has_room_for_answers()
    }

    /// Whether further answers may be read.
    pub(crate) fn has_room_for_answers(&self) -> bool {
        self.client.as_ref().is_none_or(|client| client.queued() < MOST)
    }

    /// When there is something to do even if nothing comes.
    pub(crate) fn deadline(&self, pod: &Pod) -> Option<Instant> {
        let answer = self.pending.iter().filter_map(|one| one.deadline).min();
        let retry = (self.wanted && self.supervisor.is_none()).then(|| pod.retry_at());
        answer.into_iter().chain(retry).min()
    }

    /// Reads calls.
    pub(crate) fn read_client(&mut self, pod: &mut Pod, now: Instant) {
        let Some(client) = &mut self.client else { return };
        if let Err(error) = client.fill() {
            if !is_transient(&error) {
                self.close(pod);
            }
            return;
        }
        while let Some(item) = self.client.as_mut().and_then(Wire::next) {
            match item {
                Item::Frame(frame) if frame.kind == Kind::Request => self.asked(frame, pod, now),
                Item::TooLong { stream, kind: Kind::Request, length } => {
                    self.reply(stream, &too_long("call", length));
                }
                // Nothing else comes from containerd.
                Item::Frame(_) | Item::TooLong { .. } => {}
            }
        }
    }

    fn asked(&mut self, frame: Frame, pod: &mut Pod, now: Instant) {
        let request = Request::decode(frame.message.as_ref()).ok();
        let own = request.as_ref().and_then(|request| pod.answer(request, now));
        if let Some(response) = own {
            return self.reply(frame.stream, &response);
        }
        let call = request.map_or(Call::Other, |request| pod.asked(&request));
        let deadline = call.is_question().then(|| now + QUESTION_LIMIT);
        // A copy: what the message lies in may be much larger, and a call can take as long as its container lives.
        let frame = Frame { message: Bytes::copy_from_slice(&frame.message), ..frame };
        self.pending.push_back(Pending { frame, call, sent: false, deadline });
        self.wanted = true;
    }

    /// Reads answers.
    pub(crate) fn read_supervisor(&mut self, pod: &mut Pod, now: Instant) {
        let Some(supervisor) = &mut self.supervisor else { return };
        if let Err(error) = supervisor.fill() {
            if !is_transient(&error) {
                self.lost(pod, now);
            }
            return;
        }
        while let Some(item) = self.supervisor.as_mut().and_then(Wire::next) {
            match item {
                Item::Frame(frame) if frame.kind == Kind::Response => {
                    pod.found();
                    // An answer that nobody waits for any more: the front has given one.
                    let Some(call) = self.take(frame.stream) else { continue };
                    if let Ok(response) = Response::decode(frame.message.as_ref()) {
                        pod.tasks.answered(&call, &response);
                    }
                    if let Some(client) = &mut self.client {
                        client.push(&frame);
                    }
                }
                Item::TooLong { stream, kind: Kind::Response, length } => {
                    if self.take(stream).is_some() {
                        self.reply(stream, &too_long("answer", length));
                    }
                }
                Item::Frame(_) | Item::TooLong { .. } => {}
            }
        }
    }

    /// Connects to the supervisor if need be, writes what can be written, and answers what is late.
    pub(crate) fn advance(&mut self, pod: &mut Pod, now: Instant) {
        if self.wanted && self.supervisor.is_none() {
            self.supervisor = pod.dial(now).map(Wire::new);
            if let Some(supervisor) = &mut self.supervisor {
                supervisor.push(&pod.hello(self.number));
            }
        }
        if self.send().is_err() {
            self.lost(pod, now);
        }
        let is_late = |one: &Pending| one.deadline.is_some_and(|deadline| deadline <= now);
        while let Some(late) = self.pending.iter().position(is_late) {
            if let Some(late) = self.pending.remove(late) {
                self.reply(late.frame.stream, &pod.tasks.answer(&late.call));
            }
        }
        if self.client.as_mut().is_some_and(|client| client.flush().is_err()) {
            self.close(pod);
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let Some(supervisor) = &mut self.supervisor else { return Ok(()) };
        supervisor.flush()?;
        for one in self.pending.iter_mut().filter(|one| !one.sent) {
            // One by one, so that what waits is not in memory twice.
            if supervisor.queued() > 0 {
                break;
            }
            supervisor.push(&one.frame);
            one.sent = true;
            supervisor.flush()?;
        }
        Ok(())
    }

    /// The supervisor has gone. What it has got and not answered goes to the next one.
    fn lost(&mut self, pod: &mut Pod, now: Instant) {
        self.supervisor = None;
        for one in self.pending.iter_mut().filter(|one| one.sent) {
            one.sent = false;
            one.frame.flags |= AGAIN;
        }
        pod.lost(now);
        log("warning", &format!("the supervisor has gone; {} calls wait", self.pending.len()));
    }

    /// containerd has gone. The supervisor goes on with what it has got, and what that makes of the containers is to be
    /// heard.
    fn close(&mut self, pod: &mut Pod) {
        self.client = None;
        let gone = Failure::new(Code::Canceled, "containerd has closed the connection").into();
        self.pending.retain(|one| {
            let begun = one.sent || one.frame.flags & AGAIN != 0;
            if !begun {
                pod.tasks.answered(&one.call, &gone);
            }
            begun && one.call.is_change()
        });
    }

    fn take(&mut self, stream: u32) -> Option<Call> {
        let position = self.pending.iter().position(|one| one.frame.stream == stream)?;
        self.pending.remove(position).map(|one| one.call)
    }

    fn reply(&mut self, stream: u32, response: &Response) {
        if let Some(client) = &mut self.client {
            client.push(&wire::answer(stream, response));
        }
    }
}

fn too_long(what: &str, length: usize) -> Response {
    let text = format!("the {what} has {length} bytes, and at most {MOST} are passed on");
    Failure::new(Code::ResourceExhausted, text).into()
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
