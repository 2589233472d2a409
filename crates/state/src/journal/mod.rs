//! `.journal/`: the events of all containers in one order, kept beyond the life of each container.
//!
//! ```text
//! <root>/.journal/00000000000000000001.jsonl   a segment, named after its first event
//!                 00000000000000004097.jsonl   the last segment: the one that is written
//!                 .next                        preallocated space for the next segment
//! ```
//!
//! A segment consists of JSON lines: a header, a snapshot of the containers that existed when the
//! segment was begun, and events. So the last segment alone gives the state of every container, and
//! dropping an old segment loses the state of none.
//!
//! Numbers only grow. They are reserved in blocks, and the reservation is synced to disk before an
//! event with such a number is published. After an unclean end, the numbers continue with the next
//! block: if a power failure took an event that somebody has already received, its number is not
//! used for another event. (While the disk accepts no writes, events are published beyond the
//! reserved numbers too; for those this does not hold.) Readers report the unused numbers as a
//! [`Gap`](crate::Gap).
//!
//! A line is written before the event is published, and not synced: the death of the supervisor
//! loses no event. A sync happens when somebody waits for it ([`Journal::file_to_sync`]): for the
//! exit of a container that is about to be removed. Every other exit is also in the files of its
//! process (`exit.json`); if a power failure took it from the journal, it is published again.

mod known;
mod old;
mod reader;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use serde::{Deserialize, Serialize};

use crate::{Cursor, Directory, Event, JournalId, StateRoot};

pub use known::{Doing, Known, KnownContainer, KnownProcess, KnownProcesses};
pub(crate) use old::EXITS;
pub use old::{
    events as events_of_earlier_build, forget_imported, forget_imported_exits, import_container,
    import_exits,
};
pub use reader::Reader;

use known::KnownLine;

/// The name of the directory.
pub(crate) const NAME: &str = ".journal";
const SPARE: &str = ".next";
const SUFFIX: &str = ".jsonl";
/// The version of the format of a segment.
const FORM: u32 = 1;

/// How many numbers are reserved at a time.
pub const BLOCK: u64 = 4096;
/// The size of a segment at which the next one begins, in bytes and without its snapshot; if the
/// snapshot is larger, its size.
const SEGMENT: u64 = 1024 * 1024;
/// How many events are held in memory while the disk accepts nothing. If there are more, the oldest
/// have been published, but are never written.
const MOST_UNWRITTEN: usize = 4096;
/// The maximum size of a segment file, in bytes. By the rules above no segment becomes that large;
/// a larger file was not written by Holdfast.
const LIMIT: u64 = 64 * 1024 * 1024;

/// How many events the journal keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The maximum size of all segments together, in bytes. It is enforced when a new segment
    /// begins, so the total may exceed it by one segment. The last segment is kept whatever its
    /// size.
    pub size: u64,
    /// The maximum age of an event, enforced when a new segment begins. The last segment is dropped
    /// only when there is a newer one.
    pub age: Duration,
}

