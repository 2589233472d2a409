//! Events: written to the supervisor's journal, then told to everyone who listens.
//!
//! Whoever has something to tell puts it in a queue and waits. One writer at a time takes all that is
//! there, and writes it with one write(2), on a thread that may wait for a disk. Listeners are told then:
//! of the newest events from memory, of all others from the journal's files, so that nobody who is
//! slow misses any.

use std::collections::VecDeque;
use std::io;
use std::mem::{replace, take};
use std::pin::Pin;
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

/// How many of the newest events are told from memory.
const RECENT: usize = 4096;
/// How many a listener takes at once.
const BATCH: usize = 256;

/// The journal, as all tasks share it.
#[derive(Debug)]
pub(crate) struct Events {
    id: JournalId,
    queue: Mutex<Queue>,
    /// Held for a write, on a thread that may wait.
    journal: Mutex<Journal>,
    recent: Mutex<VecDeque<Event>>,
    /// The number of the last event that has been told.
    told: watch::Sender<u64>,
    /// The number up to which all is synced. Held for a sync.
    synced: tokio::sync::Mutex<u64>,
    tasks: Tasks,
}

/// What waits for the writer.
#[derive(Debug, Default)]
struct Queue {
    events: Vec<Event>,
    /// Dropped when all that stood before them has been told.
    waiting: Vec<oneshot::Sender<()>>,
    is_written: bool,
}

impl Events {
    /// Opens the journal. One that makes no sense is set aside, and another one begun. Waits for the disk.
    pub(crate) fn open(
        root: &StateRoot,
        bounds: Bounds,
        tasks: Tasks,
    ) -> io::Result<(Self, Option<Problem>)> {
        let (journal, problem) = match Journal::open(root, bounds) {
            Err(error) if is_damage(&error) => {
                let path = root.set_journal_aside(&error.to_string())?;
                let reason = format!("set aside: {error}");
                (Journal::open(root, bounds)?, Some(Problem { path, reason }))
            }
            opened => (opened?, None),
        };
        let (id, told) = (journal.id(), journal.cursor().number());
        let events = Self {
            id,
            queue: Mutex::default(),
            journal: Mutex::new(journal),
            recent: Mutex::default(),
            told: watch::Sender::new(told),
            synced: tokio::sync::Mutex::new(told),
            tasks,
        };
        Ok((events, problem))
    }

