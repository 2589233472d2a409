//! Events: written to the supervisor's journal, and then published to all listeners.
//!
//! A publisher puts its events in a queue and waits. One writer at a time takes the whole queue and
//! writes it with one write(2): the publisher itself where the journal is in memory, as below `/run`, else a
//! thread that may block on the disk. After that the events are published: listeners read the newest events from memory, and older ones from the files of the
//! journal, so a slow listener misses none that the journal still keeps.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::{replace, take};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures::Stream;
use holdfast_state::directory::is_damage;
use holdfast_state::journal::{self, Bounds, Journal, KnownContainer, Reader};
use holdfast_state::{
    ContainerDir, ContainerId, Cursor, Event, EventKind, ExitRecord, Gap, GapReason, Incarnation,
    JournalId, Problem, ProcessId, StateRoot, Timestamp,
};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, ReusableBoxFuture};

use crate::model::process::Process;
use crate::os::tasks::{Tasks, blocking};

/// How many of the newest events are kept in memory.
const RECENT: usize = 1024;
/// How many events a listener takes at a time.
const BATCH: usize = 256;

/// The journal, as all tasks share it.
#[derive(Debug)]
pub(crate) struct Events {
    id: JournalId,
    queue: Mutex<Queue>,
    /// Locked during a write, on a thread that may block.
    journal: Mutex<Journal>,
    recent: Mutex<VecDeque<Event>>,
    /// The number of the last event that was written. Whoever sees a new state finds its event here,
    /// although it may not be published yet.
    written: AtomicU64,
    /// The number of the last published event.
    told: watch::Sender<u64>,
    /// The number up to which all events are synced to disk. Locked during a sync.
    synced: tokio::sync::Mutex<u64>,
    tasks: Tasks,
}

/// What is done between the writing of events and their publication.
pub(crate) type Meanwhile = Box<dyn FnOnce() + Send>;

/// The events that wait for the writer.
#[derive(Default)]
struct Queue {
    events: Vec<Event>,
    /// What is done when the events that were queued before it are written; the sender is dropped
    /// when they are published.
    waiting: Vec<(Meanwhile, oneshot::Sender<()>)>,
    is_written: bool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("events", &self.events).finish_non_exhaustive()
    }
}

impl Events {
    /// Opens the journal. A damaged journal is moved aside, and a new one is begun. Blocks on the
    /// disk.
    pub(crate) fn open(
        root: &StateRoot,
        bounds: Bounds,
        tasks: Tasks,
    ) -> io::Result<(Self, Option<Problem>)> {
        let (journal, problem) = match Journal::open(root, bounds) {
            Err(error) if is_damage(&error) => {
                let path = root.set_journal_aside(&error.to_string())?;
                let problem = Problem::new(path, format!("set aside: {error}"));
                (Journal::open(root, bounds)?, Some(problem))
            }
            opened => (opened?, None),
        };
        let (id, told) = (journal.id(), journal.cursor().number());
        let events = Self {
            id,
            queue: Mutex::default(),
            journal: Mutex::new(journal),
            recent: Mutex::default(),
            written: AtomicU64::new(told),
            told: watch::Sender::new(told),
            // What an earlier supervisor has written may not be on disk yet.
            synced: tokio::sync::Mutex::new(0),
            tasks,
        };
        Ok((events, problem))
    }