impl Default for Bounds {
    /// 32 MiB, about 100,000 events, and 30 days.
    fn default() -> Self {
        Self { size: 32 * 1024 * 1024, age: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// The journal of a state root, as its only writer sees it.
#[derive(Debug)]
pub struct Journal {
    directory: Directory,
    id: JournalId,
    bounds: Bounds,
    /// The segment that is being written.
    file: File,
    /// Its length in bytes.
    length: u64,
    /// The length of its header and snapshot in bytes.
    snapshot: u64,
    begun: SystemTime,
    /// Preallocated space for the next segment.
    spare: Option<File>,
    /// The number of the next event.
    next: u64,
    /// The first number that is not reserved.
    reserved: u64,
    /// Events that were published and could not be written yet.
    unwritten: VecDeque<Event>,
    known: Known,
}

#[derive(Serialize, Deserialize)]
struct Header {
    journal: JournalId,
    segment: u32,
    first: u64,
    reserved: u64,
}

#[derive(Serialize, Deserialize)]
struct Reserved {
    reserved: u64,
}

/// The last line of a journal that its supervisor has closed.
#[derive(Serialize, Deserialize)]
struct Closed {
    /// The number of the next event.
    closed: u64,
}

/// The content of one line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Header { journal: JournalId, first: u64, reserved: u64 },
    Known(KnownLine),
    Reserved(u64),
    Closed(u64),
    Event(Event),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AnyLine {
    Known { known: KnownLine },
    Header(Header),
    Reserved(Reserved),
    Closed(Closed),
    Event(Event),
}

#[derive(Serialize)]
struct KnownWrapper {
    known: KnownLine,
}

/// Parses a line. Returns `None` for a torn or foreign line.
fn parse(line: &[u8]) -> Option<Line> {
    // Most lines are events; their first key identifies them quickly.
    if line.starts_with(b"{\"container\"") {
        return serde_json::from_slice(line).ok().map(Line::Event);
    }
    match serde_json::from_slice(line).ok()? {
        AnyLine::Known { known } => Some(Line::Known(known)),
        AnyLine::Header(Header { journal, segment, first, reserved }) => {
            (segment == FORM).then_some(Line::Header { journal, first, reserved })
        }
        AnyLine::Reserved(Reserved { reserved }) => Some(Line::Reserved(reserved)),
        AnyLine::Closed(Closed { closed }) => Some(Line::Closed(closed)),
        AnyLine::Event(event) => Some(Line::Event(event)),
    }
}

/// Returns the parsed lines of a segment. Torn and foreign lines are skipped.
fn lines(content: &[u8]) -> impl DoubleEndedIterator<Item = Line> {
    content.split(|&b| b == b'\n').filter_map(parse)
}

/// Returns the events of a segment. All other lines, and torn or foreign ones, are skipped.
pub fn events(content: &[u8]) -> impl Iterator<Item = Event> {
    lines(content).filter_map(|line| match line {
        Line::Event(event) => Some(event),
        _ => None,
    })
}

fn add_line(content: &mut Vec<u8>, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *content, line)?;
    content.push(b'\n');
    Ok(())
}

fn name_of(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// Returns the first numbers of all segments, in order.
fn segments(directory: &Directory) -> io::Result<Vec<u64>> {
    let number = |name: String| {
        let first = name.strip_suffix(SUFFIX)?.parse().ok()?;
        (name_of(first) == name).then_some(first)
    };
    let mut found: Vec<u64> = directory.names()?.into_iter().filter_map(number).collect();
    found.sort_unstable();
    Ok(found)
}

/// The content of the segments when a journal is opened.
#[derive(Default)]
struct Past {
    id: Option<JournalId>,
    known: Known,
    /// The first number that no event has yet.
    next: u64,
    reserved: u64,
    closed: bool,
    snapshot: u64,
}

impl Past {
    /// Reads the newest segment that has a header, and all later ones.
    fn read(directory: &Directory, segments: &[u64]) -> io::Result<Self> {
        let mut contents = Vec::new();
        for first in segments.iter().rev() {
            let content = match directory.read(&name_of(*first), LIMIT) {
                Err(error) if crate::directory::is_damage(&error) => Vec::new(),
                content => content?,
            };
            let is_whole = matches!(lines(&content).next(), Some(Line::Header { .. }));
            contents.push(content);
            if is_whole {
                break;
            }
        }
        let mut past = Self { next: 1, ..Self::default() };
        for content in contents.iter().rev() {
            past.add(content);
        }
        Ok(past)
    }

    fn add(&mut self, content: &[u8]) {
        self.closed = false;
        self.snapshot = 0;
        let mut at = 0_u64;
        for text in content.split_inclusive(|&b| b == b'\n') {
            at += text.len() as u64;
            let Some(line) = parse(text.trim_ascii_end()) else { continue };
            self.closed = matches!(line, Line::Closed(_));
            match line {
                Line::Header { journal, first, reserved } => {
                    // The snapshot that follows the header is complete, so it replaces what earlier
                    // segments said.
                    (self.id, self.known) = (Some(journal), Known::default());
                    self.next = self.next.max(first);
                    self.reserved = self.reserved.max(reserved);
                    self.snapshot = at;
                }
                Line::Known(line) => {
                    self.known.add_line(line);
                    self.snapshot = at;
                }
                Line::Reserved(reserved) => self.reserved = self.reserved.max(reserved),
                Line::Event(event) => {
                    self.next = self.next.max(event.seq.saturating_add(1));
                    self.known.add(&event);
                }
                Line::Closed(next) => self.next = self.next.max(next),
            }
        }
    }
}

impl Journal {
    /// Opens the journal of a locked state root, or creates it.
    ///
    /// # Errors
    ///
    /// If its directory is not a directory ([`io::ErrorKind::NotADirectory`]) or cannot be read, or
    /// a new journal cannot be created. On a full disk, an existing journal is opened.
    pub fn open(root: &StateRoot, bounds: Bounds) -> io::Result<Self> {
        let directory = root.directory.make_dir(NAME)?;
        directory.remove_all(SPARE)?;
        let mut segments = segments(&directory)?;
        let past = Past::read(&directory, &segments)?;
        let next = if past.closed { past.next } else { past.next.max(past.reserved) };
        let id = match past.id {
            Some(id) => id,
            None => {
                // Nothing in the directory can be read, so nobody needs its numbers.
                for first in segments.drain(..) {
                    directory.remove_all(name_of(first))?;
                }
                JournalId::random()?
            }
        };
        let begin = || begin(&directory, None, id, next, &past.known);
        let (file, length, snapshot) = match segments.last() {
            None => begin()?,
            Some(last) => match open_last(&directory, *last) {
                Ok((file, length)) => (file, length, past.snapshot),
                // For example, a directory is in its place.
                Err(error) if crate::directory::is_damage(&error) => {
                    directory.remove_all(name_of(*last))?;
                    begin()?
                }
                Err(error) => return Err(error),
            },
        };
        let mut journal = Self {
            directory,
            id,
            bounds,
            file,
            length,
            snapshot,
            begun: SystemTime::now(),
            spare: None,
            next,
            reserved: next,
            unwritten: VecDeque::new(),
            known: past.known,
        };
        // On a full disk, each later event tries this again.
        let _ = journal.reserve();
        journal.take_spare();
        Ok(journal)
    }

    /// Returns the id of the journal.
    #[must_use]
    pub fn id(&self) -> JournalId {
        self.id
    }

    /// Returns the position after the last event.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor::new(self.id, self.next - 1)
    }

    /// Returns the state of the existing containers.
    #[must_use]
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Removes a process from the state; see [`Known::forget`].
    pub fn forget(
        &mut self,
        id: &crate::ContainerId,
        incarnation: crate::Incarnation,
        process: &crate::ProcessId,
    ) {
        self.known.forget(id, incarnation, process);
    }

    /// Returns a reader that begins at this number.
    ///
    /// # Errors
    ///
    /// If the directory cannot be opened again.
    pub fn reader(&self, next: u64) -> io::Result<Reader> {
        Ok(Reader::new(self.directory.open_dir(".")?, next))
    }

    /// Returns the number of the oldest event that is kept.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read.
    pub fn oldest(&self) -> io::Result<u64> {
        Ok(segments(&self.directory)?.first().copied().unwrap_or(self.next))
    }

    /// Assigns numbers to events, and writes them with one write(2).
    ///
    /// # Errors
    ///
    /// If the events cannot be written. They have their numbers all the same and may be published:
    /// a full disk must not hide an exit. Unwritten events are written before the next ones.
    pub fn append(&mut self, events: &mut [Event]) -> io::Result<()> {
        for event in events {
            event.seq = self.next;
            self.next = self.next.saturating_add(1);
            self.known.add(event);
            self.unwritten.push_back(event.clone());
        }
        let written = self.flush();
        let too_many = self.unwritten.len().saturating_sub(MOST_UNWRITTEN);
        self.unwritten.drain(..too_many);
        written
    }

    /// Writes the events that could not be written before.
    ///
    /// # Errors
    ///
    /// If they still cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        // Reserved when half of a block is left, so that numbers remain for a time in which the
        // disk accepts nothing.
        if self.next.saturating_add(BLOCK / 2) > self.reserved {
            self.reserve()?;
        }
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let mut content = Vec::new();
        for event in &self.unwritten {
            add_line(&mut content, event)?;
        }
        self.write(&content)?;
        self.unwritten.clear();
        if self.is_full() {
            // The events are written; on a full disk, the old segment simply continues.
            let _ = self.rotate();
        }
        Ok(())
    }

    fn write(&mut self, content: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(content) {
            // A full disk may have taken the beginning of a line, which the next line would
            // continue.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += content.len() as u64;
        Ok(())
    }

    fn reserve(&mut self) -> io::Result<()> {
        let reserved = self.next.saturating_add(BLOCK);
        let mut line = Vec::new();
        add_line(&mut line, &Reserved { reserved })?;
        self.write(&line)?;
        self.file.sync_data()?;
        self.reserved = reserved;
        Ok(())
    }

    fn is_full(&self) -> bool {
        let events = self.length.saturating_sub(self.snapshot);
        // Segments are dropped as a whole, when all their events are too old. So a segment must not
        // span too much time.
        let part = self.bounds.age / 8;
        events >= SEGMENT.max(self.snapshot) || self.begun.elapsed().is_ok_and(|age| age > part)
    }

    /// Begins the next segment, and drops old segments that exceed the bounds.
    fn rotate(&mut self) -> io::Result<()> {
        // The new segment is synced when it is begun. It must not reach the disk without the events
        // before it.
        self.file.sync_data()?;
        let spare = self.spare.take();
        let (file, length, snapshot) =
            begin(&self.directory, spare, self.id, self.next, &self.known)?;
        (self.file, self.length, self.snapshot) = (file, length, snapshot);
        self.begun = SystemTime::now();
        self.reserved = self.next.saturating_add(BLOCK);
        self.take_spare();
        self.drop_old()
    }

    /// Preallocates the space of the next segment, so that exits can still be written for a while
    /// when the disk is full.
    fn take_spare(&mut self) {
        let spare = || {
            let file = self.directory.append(SPARE)?;
            allocate(&file)?;
            io::Result::Ok(file)
        };
        self.spare = spare().ok();
    }

    fn drop_old(&self) -> io::Result<()> {
        let segments = segments(&self.directory)?;
        let now = SystemTime::now();
        let mut size = 0_u64;
        for (place, first) in segments.iter().rev().enumerate() {
            let name = name_of(*first);
            let metadata = File::from(self.directory.open_at(&name, OFlag::O_PATH)?).metadata()?;
            size += metadata.len();
            let age = now.duration_since(metadata.modified()?).unwrap_or_default();
            if place > 0 && (size > self.bounds.size || age > self.bounds.age) {
                self.directory.remove_all(&name)?;
            }
        }
        Ok(())
    }

    /// Returns the file whose sync makes all appended events durable, and the number of the last of
    /// them. The caller syncs the file without holding the journal, so that others can write to it
    /// in the meantime.
    ///
    /// # Errors
    ///
    /// If events that could not be written before still cannot be written.
    pub fn file_to_sync(&mut self) -> io::Result<(File, u64)> {
        self.flush()?;
        Ok((self.file.try_clone()?, self.next - 1))
    }

    /// Closes the journal, so that the next supervisor continues without a gap in the numbers.
    ///
    /// # Errors
    ///
    /// If something cannot be written. The next supervisor then sees an unclean end.
    pub fn close(&mut self) -> io::Result<()> {
        self.flush()?;
        let mut line = Vec::new();
        add_line(&mut line, &Closed { closed: self.next })?;
        self.write(&line)?;
        self.file.sync_data()
    }
}

/// Opens the last segment, and makes sure that the next write begins a new line.
fn open_last(directory: &Directory, first: u64) -> io::Result<(File, u64)> {
    let name = name_of(first);
    let content = directory.read(&name, LIMIT)?;
    let mut file = directory.append(&name)?;
    let mut length = content.len() as u64;
    if content.last().is_some_and(|&last| last != b'\n') {
        match file.write_all(b"\n") {
            Ok(()) => length += 1,
            // The disk is full: the torn line is removed instead. It was left by a power failure,
            // and nobody misses it.
            Err(_) => {
                let whole = memchr::memrchr(b'\n', &content).map_or(0, |at| at + 1);
                length = whole as u64;
                file.set_len(length)?;
            }
        }
    }
    Ok((file, length))
}

/// Creates a segment. It is complete and on disk before it gets its name.
fn begin(
    directory: &Directory,
    spare: Option<File>,
    journal: JournalId,
    first: u64,
    known: &Known,
) -> io::Result<(File, u64, u64)> {
    let mut content = Vec::new();
    let reserved = first.saturating_add(BLOCK);
    add_line(&mut content, &Header { journal, segment: FORM, first, reserved })?;
    for known in known.lines() {
        add_line(&mut content, &KnownWrapper { known })?;
    }
    let make = || {
        let mut file = match spare {
            Some(file) => file,
            None => directory.append(SPARE)?,
        };
        // The spare file may have content from an attempt that failed. Truncating an empty file
        // would free its preallocated space.
        if file.metadata()?.len() > 0 {
            file.set_len(0)?;
        }
        allocate(&file)?;
        file.write_all(&content)?;
        file.sync_data()?;
        directory.rename(SPARE, &name_of(first))?;
        directory.sync()?;
        io::Result::Ok(file)
    };
    let file = make()?;
    let length = content.len() as u64;
    Ok((file, length, length))
}

/// Preallocates space for a segment beyond the end of a file, if the file system supports that.
fn allocate(file: &File) -> io::Result<()> {
    let length = i64::try_from(SEGMENT).unwrap_or(i64::MAX);
    match fallocate(file.as_fd(), FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ContainerId, EventKind, Evidence, ExitRecord, ExitStatus, Gap, GapReason, Incarnation,
        ProcessId, Timestamp,
    };
    use proptest::prelude::*;
    use std::fs;
    use std::path::PathBuf;

    struct Scratch {
        temp: tempfile::TempDir,
    }

    impl Scratch {
        fn new() -> Self {
            Self { temp: tempfile::tempdir().unwrap() }
        }

        fn root(&self) -> StateRoot {
            StateRoot::open(self.temp.path()).unwrap()
        }

        fn open(&self) -> Journal {
            self.open_with(Bounds::default())
        }

        fn open_with(&self, bounds: Bounds) -> Journal {
            Journal::open(&self.root(), bounds).unwrap()
        }

        fn segments(&self) -> Vec<PathBuf> {
            let names = fs::read_dir(self.temp.path().join(NAME)).unwrap();
            let mut paths: Vec<_> = names
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|it| it == "jsonl"))
                .collect();
            paths.sort();
            paths
        }
    }

