//! What all connections of a front have in common: the containers, and the way to the supervisor.

use std::env;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use holdfast_ttrpc::front::{FORGET, Forget, HELLO, Hello, JOIN, Join, Joined, SERVICE};
use holdfast_ttrpc::rpc::{Code, Failure, Request, Response};
use holdfast_ttrpc::task::{ConnectRequest, ConnectResponse, SERVICES};
use holdfast_ttrpc::types::Empty;
use holdfast_ttrpc::{Frame, Message, place};

use crate::args::Args;
use crate::log::log;
use crate::start::{GROUP, VERSION};
use crate::tasks::{Call, Tasks};
use crate::{identity, launch, wire};

/// How long a container that `start` was called for is waited for.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// The shortest and the longest pause between two attempts to reach the supervisor.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_secs(1)];

/// A pod, or a container that is in none.
#[derive(Debug)]
pub(crate) struct Pod {
    namespace: &'static str,
    group: String,
    address: &'static str,
    ttrpc_address: String,
    /// Where the supervisor listens.
    supervisor: PathBuf,
    /// Distinguishes this front from all others.
    identity: String,
    /// The containers.
    pub(crate) tasks: Tasks,
    /// The containers that `start` was called for and that are still to be created, and until when they are waited
    /// for.
    joins: Vec<(String, Instant)>,
    /// Whether the front was asked to end, when it had no containers.
    pub(crate) ending: bool,
    retry: Retry,
}

/// The way to a supervisor that does not answer.
#[derive(Debug)]
struct Retry {
    /// The pause before the attempt after the next failure.
    pause: Duration,
    /// When to try again.
    at: Instant,
    /// The process that starts a supervisor.
    launcher: Option<Child>,
}

impl Pod {
    /// A pod, for whose first container `start` was called.
    pub(crate) fn new(args: &Args<'static>, now: Instant) -> io::Result<Self> {
        Ok(Self {
            namespace: args.namespace,
            group: env::var(GROUP).unwrap_or_else(|_| args.id.to_owned()),
            address: args.address,
            ttrpc_address: env::var("TTRPC_ADDRESS").unwrap_or_default(),
            supervisor: place::supervisor_socket(&place::directory(args.address)),
            identity: identity()?,
            tasks: Tasks::default(),
            joins: vec![(args.id.to_owned(), now + JOIN_LIMIT)],
            ending: false,
            retry: Retry { pause: PAUSES[0], at: now, launcher: None },
        })
    }

    /// Whether containers are there, or to come.
    pub(crate) fn is_needed(&self) -> bool {
        !self.tasks.is_empty() || !self.joins.is_empty()
    }