    /// Returns the position after the last published event.
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor::new(self.id, *self.told.borrow())
    }

    /// Queues events of a process. They are published in the order of the calls. When they are
    /// written and before they are published, `meanwhile` is called: what they report is then true
    /// for everyone who hears of it. The returned future completes when they are published.
    pub(crate) fn publish(
        self: &Arc<Self>,
        process: &Process,
        time: Timestamp,
        kinds: Vec<EventKind>,
        meanwhile: Meanwhile,
    ) -> impl Future<Output = ()> + use<> {
        let told = (!kinds.is_empty()).then(|| {
            let (done, told) = oneshot::channel();
            let has_writer = {
                let mut queue = lock(&self.queue);
                queue.events.extend(of_process(process, &time, kinds));
                queue.waiting.push((meanwhile, done));
                replace(&mut queue.is_written, true)
            };
            match has_writer {
                true => {}
                false if self.tasks.root_in_memory => self.write_queue(),
                false => {
                    let this = self.clone();
                    self.tasks.reactor.spawn_blocking(move || this.write_queue());
                }
            }
            told
        });
        async move {
            if let Some(told) = told {
                // The sender is dropped, never used: the error is the notification.
                let _ = told.await;
            }
        }
    }

    fn write_queue(&self) {
        loop {
            let (events, waiting): (_, Vec<_>) = {
                let mut queue = lock(&self.queue);
                if queue.events.is_empty() {
                    queue.is_written = false;
                    return;
                }
                (take(&mut queue.events), take(&mut queue.waiting))
            };
            let (changes, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            self.append_with(events, || changes.into_iter().for_each(|change| change()));
            drop(waiting);
        }
    }

    /// Writes events to the journal and publishes them. Blocks on the disk.
    pub(crate) fn append(&self, events: Vec<Event>) {
        self.append_with(events, || {});
    }

    fn append_with(&self, mut events: Vec<Event>, meanwhile: impl FnOnce()) {
        let mut journal = lock(&self.journal);
        if let Err(error) = journal.append(&mut events) {
            // The events are published all the same: a full disk must not hide an exit.
            tracing::warn!(%error, events = events.len(), "the journal can't be written; the next event tries again");
        }
        let last = events.last().map(|event| event.seq);
        if let Some(last) = last {
            self.written.store(last, Ordering::Release);
        }
        meanwhile();
        let Some(last) = last else { return };
        // Done while the journal is still locked, so that the events are published in the order of
        // their numbers.
        let mut recent = lock(&self.recent);
        recent.extend(events);
        let too_many = recent.len().saturating_sub(RECENT);
        recent.drain(..too_many);
        drop(recent);
        self.told.send_replace(last);
    }

    /// Removes a process from the state that the journal keeps, when no more events of it will
    /// follow.
    pub(crate) async fn forget(self: &Arc<Self>, process: &Arc<Process>) {
        let (this, process) = (self.clone(), process.clone());
        let forgotten = self.tasks.in_root(move || {
            lock(&this.journal).forget(&process.container, process.incarnation, &process.id);
            Ok(())
        });
        let _ = forgotten.await;
    }

    /// Returns what the journal knows of a container. If it knows nothing, reads the events that an
    /// earlier build stored in the container's directory, and also returns these events, which the
    /// journal must then get. Blocks on the disk.
    pub(crate) fn known(
        &self,
        directory: &ContainerDir,
        id: &ContainerId,
        incarnation: Option<Incarnation>,
    ) -> (KnownContainer, Vec<Event>) {
        let known = lock(&self.journal).known().get(id).cloned();
        let is_it = |known: &KnownContainer| incarnation.is_none_or(|it| it == known.incarnation);
        if let Some(known) = known.filter(is_it) {
            return (known, Vec::new());
        }
        let incarnation = incarnation.unwrap_or_else(|| Incarnation::of_earlier_build(None));
        let imported = journal::import_container(directory, id, incarnation);
        let imported = imported.unwrap_or_else(|error| {
            // Exit statuses do not depend on these events.
            tracing::warn!(container = %id, %error, "the events that an earlier build stored can't be read");
            Vec::new()
        });
        let mut known = KnownContainer::new(incarnation);
        for event in &imported {
            known.processes.add(event);
        }
        (known, imported)
    }

    /// Returns the missing `Deleted` events: of containers that the journal knows and that are not
    /// on disk, because the supervisor that removed them died before it could publish the deletion.
    /// Blocks on the disk.
    pub(crate) fn untold_deletions(&self, is_there: impl Fn(&ContainerId) -> bool) -> Vec<Event> {
        let mut journal = lock(&self.journal);
        let gone = journal.known().iter().filter(|(id, _)| !is_there(id));
        let gone: Vec<_> = gone
            .map(|(id, known)| {
                let init = known.processes.get(&ProcessId::init());
                let failed = init.is_some_and(|init| init.failed && init.exited.is_none());
                (known.event(id, EventKind::Deleted), failed)
            })
            .collect();
        let mut deletions = Vec::new();
        for (event, failed) in gone {
            if failed {
                // The failure of the start was the last event of this container.
                journal.forget(&event.container, event.incarnation, &event.process);
            } else {
                deletions.push(event);
            }
        }
        deletions
    }

    /// Waits until all events that were written are on disk. Concurrent callers share one sync.
    pub(crate) async fn sync(self: &Arc<Self>) -> io::Result<()> {
        let wanted = self.written.load(Ordering::Acquire);
        let mut synced = self.synced.lock().await;
        if *synced < wanted {
            let this = self.clone();
            *synced = self.tasks.in_root(move || this.sync_now()).await?;
        }
        Ok(())
    }

    /// Syncs all published events to disk, and returns the number of the last one. Blocks on the
    /// disk.
    pub(crate) fn sync_now(&self) -> io::Result<u64> {
        let (file, last) = lock(&self.journal).file_to_sync()?;
        file.sync_data()?;
        Ok(last)
    }

    /// Returns the exit of the last known container with this name.
    pub(crate) async fn last_exit(
        self: &Arc<Self>,
        id: &ContainerId,
    ) -> io::Result<Option<ExitRecord>> {
        let (this, id) = (self.clone(), id.clone());
        blocking(move || {
            let reader = lock(&this.journal).reader(1)?;
            reader.last_exit(&id)
        })
        .await
    }

    /// Returns the last event of containers with this name that `wanted` accepts.
    pub(crate) async fn last(
        self: &Arc<Self>,
        id: &ContainerId,
        wanted: impl Fn(&Event) -> bool + Send + 'static,
    ) -> io::Result<Option<Event>> {
        let (this, id) = (self.clone(), id.clone());
        blocking(move || {
            let reader = lock(&this.journal).reader(1)?;
            reader.last(&id, wanted)
        })
        .await
    }

    /// Closes the journal, so that the next supervisor continues without a gap in the numbers.
    pub(crate) async fn close(self: &Arc<Self>) {
        let this = self.clone();
        if let Err(error) = blocking(move || lock(&this.journal).close()).await {
            tracing::warn!(%error, "the journal was not closed: the event numbers will have a gap");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the events of a process, without numbers.
pub(crate) fn of_process(
    process: &Process,
    time: &Timestamp,
    kinds: Vec<EventKind>,
) -> impl Iterator<Item = Event> {
    kinds.into_iter().map(move |kind| {
        let start = (process.incarnation, process.run);
        Event::new(process.container.clone(), start, process.id.clone(), time.clone(), kind)
    })
}

/// A stream of the events of a supervisor, in order, from some position on. It ends when the
/// supervisor is shut down.
///
/// An item is an event or a [`Gap`]: a range of numbers for which there is no event. A stream that
/// is read slowly, or not read for a while, misses no event that the journal still keeps.
///
/// To process each event exactly once, store [`cursor`](Self::cursor) and the result of the item in
/// one transaction, and continue at the stored cursor
/// ([`Supervisor::events_since`](crate::Supervisor::events_since)). If the cursor is stored after
/// the result, the last events may be delivered again: at least once.
#[derive(Debug)]
pub struct EventStream {
    events: Arc<Events>,
    /// The number of the next item; 0 stands for the oldest event that is kept.
    next: u64,
    ready: VecDeque<Result<Event, Gap>>,
    told: watch::Receiver<u64>,
    reader: Option<Reader>,
    /// A read from the journal's files that is in progress.
    reading: Option<JoinHandle<Read>>,
    /// Completes when there are new events, or at the shutdown.
    waiting: Option<ReusableBoxFuture<'static, bool>>,
}

/// A reader, what it read, and the number from which it was to read.
type Read = (Option<Reader>, io::Result<VecDeque<Result<Event, Gap>>>, u64);

impl EventStream {
    /// Begins after this position.
    pub(crate) fn new(events: &Arc<Events>, after: Cursor) -> Self {
        let told = events.told.subscribe();
        let (mut next, mut ready) = (0, VecDeque::new());
        // A cursor that is ahead of the journal comes from a state root that was restored from a
        // backup.
        if after.journal() == events.id && after.number() <= *told.borrow() {
            next = after.number().saturating_add(1);
        } else if after != Cursor::BEGINNING {
            ready.push_back(Err(Gap { first: 0, last: 0, reason: GapReason::OtherJournal }));
        }
        Self {
            events: events.clone(),
            next,
            ready,
            told,
            reader: None,
            reading: None,
            waiting: None,
        }
    }

    /// Returns the next item, and waits for it if necessary. Returns `None` after a shutdown.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Event, Gap>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Returns the position after the last item that this stream has returned.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        match self.next {
            0 => Cursor::BEGINNING,
            next => Cursor::new(self.events.id, next - 1),
        }
    }

    /// Takes the next events from memory, if they are there.
    fn recall(&mut self) {
        let recent = lock(&self.events.recent);
        // The numbers in memory are consecutive.
        let place = recent.front().and_then(|first| self.next.checked_sub(first.seq));
        if let Some(place) = place.and_then(|place| usize::try_from(place).ok()) {
            self.ready.extend(recent.iter().skip(place).take(BATCH).cloned().map(Ok));
        }
    }

    /// Begins to read the next events from the journal's files.
    fn read(&mut self, upto: u64) -> JoinHandle<Read> {
        let (events, mut reader, mut next) = (self.events.clone(), self.reader.take(), self.next);
        self.events.tasks.reactor.spawn_blocking(move || {
            let mut read = || {
                if reader.is_none() {
                    let journal = lock(&events.journal);
                    if next == 0 {
                        next = journal.oldest()?;
                    }
                    reader = Some(journal.reader(next)?);
                }
                reader.as_mut().map_or_else(|| Ok(VecDeque::new()), |it| it.read(upto, BATCH))
            };
            let found = read();
            (reader, found, next)
        })
    }

    /// Takes what was read from the files, or finds out why nothing was read.
    fn take(&mut self, (reader, found, next): Read, upto: u64) {
        self.next = next.max(1);
        let reason = match found {
            Ok(found) if !found.is_empty() => {
                (self.reader, self.ready) = (reader, found);
                return;
            }
            // Events that were published and could not be written are in memory, as far as it has
            // room for them.
            Ok(_) => GapReason::Unclean,
            Err(error) => {
                tracing::error!(%error, "the journal can't be read");
                GapReason::Unreadable
            }
        };
        let first_recent = lock(&self.events.recent).front().map(|event| event.seq);
        let last = first_recent.map_or(upto, |first| first.saturating_sub(1)).min(upto);
        if last >= self.next {
            self.ready.push_back(Err(Gap { first: self.next, last, reason }));
        }
    }
}

/// Waits for new events (`true`) or the shutdown (`false`).
async fn until_more(mut told: watch::Receiver<u64>, stop: CancellationToken) -> bool {
    tokio::select! {
        biased;
        more = told.changed() => more.is_ok(),
        () = stop.cancelled() => false,
    }
}

impl Stream for EventStream {
    type Item = Result<Event, Gap>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                match &item {
                    Ok(event) => self.next = event.seq.saturating_add(1),
                    // A gap of another journal does not move the position.
                    Err(gap) if gap.last > 0 => self.next = gap.last.saturating_add(1),
                    Err(_) => {}
                }
                return Poll::Ready(Some(item));
            }
            let last = *self.told.borrow_and_update();
            if let Some(reading) = &mut self.reading {
                let read = ready!(Pin::new(reading).poll(context));
                self.reading = None;
                // The Tokio runtime has ended, and the supervisor with it.
                let Ok(read) = read else { return Poll::Ready(None) };
                self.take(read, last);
                continue;
            }
            if self.next <= last {
                self.recall();
                if self.ready.is_empty() {
                    self.reading = Some(self.read(last));
                }
                continue;
            }
            let (told, stop) = (self.told.clone(), self.events.tasks.stop.clone());
            let waiting =
                self.waiting.get_or_insert_with(|| ReusableBoxFuture::new(until_more(told, stop)));
            let is_more = ready!(waiting.poll(context));
            self.waiting = None;
            if !is_more {
                return Poll::Ready(None);
            }
        }
    }
}