    fn incarnation(number: u64) -> Incarnation {
        format!("{number:016x}").parse().unwrap()
    }

    fn event(container: &str, kind: EventKind) -> Event {
        KnownContainer::new(incarnation(7)).event(&container.parse().unwrap(), kind)
    }

    fn exited(code: u8) -> EventKind {
        ExitRecord::now(ExitStatus::Code(code), Evidence::Shim).event()
    }

    fn append(journal: &mut Journal, kinds: impl IntoIterator<Item = EventKind>) -> Vec<u64> {
        let mut events: Vec<_> = kinds.into_iter().map(|kind| event("c", kind)).collect();
        journal.append(&mut events).unwrap();
        events.iter().map(|event| event.seq).collect()
    }

    /// Returns the events by number, and the gaps by first number, last number and reason.
    fn read(journal: &Journal, next: u64) -> Vec<Result<u64, (u64, u64, GapReason)>> {
        let mut reader = journal.reader(next).unwrap();
        let upto = journal.cursor().number();
        let mut all = Vec::new();
        loop {
            let found = reader.read(upto, 3).unwrap();
            if found.is_empty() {
                return all;
            }
            all.extend(found.into_iter().map(|item| match item {
                Ok(event) => Ok(event.seq),
                Err(Gap { first, last, reason }) => Err((first, last, reason)),
            }));
        }
    }

