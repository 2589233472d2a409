//! The state of the existing containers, as the journal derives it from their events.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::{ContainerId, Event, EventKind, ExitRecord, Incarnation, ProcessId, Timestamp};

/// All containers whose last event has not been published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known(HashMap<ContainerId, KnownContainer>);

/// What the events say about one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownContainer {
    /// The incarnation of the container.
    pub incarnation: Incarnation,
    /// The number of its last start.
    pub run: u32,
    /// Its processes.
    pub processes: KnownProcesses,
}

/// The processes of a container. Most have only the init process, which is stored without an
/// allocation of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownProcesses {
    init: Option<KnownProcess>,
    execs: BTreeMap<ProcessId, KnownProcess>,
}

impl KnownProcesses {
    /// Returns what is known of a process.
    #[must_use]
    pub fn get(&self, id: &ProcessId) -> Option<&KnownProcess> {
        if id.is_init() { self.init.as_ref() } else { self.execs.get(id) }
    }

    /// Adds an event of one of them.
    pub fn add(&mut self, event: &Event) {
        let process = match event.process.is_init() {
            true => self.init.get_or_insert_default(),
            false => self.execs.entry(event.process.clone()).or_default(),
        };
        process.add(event);
    }

    /// Returns all of them.
    pub fn iter(&self) -> impl Iterator<Item = (ProcessId, &KnownProcess)> {
        let init = self.init.iter().map(|known| (ProcessId::init(), known));
        init.chain(self.execs.iter().map(|(id, known)| (id.clone(), known)))
    }

    fn insert(&mut self, id: ProcessId, known: KnownProcess) {
        if id.is_init() {
            self.init = Some(known);
        } else {
            self.execs.insert(id, known);
        }
    }

    /// Removes what is known of a process.
    pub fn forget(&mut self, id: &ProcessId) {
        if id.is_init() {
            self.init = None;
        } else {
            self.execs.remove(id);
        }
    }
}

/// What the events say about one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KnownProcess {
    /// The pid in the host's pid namespace; `None` if none was published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The last change of its activity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doing: Option<Doing>,
    /// Whether its program is known to have run.
    pub started: bool,
    /// When its program was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Whether the OOM killer killed a process of the container.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Whether it has lost its shim.
    pub shim_lost: bool,
    /// How it exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exited: Option<ExitRecord>,
    /// Whether its start failed.
    pub failed: bool,
}

/// The last change of a process's activity, as its events give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are the events")]
pub enum Doing {
    Starting,
    Started,
    Pausing,
    Paused,
    Resuming,
    Resumed,
}

/// One line of the snapshot at the beginning of a segment: one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownLine {
    pub(super) container: ContainerId,
    pub(super) incarnation: Incarnation,
    pub(super) run: u32,
    pub(super) process: ProcessId,
    #[serde(flatten)]
    pub(super) known: KnownProcess,
}

impl Known {
    /// Returns what is known of the container that has this id now.
    #[must_use]
    pub fn get(&self, id: &ContainerId) -> Option<&KnownContainer> {
        self.0.get(id)
    }

    /// Returns all containers.
    pub fn iter(&self) -> impl Iterator<Item = (&ContainerId, &KnownContainer)> {
        self.0.iter()
    }

    /// Adds an event. Adding an event a second time changes nothing, provided all events that came
    /// after it are added again too.
    pub fn add(&mut self, event: &Event) {
        if event.process.is_init() && matches!(event.kind, EventKind::Deleted | EventKind::SetAside)
        {
            // The container that has the id now may be a later one.
            if self.0.get(&event.container).is_some_and(|it| it.incarnation == event.incarnation) {
                self.0.remove(&event.container);
            }
            return;
        }
        let container = self.container(&event.container, event.incarnation, event.run);
        if event.kind == EventKind::SetAside {
            container.processes.forget(&event.process);
            return;
        }
        container.processes.add(event);
    }

    /// Removes a process of which no more events follow; for the init process, its whole container.
    pub fn forget(&mut self, id: &ContainerId, incarnation: Incarnation, process: &ProcessId) {
        let Some(container) = self.0.get_mut(id).filter(|it| it.incarnation == incarnation) else {
            return;
        };
        if process.is_init() {
            self.0.remove(id);
        } else {
            container.processes.forget(process);
        }
    }

    fn container(
        &mut self,
        id: &ContainerId,
        incarnation: Incarnation,
        run: u32,
    ) -> &mut KnownContainer {
        let new = || KnownContainer::new(incarnation);
        let container = self.0.entry(id.clone()).or_insert_with(new);
        if container.incarnation != incarnation {
            *container = new();
        }
        container.run = run;
        container
    }

    pub(super) fn add_line(&mut self, line: KnownLine) {
        let container = self.container(&line.container, line.incarnation, line.run);
        container.processes.insert(line.process, line.known);
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = KnownLine> {
        self.0.iter().flat_map(|(id, container)| {
            container.processes.iter().map(|(process, known)| KnownLine {
                container: id.clone(),
                incarnation: container.incarnation,
                run: container.run,
                process,
                known: known.clone(),
            })
        })
    }
}

impl KnownContainer {
    /// Returns a container without any events.
    #[must_use]
    pub fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, run: 1, processes: KnownProcesses::default() }
    }

    /// Returns an event of this container as a whole, without a number.
    #[must_use]
    pub fn event(&self, id: &ContainerId, kind: EventKind) -> Event {
        let start = (self.incarnation, self.run);
        Event::new(id.clone(), start, ProcessId::init(), Timestamp::now(), kind)
    }
}

impl KnownProcess {
    /// Adds an event of this process.
    pub fn add(&mut self, event: &Event) {
        match event.kind {
            // Earlier events belong to an earlier exec process with the same id.
            EventKind::Created { pid } => *self = Self { pid: Some(pid), ..Self::default() },
            EventKind::StartFailed { .. } => {
                // A container whose next run fails to start is again what it was: its last run has
                // exited.
                let before = match event.process.is_init() {
                    true => std::mem::take(self),
                    false => Self::default(),
                };
                let Self { exited, started_at, oom_killed, .. } = before;
                *self = Self { failed: true, exited, started_at, oom_killed, ..Self::default() };
            }
            EventKind::Starting => self.doing = Some(Doing::Starting),
            EventKind::Started => {
                (self.doing, self.started) = (Some(Doing::Started), true);
                self.started_at = Some(event.time.clone());
            }
            EventKind::Pausing => self.doing = Some(Doing::Pausing),
            EventKind::Paused => self.doing = Some(Doing::Paused),
            EventKind::Resuming => self.doing = Some(Doing::Resuming),
            EventKind::Resumed => self.doing = Some(Doing::Resumed),
            EventKind::ShimLost => self.shim_lost = true,
            EventKind::Adopted => self.shim_lost = false,
            EventKind::Exited { status, evidence, oom_killed } => {
                let time = event.time.clone();
                self.exited = Some(ExitRecord { status, evidence, time, oom_killed });
            }
            EventKind::OutOfMemory => self.oom_killed = event.process.is_init(),
            EventKind::Checkpointed | EventKind::SetAside | EventKind::Deleted => {}
        }
    }
}