    /// After the last event that has been told.
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor::new(self.id, *self.told.borrow())
    }

    /// Tells of a process. The order is that of the calls; what is returned waits until it is written
    /// and told.
    pub(crate) fn publish(
        self: &Arc<Self>,
        process: &Process,
        kinds: Vec<EventKind>,
    ) -> impl Future<Output = ()> + use<> {
        let told = (!kinds.is_empty()).then(|| {
            let (done, told) = oneshot::channel();
            let mut queue = lock(&self.queue);
            queue.events.extend(of_process(process, kinds));
            queue.waiting.push(done);
            if !replace(&mut queue.is_written, true) {
                let this = self.clone();
                self.tasks.reactor.spawn_blocking(move || this.write_queue());
            }
            told
        });
        async move {
            if let Some(told) = told {
                // An error either way: that nobody will answer is the answer.
                let _ = told.await;
            }
        }
    }

    fn write_queue(&self) {
        loop {
            let (events, waiting) = {
                let mut queue = lock(&self.queue);
                if queue.events.is_empty() {
                    queue.is_written = false;
                    return;
                }
                (take(&mut queue.events), take(&mut queue.waiting))
            };
            self.append(events);
            drop(waiting);
        }
    }

    /// Writes events and tells them. Waits for the disk.
    pub(crate) fn append(&self, mut events: Vec<Event>) {
        let mut journal = lock(&self.journal);
        if let Err(error) = journal.append(&mut events) {
            // They are told all the same: a full disk is no reason to hide an exit.
            tracing::warn!(%error, events = events.len(), "the journal can't be written; tried again with the next event");
        }
        let Some(last) = events.last().map(|event| event.seq) else { return };
        // Before the journal is another's, so that all are told in their order.
        let mut recent = lock(&self.recent);
        recent.extend(events);
        let too_many = recent.len().saturating_sub(RECENT);
        recent.drain(..too_many);
        drop(recent);
        self.told.send_replace(last);
    }

    /// Forgets a process of which nothing more is told.
    pub(crate) async fn forget(self: &Arc<Self>, process: &Arc<Process>) {
        let (this, process) = (self.clone(), process.clone());
        let forgotten = blocking(move || {
            lock(&this.journal).forget(&process.container, process.incarnation, &process.id);
            Ok(())
        });
        let _ = forgotten.await;
    }

    /// What the journal knows of a container; or what an earlier build wrote beside it, with the events that
    /// the journal is to get then. Waits for the disk.
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
            // Statuses do not depend on it.
            tracing::warn!(container = %id, %error, "its events are unreadable");
            Vec::new()
        });
        let mut known = KnownContainer::new(incarnation);
        for event in &imported {
            known.processes.entry(event.process.clone()).or_default().add(event);
        }
        (known, imported)
    }

    /// The deletions of those that the journal knows and that are not there: whoever removed them died
    /// before it could say so. Waits for the disk.
    pub(crate) fn untold_deletions(&self, is_there: impl Fn(&ContainerId) -> bool) -> Vec<Event> {
        let mut journal = lock(&self.journal);
        let gone = journal.known().iter().filter(|(id, _)| !is_there(id));
        let gone: Vec<_> = gone
            .map(|(id, known)| {
                let init = known.processes.get(&ProcessId::init());
                (known.event(id, EventKind::Deleted), init.is_some_and(|init| init.failed))
            })
            .collect();
        let mut deletions = Vec::new();
        for (event, failed) in gone {
            if failed {
                // That its start came to nothing was the last there is to tell.
                journal.forget(&event.container, event.incarnation, &event.process);
            } else {
                deletions.push(event);
            }
        }
        deletions
    }

    /// Waits until all that has been told is on disk. Those who wait together share a sync.
    pub(crate) async fn sync(self: &Arc<Self>) -> io::Result<()> {
        let wanted = *self.told.borrow();
        let mut synced = self.synced.lock().await;
        if *synced < wanted {
            let this = self.clone();
            *synced = blocking(move || this.sync_now()).await?;
        }
        Ok(())
    }

    /// Syncs all that has been told, and returns the number of the last of it. Waits for the disk.
    pub(crate) fn sync_now(&self) -> io::Result<u64> {
        let (file, last) = lock(&self.journal).file_to_sync()?;
        file.sync_data()?;
        Ok(last)
    }

    /// How the last container of this name that is known of ended.
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

    /// Ends the journal as it should end.
    pub(crate) async fn close(self: &Arc<Self>) {
        let this = self.clone();
        if let Err(error) = blocking(move || lock(&this.journal).close()).await {
            tracing::warn!(%error, "the journal is not closed: the numbers of the next events leave a gap");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events of a process, still without numbers.
pub(crate) fn of_process(
    process: &Process,
    kinds: Vec<EventKind>,
) -> impl Iterator<Item = Event> + '_ {
    let time = Timestamp::now();
    kinds.into_iter().map(move |kind| Event {
        container: process.container.clone(),
        incarnation: process.incarnation,
        run: process.run,
        seq: 0,
        time: time.clone(),
        process: process.id.clone(),
        kind,
    })
}

/// The events of a supervisor, in order, from some place on. Ends when the supervisor is shut down.
///
/// An item is an event, or a [`Gap`]: numbers of which there is no event. A stream that is read slowly, or
/// not at all for a while, misses nothing that the journal keeps.
///
/// Each event comes exactly once to who stores [`cursor`](Self::cursor) together with what it has made of
/// the item, in one transaction, and begins there again
/// ([`Supervisor::events_since`](crate::Supervisor::events_since)). To who stores it afterwards, what
/// came last comes at least once.
#[derive(Debug)]
pub struct EventStream {
    events: Arc<Events>,
    /// The number of the item that is to be told next; 0 for the oldest that is kept.
    next: u64,
    ready: VecDeque<Result<Event, Gap>>,
    told: watch::Receiver<u64>,
    reader: Option<Reader>,
    /// A look into the files that is under way.
    reading: Option<JoinHandle<Read>>,
    /// Until there is more, or the end.
    waiting: Option<ReusableBoxFuture<'static, bool>>,
}

/// A reader, what was read, and the number from which on that was to be.
type Read = (Option<Reader>, io::Result<VecDeque<Result<Event, Gap>>>, u64);

impl EventStream {
    /// Begins after this place.
    pub(crate) fn new(events: &Arc<Events>, after: Cursor) -> Self {
        let told = events.told.subscribe();
        let (mut next, mut ready) = (0, VecDeque::new());
        // Ahead of it is one of a root that has been put back to what it was.
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

    /// The next item. `None` after a shutdown. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Event, Gap>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The place after the last item that this stream has given.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        match self.next {
            0 => Cursor::BEGINNING,
            next => Cursor::new(self.events.id, next - 1),
        }
    }

    /// What memory has of what comes next.
    fn recall(&mut self) {
        let recent = lock(&self.events.recent);
        // Each has the number after that of the one before it.
        let place = recent.front().and_then(|first| self.next.checked_sub(first.seq));
        if let Some(place) = place.and_then(|place| usize::try_from(place).ok()) {
            self.ready.extend(recent.iter().skip(place).take(BATCH).cloned().map(Ok));
        }
    }

    /// Begins to read what comes next from the files.
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

    /// What the files say, or what it means that they say nothing.
    fn take(&mut self, (reader, found, next): Read, upto: u64) {
        self.next = next.max(1);
        let reason = match found {
            Ok(found) if !found.is_empty() => {
                (self.reader, self.ready) = (reader, found);
                return;
            }
            // What was told and not written is in memory, as far as there is room for it.
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

/// Whether there is more, or the end.
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
                    // That of another journal moves nothing.
                    Err(gap) if gap.last > 0 => self.next = gap.last.saturating_add(1),
                    Err(_) => {}
                }
                return Poll::Ready(Some(item));
            }
            let last = *self.told.borrow_and_update();
            if let Some(reading) = &mut self.reading {
                let read = ready!(Pin::new(reading).poll(context));
                self.reading = None;
                // The runtime has gone, and the supervisor with it.
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