    #[test]
    fn a_clean_end_leaves_no_gap_and_an_unclean_one_begins_the_next_block() {
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        let id = journal.id();
        assert_eq!(append(&mut journal, [EventKind::Started, exited(1)]), [1, 2]);
        journal.close().unwrap();
        drop(journal);
        let mut journal = scratch.open();
        assert_eq!((journal.id(), journal.cursor()), (id, Cursor::new(id, 2)));
        assert_eq!(append(&mut journal, [EventKind::Deleted]), [3]);
        drop(journal);
        let mut journal = scratch.open();
        let block = 3 + BLOCK;
        assert_eq!(journal.cursor().number(), block - 1);
        assert_eq!(append(&mut journal, [EventKind::Started]), [block]);
        let gap = Err((4, block - 1, GapReason::Unclean));
        assert_eq!(read(&journal, 1), [Ok(1), Ok(2), Ok(3), gap, Ok(block)]);
        assert_eq!(read(&journal, 3), [Ok(3), gap, Ok(block)]);
        assert_eq!(read(&journal, block + 1), []);
        // No event followed in that block; its reserved numbers are not used again all the same.
        drop(journal);
        let mut journal = scratch.open();
        journal.close().unwrap();
        let after = journal.cursor();
        drop(journal);
        let journal = scratch.open();
        assert!(after.number() > block && journal.cursor() == after, "{after}");
    }