    /// Waits no longer for containers that have not been created in time. Returns when the next one will be late.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Instant> {
        self.joins.retain(|(_, until)| *until > now);
        self.joins.iter().map(|(_, until)| *until).min()
    }

    /// Answers a call without the supervisor, if it is one for a front.
    pub(crate) fn answer(&mut self, request: &Request, now: Instant) -> Option<Response> {
        let payload = request.payload.as_slice();
        let method = request.method.as_str();
        match request.service.as_str() {
            SERVICE => Some(match (method, Join::decode(payload), Forget::decode(payload)) {
                (JOIN, Ok(join), _) => {
                    // It has more to do before it ends.
                    self.ending = false;
                    self.joins.push((join.id, now + JOIN_LIMIT));
                    Response::of(&Joined { version: VERSION })
                }
                (FORGET, _, Ok(forget)) => {
                    self.joins.retain(|(id, _)| *id != forget.id);
                    self.tasks.forget(&forget.id);
                    Response::of(&Empty {})
                }
                _ => Failure::new(Code::Unimplemented, format!("{SERVICE}/{method}")).into(),
            }),
            service if SERVICES.contains(&service) => match method {
                "Connect" => {
                    let id = ConnectRequest::decode(payload).unwrap_or_default().id;
                    // Without an id it is asked of the front alone.
                    let task_pid = if id.is_empty() { Some(0) } else { self.tasks.pid(&id) };
                    Some(task_pid.map_or_else(
                        // A containerd that was killed before it had a container made finds its bundle when it
                        // starts again, and keeps the shim of that for ever if this succeeds (1.6).
                        || {
                            Failure::new(Code::NotFound, format!("container {id}: not found"))
                                .into()
                        },
                        |task_pid| {
                            Response::of(&ConnectResponse {
                                shim_pid: std::process::id(),
                                task_pid,
                                version: String::new(),
                            })
                        },
                    ))
                }
                "Shutdown" => {
                    self.ending = !self.is_needed();
                    Some(Response::of(&Empty {}))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Ends the front if it has no containers, also if one is to come.
    pub(crate) fn end_without_containers(&mut self) {
        if self.tasks.is_empty() {
            self.joins.clear();
            self.ending = true;
        }
    }

    /// Learns from a call that is about to be passed on.
    pub(crate) fn asked(&mut self, request: &Request) -> Call {
        if !SERVICES.contains(&request.service.as_str()) {
            return Call::Other;
        }
        let call = self.tasks.asked(request);
        if let Call::Make(name) = &call {
            self.joins.retain(|(id, _)| *id != name.id);
            self.ending = false;
        }
        call
    }

    /// The first frame of a connection to the supervisor.
    pub(crate) fn hello(&self, connection: u64) -> Frame {
        wire::own_call(
            HELLO,
            &Hello {
                namespace: self.namespace.to_owned(),
                group: self.group.clone(),
                connection: format!("{}-{connection}", self.identity),
                ttrpc_address: self.ttrpc_address.clone(),
            },
        )
    }

    /// Connects to the supervisor, if it is time for an attempt, and has one started if nobody listens.
    pub(crate) fn dial(&mut self, now: Instant) -> Option<UnixStream> {
        if now < self.retry.at {
            return None;
        }
        let error = match wire::dial(&self.supervisor) {
            Ok(stream) => return Some(stream),
            Err(error) => error,
        };
        self.reap(now);
        if wire::is_nobody(&error) && self.retry.launcher.is_none() {
            match launch::spawn(self.address) {
                Ok(child) => self.retry.launcher = Some(child),
                Err(error) => log("error", &format!("no supervisor can be started: {error}")),
            }
        }
        self.lost(now);
        None
    }

    /// The supervisor has gone, or was not there.
    pub(crate) fn lost(&mut self, now: Instant) {
        // Several connections may be lost at once, which is one failure.
        if self.retry.at <= now {
            self.retry.at = now + self.retry.pause;
            self.retry.pause = (self.retry.pause * 2).min(PAUSES[1]);
        }
    }

    /// The supervisor has answered.
    pub(crate) fn found(&mut self) {
        self.retry.pause = PAUSES[0];
    }

    /// When the supervisor is to be tried again.
    pub(crate) fn retry_at(&self) -> Instant {
        self.retry.at
    }

    /// Looks whether the process that starts a supervisor has ended. If that went well, a supervisor listens.
    pub(crate) fn reap(&mut self, now: Instant) {
        let Some(launcher) = &mut self.retry.launcher else { return };
        match launcher.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) if status.success() => self.retry.at = now,
            _ => {}
        }
        self.retry.launcher = None;
    }

    /// For people: what the front holds.
    pub(crate) fn describe(&self) -> String {
        let (tasks, processes, fifos) = self.tasks.count();
        format!(
            "front of {} in {}: {tasks} containers, {} to come, {processes} processes, {fifos} FIFOs",
            self.group,
            self.namespace,
            self.joins.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Action;
    use holdfast_ttrpc::task::{CreateTaskRequest, CreateTaskResponse};

    fn pod(now: Instant) -> Pod {
        let args = Args {
            namespace: "n",
            id: "a",
            address: "/c.sock",
            bundle: "",
            debug: false,
            action: Action::Serve,
        };
        Pod::new(&args, now).unwrap()
    }

    fn call(service: &str, method: &str, message: &impl Message) -> Request {
        Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            ..Request::default()
        }
    }

    #[test]
    fn a_shutdown_is_obeyed_only_when_no_container_is_there_or_to_come() {
        let now = Instant::now();
        let mut pod = pod(now);
        let shutdown = call(SERVICES[0], "Shutdown", &Empty {});
        let asks = |pod: &mut Pod| {
            assert!(pod.answer(&shutdown, now).unwrap().is_ok());
            pod.ending
        };
        assert!(!asks(&mut pod), "the first container is to come");
        let create = CreateTaskRequest { id: "a".to_owned(), ..CreateTaskRequest::default() };
        let made = pod.asked(&call(SERVICES[1], "Create", &create));
        assert!(!asks(&mut pod), "it is being created");
        pod.tasks.answered(&made, &Response::of(&CreateTaskResponse { pid: 1 }));
        assert!(!asks(&mut pod), "it is there");
        let join = pod.answer(&call(SERVICE, JOIN, &Join { id: "b".to_owned() }), now).unwrap();
        assert_eq!(join, Response::of(&Joined { version: 3 }));
        pod.answer(&call(SERVICE, FORGET, &Forget { id: "a".to_owned() }), now);
        assert!(!asks(&mut pod), "another is to come");
        pod.expire(now + JOIN_LIMIT - Duration::from_millis(1));
        assert!(!asks(&mut pod), "it still is");
        pod.expire(now + JOIN_LIMIT);
        assert!(asks(&mut pod), "it has not come in time");
    }

    #[test]
    fn the_pause_before_the_supervisor_is_tried_again_grows_once_for_all_connections() {
        let mut now = Instant::now();
        let mut pod = pod(now);
        let mut pauses = vec![];
        for _ in 0..12 {
            pod.lost(now);
            pod.lost(now);
            pauses.push((pod.retry_at() - now).as_millis());
            now = pod.retry_at();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
        pod.found();
        pod.lost(now);
        assert_eq!(pod.retry_at(), now + PAUSES[0]);
    }
}
