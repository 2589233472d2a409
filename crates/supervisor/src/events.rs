//! Events: appended to the container's journal, then told to everyone who listens.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Mutex, PoisonError};

use holdfast_state::{
    ContainerEvent, ContainerId, Event, EventKind, ProcessId, StateRoot, Timestamp, journal,
};
use thiserror::Error;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::supervisor::Core;

/// How far a listener may fall behind before it misses events, which it is then told.
const BACKLOG: usize = 4096;

/// A listener was too slow. The journals have what it missed: [`Replay::Yes`] in a new stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("fell behind and missed {missed} events")]
pub struct Lagged {
    /// How many events it missed.
    pub missed: u64,
}

/// Whether a stream of events begins with those that the containers have behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// The exits of containers that have removed themselves, as far back as they are kept; all events
    /// in the journals of the containers that exist; then the new ones.
    Yes,
    /// The new ones only.
    No,
}

/// Everyone who listens.
#[derive(Debug)]
pub(crate) struct Hub(broadcast::Sender<ContainerEvent>);

impl Hub {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

/// The one ordered stream of a container.
#[derive(Debug)]
pub(crate) struct EventLog {
    container: ContainerId,
    journal: Mutex<Journal>,
}

/// How far the journal has come.
#[derive(Debug)]
struct Journal {
    /// The number of the next event.
    next: u64,
    /// What has been told and could not be written yet: the disk is full, say.
    unwritten: VecDeque<Event>,
}

impl EventLog {
    /// Goes on after the events that the journal has.
    pub(crate) fn new(container: ContainerId, past: &[Event]) -> Self {
        let last = past.iter().map(|event| event.seq).max().unwrap_or(0);
        let journal = Journal { next: last.saturating_add(1), unwritten: VecDeque::new() };
        Self { container, journal: Mutex::new(journal) }
    }

    /// Numbers events, writes them down and tells them. The lock is held all the while, so that
    /// journal and listeners see the same order.
    pub(crate) fn publish(
        &self,
        root: &StateRoot,
        hub: &Hub,
        process: &ProcessId,
        kinds: Vec<EventKind>,
    ) {
        if kinds.is_empty() {
            return;
        }
        self.tell(hub, process, kinds, |unwritten, events| {
            unwritten.extend(events.iter().cloned());
            if let Err(error) = self.write(root, unwritten) {
                // The event itself must go on: a full disk is no reason to hide an exit. It is
                // written before the next one.
                tracing::warn!(container = %self.container, %error, "{} not written", journal::NAME);
            }
            let too_many = unwritten.len().saturating_sub(BACKLOG);
            unwritten.drain(..too_many);
        });
    }

    fn write(&self, root: &StateRoot, unwritten: &mut VecDeque<Event>) -> io::Result<()> {
        journal::append(&root.container(&self.container)?, unwritten.make_contiguous())?;
        unwritten.clear();
        Ok(())
    }

    /// Writes what could not be written before.
    pub(crate) fn flush(&self, root: &StateRoot) -> io::Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if journal.unwritten.is_empty() { Ok(()) } else { self.write(root, &mut journal.unwritten) }
    }

    /// How its processes ended, as far as the journal goes back.
    pub(crate) fn exits(&self, root: &StateRoot) -> Vec<ContainerEvent> {
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let written = root.container(&self.container).and_then(|dir| journal::read(&dir));
        let written = written.unwrap_or_else(|error| {
            tracing::warn!(container = %self.container, %error, "journal unreadable");
            Vec::new()
        });
        let all = written.into_iter().chain(journal.unwritten.iter().cloned());
        all.filter(|event| matches!(event.kind, EventKind::Exited { .. }))
            .map(|event| ContainerEvent { container: self.container.clone(), event })
            .collect()
    }

    /// Tells that the container is gone, its journal included.
    pub(crate) fn publish_last(&self, hub: &Hub) {
        self.tell(hub, &ProcessId::init(), vec![EventKind::Deleted], |_, _| {});
    }

    fn tell(
        &self,
        hub: &Hub,
        process: &ProcessId,
        kinds: Vec<EventKind>,
        write: impl FnOnce(&mut VecDeque<Event>, &[Event]),
    ) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let time = Timestamp::now();
        let mut events = Vec::new();
        for kind in kinds {
            let seq = journal.next;
            events.push(Event { seq, time: time.clone(), process: process.clone(), kind });
            journal.next = journal.next.saturating_add(1);
        }
        write(&mut journal.unwritten, &events);
        for event in events {
            // An error means that nobody listens.
            let _ = hub.0.send(ContainerEvent { container: self.container.clone(), event });
        }
    }
}

/// A stream of events; ends when the supervisor is shut down.
#[derive(Debug)]
pub struct EventStream {
    replay: VecDeque<ContainerEvent>,
    /// The last replayed number of each container: what comes live up to it has been told.
    told: HashMap<ContainerId, u64>,
    live: broadcast::Receiver<ContainerEvent>,
    /// Events are sent by the supervisor's core, which tasks keep alive; this ends with the supervisor.
    stop: CancellationToken,
}

impl EventStream {
    pub(crate) fn new(core: &Core, replay: Replay) -> Self {
        // Listening comes first: what happens while the journals are read is heard, and told once.
        let live = core.events.0.subscribe();
        let mut stream =
            Self { replay: VecDeque::new(), told: HashMap::new(), live, stop: core.stop.clone() };
        if replay == Replay::Yes {
            let kept = core.root.kept_exits().unwrap_or_else(|error| {
                tracing::warn!(%error, "the exits of removed containers can't be read");
                Vec::new()
            });
            let unseen = kept.into_iter().filter(|kept| !kept.asked);
            stream.replay.extend(unseen.map(|kept| kept.exit));
            for container in core.ids() {
                let past = core.root.container(&container).and_then(|dir| journal::read(&dir));
                for event in past.unwrap_or_default() {
                    stream.told.insert(container.clone(), event.seq);
                    stream.replay.push_back(ContainerEvent { container: container.clone(), event });
                }
            }
        }
        stream
    }

    /// The next event. `None` after a shutdown. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<ContainerEvent, Lagged>> {
        if let Some(event) = self.replay.pop_front() {
            return Some(Ok(event));
        }
        loop {
            let received = tokio::select! {
                biased;
                received = self.live.recv() => received,
                () = self.stop.cancelled() => return None,
            };
            match received {
                Ok(event) => {
                    if event.event.kind == EventKind::Deleted {
                        // The next container of this id counts from 1 again.
                        self.told.remove(&event.container);
                    } else if self
                        .told
                        .get(&event.container)
                        .is_some_and(|told| event.event.seq <= *told)
                    {
                        continue;
                    }
                    return Some(Ok(event));
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    return Some(Err(Lagged { missed }));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// The same as a [`futures::Stream`].
    pub fn into_stream(self) -> impl futures::Stream<Item = Result<ContainerEvent, Lagged>> {
        futures::stream::unfold(self, async |mut events| {
            let event = events.next().await?;
            Some((event, events))
        })
    }
}