    #[test]
    fn numbers_are_set_aside_before_they_are_given() {
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        for _ in 0..3 {
            append(&mut journal, std::iter::repeat_n(EventKind::OutOfMemory, 3000));
            let last = journal.cursor().number();
            let content = fs::read(scratch.segments().last().unwrap()).unwrap();
            let mut past = Past::default();
            past.add(&content);
            assert!(past.reserved > last, "{} are set aside, {last} is given", past.reserved);
        }
    }

    #[test]
    fn a_segment_begins_with_what_is_known_and_the_old_ones_go() {
        let scratch = Scratch::new();
        let bounds = Bounds { size: 3 * SEGMENT, ..Bounds::default() };
        let mut journal = scratch.open_with(bounds);
        append(&mut journal, [EventKind::Created { pid: 17 }, EventKind::Started]);
        let mut other =
            [event("gone", EventKind::Created { pid: 18 }), event("gone", EventKind::Deleted)];
        journal.append(&mut other).unwrap();
        while scratch.segments().len() < 3 || journal.oldest().unwrap() == 1 {
            append(&mut journal, std::iter::repeat_n(EventKind::OutOfMemory, 500));
        }
        let total: u64 = scratch.segments().iter().map(|it| it.metadata().unwrap().len()).sum();
        assert!(total <= 3 * SEGMENT, "{total}");
        let oldest = journal.oldest().unwrap();
        let all = read(&journal, 1);
        assert_eq!(all[0], Err((1, oldest - 1, GapReason::Dropped)));
        let numbers: Vec<_> = all[1..].iter().map(|item| item.unwrap()).collect();
        assert_eq!(numbers, (oldest..=journal.cursor().number()).collect::<Vec<_>>());
        let known = journal.known().clone();
        let of_it =
            &known.get(&"c".parse().unwrap()).unwrap().processes.get(&ProcessId::init()).unwrap();
        assert_eq!((of_it.pid, of_it.started, &of_it.exited), (Some(17), true, &None));
        assert_eq!(known.iter().count(), 1);
        drop(journal);
        // The last segment alone gives the same state.
        let segments = scratch.segments();
        segments[..segments.len() - 1].iter().for_each(|path| fs::remove_file(path).unwrap());
        assert_eq!(scratch.open().known(), &known);
    }

    #[test]
    fn what_is_older_than_the_bound_goes_with_the_next_segment() {
        let scratch = Scratch::new();
        let bounds = Bounds { age: Duration::from_secs(8000), ..Bounds::default() };
        let mut journal = scratch.open_with(bounds);
        append(&mut journal, [EventKind::Started]);
        // Sets the clock back instead of waiting.
        journal.begun -= Duration::from_secs(1001);
        append(&mut journal, [exited(0)]);
        assert_eq!(scratch.segments().len(), 2, "an eighth of the bound is over");
        let long_ago = SystemTime::now() - Duration::from_secs(8001);
        let first = fs::File::options().append(true).open(&scratch.segments()[0]).unwrap();
        first.set_modified(long_ago).unwrap();
        journal.begun -= Duration::from_secs(1001);
        append(&mut journal, [EventKind::Deleted]);
        assert_eq!(journal.oldest().unwrap(), 3);
    }

    #[test]
    fn a_reader_goes_on_across_segments_that_are_begun_meanwhile() {
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        let mut reader = journal.reader(1).unwrap();
        let mut seen = 0;
        while scratch.segments().len() < 4 {
            append(&mut journal, std::iter::repeat_n(EventKind::OutOfMemory, 700));
            for item in reader.read(journal.cursor().number(), usize::MAX).unwrap() {
                assert_eq!(item.unwrap().seq, seen + 1);
                seen += 1;
            }
            assert_eq!(seen, journal.cursor().number());
        }
        assert!(reader.read(seen, 1).unwrap().is_empty());
    }

    #[test]
    fn a_reader_tells_nothing_that_has_not_been_told() {
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        append(&mut journal, [EventKind::Started, EventKind::Paused, exited(0)]);
        let mut reader = journal.reader(1).unwrap();
        let numbers = |found: VecDeque<Result<Event, Gap>>| -> Vec<u64> {
            found.into_iter().map(|item| item.unwrap().seq).collect()
        };
        assert_eq!(numbers(reader.read(2, 9).unwrap()), [1, 2]);
        assert_eq!(numbers(reader.read(2, 9).unwrap()), [] as [u64; 0]);
        assert_eq!(numbers(reader.read(3, 9).unwrap()), [3]);
    }

    #[test]
    fn a_full_disk_hides_no_number_and_what_waits_is_written_first() {
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        append(&mut journal, [EventKind::Started]);
        let file = std::mem::replace(&mut journal.file, fs::File::open("/dev/null").unwrap());
        let mut lost = [event("c", EventKind::Paused)];
        assert!(journal.append(&mut lost).is_err());
        assert_eq!(lost[0].seq, 2);
        assert!(journal.file_to_sync().is_err(), "a removal must not believe that it is on disk");
        journal.file = file;
        assert_eq!(append(&mut journal, [exited(0)]), [3]);
        assert_eq!(read(&journal, 1), [Ok(1), Ok(2), Ok(3)]);
        journal.file = fs::File::open("/dev/null").unwrap();
        for _ in 0..MOST_UNWRITTEN + 10 {
            assert!(journal.append(&mut [event("c", EventKind::Paused)]).is_err());
        }
        assert_eq!(journal.unwritten.len(), MOST_UNWRITTEN);
    }

    #[test]
    fn room_for_a_segment_is_there_before_it_is_needed() {
        use std::os::unix::fs::MetadataExt;
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        let blocks = |name: &str| {
            let metadata = fs::metadata(scratch.temp.path().join(NAME).join(name)).unwrap();
            (metadata.len(), metadata.blocks() * 512)
        };
        let (length, room) = blocks(SPARE);
        assert!(length == 0 && room >= SEGMENT, "{length} bytes, room for {room}");
        let (length, room) = blocks(&name_of(1));
        assert!(length < 4096 && room >= SEGMENT, "{length} bytes, room for {room}");
        // The next supervisor allocates it again, whatever a crash has left in it.
        journal.close().unwrap();
        drop(journal);
        fs::write(scratch.temp.path().join(NAME).join(SPARE), "torn").unwrap();
        let _journal = scratch.open();
        assert_eq!(blocks(SPARE).0, 0);
    }

    #[test]
    fn the_last_exit_of_a_name_is_found_in_whichever_segment() {
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        append(&mut journal, [exited(1), EventKind::Deleted, exited(2), EventKind::Deleted]);
        let exec = Event { process: "exec".parse().unwrap(), ..event("c", exited(9)) };
        journal
            .append(&mut [exec, event("c-2", exited(3)), event("only", EventKind::Deleted)])
            .unwrap();
        while scratch.segments().len() < 3 {
            let some = std::iter::repeat_n(event("other", EventKind::OutOfMemory), 700);
            journal.append(&mut some.collect::<Vec<_>>()).unwrap();
        }
        let reader = journal.reader(1).unwrap();
        let code = |id: &str| {
            let id: ContainerId = id.parse().unwrap();
            reader.last_exit(&id).unwrap().map(|record| record.status)
        };
        assert_eq!(code("c"), Some(ExitStatus::Code(2)));
        assert_eq!(code("c-2"), Some(ExitStatus::Code(3)));
        assert_eq!((code("only"), code("2")), (None, None));
    }

    #[test]
    fn a_torn_line_costs_only_itself() {
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        append(&mut journal, [EventKind::Started]);
        drop(journal);
        let mut file = fs::File::options().append(true).open(&scratch.segments()[0]).unwrap();
        file.write_all(b"{\"container\":\"c\",\"incarn").unwrap();
        let mut journal = scratch.open();
        let [next] = append(&mut journal, [exited(5)])[..] else { panic!("one event") };
        assert_eq!(read(&journal, 1), [Ok(1), Err((2, next - 1, GapReason::Unclean)), Ok(next)]);
        let known = journal.known().get(&"c".parse().unwrap()).unwrap();
        let exit = known.processes.get(&ProcessId::init()).unwrap().exited.as_ref();
        assert_eq!(exit.unwrap().status, ExitStatus::Code(5));
    }

    #[test]
    fn a_directory_that_makes_no_sense_begins_another_journal() {
        let scratch = Scratch::new();
        let journal = scratch.open();
        let id = journal.id();
        drop(journal);
        let segment = scratch.segments()[0].clone();
        fs::write(&segment, "no header\n").unwrap();
        let journal = scratch.open();
        assert_ne!(journal.id(), id);
        drop(journal);
        fs::remove_file(&segment).unwrap();
        fs::create_dir(&segment).unwrap();
        drop(scratch.open());
        fs::remove_dir_all(scratch.temp.path().join(NAME)).unwrap();
        fs::write(scratch.temp.path().join(NAME), "").unwrap();
        let root = scratch.root();
        let error = Journal::open(&root, Bounds::default()).unwrap_err();
        assert!(crate::directory::is_damage(&error), "{error}");
        root.set_journal_aside("a file").unwrap();
        Journal::open(&root, Bounds::default()).unwrap();
    }

    #[test]
    fn a_damaged_last_segment_falls_back_on_the_one_before_it() {
        let scratch = Scratch::new();
        let mut journal = scratch.open();
        append(&mut journal, [EventKind::Created { pid: 17 }]);
        while scratch.segments().len() < 2 {
            append(&mut journal, std::iter::repeat_n(EventKind::OutOfMemory, 700));
        }
        let (id, last) = (journal.id(), append(&mut journal, [exited(4)])[0]);
        drop(journal);
        let path = scratch.segments()[1].clone();
        let content = fs::read(&path).unwrap();
        let headless = content.iter().position(|&b| b == b'\n').unwrap() + 1;
        fs::write(&path, &content[headless..]).unwrap();
        let journal = scratch.open();
        assert_eq!(journal.id(), id);
        assert!(journal.cursor().number() > last);
        let known = &journal.known().get(&"c".parse().unwrap()).unwrap().processes;
        let init = known.get(&ProcessId::init()).unwrap();
        assert_eq!((init.pid, init.exited.is_some()), (Some(17), true));
    }

    #[test]
    fn what_earlier_builds_kept_is_read() {
        let scratch = Scratch::new();
        let root = scratch.root();
        let line = |code| {
            format!(
                "{{\"container\":\"a\",\"seq\":3,\"time\":\"2026-11-01T00:00:00.000000000Z\",\"process\":\"init\",\"event\":\"exited\",\"status\":{{\"code\":{code}}},\"evidence\":\"shim\",\"asked\":false}}\n"
            )
        };
        let text = format!("{}{}{{\"torn\n{}", line(1), line(1), line(2));
        fs::write(scratch.temp.path().join(EXITS), text).unwrap();
        let kinds: Vec<_> = import_exits(&root).unwrap().into_iter().map(|it| it.kind).collect();
        let deleted = || EventKind::Deleted;
        assert_eq!(kinds, [exited(1), deleted(), exited(2), deleted()]);
        forget_imported_exits(&root).unwrap();
        assert_eq!(import_exits(&root).unwrap(), []);
        let id: ContainerId = "web".parse().unwrap();
        let container = root.stage_container().unwrap().publish(&id).unwrap();
        assert_eq!(import_container(&container, &id, incarnation(1)).unwrap(), []);
        let line = "{\"seq\":1,\"time\":\"2026-11-01T00:00:00.000000000Z\",\"process\":\"init\",\"event\":\"created\",\"pid\":17}\n";
        fs::write(container.directory().path().join("events.jsonl"), line).unwrap();
        let imported = import_container(&container, &id, incarnation(1)).unwrap();
        assert_eq!((imported.len(), &imported[0].kind), (1, &EventKind::Created { pid: 17 }));
        forget_imported(&container).unwrap();
        assert_eq!(import_container(&container, &id, incarnation(1)).unwrap(), []);
    }

    fn kinds() -> impl Strategy<Value = EventKind> {
        prop_oneof![
            (1..9).prop_map(|pid| EventKind::Created { pid }),
            Just(EventKind::StartFailed { reason: "no".to_owned() }),
            Just(EventKind::Starting),
            Just(EventKind::Started),
            Just(EventKind::Pausing),
            Just(EventKind::Paused),
            Just(EventKind::Resuming),
            Just(EventKind::Resumed),
            Just(EventKind::OutOfMemory),
            Just(EventKind::ShimLost),
            Just(EventKind::Adopted),
            (0..3_u8).prop_map(exited),
            Just(EventKind::SetAside),
            Just(EventKind::Deleted),
        ]
    }

    fn any_events() -> impl Strategy<Value = Vec<Event>> {
        let one = ("[ab]", 1..4_u64, 1..3_u32, prop_oneof!["init", "exec"], kinds());
        let one = one.prop_map(|(container, of, run, process, kind)| Event {
            container: container.parse().unwrap(),
            incarnation: incarnation(of),
            run,
            seq: 0,
            time: Timestamp::now(),
            process: process.parse().unwrap(),
            kind,
        });
        proptest::collection::vec(one, 0..40)
    }

    proptest! {
        #[test]
        fn what_is_known_survives_restarts_snapshots_and_repetition(
            mut events in any_events(), from in 0..40_usize)
        {
            let mut known = Known::default();
            for (place, event) in events.iter_mut().enumerate() {
                event.seq = place as u64 + 1;
                known.add(event);
            }
            let mut content = Vec::new();
            let header = Header { journal: JournalId::random().unwrap(), segment: FORM, first: 1, reserved: 9 };
            add_line(&mut content, &header).unwrap();
            for line in known.lines() {
                add_line(&mut content, &KnownWrapper { known: line }).unwrap();
            }
            let mut past = Past::default();
            past.add(&content);
            let without_empty = |known: &Known| -> Vec<_> {
                let mut all: Vec<_> = known.lines().map(|line| format!("{line:?}")).collect();
                all.sort();
                all
            };
            prop_assert_eq!(without_empty(&past.known), without_empty(&known));
            // Adds all events from some position on a second time.
            for event in events.iter().skip(from) {
                past.known.add(event);
            }
            if from == 0 {
                prop_assert_eq!(without_empty(&past.known), without_empty(&known));
            }
        }

        #[test]
        fn foreign_bytes_hide_no_event(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut content = noise.clone();
            content.push(b'\n');
            add_line(&mut content, &Event { seq: 7, ..event("c", exited(1)) }).unwrap();
            content.extend(&noise);
            let found: Vec<u64> = events(&content).map(|event| event.seq).collect();
            prop_assert_eq!(found, [7]);
        }
    }
}
